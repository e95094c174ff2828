//! What is not supported is named, with what to do, before anything else is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_fast::error::{Error, Kind};
use flux_fast::event::Event;
use flux_fast::library::places::{ModelKind, ModelPlaces, describe};
use flux_fast::library::{Files, open, open_source};
use flux_fast::spec::FAMILIES;
use flux_fast::spec::flux1::{T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec, to_bytes, write};
use flux_fast::{Device, Engine, Options, Request, Result};
use serde_json::json;

use super::support::*;

/// Opens an engine that looks for files in `folder` and nowhere else; returns its notes.
fn engine(folder: &Path, model: &Path) -> Result<Vec<String>> {
    let options = Options::default()
        .model(model.display().to_string())
        .places(ModelPlaces::new(&|_| None, folder, &[]))
        .device(Device::Cpu)
        .no_cache(true);
    let mut notes = vec![];
    Engine::open_with(options, |event| {
        if let Event::Note(note) = event {
            notes.push(note.to_string());
        }
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(notes)
}

fn refused(folder: &Path, model: &Path) -> Error {
    engine(folder, model).expect_err("accepted")
}

/// The transformer of the small model, whose names and shapes `change` changes, in a file without
/// text encoders.
fn transformer(path: &Path, change: impl Fn(&mut Vec<Named>)) -> PathBuf {
    let mut tensors: Vec<Named> =
        tiny().into_iter().filter(|t| t.0 == TRANSFORMER).map(|(_, n, s)| (n, s)).collect();
    change(&mut tensors);
    zeros(path, "F32", &tensors)
}

fn named(names: &[&str]) -> Vec<Named> {
    names.iter().map(|n| (n.to_string(), vec![2, 2])).collect()
}

#[test]
fn models_with_blocks_of_flux_are_named_before_a_text_encoder_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let widen = |inputs: usize| {
        move |tensors: &mut Vec<Named>| {
            tensors.iter_mut().find(|t| t.0 == "img_in.weight").unwrap().1[1] = inputs;
        }
    };
    let widen_and_lose = |inputs: usize, lost: &'static str| {
        move |tensors: &mut Vec<Named>| {
            widen(inputs)(tensors);
            tensors.retain(|t| t.0 != lost);
        }
    };
    let add = |name: &'static str| {
        move |tensors: &mut Vec<Named>| tensors.push((name.into(), vec![2, 2]))
    };
    for (change, words) in [
        (Box::new(widen(196)) as Box<dyn Fn(&mut Vec<Named>)>, "Flex.2"),
        (Box::new(widen(80)), "not that of a model that is known"),
        // What it is matters more than what it lacks.
        (Box::new(widen_and_lose(196, "img_in.bias")), "Flex.2"),
        (Box::new(widen_and_lose(196, "txt_in.weight")), "Flex.2"),
        (Box::new(widen_and_lose(196, "final_layer.linear.weight")), "Flex.2"),
        (Box::new(add("distilled_guidance_layer.in_proj.weight")), "Chroma"),
        (Box::new(add("controlnet_blocks.0.weight")), "ControlNet"),
        (Box::new(add("early_stream_modulations.image.lin.weight")), "FLUX.3"),
        (Box::new(add("single_blocks.0.linear1.SCB")), "bitsandbytes int8"),
        // An ordinary fault of the transformer comes first, too.
        (
            Box::new(|t: &mut Vec<Named>| t.retain(|t| t.0 != "img_in.bias")),
            "img_in.bias is missing",
        ),
    ] {
        transformer(&path, change);
        let e = refused(dir.path(), &path);
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().contains(words), "{words}: {e}");
        assert!(e.hint().is_some(), "{e}");
    }
    transformer(&path, widen(196));
    let (kind, what) = describe(&path, FAMILIES);
    assert!(kind == ModelKind::Other && what.contains("Flex.2"), "{what}");
    // Nothing is wrong with these: only now the text encoder is asked for.
    for (inputs, name) in
        [(64, "FLUX transformer (dev)"), (384, "transformer Fill (dev)"), (128, "Canny or Depth")]
    {
        transformer(&path, widen(inputs));
        let (kind, what) = describe(&path, FAMILIES);
        assert!(kind == ModelKind::Model && what.contains(name), "{what}");
        let e = refused(dir.path(), &path);
        assert_eq!(e.kind(), Kind::Missing, "{e}");
    }
}

