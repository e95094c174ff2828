//! What a process of a cluster does besides serving or drawing: it acts on what the others say, and
//! says what it can draw.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::broker::{News, WorkerFacts, Workers};
use super::job::{Job, State};
use super::state::{Server, blocking};
use super::supervisor::LISTENING;
use crate::error::Result;
use crate::pipeline::request::Request;

/// How often a worker says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How often the end of the server is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Acts on what other processes say, for ever.
pub async fn hear(server: Arc<Server>, mut news: UnboundedReceiver<News>) {
    while let Some(news) = news.recv().await {
        match news {
            News::Changed { job, before } => changed(&server, &job, before),
            News::Told { job, name, data } => server.events.told(&job, &name, data),
            News::Cancel(id) => server.stop_job(id),
            News::Wake => server.wake.notify_one(),
            News::Workers => note_workers(&server),
            News::Owed(job) => server.call(*job),
            News::Question { mut query, answer } => {
                let server = server.clone();
                tokio::spawn(async move {
                    // Elsewhere it is a name, here a file.
                    let model = query.model.take();
                    let asked = blocking(|| server.models.find(model.as_deref())).and_then(|m| {
                        query.model = m.open;
                        server.questions.ask(*query)
                    });
                    server.wake.notify_one();
                    let plan = match asked {
                        Ok(receiver) => {
                            receiver.await.unwrap_or_else(|_| Err(super::questions::busy()))
                        }
                        Err(fault) => Err(fault),
                    };
                    answer.send(plan).ok();
                });
            }
        }
    }
}

/// Tells clients of a change of a job that this or another process has made.
fn changed(server: &Server, job: &Job, before: Option<State>) {
    match job.state {
        State::Queued if before.is_none() => server.publish_accepted(job),
        State::Queued | State::Running => {
            server.events.reset(&job.id, false);
            server.publish_status(job);
        }
        State::Canceling => server.publish_status(job),
        State::Expired => {}
        _ => {
            if job.state == State::Succeeded
                && let (Some(spec), Some(begun), Some(ended)) =
                    (&job.spec, job.started, job.finished)
            {
                server.rates.measured(
                    &spec.model,
                    server.work(&spec.request, spec.drawn),
                    ended - begun,
                );
            }
            server.publish_outcome(job);
        }
    }
}

/// Takes note of what the workers of other machines can do.
pub fn note_workers(server: &Server) {
    let Some(Workers { live, catalog, .. }) = server.broker.workers() else { return };
    let ready = live.iter().filter(|worker| worker.ready).count();
    let mut worker = server.lock_worker();
    (worker.ready, worker.others) = (ready > 0, ready);
    if !catalog.models.is_empty() {
        worker.defaults = Some(catalog.defaults.clone());
        worker.inputs = catalog.inputs;
    }
    drop(worker);
    server.models.learn(catalog);
    let work = server.work(&Request::default(), None);
    let name = server.models.default_name();
    let same = live.iter().filter(|worker| worker.default == name);
    for seconds in same.filter_map(|worker| worker.seconds) {
        server.rates.plan(name, work, seconds);
    }
}

/// Serves without a worker of its own, until the server is to end.
pub async fn front(server: Arc<Server>) -> Result<()> {
    if let Some(address) = server.address {
        tracing::info!(target: LISTENING, "listening on http://{address}");
    }
    let questions = tokio::spawn(ask_others(server.clone()));
    while !(server.options.stop)() {
        tokio::time::sleep(TICK).await;
    }
    server.drain();
    server.log("the server ends: no more jobs are accepted");
    questions.abort();
    Ok(())
}

/// Asks workers of other machines what clients ask, for ever.
async fn ask_others(server: Arc<Server>) {
    loop {
        server.wake.notified().await;
        while let Some(question) = server.questions.next() {
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                let plan = server.broker.ask(&question.query);
                question.answer.send(plan).ok();
            });
        }
    }
}

/// Tells the others what this process can draw, for ever.
pub async fn describe(server: Arc<Server>) {
    let mut tick = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = server.became_ready.notified() => {}
        }
        let worker = server.worker();
        let Some(defaults) = worker.defaults.clone() else { continue };
        let busy_for = worker.current.as_ref().map_or(0.0, |(id, seconds)| {
            seconds * (1.0 - server.events.channel(id).progress().value())
        });
        let has = &server.models;
        let (models, loras, controlnets) = blocking(|| (has.all(), has.loras(), has.controlnets()));
        server.broker.describe(WorkerFacts {
            id: String::new(),
            host: host_name(),
            ready: worker.ready && !server.is_draining(),
            default: server.models.default_name().to_string(),
            defaults,
            seconds: server
                .rates
                .seconds(server.models.default_name(), server.work(&Request::default(), None)),
            inputs: worker.inputs,
            models,
            loras,
            controlnets,
            held: worker.held,
            held_loras: worker.loras,
            vram: server.options.engine.vram.map(|size| size.0),
            jobs: Vec::new(),
            busy_for,
            drawn: server.metrics.drawn(),
        });
    }
}

/// The name of this machine.
fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_default()
}
