//! One front gives jobs to the workers of all: so the order is fair between the keys of all fronts,
//! exactly as on one machine. A key in the broker says which front it is; if that one ends, another
//! takes over. Two that believe it at the same time do no harm, since every job is taken by
//! compare-and-set: only the order is less fair meanwhile.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::hub::{CATALOG, Hub, lock};
use super::link::{Change, get, set};
use super::record::Record;
use super::schedule::Schedule;
use crate::server::broker::{Catalog, News};
use crate::server::clock::Clock;
use crate::server::job::State;
use crate::server::limits::Charge;

/// The key of the front that leads.
const LEADER: &str = "leader";
/// How often it is looked at, and renewed.
const TERM: Duration = Duration::from_secs(1);
/// How long a leader that does not renew it stays the leader, if nobody knows that it has ended.
const LEASE: Duration = Duration::from_secs(8);
/// A leader that could not renew it for this time is none any more.
const EXPIRED: Duration = Duration::from_secs(6);
/// How often jobs of dead workers are looked for.
const TICK: Duration = Duration::from_millis(250);
/// How long the word of a worker that it does not have a job may differ from what is stored.
const STRAY: Duration = Duration::from_secs(8);

/// What a worker asks for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    pub worker: String,
    /// The model in its memory.
    pub held: Option<String>,
    /// A job with the images of this one, which it has just drawn.
    pub alike: Option<String>,
}

/// Leads, or watches the front that does, until the process ends.
pub async fn lead(hub: Arc<Hub>) {
    let mut known: Option<(u64, Instant)> = None;
    while !hub.leaving.load(Ordering::Relaxed) {
        match get::<String>(&hub.link.shared, LEADER).await {
            Ok(Some((_, revision))) => {
                if known.is_none_or(|(known, _)| known != revision) {
                    known = Some((revision, Instant::now()));
                }
                let since = known.map_or(Duration::ZERO, |(_, since)| since.elapsed());
                if is_gone(&hub).await || since > LEASE {
                    take_over(&hub, revision).await;
                    known = None;
                }
            }
            Ok(None) => take_over(&hub, 0).await,
            Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(TERM) => {}
            () = hub.left.notified() => {}
        }
    }
}

/// Whether it is certain that nobody leads: the broker knows of nobody who answers workers.
async fn is_gone(hub: &Hub) -> bool {
    let ping = hub.link.client.request(hub.link.subject("lead"), "".into());
    match tokio::time::timeout(TERM, ping).await {
        Ok(Err(e)) => e.kind() == RequestErrorKind::NoResponders,
        _ => false,
    }
}

/// Leads, if nobody else has become the leader since `revision`, for as long as possible.
async fn take_over(hub: &Arc<Hub>, revision: u64) {
    let link = &hub.link;
    let Ok(asked) = link.client.subscribe(link.subject("next")).await else { return };
    let Ok(pings) = link.client.subscribe(link.subject("lead")).await else { return };
    let Ok(Some(revision)) = set(&link.shared, LEADER, &hub.id, revision).await else { return };
    tracing::info!("this front gives jobs to workers from now on");
    hub.leads.store(true, Ordering::Relaxed);
    for record in lock(&hub.mirror).owed() {
        hub.news.send(News::Owed(Box::new(record.job()))).ok();
    }
    let clock = Clock::after(lock(&hub.mirror).newest());
    let leader = Arc::new(Leader {
        hub: hub.clone(),
        clock,
        schedule: Mutex::default(),
        since: Instant::now(),
        strays: Mutex::default(),
        stored: Mutex::default(),
    });
    leader.serve(asked, pings, revision).await;
    hub.leads.store(false, Ordering::Relaxed);
    tracing::info!("this front does not give jobs to workers any more");
}

/// Lets another front lead at once.
pub async fn resign(hub: &Hub) {
    if hub.leads.load(Ordering::Relaxed) {
        hub.link.shared.delete(LEADER).await.ok();
    }
}

