//! Calls the webhooks of jobs that are over, several times until one answers. Calls that are still
//! open when the process ends are made by the next one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;

use super::api;
use super::job::{Job, hex};
use super::links::hmac;
use super::state::{Server, blocking};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pauses before the second, third, ... attempt, in seconds.
const PAUSES: [u64; 4] = [1, 5, 30, 120];
/// The most calls at the same time.
const MAX_CALLS: usize = 16;

/// Calls the addresses of jobs that an earlier process has left, and then those of `ended`.
pub async fn call_all(server: Arc<Server>, mut ended: UnboundedReceiver<Job>) {
    let slots = Arc::new(Semaphore::new(MAX_CALLS));
    let earlier = blocking(|| server.broker.owed_calls()).unwrap_or_else(|fault| {
        server.log(&format!("webhooks of earlier jobs: {}", fault.message));
        Vec::new()
    });
    // A job that ended meanwhile is in both.
    let mut called: HashSet<String> = earlier.iter().map(|job| job.id.clone()).collect();
    earlier.into_iter().for_each(|job| call(&server, job, &slots));
    while let Some(job) = ended.recv().await {
        if !called.remove(&job.id) {
            call(&server, job, &slots);
        }
    }
}

/// Calls the address of `job`, which is over, if it has one.
fn call(server: &Arc<Server>, job: Job, slots: &Arc<Semaphore>) {
    let Some(webhook) = job.spec.as_ref().and_then(|spec| spec.webhook.clone()) else { return };
    let (server, slots) = (server.clone(), slots.clone());
    tokio::spawn(async move {
        let body = blocking(|| api::webhook_body(&server, &job)).to_string();
        let signature = webhook.secret.map(|s| hex(&hmac(s.as_bytes(), body.as_bytes())));
        let call = Arc::new(Call { url: webhook.url, body, signature });
        let id = &job.id;
        let mut pauses = PAUSES.iter();
        loop {
            let slot = slots.acquire().await;
            let once = call.clone();
            let sent = tokio::task::spawn_blocking(move || once.send()).await;
            drop(slot);
            let refused = match sent {
                Ok(Ok(status @ 200..=299)) => {
                    server.log(&format!("job {id}: webhook {status}"));
                    break;
                }
                Ok(Ok(status)) => format!("it answered {status}"),
                Ok(Err(e)) => e,
                Err(_) => "the call failed".into(),
            };
            match pauses.next() {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(*seconds)).await,
                None => {
                    server.log(&format!("job {id}: the webhook is given up: {refused}"));
                    break;
                }
            }
        }
        let _turn = server.turn().await;
        if let Err(fault) = blocking(|| server.broker.call_settled(id)) {
            server.log(&format!("job {id}: {}", fault.message));
        }
    });
}

struct Call {
    url: String,
    body: String,
    signature: Option<String>,
}

impl Call {
    /// The status of the answer.
    fn send(&self) -> Result<u16, String> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .proxy(None)
            .user_agent(concat!("flux-fast/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let mut request = agent.post(&self.url).header("content-type", "application/json");
        if let Some(signature) = &self.signature {
            request = request.header("x-bfl-signature", format!("sha256={signature}"));
        }
        let answer = request.send(&self.body).map_err(|e| e.to_string())?;
        Ok(answer.status().as_u16())
    }
}
