//! Every kind of adapter against merged weights that are computed here in f64, by the formulas of
//! LyCORIS, PEFT and ComfyUI: strengths 1, 0.5 and -0.3 interpolate between the base weight and the
//! changed one, and 0 is the model without the adapter, to the bit.

pub(super) mod made;

use std::collections::HashMap;
use std::sync::Arc;

use flux_fast::backend::{Compute, Int8Use};
use flux_fast::dtype::DType;
use flux_fast::op::Program;
use flux_fast::pipeline::loras::{LoraSet, open};
use flux_fast::spec::flux1::{FLUX1, TRANSFORMER};
use flux_fast::tensor::HostWeight;

use super::loras::{denoiser, drawn, velocity};
use super::{devices, plain};
use crate::common::{Golden, cpu, least_bytes, relative_error, temp_dir};

use made::{
    Kind, Length, Made, Numbers, Stored, Tensors, adapter, merged, product, stored, weight_of,
    write,
};

const TOLERANCE: f64 = 1e-4;

/// Every kind on layers with every epilogue: qkv (none), proj (gated), mlp.0 (GELU), linear1 (in
/// two operations, one of them with GELU into a window), in_layer (SiLU), out_layer (added).
fn kinds() -> Vec<(&'static str, Vec<Stored>)> {
    let layers = [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.txt_attn.proj",
        "double_blocks.1.img_mlp.0",
        "double_blocks.1.txt_mlp.2",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "double_blocks.0.img_mod.lin",
        "vector_in.in_layer",
        "vector_in.out_layer",
    ];
    let all = |kind: Kind, length: Length, alpha: Option<f32>| -> Vec<Stored> {
        let one = |l: &&str| {
            let s = stored(&format!("diffusion_model.{l}"), l, kind).length(length);
            Stored { alpha, ..s }
        };
        layers.iter().map(one).collect()
    };
    let q = |n: usize, p: &str| format!("transformer.transformer_blocks.{n}.attn.to_{p}");
    let fused = |kind: Kind, length: Length| -> Vec<Stored> {
        let qkv = "double_blocks.0.img_attn.qkv";
        let mut parts: Vec<Stored> = ["q", "k", "v"]
            .iter()
            .enumerate()
            .map(|(i, p)| stored(&q(0, p), qkv, kind).length(length).part(i, 3))
            .collect();
        let single = "transformer.single_transformer_blocks.0";
        for (i, p) in ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].iter().enumerate() {
            // One of the four parts has no change.
            if i != 1 {
                let s = stored(&format!("{single}.{p}"), "single_blocks.0.linear1", kind);
                parts.push(s.length(length).part(i, 4));
            }
        }
        parts.push(
            stored("transformer.norm_out.linear", "final_layer.adaLN_modulation.1", kind)
                .length(length),
        );
        parts
    };
    // BFL's order of shift and scale is that of the canonical weight, diffusers' is the other one.
    let last = |name: &str| {
        vec![stored(name, "final_layer.adaLN_modulation.1", Kind::Pair(3)).length(Length::None)]
    };
    vec![
        ("last modulation, BFL", last("diffusion_model.final_layer.adaLN_modulation.1")),
        ("last modulation, Kohya", last("lora_unet_final_layer_adaLN_modulation_1")),
        ("last modulation, diffusers", last("transformer.norm_out.linear")),
        ("LoRA", all(Kind::Pair(3), Length::None, Some(2.0))),
        ("LoHa", all(Kind::Hada(2), Length::None, Some(1.5))),
        ("LoHa of a high rank", all(Kind::Hada(40), Length::None, Some(8.0))),
        ("LoKr, whole", all(Kind::Kron((2, 2), None), Length::None, Some(7.0))),
        ("LoKr, factored", all(Kind::Kron((4, 2), Some(3)), Length::None, Some(2.0))),
        ("LoKr, both factored", all(Kind::KronBoth((2, 4), 2), Length::None, Some(1.0))),
        ("DoRA of rows", all(Kind::Pair(3), Length::Rows, Some(2.0))),
        ("DoRA of rows, PEFT", all(Kind::Pair(3), Length::RowsFlat, None)),
        ("DoRA of columns", all(Kind::Pair(3), Length::Columns, Some(2.0))),
        ("DoRA of LoHa", all(Kind::Hada(2), Length::Rows, None)),
        ("DoRA of LoKr, rows", all(Kind::Kron((2, 2), None), Length::Rows, None)),
        ("DoRA of LoKr, columns", all(Kind::Kron((2, 2), Some(3)), Length::Columns, Some(2.0))),
        ("differences", all(Kind::Diff, Length::None, None)),
        ("replacements", all(Kind::Set, Length::None, None)),
        ("LoKr of parts", fused(Kind::Kron((2, 2), None), Length::None)),
        ("DoRA of parts, rows", fused(Kind::Pair(2), Length::Rows)),
        ("DoRA of parts, columns", fused(Kind::Pair(2), Length::Columns)),
        ("DoRA of LoKr of parts", fused(Kind::Kron((2, 2), None), Length::Columns)),
    ]
}

