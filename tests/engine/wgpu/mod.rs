//! The wgpu backend on a real driver: counted memory, streamed weights, a lost device, and the
//! whole engine through the command line (`program`). The shaders are tested in `tests/ops`.

mod program;

use std::cell::Cell;
use std::ops::ControlFlow;

use crate::common::adapter;
use crate::common::denoiser::Denoiser;
use crate::common::files;
use flux_fast::backend::Device;
use flux_fast::backend::wgpu::{TestLimits, WgpuBackend, WgpuOptions};
use flux_fast::backend::{Backend, Layout};
use flux_fast::error::{Error, Kind};
use flux_fast::event::Event;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Options, Request};
use flux_fast::spec::flux1::TRANSFORMER;

fn gpu(options: WgpuOptions) -> WgpuBackend {
    WgpuBackend::new(WgpuOptions { staging_bytes: Some(256 << 10), ..options }).unwrap()
}

/// Resident and streamed, in one buffer and in several, with windows that split matrices: the same
/// bits, and never more bytes than planned.
#[test]
fn every_budget_gives_the_same_bits_and_is_kept() {
    if adapter::get().is_none() {
        return;
    }
    let denoiser = Denoiser::new();
    let mut whole = None;
    let mut dispatches = Vec::new();
    for (buffers, windows) in
        [(None, None), (Some(3 << 20), None), (Some(3 << 20), Some(100 << 10))]
    {
        let options = WgpuOptions {
            limits: TestLimits { buffer_bytes: buffers, binding_bytes: windows },
            ..WgpuOptions::default()
        };
        let mut backend = gpu(options.clone());
        let budgets = denoiser.budgets(&backend);
        drop(backend);
        for budget in budgets.into_iter().rev() {
            backend = gpu(options.clone());
            // Staging, and the buffers for inputs and results.
            let (fixed, _) = backend.held_bytes();
            assert!(fixed <= backend.caps().overhead_bytes);
            let got = denoiser.run(&mut backend, budget, 3);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert!(
                &got == want,
                "under {budget} bytes, buffers of {buffers:?}, windows of {windows:?}"
            );
            let (_, most) = backend.held_bytes();
            assert!(
                most <= budget + fixed,
                "{most} bytes were held with a budget of {budget} and {fixed}"
            );
            // The driver allocates no more than the buffers need, except for its allocator's
            // blocks, which the overhead covers.
            let allocated = backend.allocated_bytes().unwrap_or(0);
            assert!(
                allocated <= budget + backend.caps().overhead_bytes,
                "{allocated} allocated with a budget of {budget}"
            );
            dispatches.push((windows, backend.dispatches()));
        }
    }
    let of =
        |cut: bool| dispatches.iter().filter(|(w, _)| w.is_some() == cut).map(|(_, n)| *n).max();
    assert!(of(true) > of(false), "small windows split nothing: {dispatches:?}");
}

#[test]
fn flux2_and_its_text_encoder_give_the_same_bits_with_every_budget() {
    if adapter::get().is_none() {
        return;
    }
    let mut backend = gpu(WgpuOptions::default());
    let act = backend.caps().activation;
    for denoiser in [Denoiser::flux2(act), Denoiser::qwen3(act), Denoiser::controlled(act)] {
        let mut whole = None;
        for budget in denoiser.budgets(&backend).into_iter().rev() {
            let got = denoiser.run(&mut backend, budget, 2);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want.values().flatten().all(|&v| f32::from_bits(v).is_finite()));
            assert!(&got == want, "{} under {budget} bytes", denoiser.program.name);
        }
    }
}

/// Weights that are stored as FP8 become integers while they are loaded, in every budget the same.
#[test]
fn products_of_integers_give_the_same_bits_with_every_budget() {
    if adapter::get().is_none() {
        return;
    }
    let denoiser = Denoiser::new().in_int8(TRANSFORMER);
    let mut whole = None;
    for windows in [None, Some(100 << 10)] {
        let limits = TestLimits { binding_bytes: windows, ..TestLimits::default() };
        let mut backend = gpu(WgpuOptions { limits, ..WgpuOptions::default() });
        for budget in denoiser.budgets(&backend).into_iter().rev() {
            let got = denoiser.run(&mut backend, budget, 2);
            let want = whole.get_or_insert_with(|| got.clone());
            assert!(want["latents"].iter().all(|&v| f32::from_bits(v).is_finite()));
            assert!(&got == want, "under {budget} bytes, windows of {windows:?}");
        }
    }
    // Products in floats give other bits: the comparison is not of two runs without integers.
    let mut backend = gpu(WgpuOptions::default());
    assert!(Some(Denoiser::new().run(&mut backend, u64::MAX, 2)) != whole);
}

/// Weights ten times the budget: all of them are streamed through the ring several times.
#[test]
fn weights_ten_times_the_budget_stream() {
    if adapter::get().is_none() {
        return;
    }
    let denoiser = Denoiser::deep(40);
    let mut backend = gpu(WgpuOptions::default());
    let budget = denoiser.budgets(&backend)[0];
    let weights: u64 = denoiser.weights.iter().map(|w| w.bytes() as u64).sum();
    assert!(weights >= 10 * budget, "{weights} bytes of weights with a budget of {budget}");
    let (fixed, _) = backend.held_bytes();
    let streamed = denoiser.run(&mut backend, budget, 2);
    let (_, most) = backend.held_bytes();
    assert!(most <= budget + fixed, "{most} bytes were held with a budget of {budget} and {fixed}");
    let (ring, ended) = denoiser.run_until(&mut backend, budget, 1, &|| ControlFlow::Continue(()));
    assert!(ring && ended.is_ok(), "nothing was streamed");
    let resident = denoiser.run(&mut backend, u64::MAX, 2);
    assert!(streamed == resident, "streamed and resident differ");
}

