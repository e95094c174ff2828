//! Questions to the worker, between jobs, about what requests would cost; and answers that are
//! known.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::fault::Fault;
use crate::pipeline::request::Request;

/// The most questions that wait for the worker.
const MAX_WAITING: usize = 32;
/// The most answers that are remembered.
const MAX_KNOWN: usize = 256;

/// A request whose cost is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanQuery {
    /// The request.
    pub request: Request,
    /// Width and height of the image to start from.
    #[serde(default)]
    pub input_size: Option<(usize, usize)>,
    /// The part of it that is repainted: left, top, width and height in pixels.
    #[serde(default)]
    pub repainted: Option<[usize; 4]>,
    /// Width and height of the control image.
    #[serde(default)]
    pub control_size: Option<(usize, usize)>,
    /// How many style images it has. All become as many tokens.
    #[serde(default)]
    pub styles: usize,
    /// Width and height of its reference images.
    #[serde(default)]
    pub reference_sizes: Vec<(usize, usize)>,
    /// The model to open: a path, or `None` for the default model.
    pub model: Option<String>,
}

/// A question that waits for the worker.
pub struct Question {
    /// The request.
    pub query: Box<PlanQuery>,
    /// Receives the plan, as JSON.
    pub answer: oneshot::Sender<Result<Value, Fault>>,
}

/// The questions that wait, and the answers that are known.
#[derive(Default)]
pub struct Questions {
    waiting: Mutex<VecDeque<Question>>,
    known: Mutex<HashMap<String, Value>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Questions {
    /// The next question that somebody still waits for.
    pub fn next(&self) -> Option<Question> {
        let mut waiting = lock(&self.waiting);
        std::iter::from_fn(|| waiting.pop_front()).find(|question| !question.answer.is_closed())
    }

    /// Adds a question.
    ///
    /// # Errors
    /// 503 if too many wait.
    pub fn ask(&self, query: PlanQuery) -> Result<oneshot::Receiver<Result<Value, Fault>>, Fault> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        waiting.retain(|question| !question.answer.is_closed());
        if waiting.len() >= MAX_WAITING {
            return Err(busy());
        }
        waiting.push_back(Question { query: Box::new(query), answer });
        Ok(receiver)
    }

    /// The answer that is remembered for the request `key`.
    pub fn known(&self, key: &str) -> Option<Value> {
        lock(&self.known).get(key).cloned()
    }

    /// Remembers an answer.
    pub fn remember(&self, key: String, plan: &Value) {
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, plan.clone());
    }
}

/// The fault of a question that waits for too long.
pub fn busy() -> Fault {
    Fault::new(503, "busy", "the cost is known once the running job is over").retry_after(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(steps: usize) -> PlanQuery {
        let request = Request::new("").steps(steps);
        PlanQuery {
            request,
            input_size: None,
            repainted: None,
            control_size: None,
            styles: 0,
            reference_sizes: Vec::new(),
            model: None,
        }
    }

    #[test]
    fn questions_are_bounded_and_those_of_clients_that_left_are_dropped() {
        let plans = Questions::default();
        let mut receivers: Vec<_> =
            (0..MAX_WAITING).map(|i| plans.ask(query(i + 1)).unwrap()).collect();
        assert_eq!(plans.ask(query(1)).unwrap_err().status, 503);
        drop(receivers.remove(0));
        let last = plans.ask(query(99)).unwrap();
        assert_eq!(plans.next().unwrap().query.request.steps, Some(2));
        receivers.clear();
        assert_eq!(plans.next().unwrap().query.request.steps, Some(99));
        drop(last);
        assert!(plans.next().is_none());
    }

    #[test]
    fn few_answers_are_remembered() {
        let plans = Questions::default();
        for i in 0..=MAX_KNOWN {
            plans.remember(i.to_string(), &serde_json::json!(i));
        }
        assert_eq!(plans.known(&MAX_KNOWN.to_string()), Some(serde_json::json!(MAX_KNOWN)));
        assert_eq!(plans.known("0"), None);
    }
}
