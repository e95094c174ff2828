//! From what a client asked for to a job, and to its end. Every dialect goes through here, so all
//! refuse the same requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::access::{Owner, hash};
use super::broker::{NewJob, Submitted};
use super::clock::SECOND;
use super::fault::Fault;
use super::job::{Job, JobSpec, Lane, Output, State, hex, random_hex};
use super::limits::{Charge, too_much};
use super::middleware::note_limits;
use super::models::ServedModel;
use super::state::{Server, blocking};
use super::webhook::Webhook;
use crate::error::Error;
use crate::pipeline::images::{DEFAULT_QUALITY, Format, image_size};
use crate::pipeline::request::{self, AspectRatio, Request};
use crate::pipeline::{check_side, random_seed};

/// The largest image to start from, in pixels. It is checked before the image is decoded.
const MAX_INPUT_PIXELS: u64 = 16_000_000;
/// Every FLUX model has tokens of 16 x 16 pixels; the worker checks again.
const TOKEN: usize = 16;
/// After this time without an answer, bytes are sent so that nothing between here and the client
/// takes the connection for dead.
const PATIENCE: Duration = Duration::from_secs(15);
/// The time between such bytes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The request; what it leaves out is the model's default.
    pub request: Request,
    /// The name of a model.
    pub model: Option<String>,
    /// The file of an image to start from.
    pub input: Option<Bytes>,
    /// The format of the images.
    pub format: Format,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// The API through which it comes.
    pub dialect: &'static str,
    /// The client's idempotency key.
    pub idempotency: Option<String>,
    /// How urgent it is.
    pub lane: Lane,
    /// The id of the job, from [`client_id`]; otherwise it is drawn.
    pub id: Option<String>,
    /// What the API needs to describe the job later: see [`JobSpec::echo`].
    pub echo: Value,
    /// Whom to tell when the job is over.
    pub webhook: Option<Webhook>,
}

/// The id of the job of `owner` that a client of `dialect` calls `name`. The names of one client
/// are of no use to another.
pub fn client_id(dialect: &str, owner: &str, name: &str) -> String {
    hex(&hash(&format!("{dialect}\0{owner}\0{name}"))[..16])
}

impl Draft {
    /// A request for PNG files with the default model.
    pub fn new(request: Request, dialect: &'static str) -> Self {
        Draft {
            request,
            model: None,
            input: None,
            format: Format::Png,
            quality: DEFAULT_QUALITY,
            dialect,
            idempotency: None,
            lane: Lane::Normal,
            id: None,
            echo: Value::Null,
            webhook: None,
        }
    }
}

impl Server {
    /// Checks a draft and accepts it as a job, which is durable when this returns. The flag says
    /// whether it is new: an idempotency key may name an earlier one.
    ///
    /// # Errors
    /// 422 and 404 for what cannot be drawn, 403 and 422 for what the owner's plan does not allow,
    /// 429 for what it does not allow now, 503 if the queue is full or the server ends.
    pub fn submit(&self, draft: Draft, owner: &Owner) -> Result<(Job, bool), Fault> {
        blocking(|| self.submit_blocking(draft, owner))
    }

