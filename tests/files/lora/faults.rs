//! LoRAs of other models, unmatched keys, wrong ranks, shapes and types, values that are not
//! finite.

use flux_fast::dtype::DType;
use flux_fast::error::Error;
use flux_fast::spec::flux1::{CLIP, TRANSFORMER};
use flux_fast::weights::lora::combine;

use super::dialects::{DIALECTS, truth, write};
use super::pairs::{PROJ, PROJ_WEIGHT, factor, plain, proj};
use super::support::{Lora, Shapes, dev, small, values};

#[test]
fn a_lora_of_another_model_is_named_in_one_line() {
    let base = small();
    let kohya = |layer: &str, cols| {
        Lora::default().pair(
            &format!("{layer}.lora_down.weight"),
            &format!("{layer}.lora_up.weight"),
            4,
            (8, cols),
        )
    };
    let xl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let cases = [
        (kohya(xl, 768), "Stable Diffusion 1.x"),
        (kohya(xl, 1024), "Stable Diffusion 2.x"),
        (kohya(xl, 2048), "Stable Diffusion XL"),
        (kohya("unet.up_blocks.1.attentions.0.proj_in", 8), "Stable Diffusion (1.x, 2.x or XL)"),
        (kohya("lora_te2_text_model_encoder_layers_3_mlp_fc1", 8), "Stable Diffusion XL or 3"),
        (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 8), "Stable Diffusion 3"),
        (kohya("diffusion_model.blocks.0.cross_attn.k", 8), "Wan"),
        (kohya("lora_unet_blocks_0_cross_attn_k", 8), "Wan"),
        (kohya("transformer.transformer_blocks.0.img_mod.1", 8), "Qwen-Image"),
        (kohya("diffusion_model.double_blocks.0.img_mlp.fc1", 8), "HunyuanVideo"),
        (kohya("diffusion_model.distilled_guidance_layer.in_proj", 8), "Chroma"),
        (kohya("transformer.double_stream_modulation_img.linear", 8), "FLUX.2"),
        (kohya("transformer.transformer_blocks.0.attn2.to_k", 8), "a model with cross-attention"),
        (kohya("base_model.model.model.layers.0.self_attn.q_proj", 8), "a language model"),
    ];
    for (lora, model) in cases {
        let e = lora.error(&base);
        assert!(
            e.contains("made for another model") && e.contains(&format!("found keys of {model}")),
            "{model}: {e}"
        );
    }
    // Even if FLUX.1 has many of the keys, too.
    let (r, c) = proj(&base);
    let qwen = (0..60).fold(Lora::default(), |l, i| {
        let name = format!("transformer.transformer_blocks.{i}.attn.to_out.0");
        l.pair(&format!("{name}.lora_A.weight"), &format!("{name}.lora_B.weight"), 2, (r, c))
    });
    let e = qwen.error(&base);
    assert!(
        e.contains("it has more blocks than this one: found block")
            && e.contains("expected blocks 0 to 1"),
        "{e}"
    );
    assert!(e.contains("Qwen-Image"), "{e}");
    let wide = write(&truth(&dev_wide(), true), &dev_wide(), &DIALECTS[4]).error(&base);
    assert!(
        wide.contains("its layers have other sizes") && wide.contains("pairs do not fit"),
        "{wide}"
    );
    // Stable Diffusion uses CLIP-L, too: the header decides.
    let name = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    let (rows, cols) = base[&(CLIP, "text_model.encoder.layers.0.mlp.fc1.weight".to_string())];
    let clip_only = Lora::default().pair(
        &format!("{name}.lora_down.weight"),
        &format!("{name}.lora_up.weight"),
        1,
        (rows, cols),
    );
    assert_eq!(clip_only.read(&base).unwrap().summary.dialect, "text encoders only");
    let e = clip_only.clone().meta("ss_base_model_version", "sd_v1").error(&base);
    assert!(e.contains("found keys of sd_v1"), "{e}");
}

