//! Weight files as users have them: every way to name and divide them draws the same image.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::tensor::Dtype;
use serde_json::json;

use crate::common::psnr;
use crate::common::tensors::{CLIP, FLUX, T5, Tensors, VAE};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .current_dir(folder)
        .env("FLUX_FAST_CONFIG", "")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Draws with `model`, and returns the image and what was said.
fn draw(folder: &Path, model: &str, more: &[&str]) -> (image::RgbImage, String) {
    let arguments = [
        &["a fox on a red background", "--seed", "7", "--steps", "2", "--no-cache"],
        &["--device", "cpu", "--model", model, "-o", "out.png"][..],
        more,
    ]
    .concat();
    let output = run(folder, &arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{model}: {said}");
    let image = image::open(folder.join("out.png")).unwrap().to_rgb8();
    std::fs::remove_file(folder.join("out.png")).unwrap();
    (image, said)
}

/// The exit code and the message of a run that is refused.
fn refused(folder: &Path, model: &str) -> (Option<i32>, String) {
    let output = run(folder, &["a fox", "--no-cache", "--model", model]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn files_of_every_name_draw_what_the_embedded_model_draws() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let tiny = Tensors::tiny();
    let (reference, _) = draw(dir.path(), "embedded", &[]);

    // The short ending, and endings in upper case.
    for (folder, sft) in [("short", "sft"), ("upper", "SFT")] {
        tiny.of(FLUX).write(at(&format!("{folder}/flux1-tiny.{sft}")));
        tiny.of(VAE).write(at(&format!("{folder}/ae.{sft}")));
        tiny.of(CLIP).write(at(&format!("{folder}/clip_l.SAFETENSORS")));
        tiny.of(T5).write(at(&format!("{folder}/t5xxl.Safetensors")));
        for model in [folder.to_string(), format!("{folder}/flux1-tiny.{sft}")] {
            assert!(draw(dir.path(), &model, &[]).0 == reference, "{model}");
        }
    }

    // Shards of a variant with their index, as transformers writes them; without it, as diffusers
    // writes their names.
    for (folder, names, index) in [
        (
            "variant",
            ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
            Some("model.safetensors.index.fp16.json"),
        ),
        (
            "no-index",
            ["model-00001-of-00002.bf16.safetensors", "model-00002-of-00002.bf16.safetensors"],
            None,
        ),
    ] {
        tiny.without(T5).write(at(&format!("{folder}/flux.safetensors")));
        let mut map = serde_json::Map::new();
        for (name, part) in names.iter().zip(tiny.below(T5).parts(2)) {
            part.write(at(&format!("{folder}/text_encoder_2/{name}")));
            map.extend(part.tensors.into_keys().map(|tensor| (tensor, json!(name))));
        }
        if let Some(index) = index {
            let json = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
            std::fs::write(at(folder).join("text_encoder_2").join(index), json.to_string())
                .unwrap();
        }
        let (image, said) = draw(dir.path(), &format!("{folder}/flux.safetensors"), &[]);
        assert!(image == reference && said.contains("text_encoder_2"), "{folder}: {said}");
    }
}

#[test]
fn shards_are_found_by_their_names_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let tiny = Tensors::tiny();
    let (reference, _) = draw(dir.path(), "embedded", &[]);
    tiny.without(FLUX).write(at("m/rest.safetensors"));
    for (i, part) in tiny.of(FLUX).parts(3).into_iter().enumerate() {
        part.write(at(&format!("m/flux-0000{}-of-00003.safetensors", i + 1)));
    }
    for model in ["m", "m/flux-00001-of-00003.safetensors", "m/flux-00003-of-00003.safetensors"] {
        assert!(draw(dir.path(), model, &[]).0 == reference, "{model}");
    }
    // A download that is not finished is mentioned.
    let second = "m/flux-00002-of-00003.safetensors";
    std::fs::rename(at(second), at(&format!("{second}.part"))).unwrap();
    for model in ["m", "m/flux-00001-of-00003.safetensors"] {
        let (code, said) = refused(dir.path(), model);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains(&format!("{second}: a shard is missing")), "{said}");
        assert!(said.contains("flux-00002-of-00003.safetensors.part, an unfinished"), "{said}");
    }
    // Numbers as people write them by hand.
    tiny.without(FLUX).write(at("h/rest.safetensors"));
    for (i, part) in tiny.of(FLUX).parts(3).into_iter().enumerate() {
        part.write(at(&format!("h/flux-{}_of_3.safetensors", i + 1)));
    }
    assert!(draw(dir.path(), "h", &[]).0 == reference);
    std::fs::remove_file(at("h/flux-3_of_3.safetensors")).unwrap();
    let (code, said) = refused(dir.path(), "h");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("h/flux-3_of_3.safetensors: a shard is missing"), "{said}");
    // A download of a whole file that is not finished.
    std::fs::create_dir(at("n")).unwrap();
    std::fs::write(at("n/flux1-dev.safetensors.incomplete"), "x").unwrap();
    let (code, said) = refused(dir.path(), "n");
    assert!(code == Some(4) && said.contains("not finished"), "{said}");
    // Numbers that are not possible.
    std::fs::create_dir(at("o")).unwrap();
    tiny.write(at("o/flux-00004-of-00003.safetensors"));
    let (code, said) = refused(dir.path(), "o");
    assert!(code == Some(3) && said.contains("found 4 of 3"), "{said}");
}

