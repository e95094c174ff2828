//! One synthetic model in every dialect and storage type has the same values.

use std::sync::Arc;

use flux_fast::error::Kind;
use flux_fast::library::{Checkpoint, Files, inspect, open, open_source};
use flux_fast::spec::flux1::{T5, TRANSFORMER};
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec, to_bytes, write};
use serde_json::json;

use super::support::*;

/// Checks that every tensor of the checkpoint has exactly the values of `spec`.
fn assert_exact(checkpoint: &Checkpoint, spec: &SynthSpec) {
    for (component, name, shape) in &spec.tensors {
        let weights = checkpoint.need(*component).unwrap();
        let (rows, cols) = weights.shape(name).unwrap();
        let stored = weights.get(name, 0, rows, cols).unwrap();
        let found = stored.to_f32();
        let expected = spec.values(*component, name, shape);
        assert_eq!(found.len(), expected.len());
        if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
            panic!(
                "{component}/{name}[{i}] is {}, not {}: {:?} {:?}",
                found[i], expected[i], spec.storage, spec.dialect
            );
        }
    }
    for component in required() {
        let expected: Vec<Named> = spec
            .tensors
            .iter()
            .filter(|t| t.0 == component)
            .map(|t| (t.1.clone(), t.2.clone()))
            .collect();
        assert_eq!(
            checkpoint.need(component).unwrap().check(&expected).unwrap(),
            Vec::<String>::new()
        );
    }
}

const DIALECTS: [Dialect; 4] = [
    Dialect::Bfl,
    Dialect::Comfy,
    Dialect::Diffusers { shard_bytes: None },
    Dialect::Diffusers { shard_bytes: Some(100_000) },
];

#[test]
fn every_dialect_and_storage_type_has_the_exact_values() {
    for (grid, storages) in [
        (Grid::F32, &[Storage::F32][..]),
        (
            Grid::F8,
            &[
                Storage::F32,
                Storage::BF16,
                Storage::F16,
                Storage::F8ScaledOld,
                Storage::F8ScaledNew,
            ],
        ),
        (Grid::F8Plain, &[Storage::F8, Storage::BF16, Storage::F8ScaledOld, Storage::F8ScaledNew]),
    ] {
        for &storage in storages {
            for dialect in DIALECTS {
                let spec = spec(grid, storage, dialect);
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join(if dialect == Dialect::Comfy {
                    "tiny.safetensors"
                } else {
                    "tiny"
                });
                let written = write(&spec, &path).unwrap();
                assert!(written.iter().all(|p| p.is_file()));
                let checkpoint = open(&Files::model(&path)).unwrap();
                assert_exact(&checkpoint, &spec);
                assert_eq!(checkpoint.name, "tiny");
                assert_eq!(checkpoint.max_length(T5), Some(128));
                assert_eq!(checkpoint.generation.as_ref().unwrap()["steps"], 4);
                assert_eq!(checkpoint.scheduler.as_ref().unwrap()["shift"], 3.0);
                for component in required() {
                    let config = checkpoint.get(component).unwrap().config().unwrap();
                    let wanted = &spec.configs[component.diffusers.folder];
                    assert!(
                        wanted.as_object().unwrap().iter().all(|(k, v)| &config[k] == v),
                        "{config}"
                    );
                }
                let word = match storage {
                    Storage::F8ScaledOld => "scaled fp8 (old)",
                    Storage::F8ScaledNew => "scaled fp8 (new)",
                    Storage::F8 => "plain fp8",
                    Storage::F8E5M2 => "plain fp8 (e5m2)",
                    Storage::F32 => "f32",
                    Storage::BF16 => "bf16",
                    Storage::F16 => "f16",
                };
                let dialect = checkpoint.need(TRANSFORMER).unwrap().dialect();
                assert!(dialect.contains(word), "{dialect}");
            }
        }
    }
}

