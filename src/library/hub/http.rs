//! Requests to the hub: its redirects, and who hears the token.

use std::path::Path;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::Progress;
use super::answers::{About, PROXY, fault, refused, unreachable};
use super::patience::{Fault, Patience, Retry, Watch};
use super::token::Credentials;
use crate::error::{Error, Result};

const MAX_REDIRECTS: usize = 8;
/// The body of an answer that is read whole is no longer than this.
const MAX_ANSWER: u64 = 64 << 20;

/// What the hub's own headers said on the way to an answer.
#[derive(Debug, Clone, Default)]
pub struct Said {
    pub commit: Option<String>,
    linked_etag: Option<String>,
    plain_etag: Option<String>,
    pub bytes: Option<u64>,
}

impl Said {
    /// What the file's blob is called.
    pub fn etag(&self) -> Option<&str> {
        self.linked_etag.as_deref().or(self.plain_etag.as_deref())
    }

    fn hear(&mut self, headers: &HeaderMap, last: bool) {
        let etag = |name| {
            text(headers, name).map(|e| e.trim_start_matches("W/").trim_matches('"').to_string())
        };
        self.commit = text(headers, "x-repo-commit").map(str::to_string).or(self.commit.take());
        self.linked_etag = etag("x-linked-etag").or(self.linked_etag.take());
        self.plain_etag = etag("etag").or(self.plain_etag.take());
        let length = text(headers, "content-length").filter(|_| last);
        let bytes = text(headers, "x-linked-size").or(length);
        self.bytes = bytes.and_then(|b| b.parse().ok()).or(self.bytes);
    }
}

/// The value of a header that is plain text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A client of one hub.
pub struct Http {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    authorization: Option<String>,
    /// How the token is called in errors.
    who: String,
    pub retry: Retry,
}

/// What a token may be sent to: scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin(String, String, u16);

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some(Origin(scheme, uri.host()?.to_lowercase(), port))
    }

    fn is_loopback(&self) -> bool {
        let host = self.1.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Http {
    pub fn new(
        endpoint: &str,
        credentials: &Credentials,
        ca: Option<&Path>,
        retry: Retry,
    ) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let uri: Option<Uri> = endpoint.parse().ok();
        let origin = uri.as_ref().and_then(Origin::of).filter(|o| o.0 == "https" || o.0 == "http");
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
        if let Some(path) = ca {
            config =
                config.tls_config(TlsConfig::builder().root_certs(certificates(path)?).build());
        }
        Ok(Http {
            agent: config.build().into(),
            endpoint,
            origin,
            authorization: credentials.header()?,
            who: credentials.words(),
            retry,
        })
    }

    /// The address of the hub.
    pub fn host(&self) -> &str {
        &self.origin.1
    }

    /// The address of `path`, which must be encoded.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// What the hub says about the file at `url`, without its bytes.
    pub fn head(&self, url: &str, about: &About, watch: &mut Watch) -> Result<Said> {
        self.patiently(watch, || Ok(self.attempt("HEAD", url, None, about)?.1))
    }

    /// The text at `url`, which is not long.
    pub fn read(&self, url: &str, about: &About, watch: &mut Watch) -> Result<Vec<u8>> {
        self.patiently(watch, || {
            let (mut response, _) = self.attempt("GET", url, None, about)?;
            let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
            body.map_err(|e| Fault::passing(unreachable(&e, self.host())))
        })
    }

    fn patiently<T>(
        &self,
        watch: &mut Watch,
        mut attempt: impl FnMut() -> Result<T, Fault>,
    ) -> Result<T> {
        let mut patience = Patience::new(self.retry);
        loop {
            watch.tell(Progress::Tick)?;
            match attempt() {
                Ok(value) => return Ok(value),
                Err(fault) => patience.after(fault, watch)?,
            }
        }
    }

    /// One request, from byte `from` on where that is given, and all its redirects. The token goes to the hub and to nobody else. An answer of 416 (the
    /// range is not there) is given like a good one.
    pub fn attempt(
        &self,
        method: &str,
        url: &str,
        from: Option<u64>,
        about: &About,
    ) -> Result<(Response<Body>, Said), Fault> {
        let mut uri: Uri = url.parse().map_err(|_| Error::argument("not an address").at(url))?;
        let mut said = Said::default();
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&uri).ok_or_else(|| bad_redirect(&uri))?;
            let ours = origin == self.origin;
            let request =
                if method == "HEAD" { self.agent.head(&uri) } else { self.agent.get(&uri) };
            let mut request = match from {
                Some(from) => request.header("range", format!("bytes={from}-")),
                None => request,
            };
            if let Some(authorization) = self.authorization.as_ref().filter(|_| ours) {
                request = request.header("authorization", authorization);
            }
            if origin.is_loopback() {
                request = request.config().proxy(None).build();
            }
            let response = request.call().map_err(|e| match fault(&e, &origin.1) {
                Fault::Passing { error, wait } => Fault::Passing { error: error.try_(PROXY), wait },
                fault => fault,
            })?;
            let status = response.status().as_u16();
            let location = text(response.headers(), "location")
                .filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308));
            // What a store behind the hub calls the file is nothing to us.
            if ours || said.etag().is_none() {
                said.hear(response.headers(), location.is_none() && status == 200);
            }
            let Some(location) = location else {
                return match status {
                    200..=299 | 416 => Ok((response, said)),
                    _ => Err(refused(&response, about, &self.who, &self.endpoint, &origin.1)),
                };
            };
            let next = follow(&uri, location).ok_or_else(|| bad_redirect(&uri))?;
            let away = Origin::of(&next).ok_or_else(|| bad_redirect(&uri))?;
            if origin.0 == "https" && away.0 != "https" {
                return Err(Fault::Final(
                    Error::model("redirected from https to an address without encryption")
                        .at(&origin.1),
                ));
            }
            if method == "HEAD" && away != origin && said.etag().is_some() {
                return Ok((response, said));
            }
            uri = next;
        }
        Err(Fault::Final(Error::model("too many redirects").at(url)))
    }
}

/// The address that `location` means, seen from `base`.
fn follow(base: &Uri, location: &str) -> Option<Uri> {
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
    Error::model("redirected to something that is no address").at(from.path())
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let broken =
        |why: String| Error::argument(format!("no certificates can be read: {why}")).at_path(path);
    let pem = std::fs::read(path).map_err(|e| broken(e.to_string()))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = items.collect();
    if certificates.is_empty() {
        Err(broken("none in it".into()))
    } else {
        Ok(RootCerts::new_with_certs(&certificates))
    }
}

/// `text` as a part of a URL's path; slashes stay where `slashes` says so.
pub fn encode(text: &str, slashes: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || slashes && b == b'/';
    text.bytes()
        .map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}
