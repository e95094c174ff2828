//! The connection to the brokers, and the buckets that a cluster keeps there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::{self, object_store};
use async_nats::{Client, ConnectOptions, Event};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::record::Record;
use crate::error::{Error, Result};
use crate::server::fault::Fault;
use crate::server::options::ClusterOptions;

/// How long a request to a broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change is tried while brokers do not answer or others change the same value.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often the brokers are asked whether they are there. Two answers may be missing.
const PING: Duration = Duration::from_secs(3);
/// Everything in the bucket of images is deleted after this time, if not before.
const IMAGES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a deleted key is remembered, for fronts that were away.
pub const MARKERS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// The oldest version of the brokers.
const VERSION: (i64, i64, i64) = (2, 12, 0);

/// A connection.
pub struct Link {
    pub client: Client,
    /// One key per job, and few others. Every front watches all of it.
    pub state: kv::Store,
    /// The limits of owners, and what all processes share: nobody watches it.
    pub shared: kv::Store,
    /// Images to start from, and results.
    pub images: object_store::ObjectStore,
    /// When the connection was made last.
    pub connected: watch::Sender<Instant>,
    /// What subjects begin with.
    prefix: String,
    handle: Handle,
    outgoing: UnboundedSender<(String, Vec<u8>)>,
}

/// What became of a change.
pub enum Change {
    /// There is no such job.
    Missing,
    /// The job is as it should be, or may not be changed.
    Unchanged(Record, u64),
    /// It was changed; this is its new revision.
    Changed(Record, u64),
}

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
            let rest = rest.ok_or_else(|| refused(part.split("://").next().unwrap_or_default()))?;
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if host.is_empty() || name.is_some() {
                return Err(refused("an address without a host, or one after the name"));
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

    /// The subject called `name` of this cluster.
    pub fn subject(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Waits for `future`. Nothing else of the thread's tasks runs meanwhile elsewhere.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        tokio::task::block_in_place(|| self.handle.block_on(future))
    }

    /// For how long there has been a connection; `None` if there is none.
    pub fn connected_for(&self) -> Option<Duration> {
        let is_connected = self.client.connection_state() == State::Connected;
        is_connected.then(|| self.connected.borrow().elapsed())
    }

    /// Waits a moment for a connection, if there is none.
    ///
    /// # Errors
    /// 503: nobody should wait for long.
    pub async fn ready(&self) -> std::result::Result<(), Fault> {
        for _ in 0..20 {
            if self.connected_for().is_some() {
                return Ok(());
            }
            pause().await;
        }
        Err(out_of_reach())
    }

    /// Sends `value` to whoever listens to `subject`.
    pub async fn send(&self, subject: &str, value: &impl Serialize) {
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        // While there is no connection, what is sent waits for it or is lost: nothing depends on it.
        self.client.publish(self.subject(subject), bytes.into()).await.ok();
    }

    /// Sends `bytes` to whoever listens to `subject`, in the order of the calls. While there is no
    /// connection, it is lost.
    pub fn publish(&self, subject: String, bytes: Vec<u8>) {
        if self.connected_for().is_some() {
            self.outgoing.send((subject, bytes)).ok();
        }
    }

    /// The job called `id`, with its revision.
    ///
    /// # Errors
    /// 503.
    pub async fn job(&self, id: &str) -> std::result::Result<Option<(Record, u64)>, Fault> {
        get(&self.state, &job_key(id)).await
    }

    /// Stores a new job. Returns its revision; `None` if there is one of this id.
    ///
    /// # Errors
    /// 503, and 413 for a job that is too large for the broker.
    pub async fn create(&self, record: &Record) -> std::result::Result<Option<u64>, Fault> {
        let bytes = serde_json::to_vec(record)
            .map_err(|e| Fault::internal(format!("the job cannot be written: {e}")))?;
        if bytes.len() + 4096 > self.client.max_payload() {
            return Err(Fault::new(413, "too_large", "the request is too large for the broker")
                .hint("send a shorter one"));
        }
        let since = Instant::now();
        loop {
            match self.state.create(job_key(&record.id), bytes.clone().into()).await {
                Ok(revision) => return Ok(Some(revision)),
                Err(e) if e.kind() == CreateErrorKind::AlreadyExists => {
                    // It may be this one, if the answer to an earlier attempt was lost.
                    let known = self.job(&record.id).await?;
                    let is_this = |known: &Record| known.instant == record.instant;
                    return Ok(known.filter(|(known, _)| is_this(known)).map(|(_, at)| at));
                }
                Err(_) if since.elapsed() < PATIENCE => pause().await,
                Err(e) => return Err(unreachable(&e)),
            }
        }
    }

    /// Changes the job called `id` to what `next` returns for it. Where others change it at the same
    /// time, `next` is called again with what they have made of it.
    ///
    /// # Errors
    /// 503.
    pub async fn change(
        &self,
        id: &str,
        next: impl Fn(&Record) -> Option<Record>,
    ) -> std::result::Result<Change, Fault> {
        let since = Instant::now();
        loop {
            let known = match self.job(id).await {
                Ok(None) => return Ok(Change::Missing),
                Ok(Some(known)) => known,
                Err(_) if since.elapsed() < PATIENCE => {
                    pause().await;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let Some(record) = next(&known.0) else {
                return Ok(Change::Unchanged(known.0, known.1));
            };
            match set(&self.state, &job_key(id), &record, known.1).await {
                Ok(Some(revision)) => return Ok(Change::Changed(record, revision)),
                Ok(None) => {}
                Err(fault) if since.elapsed() > PATIENCE => return Err(fault),
                Err(_) => pause().await,
            }
        }
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The key of a job.
pub fn job_key(id: &str) -> String {
    format!("job.{id}")
}

/// The value of `key`, with its revision.
///
/// # Errors
/// 503.
pub async fn get<T: DeserializeOwned>(
    store: &kv::Store,
    key: &str,
) -> std::result::Result<Option<(T, u64)>, Fault> {
    let entry = store.entry(key).await.map_err(|e| unreachable(&e))?;
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&entry.value)
        .map_err(|e| Fault::internal(format!("a value of the broker cannot be read: {e}")))?;
    Ok(Some((value, entry.revision)))
}

/// Sets `key`, if it still has `revision` (0: if there is none). Returns the new revision; `None` if
/// somebody else has changed it.
///
/// # Errors
/// 503: it may be set or not.
pub async fn set<T: Serialize>(
    store: &kv::Store,
    key: &str,
    value: &T,
    revision: u64,
) -> std::result::Result<Option<u64>, Fault> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Fault::internal(format!("a value cannot be written: {e}")))?;
    if revision == 0 {
        return match store.create(key, bytes.into()).await {
            Ok(revision) => Ok(Some(revision)),
            Err(e) if e.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(unreachable(&e)),
        };
    }
    match store.update(key, bytes.into(), revision).await {
        Ok(revision) => Ok(Some(revision)),
        Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
        Err(e) => Err(unreachable(&e)),
    }
}

/// The fault of a broker that does not answer.
pub fn unreachable(_error: &dyn std::error::Error) -> Fault {
    out_of_reach()
}

fn out_of_reach() -> Fault {
    Fault::new(503, "broker_unreachable", "the queue is out of reach at the moment").retry_after(2)
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
    let unusable = |what: &str, e: &dyn std::fmt::Display, path: &std::path::Path| {
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
        let error = Address::parse("secret:word@a").err().unwrap().to_string();
        assert!(!error.contains("word"), "{error}");
    }
}
