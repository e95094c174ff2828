//! What people type when they try the program for the first time: misspelt commands, short sizes,
//! pipes, and the numbers that plans, `doctor` and `models` answer with.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use flux_fast::dtype::DType;
use flux_fast::library::convert::{self, Target};
use flux_fast::library::open_only;
use serde_json::Value;

use super::runs::{command, done, files, pixels, run};

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

/// Runs the program with `input` on stdin.
fn with_input(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(folder, arguments).stdin(Stdio::piped()).spawn().unwrap();
    // The program may refuse the arguments before it reads.
    child.stdin.take().unwrap().write_all(input).ok();
    child.wait_with_output().unwrap()
}

fn refused(folder: &Path, arguments: &[&str], expected: &str) {
    let output = run(folder, arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(said.contains(expected), "{arguments:?}: {said}");
}

#[test]
fn a_word_that_is_close_to_a_command_is_not_drawn() {
    let dir = tempfile::tempdir().unwrap();
    for (word, near) in [
        ("doctr", "doctor"),
        ("Doctor", "doctor"),
        ("plna", "plan"),
        ("modles", "models"),
        ("inpsect", "inspect"),
        ("genrate", "generate"),
        ("complettions", "completions"),
        ("hlep", "help"),
        ("doctr.", "doctor"),
        ("list", "models"),
        ("download", "pull"),
        ("Info", "inspect"),
    ] {
        let question = format!("did you mean the command {near}? to draw it, use -p {word}");
        refused(dir.path(), &[word], &question);
        refused(dir.path(), &[word, "--steps", "1", "-o", "x.png"], &question);
    }
    refused(dir.path(), &["doctr "], "did you mean the command doctor?");
    refused(dir.path(), &["version"], "did you mean flux-fast --version? to draw it");
    // With an argument behind it.
    refused(dir.path(), &["inspct", "light.png"], "did you mean the command inspect?");
    refused(dir.path(), &["a", "fox"], "put the prompt in quotes");
    assert_eq!(files(dir.path()), [] as [&str; 0]);
    // Other words, several words, and a prompt that is named as one are drawn.
    let small = ["--steps", "1", "--size", "32", "-q", "-o"];
    for (name, prompt) in
        [("a.png", &["mango"][..]), ("b.png", &["-p", "doctr"]), ("c.png", &["a modle"])]
    {
        done(dir.path(), &[prompt, &small, &[name]].concat());
    }
    assert_eq!(files(dir.path()), ["a.png", "b.png", "c.png"]);
}

#[test]
fn of_an_option_that_is_given_twice_the_last_counts() {
    let dir = tempfile::tempdir().unwrap();
    let twice = [
        "--json", "--steps", "9", "--size", "64x64", "--seed", "1", "--json", "-o", "a.png",
        "--steps", "1", "--size", "32x48", "--seed", "2", "-o", "b.png", "-q", "-q",
    ];
    for command in [&["a fox"][..], &["generate", "a fox"]] {
        let told = done(dir.path(), &[command, &twice].concat());
        let settings = &told["settings"];
        assert_eq!((&settings["steps"], &settings["seed"]), (&1.into(), &2.into()));
        assert_eq!((&settings["width"], &settings["height"]), (&32.into(), &48.into()));
    }
    assert_eq!(files(dir.path()), ["b.png"]);
    // What may be given several times still adds up, and bad values are still refused.
    let both = run(dir.path(), &["x", "--lora", "no-such-a", "--lora", "b"]);
    assert!(stderr(&both).contains("--lora no-such-a: "), "{}", stderr(&both));
    refused(dir.path(), &["x", "--steps", "0", "--steps", "0"], "1 to 1000");
}

#[test]
fn sizes_may_be_squares_and_aspect_ratios() {
    let dir = tempfile::tempdir().unwrap();
    let size = |text: &str| {
        let plan = done(dir.path(), &["plan", "--json", "--device", "cpu", "--size", text]);
        (plan["width"].as_u64().unwrap(), plan["height"].as_u64().unwrap())
    };
    assert_eq!(size("64"), (64, 64));
    assert_eq!(size("64x32"), (64, 32));
    // The embedded model's own area is 128 x 128.
    assert_eq!(size("16:9"), (176, 96));
    assert_eq!(size("9:16"), (96, 176));
    assert_eq!(size("1:1"), (128, 128));
    for (text, expected) in [
        ("500", "try 496 or 512"),
        ("5000", "16 to 4096"),
        ("16:0", "such as 16:9"),
        ("99:1", "from 1:16 to 16:1"),
        ("wide", "aspect ratio"),
    ] {
        refused(dir.path(), &["plan", "--size", text], expected);
    }
    // With another image's settings, the ratio replaces both sides.
    done(dir.path(), &["a fox", "--steps", "1", "--size", "32x64", "-q", "-o", "a.png"]);
    done(dir.path(), &["again", "a.png", "--size", "2:1", "-q", "-o", "b.png"]);
    assert_eq!(pixels(&dir.path().join("b.png")).dimensions(), (176, 96));
}

#[test]
fn images_pass_through_pipes_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let fox = ["a fox", "--seed", "1", "--steps", "1", "--size", "32"];
    let with = |more: &[&'static str]| [&fox[..], more].concat();
    done(folder, &with(&["-o", "a.png"]));
    let piped = run(folder, &with(&["-o", "-"]));
    assert_eq!(piped.status.code(), Some(0), "{}", stderr(&piped));
    assert_eq!(piped.stdout, fs::read(folder.join("a.png")).unwrap());
    let jpeg = run(folder, &with(&["-o", "-", "--format", "jpeg"]));
    assert_eq!(image::guess_format(&jpeg.stdout).unwrap(), image::ImageFormat::Jpeg);
    assert_eq!(files(folder), ["a.png"]);

    let from_file = ["-i", "a.png", "--strength", "0", "-o", "b.png"];
    done(folder, &with(&from_file));
    let output = with_input(
        folder,
        &with(&["-i", "-", "--strength", "0", "-o", "c.png"]),
        &fs::read(folder.join("a.png")).unwrap(),
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(pixels(&folder.join("b.png")), pixels(&folder.join("c.png")));

    let bad = with_input(folder, &with(&["-i", "-"]), b"not an image");
    assert_eq!(bad.status.code(), Some(2));
    assert!(stderr(&bad).starts_with("error: stdin: "), "{}", stderr(&bad));
    refused(folder, &with(&["-o", "-", "--json"]), "--json-events");
    refused(folder, &with(&["-o", "-", "-n", "2"]), "stdout takes one image");
    refused(folder, &["-", "-i", "-"], "stdin cannot be both");
    refused(folder, &["--prompt-file", "-", "-i", "-"], "stdin cannot be both");
    assert_eq!(files(folder), ["a.png", "b.png", "c.png"]);
}

#[test]
#[cfg(unix)]
fn an_image_is_not_written_to_a_reader_that_went_away() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments = ["a fox", "--steps", "1", "--size", "32", "-q", "-o", "-"];
    let output = command(dir.path(), &arguments).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

#[test]
fn help_says_what_matters_for_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let help = |command: &str| {
        let output = run(dir.path(), &[command, "--help"]);
        // Wrapping depends on the terminal.
        stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for (command, with, without) in [
        (
            "generate",
            &["-100 to 100", "16:9", "1 to 1024", "16 to 4096", "`-` for stdout"][..],
            &["that of the image"][..],
        ),
        ("plan", &["--steps", "--size", "LoRA tags"], &["--seed", "--output", "--quality"]),
        ("bench", &["[default: 0]", "[default: 3]", "1 to 1000"], &["--negative", "--no-cache"]),
        ("again", &["those of the image", "that of the image"], &["[default: the model's own]"]),
    ] {
        let text = help(command);
        for word in with {
            assert!(text.contains(word), "{command} --help does not have {word}: {text}");
        }
        for word in without {
            assert!(!text.contains(word), "{command} --help has {word}: {text}");
        }
    }
    let text = stdout(&run(dir.path(), &["--help"]));
    for variable in ["FLUX_FAST_CONFIG", "FLUX_FAST_CACHE", "COMFYUI_PATH", "HF_HOME"] {
        assert!(text.contains(variable), "{variable} is missing");
    }
    assert!(help("pull").contains("HF_TOKEN"));
    // Options without an effect are still accepted: a plan has the options of the image.
    let options = ["--seed", "1", "-o", "x.png", "--negative", "y", "--no-cache", "--quality", "9"];
    done(dir.path(), &[&["plan", "x", "--device", "cpu"], &options[..]].concat());
}

#[test]
fn a_plan_says_how_long_it_takes_and_how_it_knows() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |arguments: &[&str]| {
        let mut command = command(dir.path(), arguments);
        let output = command.env("FLUX_FAST_CACHE", cache.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    let plan = |more: &[&str]| -> Value {
        let all = [&["plan", "a fox", "--json", "--device", "cpu", "--steps", "2"], more].concat();
        serde_json::from_str(&run(&all)).unwrap()
    };
    let text = || run(&["plan", "a fox", "--device", "cpu", "--steps", "2"]);
    let draw = ["a fox", "--device", "cpu", "--steps", "2", "-q", "-o", "x.png"];
    assert_eq!(plan(&[])["time_source"], "assumed");
    assert!(text().contains("time: about ") && text().contains("rough estimate"), "{}", text());
    run(&[&draw[..], &["--no-cache"]].concat());
    assert_eq!(plan(&[])["time_source"], "assumed", "--no-cache keeps nothing");
    run(&draw);
    let measured = plan(&[]);
    assert_eq!(measured["time_source"], "measured", "{measured}");
    let phases = measured["phases"].as_array().unwrap();
    let sum: f64 = phases.iter().map(|p| p["seconds"].as_f64().unwrap()).sum();
    assert!((measured["seconds"].as_f64().unwrap() - sum).abs() < 1e-9 && sum > 0.0);
    assert!(text().contains("(measured in an earlier run on this device)"), "{}", text());
    assert_eq!(plan(&["--size", "256"])["time_source"], "measured_at_other_sizes");
    // A file that is damaged counts as none.
    fs::write(cache.path().join("speeds.json"), "{").unwrap();
    assert_eq!(plan(&[])["time_source"], "assumed");
}

#[test]
fn the_time_that_is_left_is_among_the_events() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["a fox", "--json-events", "--steps", "3", "--size", "32", "-o", "x.png"];
    let said = stderr(&run(dir.path(), &arguments));
    let events = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let denoise = events.filter(|e| e["event"] == "step" && e["phase"] == "denoise");
    let left: Vec<f64> = denoise.map(|e| e["seconds_left"].as_f64().unwrap()).collect();
    assert_eq!(left.len(), 3, "{said}");
    assert!(left[0] > 0.0 && left[2] == 0.0, "{left:?}");
}

#[test]
fn doctor_says_how_flux_would_run_on_the_processor() {
    let dir = tempfile::tempdir().unwrap();
    let text = stdout(&run(dir.path(), &["doctor"]));
    for name in ["dev", "schnell"] {
        assert!(text.contains(&format!("    {name} (fp8, 1024x1024): ")), "{text}");
    }
    let report = done(dir.path(), &["doctor", "--json"]);
    for name in ["dev", "schnell"] {
        assert!(report["cpu"][name].as_str().unwrap().contains("GB"), "{report}");
    }
}

#[test]
fn the_embedded_model_says_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let all = [arguments, &["--steps", "1", "-q", "--device", "cpu", "-o", "x.png"]].concat();
        let output = run(dir.path(), &all);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    assert_eq!(said(&["a fox, 3D style, on a blue background"]), "");
    let castle = said(&["a Fox before a castle on a blue background", "--size", "64"]);
    assert!(castle.contains("Fox (write fox), before, castle;"), "{castle}");
    assert!(castle.contains("at 128x128 only, at 64x64"), "{castle}");
}

#[test]
fn the_embedded_model_is_written_to_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    done(folder, &["convert", "embedded"]);
    assert_eq!(fs::read(folder.join("flux-tiny.safetensors")).unwrap(), fs::read(asset).unwrap());
    done(folder, &["convert", "embedded", "--to", "fp8"]);
    let q8 = run(folder, &["convert", "embedded", "--to", "q8_0", "-o", "tiny.gguf"]);
    assert_eq!(q8.status.code(), Some(0), "{}", stderr(&q8));
    assert!(stderr(&q8).contains("--t5 flux-tiny.safetensors"), "{}", stderr(&q8));
    let names = ["flux-tiny-fp8.safetensors", "flux-tiny.safetensors", "tiny.gguf"];
    assert_eq!(files(folder), names);
    done(folder, &["plan", "x", "--model", "flux-tiny.safetensors"]);
    done(folder, &["plan", "x", "--model", "flux-tiny-fp8.safetensors"]);
    refused(folder, &["convert", "embedded"], "exists already");
    refused(folder, &["convert", "flux-tiny.safetensors"], "no type to convert to");
}

