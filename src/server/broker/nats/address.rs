//! The address of a cluster: its brokers, the login for them, and the name of the cluster.

use crate::error::{Error, Result};

/// The login in an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A user and a password.
    Password(String, String),
    /// A token: `nats://TOKEN@HOST`.
    Token(String),
}

/// What the address of a cluster contains.
pub struct Address {
    /// Addresses without users and passwords.
    pub servers: Vec<String>,
    /// The user and password, or the token, of all brokers.
    pub secret: Option<Secret>,
    /// The name of the cluster.
    pub name: Option<String>,
}

impl Address {
    /// Reads addresses such as `nats://a:4222,tls://USER:PASSWORD@b:4222/NAME`.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument). They never repeat a user, a password or a
    /// token.
    pub fn parse(text: &str) -> Result<Address> {
        let refused = |found: &str| {
            Error::argument("not the address of a broker").found(found).expected(
                "nats://HOST:PORT or tls://HOST:PORT, several of them with commas, and /NAME at \
                 the end if several clusters share the brokers; in a login, %2C for a comma",
            )
        };
        let mut address = Address { servers: Vec::new(), secret: None, name: None };
        for part in text.split(',').map(str::trim) {
            let (scheme, rest) = part.split_once("://").unwrap_or_default();
            if scheme != "nats" && scheme != "tls" {
                // Anything but a word may be a password, which is not repeated.
                let is_word = scheme.bytes().all(|b| b.is_ascii_alphanumeric());
                let shown = Some(scheme).filter(|scheme| is_word && !scheme.is_empty());
                return Err(refused(shown.unwrap_or("no scheme")));
            }
            let (login, rest) = match rest.rsplit_once('@') {
                Some((login, rest)) => (Some(login), rest),
                None => (None, rest),
            };
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if host.is_empty() || address.name.is_some() {
                return Err(refused("an address without a host, or one after the name"));
            }
            if let Some(secret) = login.map(Secret::parse) {
                if address.secret.as_ref().is_some_and(|known| *known != secret) {
                    return Err(Error::argument("not the address of a cluster")
                        .found("different users or passwords for its brokers")
                        .expected("the same for all"));
                }
                address.secret = Some(secret);
            }
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            match path {
                "" => {}
                path if path.len() <= 32 && path.chars().all(is_plain) => {
                    address.name = Some(path.to_string());
                }
                path => {
                    return Err(Error::argument("not the name of a cluster")
                        .found(path)
                        .expected("at most 32 lower-case letters, digits and hyphens"));
                }
            }
            address.servers.push(format!("{scheme}://{host}"));
        }
        Ok(address)
    }
}

impl Secret {
    fn parse(text: &str) -> Secret {
        match text.split_once(':') {
            Some((user, password)) => Secret::Password(decoded(user), decoded(password)),
            None => Secret::Token(decoded(text)),
        }
    }
}

/// Decodes `%` with two hexadecimal digits. Any other `%` stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_servers_and_the_name_of_a_cluster() {
        let read = |text| Address::parse(text).map(|a| (a.servers, a.name)).ok();
        let one = vec!["nats://a:4222".to_string()];
        assert_eq!(read("nats://a:4222"), Some((one.clone(), None)));
        assert_eq!(read("nats://a:4222/studio-2"), Some((one, Some("studio-2".into()))));
        let two = vec!["tls://a".to_string(), "tls://b".into()];
        assert_eq!(read("tls://u:p@a, tls://b/x"), Some((two, Some("x".into()))));
        for bad in [
            "",
            "a:4222",
            "http://a",
            "nats://",
            "nats://a/X",
            "nats://a/b/c",
            "nats://a/x,nats://b",
            "nats://u:p@a,nats://u:q@b",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn passwords_and_tokens_are_read_and_never_repeated() {
        let read = |text| Address::parse(text).unwrap().secret;
        let password = |user: &str, word: &str| Some(Secret::Password(user.into(), word.into()));
        assert_eq!(read("nats://a"), None);
        assert_eq!(read("nats://u:p@a,nats://u:p@b,nats://c"), password("u", "p"));
        assert_eq!(read("tls://u%40x:p%2C%2f%zz%@a/n"), password("u@x", "p,/%zz%"));
        assert_eq!(read("tls://u:p@ss/wörd%C3%B6@a/n"), password("u", "p@ss/wördö"));
        assert_eq!(read("nats://t0ken@a"), Some(Secret::Token("t0ken".into())));
        for bad in [
            "secret:word@a",
            "secret:word@nats://a",
            "nats://secret:w,ord@a",
            "nats://u:secret/word@a/X",
            "x://word@a",
        ] {
            let error = Address::parse(bad).err().unwrap().to_string();
            assert!(!error.contains("word") && !error.contains("ord@"), "{error}");
        }
    }
}
