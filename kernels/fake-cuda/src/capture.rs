//! Graph capture: work on a capturing stream becomes nodes of a graph. An event recorded on it
//! extends the capture to the streams that wait for the event.

use crate::driver::{Driver, Id};
use crate::settings::Kind;
use crate::status::*;
use crate::stream::{Node, Ticket, Work};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::ThreadId;

/// `CUstreamCaptureMode`: which threads must not make unsafe calls during the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub fn from(value: i32) -> Outcome<Mode> {
        match value {
            0 => Ok(Mode::Global),
            1 => Ok(Mode::ThreadLocal),
            2 => Ok(Mode::Relaxed),
            _ => Err(INVALID_VALUE),
        }
    }
}

thread_local! {
    /// The mode that `cuThreadExchangeStreamCaptureMode` sets.
    pub static THREAD_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

pub struct Capture {
    origin: Id,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    /// The last nodes of every stream in the capture.
    ends: BTreeMap<Id, BTreeSet<usize>>,
    pub invalid: bool,
}

/// The last recording of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    Never,
    Place(Ticket),
    Captured { capture: Id, nodes: BTreeSet<usize> },
}

impl Driver {
    pub fn begin_capture(&mut self, context: Id, stream: Id, mode: Mode) -> Outcome {
        if self.contexts[&context].legacy == stream {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if self.streams[&stream].capture.is_some() {
            return Err(ILLEGAL_STATE);
        }
        let id = self.new_id();
        let thread = std::thread::current().id();
        let ends = BTreeMap::from([(stream, BTreeSet::new())]);
        let capture =
            Capture { origin: stream, mode, thread, nodes: Vec::new(), ends, invalid: false };
        self.captures.insert(id, capture);
        self.streams.get_mut(&stream).expect("looked up above").capture = Some(id);
        Ok(())
    }

    /// Ends the capture that began on `stream` and returns its nodes.
    pub fn end_capture(&mut self, stream: Id) -> Outcome<Vec<Node>> {
        let id = self.streams[&stream].capture.ok_or(ILLEGAL_STATE)?;
        let capture = &self.captures[&id];
        if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
            return Err(CAPTURE_WRONG_THREAD);
        }
        if capture.origin != stream {
            return Err(CAPTURE_UNMATCHED);
        }
        let capture = self.captures.remove(&id).expect("a capturing stream has a capture");
        for s in self.streams.values_mut().filter(|s| s.capture == Some(id)) {
            s.capture = None;
        }
        if capture.invalid {
            return Err(CAPTURE_INVALIDATED);
        }
        // The end of the origin stream must depend on all nodes.
        let mut joined = vec![false; capture.nodes.len()];
        let mut open: Vec<usize> = capture.ends[&stream].iter().copied().collect();
        while let Some(n) = open.pop() {
            if !std::mem::replace(&mut joined[n], true) {
                open.extend(&capture.nodes[n].after);
            }
        }
        if capture.ends.values().flatten().any(|&n| !joined[n]) {
            return Err(CAPTURE_UNJOINED);
        }
        Ok(capture.nodes)
    }

    /// Queues `work` on a stream, or adds it as a node if the stream is capturing.
    pub fn submit(&mut self, stream: Id, work: Work) -> Outcome<Option<Ticket>> {
        let Some(id) = self.streams[&stream].capture else {
            self.guard_legacy(stream)?;
            let doomed = match work {
                Work::Copy { .. } => self.settings.strike(Kind::Copy),
                Work::Launch(_) | Work::Graph(_) => self.settings.strike(Kind::Launch),
                _ => None,
            };
            return Ok(Some(self.queue(stream, work, doomed.map(Code))));
        };
        let capture = self.captures.get_mut(&id).expect("a capturing stream has a capture");
        if capture.invalid {
            return Err(CAPTURE_INVALIDATED);
        }
        if let Work::Free(_) | Work::Graph(_) = work {
            capture.invalid = true;
            return Err(CAPTURE_UNSUPPORTED);
        }
        let ends = capture.ends.entry(stream).or_default();
        let after = std::mem::take(ends).into_iter().collect();
        ends.insert(capture.nodes.len());
        capture.nodes.push(Node { work, after });
        Ok(None)
    }

