//! Every kind of adapter against merged weights that are computed here in f64, by the formulas of
//! LyCORIS, PEFT and ComfyUI: strengths 1, 0.5 and -0.3 interpolate between the base weight and the
//! changed one, and 0 is the model without the adapter, to the bit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::library::Checkpoint;
use flux_fast::op::Program;
use flux_fast::pipeline::loras::{LoraSet, open};
use flux_fast::spec::flux1::{FLUX1, TRANSFORMER};
use flux_fast::tensor::{HostPart, HostWeight, Scale};

use super::loras::{denoiser, drawn, velocity};
use super::{devices, plain};
use crate::common::{Golden, least_bytes, relative_error, temp_dir};

const TOLERANCE: f64 = 1e-4;

/// What is stored for some rows of a weight.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// LoRA of a rank.
    Pair(usize),
    /// LoHa of a rank.
    Hada(usize),
    /// LoKr with a whole outer factor of this size, and the rank of the inner factor, if any.
    Kron((usize, usize), Option<usize>),
    /// LoKr with both factors as products of this rank.
    KronBoth((usize, usize), usize),
    Diff,
    Set,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Length {
    None,
    Rows,
    /// One axis, as PEFT stores it.
    RowsFlat,
    Columns,
}

/// A change of rows `first .. first + rows` of a weight, by its name in the file.
struct Stored {
    name: String,
    weight: String,
    /// The part of the rows: (part, parts), or all.
    part: Option<(usize, usize)>,
    kind: Kind,
    length: Length,
    alpha: Option<f32>,
}

fn stored(name: &str, weight: &str, kind: Kind) -> Stored {
    let (name, weight) = (name.to_string(), format!("{weight}.weight"));
    Stored { name, weight, part: None, kind, length: Length::None, alpha: None }
}

impl Stored {
    fn length(self, length: Length) -> Self {
        Stored { length, ..self }
    }

    fn part(self, part: usize, parts: usize) -> Self {
        Stored { part: Some((part, parts)), ..self }
    }
}

/// Random numbers from -1 to 1, which every type of f32 or wider represents.
struct Numbers(u64);

impl Numbers {
    fn many(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            ((self.0 >> 33) % 2001) as f32 / 1000.0 - 1.0
        };
        (0..n).map(|_| next() * scale).collect()
    }
}

/// `b . a` in f64.
fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f64> {
    let cols = a.len() / rank;
    let mut out = vec![];
    for row in b.chunks_exact(rank) {
        let sum = |c: usize| {
            (0..rank).map(|r| f64::from(row[r]) * f64::from(a[r * cols + c])).sum::<f64>()
        };
        out.extend((0..cols).map(sum));
    }
    out
}

