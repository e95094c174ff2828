//! Starts the worker, gives it jobs, and starts another one when it ends.

mod ending;

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::UnboundedReceiver;

use super::fault::Fault;
use super::job::{Job, JobSpec, Outcome};
use super::protocol::{Order, Report};
use super::questions::Question;
use super::state::{Command as Request, Server, blocking};
use crate::error::{Error, Kind, Result};
use crate::event::Phase;

/// How long a worker may take to stop a job before it is killed.
const CANCEL_GRACE: Duration = Duration::from_secs(30);
/// How long a worker may take to read an order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// The pauses between workers that end without having drawn.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// How often clocks and the end of the server are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Why a worker is not used any more.
enum End {
    /// The server ends.
    Stopped,
    /// It cannot open the default model or the device.
    Unusable(Error),
    /// It crashed, hung, lost its device, or could not be started.
    Died(String),
}

/// Keeps a worker running until the server is to end and the running job is over or given back.
///
/// # Errors
/// Those of the first worker, if it cannot open the default model or the device.
pub async fn supervise(
    server: Arc<Server>,
    mut commands: UnboundedReceiver<Request>,
) -> Result<()> {
    let (mut was_ready, mut failures) = (false, 0);
    loop {
        let mut worker = match Worker::start(&server) {
            Ok(worker) => worker,
            Err(e) => return Err(Error::device(format!("the worker cannot be started: {e}"))),
        };
        let end = worker.run(&mut commands).await;
        worker.finish().await;
        let useful = worker.drawn > 0;
        was_ready |= worker.ready;
        {
            let mut worker = server.lock_worker();
            (worker.ready, worker.held, worker.current) = (false, None, None);
        }
        match end {
            End::Stopped => return Ok(()),
            End::Unusable(error) if !was_ready => return Err(error),
            End::Unusable(error) => server.log(&format!("the worker cannot draw: {error}")),
            End::Died(why) if !was_ready => {
                return Err(Error::device(format!("the worker ended while it started: {why}")));
            }
            End::Died(why) => server.log(&format!("the worker ended ({why}); another is started")),
        }
        failures = if useful { 0 } else { failures + 1 };
        let pause = Duration::from_millis(100 << failures.min(10)).min(MAX_BACKOFF);
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if (server.options.stop)() {
                server.drain();
                return Ok(());
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

/// One worker process.
struct Worker {
    server: Arc<Server>,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    ready: bool,
    /// The job that it draws.
    current: Option<Job>,
    /// The question that it answers.
    question: Option<Question>,
    /// Why the current job cannot be finished here.
    fault: Option<Fault>,
    /// Jobs that it has ended.
    drawn: u64,
    /// When it last said something.
    heard: Instant,
    /// When it was told to stop the current job.
    cancelled: Option<Instant>,
    /// When the server was told to end.
    draining: Option<Instant>,
    /// The model in its memory.
    held: Option<String>,
    /// When it got the current job, or ended the last one.
    since: Instant,
    /// The model is to be closed once the job is over.
    unload: bool,
}

impl Worker {
    fn start(server: &Arc<Server>) -> std::io::Result<Self> {
        let (program, arguments) = &server.options.worker;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        server.metrics.worker_started();
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("it has no pipes"));
        };
        server.log(&format!("worker {} started", child.id().unwrap_or_default()));
        Ok(Worker {
            server: server.clone(),
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            ready: false,
            current: None,
            question: None,
            fault: None,
            drawn: 0,
            heard: Instant::now(),
            cancelled: None,
            draining: None,
            held: None,
            since: Instant::now(),
            unload: false,
        })
    }

    async fn run(&mut self, commands: &mut UnboundedReceiver<Request>) -> End {
        let server = self.server.clone();
        let options = (&server.options.engine).into();
        self.order(&Order::Open { options, data: server.data.root().to_path_buf() }).await;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let busy = self.current.is_some() || self.question.is_some();
            let idle = self.ready && !busy && self.draining.is_none();
            let end = tokio::select! {
                line = self.lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&line),
                    _ => Some(End::Died(self.exit().await)),
                },
                () = server.wake.notified(), if idle => self.next().await,
                Some(request) = commands.recv() => {
                    match request {
                        Request::Cancel(id) if self.is_current(&id) => {
                            self.cancelled.get_or_insert_with(Instant::now);
                            self.order(&Order::Cancel { id }).await;
                        }
                        Request::Cancel(_) => {}
                        Request::Unload => self.unload = true,
                    }
                    None
                }
                _ = tick.tick() => match self.clocks() {
                    None if idle => {
                        let end = self.next().await;
                        self.unload_if_due().await;
                        end
                    }
                    end => end,
                },
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    fn is_current(&self, id: &str) -> bool {
        self.current.as_ref().is_some_and(|job| job.id == id)
    }

    /// Closes the model if nobody has needed it for long, or if that was asked for.
    async fn unload_if_due(&mut self) {
        let Some(model) = self.held.clone().filter(|_| self.ready && self.current.is_none()) else {
            self.unload &= self.current.is_some();
            return;
        };
        let options = &self.server.options;
        let own = options.of_model(&model).and_then(|model| model.keep_alive);
        let keep_alive = own.unwrap_or(options.keep_alive);
        let idle = keep_alive.is_some_and(|time| self.since.elapsed() >= time);
        if self.unload || idle {
            self.unload = false;
            self.held = None;
            self.server.lock_worker().held = None;
            self.order(&Order::Unload).await;
            self.server.log(&format!("the model {model} was closed"));
        }
    }

    /// Looks at everything that depends on time.
    fn clocks(&mut self) -> Option<End> {
        if self.draining.is_none() && (self.server.options.stop)() {
            self.server.drain();
            self.draining = Some(Instant::now());
            self.server.log("the server ends: no more jobs are accepted");
        }
        if let Some(since) = self.draining
            && (self.current.is_none() || since.elapsed() > self.server.options.grace)
        {
            return Some(End::Stopped);
        }
        let busy = self.current.is_some() || self.question.is_some() || !self.ready;
        if busy && self.heard.elapsed() > self.server.options.hang_after {
            return Some(End::Died("it hung".into()));
        }
        match self.cancelled {
            Some(since) if since.elapsed() > CANCEL_GRACE => {
                Some(End::Died("it did not stop a job that was cancelled".into()))
            }
            _ => None,
        }
    }

    /// Gives the worker the next question or job, if there is one.
    async fn next(&mut self) -> Option<End> {
        if self.current.is_some() || self.question.is_some() || !self.ready {
            return None;
        }
        // Answers take milliseconds.
        if let Some(question) = self.server.questions.next() {
            self.heard = Instant::now();
            self.order(&Order::Plan { query: question.query.clone() }).await;
            self.question = Some(question);
            return None;
        }
        let job = match blocking(|| self.server.broker.next(self.held.as_deref())) {
            Ok(Some(job)) => job,
            Ok(None) => return None,
            Err(fault) => {
                self.server.log(&format!("no job can be taken: {}", fault.message));
                tokio::time::sleep(Duration::from_secs(1)).await;
                return None;
            }
        };
        self.server.events.reset(&job.id, false);
        self.server.publish_status(&job);
        (self.heard, self.cancelled, self.fault) = (Instant::now(), None, None);
        let id = job.id.clone();
        let model = job.spec.as_ref().map(|s| self.server.models.find(Some(&s.model)));
        self.current = Some(job.clone());
        self.since = Instant::now();
        match (job.spec, model) {
            (Some(spec), Some(Ok(model))) => {
                self.begin(&id, &spec);
                let order = Order::Job { id, spec: Box::new(spec), model: model.open };
                self.order(&order).await;
            }
            // The file was removed, or the server was started with another model.
            (_, Some(Err(fault))) => self.settle(Outcome::Failed(fault)),
            _ => self.settle(Outcome::Failed(Fault::internal("the job cannot be read"))),
        }
        None
    }

    /// Notes what the worker is about to draw.
    fn begin(&mut self, id: &str, spec: &JobSpec) {
        self.held = Some(spec.model.clone());
        let seconds =
            self.server.rates.seconds(&spec.model, self.server.work(&spec.request, spec.drawn));
        let mut status = self.server.lock_worker();
        status.held.clone_from(&self.held);
        status.loras = spec.loras();
        self.server.became_ready.notify_one();
        status.current = Some((id.to_string(), seconds.unwrap_or(0.0)));
    }

    async fn order(&mut self, order: &Order) {
        let mut line = serde_json::to_vec(order).unwrap_or_default();
        line.push(b'\n');
        // Errors are ignored: if it has ended, its stdout ends too; if it hangs, `clocks` notices.
        let stdin = &mut self.stdin;
        let write = async { stdin.write_all(&line).await.and(stdin.flush().await) };
        tokio::time::timeout(ORDER_TIMEOUT, write).await.ok();
    }

    /// Acts on a line of the worker.
    fn hear(&mut self, line: &str) -> Option<End> {
        self.heard = Instant::now();
        let report = match serde_json::from_str(line) {
            Ok(report) => report,
            Err(e) => return Some(End::Died(format!("it said something else: {e}"))),
        };
        let current = self.current.as_ref().map(|job| job.id.clone()).unwrap_or_default();
        let events = &self.server.events;
        match report {
            Report::Ready { defaults, seconds, inputs } => {
                self.server.lock_worker().inputs = Some(inputs);
                self.is_ready(defaults, seconds);
            }
            Report::Unusable { message, hint, exit_code } => {
                let mut error = Error::new(kind_of(exit_code), message);
                if let Some(hint) = hint {
                    error = error.try_(hint);
                }
                return Some(End::Unusable(error));
            }
            Report::Alive => {}
            Report::Log { level, text } if current.is_empty() => {
                self.server.log(&format!("{level}: {text}"));
            }
            Report::Log { level, text } => {
                let log = serde_json::json!({"level": level, "text": text});
                events.publish(&current, "log", log);
            }
            Report::Phase { phase, steps } => {
                if let Some(phase) = Phase::ALL.into_iter().find(|p| p.name() == phase) {
                    events.phase(&current, phase.name(), steps);
                }
            }
            Report::PhaseEnd { phase, seconds, planned } => {
                if let Some(phase) = Phase::ALL.into_iter().find(|p| p.name() == phase) {
                    self.server.metrics.phase(phase.name(), seconds, planned);
                }
            }
            Report::Memory { resident } => self.server.metrics.worker_memory(resident),
            Report::Step { done, steps } => events.step(&current, done, steps),
            Report::Preview { jpeg, width, height } => {
                let preview = serde_json::json!({
                    "content_type": "image/jpeg", "data": jpeg, "width": width, "height": height,
                });
                events.publish(&current, "preview", preview);
            }
            Report::Planned { plan, fault } => {
                if let Some(question) = self.question.take() {
                    let none = || Fault::internal("there is no plan");
                    question.answer.send(plan.ok_or_else(|| fault.unwrap_or_else(none))).ok();
                }
                self.server.wake.notify_one();
            }
            Report::Finished { id, outputs, settings } if id == current => {
                self.settle(Outcome::Succeeded { outputs, settings });
            }
            Report::Failed { id, cancelled: true, .. } if id == current => {
                self.settle(Outcome::Canceled);
            }
            Report::Failed { id, fault, ends: true, .. } if id == current => {
                self.server.log(&format!("job {id}: {}", fault.message));
                // Its device may be lost for good: `/ready` says so from now on.
                self.server.lock_worker().ready = false;
                self.fault = Some(fault);
            }
            Report::Failed { id, fault, .. } if id == current => {
                self.settle(Outcome::Failed(fault));
            }
            Report::Finished { .. } | Report::Failed { .. } => {}
        }
        None
    }

    /// The default model is open.
    fn is_ready(&mut self, defaults: Value, seconds: Option<f64>) {
        self.ready = true;
        self.since = Instant::now();
        let name = self.server.models.default_name().to_string();
        self.held = Some(name.clone());
        let mut worker = self.server.lock_worker();
        let first = worker.defaults.is_none();
        worker.ready = true;
        worker.defaults = Some(defaults);
        worker.held.clone_from(&self.held);
        drop(worker);
        if let Some(seconds) = seconds {
            let work = self.server.work(&crate::pipeline::request::Request::default(), None);
            self.server.rates.plan(&name, work, seconds);
        }
        self.server.became_ready.notify_one();
        match self.server.address {
            Some(address) if first => {
                tracing::info!(target: LISTENING, "listening on http://{address}");
            }
            None if first => tracing::info!(target: LISTENING, "drawing for the cluster"),
            _ => {}
        }
    }

    /// How the process ended.
    async fn exit(&mut self) -> String {
        match tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => "it closed its output".into(),
        }
    }
}

/// The target of the line of the log that says where the server listens, which is always shown.
pub const LISTENING: &str = "flux_fast::listening";

/// The kind of error with this exit code.
fn kind_of(exit_code: u8) -> Kind {
    let kinds = [Kind::Argument, Kind::Model, Kind::Missing, Kind::Memory, Kind::Device];
    kinds.into_iter().find(|k| k.exit_code() == exit_code).unwrap_or(Kind::Device)
}
