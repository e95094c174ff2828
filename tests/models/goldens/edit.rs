//! Editing images against diffusers (`golden/make_edit_goldens.py`): `FluxInpaintPipeline`,
//! `Flux2KleinInpaintPipeline`, `FluxFillPipeline`, `FluxControlPipeline`, `FluxKontextPipeline`.

use super::{TOLERANCE, f32_on, same_picture};
use crate::common::{Golden, adapter, channels_last, files, psnr, relative_error};
use flux_fast::backend::Device;
use flux_fast::error::Kind;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Generated, Image, Mask, Request};

const MASKED: [&str; 6] = [
    "inpaint_a_dev",
    "inpaint_c_dev",
    "inpaint_klein_distilled",
    "inpaint_klein_base",
    "fill_a_dev",
    "fill_c_dev",
];

/// The model of a golden, in a file whose name says what it is, as those of Kontext and Depth must.
fn engine(golden: &Golden, device: Device) -> Engine {
    let options = f32_on(device);
    if golden.name.contains("klein") {
        return super::klein::plain(golden).engine(&options);
    }
    let written = super::plain(golden);
    let (kind, _) = golden.name.split_once('_').unwrap();
    let kind = if kind == "control" { "depth" } else { kind };
    let path = written.path.with_file_name(format!("flux1-{kind}-dev.safetensors"));
    std::fs::rename(&written.path, &path).unwrap();
    Engine::open(options.files(files(&path))).unwrap()
}

fn picture(golden: &Golden) -> Image {
    let shape = golden.shape("picture");
    Image { width: shape[1], height: shape[0], rgb: golden.u8("picture") }
}

/// The request without its images.
fn plain(golden: &Golden) -> Request {
    let request = Request::new(golden.text("prompt"))
        .steps(golden.number("steps") as usize)
        .seed(golden.number("seed") as u64);
    match golden.name.contains("klein") {
        true => request.cfg_scale(golden.number("cfg_scale") as f32),
        false => request.guidance(golden.number("guidance") as f32),
    }
}

fn request(golden: &Golden) -> Request {
    let picture = picture(golden);
    let (width, height) = (picture.width, picture.height);
    let mut request =
        plain(golden).init(picture).mask(Mask { width, height, values: golden.u8("mask") });
    if !golden.pipeline["strength"].is_null() {
        request = request.strength(golden.number("strength") as f32);
    }
    request
}

/// A guidance of 10 and more makes the sinusoids of its embedding depend on the last bits of f32,
/// which are not those of torch.
fn close_latents(golden: &Golden, out: &Generated) {
    let bound = match golden.pipeline["guidance"].as_f64() {
        Some(guidance) if guidance >= 10.0 => 1e-4,
        _ => TOLERANCE,
    };
    let error = relative_error(&out.latents, &golden.f32("latents"));
    println!("{} latents: relative error {error:.2e}", golden.name);
    assert!(error <= bound, "{} latents: relative error {error:.2e}", golden.name);
}

/// The decoder's bytes where the mask is white, and the picture elsewhere.
fn check(golden: &Golden, out: &Generated) {
    close_latents(golden, out);
    let (mask, picture) = (golden.u8("mask"), golden.u8("picture"));
    let decoded = channels_last(&golden.f32("decoded"), 3);
    let byte = |v: &f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for (i, (&found, decoded)) in out.images[0].rgb.iter().zip(&decoded).enumerate() {
        match mask[i / 3] {
            0 => assert_eq!(found, picture[i], "{}: a kept value changed", golden.name),
            _ => {
                got.push(f32::from(found));
                want.push(byte(decoded));
            }
        }
    }
    let db = psnr(&got, &want, 255.0);
    println!("{}: {db:.1} dB", golden.name);
    assert!(got.len() > 1000 && db >= 60.0, "{}: {db:.1} dB", golden.name);
}

#[test]
fn repainted_parts_equal_diffusers() {
    for golden in MASKED.map(Golden::read) {
        let mut engine = engine(&golden, Device::Cpu);
        let out = engine.generate(&request(&golden)).unwrap();
        check(&golden, &out);
        // The size is the picture's own, and the settings say that there was a mask.
        assert_eq!(out.settings.width, golden.shape("picture")[1]);
        assert_eq!(out.settings.mask_blur, Some(0.0));
        // Nothing is kept of the noise of another image.
        let two = engine.generate(&request(&golden).count(2)).unwrap();
        assert_ne!(two.images[0], two.images[1]);
        let kept = |image: &Image| {
            let mask = golden.u8("mask");
            let values = image.rgb.iter().enumerate().filter(|(i, _)| mask[i / 3] == 0);
            values.map(|(_, v)| *v).collect::<Vec<_>>()
        };
        assert_eq!(kept(&two.images[0]), kept(&two.images[1]));
    }
}

