//! LoRAs through the pipeline and the binary: the pixel-art LoRA of the embedded model, in Kohya's
//! and in diffusers' names.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::{psnr, temp_dir};
use flux_fast::backend::Device;
use flux_fast::error::Kind;
use flux_fast::event::Event;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::models::ModelPlaces;
use flux_fast::pipeline::request::{Image, LoraChoice, Options, Request};

const KOHYA: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora.safetensors");
const DIFFUSERS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora-diffusers.safetensors");

/// The embedded model, with LoRAs searched for in `loras` only.
fn open(loras: &Path) -> Engine {
    let nothing = |_: &str| None::<OsString>;
    let places = ModelPlaces::new(&nothing, loras, &[loras.to_path_buf()]);
    let options = Options::default().device(Device::Cpu);
    Engine::open(options.places(places)).unwrap()
}

fn lora(name: &str, weight: f32) -> LoraChoice {
    LoraChoice::new(name, weight)
}

fn request(prompt: &str, loras: &[LoraChoice]) -> Request {
    Request::new(prompt).seed(5).loras(loras.to_vec())
}

const FOX: &str = "a fox, 3D style, on a blue background";

fn draw(pipeline: &mut Engine, request: &Request) -> Image {
    pipeline.generate(request).unwrap().images.remove(0)
}

fn db(a: &Image, b: &Image) -> f64 {
    let values = |p: &Image| p.rgb.iter().map(|v| f32::from(*v)).collect::<Vec<_>>();
    psnr(&values(a), &values(b), 255.0)
}

/// How close an image is to blocks of 8 x 8 equal pixels: its PSNR against the blocks' averages, in
/// dB.
fn blocks(p: &Image) -> f64 {
    const SIDE: usize = 8;
    let mut average = p.clone();
    for (y, x) in
        (0..p.height).step_by(SIDE).flat_map(|y| (0..p.width).step_by(SIDE).map(move |x| (y, x)))
    {
        for c in 0..3 {
            let at = |i: usize| ((y + i / SIDE) * p.width + x + i % SIDE) * 3 + c;
            let sum: u32 = (0..SIDE * SIDE).map(|i| u32::from(p.rgb[at(i)])).sum();
            (0..SIDE * SIDE).for_each(|i| average.rgb[at(i)] = (sum as f32 / 64.0).round() as u8);
        }
    }
    db(p, &average)
}

#[test]
fn the_image_becomes_pixel_art_and_strength_0_changes_no_bit() {
    let dir = temp_dir();
    let mut pipeline = open(dir.path());
    let (mut without, mut with) = (vec![], vec![]);
    for prompt in [
        FOX,
        "a penguin, flat style, on a white background",
        "a hamburger, classic style, on a purple background",
    ] {
        let plain = draw(&mut pipeline, &request(prompt, &[]));
        assert_eq!(plain, draw(&mut pipeline, &request(prompt, &[lora(KOHYA, 0.0)])));
        let pixels = draw(&mut pipeline, &request(prompt, &[lora(KOHYA, 1.0)]));
        // Still the same subject on the same background: far from the image of another seed.
        assert!(db(&plain, &pixels) > 10.0, "{prompt}: {:.1} dB", db(&plain, &pixels));
        // Images in between have no effect.
        assert_eq!(plain, draw(&mut pipeline, &request(prompt, &[])), "{prompt}");
        assert_eq!(pixels, draw(&mut pipeline, &request(prompt, &[lora(KOHYA, 1.0)])), "{prompt}");
        println!("{prompt}: {:.1} dB without, {:.1} with", blocks(&plain), blocks(&pixels));
        without.push(blocks(&plain));
        with.push(blocks(&pixels));
    }
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    assert!(mean(&with) > mean(&without) + 3.0, "{with:.1?} with, {without:.1?} without");
}

#[test]
fn both_files_are_the_same_lora_and_strengths_add_up() {
    let dir = temp_dir();
    let mut pipeline = open(dir.path());
    let mut at = |loras: &[LoraChoice]| draw(&mut pipeline, &request(FOX, loras));
    let (plain, whole) = (at(&[]), at(&[lora(KOHYA, 1.0)]));
    let same = |what: &str, other: &Image| {
        let near = db(&whole, other);
        assert!(near > 35.0 && near > db(&plain, &whole) + 15.0, "{what}: {near:.1} dB");
    };
    same("diffusers' names", &at(&[lora(DIFFUSERS, 1.0)]));
    same("half of each", &at(&[lora(KOHYA, 0.5), lora(DIFFUSERS, 0.5)]));
    same("the same file twice", &at(&[lora(KOHYA, 0.75), lora(KOHYA, 0.25)]));
    let none = at(&[lora(KOHYA, 1.0), lora(DIFFUSERS, -1.0)]);
    assert!(db(&plain, &none) > 35.0, "{:.1} dB", db(&plain, &none));
    let half = at(&[lora(KOHYA, 0.5)]);
    assert!(db(&plain, &half) > db(&plain, &whole), "half as much changes less");
}

