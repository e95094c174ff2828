//! The fused operations a model is made of, and the `Program` that lists them.
//!
//! Every tensor is a matrix `rows x cols`, row-major. Where several pictures or prompts run together their rows are
//! stacked, picture by picture. A *row vector for a group* (a gate, a shift) is a row of a matrix with as many rows as there are
//! groups: row `r` of an operand with `R` rows belongs to group `r / (R / groups)`.
//! All arithmetic accumulates in at least f32.

mod program;
mod rules;

pub use program::{Io, Lora, Program, Recorder, Step, Use, WeightSpec};

use std::fmt;

use crate::tensor::{Tensor, View, Weight};

/// What a `Linear` does with `y = x . w^T + bias` before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = y`
    None,
    /// `out = y / (1 + e^-y)`
    Silu,
    /// `out = gelu(y)`, the tanh form: `y/2 (1 + tanh(sqrt(2/pi) (y + 0.044715 y^3)))`
    GeluTanh,
    /// `out = y / (1 + e^(-1.702 y))`
    QuickGelu,
    /// `out = residual + y`; `residual` may be `out` itself.
    Add { residual: Tensor },
    /// `out = residual + gate[group] * y`; `gate` has a row per group and as many columns as `out`; `residual` may be `out` itself.
    GatedAdd { residual: Tensor, gate: View },
}

/// A product of low rank that a `Linear` adds to its own before the epilogue: `y += t . b^T`. It is the second half of a LoRA; the first, `t = x . a^T`, is a
/// `Linear` of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Side {
    /// `rows x rank`
    pub t: Tensor,
    /// `N x rank`
    pub b: Weight,
}

/// The geometry of a convolution over `batch` pictures of `height x width` pixels (rows of `x`, row-major, pictures stacked).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvShape {
    pub batch: usize,
    /// Input height and width in pixels, before `upsample`.
    pub height: usize,
    pub width: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    /// Square kernel, 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Zero rows and columns above and left.
    pub pad_before: usize,
    /// Zero rows and columns below and right.
    pub pad_after: usize,
    /// The input is enlarged twice (nearest neighbour) while it is read.
    pub upsample: bool,
}

impl ConvShape {
    /// Height and width of the (enlarged) input that the kernel slides over.
    pub fn source(&self) -> (usize, usize) {
        if self.upsample { (2 * self.height, 2 * self.width) } else { (self.height, self.width) }
    }

    /// Output height and width.
    pub fn output(&self) -> (usize, usize) {
        let (h, w) = self.source();
        let along =
            |n: usize| (n + self.pad_before + self.pad_after - self.kernel) / self.stride + 1;
        (along(h), along(w))
    }
}

