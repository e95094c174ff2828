//! The text-to-image and image-to-image tasks of Hugging Face: `POST /hf/{model}`, which answers
//! with the image itself.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use serde_json::{Map, Value, json};

use super::shared::{image, optional_image, sentence};
use super::unused::{refuse_numbers, refuse_words};
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::Request;
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::masks::DraftMask;
use crate::server::state::{Server, blocking};
use crate::server::wait::succeeded;

/// The paths of this API. Clients put the model's name into the address, with or without `models/`.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/hf", post(default)).route("/hf/{*model}", post(named))
}

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    json!({"error": sentence(fault), "error_type": fault.code})
}

async fn default(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    draw(server, owner, &headers, body, None).await
}

async fn named(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Whole,
) -> Result<Response, Fault> {
    let model = model.strip_prefix("models/").unwrap_or(&model).to_string();
    draw(server, owner, &headers, body, Some(model)).await
}

/// Hanging up cancels the job.
async fn draw(
    server: Arc<Server>,
    owner: Owner,
    headers: &HeaderMap,
    body: Whole,
    model: Option<String>,
) -> Result<Response, Fault> {
    let mut draft = draft(&server, &body, model)?;
    let accept = headers.get("accept").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wanted = accept.split([',', ';']).filter_map(|kind| kind.trim().strip_prefix("image/"));
    draft.format = wanted.filter_map(Format::parse).next().unwrap_or(Format::Png);
    let (job, _) = server.submit(draft, &owner).await?;
    let job = server.wait(job).end().await?;
    let output = succeeded(&job)?.first().ok_or_else(|| Fault::internal("the job has no image"))?;
    Ok(image(server.read_result(output)?, &output.file))
}

/// `inputs` is the prompt, or the image to start from if `parameters` has a prompt.
fn draft(server: &Server, body: &Whole, model: Option<String>) -> Result<Draft, Fault> {
    if body.content_type.starts_with("image/") {
        return Err(Fault::invalid("prompt", "prompt: an image alone says nothing")
            .hint("send JSON with `inputs` (the image in base64) and `parameters.prompt`"));
    }
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let none = Map::new();
    let parameters = match fields.get("parameters") {
        None => Fields(&none),
        Some(Value::Object(map)) => Fields(map),
        Some(_) => return Err(Fault::invalid("parameters", "parameters: expected an object")),
    };
    let Some(inputs) = fields.long_text("inputs")? else {
        return Err(Fault::invalid("inputs", "inputs: it is missing"));
    };
    // Images next to the prompt are those of older clients.
    let image = |name: &str| match optional_image(&parameters, name)? {
        Some(image) => Ok(Some(image)),
        None => optional_image(&fields, name),
    };
    let (prompt, input) = match parameters.text("prompt")? {
        Some(prompt) => (prompt, Some(parse_image("inputs", inputs)?)),
        None => (fields.text("inputs")?.unwrap_or_default(), image("image")?),
    };
    refuse_words(
        &parameters,
        &[("scheduler", &["euler", "FlowMatchEulerDiscreteScheduler"])],
        "images are drawn with Euler's method",
    )?;
    refuse_numbers(&parameters, &[("num_images_per_prompt", &[1.0])], "the answer is one image")?;
    let mut request = Request::new(prompt).loras(parameters.loras("loras")?);
    request.steps = parameters.whole("num_inference_steps")?;
    request.guidance = parameters.real("guidance_scale")?;
    request.seed = parameters.seed("seed")?;
    request.strength = parameters.real("strength")?;
    // Frontends send a negative prompt to every model; it costs twice the time.
    request.cfg_scale = parameters.real("true_cfg_scale")?.filter(|scale| *scale != 1.0);
    if request.cfg_scale.is_some() {
        request.negative = parameters.text("negative_prompt")?.map(str::to_string);
    }
    let size = match parameters.get("target_size") {
        Some(Value::Object(size)) => Fields(size),
        _ => Fields(parameters.0),
    };
    request.width = size.whole("width")?;
    request.height = size.whole("height")?;
    let mut draft = Draft::new(request, "huggingface");
    draft.model = model;
    draft.control = image("control_image")?;
    if let Some(mask) = image("mask_image")? {
        let read = || DraftMask::read("mask_image", &mask, MaskMarks::TransparentOrWhite, |_| ());
        draft.mask = Some(blocking(read)?);
    }
    if let Some(image) = input {
        server.edit(&mut draft, vec![("inputs".into(), image)])?;
    }
    Ok(draft)
}
