//! The lists that clients request when they start.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::etn;
use super::nodes::{self, CLIPS, Lists, VAES};
use super::prompts::Id;
use super::store;
use crate::host;
use crate::server::access::Owner;
use crate::server::fault::Fault;
use crate::server::state::{Server, blocking};

/// The folders of models.
const FOLDERS: [&str; 9] = [
    "checkpoints",
    "diffusion_models",
    "unet_gguf",
    "loras",
    "controlnet",
    "vae",
    "text_encoders",
    "clip",
    "upscale_models",
];

fn lists(server: &Server, owner: &Owner) -> Result<Lists, Fault> {
    let names = |listed: Vec<crate::server::models::Listed>| {
        listed.into_iter().map(|listed| listed.name).collect()
    };
    blocking(|| {
        Ok(Lists {
            models: names(server.models.models()),
            loras: names(server.models.loras()),
            controlnets: names(server.models.controlnets()),
            styles: server.models.has_style_networks(),
            images: store::names(server, owner)?,
        })
    })
}

pub async fn object_info(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let mut info = nodes::object_info(&lists(&server, &owner)?);
    if etn::is_krita(&headers) {
        etn::add_stand_ins(&mut info);
    }
    Ok(Json(info))
}

/// An empty object for a class that is not known, as in ComfyUI.
pub async fn object_info_of(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(class): Id,
) -> Result<Json<Value>, Fault> {
    let Some(node) = nodes::find(&class) else { return Ok(Json(json!({}))) };
    let info = node.info(&lists(&server, &owner)?);
    Ok(Json(json!({class: info})))
}

pub async fn folders() -> Json<Value> {
    Json(json!(FOLDERS))
}

pub async fn folder(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(folder): Id,
) -> Result<Json<Value>, Fault> {
    let lists = lists(&server, &owner)?;
    Ok(Json(match folder.as_str() {
        "checkpoints" | "diffusion_models" | "unet_gguf" | "unet" => json!(lists.models),
        "loras" => json!(lists.loras),
        "controlnet" => json!(lists.controlnets),
        "vae" => json!(VAES),
        "text_encoders" | "clip" => json!(CLIPS),
        "upscale_models" => json!(nodes::UPSCALERS.map(|(name, _)| name)),
        _ => return Err(Fault::not_found("there is no folder of this name")),
    }))
}

pub async fn system_stats(State(server): State<Arc<Server>>) -> Json<Value> {
    let facts = host::memory_facts();
    let (total, free) = facts.map_or((0, 0), |facts| (facts.total_bytes, facts.available_bytes));
    let device = server.options.engine.device.to_string();
    Json(json!({
        "system": {
            "os": std::env::consts::OS,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": "0.3.75",
            "python_version": "",
            "pytorch_version": "",
            "embedded_python": false,
            "argv": ["flux-fast", "serve"],
            "flux_fast_version": env!("CARGO_PKG_VERSION"),
        },
        // The worker owns the device: what it has is not known here.
        "devices": [{
            "name": device, "type": device, "index": 0, "vram_total": total, "vram_free": free,
            "torch_vram_total": total, "torch_vram_free": free,
        }],
    }))
}
