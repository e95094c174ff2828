//! Requests to a server of this program: sent again while it is full or away, with growing pauses.

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Response};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::super::cancelled;
use super::super::progress::Progress;
use super::backoff::{Backoff, pause, random};
use crate::error::{Error, Kind, Result};
use crate::library::given::root_certs;
use crate::message::PARAMETERS;
use crate::text::shortened;
use crate::units;

/// The largest answer that is not an image, in bytes.
const MAX_JSON: u64 = 16 << 20;
/// The largest image, in bytes: four times the largest in BMP.
const MAX_IMAGE: u64 = 256 << 20;
/// How long a connection may take, and how long nothing may arrive.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(60);
/// Answers after which the same request may succeed.
const TEMPORARY: [u16; 6] = [408, 425, 429, 502, 503, 504];
/// The longest message of an answer that is shown, in characters.
const MAX_SHOWN: usize = 500;

/// A client of one server.
pub struct Client {
    agent: Agent,
    base: String,
    authorization: Option<String>,
    /// How long a request is sent again.
    patience: Duration,
    /// The server has answered before: its address is right.
    reached: Cell<bool>,
}

impl Client {
    /// A client of the server at `url`, with its key. The server's certificate is checked against
    /// those in the file `ca_cert`, if there is one.
    ///
    /// # Errors
    /// [`Kind::Argument`] if one of them cannot be used, [`Kind::Missing`] if the file cannot be
    /// read.
    pub fn new(
        url: &str,
        key: Option<&str>,
        ca_cert: Option<&Path>,
        patience: Duration,
    ) -> Result<Self> {
        let base = url.trim_end_matches('/').to_string();
        let parsed: Option<ureq::http::Uri> = base.parse().ok();
        let scheme = parsed.as_ref().and_then(|uri| uri.scheme_str());
        if !matches!(scheme, Some("http" | "https")) {
            let full = format!("http://{url}");
            let expected = if scheme.is_none() { &full } else { "http://HOST:PORT" };
            return Err(Error::argument("this is not the address of a server")
                .at("URL")
                .found(url)
                .expected(expected));
        }
        let is_sendable = |key: &str| key.bytes().all(|b| (0x21..0x7f).contains(&b));
        if key.is_some_and(|key| key.is_empty() || !is_sendable(key)) {
            return Err(Error::argument("the key contains characters that no key has")
                .at("--key")
                .expected("ASCII letters, digits and signs, without spaces"));
        }
        let tls = match ca_cert {
            Some(path) => TlsConfig::builder().root_certs(root_certs(path)?).build(),
            None => TlsConfig::default(),
        };
        let config = Agent::config_builder()
            .tls_config(tls)
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("flux-fast/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE));
        let authorization = key.map(|key| format!("Bearer {key}"));
        let reached = Cell::new(false);
        Ok(Client { agent: config.build().into(), base, authorization, patience, reached })
    }

    /// The JSON at `path`.
    pub fn get(&self, path: &str, progress: &Progress) -> Result<Value> {
        self.patiently(progress, || self.json(self.call(path, None, None)?))
    }

    /// The JSON that answers `body`. With an idempotency key the server does not act twice on the
    /// same request.
    pub fn post(
        &self,
        path: &str,
        body: &Value,
        idempotency: Option<&str>,
        progress: &Progress,
    ) -> Result<Value> {
        let body = body.to_string();
        self.patiently(progress, || self.json(self.call(path, Some(&body), idempotency)?))
    }

    /// The image at `path`.
    pub fn image(&self, path: &str, progress: &Progress) -> Result<Vec<u8>> {
        self.patiently(progress, || {
            let mut response = self.call(path, None, None)?;
            let bytes = response.body_mut().with_config().limit(MAX_IMAGE).read_to_vec();
            bytes.map_err(|e| self.unreachable(&e))
        })
    }

    /// The text at `path`, if it can be had at once.
    pub fn text(&self, path: &str) -> Option<String> {
        let mut response = self.call(path, None, None).ok()?;
        response.body_mut().with_config().limit(MAX_JSON).read_to_string().ok()
    }

    /// Cancels a job, with one attempt.
    pub fn cancel(&self, id: &str) -> Result<()> {
        let path = format!("/api/v2/jobs/{id}/cancel");
        self.call(&path, Some("{}"), None).map(drop).map_err(|failure| failure.error)
    }

    /// The error for an answer that a server of this program does not give.
    pub fn not_ours(&self) -> Error {
        Error::device("the answer is not that of a flux-fast server")
            .at(&self.base)
            .try_("the address that `flux-fast serve` prints".to_string())
    }

    /// Sends one request; without a body it is a GET.
    fn call(
        &self,
        path: &str,
        body: Option<&str>,
        idempotency: Option<&str>,
    ) -> std::result::Result<Response<Body>, Failure> {
        let url = format!("{}{path}", self.base);
        let authorization = self.authorization.as_ref();
        let sent = match body {
            None => {
                let request = self.agent.get(&url);
                authorization.into_iter().fold(request, |r, a| r.header("authorization", a)).call()
            }
            Some(body) => {
                let request = self.agent.post(&url).header("content-type", "application/json");
                let request =
                    authorization.into_iter().fold(request, |r, a| r.header("authorization", a));
                let request =
                    idempotency.into_iter().fold(request, |r, k| r.header("idempotency-key", k));
                request.send(body)
            }
        };
        let mut response = sent.map_err(|e| self.unreachable(&e))?;
        self.reached.set(true);
        let status = response.status().as_u16();
        if (200..300).contains(&status) {
            return Ok(response);
        }
        let asked = retry_after(response.headers());
        let location = text_of(response.headers(), "location");
        let text = response.body_mut().with_config().limit(MAX_JSON).read_to_string();
        let answer: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let mut error = match location {
            Some(location) if (300..400).contains(&status) => {
                Error::argument("the server is at another address")
                    .found(status)
                    .expected(shortened(&location, MAX_SHOWN))
            }
            _ => fault_of(status, &answer["error"]),
        };
        if error.place().is_none() {
            error = error.at(&self.base);
        }
        if (status == 401 || status == 403) && self.authorization.is_none() {
            error = error.try_("--key KEY, or the variable FLUX_FAST_KEY".to_string());
        }
        Err(Failure { error, is_temporary: TEMPORARY.contains(&status), asked })
    }

    fn json(&self, mut response: Response<Body>) -> std::result::Result<Value, Failure> {
        let text = response.body_mut().with_config().limit(MAX_JSON).read_to_string();
        let text = text.map_err(|e| self.unreachable(&e))?;
        serde_json::from_str(&text).map_err(|_| Failure::last(self.not_ours()))
    }

    fn unreachable(&self, e: &ureq::Error) -> Failure {
        let mut error = Error::device(format!("the server cannot be reached: {e}")).at(&self.base);
        let is_temporary = is_temporary(e, self.reached.get());
        let is_refused = matches!(e, ureq::Error::Rustls(_))
            || matches!(e, ureq::Error::Io(io) if io.kind() == ErrorKind::InvalidData);
        if is_refused {
            // A certificate that has signed itself is none of an authority.
            error = error.try_(
                "--ca-cert with the certificate of the authority that signed the server's"
                    .to_string(),
            );
        } else if !is_temporary && !self.reached.get() {
            error = error.try_("check the address, and whether the server runs".to_string());
        }
        Failure { error, is_temporary, asked: None }
    }

    /// Runs `attempt` until it succeeds, fails for good, or patience ends.
    fn patiently<T>(
        &self,
        progress: &Progress,
        mut attempt: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut backoff = Backoff::new(self.patience);
        loop {
            cancelled()?;
            let failure = match attempt() {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            if !failure.is_temporary {
                return Err(failure.error);
            }
            let Some(wait) = backoff.next(failure.asked, random()?) else {
                return Err(failure.error);
            };
            let seconds = units::seconds(wait.as_secs_f64());
            progress.note(&format!("{}; trying again in {seconds}", failure.error));
            pause(wait)?;
        }
    }
}

/// Whether the same request may succeed later. A wrong name or certificate stays wrong, and so does
/// an address at which nobody listens, unless the server was `reached` there before.
fn is_temporary(e: &ureq::Error, reached: bool) -> bool {
    // The connection was there, or the machine may be busy.
    let is_broken = |kind: ErrorKind| {
        matches!(
            kind,
            ErrorKind::BrokenPipe
                | ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::Interrupted
                | ErrorKind::TimedOut
                | ErrorKind::UnexpectedEof
                | ErrorKind::WouldBlock
        )
    };
    match e {
        // Rustls refuses servers with `InvalidData`.
        ureq::Error::Io(io) if io.kind() == ErrorKind::InvalidData => false,
        ureq::Error::Io(io) => reached || is_broken(io.kind()),
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Resolve) => reached,
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::ConnectProxyFailed(_) => false,
        _ => true,
    }
}

/// Why an attempt failed.
struct Failure {
    error: Error,
    /// The same request may succeed later.
    is_temporary: bool,
    /// The wait that the server asks for.
    asked: Option<Duration>,
}

impl Failure {
    fn last(error: Error) -> Self {
        Failure { error, is_temporary: false, asked: None }
    }
}

/// The seconds of `Retry-After`. Servers of this program send no dates; a date is no wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = text_of(headers, "retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_string())
}

