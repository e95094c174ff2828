//! The broker of a front: it accepts jobs, knows all of them, and tells clients what becomes of
//! them. One front at a time also gives jobs to workers: see `leader`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::claims::{Claim, Claiming, reused};
use super::connect::Buckets;
use super::files::{input_paths, is_result};
use super::hub::{Hub, lock};
use super::limits::Jobs;
use super::link::{Change, Link, MARKERS_KEPT, get, job_key, set, unreachable};
use super::record::{MAX_ATTEMPTS, Record};
use crate::error::{Error, Result};
use crate::server::access::hash;
use crate::server::broker::{
    Broker, Cancelled, Counts, NewJob, News, Place, Submitted, WorkerFacts, Workers,
};
use crate::server::clock::Clock;
use crate::server::data::DataFolder;
use crate::server::draft::client_id;
use crate::server::fault::Fault;
use crate::server::job::{Job, Outcome, State, hex, random_hex};
use crate::server::limits::{Charge, Verdict};
use crate::server::options::ClusterOptions;
use crate::server::questions::{PlanQuery, busy};
use crate::server::uploads::Uploads;
use crate::server::wait::expired;

/// How long jobs are remembered that are over, in seconds: every front has them in memory.
const ROWS_KEPT: f64 = 24.0 * 3600.0;
/// How long a worker may take to answer what a request would cost.
const PLANNING: Duration = Duration::from_secs(5);

/// A front's part of a cluster.
pub struct FrontBroker {
    pub(super) hub: Arc<Hub>,
    clock: Clock,
    max_queued: usize,
    secret: String,
    data: DataFolder,
    news: Mutex<Option<UnboundedReceiver<News>>>,
    /// The instant of the last search for expired images that clients had left.
    pub(super) swept: Mutex<Option<Instant>>,
}

impl FrontBroker {
    /// Joins the cluster of `options`: reads its jobs, and takes part in giving them to workers.
    /// At most `max_queued` jobs may wait.
    ///
    /// # Errors
    /// Those of [`Link::connect`], and [`Kind::Device`](crate::error::Kind::Device) if the jobs do
    /// not arrive.
    pub async fn open(
        options: &ClusterOptions,
        data: DataFolder,
        max_queued: usize,
    ) -> Result<FrontBroker> {
        let (hub, news) = Hub::join(options, Buckets::Kept).await?;
        let failed = |fault: Fault| Error::device(fault.message);
        let secret = shared_secret(&hub.link).await.map_err(failed)?;
        tokio::spawn(super::tasks::hear_events(hub.clone()));
        tokio::spawn(super::leader::lead(hub.clone()));
        let clock = Clock::after(lock(&hub.mirror).newest());
        let news = Mutex::new(Some(news));
        let swept = Mutex::default();
        Ok(FrontBroker { hub, clock, max_queued, secret, data, news, swept })
    }

    fn link(&self) -> &Link {
        &self.hub.link
    }

    /// Accepts a job, if it is not accepted already.
    async fn accept(&self, new: NewJob) -> std::result::Result<Submitted, Fault> {
        let link = self.link();
        link.ready().await?;
        let claim = match link.claim(&new).await? {
            Claiming::Known(record) => return known(&new, &record),
            Claiming::Free(claim) => claim,
        };
        let submitted = match &claim {
            None => self.accept_new(&new, None).await,
            Some(claim) => tokio::select! {
                submitted = self.accept_new(&new, Some(claim)) => submitted,
                never = claim.keep(link) => match never {},
            },
        };
        let is_accepted = matches!(submitted, Ok(Submitted::New(..) | Submitted::Same(_)));
        if let (Some(claim), false) = (claim, is_accepted) {
            claim.give_up(link).await;
        }
        submitted
    }

