//! `cargo bench --bench step -- --device cuda[:N]|wgpu[:N]`: full-size dev and schnell at 1024x1024
//! with FP8 weights: a denoising step with resident weights and with budgets of 12 GB and 8 GB of
//! device memory, and the decoding of one image. With a budget it prints the time of transfers
//! beyond the resident step, compared with the rate of copies from pinned memory.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use flux_fast::dtype::DType;
use flux_fast::model::flux1::{DenoiseShape, denoise, rope};
use flux_fast::model::{FluxConfig, VaeConfig, vae};
use flux_fast::op::{Program, Use};
use flux_fast::plan;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::{ByteSource, HostPart, HostWeight, Scale};

use crate::device::{Asked, Device, open, record};

/// Weights at different offsets of one block of random bytes: matrices are FP8, vectors BF16.
fn weights(program: &Program, source: &Arc<dyn ByteSource>, matrices: DType) -> Vec<HostWeight> {
    let room = source.bytes().len();
    let mut next = 0usize;
    let mut place = |rows: usize, cols: usize, dtype: DType| {
        let bytes = rows * cols * dtype.size();
        if next + bytes > room {
            next = 0;
        }
        let offset = next;
        next += bytes.next_multiple_of(256);
        let scale = if dtype.size() == 1 { Scale::Tensor(1e-4) } else { Scale::One };
        HostWeight {
            int8: None,
            rows,
            cols,
            parts: vec![HostPart {
                rotation: None,
                source: source.clone(),
                offset,
                rows,
                cols,
                dtype,
                scale,
            }],
        }
    };
    let matrix = |how: Use| matches!(how, Use::Matrix | Use::Kernel { .. });
    let uses = program.uses();
    program
        .weights
        .iter()
        .zip(uses)
        .map(|(w, how)| place(w.rows, w.cols, if matrix(how) { matrices } else { DType::BF16 }))
        .collect()
}

/// Bytes that are small numbers in every type.
fn source(bytes: usize) -> Arc<dyn ByteSource> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state & 0xbfbf_bfbf_bfbf_bfbf
    };
    Arc::new((0..bytes / 8).flat_map(|_| next(&mut state).to_le_bytes()).collect::<Vec<u8>>())
}

struct Outcome {
    seconds: f64,
    streamed: u64,
    planned: u64,
    /// Device memory in use during the run, as the driver reports it.
    held: u64,
}

/// Seconds of a run of `program` with a budget of `budget` bytes of device memory in all.
fn time(
    device: &mut Device,
    program: &Program,
    weights: &[HostWeight],
    budget: u64,
    runs: usize,
) -> Option<Outcome> {
    let backend = device.backend();
    let caps = backend.caps().clone();
    let bytes: Vec<usize> =
        weights.iter().zip(program.uses()).map(|(w, how)| backend.weight_bytes(w, how)).collect();
    let weight = |w: flux_fast::tensor::Weight| &weights[w.id as usize];
    let scratch: Vec<usize> =
        program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect();
    let reach = caps.free_bytes + caps.overhead_bytes;
    if budget != u64::MAX && budget > reach {
        println!("    not so much memory is free");
        return None;
    }
    let room = budget.min(reach).saturating_sub(caps.overhead_bytes);
    let room = room - room % caps.granularity as u64;
    let plan = match plan::phase(program, runs, &bytes, &scratch, caps.grain, room) {
        Ok(plan) => plan,
        Err(e) => {
            println!("    {e}");
            return None;
        }
    };
    let mut holdings = Holdings::default();
    if let Err(e) = holdings.reserve(backend, plan.layout(), false) {
        println!("    {e}");
        return None;
    }
    let planned = plan.layout().bytes(caps.granularity) + caps.overhead_bytes;
    let mut session =
        Session::new(backend, &mut holdings, program, &plan, weights.to_vec(), Tenancy::default());
    for io in &program.inputs {
        let n = io.tensor.rows * io.tensor.cols;
        let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
        session.write_f32(io.tensor, &values).expect("within the arena");
    }
    // The output is read back, as in a generation, so that the run is complete.
    let last = program
        .inputs
        .iter()
        .find(|io| io.name == "step")
        .map_or(program.inputs[0].tensor, |io| io.tensor);
    let mut samples = Vec::new();
    for i in 0..runs + 3 {
        let begin = Instant::now();
        session.run(i + 1 < runs + 3, &mut |_, _| ControlFlow::Continue(())).expect("runs");
        session.read_f32(last).expect("reads");
        if i >= 3 {
            samples.push(begin.elapsed().as_secs_f64()); // the first loads weights, the second records, the third pins
        }
    }
    session.finish().expect("ends");
    let held = device.held_bytes();
    samples.sort_by(f64::total_cmp);
    Some(Outcome {
        seconds: samples[samples.len() / 2],
        streamed: plan.streamed_bytes(),
        planned,
        held,
    })
}

