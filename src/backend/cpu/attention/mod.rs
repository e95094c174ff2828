//! Softmax attention: the operands, and how heads and chunks of queries are distributed over the
//! threads.

mod flash;
mod tile;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::amx::{STEP, SUMS, Tiles};
use super::args::AttentionArgs;
use super::kernels::{How, Kernels, kernels};
use super::simd::{Four, Kernel, Lanes, Simd};
use super::step::{CpuOperation, CpuStep, Sizing};
use crate::error::Result;
use crate::op::Attention;
use flash::{CHUNK, Sizes};
use tile::{Arith, F32};

/// The work of one task, compiled for the instruction set of `A` in its own function.
#[derive(Clone, Copy)]
enum Task {
    /// Pack a block of keys and values of a head.
    Pack { block: usize },
    /// A chunk of queries.
    Chunk { chunk: usize, area: *mut u32 },
}

struct Work<'a> {
    a: &'a AttentionArgs,
    sizes: &'a Sizes,
    image: usize,
    head: usize,
    packed: *mut u32,
    task: Task,
}

impl Work<'_> {
    #[inline(always)]
    unsafe fn run_as<A: Arith, const MR: usize>(self) {
        let Work { a, sizes, image, head, packed, task } = self;
        // SAFETY: guaranteed by `attention`, which gives every task its own memory.
        unsafe {
            match task {
                Task::Pack { block } => flash::pack::<A>(a, sizes, image, head, block, packed),
                Task::Chunk { chunk, area } => {
                    flash::chunk::<A, MR>(a, sizes, image, head, chunk, packed, area)
                }
            }
        }
    }
}

