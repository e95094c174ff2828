//! The API of Black Forest Labs, under `/v1`: a path for every model, and results by polling.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Map, Value, json};

use super::shared::{base, format, images_to_edit, link, mask, sentence, set_control, set_style};
use super::unused::refuse_fields;
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{LoraChoice, MAX_REFERENCES, Margins, Request};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, size_of};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState, iso_time};
use crate::server::state::{Server, blocking};
use crate::server::wait::succeeded;
use crate::server::webhook::Webhook;

/// The name of this API in jobs.
pub const DIALECT: &str = "blackforest";
/// What `GET /v1/credits` says. Images cost nothing here, so it never changes; clients refuse to go
/// on at 0.
const CREDITS: f64 = 1_000_000.0;
/// The largest strength of a finetune there.
const MAX_FINETUNE: f32 = 2.0;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/{model}", post(submit))
        .route("/v1/get_result", get(result))
        .route("/v1/credits", get(async || Json(json!({"credits": CREDITS}))))
        .route("/v1/my_finetunes", get(finetunes))
}

/// The body of an error, in all the forms that clients read.
pub fn error(fault: &Fault) -> Value {
    let message = sentence(fault);
    let mut body = match (&fault.parameter, fault.status) {
        (Some(name), 422) => json!({
            "detail": [{"loc": ["body", name], "msg": message, "type": "value_error"}],
            "error": "validation_error",
            "message": message,
            "details": {name: message},
        }),
        (_, 429) => json!({"error": "rate_limit_exceeded", "message": message}),
        _ => json!({"detail": message, "error": fault.code, "message": message, "details": {}}),
    };
    if let Some(seconds) = fault.retry_after {
        body["retry_after"] = json!(seconds);
    }
    body
}

async fn submit(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    // A model that is not here is the first thing to say.
    blocking(|| server.models.find(Some(&model)))?;
    let mut draft = draft(&server, &fields, &model)?;
    blocking(|| draft.measure())?;
    let served = blocking(|| server.models.find(Some(&model)))?;
    let drawn = blocking(|| server.drawn_size(&draft, &served));
    let (width, height) = drawn.unwrap_or_else(|| server.sides_of(&draft.request));
    let megapixels = |pixels: f64| (pixels / 1e4).round() / 100.0;
    let mut input = 0.0;
    for image in draft.input.iter().chain(&draft.references) {
        let (w, h) = size_of(image, "input_image")?;
        input += f64::from(w) * f64::from(h);
    }
    let input = megapixels(input);
    let hook = draft.webhook.as_ref().map(|hook| hook.url.clone());
    let (job, _) = server.submit(draft, &owner).await?;
    let mut answer = json!({
        "id": job.id,
        "cost": 0.0,
        "input_mp": input,
        "output_mp": megapixels(width as f64 * height as f64),
    });
    match hook {
        Some(url) => {
            answer["status"] = json!("Pending");
            answer["webhook_url"] = json!(url);
        }
        None => {
            let url = format!("{}/v1/get_result?id={}", base(&server, &headers), job.id);
            answer["polling_url"] = json!(url);
        }
    }
    Ok((StatusCode::OK, Json(answer)).into_response())
}

/// The draft of a body. `safety_tolerance` and `prompt_upsampling` change nothing here.
fn draft(server: &Server, fields: &Fields, model: &str) -> Result<Draft, Fault> {
    // What is repainted may follow from its surroundings alone.
    let is_optional = model.contains("fill") || model.contains("expand");
    let prompt = match fields.text("prompt")? {
        Some(prompt) => prompt,
        None if is_optional => "",
        None => return Err(Fault::invalid("prompt", "prompt: it is missing")),
    };
    refuse_fields(fields, &["raw"], "there is one way to finish an image")?;
    refuse_fields(
        fields,
        &["input_image_blob_path", "image_blob_path"],
        "images are sent in the request",
    )?;
    let mut request = Request::new(prompt);
    request.outpaint = margins(fields)?;
    request.steps = fields.whole("steps")?;
    request.guidance = fields.real("guidance")?;
    request.seed = fields.seed("seed")?;
    request.width = fields.whole("width")?;
    request.height = fields.whole("height")?;
    let is_free = request.width.is_none() && request.height.is_none();
    if let Some(ratio) = fields.text("aspect_ratio")?.filter(|_| is_free) {
        let (width, height) = server.shape("aspect_ratio", ratio, 1.0)?;
        (request.width, request.height) = (Some(width), Some(height));
    }
    // Finetunes are LoRAs here.
    if let Some(name) = fields.text("finetune_id")? {
        let strength = fields.real("finetune_strength")?.unwrap_or(1.1);
        if !(0.0..=MAX_FINETUNE).contains(&strength) {
            let expected = format!("finetune_strength: expected 0 to {MAX_FINETUNE}");
            return Err(Fault::invalid("finetune_strength", expected));
        }
        request.loras.push(LoraChoice::new(name, strength));
    }
    let mut draft = Draft::new(request, DIALECT);
    draft.model = Some(model.into());
    draft.request.strength = fields.real("strength")?;
    let numbered = (2..=MAX_REFERENCES).map(|n| format!("input_image_{n}"));
    let mut images = Vec::new();
    for name in ["input_image".to_string(), "image".into()].into_iter().chain(numbered) {
        images.extend(images_to_edit(fields, &name)?);
    }
    draft.mask = mask(fields, "mask", MaskMarks::TransparentOrWhite)?;
    if !images.is_empty() {
        server.edit(&mut draft, images)?;
    }
    blocking(|| draft.repaint_transparent("image"))?;
    set_style(&mut draft, fields, "image_prompt")?;
    set_control(server, &mut draft, fields, ["control_image", "preprocessed_image"])?;
    draft.format = Format::Jpeg;
    if let Some(name) = fields.text("output_format")? {
        draft.format = format(name)?;
    }
    if let Some(url) = fields.text("webhook_url")? {
        let secret = fields.text("webhook_secret")?.map(str::to_string);
        draft.webhook = Some(Webhook { url: url.into(), secret });
    }
    draft.echo = json!({"prompt": prompt});
    Ok(draft)
}

