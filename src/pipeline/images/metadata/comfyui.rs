//! ComfyUI's graph of nodes (the text `prompt`): from the node that saves the image back to the
//! sampler, and from there to the prompt, the size and the model.

use serde_json::{Map, Value};

use super::reading::{Reading, Writer, scalar};
use super::sampler::is_euler;
use crate::error::{Error, Result};

/// How many links are followed in a row. Graphs come from anyone and may have cycles.
const MAX_HOPS: usize = 200;

/// Links between nodes that change a conditioning.
const CONDITIONING: [&str; 4] = ["conditioning", "positive", "conditioning_1", "conditioning_to"];

/// Whether nodes of this class hold a text that a user typed, or show one. Others may make a text
/// of it, by a language model for instance.
fn holds_text(class: &str) -> bool {
    let class = class.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| class.contains(word));
    let holders = ["text", "string", "prompt", "primitive", "constant", "value", "positive"];
    let makers = [
        "generat", "llm", "gpt", "llama", "chat", "deepseek", "qwen", "mistral", "gemini",
        "claude", "florence", "caption", "translat", "random", "wildcard", "enhanc", "expand",
        "improve", "rewrite", "replace", "style", "interrog", "describe", "vision", "tagger",
        "image", "file", "load", "split", "regex", "case", "search", "template", "format",
    ];
    has(&holders) && !has(&makers)
}

/// Whether `object` is a graph: all members are nodes.
pub fn is_graph(object: &Map<String, Value>) -> bool {
    let is_node = |node: &Value| node.get("class_type").is_some_and(Value::is_string);
    !object.is_empty() && object.values().all(is_node)
}

/// What a graph says.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if it has no sampler with a prompt that is
/// understood.
pub fn read(nodes: &Map<String, Value>) -> Result<Reading> {
    let graph = Graph { nodes };
    let mut reading = Reading::new(Writer::ComfyUi);
    let sampler = graph.sampler(&mut reading)?;
    graph.read_sampler(sampler, &mut reading)?;
    Ok(reading)
}

fn not_understood(what: &str) -> Error {
    Error::argument(format!("ComfyUI's graph is not understood: {what}"))
        .at("prompt")
        .expected("one sampler with a text prompt")
        .try_("draw the image from its prompt, with the settings that the graph shows")
}

#[derive(Clone, Copy)]
struct Graph<'a> {
    nodes: &'a Map<String, Value>,
}

/// The name of a node in the graph.
type Id<'a> = &'a str;

