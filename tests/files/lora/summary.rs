//! The summary of a file, as `inspect` prints it.

use flux_fast::spec::FAMILIES;
use flux_fast::weights::lora::survey;

use super::dialects::{DIALECTS, truth, write};
use super::real::listed;
use super::support::small;

#[test]
fn the_summary_describes_the_file() {
    let base = small();
    let lora = write(&truth(&base, false), &base, &DIALECTS[0])
        .meta("ss_base_model_version", "flux1")
        .meta("ss_network_dim", "2")
        .meta("ss_output_name", &"long ".repeat(100))
        .meta("ss_tag_frequency", "{}");
    let text = lora.read(&base).unwrap().summary.to_string();
    for line in [
        "LoRA, names of Kohya sd-scripts",
        "rank  2 (",
        "alpha 1 (",
        "flux  ",
        "double_blocks 0-1; single_blocks 0-1; final_layer.adaLN_modulation.1.weight",
        "text_model.encoder.layers 0-1",
        "encoder.block 0-1",
        "0 unmatched",
        "trained on flux1",
        "ss_network_dim: 2",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    assert!(!text.contains("ss_tag_frequency") && text.contains('…'), "{text}");

    // Without a model, and for a file that cannot be used.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, lora.bytes()).unwrap();
    let s = survey(&path, FAMILIES).unwrap();
    assert!(s.problem.is_none());
    assert_eq!(s.summary, lora.read(&base).unwrap().summary);
    let json = serde_json::to_value(&s.summary).unwrap();
    assert_eq!(json["dialect"], "Kohya sd-scripts");
    let (dora, keys) = listed(dir.path(), "flux_dora_onetrainer", |_| true);
    assert_eq!(keys, 2024);
    let s = survey(&dora, FAMILIES).unwrap();
    assert!(s.problem.is_none());
    assert_eq!(
        (s.summary.dialect.as_str(), s.summary.matched, s.summary.targets.len()),
        ("OneTrainer", 2024, 3)
    );
    let text = s.summary.to_string();
    assert!(text.starts_with("DoRA, names of OneTrainer, 506 layers"), "{text}");
    assert!(
        text.contains("266 pairs on 114 weights, width 3072: ") && text.contains("width 768"),
        "{text}"
    );
    let (lokr, _) = listed(dir.path(), "flux_lokr_bfl", |_| true);
    let text = survey(&lokr, FAMILIES).unwrap().summary.to_string();
    assert!(text.starts_with("LoKr, names of PEFT (ai-toolkit), 6 layers\n  rank  none"), "{text}");
    assert!(text.contains("width 3072"), "{text}");
    assert!(survey(&dir.path().join("none"), FAMILIES).is_err());
    std::fs::write(&path, b"GGUF0000").unwrap();
    assert!(survey(&path, FAMILIES).is_err());
}
