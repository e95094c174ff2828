//! Addresses that are called when a job is over. Only those of origins that the operator has listed
//! are ever called.

use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// The longest address, in bytes.
const MAX_URL: usize = 2048;

/// The address to call when a job is over.
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
