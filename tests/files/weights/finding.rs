//! Components are found where users keep them; the error for a missing one names its flag and the
//! searched places.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::places::{ModelKind, describe};
use flux_fast::library::{Checkpoint, Files, open};
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::spec::{Component, FAMILIES};
use safetensors::tensor::Dtype;

use super::support::*;
use crate::common::tensors::Tensors;

fn flux(path: PathBuf) -> PathBuf {
    zeros(&path, "BF16", &list("bfl_dev.txt"))
}

fn t5(path: PathBuf, dtype: &'static str) -> PathBuf {
    zeros(&path, dtype, &list("t5_single.txt"))
}

fn clip(path: PathBuf) -> PathBuf {
    zeros(&path, "F16", &list("clip.txt"))
}

fn vae(path: PathBuf) -> PathBuf {
    zeros(&path, "F32", &list("bfl_ae.txt"))
}

fn place(checkpoint: &Checkpoint, component: Component) -> PathBuf {
    checkpoint.need(component).unwrap().files().next().unwrap().to_path_buf()
}

#[test]
fn in_comfyui_the_sibling_folders_are_searched() {
    for folder in ["unet", "diffusion_models/flux", "checkpoints"] {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("ComfyUI/models");
        let model = flux(models.join(folder).join("flux1-dev.safetensors"));
        // Files of another width or kind, and broken files, are not used, whatever their names are.
        zeros(&models.join("clip/a_t5xxl_lookalike.safetensors"), "F16", &[("x".into(), vec![1])]);
        std::fs::write(models.join("clip/clip_l_broken.safetensors"), b"broken").unwrap();
        let narrow: Vec<Named> = list("clip.txt")
            .into_iter()
            .map(|(n, s)| (n, s.into_iter().map(|d| d.min(64)).collect()))
            .collect();
        zeros(&models.join("clip/clip_l.safetensors"), "F16", &narrow);
        let real = clip(models.join("clip/my encoder.safetensors"));
        t5(models.join("text_encoders/t5xxl_fp16.safetensors"), "F16");
        let small = t5(models.join("text_encoders/t5xxl_fp8_e4m3fn.safetensors"), "F8_E4M3");
        let sd: Vec<Named> = list("bfl_ae.txt")
            .into_iter()
            .map(
                |(n, s)| {
                    if n == "decoder.conv_in.weight" { (n, vec![512, 4, 3, 3]) } else { (n, s) }
                },
            )
            .collect();
        zeros(&models.join("vae/ae_sd.safetensors"), "F32", &sd);
        let ae = vae(models.join("vae/ae.safetensors"));

        let checkpoint = open(&Files::model(&model)).unwrap();
        assert_eq!(place(&checkpoint, T5), small);
        assert_eq!(place(&checkpoint, CLIP), real);
        assert_eq!(place(&checkpoint, VAE), ae);
        let line = format!(
            "t5: {} (found in {})",
            small.display(),
            models.join("text_encoders").display()
        );
        assert!(checkpoint.found.contains(&line), "{:?}", checkpoint.found);
    }
}

#[test]
fn files_next_to_the_model_come_first_and_a_flag_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let model = flux(models.join("Stable-diffusion/flux.safetensors"));
    let far = vae(models.join("VAE/ae.safetensors"));
    assert_eq!(place(&open(&Files::model(&model)).unwrap(), VAE), far);
    let near = vae(models.join("Stable-diffusion/ae.safetensors"));
    assert_eq!(place(&open(&Files::model(&model)).unwrap(), VAE), near);
    let given = vae(dir.path().join("elsewhere/whatever.safetensors"));
    for vae in [given.clone(), given.parent().unwrap().to_path_buf()] {
        let checkpoint = open(&Files::model(&model).with("vae", &vae)).unwrap();
        assert_eq!(place(&checkpoint, VAE), given);
        assert!(checkpoint.found.contains(&format!("vae: {} (given)", vae.display())));
    }
}

