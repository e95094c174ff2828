//! Look-up of token ids, and the embedding of times.

use super::kernels::{How, Kernels, kernels};
use super::matrix::Out;
use super::operand::Table;
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

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::operand::Table;
    use crate::backend::cpu::plain::{at, put};

    /// `out[r] = table[ids[r]] + positions[r % positions.rows]`; all ids are rows of the table.
    pub(crate) fn embed(table: &Table, ids: &[i32], positions: Option<&Table>, out: Out) {
        let mut row = vec![0.0; out.cols()];
        let mut position = vec![0.0; out.cols()];
        for (r, &id) in ids.iter().enumerate() {
            table.row(id as usize, &mut row);
            if let Some(p) = positions {
                p.row(r % p.rows(), &mut position);
            }
            for c in 0..out.cols() {
                put(out, r, c, row[c] + position[c]);
            }
        }
    }

    /// `[cos(1000 t f) | sin(1000 t f)]`, `f_i = 10000^(-i/half)`. The argument reaches 1000, where
    /// an f32 has only four digits after the decimal point. It is rounded at the same place as in
    /// the reference implementation, which uses f32, so that both compute the same angle.
    pub(crate) fn timestep_embed(t: In, out: Out) {
        let half = out.cols() / 2;
        for r in 0..out.rows() {
            let time = 1000.0 * at(t, r, 0);
            for i in 0..half {
                let exponent = -(10000f64.ln() as f32) * i as f32 / half as f32;
                let frequency = f64::from(exponent).exp() as f32;
                let angle = f64::from(time * frequency);
                put(out, r, i, angle.cos() as f32);
                put(out, r, half + i, angle.sin() as f32);
            }
        }
    }
}
