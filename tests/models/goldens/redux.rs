//! FLUX.1 Redux against transformers and diffusers (`golden/make_redux_goldens.py`): SigLIP's
//! vision tower, the adapter, and images with styles. Where both are found, and what is refused.

use std::path::Path;

use super::{Written, close, devices, f32_on, plain, same_picture};
use crate::common::{Golden, Input, adapter, files, limit_to_least, relative_error, resolve, run};
use flux_fast::backend::Device;
use flux_fast::dtype::DType;
use flux_fast::error::{Error, Kind};
use flux_fast::library::open_only;
use flux_fast::model::{ReduxConfig, SiglipConfig, redux, siglip};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Options, Request};
use flux_fast::spec::flux1::{REDUX, SIGLIP};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::json;

const GOLDENS: [&str; 3] = ["redux_a_dev", "redux_b_schnell", "redux_c_dev"];

fn siglip_config(golden: &Golden) -> SiglipConfig {
    let n = |key: &str| golden.config["image_encoder"][key].as_u64().unwrap() as usize;
    SiglipConfig {
        image: n("image_size"),
        patch: n("patch_size"),
        width: n("hidden_size"),
        heads: n("num_attention_heads"),
        ff: n("intermediate_size"),
        layers: n("num_hidden_layers"),
        eps: 1e-6,
    }
}

fn redux_config(golden: &Golden) -> ReduxConfig {
    let n = |key: &str| golden.config["image_embedder"][key].as_u64().unwrap() as usize;
    let inner = golden.number("inner") as usize;
    ReduxConfig { inputs: n("redux_dim"), inner, outputs: n("txt_in_features") }
}

/// Writes both networks in `dialect` to `path`.
fn write_networks(golden: &Golden, dialect: Dialect, path: &Path) {
    write(golden, &redux_config(golden), dialect, path);
}

fn write(golden: &Golden, adapter: &ReduxConfig, dialect: Dialect, path: &Path) {
    let tower = siglip::tensors(&siglip_config(golden)).into_iter().map(|(n, s)| (SIGLIP, n, s));
    let adapter_tensors = redux::tensors(adapter).into_iter().map(|(n, s)| (REDUX, n, s));
    let spec = SynthSpec {
        seed: golden.seed,
        tensors: tower.chain(adapter_tensors).collect(),
        grid: Grid::F32,
        storage: Storage::F32,
        dialect,
        configs: json!({
            "image_encoder": golden.config["image_encoder"],
            "image_embedder": adapter.to_json(),
        }),
    };
    synth::write(&spec, path).unwrap();
}

/// The model of a golden with both networks in folders next to it, as in ComfyUI.
fn written(golden: &Golden) -> Written {
    let written = plain(golden);
    let folder = written.path.parent().unwrap();
    let files = folder.join("files");
    write_networks(golden, Dialect::Bfl, &files);
    for (name, to) in [
        ("sigclip_vision_patch14_384.safetensors", "clip_vision"),
        ("flux1-redux-dev.safetensors", "style_models"),
    ] {
        std::fs::create_dir(folder.join(to)).unwrap();
        std::fs::rename(files.join(name), folder.join(to).join(name)).unwrap();
    }
    written
}

fn engine(written: &Written, device: Device) -> Engine {
    let options = f32_on(device).no_cache(true);
    Engine::open(options.files(files(&written.path))).unwrap()
}

fn picture(golden: &Golden, i: usize) -> Image {
    let shape = golden.shape(&format!("picture.{i}"));
    Image { width: shape[1], height: shape[0], rgb: golden.u8(&format!("picture.{i}")) }
}

/// The request without its styles.
fn bare(golden: &Golden) -> Request {
    let n = |key: &str| golden.number(key);
    let mut request = Request::new(golden.text("prompt"))
        .steps(n("steps") as usize)
        .seed(n("seed") as u64)
        .size(n("width") as usize, n("height") as usize);
    if golden.config["transformer"]["guidance_embeds"] == true {
        request = request.guidance(n("guidance") as f32);
    }
    match golden.pipeline["negative"].as_str() {
        Some(negative) => request.negative(negative).cfg_scale(n("cfg_scale") as f32),
        None => request,
    }
}

fn request(golden: &Golden) -> Request {
    let strengths = golden.pipeline["strengths"].as_array().unwrap();
    let styles = strengths.iter().map(|s| s.as_f64().unwrap() as f32).enumerate();
    styles.fold(bare(golden), |request, (i, s)| request.style(picture(golden, i), s))
}

