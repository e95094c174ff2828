//! Qwen3 in the stored types that people have: the hidden states are those of the stored values.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::open_only;
use flux_fast::model::{Qwen3Config, qwen3};
use flux_fast::spec::flux2::QWEN3;
use flux_fast::tensor::{HostWeight, Scale};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

use super::devices;
use crate::common::{Input, path, relative_error, run, temp_dir};

/// Products of the same values in f32, in another order of summation.
const TOLERANCE: f64 = 1e-5;

/// Widths that are multiples of the largest block, with two query heads for one key head.
fn config() -> Qwen3Config {
    Qwen3Config {
        vocab: 151_936,
        width: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 128,
        ff: 512,
        layers: 27,
        ..Qwen3Config::qwen3_4b()
    }
}

fn spec(storage: Storage) -> SynthSpec {
    let config = Qwen3Config { vocab: 300, ..config() };
    SynthSpec {
        seed: 11,
        tensors: qwen3::tensors(&config).into_iter().map(|(n, s)| (QWEN3, n, s)).collect(),
        grid: Grid::F32,
        storage,
        dialect: Dialect::Bfl,
        configs: json!({ "text_encoder": config.to_json() }),
    }
}

/// The weights as f32, for comparison.
fn values(weight: &HostWeight) -> HostWeight {
    let bytes: Vec<u8> = weight.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect();
    let (rows, cols) = (weight.rows, weight.cols);
    let (source, dtype, scale) = (Arc::new(bytes), DType::F32, Scale::One);
    HostWeight::whole(source, (rows, cols), dtype, scale)
}

/// Opens the file, checks the type of a matrix, and compares the hidden states on every device with
/// those of the values as f32.
fn assert_reads(what: &str, path: &Path, dtype: DType) {
    let weights = open_only(path).unwrap_or_else(|e| panic!("{what}: {e}")).take(QWEN3).unwrap();
    let c = Qwen3Config::read(&weights, weights.config()).unwrap();
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.width), (4, 2, 128, 256), "{what}");
    let missing = weights.check(&qwen3::tensors(&c)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(missing.is_empty(), "{what}: {missing:?}");
    let (real, length) = (11, 19);
    let ids: Vec<usize> = (0..length).map(|i| (i * 37 + 5) % 300).collect();
    let table = weights.get(qwen3::EMBEDDING, 0, c.vocab, c.width).unwrap();
    let tokens = table.rows_to_f32(&ids).unwrap();
    let rope = qwen3::rope(&c, length);
    let program = qwen3::encode(&c, &[real], length, DType::F32);
    let stored: Vec<HostWeight> =
        program.weights.iter().map(|w| weights.get(&w.name, 0, w.rows, w.cols).unwrap()).collect();
    let name = "model.layers.3.mlp.gate_proj.weight";
    let matrix = weights.get(name, 0, c.ff, c.width).unwrap();
    assert_eq!(matrix.parts[0].dtype, dtype, "{what}");
    let plain: Vec<HostWeight> = stored.iter().map(values).collect();
    let inputs = [("tokens", Input::F32(&tokens)), ("rope", Input::F32(&rope))];
    for backend in devices().iter_mut().map(Box::as_mut) {
        let device = backend.caps().name.clone();
        let [got, want] = [&stored, &plain].map(|weights| {
            run(backend, &program, weights, &inputs, u64::MAX, 1).remove("text").unwrap()
        });
        let error = relative_error(&got, &want);
        println!("{device} {what}: {error:.2e}");
        assert!(error <= TOLERANCE, "{device} {what}: {error:.2e}");
        assert!(want.iter().any(|v| v.abs() > 1e-3), "{device} {what}");
    }
}

/// A safetensors file: names with their types, shapes and bytes.
fn safetensors(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        let start = end;
        end += bytes.len();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut head = Value::Object(header).to_string();
    head.extend(std::iter::repeat_n(' ', head.len().next_multiple_of(8) - head.len()));
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head.as_bytes());
    tensors.iter().for_each(|t| file.extend(&t.3));
    std::fs::write(path, file).unwrap();
}

