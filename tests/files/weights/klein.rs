//! FLUX.2's files: real tensor lists of every dialect, alone and next to one another, and the
//! models and parts that are not supported.

use std::path::Path;

use flux_fast::error::Kind;
use flux_fast::library::places::{ModelKind, describe};
use flux_fast::library::{Files, inspect, open};
use flux_fast::model::{Flux2Config, Qwen3Config, VaeConfig, flux2, qwen3, vae};
use flux_fast::spec::flux2::{FLUX2, QWEN3, TRANSFORMER, VAE};
use flux_fast::spec::{Component, FAMILIES, flux1};
use serde_json::json;

use super::support::*;

fn sorted(mut list: Vec<Named>) -> Vec<Named> {
    list.sort();
    list
}

/// The canonical lists are those of the networks.
#[test]
fn networks_have_the_tensors_of_the_published_files() {
    assert_eq!(sorted(list("bfl_klein_4b.txt")), sorted(flux2::tensors(&Flux2Config::klein_4b())));
    assert_eq!(sorted(list("qwen3_4b.txt")), sorted(qwen3::tensors(&Qwen3Config::qwen3_4b())));
    let mut list = list("bfl_flux2_ae.txt");
    list.retain(|t| t.0 != "bn.num_batches_tracked");
    assert_eq!(sorted(list), sorted(vae::tensors(&VaeConfig::flux2())));
}

/// Opens the model at `path` and checks every component of it.
fn assert_opens(path: &Path) {
    let checkpoint = open(&Files::model(path)).unwrap_or_else(|e| panic!("{e} {:?}", e.hint()));
    assert_eq!(checkpoint.family.name, "flux2");
    let expected: [(Component, Vec<Named>); 3] = [
        (TRANSFORMER, flux2::tensors(&Flux2Config::klein_4b())),
        (QWEN3, qwen3::tensors(&Qwen3Config::qwen3_4b())),
        (VAE, vae::tensors(&VaeConfig::flux2())),
    ];
    for (component, tensors) in expected {
        let weights = checkpoint.need(component).unwrap();
        assert_eq!(weights.check(&tensors).unwrap(), Vec::<String>::new(), "{component}");
    }
    let weights = checkpoint.need(TRANSFORMER).unwrap();
    assert_eq!(Flux2Config::read(weights, weights.config()).unwrap(), Flux2Config::klein_4b());
    let weights = checkpoint.need(QWEN3).unwrap();
    assert_eq!(Qwen3Config::read(weights, weights.config()).unwrap(), Qwen3Config::qwen3_4b());
    let weights = checkpoint.need(VAE).unwrap();
    assert_eq!(VaeConfig::read(weights, weights.config()).unwrap(), VaeConfig::flux2());
}

#[test]
fn klein_in_the_folders_of_comfyui() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = zeros(
        &at("diffusion_models/flux-2-klein-4b.safetensors"),
        "BF16",
        &list("bfl_klein_4b.txt"),
    );
    zeros(&at("text_encoders/qwen_3_4b.safetensors"), "BF16", &list("qwen3_4b.txt"));
    zeros(&at("vae/flux2-vae.safetensors"), "BF16", &list("bfl_flux2_ae.txt"));
    // Those of FLUX.1 are not taken.
    zeros(&at("vae/ae.safetensors"), "BF16", &list("bfl_ae.txt"));
    zeros(&at("text_encoders/clip_l.safetensors"), "BF16", &list("clip.txt"));
    assert_opens(&model);
    let (kind, what) = describe(&model, FAMILIES);
    assert_eq!((kind, what.as_str()), (ModelKind::Model, "FLUX.2 transformer (klein), BFL, bf16"));
    let (kind, what) = describe(&at("vae/flux2-vae.safetensors"), FAMILIES);
    assert!(kind == ModelKind::Part(VAE) && what.contains("latent channels 32"), "{what}");
    let (kind, _) = describe(&at("text_encoders/qwen_3_4b.safetensors"), FAMILIES);
    assert_eq!(kind, ModelKind::Part(QWEN3));
}

