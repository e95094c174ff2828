//! What happens to jobs, for clients that watch them: kept in memory, numbered, and sent again to a
//! client that was away.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;

/// The most events that are kept for one job. Older ones are dropped.
const MAX_EVENTS: usize = 1024;
/// How long the events of a job that is over are kept, and of how many such jobs at most.
const KEPT: Duration = Duration::from_secs(300);
const MAX_ENDED: usize = 256;

/// One event of a job.
#[derive(Debug, Clone)]
pub struct JobEvent {
    /// Its number, from 1.
    pub number: u64,
    /// `status`, `progress`, `preview`, `output` or `log`.
    pub name: &'static str,
    /// The data of the event.
    pub data: Arc<Value>,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// The phase that runs.
    pub phase: &'static str,
    /// Denoising steps that are done.
    pub step: usize,
    /// All denoising steps; 0 if not known yet.
    pub steps: usize,
    /// The last preview, as a JPEG in base64.
    pub preview: Option<Arc<Value>>,
}

impl Progress {
    /// The part that is done, from 0 to 1.
    pub fn value(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.step as f64 / self.steps as f64 }
    }
}

#[derive(Default)]
struct Log {
    last: u64,
    events: VecDeque<JobEvent>,
    progress: Progress,
    ended: Option<Instant>,
    /// A client that connected after the end has been sent it.
    told: bool,
    /// The end was published.
    over: bool,
}

/// The events of one job.
pub struct Channel {
    log: Mutex<Log>,
    changed: watch::Sender<u64>,
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events after number `after`.
    pub fn after(&self, after: u64) -> Vec<JobEvent> {
        self.lock().events.iter().filter(|e| e.number > after).cloned().collect()
    }

    /// Notes that a client has been sent the end of the job.
    pub fn tell_end(&self) {
        self.lock().told = true;
    }

    /// Whether a client has been sent the end of the job.
    pub fn is_told(&self) -> bool {
        self.lock().told
    }

    /// Changes with every event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How far the job is.
    pub fn progress(&self) -> Progress {
        self.lock().progress.clone()
    }
}

/// The events of all jobs.
pub struct Events {
    /// Differs from one process to the next, since the numbers of events start again.
    pub epoch: String,
    jobs: Mutex<HashMap<String, Arc<Channel>>>,
    /// The jobs that are over, the oldest first.
    ended: Mutex<VecDeque<String>>,
    any: watch::Sender<u64>,
    statuses: watch::Sender<u64>,
    /// Who else is told of everything that is published here.
    listener: OnceLock<Listener>,
}

/// Gets a job, and the name and the data of an event.
type Listener = Box<dyn Fn(&str, &str, &Value) + Send + Sync>;

/// The phases of a job that others draw.
const PHASES: [&str; 5] = ["text", "image", "modulate", "denoise", "decode"];

impl Events {
    /// No events yet.
    pub fn new(epoch: String) -> Self {
        let (any, statuses) = (watch::Sender::new(0), watch::Sender::new(0));
        let (jobs, ended) = (Mutex::default(), Mutex::default());
        Events { epoch, jobs, ended, any, statuses, listener: OnceLock::new() }
    }

