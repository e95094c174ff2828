//! What a graph in API format draws: it is followed from its output nodes back to the request that
//! it means. A graph that means anything else is refused with the node that is in the way.

mod controlnets;
mod mask_change;
mod masks;
mod meaning;
mod packages;
mod picture;
mod pictures;
mod place;
mod prompts;
mod reader;
mod scale;
mod styles;

use std::collections::HashMap;

use axum::body::Bytes;
use serde_json::{Map, Value};

use super::finish::Finishing;
use super::nodes;
use crate::pipeline::request::{ControlNetChoice, Request};
use crate::server::fault::Fault;
use crate::server::masks::DraftMask;
use masks::GraphMask;
use meaning::meaning;
use picture::Picture;
pub use picture::cropped;
use reader::Reader;

/// The longest chain of nodes.
const MAX_DEPTH: usize = 100;
/// The most nodes that take the images.
const MAX_OUTPUTS: usize = 16;
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
    /// The nodes that take the images.
    pub outputs: Vec<OutputNode>,
    /// Notes about parts of the graph that are drawn in another way than it says.
    pub notes: Vec<String>,
}

/// A node that takes the images.
#[derive(Debug)]
pub struct OutputNode {
    pub id: String,
    pub class: String,
    /// What is done to them before.
    pub finish: Finishing,
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
    /// The masks of ControlNets that read the part that is repainted.
    control_masks: Vec<GraphMask>,
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
    /// The steps that the graph says, which are more where a model needs few.
    asked: usize,
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

/// Drawn images.
#[derive(Debug, Clone)]
struct Drawn {
    drawing: Box<Drawing>,
    /// The node that decodes them.
    decode: String,
    /// Their size after the steps that finish them.
    size: (u32, u32),
    finish: Finishing,
    /// The last step makes them larger than they are meant to be.
    is_enlarged: bool,
}

impl Drawn {
    fn new(drawing: Box<Drawing>, decode: &str) -> Drawn {
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let size = match &drawing.latent {
            Latent::Empty { width, height, .. } => (side(*width).max(1), side(*height).max(1)),
            Latent::Encoded { picture, mask: None, .. } => whole_tokens(picture.size),
            Latent::Encoded { picture, .. } => {
                let [left, top, right, bottom] = picture.margins.unwrap_or_default().sides();
                let (width, height) = picture.size;
                (
                    width.saturating_add(side(left + right)),
                    height.saturating_add(side(top + bottom)),
                )
            }
            // It is refused.
            Latent::Drawn(_) => (1, 1),
        };
        Drawn { drawing, decode: decode.into(), size, finish: Vec::new(), is_enlarged: false }
    }
}

/// The size in which an image is drawn that has this size.
fn whole_tokens((width, height): (u32, u32)) -> (u32, u32) {
    let side = |pixels: u32| (pixels / UNIT * UNIT).max(UNIT);
    (side(width), side(height))
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
    Images(Drawn),
    Mask(GraphMask),
    ClipVision,
    StyleModel,
    ControlNet(ControlNetChoice),
    Seen(Picture),
    /// Images for a style model, with their strengths.
    SeenImages(Vec<(Picture, f32)>),
    /// It makes an image so many times larger.
    Upscaler(u32),
    InpaintModel,
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
    let mut outputs: Vec<OutputNode> = Vec::new();
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
            let (id, class) = (id.clone(), class.to_string());
            outputs.push(OutputNode { id, class, finish: Vec::new() });
        }
    }
    if outputs.is_empty() {
        return Err(Fault::new(
            400,
            "prompt_no_outputs",
            "the graph has no node that saves an image",
        ));
    }
    if outputs.len() > MAX_OUTPUTS {
        let (count, most) = (outputs.len(), MAX_OUTPUTS);
        let message = format!("{count} nodes save the images, at most {most} may: send less");
        return Err(Fault::new(400, "invalid_prompt", message));
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
        worked: 0,
    };
    let mut found: Option<Drawn> = None;
    for output in &mut outputs {
        let node = reader.node(&output.id)?;
        let mut drawn = match reader.link(&node, "images")? {
            Output::Images(drawn) => drawn,
            Output::Picture(_) => {
                return Err(node.unsupported("its image is not drawn by a sampler"));
            }
            _ => return Err(node.wrong_type("images", "IMAGE")),
        };
        if found.as_ref().is_some_and(|first| first.drawing.node != drawn.drawing.node) {
            return Err(node.unsupported("a graph may have one sampler; send one graph for each"));
        }
        output.finish = std::mem::take(&mut drawn.finish);
        found.get_or_insert(drawn);
    }
    let Some(drawn) = found else {
        return Err(Fault::new(
            400,
            "prompt_no_outputs",
            "the graph has no node that saves or shows an image",
        ));
    };
    meaning(&mut reader, drawn, outputs)
}

#[cfg(test)]
mod krita_tests;
#[cfg(test)]
mod tests;
