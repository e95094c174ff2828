//! What a process of a cluster does besides serving or drawing: it acts on what the others say, and
//! says what it can draw.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::broker::{News, WorkerFacts, Workers};
use super::job::{Job, State};
use super::models::Listed;
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

/// What the folders of this machine have.
#[derive(Clone)]
struct Lists {
    models: Vec<Listed>,
    loras: Vec<Listed>,
    controlnets: Vec<Listed>,
}

/// Tells the others what this process can draw, for ever.
pub async fn describe(server: Arc<Server>) {
    let broker = server.broker.clone();
    let (sender, lists) = watch::channel(None);
    let listing = tokio::spawn(list(server.clone(), sender));
    let _ends_with_this = AbortOnDrop(listing);
    say(server, lists, |facts| broker.describe(facts)).await;
}

/// Ends a task together with the one that has it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads the folders again and again, for ever. A disk may take long to answer, and a sign of life
/// must not wait for it.
async fn list(server: Arc<Server>, lists: watch::Sender<Option<Lists>>) {
    loop {
        let server = server.clone();
        let read = tokio::task::spawn_blocking(move || {
            let has = &server.models;
            Lists { models: has.all(), loras: has.loras(), controlnets: has.controlnets() }
        });
        if let Ok(read) = read.await {
            lists.send_replace(Some(read));
        }
        tokio::time::sleep(SIGN_OF_LIFE).await;
    }
}

/// Describes this process with the last known `lists`, for ever, once they are known.
async fn say(
    server: Arc<Server>,
    mut lists: watch::Receiver<Option<Lists>>,
    tell: impl Fn(WorkerFacts),
) {
    if lists.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut tick = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = server.became_ready.notified() => {}
        }
        let Some(lists) = lists.borrow().clone() else { continue };
        if let Some(facts) = facts(&server, lists) {
            tell(facts);
        }
    }
}

/// What this process says of itself; `None` before it has opened its model. Nothing here waits.
fn facts(server: &Server, lists: Lists) -> Option<WorkerFacts> {
    let worker = server.worker();
    let defaults = worker.defaults.clone()?;
    let busy_for = worker.current.as_ref().map_or(0.0, |(id, seconds)| {
        seconds * (1.0 - server.events.channel(id).progress().value())
    });
    let Lists { models, loras, controlnets } = lists;
    let default = server.models.default_name();
    Some(WorkerFacts {
        id: String::new(),
        host: host_name(),
        ready: worker.ready && !server.is_draining(),
        default: default.to_string(),
        defaults,
        seconds: server.rates.seconds(default, server.work(&Request::default(), None)),
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
        left_out: 0,
    })
}

/// The name of this machine.
fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use serde_json::json;
    use tokio::sync::mpsc::unbounded_channel;

    use super::super::tests::idle_server;
    use super::*;

    #[test]
    fn signs_of_life_do_not_wait_for_the_lists_of_models() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(idle_server(folder.path()));
        server.lock_worker().defaults = Some(json!({}));
        let (sender, lists) = watch::channel(None);
        let (said, mut heard) = unbounded_channel();
        let tell = move |facts: WorkerFacts| drop(said.send(facts));
        runtime.spawn(list(server.clone(), sender));
        runtime.spawn(say(server.clone(), lists, tell));
        let mut next = || {
            let next = async { tokio::time::timeout(Duration::from_secs(20), heard.recv()).await };
            runtime.block_on(next).expect("a sign of life").unwrap()
        };
        assert!(!next().models.is_empty());
        // A disk that does not answer: somebody reads the folders for as long as the guard exists.
        let (slow, is_over) = (server.clone(), Arc::new(AtomicBool::new(false)));
        let end = is_over.clone();
        let reader = std::thread::spawn(move || {
            slow.models.while_listing(|| {
                while !end.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        });
        for _ in 0..4 {
            assert!(!next().models.is_empty());
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    }
}
