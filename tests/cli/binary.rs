//! The binary from outside: exit codes, messages on stdout and stderr, and files that are left.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flux_fast::pipeline::images::{Format, Metadata, save};
use flux_fast::pipeline::request::{Image, Settings};
use serde_json::Value;

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    // The tests do not depend on the user's own configuration file.
    command.env("FLUX_FAST_CONFIG", "");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary starts")
}

pub fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

pub fn a_picture(path: &Path, strength: Option<f32>) {
    let mut settings = Settings::default();
    settings.prompt = "a fox, \"red\"\nin snow 🦊".into();
    settings.steps = 4;
    settings.seed = u64::MAX;
    (settings.width, settings.height) = (16, 16);
    settings.guidance = Some(3.5);
    settings.strength = strength;
    settings.model = "flux-tiny".to_string();
    settings.model_hash = "0123456789".to_string();
    let picture = Image { width: 16, height: 16, rgb: vec![127; 768] };
    save(&picture, path, Format::Png, 90, &Metadata { settings: &settings, index: 0 }).unwrap();
}

#[test]
fn bad_arguments_exit_with_2_name_the_range_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--steps", "0"], "1 to 1000"),
        (&["--steps", "1000000000"], "1 to 1000"),
        (&["--steps", "-1"], "1 to 1000"),
        (&["--steps", "4.5"], "1 to 1000"),
        (&["-n", "0"], "1 to 64"),
        (&["-n", "1000000000"], "1 to 64"),
        (&["-W", "0"], "multiple of 16 from 16 to 4096"),
        (&["-W", "-1"], "multiple of 16 from 16 to 4096"),
        (&["-W", "17"], "16 or 32"),
        (&["-H", "1000000000"], "multiple of 16 from 16 to 4096"),
        (&["--size", "big"], "1024x768"),
        (&["--size", "4112x5000"], "try 4096x4096"),
        (&["--size", "1000x768"], "try 992x768 or 1008x768"),
        (&["--size", "1920x1080"], "try 1920x1072 or 1920x1088"),
        (&["--size", "8x24"], "try 16x16 or 16x32"),
        (&["--size", "1000"], "try 992 or 1008"),
        (&["--size", "1024xbig"], "1024x768"),
        (&["--seed", "-2"], "18446744073709551615"),
        (&["--seed", "18446744073709551616"], "18446744073709551615"),
        (&["--guidance", "nan"], "0 to 100"),
        (&["--guidance", "1e400"], "0 to 100"),
        (&["--guidance", "1e39"], "0 to 100"),
        (&["--guidance", "-1"], "0 to 100"),
        (&["--cfg-scale", "inf"], "0 to 100"),
        (&["--strength", "1.5", "-i", "x.png"], "0 to 1"),
        (&["--strength", "0.5"], "--init-img"),
        (&["--vram", "lots"], "8GiB"),
        (&["--ram", "0"], "8GiB"),
        (&["--vram", "-8G"], "8GiB"),
        (&["--device", "gpu"], "cuda:N"),
        (&["--compute", "f64"], "bf16"),
        (&["--kernel", "linear"], "OPERATION=NAME"),
        (&["--threads", "0"], "1 to 1024"),
        (&["--quality", "101"], "1 to 100"),
        (&["--format", "gif"], "png, jpeg, webp, bmp or tiff"),
        (&["-o", "x.gif"], "png, jpg, webp, bmp or tiff"),
        (&["-o", "x.png", "--format", "jpeg"], "disagree"),
        (&["-p", "another prompt"], "cannot be used with"),
        (&["another positional"], "try: put the prompt in quotes"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (arguments, expected) in cases {
        for subcommand in [&[][..], &["generate"]] {
            let all: Vec<&str> = subcommand
                .iter()
                .copied()
                .chain(["a fox"])
                .chain(arguments.iter().copied())
                .collect();
            let output = command(&all).current_dir(&folder).output().unwrap();
            let said = stderr(&output);
            assert_eq!(code(&output), Some(2), "{all:?}: {said}");
            assert!(said.starts_with("error: ") && said.contains(expected), "{all:?}: {said}");
            assert!(!said.contains("panicked"), "{all:?}: {said}");
            assert_eq!(stdout(&output), "", "{all:?}");
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn errors_are_json_too_with_the_flag_json() {
    for (arguments, exit, name) in [
        (&["a fox", "--json", "--steps", "0"][..], 2, "bad_argument"),
        (&["--json", "a fox", "-W", "17"], 2, "bad_argument"),
        (&["again", "--json", "/nowhere/x.png"], 4, "missing_file"),
        (&["a fox", "--json", "-o", "/nowhere/x.png"], 7, "output"),
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), Some(exit), "{arguments:?}: {}", stderr(&output));
        let told: Value = serde_json::from_str(&stdout(&output)).expect("one JSON object");
        assert_eq!(told["error"]["code"], name, "{told}");
        assert!(told["error"]["message"].as_str().is_some_and(|m| m.len() > 10), "{told}");
        assert!(told["error"]["hint"].is_string(), "{told}");
        assert!(stderr(&output).starts_with("error: "));
    }
}

#[test]
fn prompts_that_are_too_long_or_not_text_are_refused() {
    let long = "a".repeat(100_000);
    for prompt in [long.as_str(), "bell\u{7}", "\u{1b}[2J"] {
        let output = run(&["-p", prompt]);
        assert_eq!(code(&output), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("prompt"), "{}", stderr(&output));
    }
    // The prompt on stdin has the same bound, and must be text.
    for (bytes, expected) in [(vec![b'a'; 1 << 20], "at most 10000"), (vec![0xff, 0xfe], "UTF-8")] {
        let mut child = command(&["-"]).stdin(Stdio::piped()).spawn().unwrap();
        // The program may end before all is written.
        child.stdin.take().unwrap().write_all(&bytes).ok();
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), Some(2));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let output = run(&["generate"]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("no prompt"), "{}", stderr(&output));
    let output = run(&[]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("Usage"), "{}", stderr(&output));
}