#[test]
fn other_models_and_ways_of_storing_are_named_by_their_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let blocks = "transformer_blocks.0.attn.to_q.";
    let of = |layer: &str, endings: &[&str]| -> Vec<String> {
        endings.iter().map(|ending| format!("{layer}{ending}")).collect()
    };
    for (names, words) in [
        (of("double_blocks.0.img_attn.qkv.", &["weight._data", "weight._scale"]), "quanto"),
        (of(blocks, &["weight:qdata", "weight:scale"]), "torchao"),
        (of(blocks, &["_weight_qdata", "_weight_scale"]), "torchao"),
        (of(blocks, &["weight", "scales", "biases"]), "MLX"),
        (
            of("transformer_blocks.0.qkv_proj.", &["qweight", "wscales", "smooth_factor"]),
            "nunchaku",
        ),
        (of(blocks, &["qweight", "qzeros", "scales"]), "GPTQ or AWQ"),
        (of(blocks, &["weight_packed", "weight_scale"]), "compressed-tensors"),
        (of("", &["transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"]), "Qwen-Image"),
        (of("", &["cap_pad_token", "noise_refiner.0.attention.qkv.weight"]), "Z-Image"),
        (
            of("", &["cap_embedder.0.weight", "context_refiner.0.attention.qkv.weight"]),
            "Z-Image or Lumina 2",
        ),
        (of("", &["all_x_embedder.2-1.weight", "layers.0.attention.to_q.weight"]), "a Z-Image"),
        (of("noise_refiner.0.attention.", &["to_q.weight", "to_k.weight"]), "a Z-Image"),
        (of("noise_refiner.1.attention.", &["qkv.weight"]), "Z-Image or Lumina 2"),
        (
            of("", &["time_caption_embed.x.weight", "noise_refiner.0.attn.to_q.weight"]),
            "a Lumina 2",
        ),
        (of("ref_image_refiner.0.attn.to_q.", &["weight"]), "OmniGen 2"),
        (of("model.diffusion_model.joint_blocks.7.x_block.attn.", &["qkv.weight"]), "Diffusion 3"),
        (
            of("", &["pos_embed.pos_embed", "transformer_blocks.3.attn.add_k_proj.weight"]),
            "Stable Diffusion 3",
        ),
        (
            of("transformer_blocks.3.attn.", &["add_k_proj.weight", "add_v_proj.weight"]),
            "Stable Diffusion 3 or FLUX.1",
        ),
        (of("blocks.4.", &["self_attn.q.weight", "self_attn.k.weight"]), "Wan"),
        (of("model.diffusion_model.blocks.0.cross_attn.", &["norm_q.weight"]), "Wan"),
        (of("double_layers.0.attn.", &["w1q.weight"]), "AuraFlow"),
        (of("mlp_t5.0.", &["weight"]), "Hunyuan-DiT"),
        (of("", &["t5_yproj.weight"]), "Mochi"),
        (of("y_embedder.y_proj.fc1.", &["weight"]), "PixArt or Sana"),
        (of("double_blocks.0.img_attn.qkv.", &["weight:_data", "weight:_scale"]), "torchao"),
        (of("double_blocks.0.img_attn.qkv.", &["weight_qdata", "weight_scale"]), "torchao"),
        (of(blocks, &["weight.int_data", "weight.scale"]), "torchao"),
        (of(blocks, &["_data", "_scale"]), "quanto"),
        (of("txt_in.individual_token_refiner.", &["blocks.0.norm1.weight"]), "HunyuanVideo"),
        (of("double_stream_blocks.0.", &["block.adaLN_modulation.1.weight"]), "HiDream"),
        (of("blocks.0.", &["cross_attn.norm_q.weight", "text_embedding.0.weight"]), "Wan"),
        (
            of("model.diffusion_model.", &["input_blocks.0.0.weight", "label_emb.0.0.weight"]),
            "Stable Diffusion XL",
        ),
        (of("model.diffusion_model.", &["input_blocks.0.0.weight"]), "1.x or 2.x"),
        (of("down_blocks.0.attentions.0.", &["norm.weight"]), "1.x or 2.x"),
        (
            of("", &["pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"]),
            "Stable Diffusion 3",
        ),
        (of("controlnet_x_embedder.", &["weight"]), "ControlNet"),
        (of("input_hint_block.0.", &["weight"]), "ControlNet"),
        (
            of("double_blocks.0.processor.ip_adapter_double_stream_k_proj.", &["weight"]),
            "IP-Adapter",
        ),
        (of("model.language_model.layers.0.", &["self_attn.q_norm.weight"]), "Qwen3-VL"),
        (
            of("model.layers.0.", &["self_attn.q_proj.weight", "mlp.gate_proj.weight"]),
            "a language model",
        ),
        (of("vision_model.embeddings.patch_embedding.", &["weight"]), "vision encoder"),
        (of("decoder.layers.1.conv.0.", &["weight"]), "TAESD"),
    ] {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        zeros(&path, "F32", &named(&names));
        let e = open(&Files::model(&path)).err().unwrap();
        assert_eq!(e.kind(), Kind::Model, "{words}: {e}");
        assert!(e.to_string().contains(words), "{words}: {e}");
        assert!(e.hint().is_some(), "{e}");
        let (kind, what) = describe(&path, FAMILIES);
        assert_eq!(kind, ModelKind::Other, "{words}");
        assert!(what.contains(words), "{words}: {what}");
    }
}

