//! Numbers for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::broker::{Counts, WorkerFacts, Workers};
use crate::host;

/// The counters of a server.
#[derive(Debug, Default)]
pub struct Metrics {
    inner: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// Jobs that ended: by state.
    ended: BTreeMap<&'static str, u64>,
    /// Phases that ran: their number, their seconds, and the bytes that the last one planned.
    phases: BTreeMap<&'static str, (u64, f64, u64)>,
    /// Answers by status.
    answers: BTreeMap<u16, u64>,
    /// Jobs that got the images of another one.
    shared: u64,
    workers: u64,
    /// The resident memory of the worker, in bytes.
    worker_bytes: u64,
    connections: u64,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job ended.
    pub fn job_ended(&self, state: &'static str) {
        *self.lock().ended.entry(state).or_default() += 1;
    }

    /// A phase ended.
    pub fn phase(&self, phase: &'static str, seconds: f64, planned_bytes: u64) {
        let mut counted = self.lock();
        let entry = counted.phases.entry(phase).or_default();
        *entry = (entry.0 + 1, entry.1 + seconds, planned_bytes);
    }

    /// A request was answered.
    pub fn answered(&self, status: u16) {
        *self.lock().answers.entry(status).or_default() += 1;
    }

    /// How many jobs have ended with images.
    pub fn drawn(&self) -> u64 {
        self.lock().ended.get("succeeded").copied().unwrap_or(0)
    }

    /// A job got the images of another one.
    pub fn job_shared(&self) {
        self.lock().shared += 1;
    }

    /// A worker was started.
    pub fn worker_started(&self) {
        self.lock().workers += 1;
    }

    /// The worker uses this many bytes.
    pub fn worker_memory(&self, bytes: u64) {
        self.lock().worker_bytes = bytes;
    }

    /// All numbers in the text format 0.0.4: with the jobs that wait and run, whether the server is
    /// `ready`, and the model that its worker holds.
    pub fn text(&self, counts: Counts, ready: bool, held: Option<&str>) -> String {
        text(&self.lock(), counts, ready, held)
    }

    /// A connection begins (1) or ends (-1).
    pub fn connection(&self, change: i64) {
        let mut counted = self.lock();
        counted.connections = counted.connections.saturating_add_signed(change);
    }
}

/// One family of metrics.
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, String)]) {
    writeln!(out, "# HELP flux_fast_{name} {help}\n# TYPE flux_fast_{name} {kind}").ok();
    for (labels, value) in samples {
        writeln!(out, "flux_fast_{name}{labels} {value}").ok();
    }
}

fn text(counted: &Counted, counts: Counts, ready: bool, held: Option<&str>) -> String {
    let one = |value: String| vec![(String::new(), value)];
    let label = |name: &str, value: &str| format!("{{{name}=\"{value}\"}}");
    let states = ["succeeded", "failed", "canceled"];
    let mut out = String::new();
    let jobs = [("queued", counts.queued), ("running", counts.running)];
    let jobs: Vec<_> = jobs.iter().map(|(s, n)| (label("state", s), n.to_string())).collect();
    family(&mut out, "jobs", "gauge", "Jobs that wait or run.", &jobs);
    let ended = |state: &str| counted.ended.get(state).copied().unwrap_or(0).to_string();
    let ended: Vec<_> = states.iter().map(|s| (label("state", s), ended(s))).collect();
    let help = "Jobs that ended since the start of the server.";
    family(&mut out, "jobs_ended_total", "counter", help, &ended);
    let shared = one(counted.shared.to_string());
    let help = "Jobs that got the images of another job, which are the same.";
    family(&mut out, "jobs_shared_total", "counter", help, &shared);
    let workers = one(counted.workers.to_string());
    let help = "Worker processes, with those that replaced one.";
    family(&mut out, "workers_started_total", "counter", help, &workers);
    let ready = one(u8::from(ready).to_string());
    family(&mut out, "ready", "gauge", "Whether a worker can draw and jobs are accepted.", &ready);
    let loaded = held.iter().map(|m| (label("model", &escaped(m)), "1".into()));
    let loaded: Vec<_> = loaded.collect();
    family(&mut out, "model_loaded", "gauge", "The model in memory.", &loaded);
    let phases = |value: fn(&(u64, f64, u64)) -> String| {
        let samples = counted.phases.iter().map(|(p, v)| (label("phase", p), value(v)));
        samples.collect::<Vec<_>>()
    };
    let seconds = phases(|v| v.1.to_string());
    family(&mut out, "phase_seconds_total", "counter", "Seconds in each phase.", &seconds);
    let runs = phases(|v| v.0.to_string());
    family(&mut out, "phase_runs_total", "counter", "Phases that ran.", &runs);
    let planned = phases(|v| v.2.to_string());
    let help = "Planned peak memory of the last run of each phase, in bytes.";
    family(&mut out, "phase_planned_bytes", "gauge", help, &planned);
    let memory = [
        (label("process", "worker"), counted.worker_bytes.to_string()),
        (label("process", "front"), host::resident_memory().to_string()),
    ];
    family(&mut out, "resident_bytes", "gauge", "Resident memory.", &memory);
    let answers =
        counted.answers.iter().map(|(s, n)| (label("status", &s.to_string()), n.to_string()));
    let answers: Vec<_> = answers.collect();
    family(&mut out, "http_answers_total", "counter", "Answers by status.", &answers);
    let connections = one(counted.connections.to_string());
    family(&mut out, "connections", "gauge", "Open connections.", &connections);
    out
}

/// The numbers of a cluster, which every front says alike: for scalers.
pub fn cluster_text(workers: &Workers) -> String {
    let of = |name: &str, value: String| (format!("{{model=\"{}\"}}", escaped(name)), value);
    let mut out = String::new();
    let queued: Vec<_> = workers.queued.iter().map(|(m, n, _)| of(m, n.to_string())).collect();
    let help = "Jobs that wait in the cluster, by model.";
    family(&mut out, "cluster_queued_jobs", "gauge", help, &queued);
    let seconds: Vec<_> = workers.queued.iter().map(|(m, _, s)| of(m, s.to_string())).collect();
    let help = "Seconds that one worker would need for the jobs that wait, by model.";
    family(&mut out, "cluster_queued_seconds", "gauge", help, &seconds);
    let count = |state: &str, is: fn(&WorkerFacts) -> bool| {
        let number = workers.live.iter().filter(|worker| is(worker)).count();
        (format!("{{state=\"{state}\"}}"), number.to_string())
    };
    let states = [
        count("idle", |worker| worker.ready && worker.jobs.is_empty()),
        count("busy", |worker| !worker.jobs.is_empty()),
        count("starting", |worker| !worker.ready && worker.jobs.is_empty()),
    ];
    family(&mut out, "cluster_workers", "gauge", "Workers of the cluster.", &states);
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for model in workers.live.iter().filter_map(|worker| worker.held.as_deref()) {
        *held.entry(model).or_default() += 1;
    }
    let held: Vec<_> = held.into_iter().map(|(model, n)| of(model, n.to_string())).collect();
    let help = "Workers that hold a model in memory.";
    family(&mut out, "cluster_model_workers", "gauge", help, &held);
    out
}

/// A value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
