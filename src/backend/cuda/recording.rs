//! Runs that are recorded as CUDA graphs and replayed.
//!
//! Launching costs some microseconds for each kernel. Short runs spend much of their time with it,
//! so a run that is alike every time (each weight has a place of its own) and short is recorded the
//! second time and replayed from then on. A replayed run cannot be cancelled in the middle.

use std::sync::Arc;

use super::driver::{Context, Event, Graph, Stream};
use crate::backend::Run;
use crate::error::Result;

/// The recorded run of a backend, and the run that is being recorded.
pub(super) struct Recorder {
    context: Arc<Context>,
    /// The recorded run, with its number.
    graph: Option<(u64, Graph)>,
    /// The number of the run that is being recorded.
    recording: Option<u64>,
    /// False once recording has failed.
    enabled: bool,
    /// Runs that took the GPU less than this many seconds are recorded.
    below_seconds: f64,
    /// Begin and end of the last run that was not replayed.
    timed: (Option<Event>, Option<Event>),
}

/// How a run is executed.
pub(super) enum Decision {
    /// It was replayed as a whole.
    Replayed,
    /// It is worth recording: once the stream waits for nothing else, call [`Recorder::start`].
    Record,
    /// Its steps are queued as usual.
    Queue,
}

impl Recorder {
    /// Records runs that take less than `below_seconds`.
    pub fn new(context: &Arc<Context>, below_seconds: f64) -> Recorder {
        Recorder {
            context: context.clone(),
            graph: None,
            recording: None,
            enabled: true,
            below_seconds,
            timed: (None, None),
        }
    }

    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Drops the recorded run: memory that it uses is given up.
    pub fn drop_graph(&mut self) {
        self.graph = None;
    }

    /// Stops recording and drops what was recorded: a call follows that cannot be part of a graph.
    pub fn stop(&mut self, stream: &Stream) {
        if self.recording.take().is_some() {
            stream.discard_capture();
        }
    }

    /// Decides about `run`, and replays it if it is the recorded one.
    pub fn decide(&mut self, run: Run, stream: &Stream) -> Result<Decision> {
        if let Some((recorded, graph)) = &self.graph
            && *recorded == run.id
        {
            // SAFETY: `reserve` and `forget` drop the graph before the memory that it uses is
            // freed.
            unsafe { stream.replay(graph) }?;
            return Ok(Decision::Replayed);
        }
        // The first run brings the weights; what waits for another stream cannot be recorded.
        Ok(if run.done >= 1 && self.was_short() { Decision::Record } else { Decision::Queue })
    }

    /// Starts recording the run `id`, if the driver can.
    pub fn start(&mut self, id: u64, stream: &Stream) -> Result<()> {
        self.graph = None;
        match stream.begin_capture() {
            Ok(()) => self.recording = Some(id),
            Err(_) if self.context.health.alive().is_ok() => self.enabled = false,
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The steps of a run follow. Takes the time unless they are recorded.
    pub fn begin(&mut self, stream: &Stream) {
        let begin = if self.recording.is_none() { self.mark(stream) } else { None };
        self.timed = (begin, None);
    }

    /// The steps of a run were queued or recorded. False if they were recorded but the graph cannot
    /// run: then the steps must be queued again.
    pub fn end(&mut self, stream: &Stream) -> Result<bool> {
        let Some(id) = self.recording.take() else {
            if self.timed.0.is_some() {
                self.timed.1 = self.mark(stream);
            }
            return Ok(true);
        };
        // SAFETY: as in `decide`.
        let replayed = stream.end_capture().and_then(|g| unsafe { stream.replay(&g) }.map(|()| g));
        match replayed {
            Ok(graph) => {
                self.graph = Some((id, graph));
                Ok(true)
            }
            // No memory for a graph, or a driver that cannot record this.
            Err(_) if self.context.health.alive().is_ok() => {
                self.enabled = false;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// A point in the stream, for timing; none if that fails, as timing is optional.
    fn mark(&self, stream: &Stream) -> Option<Event> {
        let event = Event::new(&self.context, true).ok()?;
        event.record(stream).ok()?;
        Some(event)
    }

    /// Whether the last run was so short that launching its kernels costs.
    fn was_short(&self) -> bool {
        let (Some(begin), Some(end)) = &self.timed else { return false };
        let seconds = end.synchronize().and_then(|()| end.seconds_since(begin));
        self.enabled && seconds.is_ok_and(|s| s < self.below_seconds)
    }
}
