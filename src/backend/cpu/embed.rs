//! Look-up of token ids, and the embedding of times.

use super::kernels::{How, Kernels, kernels};
use super::matrix::Out;
use super::operand::Table;
use super::reference;
use super::share::for_rows;
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{Embed, TimestepEmbed};

/// See [`Embed`].
pub(crate) fn embed(how: How, table: &Table, ids: &[i32], positions: Option<&Table>, out: Out) {
    if how == How::Reference {
        return reference::embed(table, ids, positions, out);
    }
    for_rows(ids.len(), out.cols(), |rows| {
        let mut position = vec![0.0; out.cols()];
        for r in rows {
            // SAFETY: only this task writes the row.
            let row = unsafe { out.row(r) };
            table.row(ids[r] as usize, row);
            if let Some(p) = positions {
                p.row(r % p.rows(), &mut position);
                row.iter_mut().zip(&position).for_each(|(x, p)| *x += p);
            }
        }
    });
}

impl CpuOperation for Embed {
    const KERNELS: Kernels = kernels!(plain "embed");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let table = Table::new(step.weight(self.table)?);
        let positions = self.positions.map(|p| step.weight(p).map(Table::new)).transpose()?;
        let out = step.out(self.out)?;
        embed(step.how(), &table, step.ids(self.ids)?, positions.as_ref(), out);
        Ok(())
    }
}

impl CpuOperation for TimestepEmbed {
    // A whole generation computes a few thousand elements, so there is no fast variant.
    const KERNELS: Kernels = kernels!(only "timestep_embed");

    fn run(&self, step: &CpuStep) -> Result<()> {
        reference::timestep_embed(step.tensor(self.t)?, step.out(self.out)?);
        Ok(())
    }
}
