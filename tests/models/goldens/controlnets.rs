//! ControlNets against diffusers (`golden/make_controlnet_goldens.py`): `FluxControlNetPipeline`,
//! `FluxControlNetInpaintPipeline`, and the inputs of alimama's pipeline.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Written, f32_on, same_picture};
use crate::common::{Golden, adapter, channels_last, psnr, relative_error, temp_dir};
use flux_fast::backend::Device;
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::open_only;
use flux_fast::model::flux1::control::{Condition, ControlConfig, control_tensors};
use flux_fast::model::{FluxConfig, SequenceShape, flux1};
use flux_fast::op::Op;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{
    ControlImage, ControlMode, ControlNetChoice, Generated, Image, Mask, Request,
};
use flux_fast::spec::flux1::CONTROLNET;
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

const CASES: [&str; 6] = [
    "controlnet_plain",
    "controlnet_step",
    "controlnet_modes",
    "controlnet_two",
    "controlnet_pixels",
    "controlnet_masked",
];

/// The ControlNets of a golden in files of their own.
struct Nets {
    _dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

/// The sizes of a ControlNet of a golden, for a transformer of `flux`.
fn config(flux: &FluxConfig, net: &Value) -> ControlConfig {
    let n = |key: &str| net[key].as_u64().map(|n| n as usize);
    let flux = FluxConfig {
        depth_double: n("double").unwrap(),
        depth_single: n("single").unwrap(),
        ..flux.clone()
    };
    let masked = net["masked"] == json!(true);
    let condition = match (n("pixels"), masked) {
        (Some(channels), _) => Condition::Pixels { channels },
        (None, true) => Condition::MaskedLatents,
        (None, false) => Condition::Latents,
    };
    let condition_cols = flux.in_channels + if masked { 4 } else { 0 };
    ControlConfig { flux, condition, condition_cols, modes: n("modes") }
}

impl Nets {
    /// Those of `golden`, with the names of diffusers, or of XLabs.
    fn new(golden: &Golden, flux: &FluxConfig, is_xlabs: bool) -> Nets {
        let dir = temp_dir();
        let nets = golden.pipeline["nets"].as_array().unwrap().iter().enumerate();
        let write = |(i, net): (usize, &Value)| {
            let config = config(flux, net);
            let tensors = control_tensors(&config).into_iter();
            let spec = SynthSpec {
                seed: net["seed"].as_str().unwrap().parse().unwrap(),
                tensors: tensors.map(|(name, shape)| (CONTROLNET, name, shape)).collect(),
                grid: Grid::F32,
                storage: Storage::F32,
                dialect: match is_xlabs {
                    true => Dialect::Bfl,
                    false => Dialect::Diffusers { shard_bytes: None },
                },
                configs: json!({}),
            };
            let path = match is_xlabs {
                true => dir.path().join(format!("net{i}.safetensors")),
                false => dir.path().join(format!("net{i}")),
            };
            synth::write(&spec, &path).unwrap();
            // A folder as `from_pretrained` takes it: with a single component.
            if is_xlabs { path } else { path.join("controlnet") }
        };
        Nets { paths: nets.map(write).collect(), _dir: dir }
    }

