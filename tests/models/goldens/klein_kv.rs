//! FLUX.2 [klein] 9B-kv, which computes the keys and values of reference images once for all steps,
//! against `Flux2KleinKVPipeline` of diffusers (golden/make_flux2_kv_goldens.py).

use std::ops::ControlFlow;
use std::path::Path;

use flux_fast::backend::Device;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::open_only;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Request};
use flux_fast::weights::synth::{Dialect, Grid, Storage};

use super::klein::{MODELS, Written, plain, request};
use super::{close, f32_on, f32_options, files, same_picture};
use crate::common::{Golden, adapter, limit_to_least, relative_error, temp_dir};

/// The golden's model under a name that says what it is.
fn kept(golden: &Golden) -> Written {
    let mut written = plain(golden);
    let path = written.path.with_file_name("flux-2-klein-9b-kv.safetensors");
    std::fs::rename(&written.path, &path).unwrap();
    written.path = path;
    written
}

fn picture(golden: &Golden, n: usize) -> Image {
    let name = format!("reference.{n}.picture");
    let shape = golden.shape(&name);
    Image { width: shape[1], height: shape[0], rgb: golden.u8(&name) }
}

fn goldens() -> [Golden; 2] {
    MODELS.map(|name| Golden::read(&format!("{name}_kv")))
}

#[test]
fn images_of_a_model_that_keeps_references_equal_diffusers() {
    compare(Device::Cpu);
}

#[test]
fn images_of_a_model_that_keeps_references_by_wgpu_equal_diffusers() {
    if adapter::get().is_some() {
        compare(Device::Wgpu(0));
    }
}

fn compare(device: Device) {
    for golden in goldens() {
        let mut engine = kept(&golden).engine(&f32_on(device));
        let mut request = request(&golden);
        for n in [1, 2] {
            request = request.reference(picture(&golden, n));
            let out = engine.generate(&request).unwrap();
            let latents = golden.f32(&format!("reference.{n}.latents"));
            close(&format!("{n} references"), &golden, &out.latents, &latents);
            let decoded = golden.f32(&format!("reference.{n}.decoded"));
            same_picture(&format!("{n} references"), &golden, &out.images[0], &decoded);
        }
        let out = engine.generate(&request.clone().count(2)).unwrap();
        close("two images", &golden, &out.latents, &golden.f32("batch.latents"));
    }
}

/// True CFG has two sequences, which read the same references: with the same prompt in both, they
/// are equal, and so is the image.
#[test]
fn both_sequences_of_true_cfg_read_the_kept_references() {
    let [golden, _] = goldens();
    let mut engine = kept(&golden).engine(&f32_options());
    let base = request(&golden).reference(picture(&golden, 1));
    let prompt = golden.text("prompt");
    let guided = base.clone().cfg_scale(3.0).negative(prompt);
    let out = engine.generate(&guided).unwrap();
    close("true CFG", &golden, &out.latents, &golden.f32("reference.1.latents"));
}

#[test]
fn kept_references_under_a_small_budget_give_the_same_bits() {
    let [_, golden] = goldens();
    let mut engine = kept(&golden).engine(&f32_options());
    // A large reference, so that denoising needs the most memory.
    let rgb = (0..3 * 384 * 256_u64).map(|i| (i * 7919 % 251) as u8).collect();
    let request = request(&golden).reference(Image { width: 384, height: 256, rgb });
    let want = engine.generate(&request).unwrap().latents;
    let plan = engine.plan(&request).unwrap();
    let phases: Vec<_> = plan.phases.iter().map(|p| p.phase).collect();
    assert_eq!(phases.iter().filter(|p| **p == "references").count(), 1, "{phases:?}");
    limit_to_least(&mut engine, &request, 1 << 16);
    let plan = engine.plan(&request).unwrap();
    let is_small = plan.phases.iter().any(|p| p.streamed_bytes_per_run > 0 || p.bands > 0);
    assert!(is_small, "{plan}");
    assert!(engine.generate(&request).unwrap().latents == want);
}

/// Nothing but the name or the pipeline of a folder tells: another name gives another image, and
/// the conversion of a folder keeps its pipeline under any name.
#[test]
fn a_model_keeps_references_by_its_name_or_pipeline_only() {
    let [golden, _] = goldens();
    let want = golden.f32("reference.1.latents");
    let request = request(&golden).reference(picture(&golden, 1));
    let draw = |mut engine: Engine, request: &Request| engine.generate(request).unwrap().latents;
    let other = draw(plain(&golden).engine(&f32_options()), &request);
    assert!(relative_error(&other, &want) > 1e-3);

    let dialect = Dialect::Diffusers { shard_bytes: None };
    let folder = Written::new(&golden, dialect, Storage::F32, Grid::F32);
    let index = folder.path.join("model_index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    assert!(text.contains("Flux2KleinPipeline"), "{text}");
    std::fs::write(&index, text.replace("Flux2KleinPipeline", "Flux2KleinKVPipeline")).unwrap();
    close("folder", &golden, &draw(folder.engine(&f32_options()), &request), &want);

    let dir = temp_dir();
    let file = dir.path().join("m.safetensors");
    let on = &mut |_, _| ControlFlow::Continue(());
    convert(&open_only(&folder.path).unwrap(), Target::Fp8, &file, on).unwrap();
    let open = |path: &Path| {
        let mut parts = files(path);
        for (option, place) in [
            ("qwen3", "text_encoder/model.safetensors"),
            ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ] {
            parts.components.insert(option.into(), folder.path.join(place));
        }
        Engine::open(f32_options().files(parts)).unwrap()
    };
    let converted = draw(open(&file), &request);
    let renamed = dir.path().join("flux-2-klein-9b-kv.safetensors");
    std::fs::rename(&file, &renamed).unwrap();
    assert!(converted == draw(open(&renamed), &request));
}
