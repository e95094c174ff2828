//! Replicate's predictions, under `/v1`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::stream;
use serde_json::{Value, json};

use super::shared::{
    base, data_uri, format, images_to_edit, link, mask, optional_image, quality_of, sentence,
    set_control, set_style,
};
use super::unused::{refuse_fields, refuse_words, set_cfg};
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{LoraChoice, Margins, Request};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, size_of, without_images};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState, iso_time};
use crate::server::state::{Server, blocking};
use crate::server::wait::succeeded;
use crate::server::webhook::Webhook;

/// The name of this API in jobs.
pub const DIALECT: &str = "replicate";
/// The longest time that an answer may wait for the images, and the usual one, in seconds.
const MAX_WAIT: u64 = 60;
/// The most predictions of one list.
const MAX_LISTED: usize = 100;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/models/{*name}", post(create_for_model))
        .route("/v1/predictions", post(create).get(list))
        .route("/v1/predictions/{id}", get(show))
        .route("/v1/predictions/{id}/cancel", post(cancel))
        .route("/v1/predictions/{id}/stream", get(stream_outputs))
}

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    json!({
        "type": "about:blank",
        "title": fault.code,
        "detail": sentence(fault),
        "status": fault.status,
        "invalid_fields": fault.parameter.iter().map(|name| {
            json!({"field": format!("input.{name}"), "description": fault.message})
        }).collect::<Vec<_>>(),
    })
}

/// `POST /v1/models/{owner}/{name}/predictions`.
async fn create_for_model(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let Some(model) = path.strip_suffix("/predictions") else {
        return Err(Fault::not_found("there is nothing at this path"));
    };
    predict(server, owner, &headers, &body.json()?, Some(model)).await
}

/// `POST /v1/predictions`, which has the model in its body.
async fn create(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let model = match fields.text("model")? {
        Some(model) => Some(model),
        None => fields.text("version")?,
    };
    // There is one version of every model; `hidden` is what predictions say of it.
    let model = model.map(|m| m.split(':').next().unwrap_or(m)).filter(|m| *m != "hidden");
    predict(server, owner, &headers, &body, model).await
}

async fn predict(
    server: Arc<Server>,
    owner: Owner,
    headers: &HeaderMap,
    body: &Value,
    model: Option<&str>,
) -> Result<Response, Fault> {
    let fields = Fields::of(body)?;
    let input = match fields.get("input") {
        Some(input) => Fields::of(input)?,
        None => return Err(Fault::invalid("input", "input: it is missing")),
    };
    let mut draft = draft(&server, &input, model)?;
    draft.echo = json!({
        "model": model.unwrap_or(server.models.default_name()),
        "input": without_images(&body["input"]),
        "webhook": fields.text("webhook")?,
    });
    if let Some(url) = fields.text("webhook")? {
        draft.webhook = Some(Webhook { url: url.into(), secret: None });
    }
    let (mut job, _) = server.submit(draft, &owner).await?;
    if let Some(wait) = wait_of(headers)
        && let Ok(ended) = tokio::time::timeout(wait, server.end(&job.id, &owner.0)).await
    {
        job = ended?;
    }
    let mut answer = blocking(|| prediction(&server, headers, &job));
    if !job.state.is_final() {
        // One client takes anything else than `starting` for the end.
        answer["status"] = json!("starting");
    }
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// How long the client wants to wait: `Prefer: wait`, or `wait=5`.
fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let prefer = headers.get("prefer")?.to_str().ok()?.to_lowercase();
    let wait = prefer.split([',', ';']).find_map(|p| p.trim().strip_prefix("wait"))?;
    let seconds = match wait.trim().strip_prefix('=') {
        Some(number) => number.trim().parse().unwrap_or(MAX_WAIT),
        None => MAX_WAIT,
    };
    Some(Duration::from_secs(seconds.min(MAX_WAIT)))
}