#[test]
fn a_part_of_a_model_says_how_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("transformer");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(dir.path().join("model_index.json"), r#"{"_class_name": "FluxPipeline"}"#)
        .unwrap();
    let config = json!({ "quantization_config": {
        "quant_method": "bitsandbytes", "load_in_8bit": true,
    }});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let layers = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
    let names = layers.map(|layer| format!("single_transformer_blocks.0.{layer}."));
    let tensors = names.iter().flat_map(|name| {
        [(format!("{name}weight"), "I8", vec![8, 8]), (format!("{name}SCB"), "F32", vec![8])]
    });
    let tensors: Vec<_> = tensors.collect();
    let (mut bytes, data) = header(&tensors, json!({}));
    bytes.resize(bytes.len() + data as usize, 0);
    std::fs::write(folder.join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
    let e = refused(dir.path(), dir.path());
    assert_eq!(e.kind(), Kind::Model, "{e}");
    assert!(e.to_string().contains("bitsandbytes int8"), "{e}");
}

#[test]
fn metadata_of_mlx_is_named() {
    let names = [("transformer_blocks.0.ff.linear1.weight".to_string(), "BF16", vec![2, 2])];
    for metadata in [json!({ "format": "mlx" }), json!({ "mflux_version": "0.9" })] {
        let (mut bytes, data) = header(&names, metadata);
        bytes.resize(bytes.len() + data as usize, 0);
        let e = open_source(Arc::new(bytes), "m").err().unwrap();
        assert!(e.to_string().contains("MLX"), "{e}");
    }
}

#[test]
fn text_encoders_and_autoencoders_of_another_kind_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = transformer(&dir.path().join("flux.safetensors"), |_| {});
    let part = |component, extra: &[&str]| {
        let mut tensors: Vec<Named> =
            tiny().into_iter().filter(|t| t.0 == component).map(|(_, n, s)| (n, s)).collect();
        tensors.extend(named(extra));
        tensors
    };
    let bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight";
    for (component, extra, words) in [
        (T5, &[bias][..], "UMT5"),
        (T5, &["encoder.block.0.layer.1.DenseReluDense.wi.weight"], "version 1.0"),
        (VAE, &["quant_conv.weight", "post_quant_conv.weight"], "quant_conv"),
    ] {
        let given = zeros(&dir.path().join("given/x.safetensors"), "F32", &part(component, extra));
        let option = component.option.unwrap();
        let e = open(&Files::model(&model).with(option, &given)).err().unwrap();
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().contains(words) && e.to_string().contains("x.safetensors"), "{e}");
        assert!(e.hint().is_some(), "{e}");
        assert_eq!(describe(&given, FAMILIES).0, ModelKind::Other, "{words}");
        // Next to the model it is passed over. Nothing is missing then, it is the wrong file.
        let near = dir.path().join("near.safetensors");
        std::fs::copy(&given, &near).unwrap();
        let checkpoint = open(&Files::model(&model)).unwrap();
        let e = checkpoint.need(component).err().unwrap();
        assert_eq!(e.kind(), Kind::Model);
        assert!(e.to_string().contains(words), "{e}");
        std::fs::remove_file(near).unwrap();
    }
}