/// Runs all cases on the given GPU.
pub fn run(asked: &Asked) {
    let mut device = open(asked, 24 << 30);
    let upload = device.upload_gigabytes;
    println!("host memory to the GPU at {upload:.1} GB/s");
    if device.software {
        println!(
            "a driver that computes on the processor would take hours for FLUX.1's full size: nothing to do"
        );
        return;
    }
    // Smaller than a model, so that it fits any host: weights share bytes, but each is copied
    // separately, from pinned memory far larger than caches.
    let source = source(3 << 30);
    for (name, config, text) in
        [("dev", FluxConfig::dev(), 512), ("schnell", FluxConfig::schnell(), 256)]
    {
        let shape =
            DenoiseShape { images: 1, cfg: false, text_tokens: text, height: 64, width: 64 };
        let program = denoise(&config, &shape, DType::BF16);
        let _ = rope(&config, &shape); // the angles do not affect the time
        let weights = weights(&program, &source, DType::F8E4M3);
        let mut resident = f64::NAN;
        for (label, budget) in [
            ("resident", u64::MAX),
            ("12G", 12_000_000_000),
            ("8G", 8_000_000_000),
            ("6G", 6_000_000_000),
        ] {
            let Some(o) = time(&mut device, &program, &weights, budget, 8) else { continue };
            if label == "resident" && o.streamed == 0 {
                resident = o.seconds;
            }
            let bus = o.streamed as f64 / 1e9 / upload;
            let tflops = program.flops() as f64 / o.seconds / 1e12;
            println!(
                "step.{name}.1024 {label}: {:.4} s, {tflops:.0} TFLOP/s, {:.2} GB planned, {:.2} GB held, {:.2} GB streamed ({bus:.4} s at full rate), stall {:.4} s ({:.1} % of the bus used)",
                o.seconds,
                o.planned as f64 / 1e9,
                o.held as f64 / 1e9,
                o.streamed as f64 / 1e9,
                o.seconds - resident,
                100.0 * bus / o.seconds,
            );
            let dot = if label == "resident" { String::new() } else { format!(".{label}") };
            record(&format!(
                "{{\"name\":\"step.{name}.1024{dot}\",\"seconds\":{:e},\"tflops\":{tflops:.2},\"planned_bytes\":{},\"held_bytes\":{},\"streamed_bytes\":{}}}",
                o.seconds, o.planned, o.held, o.streamed
            ));
        }
    }
    let program = vae::decode(&VaeConfig::flux(), 128, 128, DType::BF16);
    let weights = weights(&program, &source, DType::BF16);
    if let Some(o) = time(&mut device, &program, &weights, u64::MAX, 8) {
        println!("vae.decode.1024: {:.4} s, {:.2} GB planned", o.seconds, o.planned as f64 / 1e9);
        record(&format!("{{\"name\":\"vae.decode.1024\",\"seconds\":{:e}}}", o.seconds));
    }
}
