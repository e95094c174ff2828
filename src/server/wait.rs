//! Waiting for the end of a job, for APIs whose answer is the image.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;
use tokio::time::timeout;

use super::fault::Fault;
use super::job::{Job, Output, State};
use super::state::{Server, blocking};

/// After this time without an answer, bytes are sent so that nothing between here and the client
/// takes the connection for dead.
const PATIENCE: Duration = Duration::from_secs(15);
/// The time between such bytes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// The interval between checks of a queued job after `PATIENCE`.
const TICK: Duration = Duration::from_secs(1);

impl Server {
    /// Waits for the end of `job`, which goes on if the result is dropped.
    ///
    /// # Errors
    /// 500 if the list of jobs cannot be read.
    pub async fn end(&self, id: &str, owner: &str) -> Result<Job, Fault> {
        let channel = self.events.channel(id);
        let mut changed = channel.watch();
        let mut seen = 0;
        loop {
            changed.borrow_and_update();
            let job = self.job(id, owner)?;
            if job.state.is_final() {
                // It may have ended before this process began, or long ago.
                self.events.reset(&job.id, true);
                return Ok(job);
            }
            // Only a change of state is worth a look at the list of jobs.
            loop {
                let events = channel.after(seen);
                seen = events.last().map_or(seen, |e| e.number);
                if events.iter().any(|e| e.name == "status") {
                    break;
                }
                if changed.changed().await.is_err() {
                    return Err(Fault::internal("the events of the job ended before it"));
                }
            }
        }
    }

    /// Waits for the end of `job`. Dropping the result cancels the job.
    pub fn wait(self: &Arc<Self>, job: Job) -> Waiting {
        Waiting { server: self.clone(), job, over: false }
    }

    /// The bytes of a result.
    ///
    /// # Errors
    /// 410 if it was deleted.
    pub fn read_result(&self, output: &Output) -> Result<Vec<u8>, Fault> {
        self.result(&output.file)
    }
}

/// The fault of a result that is not there any more.
pub fn expired() -> Fault {
    Fault::new(410, "expired", "the images of this job were deleted").hint("send the request again")
}

/// A job whose client waits for it. If the client goes away, the job is cancelled.
pub struct Waiting {
    server: Arc<Server>,
    /// The job as it was when it was accepted.
    pub job: Job,
    over: bool,
}

impl Waiting {
    /// The job once it is over.
    ///
    /// # Errors
    /// 500 if the list of jobs cannot be read.
    pub async fn end(&mut self) -> Result<Job, Fault> {
        let job = self.server.end(&self.job.id, &self.job.owner).await?;
        self.over = true;
        Ok(job)
    }

    fn is_running(&self) -> bool {
        let job = self.server.job(&self.job.id, &self.job.owner);
        job.is_ok_and(|job| job.state == State::Running)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A job that was accepted survives the end of the server.
        if self.over || self.server.is_draining() {
            return;
        }
        let (server, job) = (self.server.clone(), self.job.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { server.cancel(&job.id, &job.owner).await.map(drop) });
        }
    }
}

/// The images of `job`, which is over.
///
/// # Errors
/// The fault with which it failed; 409 if it was cancelled; 410 if its images have expired.
pub fn succeeded(job: &Job) -> Result<&[Output], Fault> {
    match job.state {
        State::Succeeded => Ok(&job.outputs),
        State::Canceled => Err(Fault::new(409, "cancelled", "the job was cancelled")),
        State::Expired => Err(expired()),
        _ => Err(job.fault.clone().unwrap_or_else(|| Fault::internal("the job failed"))),
    }
}

/// Answers with what `render` makes of the job once it is over. If that takes long, the answer
/// begins before, with spaces, which JSON allows; a fault is then rendered by `fault`.
///
/// # Errors
/// Those of `render`, in an answer that has not begun.
pub async fn answer(
    mut waiting: Waiting,
    render: impl FnOnce(&Server, &Job) -> Result<Value, Fault> + Send + 'static,
    fault: fn(&Fault) -> Value,
) -> Result<Response, Fault> {
    let since = Instant::now();
    loop {
        match timeout(PATIENCE.saturating_sub(since.elapsed()).max(TICK), waiting.end()).await {
            Ok(job) => {
                let job = job?;
                let value = blocking(|| render(&waiting.server, &job))?;
                return Ok(axum::Json(value).into_response());
            }
            Err(_) if waiting.is_running() => break,
            Err(_) => {}
        }
    }
    let body = stream::unfold(Some((waiting, render)), move |state| async move {
        let (mut waiting, render) = state?;
        let Ok(job) = timeout(SIGN_OF_LIFE, waiting.end()).await else {
            return Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), Some((waiting, render))));
        };
        let value = job.and_then(|job| blocking(|| render(&waiting.server, &job)));
        let value = value.unwrap_or_else(|f| fault(&f));
        Some((Ok(Bytes::from(value.to_string())), None))
    });
    let content_type = (header::CONTENT_TYPE, "application/json");
    Ok(([content_type], Body::from_stream(body)).into_response())
}
