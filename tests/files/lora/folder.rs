//! Folders that PEFT and diffusers write.

use std::path::Path;

use flux_fast::error::{Kind, Result};
use flux_fast::spec::flux1::FLUX1;
use flux_fast::weights::lora::{Adapter, open};

use super::support::{Lora, Shapes, small};

const LAYER: &str = "base_model.model.transformer_blocks.0.attn.to_out.0";

fn read(folder: &Path, base: &Shapes) -> Result<Adapter> {
    open(folder, &FLUX1, &|c, n| base.get(&(c, n.to_string())).copied())
}

#[test]
fn the_configuration_of_a_folder_is_used() {
    let base = small();
    let dir = tempfile::tempdir().unwrap();
    let lora = Lora::default().pair(
        &format!("{LAYER}.lora_A.weight"),
        &format!("{LAYER}.lora_B.weight"),
        4,
        (12, 12),
    );
    let weights = dir.path().join("adapter_model.safetensors");
    std::fs::write(&weights, lora.bytes()).unwrap();
    assert_eq!(read(dir.path(), &base).unwrap().changes()[0].factor, 1.0);
    let config = |json: &str| {
        std::fs::write(dir.path().join("adapter_config.json"), json).unwrap();
        read(dir.path(), &base)
    };
    let factor = |json: &str| config(json).unwrap().changes()[0].factor;
    assert_eq!(factor(r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#), 2.0);
    assert_eq!(factor(r#"{"lora_alpha": 8, "alpha_pattern": {".*to_out\\.\\d": 2}}"#), 0.5);
    // The file itself may be given, too.
    assert_eq!(read(&weights, &base).unwrap().changes()[0].factor, 0.5);
    for (json, says) in [
        (r#"{"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}"#, "matches none of its layers"),
        (r#"{"peft_type": "BOFT"}"#, "this kind of PEFT adapter is not supported"),
        ("[", "not valid JSON"),
    ] {
        let e = config(json).unwrap_err();
        assert_eq!(e.kind(), Kind::Model);
        let e = e.to_string();
        assert!(e.contains(says) && e.contains("adapter_config.json"), "{e}");
        assert!(e.starts_with(&weights.display().to_string()), "{e}");
    }

    // PEFT multiplies LoKr with alpha / r, also where both factors are whole.
    let kron = Lora::default().with(&format!("{LAYER}.lokr_w1"), &[2, 2], &[1.0; 4]).with(
        &format!("{LAYER}.lokr_w2"),
        &[6, 6],
        &[1.0; 36],
    );
    std::fs::write(&weights, kron.bytes()).unwrap();
    assert_eq!(factor(r#"{"peft_type": "LOKR", "r": 8, "alpha": 2}"#), 0.25);
}

#[test]
fn other_folders() {
    let base = small();
    let dir = tempfile::tempdir().unwrap();
    let e = read(dir.path(), &base).unwrap_err();
    assert_eq!(e.kind(), Kind::Missing);
    assert!(e.to_string().contains("there is no adapter in this folder"), "{e}");
    std::fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    let e = read(dir.path(), &base).unwrap_err();
    assert!(e.to_string().contains("a pickle"), "{e}");
    let lora = Lora::default().pair(
        "transformer.x_embedder.lora_A.weight",
        "transformer.x_embedder.lora_B.weight",
        2,
        base[&(flux_fast::spec::flux1::TRANSFORMER, "img_in.weight".to_string())],
    );
    let path = dir.path().join("pytorch_lora_weights.safetensors");
    std::fs::write(path, lora.bytes()).unwrap();
    assert_eq!(read(dir.path(), &base).unwrap().changes().len(), 1);
}
