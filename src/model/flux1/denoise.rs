//! One denoising step.

use super::config::FluxConfig;
use super::control::{Control, Controlled, Residual};
use super::{linear, linear_rows};
use crate::dtype::DType;
use crate::model::joint::{ImageInputs, JointAttention, NORM_EPS, RopeTable, SequenceShape};
use crate::op::{
    CopyRows, Epilogue, EulerStep, LayerNormModulate, Linear, Program, Recorder, ScaledAdd,
};
use crate::spec::lora::added_inputs;
use crate::tensor::{Tensor, View};

/// The images and tokens of one run of [`denoise`], without references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenoiseShape {
    /// Images.
    pub images: usize,
    /// Each image runs twice, with the prompt and with the negative prompt (true CFG): all
    /// sequences with the prompt come first.
    pub cfg: bool,
    /// Text tokens of one sequence.
    pub text_tokens: usize,
    /// Rows of the grid of packed latent tokens (16 image pixels each with FLUX's autoencoder).
    pub height: usize,
    /// Columns of that grid.
    pub width: usize,
}

impl DenoiseShape {
    /// Sequences that pass through the transformer.
    pub fn batch(&self) -> usize {
        self.images * self.prompts()
    }

    /// Prompts: the rows of one step's modulation.
    pub fn prompts(&self) -> usize {
        if self.cfg { 2 } else { 1 }
    }

    /// The same without the sequences of the negative prompt.
    pub fn prompted(&self) -> DenoiseShape {
        DenoiseShape { cfg: false, ..*self }
    }

    /// Image tokens of one image.
    pub fn image_tokens(&self) -> usize {
        self.height * self.width
    }

    /// Text and image tokens of one sequence.
    pub fn tokens(&self) -> usize {
        self.text_tokens + self.image_tokens()
    }
}

/// One step, in three segments.
///
/// Inputs: `latents` (images * image_tokens x out_channels, f32, updated in place), `condition`
/// (the same rows, the other columns of in_channels and those that LoRAs add; absent where there
/// are none), `references` (reference_tokens x in_channels, f32; absent without references), `text`
/// (batch * text_tokens x context), `modulation` (prompts x [`FluxConfig::modulation_cols`], the
/// rows of one step of [`modulate()`](super::modulate())), `rope` (tokens x head_dim, f32, see
/// [`rope`]), `step` (1 x 2, f32: next timestep less this one, true CFG scale). Output: `velocity`
/// (batch * image_tokens x out_channels, f32).
///
/// | segment  | what it does                             | passes on                         |
/// |----------|------------------------------------------|-----------------------------------|
/// | `head`   | embeds latents and text                  | `img`, `txt`: hidden rows of each |
/// | `blocks` | double blocks, join, single blocks       | `joint`: text and image rows      |
/// | `tail`   | final layer, update of the latents       |                                   |
pub fn denoise(c: &FluxConfig, s: impl Into<SequenceShape>, act: DType) -> Program {
    denoise_with(c, s, &[], act)
}