/// The draft of an input. `go_fast`, `disable_safety_checker` and the like change nothing here.
fn draft(server: &Server, input: &Fields, model: Option<&str>) -> Result<Draft, Fault> {
    // An image of which variations are drawn says enough.
    let is_optional = input.get("redux_image").is_some();
    let prompt = match input.text("prompt")? {
        Some(prompt) => prompt,
        None if is_optional => "",
        None => return Err(Fault::invalid("prompt", "prompt: it is missing")),
    };
    refuse_unused(input)?;
    let mut request = Request::new(prompt).loras(loras(input)?);
    let cfg = input.real("true_cfg_scale")?.or(input.real("true_cfg")?);
    set_cfg(input, &mut request, cfg, "add true_cfg_scale above 1")?;
    request.count = input.whole("num_outputs")?;
    request.steps = input.whole("num_inference_steps")?.or(input.whole("steps")?);
    request.guidance = match input.real("guidance")? {
        Some(guidance) => Some(guidance),
        None => input.real("guidance_scale")?,
    };
    request.seed = input.seed("seed")?;
    request.width = input.whole("width")?;
    request.height = input.whole("height")?;
    let part = match input.get("megapixels") {
        None => 1.0,
        Some(value) if value == "match_input" => 1.0,
        Some(_) => match input.real("megapixels")? {
            Some(part) if part == 1.0 || part == 0.25 => f64::from(part),
            _ => return Err(Fault::invalid("megapixels", "megapixels: expected 1 or 0.25")),
        },
    };
    if let Some(margins) = input.text("outpaint")?.filter(|text| *text != "None") {
        request.outpaint = Some(margins.parse::<Margins>()?);
    }
    let mut draft = Draft::new(request, DIALECT);
    draft.model = model.map(str::to_string);
    draft.mask = mask(input, "mask", MaskMarks::TransparentOrWhite)?;
    draft.input = optional_image(input, "image")?;
    if draft.input.is_some() {
        // It has a default there, which is sent without an image, too.
        let strength = input.real("prompt_strength")?;
        draft.request.strength = strength.or(input.real("strength")?);
    }
    let own = ["custom", "match_input_image"];
    let ratio = input.text("aspect_ratio")?.filter(|ratio| !own.contains(ratio));
    let is_free = draft.request.width.is_none() && draft.request.height.is_none();
    if is_free && (ratio.is_some() || part != 1.0) {
        let ratio = match (ratio, &draft.input) {
            (Some(ratio), _) => ratio.to_string(),
            (None, Some(image)) if draft.is_masked() => {
                let (width, height) = size_of(image, "image")?;
                format!("{width}:{height}")
            }
            (None, _) => "1:1".into(),
        };
        let (width, height) = server.shape("aspect_ratio", &ratio, part)?;
        (draft.request.width, draft.request.height) = (Some(width), Some(height));
    }
    set_style(&mut draft, input, "redux_image")?;
    set_style(&mut draft, input, "image_prompt")?;
    set_control(server, &mut draft, input, ["control_image", "preprocessed_image"])?;
    let mut images = images_to_edit(input, "input_images")?;
    images.extend(images_to_edit(input, "input_image")?);
    if !images.is_empty() {
        server.edit(&mut draft, images)?;
    }
    draft.format = Format::WebP;
    if let Some(name) = input.text("output_format")? {
        draft.format = format(name)?;
    }
    if let Some(quality) = input.whole("output_quality")? {
        draft.quality = quality_of(quality.max(1), "output_quality")?;
    }
    Ok(draft)
}

/// Refuses what this server does not do; its neutral values pass, which clients may always send.
fn refuse_unused(input: &Fields) -> Result<(), Fault> {
    let nets = "ControlNets are not among the fields of this API: use /api/v2/jobs";
    let types = ["control_type", "controlnet_1", "controlnet_2", "controlnet_3"];
    refuse_words(input, &types.map(|name| (name, &["none"][..])), nets)?;
    refuse_fields(input, &["raw"], "there is one way to finish an image")?;
    let words: [(&str, &[&str]); 2] = [("scheduler", &["euler"]), ("sampler", &["euler"])];
    refuse_words(input, &words, "images are drawn with Euler's method")
}

/// LoRAs by the names that the models there use.
fn loras(input: &Fields) -> Result<Vec<LoraChoice>, Fault> {
    let mut loras = input.loras("loras")?;
    for (name, scale) in [
        ("lora_weights", "lora_scale"),
        ("hf_lora", "lora_scale"),
        ("extra_lora", "extra_lora_scale"),
    ] {
        if let Some(lora) = input.text(name)?.filter(|lora| !lora.is_empty()) {
            loras.push(LoraChoice::new(lora, input.real(scale)?.unwrap_or(1.0)));
        }
    }
    Ok(loras)
}

