//! The paths of comfyui-tooling-nodes, by which the plugin Krita AI Diffusion learns of models, and
//! what it insists on.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};

use super::prompts::Id;
use crate::pipeline::ModelInputs;
use crate::server::fault::Fault;
use crate::server::state::{Server, blocking};

/// Nodes that the plugin refuses to connect without, although it needs none of them for FLUX.
const STAND_INS: [&str; 5] = [
    "InpaintPreprocessor",
    "DepthAnythingV2Preprocessor",
    "IPAdapterModelLoader",
    "IPAdapter",
    "INPAINT_LoadFooocusInpaint",
];
/// Headers that only the plugin sends together: nothing else tells it from other clients.
const HEADERS: [&str; 2] = ["ngrok-skip-browser-warning", "skip_zrok_interstitial"];

/// Whether a request comes from the plugin.
pub fn is_krita(headers: &HeaderMap) -> bool {
    HEADERS.iter().all(|name| headers.contains_key(*name))
}

/// Adds the nodes that the plugin insists on to `/object_info`. A graph with one of them is refused
/// by its name.
pub fn add_stand_ins(info: &mut Value) {
    for class in STAND_INS {
        let name = format!("{class} (not available)");
        let input = match class {
            "IPAdapterModelLoader" => json!({"ipadapter_file": [[]]}),
            _ => json!({}),
        };
        info[class] = json!({
            "input": {"required": input, "optional": {}},
            "input_order": {"required": [], "optional": []},
            "output": [], "output_is_list": [], "output_name": [],
            "name": class, "display_name": name, "python_module": "nodes",
            "description": "listed for Krita AI Diffusion only, and refused",
            "category": "flux-fast", "output_node": false, "deprecated": true,
        });
    }
}

/// The family of a model in the words of that package.
fn family(name: &str, inputs: Option<ModelInputs>) -> Value {
    let inputs = inputs.unwrap_or_default();
    let name = name.to_lowercase();
    if inputs.references && !inputs.kontext_sizes {
        let kind = if name.contains("9b") { "klein-9b" } else { "klein-4b" };
        return json!({"base_model": "flux2", "type": kind, "is_inpaint": false});
    }
    let base = match inputs.needs_control {
        // The plugin has no word for them, and leaves them out.
        true => "flux-control",
        false if name.contains("schnell") => "flux-schnell",
        false => "flux",
    };
    json!({"base_model": base, "is_inpaint": inputs.needs_mask})
}

/// The models of a folder, `limit` of them from `offset` on. All are checkpoints, since the server
/// finds their other parts itself.
pub async fn model_info(
    State(server): State<Arc<Server>>,
    folder: Option<Id>,
    Query(query): Query<HashMap<String, String>>,
) -> Json<Value> {
    let models = match folder.as_ref().map_or("checkpoints", |Path(folder)| folder.as_str()) {
        "checkpoints" => blocking(|| server.models.models()),
        _ => Vec::new(),
    };
    let number = |name: &str| query.get(name).and_then(|number| number.parse::<usize>().ok());
    let (offset, limit) = (number("offset").unwrap_or(0), number("limit"));
    let default = server.models.default_name();
    let page = models.iter().skip(offset).take(limit.unwrap_or(usize::MAX));
    let info = page.map(|model| {
        let inputs = if model.name == default { server.worker().inputs } else { model.inputs };
        (model.name.clone(), family(&model.name, inputs))
    });
    let mut info: Map<String, Value> = info.collect();
    if limit.is_some() {
        let count = info.len();
        let meta = json!({"offset": offset, "count": count, "total": models.len()});
        info.insert("_meta".into(), meta);
    }
    Json(info.into())
}

/// The server has no translator.
pub async fn languages() -> Json<Value> {
    Json(json!([]))
}

/// Workflows are not published here, so a subscriber hears nothing.
pub async fn subscribe() -> Json<Value> {
    Json(json!({"status": "success"}))
}

/// LoRAs come from the folders of the server.
pub async fn upload(Path((folder, _)): Path<(String, String)>) -> Fault {
    let message = format!("files cannot be uploaded into the folder {folder} of this server");
    Fault::new(403, "forbidden", message)
        .hint("put the file into a folder of models on the server's machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_in_the_words_of_the_plugin() {
        let klein = ModelInputs { references: true, ..ModelInputs::default() };
        assert_eq!(family("FLUX.2-klein-9B", Some(klein))["type"], "klein-9b");
        assert_eq!(family("my-klein", Some(klein))["type"], "klein-4b");
        let kontext = Some(ModelInputs { kontext_sizes: true, ..klein });
        assert_eq!(family("flux1-kontext-dev", kontext)["base_model"], "flux");
        let fill = Some(ModelInputs { needs_mask: true, ..ModelInputs::default() });
        assert_eq!(family("fill", fill), json!({"base_model": "flux", "is_inpaint": true}));
        assert_eq!(family("flux1-schnell", None)["base_model"], "flux-schnell");
        let canny = Some(ModelInputs { needs_control: true, ..ModelInputs::default() });
        assert_eq!(family("canny", canny)["base_model"], "flux-control");
    }
}
