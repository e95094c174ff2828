//! Real tensor lists of every dialect: each name is mapped, none is unused, and every canonical
//! tensor has its shape.

use std::path::Path;

use flux_fast::library::{Files, inspect, open};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use serde_json::json;

use super::support::*;

/// Opens a model whose component files are in `dir`, and checks `component` against the canonical
/// list.
fn assert_maps(dir: &Path, files: &Files, component: Component, expected: &[Named]) {
    let checkpoint =
        open(files).unwrap_or_else(|e| panic!("{}: {e} {:?}", dir.display(), e.hint()));
    let weights = checkpoint.need(component).unwrap();
    let notes = weights.check(expected).unwrap();
    assert_eq!(notes, Vec::<String>::new(), "{component}, {}", weights.dialect());
    assert_eq!(weights.names().count(), expected.len());
    for (name, shape) in expected {
        let matrix =
            if shape.len() < 2 { (1, shape[0]) } else { (shape[0], shape[1..].iter().product()) };
        assert_eq!(weights.shape(name), Some(matrix), "{name}");
        let whole = weights.get(name, 0, matrix.0, matrix.1).unwrap();
        assert_eq!((whole.rows, whole.cols), matrix);
        let elements: usize = whole.parts.iter().map(|p| p.rows * p.cols).sum();
        assert_eq!(elements, matrix.0 * matrix.1, "{name}");
    }
}

#[test]
fn the_lists_are_as_long_as_the_files() {
    let lengths =
        ["bfl_dev", "bfl_schnell", "bfl_ae", "diffusers_dev", "t5_single", "clip", "comfy_dev_fp8"]
            .map(|f| list(&format!("{f}.txt")).len());
    assert_eq!(lengths, [780, 776, 244, 1160, 219, 196, 1442]);
}

