//! How a process logs in to the brokers, and which certificates it accepts from them.
//!
//! Files are read again for every connection, so that certificates and credentials can be replaced
//! while a process runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Auth, AuthError, ConnectError, ConnectErrorKind, ConnectOptions, Event};
use nkeys::KeyPair;
use tokio::sync::watch;

use super::address::Secret;
use crate::error::{Error, Result};
use crate::host::read_regular_text;
use crate::server::options::ClusterOptions;

/// How long a request to a broker may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// The time between pings of a broker. The connection is closed when three are not answered.
const PING: Duration = Duration::from_secs(3);
/// The largest file of a key or of certificates, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// How a process logs in.
enum Login {
    /// Without a user.
    Open,
    /// The user and password, or the token, of the address.
    Secret(Secret),
    /// The token and key of a file of credentials.
    Credentials(PathBuf),
    /// The key of a file with its seed.
    Seed(PathBuf),
}

impl Login {
    fn of(options: &ClusterOptions, secret: Option<Secret>) -> Result<Login> {
        let file = match (&options.credentials, &options.nkey) {
            (Some(path), _) => Some(Login::Credentials(path.clone())),
            (None, Some(path)) => Some(Login::Seed(path.clone())),
            (None, None) => None,
        };
        match (file, secret) {
            (Some(_), Some(_)) => Err(Error::argument("there are two logins for the brokers")
                .found("a user or token in their address, and a file with a key")
                .try_("{broker} without a user, or neither {nats_creds} nor {nats_nkey}")),
            (Some(file), None) => Ok(file),
            (None, secret) => Ok(secret.map_or(Login::Open, Login::Secret)),
        }
    }

    /// The login as the client library sends it. Keys sign `nonce`, which is from the broker.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) for a file that cannot be used.
    fn answer(&self, nonce: &[u8]) -> Result<Auth> {
        let mut auth = Auth::new();
        match self {
            Login::Open => {}
            Login::Secret(Secret::Token(token)) => auth.token = Some(token.clone()),
            Login::Secret(Secret::Password(user, password)) => {
                auth.username = Some(user.clone());
                auth.password = Some(password.clone());
            }
            Login::Credentials(path) => {
                let text = text_of("the file of credentials", path)?;
                let parts = (block(&text, "NATS USER JWT"), block(&text, "USER NKEY SEED"));
                let (Some(token), Some(seed)) = parts else {
                    return Err(Error::argument("the file of credentials cannot be used")
                        .at_path(path)
                        .expected("a block NATS USER JWT and a block USER NKEY SEED"));
                };
                auth.signature = Some(signed(&key_pair(seed, path)?, nonce, path)?);
                auth.jwt = Some(token.to_string());
            }
            Login::Seed(path) => {
                let text = text_of("the key", path)?;
                let mut lines = text.lines().map(str::trim);
                // Comments may precede the seed.
                let seed = lines.rfind(|line| line.starts_with("SU"));
                let key = key_pair(seed.unwrap_or_default(), path)?;
                auth.signature = Some(signed(&key, nonce, path)?);
                auth.nkey = Some(key.public_key());
            }
        }
        Ok(auth)
    }
}

/// The text of the file at `path`; an error calls the file `what`.
fn text_of(what: &str, path: &Path) -> Result<String> {
    read_regular_text(path, MAX_FILE)
        .map_err(|e| Error::argument(format!("{what} cannot be read: {e}")).at_path(path))
}

/// The content of the block called `name`, which is one line.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("BEGIN {name}-"))?;
    let mut lines = rest.lines().skip(1).map(str::trim);
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

fn key_pair(seed: &str, path: &Path) -> Result<KeyPair> {
    let unusable = |found: &str| {
        Error::argument("the key cannot be used")
            .at_path(path)
            .found(found)
            .expected("the seed of a user's NKey: a line that begins with SU")
    };
    if !seed.starts_with("SU") {
        return Err(unusable("no such line"));
    }
    KeyPair::from_seed(seed).map_err(|_| unusable("a damaged seed"))
}

fn signed(key: &KeyPair, nonce: &[u8], path: &Path) -> Result<Vec<u8>> {
    key.sign(nonce)
        .map_err(|e| Error::argument(format!("the key cannot be used: {e}")).at_path(path))
}

/// How to connect as `name`. Every connection sets `connected` to its instant.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for two logins, and for files that cannot be
/// used.
pub fn login(
    options: &ClusterOptions,
    secret: Option<Secret>,
    name: &str,
    connected: watch::Sender<Instant>,
) -> Result<ConnectOptions> {
    let login = Login::of(options, secret)?;
    // Files that cannot be used are refused here: later they would only end connections.
    login.answer(b"")?;
    check_certificates(options)?;
    let login = Arc::new(login);
    let outage = Arc::new(Mutex::new(Outage::default()));
    let mut connect = ConnectOptions::with_auth_callback(move |nonce| {
        let login = login.clone();
        async move { login.answer(&nonce).map_err(AuthError::new) }
    })
    .name(name)
    .connection_timeout(TIMEOUT)
    .request_timeout(Some(TIMEOUT))
    .ping_interval(PING)
    .max_reconnects(None)
    // A front receives a message for every job and every step.
    .subscription_capacity(256 << 10)
    .reconnect_delay_callback(|attempts| Duration::from_millis((50 * attempts as u64).min(1000)))
    .event_callback(move |event| {
        let (connected, outage) = (connected.clone(), outage.clone());
        async move {
            if matches!(event, Event::Connected) {
                connected.send_replace(Instant::now());
            }
            outage.lock().unwrap_or_else(PoisonError::into_inner).note(&event);
        }
    });
    if let Some(path) = &options.ca_certificates {
        connect = connect.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &options.certificate {
        connect = connect.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(connect)
}

/// Checks that the files have the certificates and the key: without them every connection fails.
fn check_certificates(options: &ClusterOptions) -> Result<()> {
    let has = |path: &Path, what: &str, mark: &str| {
        let text = text_of(what, path)?;
        let unusable = |found: &str| {
            let error = Error::argument(format!("{what} cannot be used")).at_path(path);
            error.found(found).expected(format!("PEM: -----BEGIN {mark}-----"))
        };
        // The two forms that OpenSSL writes.
        if text.contains("BEGIN ENCRYPTED ") || text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(unusable("a key with a password").try_("write the key without a password"));
        }
        match text.contains(&format!("{mark}-----")) {
            true => Ok(()),
            false => Err(unusable("no such block")),
        }
    };
    if let Some(path) = &options.ca_certificates {
        has(path, "the file of certificates", "CERTIFICATE")?;
    }
    if let Some((certificate, key)) = &options.certificate {
        has(certificate, "the certificate", "CERTIFICATE")?;
        has(key, "the key of the certificate", "PRIVATE KEY")?;
    }
    Ok(())
}

/// Logs when the connection is lost and when it is back, and each reason once.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    /// The reason that was logged last.
    reason: Option<String>,
}

