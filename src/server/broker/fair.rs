//! The order of the queue: fair between owners, first come first served for each.
//!
//! Every owner has a virtual time, which grows by the cost of each of its jobs. The next job is one
//! of the owner with the least. An owner who comes back starts at the time of the others, so that
//! nobody saves up turns.

use std::collections::{HashMap, VecDeque};

use crate::server::job::Lane;

/// A queued job.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub id: String,
    pub owner: String,
    pub lane: Lane,
    /// The name of the model that it needs.
    pub model: String,
    pub cost: f64,
}

/// The queue of all owners.
#[derive(Debug, Clone, Default)]
pub struct FairQueue {
    owners: HashMap<String, VecDeque<Waiting>>,
    /// The virtual time of each owner with jobs, and of those who had some lately.
    times: HashMap<String, f64>,
    /// The virtual time of the job that was taken last.
    now: f64,
    /// Breaks ties: the order in which owners came.
    arrivals: HashMap<String, u64>,
    arrived: u64,
}

/// Owners without jobs that are remembered.
const MAX_IDLE: usize = 1024;

impl FairQueue {
    /// The number of queued jobs.
    pub fn len(&self) -> usize {
        self.owners.values().map(VecDeque::len).sum()
    }

    /// All jobs, in no order.
    #[cfg(feature = "nats")]
    pub fn jobs(&self) -> impl Iterator<Item = &Waiting> {
        self.owners.values().flatten()
    }

    /// Adds a job behind those of its owner.
    pub fn push(&mut self, job: Waiting) {
        self.enter(&job.owner);
        self.owners.entry(job.owner.clone()).or_default().push_back(job);
    }

    /// Puts a job that was taken in front of its owner's jobs, as if it had not been taken.
    pub fn push_front(&mut self, job: Waiting) {
        if !self.owners.contains_key(&job.owner) {
            self.enter(&job.owner);
            // Its turn had come: it is first among those with the same time.
            self.arrivals.insert(job.owner.clone(), 0);
        }
        if let Some(time) = self.times.get_mut(&job.owner) {
            *time -= job.cost;
        }
        self.owners.entry(job.owner.clone()).or_default().push_front(job);
    }

    fn enter(&mut self, owner: &str) {
        if !self.owners.contains_key(owner) {
            let time = self.times.entry(owner.to_string()).or_insert(self.now);
            *time = time.max(self.now);
            self.arrived += 1;
            self.arrivals.insert(owner.to_string(), self.arrived);
        }
    }

    /// The number of queued jobs of `owner`.
    pub fn len_of(&self, owner: &str) -> usize {
        self.owners.get(owner).map_or(0, VecDeque::len)
    }

    /// The next job among those that are `suitable`.
    pub fn peek(&self, suitable: impl Fn(&Waiting) -> bool) -> Option<&Waiting> {
        let owner = self.first(|queue| queue.iter().any(&suitable))?;
        self.owners.get(&owner)?.iter().find(|job| suitable(job))
    }