#[test]
fn the_short_ending_of_safetensors_is_found_like_the_long_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("flux.sft"));
    let ae = vae(dir.path().join("ae.sft"));
    let clip = clip(dir.path().join("text_encoder/model.sft"));
    for path in [model.as_path(), dir.path()] {
        let checkpoint = open(&Files::model(path)).unwrap();
        assert_eq!(place(&checkpoint, VAE), ae);
        assert_eq!(place(&checkpoint, CLIP), clip);
    }
}

#[test]
fn shards_are_found_by_an_index_of_every_form() {
    for (shards, index) in [
        (
            ["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"],
            "x.safetensors.index.json",
        ),
        (["x-00001-of-00002.sft", "x-00002-of-00002.sft"], "x.sft.index.json"),
        (
            ["x.bf16-00001-of-00002.safetensors", "x.bf16-00002-of-00002.safetensors"],
            "x.safetensors.index.bf16.json",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let names = list("bfl_dev.txt");
        let (first, second) = names.split_at(names.len() / 2);
        let mut map = serde_json::Map::new();
        for (shard, names) in shards.iter().zip([first, second]) {
            zeros(&dir.path().join(shard), "BF16", names);
            map.extend(names.iter().map(|(name, _)| (name.clone(), (*shard).into())));
        }
        let index = dir.path().join(index);
        std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        for path in [index.as_path(), &dir.path().join(shards[1]), dir.path()] {
            let checkpoint = open(&Files::model(path)).unwrap();
            let files =
                checkpoint.need(flux_fast::spec::flux1::TRANSFORMER).unwrap().files().count();
            assert_eq!(files, 2, "{}", path.display());
        }
    }
}

#[test]
fn a_folder_of_single_files_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    flux(dir.path().join("a.safetensors"));
    let other = t5(dir.path().join("b.safetensors"), "BF16");
    clip(dir.path().join("c.safetensors"));
    vae(dir.path().join("d.safetensors"));
    let checkpoint = open(&Files::model(dir.path())).unwrap();
    assert!(required().all(|c| checkpoint.need(c).is_ok()));
    assert_eq!(place(&checkpoint, T5), other);
    flux(dir.path().join("e.safetensors"));
    let e = open(&Files::model(dir.path())).err().unwrap();
    assert_eq!(e.kind(), Kind::Model);
    assert!(
        e.to_string().contains("2 transformers")
            && e.to_string().contains("a.safetensors, e.safetensors"),
        "{e}"
    );
}

#[test]
fn a_transformer_that_cannot_be_used_does_not_hide_another_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let flex: Vec<Named> = list("bfl_dev.txt")
        .into_iter()
        .map(|(n, s)| if n == "img_in.weight" { (n, vec![3072, 196]) } else { (n, s) })
        .collect();
    zeros(&dir.path().join("flex.safetensors"), "BF16", &flex);
    let good = flux(dir.path().join("good.safetensors"));
    let checkpoint = open(&Files::model(dir.path())).unwrap();
    assert_eq!(place(&checkpoint, TRANSFORMER), good);
    let note = |l: &String| l.contains("good.safetensors (files") && l.contains("Flex.2");
    assert!(checkpoint.found.iter().any(note), "{:?}", checkpoint.found);
    // Without a good one, every other is listed with its reason.
    let holey: Vec<Named> =
        list("bfl_dev.txt").into_iter().filter(|t| t.0 != "txt_in.bias").collect();
    zeros(&good, "BF16", &holey);
    let lora = [("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight".into(), vec![4, 3072])];
    let lora = zeros(&dir.path().join("style.safetensors"), "BF16", &lora);
    for reasons in [
        &["flex.safetensors", "Flex.2", "style", "a LoRA", "txt_in.bias"][..],
        &["flex.safetensors", "Flex.2", "style", "a LoRA"],
    ] {
        let e = open(&Files::model(dir.path())).err().unwrap();
        assert_eq!(e.kind(), Kind::Model, "{e}");
        for reason in reasons {
            assert!(e.to_string().contains(reason), "{reason}: {e}");
        }
        std::fs::remove_file(&good).ok();
    }
    // Alone it is opened, and its use says what it is.
    std::fs::remove_file(lora).unwrap();
    assert!(open(&Files::model(dir.path())).is_ok());
}

