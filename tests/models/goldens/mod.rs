//! Each component and the whole pipeline against diffusers (`golden/README.md`), in f32, at three
//! geometries with and without guidance; and the same weights in every dialect.

mod adapters;
mod control_lora;
mod controlnets;
mod edit;
mod formats;
mod int8;
mod klein;
mod klein_convert;
mod klein_kv;
mod klein_loras;
mod klein_references;
mod loras;
mod qwen3_formats;
mod redux;

use std::path::PathBuf;

use crate::common::{
    Golden, Input, MODELS, adapter, channels_last, cpu, files, psnr, relative_error, resolve, run,
    temp_dir,
};
use flux_fast::backend::Backend;
use flux_fast::backend::wgpu::{WgpuBackend, WgpuOptions};
use flux_fast::backend::{Compute, Device};
use flux_fast::dtype::DType;
use flux_fast::library::{Checkpoint, Files, open};
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, flux1, t5, vae};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Generated, Image, Options, Request};
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

/// The goldens differ from the same models in f64 by about 1e-6; a wrong epsilon or GELU gives an
/// error above 1e-5.
const TOLERANCE: f64 = 1e-5;

struct Geometry {
    flux: FluxConfig,
    t5: T5Config,
    clip: ClipConfig,
    vae: VaeConfig,
}

/// The geometry from the config files, not from the shapes: reading shapes is what is tested.
fn geometry(config: &Value) -> Geometry {
    let n = |component: &str, key: &str| {
        config[component][key].as_u64().unwrap_or_else(|| panic!("{component}.{key}")) as usize
    };
    let list = |component: &str, key: &str| {
        config[component][key]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as usize)
            .collect::<Vec<_>>()
    };
    let (heads, head_dim) =
        (n("transformer", "num_attention_heads"), n("transformer", "attention_head_dim"));
    let hidden = heads * head_dim;
    let flux = FluxConfig {
        in_channels: n("transformer", "in_channels"),
        out_channels: match config["transformer"]["out_channels"].is_null() {
            true => n("transformer", "in_channels"),
            false => n("transformer", "out_channels"),
        },
        hidden,
        heads,
        head_dim,
        mlp_hidden: 4 * hidden,
        depth_double: n("transformer", "num_layers"),
        depth_single: n("transformer", "num_single_layers"),
        context: n("transformer", "joint_attention_dim"),
        pooled: n("transformer", "pooled_projection_dim"),
        time_dim: 256,
        guidance: config["transformer"]["guidance_embeds"].as_bool().unwrap(),
        axes: list("transformer", "axes_dims_rope"),
        theta: 10_000.0,
    };
    let t5 = T5Config {
        vocab: n("text_encoder_2", "vocab_size"),
        width: n("text_encoder_2", "d_model"),
        heads: n("text_encoder_2", "num_heads"),
        head_dim: n("text_encoder_2", "d_kv"),
        ff: n("text_encoder_2", "d_ff"),
        layers: n("text_encoder_2", "num_layers"),
        ..T5Config::xxl()
    };
    let clip = ClipConfig {
        width: n("text_encoder", "hidden_size"),
        heads: n("text_encoder", "num_attention_heads"),
        ff: n("text_encoder", "intermediate_size"),
        layers: n("text_encoder", "num_hidden_layers"),
        ..ClipConfig::large()
    };
    let number = |key: &str| config["vae"][key].as_f64().unwrap() as f32;
    let vae = VaeConfig {
        channels: list("vae", "block_out_channels"),
        blocks: n("vae", "layers_per_block"),
        latent: n("vae", "latent_channels"),
        groups: n("vae", "norm_num_groups"),
        scaling: number("scaling_factor"),
        shift: number("shift_factor"),
        ..VaeConfig::flux()
    };
    Geometry { flux, t5, clip, vae }
}

/// The golden's weights as a checkpoint on disk.
struct Written {
    _dir: tempfile::TempDir,
    path: PathBuf,
    geometry: Geometry,
}

impl Written {
    fn new(golden: &Golden, dialect: Dialect, storage: Storage, grid: Grid) -> Self {
        let g = geometry(&golden.config);
        let named = |component, list: Vec<(String, Vec<usize>)>| {
            list.into_iter().map(move |(n, s)| (component, n, s))
        };
        let tensors = named(TRANSFORMER, flux1::tensors(&g.flux))
            .chain(named(T5, t5::tensors(&g.t5)))
            .chain(named(CLIP, clip::tensors(&g.clip)))
            .chain(named(VAE, vae::tensors(&g.vae)))
            .collect();
        let mut configs = golden.config.clone();
        configs["tokenizer_2"] = json!({ "model_max_length": golden.number("t5_length") as usize });
        let spec = SynthSpec { seed: golden.seed, tensors, grid, storage, dialect, configs };
        let dir = temp_dir();
        let path = dir.path().join(if matches!(dialect, Dialect::Comfy) {
            "model.safetensors"
        } else {
            "model"
        });
        synth::write(&spec, &path).unwrap();
        Written { _dir: dir, path, geometry: g }
    }

