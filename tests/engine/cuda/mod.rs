//! The CUDA backend on the fake driver: memory, streams, graphs, errors, and the whole engine
//! through the command line (`program`). The kernels are tested in `tests/ops`.

pub mod program;

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::denoiser::Denoiser;
use crate::common::driver;
use crate::common::forward::forward;
use crate::common::{cpu, relative_error};
use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::backend::{Backend, Compute, KernelChoice, Layout, Place, Places, Run, WeightKey};
use flux_fast::dtype::DType;
use flux_fast::error::{Kind, Result};
use flux_fast::model::T5Config;
use flux_fast::model::t5;
use flux_fast::op::{Step, Use};
use flux_fast::plan;
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::{BlockScale, BlockScales, HostPart, HostWeight, Scale};

/// A backend that records every possible run as a graph, even though interpreted kernels take long.
fn gpu(pinned_bytes: u64) -> CudaBackend {
    gpu_with(CudaOptions { pinned_bytes, ..CudaOptions::default() })
}

fn gpu_with(options: CudaOptions) -> CudaBackend {
    let record_below_seconds = Some(f64::INFINITY);
    let ordinal = driver::RTX_3060;
    CudaBackend::new(CudaOptions { ordinal, record_below_seconds, ..options }).unwrap()
}

/// Resident, streamed through the ring of chunks, and streamed from pinned copies: the same bits.
/// The driver runs copies as late as possible, as early as possible and in random order, so that a
/// missing wait changes the result. Four runs: the first loads, the second is recorded as a graph
/// if all weights are resident, the others replay it.
#[test]
fn every_budget_gives_the_same_bits() {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let denoiser = Denoiser::new();
    let mut whole = None;
    for (pinned, order) in
        [(0, "late"), (0, "early"), (1 << 30, "late"), (1 << 30, "random:5"), (0, "random:6")]
    {
        driver.configure(&format!("order={order}"));
        let mut backend = gpu(pinned);
        for budget in denoiser.budgets(&backend).into_iter().rev() {
            let got = denoiser.run(&mut backend, budget, 4);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert_eq!(&got, want, "under {budget} bytes, {pinned} pinned, {order}");
        }
    }
    driver.configure("order=late");
    driver.check_findings("a denoiser");
}

/// Weights that are stored as FP8 become integers while they are loaded: resident, through the ring
/// of chunks and from pinned copies the same, and the same whether products are recorded or not.
#[test]
fn products_of_integers_give_the_same_bits_with_every_budget() {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let denoiser = Denoiser::new().in_int8(TRANSFORMER);
    let mut whole = None;
    for (pinned, order) in [(0, "late"), (1 << 30, "random:5"), (1 << 30, "early")] {
        driver.configure(&format!("order={order}"));
        let mut backend = gpu(pinned);
        for budget in denoiser.budgets(&backend).into_iter().step_by(2).rev() {
            let got = denoiser.run(&mut backend, budget, 3);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert!(&got == want, "under {budget} bytes, {pinned} pinned, {order}");
        }
    }
    driver.configure("order=late");
    let ran = driver.check_findings("a denoiser in integers");
    assert!(ran.iter().any(|k| k.starts_with("linear_int8_")), "{ran:?}");
    assert!(ran.iter().any(|k| k.starts_with("rotate_quantise_")), "{ran:?}");
    // Products in BF16 give other bits: the comparison is not of runs without integers.
    assert!(Some(Denoiser::new().run(&mut gpu(0), u64::MAX, 3)) != whole);
}

