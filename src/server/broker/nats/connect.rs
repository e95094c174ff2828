//! How a process connects to the brokers, and the buckets that it makes and checks there.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, kv, object_store};
use async_nats::{ConnectOptions, Event};
use tokio::runtime::Handle;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

use super::link::{Link, MARKERS_KEPT};
use crate::error::{Error, Result};
use crate::server::options::ClusterOptions;

/// How long a request to a broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the brokers are asked whether they are there. Two answers may be missing.
const PING: Duration = Duration::from_secs(3);
/// Everything in the bucket of images is deleted after this time, if not before.
const IMAGES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// The oldest version of the brokers.
const VERSION: (i64, i64, i64) = (2, 12, 0);

/// Where the brokers are, and the name of the cluster.
struct Address {
    servers: Vec<String>,
    name: Option<String>,
}

impl Address {
    fn parse(text: &str) -> Result<Address> {
        let refused = |found: &str| {
            Error::argument("not the address of a broker").found(found).expected(
                "nats://HOST:PORT or tls://HOST:PORT, several of them with commas, and /NAME at \
                 the end if several clusters share the brokers",
            )
        };
        let mut name = None;
        let mut servers = Vec::new();
        for part in text.split(',').map(str::trim) {
            let rest = part.strip_prefix("nats://").or_else(|| part.strip_prefix("tls://"));
            // A password may be in the address: it is not repeated.
            let scheme = part.split_once("://").map_or("no scheme", |(scheme, _)| scheme);
            let rest = rest.ok_or_else(|| refused(scheme))?;
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if host.is_empty() || name.is_some() {
                return Err(refused("an address without a host, or one after the name"));
            }
            if path.contains('@') {
                // What stands behind the slash is a part of the password.
                return Err(refused("a slash before the host")
                    .try_("use a password without a slash, or a file of credentials"));
            }
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            match path {
                "" => {}
                path if path.len() <= 32 && path.chars().all(is_plain) => {
                    name = Some(path.to_string());
                }
                path => {
                    return Err(Error::argument("not the name of a cluster")
                        .found(path)
                        .expected("at most 32 lower-case letters, digits and hyphens"));
                }
            }
            let scheme = &part[..part.len() - rest.len()];
            servers.push(format!("{scheme}{host}"));
        }
        Ok(Address { servers, name })
    }
}

impl Link {
    /// Connects as `name`, and makes the buckets that do not exist.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) for an address that is none and files that
    /// cannot be used, [`Kind::Device`](crate::error::Kind::Device) if no broker answers or it is
    /// of no use.
    pub async fn connect(options: &ClusterOptions, name: &str) -> Result<Arc<Link>> {
        let address = Address::parse(&options.broker)?;
        let connected = watch::Sender::new(Instant::now());
        let client = login(options, name, connected.clone())
            .await?
            .connect(&address.servers)
            .await
            .map_err(|e| {
                Error::device(format!("the broker cannot be reached: {e}"))
                    .try_("check that the address is right and that nats-server runs there")
            })?;
        if !client.is_server_compatible(VERSION.0, VERSION.1, VERSION.2) {
            return Err(Error::device("the broker is too old")
                .found(client.server_info().version)
                .expected(format!("nats-server {}.{} or later", VERSION.0, VERSION.1)));
        }
        let mut context = jetstream::new(client.clone());
        context.set_timeout(TIMEOUT);
        let bucket = |what: &str| match &address.name {
            Some(name) => format!("FF_{name}_{what}"),
            None => format!("FF_{what}"),
        };
        let replicas = options.replicas;
        let jobs = "jobs, one key each";
        let state = key_values(&context, bucket("STATE"), jobs, replicas).await?;
        let common = "limits, and what all processes share";
        let shared = key_values(&context, bucket("LIMITS"), common, replicas).await?;
        let images = objects(&context, bucket("IMG"), replicas).await?;
        let prefix = address.name.map_or("ff".into(), |name| format!("ff-{name}"));
        let handle = Handle::current();
        let (outgoing, mut messages) = unbounded_channel::<(String, Vec<u8>)>();
        let sender = client.clone();
        tokio::spawn(async move {
            while let Some((subject, bytes)) = messages.recv().await {
                sender.publish(subject, bytes.into()).await.ok();
            }
        });
        Ok(Arc::new(Link { client, state, shared, images, connected, prefix, handle, outgoing }))
    }
}

