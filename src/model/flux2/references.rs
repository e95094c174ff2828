//! The keys and values of reference images, for a model that keeps them over all steps.

use super::blocks::{Blocks, Stream};
use super::config::Flux2Config;
use super::denoise::KEPT;
use super::linear;
use crate::dtype::DType;
use crate::model::joint::SequenceShape;
use crate::op::{Cast, Epilogue, Program, Recorder};
use crate::tensor::Tensor;

/// The keys and values of all references in every block ([`Flux2Config::keeps_references`]).
///
/// References attend to one another and to nothing else, and their modulation is that of timestep
/// 0. So they do not depend on the step, the text or the image.
///
/// Inputs: `references` (reference_tokens x in_channels, f32), `modulation` (1 x
/// [`Flux2Config::modulation_cols`], the row of timestep 0), `rope` (reference_tokens x head_dim,
/// f32, see [`reference_rope`](super::reference_rope)). Outputs: [`KEPT`], one for each block,
/// double blocks first (reference_tokens x 2 hidden: rotated keys, values).
///
/// # Panics
/// Without references.
pub fn reference_keys(c: &Flux2Config, s: &SequenceShape, act: DType) -> Program {
    let tokens = s.reference_tokens();
    assert!(tokens > 0, "there are no references");
    let mut r = Recorder::new("reference_keys");
    let references = r.input("references", tokens, c.in_channels, DType::F32);
    let modulation = r.input("modulation", 1, c.modulation_cols(), act);
    let rope = r.input("rope", tokens, c.head_dim, DType::F32);
    let blocks = Blocks { c, act, modulation, rope, batch: 1, tokens };

    r.scope("img_in");
    let x = match act {
        DType::F32 => references,
        _ => {
            let x = r.temp(tokens, c.in_channels, act);
            r.push("cast_references", Cast { x: references.all(), out: x.all() });
            x
        }
    };
    let img = r.temp(tokens, c.hidden, act);
    linear(&mut r, "linear", x.all(), "img_in", Epilogue::None, img.all());
    let image = Stream { name: "img", first: 0 };
    for i in 0..c.depth_double {
        r.scope(format!("double.{i}"));
        let qkv = r.temp(tokens, 3 * c.hidden, act);
        blocks.stream_keys(&mut r, i, image, img, (qkv, 0));
        keep(&mut r, qkv);
        // The last keys do not need what follows.
        if i + 1 < c.blocks() {
            let attn = r.temp(tokens, c.hidden, act);
            r.push("attn", blocks.joint().attention(qkv, None, attn.all()));
            blocks.stream_end(&mut r, i, image, img, attn);
        }
    }
    for i in 0..c.depth_single {
        let (norm, qkv) = blocks.single_keys(&mut r, i, img);
        keep(&mut r, qkv);
        if c.depth_double + i + 1 < c.blocks() {
            let both = blocks.single_rows(&mut r, img);
            let op = blocks.joint().attention(qkv, None, both.columns(0, c.hidden));
            r.push("attn", op);
            blocks.single_end(&mut r, i, img, norm, both);
        }
    }
    r.finish()
}

/// Keys and values as an output.
fn keep(r: &mut Recorder, qkv: Tensor) {
    let h = qkv.cols / 3;
    let out = r.output(KEPT, qkv.rows, 2 * h, qkv.dtype);
    r.push("keep", Cast { x: qkv.columns(h, 2 * h), out: out.all() });
}