#[test]
fn klein_in_a_folder_of_diffusers_and_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let index = json!({ "_class_name": "Flux2KleinPipeline", "is_distilled": true });
    std::fs::write(at("model_index.json"), index.to_string()).unwrap();
    zeros(
        &at("transformer/diffusion_pytorch_model.safetensors"),
        "BF16",
        &list("diffusers_klein_4b.txt"),
    );
    zeros(&at("text_encoder/model.safetensors"), "BF16", &list("qwen3_4b.txt"));
    zeros(&at("vae/diffusion_pytorch_model.safetensors"), "BF16", &list("diffusers_flux2_vae.txt"));
    // The repository has BFL's file, too.
    zeros(&at("flux-2-klein-4b.safetensors"), "BF16", &list("bfl_klein_4b.txt"));
    assert_opens(dir.path());
    assert_opens(&at("flux-2-klein-4b.safetensors"));
    assert_eq!(open(&Files::model(dir.path())).unwrap().distilled(), Some(true));
    let looked = inspect(&at("transformer")).unwrap();
    assert_eq!(looked.components[0].geometry["double blocks"], "5");
    assert_eq!(looked.components[0].parameters, 3_875_544_576);

    let other = tempfile::tempdir().unwrap();
    let all = [
        prefixed("model.diffusion_model.", &list("bfl_klein_4b.txt")),
        prefixed("text_encoders.qwen3_4b.transformer.", &list("qwen3_4b.txt")),
        prefixed("vae.", &list("bfl_flux2_ae.txt")),
    ];
    assert_opens(&zeros(&other.path().join("klein.safetensors"), "BF16", &all.concat()));
}

#[test]
fn klein_9b_and_a_small_decoder_are_read_by_their_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let path = zeros(&dir.path().join("klein-9b.safetensors"), "BF16", &list("bfl_klein_9b.txt"));
    let checkpoint = open(&Files::model(&path)).unwrap();
    let weights = checkpoint.need(TRANSFORMER).unwrap();
    let read = Flux2Config::read(weights, None).unwrap();
    assert_eq!((read.hidden, read.heads, read.depth_double, read.depth_single), (4096, 32, 8, 24));
    assert_eq!((read.context, read.mlp_hidden), (12288, 12288));
    // A smaller text encoder does not fit.
    zeros(&dir.path().join("qwen_3_4b.safetensors"), "BF16", &list("qwen3_4b.txt"));
    let e = open(&Files::model(&path)).unwrap().need(QWEN3).err().unwrap();
    assert!(e.to_string().contains("width 2560"), "{e}");

    let small = VaeConfig {
        channels: vec![96, 192, 384, 384],
        encoder_channels: Some(vec![128, 256, 512, 512]),
        ..VaeConfig::flux2()
    };
    let path = dir.path().join("full_encoder_small_decoder.safetensors");
    let given = zeros(&path, "BF16", &vae::tensors(&small));
    let model = zeros(&dir.path().join("klein.safetensors"), "BF16", &list("bfl_klein_4b.txt"));
    let checkpoint = open(&Files::model(&model).with("vae", &given)).unwrap();
    let weights = checkpoint.need(VAE).unwrap();
    assert_eq!(VaeConfig::read(weights, None).unwrap(), small);
}

#[test]
fn parts_of_the_other_family_and_flux2_dev_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let klein = zeros(&at("klein.safetensors"), "BF16", &list("bfl_klein_4b.txt"));
    let old = zeros(&at("old/ae.safetensors"), "BF16", &list("bfl_ae.txt"));
    let new = zeros(&at("new/flux2-vae.safetensors"), "BF16", &list("bfl_flux2_ae.txt"));
    let dev = zeros(&at("dev/flux1-dev.safetensors"), "BF16", &list("bfl_dev.txt"));
    let refused = |model: &Path, option: &str, file: &Path| {
        let e = open(&Files::model(model).with(option, file)).err().unwrap();
        assert!(e.hint().is_some(), "{e}");
        e
    };
    let e = refused(&klein, "vae", &old);
    assert_eq!(
        (e.kind(), e.to_string().contains("FLUX.2 autoencoder")),
        (Kind::Model, true),
        "{e}"
    );
    let e = refused(&dev, "vae", &new);
    assert_eq!(
        (e.kind(), e.to_string().contains("FLUX.2 autoencoder")),
        (Kind::Model, true),
        "{e}"
    );
    assert_eq!(refused(&klein, "t5", &old).kind(), Kind::Argument);

    let path = zeros(&at("big/flux2-dev.safetensors"), "BF16", &list("bfl_flux2_dev.txt"));
    let (_, what) = describe(&path, FAMILIES);
    assert!(what.contains("(dev)"), "{what}");
    let checkpoint = open(&Files::model(&path)).unwrap();
    let weights = checkpoint.need(TRANSFORMER).unwrap();
    let e = flux_fast::library::networks::flux2(weights).err().unwrap();
    assert_eq!(e.kind(), Kind::Model, "{e}");
    assert!(e.to_string().contains("Mistral Small") && e.hint().is_some(), "{e}");
    let read = Flux2Config::read(weights, None).unwrap();
    assert_eq!((read.hidden, read.heads, read.depth_double, read.depth_single), (6144, 48, 8, 48));
    // The whole folder says the same before it asks for a text encoder.
    let options = flux_fast::Options::default().device(flux_fast::Device::Cpu);
    let e = flux_fast::Engine::open(options.model(path.display().to_string())).err().unwrap();
    assert!(e.to_string().contains("Mistral Small"), "{e}");
    assert_eq!(FLUX2.components[0], TRANSFORMER);
    assert_ne!(flux1::VAE, VAE);
}

