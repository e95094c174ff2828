//! A model is complete or refused: a tensor that is missing is named, and never drawn around.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::{Error, Kind, Result};
use flux_fast::library::convert::{Target, convert, open_only};
use flux_fast::library::{Checkpoint, Files, open, open_source};
use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, flux1, t5, vae};
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::ComponentWeights;
use flux_fast::weights::synth::{Dialect, Grid, Storage, to_bytes, write};
use serde_json::{Map, Value, json};

use super::support::*;

/// A safetensors file that can be changed.
#[derive(Clone)]
pub struct Parsed {
    metadata: Value,
    /// Type, shape and bytes by name.
    pub tensors: BTreeMap<String, (Value, Value, Vec<u8>)>,
}

impl Parsed {
    pub fn read(bytes: &[u8]) -> Self {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let metadata = header.remove("__metadata__").unwrap_or(json!({}));
        let tensors = header.into_iter().map(|(name, t)| {
            let at = |i: usize| 8 + length + t["data_offsets"][i].as_u64().unwrap() as usize;
            (name, (t["dtype"].clone(), t["shape"].clone(), bytes[at(0)..at(1)].to_vec()))
        });
        Parsed { metadata, tensors: tensors.collect() }
    }

    /// The file without `left_out`.
    pub fn bytes(&self, left_out: &str) -> Vec<u8> {
        let mut header = Map::from_iter([("__metadata__".to_string(), self.metadata.clone())]);
        let (mut data, mut end) = (Vec::<u8>::new(), 0);
        for (name, (dtype, shape, bytes)) in self.tensors.iter().filter(|(n, _)| *n != left_out) {
            let start = end;
            end += bytes.len();
            data.extend(bytes);
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
            header.insert(name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.extend(data);
        out
    }

    fn config(&mut self, change: impl Fn(&mut Value)) {
        let mut config = serde_json::from_str(self.metadata["config"].as_str().unwrap()).unwrap();
        change(&mut config);
        self.metadata["config"] = config.to_string().into();
    }

    fn rename(&mut self, from: &str, to: &str) {
        let names: Vec<String> =
            self.tensors.keys().filter(|n| n.contains(from)).cloned().collect();
        assert!(!names.is_empty(), "{from}");
        for name in names {
            let tensor = self.tensors.remove(&name).unwrap();
            self.tensors.insert(name.replace(from, to), tensor);
        }
    }

    fn open(&self) -> Result<Checkpoint> {
        open_source(Arc::new(self.bytes("")), "m")
    }
}

fn embedded() -> Parsed {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    let mut parsed = Parsed::read(&std::fs::read(path).unwrap());
    // The table of T5 is most of the file. Fewer pieces make the test fast.
    for (name, _, width) in [
        ("text_encoders.t5xxl.transformer.shared.weight", 32128, 128),
        (
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
            49408,
            64,
        ),
    ] {
        let (_, shape, bytes) = parsed.tensors.get_mut(name).unwrap();
        *shape = json!([16, width]);
        bytes.truncate(2 * 16 * width);
    }
    parsed.config(|config| {
        config["text_encoder_2"]["vocab_size"] = 16.into();
        config["text_encoder"]["vocab_size"] = 16.into();
    });
    parsed
}

/// A synthetic model in one file, with its configuration or without.
fn synthetic(storage: Storage, with_config: bool) -> Parsed {
    let mut spec = spec(Grid::F8, storage, Dialect::Comfy);
    if !with_config {
        spec.configs = groups();
    }
    Parsed::read(&to_bytes(&spec).unwrap())
}

/// The only thing that a configuration must say: the autoencoder is too narrow for 32 groups.
fn groups() -> Value {
    json!({ "vae": { "norm_num_groups": 4 } })
}

/// Reads the sizes of every component and checks its tensors, as opening an engine does.
fn judge(checkpoint: Checkpoint) -> Result<Vec<String>> {
    let check = |w: &ComponentWeights| -> Result<Vec<String>> {
        let config = w.config();
        w.check(&match w.component().name {
            "flux" => flux1::tensors(&FluxConfig::read(w, config)?),
            "t5" => t5::tensors(&T5Config::read(w, config)?),
            "clip" => clip::tensors(&ClipConfig::read(w, config)?),
            _ => vae::tensors(&VaeConfig::read(w, config)?),
        })
    };
    let mut notes = vec![];
    for component in [TRANSFORMER, T5, CLIP, VAE] {
        notes.extend(check(checkpoint.need(component)?)?);
    }
    Ok(notes)
}

fn refused(parsed: &Parsed) -> Error {
    let e = parsed.open().and_then(judge).expect_err("accepted");
    assert_eq!(e.kind(), Kind::Model, "{e}");
    e
}

/// Removes each tensor of `parsed` in turn: the error must be `Model` and have its name.
fn assert_each_is_missed(parsed: &Parsed, what: &str) {
    let notes = parsed.open().and_then(judge).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(notes, Vec::<String>::new(), "{what}");
    for name in parsed.tensors.keys() {
        let judged = open_source(Arc::new(parsed.bytes(name)), "m").and_then(judge);
        let e = judged.err().unwrap_or_else(|| panic!("{what} was accepted without {name}"));
        assert_eq!(e.kind(), Kind::Model, "{what}, {name}: {e}");
        assert!(e.to_string().contains(name), "{what}, {name}: {e}");
    }
}

#[test]
fn each_tensor_of_the_embedded_model_is_missed() {
    assert_each_is_missed(&embedded(), "the embedded model");
}

#[test]
fn each_tensor_of_a_model_is_missed_with_and_without_a_config_and_with_scales() {
    for (storage, with_config, what) in [
        (Storage::BF16, false, "without a config"),
        (Storage::BF16, true, "with a config"),
        (Storage::F8ScaledNew, false, "new scales"),
    ] {
        assert_each_is_missed(&synthetic(storage, with_config), what);
    }
    // The marker of the old scales has no values that are needed.
    let mut old = synthetic(Storage::F8ScaledOld, false);
    old.tensors.retain(|name, _| !name.ends_with("scaled_fp8"));
    assert_each_is_missed(&old, "old scales");
}

#[test]
fn each_tensor_of_a_diffusers_folder_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let dialect = Dialect::Diffusers { shard_bytes: None };
    let mut spec = spec(Grid::F32, Storage::BF16, dialect);
    spec.configs = groups();
    write(&spec, dir.path()).unwrap();
    for (folder, stem) in [
        ("transformer", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("vae", "diffusion_pytorch_model"),
    ] {
        let path = dir.path().join(folder).join(format!("{stem}.safetensors"));
        let whole = std::fs::read(&path).unwrap();
        let parsed = Parsed::read(&whole);
        for name in parsed.tensors.keys() {
            std::fs::write(&path, parsed.bytes(name)).unwrap();
            let judged = open(&Files::model(dir.path())).and_then(judge);
            let e = judged.err().unwrap_or_else(|| panic!("accepted without {name}"));
            assert!(e.kind() == Kind::Model && e.to_string().contains(name), "{name}: {e}");
        }
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(open(&Files::model(dir.path())).and_then(judge).unwrap(), Vec::<String>::new());
}

#[test]
fn each_companion_of_a_quantised_matrix_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.safetensors");
    write(&spec(Grid::F32, Storage::BF16, Dialect::Comfy), &plain).unwrap();
    // Not needed: the table of NF4's values, which is always the same, one of two forms of a scale,
    // and what stands in for a weight.
    let spare = |name: &str| {
        [".quant_map", ".scale", ".scale_reciprocal"].iter().any(|end| name.ends_with(end))
            && !name.ends_with("_norm.scale")
    };
    for (target, companion) in [
        (Target::Blocks(DType::Nf4), ".weight.quant_state.bitsandbytes__nf4"),
        (Target::Blocks(DType::Mxfp8), ".comfy_quant"),
        (Target::Blocks(DType::Nvfp4), ".weight_scale_2"),
        (Target::Int8, ".weight_scale"),
        (Target::Fp8Rows, ".weight_scale"),
        (Target::Aredden, ".float8_data"),
    ] {
        let path = dir.path().join("quantised.safetensors");
        let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
        convert(&open_only(&plain).unwrap(), target, &path, go_on).unwrap();
        let parsed = Parsed::read(&std::fs::read(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        judge(parsed.open().unwrap()).unwrap();
        assert!(parsed.tensors.keys().any(|name| name.ends_with(companion)), "{target:?}");
        for name in parsed.tensors.keys().filter(|name| !spare(name)) {
            let layer = name.strip_suffix(".weight").unwrap_or_default();
            if parsed.tensors.contains_key(&format!("{layer}.float8_data")) {
                continue;
            }
            // Without the data of flux-fp8-api's FP8, their scales belong to nothing.
            let missing = name.strip_suffix(".float8_data").unwrap_or(name);
            let judged = open_source(Arc::new(parsed.bytes(name)), "m").and_then(judge);
            let e = judged.err().unwrap_or_else(|| panic!("{target:?}: accepted without {name}"));
            assert_eq!(e.kind(), Kind::Model, "{target:?}, {name}: {e}");
            assert!(e.to_string().contains(missing), "{target:?}, {name}: {e}");
        }
    }
}

#[test]
fn a_hole_in_any_block_or_level_is_no_smaller_model() {
    for (storage, with_config) in [(Storage::BF16, true), (Storage::BF16, false)] {
        // Every tensor of block 0, of each kind of block, is missing.
        for start in [
            "model.diffusion_model.double_blocks.0.",
            "model.diffusion_model.single_blocks.0.",
            "text_encoders.t5xxl.transformer.encoder.block.0.",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.",
            "vae.decoder.up.0.",
            "vae.decoder.up.2.",
            "vae.encoder.down.1.",
            "vae.decoder.up.1.block.1.",
            "vae.encoder.down.3.block.1.",
        ] {
            let mut parsed = synthetic(storage, with_config);
            parsed.tensors.retain(|name, _| !name.starts_with(start));
            match parsed.open().and_then(judge) {
                Err(e) => assert_eq!(e.kind(), Kind::Model, "{start}: {e}"),
                Ok(_) => panic!("accepted without {start}"),
            }
        }
    }
}

#[test]
fn a_config_says_how_many_blocks_there_must_be() {
    let last = |start: &'static str| {
        let mut parsed = synthetic(Storage::BF16, true);
        parsed.tensors.retain(|name, _| !name.contains(start));
        parsed
    };
    for start in [
        "double_blocks.1.",
        "single_blocks.1.",
        "t5xxl.transformer.encoder.block.1.",
        "text_model.encoder.layers.1.",
    ] {
        let e = refused(&last(start)).to_string();
        assert!(e.contains(start) && e.contains("is missing"), "{e}");
    }
    for (folder, key, words) in [
        ("transformer", "num_layers", "double_blocks.1."),
        ("transformer", "num_single_layers", "single_blocks.1."),
        ("text_encoder", "num_hidden_layers", "text_model.encoder.layers.1."),
        ("text_encoder_2", "num_layers", "encoder.block.1."),
    ] {
        let mut more = synthetic(Storage::BF16, true);
        more.config(|config| config[folder][key] = 1.into());
        let e = refused(&more).to_string();
        assert!(e.contains(words) && e.contains("is not a tensor of this model"), "{e}");
        more.config(|config| config[folder][key] = 1_000_000_000_000u64.into());
        assert!(refused(&more).to_string().contains("out of range"));
    }
    for (folder, key) in [
        ("transformer", "in_channels"),
        ("transformer", "joint_attention_dim"),
        ("text_encoder", "hidden_size"),
        ("text_encoder_2", "d_ff"),
        ("vae", "latent_channels"),
    ] {
        let mut other = synthetic(Storage::BF16, true);
        other.config(|config| config[folder][key] = 7.into());
        let e = refused(&other).to_string();
        assert!(e.contains(key) && e.contains("expected 7"), "{e}");
    }
    let mut other = synthetic(Storage::BF16, true);
    other.config(|config| config["vae"]["block_out_channels"] = json!([8, 16, 32, 64]));
    assert!(refused(&other).to_string().contains("block_out_channels"));
}

#[test]
fn the_last_block_of_a_model_of_a_known_width_is_missed_without_a_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let lose = |file: &str, starts: &[&str]| {
        let mut names = list(file);
        names.retain(|(name, _)| !starts.iter().any(|start| name.starts_with(start)));
        zeros(&path, "BF16", &names);
        open_only(&path).unwrap()
    };
    let double: Vec<String> = (8..19).map(|i| format!("double_blocks.{i}.")).collect();
    let double: Vec<&str> = double.iter().map(String::as_str).collect();
    for (lost, words) in [
        (&[][..], None),
        (&["double_blocks.18."], Some("double_blocks.*: a model of this width")),
        (&["single_blocks.37."], Some("found 37, expected 38")),
        // Flux.1-lite.
        (&double, None),
        (&double[1..], Some("found 9, expected 19 or 8")),
    ] {
        let checkpoint = lose("bfl_dev.txt", lost);
        let weights = checkpoint.need(TRANSFORMER).unwrap();
        let read = FluxConfig::read(weights, None).map_err(|e| e.to_string());
        match words {
            None => assert!(read.is_ok(), "{read:?}"),
            Some(words) => assert!(read.clone().unwrap_err().contains(words), "{read:?}"),
        }
    }
    let checkpoint = lose("bfl_dev.txt", &["single_blocks.37."]);
    let config = json!({ "num_single_layers": 37 });
    assert!(FluxConfig::read(checkpoint.need(TRANSFORMER).unwrap(), Some(&config)).is_ok());

    let checkpoint = lose("t5_single.txt", &["encoder.block.23."]);
    let e = T5Config::read(checkpoint.need(T5).unwrap(), None).unwrap_err().to_string();
    assert!(e.contains("found 23, expected 24"), "{e}");
    let config = json!({ "num_layers": 23 });
    assert!(T5Config::read(checkpoint.need(T5).unwrap(), Some(&config)).is_ok());
    let checkpoint = lose("clip.txt", &["text_model.encoder.layers.11."]);
    let e = ClipConfig::read(checkpoint.need(CLIP).unwrap(), None).unwrap_err().to_string();
    assert!(e.contains("found 11, expected 12"), "{e}");
}

#[test]
fn a_part_of_the_guidance_embedding_is_not_schnell() {
    let without = |names: &[&str], with_config| {
        let mut parsed = synthetic(Storage::BF16, with_config);
        parsed.tensors.retain(|name, _| !names.iter().any(|n| name.contains(n)));
        parsed
    };
    // Three of its four tensors are missing.
    let names = ["guidance_in.in_layer", "guidance_in.out_layer.bias"];
    let e = refused(&without(&names, false)).to_string();
    assert!(e.contains("guidance_in.in_layer.weight is missing") && e.contains("3 missing"), "{e}");
    // All of them, which only the config tells from schnell.
    let e = refused(&without(&["guidance_in."], true)).to_string();
    assert!(e.contains("guidance_in.in_layer.weight is missing"), "{e}");
    without(&["guidance_in."], false).open().and_then(judge).unwrap();
    let mut more = synthetic(Storage::BF16, true);
    more.config(|config| config["transformer"]["guidance_embeds"] = false.into());
    assert!(refused(&more).to_string().contains("guidance_embeds false"));
}

#[test]
fn a_tensor_that_is_not_understood_inside_a_network_is_refused_and_one_outside_is_noted() {
    let whole = synthetic(Storage::BF16, true);
    let any = whole.tensors.values().next().unwrap().clone();
    for name in [
        "model.diffusion_model.double_blocks.0.img_attn.qkv.weight_extra",
        "model.diffusion_model.double_blocks.0.img_attn.extra.weight",
        "model.diffusion_model.img_in.gate",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.bias",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.extra.weight",
        "vae.decoder.up.0.attn.0.q.weight",
    ] {
        let mut parsed = whole.clone();
        parsed.tensors.insert(name.into(), any.clone());
        let e = refused(&parsed).to_string();
        assert!(e.contains(name) && e.contains("not known"), "{e}");
    }
    // Known tensors without a place: a block more, and a shortcut where the width stays.
    let name = "model.diffusion_model.double_blocks.5.img_mod.lin.weight";
    let mut parsed = whole.clone();
    parsed.tensors.insert(name.into(), any.clone());
    assert!(refused(&parsed).to_string().contains(name));
    let mut parsed = whole.clone();
    parsed.tensors.insert("model.diffusion_model.pulid.0.weight".into(), any);
    let notes = parsed.open().and_then(judge).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("pulid.0.weight"), "{notes:?}");
}

#[test]
fn the_gains_of_q_and_k_have_two_names() {
    let plain = embedded();
    let mut renamed = plain.clone();
    renamed.rename("y_norm.scale", "y_norm.weight");
    let (plain, read) = (plain.open().unwrap(), renamed.open().unwrap());
    let (plain, read) = (plain.need(TRANSFORMER).unwrap(), read.need(TRANSFORMER).unwrap());
    assert!(plain.names().eq(read.names()));
    for name in plain.names().filter(|name| name.ends_with("_norm.scale")) {
        let values = |w: &ComponentWeights| w.get(name, 0, 1, 128).unwrap().to_f32();
        assert_eq!(values(plain), values(read), "{name}");
    }
    judge(renamed.open().unwrap()).unwrap();
    assert_each_norm_is_missed(&renamed);

    // Both names with the same values are one tensor; with other values they are an error.
    let name = "model.diffusion_model.single_blocks.1.norm.query_norm.";
    let (dtype, shape, mut bytes) = renamed.tensors[&format!("{name}weight")].clone();
    let second = format!("{name}scale");
    renamed.tensors.insert(second.clone(), (dtype.clone(), shape.clone(), bytes.clone()));
    judge(renamed.open().unwrap()).unwrap();
    bytes[3] ^= 1;
    renamed.tensors.insert(second.clone(), (dtype, shape, bytes));
    let e = refused(&renamed).to_string();
    assert!(e.contains("two names") && e.contains(&second), "{e}");
}

/// Under their second name the gains are missed by their usual one.
fn assert_each_norm_is_missed(parsed: &Parsed) {
    let is_gain = |n: &&String| n.ends_with("query_norm.weight") || n.ends_with("key_norm.weight");
    for name in parsed.tensors.keys().filter(is_gain) {
        let judged = open_source(Arc::new(parsed.bytes(name)), "m").and_then(judge);
        let usual = name.replace("y_norm.weight", "y_norm.scale");
        let e = judged.err().unwrap_or_else(|| panic!("accepted without {name}"));
        assert!(e.kind() == Kind::Model && e.to_string().contains(&usual), "{name}: {e}");
    }
}