#[test]
fn every_kind_changes_the_transformer_as_merged_weights_do() {
    let golden = Golden::read("b_dev");
    let written = plain(&golden);
    let (checkpoint, g) = (written.open(), &written.geometry);
    let dir = temp_dir();
    let mades: Vec<(&str, Made)> = kinds()
        .iter()
        .enumerate()
        .map(|(i, (name, all))| {
            let file = format!("{i}.safetensors");
            (*name, adapter(dir.path(), &file, &checkpoint, all, 77 + i as u64))
        })
        .collect();
    let set = |made: &Made, strength: f32| {
        let adapter = open(&made.path, &FLUX1, &|c| checkpoint.get(c)).unwrap();
        assert_eq!(adapter.summary.unmatched, 0);
        LoraSet::of(vec![(Arc::new(adapter), strength)])
    };
    for (b, backend) in devices().iter_mut().map(Box::as_mut).enumerate() {
        let device = backend.caps().name.clone();
        let mut at = |apply: &dyn Fn(Program) -> (Program, Vec<HostWeight>)| {
            velocity(backend, &golden, g, apply, DType::F32).0
        };
        let base = at(&|program| {
            let weights = merged(&checkpoint, &program, &[]);
            (program, weights)
        });
        for (name, made) in &mades {
            for strength in [1.0, 0.5, -0.3] {
                // Other devices run the same programs: one strength is enough there.
                if b > 0 && strength != 0.5 {
                    continue;
                }
                let want = at(&|program| {
                    let weights = merged(&checkpoint, &program, &[(made, strength)]);
                    (program, weights)
                });
                let loras = set(made, strength);
                let weights = checkpoint.get(TRANSFORMER).unwrap();
                let got = at(&|program| loras.apply(weights, program, Int8Use::Never).unwrap());
                let (error, change) = (relative_error(&got, &want), relative_error(&base, &want));
                println!("{device} {name} at {strength}: {error:.2e} of a change of {change:.2e}");
                if b == 0 && strength == 1.0 {
                    let apply = |program| loras.apply(weights, program, Int8Use::All).unwrap();
                    let backend = &mut cpu(Compute::Int8);
                    let got = velocity(backend, &golden, g, &apply, DType::F32).0;
                    let error = relative_error(&got, &want);
                    println!("{name} in int8: {error:.2e}");
                    assert!(error <= 0.05, "{name} in int8: {error:.2e}");
                }
                assert!(error <= TOLERANCE, "{device} {name} at {strength}: {error:.2e}");
                assert!(change > 1e-2, "{name} at {strength} changes {change:.2e}");
            }
            let loras = set(made, 0.0);
            let weights = checkpoint.get(TRANSFORMER).unwrap();
            let got = at(&|program| loras.apply(weights, program, Int8Use::Never).unwrap());
            assert_eq!(got, base, "{name} at 0");
        }
    }
}

/// Several kinds on the same layers add up; the budget changes no bit of them.
#[test]
fn kinds_add_up_and_streaming_changes_no_bit() {
    let golden = Golden::read("b_dev");
    let written = plain(&golden);
    let (checkpoint, g) = (written.open(), &written.geometry);
    let dir = temp_dir();
    let kinds = kinds();
    let by_name = |name: &str, i: usize| {
        let all = &kinds.iter().find(|k| k.0 == name).unwrap().1;
        adapter(dir.path(), &format!("{i}.safetensors"), &checkpoint, all, 500 + i as u64)
    };
    let together =
        ["LoRA", "LoHa", "LoKr, whole", "DoRA of rows", "DoRA of rows, PEFT", "differences"];
    let mades: Vec<Made> = together.iter().enumerate().map(|(i, n)| by_name(n, i)).collect();
    let strengths = [0.4, -0.2, 0.3, 0.5, -0.3, 0.2];
    let loras = mades
        .iter()
        .zip(strengths)
        .map(|(made, s)| (Arc::new(open(&made.path, &FLUX1, &|c| checkpoint.get(c)).unwrap()), s));
    let loras = LoraSet::of(loras.collect());
    let columns = by_name("DoRA of parts, columns", 9);
    let columns_set = {
        let adapter = open(&columns.path, &FLUX1, &|c| checkpoint.get(c)).unwrap();
        LoraSet::of(vec![(Arc::new(adapter), 1.0)])
    };
    let weighted: Vec<(&Made, f32)> = mades.iter().zip(strengths).collect();
    for backend in devices().iter_mut().map(Box::as_mut) {
        let device = backend.caps().name.clone();
        let want = velocity(
            backend,
            &golden,
            g,
            &|program| {
                let weights = merged(&checkpoint, &program, &weighted);
                (program, weights)
            },
            DType::F32,
        );
        let weights = checkpoint.get(TRANSFORMER).unwrap();
        let apply = |program| loras.apply(weights, program, Int8Use::Never).unwrap();
        let got = velocity(backend, &golden, g, &apply, DType::F32);
        let error = relative_error(&got.0, &want.0);
        assert!(error <= TOLERANCE, "{device}: {error:.2e}");
        for set in [&loras, &columns_set] {
            let (program, weights) = denoiser(&golden, &checkpoint, g, set);
            let least = least_bytes(backend, &program, &weights);
            let mut under = |budget| drawn(backend, &golden, g, &program, &weights, (budget, 2));
            let (resident, streamed) = (under(u64::MAX), under(least));
            assert_eq!(resident["velocity"], streamed["velocity"], "{device}");
        }
    }
}

