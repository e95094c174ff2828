//! Who may use the server: keys, and the checks that keep foreign web pages out.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::job::hex;

/// Whose request it is: a key, or everybody on a server without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(pub String);

/// The rules of one server.
#[derive(Debug, Clone)]
pub struct Access {
    /// SHA-256 of every key.
    keys: Vec<[u8; 32]>,
    /// Host names, in lower case, under which the server may be addressed.
    hosts: Vec<String>,
    /// Origins of foreign pages that may use the server.
    origins: Vec<String>,
}

/// SHA-256 of a key. Keys are only kept and compared in this form.
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Whether two hashes are equal, in a time that does not depend on where they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

impl Access {
    /// The rules of a server at `listen` that is also known as `hosts`.
    pub fn new(
        keys: &[String],
        listen: SocketAddr,
        hosts: impl IntoIterator<Item = String>,
        origins: Vec<String>,
    ) -> Self {
        let mut hosts: Vec<String> = hosts.into_iter().map(|h| h.to_lowercase()).collect();
        hosts.extend(["localhost".into(), listen.ip().to_string()]);
        let keys = keys.iter().map(|key| hash(key)).collect();
        Access { keys, hosts, origins }
    }

    /// Refuses a request that a foreign web page sends through a browser: by a name that was
    /// pointed at this machine (DNS rebinding), or directly. Returns the origin to be allowed in
    /// the answer.
    ///
    /// # Errors
    /// 403.
    pub fn check_browser(&self, headers: &HeaderMap) -> Result<Option<String>, Fault> {
        let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
        let host = text(header::HOST).unwrap_or_default();
        if !self.is_own_host(host) {
            return Err(Fault::new(403, "forbidden", "the server is not known by this host name")
                .hint("use the address that the server printed, or start it with its public URL"));
        }
        match text(header::ORIGIN) {
            None => Ok(None),
            Some(origin) if self.origins.iter().any(|o| o == origin) => Ok(Some(origin.into())),
            // The server's own page.
            Some(origin) if origin.split_once("://").is_some_and(|(_, o)| o == host) => Ok(None),
            Some(_) => {
                Err(Fault::new(403, "forbidden", "pages of this origin may not use the server")
                    .hint("start the server with this origin in its list of allowed origins"))
            }
        }
    }

    /// An address cannot be pointed elsewhere: only names are a danger.
    fn is_own_host(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let is_address = name.parse::<IpAddr>().is_ok();
        let name = name.to_lowercase();
        is_address || self.hosts.contains(&name)
    }

    /// Whose request it is.
    ///
    /// # Errors
    /// 401 without a key or with a wrong one.
    pub fn owner(&self, headers: &HeaderMap) -> Result<Owner, Fault> {
        if self.keys.is_empty() {
            return Ok(Owner("local".into()));
        }
        let refused = |message: &str| {
            Err(Fault::new(401, "unauthorized", message)
                .hint("send a key of this server as `Authorization: Bearer KEY`"))
        };
        let Some(given) = given_key(headers) else { return refused("a key is needed") };
        let given = hash(&given);
        // All are compared, whichever it is.
        let known = self.keys.iter().fold(false, |known, key| known | same(key, &given));
        match known {
            true => Ok(Owner(format!("key:{}", hex(&given[..8])))),
            false => refused("this is not a key of this server"),
        }
    }
}

/// The key of a request, in any of the places where clients put it. An empty `Authorization`, or
/// one that only names a scheme, is no key.
fn given_key(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim().to_string());
    let given = |key: String| (!key.is_empty()).then_some(key);
    let authorization = text("authorization").unwrap_or_default();
    let (scheme, value) = authorization.split_once(' ').unwrap_or((&authorization, ""));
    let authorized = match scheme.to_lowercase().as_str() {
        "bearer" | "key" | "token" => given(value.trim().to_string()),
        "basic" => {
            let decoded = BASE64_STANDARD.decode(value.trim()).unwrap_or_default();
            let decoded = String::from_utf8(decoded).unwrap_or_default();
            let password = decoded.split_once(':').map_or("", |(_, password)| password);
            given(password.to_string())
        }
        _ => None,
    };
    authorized
        .or_else(|| text("x-key").and_then(given))
        .or_else(|| text("api-key").and_then(given))
        .or_else(|| text("x-api-key").and_then(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect::<HeaderMap>()
    }

    fn access(keys: &[&str]) -> Access {
        let keys: Vec<String> = keys.iter().map(|k| k.to_string()).collect();
        let listen = "127.0.0.1:8188".parse().unwrap();
        Access::new(
            &keys,
            listen,
            ["Draw.example".into()],
            vec!["https://lite.koboldai.net".into()],
        )
    }

    #[test]
    fn one_key_opens_every_door_and_nothing_else_does() {
        let access = access(&["sesame", "other"]);
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        for (name, value) in [
            ("authorization", "Bearer sesame"),
            ("authorization", "bearer  sesame"),
            ("authorization", "Key sesame"),
            ("authorization", &basic("anyone:sesame")),
            ("x-key", "sesame"),
            ("api-key", "sesame"),
        ] {
            let owner = access.owner(&headers(&[(name, value)])).unwrap();
            assert_eq!(owner, access.owner(&headers(&[("x-key", "sesame")])).unwrap());
        }
        assert_ne!(
            access.owner(&headers(&[("x-key", "sesame")])),
            access.owner(&headers(&[("x-key", "other")]))
        );
        // An empty `Basic` does not hide the key in another header.
        assert!(access.owner(&headers(&[("authorization", "Basic"), ("x-key", "other")])).is_ok());
        for (name, value) in [
            ("x-other", "sesame"),
            ("authorization", ""),
            ("authorization", "Basic"),
            ("authorization", "Bearer"),
            ("authorization", "Bearer sesam"),
            ("authorization", "Bearer sesames"),
            ("authorization", "sesame"),
            ("authorization", "Digest sesame"),
            ("authorization", "Basic !!!"),
            ("x-key", "SESAME"),
        ] {
            let fault = access.owner(&headers(&[(name, value)])).unwrap_err();
            assert_eq!(fault.status, 401, "{name}: {value}");
        }
    }

    #[test]
    fn without_keys_everybody_is_the_same_whatever_they_send() {
        let access = access(&[]);
        for pairs in [&[][..], &[("authorization", "Basic")], &[("x-key", "x")]] {
            assert_eq!(access.owner(&headers(pairs)).unwrap(), Owner("local".into()));
        }
    }

    #[test]
    fn f40_foreign_hosts_and_origins_are_refused() {
        let access = access(&[]);
        let check = |pairs: &[(&'static str, &str)]| access.check_browser(&headers(pairs));
        for host in ["127.0.0.1:8188", "localhost:8188", "LOCALHOST", "[::1]:8188", "draw.example"]
        {
            assert_eq!(check(&[("host", host)]).unwrap(), None, "{host}");
        }
        for host in ["evil.example", "evil.example:8188", "", "localhost.evil.example", "[evil"] {
            assert_eq!(check(&[("host", host)]).unwrap_err().status, 403, "{host}");
        }
        let host = ("host", "localhost:8188");
        assert_eq!(check(&[host, ("origin", "http://localhost:8188")]).unwrap(), None);
        let kobold = "https://lite.koboldai.net";
        assert_eq!(check(&[host, ("origin", kobold)]).unwrap().as_deref(), Some(kobold));
        for origin in ["null", "http://evil.example", "http://localhost:81", "https://x", "?"] {
            assert!(check(&[host, ("origin", origin)]).is_err(), "{origin}");
        }
    }
}
