//! FLUX.2 [klein] against diffusers and transformers, component by component and as a whole, at two
//! small geometries: distilled, and base with true CFG.

use std::path::PathBuf;

use super::{close, devices, f32_on, f32_options, pack, same_picture};
use crate::common::{Golden, Input, adapter, channels_last, files, resolve, run, temp_dir};
use flux_fast::backend::Device;
use flux_fast::dtype::DType;
use flux_fast::library::{Checkpoint, Files, open, open_only};
use flux_fast::model::SequenceShape;
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::model::{Flux2Config, Qwen3Config, VaeConfig, flux2, qwen3, vae};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Options, Request};
use flux_fast::pipeline::schedule::{Schedule, ScheduleConfig, empirical_mu};
use flux_fast::spec::flux2::{QWEN3, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::Value;

pub const MODELS: [&str; 2] = ["klein_distilled", "klein_base"];

pub struct Geometry {
    pub flux: Flux2Config,
    qwen3: Qwen3Config,
    vae: VaeConfig,
}

/// The geometry from the config files, not from the shapes: reading shapes is what is tested.
fn geometry(config: &Value) -> Geometry {
    let n = |component: &str, key: &str| {
        config[component][key].as_u64().unwrap_or_else(|| panic!("{component}.{key}")) as usize
    };
    let list = |component: &str, key: &str| -> Vec<usize> {
        let list = config[component][key].as_array().unwrap();
        list.iter().map(|v| v.as_u64().unwrap() as usize).collect()
    };
    let (heads, head_dim) =
        (n("transformer", "num_attention_heads"), n("transformer", "attention_head_dim"));
    let hidden = heads * head_dim;
    let ratio = config["transformer"]["mlp_ratio"].as_f64().unwrap();
    let flux = Flux2Config {
        in_channels: n("transformer", "in_channels"),
        out_channels: n("transformer", "in_channels"),
        hidden,
        heads,
        head_dim,
        mlp_hidden: (hidden as f64 * ratio) as usize,
        depth_double: n("transformer", "num_layers"),
        depth_single: n("transformer", "num_single_layers"),
        context: n("transformer", "joint_attention_dim"),
        axes: list("transformer", "axes_dims_rope"),
        ..Flux2Config::klein_4b()
    };
    let qwen3 = Qwen3Config {
        vocab: n("text_encoder", "vocab_size"),
        width: n("text_encoder", "hidden_size"),
        heads: n("text_encoder", "num_attention_heads"),
        kv_heads: n("text_encoder", "num_key_value_heads"),
        head_dim: n("text_encoder", "head_dim"),
        ff: n("text_encoder", "intermediate_size"),
        layers: n("text_encoder", "num_hidden_layers"),
        ..Qwen3Config::qwen3_4b()
    };
    let (channels, encoder) =
        (list("vae", "decoder_block_out_channels"), list("vae", "block_out_channels"));
    let vae = VaeConfig {
        encoder_channels: (encoder != channels).then_some(encoder),
        channels,
        blocks: n("vae", "layers_per_block"),
        latent: n("vae", "latent_channels"),
        groups: n("vae", "norm_num_groups"),
        ..VaeConfig::flux2()
    };
    Geometry { flux, qwen3, vae }
}

/// The golden's weights as a checkpoint on disk.
pub struct Written {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub geometry: Geometry,
}

impl Written {
    pub fn new(golden: &Golden, dialect: Dialect, storage: Storage, grid: Grid) -> Self {
        let g = geometry(&golden.config);
        let named = |component, list: Vec<(String, Vec<usize>)>| {
            list.into_iter().map(move |(n, s)| (component, n, s))
        };
        let tensors = named(TRANSFORMER, flux2::tensors(&g.flux))
            .chain(named(QWEN3, qwen3::tensors(&g.qwen3)))
            .chain(named(VAE, vae::tensors(&g.vae)))
            .collect();
        let configs = golden.config.clone();
        let spec = SynthSpec { seed: golden.seed, tensors, grid, storage, dialect, configs };
        let dir = temp_dir();
        let path = dir.path().join(match dialect {
            Dialect::Comfy => "model.safetensors",
            _ => "model",
        });
        synth::write(&spec, &path).unwrap();
        Written { _dir: dir, path, geometry: g }
    }

    pub fn open(&self) -> Checkpoint {
        open(&Files::model(&self.path)).unwrap()
    }

    pub fn engine(&self, options: &Options) -> Engine {
        Engine::open(options.clone().files(files(&self.path))).unwrap()
    }
}

pub fn plain(golden: &Golden) -> Written {
    Written::new(golden, Dialect::Comfy, Storage::F32, Grid::F32)
}

#[test]
fn qwen3_equals_transformers() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let checkpoint = written.open();
        let weights = checkpoint.get(QWEN3).unwrap();
        let read = Qwen3Config::read(weights, weights.config()).unwrap();
        assert_eq!(read, written.geometry.qwen3);
        let (ids, real) = (golden.ids("qwen3.ids"), golden.ids("qwen3.real")[0] as usize);
        let rope = qwen3::rope(&read, ids.len());
        let table = weights.get(qwen3::EMBEDDING, 0, read.vocab, read.width).unwrap();
        let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        let tokens = table.rows_to_f32(&rows).unwrap();
        for backend in devices.iter_mut().map(Box::as_mut) {
            let program = qwen3::encode(&read, &[real], ids.len(), DType::F32);
            let inputs = [("tokens", Input::F32(&tokens)), ("rope", Input::F32(&rope))];
            let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            close("qwen3", &golden, &out["text"], &golden.f32("qwen3.out"));
            // Two prompts together, of which the second one has no padding.
            let twice = [tokens.clone(), tokens.clone()].concat();
            let program = qwen3::encode(&read, &[real, ids.len()], ids.len(), DType::F32);
            let inputs = [("tokens", Input::F32(&twice)), ("rope", Input::F32(&rope))];
            let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            let text = &out["text"];
            close("the first", &golden, &text[..text.len() / 2], &golden.f32("qwen3.out"));
            let (rows, context) = (real * read.context(), read.context());
            close(
                "real tokens of the second",
                &golden,
                &text[text.len() / 2..text.len() / 2 + rows],
                &golden.f32("qwen3.out")[..rows],
            );
            let last = |v: &[f32]| v[v.len() - context..].to_vec();
            assert_ne!(last(text), last(&golden.f32("qwen3.out")), "padding is a key there");
        }
    }
}