#[test]
fn the_tower_and_the_adapter_equal_the_reference_code() {
    let mut devices = devices();
    for golden in GOLDENS.map(Golden::read) {
        let dir = crate::common::temp_dir();
        write_networks(&golden, Dialect::Comfy, &dir.path().join("both.safetensors"));
        let checkpoint = open_only(&dir.path().join("both.safetensors")).unwrap();
        let (tower, adapter) = (checkpoint.get(SIGLIP).unwrap(), checkpoint.get(REDUX).unwrap());
        let c = SiglipConfig::read(tower, tower.config()).unwrap();
        assert_eq!(c, siglip_config(&golden));
        let d = ReduxConfig::read(adapter, adapter.config()).unwrap();
        assert_eq!(d, redux_config(&golden));
        let (shape, pixels) = (golden.shape("siglip.pixels"), golden.f32("siglip.pixels"));
        assert_eq!(shape[1..], [3, c.image, c.image]);
        let places: Vec<i32> = (0..c.tokens() as i32).collect();
        for backend in devices.iter_mut().map(Box::as_mut) {
            let (mut states, mut tokens) = (Vec::new(), Vec::new());
            for planes in pixels.chunks(3 * c.image * c.image) {
                let rgb = bytes(planes);
                let patches = siglip::patches(&c, &rgb);
                let program = siglip::encode(&c, DType::F32);
                let inputs = [("patches", Input::F32(&patches)), ("places", Input::I32(&places))];
                let weights = resolve(&program, tower);
                let mut out = run(backend, &program, &weights, &inputs, u64::MAX, 1);
                let hidden = out.remove("hidden").unwrap();
                let program = redux::embed(&d, c.tokens(), DType::F32);
                let inputs = [("hidden", Input::F32(&hidden))];
                let weights = resolve(&program, adapter);
                tokens
                    .extend(run(backend, &program, &weights, &inputs, u64::MAX, 1)["style"].iter());
                states.extend(hidden);
            }
            close("siglip", &golden, &states, &golden.f32("siglip.out"));
            close("redux", &golden, &tokens, &golden.f32("redux.out"));
        }
    }
}

/// The bytes of an image that was normalised, planes first.
fn bytes(planes: &[f32]) -> Vec<u8> {
    let pixels = planes.len() / 3;
    let byte = |i: usize, c: usize| (planes[c * pixels + i] * 0.5 + 0.5) * 255.0;
    (0..pixels).flat_map(|i| [0, 1, 2].map(|c| byte(i, c).round() as u8)).collect()
}

#[test]
fn images_with_styles_equal_diffusers() {
    for golden in GOLDENS.map(Golden::read) {
        let written = written(&golden);
        let mut engine = engine(&written, Device::Cpu);
        let out = engine.generate(&request(&golden)).unwrap();
        let error = relative_error(&out.latents, &golden.f32("latents"));
        println!("{} latents: relative error {error:.2e}", golden.name);
        assert!(error <= super::TOLERANCE, "{} latents: {error:.2e}", golden.name);
        same_picture("styles", &golden, &out.images[0], &golden.f32("decoded"));
        let strengths: Vec<f64> =
            out.settings.style_strengths.iter().map(|s| f64::from(*s)).collect();
        let want = golden.pipeline["strengths"].as_array().unwrap();
        assert!(strengths.iter().zip(want).all(|(s, w)| (s - w.as_f64().unwrap()).abs() < 1e-6));
        assert_eq!(strengths.len(), want.len());
        // Without strengths, all are 1.
        let plain = bare(&golden);
        let mut styled = plain.clone();
        styled.styles = request(&golden).styles;
        let ones = vec![1.0; styled.styles.len()];
        assert_eq!(engine.settings(&styled).unwrap().style_strengths, ones);
        // The style is seen by every image of a batch, and by none of the next request.
        let two = engine.generate(&request(&golden).count(2)).unwrap();
        assert_eq!(two.latents.len(), 2 * out.latents.len());
        let without = engine.generate(&plain).unwrap();
        assert_ne!(without.latents, out.latents);
        assert!(without.settings.style_strengths.is_empty());
        assert_eq!(engine.generate(&request(&golden)).unwrap().latents, out.latents);
    }
}

#[test]
fn images_with_styles_by_wgpu_equal_diffusers() {
    if adapter::get().is_some() {
        for golden in ["redux_a_dev", "redux_c_dev"].map(Golden::read) {
            let written = written(&golden);
            let out = engine(&written, Device::Wgpu(0)).generate(&request(&golden)).unwrap();
            let error = relative_error(&out.latents, &golden.f32("latents"));
            assert!(error <= super::TOLERANCE, "{} latents: {error:.2e}", golden.name);
            same_picture("styles", &golden, &out.images[0], &golden.f32("decoded"));
        }
    }
}