    fn submit_blocking(&self, draft: Draft, owner: &Owner) -> Result<(Job, bool), Fault> {
        if self.is_draining() {
            return Err(
                Fault::new(503, "shutting_down", "the server is about to end").retry_after(10)
            );
        }
        if let Some(webhook) = &draft.webhook {
            webhook.check(&self.options.webhooks)?;
        }
        let model = self.check(&draft, owner, draft.input.is_some())?;
        let Draft { mut request, input, format, quality, dialect, idempotency, lane, .. } = draft;
        let (images, pixels_of_one) = self.size_of(&request);
        let plan = self.access.plan(owner);
        let charge = Charge { images, pixels: images.saturating_mul(pixels_of_one) };
        let idempotency = idempotency.map(|key| {
            let sent = json!({
                "request": request, "model": model.name, "format": format.name(),
                "quality": quality, "input": input.as_deref().map(|b| hex(&hash_bytes(b))),
            });
            (key, hex(&hash(&sent.to_string())))
        });
        request.seed.get_or_insert_with(random_seed);
        let id = match draft.id {
            Some(id) => id,
            None => random_hex(16)?,
        };
        // The files of a job that a client sends again stay as they are.
        let is_known = || self.broker.job(&id, &owner.0).is_ok_and(|job| job.is_some());
        if let Some(bytes) = input.as_ref().filter(|_| !is_known()) {
            self.data.write_input(&id, bytes)?;
        }
        let work = self.work(&request);
        let cost = self.rates.seconds(&model.name, work).unwrap_or(work);
        let spec = JobSpec {
            request,
            model: model.name,
            format: format.name().into(),
            quality: quality.clamp(1, 100),
            has_input: input.is_some(),
            dialect: dialect.into(),
            echo: draft.echo,
            webhook: draft.webhook,
        };
        let owner_id = owner.0.clone();
        let new =
            NewJob { id: id.clone(), owner: owner_id, spec, lane, cost, plan, charge, idempotency };
        let submitted = self.broker.submit(new);
        if let Ok(Submitted::New(job, standings)) = submitted {
            note_limits(standings);
            self.publish_accepted(&job);
            self.wake.notify_one();
            return Ok((job, true));
        }
        if !is_known() {
            self.data.delete(&id);
        }
        match submitted? {
            Submitted::New(job, _) | Submitted::Same(job) => Ok((job, false)),
            Submitted::Never(limit, amount) => Err(too_much(&limit, amount)),
            Submitted::Limited { wait, violated, standings } => {
                note_limits(standings);
                Err(self.limited(owner, wait, &violated))
            }
        }
    }

    /// Checks what can be checked without the model, and returns the model to use.
    ///
    /// # Errors
    /// 422, 404, and 403 for what the plan of `owner` does not allow.
    pub fn check(
        &self,
        draft: &Draft,
        owner: &Owner,
        has_input: bool,
    ) -> Result<ServedModel, Fault> {
        let Draft { request, model, input, .. } = draft;
        request.check_values()?;
        for (name, side) in [("width", request.width), ("height", request.height)] {
            let checked = side.map_or(Ok(()), |side| check_side(name, side, TOKEN));
            checked.map_err(|e| Fault::from(e).parameter(name))?;
        }
        if request.strength.is_some() && !has_input {
            return Err(Fault::invalid("strength", "strength: it needs an image to start from"));
        }
        input.as_ref().map_or(Ok(()), |bytes| check_image(bytes))?;
        let model = self.models.find(model.as_deref())?;
        let names = request.prompt.loras().iter().chain(&request.loras);
        names.map(|lora| &lora.name).try_for_each(|name| self.models.check_lora(name))?;
        let (_, pixels_of_one) = self.size_of(request);
        let plan = self.access.plan(owner);
        // A model has several names: with and without its extension, and aliases.
        let is_meant = |name: &str| {
            name == model.name
                || self.models.find(Some(name)).is_ok_and(|named| named.open == model.open)
        };
        plan.as_ref().map_or(Ok(()), |plan| plan.check(is_meant, pixels_of_one))?;
        Ok(model)
    }

    /// The fault of a request that must wait `wait` nanoseconds, or until a job of `owner` ends.
    fn limited(&self, owner: &Owner, wait: Option<i64>, violated: &[String]) -> Fault {
        let of_window = wait.unwrap_or(0).max(0) as f64 / SECOND as f64;
        let of_active = match violated.iter().any(|name| name == ACTIVE) {
            true => self.next_end(&owner.0).unwrap_or(1.0),
            false => 0.0,
        };
        let (ms, seconds) = retry_times(of_window.max(of_active), random_seed());
        let message = format!("the limits of your key are reached: {}", violated.join(", "));
        let mut fault = Fault::new(429, "rate_limit_exceeded", message)
            .hint(format!("send the request again in {seconds} seconds"))
            .retry_after(seconds);
        fault.retry_after_ms = u32::try_from(ms).ok();
        fault
    }

