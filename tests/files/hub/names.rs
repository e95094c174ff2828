//! The command `flux-fast models`, and names after --model, --clip, --t5 and --vae.

use serde_json::Value;

use super::binary::{Home, json, part, stderr, stdout, tiny, zeros};

const MODELS: &str = "ComfyUI/models";

/// A home folder with ComfyUI, which also lists the folder `disk`, and with A1111. The parts of the
/// embedded model are in the folders for them.
fn a_home() -> Home {
    let home = Home::new();
    home.put(&format!("{MODELS}/checkpoints/all in one.safetensors"), &tiny());
    home.put(&format!("{MODELS}/clip/clip_l.safetensors"), &part("text_encoders.clip_l."));
    home.put(
        &format!("{MODELS}/text_encoders/t5xxl_tiny.safetensors"),
        &part("text_encoders.t5xxl."),
    );
    home.put(
        &format!("{MODELS}/loras/style.safetensors"),
        &zeros(&["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"]),
    );
    home.put(
        &format!("{MODELS}/checkpoints/sdxl.safetensors"),
        &zeros(&["model.diffusion_model.input_blocks.0.0.weight"]),
    );
    home.put(&format!("{MODELS}/unet/q4.gguf"), b"GGUF\x03\0\0\0\0\0\0\0");
    home.put("stable-diffusion-webui/models/Stable-diffusion/broken.safetensors", b"<html>");
    home.put("disk/vaes/ae.safetensors", &part("vae."));
    home.put("disk/unets/tiny-flux.safetensors", &part("model.diffusion_model."));
    let list = format!(
        "disk:\n  base_path: {}\n  vae: vaes\n  diffusion_models: unets\n",
        home.at.join("disk").display()
    );
    home.put("ComfyUI/extra_model_paths.yaml", list.as_bytes());
    home
}

/// The entry called `name` in the list.
fn row<'a>(list: &'a Value, name: &str) -> &'a Value {
    let rows = list["models"].as_array().unwrap();
    rows.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name} is missing in {list}"))
}

const DRAW: [&str; 8] = ["a fox", "--device", "cpu", "--steps", "1", "--no-cache", "-o", "fox.png"];

