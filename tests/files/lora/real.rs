//! The key lists of real LoRA files from every trainer.

use std::path::{Path, PathBuf};

use flux_fast::error::Result;
use flux_fast::spec::flux1::{FLUX1, TRANSFORMER};
use flux_fast::spec::lora::added_inputs;
use flux_fast::weights::lora::{Adapter, open};

use super::support::{Shapes, dev, list};

/// Writes a sparse file of zeros with the tensors of a list that `keep` accepts. Returns its path
/// and the number of tensors.
pub fn listed(dir: &Path, file: &str, keep: impl Fn(&str) -> bool) -> (PathBuf, usize) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in list(&format!("lora-keys/{file}.txt")).into_iter().filter(|t| keep(&t.0)) {
        let first = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [first, end] }),
        );
    }
    let keys = header.len();
    let header = serde_json::Value::Object(header).to_string();
    let path = dir.join(format!("{file}.safetensors"));
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat())
        .unwrap();
    let grow = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    grow.set_len((8 + header.len() + end) as u64).unwrap();
    (path, keys)
}

fn read_listed(file: &str, base: &Shapes, keep: impl Fn(&str) -> bool) -> Result<Adapter> {
    let dir = tempfile::tempdir().unwrap();
    open(&listed(dir.path(), file, keep).0, &FLUX1, &|c, n| base.get(&(c, n.to_string())).copied())
}

#[test]
fn every_real_key_list_matches_completely() {
    let base = dev();
    let cases = [
        ("flux_lora_kohya", "Kohya sd-scripts", 912, 304),
        ("flux_lora_kohya_with_te1", "Kohya sd-scripts", 1128, 376),
        ("flux_lora_aitoolkit", "PEFT (ai-toolkit)", 456, 228),
        ("flux_lora_diffusers", "diffusers", 988, 494),
        ("flux_lora_diffusers_base_model", "PEFT", 762, 381),
        ("flux_lora_diffusers_no_proj_mlp", "diffusers", 684, 342),
        ("flux_lora_xlabs", "XLabs", 24, 12),
        ("flux_dora_onetrainer", "OneTrainer", 2024, 506),
    ];
    for (file, dialect, keys, pairs) in cases {
        let adapter = read_listed(file, &base, |_| true).unwrap_or_else(|e| panic!("{file}: {e}"));
        let s = &adapter.summary;
        assert_eq!((s.dialect.as_str(), s.unmatched, s.matched), (dialect, 0, keys), "{file}: {s}");
        assert_eq!(adapter.changes().len(), pairs, "{file}");
    }
}

#[test]
fn the_other_real_files_are_refused_by_name() {
    let mut base = dev();
    let gains = list("bfl_dev.txt").into_iter().filter(|(name, _)| name.ends_with("norm.scale"));
    base.extend(gains.map(|(name, shape)| ((TRANSFORMER, name), (1, shape[0]))));
    let cases = [
        // This published list has shapes of a test model.
        ("flux_lokr_bfl", "this LoRA was made for another model: its layers have other sizes"),
        ("xlabs_flux_controlnet", "this is a ControlNet, not a LoRA"),
        ("xlabs_flux_ip_adapter", "this is an IP-Adapter, not a LoRA"),
        ("xlabs_flux_ip_adapter_v2", "this is an IP-Adapter, not a LoRA"),
        // This published list has the keys of a configuration, not of tensors.
        ("instantx_flux_controlnet", "no key of this file is a LoRA of FLUX.1"),
    ];
    for (file, says) in cases {
        let e = read_listed(file, &base, |_| true).unwrap_err();
        assert!(e.to_string().contains(says), "{file}: {e}");
    }
    // Without its scales the DoRA is a LoRA in OneTrainer's dialect.
    let s = read_listed("flux_dora_onetrainer", &base, |n| !n.ends_with(".dora_scale"))
        .unwrap()
        .summary;
    assert_eq!((s.dialect.as_str(), s.unmatched, s.matched), ("OneTrainer", 0, 1518), "{s}");
    assert_eq!(s.targets.len(), 3);
    // BFL's control LoRA: 314 layers, of which one is widened, and 152 gains. The biases are zero
    // here, so that they are left out.
    let control = read_listed("flux_control_lora", &base, |_| true).unwrap();
    let s = &control.summary;
    assert_eq!((s.unmatched, s.matched), (0, 1094 - 314), "{s}");
    let gains = control.changes().iter().filter(|c| c.is_fixed).count();
    assert_eq!((gains, control.changes().len()), (152, 314 + 1 + 152));
    let input = control.of(TRANSFORMER, "img_in.weight");
    let added = control.of(TRANSFORMER, &added_inputs("img_in.weight"));
    assert_eq!((input[0].delta.shape(), added[0].delta.shape()), ((3072, 64), (3072, 64)));
}