    fn choice(&self, golden: &Golden, i: usize) -> ControlNetChoice {
        let net = &golden.pipeline["nets"][i];
        let number = |key: &str, default: f64| net[key].as_f64().unwrap_or(default) as f32;
        let name = self.paths[i].display().to_string();
        let choice = ControlNetChoice::new(name, number("strength", 1.0))
            .steps(number("start", 0.0), number("end", 1.0));
        match net["mode"].as_u64() {
            Some(mode) => choice.mode(ControlMode(mode as usize)),
            None => choice,
        }
    }
}

fn image(golden: &Golden, name: &str) -> Image {
    let shape = golden.shape(name);
    Image { width: shape[1], height: shape[0], rgb: golden.u8(name) }
}

/// The request of a golden without its ControlNets.
fn plain(golden: &Golden) -> Request {
    let n = |key: &str| golden.number(key) as usize;
    let mut request = Request::new(golden.text("prompt"))
        .steps(n("steps"))
        .seed(n("seed") as u64)
        .guidance(golden.number("guidance") as f32)
        .count(n("images"))
        .size(n("width"), n("height"));
    if !golden.pipeline["cfg_scale"].is_null() {
        request =
            request.cfg_scale(golden.number("cfg_scale") as f32).negative(golden.text("negative"));
    }
    request
}

fn request(golden: &Golden, nets: &Nets) -> Request {
    let mut request = plain(golden);
    for i in 0..nets.paths.len() {
        let mut seen = ControlImage::from(image(golden, &format!("control.{i}")));
        if golden.has("mask") && !golden.has("picture") {
            let Image { width, height, .. } = seen.image;
            seen.mask = Some(Mask { width, height, values: golden.u8("mask") });
        }
        request = request.controlnet(nets.choice(golden, i), seen);
    }
    request
}

fn engine(golden: &Golden, device: Device) -> (Written, Engine) {
    let written = super::plain(golden);
    let engine = written.pipeline(&f32_on(device));
    (written, engine)
}

fn check(golden: &Golden, out: &Generated) {
    let error = relative_error(&out.latents, &golden.f32("latents"));
    println!("{} latents: relative error {error:.2e}", golden.name);
    assert!(error <= 1e-4, "{} latents: relative error {error:.2e}", golden.name);
    let decoded = golden.f32("decoded");
    let images = decoded.chunks_exact(decoded.len() / out.images.len());
    for (image, decoded) in out.images.iter().zip(images) {
        same_picture("image", golden, image, decoded);
    }
}

#[test]
fn images_with_controlnets_equal_diffusers() {
    for golden in CASES.map(Golden::read) {
        let (written, mut engine) = engine(&golden, Device::Cpu);
        let flux = &written.geometry.flux;
        let nets = Nets::new(&golden, flux, false);
        let out = engine.generate(&request(&golden, &nets)).unwrap();
        check(&golden, &out);
        let without = engine.generate(&plain(&golden)).unwrap();
        assert!(relative_error(&out.latents, &without.latents) > 0.01, "{}", golden.name);
        // The same weights under the names of XLabs.
        let named = Nets::new(&golden, flux, true);
        let again = engine.generate(&request(&golden, &named)).unwrap();
        assert!(again.latents == out.latents, "{}", golden.name);
        assert_eq!(again.settings.controlnet_hashes.len(), nets.paths.len());
        assert!(again.settings.controlnet_hashes.iter().all(|hash| hash.len() == 10));
    }
}

#[test]
fn images_with_controlnets_by_wgpu_equal_diffusers() {
    if adapter::get().is_none() {
        return;
    }
    for golden in CASES.map(Golden::read) {
        let (written, mut engine) = engine(&golden, Device::Wgpu(0));
        let nets = Nets::new(&golden, &written.geometry.flux, false);
        check(&golden, &engine.generate(&request(&golden, &nets)).unwrap());
    }
}

#[test]
fn repainted_parts_with_a_controlnet_equal_diffusers() {
    let golden = Golden::read("controlnet_inpaint");
    let (written, mut engine) = engine(&golden, Device::Cpu);
    let nets = Nets::new(&golden, &written.geometry.flux, false);
    let picture = image(&golden, "picture");
    let (width, height) = (picture.width, picture.height);
    let values = golden.u8("mask");
    let request = request(&golden, &nets)
        .init(picture.clone())
        .mask(Mask { width, height, values: values.clone() })
        .strength(golden.number("strength") as f32);
    let out = engine.generate(&request).unwrap();
    let error = relative_error(&out.latents, &golden.f32("latents"));
    println!("inpaint latents: relative error {error:.2e}");
    assert!(error <= 1e-4, "relative error {error:.2e}");
    let decoded = channels_last(&golden.f32("decoded"), 3);
    let byte = |v: &f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for (i, (&found, decoded)) in out.images[0].rgb.iter().zip(&decoded).enumerate() {
        match values[i / 3] {
            0 => assert_eq!(found, picture.rgb[i]),
            _ => {
                got.push(f32::from(found));
                want.push(byte(decoded));
            }
        }
    }
    assert!(psnr(&got, &want, 255.0) >= 60.0);
}

/// A ControlNet that acts in no step changes nothing, and one of them does not hide another.
#[test]
fn controlnets_that_do_not_act_change_no_bit() {
    let golden = Golden::read("controlnet_two");
    let (written, mut engine) = engine(&golden, Device::Cpu);
    let nets = Nets::new(&golden, &written.geometry.flux, false);
    let seen = || image(&golden, "control.0");
    let named =
        |i: usize, strength| ControlNetChoice::new(nets.paths[i].display().to_string(), strength);
    let without = engine.generate(&plain(&golden)).unwrap();
    let off = plain(&golden).controlnet(named(0, 0.0), seen());
    assert!(engine.generate(&off).unwrap().latents == without.latents);
    let never = plain(&golden).controlnet(named(0, 1.0).steps(0.9, 0.95), seen());
    assert!(engine.generate(&never).unwrap().latents == without.latents);
    let one = plain(&golden).controlnet(named(1, 0.5), seen());
    let both = one.clone().controlnet(named(0, 0.0), seen());
    let (one, both) = (engine.generate(&one).unwrap(), engine.generate(&both).unwrap());
    assert!(one.latents == both.latents && one.latents != without.latents);
    // After an image with it, one without is as before.
    assert!(engine.generate(&plain(&golden)).unwrap().latents == without.latents);
}

/// Two files at the same place in a request are two networks, also where weights stay loaded.
#[test]
fn another_controlnet_takes_the_place_of_the_first() {
    for device in [Device::Cpu, Device::Wgpu(0)] {
        if device != Device::Cpu && adapter::get().is_none() {
            continue;
        }
        let golden = Golden::read("controlnet_two");
        let (written, mut engine) = engine(&golden, device);
        let nets = Nets::new(&golden, &written.geometry.flux, false);
        let with = |i: usize| {
            let name = nets.paths[i].display().to_string();
            let choice = ControlNetChoice::new(name, 1.0);
            plain(&golden).steps(2).controlnet(choice, image(&golden, "control.0"))
        };
        let first = engine.generate(&with(0)).unwrap().latents;
        let second = engine.generate(&with(1)).unwrap().latents;
        assert_ne!(first, second);
        assert!(engine.generate(&with(0)).unwrap().latents == first);
        let (_, mut fresh) = self::engine(&golden, device);
        assert!(fresh.generate(&with(1)).unwrap().latents == second);
    }
}

#[test]
fn what_a_controlnet_cannot_do_is_refused_by_name() {
    let golden = Golden::read("controlnet_plain");
    let (written, mut engine) = engine(&golden, Device::Cpu);
    let flux = &written.geometry.flux;
    let nets = Nets::new(&golden, flux, false);
    let with_modes = Golden::read("controlnet_modes");
    let other = Nets::new(&with_modes, flux, false);
    let masked = Nets::new(&Golden::read("controlnet_masked"), flux, false);
    let small = FluxConfig { hidden: 2 * flux.hidden, heads: 2 * flux.heads, ..flux.clone() };
    let wide = Nets::new(&golden, &small, false);
    let named = |nets: &Nets| ControlNetChoice::new(nets.paths[0].display().to_string(), 1.0);
    let with = |choice| plain(&golden).controlnet(choice, image(&golden, "control.0"));
    let mut refused = |request: Request, kind: Kind, word: &str| {
        let e = engine.generate(&request).unwrap_err();
        assert!(e.kind() == kind && e.to_string().contains(word), "{e}");
        assert!(e.to_string().contains("controlnet"), "{e}");
    };
    refused(with(named(&wide)), Kind::Model, "width");
    refused(with(named(&nets).mode(ControlMode(0))), Kind::Argument, "no modes");
    refused(with(named(&other)), Kind::Argument, "mode=canny or tile");
    refused(with(named(&other).mode(ControlMode(10))), Kind::Argument, "0 to 9");
    refused(with(named(&masked)), Kind::Argument, "no mask");
    refused(with(named(&nets).steps(0.8, 0.2)), Kind::Argument, "0.8-0.2");
    refused(with(named(&nets).steps(0.0, 1.5)), Kind::Argument, "0-1.5");
    refused(with(ControlNetChoice { strength: -1.0, ..named(&nets) }), Kind::Argument, "0 to 10");
    refused(with(ControlNetChoice::new("nowhere", 1.0)), Kind::Missing, "nowhere");
    let model = written.path.display().to_string();
    refused(with(ControlNetChoice::new(model, 1.0)), Kind::Model, "FLUX ControlNet");
    let mut missing = plain(&golden);
    missing.controlnets.push(named(&nets));
    refused(missing, Kind::Argument, "image");
    let many = (0..5).fold(plain(&golden), |request, _| {
        request.controlnet(named(&nets), image(&golden, "control.0"))
    });
    refused(many, Kind::Argument, "at most 4");
}

/// `convert` writes a ControlNet as it writes a transformer.
#[test]
fn a_converted_controlnet_gives_nearly_the_same_image() {
    let golden = Golden::read("controlnet_modes");
    let (written, mut engine) = engine(&golden, Device::Cpu);
    let nets = Nets::new(&golden, &written.geometry.flux, false);
    let want = engine.generate(&request(&golden, &nets)).unwrap().latents;
    let without = engine.generate(&plain(&golden)).unwrap().latents;
    let far = relative_error(&without, &want);
    let dir = temp_dir();
    for (target, most) in [(Target::Fp8, 0.1), (Target::Blocks(DType::Mxfp8), 0.1)] {
        let path = dir.path().join(format!("{target:?}.safetensors").replace(['(', ')'], ""));
        let source = nets.paths[0].join("diffusion_pytorch_model.safetensors");
        let checkpoint = open_only(&source).unwrap();
        let report =
            convert(&checkpoint, target, &path, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert!(report.quantised >= 20 && report.components == [CONTROLNET]);
        let converted = Nets { _dir: temp_dir(), paths: vec![path] };
        let got = engine.generate(&request(&golden, &converted)).unwrap().latents;
        let error = relative_error(&got, &want);
        println!("{target:?}: {error:.3} (without: {far:.3})");
        assert!(error > 0.0 && error < most && error < far / 3.0, "{target:?}: {error:.3}");
    }
}

#[test]
fn flux2_models_refuse_controlnets() {
    let golden = Golden::read("klein_distilled");
    let mut engine = super::klein::plain(&golden).engine(&f32_on(Device::Cpu));
    let image = Image { width: 16, height: 16, rgb: vec![0; 768] };
    let request = Request::new("").size(32, 32).controlnet(ControlNetChoice::new("x", 1.0), image);
    let e = engine.generate(&request).unwrap_err();
    assert!(e.kind() == Kind::Argument && e.to_string().contains("FLUX.2"), "{e}");
}

/// The blocks of a ControlNet run between those of the transformer, just before they are needed,
/// and one that no block needs is left out.
#[test]
fn the_blocks_are_interleaved() {
    let flux = FluxConfig { depth_double: 5, depth_single: 3, ..FluxConfig::dev() };
    let own = |depth_double, depth_single| ControlConfig {
        flux: FluxConfig { depth_double, depth_single, ..flux.clone() },
        condition: Condition::Latents,
        condition_cols: 64,
        modes: None,
    };
    let shape = flux1::DenoiseShape { images: 1, cfg: false, text_tokens: 4, height: 2, width: 2 };
    let blocks = |config: &ControlConfig| {
        let controls = [flux1::control::Control { config }];
        let program = flux1::denoise_with(&flux, &shape, &controls, DType::BF16);
        let mut seen: Vec<String> = Vec::new();
        for step in &program.steps {
            let block = step.block().replace("control0_out.", "out.");
            let is_block = block.contains("double.") || block.contains("single.");
            if is_block && seen.last() != Some(&block) {
                seen.push(block);
            }
        }
        seen.join(" ")
    };
    assert_eq!(
        blocks(&own(4, 0)),
        "double.0 control0_double.0 double.0 double.1 double.2 control0_double.1 double.2 double.3 \
         double.4 control0_double.2 double.4 single.0 single.1 single.2"
    );
    assert_eq!(
        blocks(&own(1, 2)),
        "double.0 control0_double.0 double.0 double.1 double.2 double.3 double.4 single.0 \
         control0_single.0 single.0 single.1 single.2 control0_single.1 single.2"
    );
    // With reference images, only the rows of the image are changed, in the sequences of both
    // prompts.
    let shape = SequenceShape {
        image: flux1::DenoiseShape { images: 2, cfg: true, ..shape },
        references: vec![(3, 2)],
        added_inputs: 0,
    };
    let config = ControlConfig { modes: Some(3), ..own(2, 2) };
    let controls = [flux1::control::Control { config: &config }];
    let program = flux1::denoise_with(&flux, &shape, &controls, DType::BF16);
    let rows = |label: &str| -> Vec<(usize, usize)> {
        let copies = program.steps.iter().filter(|step| step.label == label);
        let copies = copies.filter_map(|step| match step.op {
            Op::CopyRows(copy) => Some((copy.from, copy.count)),
            _ => None,
        });
        copies.collect()
    };
    assert_eq!(rows("double.0.control0.from"), [(0, 4), (10, 4), (20, 4), (30, 4)]);
    assert_eq!(rows("single.0.control0.from"), [(4, 4), (18, 4), (32, 4), (46, 4)]);
}