    /// The images of a request, and the pixels of each.
    fn size_of(&self, request: &Request) -> (u64, u64) {
        let (width, height) = self.sides_of(request);
        let images = if request.only.is_some() { 1 } else { request.count.unwrap_or(1) as u64 };
        (images, width as u64 * height as u64)
    }

    /// The work of a request: million pixels that pass through the transformer, over all steps.
    pub fn work(&self, request: &Request) -> f64 {
        let (images, pixels) = self.size_of(request);
        let defaults = self.worker().defaults.unwrap_or_default();
        let steps = request
            .steps
            .map_or_else(|| defaults["steps"].as_f64().unwrap_or(20.0), |steps| steps as f64);
        let halves = if request.cfg_scale.is_some_and(|scale| scale != 1.0) { 2.0 } else { 1.0 };
        let part = f64::from(request.strength.unwrap_or(1.0)).max(0.05);
        images as f64 * pixels as f64 * steps * halves * part / 1e6
    }

    /// The size with this aspect ratio, such as `16:9`, and about `part` of the pixels that the
    /// default model draws by itself.
    ///
    /// # Errors
    /// 422.
    pub fn shape(&self, parameter: &str, ratio: &str, part: f64) -> Result<(usize, usize), Fault> {
        let ratio: AspectRatio =
            ratio.parse().map_err(|e: Error| Fault::from(e).parameter(parameter))?;
        let (width, height) = self.sides_of(&Request::default());
        Ok(ratio.size((part * (width * height) as f64) as usize, TOKEN))
    }

    /// Width and height of the images of a request.
    pub fn sides_of(&self, request: &Request) -> (usize, usize) {
        let defaults = self.worker().defaults.unwrap_or_default();
        let side = |given: Option<usize>, name: &str| {
            given.unwrap_or_else(|| defaults[name].as_u64().unwrap_or(1024) as usize)
        };
        (side(request.width, "width"), side(request.height, "height"))
    }

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
        blocking(|| std::fs::read(self.data.result(&output.file))).map_err(|_| expired())
    }
}

/// The name of limits on jobs that wait or run.
const ACTIVE: &str = "active";
/// Waits of this many seconds and more are spread by whole seconds.
const LONG_WAIT: f64 = 10.0;
/// The most seconds by which a wait is spread.
const MAX_SPREAD: f64 = 10.0;

/// The time after which a client may come back, in milliseconds and in whole seconds: `seconds`,
/// and up to a tenth of it, so that not all clients come back at once. A short wait is not spread
/// beyond the whole second.
fn retry_times(seconds: f64, random: u64) -> (u64, u64) {
    let part = (random % 1001) as f64 / 1000.0;
    let spread = (seconds / 10.0).min(MAX_SPREAD) * part;
    let whole = seconds.ceil().max(1.0);
    let until = match seconds >= LONG_WAIT {
        true => seconds + spread,
        false => (seconds + spread).min(whole),
    };
    ((until * 1000.0).ceil().max(1.0) as u64, (until.ceil() as u64).max(1))
}

/// Checks that `bytes` are an image that can be read and is not too large, before it is decoded.
///
/// # Errors
/// 422.
pub fn check_image(bytes: &[u8]) -> Result<(), Fault> {
    let size = image_size(bytes, MAX_INPUT_PIXELS);
    size.map(drop).map_err(|e| Fault::from(e).parameter("image"))
}

fn hash_bytes(bytes: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).into()
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
            runtime.spawn(async move { server.cancel(&job.id, &job.owner).map(drop) });
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

