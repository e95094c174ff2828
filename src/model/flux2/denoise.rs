//! One denoising step.

use super::blocks::{Blocks, Stream};
use super::config::Flux2Config;
use super::linear;
use crate::dtype::DType;
use crate::model::joint::{ImageInputs, NORM_EPS, RopeTable, SequenceShape};
use crate::op::{
    Attention, Cast, CopyRows, Epilogue, EulerStep, LayerNormModulate, Program, Recorder,
};
use crate::tensor::{Tensor, View};

/// Ids of references on the first axis: this number for the first one, twice it for the second.
const REFERENCE_STEP: usize = 10;

/// One step, in three segments (see [`crate::model::flux1::denoise()`]).
///
/// Inputs: `latents` (images * image_tokens x in_channels, f32, updated in place), `references`
/// (reference_tokens x in_channels, f32; absent without references), `text` (batch * text_tokens x
/// context), `modulation` (1 x [`Flux2Config::modulation_cols`], the row of one step of
/// [`modulate()`](super::modulate())), `rope` (tokens x head_dim, f32, see [`rope`]), `step` (1 x
/// 2, f32: next timestep less this one, true CFG scale). Output: `velocity` (batch * image_tokens x
/// out_channels, f32).
///
/// If the model keeps references ([`Flux2Config::keeps_references`]), the inputs [`KEPT`], one for
/// each block (reference_tokens x 2 hidden), take the place of `references`: the outputs of
/// [`reference_keys`](super::reference_keys). The sequence then is text and image.
pub fn denoise(c: &Flux2Config, s: &SequenceShape, act: DType) -> Program {
    let mut r = Recorder::new("denoise");
    let own = own_sequence(c, s);
    let image = &own.image;
    let inputs = ImageInputs::record(&mut r, &own, c.in_channels, 0);
    let text = r.input("text", image.batch() * image.text_tokens, c.context, act);
    let modulation = r.input("modulation", 1, c.modulation_cols(), act);
    let rope = r.input("rope", own.tokens(), c.head_dim, DType::F32);
    let step = r.input("step", 1, 2, DType::F32);
    let rows = s.reference_tokens();
    let kept = match c.keeps_references && rows > 0 {
        true => (0..c.blocks()).map(|_| r.input(KEPT, rows, 2 * c.hidden, act)).collect(),
        false => Vec::new(),
    };
    let blocks = Blocks { c, act, modulation, rope, batch: image.batch(), tokens: own.tokens() };
    let denoiser = Denoiser { blocks, s: &own, kept };

    r.segment("head");
    let (img, txt) = denoiser.head(&mut r, &inputs, text);
    r.pass_on("img", img);
    r.pass_on("txt", txt);

    r.segment("blocks");
    let joint = denoiser.blocks(&mut r, (img, txt));
    r.pass_on("joint", joint);

    r.segment("tail");
    let velocity = denoiser.final_layer(&mut r, joint);
    r.scope("sampler");
    r.push("euler", EulerStep { x: inputs.latents, v: velocity, params: step, cfg: image.cfg });
    r.finish()
}

/// The inputs and outputs with the keys and values of references that are kept, in the order of the
/// blocks: double blocks first.
pub const KEPT: &str = "keys_values";

/// The tokens that pass through the blocks at every step.
fn own_sequence(c: &Flux2Config, s: &SequenceShape) -> SequenceShape {
    match c.keeps_references {
        true => SequenceShape::from(&s.image),
        false => s.clone(),
    }
}

/// The parts of a step.
struct Denoiser<'a> {
    blocks: Blocks<'a>,
    /// The tokens that pass through the blocks.
    s: &'a SequenceShape,
    /// Keys and values of references for each block; empty if their tokens pass through the blocks
    /// or there are none.
    kept: Vec<Tensor>,
}