#[test]
fn weights_point_into_the_mapped_file() {
    let spec = spec(Grid::F8, Storage::F8ScaledNew, Dialect::Comfy);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    write(&spec, &path).unwrap();
    let bytes = to_bytes(&spec).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    let from_file = open(&Files::model(&path)).unwrap();
    // Data at an odd address are read correctly.
    let shifted: Vec<u8> = [&[0u8], bytes.as_slice()].concat();
    let shifted: &'static [u8] = &Box::leak(shifted.into_boxed_slice())[1..];
    for source in [Arc::new(bytes) as Arc<dyn flux_fast::tensor::ByteSource>, Arc::new(shifted)] {
        let checkpoint = open_source(source, "m").unwrap();
        assert_exact(&checkpoint, &spec);
        assert_eq!(checkpoint.hash, from_file.hash);
        assert_eq!(checkpoint.hash.len(), 10);
    }
}

#[test]
fn e5m2_is_read_with_its_rounding() {
    let spec = spec(Grid::F8Plain, Storage::F8E5M2, Dialect::Comfy);
    let checkpoint = open_source(Arc::new(to_bytes(&spec).unwrap()), "m").unwrap();
    let (name, shape) = ("single_blocks.1.linear2.weight", [48, 240]);
    let stored = checkpoint.get(TRANSFORMER).unwrap().get(name, 0, 48, 240).unwrap();
    assert_eq!(stored.parts[0].dtype.name(), "F8_E5M2");
    for (i, v) in stored.to_f32().iter().enumerate() {
        let exact = spec.value(TRANSFORMER, name, &shape, i as u64);
        assert!((v - exact).abs() <= exact.abs() / 8.0 + 1e-6, "{v} {exact}");
    }
}

