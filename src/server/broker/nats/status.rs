//! How a cluster is, for people and scripts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::connect::Buckets;
use super::hub::{Hub, lock};
use crate::error::Result;
use crate::server::broker::WorkerFacts;
use crate::server::options::ClusterOptions;

/// How long workers are listened to: every one says something each second.
const LISTENING: Duration = Duration::from_millis(2500);

/// The workers of a cluster with what they hold and draw, and the queue of each model, as JSON.
///
/// # Errors
/// Those of a broker that cannot be reached, and of one that no front and no worker has used.
pub async fn cluster_status(options: &ClusterOptions) -> Result<Value> {
    let since = Instant::now();
    let (hub, _news) = Hub::join(options, Buckets::Read).await?;
    tokio::time::sleep(LISTENING.saturating_sub(since.elapsed())).await;
    let live = hub.sorted();
    let (counts, mut queued) = {
        let mirror = lock(&hub.mirror);
        (mirror.counts(), mirror.queued_per_model())
    };
    let holds = |model: &str| live.iter().filter(|w| w.held.as_deref() == Some(model)).count();
    // Models that workers hold and nobody waits for, too.
    for model in live.iter().filter_map(|worker| worker.held.clone()) {
        queued.entry(model).or_default();
    }
    let mut models: Vec<_> = queued.into_iter().collect();
    models.sort_by(|a, b| a.0.cmp(&b.0));
    let models: Vec<Value> = models
        .into_iter()
        .map(|(model, (count, seconds))| {
            let workers = holds(&model);
            json!({"model": model, "queued": count, "seconds": seconds, "workers": workers})
        })
        .collect();
    let worker = |worker: &Arc<WorkerFacts>| {
        let names = |list: &[crate::server::models::Listed]| {
            list.iter().map(|item| item.name.clone()).collect::<Vec<_>>()
        };
        json!({
            "id": worker.id, "host": worker.host, "ready": worker.ready, "held": worker.held,
            "jobs": worker.jobs, "busy_for": worker.busy_for, "drawn": worker.drawn,
            "vram": worker.vram, "models": names(&worker.models), "loras": names(&worker.loras),
            "controlnets": names(&worker.controlnets), "left_out": worker.left_out,
        })
    };
    Ok(json!({
        "broker": options.shown_broker(),
        "queued": counts.queued,
        "running": counts.running,
        "models": models,
        "workers": live.iter().map(worker).collect::<Vec<_>>(),
    }))
}