#[test]
fn a_tag_in_the_prompt_is_an_option_and_not_text() {
    let outer = temp_dir();
    let dir = outer.path().join("models");
    std::fs::create_dir_all(dir.join("loras")).unwrap();
    std::fs::copy(KOHYA, dir.join("loras/pixel.safetensors")).unwrap();
    let mut pipeline = open(&dir);
    let option = draw(&mut pipeline, &request(FOX, &[lora(KOHYA, 0.8)]));
    let tagged = draw(&mut pipeline, &request(&format!("{FOX} <lora:pixel:0.8>"), &[]));
    assert_eq!(option, tagged);
    let mut fails = |prompt: &str| {
        let request = request(prompt, &[]);
        pipeline.generate(&request).unwrap_err()
    };
    assert_eq!(fails("a fox <lora:pixle:1>").kind(), Kind::Missing);
    assert_eq!(fails("a fox <lora:pixel:much>").kind(), Kind::Argument);
    // The file exists, but not in a LoRA folder.
    std::fs::copy(KOHYA, outer.path().join("pixel.safetensors")).unwrap();
    let absolute = outer.path().join("pixel.safetensors").to_string_lossy().into_owned();
    for escape in [
        "../pixel.safetensors",
        &absolute,
        "..%2fpixel.safetensors",
        "loras/../../pixel.safetensors",
    ] {
        let e = fails(&format!("a fox <lora:{escape}:1>"));
        assert_eq!(e.kind(), Kind::Argument, "{escape}: {e}");
    }
    let negative = request(FOX, &[]).negative("<lora:pixel:1>").cfg_scale(2.0);
    let e = pipeline.generate(&negative).unwrap_err();
    assert_eq!(e.kind(), Kind::Argument, "{e}");
}

#[test]
fn a_lora_is_reported_once() {
    let dir = temp_dir();
    let mut pipeline = open(dir.path());
    let mut lines = |weight: f32| {
        let mut lines = vec![];
        let request = request(FOX, &[lora(KOHYA, weight)]);
        let mut on = |event| {
            if let Event::Note(line) | Event::Warning(line) = event {
                lines.push(line.to_string());
            }
            ControlFlow::Continue(())
        };
        pipeline.generate_with(&request, &mut on).unwrap();
        lines.into_iter().filter(|l| l.contains("lora")).collect::<Vec<_>>()
    };
    let first = lines(1.0);
    assert!(first.iter().any(|l| l.contains("Kohya") && l.contains("keys used")), "{first:?}");
    assert_eq!(lines(1.0), Vec::<String>::new(), "the same again");
    assert!(lines(0.5).iter().any(|l| l.contains(" at 0.5 ")));
}

fn flux_fast(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("HF_HOME", folder.join("hf"));
    command.stdin(Stdio::null()).output().expect("the binary starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_lora_of_another_model_is_exit_3_before_the_first_step() {
    let dir = temp_dir();
    let golden = |name: &str| {
        format!("{}/tests/golden/lora/{name}.lora.safetensors", env!("CARGO_MANIFEST_DIR"))
    };
    let whole = std::fs::read(KOHYA).unwrap();
    let damaged = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    };
    let cases: Vec<(String, i32, &str)> = vec![
        // Made for a wider model.
        (golden("kohya"), 3, ""),
        (golden("xlabs"), 3, ""),
        (damaged("short.safetensors", &|b| b.truncate(b.len() - 5)), 3, "truncated"),
        // The last value of the last matrix: f16 NaN.
        (
            damaged("nan.safetensors", &|b| {
                let n = b.len();
                b[n - 2..].copy_from_slice(&[0x00, 0x7e])
            }),
            3,
            "",
        ),
        (format!("{}/assets/tiny/flux-tiny.safetensors", env!("CARGO_MANIFEST_DIR")), 3, ""),
        ("nowhere.safetensors".into(), 4, ""),
    ];
    for (path, code, words) in cases {
        let output =
            flux_fast(dir.path(), &[FOX, "--lora", &path, "-o", "x.png", "--device", "cpu"]);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{path}: {text}");
        assert!(text.contains("error: ") && text.contains(words), "{path}: {text}");
        assert!(!dir.path().join("x.png").exists(), "{path}");
    }
    for weight in ["nan", "1e9", "-101"] {
        let output = flux_fast(dir.path(), &[FOX, "--lora", &format!("x:{weight}"), "-o", "x.png"]);
        assert_eq!(output.status.code(), Some(2), "{weight}: {}", said(&output));
    }
}