/// The values of bitsandbytes' NF4.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Names below a weight, types, shapes and bytes.
type Stored = Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>;

/// A matrix in bitsandbytes' NF4 with blocks of `size` elements, and what its numbers are.
fn nf4(values: &[f32], shape: &[usize], size: usize) -> (Stored, Vec<f32>) {
    let (mut codes, mut absmax, mut back) = (vec![], vec![], vec![]);
    for block in values.chunks(size) {
        let most = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        let most = if most == 0.0 { 1.0 } else { most };
        absmax.push(most);
        for value in block {
            let off = |code: &usize| (NF4[*code] * most - value).abs();
            let code = (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap();
            codes.push(code as u8);
            back.push(NF4[code] * most);
        }
    }
    let pairs: Vec<u8> = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let state = json!({
        "quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": shape,
    });
    let state = state.to_string().into_bytes();
    let stored = vec![
        ("", Dtype::U8, vec![pairs.len(), 1], pairs),
        (".absmax", Dtype::F32, vec![absmax.len()], floats(&absmax)),
        (".quant_map", Dtype::F32, vec![16], floats(&NF4)),
        (".quant_state.bitsandbytes__nf4", Dtype::U8, vec![state.len()], state),
    ];
    (stored, back)
}

/// A matrix in bitsandbytes' int8, and what its numbers are.
fn int8(values: &[f32], shape: &[usize]) -> (Stored, Vec<f32>) {
    let (mut codes, mut scb, mut back) = (vec![], vec![], vec![]);
    for row in values.chunks(shape[1]) {
        let most = row.iter().fold(0f32, |m, v| m.max(v.abs()));
        scb.push(most);
        for value in row {
            let code = (value * 127.0 / most).round() as i8;
            codes.push(code as u8);
            back.push(f32::from(code) * most / 127.0);
        }
    }
    let stored = vec![
        ("", Dtype::I8, shape.to_vec(), codes),
        ("/SCB", Dtype::F32, vec![scb.len()], floats(&scb)),
        ("/weight_format", Dtype::U8, vec![], vec![0]),
    ];
    (stored, back)
}

/// A T5 with one scale a row as `make` stores it, and the same numbers as F32.
fn quantise(
    t5: &Tensors,
    make: impl Fn(&[f32], &[usize]) -> (Stored, Vec<f32>),
) -> (Tensors, Tensors) {
    let (mut packed, mut plain) = (Tensors::default(), Tensors::default());
    for (name, (dtype, shape, bytes)) in &t5.tensors {
        if name.ends_with(".weight_scale") || name.ends_with(".comfy_quant") {
            continue;
        }
        if *dtype != Dtype::F8_E4M3 {
            for out in [&mut packed, &mut plain] {
                out.tensors.insert(name.clone(), (*dtype, shape.clone(), bytes.clone()));
            }
            continue;
        }
        let scale = &t5.tensors[&format!("{name}_scale")].2;
        let scales: Vec<f32> =
            scale.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let e4m3 = flux_fast::dtype::DType::F8E4M3;
        let values: Vec<f32> = bytes
            .iter()
            .enumerate()
            .map(|(i, byte)| e4m3.decode(&[*byte]) * scales[i / shape[1] % scales.len()])
            .collect();
        let (stored, back) = make(&values, shape);
        for (ending, dtype, shape, bytes) in stored {
            // A name next to the weight's, or below it.
            let name = match ending.strip_prefix('/') {
                Some(ending) => format!("{}{ending}", name.strip_suffix("weight").unwrap()),
                None => format!("{name}{ending}"),
            };
            packed.tensors.insert(name, (dtype, shape, bytes));
        }
        plain.tensors.insert(name.clone(), (Dtype::F32, shape.clone(), floats(&back)));
    }
    (packed, plain)
}

#[test]
fn a_t5_of_bitsandbytes_next_to_the_model_draws_what_its_numbers_in_f32_draw() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = Tensors::tiny();
    let t5 = tiny.below(T5);
    let (four, larger, eight) = (
        quantise(&t5, |values, shape| nf4(values, shape, 64)),
        quantise(&t5, |values, shape| nf4(values, shape, 256)),
        quantise(&t5, int8),
    );
    for (folder, t5) in [
        ("nf4", four.0),
        ("nf4-plain", four.1),
        ("nf4-256", larger.0),
        ("nf4-256-plain", larger.1),
        ("int8", eight.0),
        ("int8-plain", eight.1),
    ] {
        tiny.without(T5).write(dir.path().join(folder).join("flux.safetensors"));
        t5.write(dir.path().join(folder).join("text_encoder_2/model.safetensors"));
    }
    let of = |folder: &str| {
        let (image, said) =
            draw(dir.path(), &format!("{folder}/flux.safetensors"), &["--compute", "f32"]);
        assert!(said.contains("text_encoder_2/model.safetensors"), "{said}");
        image.into_raw().into_iter().map(f32::from).collect::<Vec<f32>>()
    };
    for kind in ["nf4", "nf4-256", "int8"] {
        let off = psnr(&of(kind), &of(&format!("{kind}-plain")), 255.0);
        assert!(off >= 60.0, "{kind}: {off} dB");
    }
}
