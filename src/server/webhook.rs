//! Tells an address that a job is over. Only addresses of origins that the operator has listed are
//! called, and redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::api;
use super::fault::Fault;
use super::job::{Job, hex};
use super::links::hmac;
use super::state::Server;
use crate::text::one_line;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pauses before the second, third, ... attempt, in seconds.
const PAUSES: [u64; 4] = [1, 5, 30, 120];
/// The longest address, in bytes.
const MAX_URL: usize = 2048;

/// Whom to tell when a job is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// The address, which gets a POST.
    pub url: String,
    /// The key of the signature of the body, if the client wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl Webhook {
    /// Checks that the address is of one of the `allowed` origins.
    ///
    /// # Errors
    /// 422.
    pub fn check(&self, allowed: &[String]) -> Result<(), Fault> {
        let origin = origin_of(&self.url).filter(|_| self.url.len() <= MAX_URL);
        let known = |origin: &String| allowed.iter().any(|a| origin_of(a).as_ref() == Some(origin));
        match origin.is_some_and(|origin| known(&origin)) {
            true => Ok(()),
            false => Err(Fault::new(
                422,
                "webhook_not_allowed",
                "webhook: this server calls only addresses that its operator has listed",
            )
            .parameter("webhook")
            .hint("poll the job, or start the server with the origin of this address")),
        }
    }
}

/// Scheme, host and port of an address, in lower case. Addresses with a user name have none: what
/// they show first is not the host.
fn origin_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_lowercase();
    let default = match scheme.as_str() {
        "http" => "80",
        "https" => "443",
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?.to_lowercase();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if authority.is_empty() || !authority.chars().all(is_plain) {
        return None;
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let port = if has_port { String::new() } else { format!(":{default}") };
    Some(format!("{scheme}://{authority}{port}"))
}

/// Calls the address of `job`, which is over, if it has one: several times, until it answers.
pub fn call(server: &Server, job: &Job) {
    let Some(spec) = &job.spec else { return };
    let (Some(webhook), Ok(runtime)) = (&spec.webhook, tokio::runtime::Handle::try_current())
    else {
        return;
    };
    let body = api::webhook_body(server, job).to_string();
    let signature = webhook.secret.as_ref().map(|s| hex(&hmac(s.as_bytes(), body.as_bytes())));
    let call = Arc::new(Call { url: webhook.url.clone(), body, signature });
    let id = job.id.clone();
    let log = |line: String| tracing::info!("{}", one_line(&line));
    runtime.spawn(async move {
        let mut pauses = PAUSES.iter();
        loop {
            let once = call.clone();
            let sent = tokio::task::spawn_blocking(move || once.send()).await;
            let refused = match sent {
                Ok(Ok(status @ 200..=299)) => return log(format!("job {id}: webhook {status}")),
                Ok(Ok(status)) => format!("it answered {status}"),
                Ok(Err(e)) => e,
                Err(_) => "the call failed".into(),
            };
            match pauses.next() {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(*seconds)).await,
                None => return log(format!("job {id}: the webhook is given up: {refused}")),
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f36_webhooks_go_only_to_listed_origins() {
        let allowed = ["https://hooks.example".to_string(), "http://127.0.0.1:9000".into()];
        let check = |url: &str| Webhook { url: url.into(), secret: None }.check(&allowed);
        for url in [
            "https://hooks.example/x?y=1",
            "https://hooks.example:443",
            "HTTPS://Hooks.Example/",
            "http://127.0.0.1:9000/done",
        ] {
            assert!(check(url).is_ok(), "{url}");
        }
        for url in [
            "http://hooks.example/",
            "https://hooks.example:8443/",
            "https://hooks.example.evil/",
            "https://hooks.example@evil/",
            "https://evil\\@hooks.example/",
            "http://127.0.0.1/",
            "http://[::1]:9000/",
            "file:///etc/passwd",
            "hooks.example",
            "",
        ] {
            let fault = check(url).unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some("webhook")), "{url}");
        }
    }
}
