//! From token ids and times to vectors.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Slot, Tensor, Weight};

/// `out[r] = table[ids[r]] + positions[r % positions.rows]`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embed<T = Tensor, W = Weight> {
    /// `vocabulary x cols`
    pub table: W,
    /// `rows x 1` I32, an input: rows of `table`, checked when the host writes them.
    pub ids: T,
    /// `n x cols`; without it, nothing is added.
    pub positions: Option<W>,
    /// `rows x cols`
    pub out: T,
}

impl Operation for Embed {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.ids);
        v.weight(&mut self.table, Use::Table);
        if let Some(positions) = &mut self.positions {
            v.weight(positions, Use::Table);
        }
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let Embed { table, ids, positions, out } = *self;
        rule!((ids.rows, ids.cols, ids.dtype) == (out.rows, 1, DType::I32), "ids {ids}");
        rule!(
            matches!(ids.slot, Slot::Input(_)),
            "ids {ids} are not an input of the program: the host checks ids when it writes an input"
        );
        rule!(table.cols == out.cols, "table {table}, out {out}");
        rule!(
            positions.is_none_or(|p| p.cols == out.cols && p.rows > 0),
            "positions do not match {out}"
        );
        Ok(())
    }
}

impl Located for Embed {
    const NAME: &'static str = "embed";
    type On<M: Copy> = Embed<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Embed {
            table: find.weight(self.table, Use::Table)?,
            ids: find.tensor(self.ids)?,
            positions: self.positions.map(|w| find.weight(w, Use::Table)).transpose()?,
            out: find.tensor(self.out)?,
        })
    }
}

/// Sinusoids of `1000 * t[r]`: with `half = cols / 2` and frequencies `f_i = 10000^(-i / half)`,
/// `out[r] = [cos(1000 t f) | sin(1000 t f)]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepEmbed<T = Tensor> {
    /// `rows x 1` f32
    pub t: T,
    /// `rows x cols`, `cols` even.
    pub out: T,
}

impl Operation for TimestepEmbed {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.t);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let TimestepEmbed { t, out } = *self;
        rule!(
            (t.rows, t.cols, t.dtype) == (out.rows, 1, DType::F32) && out.cols % 2 == 0,
            "t {t}, out {out}"
        );
        Ok(())
    }
}

impl Located for TimestepEmbed {
    const NAME: &'static str = "timestep_embed";
    type On<M: Copy> = TimestepEmbed<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(TimestepEmbed { t: find.tensor(self.t)?, out: find.tensor(self.out)? })
    }
}