/// The same with `controls`, ControlNets that change the image rows after the blocks. Number n of
/// them has the weights of the network n + 1 ([`WeightSpec::net`](crate::op::WeightSpec::net)), and
/// further inputs; see [`Control`].
pub fn denoise_with(
    c: &FluxConfig,
    s: impl Into<SequenceShape>,
    controls: &[Control<'_>],
    act: DType,
) -> Program {
    let s = &s.into();
    let image = &s.image;
    let mut r = Recorder::new("denoise");
    let extra = c.in_channels - c.out_channels + s.added_inputs;
    let inputs = ImageInputs::record(&mut r, s, c.out_channels, extra);
    let text = r.input("text", image.batch() * image.text_tokens, c.context, act);
    let modulation = r.input("modulation", image.prompts(), c.modulation_cols(), act);
    let rope = r.input("rope", s.tokens(), c.head_dim, DType::F32);
    let step = r.input("step", 1, 2, DType::F32);
    let mut modulation = Modulation { tensor: modulation, hidden: c.hidden, next: 0 };
    let denoiser = Denoiser { c, s, act, scope: "" };
    let mut controls: Vec<Controlled<'_>> = (controls.iter().enumerate())
        .map(|(i, control)| Controlled::record(&mut r, i, *control, &image.prompted(), act))
        .collect();

    r.segment("head");
    let (img, txt) = denoiser.head(&mut r, &inputs, text);
    r.pass_on("img", img);
    r.pass_on("txt", txt);

    r.segment("blocks");
    let shared = Shared { latents: inputs.latents, text, rope };
    let joint = denoiser.blocks(&mut r, (img, txt), &shared, &mut modulation, &mut controls);
    r.pass_on("joint", joint);

    r.segment("tail");
    let velocity = denoiser.final_layer(&mut r, joint, &mut modulation);
    r.scope("sampler");
    r.push("euler", EulerStep { x: inputs.latents, v: velocity, params: step, cfg: image.cfg });
    r.finish()
}

/// Hands out consecutive vectors of `hidden` columns of the modulation matrix, in the order in
/// which [`modulate()`](super::modulate()) writes them.
pub(super) struct Modulation {
    pub tensor: Tensor,
    pub hidden: usize,
    pub next: usize,
}

/// Inputs that ControlNets read, too.
pub(super) struct Shared {
    /// The latents of all images.
    pub latents: Tensor,
    /// The text of all sequences.
    pub text: Tensor,
    /// The rotations of all tokens of a sequence.
    pub rope: Tensor,
}

impl Modulation {
    fn take<const N: usize>(&mut self) -> [View; N] {
        std::array::from_fn(|_| {
            let view = self.tensor.columns(self.next, self.hidden);
            self.next += self.hidden;
            view
        })
    }
}

/// Sizes and inputs that all parts of the program use.
pub(super) struct Denoiser<'a> {
    pub c: &'a FluxConfig,
    pub s: &'a SequenceShape,
    pub act: DType,
    /// What stands before the names of blocks in labels.
    pub scope: &'a str,
}

