//! Files from strangers, and limits of the system: a clear error with its exit code; never a hang,
//! an abort, or control sequences on the terminal.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flux_fast::pipeline::images::{Format, encode};
use flux_fast::pipeline::request::Image;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::common::tensors::{T5, Tensors};

pub const BINARY: &str = env!("CARGO_BIN_EXE_flux-fast");

pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    prepare(&mut command, folder).args(arguments);
    command
}

/// The binary started by a shell, after `before`.
#[cfg(unix)]
pub fn shell(folder: &Path, before: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    prepare(&mut command, folder)
        .args(["-c", &format!("{before}; exec \"$0\" \"$@\""), BINARY])
        .args(arguments);
    command
}

pub fn prepare<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command
        .current_dir(folder)
        .env("FLUX_FAST_CONFIG", "")
        .env("HOME", folder)
        .env("HF_HOME", folder.join("no-cache"))
        .env_remove("COMFYUI_PATH")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
}

/// Waits for the end of a process. One that hangs is killed, and the test fails.
pub fn finished(mut child: Child, what: &str) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Exit code, stdout and stderr.
pub fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let child = command(folder, arguments).spawn().unwrap();
    texts(finished(child, &format!("{arguments:?}")))
}

pub fn texts(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The characters of `text` that a terminal acts on, except line breaks.
fn active(text: &str) -> Vec<char> {
    let direction = ['\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}', '\u{200e}'..='\u{200f}'];
    let acts = |c: &char| c.is_control() || direction.iter().any(|range| range.contains(c));
    text.chars().filter(|c| acts(c) && *c != '\n').collect()
}

/// A safetensors file with this JSON header and `data` bytes.
fn raw(path: &Path, header: &[u8], data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(vec![0; data]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn control_sequences_of_files_do_not_reach_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let hostile = "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}x";
    // In names of tensors, in metadata, in the name of a file, in an unknown type.
    let mut model = Tensors::default();
    model.tensors.insert(format!("{hostile}.weight"), (Dtype::F32, vec![1], vec![0; 4]));
    model.metadata.insert(hostile.into(), hostile.into());
    model.write(folder.join("names.safetensors"));
    model.write(folder.join(format!("a{hostile}.safetensors")));
    let bad = json!({ hostile: { "dtype": hostile, "shape": [1], "data_offsets": [0, 4] } });
    raw(&folder.join("type.safetensors"), bad.to_string().as_bytes(), 4);
    // A LoRA with keys that are not understood.
    let mut lora = Tensors::default();
    for part in ["lora_down.weight", "lora_up.weight"] {
        let name = format!("lora_unet_{hostile}.{part}");
        lora.tensors.insert(name, (Dtype::F32, vec![1, 1], vec![0; 4]));
    }
    lora.write(folder.join("lora.safetensors"));
    // In the settings of an image.
    let picture = Image { width: 16, height: 16, rgb: vec![127; 768] };
    let text = format!(
        "a fox {hostile}\nNegative prompt: {hostile}\nSteps: 1, Seed: 1, Size: 16x16, Model: \
         {hostile}, Loras: {hostile}"
    );
    fs::write(folder.join("x.png"), encode(&picture, Format::Png, 90, &text).unwrap()).unwrap();
    for arguments in [
        &["models"][..],
        &["doctor"],
        &["inspect", "names.safetensors"],
        &["inspect", "type.safetensors"],
        &["inspect", "lora.safetensors"],
        &["inspect", "x.png"],
        &["again", "x.png", "-o", "y.png"],
        &["a fox", "--model", "names.safetensors"],
        &["a fox", "--model", "type.safetensors"],
        &["a fox", "--lora", "lora.safetensors"],
        &["convert", "names.safetensors", "--to", "fp8"],
        &["plan", "x", "--model", hostile],
        &["inspect", hostile],
        &["a fox", hostile],
    ] {
        let (_, out, err) = run(folder, arguments);
        assert_eq!((active(&out), active(&err)), (vec![], vec![]), "{arguments:?}: {out}{err}");
    }
    let (code, out, _) = run(folder, &["models"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("type.safetensors") || out.contains("cannot be used"), "{out}");
    let (code, _, err) = run(folder, &["again", "x.png", "-o", "y.png"]);
    assert_eq!((code, folder.join("y.png").exists()), (Some(2), false), "{err}");
}

#[test]
fn huge_headers_are_refused_early_and_errors_stay_short() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let keys: Vec<String> = (0..100_000).map(|i| format!("\"k{i}\":\"v\"")).collect();
    let many = format!("{{\"__metadata__\":{{{}}}}}", keys.join(","));
    raw(&folder.join("keys.safetensors"), many.as_bytes(), 0);
    let long = "A".repeat(3_000_000);
    let name = json!({ &long: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } });
    raw(&folder.join("name.safetensors"), name.to_string().as_bytes(), 4);
    let kind = json!({ "x": { "dtype": &long, "shape": [1], "data_offsets": [0, 4] } });
    raw(&folder.join("type.safetensors"), kind.to_string().as_bytes(), 4);
    let shape = json!({ "x": { "dtype": "F32", "shape": &long, "data_offsets": [0, 4] } });
    raw(&folder.join("shape.safetensors"), shape.to_string().as_bytes(), 4);
    let mut config = Tensors::tiny();
    config.metadata.insert("config".into(), format!("[{}0]", "0,".repeat(3_000_000)));
    config.write(folder.join("config.safetensors"));
    for (file, expected) in [
        ("keys.safetensors", "more than 40000 metadata keys"),
        ("name.safetensors", "tensor name of 3000000 bytes"),
        ("type.safetensors", "unknown element type: found AAAA"),
        ("shape.safetensors", "header is not valid"),
        ("config.safetensors", "metadata `config` is too large"),
    ] {
        let (code, out, err) = run(folder, &["a fox", "--model", file]);
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains(expected) && err.len() + out.len() < 5000, "{file}: {err}");
    }
    let (code, out, err) = run(folder, &["models"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.len() < 20_000, "{} bytes", out.len());
}

#[test]
fn a_list_of_folders_that_unfolds_is_refused_and_read_only_for_names() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let aliases = "  loras: *a\n".repeat(80_000);
    let bomb = format!("g:\n  vae: &a \"{}\"\n{aliases}", "A".repeat(20_000));
    fs::write(folder.join("extra_model_paths.yaml"), &bomb).unwrap();
    let (code, out, err) = run(folder, &["models"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("once aliases are replaced") && out.len() < 5000, "{out}");
    let (code, _, err) = run(folder, &["plan", "a fox", "--model", "no-such-name"]);
    assert!(code == Some(4) && err.contains("once aliases are replaced"), "{err}");
    // Without a name the list is not read: not even a list that cannot be opened is mentioned.
    let (code, _, err) = run(folder, &["plan", "a fox"]);
    assert!(code == Some(0) && !err.contains("aliases"), "{err}");
}

#[test]
fn a_default_of_a_model_that_cannot_be_used_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let mut tiny = Tensors::tiny();
    let config: Value = serde_json::from_str(&tiny.metadata["config"]).unwrap();
    for (key, value) in [
        ("num_inference_steps", json!(0)),
        ("num_inference_steps", json!(4.5)),
        ("num_inference_steps", json!("many")),
        ("guidance_scale", json!(-1)),
        ("width", json!(100)),
        ("height", json!(1_000_000)),
    ] {
        let mut config = config.clone();
        config["generation"][key] = value.clone();
        tiny.metadata.insert("config".into(), config.to_string());
        tiny.write(folder.join("bad.safetensors"));
        let (code, _, err) = run(folder, &["a fox", "--model", "bad.safetensors"]);
        assert_eq!(code, Some(3), "{key}: {err}");
        assert!(err.contains("bad.safetensors") && err.contains(key), "{err}");
        assert!(err.contains(&format!("found {value}")), "{err}");
    }
    // The same in a file of a folder.
    let mut config = config.clone();
    config.as_object_mut().unwrap().remove("generation");
    tiny.metadata.insert("config".into(), config.to_string());
    tiny.write(folder.join("model/flux.safetensors"));
    fs::write(folder.join("model/model_index.json"), "{}").unwrap();
    let file = folder.join("model/generation_config.json");
    fs::write(&file, r#"{"num_inference_steps": 1001}"#).unwrap();
    let (code, _, err) = run(folder, &["a fox", "--model", "model"]);
    assert!(code == Some(3) && err.contains("generation_config.json"), "{err}");
    fs::write(&file, r#"{"num_inference_steps": 3.0, "guidance_scale": null}"#).unwrap();
    let (code, out, err) = run(folder, &["plan", "a fox", "--model", "model", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["steps"], 3);
}

#[test]
fn tokenizers_that_multiply_text_or_have_long_pieces_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    Tensors::tiny().write(folder.join("flux.safetensors"));
    fs::write(folder.join("model_index.json"), "{}").unwrap();
    fs::create_dir(folder.join("tokenizer_2")).unwrap();
    let replace = |n: usize| {
        let content = "a".repeat(n);
        json!({ "type": "Replace", "pattern": { "String": "a" }, "content": content })
    };
    let file = |steps: Vec<Value>, piece: &str| {
        json!({
            "normalizer": { "type": "Sequence", "normalizers": steps },
            "model": { "type": "Unigram", "unk_id": 2, "vocab": [
                ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], [piece, -1.0],
            ]},
        })
    };
    for (json, expected) in [
        (file(vec![replace(1000); 5], "a"), "inserts 1000 bytes"),
        (file(vec![replace(90); 5], "a"), "its normalizer makes"),
        (file(vec![], &"a".repeat(200_000)), "a piece of 200000 bytes"),
    ] {
        fs::write(folder.join("tokenizer_2/tokenizer.json"), json.to_string()).unwrap();
        let (code, _, err) = run(folder, &["a fox, a cat", "--model", ".", "-o", "x.png"]);
        assert_eq!(code, Some(3), "{err}");
        assert!(err.contains("tokenizer.json") && err.contains(expected), "{err}");
        assert!(!folder.join("x.png").exists());
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_in_the_place_of_files_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let tiny = Tensors::tiny();
    tiny.without(T5).write(folder.join("flux.safetensors"));
    tiny.below(T5).write(folder.join("text_encoder_2/model.safetensors"));
    let pipe = |name: &str| {
        assert!(Command::new("mkfifo").arg(folder.join(name)).status().unwrap().success());
    };
    pipe("pipe.safetensors");
    for (place, kind) in [("pipe.safetensors", "a FIFO"), ("/dev/zero", "a device")] {
        for arguments in [
            vec!["a fox", "--model", place],
            vec!["a fox", "--model", "flux.safetensors", "--t5", place],
            vec!["a fox", "--lora", place],
            vec!["convert", place, "--to", "fp8"],
            vec!["inspect", place],
        ] {
            let (code, _, err) = run(folder, &arguments);
            assert!(matches!(code, Some(2 | 3)), "{arguments:?}: {code:?} {err}");
            assert!(err.contains(kind), "{arguments:?}: {err}");
        }
    }
    // A configuration next to weights, an index of shards, and a list of folders.
    pipe("text_encoder_2/config.json");
    let (code, _, err) = run(folder, &["a fox", "--model", "flux.safetensors", "--no-cache"]);
    assert!(matches!(code, Some(3 | 4)) && err.contains("a FIFO"), "{code:?} {err}");
    pipe("x.safetensors.index.json");
    let (code, _, err) = run(folder, &["a fox", "--model", "x.safetensors.index.json"]);
    assert!(code == Some(3) && err.contains("a FIFO"), "{code:?} {err}");
    pipe("extra_model_paths.yaml");
    let (code, _, err) = run(folder, &["models"]);
    assert_eq!(code, Some(0), "{err}");
    // A folder that contains a pipe.
    let (code, _, err) = run(folder, &["inspect", "."]);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn what_a_killed_process_has_left_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let cache = folder.join("cache");
    let left = ".flux-fast-4294967294-abc.tmp";
    for place in ["out", "cache", "cache/text", "cache/synthetic"] {
        fs::create_dir_all(folder.join(place)).unwrap();
        fs::write(folder.join(place).join(left), "half").unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = command(folder, arguments);
        let child = command.env("FLUX_FAST_CACHE", &cache).spawn().unwrap();
        let (code, _, err) = texts(finished(child, "it"));
        assert_eq!(code, Some(0), "{err}");
    };
    run(&["plan", "a fox"]);
    for place in ["", "text", "synthetic"] {
        assert!(!cache.join(place).join(left).exists(), "{place}");
    }
    Tensors::tiny().write(folder.join("flux.safetensors"));
    run(&["convert", "flux.safetensors", "--to", "fp8", "-o", "out/x.safetensors"]);
    assert!(!folder.join("out").join(left).exists() && folder.join("out/x.safetensors").exists());
    fs::write(folder.join("out").join(left), "half").unwrap();
    run(&["a fox", "--steps", "1", "--device", "cpu", "-o", "out/x.png"]);
    assert!(!folder.join("out").join(left).exists());
    let names = |place: &str| fs::read_dir(folder.join(place)).unwrap().count();
    // The embeddings of a small text encoder are not kept.
    assert_eq!((names("out"), names("cache/text")), (2, 0));
}

#[test]
fn the_number_that_is_proposed_for_ram_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let lora = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora.safetensors");
    let requests: [&[&str]; 9] = [
        &[],
        &["--size", "512x512", "-n", "4"],
        &["--size", "1024x768", "--compute", "f32"],
        &["--cfg-scale", "2", "--negative", "blue", "--size", "256x512"],
        &["--lora", lora],
        &["--steps", "1000"],
        &["--threads", "64", "--size", "512x512"],
        &["--model", "synthetic:dev", "--size", "1536x1024"],
        &["--model", "synthetic:schnell:bf16", "--size", "2048x2048", "-n", "2"],
    ];
    let enough = |request: &[&str]| {
        let common = ["plan", "a fox", "--device", "cpu", "--json"];
        let (code, out, err) = run(folder, &[&common, request, &["--ram", "1M"]].concat());
        assert_eq!(code, Some(5), "{request:?}: {err}");
        let error = serde_json::from_str::<Value>(&out).unwrap();
        let hint = error["error"]["hint"].as_str().unwrap().to_string();
        let number = hint.split("--ram ").nth(1).and_then(|rest| rest.split(',').next());
        let number = number.unwrap_or_else(|| panic!("{request:?}: {hint}")).trim().to_string();
        let (code, _, err) = run(folder, &[&common, request, &["--ram", &number]].concat());
        assert_eq!(code, Some(0), "{request:?} with {number}: {err}");
        number
    };
    for request in requests {
        enough(request);
    }
    // The run itself, too.
    let request: &[&str] = &["--size", "256x256", "-n", "2", "--steps", "1"];
    let number = enough(request);
    let common = ["a fox", "--device", "cpu", "--no-cache", "-o", "x.png", "--ram", &number];
    let (code, _, err) = run(folder, &[&common, request].concat());
    assert_eq!(code, Some(0), "{err}");
}