/// Whatever ends a run, the next run on the same device is correct.
#[test]
fn a_cancelled_run_does_not_affect_the_next() {
    if adapter::get().is_none() {
        return;
    }
    let denoiser = Denoiser::new();
    let mut backend = gpu(WgpuOptions::default());
    let want = denoiser.run(&mut backend, u64::MAX, 2);
    let (mut streamed, mut resident) = (0, 0);
    for budget in denoiser.budgets(&backend) {
        for stop in [1, 9, 40] {
            let steps = Cell::new(0);
            let (ring, ended) = denoiser.run_until(&mut backend, budget, 3, &|| {
                steps.set(steps.get() + 1);
                if steps.get() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            *(if ring { &mut streamed } else { &mut resident }) += 1;
            assert_eq!(ended.unwrap_err().kind(), Kind::Cancelled);
            assert!(
                denoiser.run(&mut backend, budget, 2) == want,
                "after {stop} steps under {budget} bytes"
            );
        }
    }
    assert!(streamed > 0 && resident > 0, "{streamed} {resident}");
}

#[test]
fn too_large_a_reservation_is_refused_and_a_smaller_one_works() {
    if adapter::get().is_none() {
        return;
    }
    let limits = TestLimits { buffer_bytes: Some(1 << 20), binding_bytes: None };
    let mut backend = gpu(WgpuOptions { limits, ..WgpuOptions::default() });
    let total = backend.caps().memory_bytes;
    let layout =
        |arena_bytes: u64| Layout { arena_bytes: arena_bytes as usize, ..Default::default() };
    let e = backend.reserve(layout(2 * total), 0).unwrap_err();
    assert_eq!((e.kind(), e.kind().exit_code()), (Kind::Memory, 5));
    assert!(e.hint().unwrap().contains("vram"), "{e}");
    // Across the border of two buffers, at odd offsets.
    backend.reserve(layout(3 << 20), 0).unwrap();
    let sent: Vec<u8> = (0..100_001u32).map(|i| (i % 251) as u8).collect();
    let at = (1 << 20) - 50_003;
    backend.write(at, &sent).unwrap();
    let mut back = vec![0; sent.len() + 2];
    backend.write(at - 1, &[7]).unwrap();
    backend.read(at - 1, &mut back).unwrap();
    assert!(back[0] == 7 && back[1..=sent.len()] == sent, "bytes next to others in their words");
    assert!(backend.write((3 << 20) - 2, &[0; 3]).is_err(), "a write beyond the arena");
}

/// A GPU that is lost before, during or after a run: an error of the right kind, no hang, no panic.
#[test]
fn a_lost_device_is_an_error_at_once() {
    if adapter::get().is_none() {
        return;
    }
    let denoiser = Denoiser::new();
    let lost = |e: Error| {
        assert_eq!(e.kind(), Kind::Device, "{e}");
        assert!(e.hint().is_some(), "{e}");
    };
    for stop in [0, 1, 7, 60] {
        for tight in [false, true] {
            let mut backend = gpu(WgpuOptions::default());
            let budget = if tight { denoiser.budgets(&backend)[0] } else { u64::MAX };
            let pull = backend.loss_switch();
            let steps = Cell::new(0);
            if stop == 0 {
                pull();
                lost(
                    backend
                        .reserve(Layout { arena_bytes: 1 << 20, ..Layout::default() }, 0)
                        .unwrap_err(),
                );
            } else {
                let (_, ended) = denoiser.run_until(&mut backend, budget, 3, &|| {
                    steps.set(steps.get() + 1);
                    if steps.get() == stop {
                        pull();
                    }
                    ControlFlow::Continue(())
                });
                lost(ended.unwrap_err());
            }
            assert!(backend.is_lost() && backend.caps().reopens);
        }
    }
}

/// The engine reopens a lost device once, with a warning, and makes the same image.
#[test]
fn a_lost_device_is_reopened_once() {
    if adapter::get().is_none() {
        return;
    }
    let embedded = files(std::path::Path::new("embedded"));
    let open = |device| {
        let options = Options::default().device(device).no_cache(true);
        Engine::open(options.files(embedded.clone())).unwrap()
    };
    let request = Request::new("a fox").steps(1).seed(3);
    let mut pipeline = open(Device::Wgpu(0));
    let want = pipeline.generate(&request).unwrap().images;
    // Lost between two generations, and in the middle of one.
    for in_phase in [None, Some("denoise")] {
        let backend = gpu(WgpuOptions::default());
        let pull = backend.loss_switch();
        pipeline.replace_backend(Box::new(backend));
        if in_phase.is_none() {
            pull();
        }
        let (mut warnings, mut pulled) = (Vec::new(), false);
        let got = pipeline.generate_with(&request, |event| {
            match event {
                Event::Warning(text) => warnings.push(text),
                Event::PhaseStart { phase, .. } if in_phase == Some(phase.name()) && !pulled => {
                    pulled = true;
                    pull();
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        assert!(got.unwrap().images == want, "{in_phase:?}");
        assert!(
            warnings.iter().any(|w| w.contains("reopening the device")),
            "{in_phase:?}: {warnings:?}"
        );
    }
}