/// The error of an answer or of a job: `error` is its object. `status` is 0 for a job.
pub fn fault_of(status: u16, error: &Value) -> Error {
    let text = |name: &str| error[name].as_str().map(|text| shortened(text, MAX_SHOWN).to_string());
    let code = text("code").unwrap_or_default();
    let kind = KINDS.into_iter().find(|kind| kind.code() == code).unwrap_or(match status {
        400..=403 | 405..=407 | 411..=422 => Kind::Argument,
        404 | 410 => Kind::Missing,
        507 => Kind::Memory,
        _ => Kind::Device,
    });
    let mut message = text("message").unwrap_or_else(|| format!("the server answered {status}"));
    let parameter = text("parameter");
    if let Some(name) = &parameter
        && let Some(rest) = message.strip_prefix(&format!("{name}: "))
    {
        message = rest.to_string();
    }
    let mut fault = Error::new(kind, message);
    // A field of the server may be a list; the option is for one of its items.
    let option_of = |name: &str| {
        let item = || PARAMETERS.iter().find(|option| name.strip_suffix('s') == Some(**option));
        PARAMETERS.iter().find(|option| **option == name).or_else(item)
    };
    fault = match parameter {
        Some(name) => match option_of(&name) {
            Some(option) => fault.at_parameter(*option),
            None => fault.at(name),
        },
        None => fault,
    };
    match text("hint") {
        Some(hint) => fault.try_(hint),
        None => fault,
    }
}