    async fn accept_new(
        &self,
        new: &NewJob,
        claim: Option<&Claim>,
    ) -> std::result::Result<Submitted, Fault> {
        // A client that chooses ids may send the same one again.
        let mirrored = lock(&self.hub.mirror).get(&new.id).map(|(record, _)| record.clone());
        if let Some(record) = mirrored.filter(|record| record.owner == new.owner) {
            return known(new, &record);
        }
        let now = self.clock.nanoseconds();
        // What does not fit counts in no limit, and leaves nothing on the broker.
        self.link().value_of(&Record::new(new, now))?;
        let jobs = OwnerJobs { hub: &self.hub, owner: &new.owner };
        let room = || match lock(&self.hub.mirror).counts().queued >= self.max_queued {
            true => Err(Fault::new(503, "queue_full", "the queue is full")
                .hint("send the request again later")
                .retry_after(5)),
            false => Ok(()),
        };
        let (verdict, now) = self.link().admit(new, now, &jobs, room).await?;
        let standings = match verdict {
            Verdict::Admit(standings) => standings,
            Verdict::Wait { wait, violated, standings } => {
                return Ok(Submitted::Limited { wait, violated, standings });
            }
            Verdict::Never(limit, amount) => return Ok(Submitted::Never(limit, amount)),
        };
        let record = Record::new(new, now);
        let stored = async {
            for path in input_paths(&self.data, &new.id, &new.spec) {
                self.link().put_file(&path).await?;
            }
            self.link().create(&record).await
        };
        let stored = stored.await;
        match stored {
            Ok(Some(_)) => {}
            // The job that has this id is active; it was counted twice for a moment.
            Ok(None) => drop(self.link().give_images_back(&new.owner, now, new.charge).await),
            Err(_) => {
                self.link().strike(new, now).await;
                self.discard(&record, claim).await;
            }
        }
        match stored? {
            Some(revision) => {
                self.hub.note(record.clone(), revision);
                Ok(Submitted::New(record.job(), standings))
            }
            // Another front has accepted it at the same time.
            None => match self.link().job(&new.id).await? {
                Some((record, _)) if record.owner == new.owner => known(new, &record),
                _ => Err(Fault::internal("a job of this id is there already")),
            },
        }
    }

    /// Deletes the files of a job that could not be stored, unless it was stored after all or
    /// another front accepts it. What is left if the broker is away, the leader finds later.
    async fn discard(&self, record: &Record, claim: Option<&Claim>) {
        let link = self.link();
        let is_ours = match claim {
            Some(claim) => claim.is_held(link).await,
            None => true,
        };
        if is_ours && matches!(link.job(&record.id).await, Ok(None)) {
            link.delete_files(record).await;
        }
    }

    /// Changes a job, and takes note of it.
    fn change(
        &self,
        id: &str,
        next: impl Fn(&Record) -> Option<Record>,
    ) -> std::result::Result<Change, Fault> {
        let change = self.link().wait(self.link().change(id, next))?;
        if let Change::Changed(record, revision) | Change::Unchanged(record, revision) = &change {
            self.hub.note(record.clone(), *revision);
        }
        Ok(change)
    }

    fn forget_data(&self, record: &Record) -> std::result::Result<bool, Fault> {
        let changed = self.change(&record.id, Record::expired)?;
        let forgotten = matches!(changed, Change::Changed(..));
        if forgotten {
            self.link().wait(self.link().delete_files(record));
        }
        Ok(forgotten)
    }
}

/// The secret that all fronts sign links with.
async fn shared_secret(link: &Link) -> std::result::Result<String, Fault> {
    let mine = random_hex(32).map_err(|e| Fault::internal(e.to_string()))?;
    if set(&link.shared, "secret", &mine, 0).await?.is_some() {
        return Ok(mine);
    }
    let known = get::<String>(&link.shared, "secret").await?;
    known.map(|(secret, _)| secret).ok_or_else(|| Fault::internal("the shared secret is missing"))
}

/// The answer to a submission of `record`, which was accepted before.
///
/// # Errors
/// 422 if it was made of another request.
fn known(new: &NewJob, record: &Record) -> std::result::Result<Submitted, Fault> {
    match record.differs_from(new) {
        true => Err(reused()),
        false => Ok(Submitted::Same(record.job())),
    }
}

struct OwnerJobs<'a> {
    hub: &'a Hub,
    owner: &'a str,
}

impl Jobs for OwnerJobs<'_> {
    fn accepted(&self) -> Vec<(i64, Charge)> {
        let mirror = lock(&self.hub.mirror);
        let failed = |record: &Record| record.state == State::Failed;
        mirror
            .of_owner(self.owner)
            .map(|record| match failed(record) {
                // Its images were given back.
                true => (record.instant, Charge::default()),
                false => (record.instant, record.charge),
            })
            .collect()
    }

    fn is_over(&self, id: &str) -> Option<bool> {
        lock(&self.hub.mirror).get(id).map(|(record, _)| record.state.is_final())
    }
}

