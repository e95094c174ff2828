//! The connection to the brokers, and the buckets that a cluster keeps there.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, object_store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::record::Record;
use crate::server::fault::Fault;

/// How long a change is tried while brokers do not answer or others change the same value.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a deleted key is remembered, for fronts that were away.
pub const MARKERS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A connection.
pub struct Link {
    pub client: Client,
    pub(super) context: jetstream::Context,
    /// One key per job, and few others. Every front watches all of it.
    pub state: kv::Store,
    /// The limits of owners, and what all processes share: nobody watches it.
    pub shared: kv::Store,
    /// Images to start from, and results.
    pub images: object_store::ObjectStore,
    /// When the connection was made last.
    pub connected: watch::Sender<Instant>,
    /// What subjects begin with.
    pub(super) prefix: String,
    pub(super) handle: Handle,
    pub(super) outgoing: UnboundedSender<(String, Vec<u8>)>,
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

impl Link {
    /// The subject called `name` of this cluster.
    pub fn subject(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// The longest value of a key, in bytes: it is one message, which also has headers.
    pub fn max_value(&self) -> usize {
        self.client.max_payload().saturating_sub(4096)
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
    pub async fn ready(&self) -> Result<(), Fault> {
        for _ in 0..20 {
            if self.connected_for().is_some() {
                return Ok(());
            }
            pause().await;
        }
        Err(out_of_reach())
    }

    /// Sends `value` to the subscribers of `subject`.
    pub async fn send(&self, subject: &str, value: &impl Serialize) {
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        // Without a connection, what is sent waits for one or is lost: nothing depends on it.
        self.client.publish(self.subject(subject), bytes.into()).await.ok();
    }

    /// Sends `bytes` to the subscribers of `subject`, in the order of the calls. While there is no
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
    pub async fn job(&self, id: &str) -> Result<Option<(Record, u64)>, Fault> {
        get(&self.state, &job_key(id)).await
    }

    /// A new job as it is stored.
    ///
    /// # Errors
    /// 413 for a job that is too large for the broker.
    pub fn value_of(&self, record: &Record) -> Result<Vec<u8>, Fault> {
        let bytes = serde_json::to_vec(record)
            .map_err(|e| Fault::internal(format!("the job cannot be written: {e}")))?;
        if bytes.len() > self.max_value() {
            return Err(Fault::new(413, "too_large", "the request is too large for the broker")
                .hint("send a shorter one"));
        }
        Ok(bytes)
    }

    /// Stores a new job. Returns its revision; `None` if there is one of this id.
    ///
    /// # Errors
    /// 503, and 413 for a job that is too large for the broker.
    pub async fn create(&self, record: &Record) -> Result<Option<u64>, Fault> {
        let bytes = self.value_of(record)?;
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

    /// Changes the job called `id` to what `next` returns for it. If others change it at the same
    /// time, `next` is called again with what they have made of it.
    ///
    /// # Errors
    /// 503.
    pub async fn change(
        &self,
        id: &str,
        next: impl Fn(&Record) -> Option<Record>,
    ) -> Result<Change, Fault> {
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
) -> Result<Option<(T, u64)>, Fault> {
    let entry = store.entry(key).await.map_err(|e| unreachable(&e))?;
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&entry.value)
        .map_err(|e| Fault::internal(format!("a value of the broker cannot be read: {e}")))?;
    Ok(Some((value, entry.revision)))
}

/// Whether brokers with several copies were changing the same key when they refused a change.
fn is_overtaken(error: &dyn std::error::Error) -> bool {
    // The client library has no kind for it.
    error.to_string().contains("error code 10164")
}

/// Sets `key`, if it still has `revision` (0: if there is none). Returns the new revision; `None`
/// if somebody else has changed it.
///
/// # Errors
/// 503: it may be set or not.
pub async fn set<T: Serialize>(
    store: &kv::Store,
    key: &str,
    value: &T,
    revision: u64,
) -> Result<Option<u64>, Fault> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Fault::internal(format!("a value cannot be written: {e}")))?;
    if revision == 0 {
        return match store.create(key, bytes.into()).await {
            Ok(revision) => Ok(Some(revision)),
            Err(e) if e.kind() == CreateErrorKind::AlreadyExists || is_overtaken(&e) => Ok(None),
            Err(e) => Err(unreachable(&e)),
        };
    }
    match store.update(key, bytes.into(), revision).await {
        Ok(revision) => Ok(Some(revision)),
        Err(e) if e.kind() == UpdateErrorKind::WrongLastRevision || is_overtaken(&e) => Ok(None),
        Err(e) => Err(unreachable(&e)),
    }
}

/// Sets `key` for the time `life`, if it still has `revision` (0: if nothing is known of it).
/// Returns the new revision; `None` if somebody else has changed it. The methods of buckets set a
/// time only for keys that nobody has ever used.
///
/// # Errors
/// 503: it may be set or not.
pub async fn set_for<T: Serialize>(
    link: &Link,
    store: &kv::Store,
    key: &str,
    value: &T,
    revision: u64,
    life: Duration,
) -> Result<Option<u64>, Fault> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Fault::internal(format!("a value cannot be written: {e}")))?;
    let message = PublishMessage::build()
        .payload(bytes.into())
        .expected_last_subject_sequence(revision)
        .header(async_nats::header::NATS_MESSAGE_TTL, life.as_secs().to_string());
    let subject = format!("{}{key}", store.put_prefix.as_ref().unwrap_or(&store.prefix));
    let sent = link.context.send_publish(subject, message).await;
    match sent.map_err(|e| unreachable(&e))?.await {
        Ok(stored) => Ok(Some(stored.sequence)),
        Err(e) if e.kind() == PublishErrorKind::WrongLastSequence || is_overtaken(&e) => Ok(None),
        Err(e) => Err(unreachable(&e)),
    }
}

/// Sets `key` for the time `life`, if it is not there. Returns its revision; `None` if it is.
///
/// # Errors
/// 503: it may be set or not.
pub async fn claim<T: Serialize>(
    link: &Link,
    store: &kv::Store,
    key: &str,
    value: &T,
    life: Duration,
) -> Result<Option<u64>, Fault> {
    if let Some(revision) = set_for(link, store, key, value, 0, life).await? {
        return Ok(Some(revision));
    }
    let entry = store.entry(key).await.map_err(|e| unreachable(&e))?;
    match entry {
        // What is left of a key that was deleted.
        Some(entry) if entry.operation != Operation::Put => {
            set_for(link, store, key, value, entry.revision, life).await
        }
        _ => Ok(None),
    }
}

/// The fault of a broker that does not answer.
pub fn unreachable(_error: &dyn std::error::Error) -> Fault {
    out_of_reach()
}

fn out_of_reach() -> Fault {
    Fault::new(503, "broker_unreachable", "the queue is out of reach at the moment").retry_after(2)
}
