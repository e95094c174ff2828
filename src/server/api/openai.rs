//! OpenAI Images, and Together's extensions of it, under `/v1`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::files;
use super::shared::{
    Form, FormFile, form, format, images_to_edit, link, quality_of, set_mask_fields, split_extra,
};
use super::unused::{refuse_fields, refuse_words};
use crate::pipeline::images::{Format, MaskMarks, image_size};
use crate::pipeline::request;
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image, parse_size};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState};
use crate::server::masks::DraftMask;
use crate::server::state::{Server, blocking};
use crate::server::wait::{Waiting, answer, succeeded};

/// The most partial images of one stream.
const MAX_PARTIAL: usize = 3;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
}

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    let kind = match fault.status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "requests",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    };
    let message = match &fault.hint {
        Some(hint) => format!("{} (try: {hint})", fault.message),
        None => fault.message.clone(),
    };
    json!({"error": {
        "message": message, "type": kind, "param": fault.parameter, "code": fault.code,
    }})
}

async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    let models = blocking(|| server.models.models());
    let data: Vec<Value> = models.iter().map(|m| model_json(&m.name)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    let model = blocking(|| server.models.find(Some(&name)))?;
    Ok(Json(model_json(&model.name)))
}

fn model_json(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "flux-fast"})
}

/// A request, and how it is to be answered.
struct Wish {
    draft: Draft,
    sent: Sent,
    stream: bool,
    partial: usize,
}

/// How images are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// In base64.
    Inline,
    /// As links.
    Links,
    /// As both: clients of `dall-e-*` that name no form expect links, and others read base64.
    Both,
}

/// Reads the fields that generations and edits share.
fn wish(fields: &Fields) -> Result<Wish, Fault> {
    let opaque: [(&str, &[&str]); 1] = [("background", &["auto", "opaque"])];
    refuse_words(fields, &opaque, "images have no transparent pixels")?;
    let Some(prompt) = fields.text("prompt")? else {
        return Err(Fault::invalid("prompt", "prompt: it is missing"));
    };
    let either =
        |a: Option<_>, b: Result<_, Fault>| Ok::<_, Fault>(if a.is_some() { a } else { b? });
    let mut loras = fields.loras("loras")?;
    loras.extend(fields.loras("image_loras")?);
    let mut request = request::Request::new(prompt).loras(loras);
    request.count = fields.whole("n")?;
    request.steps = either(fields.whole("steps")?, fields.whole("num_inference_steps"))?;
    request.seed = fields.seed("seed")?;
    let guidance = fields.real("guidance")?;
    request.guidance = match guidance {
        Some(guidance) => Some(guidance),
        None => fields.real("guidance_scale")?,
    };
    // Frontends send a negative prompt to every model. It costs twice the time, so it takes effect
    // only where true CFG is asked for by name.
    request.cfg_scale = fields.real("true_cfg_scale")?.filter(|scale| *scale != 1.0);
    if request.cfg_scale.is_some() {
        request.negative = fields.text("negative_prompt")?.map(str::to_string);
    }
    request.width = fields.whole("width")?;
    request.height = fields.whole("height")?;
    if let Some((width, height)) = parse_size(fields.text("size")?.unwrap_or("auto"))? {
        (request.width, request.height) = (Some(width), Some(height));
    }
    let mut draft = Draft::new(request, "openai");
    draft.model = fields.text("model")?.map(str::to_string);
    if let Some(name) = fields.text("output_format")? {
        draft.format = format(name)?;
    }
    if let Some(quality) = fields.whole("output_compression")? {
        // 0 to 100 there.
        draft.quality = quality_of(quality.max(1), "output_compression")?;
    }
    let is_dalle = draft.model.as_deref().is_some_and(|name| name.starts_with("dall-e"));
    let sent = match fields.text("response_format")? {
        None if is_dalle => Sent::Both,
        None | Some("b64_json" | "base64") => Sent::Inline,
        Some("url") => Sent::Links,
        Some(_) => {
            let expected = "response_format: expected b64_json or url";
            return Err(Fault::invalid("response_format", expected));
        }
    };
    let partial = fields.whole("partial_images")?.unwrap_or(0);
    if partial > MAX_PARTIAL {
        let expected = format!("partial_images: expected 0 to {MAX_PARTIAL}");
        return Err(Fault::invalid("partial_images", expected));
    }
    Ok(Wish { draft, sent, stream: fields.flag("stream")?, partial })
}

async fn generations(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let body = body.json()?;
    let wish = generation(&server, &Fields::of(&body)?)?;
    respond(server, owner, headers, wish, "image_generation").await
}

/// `fields` with those inside the prompt, if there are some: stable-diffusion.cpp's server reads
/// them on these paths, and its clients have no other way to send steps and a seed.
fn with_extra(fields: &Fields) -> Result<Option<Map<String, Value>>, Fault> {
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let Some((prompt, extra)) = split_extra(prompt)? else { return Ok(None) };
    let mut all = fields.0.clone();
    all.extend(extra);
    all.insert("prompt".into(), json!(prompt));
    Ok(Some(all))
}

