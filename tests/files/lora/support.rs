//! LoRA files made in memory, the matrices that they belong to, and numbers for them.

pub use crate::weights::support::list;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::{Kind, Result};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, FLUX1, T5, TRANSFORMER};
use flux_fast::weights::lora::{Adapter, Combined, combine, read};

/// A file to be written: names, element types, shapes and bytes of its tensors, and metadata.
#[derive(Clone, Default)]
pub struct Lora {
    pub tensors: Vec<(String, &'static str, Vec<usize>, Vec<u8>)>,
    pub metadata: BTreeMap<String, String>,
}

impl Lora {
    pub fn with(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.push(name, DType::F32, shape, values);
        self
    }

    pub fn push(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let mut bytes = vec![];
        values.iter().for_each(|v| dtype.encode(*v, &mut bytes));
        self.tensors.push((name.into(), dtype.name(), shape.to_vec(), bytes));
    }

    pub fn raw(mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: &[u8]) -> Self {
        self.tensors.push((name.into(), dtype, shape.to_vec(), bytes.to_vec()));
        self
    }

    pub fn meta(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// A pair of the given rank that is all ones.
    pub fn pair(self, down: &str, up: &str, rank: usize, (rows, cols): (usize, usize)) -> Self {
        self.with(down, &[rank, cols], &vec![1.0; rank * cols]).with(
            up,
            &[rows, rank],
            &vec![1.0; rows * rank],
        )
    }

    /// The bytes of the tensor `name`, to be changed.
    pub fn bytes_of(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.iter_mut().find(|t| t.0 == name).unwrap().3
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::to_value(&self.metadata).unwrap());
        let mut end = 0;
        for (name, dtype, shape, bytes) in &self.tensors {
            let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes.len()] });
            header.insert(name.clone(), info);
            end += bytes.len();
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        self.tensors.iter().for_each(|t| out.extend(&t.3));
        out
    }

    pub fn read(&self, base: &Shapes) -> Result<Adapter> {
        read(Arc::new(self.bytes()), Path::new("my.safetensors"), &FLUX1, &|c, n| {
            base.get(&(c, n.to_string())).copied()
        })
    }

    pub fn error(&self, base: &Shapes) -> String {
        let e = self.read(base).expect_err("a file with a fault was read");
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().starts_with("my.safetensors: "), "{e}");
        assert!(e.to_string().len() < 700, "{} bytes: {e}", e.to_string().len());
        format!("{e} | {}", e.hint().unwrap_or_default())
    }
}

pub type Shapes = BTreeMap<(Component, String), (usize, usize)>;

/// The matrices of FLUX.1 dev and its text encoders.
pub fn dev() -> Shapes {
    let files = [(TRANSFORMER, "bfl_dev.txt"), (T5, "t5_single.txt"), (CLIP, "clip.txt")];
    let of = |(c, file): (Component, &str)| {
        list(file)
            .into_iter()
            .filter(|(_, s)| s.len() == 2)
            .map(move |(n, s)| ((c, n), (s[0], s[1])))
    };
    files.into_iter().flat_map(of).collect()
}

/// The same with two blocks of each kind and narrow layers: width 12, MLP 48.
pub fn small() -> Shapes {
    let narrow = |c: Component, n: usize| match (c.name, n) {
        ("flux", 3072..) => n / 256,
        ("flux", 64..) => n / 16,
        _ => n / 64,
    };
    let block = |name: &str| name.split('.').find_map(|w| w.parse::<usize>().ok()).unwrap_or(0);
    let keep = |name: &str| {
        !name.contains("blocks") && !name.contains("block.") && !name.contains("layers.")
            || block(name) < 2
    };
    let cut = |((c, n), (rows, cols)): ((Component, String), (usize, usize))| {
        ((c, n), (narrow(c, rows), narrow(c, cols)))
    };
    dev().into_iter().filter(|((_, n), _)| keep(n)).map(cut).collect()
}

/// Random multiples of 1/64 from -1 to 1, which every type represents exactly.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 33
    }

    pub fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() % 128) as f32 / 64.0 - 1.0).collect()
    }
}

pub fn product(b: &[f32], a: &[f32], rank: usize, cols: usize, factor: f64) -> Vec<f64> {
    let mut out = vec![];
    for row in b.chunks_exact(rank) {
        for c in 0..cols {
            out.push(
                factor
                    * (0..rank)
                        .map(|r| f64::from(row[r]) * f64::from(a[r * cols + c]))
                        .sum::<f64>(),
            );
        }
    }
    out
}

pub fn values(part: &flux_fast::tensor::HostPart) -> Vec<f32> {
    part.bytes().chunks_exact(part.dtype.size()).map(|b| part.dtype.decode(b)).collect()
}

/// The change of the weight by a combined pair, in f64.
pub fn delta(c: &Combined) -> Vec<f64> {
    product(&values(&c.b), &values(&c.a), c.rank(), c.a.cols, 1.0)
}

pub fn whole(
    loras: &[(&Adapter, f32)],
    component: Component,
    weight: &str,
    base: &Shapes,
    dtype: DType,
) -> Option<Combined> {
    let rows = base[&(component, weight.to_string())].0;
    combine(loras, component, weight, 0..rows, dtype).unwrap()
}
