//! What went wrong, in words: answers that are no success, and connections that fail.

use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Response};

use super::http::text;
use super::patience::Fault;
use crate::error::Error;

/// An error of the connection to `host`.
pub fn unreachable(e: &ureq::Error, host: &str) -> Error {
    Error::missing(format!("{host} cannot be reached: {e}"))
}

/// A connection that was not made or broke, as a fault.
pub fn fault(e: &ureq::Error, host: &str) -> Fault {
    let error = unreachable(e, host);
    match e {
        // rustls tells its refusals as I/O errors of this kind.
        ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            Fault::Final(match io.to_string().contains("certificate") {
                true => error
                    .try_("behind a proxy that opens https, set SSL_CERT_FILE to a file with its certificate (PEM)"),
                false => error.try_("look at HF_ENDPOINT and the proxy: what answers speaks no https"),
            })
        }
        ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => Fault::Final(error.try_(PROXY)),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
            Fault::Final(error)
        }
        _ => Fault::passing(error),
    }
}

/// What decides how the network is reached.
pub const PROXY: &str = "look at the network, and at HF_ENDPOINT, HTTPS_PROXY, ALL_PROXY and NO_PROXY in the environment";

/// What was asked for, for errors.
pub struct About<'a> {
    pub repo: &'a str,
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// An answer that is no success, as the error that its reader sees.
pub fn refused(
    response: &Response<Body>,
    about: &About,
    who: &str,
    endpoint: &str,
    host: &str,
) -> Fault {
    let headers = response.headers();
    let status = response.status().as_u16();
    let (code, message) =
        (text(headers, "x-error-code").unwrap_or(""), text(headers, "x-error-message"));
    let About { repo, revision, file } = about;
    let place = file.map_or(repo.to_string(), |f| format!("{repo}/{f}"));
    let said = message.map(|m| {
        format!(": {}", m.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    });
    let told = |what: String| Error::missing(what).at(&place);
    let page = format!("{endpoint}/{repo}");
    let error = match (status, code) {
        (401 | 403, "GatedRepo") => told(format!(
            "the repository is gated (HTTP {status}), and access was refused with {who}"
        ))
        .try_(format!("accept the licence at {page} and give a token of that account: HF_TOKEN, or `hf auth login`")),
        (401, _) if message.is_some_and(|m| m.contains("Invalid credentials")) => {
            told(format!("the hub does not know {who} (HTTP 401)"))
                .try_("a new token from https://huggingface.co/settings/tokens")
        }
        (404, "RevisionNotFound") => told(format!("the repository has no revision `{revision}` (HTTP 404)"))
            .try_(format!("a branch, tag or commit of {page}")),
        (404, "EntryNotFound") => told(format!("no such file in revision `{revision}` (HTTP 404)"))
            .try_(format!("a file of {page}/tree/{revision}")),
        (404, "RepoNotFound") | (401, _) => {
            told(format!("no such repository, or a private one (HTTP {status}); asked with {who}")).try_(format!(
                "look whether {page} opens in a browser; for a private repository give a token that may read it"
            ))
        }
        (403, _) => told(format!("access was refused (HTTP 403) with {who}{}", said.unwrap_or_default()))
            .try_(format!("a token that may read {page}")),
        (404, _) => told(format!("not found (HTTP 404) at {host}")).try_(format!("look at {page}")),
        (429, _) => told(format!("{host} asks for fewer requests (HTTP 429)")),
        _ => told(format!("{host} answered with HTTP {status}{}", said.unwrap_or_default())),
    };
    match status {
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Fault::Passing { error, wait: asked_wait(headers) }
        }
        _ => Fault::Final(error),
    }
}

/// The seconds of `Retry-After`, or of the hub's `RateLimit: "api";r=0;t=55`.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let after = text(headers, "retry-after").and_then(|s| s.trim().parse().ok());
    let limit = || {
        let parts = text(headers, "ratelimit")?.split(';').map(str::trim).collect::<Vec<_>>();
        let seconds = parts.iter().find_map(|p| p.strip_prefix("t="))?.parse().ok()?;
        parts.contains(&"r=0").then_some(seconds)
    };
    after.or_else(limit).map(Duration::from_secs)
}