/// The fault of what only a process with a worker does.
fn no_worker() -> Fault {
    Fault::internal("this process has no worker")
}

impl Broker for FrontBroker {
    fn submit(&self, new: NewJob) -> std::result::Result<Submitted, Fault> {
        self.link().wait(self.accept(new))
    }

    fn id_of(&self, owner: &str, key: &str) -> Option<String> {
        Some(client_id("idempotency key", owner, key))
    }

    fn next(&self, _held: Option<&str>) -> std::result::Result<Option<Job>, Fault> {
        Ok(None)
    }

    fn next_alike(&self, _id: &str) -> std::result::Result<Option<Job>, Fault> {
        Ok(None)
    }

    fn give_back(&self, _id: &str, _counts: bool) -> std::result::Result<(), Fault> {
        Err(no_worker())
    }

    fn finish(&self, _id: &str, _outcome: Outcome) -> std::result::Result<(), Fault> {
        Err(no_worker())
    }

    fn cancel(&self, id: &str, owner: &str) -> std::result::Result<Option<Cancelled>, Fault> {
        self.link().wait(self.link().ready())?;
        let now = self.clock.seconds();
        let change = self.change(id, |record| match record.state {
            _ if record.owner != owner => None,
            State::Queued => record.ended(&Outcome::Canceled, now),
            State::Running => Some(Record { state: State::Canceling, ..record.clone() }),
            _ => None,
        })?;
        let (record, changed) = match change {
            Change::Missing => return Ok(None),
            Change::Unchanged(record, _) => (record, false),
            Change::Changed(record, _) => (record, true),
        };
        if record.owner != owner {
            return Ok(None);
        }
        let job = record.job();
        Ok(Some(match record.state {
            State::Canceling => {
                let worker = record.worker.clone().unwrap_or_default();
                let link = self.link();
                link.wait(link.send(&format!("cancel.{worker}"), &id));
                Cancelled::Running(job)
            }
            State::Canceled if changed => {
                if record.limited {
                    let link = self.link();
                    let Record { owner, instant, charge, .. } = &record;
                    link.wait(link.give_images_back(owner, *instant, *charge))?;
                }
                Cancelled::Queued(job)
            }
            _ => Cancelled::Over(job),
        }))
    }

    fn job(&self, id: &str, owner: &str) -> std::result::Result<Option<Job>, Fault> {
        let known = lock(&self.hub.mirror).get(id).map(|(record, _)| record.clone());
        if let Some(record) = known {
            return Ok((record.owner == owner).then(|| record.job()));
        }
        // Another front may have accepted it a moment ago.
        let found = self.link().wait(self.link().job(id))?;
        let Some((record, revision)) = found else { return Ok(None) };
        self.hub.note(record.clone(), revision);
        Ok((record.owner == owner).then(|| record.job()))
    }

    fn list(&self, owner: &str, limit: usize) -> std::result::Result<Vec<Job>, Fault> {
        let mirror = lock(&self.hub.mirror);
        Ok(mirror.of_owner(owner).rev().take(limit).map(|record| record.job()).collect())
    }

    fn active(&self, owner: &str) -> std::result::Result<Vec<Job>, Fault> {
        let mirror = lock(&self.hub.mirror);
        let active = mirror.of_owner(owner).filter(|record| !record.state.is_final());
        Ok(active.map(|record| record.job()).collect())
    }

    fn owed_calls(&self) -> std::result::Result<Vec<Job>, Fault> {
        // The front that gives jobs to workers hears of them one by one.
        Ok(Vec::new())
    }

    fn call_settled(&self, id: &str) -> std::result::Result<(), Fault> {
        self.change(id, |record| {
            record.owes_call.then(|| Record { owes_call: false, ..record.clone() })
        })
        .map(drop)
    }

    fn refund(&self, _id: &str) -> std::result::Result<(), Fault> {
        Err(no_worker())
    }

    fn place(&self, id: &str) -> Option<Place> {
        lock(&self.hub.mirror).queue.place(id)
    }

    fn counts(&self) -> Counts {
        lock(&self.hub.mirror).counts()
    }

