//! Cutting work into pieces for the threads. The pieces never depend on the number of threads, so that results do not either.

use std::ops::Range;

use rayon::prelude::*;

/// Elements in a piece: 256 KiB of f32, small enough for the second-level cache, large enough to forget the cost of a task.
const PIECE: usize = 64 << 10;

/// `f` for ranges of rows that cover `0 .. rows`, in parallel; `width` is how many elements a row has.
pub(crate) fn for_rows(rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync) {
    let piece = (PIECE / width.max(1)).max(1);
    if rows <= piece {
        return f(0..rows);
    }
    (0..rows.div_ceil(piece)).into_par_iter().for_each(|i| f(i * piece..rows.min((i + 1) * piece)));
}