/// `small` with every layer twice as wide.
fn dev_wide() -> Shapes {
    small().into_iter().map(|(k, (r, c))| (k, (2 * r, 2 * c))).collect()
}

#[test]
fn no_matching_key_is_an_error() {
    let base = small();
    let e = Lora::default().pair("foo.lora_A.weight", "foo.lora_B.weight", 2, (4, 4)).error(&base);
    assert!(
        e.contains(
            "no key of this file is a LoRA of FLUX.1: found 2 keys, such as foo.lora_A.weight, foo.lora_B.weight"
        ),
        "{e}"
    );
    assert!(Lora::default().error(&base).contains("found no tensors at all"));
    let e = Lora::default()
        .pair("foo.lora_A.weight", "foo.lora_B.weight", 2, (4, 4))
        .meta("ss_base_model_version", "zeta")
        .error(&base);
    assert!(e.contains("its metadata names the base model zeta"), "{e}");
    // Known names, but not of this model.
    let guidance = Lora::default().pair(
        "transformer.time_text_embed.guidance_embedder.linear_1.lora_A.weight",
        "transformer.time_text_embed.guidance_embedder.linear_1.lora_B.weight",
        2,
        (4, 4),
    );
    let schnell: Shapes = base
        .iter()
        .filter(|((_, n), _)| !n.starts_with("guidance_in"))
        .map(|(k, v)| (k.clone(), *v))
        .collect();
    let e = guidance.error(&schnell);
    assert!(
        e.contains("no tensor of this LoRA matches this model")
            && e.contains("this model has no guidance_in.in_layer.weight"),
        "{e}"
    );
    // A model instead of a LoRA.
    let model = dev()
        .iter()
        .filter(|((c, _), _)| *c == TRANSFORMER)
        .fold(Lora::default(), |l, ((_, n), _)| l.with(n, &[1, 1], &[0.0]));
    let e = model.error(&base);
    assert!(
        e.contains("this is a model, not a LoRA: found FLUX transformer") && e.contains("`model`"),
        "{e}"
    );
}

#[test]
fn unmatched_keys_are_counted_and_ten_are_named() {
    let base = small();
    let mut lora = plain(&base).with("lora_te1_text_projection.alpha", &[], &[1.0]).with(
        &format!("{PROJ}x.alpha"),
        &[],
        &[1.0],
    );
    for i in 0..20 {
        lora = lora.with(&format!("bundle_emb.thing.{i}"), &[2], &[1.0, 2.0]);
    }
    // A text encoder that this model does not have, and alphas without matrices.
    lora = lora.with("lora_unet_img_in.alpha", &[], &[1.0]);
    let adapter = lora.read(&base).unwrap();
    let s = &adapter.summary;
    assert_eq!((s.matched, s.unmatched, s.first_unmatched.len()), (2, 23, 10));
    let text = s.to_string();
    assert!(text.contains("2 matched, 23 unmatched") && text.contains("and 13 more"), "{text}");
    assert!(
        text.contains("lora_te1_text_projection.alpha: FLUX.1 does not use this layer"),
        "{text}"
    );
    let flux_only: Shapes =
        base.iter().filter(|((c, _), _)| *c == TRANSFORMER).map(|(k, v)| (k.clone(), *v)).collect();
    let t5 = plain(&base).pair(
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
        2,
        (64, 64),
    );
    let s = t5.read(&flux_only).unwrap().summary;
    assert_eq!((s.matched, s.unmatched), (2, 2));
    assert_eq!(s.first_unmatched[0].why, "this model has no T5 text encoder");
}