/// `--compute int8` includes attention of more than 512 keys, whose scratch memory is planned, and
/// `--kernel` leaves it out.
#[test]
fn attention_in_integers_gives_the_same_bits_with_every_budget() {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let denoiser = Denoiser::long().in_int8(TRANSFORMER);
    let options = CudaOptions { compute: Compute::Int8, ..CudaOptions::default() };
    let mut whole = None;
    for (pinned_bytes, order, chosen) in [(0, "late", &[0, 3][..]), (1 << 30, "random:7", &[0][..])]
    {
        driver.configure(&format!("order={order}"));
        let mut backend = gpu_with(CudaOptions { pinned_bytes, ..options.clone() });
        let budgets = denoiser.budgets(&backend);
        for budget in chosen.iter().map(|&i| budgets[i]) {
            let got = denoiser.run(&mut backend, budget, 2);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert!(&got == want, "under {budget} bytes, {pinned_bytes} pinned, {order}");
        }
    }
    driver.configure("order=late");
    let ran = driver.check_findings("attention in integers");
    for kernel in ["attention_int8_means", "attention_int8_prepare", "attention_d128_int8"] {
        assert!(ran.iter().any(|k| k.starts_with(kernel)), "{kernel}: {ran:?}");
    }
    let kernels = vec![KernelChoice::new("attention", "attention_d128_sm80")];
    let without = denoiser.run(&mut gpu_with(CudaOptions { kernels, ..options }), u64::MAX, 2);
    let ran = driver.check_findings("attention in BF16");
    assert!(ran.iter().all(|k| !k.starts_with("attention_int8")), "{ran:?}");
    let floats = |run: &HashMap<&str, Vec<u32>>| {
        run["latents"].iter().map(|v| f32::from_bits(*v)).collect::<Vec<_>>()
    };
    let error = relative_error(&floats(&whole.unwrap()), &floats(&without));
    assert!(error > 0.0 && error < 0.02, "{error}");
}

#[test]
fn flux2_and_its_text_encoder_give_the_same_bits_with_every_budget() {
    same_bits_with_every_budget(&[Denoiser::flux2, Denoiser::qwen3]);
}

#[test]
fn fill_kontext_and_siglip_give_the_same_bits_with_every_budget() {
    same_bits_with_every_budget(&[Denoiser::fill, Denoiser::kontext, Denoiser::siglip]);
}

#[test]
fn controlnets_give_the_same_bits_with_every_budget() {
    same_bits_with_every_budget(&[Denoiser::controlled]);
}

fn same_bits_with_every_budget(programs: &[fn(DType) -> Denoiser]) {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let mut exact = cpu(Compute::F32);
    for make in programs {
        let denoiser = make(DType::BF16);
        let mut whole = None;
        for (pinned, order) in [(0, "late"), (1 << 30, "random:5")] {
            driver.configure(&format!("order={order}"));
            let mut backend = gpu(pinned);
            for budget in denoiser.budgets(&backend).into_iter().step_by(3).rev() {
                let got = denoiser.run(&mut backend, budget, 3);
                let want = whole.get_or_insert_with(|| got.clone());
                assert!(want.values().flatten().all(|&v| f32::from_bits(v).is_finite()));
                let name = &denoiser.program.name;
                assert!(&got == want, "{name} under {budget} bytes, {pinned} pinned, {order}");
            }
        }
        driver.configure("order=late");
        driver.check_findings(&denoiser.program.name);
        // The same numbers as on the CPU, but for the rounding of activations to BF16.
        let want = make(DType::F32).run(&mut exact, u64::MAX, 3);
        for (name, got) in whole.unwrap() {
            let [got, want] = [&got, &want[name]]
                .map(|bits| bits.iter().map(|v| f32::from_bits(*v)).collect::<Vec<f32>>());
            let error = relative_error(&got, &want);
            println!("{} {name}: {error:.1e}", denoiser.program.name);
            assert!(error < 2e-2, "{} {name}: {error:.1e}", denoiser.program.name);
        }
    }
}

