//! The search for models in the folders of programs and in the cache, in folders made for the test.

use std::fs;
use std::path::{Path, PathBuf};

use flux_fast::error::Kind;
use flux_fast::library::places::{ModelPlaces, Role};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn put(root: &Path, name: &str, bytes: usize) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![0; bytes]).unwrap();
}

/// The places seen from the folder `here`, for a user with the home folder `root/home`.
fn places(root: &Path, here: &Path, given: &[PathBuf]) -> ModelPlaces {
    let home = root.join("home").into_os_string();
    ModelPlaces::new(&|name| (name == "HOME").then(|| home.clone()), here, given)
}

fn names(places: &ModelPlaces) -> Vec<String> {
    let mut names: Vec<String> =
        places.entries().into_iter().map(|e| format!("{}: {}", e.place, e.name)).collect();
    names.sort();
    names
}

/// A home folder with ComfyUI, A1111 and a cache.
fn a_home() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().canonicalize().unwrap();
    let hub = "home/.cache/huggingface/hub";
    for (name, bytes) in [
        ("here/loose.safetensors", 1),
        ("here/models/sub/deep.gguf", 2),
        ("here/models/notes.txt", 3),
        ("here/models/old.ckpt", 3),
        ("home/ComfyUI/models/checkpoints/all.safetensors", 4),
        ("home/ComfyUI/models/unet/flux/dev.safetensors", 5),
        ("home/ComfyUI/models/clip/clip_l.safetensors", 6),
        ("home/ComfyUI/models/loras/style.safetensors", 7),
        ("home/ComfyUI/models/loras/.hidden/x.safetensors", 7),
        ("home/stable-diffusion-webui/models/Stable-diffusion/webui.safetensors", 8),
        ("home/stable-diffusion-webui/models/Lora/style.safetensors", 9),
        ("elsewhere/vaes/ae.safetensors", 10),
        ("elsewhere/more/ae2.sft", 11),
    ] {
        put(&at, name, bytes);
    }
    let yaml = format!(
        "mine:\n  base_path: {}\n  is_default: true\n  vae: |\n    vaes\n    more\n  loras: not-there\n  controlnet: more\n",
        at.join("elsewhere").display()
    );
    fs::write(at.join("home/ComfyUI/extra_model_paths.yaml"), yaml).unwrap();
    for (repo, files) in [
        (
            "org--dev",
            &[
                "model_index.json",
                "vae/diffusion_pytorch_model.safetensors",
                "flux1-dev.safetensors",
            ][..],
        ),
        (
            "org--t5",
            &[
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "config.json",
            ],
        ),
        ("org--many", &["a.safetensors", "sub/b.gguf"]),
        ("org--bare", &["config.json"]),
    ] {
        let folder = format!("{hub}/models--{repo}");
        put(
            &at,
            &format!(
                "{folder}/snapshots/ffffffffffffffffffffffffffffffffffffffff/stale.safetensors"
            ),
            1,
        );
        for file in files {
            put(&at, &format!("{folder}/snapshots/{COMMIT}/{file}"), 100);
        }
        put(&at, &format!("{folder}/refs/main"), 0);
        fs::write(at.join(format!("{folder}/refs/main")), COMMIT).unwrap();
    }
    (root, at)
}

#[test]
fn every_place_is_searched() {
    let (_root, at) = a_home();
    let places = places(&at, &at.join("here"), &[]);
    assert_eq!(places.notes(), Vec::<String>::new());
    let expected = [
        "./models: sub/deep.gguf",
        "A1111, Lora: style.safetensors",
        "A1111, Stable-diffusion: webui.safetensors",
        "ComfyUI, checkpoints: all.safetensors",
        "ComfyUI, clip: clip_l.safetensors",
        "ComfyUI, loras: style.safetensors",
        "ComfyUI, unet: flux/dev.safetensors",
        "mine, vae (extra_model_paths.yaml): ae.safetensors",
        "mine, vae (extra_model_paths.yaml): ae2.sft",
        "the Hugging Face cache: org/dev",
        "the Hugging Face cache: org/dev/flux1-dev.safetensors",
        "the Hugging Face cache: org/many/a.safetensors",
        "the Hugging Face cache: org/many/sub/b.gguf",
        "the Hugging Face cache: org/t5/model-00001-of-00002.safetensors",
        "the current folder: loose.safetensors",
    ];
    assert_eq!(names(&places), expected);
    let entries = places.entries();
    let bytes = |name: &str| entries.iter().find(|e| e.name == name).unwrap().bytes;
    assert_eq!((bytes("org/t5/model-00001-of-00002.safetensors"), bytes("org/dev")), (200, 100));
    let loras = entries.iter().filter(|e| e.role == Role::Lora);
    assert_eq!(loras.map(|e| e.bytes).collect::<Vec<_>>(), [7, 9]);
}

