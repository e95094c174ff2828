//! `again`: the model, the LoRAs and the image of a batch that a file names; files that ask for too
//! much; outputs that other processes write at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flux_fast::pipeline::images::{Format, encode};
use flux_fast::pipeline::request::Image;
use serde_json::Value;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command
        .current_dir(folder)
        // The tests do not depend on the user's own files.
        .env("FLUX_FAST_CONFIG", "")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(folder: &Path, arguments: &[&str], exit: i32) -> (String, String) {
    let output = command(folder, arguments).output().expect("the binary starts");
    checked(output, arguments, exit)
}

fn checked(output: Output, arguments: &[&str], exit: i32) -> (String, String) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {err}");
    assert!(!err.contains("panicked"), "{err}");
    (out, err)
}

fn pixels(path: PathBuf) -> image::RgbImage {
    image::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

/// A PNG with this text, as any program may write it.
fn a_png(path: &Path, text: &str) {
    let gray = Image { width: 16, height: 16, rgb: vec![127; 768] };
    fs::write(path, encode(&gray, Format::Png, 90, text).unwrap()).unwrap();
}

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name)
}

const DEVICE: [&str; 2] = ["--device", "cpu"];

#[test]
fn one_image_of_a_batch_is_drawn_again_with_its_noise() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let fox = ["a fox", "--seed", "5", "--steps", "2", "-n", "3", "-o", "x.png"];
    run(folder, &[&fox[..], &DEVICE].concat(), 0);
    let (shown, _) = run(folder, &["inspect", "x-3.png"], 0);
    assert!(shown.contains("image: 3 of 3\n") && shown.contains("count: 3\n"), "{shown}");
    let again = ["again", "x-3.png", "-o", "y.png"];
    let (_, err) = run(folder, &[&again[..], &DEVICE].concat(), 0);
    assert!(err.contains("image 3 of 3"), "{err}");
    assert!(pixels(folder.join("y.png")) == pixels(folder.join("x-3.png")));
    assert!(!folder.join("y-1.png").exists());
    // The image that was drawn again says the same of itself.
    assert!(run(folder, &["inspect", "y.png"], 0).0.contains("image: 3 of 3\n"));
    // The whole batch, if it is asked for.
    let all = ["again", "x-2.png", "-n", "3", "-o", "z.png"];
    run(folder, &[&all[..], &DEVICE].concat(), 0);
    for i in 1..=3 {
        let (x, z) = (format!("x-{i}.png"), format!("z-{i}.png"));
        assert!(pixels(folder.join(&z)) == pixels(folder.join(&x)), "{x}");
    }
}

#[test]
fn the_model_is_found_by_name_and_hash_or_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let embedded = fs::read(asset("flux-tiny.safetensors")).unwrap();
    // The same weights under another header: another model.
    let header = u64::from_le_bytes(*embedded.first_chunk().unwrap()) as usize;
    let mut json: Value = serde_json::from_slice(&embedded[8..8 + header]).unwrap();
    json["__metadata__"]["note"] = "mine".into();
    let json = json.to_string().into_bytes();
    let mine =
        [&(json.len() as u64).to_le_bytes(), json.as_slice(), &embedded[8 + header..]].concat();
    fs::write(folder.join("mine.safetensors"), &mine).unwrap();
    let fox = ["a fox", "--seed", "5", "--steps", "1", "-o", "x.png", "--model", "mine"];
    run(folder, &[&fox[..], &DEVICE].concat(), 0);
    let again = [&["again", "x.png", "-o", "y.png"], &DEVICE[..]].concat();
    let (_, err) = run(folder, &again, 0);
    assert!(err.contains("mine.safetensors") && !err.contains("embedded"), "{err}");
    assert!(pixels(folder.join("y.png")) == pixels(folder.join("x.png")));
    // It has another name now.
    fs::rename(folder.join("mine.safetensors"), folder.join("other.safetensors")).unwrap();
    let (_, err) = run(folder, &again, 0);
    assert!(err.contains("other.safetensors"), "{err}");
    // Its name belongs to another file now, and it is gone.
    fs::write(folder.join("mine.safetensors"), &embedded).unwrap();
    fs::remove_file(folder.join("other.safetensors")).unwrap();
    fs::remove_file(folder.join("y.png")).unwrap();
    let (_, err) = run(folder, &again, 4);
    assert!(err.contains("mine (") && err.contains("try: --model"), "{err}");
    assert!(err.contains("another") && !err.contains("denoise"), "{err}");
    assert!(!folder.join("y.png").exists());
    let with = [again.as_slice(), &["--model", "mine"]].concat();
    let (_, err) = run(folder, &with, 0);
    assert!(err.contains("it will differ"), "{err}");

    // A name from a file is never a path.
    for model in ["/etc/passwd", "../mine.safetensors", "nowhere"] {
        let text = format!(
            "a fox\nSteps: 2, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 4, Seed: 1, \
             Size: 128x128, Model: {model}"
        );
        a_png(&folder.join("stranger.png"), &text);
        let (_, err) = run(folder, &["again", "stranger.png"], 4);
        assert!(err.contains("try: --model") && !err.contains("denoise"), "{model}: {err}");
    }
}

