//! The native API, `/api/v2`: jobs that live on while nobody waits for them, and their events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{
    content_type, format, image, images, link, mask, optional_image, quality_of, set_mask_fields,
};
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{ControlNetChoice, Request};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image};
use crate::server::events::JobEvent;
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, Lane, State as JobState};
use crate::server::state::{Server, blocking};
use crate::server::wait::succeeded;

/// The longest idempotency key, in bytes.
pub const MAX_IDEMPOTENCY_KEY: usize = 255;
/// The most jobs of one list.
pub const MAX_LISTED: usize = 200;

/// The fields of `request`.
pub const FIELDS: [&str; 28] = [
    "prompt",
    "negative",
    "steps",
    "cfg_scale",
    "guidance",
    "shift",
    "scheduler",
    "seed",
    "width",
    "height",
    "size",
    "strength",
    "loras",
    "count",
    "only",
    "init",
    "mask",
    "mask_blur",
    "mask_padding",
    "outpaint",
    "control",
    "references",
    "styles",
    "controlnets",
    "model",
    "format",
    "quality",
    "priority",
];

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/api/v2/jobs", post(submit).get(list))
        .route("/api/v2/jobs/{id}", get(job).delete(cancel))
        .route("/api/v2/jobs/{id}/cancel", post(cancel))
        .route("/api/v2/jobs/{id}/events", get(events))
        .route("/api/v2/jobs/{id}/images/{number}", get(picture))
        .route("/api/v2/models", get(models))
        .route("/api/v2/loras", get(loras))
        .route("/api/v2/controlnets", get(controlnets))
}

/// The body of an error.
pub fn error(fault: &Fault, id: Option<&str>) -> Value {
    // The code that this API has for every 429.
    let code = if fault.status == 429 { "queue_full" } else { &fault.code };
    json!({"error": {
        "code": code,
        "message": fault.message,
        "parameter": fault.parameter,
        "hint": fault.hint,
        "request_id": id,
    }})
}

async fn submit(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let mut draft = draft(&body.json()?)?;
    if let Some(key) = headers.get("idempotency-key") {
        let key = key.to_str().ok().filter(|k| !k.is_empty() && k.len() <= MAX_IDEMPOTENCY_KEY);
        draft.idempotency = Some(key.map(str::to_string).ok_or_else(|| {
            let expected = format!("1 to {MAX_IDEMPOTENCY_KEY} ASCII characters");
            Fault::invalid("Idempotency-Key", format!("Idempotency-Key: expected {expected}"))
        })?);
    }
    let (job, new) = server.submit(draft, &owner).await?;
    let location = (header::LOCATION, format!("/api/v2/jobs/{}", job.id));
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [location], Json(object(&server, &headers, &job))).into_response())
}

/// The draft of a body: `{"request": {...}}`, or the fields of the request themselves.
pub fn draft(body: &Value) -> Result<Draft, Fault> {
    let fields = Fields::of(body)?;
    let fields = match fields.get("request") {
        Some(request) => Fields::of(request)?,
        None => fields,
    };
    if let Some(unknown) = fields.0.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        let known = FIELDS.join(", ");
        return Err(Fault::new(422, "unknown_field", "the request has an unknown field")
            .parameter(unknown.chars().take(100).collect::<String>())
            .hint(format!("the fields are {known}")));
    }
    let Some(prompt) = fields.text("prompt")? else {
        return Err(Fault::invalid("prompt", "prompt: it is missing"));
    };
    let mut request = Request::new(prompt).loras(fields.loras("loras")?);
    request.negative = fields.text("negative")?.map(str::to_string);
    request.steps = fields.whole("steps")?;
    request.cfg_scale = fields.real("cfg_scale")?;
    request.guidance = fields.real("guidance")?;
    request.seed = fields.seed("seed")?;
    request.width = fields.whole("width")?;
    request.height = fields.whole("height")?;
    if let Some(size) = fields.text("size")?
        && let Some((width, height)) = crate::server::draft::parse_size(size)?
    {
        (request.width, request.height) = (Some(width), Some(height));
    }
    request.shift = fields.real("shift")?;
    if let Some(scheduler) = fields.get("scheduler") {
        let read = serde_json::from_value(scheduler.clone());
        request.scheduler = Some(read.map_err(|e| {
            Fault::invalid("scheduler", format!("scheduler: not a scheduler's configuration: {e}"))
        })?);
    }
    request.only = fields.whole("only")?;
    request.strength = fields.real("strength")?;
    request.count = fields.whole("count")?;
    set_mask_fields(&fields, &mut request)?;
    let mut draft = Draft::new(request, "native");
    draft.model = fields.text("model")?.map(str::to_string);
    draft.input = fields.long_text("init")?.map(|text| parse_image("init", text)).transpose()?;
    draft.control = optional_image(&fields, "control")?;
    draft.mask = mask(&fields, "mask", MaskMarks::TransparentOrWhite)?;
    blocking(|| draft.repaint_transparent("init"))?;
    draft.references = images(&fields, "references")?;
    set_styles(&fields, &mut draft)?;
    set_controlnets(&fields, &mut draft)?;
    if let Some(name) = fields.text("format")? {
        draft.format = format(name)?;
    }
    if let Some(quality) = fields.whole("quality")? {
        draft.quality = quality_of(quality, "quality")?;
    }
    draft.lane = match fields.text("priority")? {
        None | Some("normal") => Lane::Normal,
        Some("low") => Lane::Low,
        Some(_) => return Err(Fault::invalid("priority", "priority: expected normal or low")),
    };
    Ok(draft)
}

