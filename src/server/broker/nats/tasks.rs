//! What a front hears: changes of jobs, workers, and what workers say about their jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{Entry, Operation};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hub::{Hub, lock};
use super::record::Record;
use crate::server::broker::{Catalog, News, WorkerFacts};

/// The pause before something that ended is begun again.
const PAUSE: Duration = Duration::from_millis(500);

/// After this time without a job, all jobs are there.
const QUIET: Duration = Duration::from_secs(2);

/// What a worker says about one of its jobs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub job: String,
    pub name: String,
    pub data: Value,
}

/// Keeps the mirror the same as the bucket of jobs, for ever.
pub async fn watch_jobs(hub: Arc<Hub>) {
    let mut connected = hub.link.connected.subscribe();
    let mut seen = 0;
    loop {
        connected.borrow_and_update();
        let watch = async {
            let status = hub.link.state.status().await.map_err(|e| e.to_string())?;
            let state = &status.info.state;
            let watch = match seen {
                0 => hub.link.state.watch_with_history(">").await,
                // Everything since the connection was lost.
                seen => hub.link.state.watch_all_from_revision(seen + 1).await,
            };
            let watch = watch.map_err(|e| e.to_string())?;
            // With no value at all, or only those that are known, nothing would be heard.
            let last = if state.messages == 0 { 0 } else { state.last_sequence };
            Ok::<_, String>((watch, last))
        };
        let (mut watch, last) = match watch.await {
            Ok(watch) => watch,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if seen >= last {
            lock(&hub.mirror).loaded();
        }
        loop {
            let is_loaded = lock(&hub.mirror).is_loaded();
            let entry = tokio::select! {
                entry = watch.next() => entry,
                _ = connected.changed() => break,
                // The last change may have been the mark of a deletion that is gone.
                () = tokio::time::sleep(QUIET), if !is_loaded => {
                    lock(&hub.mirror).loaded();
                    continue;
                }
            };
            let Some(Ok(entry)) = entry else { break };
            seen = seen.max(entry.revision);
            apply(&hub, entry);
            if seen >= last && !lock(&hub.mirror).is_loaded() {
                lock(&hub.mirror).loaded();
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn apply(hub: &Hub, entry: Entry) {
    if let Some(owner) = entry.key.strip_prefix("model.") {
        let model = String::from_utf8_lossy(&entry.value).into_owned();
        let mut mirror = lock(&hub.mirror);
        match entry.operation {
            Operation::Put => mirror.preferred.insert(owner.into(), model),
            _ => mirror.preferred.remove(owner),
        };
    }
    let Some(id) = entry.key.strip_prefix("job.") else { return };
    if entry.operation != Operation::Put {
        lock(&hub.mirror).remove(id);
        return;
    }
    match serde_json::from_slice::<Record>(&entry.value) {
        Ok(record) => {
            let is_loaded = lock(&hub.mirror).is_loaded();
            let seen = lock(&hub.mirror).apply(record, entry.revision);
            // What happened before this process is no news.
            if is_loaded {
                hub.tell(seen);
            }
        }
        Err(e) => tracing::warn!("job {id} cannot be read: {e}"),
    }
}

/// Notes what workers say of themselves, for ever.
pub async fn hear_workers(hub: Arc<Hub>) {
    loop {
        let Ok(mut heard) = hub.link.client.subscribe(hub.link.subject("worker")).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut changed = false;
        loop {
            tokio::select! {
                message = heard.next() => {
                    let Some(message) = message else { break };
                    if let Ok(facts) = serde_json::from_slice::<WorkerFacts>(&message.payload) {
                        changed |= note_worker(&hub, facts);
                    }
                }
                _ = tick.tick() => {
                    changed |= forget_workers(&hub);
                    if std::mem::take(&mut changed) {
                        learn(&hub);
                    }
                }
            }
        }
    }
}

/// Notes what the workers can draw together, and tells those above.
fn learn(hub: &Hub) {
    if let Some(catalog) = Catalog::of(&hub.sorted()) {
        *lock(&hub.catalog) = Some(catalog);
    }
    hub.news.send(News::Workers).ok();
}

/// Returns whether it is news.
fn note_worker(hub: &Hub, facts: WorkerFacts) -> bool {
    let mut workers = lock(&hub.workers);
    let gone = facts.models.is_empty();
    let known = workers.get(&facts.id);
    let differs = known.is_none_or(|(known, _)| **known != facts);
    let is_new = known.is_none_or(|(known, _)| known.ready != facts.ready);
    if known.is_none() && !gone {
        tracing::info!("worker {} on {} is there", facts.id, facts.host);
    }
    if gone {
        // Its last words.
        workers.remove(&facts.id);
    } else {
        workers.insert(facts.id.clone(), (Arc::new(facts), Instant::now()));
    }
    drop(workers);
    if is_new {
        learn(hub);
        hub.queued.notify_one();
    }
    differs
}

/// Forgets workers that were silent for long. The leader has to know them for a while, to take
/// their jobs back.
fn forget_workers(hub: &Hub) -> bool {
    let mut workers = lock(&hub.workers);
    let before = workers.len();
    workers.retain(|_, (_, heard)| heard.elapsed() < 3 * hub.lost_after);
    workers.len() < before
}

/// Passes on what workers say about jobs, for ever.
pub async fn hear_events(hub: Arc<Hub>) {
    loop {
        let Ok(mut heard) = hub.link.client.subscribe(hub.link.subject("ev")).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while let Some(message) = heard.next().await {
            if let Ok(Told { job, name, data }) = serde_json::from_slice(&message.payload) {
                hub.news.send(News::Told { job, name, data }).ok();
            }
        }
    }
}
