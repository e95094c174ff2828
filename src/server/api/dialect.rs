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
