//! Damaged and unexpected files: each is refused with what is wrong and what to do.

use std::path::Path;
use std::sync::Arc;

use flux_fast::error::{Error, Kind};
use flux_fast::library::{Files, inspect, open, open_source};
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec, to_bytes, write};
use serde_json::json;

use super::support::*;

fn refused(path: &Path) -> Error {
    open(&Files::model(path)).err().unwrap_or_else(|| panic!("{} was accepted", path.display()))
}

fn all_in_one() -> SynthSpec {
    spec(Grid::F32, Storage::BF16, Dialect::Comfy)
}

#[test]
fn a_file_truncated_anywhere_is_refused_with_both_sizes() {
    let whole = to_bytes(&all_in_one()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    let cuts = (0..20).chain((20..whole.len()).step_by(9973)).chain([whole.len() - 1]);
    for cut in cuts {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let e = refused(&path);
        assert_eq!(e.kind(), Kind::Model, "cut at {cut}: {e}");
        let text = e.to_string();
        assert!(
            text.contains(&format!("found {cut} bytes")) && text.contains("expected"),
            "cut at {cut}: {text}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    open(&Files::model(&path)).unwrap();
}

#[test]
fn missing_and_misshapen_tensors_are_listed_up_to_ten_and_extras_are_noted() {
    let mut spec = all_in_one();
    let expected: Vec<Named> = spec
        .tensors
        .iter()
        .filter(|t| t.0 == TRANSFORMER)
        .map(|t| (t.1.clone(), t.2.clone()))
        .collect();
    spec.tensors.retain(|(_, n, _)| !n.starts_with("single_blocks.1."));
    spec.tensors.iter_mut().find(|t| t.1 == "img_in.weight").unwrap().2 = vec![48, 60];
    spec.tensors.push((TRANSFORMER, "pulid.0.weight".into(), vec![2, 2]));
    let flux =
        open_source(Arc::new(to_bytes(&spec).unwrap()), "m").unwrap().take(TRANSFORMER).unwrap();
    let e = flux.check(&expected).unwrap_err();
    assert_eq!(e.kind(), Kind::Model);
    let text = e.to_string();
    assert!(text.contains("img_in.weight is [48, 60], expected [48, 64]"), "{text}");
    assert!(text.contains("8 missing, 1 of another shape"), "{text}");
    assert!(
        text.contains("single_blocks.1.linear1.weight is missing, expected [336, 48]"),
        "{text}"
    );

    let mut long = expected.clone();
    long.extend((0..20).map(|i| (format!("more.{i}"), vec![1])));
    let text = flux.check(&long).unwrap_err().to_string();
    assert_eq!(text.matches("is missing").count() + text.matches("is [").count(), 10, "{text}");
    assert!(text.contains("and 19 more"), "{text}");

    let present: Vec<Named> = spec
        .tensors
        .iter()
        .filter(|t| t.0 == TRANSFORMER)
        .map(|t| (t.1.clone(), t.2.clone()))
        .collect();
    let notes = flux.check(&present[..present.len() - 1]).unwrap();
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].contains("1 tensors are not used: model.diffusion_model.pulid.0.weight"),
        "{notes:?}"
    );
}

#[test]
fn an_incomplete_fused_tensor_names_the_parts_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let mut names = list("diffusers_dev.txt");
    names.retain(|(n, _)| n != "transformer_blocks.7.attn.to_k.weight");
    let path = zeros(&dir.path().join("t.safetensors"), "BF16", &names);
    let e = refused(&path).to_string();
    assert!(e.contains("double_blocks.7.img_attn.qkv.weight") && e.contains("2 of the 3"), "{e}");
}

#[test]
fn a_replaced_file_stays_readable_and_an_edited_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    write(&all_in_one(), &path).unwrap();
    let flux = open(&Files::model(&path)).unwrap().take(TRANSFORMER).unwrap();
    write(&SynthSpec { seed: 99, ..all_in_one() }, &path).unwrap();
    flux.unchanged().unwrap();
    let value = flux.get("img_in.weight", 0, 48, 64).unwrap().to_f32()[0];
    let exact = all_in_one().value(TRANSFORMER, "img_in.weight", &[48, 64], 0);
    assert!((value - exact).abs() <= exact.abs() / 128.0);

    let flux = open(&Files::model(&path)).unwrap().take(TRANSFORMER).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
    assert_eq!(flux.unchanged().unwrap_err().kind(), Kind::Model);
}

