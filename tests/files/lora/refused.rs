//! Other kinds of adapter are refused by name; a layer that is named twice is used once.

use flux_fast::spec::flux1::TRANSFORMER;

use super::pairs::{PROJ, plain, proj};
use super::support::{Lora, small};

#[test]
fn other_kinds_of_adapter_are_refused_by_name() {
    let base = small();
    let one = |key: &str| plain(&base).with(key, &[1], &[1.0]);
    let cases = [
        (format!("{PROJ}.dora_scale"), "this is a DoRA"),
        (format!("{PROJ}.lora_magnitude_vector.default.weight"), "this is a DoRA"),
        (format!("{PROJ}.lokr_w1_a"), "this is a LoKr"),
        (format!("{PROJ}.lokr_t2"), "this is a LoKr"),
        (format!("{PROJ}.hada_w1_a"), "this is a LoHa"),
        (format!("{PROJ}.oft_blocks"), "this is an OFT"),
        (format!("{PROJ}.lora_mid.weight"), "this is a LoCon with a middle matrix"),
        (format!("{PROJ}.diff"), "this is a LoRA with whole differences of weights (.diff)"),
        (format!("{PROJ}.diff_b"), "this is a LoRA with differences of biases (.diff_b)"),
        (format!("{PROJ}.lora_B.bias"), "this is a LoRA with differences of biases (lora_B.bias)"),
        (
            "diffusion_model.double_blocks.0.img_attn.norm.query_norm.set_weight".into(),
            "this is a BFL control LoRA",
        ),
        (
            "double_blocks.0.img_attn.norm.query_norm.scale".into(),
            "this is a LoRA that also replaces whole weights",
        ),
        (
            "transformer.norm_out.linear.weight".into(),
            "this is a LoRA that also replaces whole weights",
        ),
        (
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight".into(),
            "this is an IP-Adapter, not a LoRA",
        ),
        ("controlnet_blocks.0.weight".into(), "this is a ControlNet, not a LoRA"),
    ];
    for (key, says) in cases {
        let e = one(&key).error(&base);
        assert!(e.contains(says) && e.contains(&key), "{key}: {e}");
    }
    let e = Lora::default().with("emb_params", &[2], &[1.0, 1.0]).error(&base);
    assert!(e.contains("textual inversion"), "{e}");
    // Differences that are all zero have no effect, so the file is accepted.
    let zeros = plain(&base).with(&format!("{PROJ}.diff_b"), &[2], &[0.0; 2]).with(
        "lora_unet_img_in.diff",
        &[2],
        &[0.0; 2],
    );
    let s = zeros.read(&base).unwrap().summary;
    assert_eq!((s.matched, s.unmatched, s.notes.len()), (2, 0, 2), "{s}");
    // The img_in of a Fill or control model.
    let (r, c) = base[&(TRANSFORMER, "img_in.weight".to_string())];
    let e = Lora::default()
        .pair(
            "transformer.x_embedder.lora_A.weight",
            "transformer.x_embedder.lora_B.weight",
            2,
            (r, 2 * c),
        )
        .error(&base);
    assert!(e.contains("this LoRA widens img_in, as BFL's control LoRAs (Canny, Depth) do"), "{e}");
}

#[test]
fn a_layer_named_twice_is_used_once() {
    let base = small();
    let (rows, cols) = proj(&base);
    let kohya = "lora_unet_double_blocks_0_img_attn_proj";
    let peft = "transformer.transformer_blocks.0.attn.to_out.0";
    let lora = Lora::default()
        .pair(
            &format!("{kohya}.lora_down.weight"),
            &format!("{kohya}.lora_up.weight"),
            2,
            (rows, cols),
        )
        .with(&format!("{kohya}.alpha"), &[], &[1.0])
        .pair(&format!("{peft}.lora_A.weight"), &format!("{peft}.lora_B.weight"), 2, (rows, cols));
    let adapter = lora.read(&base).unwrap();
    assert_eq!(
        (adapter.pairs().len(), adapter.summary.matched, adapter.summary.unmatched),
        (1, 2, 3)
    );
    assert_eq!(adapter.pairs()[0].key, peft);
    assert_eq!(adapter.summary.first_unmatched[0].why, format!("{peft} changes the same rows"));
    // q overlaps fused q, k, v; q and k do not overlap.
    let part = |p: &str, rows| {
        Lora::default().pair(
            &format!("transformer.transformer_blocks.0.attn.{p}.lora_A.weight"),
            &format!("transformer.transformer_blocks.0.attn.{p}.lora_B.weight"),
            2,
            (rows, cols),
        )
    };
    let mut both = part("to_q", rows);
    both.tensors.extend(part("to_k", rows).tensors);
    assert_eq!(both.read(&base).unwrap().pairs().len(), 2);
    both.tensors.extend(part("to_qkv", 3 * rows).tensors);
    let s = both.read(&base).unwrap();
    assert_eq!((s.pairs().len(), s.summary.unmatched), (1, 4), "{}", s.summary);
    // Twice in one dialect, by two adapters in one file.
    let twice = plain(&base).pair(
        &format!("{PROJ}.lora_A.other.weight"),
        &format!("{PROJ}.lora_B.other.weight"),
        2,
        (rows, cols),
    );
    assert_eq!(twice.read(&base).unwrap().summary.unmatched, 2);
}