impl Denoiser<'_> {
    /// Latents and text as hidden rows, sequence after sequence: (image and references, text).
    fn head(&self, r: &mut Recorder, inputs: &ImageInputs, text: Tensor) -> (Tensor, Tensor) {
        let Blocks { c, act, .. } = self.blocks;
        r.scope("img_in");
        let x = inputs.rows(r, self.s, act);
        let img = r.temp(x.rows, c.hidden, act);
        linear(r, "linear", x.all(), "img_in", Epilogue::None, img.all());
        r.scope("txt_in");
        let txt = r.temp(text.rows, c.hidden, act);
        linear(r, "linear", text.all(), "txt_in", Epilogue::None, txt.all());
        (img, txt)
    }

    /// All blocks; the rows of each sequence are joined after the double blocks, text first.
    fn blocks(&self, r: &mut Recorder, (img, txt): (Tensor, Tensor)) -> Tensor {
        let (Blocks { c, act, batch, tokens, .. }, s) = (self.blocks, self.s);
        let text_tokens = s.image.text_tokens;
        for i in 0..c.depth_double {
            self.double_block(r, i, (img, txt));
        }
        r.scope("join");
        let joint = r.temp(batch * tokens, c.hidden, act);
        for (label, x, to, count) in
            [("txt", txt, 0, text_tokens), ("img", img, text_tokens, s.pixels())]
        {
            r.push(label, CopyRows { x, out: joint, batch, from: 0, to, count });
        }
        for i in 0..c.depth_single {
            let (norm, qkv) = self.blocks.single_keys(r, i, joint);
            let both = self.blocks.single_rows(r, joint);
            self.attention(r, c.depth_double + i, qkv, None, both.columns(0, c.hidden));
            self.blocks.single_end(r, i, joint, norm, both);
        }
        joint
    }

    /// `LastLayer` on the rows of the image, without those of references: the output `velocity`.
    fn final_layer(&self, r: &mut Recorder, joint: Tensor) -> Tensor {
        let (Blocks { c, act, batch, .. }, s) = (self.blocks, self.s);
        let count = s.image.image_tokens();
        let velocity = r.output("velocity", batch * count, c.out_channels, DType::F32);
        r.scope("final");
        let img = r.temp(batch * count, c.hidden, act);
        let from = s.image.text_tokens;
        r.push("img", CopyRows { x: joint, out: img, batch, from, to: 0, count });
        let [shift, scale] = self.blocks.modulation(15);
        r.push("norm", LayerNormModulate { x: img, shift, scale, eps: NORM_EPS, out: img });
        linear(r, "linear", img.all(), "final_layer.linear", Epilogue::None, velocity.all());
        velocity
    }

    /// `DoubleStreamBlock`: image and text have weights of their own and share one attention, text
    /// first.
    fn double_block(&self, r: &mut Recorder, i: usize, (img, txt): (Tensor, Tensor)) {
        let Blocks { c, act, batch, tokens, .. } = self.blocks;
        let (h, text_tokens) = (c.hidden, self.s.image.text_tokens);
        r.scope(format!("double.{i}"));
        let qkv = r.temp(batch * tokens, 3 * h, act);
        let (image, text) = (Stream { name: "img", first: 0 }, Stream { name: "txt", first: 6 });
        self.blocks.stream_keys(r, i, image, img, (qkv, text_tokens));
        self.blocks.stream_keys(r, i, text, txt, (qkv, 0));
        let (txt_attn, img_attn) = (r.temp(txt.rows, h, act), r.temp(img.rows, h, act));
        self.attention(r, i, qkv, Some((text_tokens, txt_attn)), img_attn.all());
        self.blocks.stream_end(r, i, image, img, img_attn);
        self.blocks.stream_end(r, i, text, txt, txt_attn);
    }

    /// The attention of block `i` (double blocks first) over `qkv` and the references that are
    /// kept; `first` separates the text.
    fn attention(
        &self,
        r: &mut Recorder,
        i: usize,
        qkv: Tensor,
        first: Option<(usize, Tensor)>,
        out: View,
    ) {
        let Blocks { c, act, batch, tokens, .. } = self.blocks;
        let h = c.hidden;
        let joint = self.blocks.joint().attention(qkv, first, out);
        let Some(&kept) = self.kept.get(i) else { return r.push("attn", joint) };
        // The own keys and values of each sequence, then those of the references.
        let own = r.temp(batch * tokens, 2 * h, act);
        r.push("keys", Cast { x: qkv.columns(h, 2 * h), out: own.all() });
        let all = tokens + kept.rows;
        let keys = r.temp(batch * all, 2 * h, act);
        let copy = CopyRows { x: own, out: keys, batch, from: 0, to: 0, count: tokens };
        r.push("keys.own", copy);
        for sequence in 0..batch {
            let (to, count) = (sequence * all + tokens, kept.rows);
            let copy = CopyRows { x: kept, out: keys, batch: 1, from: 0, to, count };
            r.push(&format!("keys.references.{sequence}"), copy);
        }
        let (k, v) = (keys.columns(0, h), keys.columns(h, h));
        let Some((count, text)) = first else {
            return r.push("attn", Attention { k, v, ..joint });
        };
        // Only with as many queries as keys the operation separates text and image itself.
        let both = r.temp(batch * tokens, h, act);
        r.push("attn", Attention { k, v, first: None, out: both.all(), ..joint });
        let image = tokens - count;
        let text = CopyRows { x: both, out: text, batch, from: 0, to: 0, count };
        r.push("attn.txt", text);
        let out = out.tensor;
        r.push("attn.img", CopyRows { x: both, out, batch, from: count, to: 0, count: image });
    }
}

/// The rotation table of the program of a step, a row for each token, `tokens x head_dim`. Ids are
/// (0, 0, 0, position) for text, then (0, row, column, 0) for the image, then (10, row, column, 0)
/// for the first reference, (20, row, column, 0) for the second, and so on, unless the model keeps
/// references.
pub fn rope(c: &Flux2Config, s: &SequenceShape) -> Vec<f32> {
    let own = own_sequence(c, s);
    let rows = Vec::with_capacity(own.tokens() * c.head_dim);
    let mut table = RopeTable { axes: &c.axes, theta: c.theta, rows };
    (0..s.image.text_tokens).for_each(|position| table.token(&[0, 0, 0, position]));
    grid(&mut table, 0, (s.image.height, s.image.width));
    references(&mut table, &own.references);
    table.rows
}

/// The rotation table of [`reference_keys`](super::reference_keys): the rows of references in
/// [`rope`].
pub fn reference_rope(c: &Flux2Config, s: &SequenceShape) -> Vec<f32> {
    let mut table = RopeTable { axes: &c.axes, theta: c.theta, rows: Vec::new() };
    references(&mut table, &s.references);
    table.rows
}

fn references(table: &mut RopeTable, grids: &[(usize, usize)]) {
    for (i, &size) in grids.iter().enumerate() {
        grid(table, (i + 1) * REFERENCE_STEP, size);
    }
}

fn grid(table: &mut RopeTable, time: usize, (height, width): (usize, usize)) {
    (0..height).for_each(|y| (0..width).for_each(|x| table.token(&[time, y, x, 0])));
}
