//! Which API a path belongs to: it decides the form of errors.

use serde_json::Value;

use super::{a1111, blackforest, comfy, fal, huggingface, mcp, native, openai, replicate, sdcpp};
use crate::server::fault::Fault;

/// The form of errors under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Native,
    OpenAi,
    A1111,
    BlackForest,
    Replicate,
    Fal,
    HuggingFace,
    SdCpp,
    Comfy,
    Mcp,
}

/// Fields that several APIs have, with the names that they have here.
const STEPS: (&str, &str) = ("steps", "num_inference_steps");
const GUIDANCE: (&str, &str) = ("guidance", "guidance_scale");
const CFG: (&str, &str) = ("cfg_scale", "true_cfg_scale");
const NEGATIVE: (&str, &str) = ("negative", "negative_prompt");

impl Dialect {
    /// The dialect of a path.
    pub fn of(path: &str) -> Self {
        if let Some(rest) = path.strip_prefix("/v1/") {
            match rest.split('/').next().unwrap_or_default() {
                "predictions" => Dialect::Replicate,
                "models" if rest.ends_with("/predictions") => Dialect::Replicate,
                "get_result" | "credits" | "my_finetunes" => Dialect::BlackForest,
                name if name.starts_with("flux") => Dialect::BlackForest,
                _ => Dialect::OpenAi,
            }
        } else if path.starts_with("/fal/") {
            Dialect::Fal
        } else if comfy::is_own(path) {
            Dialect::Comfy
        } else if path == "/mcp" {
            Dialect::Mcp
        } else if path.starts_with("/hf/") {
            Dialect::HuggingFace
        } else if path.starts_with("/sdcpp/") {
            Dialect::SdCpp
        } else if ["/sdapi/", "/internal/", "/controlnet/"].iter().any(|p| path.starts_with(p)) {
            Dialect::A1111
        } else {
            Dialect::Native
        }
    }

    /// The fields of this API whose names are not those of the engine and of the checks that all
    /// APIs share, with these.
    fn fields(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Dialect::Native => &[
                ("controlnet", "controlnets"),
                ("lora", "loras"),
                ("style", "styles"),
                ("reference", "references"),
                ("image", "init"),
            ],
            Dialect::OpenAi => {
                &[("count", "n"), ("lora", "loras"), CFG, NEGATIVE, ("references", "image")]
            }
            Dialect::A1111 => &[
                ("count", "batch_size"),
                ("guidance", "distilled_cfg_scale"),
                ("strength", "denoising_strength"),
                ("controlnet", "alwayson_scripts"),
                ("controlnets", "alwayson_scripts"),
                CFG,
                NEGATIVE,
            ],
            Dialect::BlackForest => &[
                ("style", "image_prompt"),
                ("styles", "image_prompt"),
                ("control", "control_image"),
                ("reference", "input_image"),
                ("references", "input_image"),
                ("lora", "finetune_id"),
            ],
            Dialect::Replicate => &[
                STEPS,
                ("count", "num_outputs"),
                ("strength", "prompt_strength"),
                ("style", "redux_image"),
                ("styles", "redux_image"),
                ("control", "control_image"),
                ("reference", "input_images"),
                ("references", "input_images"),
                ("lora", "loras"),
                CFG,
                NEGATIVE,
            ],
            Dialect::Fal => &[
                STEPS,
                GUIDANCE,
                ("count", "num_images"),
                ("size", "image_size"),
                ("image", "image_url"),
                ("mask", "mask_url"),
                ("style", "image_url"),
                ("styles", "image_url"),
                ("control", "control_image_url"),
                ("reference", "image_urls"),
                ("references", "image_urls"),
                ("controlnet", "controlnets"),
                ("lora", "loras"),
                ("cfg_scale", "real_cfg_scale"),
                NEGATIVE,
            ],
            Dialect::HuggingFace => {
                &[STEPS, GUIDANCE, CFG, NEGATIVE, ("mask", "mask_image"), ("lora", "loras")]
            }
            Dialect::SdCpp => &[
                ("steps", "sample_steps"),
                ("guidance", "distilled_guidance"),
                ("count", "batch_count"),
                ("image", "init_image"),
                ("mask", "mask_image"),
                ("control", "control_image"),
                ("reference", "ref_images"),
                ("references", "ref_images"),
                ("controlnet", "control_net"),
                ("controlnets", "control_net"),
                CFG,
                NEGATIVE,
            ],
            Dialect::Mcp => &[("count", "n"), ("reference", "references")],
            Dialect::Comfy => &[],
        }
    }

    /// `fault` with the name that its parameter has in this API.
    pub fn named(self, mut fault: Fault) -> Fault {
        let found = fault
            .parameter
            .as_deref()
            .and_then(|parameter| self.fields().iter().find(|(shared, _)| *shared == parameter));
        if let Some((shared, own)) = found {
            let rest = fault.message.strip_prefix(shared).filter(|rest| rest.starts_with(": "));
            if let Some(rest) = rest {
                fault.message = format!("{own}{rest}");
            }
            fault.parameter = Some(own.to_string());
        }
        fault
    }

    /// The body of an error; `id` is that of the request.
    pub fn error(self, fault: &Fault, id: &str) -> Value {
        match self {
            Dialect::Native => native::error(fault, Some(id)),
            Dialect::OpenAi => openai::error(fault),
            Dialect::A1111 => a1111::error(fault),
            Dialect::BlackForest => blackforest::error(fault),
            Dialect::Replicate => replicate::error(fault),
            Dialect::Fal => fal::error(fault),
            Dialect::HuggingFace => huggingface::error(fault),
            Dialect::SdCpp => sdcpp::error(fault),
            Dialect::Comfy => comfy::error(fault),
            Dialect::Mcp => mcp::error(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_names_of_the_request() {
        let steps = Fault::invalid("steps", "steps: out of range");
        for (path, name) in [
            ("/api/v2/jobs", "steps"),
            ("/v1/predictions", "num_inference_steps"),
            ("/fal/run/x", "num_inference_steps"),
            ("/sdcpp/v1/img_gen", "sample_steps"),
        ] {
            let fault = Dialect::of(path).named(steps.clone());
            assert_eq!(fault.parameter.as_deref(), Some(name));
            assert_eq!(fault.message, format!("{name}: out of range"));
        }
        let other = Fault::new(404, "x", "there is no controlnet of this name");
        let fault = Dialect::Native.named(other.parameter("controlnet"));
        assert_eq!(fault.parameter.as_deref(), Some("controlnets"));
        assert_eq!(fault.message, "there is no controlnet of this name");
    }
}