impl Outage {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Connected => {
                self.reason = None;
                if let Some(since) = self.since.take() {
                    let seconds = since.elapsed().as_secs_f64();
                    tracing::info!("the broker is back after {seconds:.1} s");
                }
            }
            Event::Disconnected => {
                self.since.get_or_insert_with(Instant::now);
                tracing::info!("the connection to the broker is lost");
            }
            Event::SlowConsumer(_) => {
                tracing::warn!("this process does not keep up with the broker");
            }
            Event::ServerError(error) => tracing::warn!("the broker says: {error}"),
            Event::ClientError(error) => {
                // Every attempt gives the same error.
                let reason = error.to_string();
                if self.reason.as_ref() != Some(&reason) {
                    tracing::warn!("the broker cannot be reached: {reason}");
                    self.reason = Some(reason);
                }
            }
            _ => {}
        }
    }
}

/// The error of the first connection, with what to change.
pub fn refusal(error: &ConnectError, options: &ClusterOptions) -> Error {
    let text = error.to_string();
    let says = |part: &str| text.contains(part);
    let refused = [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication];
    let unreached = Error::device(format!("the broker cannot be reached: {text}"));
    if refused.contains(&error.kind()) {
        Error::device(format!("the broker refuses this user: {text}")).try_(
            "check the user and the password in {broker}, or the file of {nats_creds} or \
             {nats_nkey}",
        )
    } else if says("UnknownIssuer") && options.ca_certificates.is_none() {
        unreached.try_("{nats_ca} with the certificate of the authority that signed the broker's")
    } else if says("UnknownIssuer") {
        unreached.try_("check {nats_ca}: another authority has signed the broker's certificate")
    } else if says("invalid peer certificate") {
        unreached.try_("check that the broker's certificate is valid, and for this host name")
    } else if says("fatal alert") && options.certificate.is_none() {
        unreached.try_("the broker asks for a certificate: {nats_cert} with {nats_key}")
    } else if says("fatal alert") {
        unreached.try_("check that the broker trusts the authority that signed {nats_cert}")
    } else if says("could not add certificate or key") {
        unreached.try_("check that {nats_key} is the key of {nats_cert}")
    } else if says("InvalidContentType") {
        unreached.try_("the broker does not use TLS: an address with nats:// in place of tls://")
    } else {
        unreached.try_("check that the address is right and that nats-server runs there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_keys_are_read_and_wrong_ones_are_refused_without_their_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let asked = |text: &str, login: fn(PathBuf) -> Login| {
            std::fs::write(&path, text).unwrap();
            login(path.clone()).answer(b"nonce")
        };
        let auth = asked(&format!("# mine\n{seed}\n"), Login::Seed).unwrap();
        assert_eq!(auth.nkey, Some(key.public_key()));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\r\nto.k-e.n_\r\n------END NATS USER JWT------\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        let auth = asked(&credentials, Login::Credentials).unwrap();
        assert_eq!((auth.jwt.as_deref(), auth.nkey), (Some("to.k-e.n_"), None));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();

        let account = KeyPair::new_account().seed().unwrap();
        let damaged = format!("{}A", &seed[..seed.len() - 2]);
        let short = credentials.split("-----BEGIN USER").next().unwrap();
        let empty = credentials.replace("to.k-e.n_\r\n", "");
        for (text, login) in [
            ("", Login::Seed as fn(PathBuf) -> Login),
            (account.as_str(), Login::Seed),
            (damaged.as_str(), Login::Seed),
            (seed.as_str(), Login::Credentials),
            (short, Login::Credentials),
            (empty.as_str(), Login::Credentials),
            (credentials.replace(&seed, &damaged).as_str(), Login::Credentials),
        ] {
            let error = asked(text, login).err().unwrap().to_string();
            assert!(!error.contains(&seed[..20]) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn a_login_in_the_address_and_a_file_with_a_key_are_refused() {
        let mut options = ClusterOptions::new("nats://a".into());
        let secret = Secret::Token("word".into());
        assert!(Login::of(&options, Some(secret.clone())).is_ok());
        options.nkey = Some("key".into());
        assert!(Login::of(&options, None).is_ok());
        let error = Login::of(&options, Some(secret)).err().unwrap().to_string();
        assert!(!error.contains("word"), "{error}");
    }
}
