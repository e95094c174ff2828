//! The subset of ComfyUI's API that its clients drive: graphs in API format, `/ws`, and history.
//! Every path exists under `/api` too.

mod etn;
mod finish;
mod graph;
mod jobs;
mod lists;
mod nodes;
mod prompts;
mod socket;
mod store;
mod uploads;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use self::graph::{Meaning, interpret};
use self::prompts::{Around, DIALECT, features};
use super::shared::{image, sentence};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, client_id, without_images};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::state::{Server, blocking};

/// The longest id of a client or a prompt, in bytes.
const MAX_ID: usize = 200;
/// The longest graph that is kept with its job, in bytes.
const MAX_GRAPH: usize = 1 << 20;

/// The first parts of paths of this API.
const PATHS: [&str; 17] = [
    "prompt",
    "queue",
    "history",
    "view",
    "upload",
    "object_info",
    "interrupt",
    "free",
    "system_stats",
    "models",
    "embeddings",
    "features",
    "extensions",
    "ws",
    "jobs",
    "etn",
    "users",
];

/// Whether a path is one of this API.
pub fn is_own(path: &str) -> bool {
    let path = path.strip_prefix("/api").unwrap_or(path);
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    PATHS.contains(&first)
}

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    let both = Router::new()
        .route("/prompt", get(jobs::remaining).post(prompt))
        .route("/queue", get(jobs::queue).post(jobs::change_queue))
        .route("/history", get(jobs::history).post(jobs::change_history))
        .route("/history/{id}", get(jobs::history_of))
        .route("/interrupt", post(jobs::interrupt))
        .route("/free", post(free))
        .route("/view", get(view))
        .route("/upload/image", post(uploads::upload))
        .route("/object_info", get(lists::object_info))
        .route("/object_info/{class}", get(lists::object_info_of))
        .route("/system_stats", get(lists::system_stats))
        .route("/models", get(lists::folders))
        .route("/models/{folder}", get(lists::folder))
        .route("/embeddings", get(async || Json(json!([]))))
        .route("/extensions", get(async || Json(json!([]))))
        .route("/features", get(async || Json(features())))
        .route("/etn/image/{id}", put(uploads::put_cached).get(uploads::get_cached))
        .route("/etn/model_info", get(etn::model_info))
        .route("/etn/model_info/{folder}", get(etn::model_info))
        .route("/etn/languages", get(etn::languages))
        .route("/etn/workflow/subscribe", post(etn::subscribe))
        .route("/etn/workflow/unsubscribe", post(etn::subscribe))
        .route("/etn/upload/{folder}/{name}", put(etn::upload))
        .route("/ws", get(socket::connect));
    let jobs = Router::new()
        .route("/api/jobs", get(jobs::list))
        .route("/api/jobs/{id}", get(jobs::show))
        .route("/api/jobs/{id}/cancel", post(jobs::cancel));
    both.clone().nest("/api", both).merge(jobs)
}

/// The body of an error. A fault at a node has `CLASS#ID` as its parameter.
pub fn error(fault: &Fault) -> Value {
    let details = fault.hint.clone().unwrap_or_default();
    let error = json!({
        "type": fault.code, "message": sentence(fault), "details": details, "extra_info": {},
    });
    let node = fault.parameter.as_deref().and_then(|parameter| parameter.split_once('#'));
    let nodes = node.map_or(json!({}), |(class, id)| {
        json!({id: {"errors": [error], "dependent_outputs": [], "class_type": class}})
    });
    json!({"error": error, "node_errors": nodes})
}

/// The number of prompts so far: clients order by it.
static NUMBER: AtomicU64 = AtomicU64::new(1);

async fn prompt(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    // Clients of this API expect 400 for everything that is wrong with a prompt.
    accept(&server, &owner, &body.json()?).await.map(Json).map_err(|mut fault| {
        if fault.status == 422 || fault.status == 404 {
            fault.status = 400;
        }
        fault
    })
}