/// Biases and gains.
#[test]
fn vectors_change_as_merged_weights_do() {
    let golden = Golden::read("b_dev");
    let written = plain(&golden);
    let (checkpoint, g) = (written.open(), &written.geometry);
    let dir = temp_dir();
    let mut numbers = Numbers(5);
    let mut differences: HashMap<String, Vec<f64>> = HashMap::new();
    let mut file: Tensors = vec![];
    let mut change = |key: &str, tensor: &str, part: Option<(usize, usize)>| {
        let (old, (_, n)) = weight_of(&checkpoint, tensor);
        let (first, count) = part.map_or((0, n), |(i, parts)| (n / parts * i, n / parts));
        let values = numbers.many(count, 0.3);
        file.push((key.into(), vec![count], values.clone()));
        let sum = differences.entry(tensor.into()).or_insert_with(|| vec![0.0; n]);
        for (i, v) in values.iter().enumerate() {
            let old = if key.ends_with(".set_weight") { old[first + i] } else { 0.0 };
            sum[first + i] += f64::from(*v) - old;
        }
    };
    let qkv = "double_blocks.0.img_attn.qkv.bias";
    change(
        "diffusion_model.double_blocks.0.img_mlp.0.diff_b",
        "double_blocks.0.img_mlp.0.bias",
        None,
    );
    change("transformer.transformer_blocks.0.attn.to_k.diff_b", qkv, Some((1, 3)));
    change("diffusion_model.single_blocks.0.linear1.diff_b", "single_blocks.0.linear1.bias", None);
    let gain = |block: &str, norm: &str| format!("{block}.norm.{norm}.scale");
    let first = gain("double_blocks.0.img_attn", "query_norm");
    change(&format!("diffusion_model.{first}.diff"), &first, None);
    let second = gain("double_blocks.1.txt_attn", "key_norm");
    change("transformer.transformer_blocks.1.attn.norm_added_k.w_norm", &second, None);
    let third = gain("single_blocks.0", "query_norm");
    change(&format!("diffusion_model.{third}.set_weight"), &third, None);
    // A pair whose matrices have biases: f (B (A x + a) + b).
    let layer = "double_blocks.1.img_mlp.2";
    let (_, (rows, cols)) = weight_of(&checkpoint, &format!("{layer}.weight"));
    let (rank, alpha) = (3, 2.0);
    let lengths = [rank * cols, rows * rank, rank, rows];
    let [a, b, a_bias, b_bias] = lengths.map(|n| numbers.many(n, 0.2));
    let factor = f64::from(alpha) / rank as f64;
    let change: Vec<f64> = product(&b, &a, rank).iter().map(|d| d * factor).collect();
    let of_bias = product(&b, &a_bias, rank).into_iter().zip(&b_bias);
    let of_bias = of_bias.map(|(d, b)| (d + f64::from(*b)) * factor).collect();
    differences.insert(format!("{layer}.weight"), change);
    differences.insert(format!("{layer}.bias"), of_bias);
    for (suffix, shape, values) in [
        ("lora_A.weight", vec![rank, cols], a),
        ("lora_B.weight", vec![rows, rank], b),
        ("lora_A.bias", vec![rank], a_bias),
        ("lora_B.bias", vec![rows], b_bias),
        ("alpha", vec![], vec![alpha]),
    ] {
        file.push((format!("diffusion_model.{layer}.{suffix}"), shape, values));
    }
    let made = Made { path: write(dir.path(), "v.safetensors", &file), differences };
    let adapter = Arc::new(open(&made.path, &FLUX1, &|c| checkpoint.get(c)).unwrap());
    assert_eq!(adapter.summary.unmatched, 0, "{}", adapter.summary);
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    for backend in devices().iter_mut().map(Box::as_mut) {
        let mut at = |apply: &dyn Fn(Program) -> (Program, Vec<HostWeight>)| {
            velocity(backend, &golden, g, apply, DType::F32).0
        };
        for strength in [1.0, 0.5, -0.3, 0.0] {
            let want = at(&|program| {
                let weights = merged(&checkpoint, &program, &[(&made, strength)]);
                (program, weights)
            });
            let loras = LoraSet::of(vec![(adapter.clone(), strength)]);
            let got = at(&|program| loras.apply(weights, program, Int8Use::Never).unwrap());
            let error = relative_error(&got, &want);
            assert!(error <= TOLERANCE, "{strength}: {error:.2e}");
            assert!(strength != 0.0 || got == want);
        }
    }
}
