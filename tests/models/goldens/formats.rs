//! One model in every format that `convert` writes: the loss is that of the format and no more.

use std::ops::ControlFlow;
use std::path::Path;

use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::library::ModelFiles;
use flux_fast::library::convert::{Report, Target, convert};
use flux_fast::library::{Files, open, open_only};
use flux_fast::pipeline::Engine;
use flux_fast::spec::flux1::{T5, TRANSFORMER};
use flux_fast::weights::synth::{Dialect, Grid, Storage};

use super::{Written, draw, f32_options, request};
use crate::common::{Golden, path, relative_error, temp_dir};

fn write(from: &Path, target: Target, to: &Path) -> Report {
    let mut told = (0, 0);
    let report = convert(&open_only(from).unwrap(), target, to, &mut |done, all| {
        assert!(done >= told.0 && done <= all, "{done} of {all} after {told:?}");
        told = (done, all);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told.0, told.1, "{target:?}: not told of all bytes");
    assert_eq!(report.bytes, to.metadata().unwrap().len());
    report
}

/// Upper bound of the relative error of the final latents after six steps against those of the f32
/// weights: 1.4 times the measured error. That is 0.5 to 1.1 times the error of the weights
/// (`Format::error`).
const LATENTS: [(Target, f64); 19] = [
    (Target::Fp8, 0.03),
    (Target::Fp8Rows, 0.03),
    (Target::Aredden, 0.03),
    (Target::Int8, 0.005),
    (Target::Int8ConvRot, 0.005),
    (Target::Blocks(DType::Nf4), 0.14),
    (Target::Blocks(DType::Fp4), 0.14),
    (Target::Blocks(DType::Mxfp8), 0.03),
    (Target::Blocks(DType::Nvfp4), 0.13),
    (Target::Gguf(DType::Q8_0), 0.0045),
    (Target::Gguf(DType::Q6K), 0.014),
    (Target::Gguf(DType::Q5K), 0.031),
    (Target::Gguf(DType::Q5_1), 0.033),
    (Target::Gguf(DType::Q5_0), 0.033),
    (Target::Gguf(DType::Q4K), 0.06),
    (Target::Gguf(DType::Q4_1), 0.063),
    (Target::Gguf(DType::Q4_0), 0.075),
    (Target::Gguf(DType::Q3K), 0.13),
    (Target::Gguf(DType::Q2K), 0.26),
];

#[test]
fn every_format_gives_the_image_within_its_own_error() {
    let golden = Golden::read("a_dev");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F32, Grid::F32);
    let base = request(&golden);
    let exact = draw(&mut written.pipeline(&f32_options()), &base).latents;
    let dir = temp_dir();
    let mut seen = vec![];
    for (target, bound) in LATENTS {
        let to = path(&dir, &format!("model.{}", target.extension()));
        let report = write(&written.path, target, &to);
        let mut files =
            ModelFiles { model: Some(to.to_string_lossy().into_owned()), ..ModelFiles::default() };
        if matches!(target, Target::Gguf(_)) {
            assert_eq!(
                (report.components, report.left_out.len()),
                (vec![TRANSFORMER], 3),
                "{target:?}"
            );
            for option in ["clip", "t5", "vae"] {
                files.components.insert(option.into(), written.path.clone());
            }
        } else {
            assert!(report.left_out.is_empty() && report.components.len() == 4, "{target:?}");
        }
        assert!(
            report.quantised >= 16 && report.bytes < report.from_bytes,
            "{target:?}: {}",
            report.quantised
        );
        let mut pipeline = Engine::open(f32_options().files(files)).unwrap();
        let error = relative_error(&draw(&mut pipeline, &base).latents, &exact);
        println!("{target:?}: {error:.4}");
        assert!(error <= bound, "{target:?}: {error:.4}");
        // An error of zero would mean that no weight was stored in the format.
        assert!(error > bound / 20.0, "{target:?}: {error:.4}");
        // The stored weight has the type of the format.
        let weights = open(&Files::model(&to)).unwrap().take(TRANSFORMER).unwrap();
        let matrix = weights.get("single_blocks.0.linear2.weight", 0, 256, 1280).unwrap();
        seen.push(matrix.parts[0].dtype);
        drop(pipeline);
        std::fs::remove_file(&to).unwrap();
    }
    // Nothing writes FP8 in blocks; `qwen3_formats` reads it.
    for format in FORMATS.iter().filter(|f| f.dtype != DType::F8Block) {
        assert!(seen.contains(&format.dtype), "{} was never drawn with", format.name);
    }
}

/// Converting a converted file gives the same codes.
#[test]
fn converting_a_converted_file_changes_nothing() {
    let golden = Golden::read("a_schnell");
    let written =
        Written::new(&golden, Dialect::Diffusers { shard_bytes: None }, Storage::BF16, Grid::F32);
    let dir = temp_dir();
    for target in [Target::Fp8, Target::Gguf(DType::Q8_0), Target::Blocks(DType::Mxfp8)] {
        let [once, twice] =
            ["once", "twice"].map(|n| path(&dir, &format!("{n}.{}", target.extension())));
        write(&written.path, target, &once);
        write(&once, target, &twice);
        let values = |path: &Path| {
            let weights = open_only(path).unwrap().take(TRANSFORMER).unwrap();
            weights.get("double_blocks.0.img_attn.qkv.weight", 0, 768, 256).unwrap().to_f32()
        };
        assert_eq!(values(&once), values(&twice), "{target:?}");
        std::fs::remove_file(&once).unwrap();
        std::fs::remove_file(&twice).unwrap();
    }
}

/// A T5 alone becomes a GGUF in llama.cpp's names.
#[test]
fn a_text_encoder_becomes_a_separate_gguf() {
    let golden = Golden::read("b_dev");
    let written = Written::new(&golden, Dialect::Bfl, Storage::BF16, Grid::F32);
    let dir = temp_dir();
    let to = path(&dir, "t5.gguf");
    let report = write(&written.path.join("t5xxl.safetensors"), Target::Gguf(DType::Q8_0), &to);
    assert_eq!(report.components, [T5]);
    let t5 = open_only(&to).unwrap().take(T5).unwrap();
    assert!(t5.dialect().starts_with("llama.cpp, "), "{}", t5.dialect());
    let original = open_only(&written.path.join("t5xxl.safetensors")).unwrap().take(T5).unwrap();
    assert!(t5.names().eq(original.names()));
    let name = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight";
    let (rows, cols) = t5.shape(name).unwrap();
    let [a, b] = [&t5, &original].map(|w| w.get(name, 0, rows, cols).unwrap().to_f32());
    let error = relative_error(&a, &b);
    assert!(error > 1e-4 && error < 0.006, "{error:.4}");
}
