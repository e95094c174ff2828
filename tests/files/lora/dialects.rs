//! The same adapter in the dialect of every trainer.

use std::collections::BTreeMap;

use flux_fast::dtype::DType;
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER};

use super::support::{Lora, Numbers, Shapes, delta, product, small, values, whole};

/// The adapter of one part of a weight, `rows` rows from `first`: A, B and alpha.
pub struct Piece {
    first: usize,
    rows: usize,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    alpha: f32,
}

pub type Truth = BTreeMap<(Component, String), Vec<Piece>>;

/// The first row, row count and diffusers name of each part of a weight.
fn parts(weight: &str, (rows, cols): (usize, usize)) -> Vec<(usize, usize, String)> {
    let layer = weight.strip_suffix(".weight").unwrap();
    let n = layer.split('.').nth(1).unwrap_or_default();
    let (double, single) =
        (format!("transformer_blocks.{n}"), format!("single_transformer_blocks.{n}"));
    let kind = layer.replacen(&format!(".{n}."), ".", 1);
    let thirds = |names: [&str; 3]| {
        names
            .iter()
            .enumerate()
            .map(|(i, p)| (rows / 3 * i, rows / 3, format!("{double}.attn.{p}")))
            .collect()
    };
    let all = |name: String| vec![(0, rows, name)];
    let embedder = |which: &str| {
        all(format!(
            "time_text_embed.{which}_embedder.linear_{}",
            if layer.contains(".in_") { 1 } else { 2 }
        ))
    };
    match kind.as_str() {
        "img_in" => all("x_embedder".into()),
        "txt_in" => all("context_embedder".into()),
        k if k.starts_with("time_in.") || layer.starts_with("time_in.") => embedder("timestep"),
        _ if layer.starts_with("vector_in.") => embedder("text"),
        _ if layer.starts_with("guidance_in.") => embedder("guidance"),
        "double_blocks.img_attn.qkv" => thirds(["to_q", "to_k", "to_v"]),
        "double_blocks.txt_attn.qkv" => thirds(["add_q_proj", "add_k_proj", "add_v_proj"]),
        "double_blocks.img_attn.proj" => all(format!("{double}.attn.to_out.0")),
        "double_blocks.txt_attn.proj" => all(format!("{double}.attn.to_add_out")),
        "double_blocks.img_mlp.0" => all(format!("{double}.ff.net.0.proj")),
        "double_blocks.img_mlp.2" => all(format!("{double}.ff.net.2")),
        "double_blocks.txt_mlp.0" => all(format!("{double}.ff_context.net.0.proj")),
        "double_blocks.txt_mlp.2" => all(format!("{double}.ff_context.net.2")),
        "double_blocks.img_mod.lin" => all(format!("{double}.norm1.linear")),
        "double_blocks.txt_mod.lin" => all(format!("{double}.norm1_context.linear")),
        "single_blocks.linear1" => ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
            .iter()
            .enumerate()
            .map(|(i, p)| {
                (cols * i, if i == 3 { rows - 3 * cols } else { cols }, format!("{single}.{p}"))
            })
            .collect(),
        "single_blocks.linear2" => all(format!("{single}.proj_out")),
        "single_blocks.modulation.lin" => all(format!("{single}.norm.linear")),
        _ if layer == "final_layer.linear" => all("proj_out".into()),
        _ if layer.starts_with("final_layer.adaLN") => all("norm_out.linear".into()),
        other => panic!("{other}"),
    }
}

fn is_linear(component: Component, weight: &str) -> bool {
    component == TRANSFORMER
        || !(weight.contains("embedding") || weight.contains("shared") || weight.contains("bias"))
}

