//! fal's queue (`/fal/queue/...`) and its direct calls (`/fal/run/...`).

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::shared::{
    base, data_uri, format, images_to_edit, link, mask, optional_image, sentence, set_control,
    set_style, type_of,
};
use super::unused::{refuse_fields, refuse_numbers, refuse_words, set_cfg};
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{ControlNetChoice, Request};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::controlnets::mode_of;
use crate::server::draft::Draft;
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, Lane, State as JobState};
use crate::server::model_names::tool_of;
use crate::server::state::{Server, blocking};
use crate::server::wait::{answer, succeeded};
use crate::server::webhook::Webhook;

/// The name of this API in jobs.
pub const DIALECT: &str = "fal";

/// The scale of true CFG there, if a request sets none.
const CFG_SCALE: f32 = 3.5;

/// The named sizes.
const SIZES: [(&str, usize, usize); 6] = [
    ("square_hd", 1024, 1024),
    ("square", 512, 512),
    ("portrait_4_3", 768, 1024),
    ("portrait_16_9", 576, 1024),
    ("landscape_4_3", 1024, 768),
    ("landscape_16_9", 1024, 576),
];

/// The paths of this API. The queue's are `APP`, `APP/requests/ID`, and that with `/status` or
/// `/cancel`, where `APP` has any number of parts.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/fal/run/{*app}", post(run))
        .route("/fal/queue/{*path}", post(submit).get(look).put(cancel))
}

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    match (&fault.parameter, fault.status) {
        (Some(name), 422) => json!({"detail": [{
            "loc": ["body", name], "msg": sentence(fault), "type": "value_error",
        }]}),
        _ => json!({"detail": sentence(fault)}),
    }
}

/// The word for a fault in the header `x-fal-error-type`.
pub fn error_type(fault: &Fault) -> &'static str {
    match fault.status {
        401 | 403 => "unauthorized",
        404 => "not_found",
        408 | 504 => "request_timeout",
        429 => "concurrent_requests_limit",
        400..=499 => "bad_request",
        503 => "no_available_runner",
        _ => "internal_server_error",
    }
}

/// The draft of an input for `app`.
fn draft(server: &Server, app: &str, body: &Value) -> Result<Draft, Fault> {
    let fields = Fields::of(body)?;
    // An image of which variations are drawn says enough.
    let prompt = match fields.text("prompt")? {
        Some(prompt) => prompt,
        None if is_redux(app) => "",
        None => return Err(Fault::invalid("prompt", "prompt: it is missing")),
    };
    refuse_unused(&fields)?;
    let mut request = Request::new(prompt).loras(fields.loras("loras")?);
    set_true_cfg(&fields, &mut request)?;
    request.steps = fields.whole("num_inference_steps")?;
    request.guidance = fields.real("guidance_scale")?;
    request.count = fields.whole("num_images")?;
    request.seed = fields.seed("seed")?;
    request.strength = fields.real("strength")?;
    match fields.get("image_size") {
        None => {
            let ratio = fields.text("aspect_ratio")?.filter(|ratio| !ratio.is_empty());
            if let Some(ratio) = ratio.filter(|ratio| *ratio != "auto") {
                let (width, height) = server.shape("aspect_ratio", ratio, 1.0)?;
                (request.width, request.height) = (Some(width), Some(height));
            }
        }
        Some(Value::Object(size)) => {
            request.width = Fields(size).whole("width")?;
            request.height = Fields(size).whole("height")?;
        }
        Some(name) => {
            let found = SIZES.iter().find(|(known, ..)| Some(*known) == name.as_str());
            let Some((_, width, height)) = found else {
                let names = SIZES.map(|(name, ..)| name).join(", ");
                let expected = format!("image_size: expected {names}, or width and height");
                return Err(Fault::invalid("image_size", expected));
            };
            (request.width, request.height) = (Some(*width), Some(*height));
        }
    }
    let mut draft = Draft::new(request, DIALECT);
    draft.format = Format::Jpeg;
    if let Some(name) = fields.text("output_format")? {
        draft.format = format(name)?;
    }
    draft.model = model_of(app);
    set_images(server, &mut draft, app, &fields)?;
    set_controlnets(server, &mut draft, &fields)?;
    let images = images_to_edit(&fields, "image_urls")?;
    if !images.is_empty() {
        server.edit(&mut draft, images)?;
    }
    let prompt = draft.request.prompt.text();
    draft.echo = json!({"app": app, "prompt": prompt, "inline": fields.flag("sync_mode")?});
    Ok(draft)
}

