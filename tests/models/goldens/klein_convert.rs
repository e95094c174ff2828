//! Converted models of FLUX.2 [klein]: what a base model is does not get lost, whatever the file is
//! called, and the loss is that of the format.

use std::ops::ControlFlow;
use std::path::Path;

use flux_fast::dtype::DType;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::{ModelFiles, open_only};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::Request;
use flux_fast::weights::synth::{Dialect, Grid, Storage};

use super::klein::{Written, request};
use super::{f32_options, files};
use crate::common::{Golden, relative_error, temp_dir};

fn write(from: &Path, target: Target, to: &Path) {
    let on = &mut |_, _| ControlFlow::Continue(());
    convert(&open_only(from).unwrap(), target, to, on).unwrap();
}

fn steps_and_cfg(engine: &Engine) -> (usize, f32) {
    let settings = engine.settings(&Request::new("x").size(64, 64)).unwrap();
    (settings.steps, settings.cfg_scale)
}

const BASE: (usize, f32) = (50, 4.0);
const DISTILLED: (usize, f32) = (4, 1.0);

#[test]
fn a_converted_base_model_draws_with_cfg_and_fifty_steps() {
    let golden = Golden::read("klein_base");
    let dir = temp_dir();
    // A folder of diffusers, whose pipeline was not distilled unless its index says so.
    let folder =
        Written::new(&golden, Dialect::Diffusers { shard_bytes: None }, Storage::BF16, Grid::F32);
    let index = folder.path.join("model_index.json");
    let undistilled = std::fs::read_to_string(&index).unwrap();
    let distilled = undistilled.replacen('{', r#"{"is_distilled": true,"#, 1);
    for (text, want) in [(&undistilled, BASE), (&distilled, DISTILLED)] {
        std::fs::write(&index, text).unwrap();
        let open = |files: ModelFiles| Engine::open(f32_options().files(files)).unwrap();
        // If the path is a folder, its transformer is converted.
        let with_parts = |path: &Path| {
            let mut parts = files(path);
            for (option, place) in [
                ("qwen3", "text_encoder/model.safetensors"),
                ("vae", "vae/diffusion_pytorch_model.safetensors"),
            ] {
                parts.components.insert(option.into(), folder.path.join(place));
            }
            parts
        };
        assert_eq!(steps_and_cfg(&open(files(&folder.path))), want);
        let fp8 = dir.path().join("m.safetensors");
        write(&folder.path, Target::Fp8, &fp8);
        assert_eq!(steps_and_cfg(&open(with_parts(&fp8))), want);
        // Once more, from the converted file.
        let again = dir.path().join("again.safetensors");
        write(&fp8, Target::Int8, &again);
        assert_eq!(steps_and_cfg(&open(with_parts(&again))), want);
        let gguf = dir.path().join("m.gguf");
        write(&folder.path, Target::Gguf(DType::Q8_0), &gguf);
        assert_eq!(steps_and_cfg(&open(with_parts(&gguf))), want);
        for path in [fp8, again, gguf] {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_base_model_that_only_its_name_tells_stays_one() {
    let golden = Golden::read("klein_base");
    let written = Written::new(&golden, Dialect::Comfy, Storage::BF16, Grid::F32);
    let dir = temp_dir();
    for (name, want) in [
        ("flux-2-klein-base-4b", BASE),
        ("klein4b_base", BASE),
        ("flux-2-klein-4b", DISTILLED),
        ("klein-baseball", DISTILLED),
    ] {
        let path = dir.path().join(format!("{name}.safetensors"));
        std::fs::rename(&written.path, &path).unwrap();
        let open = |path: &Path| Engine::open(f32_options().files(files(path))).unwrap();
        assert_eq!(steps_and_cfg(&open(&path)), want, "{name}");
        // The new name says the contrary.
        let to = dir.path().join(match want == BASE {
            true => "flux-2-klein-4b.fp8.safetensors",
            false => "klein-base.fp8.safetensors",
        });
        write(&path, Target::Fp8, &to);
        assert_eq!(steps_and_cfg(&open(&to)), want, "{name}");
        std::fs::remove_file(&to).unwrap();
        std::fs::rename(&path, &written.path).unwrap();
    }
}

#[test]
fn formats_change_the_image_of_flux2_by_their_own_error() {
    let golden = Golden::read("klein_distilled");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F32, Grid::F32);
    let exact = written.engine(&f32_options()).generate(&request(&golden)).unwrap().latents;
    let dir = temp_dir();
    for (target, bound) in
        [(Target::Fp8, 0.06), (Target::Int8, 0.02), (Target::Blocks(DType::Mxfp8), 0.06)]
    {
        let to = dir.path().join("m.safetensors");
        write(&written.path, target, &to);
        let mut engine = Engine::open(f32_options().files(files(&to))).unwrap();
        let error = relative_error(&engine.generate(&request(&golden)).unwrap().latents, &exact);
        println!("{target:?}: {error:.4}");
        assert!(error <= bound && error > bound / 100.0, "{target:?}: {error:.4}");
        std::fs::remove_file(&to).unwrap();
    }
}