#[test]
fn loras_are_found_by_their_hashes_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let lora = fs::read(asset("flux-tiny-pixel-lora.safetensors")).unwrap();
    let other = fs::read(asset("flux-tiny-pixel-lora-diffusers.safetensors")).unwrap();
    fs::write(folder.join("toy.safetensors"), &lora).unwrap();
    let fox = ["a fox", "--seed", "5", "--steps", "1", "-o", "x.png"];
    let with = [&fox[..], &DEVICE, &["--lora", "./toy.safetensors:0.5"]].concat();
    run(folder, &with, 0);
    let again = [&["again", "x.png", "-o", "y.png"], &DEVICE[..]].concat();
    run(folder, &again, 0);
    assert!(pixels(folder.join("y.png")) == pixels(folder.join("x.png")));
    // Moved to the folder of LoRAs under another name: found by its hash.
    fs::create_dir_all(folder.join("models/loras")).unwrap();
    let moved = folder.join("models/loras/pixels.safetensors");
    fs::rename(folder.join("toy.safetensors"), &moved).unwrap();
    let (_, err) = run(folder, &again, 0);
    assert!(err.contains("pixels.safetensors"), "{err}");
    assert!(pixels(folder.join("y.png")) == pixels(folder.join("x.png")));
    // Another file has its name.
    fs::remove_file(&moved).unwrap();
    fs::write(folder.join("toy.safetensors"), &other).unwrap();
    let (_, err) = run(folder, &again, 4);
    assert!(err.contains("another hash") && !err.contains("denoise"), "{err}");
    run(folder, &[again.as_slice(), &["--lora", "toy.safetensors:0.5"]].concat(), 0);
}

#[test]
fn a_fine_tune_that_differs_in_one_byte_is_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut tuned = fs::read(asset("flux-tiny.safetensors")).unwrap();
    // Within a matrix: the file ends with text.
    let middle = tuned.len() / 2;
    tuned[middle] ^= 1;
    fs::write(folder.join("tuned.safetensors"), &tuned).unwrap();
    let fox = ["a fox", "--seed", "5", "--steps", "1", "--size", "64x64", "-o", "x.png"];
    run(folder, &[&fox[..], &DEVICE, &["--model", "tuned"]].concat(), 0);
    let again = [&["again", "x.png", "-o", "y.png"], &DEVICE[..]].concat();
    let (_, err) = run(folder, &again, 0);
    assert!(err.contains("model: ") && err.contains("tuned.safetensors"), "{err}");
    // Without it the embedded model is not taken for it.
    fs::remove_file(folder.join("tuned.safetensors")).unwrap();
    let (_, err) = run(folder, &again, 4);
    assert!(err.contains("tuned (") && err.contains("try: --model"), "{err}");
    // The embedded model itself is found by its name.
    run(folder, &[&fox[..], &DEVICE].concat(), 0);
    let (_, err) = run(folder, &again, 0);
    assert!(err.contains("model: embedded"), "{err}");
}

#[test]
fn a_lora_beside_the_image_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (made, elsewhere) = (dir.path().join("made"), dir.path().join("elsewhere"));
    fs::create_dir_all(&made).unwrap();
    fs::create_dir_all(&elsewhere).unwrap();
    let lora = fs::read(asset("flux-tiny-pixel-lora.safetensors")).unwrap();
    fs::write(made.join("toy.safetensors"), &lora).unwrap();
    let fox = ["a fox", "--seed", "5", "--steps", "1", "--size", "64x64", "-o", "x.png"];
    run(&made, &[&fox[..], &DEVICE, &["--lora", "./toy.safetensors:0.5"]].concat(), 0);
    let again = [&["again", "../made/x.png", "-o", "y.png"], &DEVICE[..]].concat();
    run(&elsewhere, &again, 0);
    assert!(pixels(elsewhere.join("y.png")) == pixels(made.join("x.png")));
    // Another file has its name.
    let mut other = lora.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(made.join("toy.safetensors"), &other).unwrap();
    let (_, err) = run(&elsewhere, &again, 4);
    assert!(err.contains("the LoRA that made the image was not found"), "{err}");
}

