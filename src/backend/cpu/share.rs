//! Divides work into pieces for the threads. The pieces never depend on the number of threads, so
//! the results do not either.

use std::ops::Range;

use rayon::prelude::*;

/// Elements in a piece: 256 KiB of f32, which fits in the L2 cache, and is large enough that the
/// overhead of a task does not matter.
const PIECE: usize = 64 << 10;

/// Calls `f` in parallel for ranges of rows that cover `0 .. rows`. `width` is the number of
/// elements in a row.
pub(crate) fn for_rows(rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync) {
    let piece = (PIECE / width.max(1)).max(1);
    if rows <= piece {
        return f(0..rows);
    }
    (0..rows.div_ceil(piece)).into_par_iter().for_each(|i| f(i * piece..rows.min((i + 1) * piece)));
}