#[test]
fn repainted_parts_by_wgpu_equal_diffusers() {
    if adapter::get().is_some() {
        for golden in ["inpaint_a_dev", "inpaint_klein_base", "fill_c_dev"].map(Golden::read) {
            let out = engine(&golden, Device::Wgpu(0)).generate(&request(&golden)).unwrap();
            check(&golden, &out);
        }
    }
}

#[test]
fn strength_zero_gives_the_image_back() {
    for golden in ["inpaint_c_dev", "inpaint_klein_base"].map(Golden::read) {
        let mut engine = engine(&golden, Device::Cpu);
        let request = request(&golden);
        let out = engine.generate(&request.clone().strength(0.0)).unwrap();
        assert_eq!(Some(&out.images[0]), request.init.as_ref());
    }
}

/// Where only the surroundings of a mask are drawn, the model sees that part of the control image:
/// what is far away has no effect, and what is near has.
#[test]
fn a_control_image_is_cut_like_the_image_that_is_repainted() {
    let golden = Golden::read("control_a_dev");
    let mut engine = engine(&golden, Device::Cpu);
    let (width, height) = (96, 96);
    let filled = |rgb: u8| Image { width, height, rgb: vec![rgb; 3 * width * height] };
    let values =
        (0..width * height).map(|i| if i % width < 12 && i / width < 12 { 255 } else { 0 });
    let mask = Mask { width, height, values: values.collect() };
    let request = plain(&golden).size(32, 32).strength(1.0).mask_padding(4);
    let request = request.init(filled(90)).mask(mask);
    let mut draw = |changed: usize| {
        let mut control = filled(120);
        for y in changed..changed + 8 {
            control.rgb[3 * (y * width + changed)..][..24].fill(250);
        }
        engine.generate(&request.clone().control(control)).unwrap().latents
    };
    let (none, far, near) = (draw(88), draw(64), draw(2));
    assert!(none == far, "the model sees what is not drawn");
    assert!(none != near, "the model does not see what is drawn");
}

#[test]
fn depth_models_see_their_control_image() {
    let golden = Golden::read("control_a_dev");
    let mut engine = engine(&golden, Device::Cpu);
    let picture = picture(&golden);
    let sized = plain(&golden).size(picture.width, picture.height);
    let out = engine.generate(&sized.clone().control(picture)).unwrap();
    close_latents(&golden, &out);
    same_picture("control", &golden, &out.images[0], &golden.f32("decoded"));
    // Without its image, and with one of another kind.
    let e = engine.generate(&sized).unwrap_err();
    assert!(e.kind() == Kind::Argument && e.to_string().contains("control"), "{e}");
    let defaults = engine.settings(&Request::new("").control(super_small())).unwrap();
    assert_eq!((defaults.guidance, defaults.steps), (Some(10.0), 50));
}

fn super_small() -> Image {
    Image { width: 16, height: 16, rgb: vec![100; 768] }
}

/// A reference is as large as in Kontext's training, whatever the size of the image that is drawn.
#[test]
fn kontext_edits_its_reference() {
    for golden in ["kontext_a_dev", "kontext_b_dev"].map(Golden::read) {
        let mut engine = engine(&golden, Device::Cpu);
        let size = |key: &str| golden.number(key) as usize;
        let request =
            plain(&golden).reference(picture(&golden)).size(size("width"), size("height"));
        let out = engine.generate(&request).unwrap();
        close_latents(&golden, &out);
        same_picture("kontext", &golden, &out.images[0], &golden.f32("decoded"));
        assert_eq!(out.settings.reference_count, Some(1));
        // Its size is that of the first reference as it is read.
        let own = engine.settings(&Request::new("").reference(picture(&golden))).unwrap();
        assert!(own.width * own.height > 900_000 && own.width >= own.height);
        assert_eq!(own.guidance, Some(2.5));
    }
}

#[test]
fn models_refuse_images_that_they_do_not_read_and_miss_those_that_they_need() {
    let refused = |name: &str, request: Request, word: &str| {
        let e = engine(&Golden::read(name), Device::Cpu).generate(&request).unwrap_err();
        assert!(e.kind() == Kind::Argument && e.to_string().contains(word), "{e}");
    };
    let small = || Request::new("").size(32, 32);
    refused("inpaint_a_dev", small().control(super_small()), "control");
    refused("inpaint_a_dev", small().reference(super_small()), "reference images");
    refused("fill_a_dev", small(), "Fill repaints a part");
    refused("fill_a_dev", small().init(super_small()), "Fill repaints a part");
}