/// Adapters for every layer. `shared`: the parts of a fused weight share A, as in a fused LoRA that
/// was split.
pub fn truth(base: &Shapes, shared: bool) -> Truth {
    let mut numbers = Numbers(if shared { 1 } else { 2 });
    let mut out = Truth::new();
    for ((c, w), shape) in base.iter().filter(|((c, w), _)| is_linear(*c, w)) {
        let parts =
            if *c == TRANSFORMER { parts(w, *shape) } else { vec![(0, shape.0, String::new())] };
        let one = numbers.many(2 * shape.1);
        let pieces = parts.into_iter().map(|(first, rows, _)| {
            let a = if shared { one.clone() } else { numbers.many(2 * shape.1) };
            Piece { first, rows, rank: 2, a, b: numbers.many(2 * rows), alpha: 1.0 }
        });
        out.insert((*c, w.clone()), pieces.collect());
    }
    out
}

/// One pair for the pieces: with one A if it is shared, otherwise with all of them stacked.
fn fuse(pieces: &[Piece], rows: usize) -> Piece {
    if pieces.iter().all(|p| p.a == pieces[0].a) {
        let b = pieces.iter().flat_map(|p| p.b.clone()).collect();
        return Piece {
            first: 0,
            rows,
            rank: pieces[0].rank,
            a: pieces[0].a.clone(),
            b,
            alpha: pieces[0].alpha,
        };
    }
    let rank: usize = pieces.iter().map(|p| p.rank).sum();
    let mut b = vec![0.0; rows * rank];
    let mut at = 0;
    for p in pieces {
        for (i, v) in p.b.iter().enumerate() {
            b[(p.first + i / p.rank) * rank + at + i % p.rank] = *v;
        }
        at += p.rank;
    }
    let a = pieces.iter().flat_map(|p| p.a.clone()).collect();
    Piece { first: 0, rows, rank, a, b, alpha: pieces[0].alpha * pieces.len() as f32 }
}