#[test]
fn a_damaged_text_encoder_next_to_the_model_is_not_called_missing() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("flux.safetensors"));
    for (component, file, start) in [
        (T5, "t5_single.txt", "encoder.block.0."),
        (CLIP, "clip.txt", "text_model.encoder.layers.0."),
    ] {
        // Without its first block it is recognised by its second.
        let path = dir.path().join("text.safetensors");
        let rest: Vec<Named> =
            list(file).into_iter().filter(|(name, _)| !name.starts_with(start)).collect();
        zeros(&path, "BF16", &rest);
        assert_eq!(place(&open(&Files::model(&model)).unwrap(), component), path);
        std::fs::remove_file(path).unwrap();
    }
    // Without the scale of one matrix of FP8.
    let tiny = Tensors::tiny();
    let small = dir.path().join("small");
    let model_of_tiny = tiny.without(crate::common::tensors::T5).write(small.join("a.safetensors"));
    let mut t5 = tiny.below(crate::common::tensors::T5);
    let lost = t5.tensors.keys().find(|n| n.ends_with(".q.weight_scale")).unwrap().clone();
    t5.tensors.remove(&lost);
    t5.write(small.join("t5xxl.safetensors"));
    let e = open(&Files::model(&model_of_tiny)).unwrap().need(T5).err().unwrap();
    assert_eq!(e.kind(), Kind::Model, "{e}");
    let layer = lost.strip_suffix(".weight_scale").unwrap();
    for words in ["t5xxl.safetensors", layer, "cannot be used"] {
        assert!(e.to_string().contains(words), "{words}: {e}");
    }
    // One for another transformer is passed over as before.
    let other: Vec<Named> = list("t5_single.txt")
        .into_iter()
        .map(|(n, s)| (n, s.into_iter().map(|d| d.min(1024)).collect()))
        .collect();
    zeros(&dir.path().join("t5xxl.safetensors"), "BF16", &other);
    let e = open(&Files::model(&model)).unwrap().need(T5).err().unwrap();
    assert_eq!(e.kind(), Kind::Missing, "{e}");
}

#[test]
fn a_snapshot_in_the_hugging_face_cache_is_named_after_its_repository() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join(
        "models--black-forest-labs--FLUX.1-dev/snapshots/0ef5fff789c832c5c7f4e127f94c8b54bbcced44",
    );
    // As in the repository: a single file, and the other components in diffusers' folders.
    let blob = flux(dir.path().join("models--black-forest-labs--FLUX.1-dev/blobs/4610115"));
    std::fs::create_dir_all(&root).unwrap();
    let link = root.join("flux1-dev.safetensors");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&blob, &link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(&blob, &link).unwrap();
    let t5 = t5(root.join("text_encoder_2/model.safetensors"), "BF16");
    let clip = clip(root.join("text_encoder/model.safetensors"));
    std::fs::write(root.join("model_index.json"), "{}").unwrap();
    for path in [root.clone(), link] {
        let checkpoint = open(&Files::model(&path)).unwrap();
        assert_eq!(place(&checkpoint, T5), t5);
        assert_eq!(place(&checkpoint, CLIP), clip);
        assert_eq!(checkpoint.need(VAE).err().unwrap().kind(), Kind::Missing);
        assert_eq!(checkpoint.name, if path == root { "FLUX.1-dev" } else { "flux1-dev" });
    }
}

#[test]
fn umt5_is_not_taken_for_t5() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("flux.safetensors"));
    let mut names = list("t5_single.txt");
    names.push((
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight".into(),
        vec![32, 64],
    ));
    zeros(&dir.path().join("t5xxl.safetensors"), "BF16", &names);
    assert!(open(&Files::model(&model)).unwrap().get(T5).is_none());
}

