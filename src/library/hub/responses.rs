//! Errors for responses that are not successful, and for connections that fail.

use std::time::Duration;

use ureq::Body;
use ureq::http::{HeaderMap, Response};

use super::headers::header;
use super::retry::Fault;
use crate::error::Error;

/// The hint for connections that fail: what decides how the network is reached.
pub(super) const PROXY: &str = "check the network, and HF_ENDPOINT, HTTPS_PROXY, \
    ALL_PROXY and NO_PROXY in the environment";

/// What a request is about, for error messages.
pub(super) struct Subject<'a> {
    pub repo: &'a str,
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// The client and the server of a request, for error messages.
pub(super) struct Parties<'a> {
    /// The token, described without showing it.
    pub token: &'a str,
    /// The address of the hub.
    pub endpoint: &'a str,
    /// The name of the server that answered.
    pub host: &'a str,
}

/// The error of a connection to `host`.
pub(super) fn unreachable(e: &ureq::Error, host: &str) -> Error {
    Error::missing(format!("{host} cannot be reached: {e}"))
}

/// A connection to `host` that was not made, or was lost.
pub(super) fn connection_fault(e: &ureq::Error, host: &str) -> Fault {
    let error = unreachable(e, host);
    match e {
        // This is how rustls reports that it rejects the server.
        ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            Fault::Final(match io.to_string().contains("certificate") {
                true => error.try_(
                    "if a proxy decrypts https, set SSL_CERT_FILE to a file with its certificate \
                     (PEM)",
                ),
                false => {
                    error.try_("check HF_ENDPOINT and the proxy: the server does not use https")
                }
            })
        }
        ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => {
            Fault::Final(error.try_(PROXY))
        }
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_) => Fault::Final(error),
        _ => Fault::temporary(error),
    }
}

/// The fault for a response whose status is not a success.
pub(super) fn refused(response: &Response<Body>, subject: &Subject, parties: &Parties) -> Fault {
    let headers = response.headers();
    let status = response.status().as_u16();
    let code = header(headers, "x-error-code").unwrap_or("");
    let message = header(headers, "x-error-message");
    let error = refusal(status, code, message, subject, parties);
    match status {
        408 | 425 | 429 | 500 | 502 | 503 | 504 => {
            Fault::Temporary { error, wait: requested_wait(headers) }
        }
        _ => Fault::Final(error),
    }
}

/// The error for a response with this status, and the code and message in the headers of the hub.
fn refusal(
    status: u16,
    code: &str,
    message: Option<&str>,
    subject: &Subject,
    parties: &Parties,
) -> Error {
    let Subject { repo, revision, file } = subject;
    let Parties { token, endpoint, host } = parties;
    let place = file.map_or(repo.to_string(), |f| format!("{repo}/{f}"));
    let error = |what: String| Error::missing(what).at(&place);
    let page = format!("{endpoint}/{repo}");
    let reason = || {
        let printable =
            |m: &str| m.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
        message.map_or(String::new(), |m| format!(": {}", printable(m)))
    };
    match (status, code) {
        (401 | 403, "GatedRepo") => error(format!(
            "the repository is gated (HTTP {status}), and access was refused with {token}"
        ))
        .try_(format!(
            "accept the licence at {page} and set HF_TOKEN to a token of that account, or run \
             `hf auth login`"
        )),
        (401, _) if message.is_some_and(|m| m.contains("Invalid credentials")) => {
            error(format!("the hub does not accept {token} (HTTP 401)"))
                .try_("create a new token at https://huggingface.co/settings/tokens")
        }
        (404, "RevisionNotFound") => {
            error(format!("the repository has no revision `{revision}` (HTTP 404)"))
                .try_(format!("use a branch, tag or commit of {page}"))
        }
        (404, "EntryNotFound") => {
            error(format!("no such file in revision `{revision}` (HTTP 404)"))
                .try_(format!("use a file of {page}/tree/{revision}"))
        }
        (404, "RepoNotFound") | (401, _) => error(format!(
            "no such repository, or a private one (HTTP {status}); requested with {token}"
        ))
        .try_(format!(
            "check that {page} opens in a browser; a private repository requires a token with read \
             access"
        )),
        (403, _) => error(format!("access was refused (HTTP 403) with {token}{}", reason()))
            .try_(format!("use a token with read access to {page}")),
        (404, _) => error(format!("not found (HTTP 404) at {host}")).try_(format!("check {page}")),
        (429, _) => error(format!("{host} asks for fewer requests (HTTP 429)")),
        _ => error(format!("{host} answered with HTTP {status}{}", reason())),
    }
}

/// The wait that a server asks for: the seconds of `Retry-After`, or of the hub's own header
/// `RateLimit: "api";r=0;t=55`.
fn requested_wait(headers: &HeaderMap) -> Option<Duration> {
    let after = header(headers, "retry-after").and_then(|s| s.trim().parse().ok());
    let limit = || {
        let parts = header(headers, "ratelimit")?.split(';').map(str::trim).collect::<Vec<_>>();
        let seconds = parts.iter().find_map(|p| p.strip_prefix("t="))?.parse().ok()?;
        parts.contains(&"r=0").then_some(seconds)
    };
    after.or_else(limit).map(Duration::from_secs)
}