#[test]
fn other_kinds_of_files_are_named_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, words) in [
        (file("a.gguf", b"GGUF\x01\0\0\0\0\0\0\0"), "GGUF file of version 1"),
        (file("b.ckpt", b"PK\x03\x04\x14\0\0\0\0\0"), "pickle"),
        (file("c.pt", b"\x80\x02}q\0(X\x05\0\0\0"), "pickle"),
        (file("d.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (file("e.safetensors", b"<!DOCTYPE html><html></html>"), "web page"),
        (file("f.safetensors", b"just some text"), "header length"),
        (file("g.safetensors", b""), "too short"),
        (file("h.7z", b"7z\xbc\xaf\x27\x1c\0\x04\0\0"), "a 7z archive"),
        (file("i.safetensors.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"), "a gzip archive"),
        (file("j.safetensors", b"\x89PNG\r\n\x1a\n\0\0"), "an image"),
    ] {
        for e in [refused(&path), inspect(&path).err().unwrap()] {
            assert_eq!(e.kind(), Kind::Model);
            assert!(e.to_string().contains(words), "{e}");
            assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
        }
    }
}

#[test]
fn models_that_are_not_flux_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    for (name, words) in [
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "LoRA"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "LoRA"),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight", "LoRA"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 text encoder"),
        ("decoder.mid.block_1.conv1.weight", "autoencoder"),
        ("something.else", "something.else"),
    ] {
        zeros(&path, "BF16", &[(name.to_string(), vec![2, 2])]);
        let e = refused(&path);
        assert_eq!(e.kind(), Kind::Model);
        assert!(e.to_string().contains(words), "{e}");
    }
    zeros(&path, "BF16", &[]);
    assert!(refused(&path).to_string().contains("no tensors at all"));
    zeros(
        &path,
        "BF16",
        &[("lora_unet_single_blocks_0_linear1.lora_up.weight".to_string(), vec![2, 2])],
    );
    // The model, and a part of its error.
    let looked = inspect(&path).unwrap();
    assert!(looked.what.starts_with("LoRA, Kohya"), "{}", looked.what);
    assert!(looked.loras[0].targets[0].blocks.contains_key("single_blocks"), "{:?}", looked.loras);
    assert!(refused(&path).hint().unwrap().contains("`model`"));
}

#[test]
fn broken_indexes_of_shards_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    for (text, kind, words) in [
        ("{", Kind::Model, "not JSON"),
        ("{}", Kind::Model, "no weight_map"),
        (r#"{"weight_map": {}}"#, Kind::Model, "lists no files"),
        (r#"{"weight_map": {"a": 1}}"#, Kind::Model, "not a string"),
        (r#"{"weight_map": {"a": "../x.safetensors"}}"#, Kind::Model, "outside its folder"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, Kind::Model, "outside its folder"),
        (
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#,
            Kind::Missing,
            "shard is missing",
        ),
    ] {
        std::fs::write(&index, text).unwrap();
        for path in [&index, &dir.path().to_path_buf()] {
            let e = refused(path);
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.to_string().contains(words), "{e}");
        }
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names = [("double_blocks.0.img_attn.qkv.weight".to_string(), vec![3, 2])];
    for i in 1..3 {
        zeros(&dir.path().join(format!("m-0000{i}-of-00002.safetensors")), "F32", &names);
    }
    let map = json!({ "weight_map": { "a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors" } });
    std::fs::write(dir.path().join("m.safetensors.index.json"), map.to_string()).unwrap();
    assert!(refused(dir.path()).to_string().contains("stored twice"));
}

#[test]
fn a_config_in_the_metadata_that_is_not_an_object_is_refused() {
    let names = [("double_blocks.0.img_attn.qkv.weight".to_string(), "F32", vec![3, 2])];
    for (config, words) in [("[1]", "not a JSON object"), ("{", "not JSON")] {
        let (mut bytes, _) = header(&names, json!({ "config": config }));
        bytes.extend([0; 24]);
        let e = open_source(Arc::new(bytes), "m").err().unwrap();
        assert!(e.to_string().contains(words), "{e}");
    }
    let config = r#"{"transformer": {"quantization_config": {"quant_method": "torchao"}}}"#;
    let (mut bytes, _) = header(&names, json!({ "config": config }));
    bytes.extend([0; 24]);
    let e = open_source(Arc::new(bytes), "m").err().unwrap().to_string();
    assert!(e.contains("torchao"), "{e}");
}
