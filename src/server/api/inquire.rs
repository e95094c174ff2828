//! Questions of the native API that draw nothing: what a request would cost, and what an image file
//! says about how it was made.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::native::draft;
use crate::pipeline::images::{Region, provenance_of};
use crate::pipeline::request::MAX_STYLES;
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{MAX_INPUT_PIXELS, parse_size};
use crate::server::fault::{Fault, without_folders};
use crate::server::masks::DraftMask;
use crate::server::state::{Server, blocking};

/// The field of a plan with the sizes of reference images, in place of the images.
pub const SIZES: &str = "reference_sizes";
/// The field with the size of the image to start from, in place of that image.
pub const INIT_SIZE: &str = "init_size";
/// The field with the size of the control image.
pub const CONTROL_SIZE: &str = "control_size";
/// The field with the number of style images, in place of the images.
pub const STYLE_COUNT: &str = "style_count";
/// The field with the part that a mask repaints, in place of the mask.
pub const MASK_BOX: &str = "mask_box";
/// The longest side of a reference image.
const MAX_REFERENCE_SIDE: usize = 1 << 16;

/// The paths of these questions.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/api/v2/plan", post(plan)).route("/api/v2/settings", post(settings))
}

/// What the job of the same body would cost. Images may be left out: [`INIT_SIZE`] or a strength
/// stands for the one to start from, [`MASK_BOX`] for the mask, [`CONTROL_SIZE`] for the control
/// image, [`STYLE_COUNT`] for style images, and [`SIZES`] for reference images. The images of
/// ControlNets need no stand-in. An empty body asks for the defaults.
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
    let mut taken = |name: &str| request.as_object_mut().and_then(|fields| fields.remove(name));
    let sizes = match taken(SIZES) {
        None => Vec::new(),
        Some(sizes) => reference_sizes(&sizes).ok_or_else(|| {
            Fault::invalid(SIZES, format!("{SIZES}: expected a list of WIDTHxHEIGHT"))
        })?,
    };
    let [init, control] = [INIT_SIZE, CONTROL_SIZE].map(|name| (name, taken(name)));
    let (part, styles) = (taken(MASK_BOX), taken(STYLE_COUNT));
    let mut draft = draft(&body)?;
    draft.reference_sizes = sizes;
    draft.input_size = size_in_place(init)?;
    draft.control_size = size_in_place(control)?;
    if let Some(count) = styles {
        let count = count.as_u64().filter(|count| *count <= MAX_STYLES as u64);
        draft.style_count = count.ok_or_else(|| {
            let expected = format!("{STYLE_COUNT}: expected a number from 0 to {MAX_STYLES}");
            Fault::invalid(STYLE_COUNT, expected)
        })? as usize;
    }
    if let Some(part) = part {
        draft.mask = Some(mask_in_place(&part, draft.input_size)?);
    }
    Ok(Json(server.plan(draft, &owner).await?))
}

/// The size that stands for an image.
fn size_in_place((name, value): (&str, Option<Value>)) -> Result<Option<(usize, usize)>, Fault> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let size = value.as_str().and_then(|text| parse_size(text).ok()?);
    let fits = |(width, height): &(usize, usize)| {
        let pixels = width.checked_mul(*height).unwrap_or(usize::MAX);
        (1..=MAX_INPUT_PIXELS).contains(&(pixels as u64))
    };
    match size.filter(fits) {
        Some(size) => Ok(Some(size)),
        None => Err(Fault::invalid(name, format!("{name}: expected WIDTHxHEIGHT of an image"))),
    }
}

/// The mask that repaints the rectangle `part` of an image of `size`.
fn mask_in_place(part: &Value, size: Option<(usize, usize)>) -> Result<DraftMask, Fault> {
    let numbers: Option<Vec<usize>> = part
        .as_array()
        .and_then(|list| list.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect());
    let (width, height) = size.unwrap_or_default();
    let end = |start: usize, length: usize| start.checked_add(length).filter(|_| length > 0);
    match numbers.as_deref() {
        Some(&[x, y, w, h])
            if end(x, w).is_some_and(|x| x <= width) && end(y, h).is_some_and(|y| y <= height) =>
        {
            let repainted = Some(Region { x, y, width: w, height: h });
            Ok(DraftMask { png: Bytes::new(), size: (width, height), repainted })
        }
        _ => Err(Fault::invalid(MASK_BOX, format!("{MASK_BOX}: expected a part of {INIT_SIZE}"))
            .hint("give [left, top, width, height] in pixels")),
    }
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