#[test]
fn again_uses_the_same_loras() {
    let dir = temp_dir();
    let first = flux_fast(
        dir.path(),
        &[FOX, "--seed", "3", "--lora", &format!("{KOHYA}:0.9"), "-o", "a.png", "--device", "cpu"],
    );
    assert!(first.status.success(), "{}", said(&first));
    for (out, more) in [("b.png", vec![]), ("c.png", vec!["--lora", KOHYA])] {
        let mut arguments = vec!["again", "a.png", "-o", out, "--device", "cpu"];
        arguments.extend(more);
        let output = flux_fast(dir.path(), &arguments);
        assert!(output.status.success(), "{}", said(&output));
    }
    let pixels = |name: &str| image::open(dir.path().join(name)).unwrap().to_rgb8();
    assert_eq!(pixels("a.png"), pixels("b.png"));
    assert_ne!(pixels("a.png"), pixels("c.png"), "another weight was asked for");
}

#[test]
fn convert_writes_a_usable_model_and_replaces_no_file() {
    let dir = temp_dir();
    let model = format!("{}/assets/tiny/flux-tiny.safetensors", env!("CARGO_MANIFEST_DIR"));
    let plain = flux_fast(dir.path(), &[FOX, "--seed", "3", "-o", "plain.png", "--device", "cpu"]);
    assert!(plain.status.success(), "{}", said(&plain));
    let rgb = |name: &str| {
        let picture = image::open(dir.path().join(name)).unwrap().to_rgb8();
        Image { width: 128, height: 128, rgb: picture.into_raw() }
    };
    for (to, file, least) in
        [("fp8", "flux-tiny-fp8.safetensors", 24.0), ("q8_0", "flux-tiny-q8_0.gguf", 26.0)]
    {
        let output = flux_fast(dir.path(), &["convert", &model, "--to", to]);
        assert!(output.status.success(), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains(file) && told.contains(" tensors in "), "{told}");
        let mut arguments =
            vec![FOX, "--seed", "3", "-o", "drawn.png", "--device", "cpu", "--model", file];
        if to == "q8_0" {
            assert!(said(&output).contains("--t5"), "{}", said(&output));
            arguments.extend(["--clip", &model, "--t5", &model, "--vae", &model]);
        }
        let drawn = flux_fast(dir.path(), &arguments);
        assert!(drawn.status.success(), "{}", said(&drawn));
        let near = db(&rgb("plain.png"), &rgb("drawn.png"));
        println!("{to}: {near:.1} dB");
        assert!(near > least, "{to}: {near:.1} dB");
        let twice = flux_fast(dir.path(), &["convert", &model, "--to", to]);
        assert_eq!(twice.status.code(), Some(2), "{}", said(&twice));
    }
    for (arguments, code) in [
        (vec!["convert", &model, "--to", "fp7"], 2),
        (vec!["convert", &model, "--to", "fp8", "-o", "x.gguf"], 2),
        (vec!["convert", "nowhere.safetensors", "--to", "fp8"], 4),
        (vec!["convert", KOHYA, "--to", "fp8"], 3),
    ] {
        let output = flux_fast(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
    }
    let left: Vec<PathBuf> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(
        left.iter().all(|p| !p.file_name().unwrap().to_string_lossy().starts_with(".flux-fast")),
        "{left:?}"
    );
}

/// The file is truncated during a run: the next access to its pages is a bus error, or the next
/// check of the file an error. Either way there is no image, and the exit code is 3.
#[cfg(unix)]
#[test]
fn a_model_that_is_truncated_during_a_run_is_exit_3() {
    use std::io::{BufRead, BufReader};
    let dir = temp_dir();
    let model = dir.path().join("model.safetensors");
    std::fs::copy(
        format!("{}/assets/tiny/flux-tiny.safetensors", env!("CARGO_MANIFEST_DIR")),
        &model,
    )
    .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .args([
            FOX,
            "--model",
            "model.safetensors",
            "--steps",
            "1000",
            "--device",
            "cpu",
            "-o",
            "x.png",
        ])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    assert!(lines.any(|line| line.trim_start().starts_with("denoise 1/")), "it never began");
    std::fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(4096).unwrap();
    let rest: Vec<String> = lines.collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(3), "{rest:?}");
    assert!(rest.iter().any(|l| l.starts_with("error: ")), "{rest:?}");
    assert!(!dir.path().join("x.png").exists());
}
