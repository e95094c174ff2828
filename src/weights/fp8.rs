//! Scales of 8-bit weights: the tensors beside `X.weight` that say what its elements are multiplied with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::file::WeightFile;
use super::safetensors::Entry;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Scale;

/// How a component stores 8-bit weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `scaled_fp8` and `X.scale_weight`.
    Old,
    /// `X.weight_scale` and `X.comfy_quant` or header metadata.
    New,
}

impl Scheme {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Old => "scaled fp8 (old)",
            Scheme::New => "scaled fp8 (new)",
        }
    }
}

/// What the companions of one layer say.
#[derive(Default)]
struct Layer {
    scale: Option<(Arc<WeightFile>, Entry)>,
    format: Option<String>,
}

/// All scales of a component, by stored layer name (`X` of `X.weight`).
#[derive(Default)]
pub struct Scales {
    layers: HashMap<String, Layer>,
    pub scheme: Option<Scheme>,
}

/// Endings of companion tensors; input scales belong to 8-bit activations, which are not used.
const COMPANIONS: [&str; 5] = [".scale_weight", ".weight_scale", ".comfy_quant", ".scale_input", ".input_scale"];

impl Scales {
    /// Takes `entry` in if it is a companion of a weight; `false` if it is a tensor of its own.
    pub fn take(&mut self, file: &Arc<WeightFile>, entry: &Entry) -> Result<bool> {
        let name = entry.name.as_str();
        if name == "scaled_fp8" || name.ends_with(".scaled_fp8") {
            self.scheme = Some(Scheme::Old);
            return Ok(true);
        }
        let Some((layer, what)) = COMPANIONS.iter().find_map(|c| Some((name.strip_suffix(c)?, *c))) else {
            return Ok(false);
        };
        match what {
            ".scale_weight" | ".weight_scale" => {
                self.scheme = Some(if what == ".scale_weight" { Scheme::Old } else { Scheme::New });
                let slot = &mut self.layers.entry(layer.into()).or_default().scale;
                if slot.replace((file.clone(), entry.clone())).is_some() {
                    return Err(Error::model("weight has two scales").at(layer));
                }
            }
            ".comfy_quant" => {
                self.scheme = Some(Scheme::New);
                let json = &file.source.bytes()[entry.range.clone()];
                let json = serde_json::from_slice::<Value>(json)
                    .map_err(|e| Error::model(format!("quantisation record is not JSON: {e}")).at(name))?;
                self.set_format(layer, &json)?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// Takes the header's `_quantization_metadata` in, if there is any.
    pub fn take_metadata(&mut self, metadata: &BTreeMap<String, String>, prefix: &str) -> Result<()> {
        let Some(text) = metadata.get("_quantization_metadata") else { return Ok(()) };
        let at = |e: Error| e.at("_quantization_metadata");
        let json: Value =
            serde_json::from_str(text).map_err(|e| at(Error::model(format!("metadata is not JSON: {e}"))))?;
        let layers = json.get("layers").and_then(Value::as_object);
        for (layer, record) in layers.ok_or_else(|| at(Error::model("metadata has no layers")))? {
            self.scheme = Some(Scheme::New);
            let stored = if layer.starts_with(prefix) { layer.clone() } else { format!("{prefix}{layer}") };
            self.set_format(&stored, record)?;
        }
        Ok(())
    }

    fn set_format(&mut self, layer: &str, record: &Value) -> Result<()> {
        let Some(format) = record.get("format").and_then(Value::as_str) else {
            return Err(Error::model("quantisation record names no format").at(layer).found(record));
        };
        if !matches!(format, "float8_e4m3fn" | "float8_e5m2") {
            return Err(unsupported(format).at(layer));
        }
        self.layers.entry(layer.into()).or_default().format = Some(format.into());
        Ok(())
    }

    /// The scale of the tensor `entry`, which is stored as `dtype`.
    pub fn of(&self, entry: &Entry, dtype: DType) -> Result<Scale> {
        let Some(layer) = entry.name.strip_suffix(".weight").and_then(|x| self.layers.get(x)) else {
            return Ok(Scale::One);
        };
        let error = |what: &str| Error::model(what).at(&entry.name);
        let fp8 = matches!(dtype, DType::F8E4M3 | DType::F8E5M2);
        if let Some(format) = &layer.format {
            let named = if format == "float8_e5m2" { DType::F8E5M2 } else { DType::F8E4M3 };
            if dtype != named {
                return Err(error("weight is not stored in the format of its quantisation record")
                    .found(dtype.name())
                    .expected(named.name()));
            }
        }
        let Some((file, scale)) = &layer.scale else {
            return Err(error("quantised weight has no weight_scale"));
        };
        let values = read_scales(file, scale)?;
        let scale = match (scale.shape.as_slice(), entry.shape.as_slice()) {
            ([] | [1] | [1, 1], _) => Scale::Tensor(values[0]),
            ([n] | [n, 1], [rows, _]) if n == rows => Scale::Rows(values.into()),
            (shape, _) => {
                let rows = entry.shape.first().copied().unwrap_or(1);
                return Err(Error::model("scale has the wrong shape")
                    .at(&scale.name)
                    .found(format!("{shape:?}"))
                    .expected(format!("[] or [{rows}]")));
            }
        };
        match scale {
            Scale::Tensor(1.0) if !fp8 => Ok(Scale::One),
            _ if !fp8 => Err(error("weight has a scale but is not 8-bit").found(dtype.name())),
            _ if entry.shape.len() != 2 => {
                Err(error("scaled weight is not a matrix").found(format!("{:?}", entry.shape)))
            }
            scale => Ok(scale),
        }
    }
}

fn read_scales(file: &WeightFile, scale: &Entry) -> Result<Vec<f32>> {
    let float = scale.stored.float().filter(|d| matches!(d, DType::F32 | DType::BF16 | DType::F16));
    let Some(dtype) = float else {
        let e = match scale.stored.name() {
            "F8_E8M0" | "U8" => unsupported("mxfp8"),
            "F8_E4M3" => unsupported("nvfp4"),
            other => Error::model("scale has an unusable type").found(other).expected("F32"),
        };
        return Err(e.at(&scale.name));
    };
    let bytes = &file.source.bytes()[scale.range.clone()];
    let values: Vec<f32> = bytes.chunks_exact(dtype.size()).map(|b| dtype.decode(b)).collect();
    match values.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        Some(bad) => Err(Error::model("scale is not a positive number").at(&scale.name).found(bad)),
        None if values.is_empty() => Err(Error::model("scale is empty").at(&scale.name)),
        None => Ok(values),
    }
}

/// The error for a way of storing weights that cannot be read.
pub fn unsupported(format: &str) -> Error {
    Error::model(format!("weights are stored as {format}, which is not supported"))
        .try_("use a bf16, fp16 or fp8 (plain or scaled) file of the same model")
}