/// Refuses what this server does not do; its neutral values pass, which clients may always send.
fn refuse_unused(fields: &Fields) -> Result<(), Fault> {
    refuse_fields(
        fields,
        &["control_loras", "easycontrols", "ip_adapters", "fill_image", "change_map_image_url"],
        "this server draws from a prompt, images, and a mask",
    )?;
    refuse_fields(fields, &["use_cfg_zero"], "guidance starts in the first step")?;
    let only_euler = "images are drawn with Euler's method and the model's own noise levels";
    refuse_words(fields, &[("scheduler", &["euler"]), ("sigma_schedule", &[])], only_euler)?;
    refuse_numbers(fields, &[("max_shift", &[1.15]), ("base_shift", &[0.5])], only_euler)?;
    let references = "a reference image acts fully and in every step";
    let parts: [(&str, &[f32]); 2] =
        [("reference_strength", &[0.65, 1.0]), ("reference_end", &[1.0])];
    refuse_numbers(fields, &parts, references)
}

/// Sets true CFG, which takes effect there with `use_real_cfg` only.
fn set_true_cfg(fields: &Fields, request: &mut Request) -> Result<(), Fault> {
    const SCALE: &str = "real_cfg_scale";
    const HOW: &str = "add use_real_cfg: true with real_cfg_scale";
    let scale = match fields.flag("use_real_cfg")? {
        true => Some(fields.real(SCALE)?.unwrap_or(CFG_SCALE)),
        false => {
            let why = "it has an effect with use_real_cfg only";
            refuse_numbers(fields, &[(SCALE, &[CFG_SCALE, 1.0])], why)
                .map_err(|fault| fault.hint(HOW))?;
            None
        }
    };
    set_cfg(fields, request, scale, HOW)
}

/// Whether an app draws variations of an image.
fn is_redux(app: &str) -> bool {
    app.split('/').any(|part| part == "redux")
}

/// The images of an input. What `image_url` is depends on the app.
fn set_images(server: &Server, draft: &mut Draft, app: &str, fields: &Fields) -> Result<(), Fault> {
    if is_redux(app) {
        return set_style(draft, fields, "image_url");
    }
    draft.mask = mask(fields, "mask_url", MaskMarks::TransparentOrWhite)?;
    let is_control = matches!(tool_of(app), Some("canny" | "depth"));
    let photo = ["control_image_url", "control_lora_image_url", "image_url"];
    let photo = photo.into_iter().find(|name| fields.get(name).is_some());
    match photo.filter(|_| is_control) {
        // The image is one of depths only if the client says so.
        Some(name) => {
            let is_prepared = fields.get("preprocess_depth").is_some_and(|flag| flag == false);
            let prepared = if is_prepared { name } else { "preprocessed_image_url" };
            set_control(server, draft, fields, [name, prepared])?;
        }
        None => {
            refuse_fields(fields, &["control_lora_image_url"], "it needs an app of its own")?;
            draft.control = optional_image(fields, "control_image_url")?;
            if let Some(image) = optional_image(fields, "image_url")? {
                server.edit(draft, vec![("image_url".into(), image)])?;
            }
        }
    }
    let references = images_to_edit(fields, "reference_image_url")?;
    server.refer(draft, references)
}

/// The ControlNets of an input: those for one kind of image, and those for several kinds, which are
/// given all their images together.
fn set_controlnets(server: &Server, draft: &mut Draft, fields: &Fields) -> Result<(), Fault> {
    for parameter in ["controlnets", "controlnet_unions"] {
        for net in objects(fields, parameter)? {
            let missing = |field: &str| {
                Fault::invalid(parameter, format!("{parameter}: {field}: it is missing"))
            };
            let name = net.text("path")?.ok_or_else(|| missing("path"))?;
            let controls = match parameter {
                "controlnets" => vec![net],
                _ => objects(&net, "controls")?,
            };
            if controls.is_empty() {
                return Err(missing("controls"));
            }
            for control in &controls {
                add_control(server, draft, parameter, name, control)?;
            }
        }
    }
    Ok(())
}

