//! Whole runs of the binary on the embedded model: files, settings, reruns, faults, signals.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command
        .current_dir(folder)
        // The tests do not depend on the user's own configuration file.
        .env("FLUX_FAST_CONFIG", "")
        .env("FLUX_FAST_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the binary starts")
}

pub fn done(folder: &Path, arguments: &[&str]) -> Value {
    let output = run(folder, arguments);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {err}");
    if arguments.contains(&"--json") {
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {out}"))
    } else {
        Value::Null
    }
}

/// What a run printed on stdout and stderr.
pub fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
    format!("{out}{err}")
}

/// Writes a picture with many colours.
pub fn photo(folder: &Path, name: &str, width: u32, height: u32) {
    let pixel = |x, y| image::Rgb([x as u8, (2 * y) as u8, (x * y % 251) as u8]);
    image::RgbImage::from_fn(width, height, pixel).save(folder.join(name)).unwrap();
}

pub fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

pub fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_format_keeps_the_image_and_its_settings_reproduce_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let prompt = "a fox, \"3D\" style,\non a blue background 🦊";
    done(folder, &["-p", prompt, "--seed", "7", "--steps", "4", "-o", "a.png"]);
    let reference = pixels(&folder.join("a.png"));
    assert_eq!(reference.dimensions(), (128, 128));
    for name in ["b.jpg", "b.webp", "b.bmp", "b.tiff"] {
        done(folder, &["-p", prompt, "--seed", "7", "--steps", "4", "-o", name]);
        let got = pixels(&folder.join(name));
        let off: f64 =
            got.iter().zip(reference.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
                / reference.len() as f64;
        assert!(
            off <= if name == "b.jpg" { 4.0 } else { 0.0 },
            "{name} is off by {off} on average"
        );
        if name == "b.bmp" {
            continue; // cannot hold settings
        }
        let again = format!("again-{}.png", &name[2..]);
        done(folder, &["again", name, "-o", &again]);
        assert_eq!(pixels(&folder.join(&again)), reference, "{name}");
    }
    // An override is used, the other settings stay.
    let json = done(folder, &["again", "a.png", "--steps", "5", "-o", "c.png", "--json"]);
    assert_eq!(
        (json["settings"]["steps"].as_u64(), json["settings"]["seed"].as_u64()),
        (Some(5), Some(7))
    );
    assert_eq!(json["settings"]["prompt"].as_str(), Some(prompt));
    assert_ne!(pixels(&folder.join("c.png")), reference);
}