#[test]
fn transformers_in_bfl_names_with_any_prefix() {
    for (file, prefix, dialect) in [
        ("bfl_dev.txt", "", "BFL, bf16"),
        ("bfl_schnell.txt", "", "BFL, bf16"),
        ("bfl_dev.txt", "model.diffusion_model.", "ComfyUI (model.diffusion_model.*), bf16"),
        ("bfl_dev.txt", "diffusion_model.", "ComfyUI (diffusion_model.*), bf16"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let names = list(file);
        let path =
            zeros(&dir.path().join("some name.safetensors"), "BF16", &prefixed(prefix, &names));
        assert_maps(dir.path(), &Files::model(&path), TRANSFORMER, &names);
        let flux = open(&Files::model(&path)).unwrap().take(TRANSFORMER).unwrap();
        assert_eq!(flux.dialect(), dialect);
        let parameters: u64 = if file == "bfl_dev.txt" { 11_901_408_320 } else { 11_891_178_560 };
        assert_eq!(flux.stored_bytes(), 2 * parameters);
    }
}

#[test]
fn a_diffusers_folder_with_shards_and_all_components() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::write(root.join("model_index.json"), "{}").unwrap();
    let all = list("diffusers_dev.txt");
    let mut map = serde_json::Map::new();
    for (i, shard) in all.chunks(400).enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-00003.safetensors", i + 1);
        zeros(&root.join("transformer").join(&name), "BF16", shard);
        map.extend(shard.iter().map(|(n, _)| (n.clone(), json!(name))));
    }
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(root.join("transformer/diffusion_pytorch_model.safetensors.index.json"), index)
        .unwrap();
    let config = r#"{"_class_name": "FluxTransformer2DModel", "num_layers": 19}"#;
    std::fs::write(root.join("transformer/config.json"), config).unwrap();
    zeros(
        &root.join("vae/diffusion_pytorch_model.safetensors"),
        "BF16",
        &list("diffusers_vae.txt"),
    );
    zeros(&root.join("text_encoder/model.safetensors"), "BF16", &list("clip.txt"));
    zeros(&root.join("text_encoder_2/model.safetensors"), "BF16", &list("t5_encoder.txt"));
    std::fs::create_dir_all(root.join("tokenizer_2")).unwrap();
    std::fs::write(root.join("tokenizer_2/tokenizer.json"), "{}").unwrap();
    std::fs::write(root.join("tokenizer_2/tokenizer_config.json"), r#"{"model_max_length": 512}"#)
        .unwrap();
    std::fs::create_dir_all(root.join("scheduler")).unwrap();
    std::fs::write(root.join("scheduler/scheduler_config.json"), r#"{"shift": 3.0}"#).unwrap();

    // The folder, its transformer, one shard and the index open the same model.
    let transformer = root.join("transformer");
    for path in [
        root.to_path_buf(),
        transformer.clone(),
        transformer.join("diffusion_pytorch_model-00002-of-00003.safetensors"),
        transformer.join("diffusion_pytorch_model.safetensors.index.json"),
    ] {
        for component in required() {
            assert_maps(root, &Files::model(&path), component, &canonical(component));
        }
        let checkpoint = open(&Files::model(&path)).unwrap();
        let flux = checkpoint.get(TRANSFORMER).unwrap();
        assert_eq!(flux.dialect(), "diffusers, bf16, 3 shards");
        assert_eq!(flux.config().unwrap()["num_layers"], 19);
        assert_eq!(checkpoint.max_length(T5), Some(512));
        assert_eq!(checkpoint.tokenizer(T5), Some(root.join("tokenizer_2").as_path()));
        assert_eq!(checkpoint.tokenizer(CLIP), None);
        assert_eq!(checkpoint.scheduler.as_ref().unwrap()["shift"], 3.0);
    }
    let flux = open(&Files::model(root)).unwrap().take(TRANSFORMER).unwrap();
    assert_eq!(flux.get("single_blocks.3.linear1.weight", 0, 21504, 3072).unwrap().parts.len(), 4);
    // Rows of one stored part are returned as one part.
    let k = flux.get("double_blocks.3.txt_attn.qkv.weight", 3072, 3072, 3072).unwrap();
    assert_eq!((k.parts.len(), k.parts[0].rows), (1, 3072));
    let across = flux.get("double_blocks.3.txt_attn.qkv.weight", 3000, 100, 3072).unwrap();
    assert_eq!(across.parts.iter().map(|p| p.rows).collect::<Vec<_>>(), [72, 28]);

    let looked = inspect(root).unwrap();
    assert_eq!(looked.components.len(), 4);
    assert_eq!(looked.notes, Vec::<String>::new());
    let flux = &looked.components[0];
    assert_eq!(
        (flux.geometry["double blocks"].as_str(), flux.geometry["hidden width"].as_str()),
        ("19", "3072")
    );
    assert_eq!(flux.parameters, 11_901_408_320);
}

#[test]
fn the_comfy_all_in_one_with_its_8_bit_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flux1-dev-fp8.safetensors");
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/comfy_dev_fp8.txt"),
    );
    let kinds: Vec<String> =
        text.unwrap().lines().map(|l| l.split(' ').nth(1).unwrap().to_string()).collect();
    assert!(["F8_E4M3", "F16", "F32"].iter().all(|k| kinds.iter().any(|x| x == k)));
    let dtype = |name: &str| match name {
        n if n.ends_with("logit_scale") || n.starts_with("vae.") => "F32",
        n if n.starts_with("text_encoders.clip_l.") => "F16",
        _ => "F8_E4M3",
    };
    let tensors: Vec<_> =
        list("comfy_dev_fp8.txt").into_iter().map(|(n, s)| (n.clone(), dtype(&n), s)).collect();
    sparse(&path, &tensors, json!({}));
    for component in required() {
        assert_maps(dir.path(), &Files::model(&path), component, &canonical(component));
    }
    let checkpoint = open(&Files::model(&path)).unwrap();
    assert_eq!(
        checkpoint.get(TRANSFORMER).unwrap().dialect(),
        "ComfyUI (model.diffusion_model.*), plain fp8"
    );
    assert_eq!(checkpoint.name, "flux1-dev-fp8");
    assert_eq!(checkpoint.found, Vec::<String>::new());
    // 8-bit vectors are widened, 8-bit matrices are not.
    let flux = checkpoint.get(TRANSFORMER).unwrap();
    assert_eq!(flux.get("img_in.bias", 0, 1, 3072).unwrap().parts[0].dtype.name(), "F32");
    assert_eq!(flux.get("img_in.weight", 0, 3072, 64).unwrap().parts[0].dtype.name(), "F8_E4M3");
}

#[test]
fn text_encoders_and_autoencoders_in_separate_files() {
    let without = |prefix: &str, list: Vec<Named>| -> Vec<Named> {
        list.into_iter().map(|(n, s)| (n.strip_prefix(prefix).unwrap().to_string(), s)).collect()
    };
    let mut full_clip = prefixed("", &list("clip.txt"));
    full_clip.extend([
        ("text_projection.weight".to_string(), vec![768, 768]),
        ("logit_scale".to_string(), vec![]),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight".to_string(), vec![1024, 1024]),
    ]);
    let mut embed_only = list("t5_single.txt");
    embed_only[0].0 = "encoder.embed_tokens.weight".into();
    for (component, stored) in [
        (CLIP, list("clip.txt")),
        (CLIP, full_clip),
        (CLIP, prefixed("transformer.", &list("clip.txt"))),
        (CLIP, without("text_model.", list("clip.txt"))),
        (T5, list("t5_encoder.txt")),
        (T5, embed_only),
        (T5, prefixed("transformer.", &list("t5_single.txt"))),
        (VAE, list("bfl_ae.txt")),
        (VAE, prefixed("vae.", &list("bfl_ae.txt"))),
        (VAE, list("diffusers_vae.txt")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = zeros(&dir.path().join("m/flux.safetensors"), "BF16", &list("bfl_dev.txt"));
        let file = zeros(&dir.path().join("x.safetensors"), "BF16", &stored);
        let files = Files::model(model).with(component.name, file);
        assert_maps(dir.path(), &files, component, &canonical(component));
    }
}