struct Leader {
    hub: Arc<Hub>,
    clock: Clock,
    schedule: Mutex<Schedule>,
    since: Instant,
    /// Jobs that their workers say they do not have, and since when.
    strays: Mutex<HashMap<String, Instant>>,
    /// What the cluster can draw, as it was stored last.
    stored: Mutex<Option<Catalog>>,
}

impl Leader {
    /// Answers workers until another front leads or the process ends.
    async fn serve(self: &Arc<Self>, mut asked: Subscriber, mut pings: Subscriber, revision: u64) {
        let hub = &self.hub;
        let (mut revision, mut renewed) = (revision, Instant::now());
        let mut terms = tokio::time::interval(TERM);
        let mut tick = tokio::time::interval(TICK);
        while !hub.leaving.load(Ordering::Relaxed) && renewed.elapsed() < EXPIRED {
            tokio::select! {
                message = asked.next() => {
                    let Some(message) = message else { return };
                    let leader = self.clone();
                    tokio::spawn(async move { leader.answer(message).await });
                }
                message = pings.next() => {
                    let Some(reply) = message.and_then(|m| m.reply) else { continue };
                    hub.link.client.publish(reply, "".into()).await.ok();
                }
                () = hub.queued.notified() => self.wake().await,
                () = hub.left.notified() => return,
                _ = tick.tick() => {
                    self.wake().await;
                    self.take_back();
                }
                _ = terms.tick() => {
                    match set(&hub.link.shared, LEADER, &hub.id, revision).await {
                        Ok(Some(new)) => (revision, renewed) = (new, Instant::now()),
                        // Either another front leads, or the answer to the last renewal was lost.
                        Ok(None) => match get::<String>(&hub.link.shared, LEADER).await {
                            Ok(Some((id, known))) if id == hub.id => revision = known,
                            Ok(_) => return,
                            Err(_) => {}
                        },
                        Err(_) => {}
                    }
                    self.store_catalog().await;
                }
            }
        }
    }

    /// Gives a worker its next job, or nothing: then it is woken when there is one.
    async fn answer(&self, message: Message) {
        let Ok(asked) = serde_json::from_slice::<Asked>(&message.payload) else { return };
        let job = match &asked.alike {
            Some(id) => self.alike(&asked, id).await,
            None => self.next(&asked).await,
        };
        if let Some(reply) = message.reply {
            let bytes = serde_json::to_vec(&job).unwrap_or_default();
            self.hub.link.client.publish(reply, bytes.into()).await.ok();
        }
    }

    async fn next(&self, asked: &Asked) -> Option<Record> {
        // It has no job, whatever is stored: an answer to it was lost.
        let lost: Vec<String> = {
            let mirror = lock(&self.hub.mirror);
            let its = |record: &&Arc<Record>| record.worker.as_deref() == Some(&asked.worker);
            mirror.running().filter(its).map(|record| record.id.clone()).collect()
        };
        for id in lost {
            self.give_back(&id, &asked.worker, false).await;
        }
        loop {
            let waiting = {
                let live = self.hub.live();
                let mut mirror = lock(&self.hub.mirror);
                let now = self.clock.nanoseconds();
                let mut schedule = lock(&self.schedule);
                let held = asked.held.as_deref();
                schedule.choose(&mut mirror, &live, &asked.worker, held, now)?
            };
            match self
                .hub
                .link
                .change(&waiting.id, |r| r.taken(&asked.worker, self.clock.seconds()))
                .await
            {
                Ok(Change::Changed(record, revision)) => {
                    self.hub.note(record.clone(), revision);
                    return Some(record);
                }
                // It was cancelled meanwhile, or the answer was lost.
                Ok(Change::Unchanged(record, revision)) => {
                    self.hub.note(record.clone(), revision);
                    if record.is_running() && record.worker.as_deref() == Some(&asked.worker) {
                        return Some(record);
                    }
                }
                Ok(Change::Missing) => {}
                Err(_) => {
                    lock(&self.hub.mirror).queue.push_front(waiting);
                    return None;
                }
            }
        }
    }