#[test]
fn batches_negative_prompts_and_input_images() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let base = ["a pizza on a red background", "--seed", "3", "--steps", "6"];
    let with = |more: &[&'static str]| {
        base.iter().copied().chain(more.iter().copied()).collect::<Vec<_>>()
    };
    let json = done(folder, &with(&["-n", "2", "-o", "two.png", "--json"]));
    let names: Vec<&str> =
        json["files"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert_eq!(names.len(), 2);
    assert_ne!(pixels(&folder.join(names[0])), pixels(&folder.join(names[1])));
    done(folder, &with(&["-o", "one.png"]));
    let one = pixels(&folder.join("one.png"));
    done(folder, &with(&["--negative", "blue", "--cfg-scale", "2", "-o", "cfg.png"]));
    assert_ne!(pixels(&folder.join("cfg.png")), one);
    // Strength 0 keeps the image (through the autoencoder), strength 1 ignores it.
    done(folder, &with(&["-i", "one.png", "--strength", "0", "-o", "kept.png"]));
    let mean = |a: &image::RgbImage| {
        a.iter().zip(one.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
            / one.len() as f64
    };
    assert!(mean(&pixels(&folder.join("kept.png"))) < 12.0);
    done(folder, &with(&["-i", "kept.png", "--strength", "1", "-o", "ignored.png"]));
    assert_eq!(pixels(&folder.join("ignored.png")), one);
    // A size other than the model's own.
    done(folder, &with(&["--size", "96x160", "-o", "tall.png"]));
    assert_eq!(pixels(&folder.join("tall.png")).dimensions(), (96, 160));
}

#[test]
fn a_shift_and_a_scheduler_config_replace_the_noise_levels_and_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let draw = |more: &[&str]| {
        let base = ["a fox", "--seed", "3", "--steps", "3", "--json"];
        done(folder, &base.iter().chain(more).copied().collect::<Vec<_>>())
    };
    draw(&["-o", "plain.png"]);
    let plain = pixels(&folder.join("plain.png"));
    // The embedded model has no shift of its own.
    draw(&["-o", "one.png", "--shift", "1"]);
    assert_eq!(pixels(&folder.join("one.png")), plain);
    let json = draw(&["-o", "three.png", "--shift", "3"]);
    assert_eq!(json["settings"]["shift"], 3.0);
    let three = pixels(&folder.join("three.png"));
    assert_ne!(three, plain);
    let config = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0,
        "use_dynamic_shifting": false, "shift_terminal": null}"#;
    fs::create_dir(folder.join("scheduler")).unwrap();
    fs::write(folder.join("scheduler/scheduler_config.json"), config).unwrap();
    for file in ["scheduler/scheduler_config.json", "."] {
        let json = draw(&["-o", "config.png", "--scheduler-config", file]);
        assert_eq!(json["settings"]["scheduler"], serde_json::json!({ "shift": 3.0 }));
        assert_eq!(pixels(&folder.join("config.png")), three);
    }
    // Both are in the files, and what is typed replaces them.
    for (file, more, want) in [
        ("three.png", &[][..], &three),
        ("config.png", &[], &three),
        ("config.png", &["--shift", "1"], &plain),
    ] {
        let again = [&["again", file, "-o", "again.png"], more].concat();
        done(folder, &again);
        assert_eq!(pixels(&folder.join("again.png")), *want, "{file} {more:?}");
    }
    let again = ["again", "three.png", "--scheduler-config", ".", "-o", "again.png", "--json"];
    assert_eq!(done(folder, &again)["settings"]["shift"], Value::Null);

    fs::write(folder.join("other.json"), r#"{"shift": 3.0, "new_key": 2}"#).unwrap();
    for (arguments, code, words) in [
        (&["--scheduler-config", "other.json"][..], 3, "new_key"),
        (&["--scheduler-config", "no.json"], 4, "--scheduler-config: no.json"),
        (&["--scheduler-config", ".", "--shift", "2"], 2, "cannot be used with"),
        (&["--shift", "0"], 2, "0.01 to 100"),
    ] {
        let output = run(folder, &[&["x", "-o", "no.png"], arguments].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{text}");
    }
    assert!(!folder.join("no.png").exists());
}

#[test]
fn plans_are_printed_as_text_and_as_json_and_run_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let json = done(dir.path(), &["plan", "x", "--json", "--ram", "2G"]);
    assert_eq!(json["budget_bytes"].as_u64(), Some(2_000_000_000));
    assert!(json["peak_bytes"].as_u64().unwrap() <= 2_000_000_000);
    let programs: Vec<&str> =
        json["phases"].as_array().unwrap().iter().map(|p| p["program"].as_str().unwrap()).collect();
    assert_eq!(programs, ["clip", "t5", "modulate", "denoise", "decode"]);
    let text = run(dir.path(), &["plan", "x"]).stdout;
    assert!(String::from_utf8(text).unwrap().contains("denoise"));
    assert_eq!(files(dir.path()), [] as [&str; 0]);
}

#[test]
fn bad_models_budgets_and_devices_have_their_exit_codes_and_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    let bytes = fs::read(embedded).unwrap();
    fs::write(folder.join("whole.safetensors"), &bytes).unwrap();
    fs::write(folder.join("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(folder.join("text.safetensors"), "not a model").unwrap();
    let mut gguf = b"GGUF\x03\0\0\0".to_vec();
    gguf.resize(100, 0);
    fs::write(folder.join("m.gguf"), gguf).unwrap();
    let before = files(folder);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--model", "cut.safetensors"], 3, "cut.safetensors"),
        (&["--model", "text.safetensors"], 3, "text.safetensors"),
        (&["--model", "m.gguf"], 3, "m.gguf: bytes after the last tensor"),
        (&["--model", "nowhere.safetensors"], 4, "nowhere.safetensors"),
        (&["--ram", "1M"], 5, "budget"),
        (&["--device", "cuda"], 6, "cuda"),
        (&["--size", "100x128"], 2, "16"),
        (&["--kernel", "linear=nonsense"], 2, "linear_"),
        (&["--compute", "f7"], 2, "bf16"),
    ];
    for (arguments, code, word) in cases {
        let output = run(folder, &[&["x", "--steps", "1", "-o", "x.png"], *arguments].concat());
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {err}");
        assert!(err.contains("error: ") && err.contains(word), "{arguments:?}: {err}");
        assert!(!err.contains("panicked"), "{err}");
        assert_eq!(files(folder), before, "{arguments:?} left something behind");
    }
    done(folder, &["x", "--steps", "1", "-o", "x.png", "--model", "whole.safetensors"]);
    assert!(folder.join("x.png").exists());
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_run_with_its_code_and_no_partial_image() {
    use std::io::Read;
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            command(dir.path(), &["a fox", "--steps", "1000", "-n", "8", "-o", "x.png"])
                .spawn()
                .unwrap();
        // Progress on stderr shows that denoising has begun.
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains("denoise")
            && child.stderr.as_mut().unwrap().read(&mut byte).unwrap() == 1
        {
            seen.push(byte[0]);
        }
        assert!(
            Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = String::new();
        child.stderr.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest}");
        assert_eq!(files(dir.path()), [] as [&str; 0]);
    }
}