#[test]
fn models_are_listed_with_the_type_of_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    let checkpoint = open_only(&asset).unwrap();
    let types = [
        ("nf4", Target::Blocks(DType::Nf4)),
        ("fp4", Target::Blocks(DType::Fp4)),
        ("mxfp8", Target::Blocks(DType::Mxfp8)),
        ("nvfp4", Target::Blocks(DType::Nvfp4)),
        ("int8", Target::Int8),
        ("fp8", Target::Fp8Rows),
        ("q4_0", Target::Gguf(DType::Q4_0)),
    ];
    for (name, target) in types {
        let path = folder.join(format!("of-{name}.{}", target.extension()));
        let tell = &mut |_, _| std::ops::ControlFlow::Continue(());
        convert::convert(&checkpoint, target, &path, tell).unwrap();
    }
    let list = done(folder, &["models", "--json"]);
    for (name, _) in types {
        let rows = list["models"].as_array().unwrap();
        let is_it = |r: &&Value| r["name"].as_str().unwrap().starts_with(&format!("of-{name}."));
        let what = rows.iter().find(is_it).unwrap()["what"].as_str().unwrap();
        assert!(what.split([',', ';']).any(|word| word.trim() == name), "{name}: {what}");
    }
}

#[test]
fn more_threads_than_cores_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), &["plan", "x", "--device", "cpu", "--threads", "1024"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let cores = std::thread::available_parallelism().unwrap();
    let note = format!("--threads 1024 is more than the {cores} that the processor runs");
    assert!(stderr(&output).contains(&note), "{}", stderr(&output));
    assert!(stdout(&output).contains(&format!("{cores} thread")), "{}", stdout(&output));
}