#[test]
fn a_fine_tune_has_another_hash_and_a_copy_has_the_same() {
    let hash = |seed| {
        let spec = SynthSpec { seed, ..spec(Grid::F32, Storage::BF16, Dialect::Comfy) };
        open_source(Arc::new(to_bytes(&spec).unwrap()), "m").unwrap().hash
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
}

#[test]
fn get_returns_rows_and_elements_and_refuses_ranges_out_of_bounds() {
    let spec = spec(Grid::F32, Storage::F32, Dialect::Diffusers { shard_bytes: None });
    let dir = tempfile::tempdir().unwrap();
    write(&spec, dir.path()).unwrap();
    let flux = open(&Files::model(dir.path())).unwrap().take(TRANSFORMER).unwrap();
    let element = |name: &str, shape: &[usize], i| spec.value(TRANSFORMER, name, shape, i);

    // A bias that is stored in three parts is one vector; any range of it can be read.
    let name = "double_blocks.1.img_attn.qkv.bias";
    let cut = flux.get(name, 40, 1, 70).unwrap();
    assert_eq!((cut.rows, cut.cols, cut.parts.len()), (1, 70, 1));
    let expected: Vec<f32> = (40..110).map(|i| element(name, &[144], i)).collect();
    assert_eq!(cut.to_f32(), expected);
    // The halves of the final modulation are swapped; the rows span their border.
    let name = "final_layer.adaLN_modulation.1.weight";
    let cut = flux.get(name, 47, 2, 48).unwrap();
    let expected: Vec<f32> = (47 * 48..49 * 48).map(|i| element(name, &[96, 48], i)).collect();
    assert_eq!(cut.to_f32(), expected);
    let name = "final_layer.adaLN_modulation.1.bias";
    let expected: Vec<f32> = (0..96).map(|i| element(name, &[96], i)).collect();
    assert_eq!(flux.get(name, 0, 1, 96).unwrap().to_f32(), expected);

    for (name, first, rows, cols) in [
        ("img_in.weight", 0, 49, 64),
        ("img_in.weight", usize::MAX, 2, 64),
        ("img_in.weight", 0, 48, 63),
        ("img_in.bias", 1, 1, 48),
        ("img_in.bias", 0, 2, 24),
        ("no.such.weight", 0, 1, 1),
    ] {
        assert_eq!(flux.get(name, first, rows, cols).unwrap_err().kind(), Kind::Model, "{name}");
    }
}

/// Changes to a scaled tensor, with the error that each must give.
#[test]
fn bad_scales_and_unknown_formats_are_errors_that_name_the_tensor() {
    let plain = |extra: Vec<(&str, &'static str, Vec<usize>, Vec<u8>)>,
                 metadata: serde_json::Value| {
        let mut tensors: Vec<(String, &str, Vec<usize>)> =
            spec(Grid::F32, Storage::F32, Dialect::Bfl)
                .tensors
                .into_iter()
                .filter(|t| t.0 == TRANSFORMER)
                .map(|(_, n, s)| {
                    let dtype = if n == "img_in.weight" { "F8_E4M3" } else { "F32" };
                    (n, dtype, s)
                })
                .collect();
        let before: u64 = header(&tensors, json!({})).1;
        tensors.extend(extra.iter().map(|(n, d, s, _)| (n.to_string(), *d, s.clone())));
        let (mut bytes, _) = header(&tensors, metadata);
        bytes.resize(bytes.len() + before as usize, 0);
        extra.iter().for_each(|e| bytes.extend(&e.3));
        open_source(Arc::new(bytes), "model").and_then(|mut c| c.take(TRANSFORMER))
    };
    let f = |v: f32| v.to_le_bytes().to_vec();
    let json_bytes = |s: &str| s.as_bytes().to_vec();
    let quant = |s: &'static str| ("img_in.comfy_quant", "U8", vec![s.len()], json_bytes(s));
    let record = |format: &str| {
        json!({ "_quantization_metadata":
            json!({ "format_version": "1.0", "layers": { "img_in": { "format": format } } }).to_string() })
    };

    let rows: Vec<u8> = (0..48).flat_map(|i| f(i as f32 + 0.5)).collect();
    let ok = plain(vec![("img_in.weight_scale", "F32", vec![48, 1], rows)], json!({})).unwrap();
    let part = &ok.get("img_in.weight", 3, 2, 64).unwrap().parts[0];
    assert_eq!((part.scale.of(0), part.scale.of(1)), (3.5, 4.5));
    let ok = plain(
        vec![
            ("img_in.weight_scale", "F32", vec![1], f(0.25)),
            ("img_in.input_scale", "F32", vec![], f(9.0)),
        ],
        record("float8_e4m3fn"),
    );
    let ok = ok.unwrap();
    assert_eq!(ok.get("img_in.weight", 0, 48, 64).unwrap().parts[0].scale.of(7), 0.25);

    let one = |name: &'static str, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>| {
        plain(vec![(name, dtype, shape, bytes)], json!({}))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    for (message, words) in [
        (
            one("img_in.weight_scale", "F32", vec![47], vec![0; 188]),
            ["img_in.weight_scale", "positive"],
        ),
        (
            one("img_in.weight_scale", "F32", vec![2], [f(1.0), f(1.0)].concat()),
            ["img_in.weight_scale", "wrong shape"],
        ),
        (
            one("img_in.scale_weight", "F32", vec![], f(f32::NAN)),
            ["img_in.scale_weight", "positive"],
        ),
        (
            one("img_in.scale_weight", "F32", vec![], f(f32::INFINITY)),
            ["img_in.scale_weight", "positive"],
        ),
        (one("img_in.scale_weight", "F32", vec![], f(-1.0)), ["img_in.scale_weight", "positive"]),
        (
            one("img_in.weight_scale", "F8_E8M0", vec![48, 2], vec![1; 96]),
            ["img_in.weight_scale", "mxfp8"],
        ),
        (
            one("img_in.weight_scale", "F8_E4M3", vec![48, 4], vec![1; 192]),
            ["img_in.weight_scale", "nvfp4"],
        ),
        (one("img_in.weight_scale_2", "F32", vec![], f(1.0)), ["img_in.weight_scale_2", "nvfp4"]),
        (
            one("img_in.float8_data", "F8_E4M3", vec![1], vec![0]),
            ["img_in.float8_data", "scale_reciprocal"],
        ),
        (
            one("img_in.weight.absmax", "F32", vec![1], f(1.0)),
            ["img_in.weight.absmax", "bitsandbytes"],
        ),
        (one("img_in.qweight", "U8", vec![1], vec![0]), ["img_in.qweight", "SVDQuant"]),
    ] {
        assert!(words.iter().all(|w| message.contains(w)), "{message:?} lacks one of {words:?}");
    }
    for (format, words) in [
        ("mxfp8", "no weight_scale"),
        ("nvfp4", "type of nvfp4: found F8_E4M3, expected U8"),
        ("int8_tensorwise", "found F8_E4M3, expected I8"),
        ("convrot_w4a4", "convrot_w4a4, which is not supported"),
    ] {
        let e = plain(vec![], record(format)).err().unwrap();
        assert_eq!(e.kind(), Kind::Model);
        assert!(e.to_string().contains(words), "{format}: {e}");
    }
    for (extra, words) in [
        (vec![quant(r#"{"format":"float8_e5m2"}"#)], "not stored in the format"),
        (vec![quant(r#"{"format":"float8_e4m3fn"}"#)], "has no weight_scale"),
        (vec![quant("{")], "not JSON"),
        (vec![quant("{}")], "names no format"),
        (
            vec![
                ("img_in.weight_scale", "F32", vec![], f(1.0)),
                ("img_in.scale_weight", "F32", vec![], f(1.0)),
            ],
            "two scales",
        ),
    ] {
        let e = plain(extra, json!({})).err().unwrap().to_string();
        assert!(e.contains(words) && e.contains("img_in"), "{e}");
    }
    // A scale for a weight that is not an 8-bit matrix.
    let tensors = [
        ("double_blocks.0.img_attn.qkv.weight".to_string(), "F32", vec![3, 1]),
        ("double_blocks.0.img_attn.qkv.weight_scale".to_string(), "F32", vec![]),
    ];
    let mut bytes = header(&tensors, json!({})).0;
    bytes.extend([f(1.0), f(1.0), f(1.0), f(2.0)].concat());
    let e = open_source(Arc::new(bytes), "m").err().unwrap().to_string();
    assert!(e.contains("is not 8-bit"), "{e}");
}

#[test]
fn integer_and_packed_weights_are_named() {
    for (dtype, word) in [("I8", "int8"), ("U8", "packed"), ("I64", "I64")] {
        let tensors = [("double_blocks.0.img_attn.qkv.weight".to_string(), dtype, vec![3, 8])];
        let (mut bytes, data) = header(&tensors, json!({}));
        bytes.resize(bytes.len() + data as usize, 0);
        let e = open_source(Arc::new(bytes), "m").err().unwrap();
        assert!(e.to_string().contains(word), "{e}");
    }
}

#[test]
fn inspect_reports_dialects_types_and_geometry() {
    let spec = spec(Grid::F8, Storage::F8ScaledOld, Dialect::Comfy);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    write(&spec, &path).unwrap();
    let looked = inspect(&path).unwrap();
    let text = looked.to_string();
    for words in [
        "scaled fp8 (old)",
        "double blocks 2",
        "guidance yes",
        "latent channels 16",
        "F8_E4M3",
        "hidden width 48",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    let json = serde_json::to_value(&looked).unwrap();
    assert_eq!(json["components"][0]["component"], "flux");
    assert_eq!(json["files"][0]["bytes"], std::fs::metadata(&path).unwrap().len());
    let tensors = json["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(
        |t| t["name"] == "model.diffusion_model.img_in.weight" && t["shape"] == json!([48, 64])
    ));
}

#[test]
fn inspect_says_what_a_model_sees_besides_the_noise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    for (columns, kind) in
        [(384, Some("kind Fill")), (128, Some("kind Canny or Depth")), (64, None)]
    {
        let mut spec = spec(Grid::F8, Storage::BF16, Dialect::Comfy);
        for (_, name, shape) in &mut spec.tensors {
            if name == "img_in.weight" {
                shape[1] = columns;
            }
        }
        write(&spec, &path).unwrap();
        let text = inspect(&path).unwrap().to_string();
        assert!(text.contains(&format!("input channels {columns}")), "{text}");
        match kind {
            Some(kind) => assert!(text.contains(kind), "{text}"),
            None => assert!(!text.contains("kind "), "{text}"),
        }
    }
}