#[test]
fn a_file_that_asks_for_very_much_needs_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    a_png(
        &folder.join("big.png"),
        "a fox\nSteps: 1000, Sampler: Euler, CFG scale: 1, Distilled CFG Scale: 4, Batch size: 64, \
         Seed: 1, Size: 2048x2048, Model: flux-tiny, Version: flux-fast 0.1.0",
    );
    let again = [&["again", "big.png"], &DEVICE[..]].concat();
    let (_, err) = run(folder, &again, 2);
    assert!(err.contains("64 images of 2048x2048 with 1000 steps"), "{err}");
    assert!(err.contains("try: --yes") && err.contains("big.png"), "{err}");
    let typed = ["--steps", "1", "--size", "64x64", "-n", "1", "-o", "x.png"];
    run(folder, &[again.as_slice(), &typed].concat(), 0);
    assert_eq!(pixels(folder.join("x.png")).dimensions(), (64, 64));
}

#[test]
fn what_another_program_wrote_is_said_before_drawing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    a_png(
        &folder.join("sdcpp.png"),
        "a (red:1.2) fox\nSteps: 1, CFG scale: 1.000000, Guidance: 2.500000, Seed: 42, \
         Size: 64x64, Model: , RNG: cuda, Sampler: euler simple, Unet: flux1-dev-q8_0.gguf, \
         VAE: ae.safetensors, Version: stable-diffusion.cpp",
    );
    let (shown, _) = run(folder, &["inspect", "sdcpp.png"], 0);
    for line in ["guidance: 2.5\n", "written by: stable-diffusion.cpp\n", "model: flux1-dev-q8_0"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(shown.contains("note: ") && shown.contains("RNG: cuda"), "{shown}");
    let json: Value =
        serde_json::from_str(&run(folder, &["inspect", "--json", "sdcpp.png"], 0).0).unwrap();
    assert_eq!(
        (&json["program"], &json["guidance"]),
        (&"stable-diffusion.cpp".into(), &2.5.into())
    );
    assert!(json["notes"].as_array().is_some_and(|notes| notes.len() >= 2), "{json}");
    // Its model is not here.
    let again = [&["again", "sdcpp.png", "-o", "x.png"], &DEVICE[..]].concat();
    let (_, err) = run(folder, &again, 4);
    assert!(err.contains("RNG: cuda") && err.contains("flux1-dev-q8_0.gguf"), "{err}");
    let (_, err) = run(folder, &[again.as_slice(), &["--model", "embedded"]].concat(), 0);
    for words in ["RNG: cuda", "VAE ae.safetensors", "(red:1.2)", "it will differ"] {
        let at = err.find(words).unwrap_or_else(|| panic!("{words}: {err}"));
        assert!(at < err.find("denoise").unwrap(), "{words} comes too late: {err}");
    }
    // A text that cannot be read is not the same as none.
    a_png(&folder.join("long.png"), &format!("a{}\nSteps: 1, Seed: 1", ":a".repeat(50_000)));
    let (shown, _) = run(folder, &["inspect", "long.png"], 0);
    assert!(shown.contains("no settings inside\nnote: ") && shown.contains("64 KB"), "{shown}");
}

#[test]
fn the_image_to_start_from_counts_against_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 5000, 5000);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0x80; 5000 * 5000 * 6]).unwrap();
    writer.finish().unwrap();
    fs::write(folder.join("deep.png"), bytes).unwrap();
    let flat = Image { width: 5000, height: 5000, rgb: vec![0x80; 5000 * 5000 * 3] };
    fs::write(folder.join("large.jpg"), encode(&flat, Format::Jpeg, 90, "").unwrap()).unwrap();
    let from = |file: &'static str| {
        let arguments = ["a fox", "-i", file, "--steps", "2", "-o", "x.png"];
        [&arguments[..], &DEVICE].concat()
    };
    fs::write(folder.join("large.webp"), encode(&flat, Format::WebP, 90, "").unwrap()).unwrap();
    // A WebP is decoded as a whole.
    let webp = from("large.webp");
    let (_, err) = run(folder, &[webp.as_slice(), &["--ram", "180M"]].concat(), 5);
    assert!(err.contains("large.webp"), "{err}");
    let enough = err.split("try: --ram ").nth(1).and_then(|s| s.split(['M', ',']).next()).unwrap();
    // The rows of a PNG and of a JPEG are scaled one after another: the 150 MB of the PNG are never
    // in memory at once.
    for (image, ram) in [(webp, enough), (from("deep.png"), "230"), (from("large.jpg"), "180")] {
        let bound = format!("{ram}M");
        let arguments = [image.as_slice(), &["--json", "--ram", &bound]].concat();
        let (out, err) = run(folder, &arguments, 0);
        let json: Value = serde_json::from_str(&out).unwrap();
        if let Some(peak) = json["peak_memory_bytes"].as_u64() {
            assert!(peak <= ram.parse::<u64>().unwrap() * 1_000_000, "{peak}: {err}");
        }
    }
}