/// How to connect.
async fn login(
    options: &ClusterOptions,
    name: &str,
    connected: watch::Sender<Instant>,
) -> Result<ConnectOptions> {
    let lost = Arc::new(Mutex::new(None::<Instant>));
    let mut login = ConnectOptions::new()
        .name(name)
        .connection_timeout(TIMEOUT)
        .request_timeout(Some(TIMEOUT))
        .ping_interval(PING)
        .max_reconnects(None)
        // A front hears of every job and every step.
        .subscription_capacity(256 << 10)
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis((50 * attempts as u64).min(1000))
        })
        .event_callback(move |event| {
            let (connected, lost) = (connected.clone(), lost.clone());
            async move {
                let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Event::Connected => {
                        if let Some(since) = lost.take() {
                            let seconds = since.elapsed().as_secs_f64();
                            tracing::info!("the broker is back after {seconds:.1} s");
                        }
                        connected.send_replace(Instant::now());
                    }
                    Event::Disconnected => {
                        lost.get_or_insert_with(Instant::now);
                        tracing::info!("the connection to the broker is lost");
                    }
                    Event::SlowConsumer(_) => {
                        tracing::warn!("this process does not keep up with the broker");
                    }
                    Event::ServerError(error) => tracing::warn!("the broker says: {error}"),
                    _ => {}
                }
            }
        });
    let unusable = |what: &str, e: &dyn std::fmt::Display, path: &Path| {
        Error::argument(format!("{what} cannot be used: {e}")).at_path(path)
    };
    if let Some(path) = &options.credentials {
        login = login
            .credentials_file(path)
            .await
            .map_err(|e| unusable("the file of credentials", &e, path))?;
    }
    if let Some(path) = &options.nkey {
        let seed = std::fs::read_to_string(path).map_err(|e| unusable("the key", &e, path))?;
        login = login.nkey(seed.trim().to_string());
    }
    if let Some(path) = &options.ca_certificates {
        login = login.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &options.certificate {
        login = login.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(login)
}

fn setup_error(what: &str, error: &dyn std::error::Error) -> Error {
    Error::device(format!("{what} cannot be made on the broker: {error}"))
        .try_("check that JetStream is on (nats-server -js) and that the account may use it")
}

/// Opens a bucket of keys and values, or makes it.
async fn key_values(
    context: &jetstream::Context,
    bucket: String,
    what: &str,
    replicas: usize,
) -> Result<kv::Store> {
    if context.get_key_value(&bucket).await.is_err() {
        let config = kv::Config {
            bucket: bucket.clone(),
            description: format!("flux-fast: {what}"),
            history: 1,
            num_replicas: replicas,
            // What was deleted leaves no trace after this time.
            limit_markers: Some(MARKERS_KEPT),
            ..kv::Config::default()
        };
        // Another process may make it at the same time: the same is made only once.
        context.create_key_value(config).await.map_err(|e| setup_error("a bucket", &e))?;
    }
    check(context, &format!("KV_{bucket}"), Duration::ZERO, Some(1)).await?;
    context.get_key_value(&bucket).await.map_err(|e| setup_error("a bucket", &e))
}

/// Opens a bucket of files, or makes it.
async fn objects(
    context: &jetstream::Context,
    bucket: String,
    replicas: usize,
) -> Result<object_store::ObjectStore> {
    if context.get_object_store(&bucket).await.is_err() {
        let config = object_store::Config {
            bucket: bucket.clone(),
            description: Some("flux-fast: images to start from, and results".into()),
            max_age: IMAGES_KEPT,
            num_replicas: replicas,
            ..object_store::Config::default()
        };
        context.create_object_store(config).await.map_err(|e| setup_error("a bucket", &e))?;
    }
    check(context, &format!("OBJ_{bucket}"), IMAGES_KEPT, None).await?;
    context.get_object_store(&bucket).await.map_err(|e| setup_error("a bucket", &e))
}

/// Checks that what a stream keeps is what a cluster needs: somebody may have made it by hand.
async fn check(
    context: &jetstream::Context,
    stream: &str,
    max_age: Duration,
    history: Option<i64>,
) -> Result<()> {
    let stream = context.get_stream(stream).await.map_err(|e| setup_error("a bucket", &e))?;
    let config = &stream.cached_info().config;
    if config.storage != jetstream::stream::StorageType::File {
        return Err(Error::device("a bucket of the broker is not durable")
            .at(&config.name)
            .found("storage in memory")
            .expected("storage in files"));
    }
    if config.max_age != max_age {
        return Err(Error::device("a bucket of the broker forgets at another time")
            .at(&config.name)
            .found(format!("max_age {} s", config.max_age.as_secs()))
            .expected(format!("max_age {} s", max_age.as_secs())));
    }
    match history {
        Some(history) if config.max_messages_per_subject != history => {
            Err(Error::device("a bucket of the broker keeps another number of revisions")
                .at(&config.name)
                .found(config.max_messages_per_subject)
                .expected(history))
        }
        _ => Ok(()),
    }
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
        let two = vec!["tls://u:p@a".to_string(), "tls://b".into()];
        assert_eq!(read("tls://u:p@a, tls://b/x"), Some((two, Some("x".into()))));
        for bad in [
            "",
            "a:4222",
            "http://a",
            "nats://",
            "nats://a/X",
            "nats://a/b/c",
            "nats://a/x,nats://b",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        for secret in [
            "secret:hunter@a",
            "nats://u:a/hunter@b",
            "nats://u:a,hunter@b",
            "http://u:hunter@a",
            "nats://u:hunter@a/X",
            "nats://u:hunter@a/x,nats://u:hunter@b",
        ] {
            let e = Address::parse(secret).err().unwrap();
            let told = format!("{e} {}", e.hint().unwrap_or_default());
            assert!(!told.contains("hunter"), "{told}");
        }
    }
}