/// One operation. `x` and friends are read, `out` is written whole (every element of the view).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// `out[r] = epilogue(x[r] . w^T + side + bias)`; x: `rows x K`, w: `N x K`, bias: `1 x N`, out: `rows x N`.
    Linear {
        x: View,
        w: Weight,
        bias: Option<Weight>,
        side: Option<Side>,
        epilogue: Epilogue,
        out: View,
    },
    /// Convolution as implicit GEMM. x: `batch*h*w x in_channels`, w: `out_channels x (in_channels*kernel*kernel)` (as files store it: input
    /// channel slowest, kernel column fastest), out: `batch*oh*ow x out_channels`; `residual` has the shape of `out` and is added; it may be `out` itself.
    Conv2d {
        x: Tensor,
        w: Weight,
        bias: Option<Weight>,
        shape: ConvShape,
        residual: Option<Tensor>,
        out: Tensor,
    },
    /// Softmax attention, for each picture and head: `softmax(q . k^T * scale + bias) . v`. q, k, v, out: `batch*tokens x heads*head_dim` windows.
    /// `bias`: `(2*tokens - 1) x heads`, row `j - i + tokens - 1` is added to the score of query i and key j (T5). `causal` hides keys j > i.
    /// `first`: when given as `(n, t)`, the rows of the first n tokens of each picture go to `t` (`batch*n x heads*head_dim`), and `out` has
    /// `batch*(tokens - n)` rows for the others (text and image of a double block go separate ways).
    Attention {
        q: View,
        k: View,
        v: View,
        batch: usize,
        heads: usize,
        scale: f32,
        causal: bool,
        bias: Option<Tensor>,
        first: Option<(usize, Tensor)>,
        out: View,
    },
    /// `out = (1 + scale[group]) * norm(x) + shift[group]`, norm over the columns without affine; shift and scale are windows of a modulation matrix.
    LayerNormModulate { x: Tensor, shift: View, scale: View, eps: f32, out: Tensor },
    /// `out = norm(x) * weight + bias` over the columns.
    LayerNorm { x: Tensor, weight: Weight, bias: Weight, eps: f32, out: Tensor },
    /// `out = x / sqrt(mean(x^2) + eps) * weight` over the columns.
    RmsNorm { x: Tensor, weight: Weight, eps: f32, out: Tensor },
    /// Prepares joint attention: splits `qkv` (`batch*n x 3*heads*head_dim`, layout (3, heads, head_dim)), applies RMSNorm with gains `q_gain`, `k_gain`
    /// (`1 x head_dim`) over each head of q and k, rotates adjacent pairs of q and k by `rope`, copies v. Row t of a picture's `n` rows becomes row `first + t` of that
    /// picture's `tokens` rows in `out` (`batch*tokens x 3*heads*head_dim`); other rows of `out` are left alone. `rope`: `tokens x head_dim` f32, columns (cos, sin) per
    /// pair: `y0 = cos x0 - sin x1`, `y1 = sin x0 + cos x1`. `out` may be `qkv` itself when `n == tokens`.
    QkNormRope {
        qkv: Tensor,
        q_gain: Weight,
        k_gain: Weight,
        rope: Tensor,
        batch: usize,
        heads: usize,
        tokens: usize,
        first: usize,
        eps: f32,
        out: Tensor,
    },
    /// `out = gelu_tanh(gate) * up`; `out` may be `gate` or `up`.
    GeluMul { gate: Tensor, up: Tensor, out: Tensor },
    /// `out = x / (1 + e^-x)`; `out` may be `x`.
    Silu { x: Tensor, out: Tensor },
    /// `out = a + b`; `out` may be `a` or `b`.
    Add { a: Tensor, b: Tensor, out: Tensor },
    /// `out[r] = table[ids[r]] (+ positions[r % positions.rows])`; ids: `rows x 1` I32 within the table (checked when they are written).
    Embed { table: Weight, ids: Tensor, positions: Option<Weight>, out: Tensor },
    /// Sinusoids of `1000 * t[r]`: half = cols/2, frequency f_i = 10000^(-i/half), `out = [cos(1000 t f) | sin(1000 t f)]`; t: `rows x 1` f32.
    TimestepEmbed { t: Tensor, out: Tensor },
    /// Latent pixels to tokens: x: `batch*h*w x c`, out: `batch*(h/2)*(w/2) x 4c`, column `c*4 + row*2 + column` within the 2x2 patch.
    Pack { x: Tensor, batch: usize, height: usize, width: usize, out: Tensor },
    /// The inverse of `Pack`; height and width are those of `out`'s latent pixels. Then `out = x * scale + shift` (1 and 0 leave it as it is).
    Unpack {
        x: Tensor,
        batch: usize,
        height: usize,
        width: usize,
        scale: f32,
        shift: f32,
        out: Tensor,
    },
    /// `x += params[0] * v` in place, f32; params: `1 x 2` f32 (t_next - t, true CFG scale s). With `cfg`, v has twice the rows of x (conditional
    /// first, then unconditional): `x += params[0] * (vu + s * (vc - vu))`.
    EulerStep { x: Tensor, v: Tensor, params: Tensor, cfg: bool },
    /// Group normalisation over (pixels of a picture x channels of a group), affine, then SiLU if asked. x, out: `batch*pixels x channels`; `out` may be `x`.
    GroupNorm {
        x: Tensor,
        weight: Weight,
        bias: Weight,
        batch: usize,
        groups: usize,
        eps: f32,
        silu: bool,
        out: Tensor,
    },
    /// For each of `batch` pictures: rows `from .. from + count` of its rows in x become rows `to ..` of its rows in out; other rows stay.
    CopyRows { x: Tensor, out: Tensor, batch: usize, from: usize, to: usize, count: usize },
    /// `out = x` in another element type, over windows of equal size.
    Cast { x: View, out: View },
}