#[test]
fn models_are_listed_with_the_names_to_type() {
    let home = a_home();
    #[cfg(unix)]
    {
        // A file with two names is listed once, and a loop of links ends.
        let loras = home.at.join(MODELS).join("loras");
        std::os::unix::fs::symlink(loras.join("style.safetensors"), loras.join("zz.safetensors"))
            .unwrap();
        std::os::unix::fs::symlink("..", loras.join("up")).unwrap();
    }
    let output = home.run(&["models"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let text = stdout(&output);
    for words in [
        "models (--model):\n",
        "FLUX transformer (dev), ComfyUI, fp8; with T5, CLIP, VAE [ComfyUI, checkpoints]",
        "1 x a Stable Diffusion model (1.x or 2.x)",
        "1 x file is truncated",
        "a web page",
    ] {
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
    assert!(!text.contains("no FLUX.1 or FLUX.2 model was found"), "{text}");

    let list = json(&home.run(&["models", "--json"]));
    for (name, kind, place) in [
        ("all in one.safetensors", "model", "ComfyUI, checkpoints"),
        ("tiny-flux.safetensors", "model", "disk, diffusion_models (extra_model_paths.yaml)"),
        ("clip_l.safetensors", "clip", "ComfyUI, clip"),
        ("t5xxl_tiny.safetensors", "t5", "ComfyUI, text_encoders"),
        ("ae.safetensors", "vae", "disk, vae (extra_model_paths.yaml)"),
        ("style.safetensors", "lora", "ComfyUI, loras"),
        ("sdxl.safetensors", "other", "ComfyUI, checkpoints"),
        ("broken.safetensors", "other", "A1111, Stable-diffusion"),
    ] {
        let row = row(&list, name);
        assert_eq!(
            (row["kind"].as_str(), row["place"].as_str()),
            (Some(kind), Some(place)),
            "{row}"
        );
        assert_eq!(
            row["bytes"].as_u64(),
            Some(std::fs::metadata(row["path"].as_str().unwrap()).unwrap().len())
        );
    }
    assert_eq!(list["models"].as_array().unwrap().len(), 10, "{list}");
    // The model inside the program is like its file.
    let (embedded, file) = (row(&list, "embedded"), row(&list, "all in one.safetensors"));
    assert_eq!((&embedded["kind"], &embedded["bytes"]), (&file["kind"], &file["bytes"]));
    assert!(embedded["what"].as_str().unwrap().starts_with(file["what"].as_str().unwrap()));
    let doctor = home.run(&["doctor"]);
    assert!(stdout(&doctor).contains(&text), "doctor lists the same:\n{}", stdout(&doctor));
}

#[test]
fn an_empty_list_says_what_to_do() {
    let home = Home::new();
    let output = home.run(&["models"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for words in [
        "no FLUX.1 or FLUX.2 model was found",
        "flux-fast pull",
        home.at.join("hf/hub").to_str().unwrap(),
    ] {
        assert!(text.contains(words), "{words} is missing in:\n{text}");
    }
    let list = json(&home.run(&["models", "--json"]));
    assert_eq!(list["models"].as_array().unwrap().len(), 1, "{list}");
    row(&list, "embedded");
}

#[test]
fn a_name_that_is_not_unique_is_listed_as_its_path() {
    let home = a_home();
    let second =
        home.put("stable-diffusion-webui/models/Stable-diffusion/tiny-flux.safetensors", &tiny());
    let first = home.at.join("disk/unets/tiny-flux.safetensors");
    let list = json(&home.run(&["models", "--json"]));
    for path in [first.to_str().unwrap(), second.to_str().unwrap()] {
        assert_eq!(row(&list, path)["path"], path);
    }
    let output = home.run(&[&DRAW[..], &["--model", "tiny-flux"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("several models")
            && stderr(&output).contains(second.to_str().unwrap())
    );
    // A path takes precedence over every name.
    home.put("here/tiny-flux.safetensors", &tiny());
    let output = home.run(&[&DRAW[..], &["--model", "tiny-flux.safetensors"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stderr(&output).contains("model: "), "{}", stderr(&output));
}

#[test]
fn a_model_is_used_by_its_name_and_its_components_are_found_in_the_folders_of_programs() {
    let home = a_home();
    let at = |name: &str| home.at.join(name).display().to_string();
    let output = home.run(&[&DRAW[..], &["--model", "tiny-flux"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stderr(&output);
    for line in [
        format!(
            "model: {} (found in disk, diffusion_models (extra_model_paths.yaml))",
            at("disk/unets/tiny-flux.safetensors")
        ),
        format!(
            "t5: {} (found in ComfyUI, text_encoders)",
            at(&format!("{MODELS}/text_encoders/t5xxl_tiny.safetensors"))
        ),
        format!(
            "clip: {} (found in ComfyUI, clip)",
            at(&format!("{MODELS}/clip/clip_l.safetensors"))
        ),
        format!(
            "vae: {} (found in disk, vae (extra_model_paths.yaml))",
            at("disk/vaes/ae.safetensors")
        ),
    ] {
        assert!(said.lines().any(|l| l == line), "{line} is missing in:\n{said}");
    }
    let drawn = std::fs::read(home.at.join("here/fox.png")).unwrap();
    assert!(drawn.starts_with(b"\x89PNG"));
    // Components are found by name, in upper or lower case, without the ending.
    let named = ["--model", "TINY-FLUX", "--clip", "clip_l", "--t5", "t5xxl_tiny", "--vae", "ae"];
    let output = home.run(&[&DRAW[..], &named].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("clip_l.safetensors (found in ComfyUI, clip)"),
        "{}",
        stderr(&output)
    );

    std::fs::remove_file(home.at.join("disk/vaes/ae.safetensors")).unwrap();
    let output = home.run(&[&DRAW[..], &["--model", "tiny-flux"]].concat());
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    for words in ["--vae", "flux-fast pull ", &at("disk/vaes")] {
        assert!(stderr(&output).contains(words), "{words} is missing in:\n{}", stderr(&output));
    }
}

#[test]
fn components_are_taken_from_the_cache_if_they_belong_to_flux() {
    let home = Home::new();
    let (flux, vae) = (part("model.diffusion_model."), part("vae."));
    let snapshot = |repo: &str| {
        format!("hf/hub/models--org--{repo}/snapshots/0123456789abcdef0123456789abcdef01234567")
    };
    // Its files have names that the files of other models have, too.
    let full = snapshot("full");
    home.put(&format!("{full}/model_index.json"), br#"{"_class_name": "SomePipeline"}"#);
    home.put(&format!("{full}/text_encoder/model.safetensors"), &part("text_encoders.clip_l."));
    home.put(&format!("{full}/text_encoder_2/model.safetensors"), &part("text_encoders.t5xxl."));
    home.put(&format!("{full}/vae/diffusion_pytorch_model.safetensors"), &vae);
    let transformer =
        home.put(&format!("{full}/transformer/diffusion_pytorch_model.safetensors"), &flux);
    home.put("here/alone.safetensors", &flux);
    let draw = |model: &str| home.run(&[&DRAW[..], &["--model", model]].concat());
    let output = draw("alone");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let words = "vae/diffusion_pytorch_model.safetensors (found in the Hugging Face cache)";
    assert!(stderr(&output).contains(words), "{}", stderr(&output));
    let list = json(&home.run(&["models", "--json"]));
    assert_eq!(
        row(&list, "org/full")["what"],
        "FLUX transformer (dev), ComfyUI, fp8, folder; with T5, CLIP, VAE"
    );

    std::fs::write(&transformer, zeros(&["joint_blocks.0.x_block.attn.qkv.weight"])).unwrap();
    let output = draw("alone");
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let list = json(&home.run(&["models", "--json"]));
    let what = row(&list, "org/full")["what"].to_string();
    assert!(what.contains("found a Stable Diffusion 3 model"), "{list}");

    // --model takes the only transformer of a repository with several files, and finds the other
    // components by their usual names.
    home.put(&format!("{}/flux1.safetensors", snapshot("bfl")), &flux);
    home.put(&format!("{}/ae.safetensors", snapshot("bfl")), &vae);
    home.put(&format!("{}/clip_l.safetensors", snapshot("texts")), &part("text_encoders.clip_l."));
    home.put(
        &format!("{}/t5xxl_fp8.safetensors", snapshot("texts")),
        &part("text_encoders.t5xxl."),
    );
    let output = draw("org/bfl");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for words in [
        "flux1.safetensors (found in the",
        "ae.safetensors (found next to",
        "t5xxl_fp8.safetensors (found in the",
    ] {
        assert!(stderr(&output).contains(words), "{words} is missing in: {}", stderr(&output));
    }
}

#[test]
fn the_error_for_a_name_lists_similar_names_and_the_searched_places() {
    let home = a_home();
    let models = home.at.join(MODELS).display().to_string();
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (
            &["--model", "tiny-flox"],
            4,
            &["did you mean tiny-flux.safetensors", &models, "Hugging Face cache"],
        ),
        (&["--model", "org/name"], 4, &["flux-fast pull org/name", &models]),
        (&["--model", "nothing-like-it"], 4, &["flux-fast models", &models]),
        (&["--model", "./no.safetensors"], 4, &["no such file or folder", "no.safetensors"]),
        (&["--model", "checkpoints/../../x"], 4, &["no such file"]),
        (&["--model", "%2e%2e/x"], 2, &["not the name of a model"]),
        (
            &["--model", "tiny-flux", "--t5", "t5xxl_tine"],
            4,
            &["--t5: ", "did you mean t5xxl_tiny.safetensors"],
        ),
        (&["--model", "style"], 3, &["LoRA"]),
        (
            &["--clip", "clip_l"],
            2,
            &["the embedded model cannot be combined with other components"],
        ),
    ];
    for (arguments, code, parts) in cases {
        let output = home.run(&[&DRAW[..], arguments].concat());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: {part} is missing in: {said}");
        }
    }
    assert!(!home.at.join("here/fox.png").exists());
    // A list that cannot be read is mentioned, because it may be the reason.
    home.put("ComfyUI/extra_model_paths.yaml", b"a:\n\tb: c\n");
    let said = stderr(&home.run(&[&DRAW[..], &["--model", "tiny-flux"]].concat()));
    assert!(said.contains("extra_model_paths.yaml: not a list of model folders"), "{said}");
    assert!(stdout(&home.run(&["models"])).contains("warning: "), "`models` prints a warning");
}

#[test]
fn the_short_ending_of_safetensors_is_listed_and_found_like_the_long_one() {
    let home = Home::new();
    let path = home.put(&format!("{MODELS}/unet/short.sft"), &part("model.diffusion_model."));
    home.put(&format!("{MODELS}/clip/clip_l.sft"), &part("text_encoders.clip_l."));
    home.put(&format!("{MODELS}/clip/t5xxl.sft"), &part("text_encoders.t5xxl."));
    home.put(&format!("{MODELS}/vae/ae.sft"), &part("vae."));
    let list = json(&home.run(&["models", "--json"]));
    for (name, kind) in
        [("short.sft", "model"), ("clip_l.sft", "clip"), ("t5xxl.sft", "t5"), ("ae.sft", "vae")]
    {
        assert_eq!(row(&list, name)["kind"], kind, "{list}");
    }
    for name in ["short", "short.sft", path.to_str().unwrap()] {
        let output = home.run(&[&DRAW[..], &["--model", name]].concat());
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains("ae.sft (found in"), "{name}: {}", stderr(&output));
    }
}
