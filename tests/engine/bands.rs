//! The autoencoder in bands of rows: bitwise what it computes in one piece. Unit tests of the
//! phases do the same on the GPU backends.

use crate::common::tensors::Tensors;
use crate::common::{files, limit_to_least, temp_dir};
use flux_fast::backend::{Compute, Device};
use flux_fast::error::Kind;
use flux_fast::event::Phase;
use flux_fast::pipeline::report::PlanReport;
use flux_fast::pipeline::request::{Image, Options, Request};
use flux_fast::pipeline::{Engine, images};
use safetensors::tensor::Dtype;

/// Encodes and decodes an image of `width x height` pixels, and nothing else.
fn round_trip(width: usize, height: usize) -> Request {
    let value = |i: usize| {
        let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
        let noise = (i * 7919 % 101) as f32 / 2.0;
        (x * 200 / width + if y > height / 3 { 0 } else { 20 * c }) as u8 / 2 + noise as u8
    };
    let rgb = (0..width * height * 3).map(value).collect();
    let mut request = Request::new("x").size(width, height).seed(1);
    request.init = Some(Image { width, height, rgb });
    request.strength = Some(0.0);
    request
}

fn open(device: Device, compute: Compute) -> Engine {
    let options = Options::default().device(device).compute(compute).no_cache(true);
    Engine::open(options.files(files(std::path::Path::new("embedded")))).unwrap()
}

fn bands(plan: &PlanReport) -> usize {
    plan.phase(Phase::Decode).unwrap().bands
}

/// Draws with the least memory, with all of it, and with budgets in between, and compares.
fn check(mut engine: Engine, request: &Request) {
    let want = engine.generate(request).unwrap().images.remove(0);
    let plan = engine.plan(request).unwrap();
    assert_eq!(bands(&plan), 0, "{plan}");
    let high = limit_to_least(&mut engine, request, 1 << 16);
    let mut seen = Vec::new();
    for budget in [high, high + (plan.peak_bytes - high) / 3, high + (plan.peak_bytes - high) / 2] {
        engine.limit_memory(budget).unwrap();
        let plan = engine.plan(request).unwrap();
        assert!(plan.peak_bytes <= budget, "{plan}");
        seen.push(bands(&plan));
        let got = engine.generate(request).unwrap().images.remove(0);
        assert!(got == want, "{} bands under {budget} bytes differ from none", bands(&plan));
    }
    assert!(seen[0] > 0 && seen[0] > seen[2], "{seen:?}");
}

#[test]
fn bands_equal_one_piece() {
    for (compute, width, height) in
        [(Compute::F32, 176, 304), (Compute::Auto, 336, 112), (Compute::F32, 96, 528)]
    {
        check(open(Device::Cpu, compute), &round_trip(width, height));
    }
}

#[test]
fn a_number_that_is_not_finite_is_an_error_in_bands_too() {
    let dir = temp_dir();
    // Large enough that the least memory needs bands.
    let request = round_trip(96, 528);
    // At the start, in the middle, and where nothing follows that would notice it.
    for (name, phase) in [
        ("vae.decoder.conv_in.bias", Phase::Decode),
        ("vae.decoder.up.1.block.0.conv1.bias", Phase::Decode),
        ("vae.decoder.conv_out.bias", Phase::Decode),
        ("vae.encoder.conv_in.bias", Phase::ImageEncode),
        ("vae.encoder.conv_out.bias", Phase::ImageEncode),
    ] {
        let mut model = Tensors::tiny();
        let (dtype, _, bytes) = model.tensors.get_mut(name).unwrap();
        // The last value: one channel of all.
        let end = bytes.len();
        match dtype {
            Dtype::F16 => bytes[end - 2..].copy_from_slice(&0x7e00u16.to_le_bytes()),
            Dtype::BF16 => bytes[end - 2..].copy_from_slice(&0x7fc0u16.to_le_bytes()),
            Dtype::F32 => bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes()),
            other => panic!("{name} is {other:?}"),
        }
        let path = model.write(dir.path().join("nan.safetensors"));
        let options = Options::default().device(Device::Cpu).compute(Compute::F32).no_cache(true);
        let mut engine = Engine::open(options.files(files(&path))).unwrap();
        limit_to_least(&mut engine, &request, 1 << 16);
        let plan = engine.plan(&request).unwrap();
        // The encoder needs less than the decoder, and may fit in one piece.
        let bands = plan.phase(phase).unwrap().bands;
        assert!(bands > 0 || phase == Phase::ImageEncode, "{name}: {plan}");
        let e = engine.generate(&request).map(|_| ()).expect_err(name);
        assert_eq!(e.kind(), Kind::NotFinite, "{name}: {e}");
    }
}

/// Against diffusers' autoencoder in one piece, averaged over squares of 16 x 16 pixels. Tiles that
/// do not know the statistics of the whole image are at 21 dB.
#[test]
fn a_wide_image_equals_diffusers() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vae");
    let read = |name| images::load_init_image(&folder.join(name)).unwrap();
    let (start, want) = (read("wide.png"), read("wide-16th.png"));
    let mut request = Request::new("x").size(start.width, start.height).seed(1);
    request.init = Some(start);
    request.strength = Some(0.0);
    let got = open(Device::Cpu, Compute::F32).generate(&request).unwrap().images.remove(0);
    let mean = |i: usize| {
        let (x, y, c) = (i / 3 % want.width, i / 3 / want.width, i % 3);
        let pixels = (0..256).map(|p| {
            let at = (16 * y + p / 16) * got.width + 16 * x + p % 16;
            f64::from(got.rgb[3 * at + c])
        });
        pixels.sum::<f64>() / 256.0
    };
    let errors = want.rgb.iter().enumerate().map(|(i, v)| (mean(i) - f64::from(*v)).powi(2));
    let mse = errors.sum::<f64>() / want.rgb.len() as f64;
    let db = 10.0 * (255f64.powi(2) / mse).log10();
    println!("{db:.1} dB");
    assert!(db >= 45.0, "{db:.1} dB");
}
