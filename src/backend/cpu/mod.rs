//! The CPU backend: for every operation the specification (a module `reference` in the file of its
//! family), and SIMD variants where they are worth it.
//!
//! Weights are used in place in host memory, in their stored form; a thread reads ahead in their
//! files. Activations are f32 in one arena. No variant is chosen by sizes or free memory, and work
//! is divided into pieces that do not depend on the number of threads. So a result depends only on
//! the program, the weights, the instruction set and the requested arithmetic.

mod adapter;
pub mod amx;
mod arena;
mod args;
mod attention;
pub mod conv;
mod elementwise;
mod embed;
pub mod gemm;
mod group_norm;
pub mod isa;
mod kernels;
mod latents;
pub mod linear;
mod loaded;
pub mod matrix;
mod norm;
mod operand;
mod plain;
mod product;
mod qk_norm_rope;
mod share;
pub(crate) mod simd;
mod step;
pub mod variants;

use super::courier::Courier;
use super::form;
use super::{
    Backend, Caps, Compute, Grain, Int8Use, KernelChoice, Layout, Place, Places, WeightKey,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::host;
use crate::op::{Op, Step, Use, each_op};
use crate::tensor::{HostPart, HostWeight, Weight};
use arena::Arena;
use isa::Isa;
use kernels::Choice;
use loaded::LoadedWeights;
use step::{CpuOperation, CpuStep, Sizing};

/// Options of the CPU backend.
#[derive(Debug, Clone, Default)]
pub struct CpuOptions {
    /// Number of worker threads. `None`: one for each processor that this process may use.
    pub threads: Option<usize>,
    /// The arithmetic of matrix products and attention: `Auto`, `F32`, `BF16` or `Int8`.
    pub compute: Compute,
    /// Forced variants; see [`variants`].
    pub kernels: Vec<KernelChoice>,
    /// The best instruction set to use. `None`: the best that the processor has.
    pub isa: Option<Isa>,
}

/// A [`Backend`] on the processor of the host.
pub struct CpuBackend {
    caps: Caps,
    choice: Choice,
    pool: rayon::ThreadPool,
    threads: usize,
    arena: Arena,
    weights: LoadedWeights,
    /// Reads ahead in the files of weights, so that steps do not wait for the disk.
    prefetcher: Courier<Vec<HostPart>, ()>,
}

impl CpuBackend {
    /// Starts the threads. Memory is allocated by `reserve`.
    pub fn new(options: CpuOptions) -> Result<CpuBackend> {
        if let Compute::F16 | Compute::Fp8 = options.compute {
            return Err(options
                .compute
                .refused("auto, f32, bf16 or int8 on the CPU: FP8 and F16 need a GPU"));
        }
        let detected = Isa::detect();
        let isa = options.isa.unwrap_or(detected);
        if isa > detected {
            return Err(Error::argument("this processor does not have the requested instructions")
                .at("cpu")
                .found(detected.name())
                .expected(isa.name()));
        }
        let threads = options.threads.unwrap_or_else(host::threads);
        if threads == 0 {
            return Err(Error::argument("the number of threads is zero")
                .at_parameter("threads")
                .found(0)
                .expected("1 or more"));
        }
        let choice = variants::choice(isa, options.compute, options.kernels)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|e| {
                Error::device(format!("could not start {threads} threads: {e}"))
                    .at("cpu")
                    .try_("raise the limits of the process (ulimit -u, ulimit -v)")
            })?;
        let plural = if threads == 1 { "" } else { "s" };
        let memory_bytes = host::usable_memory().map_err(|e| e.at("cpu"))?;
        let caps = Caps {
            name: "cpu".into(),
            description: format!(
                "{}, {}, {threads} thread{plural}",
                host::processor_name().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
                isa.name()
            ),
            memory_bytes,
            free_bytes: memory_bytes,
            overhead_bytes: 0,
            granularity: 1,
            activation: DType::F32,
            in_place_weights: true,
            grain: Grain::whole(64),
            pins: false,
            reopens: false,
            int8: match options.compute {
                Compute::Auto => Int8Use::Stored,
                Compute::Int8 => Int8Use::All,
                _ => Int8Use::Never,
            },
        };
        let (arena, prefetcher) = (Arena::new(0)?, Courier::start("cpu", read_ahead)?);
        Ok(CpuBackend {
            caps,
            choice,
            pool,
            threads,
            arena,
            weights: LoadedWeights::default(),
            prefetcher,
        })
    }
}

/// Reads `parts` into memory.
fn read_ahead(parts: Vec<HostPart>) -> Result<()> {
    let mut ranges = parts.iter().flat_map(HostPart::ranges);
    ranges.try_for_each(|(source, range)| source.will_need(range))
}

impl Backend for CpuBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, _how: Use) -> usize {
        weight.bytes()
    }

    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        let stored = |w| weight(w).stored();
        let sizing = Sizing { choice: &self.choice, threads: self.threads, stored: &stored };
        each_op!(op, operation => operation.scratch_bytes(&sizing))
    }

    fn reserve(&mut self, layout: Layout, _peak_bytes: u64) -> Result<()> {
        // Free the old arena first, so that both never exist at the same time.
        self.arena = Arena::new(0)?;
        self.arena = Arena::new(layout.arena_bytes)?;
        Ok(())
    }

    fn load(
        &mut self,
        key: WeightKey,
        _place: Place,
        weight: &HostWeight,
        _how: Use,
    ) -> Result<()> {
        form::check(weight)?;
        self.prefetcher.request(key, weight.parts.clone());
        self.weights.insert(key, weight.clone());
        Ok(())
    }

    fn forget(&mut self, key: WeightKey) -> Result<()> {
        if let Some(weight) = self.weights.remove(key) {
            // Cancel first: pages that are read after `let_go` would stay in memory, outside of the
            // budget.
            self.prefetcher.cancel(key);
            for (source, range) in weight.parts.iter().flat_map(HostPart::ranges) {
                source.let_go(range);
            }
        }
        Ok(())
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        // Waiting here is faster than page faults, which would read the file in small pieces.
        for w in step.op.weights() {
            self.prefetcher.wait_for(places.key(w))?;
        }
        let vectors = step.op.weight_uses().into_iter().filter(|(_, how)| *how == Use::Vector);
        let vectors = vectors.map(|(w, _)| Ok((w, self.weights.vector(places.key(w), w)?)));
        let cpu_step = CpuStep {
            kernels: variants::kernels_of(step.op.name())
                .copied()
                .expect("every operation is in the table"),
            vectors: vectors.collect::<Result<_>>()?,
            choice: &self.choice,
            threads: self.threads,
            arena: &self.arena,
            places,
            weights: &self.weights,
        };
        self.pool.install(|| each_op!(&step.op, operation => operation.run(&cpu_step)))
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.arena.place(offset, bytes.len(), "a write")?;
        // SAFETY: the range is inside the arena, and nothing else uses it: steps are complete when
        // `run` returns.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.arena.place(offset, bytes.len(), "a read")?;
        // SAFETY: the range is inside the arena, which was initialised when it was created, and no
        // step is running.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, bytes.len()) };
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