async fn accept(server: &Server, owner: &Owner, body: &Value) -> Result<Value, Fault> {
    let fields = Fields::of(body)?;
    let Some(graph) = fields.get("prompt").and_then(Value::as_object) else {
        return Err(Fault::new(400, "no_prompt", "no graph is given as `prompt`"));
    };
    let id_of = |name: &str| match fields.text(name)? {
        Some(id) if id.is_empty() || id.len() > MAX_ID => {
            Err(Fault::invalid(name, format!("{name}: expected 1 to {MAX_ID} characters")))
        }
        id => Ok(id.map(str::to_string)),
    };
    let (prompt_id, client) = (id_of("prompt_id")?, id_of("client_id")?);
    let meaning = blocking(|| interpret(graph, &Around { server, owner }))?;
    let mut draft = draft(server, &meaning)?;
    let extra = fields.get("extra_data").cloned().unwrap_or(json!({}));
    let wants_preview = extra["preview_method"].as_str().is_some_and(|method| method != "none");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let kept = without_images(&Value::Object(graph.clone()));
    if kept.to_string().len() + extra.to_string().len() > MAX_GRAPH {
        return Err(Fault::new(400, "invalid_prompt", "the graph is too large"));
    }
    let outputs = blocking(|| kept_outputs(server, owner, &meaning))?;
    draft.echo = json!({
        "prompt_id": prompt_id,
        "client_id": client,
        "number": number,
        "graph": kept,
        "extra": without_images(&extra),
        "preview": wants_preview,
        "text_node": meaning.text_node,
        "sampler_node": meaning.sampler_node,
        "decode_node": meaning.decode_node,
        "outputs": outputs,
        "notes": meaning.notes,
    });
    if let Some(id) = &prompt_id {
        // Sent twice, it is one job.
        draft.id = Some(client_id(DIALECT, &owner.0, id));
        draft.idempotency = Some(format!("{DIALECT}:{id}"));
    }
    let (job, _) = server.submit(draft, owner).await?;
    Ok(json!({"prompt_id": prompt_id.unwrap_or(job.id), "number": number, "node_errors": {}}))
}

/// The nodes that take the images, as jobs have them: id, class, and what is done before.
fn kept_outputs(server: &Server, owner: &Owner, meaning: &Meaning) -> Result<Value, Fault> {
    let outputs = meaning.outputs.iter().map(|output| {
        let steps = finish::kept(&output.finish, |png| store::keep(server, owner, png))?;
        Ok(json!([output.id, output.class, steps]))
    });
    Ok(Value::Array(outputs.collect::<Result<_, Fault>>()?))
}

fn draft(server: &Server, meaning: &Meaning) -> Result<Draft, Fault> {
    let mut draft = Draft::new(meaning.request.clone(), DIALECT);
    draft.model = meaning.model.clone();
    draft.input = meaning.input.clone();
    draft.mask = meaning.mask.clone();
    draft.control = meaning.control.clone();
    for (image, strength) in &meaning.styles {
        draft.add_style(image.clone(), Some(*strength).filter(|strength| *strength != 1.0));
    }
    for (choice, image, node) in &meaning.controlnets {
        // The parameter of a fault at a node is the node.
        server.add_controlnet(&mut draft, node, choice.clone(), image.clone())?;
    }
    draft.references = meaning.references.clone();
    Ok(draft)
}

/// Frees the memory of the model, once its job is over.
async fn free(State(server): State<Arc<Server>>) -> Json<Value> {
    server.unload();
    Json(json!({}))
}

/// A drawn image, or one that was uploaded.
async fn view(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Fault> {
    let Some(name) = query.get("filename") else {
        return Err(Fault::invalid("filename", "filename: it is missing"));
    };
    let around = Around { server: &server, owner: &owner };
    let found = blocking(|| match query.get("type").map(String::as_str) {
        Some("input") => {
            let folder = query.get("subfolder").map_or("", String::as_str);
            store::find_uploaded(&server, &owner, &store::joined(folder, name))
        }
        _ => around.drawn(name),
    })?;
    let bytes = found.ok_or_else(|| Fault::not_found("there is no image of this name"))?;
    Ok(image(bytes.to_vec(), name))
}
