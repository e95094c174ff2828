//! ComfyUI's text `workflow`: the graph as its editor draws it. It has the values of a node as a
//! list without names, so only nodes whose lists are known are turned into nodes of a graph.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// The editor puts a choice after each seed ("randomize"), which is not an input.
const CONTROL: &str = "";

/// The names of the values of a node, in the order of its list.
const VALUES: [(&str, &[&str]); 21] = [
    ("KSampler", &["seed", CONTROL, "steps", "cfg", "sampler_name", "scheduler", "denoise"]),
    (
        "KSamplerAdvanced",
        &[
            "add_noise",
            "noise_seed",
            CONTROL,
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "start_at_step",
            "end_at_step",
        ],
    ),
    ("CLIPTextEncode", &["text"]),
    ("CLIPTextEncodeFlux", &["clip_l", "t5xxl", "guidance"]),
    ("FluxGuidance", &["guidance"]),
    ("EmptyLatentImage", &["width", "height", "batch_size"]),
    ("EmptySD3LatentImage", &["width", "height", "batch_size"]),
    ("RandomNoise", &["noise_seed", CONTROL]),
    ("KSamplerSelect", &["sampler_name"]),
    ("BasicScheduler", &["scheduler", "steps", "denoise"]),
    ("CFGGuider", &["cfg"]),
    ("UNETLoader", &["unet_name"]),
    ("UnetLoaderGGUF", &["unet_name"]),
    ("CheckpointLoaderSimple", &["ckpt_name"]),
    ("LoraLoader", &["lora_name", "strength_model", "strength_clip"]),
    ("LoraLoaderModelOnly", &["lora_name", "strength_model"]),
    ("ModelSamplingFlux", &["max_shift", "base_shift", "width", "height"]),
    ("PrimitiveNode", &["value", CONTROL]),
    ("PrimitiveInt", &["value", CONTROL]),
    ("PrimitiveFloat", &["value"]),
    ("PrimitiveString", &["value"]),
];

/// Whether `object` is a workflow.
pub fn is_workflow(object: &Map<String, Value>) -> bool {
    let is_list = |key: &str| object.get(key).is_some_and(Value::is_array);
    is_list("nodes") && is_list("links")
}

/// The graph of a workflow. Nodes that are switched off are left out, and links pass through nodes
/// that only pass on.
pub fn to_graph(workflow: &Map<String, Value>) -> Map<String, Value> {
    let list = |key: &str| workflow[key].as_array().map(Vec::as_slice).unwrap_or_default();
    // Number of the link, then the node it comes from and its output.
    let links: HashMap<u64, (String, u64)> = list("links")
        .iter()
        .filter_map(|link| {
            let from = id_of(link.get(1)?)?;
            Some((link.get(0)?.as_u64()?, (from, link.get(2)?.as_u64()?)))
        })
        .collect();
    let nodes: HashMap<String, &Value> =
        list("nodes").iter().filter_map(|node| Some((id_of(node.get("id")?)?, node))).collect();
    let mut graph = Map::new();
    for node in list("nodes") {
        let Some((id, class)) = node.get("id").and_then(id_of).zip(class_of(node)) else {
            continue;
        };
        if is_off(node) || passes_on(node) {
            continue;
        }
        let mut inputs = values(node, class);
        for input in inputs_of(node) {
            let link = input.get("link").and_then(Value::as_u64);
            if let (Some(name), Some(link)) = (input["name"].as_str(), link)
                && let Some((from, slot)) = source(link, &links, &nodes)
            {
                inputs.insert(name.into(), json!([from, slot]));
            }
        }
        graph.insert(id, json!({"class_type": class, "inputs": inputs}));
    }
    graph
}

/// The name of a node: ComfyUI numbers them.
fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn class_of(node: &Value) -> Option<&str> {
    node.get("type")?.as_str()
}

fn inputs_of(node: &Value) -> &[Value] {
    node.get("inputs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Muted: it is not run.
fn is_off(node: &Value) -> bool {
    node.get("mode").and_then(Value::as_u64) == Some(2)
}

/// Bypassed, or made only to bend a link.
fn passes_on(node: &Value) -> bool {
    node.get("mode").and_then(Value::as_u64) == Some(4) || class_of(node) == Some("Reroute")
}

/// The node and output that a link comes from, through nodes that pass on.
fn source(
    link: u64,
    links: &HashMap<u64, (String, u64)>,
    nodes: &HashMap<String, &Value>,
) -> Option<(String, u64)> {
    let mut link = link;
    // Each link once at most: there may be circles.
    for _ in 0..=links.len() {
        let (from, slot) = links.get(&link)?;
        let node = *nodes.get(from)?;
        if !passes_on(node) {
            return Some((from.clone(), *slot));
        }
        // A bypassed node passes on the input of the same type.
        let kind = node.get("outputs").and_then(|o| o.get(*slot as usize)?.get("type"));
        let same = inputs_of(node).iter().find(|i| {
            class_of(node) == Some("Reroute") || kind.is_none_or(|kind| i.get("type") == Some(kind))
        });
        link = same?.get("link")?.as_u64()?;
    }
    None
}

/// The values in a node, by name.
fn values(node: &Value, class: &str) -> Map<String, Value> {
    let mut named = Map::new();
    match node.get("widgets_values") {
        Some(Value::Object(values)) => named.extend(values.clone()),
        Some(Value::Array(values)) => {
            let known = VALUES.iter().find(|(name, _)| *name == class).map(|(_, names)| *names);
            let from_inputs: Vec<&str> = inputs_of(node)
                .iter()
                .filter_map(|i| i.get("widget")?.get("name")?.as_str())
                .collect();
            let names = known.unwrap_or(&from_inputs);
            let pairs = names.iter().zip(values).filter(|(name, _)| **name != CONTROL);
            named.extend(pairs.map(|(name, value)| (name.to_string(), value.clone())));
        }
        _ => {}
    }
    named
}