/// Names of LoRAs as ai-toolkit, Kohya's musubi-tuner and diffusers write them: each changes the
/// rows of the weight that it is for.
#[test]
fn loras_of_flux2_are_bound_under_every_name() {
    use flux_fast::weights::lora;
    let dir = tempfile::tempdir().unwrap();
    let shapes = flux2::tensors(&Flux2Config::klein_4b());
    let shape = |name: &str| {
        let found = shapes.iter().find(|(n, _)| n == name).map(|(_, s)| s.clone());
        found.map(|s| (s[0], s.iter().skip(1).product::<usize>().max(1)))
    };
    let kohya = ("lora_down", "lora_up");
    let peft = ("lora_A", "lora_B");
    let path = dir.path().join("x.safetensors");
    for (layer, (down, up), weight, (rows, cols)) in [
        (
            "diffusion_model.double_blocks.0.img_attn.qkv",
            peft,
            "double_blocks.0.img_attn.qkv.weight",
            (9216, 3072),
        ),
        (
            "lora_unet_single_stream_modulation_lin",
            kohya,
            "single_stream_modulation.lin.weight",
            (9216, 3072),
        ),
        (
            "lora_unet_single_blocks_19_linear1",
            kohya,
            "single_blocks.19.linear1.weight",
            (27648, 3072),
        ),
        (
            "transformer.transformer_blocks.4.attn.add_k_proj",
            peft,
            "double_blocks.4.txt_attn.qkv.weight",
            (3072, 3072),
        ),
        (
            "transformer.single_transformer_blocks.3.attn.to_qkv_mlp_proj",
            peft,
            "single_blocks.3.linear1.weight",
            (27648, 3072),
        ),
        (
            "transformer.single_transformer_blocks.3.attn.to_out",
            peft,
            "single_blocks.3.linear2.weight",
            (3072, 12288),
        ),
        (
            "transformer.transformer_blocks.1.ff_context.linear_in",
            peft,
            "double_blocks.1.txt_mlp.0.weight",
            (18432, 3072),
        ),
    ] {
        let tensors = [
            (format!("{layer}.{down}.weight"), vec![4, cols]),
            (format!("{layer}.{up}.weight"), vec![rows, 4]),
        ];
        zeros(&path, "F32", &tensors);
        let adapter = lora::open(&path, &FLUX2, &|component, name| {
            (component == TRANSFORMER).then(|| shape(name)).flatten()
        });
        let adapter = adapter.unwrap_or_else(|e| panic!("{layer}: {e}"));
        let changed: Vec<&str> = adapter.changes().iter().map(|c| c.weight.as_str()).collect();
        assert_eq!(changed, [weight], "{layer}");
    }
    // One of FLUX.1 is refused by name.
    let layer = "transformer.single_transformer_blocks.3.proj_mlp";
    let tensors = [
        (format!("{layer}.lora_A.weight"), vec![4, 3072]),
        (format!("{layer}.lora_B.weight"), vec![12288, 4]),
    ];
    zeros(&path, "F32", &tensors);
    // Zeros would change nothing, whatever they are called.
    let mut bytes = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data..].fill(0x3f);
    std::fs::write(&path, bytes).unwrap();
    let e = lora::open(&path, &FLUX2, &|_, name| shape(name)).err().unwrap();
    assert!(e.to_string().contains("keys of FLUX.1"), "{e}");
}
