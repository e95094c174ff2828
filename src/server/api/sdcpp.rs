//! The API of stable-diffusion.cpp's server, `/sdcpp/v1`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::shared::{
    format, images_to_edit, mask, optional_image, quality_of, sentence, split_extra,
};
use super::unused::{refuse_fields, refuse_words};
use crate::pipeline::images::{Format, MaskMarks};
use crate::pipeline::request::{self, ControlNetChoice, Request};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::controlnets::mode_of;
use crate::server::draft::{Draft, parse_image};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState};
use crate::server::state::{Server, blocking};
use crate::server::wait::{expired, succeeded};

/// The strength of a ControlNet in that program.
const CONTROL_STRENGTH: f32 = 0.9;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/sdcpp/v1/img_gen", post(submit))
        .route("/sdcpp/v1/jobs/{id}", get(job))
        .route("/sdcpp/v1/jobs/{id}/cancel", post(cancel))
        .route("/sdcpp/v1/capabilities", get(capabilities))
}

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    json!({"error": fault.code, "message": sentence(fault)})
}

async fn submit(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Response, Fault> {
    let mut body = body.json()?;
    Fields::of(&body)?;
    take_extra(&mut body)?;
    let (job, _) = server.submit(draft(&server, &Fields::of(&body)?)?, &owner).await?;
    let mut answer = object(&server, &job)?;
    answer["poll_url"] = json!(format!("/sdcpp/v1/jobs/{}", job.id));
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Cuts further fields out of the prompt of `body`; they take precedence.
fn take_extra(body: &mut Value) -> Result<(), Fault> {
    let Some((prompt, extra)) = body["prompt"].as_str().map(split_extra).transpose()?.flatten()
    else {
        return Ok(());
    };
    if let Some(body) = body.as_object_mut() {
        body.insert("prompt".into(), json!(prompt));
        body.extend(extra);
    }
    Ok(())
}

/// The draft of a body. `txt_cfg` is not true CFG, since clients send one to every model;
/// `true_cfg_scale` is.
fn draft(server: &Server, fields: &Fields) -> Result<Draft, Fault> {
    refuse_fields(fields, &["hires"], "this server draws from a prompt and images in one pass")?;
    let none = Map::new();
    let part = |fields: &Fields, name: &str| match fields.get(name) {
        Some(Value::Object(map)) => Ok(map.clone()),
        None => Ok(none.clone()),
        Some(_) => Err(Fault::invalid(name, format!("{name}: expected an object"))),
    };
    let sample = part(fields, "sample_params")?;
    let sample = Fields(&sample);
    let guidance = part(&sample, "guidance")?;
    let guidance = Fields(&guidance);
    let words: [(&str, &[&str]); 2] = [
        ("sample_method", &["euler", "default"]),
        ("scheduler", &["simple", "default", "discrete"]),
    ];
    refuse_words(&sample, &words, "images are drawn with the method and schedule of capabilities")?;
    refuse_fields(&sample, &["custom_sigmas"], "the noise levels are the model's own")?;
    let mut request = Request::new(fields.text("prompt")?.unwrap_or_default());
    request.shift = sample.real("flow_shift")?.filter(|shift| *shift > 0.0);
    request.loras = fields.loras("lora")?;
    request.width = fields.whole("width")?;
    request.height = fields.whole("height")?;
    request.seed = fields.seed("seed")?;
    request.count = fields.whole("batch_count")?;
    request.steps = sample.whole("sample_steps")?.filter(|steps| *steps > 0);
    request.guidance = guidance.real("distilled_guidance")?;
    request.cfg_scale = guidance.real("true_cfg_scale")?.filter(|scale| *scale != 1.0);
    if request.cfg_scale.is_some() {
        request.negative = fields.text("negative_prompt")?.map(str::to_string);
    }
    let mut draft = Draft::new(request, "sdcpp");
    if let Some(image) = fields.long_text("init_image")?.filter(|image| !image.is_empty()) {
        draft.input = Some(parse_image("init_image", image)?);
        // It is sent with and without an image.
        draft.request.strength = fields.real("strength")?;
    }
    draft.mask = mask(fields, "mask_image", MaskMarks::TransparentOrWhite)?;
    if let (Some(width), Some(height)) = (draft.request.width, draft.request.height) {
        blocking(|| draft.fit_masked("init_image", (width, height), |_| ()))?;
    }
    set_control_image(server, &mut draft, fields)?;
    let images = images_to_edit(fields, "ref_images")?;
    server.refer(&mut draft, images)?;
    if let Some(name) = fields.text("output_format")?.filter(|name| !name.is_empty()) {
        draft.format = format(name)?;
    }
    if let Some(quality) = fields.whole("output_compression")? {
        draft.quality = quality_of(quality.max(1), "output_compression")?;
    }
    Ok(draft)
}

/// The control image, and the ControlNet that sees it. That program has one ControlNet for all
/// requests; here requests name theirs.
fn set_control_image(server: &Server, draft: &mut Draft, fields: &Fields) -> Result<(), Fault> {
    const NAME: &str = "control_net";
    let image = optional_image(fields, "control_image")?;
    let Some(name) = fields.text(NAME)?.filter(|name| !name.is_empty()) else {
        draft.control = image;
        return Ok(());
    };
    let Some(image) = image else {
        return Err(Fault::invalid(NAME, format!("{NAME}: it needs a control_image")));
    };
    let strength = fields.real("control_strength")?.unwrap_or(CONTROL_STRENGTH);
    let mut choice = ControlNetChoice::new(name, strength);
    if let Some(mode) = fields.text("control_mode")? {
        choice.mode = mode_of("control_mode", mode)?;
    }
    server.add_controlnet(draft, NAME, choice, image)
}

/// A job in the form of this API.
fn object(server: &Server, job: &Job) -> Result<Value, Fault> {
    let status = match job.state {
        JobState::Queued => "queued",
        JobState::Running | JobState::Canceling => "generating",
        JobState::Succeeded => "completed",
        JobState::Failed => "failed",
        JobState::Canceled => "cancelled",
        JobState::Expired => return Err(expired()),
    };
    let result = match job.state {
        JobState::Succeeded => {
            let mut images = Vec::new();
            for (index, output) in succeeded(job)?.iter().enumerate() {
                let bytes = BASE64_STANDARD.encode(server.read_result(output)?);
                images.push(json!({"index": index, "b64_json": bytes}));
            }
            let format = job.spec.as_ref().map_or(Format::Png, |spec| spec.format());
            json!({"output_format": format.name(), "images": images})
        }
        _ => Value::Null,
    };
    let (progress, position) = server.progress(job);
    Ok(json!({
        "id": job.id,
        "kind": "img_gen",
        "status": status,
        "created": job.created as u64,
        "started": job.started.map(|at| at as u64),
        "completed": job.finished.map(|at| at as u64),
        "queue_position": position.map_or(0, |position| position + 1),
        "progress": progress,
        "result": result,
        "error": job.fault.as_ref().map(|fault| {
            json!({"code": fault.code, "message": sentence(fault)})
        }),
    }))
}

async fn job(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let job = server.job(&id, &owner.0)?;
    blocking(|| object(&server, &job)).map(Json)
}

async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let job = server.cancel(&id, &owner.0).await?;
    blocking(|| object(&server, &job)).map(Json)
}

async fn capabilities(State(server): State<Arc<Server>>) -> Json<Value> {
    let loras = blocking(|| server.models.loras());
    let loras: Vec<Value> = loras.iter().map(|l| json!({"name": l.name, "path": l.name})).collect();
    let nets = blocking(|| server.models.controlnets());
    let nets: Vec<Value> = nets.iter().map(|n| json!({"name": n.name, "path": n.name})).collect();
    let name = server.models.default_name();
    let settings = server.worker().defaults.unwrap_or_default();
    let defaults = json!({
        "prompt": "", "negative_prompt": "", "clip_skip": -1,
        "width": settings["width"], "height": settings["height"], "strength": 0.75, "seed": -1,
        "batch_count": 1, "output_format": "png", "output_compression": 90,
        "sample_params": {
            "scheduler": "simple", "sample_method": "euler", "sample_steps": settings["steps"],
            "guidance": {
                "txt_cfg": 1.0, "img_cfg": 1.0,
                "distilled_guidance": settings["guidance"].as_f64().unwrap_or(3.5),
            },
        },
        "lora": [],
    });
    let formats = Format::ALL.map(Format::name);
    let inputs = server.worker().inputs.unwrap_or_default();
    let features = json!({
        "init_image": true, "mask_image": true,
        "control_image": inputs.needs_control || (inputs.controlnets && !nets.is_empty()),
        "ref_images": inputs.references,
        "lora": true, "vae_tiling": false, "hires": false, "cache": false,
        "cancel_queued": true, "cancel_generating": true,
    });
    Json(json!({
        "model": {"name": name, "stem": name, "path": name},
        "current_mode": "img_gen",
        "supported_modes": ["img_gen"],
        "defaults": defaults,
        "defaults_by_mode": {"img_gen": defaults},
        "output_formats": formats,
        "output_formats_by_mode": {"img_gen": formats},
        "features": features,
        "features_by_mode": {"img_gen": features},
        "samplers": ["euler"],
        "schedulers": ["simple"],
        "loras": loras,
        "control_nets": nets,
        "upscalers": [],
        "limits": {
            "min_width": request::MIN_SIDE, "max_width": request::MAX_SIDE,
            "min_height": request::MIN_SIDE, "max_height": request::MAX_SIDE,
            "max_batch_count": request::MAX_COUNT, "max_queue_size": server.options.max_queued,
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_inside_the_prompt_are_cut_out_and_honoured() {
        let mut body = json!({
            "prompt": "a fox<sd_cpp_extra_args>{\"seed\": 7}</sd_cpp_extra_args>, 3D", "seed": 1,
        });
        take_extra(&mut body).unwrap();
        assert_eq!(body, json!({"prompt": "a fox, 3D", "seed": 7}));
        for bad in ["x<sd_cpp_extra_args>{}", "<sd_cpp_extra_args>[]</sd_cpp_extra_args>"] {
            assert_eq!(take_extra(&mut json!({"prompt": bad})).unwrap_err().status, 422);
        }
    }
}