/// How often a queued job is looked at once the patience has ended.
const TICK: Duration = Duration::from_secs(1);

/// `WIDTHxHEIGHT`; `None` for `auto`.
///
/// # Errors
/// 422.
pub fn parse_size(text: &str) -> Result<Option<(usize, usize)>, Fault> {
    if text == "auto" || text.is_empty() {
        return Ok(None);
    }
    let read = || {
        let (width, height) = text.split_once(['x', 'X', '\u{d7}'])?;
        Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
    };
    read().map(Some).ok_or_else(|| {
        let limits = format!("multiples of {TOKEN} from {TOKEN} to {}", request::MAX_SIDE);
        Fault::invalid("size", format!("size: expected auto, or WIDTHxHEIGHT in {limits}"))
    })
}

/// The bytes of an image in base64, bare or as a data URI. Nothing is ever fetched.
///
/// # Errors
/// 422.
pub fn parse_image(parameter: &str, text: &str) -> Result<Bytes, Fault> {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
    let refused = |expected: &str| {
        Err(Fault::invalid(parameter, format!("{parameter}: expected {expected}")))
    };
    let text = text.trim();
    if text.starts_with("http://") || text.starts_with("https://") || text.starts_with("file:") {
        return refused("the image itself: this server fetches no addresses");
    }
    let encoded = match text.strip_prefix("data:") {
        Some(rest) => match rest.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return refused("a data URI with base64"),
        },
        None => text,
    };
    let clean: String = encoded.chars().filter(|c| !c.is_whitespace()).collect();
    match BASE64_STANDARD.decode(&clean).or_else(|_| BASE64_URL_SAFE.decode(&clean)) {
        Ok(bytes) => Ok(bytes.into()),
        Err(_) => refused("an image in base64, or a data URI"),
    }
}

/// `value` without the images in it, for [`JobSpec::echo`]: they are large, and are kept already.
pub fn without_images(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() > MAX_ECHOED || text.starts_with("data:") => Value::Null,
        Value::Array(list) => list.iter().map(without_images).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), without_images(value))).collect()
        }
        other => other.clone(),
    }
}

/// The longest text that is sent back, in bytes.
const MAX_ECHOED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f36_images_are_inline_and_addresses_are_not_fetched() {
        assert_eq!(parse_image("image", "aGk=").unwrap(), &b"hi"[..]);
        assert_eq!(parse_image("image", " data:image/png;base64,aG\nk= ").unwrap(), &b"hi"[..]);
        for bad in ["http://127.0.0.1/x.png", "https://x", "file:///etc/passwd", "data:x,y", "%%"] {
            let fault = parse_image("image", bad).unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some("image")), "{bad}");
        }
    }

    #[test]
    fn waits_are_never_too_short_and_spread_by_a_tenth_at_most() {
        for random in [0, 7, 500, 1000, u64::MAX] {
            for seconds in [0.0, 0.0004, 0.95, 1.0, 9.2, 10.0, 59.5, 1e4] {
                let (ms, whole) = retry_times(seconds, random);
                assert!(ms as f64 >= seconds * 1000.0 && ms >= 1, "{seconds}: {ms}");
                assert!(whole * 1000 >= ms && whole >= 1, "{seconds}: {ms} ms, {whole} s");
                assert!(ms as f64 <= seconds * 1100.0 + 1.0, "{seconds}: {ms}");
            }
        }
        assert_eq!(retry_times(0.95, 1000).1, 1);
        assert_eq!(retry_times(20.0, 0), (20_000, 20));
    }

    #[test]
    fn sizes_are_read_and_never_rounded() {
        assert_eq!(parse_size("1024x768").unwrap(), Some((1024, 768)));
        assert_eq!(parse_size("auto").unwrap(), None);
        for bad in ["1024", "-1x16", "x", "1e3x16", "16x16x16"] {
            assert_eq!(parse_size(bad).unwrap_err().status, 422, "{bad}");
        }
    }
}
