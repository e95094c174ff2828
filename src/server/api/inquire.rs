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
use crate::server::body::Whole;
use crate::server::draft::parse_size;
use crate::server::fault::{Fault, without_folders};
use crate::server::state::{Server, blocking};

/// The field of a plan with the sizes of reference images, in place of the images.
pub const SIZES: &str = "reference_sizes";
/// The longest side of a reference image.
const MAX_REFERENCE_SIDE: usize = 1 << 16;

/// The paths of these questions.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/api/v2/plan", post(plan)).route("/api/v2/settings", post(settings))
}

/// What the job of the same body would cost. The image to start from may be left out: a strength
/// stands for it, as [`SIZES`] do for reference images. An empty body asks for the defaults.
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
    let sizes = match request.as_object_mut().and_then(|fields| fields.remove(SIZES)) {
        None => Vec::new(),
        Some(sizes) => reference_sizes(&sizes).ok_or_else(|| {
            Fault::invalid(SIZES, format!("{SIZES}: expected a list of WIDTHxHEIGHT"))
        })?,
    };
    let mut draft = draft(&body)?;
    draft.reference_sizes = sizes;
    Ok(Json(server.plan(draft, &owner).await?))
}

/// The sizes of reference images, as far as there can be such images.
fn reference_sizes(sizes: &Value) -> Option<Vec<(usize, usize)>> {
    let read = |size: &Value| {
        let (width, height) = parse_size(size.as_str()?).ok()??;
        [width, height].iter().all(|side| (1..=MAX_REFERENCE_SIDE).contains(side)).then_some(())?;
        Some((width, height))
    };
    sizes.as_array()?.iter().map(read).collect()
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