fn kron(outer: &[f64], shape: (usize, usize), inner: &[f64], inner_cols: usize) -> Vec<f64> {
    let inner_rows = inner.len() / inner_cols;
    let (rows, cols) = (shape.0 * inner_rows, shape.1 * inner_cols);
    let at = |r: usize, c: usize| {
        outer[r / inner_rows * shape.1 + c / inner_cols]
            * inner[r % inner_rows * inner_cols + c % inner_cols]
    };
    (0..rows).flat_map(|r| (0..cols).map(move |c| at(r, c))).collect()
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// The tensors of a change, and the changed rows at strength 1 in f64.
fn make(
    s: &Stored,
    w: &[f64],
    (rows, cols): (usize, usize),
    n: &mut Numbers,
) -> (Tensors, Vec<f64>) {
    let mut tensors: Tensors = vec![];
    let mut put = |suffix: &str, shape: &[usize], values: &[f32]| {
        tensors.push((format!("{}{suffix}", s.name), shape.to_vec(), values.to_vec()));
    };
    let factor = |rank: usize| s.alpha.map_or(1.0, |a| f64::from(a) / rank as f64);
    let mut delta: Vec<f64> = match s.kind {
        Kind::Pair(r) => {
            let (a, b) = (n.many(r * cols, 0.3), n.many(rows * r, 0.1));
            put(".lora_A.weight", &[r, cols], &a);
            put(".lora_B.weight", &[rows, r], &b);
            product(&b, &a, r).iter().map(|d| d * factor(r)).collect()
        }
        Kind::Hada(r) => {
            let parts = [rows * r, r * cols, rows * r, r * cols].map(|len| n.many(len, 0.4));
            let names = ["1_a", "1_b", "2_a", "2_b"];
            for (i, (name, values)) in names.iter().zip(&parts).enumerate() {
                let shape = if i % 2 == 0 { [rows, r] } else { [r, cols] };
                put(&format!(".hada_w{name}"), &shape, values);
            }
            let (x, y) = (product(&parts[0], &parts[1], r), product(&parts[2], &parts[3], r));
            x.iter().zip(y).map(|(x, y)| x * y * factor(r)).collect()
        }
        Kind::Kron(o, rank) => {
            let inner = (rows / o.0, cols / o.1);
            let w1 = n.many(o.0 * o.1, 0.3);
            put(".lokr_w1", &[o.0, o.1], &w1);
            let (w2, factor) = match rank {
                None => {
                    let w2 = n.many(inner.0 * inner.1, 0.1);
                    put(".lokr_w2", &[inner.0, inner.1], &w2);
                    // Both factors whole: alpha is not used.
                    (wide(&w2), 1.0)
                }
                Some(r) => {
                    let (b, a) = (n.many(inner.0 * r, 0.3), n.many(r * inner.1, 0.3));
                    put(".lokr_w2_a", &[inner.0, r], &b);
                    put(".lokr_w2_b", &[r, inner.1], &a);
                    (product(&b, &a, r), factor(r))
                }
            };
            kron(&wide(&w1), o, &w2, inner.1).iter().map(|d| d * factor).collect()
        }
        Kind::KronBoth(o, r) => {
            let inner = (rows / o.0, cols / o.1);
            let (b1, a1) = (n.many(o.0 * r, 0.5), n.many(r * o.1, 0.5));
            let (b2, a2) = (n.many(inner.0 * r, 0.3), n.many(r * inner.1, 0.3));
            put(".lokr_w1_a", &[o.0, r], &b1);
            put(".lokr_w1_b", &[r, o.1], &a1);
            put(".lokr_w2_a", &[inner.0, r], &b2);
            put(".lokr_w2_b", &[r, inner.1], &a2);
            let (w1, w2) = (product(&b1, &a1, r), product(&b2, &a2, r));
            kron(&w1, o, &w2, inner.1).iter().map(|d| d * factor(r)).collect()
        }
        Kind::Diff => {
            let diff = n.many(rows * cols, 0.05);
            put(".diff", &[rows, cols], &diff);
            wide(&diff)
        }
        Kind::Set => {
            let new = n.many(rows * cols, 0.1);
            put(".set_weight", &[rows, cols], &new);
            new.iter().zip(w).map(|(v, w)| f64::from(*v) - w).collect()
        }
    };
    if let Some(alpha) = s.alpha {
        put(".alpha", &[], &[alpha]);
    }
    let changed: Vec<f64> = w.iter().zip(&delta).map(|(w, d)| w + d).collect();
    if s.length != Length::None {
        let of_columns = s.length == Length::Columns;
        let length = |m: &[f64], i: usize| {
            let square = |v: f64| v * v;
            match of_columns {
                true => (0..rows).map(|r| square(m[r * cols + i])).sum::<f64>().sqrt(),
                false => m[i * cols..(i + 1) * cols].iter().map(|v| square(*v)).sum::<f64>().sqrt(),
            }
        };
        let count = if of_columns { cols } else { rows };
        let noise = n.many(count, 0.3);
        let wanted: Vec<f32> =
            (0..count).map(|i| (length(w, i) * f64::from(1.0 + noise[i])) as f32).collect();
        match s.length {
            Length::Columns => put(".dora_scale", &[1, cols], &wanted),
            Length::Rows => put(".dora_scale", &[rows, 1], &wanted),
            _ => put(".lora_magnitude_vector", &[rows], &wanted),
        }
        let scales: Vec<f64> =
            (0..count).map(|i| f64::from(wanted[i]) / length(&changed, i)).collect();
        for (i, d) in delta.iter_mut().enumerate() {
            let scale = scales[if of_columns { i % cols } else { i / cols }];
            *d = changed[i] * scale - w[i];
        }
    }
    (tensors, w.iter().zip(&delta).map(|(w, d)| w + d).collect())
}

fn write(dir: &Path, name: &str, tensors: &Tensors) -> PathBuf {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for (name, shape, values) in tensors {
        let first = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let info = serde_json::json!({
            "dtype": "F32", "shape": shape, "data_offsets": [first, data.len()]
        });
        header.insert(name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let path = dir.join(name);
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
    path
}

/// An adapter in a file, and the difference of each weight that it makes at strength 1.
struct Made {
    path: PathBuf,
    differences: HashMap<String, Vec<f64>>,
}

fn weight_of(checkpoint: &Checkpoint, name: &str) -> (Vec<f64>, (usize, usize)) {
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let (rows, cols) = weights.shape(name).unwrap_or_else(|| panic!("{name}"));
    let values = weights.get(name, 0, rows, cols).unwrap().to_f32();
    (wide(&values), (rows, cols))
}

fn adapter(dir: &Path, name: &str, checkpoint: &Checkpoint, all: &[Stored], seed: u64) -> Made {
    let mut numbers = Numbers(seed);
    let mut differences: HashMap<String, Vec<f64>> = HashMap::new();
    let mut file: Tensors = vec![];
    for s in all {
        let (w, (rows, cols)) = weight_of(checkpoint, &s.weight);
        // The last of four parts of linear1 has the rest.
        let (first, count) = match s.part {
            None => (0, rows),
            Some((3, 4)) => (3 * cols, rows - 3 * cols),
            Some((part, 4)) => (part * cols, cols),
            Some((part, parts)) => (rows / parts * part, rows / parts),
        };
        // diffusers stores the halves of the last modulation in the other order.
        let swapped = s.name.ends_with("norm_out.linear");
        let mut own = w[first * cols..(first + count) * cols].to_vec();
        if swapped {
            own.rotate_left(count / 2 * cols);
        }
        let (tensors, mut changed) = make(s, &own, (count, cols), &mut numbers);
        if swapped {
            changed.rotate_left(count / 2 * cols);
        }
        let sum = differences.entry(s.weight.clone()).or_insert_with(|| vec![0.0; w.len()]);
        for (i, v) in changed.iter().enumerate() {
            sum[first * cols + i] += v - w[first * cols + i];
        }
        file.extend(tensors);
    }
    Made { path: write(dir, name, &file), differences }
}

/// The weights of `program` with the differences of some adapters, each times its strength.
fn merged(
    checkpoint: &Checkpoint,
    program: &Program,
    adapters: &[(&Made, f32)],
) -> Vec<HostWeight> {
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let of = |w: &flux_fast::op::WeightSpec| {
        let base = weights.get(&w.name, w.first, w.rows, w.cols).unwrap();
        let mut values = wide(&base.to_f32());
        let mut changed = false;
        for (made, strength) in adapters {
            let Some(difference) = made.differences.get(&w.name) else { continue };
            changed = true;
            let from = if w.rows == 1 { w.first } else { w.first * w.cols };
            for (v, d) in values.iter_mut().zip(&difference[from..]) {
                *v += f64::from(*strength) * d;
            }
        }
        if !changed {
            return base;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        let (source, scale) = (Arc::new(bytes), Scale::One);
        let (rows, cols) = (w.rows, w.cols);
        let part = HostPart { source, offset: 0, rows, cols, dtype: DType::F32, scale };
        HostWeight { rows, cols, parts: vec![part] }
    };
    program.weights.iter().map(of).collect()
}

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
    vec![
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
                let got = at(&|program| loras.apply(weights, program).unwrap());
                let (error, change) = (relative_error(&got, &want), relative_error(&base, &want));
                println!("{device} {name} at {strength}: {error:.2e} of a change of {change:.2e}");
                assert!(error <= TOLERANCE, "{device} {name} at {strength}: {error:.2e}");
                assert!(change > 1e-2, "{name} at {strength} changes {change:.2e}");
            }
            let loras = set(made, 0.0);
            let weights = checkpoint.get(TRANSFORMER).unwrap();
            let got = at(&|program| loras.apply(weights, program).unwrap());
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
        let apply = |program| loras.apply(weights, program).unwrap();
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
            let got = at(&|program| loras.apply(weights, program).unwrap());
            let error = relative_error(&got, &want);
            assert!(error <= TOLERANCE, "{strength}: {error:.2e}");
            assert!(strength != 0.0 || got == want);
        }
    }
}