/// Style images: each in base64 or as a data URI, or as an object with `image` and `strength`.
fn set_styles(fields: &Fields, draft: &mut Draft) -> Result<(), Fault> {
    let refused = || Fault::invalid("styles", "styles: expected a list of images");
    let list = match fields.get("styles") {
        None => return Ok(()),
        Some(styles) => styles.as_array().ok_or_else(refused)?,
    };
    for style in list {
        let image = style.as_str().or(style["image"].as_str()).ok_or_else(refused)?;
        let strength = match style.as_object() {
            Some(style) => {
                let known = |name: &&String| ["image", "strength"].contains(&name.as_str());
                if let Some(name) = style.keys().find(|name| !known(name)) {
                    let message = format!("styles: {name}: there is no such field");
                    return Err(Fault::invalid("styles", message)
                        .hint("each style has `image` and `strength`"));
                }
                Fields(style).real("strength")?
            }
            None => None,
        };
        draft.add_style(parse_image("styles", image)?, strength);
    }
    Ok(())
}

/// ControlNets: objects with the fields of a [`ControlNetChoice`] and `image`. A question what they
/// would cost needs no images.
fn set_controlnets(fields: &Fields, draft: &mut Draft) -> Result<(), Fault> {
    const NAME: &str = "controlnets";
    let refused = |what: &str| Fault::invalid(NAME, format!("{NAME}: {what}"));
    let list = match fields.get(NAME) {
        None => return Ok(()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(refused("expected a list of objects")),
    };
    for net in list {
        let net = Fields(net.as_object().ok_or_else(|| refused("expected objects"))?);
        let image = match net.get("image") {
            None => None,
            Some(Value::String(text)) => Some(parse_image(NAME, text)?),
            Some(_) => return Err(refused("expected images in base64")),
        };
        let is_set = |(name, value): &(&String, &Value)| *name != "image" && !value.is_null();
        let set = net.0.iter().filter(is_set);
        let mut choice: Map<_, _> = set.map(|(n, v)| (n.clone(), v.clone())).collect();
        choice.entry("strength").or_insert(json!(1.0));
        let choice: ControlNetChoice =
            serde_json::from_value(choice.into()).map_err(|e| refused(&e.to_string()))?;
        match image {
            Some(image) => draft.add_controlnet(choice, image),
            None => draft.request.controlnets.push(choice),
        }
    }
    Ok(())
}

/// A job as JSON.
pub fn object(server: &Server, headers: &HeaderMap, job: &Job) -> Value {
    let (progress, position) = server.progress(job);
    let path = format!("/api/v2/jobs/{}", job.id);
    let outputs: Vec<Value> = job
        .outputs
        .iter()
        .enumerate()
        .map(|(number, output)| {
            let format = job.spec.as_ref().map_or(Format::Png, |spec| spec.format());
            json!({
                "id": format!("{}-{number}", job.id),
                "number": number,
                "type": "image",
                "name": output.file,
                "content_type": content_type(format),
                "size_bytes": output.bytes,
                "width": output.width,
                "height": output.height,
                "path": format!("{path}/images/{number}"),
                "url": link(server, headers, output),
            })
        })
        .collect();
    let expires = job.finished.map(|at| at + server.options.result_ttl.as_secs_f64());
    let seed = job.spec.as_ref().and_then(|spec| spec.request.seed);
    json!({
        "id": job.id,
        "status": job.state,
        "created_at": job.created,
        "started_at": job.started,
        "completed_at": job.finished,
        "expires_at": expires,
        "queue_position": position,
        "predicted_seconds": server.predicted_seconds(job),
        "progress": progress,
        "attempts": job.attempts,
        "model": job.spec.as_ref().map(|spec| &spec.model),
        "request": job.spec.as_ref().map(|spec| &spec.request),
        "seed_text": seed.map(|seed| seed.to_string()),
        "settings": job.settings,
        "outputs": outputs,
        "error": job.fault.as_ref().map(|fault| error(fault, None)["error"].take()),
        "urls": {
            "self": path,
            "events": format!("{path}/events"),
            "cancel": format!("{path}/cancel"),
        },
    })
}

async fn job(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let job = server.job(&id, &owner.0)?;
    Ok(Json(object(&server, &headers, &job)))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    status: Option<String>,
}

async fn list(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(Page { limit, status }): Query<Page>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let status = match status.as_deref() {
        None => None,
        Some(name) => Some(JobState::parse(name).ok_or_else(|| {
            Fault::invalid(
                "status",
                "status: expected queued, running, canceling, succeeded, \
                                      failed, canceled or expired",
            )
        })?),
    };
    let limit = limit.unwrap_or(50).min(MAX_LISTED);
    let jobs = blocking(|| server.broker.list(&owner.0, limit))?;
    let jobs = jobs.iter().filter(|job| status.is_none_or(|s| s == job.state));
    let jobs: Vec<Value> = jobs.map(|job| object(&server, &headers, job)).collect();
    Ok(Json(json!({"jobs": jobs})))
}

async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let job = server.cancel(&id, &owner.0).await?;
    Ok(Json(object(&server, &headers, &job)))
}

