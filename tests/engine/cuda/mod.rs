//! The CUDA backend on the fake driver: memory, streams, graphs, errors, and the whole engine
//! through the command line (`program`). The kernels are tested in `tests/ops`.

mod program;

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::common::denoiser::Denoiser;
use crate::common::driver;
use flux_fast::backend::Backend;
use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::op::Use;
use flux_fast::tensor::{BlockScale, BlockScales, HostPart, Scale};

/// A backend that records every possible run as a graph, even though interpreted kernels take long.
fn gpu(pinned_bytes: u64) -> CudaBackend {
    let record_below_seconds = Some(f64::INFINITY);
    CudaBackend::new(CudaOptions {
        ordinal: driver::RTX_3060,
        pinned_bytes,
        record_below_seconds,
        ..CudaOptions::default()
    })
    .unwrap()
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

/// Replaces every matrix whose rows are whole blocks by random blocks of one format after the
/// other.
fn into_blocks(denoiser: &mut Denoiser) {
    let uses = denoiser.program.uses();
    let matrices = denoiser
        .weights
        .iter_mut()
        .zip(uses)
        .filter(|(w, how)| *how == Use::Matrix && w.cols % 256 == 0);
    let formats = [DType::Q8_0, DType::Q6K, DType::Mxfp8, DType::Q5K, DType::Nf4];
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
            let separate = BlockScales {
                source: Arc::new(scales),
                offset: 0,
                stored,
                per_row,
                first_row: 0,
                tiled: false,
                factor: 1.0,
            };
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
    assert!(e.hint().unwrap().contains("--vram"), "{e}");
    // After a refusal a smaller reservation still works.
    backend.reserve(layout(1 << 20), 0).unwrap();
    backend.write(0, &[1, 2, 3]).unwrap();
    let mut back = [0; 3];
    backend.read(0, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3]);
    assert!(backend.write((1 << 20) - 2, &[0; 3]).is_err(), "a write beyond the arena");
}
