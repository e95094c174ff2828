//! How a product is divided among tasks, and its k into blocks.

use super::Micro;

/// Maximum number of rows of w in a task. Arrays on the stack have this size.
pub const NC: usize = 256;
/// Maximum number of rows of x that are packed at once.
const ROWS: usize = 1540;

/// How a product is divided: a function of its shape, the kernel and the number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Blocks {
    /// Blocks of k.
    pub k_blocks: usize,
    /// Row panels of x that are packed at once.
    pub panels: usize,
    /// Row panels of x and rows of w in a task.
    pub task_panels: usize,
    pub nc: usize,
    /// The number of blocks of k of a side, 0 without one.
    pub side_blocks: usize,
    /// Words of the packed x, without and with the packed t of a side behind it.
    pub x_words: usize,
    pub packed_words: usize,
    /// Words of the packed w and the sums of one thread.
    pub w_words: usize,
    pub c_words: usize,
}

impl Blocks {
    /// The division of a product of `rows x k` with `n x k`, with a side of rank `side`.
    pub fn new(
        micro: &Micro,
        rows: usize,
        k: usize,
        side: usize,
        n: usize,
        threads: usize,
    ) -> Blocks {
        let kc = micro.blocking.kc;
        let words = micro.words(k);
        let k_blocks = words.div_ceil(kc).max(1);
        let side_words = micro.words(side);
        let side_blocks = side_words.div_ceil(kc);
        let all_panels = rows.div_ceil(micro.mr);
        let passes = rows.div_ceil(ROWS).max(1);
        let panels = all_panels.div_ceil(passes);
        // Use enough tasks that threads finish at about the same time: first narrower tasks, then
        // shorter ones (each of which packs w again), as long as packing is little work compared
        // with the arithmetic.
        let tasks =
            |nc: usize, task_panels: usize| n.div_ceil(nc) * panels.div_ceil(task_panels.max(1));
        let parts = panels.div_ceil((micro.blocking.rows / micro.mr).max(1)).max(1);
        let (mut nc, mut task_panels) = (NC, panels.div_ceil(parts));
        let want = if threads == 1 { 1 } else { 4 * threads };
        while tasks(nc, task_panels) < want && nc > 4 * micro.nr {
            nc /= 2;
        }
        while tasks(nc, task_panels) < want && task_panels * micro.mr > 128 {
            task_panels = task_panels.div_ceil(2);
        }
        while tasks(nc, task_panels) < want && nc > micro.nr {
            nc = (nc / 2).next_multiple_of(micro.nr);
        }
        let kc = words.max(side_words).min(kc);
        let tile = micro.mr * micro.nr;
        let c_words =
            if k_blocks + side_blocks > 1 { tile * task_panels * (nc / micro.nr) } else { tile };
        Blocks {
            k_blocks,
            panels,
            task_panels,
            nc,
            side_blocks,
            x_words: (panels * micro.mr * words).next_multiple_of(16),
            packed_words: (panels * micro.mr * words).next_multiple_of(16)
                + (panels * micro.mr * side_words).next_multiple_of(16),
            w_words: (nc * kc).next_multiple_of(16),
            c_words: c_words.next_multiple_of(16),
        }
    }

    /// Words of scratch for all threads.
    pub fn scratch_words(&self, threads: usize) -> usize {
        self.packed_words + threads * (self.w_words + self.c_words)
    }
}

/// A block of k: at most `Blocking::kc` words.
pub struct KBlock {
    /// Elements `from .. from + len`.
    pub from: usize,
    pub len: usize,
    /// The number of its first word, and how many it has.
    pub first_word: usize,
    pub words: usize,
    /// The word of the scratch from which its operand is packed.
    pub base: usize,
    /// It belongs to a side.
    pub side: bool,
}

impl KBlock {
    /// The blocks of `k` elements, in order. The operand is packed from word `base` of the scratch
    /// on; `side` says whether it is that of a side.
    pub fn all(micro: &Micro, k: usize, base: usize, side: bool) -> impl Iterator<Item = KBlock> {
        let (per_word, kc) = (micro.per_word, micro.blocking.kc);
        // If there is no k, there is still one block, which sets the sums to 0.
        (0..k.max(1)).step_by(kc * per_word).map(move |from| {
            let len = (k - from).min(kc * per_word);
            KBlock { from, len, first_word: from / per_word, words: micro.words(len), base, side }
        })
    }
}