/// The kinds that a server's code may name.
const KINDS: [Kind; 7] = [
    Kind::Argument,
    Kind::Model,
    Kind::Missing,
    Kind::Memory,
    Kind::Device,
    Kind::Output,
    Kind::NotFinite,
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_become_errors_of_the_kinds_of_the_command_line() {
        let fault = fault_of(
            422,
            &json!({"code": "bad_argument", "message": "steps: out of range: found 0",
                    "parameter": "steps", "hint": "1 to 1000"}),
        );
        assert_eq!((fault.kind(), fault.parameter()), (Kind::Argument, Some("steps")));
        // The parameter is said once, where the command line says it.
        assert_eq!(fault.to_string().matches("steps").count(), 1, "{fault}");
        let fault = fault_of(404, &json!({"message": "none", "parameter": "controlnets"}));
        assert_eq!(fault.parameter(), Some("controlnet"));
        for (status, code, kind) in [
            (404, "model_not_found", Kind::Missing),
            (401, "unauthorized", Kind::Argument),
            (0, "out_of_memory", Kind::Memory),
            (0, "worker_died", Kind::Device),
            (500, "", Kind::Device),
            (507, "budget_too_small", Kind::Memory),
        ] {
            let fault = fault_of(status, &json!({"code": code, "message": "x"}));
            assert_eq!(fault.kind(), kind, "{status} {code}");
        }
        assert_eq!(fault_of(502, &Value::Null).to_string(), "the server answered 502");
    }

    #[test]
    fn addresses_and_keys_that_cannot_be_meant_are_refused() {
        let new = |url, key| Client::new(url, key, None, Duration::ZERO);
        assert!(new("http://127.0.0.1:8188/", Some("sesame")).is_ok());
        assert!(new("https://draw.example/flux", None).is_ok());
        for url in ["127.0.0.1:8188", "draw.example", "ftp://x", "", "a fox"] {
            assert_eq!(new(url, None).err().unwrap().kind(), Kind::Argument, "{url}");
        }
        for key in ["", "two words", "sch\u{fc}ssel", "a\nb"] {
            assert!(new("http://x", Some(key)).is_err(), "{key}");
        }
    }

    #[test]
    fn an_address_at_which_nobody_ever_answered_is_not_tried_again() {
        let io = |kind: ErrorKind| ureq::Error::Io(kind.into());
        for (error, before, after) in [
            (ureq::Error::HostNotFound, false, true),
            (io(ErrorKind::ConnectionRefused), false, true),
            (ureq::Error::Io(std::io::Error::other("failed to lookup address")), false, true),
            (ureq::Error::Timeout(ureq::Timeout::Resolve), false, true),
            (ureq::Error::Timeout(ureq::Timeout::Connect), true, true),
            (io(ErrorKind::ConnectionReset), true, true),
            (io(ErrorKind::UnexpectedEof), true, true),
            (io(ErrorKind::InvalidData), false, false),
        ] {
            assert_eq!(is_temporary(&error, false), before, "{error}");
            assert_eq!(is_temporary(&error, true), after, "{error}");
        }
    }
}