    fn open(&self) -> Checkpoint {
        open(&Files::model(&self.path)).unwrap()
    }

    fn pipeline(&self, options: &Options) -> Engine {
        Engine::open(options.clone().files(files(&self.path))).unwrap()
    }
}

fn plain(golden: &Golden) -> Written {
    Written::new(golden, Dialect::Comfy, Storage::F32, Grid::F32)
}

fn f32_options() -> Options {
    f32_on(Device::Cpu)
}

fn f32_on(device: Device) -> Options {
    Options::default().device(device).compute(Compute::F32)
}

/// The CPU, and the first wgpu adapter if there is one, in F32.
fn devices() -> Vec<Box<dyn Backend>> {
    let mut devices: Vec<Box<dyn Backend>> = vec![Box::new(cpu(Compute::F32))];
    if adapter::get().is_some() {
        let options = WgpuOptions { compute: Compute::F32, ..WgpuOptions::default() };
        devices.push(Box::new(WgpuBackend::new(options).unwrap()));
    }
    devices
}

fn close(what: &str, golden: &Golden, got: &[f32], want: &[f32]) {
    let error = relative_error(got, want);
    println!("{} {what}: relative error {error:.2e}", golden.name);
    assert!(error <= TOLERANCE, "{} {what}: relative error {error:.2e}", golden.name);
}

#[test]
fn text_encoders_equal_transformers() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let (checkpoint, g) = (written.open(), &written.geometry);
        for backend in devices.iter_mut().map(Box::as_mut) {
            let weights = checkpoint.get(T5).unwrap();
            let read = T5Config::read(weights, weights.config()).unwrap();
            assert_eq!(read, g.t5);
            let ids = golden.ids("t5.ids");
            let program = t5::encode(&read, 1, ids.len(), DType::F32);
            let buckets = t5::relative_buckets(&read, ids.len());
            let inputs = [("ids", Input::I32(&ids)), ("buckets", Input::I32(&buckets))];
            let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
            close("t5", &golden, &out["text"], &golden.f32("t5.out"));

            let weights = checkpoint.get(CLIP).unwrap();
            let read = ClipConfig::read(weights, weights.config()).unwrap();
            assert_eq!(read, g.clip);
            let ids = golden.ids("clip.ids");
            let program = clip::encode(&read, 1, DType::F32);
            let out = run(
                backend,
                &program,
                &resolve(&program, weights),
                &[("ids", Input::I32(&ids))],
                u64::MAX,
                1,
            );
            let row = ids.iter().position(|&id| id == 49407).unwrap() * read.width;
            close(
                "clip",
                &golden,
                &out["hidden"][row..row + read.width],
                &golden.f32("clip.pooled"),
            );
        }
    }
}

#[test]
fn the_transformer_equals_diffusers() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let (checkpoint, g) = (written.open(), &written.geometry);
        let weights = checkpoint.get(TRANSFORMER).unwrap();
        let read = FluxConfig::read(weights, weights.config()).unwrap();
        assert_eq!(read, g.flux);
        for backend in devices.iter_mut().map(Box::as_mut) {
            // The two sequences of the golden have different timesteps and guidance: two rows of
            // modulation, two runs with a batch of one.
            let (t, pooled) = (golden.f32("flux.timestep"), golden.f32("flux.pooled"));
            let guidance = read.guidance.then(|| golden.f32("flux.guidance"));
            let program = flux1::modulate(&read, 2, DType::F32);
            let mut inputs = vec![("timestep", Input::F32(&t)), ("pooled", Input::F32(&pooled))];
            inputs.extend(guidance.as_ref().map(|g| ("guidance", Input::F32(g))));
            let modulation =
                run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1)
                    .remove("modulation")
                    .unwrap();

            let grid = golden.ids("flux.grid");
            let text_tokens = golden.shape("flux.txt")[1];
            let shape = DenoiseShape {
                images: 1,
                cfg: false,
                text_tokens,
                height: grid[0] as usize,
                width: grid[1] as usize,
            };
            let program = flux1::denoise(&read, &shape, DType::F32);
            let rope = flux1::rope(&read, &shape);
            let (img, txt, want) =
                (golden.f32("flux.img"), golden.f32("flux.txt"), golden.f32("flux.velocity"));
            let half = |v: &[f32], i: usize| v[i * v.len() / 2..(i + 1) * v.len() / 2].to_vec();
            for i in 0..2 {
                let (latents, text, modulation) =
                    (half(&img, i), half(&txt, i), half(&modulation, i));
                let inputs = [
                    ("latents", Input::F32(&latents)),
                    ("text", Input::F32(&text)),
                    ("modulation", Input::F32(&modulation)),
                    ("rope", Input::F32(&rope)),
                    ("step", Input::F32(&[-0.25, 1.0])),
                ];
                let out = run(backend, &program, &resolve(&program, weights), &inputs, u64::MAX, 1);
                close("velocity", &golden, &out["velocity"], &half(&want, i));
                let stepped: Vec<f32> =
                    latents.iter().zip(&half(&want, i)).map(|(x, v)| x - 0.25 * v).collect();
                close("euler", &golden, &out["latents"], &stepped);
            }
        }
    }
}