#[test]
fn a_t5_with_another_vocabulary_is_refused() {
    use flux_fast::model::T5Config;
    let read = |pieces: usize, config: serde_json::Value| {
        let mut spec = spec(Grid::F32, Storage::BF16, Dialect::Comfy);
        spec.tensors.iter_mut().find(|t| t.1 == "shared.weight").unwrap().2[0] = pieces;
        spec.configs["text_encoder_2"] = config;
        let checkpoint = open_source(Arc::new(to_bytes(&spec).unwrap()), "m").unwrap();
        let weights = checkpoint.need(T5).unwrap();
        T5Config::read(weights, weights.config())
    };
    for (pieces, config, words) in [
        (250_112, json!({}), "mT5 or UMT5"),
        (32_128, json!({ "model_type": "umt5" }), "UMT5"),
        (32_128, json!({ "feed_forward_proj": "relu" }), "activation"),
        (32_128, json!({ "vocab_size": 32_100 }), "vocab_size"),
    ] {
        let e = read(pieces, config).unwrap_err();
        assert!(e.kind() == Kind::Model && e.to_string().contains(words), "{words}: {e}");
    }
    read(32_128, json!({ "model_type": "t5", "feed_forward_proj": "gated-gelu" })).unwrap();
}

/// A whole model of zeros in one file, with or without a guidance embedding.
fn whole(path: &Path, guidance: bool) -> PathBuf {
    let mut spec: SynthSpec = spec(Grid::F32, Storage::F32, Dialect::Comfy);
    spec.configs = json!({
        "vae": { "norm_num_groups": 4 },
        "text_encoder": { "num_attention_heads": 1 },
    });
    spec.tensors.retain(|t| guidance || !t.1.starts_with("guidance_in."));
    write(&spec, path).unwrap();
    path.into()
}

#[test]
fn kontext_and_models_that_may_not_be_schnell_are_noted_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    // The notes of opening and of two requests. Whether these zeros can be drawn does not matter.
    let with = |name: &str, guidance, request: Request| {
        let path = whole(&dir.path().join(name), guidance);
        let options = Options::default()
            .model(path.display().to_string())
            .places(ModelPlaces::new(&|_| None, dir.path(), &[]))
            .device(Device::Cpu)
            .no_cache(true);
        let mut notes = vec![];
        let mut on = |event| {
            if let Event::Note(note) = event {
                notes.push(note.to_string());
            }
            std::ops::ControlFlow::Continue(())
        };
        let mut engine = Engine::open_with(options, &mut on).unwrap();
        for _ in 0..2 {
            let _ = engine.generate_with(&request, &mut on);
        }
        notes.join("\n")
    };
    let small = || Request::new("a fox").size(32, 32).steps(1);
    let notes = |name: &str, guidance| with(name, guidance, small());
    assert!(notes("flux1-dev-kontext_fp8_scaled.safetensors", true).contains("Kontext"));
    assert!(notes("flux1-kontext-dev.safetensors", true).contains("`reference`"));
    assert!(!notes("flux1-dev.safetensors", true).contains("Kontext"));
    for (name, other) in [
        ("flux1-fill-dev.safetensors", "FLUX.1 Fill"),
        ("FLUX.1-Canny-dev_fp8.safetensors", "FLUX.1 Canny"),
        ("flux_depth.safetensors", "FLUX.1 Depth"),
    ] {
        let text = notes(name, true);
        assert!(text.contains(other) && text.contains("by its name"), "{text}");
    }
    for name in ["flux-fillmore.safetensors", "depth.safetensors", "flux1-dev.safetensors"] {
        assert!(!notes(name, true).contains("by its name"), "{name}");
    }
    let text = notes("flux-dev-de-distill.safetensors", false);
    assert!(text.contains("[schnell]") && text.contains("`scheduler`"), "{text}");
    assert!(text.contains("`shift` 3"), "{text}");
    assert_eq!(text.matches("has no guidance embedding, so").count(), 1, "{text}");
    // Those who give the noise levels are not told to.
    let mut given = small();
    given.shift = Some(3.0);
    assert!(!with("flux-dev-de-distill.safetensors", false, given).contains("[schnell]"));
    let mut given = small();
    given.scheduler = Some(serde_json::from_value(json!({ "shift": 3.0 })).unwrap());
    assert!(!with("flux-dev-de-distill.safetensors", false, given).contains("[schnell]"));
    assert!(!notes("Schnell-fp8.safetensors", false).contains("[schnell]"));
    assert!(!notes("flux1-dev.safetensors", true).contains("[schnell]"));
}

