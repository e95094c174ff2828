//! Ends a job after its worker has finished, failed or died.

use std::time::Instant;

use serde_json::Value;

use super::Worker;
use crate::pipeline::images::Format;
use crate::server::data::DataFolder;
use crate::server::fault::Fault;
use crate::server::job::{Job, JobSpec, Outcome, Output};
use crate::server::state::blocking;

impl Worker {
    /// Ends the current job.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        let Some(job) = self.current.take() else { return };
        self.drawn += 1;
        self.cancelled = None;
        self.server.lock_worker().current = None;
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        match (&outcome, &job.spec) {
            (Outcome::Succeeded { .. }, Some(spec)) => {
                let work = self.server.work(&spec.request, spec.drawn);
                self.server.rates.measured(&spec.model, work, seconds);
            }
            // Nothing was drawn yet.
            (Outcome::Canceled, _) if self.server.events.channel(&job.id).progress().step == 0 => {
                let refunded = blocking(|| self.server.broker.refund(&job.id));
                refunded.unwrap_or_else(|fault| self.server.log(&fault.message));
            }
            _ => {}
        }
        let images = match &outcome {
            Outcome::Succeeded { outputs, settings } => Some((outputs.clone(), settings.clone())),
            _ => None,
        };
        let finished = blocking(|| self.server.broker.finish(&job.id, outcome));
        self.tell(finished, &job);
        if let Some((outputs, settings)) = images {
            self.share(&job, &outputs, &settings);
        }
        self.server.wake.notify_one();
    }

    /// Gives the images of `job` to the jobs that wait for the same ones.
    fn share(&self, job: &Job, outputs: &[Output], settings: &Value) {
        let server = &self.server;
        loop {
            let other = match blocking(|| server.broker.next_alike(&job.id)) {
                Ok(Some(other)) => other,
                Ok(None) => return,
                Err(fault) => return server.log(&format!("job {}: {}", job.id, fault.message)),
            };
            server.publish_status(&other);
            let shared = |(index, output): (usize, &Output)| {
                let format = job.spec.as_ref().map_or(Format::Png, JobSpec::format);
                let file = DataFolder::result_name(&other.id, index, format);
                server.data.share(&output.file, &file)?;
                Ok(Output { file, ..output.clone() })
            };
            let shared: std::io::Result<Vec<_>> =
                blocking(|| outputs.iter().enumerate().map(shared).collect());
            let (ended, is_shared) = match shared {
                Ok(outputs) => {
                    let outcome = Outcome::Succeeded { outputs, settings: settings.clone() };
                    (blocking(|| server.broker.finish(&other.id, outcome)), true)
                }
                // It is drawn after all.
                Err(_) => (blocking(|| server.broker.give_back(&other.id, false)), false),
            };
            self.tell(ended, &other);
            if !is_shared {
                return;
            }
            server.metrics.job_shared();
        }
    }

    /// Tells those who watch `job` what has become of it.
    fn tell(&self, stored: std::result::Result<(), Fault>, job: &Job) {
        if let Err(fault) = stored {
            self.server.log(&format!("job {}: {}", job.id, fault.message));
        }
        match blocking(|| self.server.broker.job(&job.id, &job.owner)) {
            Ok(Some(job)) if job.state.is_final() => {
                self.server.publish_outcome(&job);
            }
            Ok(Some(job)) => {
                self.server.events.reset(&job.id, false);
                self.server.publish_status(&job);
            }
            _ => {}
        }
    }

    /// Ends the process, and puts its job back: it may run once more, unless the server ends, which
    /// is not the job's fault.
    pub(super) async fn finish(&mut self) {
        self.child.kill().await.ok();
        let Some(job) = self.current.take() else { return };
        let stopping = self.draining.is_some();
        let (fault, last) = (self.fault.take(), job.attempts >= self.server.broker.max_attempts());
        let stored = blocking(|| match fault {
            Some(fault) if last && !stopping => {
                self.server.broker.finish(&job.id, Outcome::Failed(fault))
            }
            _ => self.server.broker.give_back(&job.id, !stopping),
        });
        self.tell(stored, &job);
    }
}
