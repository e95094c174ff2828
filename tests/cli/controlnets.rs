//! `--controlnet`: found by name in the folders of other programs, listed, planned, recorded, and
//! drawn again.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use flux_fast::library::{Files, open};
use flux_fast::model::FluxConfig;
use flux_fast::model::flux1::control::{Condition, ControlConfig, control_tensors};
use flux_fast::spec::flux1::{CONTROLNET, TRANSFORMER};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

/// Runs the program in `folder` and returns its stdout and stderr.
fn run(folder: &Path, arguments: &[&str], exit: i32) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .current_dir(folder)
        // The tests do not depend on the user's own files.
        .env("FLUX_FAST_CONFIG", "")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .env("COMFYUI_PATH", folder.join("ComfyUI"))
        .env("HOME", folder)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {err}");
    assert!(!err.contains("panicked"), "{err}");
    (out, err)
}

fn model() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors")
}

/// Writes a ControlNet of FP8 weights for the embedded model to `path`.
pub fn write(path: &Path, seed: u64, modes: Option<usize>, masked: bool) {
    let checkpoint = open(&Files::model(model())).unwrap();
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let flux = FluxConfig::read(weights, weights.config()).unwrap();
    let condition = if masked { Condition::MaskedLatents } else { Condition::Latents };
    let config = ControlConfig {
        condition_cols: flux.in_channels + if masked { 4 } else { 0 },
        flux: FluxConfig { depth_double: 1, depth_single: 0, ..flux },
        condition,
        modes,
    };
    let tensors = control_tensors(&config).into_iter();
    let spec = SynthSpec {
        seed,
        tensors: tensors.map(|(name, shape)| (CONTROLNET, name, shape)).collect(),
        grid: Grid::F32,
        storage: Storage::F8ScaledNew,
        dialect: Dialect::Bfl,
        configs: json!({}),
    };
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    synth::write(&spec, path).unwrap();
}

fn open_image(path: &Path) -> RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

const FOX: [&str; 7] = ["a fox", "--steps", "2", "--seed", "3", "--device", "cpu"];

#[test]
fn a_controlnet_is_found_by_name_recorded_and_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let nets = folder.join("ComfyUI/models/controlnet");
    fs::create_dir_all(folder.join("ComfyUI/models/loras")).unwrap();
    write(&nets.join("flux/union.safetensors"), 1, Some(7), false);
    let control = RgbImage::from_fn(90, 70, |x, y| Rgb([x as u8, (3 * y) as u8, 90]));
    control.save(folder.join("control.png")).unwrap();

    let (listed, _) = run(folder, &["models"], 0);
    assert!(listed.contains("ControlNets (--controlnet NAME:IMAGE):\n  flux/union"), "{listed}");
    assert!(listed.contains("FLUX ControlNet, XLabs, fp8"), "{listed}");
    let path = nets.join("flux/union.safetensors");
    let (shown, _) = run(folder, &["inspect", path.to_str().unwrap()], 0);
    assert!(shown.contains("modes 7") && shown.contains("double blocks 1,"), "{shown}");

    let typed = |more: &str| format!("union:control.png:0.5:0-0.9{more}");
    let draw = |name: &str, net: &str, exit| {
        let more = ["--controlnet", net, "-o", name];
        run(folder, &[&FOX[..], &more].concat(), exit).1
    };
    let err = draw("a.png", &typed(",mode=depth"), 0);
    assert!(err.contains("controlnet: union at 0.5, steps 0-0.9, mode depth"), "{err}");
    draw("b.png", &typed(",mode=canny"), 0);
    draw("c.png", &typed(",mode=canny,edges"), 0);
    run(folder, &[&FOX[..], &["-o", "plain.png"]].concat(), 0);
    let images = ["a.png", "b.png", "c.png", "plain.png"].map(|n| open_image(&folder.join(n)));
    for (i, image) in images.iter().enumerate() {
        assert!(!images[i + 1..].contains(image), "image {i}");
    }

    let (shown, _) = run(folder, &["inspect", "a.png"], 0);
    assert!(shown.contains("controlnet: union at 0.5, steps 0-0.9, mode depth\n"), "{shown}");
    assert!(!run(folder, &["inspect", "plain.png"], 0).0.contains("controlnet"));
    let (found, _) = run(folder, &["inspect", "a.png", "--json"], 0);
    let found: Value = serde_json::from_str(&found).unwrap();
    let text = found.to_string();
    assert!(text.contains("\"mode\":\"depth\"") && text.contains("\"name\":\"union\""), "{text}");
    // The file may have moved: its hash is recorded.
    fs::rename(&path, nets.join("other.safetensors")).unwrap();
    let again = ["again", "a.png", "--controlnet", ":control.png", "-o", "again.png"];
    run(folder, &[&again[..], &["--device", "cpu"]].concat(), 0);
    assert!(open_image(&folder.join("again.png")) == images[0]);
    let (_, err) = run(folder, &["again", "a.png", "--device", "cpu"], 2);
    assert!(err.contains("each ControlNet needs an image"), "{err}");
    write(&nets.join("union.safetensors"), 2, Some(7), false);
    fs::remove_file(nets.join("other.safetensors")).unwrap();
    let (_, err) = run(folder, &[&again[..], &["--device", "cpu"]].concat(), 4);
    assert!(err.contains("the ControlNet that made the image was not found"), "{err}");
}