/// The tensors of the official FP8 files: codes of matrices with a BF16 scale for each tile of 128
/// rows and columns, and the values that they mean.
#[allow(clippy::type_complexity)]
fn in_tiles(scale: &str) -> (Vec<(String, &'static str, Vec<usize>, Vec<u8>)>, Vec<f32>) {
    let c = Qwen3Config { vocab: 300, ..config() };
    let spec = spec(Storage::BF16);
    let (mut tensors, mut matrix) = (vec![], vec![]);
    for (name, shape) in qwen3::tensors(&c) {
        let values = spec.values(QWEN3, &name, &shape);
        let bf16 = |values: &[f32]| {
            values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>()
        };
        if !name.contains("_proj.") {
            tensors.push((name, "BF16", shape, bf16(&values)));
            continue;
        }
        let (rows, cols) = (shape[0], shape[1]);
        let tiles = (rows.div_ceil(128), cols / 128);
        let scales: Vec<f32> = (0..tiles.0 * tiles.1)
            .map(|i| half::bf16::from_f32(0.0007 * (1 + i % 5) as f32).to_f32())
            .collect();
        let of = |i: usize| scales[i / cols / 128 * tiles.1 + i % cols / 128];
        let codes: Vec<u8> = values
            .iter()
            .enumerate()
            .map(|(i, v)| flux_fast::dtype::f32_to_f8e4m3(v / of(i)))
            .collect();
        if name == "model.layers.0.mlp.down_proj.weight" {
            let value = |(i, code): (usize, &u8)| DType::F8E4M3.decode(&[*code]) * of(i);
            matrix = codes.iter().enumerate().map(value).collect();
        }
        let layer = name.strip_suffix("weight").unwrap().to_string();
        tensors.push((format!("{layer}{scale}"), "BF16", vec![tiles.0, tiles.1], bf16(&scales)));
        tensors.push((name, "F8_E4M3", shape, codes));
    }
    (tensors, matrix)
}

#[test]
fn qwen3_in_fp8_with_a_scale_for_each_tile() {
    let dir = temp_dir();
    let folder = dir.path().join("text_encoder");
    std::fs::create_dir(&folder).unwrap();
    for scale in ["weight_scale_inv", "weight_scale"] {
        let (tensors, matrix) = in_tiles(scale);
        let path = folder.join("model.safetensors");
        safetensors(&path, &tensors);
        let mut config = Qwen3Config { vocab: 300, ..config() }.to_json();
        // As in Qwen/Qwen3-4B-FP8.
        config["quantization_config"] = json!({
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        assert_reads(scale, &path, DType::F8Block);
        let weights = open_only(&path).unwrap().take(QWEN3).unwrap();
        let name = "model.layers.0.mlp.down_proj.weight";
        assert_eq!(weights.get(name, 0, 256, 512).unwrap().to_f32(), matrix);
        // A part of the rows has the scales of its tiles.
        assert_eq!(weights.get(name, 100, 100, 512).unwrap().to_f32(), matrix[51_200..102_400]);
    }
    // A matrix that lost its scale.
    let (mut tensors, _) = in_tiles("weight_scale_inv");
    tensors.retain(|t| t.0 != "model.layers.5.mlp.up_proj.weight_scale_inv");
    safetensors(&folder.join("model.safetensors"), &tensors);
    let e = open_only(&folder.join("model.safetensors")).err().unwrap();
    let text = e.to_string();
    assert!(text.contains("layers.5.mlp.up_proj.weight_scale_inv"), "{text}");
    // Scales of other tiles, or fewer of them.
    let (mut tensors, _) = in_tiles("weight_scale_inv");
    let at = tensors.iter().position(|t| t.0.ends_with("k_proj.weight_scale_inv")).unwrap();
    tensors[at].2 = vec![1, 4];
    safetensors(&folder.join("model.safetensors"), &tensors);
    let e = open_only(&folder.join("model.safetensors")).err().unwrap();
    assert_eq!(e.kind(), Kind::Model);
    assert!(e.to_string().contains("scale has the wrong shape"), "{e}");
}

#[test]
fn qwen3_in_every_stored_type() {
    let dir = temp_dir();
    for (what, storage, dtype) in [
        ("bf16", Storage::BF16, DType::BF16),
        ("f16", Storage::F16, DType::F16),
        ("plain fp8", Storage::F8, DType::F8E4M3),
        ("fp8_scaled of ComfyUI", Storage::F8ScaledNew, DType::F8E4M3),
        ("fp8_scaled, older", Storage::F8ScaledOld, DType::F8E4M3),
    ] {
        let to = path(&dir, &format!("{}.safetensors", what.replace(' ', "_")));
        synth::write(&spec(storage), &to).unwrap();
        assert_reads(what, &to, dtype);
    }
    let from = path(&dir, "bf16.safetensors");
    for (target, dtype) in [
        (Target::Gguf(DType::Q8_0), DType::Q8_0),
        (Target::Gguf(DType::Q6K), DType::Q6K),
        (Target::Gguf(DType::Q5K), DType::Q5K),
        (Target::Gguf(DType::Q4K), DType::Q4K),
        (Target::Gguf(DType::Q3K), DType::Q3K),
        (Target::Gguf(DType::Q4_0), DType::Q4_0),
        (Target::Int8, DType::I8),
        (Target::Blocks(DType::Nf4), DType::Nf4),
        (Target::Blocks(DType::Fp4), DType::Fp4),
        (Target::Blocks(DType::Nvfp4), DType::Nvfp4),
        (Target::Blocks(DType::Mxfp8), DType::Mxfp8),
    ] {
        let to = path(&dir, &format!("{}.{}", dtype.name(), target.extension()));
        let continue_ = &mut |_, _| ControlFlow::Continue(());
        convert(&open_only(&from).unwrap(), target, &to, continue_).unwrap();
        assert_reads(dtype.name(), &to, dtype);
        if matches!(target, Target::Gguf(_)) {
            let found = open_only(&to).unwrap().take(QWEN3).unwrap();
            assert!(found.dialect().starts_with("llama.cpp"), "{}", found.dialect());
        }
        std::fs::remove_file(&to).unwrap();
    }
}

/// Packed weights of other programs are refused by name, with what to do.
#[test]
fn qwen3_packed_by_other_programs_is_refused_by_name() {
    let dir = temp_dir();
    let (tensors, _) = in_tiles("weight_scale_inv");
    let kept = tensors.iter().filter(|t| t.1 == "BF16" && !t.0.ends_with("scale_inv"));
    let kept: Vec<_> = kept.cloned().collect();
    for (name, endings) in [
        ("nunchaku", &["qweight", "wscales", "smooth_factor"][..]),
        ("GPTQ or AWQ", &["qweight", "qzeros", "scales"]),
        ("MLX", &["weight", "scales", "biases"]),
        ("compressed-tensors", &["weight_packed", "weight_scale"]),
    ] {
        let mut all = kept.clone();
        for layer in 0..27 {
            for ending in endings {
                let name = format!("model.layers.{layer}.self_attn.q_proj.{ending}");
                all.push((name, "F16", vec![2, 2], vec![0; 8]));
            }
        }
        let to = path(&dir, "qwen_3_4b.safetensors");
        safetensors(&to, &all);
        let e = open_only(&to).err().unwrap_or_else(|| panic!("{name} was opened"));
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().contains(name) && e.hint().is_some(), "{name}: {e}");
    }
}
