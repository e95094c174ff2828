//! The blocks without their attention: one for the rows of a step, and one for references alone.

use super::config::Flux2Config;
use super::{linear, linear_rows};
use crate::dtype::DType;
use crate::model::joint::{JointAttention, NORM_EPS};
use crate::op::{Epilogue, LayerNormModulate, Recorder, SiluMul};
use crate::tensor::{Tensor, View};

/// Sizes and inputs that all blocks use.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    /// The sizes.
    pub c: &'a Flux2Config,
    /// The type in which the device computes.
    pub act: DType,
    /// The row of the modulation (see [`modulate()`](super::modulate())).
    pub modulation: Tensor,
    /// The rotation table of a sequence.
    pub rope: Tensor,
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
}

/// One of the two streams of a double block.
#[derive(Clone, Copy)]
pub struct Stream {
    /// `img` or `txt`, the first part of its weights' names.
    pub name: &'static str,
    /// The first of its six vectors of the modulation.
    pub first: usize,
}

impl Blocks<'_> {
    /// Vectors `first .. first + N` of the modulation.
    pub fn modulation<const N: usize>(&self, first: usize) -> [View; N] {
        let h = self.c.hidden;
        std::array::from_fn(|i| self.modulation.columns((first + i) * h, h))
    }

    /// The attention of one block.
    pub fn joint(&self) -> JointAttention {
        let Blocks { c, batch, tokens, .. } = *self;
        JointAttention { batch, heads: c.heads, head_dim: c.head_dim, tokens }
    }

    /// Queries, keys and values of a stream of double block `i`, into the rows of `qkv` from
    /// `first` on.
    pub fn stream_keys(
        &self,
        r: &mut Recorder,
        i: usize,
        Stream { name, first: vector }: Stream,
        x: Tensor,
        (qkv, first): (Tensor, usize),
    ) {
        let (h, act) = (self.c.hidden, self.act);
        let [shift, scale] = self.modulation(vector);
        let block = format!("double_blocks.{i}.{name}_attn");
        let norm = r.temp(x.rows, h, act);
        let op = LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm };
        r.push(&format!("{name}.norm1"), op);
        let own = r.temp(x.rows, 3 * h, act);
        let weight = format!("{block}.qkv");
        linear(r, &format!("{name}.qkv"), norm.all(), &weight, Epilogue::None, own.all());
        let op = self.joint().qk_norm_rope(r, &block, own, self.rope, first, qkv);
        r.push(&format!("{name}.rope"), op);
    }

    /// The rest of a stream of double block `i`, after its attention.
    pub fn stream_end(
        &self,
        r: &mut Recorder,
        i: usize,
        Stream { name, first }: Stream,
        x: Tensor,
        attn: Tensor,
    ) {
        let (c, act) = (self.c, self.act);
        let [gate, shift, scale, mlp_gate] = self.modulation(first + 2);
        let block = format!("double_blocks.{i}.{name}");
        let gated = |gate| Epilogue::GatedAdd { residual: x, gate };
        let weight = format!("{block}_attn.proj");
        linear(r, &format!("{name}.proj"), attn.all(), &weight, gated(gate), x.all());
        let norm = r.temp(x.rows, c.hidden, act);
        let op = LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm };
        r.push(&format!("{name}.norm2"), op);
        let mlp = r.temp(x.rows, c.mlp_hidden, act);
        self.swiglu(r, &format!("{name}.mlp"), norm, (&format!("{block}_mlp.0"), 0), mlp.all());
        let (label, weight) = (format!("{name}.mlp.2"), format!("{block}_mlp.2"));
        linear(r, &label, mlp.all(), &weight, gated(mlp_gate), x.all());
    }

    /// The normed rows of single block `i`, and their queries, keys and values. Attention and MLP
    /// are parallel: `linear1` is recorded as q, k, v and the two halves of the MLP, so that each
    /// is written where it is used.
    pub fn single_keys(&self, r: &mut Recorder, i: usize, x: Tensor) -> (Tensor, Tensor) {
        let (h, act) = (self.c.hidden, self.act);
        r.scope(format!("single.{i}"));
        let [shift, scale] = self.modulation(12);
        let block = format!("single_blocks.{i}");
        let norm = r.temp(x.rows, h, act);
        r.push("norm", LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm });
        let qkv = r.temp(x.rows, 3 * h, act);
        let linear1 = format!("{block}.linear1");
        linear(r, "qkv", norm.all(), &linear1, Epilogue::None, qkv.all());
        let op = self.joint().qk_norm_rope(r, &block, qkv, self.rope, 0, qkv);
        r.push("rope", op);
        (norm, qkv)
    }

    /// The input of `linear2` of a single block: the attention in its first columns, then the MLP.
    pub fn single_rows(&self, r: &mut Recorder, x: Tensor) -> Tensor {
        r.temp(x.rows, self.c.hidden + self.c.mlp_hidden, self.act)
    }

    /// The rest of single block `i`, after its attention is in `both`.
    pub fn single_end(&self, r: &mut Recorder, i: usize, x: Tensor, norm: Tensor, both: Tensor) {
        let (h, mlp) = (self.c.hidden, self.c.mlp_hidden);
        let block = format!("single_blocks.{i}");
        let [gate] = self.modulation(14);
        let linear1 = format!("{block}.linear1");
        self.swiglu(r, "mlp", norm, (&linear1, 3 * h), both.columns(h, mlp));
        let gated = Epilogue::GatedAdd { residual: x, gate };
        linear(r, "linear2", both.all(), &format!("{block}.linear2"), gated, x.all());
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
