//! Streams: queues whose operations run late, in a legal order that shows as many mistakes as
//! possible.
//!
//! A call only queues an operation. It runs when something must wait for it: a synchronisation, a
//! blocking copy, an event that was polled often enough, or another stream that has to run and
//! waits for it. All other operations do not run. So if a program forgets to wait, the operation
//! has not happened yet, and the program computes with poison instead of getting the right result
//! by luck.
//!
//! That is `Order::Late`; if several streams are ready, kernels run before copies. A late copy
//! hides the opposite mistake, overwriting data that a kernel still has to read. `Order::Early`
//! shows it: copies run as soon as the program allows, and kernels as late as before.
//! `Order::Random` chooses any legal order.

use crate::driver::{Driver, Id};
use crate::module::Launch;
use crate::settings::Order;
use crate::status::Code;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A position in a stream's queue: reached when everything up to it has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub stream: Id,
    pub number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToDevice,
    ToHost,
    OnDevice,
}

/// The source of a copy.
#[derive(Debug, Clone)]
pub enum Source {
    /// The memory as it is when the copy runs.
    Address(u64),
    /// The data at the time when the copy was queued.
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone)]
pub enum Work {
    Copy {
        direction: Direction,
        to: u64,
        from: Source,
        bytes: u64,
    },
    /// `count` elements of 1, 2 or 4 bytes.
    Fill {
        at: u64,
        value: u32,
        width: u64,
        count: u64,
    },
    Launch(Arc<Launch>),
    /// The recording of an event.
    Mark(Id),
    Wait(Ticket),
    /// A host function and its argument.
    Call {
        function: usize,
        data: usize,
    },
    Free(u64),
    Graph(Arc<Vec<Node>>),
}

impl Work {
    /// Whether it runs on the processors, not on a copy engine.
    pub fn computes(&self) -> bool {
        matches!(self, Work::Launch(_) | Work::Graph(_) | Work::Call { .. })
    }
}

/// An operation of a graph and the operations it depends on.
#[derive(Debug, Clone)]
pub struct Node {
    pub work: Work,
    pub after: Vec<usize>,
}

pub struct Job {
    number: u64,
    work: Work,
    /// An injected error.
    doomed: Option<Code>,
}

pub struct Stream {
    pub context: Id,
    /// Whether this stream and the legacy stream wait for each other.
    pub blocking: bool,
    /// For the log; the legacy stream is 0.
    pub number: u64,
    pub flags: u32,
    pub priority: i32,
    pub issued: u64,
    pub done: u64,
    pub capture: Option<Id>,
    /// How often the stream was polled.
    pub polls: u32,
    /// Destroyed, but not yet empty.
    pub closed: bool,
    queue: VecDeque<Job>,
}

impl Stream {
    pub fn new(context: Id, blocking: bool, number: u64) -> Stream {
        Stream {
            context,
            blocking,
            number,
            flags: u32::from(!blocking),
            priority: 0,
            issued: 0,
            done: 0,
            capture: None,
            polls: 0,
            closed: false,
            queue: VecDeque::new(),
        }
    }
}

/// The operation at the head of a queue.
enum Front {
    Empty,
    Held(Ticket),
    Ready,
}

