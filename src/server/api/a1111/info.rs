//! The text `info` of an answer.

use serde_json::{Value, json};

use crate::pipeline::images::metadata;
use crate::pipeline::request::Settings;
use crate::server::api::controlnet;
use crate::server::job::{Job, calendar};

/// The text `info`, each field of which one client or another insists on.
pub fn info(job: &Job, settings: &Settings, body: &Value, count: usize) -> Value {
    let negative = settings.negative.clone().unwrap_or_default();
    let texts: Vec<String> = (0..count).map(|index| metadata::write(settings, index)).collect();
    let mut notes = json!({
        "Schedule type": "Simple",
        "Distilled CFG Scale": settings.guidance,
    });
    if let Some(steps) = body["steps"].as_u64().filter(|s| count > 0 && *s != settings.steps as u64)
    {
        notes["Steps asked for"] = json!(steps);
    }
    let asked = |name: &str, drawn: &[&str]| {
        let word = body[name].as_str().filter(|word| !word.is_empty())?;
        let is_drawn = drawn.iter().any(|other| other.eq_ignore_ascii_case(word));
        (!is_drawn).then(|| json!(word))
    };
    // `sampler_index` is the older name.
    let sampler = asked("sampler_name", &["Euler"]).or_else(|| asked("sampler_index", &["Euler"]));
    if let Some(sampler) = sampler {
        notes["Sampler asked for"] = sampler;
    }
    if let Some(scheduler) = asked("scheduler", &["Simple", "Automatic"]) {
        notes["Schedule type asked for"] = scheduler;
    }
    if let Some(negative) = asked("negative_prompt", &[negative.as_str()]) {
        notes["Negative prompt without effect"] = negative;
    }
    if settings.strength.is_some() {
        notes["Resize mode"] = json!("Crop and resize");
    }
    controlnet::notes(settings).for_each(|(name, text)| notes[name] = json!(text));
    if job.spec.as_ref().is_some_and(|spec| spec.has_mask) {
        notes["Mask blur"] = json!(settings.mask_blur);
        notes["Masked area padding"] = json!(settings.mask_padding);
        // What is under the mask is what is painted over, whatever was asked for.
        notes["Masked content"] = json!("original");
    }
    let seconds = job.started.unwrap_or(job.created) as i64;
    json!({
        "prompt": settings.prompt,
        "all_prompts": vec![&settings.prompt; count],
        "negative_prompt": negative,
        "all_negative_prompts": vec![&negative; count],
        "seed": settings.seed,
        "all_seeds": vec![settings.seed; count],
        "subseed": -1,
        "all_subseeds": vec![-1; count],
        "subseed_strength": 0,
        "width": settings.width,
        "height": settings.height,
        "sampler_name": "Euler",
        "cfg_scale": settings.cfg_scale,
        "steps": settings.steps,
        "batch_size": settings.count,
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": settings.model,
        "sd_model_hash": settings.model_hash,
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": settings.strength,
        "extra_generation_params": notes,
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": timestamp(seconds),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": false,
        "version": concat!("flux-fast ", env!("CARGO_PKG_VERSION")),
    })
}

/// `20261129152500`, in UTC, of seconds since 1970.
pub fn timestamp(seconds: i64) -> String {
    let [year, month, day, hour, minute, second] = calendar(seconds);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "19700101000000"),
            (951_782_400, "20000229000000"),
            (1_796_052_300, "20261130152500"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }
}
