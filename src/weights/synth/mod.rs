//! Synthetic checkpoints: seeded weights of any size and in any dialect, for tests and measurements
//! without the real files.
//!
//! A value depends only on the seed and on the tensor's component, canonical name and shape. So the
//! same model can be written in every dialect and must then give the same images, and large models
//! need no stored weights.

mod shapes;
mod values;
mod write;

pub use shapes::shapes;
pub use write::{Watch, to_bytes, write, write_hollow, write_watched};

use serde_json::Value;

use crate::spec::Component;
use values::{Field, Rounding};

/// To which set of numbers values are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Not rounded: f32 values as defined.
    F32,
    /// Matrices are rounded to e4m3 times a power of two per tensor, everything else to values that
    /// both bf16 and f16 can store. F32, bf16, f16 and scaled fp8 store these values exactly.
    F8,
    /// Matrices are rounded to e4m3 itself, which is coarse for small values. Plain fp8 stores
    /// these values exactly, too.
    F8Plain,
}

/// How tensors are stored. Only matrices are stored in 8 bits; embeddings, vectors and convolutions
/// are bf16 then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// BF16.
    BF16,
    /// F16.
    F16,
    /// e4m3 without scales.
    F8,
    /// e5m2 without scales.
    F8E5M2,
    /// `scaled_fp8` and `X.scale_weight`.
    F8ScaledOld,
    /// `X.weight_scale` and `X.comfy_quant`.
    F8ScaledNew,
}

/// How tensors are named, and how they are distributed over files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// One file per component in a folder. If the path ends in `.safetensors`, it is the file of
    /// the only component.
    Bfl,
    /// A folder with `model_index.json`. Files above `shard_bytes` are split.
    Diffusers {
        /// The most bytes of a file; `None` is one file.
        shard_bytes: Option<u64>,
    },
    /// One file for everything.
    Comfy,
}

/// The description of a checkpoint to write.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthSpec {
    /// The seed of all values.
    pub seed: u64,
    /// Canonical names and shapes (`[n]`, `[rows, cols]`, `[out, in, kh, kw]`).
    pub tensors: Vec<(Component, String, Vec<usize>)>,
    /// How values are rounded.
    pub grid: Grid,
    /// The stored types.
    pub storage: Storage,
    /// Names and files.
    pub dialect: Dialect,
    /// Configurations, by the folders of the components and of their tokenizers, `scheduler` and
    /// `generation`. Each may be absent.
    pub configs: Value,
}

impl SynthSpec {
    /// The value of element `i` of a tensor after rounding to the grid. Every exact storage returns
    /// this value.
    pub fn value(&self, component: Component, name: &str, shape: &[usize], i: u64) -> f32 {
        let field = Field::new(self.seed, component, name, shape);
        Rounding::of(self.grid, component, name, shape, &field).round(field.at(i))
    }

    /// All values of a tensor, row-major.
    pub fn values(&self, component: Component, name: &str, shape: &[usize]) -> Vec<f32> {
        let field = Field::new(self.seed, component, name, shape);
        let rounding = Rounding::of(self.grid, component, name, shape, &field);
        (0..shape.iter().product::<usize>() as u64).map(|i| rounding.round(field.at(i))).collect()
    }
}

/// Element `i` (row-major) of the canonical tensor `name` for `seed`, not rounded.
pub fn value(seed: u64, component: Component, name: &str, shape: &[usize], i: u64) -> f32 {
    Field::new(seed, component, name, shape).at(i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};

    /// Bits from an independent implementation, in Python, of the definition of `Field`.
    #[test]
    fn values_are_those_of_the_definition() {
        type Case = (u64, Component, &'static str, &'static [usize], u64, u32);
        let cases: [Case; 8] = [
            (0, TRANSFORMER, "img_in.weight", &[3072, 64], 0, 0xbe24be4d),
            (7, TRANSFORMER, "img_in.weight", &[3072, 64], 196607, 0x3ddf875f),
            (7, TRANSFORMER, "double_blocks.0.img_attn.qkv.bias", &[9216], 5, 0x3d8b6bba),
            (
                u64::MAX,
                TRANSFORMER,
                "double_blocks.0.img_attn.norm.query_norm.scale",
                &[128],
                127,
                0x3f903842,
            ),
            (42, T5, "shared.weight", &[32128, 4096], 131_596_287, 0x3e2fabf0),
            (
                42,
                T5,
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                &[4096, 4096],
                1000,
                0xbbf4704e,
            ),
            (1, VAE, "decoder.conv_in.weight", &[512, 16, 3, 3], 73727, 0xbd41fbcf),
            (1, CLIP, "text_model.final_layer_norm.weight", &[768], 3, 0x3f89c509),
        ];
        for (seed, component, name, shape, i, bits) in cases {
            assert_eq!(
                value(seed, component, name, shape, i).to_bits(),
                bits,
                "{component}/{name}[{i}]"
            );
        }
    }

    #[test]
    fn values_on_the_grids_are_what_every_type_holds() {
        let spec = |grid| SynthSpec {
            seed: 5,
            tensors: vec![],
            grid,
            storage: Storage::F32,
            dialect: Dialect::Comfy,
            configs: Value::Null,
        };
        let survives = |dtype: crate::dtype::DType, v: f32| {
            let mut bytes = vec![];
            dtype.encode(v, &mut bytes);
            dtype.decode(&bytes) == v
        };
        let (name, shape) = ("encoder.block.0.layer.1.DenseReluDense.wo.weight", [4096, 10240]);
        let mut distinct = std::collections::HashSet::new();
        for i in 0..5000 {
            let v = spec(Grid::F8).value(T5, name, &shape, i);
            distinct.insert(v.to_bits());
            assert!(
                survives(crate::dtype::DType::BF16, v) && survives(crate::dtype::DType::F16, v),
                "{v}"
            );
            let plain = spec(Grid::F8Plain).value(T5, name, &shape, i);
            assert!(survives(crate::dtype::DType::F8E4M3, plain), "{plain}");
            let bias = spec(Grid::F8).value(TRANSFORMER, "img_in.bias", &[3072], i);
            assert!(
                survives(crate::dtype::DType::BF16, bias)
                    && survives(crate::dtype::DType::F16, bias),
                "{bias}"
            );
        }
        // The scaled grid is fine enough to distinguish values; a matrix has at most 255 codes.
        assert!((50..256).contains(&distinct.len()), "{}", distinct.len());
    }
}
