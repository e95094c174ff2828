//! What a graph in API format draws: it is followed from its output nodes back to the request that
//! it means. A graph that means anything else is refused with the node that is in the way.

mod controlnets;
mod masks;
mod pictures;
mod place;
mod prompts;
mod reader;
mod scale;
mod styles;

use std::collections::HashMap;

use axum::body::Bytes;
use serde_json::{Map, Value};

use super::nodes;
use crate::pipeline::images::MaskMarks;
use crate::pipeline::request::{ControlNetChoice, LoraChoice, Margins, Request};
use crate::server::fault::Fault;
use crate::server::masks::DraftMask;
use place::Place;
use reader::Reader;

/// The longest chain of nodes.
const MAX_DEPTH: usize = 100;
/// Sides of images are multiples of this.
const UNIT: u32 = 16;

/// The meaning of a graph.
#[derive(Debug)]
pub struct Meaning {
    pub request: Request,
    /// The name of the model.
    pub model: Option<String>,
    /// The image to start from.
    pub input: Option<Bytes>,
    /// What is repainted of it.
    pub mask: Option<DraftMask>,
    /// The image of an `InstructPixToPixConditioning` node.
    pub control: Option<Bytes>,
    /// The images of `StyleModelApply` nodes, with their strengths.
    pub styles: Vec<(Bytes, f32)>,
    /// The ControlNets, with the images that they see and the nodes that apply them.
    pub controlnets: Vec<(ControlNetChoice, Bytes, String)>,
    /// The images of `ReferenceLatent` nodes.
    pub references: Vec<Bytes>,
    /// The nodes that encode the prompt, draw, and decode.
    pub text_node: String,
    pub sampler_node: String,
    pub decode_node: String,
    /// The nodes that take the images: id and class.
    pub outputs: Vec<(String, String)>,
    /// Notes about parts of the graph that are drawn in another way than it says.
    pub notes: Vec<String>,
}

/// The lookups in the server that an interpretation needs.
pub trait Surroundings {
    /// The image that `LoadImage` calls `name`; 503 if it is out of reach.
    fn image(&self, name: &str) -> Result<Option<Bytes>, Fault>;
    /// The image that a client has put under an id; 503 if it is out of reach.
    fn cached_image(&self, id: &str) -> Result<Option<Bytes>, Fault>;
    /// The steps to draw with where a frontend asks for `steps`.
    fn steps(&self, model: Option<&str>, steps: usize) -> usize;
}

/// A fault at a node. Its parameter is `CLASS#ID`, from which the errors of nodes are made.
pub fn at_node(code: &str, class: &str, id: &str, message: impl Into<String>) -> Fault {
    Fault::new(400, code, message).parameter(format!("{class}#{id}"))
}

#[derive(Debug, Clone, Default)]
struct Model {
    name: Option<String>,
    loras: Vec<(String, f32)>,
    shift: Option<f32>,
}

#[derive(Debug, Clone)]
struct Conditioning {
    node: String,
    text: String,
    loras: Vec<(String, f32)>,
    guidance: Option<f32>,
    references: Vec<Picture>,
    control: Option<Picture>,
    styles: Vec<(Picture, f32)>,
    controlnets: Vec<Control>,
    is_zero: bool,
}

/// A ControlNet with the image that it sees.
#[derive(Debug, Clone)]
struct Control {
    choice: ControlNetChoice,
    picture: Picture,
    /// The node that applies it, `CLASS#ID`.
    node: String,
}

#[derive(Debug, Clone)]
struct Picture {
    bytes: Bytes,
    size: (u32, u32),
    /// Pixels that are added on its sides.
    margins: Option<Margins>,
    /// Its edges are meant.
    is_edges: bool,
}

/// What is repainted.
#[derive(Debug, Clone)]
enum GraphMask {
    /// A part of an image.
    Marked { bytes: Bytes, marks: MaskMarks, changes: Vec<MaskChange> },
    /// What was added on the sides of an image.
    Margins(Margins),
}

/// What a node does to a mask.
#[derive(Debug, Clone, Copy)]
enum MaskChange {
    Invert,
    /// By pixels; a negative number shrinks it.
    Grow(i64),
    /// White is what is above a part of white.
    Threshold(f32),
}

#[derive(Debug, Clone)]
enum Latent {
    Empty { width: usize, height: usize, count: usize },
    Encoded { picture: Picture, mask: Option<GraphMask>, count: usize },
    Drawn(Box<Drawing>),
}