#[test]
fn names_mean_paths_ids_and_files_and_an_ambiguous_name_is_an_error() {
    let (_root, at) = a_home();
    let places = places(&at, &at.join("here"), &[]);
    let snapshot =
        at.join(format!("home/.cache/huggingface/hub/models--org--dev/snapshots/{COMMIT}"));
    let t5 = at.join(format!(
        "home/.cache/huggingface/hub/models--org--t5/snapshots/{COMMIT}/model-00001-of-00002.safetensors"
    ));
    let comfy = at.join("home/ComfyUI/models");
    let absolute = at.join("elsewhere/vaes/ae.safetensors");
    for (name, role, path) in [
        ("loose.safetensors", Role::Model, PathBuf::from("loose.safetensors")),
        ("../elsewhere/vaes", Role::Model, PathBuf::from("../elsewhere/vaes")),
        (absolute.to_str().unwrap(), Role::Model, absolute.clone()),
        ("~/ComfyUI", Role::Model, at.join("home/ComfyUI")),
        ("org/dev", Role::Model, snapshot.clone()),
        ("org/dev@main", Role::Model, snapshot.clone()),
        ("org/dev/flux1-dev.safetensors", Role::Model, snapshot.join("flux1-dev.safetensors")),
        ("flux1-dev", Role::Model, snapshot.join("flux1-dev.safetensors")),
        ("org/t5", Role::Text, t5.clone()),
        ("flux/dev.safetensors", Role::Model, comfy.join("unet/flux/dev.safetensors")),
        ("flux/dev", Role::Model, comfy.join("unet/flux/dev.safetensors")),
        ("DEV.safetensors", Role::Model, comfy.join("unet/flux/dev.safetensors")),
        ("clip_l", Role::Text, comfy.join("clip/clip_l.safetensors")),
        // Found, although it is in the folder of checkpoints.
        ("all", Role::Vae, comfy.join("checkpoints/all.safetensors")),
    ] {
        assert_eq!(places.resolve(name, role).unwrap(), path, "{name}");
    }
    let e = places.resolve("style", Role::Lora).unwrap_err();
    assert_eq!(e.kind(), Kind::Argument);
    assert!(e.hint().unwrap().contains("ComfyUI/models/loras/style.safetensors, "), "{e:?}");
    let e = places.resolve("org/many", Role::Model).unwrap_err();
    assert!(e.hint().unwrap().contains("org/many/a.safetensors, org/many/sub/b.gguf"), "{e:?}");
    let e = places.resolve("org/bare", Role::Model).unwrap_err();
    assert!(e.hint().unwrap().contains("pull org/bare"), "{e:?}");
    let e = places.resolve("flux1-schnell", Role::Model).unwrap_err();
    assert!(
        e.kind() == Kind::Missing && e.hint().unwrap().contains("org/dev/flux1-dev.safetensors"),
        "{e:?}"
    );
    for missing in ["./no", "../no.safetensors", "/no/where", "~/no"] {
        assert_eq!(
            places.resolve(missing, Role::Model).unwrap_err().kind(),
            Kind::Missing,
            "{missing}"
        );
    }
}

#[test]
fn no_name_leads_out_of_the_places() {
    let (_root, at) = a_home();
    let places = places(&at, &at.join("here"), &[]);
    let absolute = at.join("elsewhere/vaes/ae.safetensors");
    for name in [
        "",
        "../elsewhere/vaes/ae.safetensors",
        "flux/../../checkpoints/all.safetensors",
        "..\\..\\all",
        absolute.to_str().unwrap(),
        "%2e%2e/all",
        "..%2Fall",
        "all\0",
        "CON",
        "flux/NUL.safetensors",
        "C:all",
        "./all",
        "org/../org/dev",
    ] {
        let e = places.named(name, Role::Any).unwrap_err();
        assert_eq!(e.kind(), Kind::Argument, "{name:?}");
        assert!(!format!("{e:?}").contains("elsewhere"), "{e:?}");
    }
    // A path is not a name, but a file in the current folder is found by its name.
    assert!(places.named("loose", Role::Any).is_ok());
    assert!(places.named("old", Role::Any).is_err(), "pickles are not found");
}

#[test]
fn given_folders_come_first_and_broken_lists_are_reported() {
    let (_root, at) = a_home();
    put(&at, "given/models/loras/mine.safetensors", 1);
    put(&at, "flat/any.safetensors", 1);
    put(&at, "sorted/checkpoints/big.safetensors", 1);
    put(&at, "sorted/vae/v.safetensors", 1);
    fs::write(at.join("given/extra_model_paths.yaml"), "a:\n\tb: c\n").unwrap();
    let given: Vec<PathBuf> =
        ["given", "flat", "sorted", "nowhere"].iter().map(|d| at.join(d)).collect();
    let places = places(&at, &at, &given);
    assert_eq!(places.notes().len(), 2, "{:?}", places.notes());
    assert!(
        places.notes()[0].contains("extra_model_paths.yaml")
            && places.notes()[1].contains("nowhere")
    );
    let first: Vec<String> = places.entries().into_iter().take(4).map(|e| e.name).collect();
    assert_eq!(first, ["mine.safetensors", "any.safetensors", "big.safetensors", "v.safetensors"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_loops_end_and_each_file_has_one_entry() {
    use std::os::unix::fs::symlink;
    let (_root, at) = a_home();
    let loras = at.join("home/ComfyUI/models/loras");
    symlink(&loras, loras.join("loop")).unwrap();
    symlink("..", loras.join("up")).unwrap();
    symlink(at.join("nowhere"), loras.join("dangling.safetensors")).unwrap();
    symlink(at.join("elsewhere/vaes/ae.safetensors"), loras.join("ae-again.safetensors")).unwrap();
    put(&at, "outside/linked.safetensors", 1);
    symlink(at.join("outside"), loras.join("outside")).unwrap();
    let places = places(&at, &at.join("here"), &[]);
    let names = names(&places);
    let has = |part: &str| names.iter().filter(|n| n.contains(part)).count();
    assert_eq!(
        (has("linked.safetensors"), has("dangling"), has("ae.safetensors"), has("ae-again")),
        (1, 0, 1, 0),
        "{names:?}"
    );
    assert_eq!(
        (has("style.safetensors"), has("all.safetensors"), has("dev.safetensors")),
        (2, 1, 2),
        "{names:?}"
    );
    assert_eq!(
        places.named("outside/linked", Role::Lora).unwrap(),
        loras.join("outside/linked.safetensors")
    );
}