/// Splitmix64, which is good enough for random orders.
pub fn shuffle(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Driver {
    pub fn reached(&self, ticket: Ticket) -> bool {
        self.streams.get(&ticket.stream).is_none_or(|s| s.done >= ticket.number)
    }

    /// Everything that has been queued on a stream so far.
    pub fn all_of(&self, stream: Id) -> Ticket {
        Ticket { stream, number: self.streams.get(&stream).map_or(0, |s| s.issued) }
    }

    /// Everything that has been queued in a context so far.
    pub fn all_in(&self, context: Id) -> Vec<Ticket> {
        let streams = self.streams.iter().filter(|(_, s)| s.context == context);
        streams.map(|(&stream, s)| Ticket { stream, number: s.issued }).collect()
    }

    /// Puts an operation at the end of a stream's queue.
    pub fn queue(&mut self, stream: Id, work: Work, doomed: Option<Code>) -> Ticket {
        for other in self.implied(stream) {
            self.push(stream, Work::Wait(other), None);
        }
        let ticket = self.push(stream, work, doomed);
        match self.settings.order {
            Order::Late => {}
            Order::Early => self.run_copies(),
            Order::Random(_) => self.run_some(),
            Order::Blocking => self.reach(&[ticket]),
        }
        ticket
    }

    /// Makes the legacy stream and all blocking streams of its context wait for each other.
    fn implied(&self, stream: Id) -> Vec<Ticket> {
        let Some(s) = self.streams.get(&stream) else { return Vec::new() };
        let Some(legacy) = self.contexts.get(&s.context).map(|c| c.legacy) else {
            return Vec::new();
        };
        let others: Vec<Id> = if stream == legacy {
            let blocking =
                self.streams.iter().filter(|(_, o)| o.blocking && o.context == s.context);
            blocking.map(|(&id, _)| id).filter(|&id| id != legacy).collect()
        } else if s.blocking {
            vec![legacy]
        } else {
            Vec::new()
        };
        others.into_iter().map(|o| self.all_of(o)).filter(|&t| !self.reached(t)).collect()
    }

    fn push(&mut self, stream: Id, work: Work, doomed: Option<Code>) -> Ticket {
        let s = self
            .streams
            .get_mut(&stream)
            .expect("streams are looked up before work is queued on them");
        s.issued += 1;
        s.polls = 0;
        let number = s.issued;
        s.queue.push_back(Job { number, work, doomed });
        Ticket { stream, number }
    }

    /// Runs operations until all `goals` are reached; in the late order, only those that are needed
    /// for that.
    pub fn reach(&mut self, goals: &[Ticket]) {
        let mut needed: BTreeMap<Id, u64> = BTreeMap::new();
        let need = |needed: &mut BTreeMap<Id, u64>, t: Ticket| {
            let known = needed.entry(t.stream).or_default();
            let more = t.number > *known;
            *known = t.number.max(*known);
            more
        };
        goals.iter().for_each(|&t| _ = need(&mut needed, t));
        loop {
            if self.settings.order == Order::Early {
                self.run_copies();
            }
            needed.retain(|&stream, &mut number| !self.reached(Ticket { stream, number }));
            let (mut ready, mut news) = (Vec::new(), false);
            for (stream, number) in needed.clone() {
                match self.front(stream) {
                    Front::Held(other) => news |= need(&mut needed, other),
                    Front::Ready if !self.reached(Ticket { stream, number }) => ready.push(stream),
                    // The queue may have contained only waits that are over.
                    Front::Ready | Front::Empty => news = true,
                }
            }
            if needed.is_empty() {
                return;
            }
            if news {
                continue;
            }
            if let Order::Random(_) = self.settings.order {
                ready = self.ready();
            }
            let next = self
                .choose(&ready)
                .expect("waits are for what was queued before, so something is ready");
            self.step(next);
        }
    }

    /// Removes waits that are over from the head of a queue and returns what comes next.
    fn front(&mut self, stream: Id) -> Front {
        loop {
            let Some(s) = self.streams.get(&stream) else { return Front::Empty };
            match s.queue.front() {
                None => return Front::Empty,
                Some(&Job { work: Work::Wait(other), number, .. }) => {
                    if !self.reached(other) {
                        return Front::Held(other);
                    }
                    self.streams.get_mut(&stream).map(|s| s.queue.pop_front());
                    self.finish(stream, number);
                }
                Some(_) => return Front::Ready,
            }
        }
    }

    fn finish(&mut self, stream: Id, number: u64) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        s.done = number;
        if s.closed && s.queue.is_empty() {
            self.streams.remove(&stream);
        }
    }

    fn ready(&mut self) -> Vec<Id> {
        let ids: Vec<Id> = self.streams.keys().copied().collect();
        ids.into_iter().filter(|&id| matches!(self.front(id), Front::Ready)).collect()
    }

    fn head(&self, stream: Id) -> Option<&Work> {
        self.streams.get(&stream)?.queue.front().map(|j| &j.work)
    }

    fn choose(&mut self, ready: &[Id]) -> Option<Id> {
        if let Order::Random(state) = &mut self.settings.order {
            return ready.get(shuffle(state) as usize % ready.len().max(1)).copied();
        }
        let rank = |id: Id| match self.head(id) {
            Some(Work::Mark(_)) => 0,
            Some(work) if work.computes() => 1,
            _ => 2,
        };
        // The newest stream, if there is a choice.
        ready.iter().copied().min_by_key(|&id| (rank(id), std::cmp::Reverse(id)))
    }

    /// Runs every copy that can run.
    fn run_copies(&mut self) {
        while let Some(next) =
            self.ready().into_iter().find(|&id| self.head(id).is_some_and(|w| !w.computes()))
        {
            self.step(next);
        }
    }

    /// Runs a few operations of any streams, or none.
    fn run_some(&mut self) {
        while let Order::Random(state) = &mut self.settings.order {
            if shuffle(state).is_multiple_of(2) {
                return;
            }
            let ready = self.ready();
            let Some(next) = self.choose(&ready) else { return };
            self.step(next);
        }
    }

    /// Runs the operation at the head of a queue. An error makes the context unusable, and all
    /// operations that are queued in it fail.
    fn step(&mut self, stream: Id) {
        let Some(s) = self.streams.get_mut(&stream) else { return };
        let (context, Some(job)) = (s.context, s.queue.pop_front()) else { return };
        let place = Ticket { stream, number: job.number };
        let outcome = match job.doomed {
            Some(code) => Err(code),
            None => self.run(context, place, &job.work),
        };
        self.finish(stream, job.number);
        if let Err(code) = outcome {
            self.fail(context, code);
        }
    }

    /// Makes a context unusable, as an error on the device does.
    pub fn fail(&mut self, context: Id, code: Code) {
        if let Some(c) = self.contexts.get_mut(&context) {
            c.failed.get_or_insert(code);
        }
        for s in self.streams.values_mut().filter(|s| s.context == context) {
            s.queue.clear();
            s.done = s.issued;
        }
        self.streams.retain(|_, s| !(s.closed && s.context == context));
    }

    /// The order in which the nodes of a graph run.
    pub fn graph_order(&mut self, nodes: &[Node]) -> Vec<usize> {
        let (mut order, mut done) = (Vec::new(), vec![false; nodes.len()]);
        while order.len() < nodes.len() {
            let free = |i: &usize| !done[*i] && nodes[*i].after.iter().all(|&a| done[a]);
            let ready: Vec<usize> = (0..nodes.len()).filter(free).collect();
            let next = match &mut self.settings.order {
                Order::Random(state) => ready[shuffle(state) as usize % ready.len()],
                Order::Blocking => ready[0],
                Order::Late => *ready
                    .iter()
                    .min_by_key(|&&i| (!nodes[i].work.computes(), !i))
                    .unwrap_or(&ready[0]),
                Order::Early => *ready
                    .iter()
                    .min_by_key(|&&i| (nodes[i].work.computes(), !i))
                    .unwrap_or(&ready[0]),
            };
            done[next] = true;
            order.push(next);
        }
        order
    }
}
