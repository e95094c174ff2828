//! Questions of the native API that draw nothing: what a request would cost, and what an image file
//! says about how it was made.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::native::draft;
use crate::pipeline::images::provenance_of;
use crate::server::access::Owner;
use crate::server::fault::{Fault, without_folders};
use crate::server::http::Whole;
use crate::server::state::{Server, blocking};

/// The paths of these questions.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/api/v2/plan", post(plan)).route("/api/v2/settings", post(settings))
}

/// What the job of the same body would cost. The image to start from may be left out: a strength
/// stands for it. An empty body asks for the defaults.
async fn plan(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let mut body = body.json()?;
    let request = match body.get_mut("request") {
        Some(request) => request,
        None => &mut body,
    };
    if let Some(fields) = request.as_object_mut() {
        fields.entry("prompt").or_insert(json!(""));
    }
    let draft = draft(&body)?;
    Ok(Json(server.plan(draft, &owner).await?))
}

/// The settings in an image file, which is the body.
async fn settings(State(server): State<Arc<Server>>, body: Whole) -> Result<Json<Value>, Fault> {
    if body.bytes.is_empty() {
        return Err(Fault::new(400, "invalid_request", "the body of the request is empty")
            .hint("send the bytes of an image file"));
    }
    let found = blocking(|| provenance_of(&body.bytes))?;
    let model = server.models.find(Some(&found.settings.model)).ok();
    let notes: Vec<_> = found.notes.iter().map(|note| without_folders(note)).collect();
    Ok(Json(json!({
        "program": found.program(),
        "settings": found.settings,
        "seed_text": found.settings.seed.to_string(),
        "index": found.index,
        "notes": notes,
        "model": model.filter(|_| !found.settings.model.is_empty()).map(|m| m.name),
    })))
}
