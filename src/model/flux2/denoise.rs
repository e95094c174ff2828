//! One denoising step.

use super::config::Flux2Config;
use super::{linear, linear_rows};
use crate::dtype::DType;
use crate::model::joint::{ImageInputs, JointAttention, NORM_EPS, RopeTable, SequenceShape};
use crate::op::{CopyRows, Epilogue, EulerStep, LayerNormModulate, Program, Recorder, SiluMul};
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
pub fn denoise(c: &Flux2Config, s: &SequenceShape, act: DType) -> Program {
    let mut r = Recorder::new("denoise");
    let image = &s.image;
    let inputs = ImageInputs::record(&mut r, s, c.in_channels, 0);
    let text = r.input("text", image.batch() * image.text_tokens, c.context, act);
    let modulation = r.input("modulation", 1, c.modulation_cols(), act);
    let rope = r.input("rope", s.tokens(), c.head_dim, DType::F32);
    let step = r.input("step", 1, 2, DType::F32);
    let denoiser = Denoiser { c, s, act, modulation, rope };

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

/// What the parts of the program have in common.
struct Denoiser<'a> {
    c: &'a Flux2Config,
    s: &'a SequenceShape,
    act: DType,
    modulation: Tensor,
    rope: Tensor,
}

impl Denoiser<'_> {
    /// Vectors `first .. first + N` of the modulation.
    fn modulation<const N: usize>(&self, first: usize) -> [View; N] {
        let h = self.c.hidden;
        std::array::from_fn(|i| self.modulation.columns((first + i) * h, h))
    }

    fn joint(&self) -> JointAttention {
        let Denoiser { c, s, .. } = *self;
        let (heads, head_dim) = (c.heads, c.head_dim);
        JointAttention { batch: s.image.batch(), heads, head_dim, tokens: s.tokens() }
    }

    /// Latents and text as hidden rows, sequence after sequence: (image and references, text).
    fn head(&self, r: &mut Recorder, inputs: &ImageInputs, text: Tensor) -> (Tensor, Tensor) {
        let Denoiser { c, s, act, .. } = *self;
        r.scope("img_in");
        let x = inputs.rows(r, s, act);
        let img = r.temp(x.rows, c.hidden, act);
        linear(r, "linear", x.all(), "img_in", Epilogue::None, img.all());
        r.scope("txt_in");
        let txt = r.temp(text.rows, c.hidden, act);
        linear(r, "linear", text.all(), "txt_in", Epilogue::None, txt.all());
        (img, txt)
    }

    /// All blocks; the rows of each sequence are joined after the double blocks, text first.
    fn blocks(&self, r: &mut Recorder, (img, txt): (Tensor, Tensor)) -> Tensor {
        let Denoiser { c, s, act, .. } = *self;
        let (batch, text_tokens) = (s.image.batch(), s.image.text_tokens);
        for i in 0..c.depth_double {
            self.double_block(r, i, (img, txt));
        }
        r.scope("join");
        let joint = r.temp(batch * s.tokens(), c.hidden, act);
        for (label, x, to, count) in
            [("txt", txt, 0, text_tokens), ("img", img, text_tokens, s.pixels())]
        {
            r.push(label, CopyRows { x, out: joint, batch, from: 0, to, count });
        }
        for i in 0..c.depth_single {
            self.single_block(r, i, joint);
        }
        joint
    }

    /// `LastLayer` on the rows of the image, without those of references: the output `velocity`.
    fn final_layer(&self, r: &mut Recorder, joint: Tensor) -> Tensor {
        let Denoiser { c, s, act, .. } = *self;
        let (batch, count) = (s.image.batch(), s.image.image_tokens());
        let velocity = r.output("velocity", batch * count, c.out_channels, DType::F32);
        r.scope("final");
        let img = r.temp(batch * count, c.hidden, act);
        let from = s.image.text_tokens;
        r.push("img", CopyRows { x: joint, out: img, batch, from, to: 0, count });
        let [shift, scale] = self.modulation(15);
        r.push("norm", LayerNormModulate { x: img, shift, scale, eps: NORM_EPS, out: img });
        linear(r, "linear", img.all(), "final_layer.linear", Epilogue::None, velocity.all());
        velocity
    }

    /// `DoubleStreamBlock`: image and text have weights of their own and share one attention, text
    /// first.
    fn double_block(&self, r: &mut Recorder, i: usize, (img, txt): (Tensor, Tensor)) {
        let Denoiser { c, s, act, .. } = *self;
        let (h, batch, text_tokens) = (c.hidden, s.image.batch(), s.image.text_tokens);
        r.scope(format!("double.{i}"));
        let (img_mod, txt_mod) = (self.modulation::<6>(0), self.modulation::<6>(6));
        let qkv = r.temp(batch * s.tokens(), 3 * h, act);
        for (name, x, m, first) in [("img", img, img_mod, text_tokens), ("txt", txt, txt_mod, 0)] {
            let block = format!("double_blocks.{i}.{name}_attn");
            let norm = r.temp(x.rows, h, act);
            r.push(
                &format!("{name}.norm1"),
                LayerNormModulate { x, shift: m[0], scale: m[1], eps: NORM_EPS, out: norm },
            );
            let own = r.temp(x.rows, 3 * h, act);
            let weight = format!("{block}.qkv");
            linear(r, &format!("{name}.qkv"), norm.all(), &weight, Epilogue::None, own.all());
            let op = self.joint().qk_norm_rope(r, &block, own, self.rope, first, qkv);
            r.push(&format!("{name}.rope"), op);
        }
        let (txt_attn, img_attn) = (r.temp(txt.rows, h, act), r.temp(img.rows, h, act));
        let first = Some((text_tokens, txt_attn));
        r.push("attn", self.joint().attention(qkv, first, img_attn.all()));
        for (name, x, attn, m) in [("img", img, img_attn, img_mod), ("txt", txt, txt_attn, txt_mod)]
        {
            let block = format!("double_blocks.{i}.{name}");
            let gated = |gate| Epilogue::GatedAdd { residual: x, gate };
            let weight = format!("{block}_attn.proj");
            linear(r, &format!("{name}.proj"), attn.all(), &weight, gated(m[2]), x.all());
            let norm = r.temp(x.rows, h, act);
            r.push(
                &format!("{name}.norm2"),
                LayerNormModulate { x, shift: m[3], scale: m[4], eps: NORM_EPS, out: norm },
            );
            let mlp = r.temp(x.rows, c.mlp_hidden, act);
            self.swiglu(r, &format!("{name}.mlp"), norm, (&format!("{block}_mlp.0"), 0), mlp.all());
            let (label, weight) = (format!("{name}.mlp.2"), format!("{block}_mlp.2"));
            linear(r, &label, mlp.all(), &weight, gated(m[5]), x.all());
        }
    }

    /// `SingleStreamBlock`: attention and MLP in parallel. `linear1` is recorded as q, k, v and the
    /// two halves of the MLP, so that each is written where it is used.
    fn single_block(&self, r: &mut Recorder, i: usize, x: Tensor) {
        let Denoiser { c, act, .. } = *self;
        let h = c.hidden;
        r.scope(format!("single.{i}"));
        let [shift, scale, gate] = self.modulation(12);
        let block = format!("single_blocks.{i}");
        let (linear1, linear2) = (format!("{block}.linear1"), format!("{block}.linear2"));
        let norm = r.temp(x.rows, h, act);
        r.push("norm", LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm });
        let qkv = r.temp(x.rows, 3 * h, act);
        linear(r, "qkv", norm.all(), &linear1, Epilogue::None, qkv.all());
        let op = self.joint().qk_norm_rope(r, &block, qkv, self.rope, 0, qkv);
        r.push("rope", op);
        let both = r.temp(x.rows, h + c.mlp_hidden, act);
        r.push("attn", self.joint().attention(qkv, None, both.columns(0, h)));
        let mlp = both.columns(h, c.mlp_hidden);
        self.swiglu(r, "mlp", norm, (&linear1, 3 * h), mlp);
        let gated = Epilogue::GatedAdd { residual: x, gate };
        linear(r, "linear2", both.all(), &linear2, gated, x.all());
    }

    /// `silu(gate) * up`, where gate and up are the rows of `weight` from `first` on.
    fn swiglu(&self, r: &mut Recorder, label: &str, x: Tensor, weight: (&str, usize), out: View) {
        let n = self.c.mlp_hidden;
        let both = r.temp(x.rows, 2 * n, self.act);
        linear_rows(r, &format!("{label}.0"), x.all(), weight, Epilogue::None, both.all());
        let (gate, up) = (both.columns(0, n), both.columns(n, n));
        r.push(&format!("{label}.silu"), SiluMul { gate, up, out });
    }
}

/// The rotation table, `tokens x head_dim`: a row for each token. Ids are (0, 0, 0, position) for
/// text, then (0, row, column, 0) for the image, then (10, row, column, 0) for the first reference,
/// (20, row, column, 0) for the second, and so on.
pub fn rope(c: &Flux2Config, s: &SequenceShape) -> Vec<f32> {
    let rows = Vec::with_capacity(s.tokens() * c.head_dim);
    let mut table = RopeTable { axes: &c.axes, theta: c.theta, rows };
    (0..s.image.text_tokens).for_each(|position| table.token(&[0, 0, 0, position]));
    let references = s.references.iter().enumerate();
    let grids = std::iter::once((0, s.image.height, s.image.width))
        .chain(references.map(|(i, &(height, width))| ((i + 1) * REFERENCE_STEP, height, width)));
    for (time, height, width) in grids {
        (0..height).for_each(|y| (0..width).for_each(|x| table.token(&[time, y, x, 0])));
    }
    table.rows
}
