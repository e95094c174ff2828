//! AUTOMATIC1111's `/sdapi/v1`.

mod info;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::controlnet;
use super::unused::{refuse_fields, refuse_numbers};
use crate::pipeline::images::{Format, MaskMarks, decode, encode, metadata, provenance_of};
use crate::pipeline::request::{Mask, Request, Settings};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, State as JobState};
use crate::server::masks::{DraftMask, invert, round};
use crate::server::state::{Server, blocking};
use crate::server::wait::{answer, succeeded};
use info::{info, timestamp};

/// The name of this API in jobs.
const DIALECT: &str = "a1111";
/// The blur of masks of that API, in pixels.
const MASK_BLUR: f32 = 4.0;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    let router = Router::new()
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/progress", get(progress))
        .route("/internal/progress", post(internal_progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(interrupt))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/sd-models", get(sd_models))
        .route("/sdapi/v1/loras", get(loras))
        .route("/sdapi/v1/png-info", post(png_info))
        .route("/sdapi/v1/unload-checkpoint", post(unload));
    // Clients request these when they start. They are the same for every model.
    let constant = |value: Value| get(move || std::future::ready(Json(value.clone())));
    let router = CONSTANTS.iter().fold(router, |router, (path, text)| {
        let value = serde_json::from_str(text).unwrap_or_default();
        router.route(&format!("/sdapi/v1/{path}"), constant(value))
    });
    let names = ["refresh-checkpoints", "refresh-loras", "refresh-vae", "reload-checkpoint"];
    names.iter().fold(router, |router, name| {
        router.route(&format!("/sdapi/v1/{name}"), post(async || Json(json!({}))))
    })
}

