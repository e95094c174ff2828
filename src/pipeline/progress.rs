//! Events of a generation, and the counting of its steps.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::event::{Event, Phase};

/// Receives the events of a generation; [`ControlFlow::Break`] cancels it.
pub type Listener<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

/// Passes `event` on; an error of [`Kind::Cancelled`](crate::error::Kind::Cancelled) if the
/// listener breaks.
pub fn send(on: Listener<'_>, event: Event) -> Result<()> {
    continued(on(event))
}

fn continued(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled("stopped")),
    }
}

/// Counts the steps of one phase and sends an event for each.
pub struct Progress<'a> {
    phase: Phase,
    steps: usize,
    done: usize,
    peak_bytes: u64,
    started: Instant,
    last: Instant,
    on: Listener<'a>,
}

impl<'a> Progress<'a> {
    /// Begins `phase`, which has `steps` steps and needs at most `peak_bytes` of device memory.
    pub fn start(phase: Phase, steps: usize, peak_bytes: u64, on: Listener<'a>) -> Result<Self> {
        send(on, Event::PhaseStart { phase, steps })?;
        let now = Instant::now();
        Ok(Progress { phase, steps, done: 0, peak_bytes, started: now, last: now, on })
    }

    /// Sends an event that is not a step: a note, a warning or a preview.
    pub fn note(&mut self, event: Event) -> Result<()> {
        send(self.on, event)
    }

    /// One operation is done, in a phase that counts operations.
    pub fn step(&mut self) -> ControlFlow<()> {
        self.done += 1;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        (self.on)(Event::Step { phase: self.phase, done: self.done, steps: self.steps, seconds })
    }

    /// One operation is done, in a phase that counts whole runs: only asks whether to go on.
    pub fn poll(&mut self) -> ControlFlow<()> {
        (self.on)(Event::Tick)
    }

    /// One run is done, in a phase that counts whole runs.
    pub fn advance(&mut self) -> Result<()> {
        continued(self.step())
    }

    /// The phase is over.
    pub fn end(self) -> Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        send(self.on, Event::PhaseEnd { phase: self.phase, seconds, peak_bytes: self.peak_bytes })
    }
}