/// The objects in the list of a field, with references: images in them are large.
fn objects<'a>(fields: &Fields<'a>, name: &str) -> Result<Vec<Fields<'a>>, Fault> {
    let refused = || Fault::invalid(name, format!("{name}: expected a list of objects"));
    let list = match fields.get(name) {
        None => return Ok(Vec::new()),
        Some(list) => list.as_array().ok_or_else(refused)?,
    };
    list.iter().map(|item| item.as_object().map(Fields).ok_or_else(refused)).collect()
}

/// Adds an image for the ControlNet called `name`.
fn add_control(
    server: &Server,
    draft: &mut Draft,
    parameter: &str,
    name: &str,
    control: &Fields,
) -> Result<(), Fault> {
    let refuse = |fault: Fault| {
        let message = format!("{parameter}: {}", fault.message);
        Fault { message, ..fault }.parameter(parameter)
    };
    let masks = ["mask_image_url", "ip_adapter_index"];
    refuse_fields(control, &masks, "a ControlNet sees its image and nothing else")
        .map_err(refuse)?;
    let Some(image) = optional_image(control, "control_image_url").map_err(refuse)? else {
        let message = format!("{parameter}: control_image_url: it is missing");
        return Err(Fault::invalid(parameter, message));
    };
    let scale = control.real("conditioning_scale").map_err(refuse)?;
    let mut choice = ControlNetChoice::new(name, scale.unwrap_or(1.0));
    choice.start = control.real("start_percentage").map_err(refuse)?.unwrap_or(0.0);
    choice.end = control.real("end_percentage").map_err(refuse)?.unwrap_or(1.0);
    if let Some(mode) = control.text("control_mode").map_err(refuse)? {
        choice.mode = mode_of(parameter, mode)?;
    }
    server.add_controlnet(draft, parameter, choice, image)
}

/// The model of an app such as `fal-ai/flux/dev/image-to-image`: its parts without the owner, the
/// task, and words for what every model does here.
fn model_of(app: &str) -> Option<String> {
    let tasks =
        ["image-to-image", "text-to-image", "edit", "stream", "inpainting", "inpaint", "redux"];
    let parts: Vec<&str> = app.split('/').filter(|p| !p.is_empty() && !tasks.contains(p)).collect();
    let name = match parts.as_slice() {
        [] => return None,
        [one] => one.to_string(),
        [_, name @ ..] => name.join("-"),
    };
    // These are FLUX.1 [dev] there.
    Some(match name.as_str() {
        "flux-lora" | "flux-general" => "flux-dev".into(),
        _ => name,
    })
}

async fn run(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(app): Path<String>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let draft = draft(&server, &app, &body.json()?)?;
    let (job, _) = server.submit(draft, &owner).await?;
    let waiting = server.wait(job);
    answer(waiting, move |server, job| result(server, &headers, job), error).await
}

async fn submit(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(app): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let mut draft = draft(&server, &app, &body.json()?)?;
    if let Some(url) = query.get("fal_webhook").filter(|url| !url.is_empty()) {
        draft.webhook = Some(Webhook { url: url.clone(), secret: None });
    }
    let priority = headers.get("x-fal-queue-priority").and_then(|v| v.to_str().ok());
    if priority.is_some_and(|priority| priority.eq_ignore_ascii_case("low")) {
        draft.lane = Lane::Low;
    }
    let (job, _) = server.submit(draft, &owner).await?;
    let mut status = status(&server, &headers, &job);
    status["status"] = json!("IN_QUEUE");
    Ok(Json(status))
}

/// The state of a job, with the addresses to ask for more.
fn status(server: &Server, headers: &HeaderMap, job: &Job) -> Value {
    let app = job.spec.as_ref().and_then(|spec| spec.echo["app"].as_str()).unwrap_or("flux");
    let url = format!("{}/fal/queue/{app}/requests/{}", base(server, headers), job.id);
    let mut status = json!({
        "status": match job.state {
            JobState::Queued => "IN_QUEUE",
            JobState::Running | JobState::Canceling => "IN_PROGRESS",
            _ => "COMPLETED",
        },
        "request_id": job.id,
        "response_url": url,
        "status_url": format!("{url}/status"),
        "cancel_url": format!("{url}/cancel"),
        "logs": [],
        "metrics": {},
    });
    if let Some(position) = server.progress(job).1 {
        status["queue_position"] = json!(position);
    }
    if let (Some(started), Some(finished)) = (job.started, job.finished) {
        status["metrics"]["inference_time"] = json!(finished - started);
    }
    if let Err(fault) = succeeded(job)
        && job.state.is_final()
    {
        status["error"] = json!(sentence(&fault));
        status["error_type"] = json!(error_type(&fault));
    }
    status
}