    /// The legacy stream may not be used while a stream that it waits for is capturing.
    fn guard_legacy(&mut self, stream: Id) -> Outcome {
        let context = self.streams[&stream].context;
        if self.contexts[&context].legacy != stream {
            return Ok(());
        }
        let waits =
            |s: &&crate::stream::Stream| s.blocking && s.context == context && s.capture.is_some();
        match self.streams.values().find(waits).and_then(|s| s.capture) {
            Some(capture) => self.invalidate(capture, CAPTURE_IMPLICIT),
            None => Ok(()),
        }
    }

    pub fn invalidate(&mut self, capture: Id, code: Code) -> Outcome {
        if let Some(c) = self.captures.get_mut(&capture) {
            c.invalid = true;
        }
        Err(code)
    }

    /// Refuses a call that could disturb a capture, according to the modes of the captures and of
    /// this thread, and invalidates these captures.
    pub fn forbid_capture(&mut self) -> Outcome {
        let (me, mine) = (std::thread::current().id(), THREAD_MODE.get());
        if mine == Mode::Relaxed {
            return Ok(());
        }
        let mut disturbed = false;
        for c in self.captures.values_mut() {
            let own = c.thread == me && c.mode != Mode::Relaxed;
            if own || (mine == Mode::Global && c.mode == Mode::Global) {
                c.invalid = true;
                disturbed = true;
            }
        }
        if disturbed { Err(CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses to wait on the host for a stream that is capturing, or while another capture must
    /// not be disturbed.
    pub fn forbid_waiting(&mut self, stream: Id) -> Outcome {
        match self.streams[&stream].capture {
            Some(capture) => self.invalidate(capture, CAPTURE_UNSUPPORTED),
            None => self.forbid_capture(),
        }
    }

    pub fn record(&mut self, event: Id, stream: Id) -> Outcome {
        let mark = match self.streams[&stream].capture {
            Some(id) => {
                let capture = &self.captures[&id];
                if capture.invalid {
                    return Err(CAPTURE_INVALIDATED);
                }
                Mark::Captured {
                    capture: id,
                    nodes: capture.ends.get(&stream).cloned().unwrap_or_default(),
                }
            }
            None => Mark::Place(self.submit(stream, Work::Mark(event))?.ok_or(UNKNOWN)?),
        };
        let e = self.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        (e.mark, e.polls) = (mark, 0);
        Ok(())
    }

    pub fn wait_event(&mut self, stream: Id, event: Id) -> Outcome {
        let own = self.streams[&stream].capture;
        match (self.events.get(&event).ok_or(INVALID_HANDLE)?.mark.clone(), own) {
            (Mark::Never, _) => Ok(()),
            (Mark::Place(_), Some(capture)) => self.invalidate(capture, CAPTURE_ISOLATION),
            (Mark::Place(ticket), None) => {
                // Nothing waits for what has happened, and a stream always waits for itself.
                if !self.reached(ticket) && ticket.stream != stream {
                    self.submit(stream, Work::Wait(ticket))?;
                }
                Ok(())
            }
            (Mark::Captured { capture, .. }, Some(own)) if capture != own => {
                self.invalidate(own, CAPTURE_MERGE)
            }
            (Mark::Captured { capture, nodes }, _) => {
                let c = self.captures.get_mut(&capture).ok_or(INVALID_VALUE)?;
                if c.invalid {
                    return Err(CAPTURE_INVALIDATED);
                }
                c.ends.entry(stream).or_default().extend(nodes);
                self.streams.get_mut(&stream).expect("looked up above").capture = Some(capture);
                Ok(())
            }
        }
    }

    /// Runs the nodes of a graph, which is one operation of its stream.
    pub fn run_graph(&mut self, context: Id, place: Ticket, nodes: &Arc<Vec<Node>>) -> Outcome {
        for node in self.graph_order(nodes) {
            self.run(context, place, &nodes[node].work)?;
        }
        Ok(())
    }
}
