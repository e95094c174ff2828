//! Starts the worker, gives it jobs, and starts another one when it ends.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::UnboundedReceiver;

use super::fault::Fault;
use super::job::{Job, Outcome};
use super::protocol::{Order, Report};
use super::state::{Server, blocking};
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
pub async fn supervise(server: Arc<Server>, mut cancels: UnboundedReceiver<String>) -> Result<()> {
    let (mut was_ready, mut failures) = (false, 0);
    loop {
        let mut worker = match Worker::start(&server) {
            Ok(worker) => worker,
            Err(e) => return Err(Error::device(format!("the worker cannot be started: {e}"))),
        };
        let end = worker.run(&mut cancels).await;
        worker.finish().await;
        let useful = worker.drawn > 0;
        was_ready |= worker.ready;
        server.lock_worker().ready = false;
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
        server.workers_started.fetch_add(1, Ordering::Relaxed);
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
            fault: None,
            drawn: 0,
            heard: Instant::now(),
            cancelled: None,
            draining: None,
        })
    }

    async fn run(&mut self, cancels: &mut UnboundedReceiver<String>) -> End {
        let server = self.server.clone();
        let options = (&server.options.engine).into();
        self.order(&Order::Open { options, data: server.data.root().to_path_buf() }).await;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let idle = self.ready && self.current.is_none() && self.draining.is_none();
            let end = tokio::select! {
                line = self.lines.next_line() => match line {
                    Ok(Some(line)) => self.hear(&line),
                    _ => Some(End::Died(self.exit().await)),
                },
                () = server.wake.notified(), if idle => self.next().await,
                Some(id) = cancels.recv() => {
                    if self.current.as_ref().is_some_and(|job| job.id == id) {
                        self.cancelled.get_or_insert_with(Instant::now);
                        self.order(&Order::Cancel { id }).await;
                    }
                    None
                }
                _ = tick.tick() => match self.clocks() {
                    None if idle => self.next().await,
                    end => end,
                },
            };
            if let Some(end) = end {
                return end;
            }
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
        let busy = self.current.is_some() || !self.ready;
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

    /// Gives the worker the next job, if there is one.
    async fn next(&mut self) -> Option<End> {
        if self.current.is_some() || !self.ready {
            return None;
        }
        let job = match blocking(|| self.server.broker.next()) {
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
        match (job.spec, model) {
            (Some(spec), Some(Ok(model))) => {
                self.order(&Order::Job { id, spec, model: model.open }).await;
            }
            // The file was removed, or the server was started with another model.
            (_, Some(Err(fault))) => self.settle(Outcome::Failed(fault)),
            _ => self.settle(Outcome::Failed(Fault::internal("the job cannot be read"))),
        }
        None
    }

    async fn order(&mut self, order: &Order) {
        let mut line = serde_json::to_vec(order).unwrap_or_default();
        line.push(b'\n');
        // If it has ended, its stdout ends too; if it hangs, the clocks say so.
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
            Report::Ready { defaults } => {
                self.ready = true;
                let mut worker = self.server.lock_worker();
                let first = worker.defaults.is_none();
                worker.ready = true;
                worker.defaults = Some(defaults);
                drop(worker);
                if first {
                    self.server.log(&format!("listening on http://{}", self.server.address));
                }
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
                if let Some(phase) = PHASES.into_iter().find(|p| p.name() == phase) {
                    events.phase(&current, phase.name(), steps);
                }
            }
            Report::Step { done, steps } => events.step(&current, done, steps),
            Report::Preview { jpeg, width, height } => {
                let preview = serde_json::json!({
                    "content_type": "image/jpeg", "data": jpeg, "width": width, "height": height,
                });
                events.publish(&current, "preview", preview);
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

    /// Ends the current job.
    fn settle(&mut self, outcome: Outcome) {
        let Some(job) = self.current.take() else { return };
        self.drawn += 1;
        self.cancelled = None;
        let finished = blocking(|| self.server.broker.finish(&job.id, outcome));
        self.tell(finished, &job);
        self.server.wake.notify_one();
    }

    /// Tells those who watch `job` what has become of it.
    fn tell(&self, stored: std::result::Result<(), Fault>, job: &Job) {
        if let Err(fault) = stored {
            self.server.log(&format!("job {}: {}", job.id, fault.message));
        }
        match blocking(|| self.server.broker.job(&job.id, &job.owner)) {
            Ok(Some(job)) if job.state.is_final() => {
                for (number, output) in job.outputs.iter().enumerate() {
                    let (width, height) = (output.width, output.height);
                    let output =
                        serde_json::json!({"number": number, "width": width, "height": height});
                    self.server.events.publish(&job.id, "output", output);
                }
                self.server.publish_end(&job);
            }
            Ok(Some(job)) => {
                self.server.events.reset(&job.id, false);
                self.server.publish_status(&job);
            }
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

    /// Ends the process, and puts its job back: it may run once more, unless the server ends, which
    /// is not the job's fault.
    async fn finish(&mut self) {
        self.child.kill().await.ok();
        let Some(job) = self.current.take() else { return };
        let stopping = self.draining.is_some();
        let (fault, twice) = (self.fault.take(), job.attempts >= 2);
        let stored = blocking(|| match fault {
            Some(fault) if twice && !stopping => {
                self.server.broker.finish(&job.id, Outcome::Failed(fault))
            }
            _ => self.server.broker.give_back(&job.id, !stopping),
        });
        self.tell(stored, &job);
    }
}

const PHASES: [Phase; 5] =
    [Phase::TextEncode, Phase::ImageEncode, Phase::Modulate, Phase::Denoise, Phase::Decode];

/// The kind of error with this exit code.
fn kind_of(exit_code: u8) -> Kind {
    let kinds = [Kind::Argument, Kind::Model, Kind::Missing, Kind::Memory, Kind::Device];
    kinds.into_iter().find(|k| k.exit_code() == exit_code).unwrap_or(Kind::Device)
}