#[test]
fn a_missing_component_is_reported_with_its_flag_and_the_places() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("models/unet/flux1-dev.safetensors"));
    let checkpoint = open(&Files::model(&model)).unwrap();
    for (component, parameter, folder) in [
        (T5, "`t5`", "models/text_encoders"),
        (CLIP, "`clip`", "models/clip"),
        (VAE, "`vae`", "models/vae"),
    ] {
        let e = checkpoint.need(component).err().unwrap();
        assert_eq!(e.kind(), Kind::Missing);
        assert!(e.hint().unwrap().contains(parameter), "{e}");
        assert!(e.to_string().contains(dir.path().join(folder).to_str().unwrap()), "{e}");
        assert!(e.to_string().contains(model.parent().unwrap().to_str().unwrap()), "{e}");
    }
    let wrong = Files::model(&model).with("t5", &model);
    let e = open(&wrong).err().unwrap();
    assert!(e.to_string().contains("holds no T5 text encoder"), "{e}");
}

#[test]
fn a_path_that_does_not_exist_suggests_similar_ones() {
    let dir = tempfile::tempdir().unwrap();
    flux(dir.path().join("flux1-dev.safetensors"));
    let missing = |path: &Path| open(&Files::model(path)).err().unwrap();
    let e = missing(&dir.path().join("flux1-dve.safetensors"));
    assert_eq!(e.kind(), Kind::Missing);
    assert_eq!(e.hint(), Some("did you mean flux1-dev.safetensors?"));
    let e = missing(&dir.path().join("no/such/folder.safetensors"));
    assert!(e.hint().unwrap().contains("does not exist either"), "{:?}", e.hint());
    let files = Files::model(dir.path()).with("clip", dir.path().join("x"));
    let e = open(&files).err().unwrap();
    assert!(e.kind() == Kind::Missing && e.to_string().starts_with("clip: "), "{e}");
}