impl<'a> Graph<'a> {
    fn class(&self, id: Id) -> &'a str {
        self.nodes.get(id).and_then(|n| n.get("class_type")?.as_str()).unwrap_or_default()
    }

    fn inputs(&self, id: Id) -> Option<&'a Map<String, Value>> {
        self.nodes.get(id)?.get("inputs")?.as_object()
    }

    fn input(&self, id: Id, name: &str) -> Option<&'a Value> {
        self.inputs(id)?.get(name)
    }

    fn has(&self, id: Id, name: &str) -> bool {
        self.input(id, name).is_some()
    }

    /// The node that an input is linked to, by the first of `names` that is a link.
    fn link(&self, id: Id, names: &[&str]) -> Option<Id<'a>> {
        names.iter().find_map(|name| self.linked(self.input(id, name)?))
    }

    fn linked(&self, value: &'a Value) -> Option<Id<'a>> {
        let [node, Value::Number(_)] = value.as_array()?.as_slice() else { return None };
        // Some programs write the numbers of nodes as numbers.
        let number;
        let id = match node {
            Value::Number(n) => {
                number = n.to_string();
                number.as_str()
            }
            _ => node.as_str()?,
        };
        self.nodes.get_key_value(id).map(|(id, _)| id.as_str())
    }

    /// A value that is in the node, or in the node of a single value that it is linked to.
    fn value(&self, id: Id, names: &[&str]) -> Option<String> {
        let mut value = names.iter().find_map(|name| self.input(id, name))?;
        for _ in 0..MAX_HOPS {
            let Some(next) = self.linked(value) else { return scalar(value) };
            let inputs = self.inputs(next)?;
            let usual = ["value", "int", "float", "number", "text", "string"];
            let named = |name: &str| inputs.get_key_value(name);
            let only = || {
                let mut plain = inputs.iter().filter(|(_, v)| scalar(v).is_some());
                plain.next().filter(|_| plain.next().is_none())
            };
            let own = names.iter().find_map(|name| named(name));
            let usual = || usual.iter().find_map(|name| named(name));
            let found = own.or_else(usual).or_else(only)?;
            // A node with more inputs computes something of them.
            let limits = ["min", "max", "step", "precision", "decimals"];
            let computes = inputs.iter().filter(|(name, _)| *name != found.0).any(|(name, v)| {
                self.linked(v).is_some()
                    || own.is_none() && v.is_number() && !limits.contains(&name.as_str())
            });
            if computes {
                return None;
            }
            value = found.1;
        }
        None
    }

    /// The same for a number; a note if there is an input and no number.
    fn number(&self, id: Id, names: &[&str], reading: &mut Reading) -> Option<String> {
        let found = self.value(id, names).filter(|value| value.parse::<f64>().is_ok());
        self.or_note(found, id, names, reading)
    }

    /// The same for a text.
    fn word(&self, id: Id, names: &[&str], reading: &mut Reading) -> Option<String> {
        self.or_note(self.value(id, names), id, names, reading)
    }

    fn or_note(
        &self,
        found: Option<String>,
        id: Id,
        names: &[&str],
        reading: &mut Reading,
    ) -> Option<String> {
        if found.is_none()
            && let Some(name) = names.iter().find(|name| self.has(id, name))
        {
            let source = self.input(id, name).map_or_else(String::new, |v| self.source(v));
            reading
                .note(format!("not understood: {name} of node {id} ({}){source}", self.class(id)));
        }
        found
    }

    /// `, which comes from node 5 (Math)`, if it is a link.
    fn source(&self, value: &'a Value) -> String {
        let Some(node) = self.linked(value) else { return String::new() };
        format!(", which comes from node {node} ({})", self.class(node))
    }

    fn is_sampler(&self, id: Id) -> bool {
        let has = |names: &[&str]| names.iter().any(|name| self.has(id, name));
        let old = has(&["positive"]) && has(&["seed", "noise_seed"]) && has(&["steps"]);
        old || has(&["sampler"]) && has(&["sigmas"])
    }

    /// The sampler whose image was saved: of a second pass the first one.
    fn sampler(&self, reading: &mut Reading) -> Result<Id<'a>> {
        let saves = |id: &&String| {
            let class = self.class(id);
            let words = ["SaveImage", "Save Image", "Image Save", "PreviewImage", "SaveAnimated"];
            words.iter().any(|word| class.contains(word)) || self.class(id).ends_with("Saver")
        };
        let outputs: Vec<Id> = self.nodes.keys().filter(saves).map(String::as_str).collect();
        let mut found = Vec::new();
        for output in outputs {
            if let Some(sampler) = self.before(output, reading)
                && !found.contains(&sampler)
            {
                found.push(sampler);
            }
        }
        if found.is_empty() {
            found =
                self.nodes.keys().map(String::as_str).filter(|id| self.is_sampler(id)).collect();
        }
        let mut sampler = *found.first().ok_or_else(|| {
            let classes: Vec<&str> = self.nodes.keys().map(|id| self.class(id)).collect();
            not_understood("it has no sampler that is known").found(classes.join(", "))
        })?;
        if found.len() > 1 {
            reading.note(format!(
                "the graph has {} samplers: the settings are those of node {sampler}",
                found.len()
            ));
        }
        for _ in 0..MAX_HOPS {
            let latent = self.link(sampler, &["latent_image", "latent"]);
            let Some(first) = latent.and_then(|latent| self.at_or_before(latent)) else { break };
            reading.note(format!(
                "node {sampler} ({}) goes on from the image of node {first}: this second pass is \
                 not made",
                self.class(sampler)
            ));
            sampler = first;
        }
        Ok(sampler)
    }

    /// The nearest sampler before `id`, through any links. Nodes on the way change the image.
    fn before(&self, id: Id<'a>, reading: &mut Reading) -> Option<Id<'a>> {
        let mut next = id;
        for _ in 0..MAX_HOPS {
            let links = ["images", "image", "samples", "pixels", "latent", "latent_image"];
            next = self.link(next, &links)?;
            if self.is_sampler(next) {
                return Some(next);
            }
            if !self.class(next).starts_with("VAEDecode") {
                reading.note(format!("node {next} ({}) is not applied", self.class(next)));
            }
        }
        None
    }

    fn at_or_before(&self, id: Id<'a>) -> Option<Id<'a>> {
        if self.is_sampler(id) {
            return Some(id);
        }
        self.before(id, &mut Reading::new(Writer::ComfyUi))
    }

    fn read_sampler(&self, id: Id<'a>, reading: &mut Reading) -> Result<()> {
        let noise = self.link(id, &["noise"]).unwrap_or(id);
        if let Some(seed) = self.number(noise, &["noise_seed", "seed"], reading) {
            reading.set("Seed", seed);
        }
        let guider = self.link(id, &["guider"]).unwrap_or(id);
        let positive = self.link(guider, &["conditioning", "positive"]);
        let positive = positive.ok_or_else(|| not_understood("the sampler has no prompt"))?;
        reading.prompt = Some(self.prompt(positive, true, reading)?);
        if let Some(cfg) = self.number(guider, &["cfg"], reading) {
            reading.set("CFG scale", cfg);
        }
        let cfg: f32 = reading.get("CFG scale").and_then(|cfg| cfg.parse().ok()).unwrap_or(1.0);
        if let Some(negative) = self.link(guider, &["negative"])
            && cfg != 1.0
            && self.class(negative) != "ConditioningZeroOut"
        {
            reading.negative = Some(self.prompt(negative, false, reading)?);
        }
        let image = self.read_latent(id, reading);
        self.read_steps(id, image, reading);
        self.read_model(guider, reading);
        self.note_clip(guider, positive, reading);
        Ok(())
    }

    /// Reads the size and the number of images into `reading`. Returns whether the sampler starts
    /// from an image.
    fn read_latent(&self, id: Id<'a>, reading: &mut Reading) -> bool {
        let mut latent = self.link(id, &["latent_image", "latent"]);
        for _ in 0..MAX_HOPS {
            let Some(node) = latent else { break };
            if self.has(node, "width") && self.has(node, "height") {
                let labels =
                    [("width", "Width"), ("height", "Height"), ("batch_size", "Batch size")];
                for (name, label) in labels {
                    if let Some(value) = self.number(node, &[name], reading) {
                        reading.set(label, value);
                    }
                }
                return false;
            }
            if self.class(node).starts_with("VAEEncode") {
                return true;
            }
            reading.note(format!("node {node} ({}) is not applied", self.class(node)));
            latent = self.link(node, &["samples", "latent", "latent_image", "pixels", "image"]);
        }
        false
    }

    /// Steps, sampler and strength.
    fn read_steps(&self, id: Id<'a>, from_image: bool, reading: &mut Reading) {
        let mut sigmas = self.link(id, &["sigmas"]);
        for _ in 0..MAX_HOPS {
            let Some(node) = sigmas.filter(|node| !self.has(node, "steps")) else { break };
            reading.note(format!("node {node} ({}) is not applied", self.class(node)));
            sigmas = self.link(node, &["sigmas"]);
        }
        let sigmas = sigmas.unwrap_or(id);
        let sampler = self.link(id, &["sampler"]).unwrap_or(id);
        let name = self.word(sampler, &["sampler_name"], reading).unwrap_or_default();
        let schedule = self.word(sigmas, &["scheduler"], reading).unwrap_or_default();
        if !is_euler(&name, &schedule) {
            reading.other_sampler(&format!("{name} {schedule}"));
        }
        let mut number = |name: &str| self.number(sigmas, &[name], reading)?.parse::<f64>().ok();
        let denoise = number("denoise").unwrap_or(1.0);
        let (start, end) = (number("start_at_step"), number("end_at_step"));
        let Some(steps) = self.number(sigmas, &["steps"], reading) else { return };
        match steps.parse::<f64>() {
            // ComfyUI makes as many steps as were asked for in any case; here they are a part of
            // the steps from pure noise.
            Ok(n) if from_image && denoise > 0.0 && denoise < 1.0 => {
                reading.set("Steps", format!("{:.0}", (n / denoise).floor()));
            }
            _ => reading.set("Steps", steps.clone()),
        }
        if from_image {
            reading.set("Denoising strength", denoise.to_string());
        } else if denoise != 1.0 {
            reading.unused.push(("denoise".into(), denoise.to_string()));
        }
        let all = steps.parse::<f64>().unwrap_or(0.0);
        if start.is_some_and(|start| start > 0.0) || end.is_some_and(|end| end < all) {
            reading.note("start_at_step and end_at_step are not used: all steps are made".into());
        }
    }

    /// The text of a conditioning; the guidance on the way, if `guided`.
    fn prompt(&self, id: Id<'a>, guided: bool, reading: &mut Reading) -> Result<String> {
        let mut node = id;
        for _ in 0..MAX_HOPS {
            if guided && let Some(guidance) = self.number(node, &["guidance"], reading) {
                reading.set("Distilled CFG Scale", guidance);
            }
            if let Some(text) = self.text(node, reading)? {
                return Ok(text);
            }
            let next = self.link(node, &CONDITIONING).ok_or_else(|| {
                not_understood(&format!("node {node} ({}) gives no text", self.class(node)))
            })?;
            if self.class(node) != "FluxGuidance" {
                reading.note(format!("node {node} ({}) is not applied", self.class(node)));
            }
            node = next;
        }
        Err(not_understood("its links form a circle"))
    }

    /// The text of a node that encodes it, `None` if it is another kind of node.
    fn text(&self, id: Id, reading: &mut Reading) -> Result<Option<String>> {
        let names = ["t5xxl", "text", "prompt", "string"];
        let Some(value) = names.into_iter().find_map(|name| self.input(id, name)) else {
            return Ok(None);
        };
        let text = self.string(value, MAX_HOPS).ok_or_else(|| {
            let source = self.source(value);
            not_understood(&format!("the prompt of node {id} ({}){source}", self.class(id)))
        })?;
        let clip = self.input(id, "clip_l").map(|clip| self.string(clip, MAX_HOPS));
        if clip.is_some_and(|clip| clip.as_ref() != Some(&text)) {
            reading.note("CLIP had a prompt of its own: both text encoders get that of T5".into());
        }
        Ok(Some(text))
    }

    /// A text, through nodes that hold or join texts.
    fn string(&self, value: &'a Value, hops: usize) -> Option<String> {
        let Some(node) = self.linked(value) else { return value.as_str().map(str::to_string) };
        let hops = hops.checked_sub(1)?;
        if self.has(node, "string_a") && self.has(node, "string_b") {
            // Half for each, so that a circle ends.
            let of = |name: &str| self.string(self.input(node, name)?, hops / 2);
            let delimiter = match self.has(node, "delimiter") {
                true => of("delimiter")?,
                false => String::new(),
            };
            return Some(format!("{}{delimiter}{}", of("string_a")?, of("string_b")?));
        }
        let inputs = self.inputs(node)?;
        let names = ["text", "value", "string", "prompt", "text_positive", "positive", "Text"];
        let named = names.iter().find_map(|name| inputs.get_key_value(*name));
        let only = || {
            let mut plain = inputs.iter().filter(|(_, v)| v.is_string());
            plain.next().filter(|_| plain.next().is_none())
        };
        let (name, text) = named.or_else(only)?;
        // Any other node makes a text of its own from what it is given.
        let given = |(other, value): (&String, &'a Value)| {
            let is_model = ["model", "system", "instruct", "api"].iter().any(|w| other.contains(w));
            other != name && (is_model || value.is_number() || self.linked(value).is_some())
        };
        let is_held = holds_text(self.class(node)) && !inputs.iter().any(given);
        if is_held { self.string(text, hops) } else { None }
    }

    /// Notes the nodes between the encoder of the prompt and CLIP that are not also between the
    /// sampler and the model.
    fn note_clip(&self, guider: Id<'a>, positive: Id<'a>, reading: &mut Reading) {
        let before_model = self.path(guider, &["model"]);
        let encoder = self.path(positive, &CONDITIONING).pop().unwrap_or(positive);
        for node in self.path(encoder, &["clip"]).into_iter().skip(1) {
            if self.has(node, "clip") && !before_model.contains(&node) {
                let class = self.class(node);
                reading.note(format!("node {node} ({class}), for CLIP only, is not applied"));
            }
        }
    }

    /// `start` and the nodes that are reached from it through the first link of these names.
    fn path(&self, start: Id<'a>, names: &[&str]) -> Vec<Id<'a>> {
        let next = |id: &Id<'a>| self.link(id, names);
        std::iter::successors(Some(start), next).take(MAX_HOPS).collect()
    }

    /// The model and the LoRAs before the sampler or its guider.
    fn read_model(&self, guider: Id<'a>, reading: &mut Reading) {
        let mut next = self.link(guider, &["model"]);
        for _ in 0..MAX_HOPS {
            let Some(node) = next else { break };
            let names = ["unet_name", "ckpt_name", "model_name", "model_path", "gguf_name"];
            if let Some(name) = self.value(node, &names) {
                reading.model = name;
                return;
            }
            self.read_loras(node, reading);
            next = self.link(node, &["model"]);
        }
        reading.note("the graph does not say which model was used".into());
    }

    /// The LoRAs that a node on the way to the model applies, or a note about what it does.
    fn read_loras(&self, node: Id<'a>, reading: &mut Reading) {
        let mut number = |name: &str| self.number(node, &[name], reading)?.parse::<f32>().ok();
        if let Some(name) = self.value(node, &["lora_name"]) {
            let strength = number("strength_model").or_else(|| number("strength")).unwrap_or(1.0);
            // Without a strength for CLIP, only the transformer gets the LoRA.
            let for_model_only = self.has(node, "strength_model") && !self.has(node, "clip");
            let clip = number("strength_clip").or(for_model_only.then_some(0.0));
            reading.lora(&name, strength, clip);
            return;
        }
        let inputs = self.inputs(node).into_iter().flatten();
        // Nodes with a list of LoRAs, each with a switch.
        let listed: Vec<&Value> = inputs
            .map(|(_, v)| v)
            .filter(|v| v.get("lora").is_some_and(Value::is_string))
            .collect();
        for lora in &listed {
            let on = lora.get("on").and_then(Value::as_bool).unwrap_or(true);
            let strength = lora.get("strength").and_then(Value::as_f64).unwrap_or(1.0);
            if on && lora.get("strength").is_some_and(|strength| !strength.is_number()) {
                reading.note(format!("not understood: strength of {}", lora["lora"]));
            }
            let text = lora.get("strengthTwo").and_then(Value::as_f64);
            if let (true, Some(name)) = (on, lora["lora"].as_str()) {
                reading.lora(name, strength as f32, text.map(|text| text as f32));
            }
        }
        let is = |name: &str, usual: f32| {
            let value = || self.value(node, &[name])?.parse::<f32>().ok();
            !self.has(node, name) || value() == Some(usual)
        };
        let is_usual = self.class(node) == "ModelSamplingFlux"
            && is("max_shift", 1.15)
            && is("base_shift", 0.5);
        if listed.is_empty() && !is_usual {
            reading.note(format!("node {node} ({}) is not applied", self.class(node)));
        }
    }
}
