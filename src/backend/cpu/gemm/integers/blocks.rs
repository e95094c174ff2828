//! How a product of integers is divided among tasks, and the memory that it needs.

use super::super::{MAX_LANES, NC};
use super::IntegerMicro;

/// Words of k in a block of the kernels with vectors. Longer blocks than those of floats: a tile of
/// integers is done so soon that adding its sums to memory would show (5 % with 192 words). 256
/// rows of w are 768 KiB then, which fit in L2.
pub const KC: usize = 768;

/// Rows of integers are padded with zeros to a multiple of this many bytes.
pub const PAD: usize = 64;

/// The most rows of x that are packed at once: in bytes as many as the products of floats pack.
pub const ROWS: usize = 3080;

/// How a product is divided: a function of its shape, the kernel and the number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// Bytes of a padded row, and words of it.
    pub row_bytes: usize,
    pub words: usize,
    /// Row panels of x that are packed at once.
    pub panels: usize,
    /// Row panels of x and rows of w in a task.
    pub task_panels: usize,
    pub nc: usize,
    /// Row panels of x whose sums a task keeps at once.
    pub kept_panels: usize,
    /// Words of the packed x, and with the packed t of a side and what belongs to the rows.
    pub x_words: usize,
    pub shared_words: usize,
    /// Words of the packed w, of the sums, and of the rows that are quantised, of one thread.
    pub w_words: usize,
    pub c_words: usize,
    pub row_words: usize,
}

impl Blocks {
    /// The division of a product of `rows x k` with `n x k`, with a side of rank `side`.
    pub fn new(
        m: &IntegerMicro,
        rows: usize,
        k: usize,
        side: usize,
        n: usize,
        threads: usize,
    ) -> Self {
        let (mr, nr) = (m.floats.mr, m.floats.nr);
        let row_bytes = k.next_multiple_of(PAD).max(PAD);
        let words = row_bytes / m.per_word;
        let side_words = m.floats.words(side);
        let passes = rows.div_ceil(ROWS).max(1);
        let panels = rows.div_ceil(mr).div_ceil(passes);
        // Enough tasks that threads finish at about the same time. Narrower tasks cost little;
        // shorter ones quantise their rows of w again, so they come last.
        let tasks =
            |nc: usize, task_panels: usize| n.div_ceil(nc) * panels.div_ceil(task_panels.max(1));
        let (mut nc, mut task_panels) = (NC.min(n.next_multiple_of(nr)), panels);
        let want = if threads == 1 { 1 } else { 4 * threads };
        while (tasks(nc, task_panels) < want && nc > nr)
            || (nc > 2 * nr && nc * row_bytes > m.w_bytes)
        {
            nc = (nc / 2).next_multiple_of(nr);
        }
        while tasks(nc, task_panels) < want && task_panels * mr > 128 {
            task_panels = task_panels.div_ceil(2);
        }
        let whole = |words: usize| words.next_multiple_of(16);
        let one_tile = words <= m.kc && side == 0;
        // The rows of a side take the memory of those of w, so that all sums must exist then.
        let kept_panels = if side > 0 { task_panels } else { (m.kept_rows / mr).min(task_panels) };
        let x_words = whole(panels * mr * words);
        Blocks {
            row_bytes,
            words,
            panels,
            task_panels,
            nc,
            kept_panels,
            x_words,
            // Behind the words: the scales of rows and the starts of their sums.
            shared_words: x_words + whole(panels * mr * side_words) + 2 * whole(panels * mr),
            w_words: whole(nc * words.max(side_words.min(m.floats.blocking.kc))),
            c_words: whole(if one_tile { mr * nr } else { mr * kept_panels * nc }),
            row_words: whole(k) + MAX_LANES * row_bytes / 4,
        }
    }

    /// Words of one thread.
    pub fn slot_words(&self) -> usize {
        self.w_words + self.c_words + self.row_words
    }
}