#[test]
fn in_a_folder_every_file_that_was_passed_over_is_listed_with_its_reason() {
    let write = |path: PathBuf, bytes: &[u8]| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let pickle = [b"PK\x03\x04".as_slice(), &[0; 60]].concat();
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let root = dir.path().join(name);
        write(root.join("model_index.json"), br#"{"_class_name": "FluxPipeline"}"#);
        root
    };
    // One file: its own reason, with its path.
    let gptq = folder("gptq");
    let layer = "single_transformer_blocks.0.attn.to_q.";
    zeros(
        &gptq.join("transformer/diffusion_pytorch_model.safetensors"),
        "F32",
        &named(&[&format!("{layer}qweight"), &format!("{layer}qzeros")]),
    );
    let quanto = folder("quanto");
    zeros(
        &quanto.join("transformer/diffusion_pytorch_model.safetensors"),
        "F32",
        &named(&[&format!("{layer}weight._data"), &format!("{layer}weight._scale")]),
    );
    let bin = folder("bin");
    write(bin.join("transformer/diffusion_pytorch_model.bin"), &pickle);
    let onnx = folder("onnx");
    write(onnx.join("transformer/model.onnx"), b"\x08\x0a\x12\x07pytorch");
    for (root, words, file) in [
        (&gptq, "GPTQ or AWQ", "diffusion_pytorch_model.safetensors"),
        (&quanto, "optimum-quanto", "diffusion_pytorch_model.safetensors"),
        (&bin, "pickle", "diffusion_pytorch_model.bin"),
        (&onnx, "ONNX", "model.onnx"),
    ] {
        let e = open(&Files::model(root)).err().unwrap();
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().contains(words) && e.to_string().contains(file), "{e}");
        assert!(e.hint().is_some(), "{e}");
    }
    // Several: all of them, in a folder of any kind.
    let mixed = dir.path().join("mixed");
    zeros(&mixed.join("a.safetensors"), "F32", &named(&["distilled_guidance_layer.x.weight"]));
    zeros(&mixed.join("b.safetensors"), "F32", &named(&["a.lora_A.weight", "a.lora_B.weight"]));
    write(mixed.join("c.ckpt"), &pickle);
    write(mixed.join("d.ckpt"), b"SQLite format 3\0 and tables");
    write(mixed.join("e.npz"), b"PK\x03\x04");
    write(mixed.join("f.safetensors"), b"broken");
    let e = open(&Files::model(&mixed)).err().unwrap();
    assert_eq!(e.kind(), Kind::Model, "{e}");
    for words in [
        "a.safetensors: holds no FLUX transformer or FLUX.2 transformer: found a Chroma model",
        "b.safetensors: this is a LoRA",
        "c.ckpt: this is a pickle",
        "d.ckpt: this is a model of Draw Things",
        "e.npz: weights are stored as NumPy arrays (MLX)",
        "f.safetensors: ",
    ] {
        assert!(e.to_string().contains(words), "{words}: {e}");
    }
    // The same files by their paths.
    for (file, words) in [("d.ckpt", "Draw Things"), ("c.ckpt", "pickle")] {
        assert!(open(&Files::model(mixed.join(file))).err().unwrap().to_string().contains(words));
    }
    let archive = [b"PK\x03\x04".as_slice(), &[0; 26], b"weights.npy", &[0; 99]].concat();
    write(mixed.join("g.safetensors"), &archive);
    let e = open(&Files::model(mixed.join("g.safetensors"))).err().unwrap().to_string();
    assert!(e.contains("NumPy"), "{e}");
}

#[test]
fn a_kontext_folder_is_known_by_its_pipeline() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(Grid::F32, Storage::F32, Dialect::Diffusers { shard_bytes: None });
    spec.configs = json!({
        "vae": { "norm_num_groups": 4, "_class_name": "AutoencoderKL" },
        "text_encoder": { "num_attention_heads": 1, "architectures": ["CLIPTextModel"] },
    });
    write(&spec, dir.path()).unwrap();
    let index = dir.path().join("model_index.json");
    for (class, is_noted) in [("FluxKontextPipeline", true), ("FluxPipeline", false)] {
        std::fs::write(&index, json!({ "_class_name": class }).to_string()).unwrap();
        let notes = engine(dir.path(), dir.path()).unwrap().join("\n");
        assert_eq!(notes.contains("Kontext"), is_noted, "{notes}");
    }
}
