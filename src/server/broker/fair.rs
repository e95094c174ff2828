//! The order of the queue: fair between owners, first come first served for each.
//!
//! Every owner has a virtual time, which grows by the cost of each of its jobs. The next job is one
//! of the owner with the least. An owner who comes back starts at the time of the others, so that
//! nobody saves up turns.

use std::collections::{HashMap, VecDeque};

/// A queued job.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub id: String,
    pub owner: String,
    pub cost: f64,
}

/// The queue of all owners.
#[derive(Debug, Default)]
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

    /// Adds a job behind those of its owner.
    pub fn push(&mut self, job: Waiting) {
        self.enter(&job.owner);
        self.owners.entry(job.owner.clone()).or_default().push_back(job);
    }

    /// Puts a job that was taken in front of its owner's jobs, as if it had not been taken.
    pub fn push_front(&mut self, job: Waiting) {
        self.enter(&job.owner);
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

    /// Takes the next job.
    pub fn pop(&mut self) -> Option<Waiting> {
        let owner = first(&self.owners, &self.times, &self.arrivals)?;
        let queue = self.owners.get_mut(&owner)?;
        let job = queue.pop_front()?;
        if queue.is_empty() {
            self.owners.remove(&owner);
            self.arrivals.remove(&owner);
        }
        let time = self.times.entry(owner).or_default();
        self.now = *time;
        *time += job.cost;
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

    /// How many jobs will be taken before the one with this id, if none is added.
    pub fn position(&self, id: &str) -> Option<usize> {
        let mut owners: HashMap<String, VecDeque<&Waiting>> =
            self.owners.iter().map(|(o, q)| (o.clone(), q.iter().collect())).collect();
        let mut times = self.times.clone();
        for place in 0.. {
            let owner = first(&owners, &times, &self.arrivals)?;
            let queue = owners.get_mut(&owner)?;
            let job = queue.pop_front()?;
            if job.id == id {
                return Some(place);
            }
            if queue.is_empty() {
                owners.remove(&owner);
            }
            *times.entry(owner).or_default() += job.cost;
        }
        None
    }
}

/// The owner whose turn it is.
fn first<T>(
    owners: &HashMap<String, T>,
    times: &HashMap<String, f64>,
    arrivals: &HashMap<String, u64>,
) -> Option<String> {
    let key = |owner: &String| {
        (times.get(owner).copied().unwrap_or_default(), arrivals.get(owner).copied().unwrap_or(0))
    };
    owners.keys().min_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(a.cmp(b))).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(owner: &str, number: usize, cost: f64) -> Waiting {
        Waiting { id: format!("{owner}{number}"), owner: owner.into(), cost }
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
        assert_eq!(queue.position("b1"), Some(4));
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
    fn a_job_that_is_given_back_is_the_next_one_again_and_places_are_true() {
        let mut queue = FairQueue::default();
        (0..3).for_each(|n| queue.push(job("a", n, 2.0)));
        (0..3).for_each(|n| queue.push(job("b", n, 1.0)));
        let taken = queue.pop().unwrap();
        queue.push_front(taken.clone());
        assert_eq!(queue.pop(), Some(taken));
        queue.remove("b1").unwrap();
        assert_eq!((queue.remove("b1"), queue.len()), (None, 4));
        let places: Vec<_> =
            ["a1", "a2", "b0", "b2"].iter().map(|id| queue.position(id).unwrap()).collect();
        let order = order(&mut queue);
        for (id, place) in ["a1", "a2", "b0", "b2"].iter().zip(places) {
            assert_eq!(order[place], *id);
        }
    }
}