#[test]
fn wrong_rank_shape_or_type_is_found() {
    let base = small();
    let (rows, cols) = proj(&base);
    let (down, up) = (format!("{PROJ}.lora_A.weight"), format!("{PROJ}.lora_B.weight"));
    let of = |a: [usize; 2], b: [usize; 2]| {
        Lora::default().with(&down, &a, &vec![1.0; a[0] * a[1]]).with(
            &up,
            &b,
            &vec![1.0; b[0] * b[1]],
        )
    };
    let e = of([4, cols], [rows, 3]).error(&base);
    assert!(
        e.contains(&format!(
            "{PROJ}: the two matrices of a LoRA differ in rank: found down (A) [4, 12], up (B) [12, 3]"
        )),
        "{e}"
    );
    let e = of([0, cols], [rows, 0]).error(&base);
    assert!(e.contains("a LoRA has rank 0"), "{e}");
    let fits = of([4, cols], [rows, 4]);
    let extra = |l: Lora| {
        let (r, c) = base[&(TRANSFORMER, "img_in.weight".to_string())];
        let l = l.pair(
            "diffusion_model.img_in.lora_A.weight",
            "diffusion_model.img_in.lora_B.weight",
            2,
            (r, c),
        );
        let (r, c) = base[&(TRANSFORMER, "txt_in.weight".to_string())];
        l.pair(
            "diffusion_model.txt_in.lora_A.weight",
            "diffusion_model.txt_in.lora_B.weight",
            2,
            (r, c),
        )
    };
    extra(fits).read(&base).unwrap();
    let e = extra(of([4, cols], [rows + 1, 4])).error(&base);
    assert!(e.contains("a LoRA does not fit its layer: found a change of 13 x 12, expected 12 x 12 for double_blocks.0.img_attn.proj.weight"), "{e}");
    let e = extra(of([4, cols + 1], [rows, 4])).error(&base);
    assert!(e.contains("found a change of 12 x 13"), "{e}");
    let e = Lora::default().with(&down, &[4, cols], &vec![1.0; 4 * cols]).error(&base);
    assert!(
        e.contains(&format!("{down}: a LoRA matrix has no partner: its up (B) matrix is missing")),
        "{e}"
    );
    let e = Lora::default().with(&up, &[rows, 4], &vec![1.0; 4 * rows]).error(&base);
    assert!(e.contains("its down (A) matrix is missing"), "{e}");
    let e = Lora::default()
        .with(&down, &[4 * cols], &vec![1.0; 4 * cols])
        .with(&up, &[rows, 4], &vec![1.0; 4 * rows])
        .error(&base);
    assert!(e.contains("does not have two axes: found [48]"), "{e}");
    let e = Lora::default()
        .raw(&down, "I32", &[4, cols], &vec![0; 16 * cols])
        .with(&up, &[rows, 4], &vec![1.0; 4 * rows])
        .error(&base);
    assert!(
        e.contains("element type that cannot be read: found I32, expected F64, F32, F16 or BF16"),
        "{e}"
    );
    // F64 is rounded.
    let doubles: Vec<u8> = (0..4 * cols).flat_map(|i| (i as f64 / 3.0).to_le_bytes()).collect();
    let lora = Lora::default().raw(&down, "F64", &[4, cols], &doubles).with(
        &up,
        &[rows, 4],
        &vec![1.0; 4 * rows],
    );
    let adapter = lora.read(&base).unwrap();
    let pair = combine(&[(&adapter, 1.0)], TRANSFORMER, PROJ_WEIGHT, 0..rows, DType::F32);
    let a = values(&pair.unwrap().unwrap().a);
    assert!(a.iter().enumerate().all(|(i, v)| *v == (i as f64 / 3.0) as f32));
    let nan: Vec<u8> = (0..4 * cols).flat_map(|_| f64::MAX.to_le_bytes()).collect();
    let lora = Lora::default().raw(&down, "F64", &[4, cols], &nan).with(
        &up,
        &[rows, 4],
        &vec![1.0; 4 * rows],
    );
    assert!(lora.error(&base).contains("values that are not finite numbers: found inf"));
    // 1 x 1 convolutions are matrices.
    let conv = Lora::default().with(&down, &[4, cols, 1, 1], &vec![1.0; 4 * cols]).with(
        &up,
        &[rows, 4, 1, 1],
        &vec![1.0; 4 * rows],
    );
    assert_eq!(factor(&conv, &base), 1.0);
    // The expected rows are those of the part of the fused weight.
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let e = extra(Lora::default().pair(
        &format!("{q}.lora_A.weight"),
        &format!("{q}.lora_B.weight"),
        2,
        (36, 12),
    ))
    .error(&base);
    assert!(
        e.contains(
            "found a change of 36 x 12, expected 12 x 12 for double_blocks.0.img_attn.qkv.weight"
        ),
        "{e}"
    );
}

