//! Queue and history.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};

use super::prompts::{Id, find, is_of_here, outputs, prompt_id};
use crate::server::access::Owner;
use crate::server::api::shared::sentence;
use crate::server::body::Whole;
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState};
use crate::server::state::{Server, blocking};
use crate::server::wait::succeeded;

/// The most entries of one history.
const MAX_LISTED: usize = 200;

/// The jobs of `owner` through this API that wait or run.
pub fn active(server: &Server, owner: &Owner) -> Result<Vec<Job>, Fault> {
    let mut jobs = blocking(|| server.broker.active(&owner.0))?;
    jobs.retain(is_of_here);
    Ok(jobs)
}

/// How many jobs wait or run, for the caller.
pub async fn remaining(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Result<Json<Value>, Fault> {
    let count = active(&server, &owner)?.len();
    Ok(Json(json!({"exec_info": {"queue_remaining": count}})))
}

/// A job as the queue and the history have it.
fn entry(job: &Job) -> Value {
    let echo = job.spec.as_ref().map(|spec| spec.echo.clone()).unwrap_or_default();
    let nodes = echo["outputs"].as_array().into_iter().flatten();
    let nodes: Vec<&Value> = nodes.map(|node| &node[0]).collect();
    json!([echo["number"], prompt_id(job), echo["graph"], echo["extra"], nodes])
}

pub async fn queue(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Result<Json<Value>, Fault> {
    let (pending, running): (Vec<Job>, Vec<Job>) =
        active(&server, &owner)?.into_iter().partition(|job| job.state == JobState::Queued);
    let entries = |jobs: &[Job]| jobs.iter().map(entry).collect::<Vec<_>>();
    Ok(Json(json!({"queue_running": entries(&running), "queue_pending": entries(&pending)})))
}

/// Takes jobs of the caller out of the queue: those of `delete`, or all with `clear`.
pub async fn change_queue(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let mut jobs = Vec::new();
    if fields.flag("clear")? {
        jobs = active(&server, &owner)?;
    }
    for id in body["delete"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        jobs.extend(find(&server, &owner, id).ok());
    }
    for job in jobs.iter().filter(|job| job.state == JobState::Queued) {
        server.cancel(&job.id, &owner.0).await?;
    }
    Ok(Json(json!({})))
}

/// Stops the caller's running job, or the one with the given id.
pub async fn interrupt(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let jobs = match fields.text("prompt_id")? {
        Some(id) => find(&server, &owner, id).into_iter().collect(),
        None => active(&server, &owner)?,
    };
    for job in jobs.iter().filter(|job| job.state == JobState::Running) {
        server.cancel(&job.id, &owner.0).await?;
    }
    Ok(Json(json!({})))
}

/// An entry of the history; `None` while the job is not over.
fn past(job: &Job) -> Option<Value> {
    if !job.state.is_final() {
        return None;
    }
    let id = prompt_id(job);
    let time = |at: Option<f64>| at.map(|at| (at * 1000.0) as u64);
    let mut messages = vec![
        json!(["execution_start", {"prompt_id": id, "timestamp": time(job.started)}]),
        json!(["execution_cached", {"nodes": [], "prompt_id": id, "timestamp": time(job.started)}]),
    ];
    let notes = job.spec.as_ref().map(|spec| spec.echo["notes"].clone()).unwrap_or_default();
    for note in notes.as_array().into_iter().flatten() {
        messages.push(json!(["note", {"prompt_id": id, "message": note}]));
    }
    let (word, end) = match succeeded(job) {
        Ok(_) => (
            "success",
            json!(["execution_success", {"prompt_id": id,
            "timestamp": time(job.finished)}]),
        ),
        Err(_) if job.state == JobState::Canceled => {
            ("error", json!(["execution_interrupted", interrupted(job)]))
        }
        Err(fault) => ("error", json!(["execution_error", failed(job, &fault)])),
    };
    messages.push(end);
    Some(json!({
        "prompt": entry(job),
        "outputs": outputs(job),
        "status": {"status_str": word, "completed": word == "success", "messages": messages},
        "meta": {},
    }))
}

/// The data of `execution_interrupted`.
pub fn interrupted(job: &Job) -> Value {
    let (id, class) = sampler(job);
    json!({"prompt_id": prompt_id(job), "node_id": id, "node_type": class, "executed": []})
}

/// The data of `execution_error`.
pub fn failed(job: &Job, fault: &Fault) -> Value {
    let (id, class) = sampler(job);
    json!({
        "prompt_id": prompt_id(job), "node_id": id, "node_type": class, "executed": [],
        "exception_message": sentence(fault), "exception_type": fault.code, "traceback": [],
        "current_inputs": {}, "current_outputs": [],
    })
}

fn sampler(job: &Job) -> (Value, Value) {
    let Some(spec) = &job.spec else { return (Value::Null, Value::Null) };
    let id = &spec.echo["sampler_node"];
    let class = id.as_str().map(|id| spec.echo["graph"][id]["class_type"].clone());
    (id.clone(), class.unwrap_or_default())
}

pub async fn history(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Fault> {
    let limit = query.get("max_items").and_then(|n| n.parse().ok()).unwrap_or(MAX_LISTED);
    let jobs = blocking(|| server.broker.list(&owner.0, MAX_LISTED))?;
    let own = jobs.iter().filter(|job| is_of_here(job));
    let own = own.filter_map(|job| Some((prompt_id(job), past(job)?)));
    // The oldest first, as clients expect of the order in the object.
    let newest: Vec<(String, Value)> = own.take(limit).collect();
    Ok(Json(newest.into_iter().rev().collect::<Map<_, _>>().into()))
}

/// Forgets jobs of the caller that are over, with their images: those of `delete`, or all with
/// `clear`.
pub async fn change_history(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let mut jobs = match fields.flag("clear")? {
        true => blocking(|| server.broker.list(&owner.0, usize::MAX >> 1))?,
        false => Vec::new(),
    };
    jobs.retain(is_of_here);
    for id in body["delete"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        jobs.extend(find(&server, &owner, id).ok());
    }
    for job in jobs.iter().filter(|job| job.state.is_final()) {
        let _turn = server.turn().await;
        if blocking(|| server.broker.forget(&job.id, &owner.0))? {
            blocking(|| server.data.delete(&job.id));
        }
    }
    Ok(Json(json!({})))
}

/// An empty object while the job is not over, and for unknown ids, as in ComfyUI: clients poll it.
pub async fn history_of(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Id,
) -> Json<Value> {
    let past = find(&server, &owner, &id).ok().as_ref().and_then(past);
    Json(past.map_or(json!({}), |past| json!({id: past})))
}

/// A job in the form of `/api/jobs`.
fn object(job: &Job, whole: bool) -> Value {
    let status = match job.state {
        JobState::Queued => "pending",
        JobState::Running | JobState::Canceling => "in_progress",
        JobState::Succeeded | JobState::Expired => "completed",
        JobState::Failed => "failed",
        JobState::Canceled => "cancelled",
    };
    let time = |at: Option<f64>| at.map(|at| (at * 1000.0) as u64);
    let outputs = outputs(job);
    let first = outputs.iter().find_map(|(node, output)| {
        let mut image = output["images"].get(0)?.clone();
        image["nodeId"] = json!(node);
        image["mediaType"] = json!("images");
        Some(image)
    });
    let echo = job.spec.as_ref().map(|spec| spec.echo.clone()).unwrap_or_default();
    let mut object = json!({
        "id": prompt_id(job), "status": status, "priority": echo["number"],
        "create_time": time(Some(job.created)), "execution_start_time": time(job.started),
        "execution_end_time": time(job.finished), "outputs_count": job.outputs.len(),
        "preview_output": first, "workflow_id": null,
        "execution_error": job.fault.as_ref().map(|fault| failed(job, fault)),
    });
    if whole {
        object["outputs"] = json!(outputs);
        object["workflow"] = json!({"prompt": echo["graph"], "extra_data": echo["extra"]});
    }
    object
}

pub async fn list(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Fault> {
    let number =
        |name: &str, default| query.get(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (limit, offset): (usize, usize) = (number("limit", MAX_LISTED), number("offset", 0));
    let jobs = blocking(|| server.broker.list(&owner.0, MAX_LISTED))?;
    let wanted: Option<Vec<&str>> = query.get("status").map(|list| list.split(',').collect());
    let jobs = jobs.iter().filter(|job| is_of_here(job)).map(|job| object(job, false));
    let jobs: Vec<Value> = jobs
        .filter(|job| {
            let status = job["status"].as_str().unwrap_or_default();
            wanted.as_ref().is_none_or(|wanted| wanted.contains(&status))
        })
        .collect();
    let total = jobs.len();
    let page: Vec<Value> = jobs.into_iter().skip(offset).take(limit).collect();
    let more = offset + page.len() < total;
    Ok(Json(json!({
        "jobs": page,
        "pagination": {"offset": offset, "limit": limit, "total": total, "has_more": more},
    })))
}

pub async fn show(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Id,
) -> Result<Json<Value>, Fault> {
    Ok(Json(object(&find(&server, &owner, &id)?, true)))
}

pub async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Id,
) -> Result<Json<Value>, Fault> {
    let job = find(&server, &owner, &id)?;
    let was_active = !job.state.is_final();
    server.cancel(&job.id, &owner.0).await?;
    Ok(Json(json!({"cancelled": was_active})))
}