/// With weights streamed in the smallest memory, the same bits; the plan says how much that is.
#[test]
fn streamed_styles_equal_resident_ones() {
    let golden = Golden::read("redux_b_schnell");
    let written = written(&golden);
    let mut engine = engine(&written, Device::Cpu);
    let request = request(&golden);
    let want = engine.generate(&request).unwrap().latents;
    let plan = engine.plan(&request).unwrap();
    let phases: Vec<_> = plan.phases.iter().filter(|p| p.phase == "style").collect();
    assert_eq!(phases.len(), 2, "{plan}");
    assert!(phases.iter().all(|p| p.runs == 2 && p.weight_bytes > 0), "{plan}");
    let bare = engine.plan(&bare(&golden)).unwrap();
    assert!(bare.phases.iter().all(|p| p.phase != "style") && plan.host_bytes > bare.host_bytes);
    let denoise = |plan: &flux_fast::pipeline::PlanReport| {
        plan.phases.iter().find(|p| p.phase == "denoise").unwrap().arena_bytes
    };
    assert!(denoise(&plan) > denoise(&bare));
    limit_to_least(&mut engine, &request, 1 << 14);
    let plan = engine.plan(&request).unwrap();
    assert!(plan.phases.iter().any(|p| p.streamed_bytes_per_run > 0), "{plan}");
    assert!(engine.generate(&request).unwrap().latents == want);
}

#[test]
fn both_networks_are_found_in_folders_or_given() {
    let golden = Golden::read("redux_a_dev");
    let written = plain(&golden);
    let folder = written.path.parent().unwrap().to_path_buf();
    let want = engine(&self::written(&golden), Device::Cpu).generate(&request(&golden)).unwrap();
    let options = || f32_on(Device::Cpu).no_cache(true).files(files(&written.path));
    let draw = |options: Options| {
        let mut engine = Engine::open(options)?;
        let out = engine.generate(&request(&golden))?;
        assert!(out.latents == want.latents);
        Ok::<(), Error>(())
    };
    let missing = |e: Error, words: &[&str]| {
        assert_eq!(e.kind(), Kind::Missing, "{e}");
        let text = format!("{e} {}", e.hint().unwrap_or_default());
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
    };
    // Neither is there: other requests are drawn, and the error says what to do.
    missing(draw(options()).unwrap_err(), &["style", "Redux adapter is missing", "redux", "pull"]);
    let mut engine = Engine::open(options()).unwrap();
    engine.generate(&bare(&golden)).unwrap();
    // A folder of diffusers, given by its name for both.
    let diffusers = folder.join("repository");
    write_networks(&golden, Dialect::Diffusers { shard_bytes: None }, &diffusers);
    draw(options().component("redux", &diffusers).component("siglip", &diffusers)).unwrap();
    let only_one = draw(options().component("redux", diffusers.join("image_embedder")));
    missing(only_one.unwrap_err(), &["style", "SigLIP vision tower is missing", "siglip"]);
    // The same folders next to the model.
    for name in ["image_encoder", "image_embedder"] {
        std::fs::rename(diffusers.join(name), folder.join(name)).unwrap();
    }
    draw(options()).unwrap();
    // The engine that missed them finds them now.
    assert!(engine.generate(&request(&golden)).unwrap().latents == want.latents);
}

#[test]
fn styles_that_cannot_be_used_are_refused() {
    let golden = Golden::read("redux_a_dev");
    let written = written(&golden);
    let mut engine = engine(&written, Device::Cpu);
    let refused = |e: Error, kind: Kind, words: &str| {
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.to_string().contains(words), "{e}");
        assert!(e.hint().is_some() || e.to_string().contains("expected"), "{e}");
    };
    let image = || picture(&golden, 0);
    for strength in [-0.1, 10.5, f32::NAN] {
        let e = engine.generate(&bare(&golden).style(image(), strength)).unwrap_err();
        refused(e, Kind::Argument, "strength of a style image");
    }
    let mut unequal = bare(&golden).style(image(), 1.0);
    unequal.style_strengths.push(1.0);
    refused(engine.generate(&unequal).unwrap_err(), Kind::Argument, "found 1 style images");
    let many = (0..11).fold(bare(&golden), |request, _| request.style(image(), 1.0));
    refused(engine.generate(&many).unwrap_err(), Kind::Argument, "too many style images");
    // An adapter of another width, and one for another tower.
    let config = redux_config(&golden);
    for (other, word) in [
        (ReduxConfig { outputs: config.outputs + 8, ..config.clone() }, "another transformer"),
        (ReduxConfig { inputs: config.inputs + 8, ..config.clone() }, "does not read this"),
    ] {
        let dir = crate::common::temp_dir();
        write(&golden, &other, Dialect::Bfl, dir.path());
        let options = f32_on(Device::Cpu).files(files(&written.path));
        let options = options.component("redux", dir.path().join("flux1-redux-dev.safetensors"));
        let mut engine = Engine::open(options).unwrap();
        for _ in 0..2 {
            refused(engine.generate(&request(&golden)).unwrap_err(), Kind::Model, word);
        }
    }
    let klein = Golden::read("klein_distilled");
    let mut engine = super::klein::plain(&klein).engine(&f32_on(Device::Cpu));
    let e = engine.generate(&Request::new("a fox").style(image(), 1.0)).unwrap_err();
    refused(e, Kind::Argument, "FLUX.1 Redux is for FLUX.1 only");
}