/// Replaces every matrix whose rows are whole blocks by random blocks of one format after the
/// other.
fn into_blocks(denoiser: &mut Denoiser) {
    let uses = denoiser.program.uses();
    let matrices = denoiser
        .weights
        .iter_mut()
        .zip(uses)
        .filter(|(w, how)| *how == Use::Matrix && w.cols % 256 == 0);
    let formats = [DType::Q8_0, DType::Q6K, DType::Mxfp8, DType::F8Block, DType::Q5K, DType::Nf4];
    let mut bits = 1u64;
    let mut byte = || {
        bits = bits.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (bits >> 56) as u8
    };
    let mut changed = 0;
    for ((weight, _), dtype) in matrices.zip(formats.into_iter().cycle()) {
        let format = dtype.format().unwrap();
        for part in &mut weight.parts {
            let per_row = format.blocks(part.cols);
            let mut bytes: Vec<u8> =
                (0..part.rows * dtype.bytes(part.cols)).map(|_| byte()).collect();
            // Small f16 scales, no NaN codes.
            for block in bytes.chunks_exact_mut(format.bytes) {
                match dtype {
                    DType::Q8_0 => block[..2].copy_from_slice(&[byte(), 0x01]),
                    DType::Q6K => block[208..].copy_from_slice(&[byte(), 0x00]),
                    DType::Q5K => block[..4].copy_from_slice(&[byte(), 0x00, byte(), 0x00]),
                    _ => block.iter_mut().for_each(|q| *q &= 0xbf),
                }
            }
            let scales: Vec<u8> = match dtype {
                DType::Mxfp8 => (0..part.rows * per_row).map(|_| 115).collect(),
                _ => (0..part.rows * per_row).flat_map(|_| 0.02f32.to_le_bytes()).collect(),
            };
            let stored = if dtype == DType::Mxfp8 { BlockScale::E8M0 } else { BlockScale::F32 };
            let separate = BlockScales::new(Arc::new(scales), 0, stored, per_row);
            let scale = if format.scale_bytes > 0 { Scale::Blocks(separate) } else { Scale::One };
            *part = HostPart { source: Arc::new(bytes), offset: 0, dtype, scale, ..part.clone() };
        }
        changed += 1;
    }
    assert!(changed > formats.len(), "only {changed} matrices");
}

/// Weights in blocks are rearranged into planes while they are loaded: resident, streamed, and
/// streamed from pinned copies of the planes, they give the same bits.
#[test]
fn weights_in_blocks_stream_to_the_same_bits() {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let mut denoiser = Denoiser::new();
    into_blocks(&mut denoiser);
    let mut whole = None;
    for (pinned, order) in [(0, "late"), (1 << 30, "random:3")] {
        driver.configure(&format!("order={order}"));
        let mut backend = gpu(pinned);
        for budget in denoiser.budgets(&backend).into_iter().step_by(3).rev() {
            let got = denoiser.run(&mut backend, budget, 3);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert_eq!(&got, want, "under {budget} bytes, {pinned} pinned, {order}");
        }
    }
    driver.configure("order=late");
    let ran = driver.check_findings("a denoiser in blocks");
    assert!(ran.iter().any(|k| k.starts_with("linear_blocks_")), "{ran:?}");
}