/// The noise levels of a run: `steps` of them are used, the last ones of `total`.
#[derive(Debug, Clone, Copy)]
struct Sigmas {
    total: usize,
    steps: usize,
}

#[derive(Debug, Clone)]
struct Guider {
    model: Model,
    positive: Conditioning,
    negative: Option<Conditioning>,
    cfg: f32,
}

/// What a sampler node does.
#[derive(Debug, Clone)]
struct Drawing {
    node: String,
    guider: Guider,
    seed: u64,
    sigmas: Sigmas,
    latent: Latent,
}

/// The output of a node.
#[derive(Debug, Clone)]
enum Output {
    Model(Model),
    Clip(Vec<(String, f32)>),
    Vae,
    Conditioning(Conditioning),
    Latent(Latent),
    Picture(Picture),
    Images {
        drawing: Box<Drawing>,
        decode: String,
    },
    Mask(GraphMask),
    ClipVision,
    StyleModel,
    ControlNet(ControlNetChoice),
    Seen(Picture),
    Noise(u64),
    Sampler,
    Sigmas(Sigmas),
    /// The first part of divided noise levels, which leaves noise in the image.
    HighSigmas,
    Guider(Box<Guider>),
    Value(Value),
}

/// Finds out what `graph` draws.
///
/// # Errors
/// 400, with the node.
pub fn interpret(graph: &Map<String, Value>, around: &dyn Surroundings) -> Result<Meaning, Fault> {
    let mut ids: Vec<&String> = graph.keys().collect();
    // As a user counts them.
    ids.sort_by_key(|id| (id.parse::<u64>().unwrap_or(u64::MAX), id.to_string()));
    let mut outputs = Vec::new();
    for id in ids {
        let node = &graph[id];
        let Some(class) = node["class_type"].as_str() else {
            return Err(at_node("invalid_prompt", "", id, format!("node {id} has no class_type")));
        };
        let Some(known) = nodes::find(class) else {
            let why = nodes::why_not(class).map_or(String::new(), |why| format!(": {why}"));
            let message =
                format!("this server does not know nodes of the class {class} (node {id}){why}");
            return Err(at_node("missing_node_type", class, id, message));
        };
        for name in known.required() {
            if node["inputs"].get(name).is_none_or(Value::is_null) {
                let message = format!("{class} (node {id}): its input {name} is missing");
                return Err(at_node("required_input_missing", class, id, message));
            }
        }
        if known.is_output() {
            outputs.push((id.clone(), class.to_string()));
        }
    }
    if outputs.is_empty() {
        return Err(Fault::new(
            400,
            "prompt_no_outputs",
            "the graph has no node that saves an image",
        ));
    }
    let has_flux_guidance = graph.values().any(|node| {
        ["FluxGuidance", "CLIPTextEncodeFlux"].contains(&node["class_type"].as_str().unwrap_or(""))
    });
    let mut reader = Reader {
        graph,
        around,
        known: HashMap::new(),
        depth: 0,
        notes: Vec::new(),
        has_flux_guidance,
    };
    let mut found: Option<(Box<Drawing>, String)> = None;
    for (id, class) in &outputs {
        let node = reader.node(id)?;
        let (drawing, decode) = match reader.link(&node, "images")? {
            Output::Images { drawing, decode } => (drawing, decode),
            Output::Picture(_) => {
                return Err(node.unsupported("its image is not drawn by a sampler"));
            }
            _ => return Err(node.wrong_type("images", "IMAGE")),
        };
        if found.as_ref().is_some_and(|(first, _)| first.node != drawing.node) {
            return Err(at_node(
                "unsupported",
                class,
                id,
                format!(
                    "{class} (node {id}): a graph may have one sampler; send one graph for each"
                ),
            ));
        }
        found.get_or_insert((drawing, decode));
    }
    let Some((drawing, decode)) = found else {
        return Err(Fault::new(
            400,
            "prompt_no_outputs",
            "the graph has no node that saves or shows an image",
        ));
    };
    let notes = std::mem::take(&mut reader.notes);
    meaning(&reader, *drawing, decode, outputs, notes)
}