/// The margins of `flux-pro-1.0-expand`.
fn margins(fields: &Fields) -> Result<Option<Margins>, Fault> {
    let side = |name: &str| Ok::<_, Fault>(fields.whole(name)?.unwrap_or(0));
    let (left, top) = (side("left")?, side("top")?);
    let margins = Margins { left, top, right: side("right")?, bottom: side("bottom")? };
    Ok(Some(margins).filter(|margins| *margins != Margins::default()))
}

/// Status, result and details of a job. Every client stops polling at `Ready` and `Error`, and some
/// at nothing else.
fn state_of(server: &Server, headers: &HeaderMap, job: &Job) -> (&'static str, Value, Value) {
    match (job.state, succeeded(job)) {
        (JobState::Queued | JobState::Running | JobState::Canceling, _) => {
            let position = server.progress(job).1;
            ("Pending", Value::Null, json!({"queue_position": position}))
        }
        (_, Ok(outputs)) => {
            let settings = job.settings.clone().unwrap_or_default();
            let duration = job.started.and_then(|started| Some(job.finished? - started));
            let result = json!({
                "sample": outputs.first().map(|output| link(server, headers, output)),
                "seed": settings["seed"],
                "prompt": job.spec.as_ref().map(|spec| &spec.echo["prompt"]),
                "start_time": job.started,
                "end_time": job.finished,
                "duration": duration,
            });
            ("Ready", result, Value::Null)
        }
        (_, Err(fault)) => ("Error", Value::Null, error(&fault)),
    }
}

async fn result(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let Some(id) = query.get("id") else {
        return Err(Fault::invalid("id", "id: it is missing"));
    };
    let job = match server.job(id, &owner.0) {
        Ok(job) => job,
        Err(fault) if fault.status == 404 => {
            let mut body = match error(&fault) {
                Value::Object(body) => body,
                _ => Map::new(),
            };
            let more = [("id", json!(id)), ("status", json!("Task not found"))];
            body.extend(more.map(|(name, value)| (name.to_string(), value)));
            return Ok((StatusCode::NOT_FOUND, Json(Value::Object(body))).into_response());
        }
        Err(fault) => return Err(fault),
    };
    let (status, result, details) = state_of(&server, &headers, &job);
    let progress = match status {
        "Pending" => server.events.channel(&job.id).progress().value(),
        _ => 1.0,
    };
    let body = json!({
        "id": job.id, "status": status, "result": result, "progress": progress,
        "details": details, "preview": null,
    });
    Ok(Json(body).into_response())
}

/// The names of the LoRAs.
async fn finetunes(State(server): State<Arc<Server>>) -> Json<Value> {
    let loras = blocking(|| server.models.loras());
    let names: Vec<String> = loras.into_iter().map(|lora| lora.name).collect();
    Json(json!({"finetunes": names}))
}

/// The body of the call to a webhook.
pub fn webhook_body(server: &Server, job: &Job) -> Value {
    let (status, result, details) = state_of(server, &HeaderMap::new(), job);
    let message = details["message"].clone();
    json!({
        "id": job.id,
        "status": status,
        "result": result,
        "error": if details.is_null() { Value::Null } else { details["error"].clone() },
        "message": message,
        "timestamp": iso_time(server.now()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_what_every_client_reads() {
        let body = error(&Fault::invalid("width", "width: not a multiple of 16"));
        assert_eq!(body["detail"][0]["loc"], json!(["body", "width"]));
        assert_eq!(body["message"], "width: not a multiple of 16");
        assert_eq!(body["details"]["width"], "width: not a multiple of 16");
        let body = error(&Fault::new(429, "rate_limited", "too fast").retry_after(5));
        assert_eq!(
            (&body["error"], &body["retry_after"]),
            (&json!("rate_limit_exceeded"), &json!(5))
        );
        assert_eq!(error(&Fault::not_found("nothing"))["detail"], "nothing");
    }
}
