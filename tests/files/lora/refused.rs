//! Other kinds of adapter are refused by name; a layer that is named twice is used once.

use flux_fast::spec::flux1::TRANSFORMER;

use super::pairs::{PROJ, plain, proj};
use super::support::{Lora, small};

#[test]
fn other_kinds_of_adapter_are_refused_by_name() {
    let base = small();
    let one = |key: &str| plain(&base).with(key, &[1], &[1.0]);
    let cases = [
        (format!("{PROJ}.lokr_t2"), "this is a LoKr or LoHa with a third factor"),
        (format!("{PROJ}.hada_t1"), "this is a LoKr or LoHa with a third factor"),
        (format!("{PROJ}.oft_blocks"), "this is an OFT"),
        (format!("{PROJ}.ia3_l"), "this is an IA3"),
        (format!("{PROJ}.vblora_logits_A"), "this is a VB-LoRA"),
        (format!("{PROJ}.lora_mid.weight"), "this is a LoCon with a middle matrix"),
        ("diffusion_model.img_in.reshape_weight".into(), "this is a control LoRA in the form"),
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
    // The img_in of a Fill model.
    let (r, c) = base[&(TRANSFORMER, "img_in.weight".to_string())];
    let e = Lora::default()
        .pair(
            "transformer.x_embedder.lora_A.weight",
            "transformer.x_embedder.lora_B.weight",
            2,
            (r, 3 * c),
        )
        .error(&base);
    assert!(e.contains("this LoRA widens img_in, and not to twice its width"), "{e}");
}

/// A LoRA of which only a part is understood would draw an image that is neither the one with it
/// nor the one without.
#[test]
fn a_lora_that_is_understood_in_part_is_refused_with_the_key() {
    let base = small();
    let unknown = [
        format!("{PROJ}.lora_C.weight"),
        format!("{PROJ}.lora_A.0.weight.extra"),
        format!("{PROJ}.strange"),
        format!("{PROJ}.diff_norm"),
        "diffusion_model.double_blocks.0.img_attn.qkv.3.lora_A.weight".into(),
        "diffusion_model.single_blocks.0.linear1.4.lora_A.weight".into(),
        "diffusion_model.double_blocks.0.img_attn.qkv.query.lora_A.weight".into(),
        "diffusion_model.double_blocks.0.img_attn.qkv.3.alpha".into(),
        "lora_unet_double_blocks_0_img_attn_qkv_3.lora_down.weight".into(),
        "diffusion_model.double_blocks.0.img_attn.gate.lora_A.weight".into(),
        "transformer.double_blocks.0.unheard.lora_up.weight".into(),
    ];
    for key in unknown {
        let e = plain(&base).with(&key, &[1], &[1.0]).error(&base);
        let says = "a part of this LoRA is not understood, so none of it is used";
        assert!(e.contains(says) && e.contains(&key), "{key}: {e}");
        // Products with a factor of zeros change nothing.
        if [".lora_A.weight", ".lora_down.weight", ".lora_up.weight"]
            .iter()
            .any(|s| key.ends_with(s))
        {
            plain(&base).with(&key, &[1], &[-0.0]).read(&base).unwrap();
        }
    }
    // A component of another model whose up matrix is zero has no effect.
    for zero in [0.0, -0.0] {
        let te2 = "lora_te2_text_model_encoder_layers_0_mlp_fc1";
        let s = plain(&base)
            .with(&format!("{te2}.lora_down.weight"), &[2, 4], &[1.0; 8])
            .with(&format!("{te2}.lora_up.weight"), &[4, 2], &[zero; 8])
            .with(&format!("{te2}.alpha"), &[], &[2.0]);
        let s = s.read(&base).unwrap().summary;
        assert_eq!((s.matched, s.unmatched), (2, 0), "{s}");
        assert!(s.notes[0].contains("their changes are zero and were left out"), "{s}");
    }
    // A layer that FLUX.1 does not use changes nothing either.
    let s = plain(&base).with("lora_te1_text_projection.lora_up.weight", &[1], &[1.0]);
    assert_eq!(s.read(&base).unwrap().summary.unmatched, 1);
}

#[test]
fn tensors_that_do_not_belong_together_are_refused() {
    let base = small();
    let (rows, cols) = proj(&base);
    let ones = |lora: Lora, suffix: &str, shape: &[usize]| {
        lora.with(&format!("{PROJ}{suffix}"), shape, &vec![1.0; shape.iter().product()])
    };
    let kron = |lora: Lora| {
        let lora = ones(lora, ".lokr_w1", &[2, 2]);
        ones(lora, ".lokr_w2", &[rows / 2, cols / 2])
    };
    let cases = [
        (kron(plain(&base)), "tensors of two kinds of adapter: found LoRA and LoKr"),
        (ones(Lora::default(), ".lokr_w1", &[2, 2]), "a LoKr lacks one of its two factors"),
        (ones(kron(Lora::default()), ".lokr_w2_a", &[6, 2]), "a factor of a LoKr is there twice"),
        (ones(Lora::default(), ".hada_w1_a", &[rows, 2]), "a LoRA matrix has no partner"),
        (ones(plain(&base), ".dora_scale", &[3]), "fit neither the rows nor the columns"),
        (ones(plain(&base), ".dora_scale", &[2, 6]), "a vector of a LoRA has several axes"),
        (ones(Lora::default(), ".diff", &[rows, 3]), "its layers have other sizes"),
        (ones(plain(&base), ".diff_b", &[rows]), "changes a bias that the model does not have"),
        (ones(plain(&base), ".lora_A.bias", &[2]), "changes a bias that the model does not have"),
        (ones(Lora::default(), ".dora_scale", &[rows, 1]), "no change to which they belong"),
    ];
    for (lora, says) in cases {
        let e = lora.error(&base);
        assert!(e.contains(says), "{says}: {e}");
    }
    let mut with_bias = base.clone();
    with_bias.insert((TRANSFORMER, "double_blocks.0.img_attn.proj.bias".into()), (1, rows));
    for (lora, says) in [
        (ones(plain(&base), ".lora_A.bias", &[3]), "a bias of A does not fit its matrix"),
        (ones(plain(&base), ".lora_B.bias", &[3]), "does not fit its layer"),
        (ones(Lora::default(), ".lora_A.bias", &[2]), "has no matrix B"),
        (
            ones(ones(plain(&base), ".lora_A.bias", &[2]), ".dora_scale", &[rows, 1]),
            "a DoRA whose matrices have biases",
        ),
    ] {
        let e = lora.error(&with_bias);
        assert!(e.contains(says), "{says}: {e}");
    }
    // q alone and q, k and v together.
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let both = Lora::default()
        .pair(&format!("{q}.lora_A.weight"), &format!("{q}.lora_B.weight"), 2, (rows, cols))
        .pair(
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
            2,
            (3 * rows, cols),
        );
    let e = both.error(&base);
    assert!(e.contains("change some of the same rows"), "{e}");
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
        (adapter.changes().len(), adapter.summary.matched, adapter.summary.unmatched),
        (1, 2, 3)
    );
    assert_eq!(adapter.changes()[0].key, peft);
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
    assert_eq!(both.read(&base).unwrap().changes().len(), 2);
    both.tensors.extend(part("to_qkv", 3 * rows).tensors);
    let s = both.read(&base).unwrap();
    assert_eq!((s.changes().len(), s.summary.unmatched), (1, 4), "{}", s.summary);
    // Twice in one dialect, by two adapters in one file.
    let twice = plain(&base).pair(
        &format!("{PROJ}.lora_A.other.weight"),
        &format!("{PROJ}.lora_B.other.weight"),
        2,
        (rows, cols),
    );
    assert_eq!(twice.read(&base).unwrap().summary.unmatched, 2);
}
