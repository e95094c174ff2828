//! What requests would cost, before they are sent. Only the worker knows: it has the model and the
//! device. While it draws, answers are those of before.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::access::Owner;
use super::fault::Fault;
use super::state::{Server, blocking};
use super::submit::Draft;
use crate::pipeline::request::Request;

/// The most questions that wait for the worker.
const MAX_WAITING: usize = 32;
/// The most answers that are remembered.
const MAX_KNOWN: usize = 256;
/// How long a client waits for the worker.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request whose cost is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanQuery {
    /// The request.
    pub request: Request,
    /// It has an image to start from.
    pub has_input: bool,
    /// The model to open: a path, or `None` for the default model.
    pub model: Option<String>,
}

/// A question that waits for the worker.
pub struct Question {
    /// What is asked.
    pub query: Box<PlanQuery>,
    /// Receives the plan, as JSON.
    pub answer: oneshot::Sender<Result<Value, Fault>>,
}

/// The questions that wait, and the answers that are known.
#[derive(Default)]
pub struct Plans {
    waiting: Mutex<VecDeque<Question>>,
    known: Mutex<HashMap<String, Value>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plans {
    /// The next question that somebody still waits for.
    pub fn next(&self) -> Option<Question> {
        let mut waiting = lock(&self.waiting);
        std::iter::from_fn(|| waiting.pop_front()).find(|question| !question.answer.is_closed())
    }

    /// Adds a question.
    ///
    /// # Errors
    /// 503 if too many wait.
    fn ask(&self, query: PlanQuery) -> Result<oneshot::Receiver<Result<Value, Fault>>, Fault> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        waiting.retain(|question| !question.answer.is_closed());
        if waiting.len() >= MAX_WAITING {
            return Err(busy());
        }
        waiting.push_back(Question { query: Box::new(query), answer });
        Ok(receiver)
    }

    fn known(&self, key: &str) -> Option<Value> {
        lock(&self.known).get(key).cloned()
    }

    fn remember(&self, key: String, plan: &Value) {
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, plan.clone());
    }
}

fn busy() -> Fault {
    Fault::new(503, "busy", "the cost is known once the running job is over").retry_after(2)
}

impl Server {
    /// What `draft` would cost, as JSON. A strength stands for an image to start from.
    ///
    /// # Errors
    /// 422, 404 and 403 for what cannot be drawn, 507 for what does not fit into memory, 503 while
    /// the worker draws and nothing is known of such a request.
    pub async fn plan(&self, draft: Draft, owner: &Owner) -> Result<Value, Fault> {
        let has_input = draft.input.is_some() || draft.request.strength.is_some();
        let model = blocking(|| self.check(&draft, owner, has_input))?;
        let mut request = draft.request;
        // The same for all seeds, and for all prompts with the same LoRAs.
        request.seed = None;
        let loras = request.prompt.loras().to_vec();
        request.loras.splice(0..0, loras);
        (request.prompt, request.negative) = ("".into(), request.negative.map(|_| String::new()));
        let query = PlanQuery { request, has_input, model: model.open };
        let key = serde_json::to_string(&query)
            .map_err(|e| Fault::internal(format!("the request cannot be written: {e}")))?;
        let known = self.plans.known(&key);
        if known.is_some() && blocking(|| self.broker.counts()).running > 0 {
            return known.ok_or_else(busy);
        }
        let answer = self.plans.ask(query)?;
        self.wake.notify_one();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(plan)) => {
                let plan = plan?;
                self.plans.remember(key, &plan);
                Ok(plan)
            }
            _ => known.ok_or_else(busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(steps: usize) -> PlanQuery {
        PlanQuery { request: Request::new("").steps(steps), has_input: false, model: None }
    }

    #[test]
    fn questions_are_bounded_and_those_of_clients_that_left_are_dropped() {
        let plans = Plans::default();
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
        let plans = Plans::default();
        for i in 0..=MAX_KNOWN {
            plans.remember(i.to_string(), &serde_json::json!(i));
        }
        assert_eq!(plans.known(&MAX_KNOWN.to_string()), Some(serde_json::json!(MAX_KNOWN)));
        assert_eq!(plans.known("0"), None);
    }
}
