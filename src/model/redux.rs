//! The adapter of FLUX.1 Redux, after `ReduxImageEncoder` of `black-forest-labs/flux`: two layers
//! that turn each token of SigLIP into one like those of T5.

use serde_json::Value;

use super::config::{TensorShapes, TensorSpec, agree, shape};
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{Epilogue, Linear, Program, Recorder};

/// The sizes of the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct ReduxConfig {
    /// Width of the tokens that it reads: that of SigLIP.
    pub inputs: usize,
    /// Width between the two layers.
    pub inner: usize,
    /// Width of the tokens that it writes: that of T5.
    pub outputs: usize,
}

impl ReduxConfig {
    /// Reads the sizes of the tensors.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let (inner, inputs) = shape(shapes, "Redux", "redux_up.weight")?;
        let (outputs, _) = shape(shapes, "Redux", "redux_down.weight")?;
        agree(config, "redux_dim", inputs)?;
        agree(config, "txt_in_features", outputs)?;
        Ok(ReduxConfig { inputs, inner, outputs })
    }

    /// The sizes of FLUX.1-Redux-dev.
    pub fn dev() -> Self {
        ReduxConfig { inputs: 1152, inner: 12288, outputs: 4096 }
    }

    /// The content of `image_embedder/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "ReduxImageEncoder",
            "redux_dim": self.inputs,
            "txt_in_features": self.outputs,
        })
    }
}

/// `down(silu(up(hidden)))` for each of `tokens` tokens.
///
/// Input: `hidden` (tokens x inputs). Output: `style` (tokens x outputs).
pub fn embed(c: &ReduxConfig, tokens: usize, act: DType) -> Program {
    let mut r = Recorder::new("redux");
    let hidden = r.input("hidden", tokens, c.inputs, act);
    let out = r.output("style", tokens, c.outputs, act);
    r.scope("redux");
    let inner = r.temp(tokens, c.inner, act);
    for (label, x, epilogue, out) in
        [("up", hidden, Epilogue::Silu, inner), ("down", inner, Epilogue::None, out)]
    {
        let w = r.weight(format!("redux_{label}.weight"), out.cols, x.cols);
        let bias = Some(r.weight(format!("redux_{label}.bias"), 1, out.cols));
        r.push(label, Linear { bias, epilogue, ..Linear::plain(x.all(), w, out.all()) });
    }
    r.finish()
}

/// Every tensor of the adapter, with its shape in files.
pub fn tensors(c: &ReduxConfig) -> Vec<TensorSpec> {
    vec![
        ("redux_up.weight".into(), vec![c.inner, c.inputs]),
        ("redux_up.bias".into(), vec![c.inner]),
        ("redux_down.weight".into(), vec![c.outputs, c.inner]),
        ("redux_down.bias".into(), vec![c.outputs]),
    ]
}