async fn picture(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path((id, number)): Path<(String, usize)>,
) -> Result<Response, Fault> {
    let job = server.job(&id, &owner.0)?;
    if !job.state.is_final() {
        return Err(Fault::new(409, "not_finished", "the job is not finished").retry_after(1));
    }
    let output = succeeded(&job)?
        .get(number)
        .ok_or_else(|| Fault::not_found("the job has no image of this number"))?;
    Ok(image(server.read_result(output)?, &output.file))
}

async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    let models = blocking(|| server.models.models());
    let default = server.models.default_name();
    let worker = server.worker();
    let models: Vec<Value> = models
        .iter()
        .map(|m| {
            let is_default = m.name == default;
            let settings = worker.defaults.as_ref().filter(|_| is_default).map(|d| {
                let of = |name: &str| d[name].clone();
                json!({"steps": of("steps"), "guidance": of("guidance"), "width": of("width"),
                       "height": of("height")})
            });
            let inputs = if is_default { worker.inputs } else { m.inputs };
            json!({"name": m.name, "what": m.what, "size_bytes": m.bytes, "default": is_default,
                   "defaults": settings,
                   "reads_references": inputs.map(|inputs| inputs.references),
                   "needs_control": inputs.map(|inputs| inputs.needs_control),
                   "needs_mask": inputs.map(|inputs| inputs.needs_mask),
                   "reads_controlnets": inputs.map(|inputs| inputs.controlnets),
                   "reads_styles": inputs.map(|inputs| inputs.styles)})
        })
        .collect();
    Json(json!({"models": models}))
}

async fn loras(State(server): State<Arc<Server>>) -> Json<Value> {
    let loras = blocking(|| server.models.loras());
    let loras: Vec<Value> = loras
        .iter()
        .map(|l| json!({"name": l.name, "what": l.what, "size_bytes": l.bytes}))
        .collect();
    Json(json!({"loras": loras}))
}

