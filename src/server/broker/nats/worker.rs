//! The broker of a process that draws for a cluster: it asks for one job after another, and stores
//! what became of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::connect::Buckets;
use super::hub::lock;
use super::leader::Asked;
use super::link::{Change, Link};
use super::record::{MAX_ATTEMPTS, Record};
use super::tasks::Told;
use crate::error::Result;
use crate::server::broker::{
    Broker, Cancelled, Counts, NewJob, News, Place, Submitted, WorkerFacts,
};
use crate::server::clock::Clock;
use crate::server::data::DataFolder;
use crate::server::fault::Fault;
use crate::server::job::{Job, Outcome, random_hex};
use crate::server::limits::Charge;
use crate::server::options::ClusterOptions;
use crate::server::questions::{PlanQuery, busy};

/// How often a worker asks for a job without being woken.
const POLL: Duration = Duration::from_secs(2);
/// How soon it asks again if nobody answers.
const AGAIN: Duration = Duration::from_millis(300);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(12);
/// The pause before something is stored again that the broker did not take.
const PAUSE: Duration = Duration::from_millis(500);

/// A worker's part of a cluster.
pub struct WorkerBroker {
    link: Arc<Link>,
    id: String,
    clock: Clock,
    data: DataFolder,
    news: Mutex<Option<UnboundedReceiver<News>>>,
    /// When it asks for a job next.
    due: Arc<Mutex<Instant>>,
    jobs: Mutex<HashMap<String, Record>>,
    /// Jobs that are over and whose files are still here.
    over: Mutex<HashSet<String>>,
    /// What it said of itself last.
    facts: Mutex<WorkerFacts>,
    /// The process is to end.
    stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl WorkerBroker {
    /// Joins the cluster of `options`, with files in `data`, until `stop`.
    ///
    /// # Errors
    /// Those of [`Link::connect`].
    pub async fn open(
        options: &ClusterOptions,
        data: DataFolder,
        stop: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Result<WorkerBroker> {
        let id = random_hex(8)?;
        let link = Link::connect(options, "worker of flux-fast", Buckets::Kept).await?;
        let (sender, news) = unbounded_channel();
        let due = Arc::new(Mutex::new(Instant::now()));
        tokio::spawn(hear(link.clone(), id.clone(), sender, due.clone()));
        Ok(WorkerBroker {
            link,
            id,
            clock: Clock::after(0),
            data,
            news: Mutex::new(Some(news)),
            due,
            jobs: Mutex::default(),
            over: Mutex::default(),
            facts: Mutex::default(),
            stop,
        })
    }

    /// Asks for a job; `None` if there is none, or nobody who knows.
    async fn ask_for(&self, held: Option<&str>, alike: Option<&str>) -> Option<Record> {
        let asked = Asked {
            worker: self.id.clone(),
            held: held.map(str::to_string),
            alike: alike.map(str::to_string),
        };
        let bytes = serde_json::to_vec(&asked).unwrap_or_default();
        let request = self.link.client.request(self.link.subject("next"), bytes.into());
        let answer = tokio::time::timeout(PATIENCE, request).await;
        let wait = if matches!(answer, Ok(Ok(_))) { POLL } else { AGAIN };
        if alike.is_none() {
            *lock(&self.due) = Instant::now() + wait;
        }
        let record = serde_json::from_slice::<Option<Record>>(&answer.ok()?.ok()?.payload);
        record.ok().flatten()
    }

    /// Brings the files of a job here. Returns whether it can be drawn.
    async fn prepare(&self, record: &Record) -> bool {
        let Some(spec) = &record.spec else { return true };
        for name in DataFolder::input_names(&record.id, spec) {
            // The name of the first one is that of the job.
            let path = self.data.input(&name);
            let fetched = self.persist(|| self.link.get_file(&name, &path)).await;
            if let Err(fault) = fetched {
                tracing::warn!("job {}: {}", record.id, fault.message);
                let fault = Fault::internal("an image of the job is missing");
                self.conclude(&record.id, &Outcome::Failed(fault)).await.ok();
                return false;
            }
        }
        true
    }

    /// Does `what` again and again while the broker is out of reach, until the process is to end.
    async fn persist<T, F>(&self, what: impl Fn() -> F) -> std::result::Result<T, Fault>
    where
        F: Future<Output = std::result::Result<T, Fault>>,
    {
        loop {
            match what().await {
                Err(fault) if fault.status == 503 && !(self.stop)() => {
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Stores how a job has ended.
    async fn conclude(&self, id: &str, outcome: &Outcome) -> std::result::Result<(), Fault> {
        let failed;
        let outcome = match self.upload(outcome).await {
            // The file is not there.
            Err(fault) if fault.status != 503 => {
                failed = Outcome::Failed(fault);
                &failed
            }
            // The process ends before the broker is back: another worker draws the job.
            Err(fault) => {
                lock(&self.jobs).remove(id);
                return Err(fault);
            }
            Ok(()) => outcome,
        };
        let now = self.clock.seconds();
        let end = || self.link.change(id, |record| record.ended_by(&self.id, outcome, now));
        let change = self.persist(end).await;
        lock(&self.jobs).remove(id);
        lock(&self.over).insert(id.to_string());
        match change? {
            Change::Changed(record, _) if matches!(outcome, Outcome::Failed(_)) => {
                self.give_images_back(&record).await
            }
            Change::Changed(..) => Ok(()),
            // Another worker was faster, or the job was taken from this one.
            Change::Unchanged(..) | Change::Missing => {
                tracing::info!("job {id} had ended or was given to another worker");
                Ok(())
            }
        }
    }

    /// Stores the images of an outcome.
    async fn upload(&self, outcome: &Outcome) -> std::result::Result<(), Fault> {
        let Outcome::Succeeded { outputs, .. } = outcome else { return Ok(()) };
        for output in outputs {
            let path = self.data.result(&output.file);
            self.persist(|| self.link.put_file(&path)).await?;
        }
        Ok(())
    }

    async fn give_images_back(&self, record: &Record) -> std::result::Result<(), Fault> {
        match record.limited && record.charge != Charge::default() {
            true => {
                let Record { owner, instant, charge, .. } = record;
                self.persist(|| self.link.give_images_back(owner, *instant, *charge)).await
            }
            false => Ok(()),
        }
    }

    /// Deletes the files of jobs that are over: the broker has them.
    fn clean(&self) {
        let over = std::mem::take(&mut *lock(&self.over));
        over.iter().for_each(|id| self.data.delete(id));
    }

    fn taken(&self, record: Record) -> Job {
        let job = record.job();
        lock(&self.jobs).insert(record.id.clone(), record);
        job
    }
}

/// Hears what fronts say to the worker called `id`, for ever.
async fn hear(link: Arc<Link>, id: String, news: UnboundedSender<News>, due: Arc<Mutex<Instant>>) {
    loop {
        let subscribe = |what: &str| link.client.subscribe(link.subject(&format!("{what}.{id}")));
        let all = tokio::try_join!(subscribe("cancel"), subscribe("wake"), subscribe("plan"));
        let Ok((mut cancels, mut wakes, mut plans)) = all else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        loop {
            tokio::select! {
                message = cancels.next() => {
                    let Some(message) = message else { break };
                    if let Ok(job) = serde_json::from_slice::<String>(&message.payload) {
                        news.send(News::Cancel(job)).ok();
                    }
                }
                message = wakes.next() => {
                    if message.is_none() { break }
                    *lock(&due) = Instant::now();
                    news.send(News::Wake).ok();
                }
                message = plans.next() => {
                    let Some(message) = message else { break };
                    let query = serde_json::from_slice::<PlanQuery>(&message.payload);
                    let (Ok(query), Some(reply)) = (query, message.reply) else { continue };
                    let (answer, receiver) = oneshot::channel();
                    news.send(News::Question { query: Box::new(query), answer }).ok();
                    let link = link.clone();
                    tokio::spawn(async move {
                        let answer = receiver.await.unwrap_or_else(|_| Err(busy()));
                        let bytes = serde_json::to_vec(&answer).unwrap_or_default();
                        link.client.publish(reply, bytes.into()).await.ok();
                    });
                }
            }
        }
    }
}

/// The fault of what only a front does.
fn no_front() -> Fault {
    Fault::internal("this process accepts no jobs")
}

impl Broker for WorkerBroker {
    fn submit(&self, _job: NewJob) -> std::result::Result<Submitted, Fault> {
        Err(no_front())
    }

    fn next(&self, held: Option<&str>) -> std::result::Result<Option<Job>, Fault> {
        if *lock(&self.due) > Instant::now() {
            return Ok(None);
        }
        self.clean();
        let Some(record) = self.link.wait(self.ask_for(held, None)) else { return Ok(None) };
        lock(&self.jobs).insert(record.id.clone(), record.clone());
        match self.link.wait(self.prepare(&record)) {
            true => Ok(Some(self.taken(record))),
            false => Ok(None),
        }
    }

    fn next_alike(&self, id: &str) -> std::result::Result<Option<Job>, Fault> {
        let record = self.link.wait(self.ask_for(None, Some(id)));
        Ok(record.map(|record| self.taken(record)))
    }

    fn give_back(&self, id: &str, counts: bool) -> std::result::Result<(), Fault> {
        let now = self.clock.seconds();
        let back = || self.link.change(id, |record| record.given_back(&self.id, counts, now));
        let change = self.link.wait(self.persist(back));
        lock(&self.jobs).remove(id);
        lock(&self.over).insert(id.to_string());
        *lock(&self.due) = Instant::now();
        match change? {
            Change::Changed(record, _) if record.fault.is_some() => {
                self.link.wait(self.give_images_back(&record))
            }
            _ => Ok(()),
        }
    }

    fn finish(&self, id: &str, outcome: Outcome) -> std::result::Result<(), Fault> {
        let ended = self.link.wait(self.conclude(id, &outcome));
        *lock(&self.due) = Instant::now();
        ended
    }

    fn cancel(&self, _id: &str, _owner: &str) -> std::result::Result<Option<Cancelled>, Fault> {
        Err(no_front())
    }

    fn job(&self, id: &str, owner: &str) -> std::result::Result<Option<Job>, Fault> {
        let found = self.link.wait(self.link.job(id))?;
        Ok(found.filter(|(record, _)| record.owner == owner).map(|(record, _)| record.job()))
    }

    fn list(&self, _owner: &str, _limit: usize) -> std::result::Result<Vec<Job>, Fault> {
        Ok(Vec::new())
    }

    fn active(&self, _owner: &str) -> std::result::Result<Vec<Job>, Fault> {
        Ok(Vec::new())
    }

    fn owed_calls(&self) -> std::result::Result<Vec<Job>, Fault> {
        Ok(Vec::new())
    }

    fn call_settled(&self, _id: &str) -> std::result::Result<(), Fault> {
        Err(no_front())
    }

    fn refund(&self, id: &str) -> std::result::Result<(), Fault> {
        let known = lock(&self.jobs).get(id).cloned();
        match known {
            Some(record) => self.link.wait(self.give_images_back(&record)),
            None => Ok(()),
        }
    }

    fn place(&self, _id: &str) -> Option<Place> {
        None
    }

    fn counts(&self) -> Counts {
        Counts { queued: 0, running: lock(&self.jobs).len() }
    }

    fn expire(&self, _data: f64, _rows: f64) -> std::result::Result<Vec<String>, Fault> {
        Ok(Vec::new())
    }

    fn forget(&self, _id: &str, _owner: &str) -> std::result::Result<bool, Fault> {
        Err(no_front())
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

    fn tell(&self, job: &str, name: &str, data: &Value) {
        // A state is told by the job itself.
        if name == "status" || name == "output" {
            return;
        }
        let told = Told { job: job.into(), name: name.into(), data: data.clone() };
        let bytes = serde_json::to_vec(&told).unwrap_or_default();
        if bytes.len() + 1024 > self.link.client.max_payload() {
            return;
        }
        self.link.publish(self.link.subject("ev"), bytes);
    }

    fn describe(&self, facts: WorkerFacts) {
        let jobs = lock(&self.jobs).keys().cloned().collect();
        let mut facts = WorkerFacts { id: self.id.clone(), jobs, ..facts };
        facts.shorten(self.link.max_value());
        if facts.left_out > 0 && facts.left_out != lock(&self.facts).left_out {
            tracing::warn!(
                "{} names of models, LoRAs and ControlNets do not fit into a message of the \
                 broker, and nobody can ask for them: raise its max_payload",
                facts.left_out
            );
        }
        let bytes = serde_json::to_vec(&facts).unwrap_or_default();
        *lock(&self.facts) = facts;
        self.link.publish(self.link.subject("worker"), bytes);
    }

    fn calls_here(&self) -> bool {
        false
    }

    fn leave(&self) {
        self.clean();
        let last = WorkerFacts { models: Vec::new(), ..lock(&self.facts).clone() };
        let said = async {
            self.link.send("worker", &last).await;
            self.link.client.flush().await.ok();
        };
        self.link.wait(async { tokio::time::timeout(PAUSE, said).await.ok() });
    }
}