/// The request for a drawing.
fn meaning(
    reader: &Reader,
    drawing: Drawing,
    decode_node: String,
    outputs: Vec<(String, String)>,
    mut notes: Vec<String>,
) -> Result<Meaning, Fault> {
    let sampler = reader.node(&drawing.node)?;
    let Drawing { guider, seed, sigmas, latent, .. } = drawing;
    let Guider { model, positive, negative, cfg } = guider;
    let mut request = Request::new(positive.text.as_str()).seed(seed);
    request.steps = Some(sigmas.total);
    request.guidance = positive.guidance;
    request.shift = model.shift;
    request.loras = loras(&model.loras, &positive.loras);
    prompts::check_counts(&positive, &sampler)?;
    if let Some(negative) = &negative {
        let more = prompts::check_both(&positive, negative, cfg != 1.0, &sampler)?;
        notes.extend(more.into_iter().map(String::from));
    }
    if cfg != 1.0 {
        let negative = negative.filter(|negative| !negative.is_zero);
        let Some(negative) = negative else {
            return Err(sampler.unsupported("a CFG other than 1 needs a negative prompt"));
        };
        request.cfg_scale = Some(cfg);
        request.negative = Some(negative.text);
    }
    if positive.is_zero {
        return Err(sampler.unsupported("its positive prompt is zeroed out"));
    }
    let mut repainted = None;
    let (size, count, input) = match latent {
        Latent::Empty { width, height, count } => {
            if sigmas.steps != sigmas.total {
                return Err(sampler.unsupported("only an image can be drawn in part"));
            }
            (Some((width, height)), count, None)
        }
        Latent::Encoded { picture, mask: Some(mask), count } => {
            request.strength = Some(strength(sigmas));
            let file = file_of(&picture, &sampler)?;
            request.outpaint = picture.margins;
            repainted = masks::read(&mask, &picture, &sampler)?;
            // It has the size of its image.
            (None, count, Some(file))
        }
        Latent::Encoded { picture, mask: None, count } => {
            if picture.margins.is_some() {
                return Err(sampler.unsupported("an image with margins needs its mask"));
            }
            let side = |pixels: u32| (pixels / UNIT * UNIT).max(UNIT) as usize;
            request.strength = Some(strength(sigmas));
            (Some((side(picture.size.0), side(picture.size.1))), count, Some(picture.bytes))
        }
        Latent::Drawn(_) => {
            return Err(sampler.unsupported("it starts from the latent of another sampler"));
        }
    };
    (request.width, request.height) = size.unzip();
    request.count = Some(count);
    let files = positive.references.iter().map(|picture| file_of(picture, &sampler));
    let references = files.collect::<Result<_, _>>()?;
    let control = positive.control.iter().map(|picture| file_of(picture, &sampler)).next();
    let mut styles = Vec::new();
    for (picture, strength) in &positive.styles {
        styles.push((file_of(picture, &sampler)?, *strength));
    }
    let mut controlnets = Vec::new();
    for Control { choice, picture, node } in positive.controlnets {
        controlnets.push((choice, file_of(&picture, &sampler)?, node));
    }
    Ok(Meaning {
        request,
        model: model.name,
        input,
        mask: repainted,
        control: control.transpose()?,
        styles,
        controlnets,
        references,
        text_node: positive.node,
        sampler_node: sampler.id,
        decode_node,
        outputs,
        notes,
    })
}

/// The file of a picture in its size. A file that is damaged is a fault at `sampler`.
fn file_of(picture: &Picture, sampler: &Place) -> Result<Bytes, Fault> {
    scale::file_of(picture).map_err(|fault| sampler.at(fault))
}

/// The strength with which exactly the last `steps` of `total` steps are drawn.
fn strength(Sigmas { total, steps }: Sigmas) -> f32 {
    if total == 0 {
        return 1.0;
    }
    let exact = steps as f32 / total as f32;
    // Where the quotient is rounded up, one step more would be drawn.
    let skipped = |strength: f32| {
        let strength = strength.to_string().parse().unwrap_or(f64::from(strength));
        (total as f64 - total as f64 * strength) as usize
    };
    if skipped(exact) == total - steps { exact } else { exact - 1e-5 }
}

/// The LoRAs of model and text encoders as one list.
fn loras(model: &[(String, f32)], clip: &[(String, f32)]) -> Vec<LoraChoice> {
    let mut rest = clip.to_vec();
    let mut all = Vec::new();
    for (name, strength) in model {
        let lora = LoraChoice::new(name.as_str(), *strength);
        let at = rest.iter().position(|(other, _)| other == name);
        let text = at.map_or(0.0, |at| rest.remove(at).1);
        all.push(if text == *strength { lora } else { lora.text_strength(text) });
    }
    all.extend(
        rest.iter().map(|(name, text)| LoraChoice::new(name.as_str(), 0.0).text_strength(*text)),
    );
    all
}

#[cfg(test)]
mod tests;
