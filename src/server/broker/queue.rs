//! The queued jobs of one machine: two lanes, each in the fair order, and a preference for the
//! model that is in memory.

use std::collections::HashMap;

use super::Place;
use super::fair::{FairQueue, Waiting};
use crate::server::clock::SECOND;
use crate::server::job::Lane;

/// How many jobs for the model in memory may be taken while it is the turn of another.
const MAX_PASSED: usize = 5;
/// For how long, in nanoseconds.
const MAX_PASSING: i64 = 60 * SECOND;

/// The jobs that a worker has taken out of turn.
#[derive(Debug, Clone, Default)]
pub struct Passing {
    /// How many, since a job of another model was taken.
    passed: usize,
    /// When the first of them was taken, in nanoseconds.
    since: Option<i64>,
}

/// The queue.
#[derive(Debug, Default)]
pub struct JobQueue {
    normal: FairQueue,
    low: FairQueue,
    passing: Passing,
    /// The places of all jobs, until the queue changes.
    places: Option<HashMap<String, Place>>,
}

impl JobQueue {
    /// The number of jobs.
    pub fn len(&self) -> usize {
        self.normal.len() + self.low.len()
    }

    /// The number of jobs of `owner`.
    pub fn len_of(&self, owner: &str) -> usize {
        self.normal.len_of(owner) + self.low.len_of(owner)
    }

    fn lane(&mut self, lane: Lane) -> &mut FairQueue {
        self.places = None;
        match lane {
            Lane::Normal => &mut self.normal,
            Lane::Low => &mut self.low,
        }
    }

    /// Adds a job behind those of its owner.
    pub fn push(&mut self, job: Waiting) {
        self.lane(job.lane).push(job);
    }

    /// Puts a job that was taken back, as if it had not been taken.
    pub fn push_front(&mut self, job: Waiting) {
        self.lane(job.lane).push_front(job);
    }

    /// Takes the next job when the model `held` is in memory, at `now` in nanoseconds.
    pub fn pop(&mut self, held: Option<&str>, now: i64) -> Option<Waiting> {
        let mut passing = std::mem::take(&mut self.passing);
        let job = self.pop_for(held, &mut passing, now, |_| true);
        self.passing = passing;
        job
    }

    /// Takes the next job among those that are `suitable` for a worker that holds the model `held`
    /// and has taken jobs out of turn as `passing` says.
    pub fn pop_for(
        &mut self,
        held: Option<&str>,
        passing: &mut Passing,
        now: i64,
        suitable: impl Fn(&Waiting) -> bool,
    ) -> Option<Waiting> {
        let may_pass = passing.passed < MAX_PASSED
            && passing.since.is_none_or(|since| now - since < MAX_PASSING);
        for lane in [Lane::Normal, Lane::Low] {
            let queue = self.lane(lane);
            let Some(next) = queue.peek(&suitable) else { continue };
            let is_held = held == Some(next.model.as_str());
            if let Some(model) = held.filter(|_| !is_held && may_pass)
                && let Some(job) = queue.pop_early(|job| job.model == model && suitable(job))
            {
                passing.passed += 1;
                passing.since.get_or_insert(now);
                return Some(job);
            }
            let job = queue.pop_in_turn(&suitable);
            if !is_held {
                *passing = Passing::default();
            }
            return job;
        }
        None
    }

    /// Takes the job with this id, which somebody else has decided to be the next one.
    #[cfg(feature = "nats")]
    pub fn pop_known(&mut self, id: &str) -> Option<Waiting> {
        self.places = None;
        self.normal.pop_known(id).or_else(|| self.low.pop_known(id))
    }

    /// The next job that is `suitable`.
    #[cfg(feature = "nats")]
    pub fn find(&self, suitable: impl Fn(&Waiting) -> bool) -> Option<&Waiting> {
        self.normal.peek(&suitable).or_else(|| self.low.peek(&suitable))
    }

