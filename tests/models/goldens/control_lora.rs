//! Control LoRAs as BFL's (FLUX.1 Canny and Depth) against diffusers and PEFT
//! (`golden/make_control_lora_goldens.py`).

use std::path::{Path, PathBuf};

use super::{f32_on, plain, same_picture};
use crate::common::{Golden, adapter, files, limit_to_least, relative_error};
use flux_fast::backend::Device;
use flux_fast::error::Kind;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Request};

/// A bias that changes with the strength is rounded in another order by PEFT.
const TOLERANCE: f64 = 1e-4;

fn lora_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/lora")
        .join(format!("{name}.lora.safetensors"))
}

/// The control LoRA under the name that it would have.
fn depth_lora(folder: &Path) -> String {
    let path = folder.join("flux1-depth-dev-lora.safetensors");
    std::fs::copy(lora_file("control"), &path).unwrap();
    path.display().to_string()
}

fn request(golden: &Golden) -> Request {
    let n = |key: &str| golden.number(key);
    Request::new(golden.text("prompt"))
        .steps(n("steps") as usize)
        .seed(n("seed") as u64)
        .size(n("width") as usize, n("height") as usize)
        .guidance(n("guidance") as f32)
}

fn picture(golden: &Golden) -> Image {
    let shape = golden.shape("picture");
    Image { width: shape[1], height: shape[0], rgb: golden.u8("picture") }
}

fn check(golden: &Golden, device: Device) {
    let dir = crate::common::temp_dir();
    let written = plain(golden);
    let mut engine = Engine::open(f32_on(device).files(files(&written.path))).unwrap();
    let lora = depth_lora(dir.path());
    for (prefix, strength) in [("", 1.0), ("half.", 0.6)] {
        let request = request(golden).control(picture(golden)).lora(&lora, strength);
        let out = engine.generate(&request).unwrap();
        let error = relative_error(&out.latents, &golden.f32(&format!("{prefix}latents")));
        println!("control LoRA at {strength}: relative error {error:.2e}");
        assert!(error <= TOLERANCE, "{strength}: {error:.2e}");
        let decoded = golden.f32(&format!("{prefix}decoded"));
        same_picture("control LoRA", golden, &out.images[0], &decoded);
    }
}

#[test]
fn a_control_lora_equals_diffusers() {
    check(&Golden::read("control_lora_a_dev"), Device::Cpu);
}

#[test]
fn a_control_lora_by_wgpu_equals_diffusers() {
    if adapter::get().is_some() {
        check(&Golden::read("control_lora_a_dev"), Device::Wgpu(0));
    }
}

#[test]
fn a_control_lora_needs_its_image_and_has_its_own_defaults() {
    let golden = Golden::read("control_lora_a_dev");
    let dir = crate::common::temp_dir();
    let written = plain(&golden);
    let options = f32_on(Device::Cpu).no_cache(true);
    let mut engine = Engine::open(options.files(files(&written.path))).unwrap();
    let lora = depth_lora(dir.path());
    let base = request(&golden);
    let refused = |e: flux_fast::error::Error, words: &str| {
        assert!(e.kind() == Kind::Argument && e.to_string().contains(words), "{e}");
        assert!(e.hint().is_some(), "{e}");
    };
    refused(engine.generate(&base.clone().lora(&lora, 1.0)).unwrap_err(), "needs a control image");
    refused(engine.plan(&base.clone().lora(&lora, 1.0)).unwrap_err(), "needs a control image");
    let alone = base.clone().control(picture(&golden));
    refused(engine.generate(&alone).unwrap_err(), "does not read a control image");
    let mut own = Request::new("a fox").size(32, 32).control(picture(&golden)).lora(&lora, 1.0);
    let defaults = engine.settings(&own).unwrap();
    assert_eq!((defaults.guidance, defaults.steps), (Some(10.0), 50));
    own = own.guidance(2.0).steps(3);
    let typed = engine.settings(&own).unwrap();
    assert_eq!((typed.guidance, typed.steps), (Some(2.0), 3));
    // Strength 0 is the model without it.
    let without = engine.generate(&base).unwrap();
    let none = engine.generate(&alone.clone().lora(&lora, 0.0)).unwrap();
    assert_eq!(none.latents, without.latents);
    // Twice at half the strength is once at all of it, but for rounding.
    let once = engine.generate(&alone.clone().lora(&lora, 1.0)).unwrap();
    let twice = engine.generate(&alone.clone().lora(&lora, 0.5).lora(&lora, 0.5)).unwrap();
    let error = relative_error(&twice.latents, &once.latents);
    assert!(error < 1e-4, "{error:.2e}");
    // The plan has the image and the wider input.
    let plan = engine.plan(&alone.clone().lora(&lora, 1.0)).unwrap();
    assert!(plan.phases.iter().any(|p| p.phase == "image") && plan.lora_bytes > 0, "{plan}");
    // The next request is without it.
    assert_eq!(engine.generate(&base).unwrap().latents, without.latents);
}

#[test]
fn a_streamed_control_lora_equals_a_resident_one() {
    let golden = Golden::read("control_lora_a_dev");
    let dir = crate::common::temp_dir();
    let written = plain(&golden);
    let options = f32_on(Device::Cpu).no_cache(true);
    let mut engine = Engine::open(options.files(files(&written.path))).unwrap();
    let request = request(&golden).control(picture(&golden)).lora(depth_lora(dir.path()), 1.0);
    let want = engine.generate(&request).unwrap().latents;
    limit_to_least(&mut engine, &request, 1 << 14);
    let plan = engine.plan(&request).unwrap();
    assert!(plan.phases.iter().any(|p| p.streamed_bytes_per_run > 0), "{plan}");
    assert!(engine.generate(&request).unwrap().latents == want);
}

/// Models with another input have no room for its columns.
#[test]
fn other_models_refuse_a_control_lora() {
    let dir = crate::common::temp_dir();
    let lora = depth_lora(dir.path());
    let golden = Golden::read("kontext_a_dev");
    let written = plain(&golden);
    let path = written.path.with_file_name("flux1-kontext-dev.safetensors");
    std::fs::rename(&written.path, &path).unwrap();
    let mut engine = Engine::open(f32_on(Device::Cpu).files(files(&path))).unwrap();
    let n = |key: &str| golden.number(key) as usize;
    let request = Request::new("a fox").size(n("width"), n("height")).lora(&lora, 1.0);
    let e = engine.generate(&request).unwrap_err();
    assert!(e.kind() == Kind::Argument && e.to_string().contains("plain FLUX.1"), "{e}");
}