    fn expire(
        &self,
        data_before: f64,
        rows_before: f64,
    ) -> std::result::Result<Vec<String>, Fault> {
        let rows_before = rows_before.max(self.clock.seconds() - ROWS_KEPT);
        let (data, rows) = lock(&self.hub.mirror).old(data_before, rows_before);
        // Every front has copies of results that were asked for; the bucket is one front's affair.
        if self.hub.leads.load(Ordering::Relaxed) {
            for record in &data {
                self.forget_data(record)?;
            }
            for id in &rows {
                let link = self.link();
                link.wait(link.state.purge_with_ttl(job_key(id), MARKERS_KEPT))
                    .map_err(|e| unreachable(&e))?;
                lock(&self.hub.mirror).remove(id);
            }
            self.sweep_uploads();
        }
        Ok(data.into_iter().map(|record| record.id.clone()).collect())
    }

    fn forget(&self, id: &str, owner: &str) -> std::result::Result<bool, Fault> {
        let known = lock(&self.hub.mirror).get(id).map(|(record, _)| record.clone());
        match known.filter(|record| record.owner == owner) {
            Some(record) => self.forget_data(&record),
            None => Ok(false),
        }
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn max_attempts(&self) -> u32 {
        MAX_ATTEMPTS
    }

    fn news(&self) -> Option<UnboundedReceiver<News>> {
        lock(&self.news).take()
    }

    fn workers(&self) -> Option<Workers> {
        let catalog = lock(&self.hub.catalog).clone().unwrap_or_default();
        let queued = lock(&self.hub.mirror).queued_per_model();
        let mut queued: Vec<_> = queued.into_iter().map(|(name, (n, s))| (name, n, s)).collect();
        queued.sort_by(|a, b| a.0.cmp(&b.0));
        Some(Workers { live: self.hub.sorted(), catalog, queued })
    }

    fn is_reachable(&self) -> bool {
        self.link().connected_for().is_some()
    }

    fn ask(&self, query: &PlanQuery) -> std::result::Result<Value, Fault> {
        let model = query.model.clone().unwrap_or_else(|| {
            lock(&self.hub.catalog).as_ref().map(|c| c.default.clone()).unwrap_or_default()
        });
        // What workers say of themselves may be a second old.
        let busy_workers: HashSet<String> = {
            let mirror = lock(&self.hub.mirror);
            mirror.running().filter_map(|record| record.worker.clone()).collect()
        };
        let is_idle = |worker: &WorkerFacts| worker.ready && !busy_workers.contains(&worker.id);
        let mut live = self.hub.live().into_iter();
        let idle = live.find(|worker| is_idle(worker) && worker.has_model(&model));
        let worker = idle.ok_or_else(busy)?;
        let link = self.link();
        let query = PlanQuery { model: Some(model), ..query.clone() };
        let bytes = serde_json::to_vec(&query).unwrap_or_default();
        let asked = async {
            let subject = link.subject(&format!("plan.{}", worker.id));
            let request = link.client.request(subject, bytes.into());
            tokio::time::timeout(PLANNING, request).await
        };
        let Ok(Ok(answer)) = link.wait(asked) else { return Err(busy()) };
        let answer: std::result::Result<Value, Fault> =
            serde_json::from_slice(&answer.payload).map_err(|_| busy())?;
        answer
    }

    fn fetch(&self, name: &str, path: &Path) -> std::result::Result<(), Fault> {
        if !is_result(name) {
            return Err(expired());
        }
        self.link().wait(self.link().get_file(name, path))
    }

    fn uploads(&self) -> Option<&dyn Uploads> {
        Some(self)
    }

    fn calls_here(&self) -> bool {
        false
    }

    fn secret(&self) -> Option<String> {
        Some(self.secret.clone())
    }

    fn preferred(&self, owner: &str) -> Option<String> {
        lock(&self.hub.mirror).preferred.get(&hex(&hash(owner))).cloned()
    }

    fn prefer(&self, owner: &str, model: &str) -> std::result::Result<(), Fault> {
        let owner = hex(&hash(owner));
        let link = self.link();
        let value = model.as_bytes().to_vec();
        link.wait(link.state.put(format!("model.{owner}"), value.into()))
            .map_err(|e| unreachable(&e))?;
        lock(&self.hub.mirror).preferred.insert(owner, model.to_string());
        Ok(())
    }

    fn leave(&self) {
        self.hub.leaving.store(true, Ordering::Relaxed);
        self.hub.left.notify_waiters();
        self.link().wait(super::leader::resign(&self.hub));
    }
}

impl std::fmt::Debug for FrontBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "a front of a cluster")
    }
}