    /// Calls `f` with all jobs, in no order.
    #[cfg(feature = "nats")]
    pub fn for_each(&self, mut f: impl FnMut(&Waiting)) {
        self.normal.jobs().chain(self.low.jobs()).for_each(&mut f);
    }

    /// Takes the job with this id out of the queue.
    pub fn remove(&mut self, id: &str) -> Option<Waiting> {
        self.places = None;
        self.normal.remove(id).or_else(|| self.low.remove(id))
    }

    /// The place of a job in the fair order.
    pub fn place(&mut self, id: &str) -> Option<Place> {
        let (normal, low) = (&self.normal, &self.low);
        let places = self.places.get_or_insert_with(|| {
            let (mut normal, mut low) = (normal.clone(), low.clone());
            let mut seconds_ahead = 0.0;
            let order = std::iter::from_fn(|| normal.pop().or_else(|| low.pop()));
            let places = order.enumerate().map(|(position, job)| {
                let place = Place { position, seconds_ahead };
                seconds_ahead += job.cost;
                (job.id, place)
            });
            places.collect()
        });
        places.get(id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, owner: &str, model: &str, lane: Lane) -> Waiting {
        Waiting { id: id.into(), owner: owner.into(), lane, model: model.into(), cost: 2.0 }
    }

    #[test]
    fn the_model_in_memory_goes_first_within_bounds() {
        let mut queue = JobQueue::default();
        for n in 0..20 {
            queue.push(job(&format!("x{n}"), "x", "held", Lane::Normal));
        }
        queue.push(job("y", "y", "other", Lane::Normal));
        let mut order = Vec::new();
        while let Some(job) = queue.pop(Some("held"), 0) {
            order.push(job.id);
        }
        // x0 has its turn; five more pass; then the other model.
        assert_eq!(order.iter().position(|id| id == "y"), Some(6), "{order:?}");

        // By time: the third passes too late.
        let mut queue = JobQueue::default();
        for n in 0..20 {
            queue.push(job(&format!("x{n}"), "x", "held", Lane::Normal));
        }
        queue.push(job("y", "y", "other", Lane::Normal));
        let order: Vec<String> =
            (0..5).map(|n| queue.pop(Some("held"), n * 40 * SECOND).unwrap().id).collect();
        assert_eq!(order, ["x0", "x1", "x2", "y", "x3"]);

        // Within one owner's jobs, too; without a model in memory it is first come, first served.
        let mut queue = JobQueue::default();
        queue.push(job("a", "x", "one", Lane::Normal));
        queue.push(job("b", "x", "two", Lane::Normal));
        assert_eq!(queue.pop(Some("two"), 0).unwrap().id, "b");
        queue.push(job("c", "x", "two", Lane::Normal));
        assert_eq!(queue.pop(None, 0).unwrap().id, "a");
    }

    #[test]
    fn the_low_lane_waits_for_the_other_and_places_are_true() {
        let mut queue = JobQueue::default();
        queue.push(job("low", "x", "m", Lane::Low));
        queue.push(job("a", "x", "m", Lane::Normal));
        queue.push(job("b", "y", "m", Lane::Normal));
        assert_eq!((queue.len(), queue.len_of("x")), (3, 2));
        let place = |position, seconds_ahead| Some(Place { position, seconds_ahead });
        assert_eq!(queue.place("low"), place(2, 4.0));
        assert_eq!(queue.place("b"), place(1, 2.0));
        let taken = queue.pop(Some("m"), 0).unwrap();
        assert_eq!(taken.id, "a");
        assert_eq!(queue.place("low"), place(1, 2.0));
        queue.push_front(taken);
        assert_eq!(queue.place("a"), place(0, 0.0));
        queue.remove("a").unwrap();
        assert_eq!(queue.place("a"), None);
        assert_eq!(queue.pop(None, 0).unwrap().id, "b");
        assert_eq!(queue.pop(None, 0).unwrap().id, "low");
        assert_eq!(queue.pop(None, 0), None);
    }
}