async fn controlnets(State(server): State<Arc<Server>>) -> Json<Value> {
    let nets = blocking(|| server.models.controlnets());
    let nets: Vec<Value> = nets
        .iter()
        .map(|net| {
            let inputs = net.controlnet.unwrap_or_default();
            json!({"name": net.name, "what": net.what, "size_bytes": net.bytes,
                   "modes": inputs.mode_names(), "reads_mask": inputs.mask})
        })
        .collect();
    Json(json!({"controlnets": nets}))
}

/// The events of a job, from the one after `Last-Event-ID`, until the job is over.
async fn events(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let job = server.job(&id, &owner.0)?;
    let channel = server.events.channel(&id);
    let epoch = server.events.epoch.clone();
    // Numbers of another process mean nothing here: everything is sent again.
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let last = last.and_then(|last| last.strip_prefix(&format!("{epoch}-"))?.parse().ok());
    let after: u64 = last.unwrap_or(0);
    if channel.after(0).is_empty() {
        // The job is from an earlier process, and nothing has happened in this one.
        server.publish_status(&job);
        if job.state.is_final() {
            server.events.reset(&id, true);
        }
    }
    let first: VecDeque<JobEvent> = VecDeque::new();
    if channel.after(after).is_empty() && job.state.is_final() {
        // Tells browsers not to ask again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let state = (first, after, channel.watch(), false);
    let stream = stream::unfold(state, move |(mut queue, mut after, mut changed, over)| {
        let (epoch, channel) = (epoch.clone(), channel.clone());
        async move {
            if over {
                return None;
            }
            loop {
                changed.borrow_and_update();
                queue.extend(channel.after(after));
                after = queue.back().map_or(after, |e: &JobEvent| e.number);
                if !queue.is_empty() {
                    break;
                }
                changed.changed().await.ok()?;
            }
            let event = queue.pop_front()?;
            let over = event.name == "status" && is_end(&event.data);
            let sent = Event::default()
                .id(format!("{epoch}-{}", event.number))
                .event(event.name)
                .data(event.data.to_string());
            Some((Ok::<_, Infallible>(sent), (queue, after, changed, over)))
        }
    });
    let alive = KeepAlive::new().interval(Duration::from_secs(10));
    let no_cache = [(header::CACHE_CONTROL, "no-store"), (X_ACCEL, "no")];
    Ok((no_cache, Sse::new(stream).keep_alive(alive)).into_response())
}

/// Tells nginx not to collect events.
const X_ACCEL: header::HeaderName = header::HeaderName::from_static("x-accel-buffering");

/// Whether the status in an event is final.
fn is_end(status: &Value) -> bool {
    status["status"].as_str().and_then(JobState::parse).is_some_and(JobState::is_final)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_with_or_without_its_envelope() {
        let inner = json!({"prompt": "a fox", "seed": "18446744073709551615", "steps": null,
                           "size": "64x32", "format": "jpg",
                           "loras": [{"name": "x", "weight": 2}]});
        let direct = draft(&inner).unwrap();
        let wrapped = draft(&json!({"request": inner})).unwrap();
        assert_eq!(direct.request, wrapped.request);
        let request = Request::new("a fox").seed(u64::MAX).size(64, 32).lora("x", 2.0);
        assert_eq!(direct.request, request);
        assert_eq!(direct.format.name(), "jpeg");
        for (body, parameter) in [
            (json!({}), "prompt"),
            (json!({"prompt": 7}), "prompt"),
            (json!({"prompt": "x", "step": 4}), "step"),
            (json!({"prompt": "x", "quality": 0}), "quality"),
            (json!({"prompt": "x", "format": "gif"}), "output_format"),
            (json!({"prompt": "x", "size": "64"}), "size"),
            (json!({"prompt": "x", "controlnets": ["union"]}), "controlnets"),
            (json!({"prompt": "x", "controlnets": [{"image": "aGk="}]}), "controlnets"),
            (json!({"prompt": "x", "controlnets": [{"name": "u", "weight": 1}]}), "controlnets"),
        ] {
            let fault = draft(&body).unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some(parameter)));
        }
        assert_eq!(draft(&json!([])).unwrap_err().status, 422);
    }
}