#[test]
fn the_autoencoder_equals_diffusers() {
    let mut devices = devices();
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let (checkpoint, g) = (written.open(), &written.geometry);
        let weights = checkpoint.get(VAE).unwrap();
        let read = VaeConfig::read(weights, weights.config()).unwrap();
        assert_eq!(read, g.vae);
        for backend in devices.iter_mut().map(Box::as_mut) {
            // The golden decodes raw latents; ours undoes scaling and shift first.
            let unscaled = VaeConfig { scaling: 1.0, shift: 0.0, ..read.clone() };
            let shape = golden.shape("vae.latent");
            let program = vae::decode(&unscaled, shape[1], shape[2], DType::F32);
            let tokens = pack(&golden.f32("vae.latent"), &shape);
            let out = run(
                backend,
                &program,
                &resolve(&program, weights),
                &[("latents", Input::F32(&tokens))],
                u64::MAX,
                1,
            );
            close("decode", &golden, &out["pixels"], &channels_last(&golden.f32("vae.image"), 3));

            let shape = golden.shape("vae.pixels");
            let program = vae::encode(&read, shape[1], shape[2], DType::F32);
            let pixels = channels_last(&golden.f32("vae.pixels"), 3);
            let out = run(
                backend,
                &program,
                &resolve(&program, weights),
                &[("pixels", Input::F32(&pixels))],
                u64::MAX,
                1,
            );
            close(
                "encode",
                &golden,
                &out["latents"],
                &pack(&golden.f32("vae.mean"), &golden.shape("vae.mean")),
            );
        }
    }
}

/// Rearranges [channels, h, w] to tokens of 2 x 2 pixels.
fn pack(planar: &[f32], shape: &[usize]) -> Vec<f32> {
    let (c, h, w) = (shape[0], shape[1], shape[2]);
    let mut out = Vec::new();
    for y in 0..h / 2 {
        for x in 0..w / 2 {
            for ch in 0..c {
                for k in 0..4 {
                    out.push(planar[(ch * h + 2 * y + k / 2) * w + 2 * x + k % 2]);
                }
            }
        }
    }
    out
}

fn request(golden: &Golden) -> Request {
    let request = Request::new(golden.text("prompt"))
        .steps(golden.number("steps") as usize)
        .seed(golden.number("seed") as u64)
        .size(golden.number("width") as usize, golden.number("height") as usize);
    match golden.has("flux.guidance") {
        true => request.guidance(golden.number("guidance") as f32),
        false => request,
    }
}

fn draw(pipeline: &mut Engine, request: &Request) -> Generated {
    pipeline.generate(request).unwrap()
}

/// Compares our bytes with the golden's decoder output, rounded to bytes: at 60 dB at most one
/// value in fifteen may be rounded the other way.
fn same_picture(what: &str, golden: &Golden, picture: &Image, decoded: &[f32]) {
    let want: Vec<f32> = channels_last(decoded, 3)
        .iter()
        .map(|v| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round())
        .collect();
    let got: Vec<f32> = picture.rgb.iter().map(|&b| f32::from(b)).collect();
    let db = psnr(&got, &want, 255.0);
    println!("{} {what}: {db:.1} dB", golden.name);
    assert!(db >= 60.0, "{} {what}: {db:.1} dB", golden.name);
}

#[test]
fn whole_images_equal_diffusers() {
    whole_pictures(Device::Cpu);
}

#[test]
fn whole_images_by_wgpu_equal_diffusers() {
    if adapter::get().is_some() {
        whole_pictures(Device::Wgpu(0));
    }
}