fn generation(server: &Server, fields: &Fields) -> Result<Wish, Fault> {
    let all = with_extra(fields)?;
    let fields = &Fields(all.as_ref().unwrap_or(fields.0));
    refuse_fields(
        fields,
        &["image", "images", "mask"],
        "images are edited at /v1/images/edits, or sent as image_url",
    )?;
    let mut wish = wish(fields)?;
    // Together's image to image.
    if let Some(image) = fields.long_text("image_url")? {
        wish.draft.request.strength = fields.real("strength")?;
        let image = parse_image("image_url", image)?;
        server.edit(&mut wish.draft, vec![("image_url".into(), image)])?;
    }
    // Together's words for references.
    let references = images_to_edit(fields, "reference_images")?;
    server.refer(&mut wish.draft, references)?;
    Ok(wish)
}

/// Images with a prompt for what is to become of them: see [`Server::edit`].
async fn edits(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let (fields, images, mask) = match body.content_type.starts_with("multipart/") {
        true => {
            let Form { fields, files } = form(&body).await?;
            let is_image = |file: &&FormFile| ["image", "image[]"].contains(&&*file.field);
            let images = files.iter().filter(is_image);
            let images = images.map(|file| ("image".into(), file.bytes.clone())).collect();
            let mask = files.iter().find(|file| file.field == "mask");
            (fields, images, mask.map(|file| file.bytes.clone()))
        }
        false => {
            let body = body.json()?;
            let images = images_of(&server, &owner.0, &body)?;
            let mask = mask_of(&server, &owner.0, &body)?;
            (Fields::of(&body)?.0.clone(), images, mask)
        }
    };
    let wish = edit(&server, &Fields(&fields), images, mask)?;
    respond(server, owner, headers, wish, "image_edit").await
}

/// The images of a JSON body: inside it, or files that were uploaded.
fn images_of(server: &Server, owner: &str, body: &Value) -> Result<Vec<(String, Bytes)>, Fault> {
    let one = std::slice::from_ref(&body["image"]);
    let images = match (&body["images"], &body["image"]) {
        (Value::Array(images), _) | (_, Value::Array(images)) => images.as_slice(),
        (_, Value::Null) => &[],
        _ => one,
    };
    let read = |image| Ok(("image".to_string(), image_of(server, owner, "image", image)?));
    images.iter().map(read).collect()
}

/// The mask of a JSON body.
fn mask_of(server: &Server, owner: &str, body: &Value) -> Result<Option<Bytes>, Fault> {
    let mask = Some(&body["mask"]).filter(|mask| !mask.is_null());
    mask.map(|mask| image_of(server, owner, "mask", mask)).transpose()
}

/// An image inside a JSON body, or a file that was uploaded.
fn image_of(server: &Server, owner: &str, name: &str, image: &Value) -> Result<Bytes, Fault> {
    if let Some(id) = image["file_id"].as_str() {
        let file = blocking(|| files::read(server, owner, id));
        return file.map_err(|fault| fault.parameter(name));
    }
    let text = image["image_url"].as_str().or(image["image_url"]["url"].as_str());
    let refused = || Fault::invalid(name, format!("{name}: expected an image, or a file_id"));
    parse_image(name, text.or(image.as_str()).ok_or_else(refused)?)
}

/// Transparent pixels of the mask, or without one of the image, are repainted.
fn edit(
    server: &Server,
    fields: &Fields,
    images: Vec<(String, Bytes)>,
    mask: Option<Bytes>,
) -> Result<Wish, Fault> {
    let Some((_, first)) = images.first().cloned() else {
        return Err(Fault::invalid("image", "image: it is missing"));
    };
    let all = with_extra(fields)?;
    let fields = &Fields(all.as_ref().unwrap_or(fields.0));
    let mut wish = wish(fields)?;
    wish.draft.request.strength = fields.real("strength")?;
    set_mask_fields(fields, &mut wish.draft.request)?;
    if let Some(mask) = mask {
        let read = || DraftMask::read("mask", &mask, MaskMarks::Transparent, |_| ());
        wish.draft.mask = Some(blocking(read)?);
    }
    server.edit(&mut wish.draft, images)?;
    blocking(|| wish.draft.repaint_transparent("image"))?;
    let is_whole = wish.draft.input.is_some() && !wish.draft.is_masked();
    let request = &mut wish.draft.request;
    // References and masked images set the size by themselves.
    if is_whole && request.width.is_none() && request.height.is_none() {
        let size = image_size(&first, u64::MAX).map_err(|e| Fault::from(e).parameter("image"))?;
        let ratio = format!("{}:{}", size.0, size.1);
        let (width, height) = server.shape("image", &ratio, 1.0)?;
        (request.width, request.height) = (Some(width), Some(height));
    }
    Ok(wish)
}