#[test]
fn a_plan_counts_controlnets_and_the_bound_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write(&folder.join("net.safetensors"), 1, None, false);
    RgbImage::new(64, 64).save(folder.join("control.png")).unwrap();
    let plan = |more: &[&str]| {
        let base = ["plan", "a fox", "--json", "--device", "cpu"];
        let (out, _) = run(folder, &[&base[..], more].concat(), 0);
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let net = ["--controlnet", "net.safetensors:control.png:0.7"];
    let (with, without) = (plan(&net), plan(&[]));
    let of = |plan: &Value, phase: &str, what: &str| -> u64 {
        let phases = plan["phases"].as_array().unwrap().iter();
        phases.filter(|p| p["phase"] == phase).map(|p| p[what].as_u64().unwrap()).sum()
    };
    let bytes = fs::metadata(folder.join("net.safetensors")).unwrap().len();
    let more = of(&with, "denoise", "weight_bytes") - of(&without, "denoise", "weight_bytes");
    assert!(more > bytes / 3 && more < bytes, "{more} of {bytes}");
    assert!(of(&with, "modulate", "weight_bytes") > of(&without, "modulate", "weight_bytes"));
    assert!(with["controlnets"][0].as_str().unwrap().contains("net.safetensors at 0.7"));
    // One that does not act costs nothing.
    let off = plan(&["--controlnet", "net.safetensors:control.png:0"]);
    assert_eq!(off["phases"], without["phases"]);
}

#[test]
fn the_part_to_repaint_is_that_of_the_mask_or_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write(&folder.join("inpaint.safetensors"), 1, None, true);
    let photo = RgbaImage::from_fn(128, 128, |x, y| {
        Rgba([x as u8, y as u8, 60, if x < 40 { 0 } else { 255 }])
    });
    photo.save(folder.join("hole.png")).unwrap();
    let opaque = image::DynamicImage::from(photo).to_rgb8();
    opaque.save(folder.join("photo.png")).unwrap();
    let white = RgbImage::from_fn(128, 128, |x, _| Rgb([255 * u8::from(x < 40); 3]));
    white.save(folder.join("mask.png")).unwrap();
    let draw = |more: &[&str], exit| run(folder, &[&FOX[..], more].concat(), exit).1;
    let net = ["--controlnet", "inpaint.safetensors:photo.png"];
    let err = draw(&[&net[..], &["-o", "x.png"]].concat(), 2);
    assert!(err.contains("repaints a part of its image") && err.contains("--mask"), "{err}");
    draw(&["--controlnet", "inpaint.safetensors:hole.png", "-o", "a.png"], 0);
    let masked = ["-i", "photo.png", "--mask", "mask.png", "--strength", "1", "-o", "b.png"];
    draw(&[&net[..], &masked].concat(), 0);
    let kept = open_image(&folder.join("b.png"));
    let differ = kept.enumerate_pixels().filter(|&(x, y, p)| p != opaque.get_pixel(x, y));
    let columns: Vec<u32> = differ.map(|(x, ..)| x).collect();
    assert!(columns.len() > 1000 && columns.iter().all(|x| *x < 40));
}

#[test]
fn mistakes_are_explained_before_anything_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write(&folder.join("net.safetensors"), 1, None, false);
    RgbImage::new(32, 32).save(folder.join("control.png")).unwrap();
    for (net, exit, word) in [
        ("net.safetensors", 2, "FILE:IMAGE"),
        ("net.safetensors:control.png,mode=sketch", 2, "canny, tile"),
        ("net.safetensors:control.png,mode=canny", 2, "has no modes"),
        ("net.safetensors:control.png:0.5:0.8-0.2", 2, "0.8-0.2"),
        ("net.safetensors:control.png:11", 2, "0 to 10"),
        ("net.safetensors:nowhere.png", 4, "nowhere.png"),
        ("nowhere.safetensors:control.png", 4, "nowhere.safetensors"),
        (":control.png", 2, "there is no ControlNet for this image"),
    ] {
        let err = run(folder, &[&FOX[..], &["--controlnet", net]].concat(), exit).1;
        assert!(err.contains(word), "{net}: {err}");
    }
    let wrong = [&FOX[..], &["--model", "net.safetensors"]].concat();
    let err = run(folder, &wrong, 3).1;
    assert!(err.contains("FLUX ControlNet") && err.contains("--controlnet"), "{err}");
}
