//! OpenAI's files, `/v1/files`: what batches read and write.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::shared::form;
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::fault::Fault;
use crate::server::job::random_hex;
use crate::server::state::{Server, blocking};
use crate::server::store::{Facts, Kind};

/// The purposes that a file may have. Files of all purposes are stored in the same way.
const PURPOSES: [&str; 4] = ["batch", "vision", "user_data", "batch_output"];
/// The longest name of a file, in bytes.
const MAX_NAME: usize = 255;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/files", post(upload).get(list))
        .route("/v1/files/{id}", get(show).delete(remove))
        .route("/v1/files/{id}/content", get(content))
}

/// Stores a file, and returns what is known of it.
///
/// # Errors
/// Those of [`Store::put`](crate::server::store::Store::put).
pub fn write(
    server: &Server,
    owner: &str,
    purpose: &str,
    name: &str,
    bytes: &[u8],
) -> Result<Facts, Fault> {
    let id = format!("file-{}", random_hex(12)?);
    let more = json!({"purpose": purpose, "filename": name, "bytes": bytes.len()});
    server.store.put(owner, Kind::File, &id, more, bytes)
}

/// The content of the caller's file with this id.
///
/// # Errors
/// 404.
pub fn read(server: &Server, owner: &str, id: &str) -> Result<Bytes, Fault> {
    let found = server.store.get(owner, Kind::File, id);
    found.map(|(_, bytes)| bytes).ok_or_else(|| unknown(server, "file"))
}

/// The fault of the id of a `what` that is not here. Each front of a cluster has its own.
pub fn unknown(server: &Server, what: &str) -> Fault {
    let fault = Fault::not_found(format!("there is no {what} of this id"));
    match server.broker.workers() {
        None => fault,
        Some(_) => fault.hint(
            "in a cluster, files and batches are known only to the front that received them: send \
             the request there",
        ),
    }
}

fn object(facts: &Facts) -> Value {
    let created = facts.created as u64;
    json!({
        "id": facts.name,
        "object": "file",
        "bytes": facts.more["bytes"],
        "created_at": created,
        "expires_at": created + Kind::File.life().as_secs(),
        "filename": facts.more["filename"],
        "purpose": facts.more["purpose"],
        "status": "processed",
    })
}

async fn upload(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let form = form(&body).await?;
    let Some(file) = form.files.iter().find(|file| file.field == "file") else {
        return Err(Fault::invalid("file", "file: it is missing"));
    };
    let purpose = form.fields.get("purpose").and_then(Value::as_str).unwrap_or_default();
    if !PURPOSES.contains(&purpose) {
        let expected = format!("purpose: expected {}", PURPOSES.join(", "));
        return Err(Fault::invalid("purpose", expected));
    }
    if file.name.len() > MAX_NAME {
        return Err(Fault::invalid("file", "file: its name is too long"));
    }
    let facts = blocking(|| write(&server, &owner.0, purpose, &file.name, &file.bytes))?;
    Ok(Json(object(&facts)))
}

async fn list(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Json<Value> {
    let files = blocking(|| server.store.list(&owner.0, Kind::File));
    let data: Vec<Value> = files.iter().map(object).collect();
    Json(json!({
        "object": "list", "data": data, "has_more": false,
        "first_id": files.first().map(|facts| &facts.name),
        "last_id": files.last().map(|facts| &facts.name),
    }))
}

async fn show(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let facts = blocking(|| server.store.facts(&owner.0, Kind::File, &id));
    facts.map(|facts| Json(object(&facts))).ok_or_else(|| unknown(&server, "file"))
}

async fn remove(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    match blocking(|| server.store.remove(&owner.0, Kind::File, &id)) {
        true => Ok(Json(json!({"id": id, "object": "file", "deleted": true}))),
        false => Err(unknown(&server, "file")),
    }
}

async fn content(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let bytes = blocking(|| read(&server, &owner.0, &id))?;
    // Whatever it is, no browser is to run it.
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
