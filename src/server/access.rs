//! Who may use the server: keys, and the checks that keep foreign web pages out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::job::hex;
use super::limits::Plan;
use crate::error::{Error, Result as Outcome};

/// Whose request it is: a key, or everybody on a server without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner(pub String);

/// A key, which is only kept and compared as its hash.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerKey {
    hash: [u8; 32],
    /// A name for the log.
    pub name: Option<String>,
    /// Its limits; `None` for those of keys without a plan.
    pub plan: Option<Plan>,
}

impl ServerKey {
    /// The key `text`.
    pub fn new(text: &str) -> Self {
        ServerKey { hash: hash(text), name: None, plan: None }
    }

    /// The key whose hash is `text`: `sha256:` and 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if it is something else.
    pub fn hashed(text: &str) -> Outcome<Self> {
        let read = || {
            let digits = text.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.is_ascii())?;
            let mut hash = [0; 32];
            for (i, byte) in hash.iter_mut().enumerate() {
                *byte = u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()?;
            }
            Some(ServerKey { hash, name: None, plan: None })
        };
        read().ok_or_else(|| {
            // It may be the key itself, so it is not repeated.
            Error::argument("not the hash of a key")
                .expected("sha256: and the 64 hexadecimal digits of the key's SHA-256")
        })
    }
}

/// The rules of one server.
#[derive(Debug, Clone)]
pub struct Access {
    keys: Vec<KnownKey>,
    /// The limits of everybody on a server without keys.
    default_plan: Option<Arc<Plan>>,
    /// Host names, in lower case, under which the server may be addressed.
    hosts: Vec<String>,
    /// Origins of foreign pages that may use the server.
    origins: Vec<String>,
}

#[derive(Debug, Clone)]
struct KnownKey {
    hash: [u8; 32],
    owner: Owner,
    name: Option<String>,
    plan: Option<Arc<Plan>>,
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
    /// The rules of a server at `listen` that is also known as `hosts`. Keys without a plan, and
    /// everybody on a server without keys, have `default_plan`.
    pub fn new(
        keys: &[ServerKey],
        default_plan: Option<Plan>,
        listen: SocketAddr,
        hosts: impl IntoIterator<Item = String>,
        origins: Vec<String>,
    ) -> Self {
        let mut hosts: Vec<String> = hosts.into_iter().map(|h| h.to_lowercase()).collect();
        hosts.extend(["localhost".into(), listen.ip().to_string()]);
        let default_plan = default_plan.map(Arc::new);
        let known = |key: &ServerKey| KnownKey {
            hash: key.hash,
            owner: Owner(format!("key:{}", hex(&key.hash[..8]))),
            name: key.name.clone(),
            plan: key.plan.clone().map(Arc::new).or_else(|| default_plan.clone()),
        };
        let keys = keys.iter().map(known).collect();
        Access { keys, default_plan, hosts, origins }
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
        let known = self.keys.iter().fold(None, |known, key| match same(&key.hash, &given) {
            true => Some(key),
            false => known,
        });
        match known {
            Some(key) => Ok(key.owner.clone()),
            None => refused("this is not a key of this server"),
        }
    }

    /// The limits of `owner`; `None` for none.
    pub fn plan(&self, owner: &Owner) -> Option<Arc<Plan>> {
        match self.keys.iter().find(|key| key.owner == *owner) {
            Some(key) => key.plan.clone(),
            None => self.default_plan.clone(),
        }
    }

    /// `owner` in the log: the name of its key, if it has one.
    pub fn name(&self, owner: &Owner) -> String {
        let key = self.keys.iter().find(|key| key.owner == *owner);
        key.and_then(|key| key.name.clone()).unwrap_or_else(|| owner.0.clone())
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
        let keys: Vec<ServerKey> = keys.iter().map(|k| ServerKey::new(k)).collect();
        let listen = "127.0.0.1:8188".parse().unwrap();
        Access::new(
            &keys,
            None,
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
    fn keys_may_be_given_as_hashes_and_have_plans_and_names() {
        let text = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        let mut foo = ServerKey::hashed(text).unwrap();
        assert_eq!(foo, ServerKey::new("foo"));
        for bad in ["foo", "sha256:", "sha256:zz", &text[..70], &text.replace('2', "\u{e4}")] {
            let error = ServerKey::hashed(bad).unwrap_err().to_string();
            assert!(!error.contains("foo"), "{error}");
        }
        let plan = Plan::of(&["1/s"]).unwrap();
        foo.plan = Some(plan.clone());
        foo.name = Some("anna".into());
        let listen = "127.0.0.1:1".parse().unwrap();
        let keys = [foo, ServerKey::new("bar")];
        let access = Access::new(&keys, None, listen, [], vec![]);
        let owner = |key| access.owner(&headers(&[("x-key", key)])).unwrap();
        assert_eq!(access.plan(&owner("foo")).as_deref(), Some(&plan));
        assert_eq!(access.name(&owner("foo")), "anna");
        assert_eq!(access.plan(&owner("bar")), None);
        assert!(access.name(&owner("bar")).starts_with("key:"));
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
