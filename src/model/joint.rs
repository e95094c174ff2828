//! What the transformers of all FLUX families share: the rows that enter them, one attention over
//! text and image tokens, and its rotation table.

use super::flux1::DenoiseShape;
use crate::dtype::DType;
use crate::op::{Attention, Cast, CopyRows, Pairs, QkNormRope, Recorder};
use crate::tensor::{Tensor, View};

/// Epsilon of every norm.
pub const NORM_EPS: f32 = 1e-6;

/// The tokens of the sequences of one denoising step: text, image, references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceShape {
    /// Images, text tokens, and the grid of image tokens.
    pub image: DenoiseShape,
    /// Rows and columns of the grid of tokens of each reference image. All sequences have the same
    /// references.
    pub references: Vec<(usize, usize)>,
    /// Columns that LoRAs add to the input of the transformer, for a control image.
    pub added_inputs: usize,
}

impl From<&DenoiseShape> for SequenceShape {
    /// Without references.
    fn from(image: &DenoiseShape) -> Self {
        SequenceShape { image: *image, references: Vec::new(), added_inputs: 0 }
    }
}

impl From<&SequenceShape> for SequenceShape {
    fn from(shape: &SequenceShape) -> Self {
        shape.clone()
    }
}

impl SequenceShape {
    /// Tokens of all reference images.
    pub fn reference_tokens(&self) -> usize {
        self.references.iter().map(|(height, width)| height * width).sum()
    }

    /// Image tokens of one sequence, references included.
    pub fn pixels(&self) -> usize {
        self.image.image_tokens() + self.reference_tokens()
    }

    /// Tokens of one sequence: text, image, references.
    pub fn tokens(&self) -> usize {
        self.image.text_tokens + self.pixels()
    }
}

/// The inputs of the transformer for image tokens.
#[derive(Debug, Clone, Copy)]
pub struct ImageInputs {
    /// The latents of all images (images * image_tokens rows).
    pub latents: Tensor,
    /// Further columns for each of these rows (models for Fill, Canny and Depth).
    pub condition: Option<Tensor>,
    /// The rows of all reference images.
    pub references: Option<Tensor>,
}

impl ImageInputs {
    /// Records the inputs of a program: `latents`, `condition` (of `extra` columns, if that is not
    /// 0) and `references` (if there are any), all in f32.
    pub fn record(r: &mut Recorder, s: &SequenceShape, channels: usize, extra: usize) -> Self {
        let rows = s.image.images * s.image.image_tokens();
        let latents = r.input("latents", rows, channels, DType::F32);
        let mut optional = |name: &'static str, rows: usize, cols: usize| {
            (rows * cols > 0).then(|| r.input(name, rows, cols, DType::F32))
        };
        let condition = optional("condition", rows, extra);
        let references = optional("references", s.reference_tokens(), channels + extra);
        ImageInputs { latents, condition, references }
    }

    /// The rows of every sequence one after another, those of the image before those of the
    /// references, as the device computes.
    pub fn rows(&self, r: &mut Recorder, s: &SequenceShape, act: DType) -> Tensor {
        let (image, tokens) = (&s.image, s.image.image_tokens());
        let mut x = match self.condition {
            None => cast(r, "cast", self.latents, act),
            Some(condition) => {
                let (rows, own) = (self.latents.rows, self.latents.cols);
                let both = r.temp(rows, own + condition.cols, act);
                r.push("cast", Cast { x: self.latents.all(), out: both.columns(0, own) });
                let out = both.columns(own, condition.cols);
                r.push("cast_condition", Cast { x: condition.all(), out });
                both
            }
        };
        let references = self.references.map(|x| cast(r, "cast_references", x, act));
        if image.cfg || references.is_some() {
            let all = r.temp(image.batch() * s.pixels(), x.cols, act);
            for sequence in 0..image.batch() {
                let (from, to) = (sequence % image.images * tokens, sequence * s.pixels());
                let label = format!("image.{sequence}");
                r.push(&label, CopyRows { x, out: all, batch: 1, from, to, count: tokens });
                if let Some(x) = references {
                    let (to, count) = (to + tokens, x.rows);
                    let label = format!("references.{sequence}");
                    r.push(&label, CopyRows { x, out: all, batch: 1, from: 0, to, count });
                }
            }
            x = all;
        }
        x
    }
}

/// `x` as the device computes.
fn cast(r: &mut Recorder, label: &str, x: Tensor, act: DType) -> Tensor {
    if act == DType::F32 {
        return x;
    }
    let out = r.temp(x.rows, x.cols, act);
    r.push(label, Cast { x: x.all(), out: out.all() });
    out
}

/// One attention over the tokens of each sequence, text first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JointAttention {
    /// Sequences.
    pub batch: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Text and image tokens of one sequence.
    pub tokens: usize,
}

impl JointAttention {
    /// Norm and rotation of queries and keys with the gains `{scope}.norm`, into the rows from
    /// `first` on of every sequence in `out`.
    pub fn qk_norm_rope(
        &self,
        r: &mut Recorder,
        scope: &str,
        qkv: Tensor,
        rope: Tensor,
        first: usize,
        out: Tensor,
    ) -> QkNormRope {
        QkNormRope {
            qkv,
            q_gain: r.weight(format!("{scope}.norm.query_norm.scale"), 1, self.head_dim),
            k_gain: r.weight(format!("{scope}.norm.key_norm.scale"), 1, self.head_dim),
            rope,
            pairs: Pairs::Adjacent,
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.heads,
            tokens: self.tokens,
            first,
            eps: NORM_EPS,
            out,
        }
    }

    /// Attention over the prepared `qkv`; `first` separates the text (see [`Attention::first`]).
    pub fn attention(&self, qkv: Tensor, first: Option<(usize, Tensor)>, out: View) -> Attention {
        let width = self.heads * self.head_dim;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.columns(i * width, width));
        Attention {
            q,
            k,
            v,
            batch: self.batch,
            heads: self.heads,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            causal: false,
            bias: None,
            first,
            out,
        }
    }
}

/// A rotation table that is filled token by token: columns (cos, sin) per pair, axis after axis.
/// Frequencies `theta^(-2i/d)` and angles are computed in f64, as in the reference.
pub struct RopeTable<'a> {
    /// How the width of a head is divided among the id axes.
    pub axes: &'a [usize],
    /// The base of the frequencies.
    pub theta: f64,
    /// The rows so far.
    pub rows: Vec<f32>,
}

impl RopeTable<'_> {
    /// Adds the row of a token with these ids, one for each axis.
    pub fn token(&mut self, ids: &[usize]) {
        for (&dim, &id) in self.axes.iter().zip(ids) {
            for i in 0..dim / 2 {
                let angle = id as f64 * self.theta.powf(-((2 * i) as f64) / dim as f64);
                self.rows.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
    }
}