/// Whatever ends a run, the next run on the same device is correct.
#[test]
fn a_cancelled_run_does_not_affect_the_next() {
    if driver::get().is_none() {
        return;
    }
    let _turn = driver::take_turn();
    let denoiser = Denoiser::new();
    let mut backend = gpu(0);
    let want = denoiser.run(&mut backend, u64::MAX, 2);
    let (mut streamed, mut recorded) = (0, 0);
    for budget in denoiser.budgets(&backend) {
        for stop in [1, 9, 40] {
            // If all weights are resident, in the second run, which is being recorded.
            let steps = Cell::new(0);
            let resident = budget == denoiser.budgets(&backend)[3];
            let last = stop + if resident { denoiser.program.steps.len() } else { 0 };
            let (ring, ended) = denoiser.run_until(&mut backend, budget, 3, &|| {
                steps.set(steps.get() + 1);
                if steps.get() == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert_eq!(ring, !resident);
            *(if ring { &mut streamed } else { &mut recorded }) += 1;
            assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
            assert_eq!(
                denoiser.run(&mut backend, budget, 2),
                want,
                "after {stop} steps under {budget} bytes"
            );
        }
    }
    assert!(
        streamed > 0 && recorded > 0,
        "both kinds of run must be cancelled: {streamed}, {recorded}"
    );
}

#[test]
fn too_large_a_reservation_is_refused_and_a_smaller_one_works() {
    if driver::get().is_none() {
        return;
    }
    let _turn = driver::take_turn();
    let mut backend = gpu(0);
    let total = backend.caps().memory_bytes;
    let layout = |arena_bytes: u64| flux_fast::backend::Layout {
        arena_bytes: arena_bytes as usize,
        ..Default::default()
    };
    let e = backend.reserve(layout(2 * total), 0).unwrap_err();
    assert_eq!((e.kind(), e.kind().exit_code()), (Kind::Memory, 5));
    assert!(e.hint().unwrap().contains("vram"), "{e}");
    // After a refusal a smaller reservation still works.
    backend.reserve(layout(1 << 20), 0).unwrap();
    backend.write(0, &[1, 2, 3]).unwrap();
    let mut back = [0; 3];
    backend.read(0, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3]);
    assert!(backend.write((1 << 20) - 2, &[0; 3]).is_err(), "a write beyond the arena");
}

/// Counts the steps that a CUDA device is given, and the runs that it replays.
struct Counting {
    inner: CudaBackend,
    steps: usize,
    replays: usize,
}

impl Backend for Counting {
    forward!(caps, weight_bytes, scratch_bytes, forget, write, read, sync);

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.inner.reserve(layout, peak_bytes)
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()> {
        self.inner.load(key, place, weight, how)
    }

    fn begin(&mut self, run: Option<Run>) -> Result<bool> {
        let replayed = self.inner.begin(run)?;
        self.replays += usize::from(replayed);
        Ok(replayed)
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        self.steps += 1;
        self.inner.run(step, places)
    }

    fn end(&mut self) -> Result<bool> {
        self.inner.end()
    }
}

/// Token ids are checked when they are written, not when a step runs. So a text encoder is recorded
/// as a graph, and a replay looks up the ids that were written last.
#[test]
fn a_text_encoder_is_replayed_with_other_token_ids() {
    let Some(driver) = driver::get() else { return };
    let _turn = driver::take_turn();
    let c = T5Config {
        vocab: 50,
        width: 64,
        heads: 2,
        head_dim: 64,
        ff: 128,
        layers: 1,
        buckets: 8,
        max_distance: 16,
        eps: 1e-6,
    };
    let program = t5::encode(&c, 1, 4, DType::BF16);
    let weights = program.weights.iter().map(|w| {
        // The period is no divisor of the width, so that the rows differ.
        let value = |i: usize| ((i * 37 + 11) % 61) as f32 / 61.0 - 0.4;
        let mut bytes = Vec::new();
        (0..w.rows * w.cols).for_each(|i| DType::BF16.encode(value(i), &mut bytes));
        let (rows, cols) = (w.rows, w.cols);
        HostWeight::whole(Arc::new(bytes), (rows, cols), DType::BF16, Scale::One)
    });
    let weights: Vec<HostWeight> = weights.collect();
    let bytes = |b: &CudaBackend| -> Vec<usize> {
        weights.iter().zip(program.uses()).map(|(w, how)| b.weight_bytes(w, how)).collect()
    };
    let mut backend = Counting { inner: gpu(0), steps: 0, replays: 0 };
    let scratch: Vec<usize> = (program.steps.iter())
        .map(|s| backend.scratch_bytes(&s.op, &|w| &weights[w.id as usize]))
        .collect();
    let grain = backend.caps().grain;
    let plan = plan::phase(&program, 4, &bytes(&backend.inner), &scratch, grain, 1 << 30).unwrap();
    let mut holdings = Holdings::default();
    holdings.reserve(&mut backend, plan.layout(), false).unwrap();
    let (ids, out) = (program.input("ids"), program.outputs[0].tensor);
    let texts = [[1, 2, 3, 4], [40, 0, 49, 7]];
    // The first run loads the weights, the second is recorded, the others are replayed.
    let mut found = Vec::new();
    let mut session = Session::new(
        &mut backend,
        &mut holdings,
        &program,
        &plan,
        weights.clone(),
        Tenancy::default(),
    );
    let buckets = program.input("buckets");
    session.write_i32(buckets, &t5::relative_buckets(&c, 4)).unwrap();
    for run in 0..4 {
        session.write_i32(ids, &texts[run % 2]).unwrap();
        session.run(run < 3, &mut |_, _| ControlFlow::Continue(())).unwrap();
        found.push(session.read_f32(out).unwrap());
    }
    session.finish().unwrap();
    assert!(found[0].iter().all(|v| v.is_finite()));
    assert_ne!(found[0], found[1], "other ids give another encoding");
    assert_eq!(found[0], found[2]);
    assert_eq!(found[1], found[3]);
    assert_eq!((backend.steps, backend.replays), (2 * program.steps.len(), 2));
    let ran = driver.check_findings("a text encoder");
    assert!(ran.iter().any(|kernel| kernel.starts_with("embed")), "{ran:?}");
}