/// The images of a job that is over.
fn result(server: &Server, headers: &HeaderMap, job: &Job) -> Result<Value, Fault> {
    let outputs = succeeded(job)?;
    let echo = job.spec.as_ref().map(|spec| spec.echo.clone()).unwrap_or_default();
    let mut images = Vec::new();
    for output in outputs {
        let url = match echo["inline"] == true {
            true => data_uri(server, output)?,
            false => link(server, headers, output),
        };
        images.push(json!({
            "url": url, "width": output.width, "height": output.height,
            "content_type": type_of(&output.file), "file_name": output.file,
            "file_size": output.bytes,
        }));
    }
    let seconds = job.started.and_then(|started| Some(job.finished? - started));
    Ok(json!({
        "images": images,
        "timings": {"inference": seconds},
        "seed": job.settings.as_ref().map(|settings| &settings["seed"]),
        "has_nsfw_concepts": vec![false; outputs.len()],
        "prompt": echo["prompt"],
    }))
}

/// The id of a job in a path of the queue, and what is asked of it.
fn asked(path: &str) -> Result<(&str, &str), Fault> {
    let found =
        path.split_once("/requests/").map(|(_, rest)| rest.split_once('/').unwrap_or((rest, "")));
    found.ok_or_else(|| Fault::not_found("there is nothing at this path"))
}

async fn look(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let (id, what) = asked(&path)?;
    let job = server.job(id, &owner.0)?;
    match what {
        "status" => {
            let code = match job.state.is_final() {
                true => StatusCode::OK,
                false => StatusCode::ACCEPTED,
            };
            Ok((code, Json(status(&server, &headers, &job))).into_response())
        }
        "" if !job.state.is_final() => {
            Err(Fault::new(400, "not_finished", "the request is still in progress"))
        }
        "" => Ok(Json(blocking(|| result(&server, &headers, &job))?).into_response()),
        _ => Err(Fault::not_found("there is nothing at this path")),
    }
}

async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(path): Path<String>,
) -> Result<Response, Fault> {
    let (id, "cancel") = asked(&path)? else {
        return Err(Fault::not_found("there is nothing at this path"));
    };
    let before = server.job(id, &owner.0)?;
    if before.state.is_final() {
        let body = Json(json!({"status": "ALREADY_COMPLETED"}));
        return Ok((StatusCode::BAD_REQUEST, body).into_response());
    }
    server.cancel(id, &owner.0).await?;
    let body = Json(json!({"status": "CANCELLATION_REQUESTED"}));
    Ok((StatusCode::ACCEPTED, body).into_response())
}

/// The body of the call to a webhook.
pub fn webhook_body(server: &Server, job: &Job) -> Value {
    let (status, payload, error) = match result(server, &HeaderMap::new(), job) {
        Ok(payload) => ("OK", payload, Value::Null),
        Err(fault) => ("ERROR", error(&fault), json!(sentence(&fault))),
    };
    json!({
        "request_id": job.id, "gateway_request_id": job.id, "status": status, "payload": payload,
        "error": error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_in_the_name_of_the_app() {
        for (app, model) in [
            ("fal-ai/flux/dev", "flux-dev"),
            ("fal-ai/flux/dev/image-to-image", "flux-dev"),
            ("fal-ai/flux/schnell", "flux-schnell"),
            ("fal-ai/flux-lora", "flux-dev"),
            ("fal-ai/flux-tiny", "flux-tiny"),
            ("flux-tiny", "flux-tiny"),
            ("fal-ai/flux-pro/v1.1", "flux-pro-v1.1"),
        ] {
            assert_eq!(model_of(app).as_deref(), Some(model));
        }
        assert_eq!(asked("a/b/requests/ID/status").unwrap(), ("ID", "status"));
        assert_eq!(asked("a/requests/ID").unwrap(), ("ID", ""));
        assert!(asked("a/b").is_err());
    }
}