impl Kernel for Work<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            // As many accumulators as fit in the registers, besides two vectors of keys and one
            // broadcast query.
            match S::LANES {
                16 => self.run_as::<F32<S>, 12>(),
                8 => self.run_as::<F32<S>, 6>(),
                _ => self.run_as::<F32<S>, 4>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_bf16(work: Work) {
    // SAFETY: the features are enabled here; the caller guarantees the rest.
    unsafe { work.run_as::<tile::Bf16<false>, 12>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn run_amx(work: Work) {
    // SAFETY: the features are enabled here; the caller guarantees the rest.
    unsafe {
        let _tiles = Tiles::configure();
        work.run_as::<tile::Bf16<true>, SUMS>()
    }
}

/// Elements of a word, words that are multiplied at once, and lanes of a vector.
fn shape(how: How) -> (usize, usize, usize) {
    match how {
        #[cfg(target_arch = "x86_64")]
        How::Amx => (2, STEP, 16),
        #[cfg(target_arch = "x86_64")]
        How::Bf16 => (2, 1, 16),
        How::Simd(Lanes::Avx512) => (1, 1, 16),
        How::Simd(Lanes::Avx2) => (1, 1, 8),
        _ => (1, 1, Four::LANES),
    }
}

/// Bytes of scratch that `attention` needs on `threads` threads: the packed keys and values of as
/// many heads as there are threads (all threads share them), and a chunk of queries for each
/// thread.
pub(crate) fn scratch_bytes(
    how: How,
    tokens: usize,
    head_dim: usize,
    bias: bool,
    threads: usize,
) -> usize {
    if how == How::Reference {
        return 0;
    }
    let sizes = Sizes::new(tokens, head_dim, shape(how));
    threads * (sizes.head(bias) + sizes.thread()) * 4 + 64
}

/// An address that tasks share. Each task uses its own part.
#[derive(Clone, Copy)]
struct Shared(*mut u32);

// SAFETY: only an address; `attention` gives each task its own part of the memory.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, words: usize) -> *mut u32 {
        self.0.wrapping_add(words)
    }
}

/// `softmax(q . k^T * scale + bias) . v` for each image and head. `scratch` has at least
/// `scratch_bytes` bytes for the threads of the current pool.
pub(crate) fn attention(how: How, a: &AttentionArgs, scratch: &mut [u8]) {
    let (tokens, dim) = (a.tokens(), a.head_dim());
    if how == How::Reference {
        return reference::attention(a);
    }
    if tokens == 0 || dim == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    let sizes = Sizes::new(tokens, dim, shape(how));
    let head_words = sizes.head(a.bias.is_some());
    let needed = scratch_bytes(how, tokens, dim, a.bias.is_some(), threads);
    assert!(
        scratch.len() >= needed,
        "attention: {} bytes of scratch, {needed} needed",
        scratch.len()
    );
    let start = Shared(scratch.as_mut_ptr().wrapping_add(scratch.as_ptr().align_offset(64)).cast());
    let areas = threads * head_words;
    let run = |image_head: usize, slot: usize, task: Task| {
        let (image, head) = (image_head / a.heads, image_head % a.heads);
        let work =
            Work { a, sizes: &sizes, image, head, packed: start.at(slot * head_words), task };
        // SAFETY: the variant was chosen for this processor. A packing task writes its own block.
        // The task of a chunk writes its own thread's area and its own rows of the output, and
        // reads what the packing tasks have written, which have ended.
        unsafe {
            match how {
                #[cfg(target_arch = "x86_64")]
                How::Bf16 => run_bf16(work),
                #[cfg(target_arch = "x86_64")]
                How::Amx => run_amx(work),
                How::Simd(lanes) => lanes.run(work),
                _ => Lanes::Portable.run(work),
            }
        }
    };
    let all: Vec<usize> = (0..a.batch * a.heads).collect();
    for wave in all.chunks(threads) {
        (0..wave.len() * sizes.blocks).into_par_iter().for_each(|i| {
            run(wave[i / sizes.blocks], i / sizes.blocks, Task::Pack { block: i % sizes.blocks })
        });
        let chunks = a.queries().div_ceil(CHUNK);
        (0..wave.len() * chunks).into_par_iter().with_max_len(1).for_each(|i| {
            let thread = rayon::current_thread_index().unwrap_or(0);
            let area = start.at(areas + thread * sizes.thread());
            run(wave[i / chunks], i / chunks, Task::Chunk { chunk: i % chunks, area });
        });
    }
}

impl CpuOperation for Attention {
    const KERNELS: Kernels = kernels!(bf16 "attention");

    fn scratch_bytes(&self, sizing: &Sizing) -> usize {
        let (tokens, head_dim) = (self.k.rows() / self.batch, self.q.cols / self.heads);
        let how = sizing.choice.of(&Self::KERNELS).how;
        scratch_bytes(how, tokens, head_dim, self.bias.is_some(), sizing.threads)
    }

    fn run(&self, step: &CpuStep) -> Result<()> {
        let args = AttentionArgs {
            q: step.view(self.q)?,
            k: step.view(self.k)?,
            v: step.view(self.v)?,
            batch: self.batch,
            heads: self.heads,
            scale: self.scale,
            causal: self.causal,
            bias: self.bias.map(|b| step.tensor(b)).transpose()?,
            first: self.first.map(|(_, t)| step.out(t)).transpose()?,
            out: step.view_out(self.out)?,
        };
        attention(step.how(), &args, step.scratch(self)?);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::args::AttentionArgs;
    use crate::backend::cpu::plain::{at, put};

    /// `softmax(q . k^T * scale + bias) . v` for each image and head.
    pub(crate) fn attention(a: &AttentionArgs) {
        let (queries, tokens, dim) = (a.queries(), a.tokens(), a.head_dim());
        for image in 0..a.batch {
            let row = |token: usize| image * tokens + token;
            for head in 0..a.heads {
                let col = |d: usize| head * dim + d;
                for i in 0..queries {
                    let visible = if a.causal { i + 1 } else { tokens };
                    let scores: Vec<f64> = (0..visible)
                        .map(|j| {
                            let dot: f64 = (0..dim)
                                .map(|d| {
                                    f64::from(at(a.q, image * queries + i, col(d)))
                                        * f64::from(at(a.k, row(j), col(d)))
                                })
                                .sum();
                            let bias =
                                a.bias.map_or(0.0, |b| f64::from(at(b, j + tokens - 1 - i, head)));
                            dot * f64::from(a.scale) + bias
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let (window, place) = a.place(image, i);
                    for d in 0..dim {
                        let sum: f64 = (0..visible)
                            .map(|j| weights[j] * f64::from(at(a.v, row(j), col(d))))
                            .sum();
                        put(window, place, col(d), (sum / total) as f32);
                    }
                }
            }
        }
    }
}