    /// Takes the next job.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.pop_in_turn(|_| true)
    }

    /// Takes the next job among those that are `suitable`: it is the turn of its owner.
    pub fn pop_in_turn(&mut self, suitable: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let owner = self.first(|queue| queue.iter().any(&suitable))?;
        self.now = self.times.get(&owner).copied().unwrap_or_default();
        self.pop_first(owner, suitable)
    }

    /// Takes the next job among those that are `suitable`, while it may be the turn of another.
    pub fn pop_early(&mut self, suitable: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let owner = self.first(|queue| queue.iter().any(&suitable))?;
        self.pop_first(owner, suitable)
    }

    fn pop_first(&mut self, owner: String, suitable: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let at = self.owners.get(&owner)?.iter().position(suitable)?;
        self.take(owner, at)
    }

    /// Takes the job with this id, as if it had been its turn: somebody else has decided that.
    #[cfg(feature = "nats")]
    pub fn pop_known(&mut self, id: &str) -> Option<Waiting> {
        self.pop_in_turn(|job| job.id == id)
    }

    /// The owner whose turn it is among those whose jobs are `suitable`.
    fn first(&self, suitable: impl Fn(&VecDeque<Waiting>) -> bool) -> Option<String> {
        let key = |owner: &String| {
            let time = self.times.get(owner).copied().unwrap_or_default();
            (time, self.arrivals.get(owner).copied().unwrap_or(0))
        };
        let owners = self.owners.iter().filter(|(_, queue)| suitable(queue)).map(|(o, _)| o);
        owners.min_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(a.cmp(b))).cloned()
    }

    /// Takes job number `at` of `owner`, and counts its cost.
    fn take(&mut self, owner: String, at: usize) -> Option<Waiting> {
        let queue = self.owners.get_mut(&owner)?;
        let job = queue.remove(at)?;
        if queue.is_empty() {
            self.owners.remove(&owner);
            self.arrivals.remove(&owner);
        }
        *self.times.entry(owner).or_default() += job.cost;
        if self.times.len() > MAX_IDLE + self.owners.len() {
            // Owners who are not ahead of the others would start at `now` anyway.
            let (now, owners) = (self.now, &self.owners);
            self.times.retain(|owner, time| owners.contains_key(owner) || *time > now);
        }
        Some(job)
    }

    /// Takes the job with this id out of the queue.
    pub fn remove(&mut self, id: &str) -> Option<Waiting> {
        let owner = self.owners.iter().find(|(_, q)| q.iter().any(|j| j.id == id))?.0.clone();
        let queue = self.owners.get_mut(&owner)?;
        let at = queue.iter().position(|j| j.id == id)?;
        let job = queue.remove(at);
        if queue.is_empty() {
            self.owners.remove(&owner);
            self.arrivals.remove(&owner);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(owner: &str, number: usize, cost: f64) -> Waiting {
        let id = format!("{owner}{number}");
        Waiting { id, owner: owner.into(), lane: Lane::Normal, model: "m".into(), cost }
    }

    fn order(queue: &mut FairQueue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop()).map(|j| j.id).collect()
    }

    #[test]
    fn a_greedy_owner_waits_for_the_others() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|n| queue.push(job("a", n, 1.0)));
        queue.push(job("b", 0, 1.0));
        queue.push(job("c", 0, 1.0));
        queue.push(job("b", 1, 1.0));
        assert_eq!(order(&mut queue)[..6], ["a0", "b0", "c0", "a1", "b1", "a2"]);
    }

    #[test]
    fn expensive_jobs_count_for_more_and_nobody_saves_up_turns() {
        let mut queue = FairQueue::default();
        (0..2).for_each(|n| queue.push(job("a", n, 4.0)));
        (0..8).for_each(|n| queue.push(job("b", n, 1.0)));
        let first = order(&mut queue);
        assert_eq!(first[..6], ["a0", "b0", "b1", "b2", "b3", "a1"], "{first:?}");
        // `c` was away meanwhile, and takes turns with `b` from now on.
        (0..3).for_each(|n| queue.push(job("b", n, 1.0)));
        (0..3).for_each(|n| queue.push(job("c", n, 1.0)));
        assert!(order(&mut queue)[..2].contains(&"c0".to_string()));
    }

    #[test]
    fn a_job_that_is_given_back_is_the_next_one_again() {
        let mut queue = FairQueue::default();
        (0..3).for_each(|n| queue.push(job("a", n, 2.0)));
        (0..3).for_each(|n| queue.push(job("b", n, 1.0)));
        let taken = queue.pop().unwrap();
        queue.push_front(taken.clone());
        assert_eq!(queue.pop(), Some(taken));
        queue.remove("b1").unwrap();
        assert_eq!((queue.remove("b1"), queue.len()), (None, 4));
        assert_eq!(order(&mut queue), ["b0", "b2", "a1", "a2"]);
    }
}
