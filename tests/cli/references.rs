//! `--reference` with FLUX.1 Kontext, as far as that needs no arithmetic: it reads any image, from
//! its own size.

use serde_json::Value;

use super::runs::{done, photo, run, text};

#[test]
fn kontext_reads_images_of_any_size_within_the_bound_on_memory() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    done(folder, &["convert", "embedded", "-o", "flux1-kontext-tiny.safetensors", "--json"]);
    let plan = |image: &str, ram: &str| {
        let fixed = ["plan", "x", "--model", "flux1-kontext-tiny.safetensors", "--device", "cpu"];
        let given = ["--reference", image, "--ram", ram, "--json"];
        run(folder, &[&fixed[..], &given].concat())
    };
    for (name, (width, height), size) in [
        ("dot.png", (1, 1), (1024, 1024)),
        ("narrow.png", (3, 900), (672, 1568)),
        ("wide.bmp", (4000, 2400), (1328, 800)),
    ] {
        photo(folder, name, width, height);
        let output = plan(name, "32G");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&plan["width"], &plan["height"]), (&size.0.into(), &size.1.into()), "{name}");
    }
    // The pixels alone are 29 MB, next to 64 MB that are left free; drawing needs more than that.
    let output = plan("wide.bmp", "90M");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("wide.bmp") && said.contains("the reference image"), "{said}");
    assert!(said.contains("MB to decode it, and") && said.contains("MB to draw"), "{said}");
    let enough = said.split("--ram ").nth(1).and_then(|text| text.split(',').next()).unwrap();
    let output = plan("wide.bmp", enough);
    assert_eq!(output.status.code(), Some(0), "with {enough}: {}", text(&output));
    // Other models refuse them by their own rules.
    let fixed = ["plan", "x", "--model", "embedded", "--reference", "dot.png", "--device", "cpu"];
    let output = run(folder, &fixed);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("does not read reference images"), "{}", text(&output));
}