#[test]
fn a_file_of_prompts_is_one_load_and_gives_the_images_of_single_runs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let prompts = ["a fox, 3D style, on a blue background", "a pizza, flat style"];
    fs::write(folder.join("prompts.txt"), format!("{}\n\n{}\n", prompts[0], prompts[1])).unwrap();
    let common = ["--seed", "3", "--steps", "2"];
    let output = run(
        folder,
        &[&["--prompt-file", "prompts.txt", "--json", "-o", "x.png"], &common[..]].concat(),
    );
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert_eq!(err.matches("small embedded model").count(), 1, "one load: {err}");
    let out = String::from_utf8(output.stdout).unwrap();
    let results: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(results.len(), 2, "{out}");
    for (i, prompt) in prompts.iter().enumerate() {
        assert_eq!(results[i]["settings"]["prompt"], *prompt);
        let name = format!("x-{}.png", i + 1);
        assert_eq!(results[i]["files"][0], name.as_str());
        done(folder, &[&["-p", prompt, "-o", "single.png"], &common[..]].concat());
        assert_eq!(pixels(&folder.join(&name)), pixels(&folder.join("single.png")), "{prompt}");
    }

    // Every line is checked before the first step.
    fs::write(folder.join("bad.txt"), "a fox\n\n\u{1b}[2J\n").unwrap();
    for (arguments, exit, expected) in [
        (&["--prompt-file", "bad.txt"][..], 2, "bad.txt, line 3"),
        (&["--prompt-file", "none.txt"], 4, "none.txt"),
        (&["--prompt-file", "prompts.txt", "a fox"], 2, "cannot be used with"),
        (&["plan", "--prompt-file", "prompts.txt"], 2, "--prompt-file"),
    ] {
        let before = files(folder);
        let output = run(folder, arguments);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
        assert_eq!(files(folder), before, "{arguments:?}");
    }
}

#[test]
fn json_events_are_one_object_per_line_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let events = |arguments: &[&str], exit| {
        let output = run(folder, arguments);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}");
        let err = String::from_utf8(output.stderr).unwrap();
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let events: Vec<Value> = err.lines().map(parse).collect();
        assert!(events.iter().all(|e| e["event"].is_string()), "{err}");
        events
    };
    let drawn = events(&["a fox", "--json-events", "--steps", "3", "-o", "x.png"], 0);
    let of = |name: &str, phase: &str| {
        drawn.iter().filter(|e| e["event"] == name && e["phase"] == phase).collect::<Vec<_>>()
    };
    for phase in ["text", "modulate", "denoise", "decode"] {
        assert_eq!((of("phase_start", phase).len(), of("phase_end", phase).len()), (1, 1));
    }
    let steps: Vec<_> = of("step", "denoise").iter().map(|e| e["done"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(2), Some(3)]);
    assert!(drawn.iter().any(|e| e["event"] == "note"));

    for (arguments, exit, code) in [
        (&["a fox", "--json-events", "--steps", "0"][..], 2, "bad_argument"),
        (&["again", "--json-events", "none.png"], 4, "missing_file"),
    ] {
        let last = events(arguments, exit).pop().expect("an error event");
        assert_eq!((&last["event"], &last["code"]), (&"error".into(), &code.into()));
        assert!(last["message"].is_string());
    }
}