#[test]
fn the_transformer_of_flux2_equals_diffusers_with_and_without_references() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let checkpoint = written.open();
        let weights = checkpoint.get(TRANSFORMER).unwrap();
        let read = Flux2Config::read(weights, weights.config()).unwrap();
        assert_eq!(read, written.geometry.flux);
        let (grid, grids) = (golden.ids("flux2.grid"), golden.ids("flux2.reference_grids"));
        let image = DenoiseShape {
            images: 1,
            cfg: false,
            text_tokens: golden.shape("flux2.txt")[0],
            height: grid[0] as usize,
            width: grid[1] as usize,
        };
        let grids: Vec<_> = grids.chunks(2).map(|g| (g[0] as usize, g[1] as usize)).collect();
        let (img, txt) = (golden.f32("flux2.img"), golden.f32("flux2.txt"));
        let references = golden.f32("flux2.references");
        for backend in devices.iter_mut().map(Box::as_mut) {
            let t = golden.f32("flux2.timestep");
            let program = flux2::modulate(&read, 1, DType::F32);
            let inputs = [("timestep", Input::F32(&t))];
            let all = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            let modulation = &all["modulation"];
            for (with, want) in
                [(vec![], "flux2.velocity"), (grids.clone(), "flux2.reference_velocity")]
            {
                let shape = SequenceShape { image, references: with, added_inputs: 0 };
                let program = flux2::denoise(&read, &shape, DType::F32);
                let rope = flux2::rope(&read, &shape);
                let mut inputs = vec![
                    ("latents", Input::F32(&img)),
                    ("text", Input::F32(&txt)),
                    ("modulation", Input::F32(modulation)),
                    ("rope", Input::F32(&rope)),
                    ("step", Input::F32(&[-0.25, 1.0])),
                ];
                if !shape.references.is_empty() {
                    inputs.push(("references", Input::F32(&references)));
                }
                let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
                close(want, &golden, &out["velocity"], &golden.f32(want));
                let want = golden.f32(want);
                let stepped: Vec<f32> = img.iter().zip(&want).map(|(x, v)| x - 0.25 * v).collect();
                close("euler", &golden, &out["latents"], &stepped);
            }
        }
    }
}