/// A job in the form of this API. Every field is there: clients insist.
pub fn prediction(server: &Server, headers: &HeaderMap, job: &Job) -> Value {
    let base = base(server, headers);
    let status = match job.state {
        JobState::Queued => "starting",
        JobState::Running | JobState::Canceling => "processing",
        JobState::Succeeded | JobState::Expired => "succeeded",
        JobState::Failed => "failed",
        JobState::Canceled => "canceled",
    };
    // Clients download only from https, and read data URIs by themselves.
    let output = succeeded(job).ok().filter(|_| job.state == JobState::Succeeded);
    let output: Option<Vec<String>> = output.and_then(|outputs| {
        let url = |output| match base.starts_with("https:") {
            true => Ok(link(server, headers, output)),
            false => data_uri(server, output),
        };
        outputs.iter().map(url).collect::<Result<_, _>>().ok()
    });
    let spec = job.spec.as_ref();
    let echo = spec.map(|spec| spec.echo.clone()).unwrap_or_default();
    let path = format!("{base}/v1/predictions/{}", job.id);
    let seconds = |from: Option<f64>| Some(job.finished? - from?);
    let total = seconds(Some(job.created));
    json!({
        "id": job.id,
        "model": echo["model"],
        "version": "hidden",
        "status": status,
        "input": if echo["input"].is_null() { json!({}) } else { echo["input"].clone() },
        "output": output,
        "logs": "",
        "error": job.fault.as_ref().map(sentence),
        "data_removed": spec.is_none(),
        "metrics": {"predict_time": seconds(job.started), "total_time": total},
        "source": "api",
        "webhook": echo["webhook"],
        "created_at": iso_time(job.created),
        "started_at": job.started.map(iso_time),
        "completed_at": job.finished.map(iso_time),
        "urls": {
            "get": path,
            "cancel": format!("{path}/cancel"),
            "stream": format!("{path}/stream"),
        },
    })
}

async fn show(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let job = server.job(&id, &owner.0)?;
    Ok(Json(blocking(|| prediction(&server, &headers, &job))))
}

async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let job = server.cancel(&id, &owner.0).await?;
    Ok(Json(blocking(|| prediction(&server, &headers, &job))))
}

/// The newest predictions, without their images.
async fn list(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let jobs = blocking(|| server.broker.list(&owner.0, MAX_LISTED))?;
    let of_here = |job: &&Job| job.spec.as_ref().is_some_and(|spec| spec.dialect == DIALECT);
    let results: Vec<Value> = jobs
        .iter()
        .filter(of_here)
        .map(|job| prediction(&server, &headers, &Job { outputs: Vec::new(), ..job.clone() }))
        .collect();
    Ok(Json(json!({"previous": null, "next": null, "results": results})))
}

/// An event for every image, once they are there.
async fn stream_outputs(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    server.job(&id, &owner.0)?;
    let events = stream::once(async move {
        let ended = server.end(&id, &owner.0).await;
        let event = |name: &str, data: String| Event::default().event(name).data(data);
        let mut events = Vec::new();
        let mut reason = HashMap::new();
        match ended.map(|job| blocking(|| prediction(&server, &headers, &job))) {
            Ok(prediction) => {
                let outputs = prediction["output"].as_array().cloned().unwrap_or_default();
                let urls = outputs.iter().filter_map(Value::as_str);
                events.extend(urls.map(|url| event("output", url.to_string())));
                match prediction["status"].as_str() {
                    Some("failed") => {
                        let detail = json!({"detail": prediction["error"]});
                        events.push(event("error", detail.to_string()));
                        reason.insert("reason", "error");
                    }
                    Some("canceled") => drop(reason.insert("reason", "canceled")),
                    _ => {}
                }
            }
            Err(fault) => events.push(event("error", error(&fault).to_string())),
        }
        events.push(event("done", json!(reason).to_string()));
        stream::iter(events.into_iter().map(Ok::<_, Infallible>))
    });
    let events = futures_util::StreamExt::flatten(events);
    let alive = KeepAlive::new().interval(Duration::from_secs(10));
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_wait_is_that_of_the_header() {
        for (text, seconds) in [
            (None, None),
            (Some("respond-async"), None),
            (Some("wait"), Some(60)),
            (Some("wait=5"), Some(5)),
            (Some("respond-async, wait=600"), Some(60)),
        ] {
            let mut headers = HeaderMap::new();
            text.map(|text| headers.insert("prefer", text.parse().unwrap()));
            assert_eq!(wait_of(&headers), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