/// The draft of a request in a batch of `owner`.
///
/// # Errors
/// Those of a request that comes alone.
pub fn batched(server: &Server, owner: &str, endpoint: &str, body: &Value) -> Result<Draft, Fault> {
    let fields = Fields::of(body)?;
    let wish = match endpoint.ends_with("/edits") {
        true => {
            let mask = mask_of(server, owner, body)?;
            edit(server, &fields, images_of(server, owner, body)?, mask)?
        }
        false => generation(server, &fields)?,
    };
    Ok(wish.draft)
}

async fn respond(
    server: Arc<Server>,
    owner: Owner,
    headers: HeaderMap,
    wish: Wish,
    event: &'static str,
) -> Result<Response, Fault> {
    let format = wish.draft.format;
    let (job, _) = server.submit(wish.draft, &owner).await?;
    let waiting = server.wait(job);
    if wish.stream {
        return Ok(streamed(server, waiting, wish.partial, format, event));
    }
    let sent = wish.sent;
    answer(waiting, move |server, job| body(server, &headers, job, sent), error).await
}

/// The answer with the images of a job.
///
/// # Errors
/// The fault of the job.
pub fn body(server: &Server, headers: &HeaderMap, job: &Job, sent: Sent) -> Result<Value, Fault> {
    let outputs = succeeded(job)?;
    let mut data = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        let kind = if sent == Sent::Links { "url" } else { "b64_json" };
        let mut item = json!({"index": index, "type": kind});
        if sent != Sent::Links {
            item["b64_json"] = json!(BASE64_STANDARD.encode(server.read_result(output)?));
        }
        if sent != Sent::Inline {
            item["url"] = json!(link(server, headers, output));
        }
        data.push(item);
    }
    let settings = job.settings.clone().unwrap_or_default();
    Ok(json!({
        "id": job.id,
        "object": "list",
        "created": job.created as u64,
        "model": job.spec.as_ref().map(|spec| &spec.model),
        "data": data,
        "output_format": job.spec.as_ref().map(|spec| &spec.format),
        "size": outputs.first().map(|o| format!("{}x{}", o.width, o.height)),
        "seed": settings["seed"],
        "steps": settings["steps"],
    }))
}

/// Events with partial images, then one for each image.
fn streamed(
    server: Arc<Server>,
    waiting: Waiting,
    partial: usize,
    format: Format,
    event: &'static str,
) -> Response {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        // If the client goes away, dropping `waiting` cancels the job.
        tokio::select! {
            () = sender.closed() => {}
            () = send(&server, waiting, partial, format, event, &sender) => {}
        }
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let event: Event = receiver.recv().await?;
        Some((Ok::<_, Infallible>(event), receiver))
    });
    let alive = KeepAlive::new().interval(std::time::Duration::from_secs(10));
    Sse::new(events).keep_alive(alive).into_response()
}

async fn send(
    server: &Server,
    mut waiting: Waiting,
    partial: usize,
    format: Format,
    event: &'static str,
    sender: &mpsc::Sender<Event>,
) {
    let one = |name: String, mut data: Value| {
        data["type"] = json!(name);
        data["created_at"] = json!(server.now() as u64);
        Event::default().event(name).data(data.to_string())
    };
    let channel = server.events.channel(&waiting.job.id);
    let mut changed = channel.watch();
    let (mut after, mut sent, mut over) = (0, 0, false);
    while !over {
        changed.borrow_and_update();
        for event_of_job in channel.after(after) {
            after = event_of_job.number;
            let data = &event_of_job.data;
            if event_of_job.name == "status" {
                let state = data["status"].as_str().and_then(JobState::parse);
                over |= state.is_some_and(JobState::is_final);
            }
            let progress = channel.progress();
            let due = progress.step * (partial + 1) >= (sent + 1) * progress.steps;
            if event_of_job.name == "preview" && sent < partial && due {
                let image = json!({
                    "b64_json": data["data"], "partial_image_index": sent,
                    "output_format": "jpeg",
                    "size": format!("{}x{}", data["width"], data["height"]),
                    "quality": "auto", "background": "opaque",
                });
                sent += 1;
                sender.send(one(format!("{event}.partial_image"), image)).await.ok();
            }
        }
        if !over && changed.changed().await.is_err() {
            break;
        }
    }
    let ended = waiting.end().await;
    let outputs = ended.as_ref().map_err(Clone::clone).and_then(succeeded);
    let outputs = match outputs {
        Ok(outputs) => outputs,
        Err(fault) => {
            sender.send(Event::default().data(error(&fault).to_string())).await.ok();
            return;
        }
    };
    for (index, output) in outputs.iter().enumerate() {
        let event = match server.read_result(output) {
            Ok(bytes) => one(
                format!("{event}.completed"),
                json!({
                    "b64_json": BASE64_STANDARD.encode(bytes), "index": index,
                    "output_format": format.name(), "quality": "auto", "background": "opaque",
                    "size": format!("{}x{}", output.width, output.height),
                }),
            ),
            Err(fault) => Event::default().data(error(&fault).to_string()),
        };
        sender.send(event).await.ok();
    }
}