    /// Tells `listener` of everything that is published from now on.
    pub fn listen(&self, listener: impl Fn(&str, &str, &Value) + Send + Sync + 'static) {
        self.listener.set(Box::new(listener)).ok();
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Arc<Channel>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of a job that is not over, or that ended in this process.
    pub fn channel(&self, job: &str) -> Arc<Channel> {
        let new = || Arc::new(Channel { log: Mutex::default(), changed: watch::Sender::new(0) });
        self.jobs().entry(job.to_string()).or_insert_with(new).clone()
    }

    /// The events of a job if there are any in memory.
    pub fn known(&self, job: &str) -> Option<Arc<Channel>> {
        self.jobs().get(job).cloned()
    }

    /// Changes with every event of any job.
    pub fn watch_all(&self) -> watch::Receiver<u64> {
        self.any.subscribe()
    }

    /// Changes whenever a job is accepted, begins or ends.
    pub fn watch_statuses(&self) -> watch::Receiver<u64> {
        self.statuses.subscribe()
    }

    /// Adds an event to those of `job`.
    pub fn publish(&self, job: &str, name: &'static str, data: Value) {
        if let Some(listener) = self.listener.get() {
            listener(job, name, &data);
        }
        self.add(job, name, data, |_| true);
    }

    /// Adds the first event of `job`, unless a worker has taken it already and said more.
    pub fn publish_first(&self, job: &str, name: &'static str, data: Value) {
        self.add(job, name, data, |last| last == 0);
    }

    fn add(&self, job: &str, name: &'static str, data: Value, wanted: impl Fn(u64) -> bool) {
        let channel = self.channel(job);
        let number = {
            let mut log = channel.lock();
            if !wanted(log.last) {
                return;
            }
            log.last += 1;
            let event = JobEvent { number: log.last, name, data: Arc::new(data) };
            if name == "preview" {
                // Only the last one is worth its memory.
                log.events.retain(|e| e.name != "preview");
                log.progress.preview = Some(event.data.clone());
            }
            log.events.push_back(event);
            if log.events.len() > MAX_EVENTS {
                log.events.pop_front();
            }
            log.last
        };
        channel.changed.send_replace(number);
        if name == "status" {
            self.statuses.send_modify(|count| *count += 1);
        }
        self.any.send_modify(|count| *count += 1);
    }

    /// A phase of `job` begins. Its own steps count only in `denoise`.
    pub fn phase(&self, job: &str, phase: &'static str, steps: usize) {
        let progress = {
            let channel = self.channel(job);
            let mut log = channel.lock();
            log.progress.phase = phase;
            if phase == "denoise" {
                (log.progress.step, log.progress.steps) = (0, steps);
            }
            progress_json(&log.progress)
        };
        self.publish(job, "progress", progress);
    }

    /// Something that another process says about `job`. It is of no interest if nobody asked for
    /// the job here, or if the job is over.
    pub fn told(&self, job: &str, name: &str, data: Value) {
        let Some(channel) = self.known(job) else { return };
        if channel.lock().over {
            return;
        }
        match name {
            "progress" => {
                let number = |name: &str| data[name].as_u64().unwrap_or(0) as usize;
                let mut log = channel.lock();
                let phase = PHASES.iter().find(|phase| data["phase"] == **phase);
                log.progress.phase = phase.unwrap_or(&"");
                (log.progress.step, log.progress.steps) = (number("step"), number("steps"));
                drop(log);
                self.publish(job, "progress", data);
            }
            "preview" => self.publish(job, "preview", data),
            "log" => self.publish(job, "log", data),
            _ => {}
        }
    }

    /// Notes that the end of `job` is published. Returns false if it was before.
    pub fn end(&self, job: &str) -> bool {
        !std::mem::replace(&mut self.channel(job).lock().over, true)
    }

    /// Whether the end of `job` was published.
    pub fn is_over(&self, job: &str) -> bool {
        self.known(job).is_some_and(|channel| channel.lock().over)
    }

    /// A denoising step of `job` is done.
    pub fn step(&self, job: &str, done: usize, steps: usize) {
        let progress = {
            let channel = self.channel(job);
            let mut log = channel.lock();
            (log.progress.step, log.progress.steps) = (done, steps);
            progress_json(&log.progress)
        };
        self.publish(job, "progress", progress);
    }

    /// `job` will run again, or has ended.
    pub fn reset(&self, job: &str, ended: bool) {
        let channel = self.channel(job);
        let mut log = channel.lock();
        log.progress = Progress::default();
        let had_ended = log.ended.is_some();
        log.ended = ended.then(Instant::now);
        drop(log);
        if !ended || had_ended {
            return;
        }
        let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(job.to_string());
        if all.len() > MAX_ENDED
            && let Some(oldest) = all.pop_front()
        {
            self.jobs().remove(&oldest);
        }
    }

    /// Forgets the events of jobs that ended some time ago.
    pub fn sweep(&self) {
        let old = |c: &Channel| c.lock().ended.is_some_and(|ended| ended.elapsed() > KEPT);
        // In the order of `reset`.
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = self.jobs();
        jobs.retain(|_, channel| !old(channel));
        ended.retain(|job| jobs.contains_key(job));
    }
}

/// Progress as JSON, in the form of the job object.
pub fn progress_json(progress: &Progress) -> Value {
    json!({
        "value": progress.value(),
        "phase": progress.phase,
        "step": progress.step,
        "steps": progress.steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_and_only_the_last_preview_is_kept() {
        let events = Events::new("x".into());
        events.publish("a", "status", json!({}));
        events.phase("a", "denoise", 4);
        events.publish("a", "preview", json!(1));
        events.step("a", 1, 4);
        events.publish("a", "preview", json!(2));
        let channel = events.channel("a");
        let seen: Vec<_> = channel.after(1).iter().map(|e| (e.number, e.name)).collect();
        assert_eq!(seen, [(2, "progress"), (4, "progress"), (5, "preview")]);
        assert_eq!(channel.progress().value(), 0.25);
        assert_eq!(channel.progress().preview.as_deref(), Some(&json!(2)));
        (0..2 * MAX_EVENTS).for_each(|_| events.publish("a", "log", json!({})));
        assert_eq!(channel.after(0).len(), MAX_EVENTS);
        assert!(events.channel("b").after(0).is_empty());
        events.publish_first("a", "status", json!("late"));
        events.publish_first("b", "status", json!("first"));
        let first = |job: &str| events.channel(job).after(0).last().unwrap().data.clone();
        assert_eq!((&*first("a"), &*first("b")), (&json!({}), &json!("first")));
    }

    #[test]
    fn only_a_few_of_the_jobs_that_are_over_are_remembered() {
        let events = Events::new("x".into());
        events.publish("runs", "status", json!({}));
        for job in 0..2 * MAX_ENDED {
            let job = job.to_string();
            events.publish(&job, "status", json!({}));
            events.reset(&job, true);
            events.reset(&job, true);
        }
        assert_eq!(events.jobs().len(), MAX_ENDED + 1);
        assert_eq!(events.channel("runs").after(0).len(), 1);
        events.sweep();
        assert_eq!(events.jobs().len(), MAX_ENDED + 1);
    }
}