const CONSTANTS: [(&str, &str); 15] = [
    ("samplers", r#"[{"name": "Euler", "aliases": ["k_euler"], "options": {}}]"#),
    (
        "schedulers",
        r#"[{"name": "simple", "label": "Simple", "aliases": [], "default_rho": -1,
             "need_inner_model": false}]"#,
    ),
    ("upscalers", "[]"),
    ("latent-upscale-modes", "[]"),
    ("sd-vae", "[]"),
    ("sd-modules", "[]"),
    ("hypernetworks", "[]"),
    ("face-restorers", "[]"),
    ("realesrgan-models", "[]"),
    ("prompt-styles", "[]"),
    ("embeddings", r#"{"loaded": {}, "skipped": {}}"#),
    ("scripts", r#"{"txt2img": ["controlnet"], "img2img": ["controlnet"]}"#),
    ("script-info", "[]"),
    ("cmd-flags", "{}"),
    ("memory", r#"{"ram": {}, "cuda": {}}"#),
];

/// The body of an error.
pub fn error(fault: &Fault) -> Value {
    let hint = fault.hint.as_ref().map_or(String::new(), |hint| format!(" (try: {hint})"));
    json!({
        "error": fault.code,
        "detail": format!("{}{hint}", fault.message),
        "body": "",
        "errors": fault.message,
    })
}

/// Refuses what this server does not do; its neutral values pass, which clients always send.
fn refuse_unused(fields: &Fields) -> Result<(), Fault> {
    refuse_fields(
        fields,
        &["enable_hr", "firstpass_image", "refiner_checkpoint"],
        "an image is drawn in one pass: draw it in the final size",
    )?;
    refuse_fields(
        fields,
        &["restore_faces", "tiling", "script_name", "styles"],
        "this server draws from a prompt, images and a mask, and nothing else",
    )?;
    let whole_seed = "the whole noise comes from the seed";
    refuse_numbers(fields, &[("subseed_strength", &[0.0])], whole_seed)?;
    let sizes: [(&str, &[f32]); 2] =
        [("seed_resize_from_w", &[0.0, -1.0]), ("seed_resize_from_h", &[0.0, -1.0])];
    refuse_numbers(fields, &sizes, whole_seed)?;
    refuse_numbers(fields, &[("s_churn", &[0.0])], "the sampler adds no noise")
}

async fn txt2img(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Response, Fault> {
    let body = body.json()?;
    let draft = draft(&server, &owner, &Fields::of(&body)?)?;
    draw(server, owner, draft, body).await
}

async fn img2img(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Response, Fault> {
    let mut body = body.json()?;
    let fields = Fields::of(&body)?;
    let mut draft = draft(&server, &owner, &fields)?;
    let images = body["init_images"].as_array().map(Vec::as_slice);
    let Some([Value::String(image)]) = images else {
        return Err(Fault::invalid("init_images", "init_images: expected a list with one image"));
    };
    draft.input = Some(parse_image("init_images", image)?);
    draft.request.strength = fields.real("denoising_strength")?;
    blocking(|| inpaint(&mut draft, &fields))?;
    // They are not sent back.
    for name in ["init_images", "mask"] {
        if !body[name].is_null() {
            body[name] = Value::Null;
        }
    }
    draw(server, owner, draft, body).await
}

/// Reads the mask of `img2img`, and what belongs to it. Fields that are left out have the defaults
/// of that API: only the surroundings of the mask are drawn, and its edges are blurred.
fn inpaint(draft: &mut Draft, fields: &Fields) -> Result<(), Fault> {
    let mask = fields.long_text("mask")?.filter(|mask| !mask.is_empty());
    let Some(mask) = mask else { return Ok(()) };
    let is_inverted = is_set(fields, "inpainting_mask_invert")?.unwrap_or(false);
    let is_round = is_set(fields, "mask_round")?.unwrap_or(true);
    let fitted = |mask: &mut Mask| {
        if is_round {
            round(mask);
        }
    };
    let bytes = parse_image("mask", mask)?;
    draft.mask = Some(DraftMask::read("mask", &bytes, MaskMarks::OpaqueOrWhite, |mask| {
        fitted(mask);
        if is_inverted {
            invert(mask);
        }
    })?);
    let request = &mut draft.request;
    request.mask_blur = Some(match fields.real("mask_blur")? {
        Some(blur) => blur,
        // Both have one value here.
        None => fields.real("mask_blur_x")?.or(fields.real("mask_blur_y")?).unwrap_or(MASK_BLUR),
    });
    if is_set(fields, "inpaint_full_res")?.unwrap_or(true) {
        request.mask_padding = Some(fields.whole("inpaint_full_res_padding")?.unwrap_or(0));
    } else if let (Some(width), Some(height)) = (request.width, request.height) {
        draft.fit_masked("init_images", (width, height), fitted)?;
    }
    Ok(())
}

/// True or false, which some clients send as 1 or 0.
fn is_set(fields: &Fields, name: &str) -> Result<Option<bool>, Fault> {
    match fields.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(Some(number.as_f64() != Some(0.0))),
        Some(_) => fields.flag(name).map(Some),
    }
}

/// The fields that `txt2img` and `img2img` share. `cfg_scale` is not true CFG: all clients send it.
fn draft(server: &Server, owner: &Owner, fields: &Fields) -> Result<Draft, Fault> {
    refuse_unused(fields)?;
    let mut request = Request::new(fields.text("prompt")?.unwrap_or_default());
    request.width = fields.whole("width")?;
    request.height = fields.whole("height")?;
    request.guidance = fields.real("distilled_cfg_scale")?;
    request.seed = fields.seed("seed")?;
    let batch = fields.whole("batch_size")?.unwrap_or(1);
    request.count = Some(batch.saturating_mul(fields.whole("n_iter")?.unwrap_or(1)));
    request.cfg_scale = fields.real("true_cfg_scale")?.filter(|scale| *scale != 1.0);
    if request.cfg_scale.is_some() {
        request.negative = fields.text("negative_prompt")?.map(str::to_string);
    }
    let overrides = fields.get("override_settings").and_then(Value::as_object);
    let checkpoint = match overrides {
        Some(overrides) => Fields(overrides).text("sd_model_checkpoint")?,
        None => None,
    };
    // stable-diffusion.cpp's words, which its clients send here.
    request.loras = fields.loras("lora")?;
    let checkpoint = checkpoint.or(fields.text("model")?);
    let mut draft = Draft::new(request, DIALECT);
    draft.model = match checkpoint.filter(|title| !title.is_empty()) {
        Some(title) => Some(without_hash(title).to_string()),
        None => server.preferred(&owner.0),
    };
    let most = server.max_steps(draft.model.as_deref());
    draft.request.steps = fields.whole("steps")?.map(|steps| most.map_or(steps, |n| steps.min(n)));
    Ok(draft)
}

/// A title of the list of models as clients send it back.
pub fn without_hash(title: &str) -> &str {
    title.rsplit_once(" [").filter(|(_, hash)| hash.ends_with(']')).map_or(title, |(name, _)| name)
}

async fn draw(
    server: Arc<Server>,
    owner: Owner,
    mut draft: Draft,
    mut body: Value,
) -> Result<Response, Fault> {
    controlnet::add_units(&server, &mut draft, &mut body)?;
    let (job, _) = server.submit(draft, &owner).await?;
    let waiting = server.wait(job);
    answer(waiting, move |server, job| images(server, job, &body), error).await
}

/// The answer of `txt2img` and `img2img`. An interrupted job has no images.
fn images(server: &Server, job: &Job, body: &Value) -> Result<Value, Fault> {
    let outputs = match job.state {
        JobState::Canceled => &[],
        _ => succeeded(job)?,
    };
    let images: Vec<String> = outputs
        .iter()
        .map(|output| Ok(BASE64_STANDARD.encode(server.read_result(output)?)))
        .collect::<Result<_, Fault>>()?;
    let settings = job.settings.clone().unwrap_or_default();
    let settings: Settings = serde_json::from_value(settings).unwrap_or_default();
    Ok(json!({
        "images": images,
        "parameters": body,
        "info": info(job, &settings, body, images.len()).to_string(),
    }))
}

/// The job of `owner` that came through this API and runs, or waits if none runs.
fn current(server: &Server, owner: &Owner) -> Result<Option<Job>, Fault> {
    let mut jobs = blocking(|| server.broker.active(&owner.0))?;
    jobs.retain(|job| job.spec.as_ref().is_some_and(|spec| spec.dialect == DIALECT));
    let of = |states: &[JobState]| jobs.iter().find(|j| states.contains(&j.state)).cloned();
    Ok(of(&[JobState::Running, JobState::Canceling]).or_else(|| of(&[JobState::Queued])))
}

async fn progress(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, Fault> {
    let job = current(&server, &owner)?;
    let skip_image =
        query.get("skip_current_image").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let progress = job.as_ref().map(|job| server.events.channel(&job.id).progress());
    let progress = progress.unwrap_or_default();
    let image = progress.preview.as_ref().filter(|_| !skip_image);
    let image = image.and_then(|p| png_of(p["data"].as_str()?));
    Ok(Json(json!({
        "progress": progress.value(),
        "eta_relative": job.as_ref().and_then(|job| server.predicted_seconds(job)).unwrap_or(0.0),
        "state": {
            "skipped": false,
            "interrupted": job.as_ref().is_some_and(|j| j.state == JobState::Canceling),
            "stopping_generation": false,
            "job": job.as_ref().map_or("", |j| &j.id),
            "job_count": i32::from(job.is_some()),
            "job_timestamp": job.as_ref().map_or("0".into(), |j| timestamp(j.created as i64)),
            "job_no": 0,
            "sampling_step": progress.step,
            "sampling_steps": progress.steps,
        },
        "current_image": image,
        "textinfo": null,
    })))
}

/// A preview as a PNG in base64, which is what this API's clients expect.
fn png_of(jpeg: &str) -> Option<String> {
    let jpeg = BASE64_STANDARD.decode(jpeg).ok()?;
    let png = encode(&decode(&jpeg).ok()?, Format::Png, 90, "").ok()?;
    Some(BASE64_STANDARD.encode(png))
}

async fn internal_progress(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Result<Json<Value>, Fault> {
    let job = current(&server, &owner)?;
    let progress = job.as_ref().map(|job| server.events.channel(&job.id).progress());
    let preview = progress.as_ref().and_then(|p| p.preview.clone());
    let preview =
        preview.and_then(|p| Some(format!("data:image/jpeg;base64,{}", p["data"].as_str()?)));
    Ok(Json(json!({
        "active": job.as_ref().is_some_and(|j| j.state != JobState::Queued),
        "queued": job.as_ref().is_some_and(|j| j.state == JobState::Queued),
        "completed": job.is_none(),
        "progress": progress.map(|p| p.value()),
        "eta": job.as_ref().and_then(|job| server.predicted_seconds(job)),
        "live_preview": preview,
        "id_live_preview": 0,
    })))
}

/// Stops the caller's own running job, never another's.
async fn interrupt(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Result<Json<Value>, Fault> {
    if let Some(job) = current(&server, &owner)?.filter(|job| job.state == JobState::Running) {
        server.cancel(&job.id, &owner.0).await?;
    }
    Ok(Json(json!({})))
}

async fn options(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Json<Value> {
    let model = server.preferred(&owner.0);
    Json(json!({
        "sd_model_checkpoint": model.as_deref().unwrap_or(server.models.default_name()),
        "sd_checkpoint_hash": "",
        "samples_format": "png",
        "samples_save": false,
        "CLIP_stop_at_last_layers": 1,
        "sd_vae": "Automatic",
        "outdir_samples": "",
    }))
}

/// Sets the caller's default model, not everybody's. Clients send the whole object back.
async fn set_options(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    if let Some(title) = Fields::of(&body)?.text("sd_model_checkpoint")? {
        let model = blocking(|| server.models.find(Some(without_hash(title))))?;
        server.prefer(&owner.0, model.name)?;
    }
    Ok(Json(Value::Null))
}

async fn sd_models(State(server): State<Arc<Server>>) -> Json<Value> {
    let models = blocking(|| server.models.models());
    let list: Vec<Value> = models
        .iter()
        .map(|m| {
            json!({"title": m.name, "model_name": m.name, "hash": null, "sha256": null,
                   "filename": m.name, "config": null})
        })
        .collect();
    Json(json!(list))
}

async fn loras(State(server): State<Arc<Server>>) -> Json<Value> {
    let loras = blocking(|| server.models.loras());
    let list: Vec<Value> = loras
        .iter()
        .map(|l| json!({"name": l.name, "alias": l.name, "path": l.name, "metadata": {}}))
        .collect();
    Json(json!(list))
}

/// Frees the memory of the model, once its job is over.
async fn unload(State(server): State<Arc<Server>>) -> Json<Value> {
    server.unload();
    Json(json!({}))
}

/// The settings in an image.
async fn png_info(body: Whole) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    let image = parse_image("image", Fields::of(&body)?.long_text("image")?.unwrap_or_default())?;
    let settings = blocking(|| provenance_of(&image)).ok().map(|found| found.settings);
    let text = settings.as_ref().map_or(String::new(), |s| metadata::write(s, 0));
    Ok(Json(json!({
        "info": text,
        "items": {"parameters": text},
        "parameters": settings.map_or(json!({}), |s| json!(s)),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_come_back_with_or_without_their_hash() {
        assert_eq!(without_hash("flux1-dev [0123456789]"), "flux1-dev");
        assert_eq!(without_hash("flux1-dev"), "flux1-dev");
        assert_eq!(without_hash("a [b] c"), "a [b] c");
    }
}