    async fn alike(&self, asked: &Asked, id: &str) -> Option<Record> {
        let other = lock(&self.hub.mirror).alike(id)?;
        let now = self.clock.seconds();
        let change = self.hub.link.change(&other.id, |r| r.taken(&asked.worker, now)).await;
        let Ok(Change::Changed(record, revision)) = change else { return None };
        self.hub.note(record.clone(), revision);
        Some(record)
    }

    /// Takes a job from a worker.
    async fn give_back(&self, id: &str, worker: &str, counts: bool) {
        let now = self.clock.seconds();
        // If the broker was away meanwhile, the worker may have been there all the time.
        let back = |record: &Record| match counts && !self.is_lost(worker) {
            true => None,
            false => record.given_back(worker, counts, now),
        };
        let change = self.hub.link.change(id, back).await;
        match change {
            Ok(Change::Changed(record, revision)) => {
                let Record { owner, instant, charge, .. } = record.clone();
                let failed = record.fault.is_some() && record.limited;
                self.hub.note(record, revision);
                if failed && charge != Charge::default() {
                    self.hub.link.give_images_back(&owner, instant, charge).await.ok();
                }
            }
            Ok(Change::Unchanged(record, revision)) => self.hub.note(record, revision),
            _ => {}
        }
    }

    /// Takes jobs back from workers that have died, or that say they do not have them; and says
    /// again what must be stopped.
    fn take_back(self: &Arc<Self>) {
        lock(&self.schedule).forget(&self.hub.live());
        let running: Vec<Arc<Record>> = lock(&self.hub.mirror).running().cloned().collect();
        let mut strays = lock(&self.strays);
        strays.retain(|id, _| running.iter().any(|record| record.id == *id));
        for record in running {
            let Some(worker) = record.worker.clone() else { continue };
            let known = lock(&self.hub.workers).get(&worker).map(|(facts, _)| facts.clone());
            let has_it = known.is_none_or(|facts| facts.jobs.contains(&record.id));
            if has_it {
                strays.remove(&record.id);
            }
            let is_stray = !has_it
                && strays.entry(record.id.clone()).or_insert_with(Instant::now).elapsed() > STRAY;
            let is_lost = self.is_lost(&worker);
            if is_lost {
                tracing::info!("worker {worker} is silent: job {} is taken from it", record.id);
            }
            if is_lost || is_stray {
                let leader = self.clone();
                tokio::spawn(async move {
                    leader.give_back(&record.id, &worker, is_lost).await;
                });
            } else if record.state == State::Canceling {
                // It may not have heard that before.
                let link = &self.hub.link;
                let id = serde_json::to_vec(&record.id).unwrap_or_default();
                link.publish(link.subject(&format!("cancel.{worker}")), id);
            }
        }
    }

    /// Whether a worker has been silent for too long, as far as it could have been heard.
    fn is_lost(&self, worker: &str) -> bool {
        let silence = self.hub.silence(worker, self.since);
        silence.is_some_and(|silence| silence > self.hub.lost_after)
    }

    /// Wakes workers that wait, as far as there are jobs for them.
    async fn wake(&self) {
        let woken = {
            let live = self.hub.live();
            let mirror = lock(&self.hub.mirror);
            lock(&self.schedule).wake(&mirror, &live, self.clock.nanoseconds())
        };
        for worker in woken {
            self.hub.link.send(&format!("wake.{worker}"), &()).await;
        }
    }

    /// Stores what the cluster can draw, for times without workers.
    async fn store_catalog(&self) {
        let mut catalog = lock(&self.hub.catalog).clone();
        if let Some(catalog) = &mut catalog {
            catalog.shorten(self.hub.link.max_value());
        }
        let Some(catalog) = catalog.filter(|c| lock(&self.stored).as_ref() != Some(c)) else {
            return;
        };
        let revision = match get::<Catalog>(&self.hub.link.shared, CATALOG).await {
            Ok(known) => known.map_or(0, |(_, revision)| revision),
            Err(_) => return,
        };
        if let Ok(Some(_)) = set(&self.hub.link.shared, CATALOG, &catalog, revision).await {
            *lock(&self.stored) = Some(catalog);
        }
    }
}
