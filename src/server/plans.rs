//! Memory and time of requests that are not sent yet. Only the worker can tell: it has the model
//! and the device. While it draws, earlier answers are given again.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::access::Owner;
use super::draft::Draft;
use super::fault::Fault;
use super::questions::{PlanQuery, busy};
use super::state::{Server, blocking};

/// How long a client waits for the worker.
const PATIENCE: Duration = Duration::from_secs(5);

impl Server {
    /// Memory and time of `draft`, as JSON. A strength stands for an image to start from.
    ///
    /// # Errors
    /// 422, 404 and 403 for what cannot be drawn, 507 for what does not fit into memory, 503 while
    /// the worker draws and nothing is known of such a request.
    pub async fn plan(&self, draft: Draft, owner: &Owner) -> Result<Value, Fault> {
        let mut draft = draft;
        let model = blocking(|| {
            draft.measure()?;
            if draft.request.strength.is_some() {
                draft.input_size.get_or_insert((1, 1));
            }
            self.check(&draft, owner)
        })?;
        let Draft { mut request, input_size, mask, control_size, reference_sizes, .. } = draft;
        let styles = draft.style_count;
        let repainted = mask.and_then(|mask| mask.repainted);
        let repainted = repainted.map(|part| [part.x, part.y, part.width, part.height]);
        // The same for all seeds, and for all prompts with the same LoRAs.
        request.seed = None;
        let loras = request.prompt.loras().to_vec();
        request.loras.splice(0..0, loras);
        (request.prompt, request.negative) = ("".into(), request.negative.map(|_| String::new()));
        let model = model.open;
        let query = PlanQuery {
            request,
            input_size,
            repainted,
            control_size,
            styles,
            reference_sizes,
            model,
        };
        let key = serde_json::to_string(&query)
            .map_err(|e| Fault::internal(format!("the request cannot be written: {e}")))?;
        let known = self.questions.known(&key);
        if known.is_some() && self.broker.counts().running > 0 {
            return known.ok_or_else(busy);
        }
        let answer = self.questions.ask(query)?;
        self.wake.notify_one();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(plan)) => {
                let plan = plan?;
                self.questions.remember(key, &plan);
                Ok(plan)
            }
            _ => known.ok_or_else(busy),
        }
    }
}