/// A guidance embedding, uneven axes, no double or no single block, few and narrow heads, and grids
/// of one row or column.
#[test]
fn the_transformer_of_flux2_at_other_geometries_equals_diffusers() {
    let mut devices = devices();
    let golden = Golden::read("flux2_geometries");
    for (name, config) in golden.config.as_object().unwrap() {
        let of = |key: &str| format!("{name}.{key}");
        let n = |key: &str| config[key].as_u64().unwrap() as usize;
        let (heads, head_dim) = (n("num_attention_heads"), n("attention_head_dim"));
        let axes = config["axes_dims_rope"].as_array().unwrap();
        let c = Flux2Config {
            in_channels: n("in_channels"),
            out_channels: n("in_channels"),
            hidden: heads * head_dim,
            heads,
            head_dim,
            mlp_hidden: ((heads * head_dim) as f64 * config["mlp_ratio"].as_f64().unwrap())
                as usize,
            depth_double: n("num_layers"),
            depth_single: n("num_single_layers"),
            context: n("joint_attention_dim"),
            time_dim: 256,
            guidance: config["guidance_embeds"].as_bool().unwrap(),
            axes: axes.iter().map(|v| v.as_u64().unwrap() as usize).collect(),
            theta: config["rope_theta"].as_f64().unwrap(),
            keeps_references: false,
        };
        let tensors = flux2::tensors(&c).into_iter().map(|(n, s)| (TRANSFORMER, n, s)).collect();
        let configs = serde_json::json!({ "transformer": config });
        let (grid, storage, dialect) = (Grid::F32, Storage::F32, Dialect::Bfl);
        let spec = SynthSpec { seed: golden.seed, tensors, grid, storage, dialect, configs };
        let dir = temp_dir();
        let path = dir.path().join("model.safetensors");
        synth::write(&spec, &path).unwrap();
        let checkpoint = open_only(&path).unwrap();
        let weights = checkpoint.get(TRANSFORMER).unwrap();
        assert_eq!(Flux2Config::read(weights, weights.config()).unwrap(), c, "{name}");
        let (grid, grids) = (golden.ids(&of("grid")), golden.ids(&of("reference_grids")));
        let image = DenoiseShape {
            images: 1,
            cfg: false,
            text_tokens: golden.shape(&of("txt"))[0],
            height: grid[0] as usize,
            width: grid[1] as usize,
        };
        let grids: Vec<_> = grids.chunks(2).map(|g| (g[0] as usize, g[1] as usize)).collect();
        let f32 = |key: &str| golden.f32(&of(key));
        for backend in devices.iter_mut().map(Box::as_mut) {
            let program = flux2::modulate(&c, 1, DType::F32);
            let t = f32("timestep");
            let guidance = c.guidance.then(|| f32("guidance"));
            let mut inputs = vec![("timestep", Input::F32(&t))];
            inputs.extend(guidance.as_ref().map(|g| ("guidance", Input::F32(g))));
            let all = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            for (references, want) in [(vec![], "velocity"), (grids.clone(), "reference_velocity")]
            {
                let shape = SequenceShape { image, references, added_inputs: 0 };
                let program = flux2::denoise(&c, &shape, DType::F32);
                let (rope, packed) = (flux2::rope(&c, &shape), f32("references"));
                let (img, txt) = (f32("img"), f32("txt"));
                let mut inputs = vec![
                    ("latents", Input::F32(&img)),
                    ("text", Input::F32(&txt)),
                    ("modulation", Input::F32(&all["modulation"])),
                    ("rope", Input::F32(&rope)),
                    ("step", Input::F32(&[-0.25, 1.0])),
                ];
                if !shape.references.is_empty() {
                    inputs.push(("references", Input::F32(&packed)));
                }
                let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
                close(&of(want), &golden, &out["velocity"], &f32(want));
            }
        }
    }
}

#[test]
fn the_autoencoder_of_flux2_equals_diffusers() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let checkpoint = written.open();
        let weights = checkpoint.get(VAE).unwrap();
        let read = VaeConfig::read(weights, weights.config()).unwrap();
        assert_eq!(read, written.geometry.vae);
        for backend in devices.iter_mut().map(Box::as_mut) {
            let shape = golden.shape("vae.latent");
            let program = vae::decode(&read, shape[1], shape[2], DType::F32);
            let tokens = pack(&golden.f32("vae.latent"), &shape);
            let inputs = [("latents", Input::F32(&tokens))];
            let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            close("decode", &golden, &out["pixels"], &channels_last(&golden.f32("vae.image"), 3));

            let shape = golden.shape("vae.pixels");
            let program = vae::encode(&read, shape[1], shape[2], DType::F32);
            let pixels = channels_last(&golden.f32("vae.pixels"), 3);
            let inputs = [("pixels", Input::F32(&pixels))];
            let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            let want = pack(&golden.f32("vae.mean"), &golden.shape("vae.mean"));
            close("encode", &golden, &out["latents"], &want);
        }
    }
}

#[test]
fn the_noise_levels_of_flux2_are_those_of_diffusers() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../golden/flux2_schedule.json")).unwrap();
    assert_eq!(cases.len(), 36);
    for case in cases {
        let n = |key: &str| case[key].as_u64().unwrap() as usize;
        let mu = empirical_mu(n("image_tokens"), n("steps"));
        let got = Schedule::with_mu(&ScheduleConfig::dev(), n("steps"), mu).sigmas;
        let want = case["sigmas"].as_array().unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let want = want.as_f64().unwrap();
            assert!((f64::from(*got) - want).abs() <= 1e-7, "{case}: {got}");
        }
    }
}