#[test]
fn an_output_that_cannot_be_written_is_reported_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    let long = format!("{}.png", "x".repeat(300));
    for name in ["missing/x.png", "file/x.png", &long] {
        let output = command(&["a fox", "-o", name]).current_dir(&folder).output().unwrap();
        assert_eq!(code(&output), Some(7), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains("  try: "), "{name}: {}", stderr(&output));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn input_images_that_are_missing_or_unreadable_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("x.png"), b"not a picture").unwrap();
    for (arguments, exit, name) in [
        (&["a fox", "-i", "none.png"][..], 4, "none.png"),
        (&["a fox", "-i", "x.png"], 2, "x.png"),
        (&["again", "none.png"], 4, "none.png"),
        (&["again", "x.png"], 2, "x.png"),
        (&["inspect", "none.png"], 4, "none.png"),
    ] {
        let output = command(arguments).current_dir(&folder).output().unwrap();
        assert_eq!(code(&output), Some(exit), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(name), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn inspect_shows_the_settings_of_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    a_picture(&path, None);
    let path = path.to_str().unwrap();
    let output = run(&["inspect", path]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for expected in [
        "prompt: a fox, \"red\"\nin snow 🦊\n",
        "seed: 18446744073709551615\n",
        "size: 16x16\n",
        "guidance: 3.5\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let output = run(&["inspect", "--json", path]);
    let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (told["seed"].as_u64(), told["seed_text"].as_str()),
        (Some(u64::MAX), Some("18446744073709551615"))
    );
    assert_eq!(told["prompt"], "a fox, \"red\"\nin snow 🦊");
}

#[test]
fn again_checks_its_overrides_and_needs_the_first_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    a_picture(&path, Some(0.6));
    let output = run(&["again", path.to_str().unwrap()]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("  try: -i "), "{}", stderr(&output));
    a_picture(&path, None);
    let output = run(&["again", path.to_str().unwrap(), "-W", "4112", "-H", "4096"]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("try 4096"), "{}", stderr(&output));
}

#[test]
fn a_command_after_flags_is_not_a_prompt() {
    for arguments in
        [&["--json", "doctor"][..], &["--json", "-q", "doctor"], &["-q", "doctor", "--json"]]
    {
        let output = run(arguments);
        assert_eq!(code(&output), Some(0), "{arguments:?}: {}", stderr(&output));
        assert!(serde_json::from_str::<Value>(&stdout(&output)).unwrap()["cpu"].is_object());
    }
    let output = run(&["--steps", "4", "doctor"]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("-p doctor"), "{}", stderr(&output));
}

#[test]
fn help_names_every_flag_and_command() {
    let output = run(&["--help"]);
    assert_eq!((code(&output), stderr(&output).as_str()), (Some(0), ""));
    let text = stdout(&output);
    for word in [
        "generate",
        "plan",
        "again",
        "bench",
        "pull",
        "models",
        "doctor",
        "inspect",
        "-p",
        "--prompt",
        "--negative",
        "-n",
        "--count",
        "--steps",
        "-s",
        "--seed",
        "-W",
        "--width",
        "-H",
        "--height",
        "--size",
        "--guidance",
        "--cfg-scale",
        "--model",
        "--clip",
        "--t5",
        "--vae",
        "-i",
        "--init-img",
        "--strength",
        "-o",
        "--output",
        "--format",
        "--quality",
        "--device",
        "--vram",
        "--ram",
        "--compute",
        "--kernel",
        "--threads",
        "--json",
        "-q",
        "--quiet",
        "--preview",
        "Exit codes",
        "Examples",
    ] {
        assert!(text.contains(word), "--help does not mention {word}");
    }
    for subcommand in ["generate", "plan", "again", "bench", "pull", "models", "doctor", "inspect"]
    {
        let output = run(&[subcommand, "--help"]);
        assert_eq!(code(&output), Some(0), "{subcommand}");
        assert!(stdout(&output).contains("Usage: flux-fast"), "{subcommand}");
    }
    let version = run(&["--version"]);
    assert_eq!(stdout(&version), format!("flux-fast {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn doctor_describes_the_machine() {
    let output = run(&["doctor"]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("cpu: ") && stdout(&output).contains("memory: "),
        "{}",
        stdout(&output)
    );
    let told: Value = serde_json::from_str(&stdout(&run(&["doctor", "--json"]))).unwrap();
    assert!(told["memory"]["total_bytes"].as_u64().unwrap() > 0, "{told}");
    assert!(told["cpu"]["cores"].as_u64().unwrap() > 0, "{told}");
    assert!(told["models"].is_array() && told["looked_in"].is_array(), "{told}");
}

#[test]
fn completions_and_manual_pages_come_from_the_definition_of_the_arguments() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), Some(0), "{shell}: {}", stderr(&output));
        for word in ["generate", "cfg-scale", "completions"] {
            assert!(stdout(&output).contains(word), "{shell} does not know {word}");
        }
    }
    let output = run(&["completions", "sh"]);
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("fish"), "{}", stderr(&output));

    let page = stdout(&run(&["man"]));
    assert!(page.contains(".TH") && page.contains("cfg\\-scale"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let output = run(&["man", "--output", pages.to_str().unwrap()]);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    for name in ["flux-fast.1", "flux-fast-plan.1", "flux-fast-completions.1"] {
        let text = fs::read_to_string(pages.join(name)).expect(name);
        assert!(text.contains("\\fBflux"), "{name}: {text}");
        assert!(stdout(&output).contains(name), "{}", stdout(&output));
    }
    let blocked = pages.join("flux-fast.1").join("folder");
    let output = run(&["man", "--output", blocked.to_str().unwrap()]);
    assert_eq!(code(&output), Some(7), "{}", stderr(&output));
}

#[test]
fn a_configuration_file_gives_defaults_and_is_shown_by_doctor() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| fs::write(folder.path().join("config.toml"), text).unwrap();
    let with = |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("FLUX_FAST_CONFIG", folder.path().join("config.toml"));
        command.current_dir(&folder).output().unwrap()
    };
    // A missing default file is not an error; a missing file given with --config is.
    assert_eq!(code(&with(&["doctor"])), Some(0));
    let missing = with(&["doctor", "--config", "none.toml"]);
    assert_eq!(code(&missing), Some(4), "{}", stderr(&missing));

    write("steps = 2\nformat = \"jpeg\"\nquality = 80\n");
    let shown = with(&["doctor", "--json"]);
    let told: Value = serde_json::from_str(&stdout(&shown)).unwrap();
    assert_eq!(told["config"]["exists"], true, "{told}");
    assert!(stdout(&with(&["doctor"])).contains("steps = 2"));
    let drawn = with(&["a fox", "--seed", "1", "--json"]);
    assert_eq!(code(&drawn), Some(0), "{}", stderr(&drawn));
    let told: Value = serde_json::from_str(&stdout(&drawn)).unwrap();
    assert_eq!((&told["settings"]["steps"], &told["files"][0]), (&2.into(), &"flux-1.jpg".into()));
    // Flags take precedence; --no-config reads no file; `again` keeps the image's own steps.
    let typed =
        with(&["a fox", "--seed", "1", "--json", "--steps", "3", "-o", "x.png", "--format", "png"]);
    let told: Value = serde_json::from_str(&stdout(&typed)).unwrap();
    assert_eq!(told["settings"]["steps"], 3, "{}", stderr(&typed));
    let rerun = with(&["again", "x.png", "--json", "-o", "y.jpg"]);
    let told: Value = serde_json::from_str(&stdout(&rerun)).unwrap();
    assert_eq!(told["settings"]["steps"], 3, "{}", stderr(&rerun));

    for (text, expected) in
        [("stpes = 2", "stpes"), ("steps = 0", "1 to 1000"), ("\nsteps = ", "line 2")]
    {
        write(text);
        for arguments in [&["a fox"][..], &["doctor"]] {
            let output = with(arguments);
            let said = stderr(&output);
            assert_eq!(code(&output), Some(2), "{text}: {said}");
            assert!(said.contains("config.toml") && said.contains(expected), "{text}: {said}");
        }
        assert_eq!(code(&with(&["doctor", "--no-config"])), Some(0), "{text}");
    }
}

#[test]
fn a_plan_of_a_synthetic_model_writes_no_file() {
    let cache = tempfile::tempdir().unwrap();
    let plan = |model: &str| {
        let mut command = command(&["plan", "--json", "--device", "cpu", "--model", model]);
        let output = command.env("FLUX_FAST_CACHE", cache.path()).output().unwrap();
        assert_eq!(code(&output), Some(0), "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let (fp8, bf16) = (plan("synthetic:dev"), plan("synthetic:schnell:bf16"));
    assert_ne!(fp8, bf16);
    let files: Vec<_> = fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.is_empty(), "{files:?}");
}