#[test]
fn values_that_are_not_finite_are_found() {
    let base = small();
    let (rows, cols) = proj(&base);
    let alpha = format!("{PROJ}.alpha");
    for bad in [f32::NAN, f32::INFINITY] {
        let e = plain(&base).with(&alpha, &[], &[bad]).error(&base);
        assert!(e.contains("alpha is not a finite number"), "{e}");
    }
    let e = plain(&base).with(&alpha, &[2], &[1.0, 1.0]).error(&base);
    assert!(e.contains("alpha is not one number: found F32 [2]"), "{e}");
    let e = plain(&base).raw(&alpha, "BOOL", &[], &[1]).error(&base);
    assert!(e.contains("alpha is not one number: found BOOL []"), "{e}");
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E5M2, DType::F8E4M3] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            if bad.is_infinite() && dtype.size() == 1 {
                continue; // they saturate
            }
            for at in [0, 17, 4 * rows - 1] {
                let mut b = vec![-1.0; 4 * rows];
                b[at] = bad;
                let mut lora = Lora::default();
                lora.push(
                    &format!("{PROJ}.lora_A.weight"),
                    dtype,
                    &[4, cols],
                    &vec![1.0; 4 * cols],
                );
                lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, 4], &b);
                let e = lora.error(&base);
                let place = format!(
                    "{PROJ}, up (B): a LoRA contains values that are not finite numbers: found {bad} in row {}, column {}",
                    at / 4,
                    at % 4
                );
                assert!(e.contains(&place), "{e}");
            }
        }
        let mut lora = Lora::default();
        let largest = [65504.0f32, -65504.0, 1e-30, 0.0].repeat(rows);
        lora.push(&format!("{PROJ}.lora_A.weight"), dtype, &[4, cols], &vec![1.0; 4 * cols]);
        lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, 4], &largest);
        lora.read(&base).unwrap();
    }
    // Late in a large matrix.
    let rank = 3000;
    let mut a = vec![1.0; rank * cols];
    a[2999 * cols + 5] = f32::NAN;
    for dtype in [DType::F32, DType::F16, DType::F8E4M3] {
        let mut lora = Lora::default();
        lora.push(&format!("{PROJ}.lora_A.weight"), dtype, &[rank, cols], &a);
        lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, rank], &vec![1.0; rows * rank]);
        assert!(
            lora.error(&base).contains("found NaN in row 2999, column 5"),
            "{}",
            lora.error(&base)
        );
    }
    // In several matrices.
    let mut lora = write(&truth(&base, true), &base, &DIALECTS[0]);
    for name in [
        "lora_unet_single_blocks_1_linear1.lora_up.weight",
        "lora_unet_single_blocks_0_linear2.lora_down.weight",
    ] {
        let bytes = lora.bytes_of(name);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let e = lora.error(&base);
    assert!(
        e.contains("lora_unet_single_blocks_0_linear2, down (A)")
            && e.contains("and more in 1 other matrices"),
        "{e}"
    );
    // Finite values whose scaled product is not finite.
    let mut lora = plain(&base).with(&alpha, &[], &[4.0]);
    lora.bytes_of(&format!("{PROJ}.lora_B.weight"))[..4].copy_from_slice(&f32::MAX.to_le_bytes());
    let adapter = lora.read(&base).unwrap();
    let e: Error =
        combine(&[(&adapter, 2.0)], TRANSFORMER, PROJ_WEIGHT, 0..rows, DType::F32).unwrap_err();
    assert!(e.to_string().contains("exceeds the range of the numbers"), "{e}");
    let e = combine(&[(&adapter, 1.001)], TRANSFORMER, PROJ_WEIGHT, 0..rows, DType::BF16);
    assert!(e.is_err());
}