impl Denoiser<'_> {
    /// Latents and text as hidden rows, sequence after sequence: (image and references, text).
    fn head(&self, r: &mut Recorder, inputs: &ImageInputs, text: Tensor) -> (Tensor, Tensor) {
        let Denoiser { c, s, act, .. } = *self;
        r.scope("img_in");
        let x = inputs.rows(r, s, act);
        let img = r.temp(x.rows, c.hidden, act);
        let own = x.columns(0, c.in_channels);
        linear(r, "linear", own, "img_in", Epilogue::None, img.all());
        if s.added_inputs > 0 {
            let added = x.columns(c.in_channels, s.added_inputs);
            let w = r.added_weight(added_inputs("img_in.weight"), c.hidden, added.cols);
            let epilogue = Epilogue::Add { residual: img };
            r.push("added", Linear { epilogue, ..Linear::plain(added, w, img.all()) });
        }
        r.scope("txt_in");
        let txt = r.temp(text.rows, c.hidden, act);
        linear(r, "linear", text.all(), "txt_in", Epilogue::None, txt.all());
        (img, txt)
    }

    /// All blocks; the rows of each sequence are joined after the double blocks, text first. What
    /// `controls` give is added to the rows of the image after each block.
    fn blocks(
        &self,
        r: &mut Recorder,
        (img, txt): (Tensor, Tensor),
        shared: &Shared,
        modulation: &mut Modulation,
        controls: &mut [Controlled<'_>],
    ) -> Tensor {
        let Denoiser { c, s, .. } = *self;
        for i in 0..c.depth_double {
            self.double_block(r, i, (img, txt), shared.rope, modulation);
            for control in &mut *controls {
                let Some(residual) = control.after_double(r, i, c.depth_double, shared) else {
                    continue;
                };
                self.add(r, &format!("double.{i}"), residual, (img, 0));
            }
        }
        let joint = self.join(r, (img, txt));
        for i in 0..c.depth_single {
            self.single_block(r, i, joint, shared.rope, modulation);
            for control in &mut *controls {
                let Some(residual) = control.after_single(r, i, c.depth_single, shared) else {
                    continue;
                };
                self.add(r, &format!("single.{i}"), residual, (joint, s.image.text_tokens));
            }
        }
        joint
    }

    /// The rows of each sequence in one tensor, text first.
    pub fn join(&self, r: &mut Recorder, (img, txt): (Tensor, Tensor)) -> Tensor {
        let Denoiser { c, s, act, scope } = *self;
        let (batch, text_tokens) = (s.image.batch(), s.image.text_tokens);
        r.scope(format!("{scope}join"));
        let joint = r.temp(batch * s.tokens(), c.hidden, act);
        for (label, x, to, count) in
            [("txt", txt, 0, text_tokens), ("img", img, text_tokens, s.pixels())]
        {
            r.push(label, CopyRows { x, out: joint, batch, from: 0, to, count });
        }
        joint
    }

    /// Adds what a ControlNet gives for each image to the rows of the image in every sequence with
    /// this image. They begin at row `first` of each sequence in `rows`.
    fn add(
        &self,
        r: &mut Recorder,
        block: &str,
        residual: Residual,
        (rows, first): (Tensor, usize),
    ) {
        let Denoiser { c, s, act, .. } = *self;
        let (images, count) = (s.image.images, s.image.image_tokens());
        let Residual { tensor, strength, net } = residual;
        r.net(net as u32 + 1);
        r.scope(block);
        let label = format!("control{net}");
        let add = |r: &mut Recorder, to: Tensor| {
            let epilogue = Epilogue::GatedAdd { residual: to, gate: strength.all() };
            let (x, out) = (tensor.all(), to.all());
            r.push(&label, ScaledAdd { x, add: None, scale: None, epilogue, out });
        };
        if rows.rows == tensor.rows {
            add(r, rows);
            return r.net(0);
        }
        let per_sequence = rows.rows / s.image.batch();
        for prompt in 0..s.image.prompts() {
            let image = r.temp(images * count, c.hidden, act);
            let own = |i: usize| (prompt * images + i) * per_sequence + first;
            for i in 0..images {
                let copy =
                    CopyRows { x: rows, out: image, batch: 1, from: own(i), to: i * count, count };
                r.push(&format!("{label}.from"), copy);
            }
            add(r, image);
            for i in 0..images {
                let copy =
                    CopyRows { x: image, out: rows, batch: 1, from: i * count, to: own(i), count };
                r.push(&format!("{label}.to"), copy);
            }
        }
        r.net(0);
    }

    /// `LastLayer` on the rows of the image, without those of references: the output `velocity`.
    fn final_layer(&self, r: &mut Recorder, joint: Tensor, modulation: &mut Modulation) -> Tensor {
        let Denoiser { c, s, act, .. } = *self;
        let (batch, count, from) = (s.image.batch(), s.image.image_tokens(), s.image.text_tokens);
        let velocity = r.output("velocity", batch * count, c.out_channels, DType::F32);
        r.scope("final");
        let img = r.temp(batch * count, c.hidden, act);
        r.push("img", CopyRows { x: joint, out: img, batch, from, to: 0, count });
        let [shift, scale] = modulation.take();
        r.push("norm", LayerNormModulate { x: img, shift, scale, eps: NORM_EPS, out: img });
        linear(r, "linear", img.all(), "final_layer.linear", Epilogue::None, velocity.all());
        velocity
    }

    /// `DoubleStreamBlock`: image and text have weights of their own and share one attention, text
    /// first.
    pub fn double_block(
        &self,
        r: &mut Recorder,
        i: usize,
        (img, txt): (Tensor, Tensor),
        rope: Tensor,
        modulation: &mut Modulation,
    ) {
        let Denoiser { c, s, act, scope } = *self;
        let (h, batch, text_tokens) = (c.hidden, s.image.batch(), s.image.text_tokens);
        r.scope(format!("{scope}double.{i}"));
        let img_mod: [View; 6] = modulation.take();
        let txt_mod: [View; 6] = modulation.take();
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
            let op = self.joint().qk_norm_rope(r, &block, own, rope, first, qkv);
            r.push(&format!("{name}.rope"), op);
        }
        let (txt_attn, img_attn) = (r.temp(txt.rows, h, act), r.temp(img.rows, h, act));
        r.push("attn", self.joint().attention(qkv, Some((text_tokens, txt_attn)), img_attn.all()));
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
            let hidden = r.temp(x.rows, c.mlp_hidden, act);
            let (label, weight) = (format!("{name}.mlp.0"), format!("{block}_mlp.0"));
            linear(r, &label, norm.all(), &weight, Epilogue::GeluTanh, hidden.all());
            let (label, weight) = (format!("{name}.mlp.2"), format!("{block}_mlp.2"));
            linear(r, &label, hidden.all(), &weight, gated(m[5]), x.all());
        }
    }

    /// `SingleStreamBlock`: attention and MLP in parallel. `linear1` is recorded as its two halves,
    /// so that each is written where it is used.
    pub fn single_block(
        &self,
        r: &mut Recorder,
        i: usize,
        x: Tensor,
        rope: Tensor,
        modulation: &mut Modulation,
    ) {
        let Denoiser { c, act, scope, .. } = *self;
        let h = c.hidden;
        r.scope(format!("{scope}single.{i}"));
        let [shift, scale, gate] = modulation.take();
        let block = format!("single_blocks.{i}");
        let (linear1, linear2) = (format!("{block}.linear1"), format!("{block}.linear2"));
        let norm = r.temp(x.rows, h, act);
        r.push("norm", LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm });
        let qkv = r.temp(x.rows, 3 * h, act);
        linear(r, "qkv", norm.all(), &linear1, Epilogue::None, qkv.all());
        let op = self.joint().qk_norm_rope(r, &block, qkv, rope, 0, qkv);
        r.push("rope", op);
        let both = r.temp(x.rows, h + c.mlp_hidden, act);
        r.push("attn", self.joint().attention(qkv, None, both.columns(0, h)));
        let mlp = both.columns(h, c.mlp_hidden);
        linear_rows(r, "mlp", norm.all(), (&linear1, 3 * h), Epilogue::GeluTanh, mlp);
        let gated = Epilogue::GatedAdd { residual: x, gate };
        linear(r, "linear2", both.all(), &linear2, gated, x.all());
    }

    fn joint(&self) -> JointAttention {
        let Denoiser { c, s, .. } = *self;
        let (heads, head_dim) = (c.heads, c.head_dim);
        JointAttention { batch: s.image.batch(), heads, head_dim, tokens: s.tokens() }
    }
}

/// The rotation table of `EmbedND`, `tokens x head_dim`: one row per token, text first (ids all
/// zero), then the image grid (0, row, column), then references (1, row, column).
///
/// Several references are placed next to one another, each to the right of those before it or below
/// them, so that the whole stays about as wide as high (as in ComfyUI).
pub fn rope(c: &FluxConfig, s: impl Into<SequenceShape>) -> Vec<f32> {
    let SequenceShape { image, references, .. } = &s.into();
    let rows = Vec::new();
    let mut table = RopeTable { axes: &c.axes, theta: c.theta, rows };
    (0..image.text_tokens).for_each(|_| table.token(&[0, 0, 0]));
    (0..image.height).for_each(|y| (0..image.width).for_each(|x| table.token(&[0, y, x])));
    let (mut bottom, mut right) = (0, 0);
    for &(height, width) in references {
        let (top, left) = if height + bottom > width + right { (0, right) } else { (bottom, 0) };
        for y in top..top + height {
            (left..left + width).for_each(|x| table.token(&[1, y, x]));
        }
        (bottom, right) = (bottom.max(top + height), right.max(left + width));
    }
    table.rows
}
