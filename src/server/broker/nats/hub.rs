//! What the tasks of a front share: the connection, all jobs, and the workers that live.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::connect::Buckets;
use super::link::{Link, get};
use super::mirror::{Mirror, Seen};
use super::record::Record;
use crate::error::{Error, Result};
use crate::server::broker::{Catalog, News, WorkerFacts};
use crate::server::fault::Fault;
use crate::server::job::{State, random_hex};
use crate::server::options::ClusterOptions;

/// How long the jobs may take to arrive at the start.
const LOADING: Duration = Duration::from_secs(60);
/// Where the list of what the cluster can draw is kept.
pub const CATALOG: &str = "catalog";

/// What the tasks of a front share.
pub struct Hub {
    pub link: Arc<Link>,
    /// Differs from one process to the next.
    pub id: String,
    pub mirror: Mutex<Mirror>,
    /// Workers that live, and when they were heard last.
    pub workers: Mutex<HashMap<String, (Arc<WorkerFacts>, Instant)>>,
    pub catalog: Mutex<Option<Catalog>>,
    pub news: UnboundedSender<News>,
    /// Whether this front gives jobs to workers.
    pub leads: AtomicBool,
    /// The process ends.
    pub leaving: AtomicBool,
    pub left: Notify,
    /// Set when a job waits.
    pub queued: Notify,
    pub lost_after: Duration,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Takes note of a change of a job that this process has made.
    pub fn note(&self, record: Record, revision: u64) {
        let seen = lock(&self.mirror).apply(record, revision);
        self.tell(seen);
    }

    /// Tells those above of a change.
    pub fn tell(&self, seen: Option<Seen>) {
        let Some(Seen { record, before }) = seen else { return };
        if record.state == State::Queued {
            self.queued.notify_one();
        }
        let owes =
            record.state.is_final() && record.owes_call && before.is_none_or(|s| !s.is_final());
        let job = Box::new(record.job());
        if owes && self.leads.load(Ordering::Relaxed) {
            self.news.send(News::Owed(job.clone())).ok();
        }
        if before != Some(record.state) {
            self.news.send(News::Changed { job, before }).ok();
        }
    }

    /// For how long nothing was heard of the worker called `id`, as far as it could have been:
    /// `since` says for how long this front listens at least.
    pub fn silence(&self, id: &str, since: Instant) -> Option<Duration> {
        let heard = lock(&self.workers).get(id).map(|(_, at)| at.elapsed());
        Some(heard.unwrap_or_else(|| since.elapsed()).min(self.link.connected_for()?))
    }

    /// The workers that were heard lately.
    pub fn live(&self) -> Vec<Arc<WorkerFacts>> {
        let workers = lock(&self.workers);
        let live = workers.values().filter(|(_, heard)| heard.elapsed() < self.lost_after);
        live.map(|(facts, _)| facts.clone()).collect()
    }

    /// The same, always in the same order.
    pub fn sorted(&self) -> Vec<Arc<WorkerFacts>> {
        let mut live = self.live();
        live.sort_by(|a, b| (&a.host, &a.id).cmp(&(&b.host, &b.id)));
        live
    }
}

impl Hub {
    /// Connects to the cluster of `options`, and reads all its jobs.
    ///
    /// # Errors
    /// Those of [`Link::connect`], and [`Kind::Device`](crate::error::Kind::Device) if the jobs do
    /// not arrive.
    pub async fn join(
        options: &ClusterOptions,
        buckets: Buckets,
    ) -> Result<(Arc<Hub>, UnboundedReceiver<News>)> {
        let link = Link::connect(options, "front of flux-fast", buckets).await?;
        let failed = |fault: Fault| Error::device(fault.message);
        let catalog = get::<Catalog>(&link.shared, CATALOG).await.map_err(failed)?;
        let (sender, news) = unbounded_channel();
        let hub = Arc::new(Hub {
            link,
            id: random_hex(8)?,
            mirror: Mutex::default(),
            workers: Mutex::default(),
            catalog: Mutex::new(catalog.map(|(catalog, _)| catalog)),
            news: sender,
            leads: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: Notify::new(),
            queued: Notify::new(),
            lost_after: options.lost_after,
        });
        tokio::spawn(super::tasks::watch_jobs(hub.clone()));
        tokio::spawn(super::tasks::hear_workers(hub.clone()));
        let since = Instant::now();
        while !lock(&hub.mirror).is_loaded() {
            if since.elapsed() > LOADING {
                return Err(Error::device("the broker does not send its list of jobs"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok((hub, news))
    }
}
