//! Adapters of every kind with random numbers, and the weights that they make, in f64.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::library::Checkpoint;
use flux_fast::op::Program;
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::tensor::{HostWeight, Scale};

/// What is stored for some rows of a weight.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
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
pub enum Length {
    None,
    Rows,
    /// One axis, as PEFT stores it.
    RowsFlat,
    Columns,
}

/// A change of rows `first .. first + rows` of a weight, by its name in the file.
pub struct Stored {
    pub name: String,
    pub weight: String,
    /// The part of the rows: (part, parts), or all.
    pub part: Option<(usize, usize)>,
    pub kind: Kind,
    pub length: Length,
    pub alpha: Option<f32>,
}

pub fn stored(name: &str, weight: &str, kind: Kind) -> Stored {
    let (name, weight) = (name.to_string(), format!("{weight}.weight"));
    Stored { name, weight, part: None, kind, length: Length::None, alpha: None }
}

impl Stored {
    pub fn length(self, length: Length) -> Self {
        Stored { length, ..self }
    }

    pub fn part(self, part: usize, parts: usize) -> Self {
        Stored { part: Some((part, parts)), ..self }
    }
}

/// Random numbers from -1 to 1, which every type of f32 or wider represents.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn many(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            ((self.0 >> 33) % 2001) as f32 / 1000.0 - 1.0
        };
        (0..n).map(|_| next() * scale).collect()
    }
}

/// `b . a` in f64.
pub fn product(b: &[f32], a: &[f32], rank: usize) -> Vec<f64> {
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

pub type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

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

pub fn write(dir: &Path, name: &str, tensors: &Tensors) -> PathBuf {
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
pub struct Made {
    pub path: PathBuf,
    pub differences: HashMap<String, Vec<f64>>,
}

pub fn weight_of(checkpoint: &Checkpoint, name: &str) -> (Vec<f64>, (usize, usize)) {
    let weights = checkpoint.get(TRANSFORMER).unwrap();
    let (rows, cols) = weights.shape(name).unwrap_or_else(|| panic!("{name}"));
    let values = weights.get(name, 0, rows, cols).unwrap().to_f32();
    (wide(&values), (rows, cols))
}

pub fn adapter(dir: &Path, name: &str, checkpoint: &Checkpoint, all: &[Stored], seed: u64) -> Made {
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
pub fn merged(
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
        HostWeight::whole(source, (rows, cols), DType::F32, scale)
    };
    program.weights.iter().map(of).collect()
}