pub fn request(golden: &Golden) -> Request {
    Request::new(golden.text("prompt"))
        .steps(golden.number("steps") as usize)
        .seed(golden.number("seed") as u64)
        .cfg_scale(golden.number("cfg_scale") as f32)
        .size(golden.number("width") as usize, golden.number("height") as usize)
}

#[test]
fn whole_images_of_flux2_equal_diffusers() {
    whole_images(Device::Cpu);
}

#[test]
fn whole_images_of_flux2_by_wgpu_equal_diffusers() {
    if adapter::get().is_some() {
        whole_images(Device::Wgpu(0));
    }
}

fn whole_images(device: Device) {
    for golden in MODELS.map(Golden::read) {
        let mut engine = plain(&golden).engine(&f32_on(device));
        let base = request(&golden);
        let out = engine.generate(&base).unwrap();
        close("latents", &golden, &out.latents, &golden.f32("pipe.latents"));
        same_picture("image", &golden, &out.images[0], &golden.f32("pipe.decoded"));

        let out = engine.generate(&base.clone().count(2)).unwrap();
        close("batch latents", &golden, &out.latents, &golden.f32("batch.latents"));
        let decoded = golden.f32("batch.decoded");
        for (image, decoded) in out.images.iter().zip(decoded.chunks(decoded.len() / 2)) {
            same_picture("batch", &golden, image, decoded);
        }
    }
}

#[test]
fn images_after_references_equal_diffusers() {
    for golden in MODELS.map(Golden::read) {
        let mut engine = plain(&golden).engine(&f32_options());
        let picture = |n: usize| {
            let name = format!("reference.{n}.picture");
            let shape = golden.shape(&name);
            Image { width: shape[1], height: shape[0], rgb: golden.u8(&name) }
        };
        let mut request = request(&golden);
        for n in [1, 2] {
            request = request.reference(picture(n));
            let out = engine.generate(&request).unwrap();
            let latents = golden.f32(&format!("reference.{n}.latents"));
            close(&format!("{n} references"), &golden, &out.latents, &latents);
            let decoded = golden.f32(&format!("reference.{n}.decoded"));
            same_picture(&format!("{n} references"), &golden, &out.images[0], &decoded);
        }
        // Without a size, the first reference has it; without references, the weights that stayed
        // are still those of their programs.
        let mut own = request.clone();
        (own.width, own.height) = (None, None);
        let out = engine.generate(&own).unwrap();
        let unit = 2 * plain(&golden).geometry.vae.factor();
        assert_eq!(
            (out.settings.width, out.settings.height),
            (100 / unit * unit, 70 / unit * unit)
        );
        request.references.clear();
        let out = engine.generate(&request).unwrap();
        close("latents", &golden, &out.latents, &golden.f32("pipe.latents"));
    }
}

/// Image-to-image at strength 0 keeps the image, as far as the autoencoder does; at 1 the image is
/// ignored.
#[test]
fn image_to_image_of_flux2_begins_with_the_image() {
    let golden = Golden::read("klein_distilled");
    let mut engine = plain(&golden).engine(&f32_options());
    let base = request(&golden);
    let drawn = engine.generate(&base).unwrap();
    let from = |strength| base.clone().init(drawn.images[0].clone()).strength(strength);
    let all = engine.generate(&from(1.0)).unwrap();
    assert_eq!(all.latents, drawn.latents);
    let half = engine.generate(&from(0.5)).unwrap();
    let none = engine.generate(&from(0.0)).unwrap();
    assert_ne!(half.latents, none.latents);
    assert!(none.latents.iter().all(|v| v.is_finite()));
}

/// Weights on the e4m3 grid are the same numbers in every dialect and storage type.
#[test]
fn every_dialect_of_flux2_gives_the_same_latents() {
    let golden = Golden::read("klein_base");
    let base = request(&golden);
    let mut reference: Option<Vec<f32>> = None;
    for (dialect, storage) in [
        (Dialect::Comfy, Storage::F32),
        (Dialect::Bfl, Storage::BF16),
        (Dialect::Bfl, Storage::F8ScaledNew),
        (Dialect::Diffusers { shard_bytes: None }, Storage::F32),
        (Dialect::Diffusers { shard_bytes: Some(300_000) }, Storage::BF16),
    ] {
        let written = Written::new(&golden, dialect, storage, Grid::F8);
        let out = written.engine(&f32_options()).generate(&base).unwrap().latents;
        match &reference {
            Some(want) => close(&format!("{dialect:?} {storage:?}"), &golden, &out, want),
            None => reference = Some(out),
        }
    }
}