/// The names that a trainer writes.
pub struct Dialect {
    name: &'static str,
    /// Prefixes of the transformer, CLIP and T5.
    prefixes: [&'static str; 3],
    underscores: bool,
    diffusers: bool,
    suffixes: [&'static str; 2],
    /// The suffix of alpha; `None`: B is scaled instead.
    alpha: Option<&'static str>,
    dtype: DType,
}

const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];
const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

#[rustfmt::skip]
pub const DIALECTS: [Dialect; 12] = [
    Dialect { name: "Kohya sd-scripts", prefixes: ["lora_unet_", "lora_te1_", "lora_te3_"], underscores: true, diffusers: false, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "Kohya sd-scripts", prefixes: ["lora_unet_", "lora_te_", "lora_te3_"], underscores: true, diffusers: true, suffixes: ["_.lora_down.weight", "_.lora_up.weight"], alpha: Some("_.alpha"), dtype: DType::BF16 },
    Dialect { name: "OneTrainer", prefixes: ["lora_transformer_", "lora_te1_", "lora_te2_"], underscores: true, diffusers: true, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F16 },
    Dialect { name: "LyCORIS (SimpleTuner)", prefixes: ["lycoris_", "lora_te1_", "lora_te3_"], underscores: true, diffusers: true, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "PEFT (ai-toolkit)", prefixes: ["diffusion_model.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: false, suffixes: PEFT, alpha: None, dtype: DType::BF16 },
    Dialect { name: "ComfyUI", prefixes: ["model.diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."], underscores: false, diffusers: false, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: PEFT, alpha: None, dtype: DType::F32 },
    Dialect { name: "PEFT", prefixes: ["base_model.model.", "base_model.model.", "base_model.model."], underscores: false, diffusers: true, suffixes: [".lora_A.default.weight", ".lora_B.default.weight"], alpha: None, dtype: DType::F32 },
    Dialect { name: "PEFT", prefixes: ["base_model.model.", "base_model.model.", "base_model.model."], underscores: false, diffusers: false, suffixes: [".lora_A", ".lora_B"], alpha: None, dtype: DType::F16 },
    Dialect { name: "no prefix", prefixes: ["", "", ""], underscores: false, diffusers: true, suffixes: [".lora.down.weight", ".lora.up.weight"], alpha: Some(".lora.alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: ["_lora.down.weight", "_lora.up.weight"], alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"], alpha: Some(".alpha"), dtype: DType::F32 },
];

pub fn write(truth: &Truth, base: &Shapes, d: &Dialect) -> Lora {
    let mut lora = Lora::default();
    for ((c, w), pieces) in truth {
        let shape = base[&(*c, w.clone())];
        let layer = w.strip_suffix(".weight").unwrap();
        let mut put = |layer: &str, p: &Piece, swap: bool| {
            let prefix = d.prefixes[[TRANSFORMER, CLIP, T5].iter().position(|x| x == c).unwrap()];
            let name = prefix.to_string()
                + &if d.underscores { layer.replace('.', "_") } else { layer.to_string() };
            let mut b = p.b.clone();
            if swap {
                b.rotate_left(p.b.len() / 2);
            }
            if d.alpha.is_none() {
                b.iter_mut().for_each(|v| *v *= p.alpha / p.rank as f32);
            }
            lora.push(&format!("{name}{}", d.suffixes[0]), d.dtype, &[p.rank, shape.1], &p.a);
            lora.push(&format!("{name}{}", d.suffixes[1]), d.dtype, &[p.rows, p.rank], &b);
            if let Some(alpha) = d.alpha {
                lora.push(&format!("{name}{alpha}"), d.dtype, &[], &[p.alpha]);
            }
        };
        if *c == TRANSFORMER && d.diffusers {
            let names = parts(w, shape);
            assert_eq!(names.len(), pieces.len());
            for (p, (_, _, name)) in pieces.iter().zip(names) {
                put(&name, p, name == "norm_out.linear");
            }
        } else {
            put(layer, &fuse(pieces, shape.0), false);
        }
    }
    lora
}

pub fn expected(pieces: &[Piece], (rows, cols): (usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for p in pieces {
        let delta = product(&p.b, &p.a, p.rank, cols, f64::from(p.alpha) / p.rank as f64);
        out[p.first * cols..][..delta.len()].copy_from_slice(&delta);
    }
    out
}

#[test]
fn one_adapter_gives_the_same_pairs_in_every_dialect() {
    let base = small();
    for shared in [true, false] {
        let truth = truth(&base, shared);
        let mut first: Option<Vec<(Vec<f32>, Vec<f32>)>> = None;
        for d in &DIALECTS {
            let lora = write(&truth, &base, d);
            let adapter = lora.read(&base).unwrap_or_else(|e| panic!("{}: {e}", d.name));
            let s = &adapter.summary;
            assert_eq!(
                (s.dialect.as_str(), s.unmatched, s.matched),
                (d.name, 0, lora.tensors.len()),
                "{s}"
            );
            assert_eq!(adapter.weights().count(), truth.len());
            let mut pairs = vec![];
            for ((c, w), pieces) in &truth {
                let shape = base[&(*c, w.clone())];
                let combined = whole(&[(&adapter, 1.0)], *c, w, &base, DType::F32).unwrap();
                assert_eq!(
                    (combined.a.cols, combined.b.rows, combined.b.cols),
                    (shape.1, shape.0, combined.rank())
                );
                assert_eq!(delta(&combined), expected(pieces, shape), "{}: {w}", d.name);
                let bf16 = whole(&[(&adapter, 1.0)], *c, w, &base, DType::BF16).unwrap();
                assert_eq!(delta(&bf16), delta(&combined), "these values are exact in bf16: {w}");
                pairs.push((values(&combined.a), values(&combined.b)));
            }
            match &first {
                // Scales are multiplied into B, so the matrices are equal, too.
                Some(first) => assert!(*first == pairs, "{} ({shared})", d.name),
                None => first = Some(pairs),
            }
        }
    }
}

#[test]
fn xlabs_numbers_are_image_and_text() {
    let base = small();
    let truth = truth(&base, true);
    let mut lora = Lora::default();
    let names = [
        ("double_blocks.1.processor.qkv_lora1", "double_blocks.1.img_attn.qkv.weight"),
        ("double_blocks.1.processor.qkv_lora2", "double_blocks.1.txt_attn.qkv.weight"),
        ("double_blocks.1.processor.proj_lora1", "double_blocks.1.img_attn.proj.weight"),
        (
            "diffusion_model.double_blocks.1.processor.proj_lora2",
            "double_blocks.1.txt_attn.proj.weight",
        ),
        ("single_blocks.0.processor.proj_lora", "single_blocks.0.linear2.weight"),
        ("single_blocks.0.processor.qkv_lora", "single_blocks.0.linear1.weight"),
    ];
    for (name, weight) in names {
        let shape = base[&(TRANSFORMER, weight.to_string())];
        let mut p = fuse(&truth[&(TRANSFORMER, weight.to_string())], shape.0);
        if name.contains("single_blocks.0.processor.qkv") {
            p.rows = 3 * shape.1;
            p.b.truncate(p.rows * p.rank);
        }
        lora.push(&format!("{name}.down.weight"), DType::F32, &[p.rank, shape.1], &p.a);
        lora.push(&format!("{name}.up.weight"), DType::F32, &[p.rows, p.rank], &p.b);
    }
    let adapter = lora.read(&base).unwrap();
    assert_eq!((adapter.summary.dialect.as_str(), adapter.summary.unmatched), ("XLabs", 0));
    for (_, weight) in names {
        let shape = base[&(TRANSFORMER, weight.to_string())];
        // No alpha: a factor of 1, where the truth has 1/2.
        let mut want: Vec<f64> = expected(&truth[&(TRANSFORMER, weight.to_string())], shape)
            .iter()
            .map(|v| v * 2.0)
            .collect();
        if weight.contains("linear1") {
            want[3 * shape.1 * shape.1..].fill(0.0);
        }
        let combined = whole(&[(&adapter, 1.0)], TRANSFORMER, weight, &base, DType::F32).unwrap();
        assert_eq!(delta(&combined), want, "{weight}");
    }
}

/// The tensors of one change of some rows, in the names of a trainer.
fn put(lora: &mut Lora, name: &str, p: &Piece, cols: usize, suffixes: [&str; 2]) {
    let b: Vec<f32> = p.b.iter().map(|v| v * p.alpha / p.rank as f32).collect();
    lora.push(&format!("{name}{}", suffixes[0]), DType::F32, &[p.rank, cols], &p.a);
    lora.push(&format!("{name}{}", suffixes[1]), DType::F32, &[p.rows, p.rank], &b);
}

/// DiffSynth-Studio renames BFL's layers; everything else is fused in BFL's order, but for the last
/// modulation.
#[test]
fn diffsynth_names_every_layer() {
    let base = small();
    let truth = truth(&base, true);
    let name = |weight: &str| {
        let layer = weight.strip_suffix(".weight").unwrap();
        let n = layer.split('.').nth(1).unwrap_or_default();
        let kind = layer.replacen(&format!(".{n}."), ".", 1);
        let (double, single) = (format!("blocks.{n}"), format!("single_blocks.{n}"));
        match kind.as_str() {
            "img_in" => "x_embedder".into(),
            "txt_in" => "context_embedder".into(),
            "double_blocks.img_attn.qkv" => format!("{double}.attn.a_to_qkv"),
            "double_blocks.txt_attn.qkv" => format!("{double}.attn.b_to_qkv"),
            "double_blocks.img_attn.proj" => format!("{double}.attn.a_to_out"),
            "double_blocks.txt_attn.proj" => format!("{double}.attn.b_to_out"),
            "double_blocks.img_mlp.0" => format!("{double}.ff_a.0"),
            "double_blocks.img_mlp.2" => format!("{double}.ff_a.2"),
            "double_blocks.txt_mlp.0" => format!("{double}.ff_b.0"),
            "double_blocks.txt_mlp.2" => format!("{double}.ff_b.2"),
            "double_blocks.img_mod.lin" => format!("{double}.norm1_a.linear"),
            "double_blocks.txt_mod.lin" => format!("{double}.norm1_b.linear"),
            "single_blocks.linear1" => format!("{single}.to_qkv_mlp"),
            "single_blocks.linear2" => format!("{single}.proj_out"),
            "single_blocks.modulation.lin" => format!("{single}.norm.linear"),
            _ => match layer {
                "time_in.in_layer" => "time_embedder.timestep_embedder.0",
                "time_in.out_layer" => "time_embedder.timestep_embedder.2",
                "guidance_in.in_layer" => "guidance_embedder.timestep_embedder.0",
                "guidance_in.out_layer" => "guidance_embedder.timestep_embedder.2",
                "vector_in.in_layer" => "pooled_text_embedder.0",
                "vector_in.out_layer" => "pooled_text_embedder.2",
                "final_layer.linear" => "final_proj_out",
                "final_layer.adaLN_modulation.1" => "final_norm_out.linear",
                other => panic!("{other}"),
            }
            .into(),
        }
    };
    for (prefix, suffixes) in [
        ("", [".lora_A.default.weight", ".lora_B.default.weight"]),
        ("pipe.dit.", [".lora_A.weight", ".lora_B.weight"]),
        ("base_model.model.", [".lora_A.weight", ".lora_B.weight"]),
    ] {
        let prefix = prefix.strip_prefix("pipe.").unwrap_or(prefix);
        let mut lora = Lora::default();
        for ((c, w), pieces) in truth.iter().filter(|((c, _), _)| *c == TRANSFORMER) {
            let (rows, cols) = base[&(*c, w.clone())];
            let mut whole = fuse(pieces, rows);
            let name = name(w);
            if name == "final_norm_out.linear" {
                let half = whole.b.len() / 2;
                whole.b.rotate_left(half);
            }
            put(&mut lora, &format!("{prefix}{name}"), &whole, cols, suffixes);
        }
        let adapter = lora.read(&base).unwrap();
        assert_eq!(adapter.summary.unmatched, 0, "{}", adapter.summary);
        assert!(adapter.summary.dialect.contains("DiffSynth-Studio"), "{}", adapter.summary);
        for ((c, w), pieces) in truth.iter().filter(|((c, _), _)| *c == TRANSFORMER) {
            let shape = base[&(*c, w.clone())];
            let combined = whole(&[(&adapter, 1.0)], *c, w, &base, DType::F32).unwrap();
            assert_eq!(delta(&combined), expected(pieces, shape), "{prefix}{w}");
        }
    }
}

/// OneTrainer's numbered parts of fused layers, with dots and with underscores.
#[test]
fn numbered_parts_are_rows_of_the_fused_layer() {
    let base = small();
    let truth = truth(&base, false);
    for (prefix, flat) in [("transformer.", false), ("lora_transformer_", true)] {
        let mut lora = Lora::default();
        let mut weights = vec![];
        for ((c, w), pieces) in truth.iter().filter(|((c, _), _)| *c == TRANSFORMER) {
            let layer = w.strip_suffix(".weight").unwrap();
            for (i, piece) in pieces.iter().enumerate() {
                let name = match pieces.len() {
                    1 => layer.to_string(),
                    _ => format!("{layer}.{i}"),
                };
                let name = if flat { name.replace('.', "_") } else { name };
                let cols = base[&(*c, w.clone())].1;
                put(&mut lora, &format!("{prefix}{name}"), piece, cols, KOHYA);
            }
            weights.push((*c, w, pieces));
        }
        let adapter = lora.read(&base).unwrap();
        assert_eq!(adapter.summary.unmatched, 0, "{}", adapter.summary);
        assert!(adapter.summary.dialect.contains("OneTrainer"), "{}", adapter.summary);
        for (c, w, pieces) in weights {
            let combined = whole(&[(&adapter, 1.0)], c, w, &base, DType::F32).unwrap();
            assert_eq!(delta(&combined), expected(pieces, base[&(c, w.clone())]), "{prefix}{w}");
        }
    }
}
