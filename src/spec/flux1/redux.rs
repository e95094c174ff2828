//! The adapter of FLUX.1 Redux, which turns the tokens of a vision tower into tokens like those of
//! a prompt.

use super::affine;
use crate::spec::family::{ComponentSpec, Diffusers, Fact, FileNames, Fit, Role, Variant};
use crate::spec::names::{Dialect, Naming};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Style,
    name: "redux",
    title: "FLUX Redux adapter",
    option: Some("redux"),
    diffusers: Diffusers {
        folder: "image_embedder",
        python_library: "diffusers",
        class: "ReduxImageEncoder",
        classes: "*Redux*",
    },
    files: FileNames {
        folders: &["style_models", "image_embedder"],
        ranks: &[&["flux1_redux_dev"], &["*redux*", "diffusion_pytorch_model*"]],
        known: &["*redux*"],
        not: &[],
        written: "flux1-redux-dev.safetensors",
    },
    source: Some("black-forest-labs/FLUX.1-Redux-dev"),
    comfy_prefix: "style_model.",
    tensors: &[affine!("redux_up"), affine!("redux_down")],
    dialects: &[Dialect {
        name: "BFL",
        markers: &["redux_up.weight", "redux_down.weight", "redux_up.bias", "redux_down.bias"],
        requires: &[],
        naming: Naming::Canonical,
        gguf: false,
    }],
    fit: Some(Fit { own: ("redux_down.weight", 0), transformer: ("txt_in.weight", 1), divisor: 1 }),
    quantised: &["redux_"],
    facts: &[
        ("inputs", Fact::Axis("redux_up.weight", 1)),
        ("outputs", Fact::Axis("redux_down.weight", 0)),
    ],
    variant: Some(Variant::Size { label: "inputs", tensor: "redux_up.weight", axis: 1 }),
    ..ComponentSpec::EMPTY
};