#[test]
fn a_t5_of_every_storage_type_is_found_next_to_the_model() {
    let tiny = Tensors::tiny();
    let dir = tempfile::tempdir().unwrap();
    let plain = tiny.below(crate::common::tensors::T5).write(dir.path().join("t5.safetensors"));
    let source = flux_fast::library::convert::open_only(&plain).unwrap();
    let named = Target::NAMED.map(|(_, target)| target);
    let more = [DType::Fp4, DType::Mxfp8, DType::Nvfp4].map(Target::Blocks);
    for target in named.into_iter().chain(more).chain([Target::Aredden]) {
        let name = format!("text_encoder_2/model.{}", target.extension());
        let dir = tempfile::tempdir().unwrap();
        let model = tiny.without(crate::common::tensors::T5).write(dir.path().join("a.sft"));
        let t5 = dir.path().join(name);
        convert(&source, target, &t5, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let checkpoint = open(&Files::model(&model)).unwrap();
        assert_eq!(place(&checkpoint, T5), t5, "{target:?}");
        let shape =
            |c: &Checkpoint| c.get(T5).unwrap().full_shape("shared.weight").map(<[_]>::to_vec);
        assert_eq!(shape(&checkpoint), shape(&source), "{target:?}");
        let (kind, what) = describe(&t5, FAMILIES);
        assert_eq!(kind, ModelKind::Part(T5), "{what}");
        assert!(what.contains("width 128"), "{target:?}: {what}");
        if target == Target::Blocks(DType::Nf4) {
            // The scales of double quantisation.
            let mut nested = Tensors::read(&t5);
            nest(&mut nested);
            nested.write(&t5);
            let checkpoint = open(&Files::model(&model)).unwrap();
            assert_eq!(place(&checkpoint, T5), t5);
        }
    }
}

/// Makes the scales of NF4 nested ones, all of the same value.
fn nest(file: &mut Tensors) {
    let layers: Vec<String> =
        file.tensors.keys().filter_map(|n| n.strip_suffix(".absmax")).map(String::from).collect();
    for layer in layers {
        let floats = |n: usize| (Dtype::F32, vec![n], 1f32.to_le_bytes().repeat(n));
        let absmax = file.tensors.get_mut(&format!("{layer}.absmax")).unwrap();
        let blocks = absmax.1[0];
        *absmax = (Dtype::U8, vec![blocks], vec![0; blocks]);
        let state =
            file.tensors.get_mut(&format!("{layer}.quant_state.bitsandbytes__nf4")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&state.2).unwrap();
        json["nested_blocksize"] = 256.into();
        json["nested_offset"] = 0.5.into();
        let bytes = json.to_string().into_bytes();
        *state = (Dtype::U8, vec![bytes.len()], bytes);
        file.tensors.insert(format!("{layer}.nested_absmax"), floats(blocks.div_ceil(256)));
        file.tensors.insert(format!("{layer}.nested_quant_map"), floats(256));
    }
}

#[test]
fn the_plain_file_is_taken_before_its_variants_and_both_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("model/flux.safetensors"));
    let plain = t5(dir.path().join("model/text_encoder_2/model.safetensors"), "BF16");
    t5(dir.path().join("model/text_encoder_2/model.fp16.safetensors"), "F16");
    let checkpoint = open(&Files::model(&model)).unwrap();
    assert_eq!(place(&checkpoint, T5), plain);
    let rather = "model.safetensors rather than model.fp16.safetensors";
    assert!(checkpoint.found.iter().any(|l| l.contains(rather)), "{:?}", checkpoint.found);

    // The same for the transformer of a folder, with or without model_index.json.
    let root = dir.path().join("diffusers");
    let plain = flux(root.join("transformer/diffusion_pytorch_model.safetensors"));
    flux(root.join("transformer/diffusion_pytorch_model.fp16.safetensors"));
    for (folder, index) in [("transformer", false), ("", true)] {
        if index {
            std::fs::write(root.join("model_index.json"), "{}").unwrap();
        }
        let checkpoint = open(&Files::model(root.join(folder))).unwrap();
        assert_eq!(place(&checkpoint, flux_fast::spec::flux1::TRANSFORMER), plain);
        let rather = "diffusion_pytorch_model.safetensors rather than \
                      diffusion_pytorch_model.fp16.safetensors";
        assert!(checkpoint.found.iter().any(|l| l.contains(rather)), "{:?}", checkpoint.found);
    }
}

#[test]
fn a_file_that_cannot_be_used_does_not_hide_the_others_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = flux(dir.path().join("flux.safetensors"));
    let text = dir.path().join("text_encoder_2");
    // One shard of two, an index that is damaged, and a file in a form that cannot be read.
    let names = list("t5_single.txt");
    zeros(&text.join("model-00001-of-00002.safetensors"), "BF16", &names[..9]);
    std::fs::write(text.join("other.safetensors.index.json"), "{").unwrap();
    let mut packed = names.clone();
    packed.push(("encoder.block.0.layer.0.SelfAttention.q.qweight".into(), vec![4096]));
    zeros(&text.join("t5xxl_gptq.safetensors"), "I8", &packed);
    let e = open(&Files::model(&model)).unwrap().need(T5).err().unwrap();
    assert_eq!(e.kind(), Kind::Missing);
    for reason in [
        "model-00002-of-00002.safetensors: a shard is missing",
        "other.safetensors.index.json: index of shards is not JSON",
        "t5xxl_gptq.safetensors",
        "GPTQ or AWQ",
    ] {
        assert!(e.to_string().contains(reason), "{reason}: {e}");
    }
    let good = t5(text.join("x.safetensors"), "BF16");
    assert_eq!(place(&open(&Files::model(&model)).unwrap(), T5), good);
    // The files in the folder are listed although some are damaged.
    let found = flux_fast::library::inspect(&text).unwrap();
    assert!(found.notes.iter().any(|n| n.contains("a shard is missing")), "{:?}", found.notes);
}
