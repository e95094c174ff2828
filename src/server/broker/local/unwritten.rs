//! Ends of jobs that could not be written because the disk is full, or away. Clients are told about
//! them all the same. They are written as soon as that is possible; if the process ends before, the
//! jobs run once more, as those whose process was killed.

use std::collections::HashMap;

use crate::server::job::{Job, Outcome};

/// How jobs ended, and when (seconds since 1970).
#[derive(Debug, Default)]
pub struct Unwritten(HashMap<String, (Outcome, f64)>);

impl Unwritten {
    /// Keeps the end of the job `id`.
    pub fn add(&mut self, id: &str, outcome: Outcome, at: f64) {
        self.0.insert(id.to_string(), (outcome, at));
    }

    /// The jobs whose ends are kept.
    pub fn ids(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The end of the job `id`.
    pub fn get(&self, id: &str) -> Option<(Outcome, f64)> {
        self.0.get(id).cloned()
    }

    /// The end of the job `id` was written.
    pub fn remove(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// Brings jobs as they were read up to date.
    pub fn apply(&self, jobs: &mut [Job]) {
        for job in jobs {
            let Some((outcome, at)) = self.0.get(&job.id).filter(|_| !job.state.is_final()) else {
                continue;
            };
            job.state = outcome.state();
            job.finished = Some(*at);
            match outcome {
                Outcome::Succeeded { outputs, settings } => {
                    (job.outputs, job.settings) = (outputs.clone(), Some(settings.clone()));
                }
                Outcome::Failed(fault) => job.fault = Some(fault.clone()),
                Outcome::Canceled => {}
            }
        }
    }
}
