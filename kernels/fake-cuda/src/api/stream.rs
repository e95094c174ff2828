//! Streams and events.

use crate::capture::{Mark, THREAD_MODE};
use crate::driver::{Driver, Event, Id, in_context, note, put};
use crate::status::*;
use crate::stream::{Ticket, Work};

fn create(to: *mut Id, flags: u32, priority: i32) -> i32 {
    in_context(|d, c| {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let id = d.new_stream(c, flags == 0)?;
        d.streams.get_mut(&id).ok_or(INVALID_HANDLE)?.priority = priority.clamp(-5, 0);
        put(to, id)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(to: *mut Id, flags: u32) -> i32 {
    create(to, flags, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut Id, flags: u32, priority: i32) -> i32 {
    create(to, flags, priority)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetPriority(stream: Id, to: *mut i32) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        put(to, d.streams[&stream].priority)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetFlags(stream: Id, to: *mut u32) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        put(to, d.streams[&stream].flags)
    })
}

/// Operations that are still queued run later.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamDestroy_v2(stream: Id) -> i32 {
    in_context(|d, c| {
        if stream <= 2 {
            return Err(INVALID_HANDLE);
        }
        let id = d.stream(c, stream)?;
        if d.streams[&id].capture.is_some() {
            return d.forbid_waiting(id);
        }
        let s = d.streams.get_mut(&id).ok_or(INVALID_HANDLE)?;
        s.closed = true;
        if s.done == s.issued {
            d.streams.remove(&id);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamSynchronize(stream: Id) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        note!(d, "sync stream={}", d.streams[&stream].number);
        d.forbid_waiting(stream)?;
        let mut goals = vec![d.all_of(stream)];
        if d.contexts[&c].legacy == stream {
            let blocking: Vec<Id> = d
                .streams
                .iter()
                .filter(|(_, s)| s.blocking && s.context == c)
                .map(|(&id, _)| id)
                .collect();
            goals.extend(blocking.into_iter().map(|id| d.all_of(id)));
        }
        d.reach(&goals);
        Ok(())
    })
}

/// Whether `ticket` is reached. After `polls` queries the operations up to it are run.
fn poll(d: &mut Driver, ticket: Ticket, polls: u32) -> Outcome {
    if !d.reached(ticket) && polls >= d.settings.polls {
        d.reach(&[ticket]);
    }
    if d.reached(ticket) { Ok(()) } else { Err(NOT_READY) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamQuery(stream: Id) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        d.forbid_waiting(stream)?;
        let s = d.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        s.polls += 1;
        let polls = s.polls;
        poll(d, d.all_of(stream), polls)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamWaitEvent(stream: Id, event: Id, flags: u32) -> i32 {
    in_context(|d, c| {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let stream = d.stream(c, stream)?;
        // It may belong to another context.
        let number = d.events.get(&event).ok_or(INVALID_HANDLE)?.number;
        note!(d, "wait event={number} stream={}", d.streams[&stream].number);
        d.wait_event(stream, event)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(stream: Id, function: usize, data: usize) -> i32 {
    in_context(|d, c| {
        if function == 0 {
            return Err(INVALID_VALUE);
        }
        let stream = d.stream(c, stream)?;
        d.submit(stream, Work::Call { function, data }).map(|_| ())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut i32) -> i32 {
    in_context(|_, _| {
        if mode.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: it is not null, and the callers of a C interface vouch for the pointers that they
        // pass.
        let new = crate::capture::Mode::from(unsafe { *mode })?;
        put(mode, THREAD_MODE.replace(new) as i32)
    })
}

/// Blocking waits, no timing, interprocess: the flags of events.
const NO_TIMING: u32 = 2;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(to: *mut Id, flags: u32) -> i32 {
    in_context(|d, c| {
        if flags > 3 {
            return Err(INVALID_VALUE);
        }
        let (id, number) = (d.new_id(), d.new_number());
        let event = Event { context: c, flags, mark: Mark::Never, passed: None, polls: 0, number };
        d.events.insert(id, event);
        put(to, id)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventDestroy_v2(event: Id) -> i32 {
    in_context(|d, c| {
        d.event(c, event)?;
        d.events.remove(&event);
        Ok(())
    })
}

fn record(event: Id, stream: Id) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        let number = d.event(c, event)?.number;
        note!(d, "record event={number} stream={}", d.streams[&stream].number);
        d.record(event, stream)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecord(event: Id, stream: Id) -> i32 {
    record(event, stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventRecordWithFlags(event: Id, stream: Id, flags: u32) -> i32 {
    if flags > 1 { INVALID_VALUE.0 } else { record(event, stream) }
}

/// The position that an event marks, if it was recorded outside a graph.
fn place(d: &mut Driver, c: Id, event: Id) -> Outcome<Option<Ticket>> {
    match d.event(c, event)?.mark {
        Mark::Never => Ok(None),
        Mark::Place(ticket) => {
            d.forbid_capture()?;
            Ok(Some(ticket))
        }
        Mark::Captured { capture, .. } => d.invalidate(capture, CAPTURED_EVENT).map(|()| None),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventQuery(event: Id) -> i32 {
    in_context(|d, c| {
        let Some(ticket) = place(d, c, event)? else { return Ok(()) };
        let e = d.event(c, event)?;
        e.polls += 1;
        let polls = e.polls;
        poll(d, ticket, polls)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventSynchronize(event: Id) -> i32 {
    in_context(|d, c| {
        let number = d.event(c, event)?.number;
        note!(d, "sync event={number}");
        if let Some(ticket) = place(d, c, event)? {
            d.reach(&[ticket]);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(to: *mut f32, from: Id, until: Id) -> i32 {
    in_context(|d, c| {
        let mut time = |event: Id| {
            let e = d.event(c, event)?;
            match (&e.mark, e.passed) {
                _ if e.flags & NO_TIMING != 0 => Err(INVALID_HANDLE),
                (Mark::Place(ticket), Some((passed, at))) if *ticket == passed => Ok(at),
                (Mark::Place(_), _) => Err(NOT_READY),
                _ => Err(INVALID_HANDLE),
            }
        };
        let (from, until) = (time(from)?, time(until)?);
        let seconds = |a: std::time::Instant, b: std::time::Instant| {
            b.saturating_duration_since(a).as_secs_f32()
        };
        put(to, 1e3 * (seconds(from, until) - seconds(until, from)))
    })
}
