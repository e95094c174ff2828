//! Requests to the hub: retries, redirects, and which server receives the token.

use std::path::Path;

use ureq::http::{Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::headers::{FileFacts, header};
use super::progress::{PullProgress, Reporter};
use super::responses::{PROXY, Parties, Subject, connection_fault, refused, unreachable};
use super::retry::{Attempts, Fault, Retry};
use super::token::Credentials;
use crate::error::{Error, Result};
use crate::library::given::root_certs;

/// The number of redirects that are followed for one request.
const MAX_REDIRECTS: usize = 8;
/// The largest response body that is read into memory, in bytes.
const MAX_BODY: u64 = 64 << 20;

/// A client for one hub.
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    authorization: Option<String>,
    /// The token, described for error messages without showing it.
    token: String,
    pub retry: Retry,
}

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Head,
    Get,
}

/// A server, as far as tokens are concerned: a token of one origin is not sent to another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some(Origin { scheme, host: uri.host()?.to_lowercase(), port })
    }

    fn is_loopback(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Http {
    /// A client for the hub at `endpoint`. `certificates` is a PEM file with the certificates to
    /// trust instead of the built-in ones. Errors: an address that is not http or https, a token
    /// that cannot be sent, or certificates that cannot be read.
    pub fn new(
        endpoint: &str,
        credentials: &Credentials,
        certificates: Option<&Path>,
        retry: Retry,
    ) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let uri: Option<Uri> = endpoint.parse().ok();
        let origin =
            uri.as_ref().and_then(Origin::of).filter(|o| o.scheme == "https" || o.scheme == "http");
        let origin = origin.ok_or_else(|| {
            Error::argument("not the address of a hub")
                .at("HF_ENDPOINT")
                .found(&endpoint)
                .expected("https://huggingface.co")
        })?;
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("flux-fast/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(retry.silence))
            .timeout_connect(Some(retry.silence))
            .timeout_recv_response(Some(retry.silence * 2))
            .timeout_per_read(Some(retry.silence))
            .timeout_per_write(Some(retry.silence));
        if let Some(path) = certificates {
            config = config.tls_config(TlsConfig::builder().root_certs(root_certs(path)?).build());
        }
        Ok(Http {
            agent: config.build().into(),
            endpoint,
            origin,
            authorization: credentials.header()?,
            token: credentials.describe(),
            retry,
        })
    }

    /// The host name of the hub.
    pub fn host(&self) -> &str {
        &self.origin.host
    }

    /// The address of `path` on the hub. The path must be encoded.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// What the hub reports about the file at `url`, without the file itself.
    pub fn head(&self, url: &str, subject: &Subject, reporter: &mut Reporter) -> Result<FileFacts> {
        self.retry(reporter, || Ok(self.attempt(Method::Head, url, None, subject)?.1))
    }

    /// The body at `url`, at most [`MAX_BODY`] bytes.
    pub fn read(&self, url: &str, subject: &Subject, reporter: &mut Reporter) -> Result<Vec<u8>> {
        self.retry(reporter, || {
            let (mut response, _) = self.attempt(Method::Get, url, None, subject)?;
            let body = response.body_mut().with_config().limit(MAX_BODY).read_to_vec();
            body.map_err(|e| Fault::temporary(unreachable(&e, self.host())))
        })
    }

    /// Runs `attempt` until it succeeds or no retry is left.
    fn retry<T>(
        &self,
        reporter: &mut Reporter,
        mut attempt: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T> {
        let mut attempts = Attempts::new(self.retry);
        loop {
            reporter.report(PullProgress::Tick)?;
            match attempt() {
                Ok(value) => return Ok(value),
                Err(fault) => attempts.wait_after(fault, reporter)?,
            }
        }
    }

    /// One request with all its redirects, from byte `from` on if that is given. The token is sent
    /// to the hub only. A response of 416 (range not satisfiable) is returned, not an error.
    pub fn attempt(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        subject: &Subject,
    ) -> Result<(Response<Body>, FileFacts), Fault> {
        let mut uri: Uri = url.parse().map_err(|_| Error::argument("not an address").at(url))?;
        let mut facts = FileFacts::default();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&uri).ok_or_else(|| bad_redirect(&uri))?;
            let is_hub = origin == self.origin;
            let response = self.call(method, &uri, &origin, from)?;
            let status = response.status().as_u16();
            let location = header(response.headers(), "location")
                .filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
            // The hub knows the file's blob; the ETag of a storage server behind it is another one.
            if is_hub || facts.etag().is_none() {
                facts.add(response.headers(), location.is_none() && status == 200);
            }
            let Some(location) = location else {
                let parties =
                    Parties { token: &self.token, endpoint: &self.endpoint, host: &origin.host };
                return match status {
                    200..=299 | 416 => Ok((response, facts)),
                    _ => Err(refused(&response, subject, &parties)),
                };
            };
            let next = redirect_target(&uri, location).ok_or_else(|| bad_redirect(&uri))?;
            let next_origin = Origin::of(&next).ok_or_else(|| bad_redirect(&uri))?;
            if origin.scheme == "https" && next_origin.scheme != "https" {
                return Err(Fault::Final(
                    Error::model("redirected from https to an address without encryption")
                        .at(&origin.host),
                ));
            }
            // The hub has reported the file, so the storage server need not be asked.
            if method == Method::Head && next_origin != origin && facts.etag().is_some() {
                return Ok((response, facts));
            }
            uri = next;
        }
        Err(Fault::Final(Error::model("too many redirects").at(url)))
    }

    /// One request without redirects.
    fn call(
        &self,
        method: Method,
        uri: &Uri,
        origin: &Origin,
        from: Option<u64>,
    ) -> Result<Response<Body>, Fault> {
        let mut request = match method {
            Method::Head => self.agent.head(uri),
            Method::Get => self.agent.get(uri),
        };
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| *origin == self.origin)
        {
            request = request.header("authorization", authorization);
        }
        if origin.is_loopback() {
            request = request.config().proxy(None).build();
        }
        request.call().map_err(|e| match connection_fault(&e, &origin.host) {
            Fault::Temporary { error, wait } => Fault::Temporary { error: error.try_(PROXY), wait },
            fault => fault,
        })
    }
}

/// The address that a redirect from `base` to `location` leads to.
fn redirect_target(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    match location {
        l if l.contains("://") => l.parse().ok(),
        l if l.starts_with("//") => format!("{scheme}:{l}").parse().ok(),
        l if l.starts_with('/') => format!("{scheme}://{authority}{l}").parse().ok(),
        l => {
            let folder = base.path().rsplit_once('/').map_or("", |(f, _)| f);
            format!("{scheme}://{authority}{folder}/{l}").parse().ok()
        }
    }
}

fn bad_redirect(from: &Uri) -> Error {
    Error::model("redirected to something that is not an address").at(from.path())
}

/// `text` as a part of a URL's path. `keep_slashes` leaves slashes as they are.
pub(super) fn encode(text: &str, keep_slashes: bool) -> String {
    let is_plain =
        |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || keep_slashes && b == b'/';
    text.bytes()
        .map(|b| if is_plain(b) { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}
