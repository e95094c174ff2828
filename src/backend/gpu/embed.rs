//! Arguments of the embeddings of tokens and times.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{Embed, TimestepEmbed, Use};

/// See [`Embed`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbedArgs<P> {
    /// `vocabulary x cols`, BF16, F16 or F32.
    pub table: Matrix<P>,
    /// `rows x 1`, I32, within the table; a row whose id is not becomes NaN.
    pub ids: Matrix<P>,
    /// `n x cols`, BF16, F16 or F32.
    pub positions: Option<Matrix<P>>,
    /// `rows x cols`, BF16 or F32.
    pub out: Matrix<P>,
}

impl Arguments for Embed {
    const NAME: &'static str = "embed";
    type Args<G: GpuApi> = EmbedArgs<G::Place>;
}

impl Lower for Embed {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        let positions = self.positions.map(|p| to.matrix(p, Use::Table)).transpose()?;
        to.push::<Self>(&EmbedArgs {
            table: to.matrix(self.table, Use::Table)?,
            ids: to.tensor(self.ids)?,
            positions,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`TimestepEmbed`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbedArgs<P> {
    /// `rows x 1`, F32; with `1000 * t` below 10^6, as larger angles lose their last bits.
    pub t: Matrix<P>,
    /// `rows x cols`, BF16 or F32; `cols` is even.
    pub out: Matrix<P>,
}

impl Arguments for TimestepEmbed {
    const NAME: &'static str = "timestep_embed";
    type Args<G: GpuApi> = TimestepEmbedArgs<G::Place>;
}

impl Lower for TimestepEmbed {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&TimestepEmbedArgs { t: to.tensor(self.t)?, out: to.tensor(self.out)? })
    }
}