fn whole_pictures(device: Device) {
    for golden in MODELS.map(Golden::read) {
        let written = plain(&golden);
        let mut pipeline = written.pipeline(&f32_on(device));
        let base = request(&golden);
        let out = draw(&mut pipeline, &base);
        close("latents", &golden, &out.latents, &golden.f32("pipe.latents"));
        same_picture("picture", &golden, &out.images[0], &golden.f32("pipe.decoded"));

        if !golden.has("cfg.latents") {
            continue;
        }
        let cfg = base
            .clone()
            .negative(golden.text("negative_prompt"))
            .cfg_scale(golden.number("true_cfg_scale") as f32);
        let out = draw(&mut pipeline, &cfg);
        close("true CFG latents", &golden, &out.latents, &golden.f32("cfg.latents"));
        same_picture("true CFG", &golden, &out.images[0], &golden.f32("cfg.decoded"));

        let out = draw(&mut pipeline, &base.clone().count(2));
        close("batch latents", &golden, &out.latents, &golden.f32("batch.latents"));
        let decoded = golden.f32("batch.decoded");
        for (i, picture) in out.images.iter().enumerate() {
            same_picture(
                "batch",
                &golden,
                picture,
                &decoded[i * decoded.len() / 2..(i + 1) * decoded.len() / 2],
            );
        }

        let shape = golden.shape("img2img.picture");
        let picture =
            Image { width: shape[1], height: shape[0], rgb: golden.u8("img2img.picture") };
        let strength = golden.number("strength") as f32;
        let out = draw(&mut pipeline, &base.init(picture).strength(strength));
        close("img2img latents", &golden, &out.latents, &golden.f32("img2img.latents"));
        same_picture("img2img", &golden, &out.images[0], &golden.f32("img2img.decoded"));
    }
}

/// Weights on the e4m3 grid are the same numbers in every dialect and storage type, so the latents
/// must be equal, too.
#[test]
fn every_dialect_gives_the_same_latents() {
    let golden = Golden::read("b_dev");
    let base = request(&golden);
    let mut reference: Option<Vec<f32>> = None;
    let cases = [
        (Dialect::Comfy, Storage::F32),
        (Dialect::Bfl, Storage::F32),
        (Dialect::Diffusers { shard_bytes: None }, Storage::F32),
        (Dialect::Diffusers { shard_bytes: Some(300_000) }, Storage::BF16),
        (Dialect::Bfl, Storage::BF16),
        (Dialect::Bfl, Storage::F16),
        (Dialect::Bfl, Storage::F8ScaledOld),
        (Dialect::Comfy, Storage::F8ScaledNew),
        (Dialect::Comfy, Storage::F8ScaledOld),
        (Dialect::Diffusers { shard_bytes: None }, Storage::F8ScaledNew),
    ];
    for (dialect, storage) in cases {
        let written = Written::new(&golden, dialect, storage, Grid::F8);
        let out = draw(&mut written.pipeline(&f32_options()), &base).latents;
        let Some(reference) = &reference else {
            reference = Some(out);
            continue;
        };
        let error = relative_error(&out, reference);
        println!("{dialect:?} {storage:?}: {error:.2e}");
        assert!(error <= TOLERANCE, "{dialect:?} {storage:?}: {error:.2e}");
    }
}

/// Plain fp8 has no scales: a coarser grid, compared with the same grid in f32.
#[test]
fn plain_fp8_gives_the_same_latents() {
    let golden = Golden::read("a_schnell");
    let latents = |storage, dialect| {
        let written = Written::new(&golden, dialect, storage, Grid::F8Plain);
        draw(&mut written.pipeline(&f32_options()), &request(&golden)).latents
    };
    let error =
        relative_error(&latents(Storage::F8, Dialect::Comfy), &latents(Storage::F32, Dialect::Bfl));
    assert!(error <= TOLERANCE, "{error:.2e}");
}

/// The bf16 kernels (if the processor has them) and wide-row fp8 give an image close to that in
/// f32.
#[test]
fn the_default_arithmetic_stays_near_f32() {
    let golden = Golden::read("a_dev");
    let written = Written::new(&golden, Dialect::Comfy, Storage::F8ScaledNew, Grid::F8);
    let exact = draw(&mut written.pipeline(&f32_options()), &request(&golden)).latents;
    let auto =
        draw(&mut written.pipeline(&f32_options().compute(Compute::Auto)), &request(&golden))
            .latents;
    let error = relative_error(&auto, &exact);
    println!("auto against f32: {error:.2e}");
    assert!(error <= 3e-2, "{error:.2e}");
}
