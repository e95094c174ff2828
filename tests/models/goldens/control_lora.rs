//! Control LoRAs as BFL's (FLUX.1 Canny and Depth) against diffusers and PEFT
//! (`golden/make_control_lora_goldens.py`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{f32_on, plain, same_picture};
use crate::common::{Golden, adapter, files, limit_to_least, relative_error};
use flux_fast::backend::Device;
use flux_fast::error::Kind;
use flux_fast::event::Event;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Mask, Request};

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

/// A model that reads a control image has as many columns as the LoRA: it is changed like any other
/// layer, as by diffusers and ComfyUI, and a note says that this is not what the LoRA was made for.
#[test]
fn a_model_that_reads_control_images_is_changed_with_a_note() {
    let dir = crate::common::temp_dir();
    let lora = depth_lora(dir.path());
    let golden = Golden::read("control_a_dev");
    let written = plain(&golden);
    let options = f32_on(Device::Cpu).no_cache(true);
    let mut engine = Engine::open(options.files(files(&written.path))).unwrap();
    let request = request(&golden).control(picture(&golden));
    let without = engine.generate(&request).unwrap().latents;
    let mut draw = |strength: f32| {
        let mut notes = vec![];
        let request = request.clone().lora(&lora, strength);
        let out = engine.generate_with(&request, |event| {
            if let Event::Note(note) = event {
                notes.push(note.to_string());
            }
            ControlFlow::Continue(())
        });
        (out.unwrap().latents, notes)
    };
    let (changed, notes) = draw(1.0);
    let said = notes.iter().any(|note| note.contains("was made for a plain [dev]"));
    assert!(said, "{notes:?}");
    assert!(relative_error(&changed, &without) > 0.01);
    assert_eq!(draw(0.0).0, without);
}

/// Models that read other images have no room for its columns.
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
    let written = plain(&Golden::read("fill_a_dev"));
    let mut engine = Engine::open(f32_on(Device::Cpu).files(files(&written.path))).unwrap();
    let (width, height) = (32, 32);
    let mask = Mask { width, height, values: vec![255; width * height] };
    let photo = Image { width, height, rgb: vec![99; 3 * width * height] };
    let request = Request::new("a fox").size(width, height).init(photo).mask(mask);
    let e = engine.generate(&request.lora(&lora, 1.0)).unwrap_err();
    assert!(e.kind() == Kind::Model && e.to_string().contains("img_in"), "{e}");
}
