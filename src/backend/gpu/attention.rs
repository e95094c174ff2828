//! Arguments of `attention`, and sizes that its variants compute with. Some variants need scratch
//! memory.

use std::ops::Deref;

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{Attention, Locate};

/// [`Attention`] with its operands in device memory, to whose fields it dereferences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionArgs<P> {
    pub op: Attention<Matrix<P>, Matrix<P>>,
    /// Scratch memory of the size that the variant requested, at a multiple of 256 bytes.
    pub scratch: Option<Matrix<P>>,
}

impl<P> Deref for AttentionArgs<P> {
    type Target = Attention<Matrix<P>, Matrix<P>>;

    fn deref(&self) -> &Self::Target {
        &self.op
    }
}

impl<P> AttentionArgs<P> {
    /// Queries of one sequence.
    pub fn queries(&self) -> usize {
        self.q.rows / self.batch.max(1)
    }

    /// Keys of one sequence: as many as queries, unless only some rows of an image are computed.
    pub fn tokens(&self) -> usize {
        self.k.rows / self.batch.max(1)
    }

    /// Columns of one head.
    pub fn head_dim(&self) -> usize {
        self.q.cols / self.heads.max(1)
    }
}

impl Arguments for Attention {
    const NAME: &'static str = "attention";
    type Args<G: GpuApi> = AttentionArgs<G::Place>;
}

impl<G: GpuBackend> Lower<G> for Attention {
    fn lower(&self, to: &mut Lowering<G>) -> Result<()> {
        let op = Attention {
            q: to.view(self.q)?,
            k: to.view(self.k)?,
            v: to.view(self.v)?,
            batch: self.batch,
            heads: self.heads,
            scale: self.scale,
            causal: self.causal,
            bias: self.bias.map(|t| to.tensor(t)).transpose()?,
            first: self.first.map(|(n, t)| Ok((n, to.tensor(t)?))).transpose()?,
            out: to.view(self.out)?,
        };
        let args = AttentionArgs { op, scratch: None };
        to.push_with_scratch::<Self>(args, |args, scratch| args.scratch = Some(scratch))
    }
}
