use super::*;

fn models(model: Option<&str>, folder: &Path, aliases: &[(&str, &str)]) -> Models {
    let mut options = Options::default();
    options.files.model = model.map(str::to_string);
    options.places = Some(ModelPlaces::new(&|_| None, folder, &[folder.to_path_buf()]));
    let aliases = aliases.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    Models::new(&options, aliases)
}

#[test]
fn names_are_exact_then_files_then_aliases() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.safetensors"), b"x").unwrap();
    let models = models(
        Some("/secret/flux1-dev.safetensors"),
        folder.path(),
        &[("house", "other"), ("gpt-image-2*", "flux-tiny")],
    );
    let find = |name| models.find(name).unwrap();
    let default = ServedModel { name: "flux1-dev".into(), open: None };
    for name in [None, Some(""), Some("flux1-dev"), Some("dall-e-3"), Some("gpt-image-1")] {
        assert_eq!(find(name), default, "{name:?}");
    }
    // One file is one model, whatever it is called.
    for name in ["other", "other.safetensors", "Other", "house"] {
        let model = find(Some(name));
        assert_eq!(model.name, "other", "{name}");
        assert!(model.open.unwrap().ends_with("other.safetensors"), "{name}");
    }
    assert_eq!(find(Some("gpt-image-2-mini")).open.as_deref(), Some("embedded"));
    assert_eq!(find(Some("flux-tiny")).open.as_deref(), Some("embedded"));
}

#[test]
fn the_default_model_is_known_by_every_name_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    for name in ["one.safetensors", "sub/one.safetensors", "two.gguf"] {
        std::fs::write(folder.path().join(name), name).unwrap();
    }
    let path = folder.path().join("two.gguf");
    let models = models(path.to_str(), folder.path(), &[]);
    for name in ["two", "two.gguf", "TWO"] {
        assert_eq!(models.find(Some(name)).unwrap().open, None, "{name}");
    }
    // Two files with one name keep their longer names.
    for name in ["sub/one", "sub/one.safetensors"] {
        assert_eq!(models.find(Some(name)).unwrap().name, "sub/one");
    }
}

#[test]
fn names_of_other_services_mean_the_files_of_their_model() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(Some("/x/flux1-schnell-fp8.safetensors"), folder.path(), &[]);
    for name in ["flux-schnell", "black-forest-labs/FLUX.1-schnell-Free", "flux_schnell.sft"] {
        assert_eq!(models.find(Some(name)).unwrap().open, None, "{name}");
    }
    for name in ["flux", "flux-", "flux-2-klein-4b", "dev", "flux-sch"] {
        assert_eq!(models.find(Some(name)).unwrap_err().status, 404, "{name}");
    }
}

#[test]
fn tools_of_other_services_mean_the_models_that_do_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(Some("/x/flux1-fill-dev.safetensors"), folder.path(), &[]);
    for name in ["flux-pro-1.0-fill", "flux-lora-fill", "black-forest-labs/flux-fill-pro"] {
        assert_eq!(models.find(Some(name)).unwrap().open, None, "{name}");
    }
    assert_eq!(models.find(Some("flux-canny-pro")).unwrap_err().status, 404);
}

#[test]
fn names_that_are_not_in_the_index_are_unknown_and_not_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let models = models(None, folder.path(), &[]);
    for name in ["../x", "/etc/passwd", "%2e%2e/x", "a\0b", "CON", "no-such", "synthetic:dev"] {
        let fault = models.find(Some(name)).unwrap_err();
        assert_eq!((fault.status, fault.code.as_str()), (404, "model_not_found"), "{name}");
        assert_eq!(fault.hint.as_deref(), Some("one of: flux-tiny"));
        assert!(!fault.message.contains(name), "{fault:?}");
        let fault = models.check_lora(name).unwrap_err();
        assert_eq!((fault.status, fault.code.as_str()), (404, "lora_not_found"), "{name}");
    }
}

/// The models of workers that list these names.
fn cluster(models: &[&str], loras: &[&str], controlnets: &[&str]) -> Models {
    let listed = |names: &[&str]| names.iter().map(|name| Listed::named(name)).collect::<Vec<_>>();
    let mut nets = listed(controlnets);
    nets.iter_mut().for_each(|net| net.controlnet = Some(ControlNetInputs::default()));
    let (default, models, loras) = (models[0].to_string(), listed(models), listed(loras));
    let cluster = Models::of_cluster(&Options::default(), Vec::new());
    cluster.learn(Catalog { default, models, loras, controlnets: nets, ..Catalog::default() });
    cluster
}

#[test]
fn a_cluster_has_the_rule_of_one_machine_for_names() {
    let folder = tempfile::tempdir().unwrap();
    let names =
        ["Style.safetensors", "sub/two.safetensors", "Other/two.gguf", "x/A.sft", "y/a.sft"];
    for name in names {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }
    let here = models(None, folder.path(), &[]);
    let there = cluster(&["flux-tiny"], &names, &names);
    for name in [
        "Style.safetensors",
        "Style",
        "style",
        "STYLE.SAFETENSORS",
        "sub/two",
        "two",
        "TWO.gguf",
        "two.gguf",
        "a",
        "A",
        "b",
        "../Style",
        "",
        "x/a.sft",
        "x/A",
        "Sub/Two.safetensors",
    ] {
        let status = |result: std::result::Result<(), Fault>| result.map_err(|fault| fault.status);
        let one_machine = status(here.check_lora(name));
        assert_eq!(status(there.check_lora(name)), one_machine, "{name}");
        assert_eq!(status(there.controlnet(name).map(drop)), one_machine, "{name}");
    }
    // The only file of a repository is known by the id of that.
    let there = cluster(&["flux-tiny"], &["org/one/a.sft", "org/two/a.sft", "org/two/b.sft"], &[]);
    assert_eq!(there.check_lora("org/one"), Ok(()));
    assert_eq!(there.check_lora("org/two").unwrap_err().code, "ambiguous_name");
}