#[cfg(unix)]
#[test]
fn outputs_of_any_name_and_of_several_processes_are_all_kept() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let fox = ["a fox", "--seed", "5", "--steps", "1", "--size", "64x64"];
    let fox = [&fox[..], &DEVICE].concat();
    let both: Vec<_> = (0..2).map(|_| command(folder, &fox).spawn().unwrap()).collect();
    for child in both {
        checked(child.wait_with_output().unwrap(), &fox, 0);
    }
    assert!(folder.join("flux-5.png").is_file() && folder.join("flux-5_2.png").is_file());

    let name = std::ffi::OsStr::from_bytes(b"caf\xe9-{i}.png");
    let output = command(folder, &fox).args(["-n", "2", "-o"]).arg(name).output().unwrap();
    assert!(output.stdout == b"caf\xe9-1.png\ncaf\xe9-2.png\n", "{:?}", output.stdout);
    checked(output, &fox, 0);
    assert!(folder.join(std::ffi::OsStr::from_bytes(b"caf\xe9-2.png")).is_file());
    // Where only text will do, the argument is named.
    let bad = std::ffi::OsStr::from_bytes(b"\xff.safetensors");
    for flag in ["--lora", "--model", "--prompt"] {
        let output = command(folder, &["generate", flag]).arg(bad).output().unwrap();
        let (_, err) = checked(output, &[flag], 2);
        assert!(err.contains(flag) && err.contains("UTF-8"), "{flag}: {err}");
    }

    // An image that cannot be written after two that were.
    fs::create_dir(folder.join("x-3.png")).unwrap();
    let four = [fox.as_slice(), &["-n", "4", "-o", "x.png", "--json"]].concat();
    let (out, err) = run(folder, &four, 7);
    assert!(err.contains("2 of 4 images were written before"), "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["error"]["written"], serde_json::json!(["x-1.png", "x-2.png"]));
    assert!(folder.join("x-2.png").is_file() && !folder.join("x-4.png").exists());

    // Nobody reads the result: the image is there all the same.
    for json in [&[][..], &["--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let arguments = [fox.as_slice(), &["-o", "unread.png"], json].concat();
        let output = command(folder, &arguments).stdout(writer).output().unwrap();
        checked(output, &arguments, 0);
        fs::remove_file(folder.join("unread.png")).unwrap();
    }
}

#[test]
fn a_run_that_succeeds_says_only_what_this_program_says() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["a fox", "--steps", "1", "--quiet", "-o", "x.png"];
    let (_, err) = run(dir.path(), &arguments, 0);
    // Drivers may have been opened to choose the device.
    assert_eq!(err, "");
}

#[cfg(unix)]
#[test]
fn an_image_for_a_closed_stdout_is_an_error_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let fox = ["a fox", "--steps", "1", "--size", "64x64", "-o"];
    for (to, exit) in [("-", 7), ("x.png", 0)] {
        let arguments = [&fox[..], &[to], &DEVICE].concat();
        let mut shell = Command::new("sh");
        shell.current_dir(dir.path()).env("FLUX_FAST_CONFIG", "");
        shell.args(["-c", "exec \"$0\" \"$@\" >&-", env!("CARGO_BIN_EXE_flux-fast")]);
        let (_, err) = checked(shell.args(&arguments).output().unwrap(), &arguments, exit);
        assert_eq!(err.contains("stdout is closed"), exit == 7, "{err}");
    }
    assert!(dir.path().join("x.png").is_file());
}

#[test]
fn libraries_of_drivers_say_nothing_without_a_session() {
    let dir = tempfile::tempdir().unwrap();
    for folder in [None, Some("nowhere")] {
        let mut doctor = command(dir.path(), &["doctor"]);
        doctor.env_remove("XDG_RUNTIME_DIR");
        folder.map(|folder| doctor.env("XDG_RUNTIME_DIR", folder));
        let (_, err) = checked(doctor.output().unwrap(), &["doctor"], 0);
        assert!(!err.contains("XDG_RUNTIME_DIR"), "{err}");
    }
}