impl Op {
    /// The operation's name, as variants, benchmarks and listings spell it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Linear { .. } => "linear",
            Op::Conv2d { .. } => "conv2d",
            Op::Attention { .. } => "attention",
            Op::LayerNormModulate { .. } => "layer_norm_modulate",
            Op::LayerNorm { .. } => "layer_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::QkNormRope { .. } => "qk_norm_rope",
            Op::GeluMul { .. } => "gelu_mul",
            Op::Silu { .. } => "silu",
            Op::Add { .. } => "add",
            Op::Embed { .. } => "embed",
            Op::TimestepEmbed { .. } => "timestep_embed",
            Op::Pack { .. } => "pack",
            Op::Unpack { .. } => "unpack",
            Op::EulerStep { .. } => "euler_step",
            Op::GroupNorm { .. } => "group_norm",
            Op::CopyRows { .. } => "copy_rows",
            Op::Cast { .. } => "cast",
        }
    }

    /// The same operation over other tensors: `f` gives each tensor's stand-in, of the same shape.
    pub fn over(mut self, f: &dyn Fn(Tensor) -> Tensor) -> Op {
        let tensor = |t: &mut Tensor| *t = f(*t);
        let view = |v: &mut View| v.tensor = f(v.tensor);
        match &mut self {
            Op::Linear { x, side, epilogue, out, .. } => {
                [x, out].into_iter().for_each(view);
                side.iter_mut().for_each(|s| tensor(&mut s.t));
                match epilogue {
                    Epilogue::Add { residual } => tensor(residual),
                    Epilogue::GatedAdd { residual, gate } => {
                        tensor(residual);
                        view(gate);
                    }
                    Epilogue::None | Epilogue::Silu | Epilogue::GeluTanh | Epilogue::QuickGelu => {}
                }
            }
            Op::Conv2d { x, residual, out, .. } => {
                [x, out].into_iter().for_each(tensor);
                residual.iter_mut().for_each(tensor);
            }
            Op::Attention { q, k, v, bias, first, out, .. } => {
                [q, k, v, out].into_iter().for_each(view);
                bias.iter_mut().chain(first.iter_mut().map(|(_, t)| t)).for_each(tensor);
            }
            Op::LayerNormModulate { x, shift, scale, out, .. } => {
                [x, out].into_iter().for_each(tensor);
                [shift, scale].into_iter().for_each(view);
            }
            Op::LayerNorm { x, out, .. }
            | Op::RmsNorm { x, out, .. }
            | Op::Silu { x, out }
            | Op::Pack { x, out, .. }
            | Op::Unpack { x, out, .. }
            | Op::GroupNorm { x, out, .. }
            | Op::CopyRows { x, out, .. } => [x, out].into_iter().for_each(tensor),
            Op::QkNormRope { qkv, rope, out, .. } => [qkv, rope, out].into_iter().for_each(tensor),
            Op::GeluMul { gate: a, up: b, out } | Op::Add { a, b, out } => {
                [a, b, out].into_iter().for_each(tensor)
            }
            Op::Embed { ids, out, .. } => [ids, out].into_iter().for_each(tensor),
            Op::TimestepEmbed { t, out } => [t, out].into_iter().for_each(tensor),
            Op::EulerStep { x, v, params, .. } => [x, v, params].into_iter().for_each(tensor),
            Op::Cast { x, out } => [x, out].into_iter().for_each(view),
        }
        self
    }

    /// Tensors that are read.
    pub fn reads(&self) -> Vec<Tensor> {
        match *self {
            Op::Linear { x, side, epilogue, .. } => {
                let mut r = vec![x.tensor];
                r.extend(side.map(|s| s.t));
                match epilogue {
                    Epilogue::Add { residual } => r.push(residual),
                    Epilogue::GatedAdd { residual, gate } => r.extend([residual, gate.tensor]),
                    _ => {}
                }
                r
            }
            Op::Conv2d { x, residual, .. } => [x].into_iter().chain(residual).collect(),
            Op::Attention { q, k, v, bias, .. } => {
                [q.tensor, k.tensor, v.tensor].into_iter().chain(bias).collect()
            }
            Op::LayerNormModulate { x, shift, scale, .. } => vec![x, shift.tensor, scale.tensor],
            Op::LayerNorm { x, .. }
            | Op::RmsNorm { x, .. }
            | Op::GroupNorm { x, .. }
            | Op::Silu { x, .. } => vec![x],
            Op::QkNormRope { qkv, rope, .. } => vec![qkv, rope],
            Op::GeluMul { gate, up, .. } => vec![gate, up],
            Op::Add { a, b, .. } => vec![a, b],
            Op::Embed { ids, .. } => vec![ids],
            Op::TimestepEmbed { t, .. } => vec![t],
            Op::Pack { x, .. } | Op::Unpack { x, .. } | Op::CopyRows { x, .. } => vec![x],
            Op::EulerStep { x, v, params, .. } => vec![x, v, params],
            Op::Cast { x, .. } => vec![x.tensor],
        }
    }

    /// Tensors that are written, wholly or in part.
    pub fn writes(&self) -> Vec<Tensor> {
        match *self {
            Op::Linear { out, .. } | Op::Cast { out, .. } => vec![out.tensor],
            Op::Attention { first, out, .. } => {
                [out.tensor].into_iter().chain(first.map(|(_, t)| t)).collect()
            }
            Op::EulerStep { x, .. } => vec![x],
            Op::Conv2d { out, .. }
            | Op::LayerNormModulate { out, .. }
            | Op::LayerNorm { out, .. }
            | Op::RmsNorm { out, .. }
            | Op::QkNormRope { out, .. }
            | Op::GeluMul { out, .. }
            | Op::Silu { out, .. }
            | Op::Add { out, .. }
            | Op::Embed { out, .. }
            | Op::TimestepEmbed { out, .. }
            | Op::Pack { out, .. }
            | Op::Unpack { out, .. }
            | Op::GroupNorm { out, .. }
            | Op::CopyRows { out, .. } => vec![out],
        }
    }

    /// The windows that are whole once the operation is done: what a search for the first wrong number may judge. `CopyRows` and `QkNormRope` fill
    /// a tensor in several steps and make no new numbers that the next step would not show.
    pub fn judged(&self) -> Vec<View> {
        match *self {
            Op::Linear { out, .. } | Op::Cast { out, .. } => vec![out],
            Op::Attention { first, out, .. } => {
                [out].into_iter().chain(first.map(|(_, t)| t.all())).collect()
            }
            Op::CopyRows { .. } | Op::QkNormRope { .. } => vec![],
            _ => self.writes().into_iter().map(Tensor::all).collect(),
        }
    }

    /// Weights that are read, the large one first.
    pub fn weights(&self) -> Vec<Weight> {
        match *self {
            Op::Linear { w, bias, side, .. } => {
                [w].into_iter().chain(bias).chain(side.map(|s| s.b)).collect()
            }
            Op::Conv2d { w, bias, .. } => [w].into_iter().chain(bias).collect(),
            Op::LayerNorm { weight, bias, .. } | Op::GroupNorm { weight, bias, .. } => {
                vec![weight, bias]
            }
            Op::RmsNorm { weight, .. } => vec![weight],
            Op::QkNormRope { q_gain, k_gain, .. } => vec![q_gain, k_gain],
            Op::Embed { table, positions, .. } => [table].into_iter().chain(positions).collect(),
            _ => vec![],
        }
    }

    /// Multiply-adds counted as two: matrix work only; element-wise work is limited by bytes.
    pub fn flops(&self) -> u64 {
        match *self {
            Op::Linear { x, w, side, .. } => {
                let rank = side.map_or(0, |s| s.b.cols);
                2 * (x.rows() * w.rows * (w.cols + rank)) as u64
            }
            Op::Conv2d { shape, w, .. } => {
                let (h, wd) = shape.output();
                2 * (shape.batch * h * wd * w.rows * w.cols) as u64
            }
            Op::Attention { q, batch, .. } => {
                let tokens = q.rows() / batch;
                4 * (batch * tokens * tokens * q.cols) as u64
            }
            _ => 0,
        }
    }

    /// Bytes of activations read and written once each (weights come on top, in their stored size).
    pub fn activation_bytes(&self) -> u64 {
        let windows = |ts: Vec<Tensor>| ts.iter().map(|t| t.bytes() as u64).sum::<u64>();
        match *self {
            Op::Linear { x, out, side, epilogue, .. } => {
                let residual = match epilogue {
                    Epilogue::Add { residual } | Epilogue::GatedAdd { residual, .. } => {
                        residual.bytes()
                    }
                    _ => 0,
                };
                (x.rows() * x.cols * x.tensor.dtype.size()
                    + out.rows() * out.cols * out.tensor.dtype.size()
                    + residual
                    + side.map_or(0, |s| s.t.bytes())) as u64
            }
            Op::Attention { q, out, .. } => {
                (q.rows() * q.cols * (3 * q.tensor.dtype.size() + out.tensor.dtype.size())) as u64
            }
            _ => windows(self.reads()) + windows(self.writes()),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        let mut first = true;
        let mut item = |f: &mut fmt::Formatter<'_>, s: String| {
            let sep = if std::mem::take(&mut first) { "" } else { ", " };
            write!(f, "{sep}{s}")
        };
        match self {
            Op::Linear { x, side, epilogue, .. } => {
                item(f, x.to_string())?;
                if let Some(side) = side {
                    item(f, format!("side {}", side.t))?;
                }
                match epilogue {
                    Epilogue::None => {}
                    Epilogue::Silu => item(f, "silu".into())?,
                    Epilogue::GeluTanh => item(f, "gelu_tanh".into())?,
                    Epilogue::QuickGelu => item(f, "quick_gelu".into())?,
                    Epilogue::Add { residual } => item(f, format!("+{residual}"))?,
                    Epilogue::GatedAdd { residual, gate } => {
                        item(f, format!("+{residual} gate {gate}"))?
                    }
                }
            }
            Op::Attention { q, k, v, heads, causal, .. } => {
                for view in [q, k, v] {
                    item(f, view.to_string())?;
                }
                item(f, format!("heads {heads}"))?;
                if *causal {
                    item(f, "causal".into())?;
                }
            }
            Op::LayerNormModulate { x, shift, scale, .. } => {
                item(f, x.to_string())?;
                item(f, format!("shift {shift}"))?;
                item(f, format!("scale {scale}"))?;
            }
            Op::Conv2d { x, shape, residual, .. } => {
                item(f, x.to_string())?;
                item(f, format!("{}x{}", shape.height, shape.width))?;
                item(
                    f,
                    format!(
                        "k{} s{}{}",
                        shape.kernel,
                        shape.stride,
                        if shape.upsample { " up2" } else { "" }
                    ),
                )?;
                if let Some(r) = residual {
                    item(f, format!("+{r}"))?;
                }
            }
            Op::Cast { x, .. } => item(f, x.to_string())?,
            _ => {
                for t in self.reads() {
                    item(f, t.to_string())?;
                }
            }
        }
        for w in self.weights() {
            item(f, w.to_string())?;
        }
        f.write_str(") ->")?;
        match self {
            Op::Linear { out, .. } | Op::Cast { out, .. } => write!(f, " {out}"),
            Op::Attention { out, first: split, .. } => {
                if let Some((_, t)) = split {
                    write!(f, " {t}")?;
                }
                write!(f, " {out}")
            }
            _ => self.writes().iter().try_for_each(|t| write!(f, " {t}")),
        }
    }
}
