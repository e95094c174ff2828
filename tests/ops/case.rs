//! One operation with its operands: inputs, sentinels, the run on the CPU, and the checks of the
//! result.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::{CpuBackend, CpuOptions, variants};
use flux_fast::backend::{Backend, KernelChoice, Places};
use flux_fast::dtype::DType;
use flux_fast::error::Result;
use flux_fast::op::{Op, Step};
use flux_fast::tensor::{HostPart, HostWeight, Scale, Slot, Tensor, Weight};

use crate::common::operation::reserve_and_load;
use crate::{cuda, wgpu};

/// xorshift64*, enough for test data.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The numbers of one case of the run with this seed.
    fn new(seed: u64, case: u64) -> Random {
        let mixed =
            (seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd134_2543_de82_ef95);
        Random((mixed ^ mixed >> 32) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number between -2 and 2, of varied magnitude.
    pub fn number(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        uniform(self.bits()) * (1.0 + uniform(self.bits()).abs())
    }
}

/// The seed of this run: a new one each time, unless `FLUX_FAST_TEST_SEED` gives one.
fn run_seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("FLUX_FAST_TEST_SEED") {
        Ok(text) => text.parse().expect("FLUX_FAST_TEST_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    })
}

thread_local! {
    /// Cases of this test so far: each test runs in a thread of its own.
    static CASES: Cell<u64> = const { Cell::new(0) };
}

/// One operation with its operands.
pub struct Case {
    pub random: Random,
    pub tensors: Vec<(Tensor, Vec<u8>)>,
    pub weights: Vec<HostWeight>,
}

const GAP: usize = 256;
const ALIGN: usize = 256;
const SENTINEL: u8 = 0xa5;

impl Case {
    pub fn new() -> Case {
        let (seed, case) = (run_seed(), CASES.get());
        CASES.set(case + 1);
        if case == 0 {
            // Printed only when the test fails.
            println!("FLUX_FAST_TEST_SEED={seed} repeats the inputs of this test");
        }
        Case { random: Random::new(seed, case), tensors: vec![], weights: vec![] }
    }

    /// A case with the same operands.
    pub fn again(&self) -> Case {
        let (tensors, weights) = (self.tensors.clone(), self.weights.clone());
        Case { random: self.random.clone(), tensors, weights }
    }

    pub fn add(&mut self, rows: usize, cols: usize, dtype: DType, bytes: Vec<u8>) -> Tensor {
        let tensor = Tensor { slot: Slot::Input(self.tensors.len() as u32), rows, cols, dtype };
        assert_eq!(bytes.len(), tensor.bytes());
        self.tensors.push((tensor, bytes));
        tensor
    }

    pub fn stored(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let mut bytes = Vec::new();
        (0..rows * cols).for_each(|_| dtype.encode(self.random.number(), &mut bytes));
        self.add(rows, cols, dtype, bytes)
    }

    pub fn input(&mut self, rows: usize, cols: usize) -> Tensor {
        self.stored(rows, cols, DType::F32)
    }

    pub fn given(&mut self, rows: usize, cols: usize, values: &[f32]) -> Tensor {
        self.add(rows, cols, DType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn ids(&mut self, ids: &[i32]) -> Tensor {
        self.add(ids.len(), 1, DType::I32, ids.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An output, full of NaN.
    pub fn blank(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor = Tensor { slot: Slot::Input(0), rows, cols, dtype };
        self.add(rows, cols, dtype, vec![0xff; tensor.bytes()])
    }

    pub fn output(&mut self, rows: usize, cols: usize) -> Tensor {
        self.blank(rows, cols, DType::F32)
    }

    /// A weight in several parts, each with its rows, type and scale.
    pub fn weight_of(&mut self, cols: usize, parts: &[(usize, DType, Scale)]) -> Weight {
        let mut host = HostWeight { int8: None, rows: 0, cols, parts: vec![] };
        for (rows, dtype, scale) in parts {
            let mut bytes = vec![0u8; 3];
            (0..rows * cols).for_each(|_| dtype.encode(self.random.number(), &mut bytes));
            // Parts of every type, F32 too, may begin at any byte of a file.
            let (source, scale) = (Arc::new(bytes), scale.clone());
            host.parts.push(HostPart {
                rotation: None,
                source,
                offset: 3,
                rows: *rows,
                cols,
                dtype: *dtype,
                scale,
            });
            host.rows += rows;
        }
        self.weights.push(host);
        let host = self.weights.last().unwrap();
        Weight { id: self.weights.len() as u32 - 1, rows: host.rows, cols }
    }

    pub fn weight(&mut self, rows: usize, cols: usize, dtype: DType) -> Weight {
        self.weight_of(cols, &[(rows, dtype, Scale::One)])
    }

    pub fn vector(&mut self, n: usize) -> Weight {
        self.weight(1, n, DType::BF16)
    }

    /// Arena offsets of the tensors, and the end of the last one with its gap.
    pub fn offsets(&self) -> (Vec<usize>, usize) {
        let mut next = GAP;
        let mut offsets = Vec::new();
        for (tensor, _) in &self.tensors {
            offsets.push(next);
            next = (next + tensor.bytes() + GAP).next_multiple_of(ALIGN);
        }
        (offsets, next)
    }

    pub fn image(&self) -> Vec<u8> {
        self.image_between(SENTINEL)
    }

    /// The arena with the tensors at their offsets and `gap` in every byte between them.
    pub fn image_between(&self, gap: u8) -> Vec<u8> {
        let (offsets, end) = self.offsets();
        let mut image = vec![gap; end];
        for (offset, (_, bytes)) in offsets.iter().zip(&self.tensors) {
            image[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        image
    }

    pub fn range(&self, tensor: &Tensor) -> Range<usize> {
        let Slot::Input(id) = tensor.slot else { unreachable!("tests use inputs only") };
        let start = self.offsets().0[id as usize];
        start..start + tensor.bytes()
    }

    /// The arena after `op` ran by `variant` on the CPU.
    pub fn run(&self, op: Op, variant: &str, threads: usize, image: &[u8]) -> Result<Vec<u8>> {
        let kernels = vec![KernelChoice::new(op.name(), variant)];
        let mut backend = CpuBackend::new(CpuOptions {
            threads: Some(threads),
            kernels,
            ..CpuOptions::default()
        })?;
        self.run_on(&mut backend, op, variant, image)
    }

    /// The arena after `op` ran on `backend`.
    pub fn run_on(
        &self,
        backend: &mut dyn Backend,
        op: Op,
        variant: &str,
        image: &[u8],
    ) -> Result<Vec<u8>> {
        if let Err(why) = op.check() {
            panic!("{why}: {op}");
        }
        let (inputs, scratch) = self.offsets();
        let scratch_bytes = backend.scratch_bytes(&op, &|w| &self.weights[w.id as usize]);
        let end = (scratch + scratch_bytes).next_multiple_of(ALIGN);
        let (keys, _) = reserve_and_load(backend, &op, &self.weights, end + GAP)?;
        backend.write(0, image)?;
        // The image begins with a gap.
        let sentinel = [image[0]; GAP];
        backend.write(end, &sentinel)?;
        let places =
            Places { inputs, temps: vec![], outputs: vec![], scratch, weights: keys.clone() };
        backend.run(&Step { op, label: "case".into(), net: 0 }, &places)?;
        let mut after = vec![0; image.len()];
        backend.read(0, &mut after)?;
        let mut tail = [0; GAP];
        backend.read(end, &mut tail)?;
        assert_eq!(tail, sentinel, "{variant}: wrote beyond its scratch: {op}");
        keys.iter().try_for_each(|key| backend.forget(*key))?;
        Ok(after)
    }

    /// The elements of the tensors that `op` writes.
    pub fn written(&self, op: &Op, image: &[u8]) -> Vec<f32> {
        let tensors = op.writes();
        let elements = |t: &Tensor| {
            let dtype = t.dtype;
            image[self.range(t)]
                .chunks_exact(dtype.size())
                .map(move |b| dtype.decode(b))
                .collect::<Vec<_>>()
        };
        tensors.iter().flat_map(elements).collect()
    }

    /// Runs every variant on every backend against the reference; `left_alone` elements of the
    /// written tensors must keep their NaN.
    #[track_caller]
    pub fn check(&self, op: impl Into<Op>, left_alone: usize) {
        let op = op.into();
        self.check_on_cpu(op, left_alone);
        cuda::check(self, op, left_alone);
        wgpu::check(self, op, left_alone);
    }

    /// Whether `op` is a product that is computed in 8-bit integers.
    fn in_integers(&self, op: &Op) -> bool {
        let weight = |w: Weight| &self.weights[w.id as usize];
        matches!(op, Op::Linear(linear) if weight(linear.w).int8.is_some())
    }

    /// [`Case::check`] for the CPU alone.
    #[track_caller]
    pub fn check_on_cpu(&self, op: impl Into<Op>, left_alone: usize) {
        let op = op.into();
        let all = runnable(op.name());
        let image = self.image();
        let reference = *all.last().unwrap();
        let expected_image = self.run(op, reference, 1, &image).unwrap();
        self.check_surroundings(&op, reference, &image, &expected_image);
        let expected = self.written(&op, &expected_image);
        let nan = expected.iter().filter(|x| x.is_nan()).count();
        assert_eq!(nan, left_alone, "{reference}: elements not written: {op}");
        for variant in all {
            if variant != reference && variant.contains("_int8_") != self.in_integers(&op) {
                continue;
            }
            let after = self.run(op, variant, 2, &image).unwrap();
            self.check_surroundings(&op, variant, &image, &after);
            let found = self.written(&op, &after);
            let moves = matches!(op, Op::Pack(_) | Op::Unpack(_) | Op::CopyRows(_) | Op::Cast(_));
            let bound = if moves {
                0.0
            } else if variant.contains("_bf16_") {
                1e-2
            } else {
                1e-5
            };
            compare(&op, variant, &found, &expected, bound);
            let alone = self.run(op, variant, 1, &image).unwrap();
            assert!(alone == after, "{variant}: one thread and two differ: {op}");
        }
    }

    /// Checks that nothing outside the written windows has changed.
    #[track_caller]
    pub fn check_surroundings(&self, op: &Op, variant: &str, before: &[u8], after: &[u8]) {
        let mut before = before.to_vec();
        let windows = op.written_windows();
        for w in windows {
            let start = self.range(&w.tensor).start;
            let size = w.tensor.dtype.size();
            for row in 0..w.rows() {
                let at = start + (row * w.tensor.cols + w.col) * size;
                before[at..at + w.cols * size].copy_from_slice(&after[at..at + w.cols * size]);
            }
        }
        if let Some(at) = before.iter().zip(after).position(|(b, a)| b != a) {
            panic!("{variant}: changed byte {at} outside its output: {op}");
        }
    }

    /// Checks that a NaN in the middle of `tensor` reaches the output of every variant.
    #[track_caller]
    pub fn check_nan(&self, op: impl Into<Op>, tensor: Tensor) {
        let op = op.into();
        self.check_nan_on_cpu(op, tensor);
        cuda::check_nan(self, op, tensor);
        wgpu::check_nan(self, op, tensor);
    }

    /// [`Case::check_nan`] for the CPU alone.
    #[track_caller]
    pub fn check_nan_on_cpu(&self, op: impl Into<Op>, tensor: Tensor) {
        let op = op.into();
        let mut image = self.image();
        let at = self.range(&tensor).start + (tensor.rows / 2 * tensor.cols + tensor.cols / 2) * 4;
        image[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        // An output that is not written must not count as the NaN that we look for.
        for out in op.writes().iter().filter(|t| !op.reads().contains(t)) {
            let range = self.range(out);
            image[range].fill(0);
        }
        for variant in runnable(op.name()) {
            let after = self.run(op, variant, 2, &image).unwrap();
            let found = self.written(&op, &after);
            assert!(found.iter().any(|x| x.is_nan()), "{variant}: lost a NaN: {op}");
        }
    }
}

/// The variants of the operation `op` that this machine can run on the CPU, best first; the
/// reference is the last. Says of the others that they are skipped, once for each.
pub fn runnable(op: &str) -> Vec<&'static str> {
    static SKIPPED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let all = variants::names(op).expect("every operation has variants");
    let has = |&(name, needs): &(&'static str, Isa)| {
        let has = needs <= Isa::detect();
        if !has && SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
            eprintln!("SKIPPED {name}: this machine has no {}", needs.name());
        }
        has
    };
    all.into_iter().filter(has).map(|(name, _)| name).collect()
}

/// Checks that the relative error is at most `bound`, and that the same elements are NaN.
#[track_caller]
pub fn compare(op: &Op, variant: &str, found: &[f32], expected: &[f32], bound: f64) {
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.is_nan(), e.is_nan(), "{variant}: element {i}: {f} for {e}: {op}");
        if !e.is_nan() {
            error += f64::from(f - e).powi(2);
            size += f64::from(*e).powi(2);
        }
    }
    let relative = if error == 0.0 { 0.0 } else { (error / size).sqrt() };
    println!("{variant}: error {relative:.2e} of {bound:e}: {}", op.name());
    assert!(relative <= bound, "{variant}: error {relative:e} > {bound:e}: {op}");
}
