//! How one stored tensor is read: its element type, its shape, and its companions, the tensors next
//! to `X.weight` that contain its scales.
//!
//! | dialect | companions of `X.weight` | value |
//! |---|---|---|
//! | scaled fp8, old | `X.scale_weight`, and `scaled_fp8` once a component | `w * scale` |
//! | scaled fp8, new | `X.weight_scale`, `X.comfy_quant` (or in the header) | `w * scale` |
//! | int8_tensorwise | the same, one scale or one a row | `w * scale` |
//! | ConvRot | int8_tensorwise with `convrot` in its record | `w * scale`, rotated back |
//! | mxfp8 | the same, `X.weight_scale` E8M0 for 32 columns, in tiles | `w * scale` |
//! | w4a8 | `X.weight_s_rel` (16 columns), `X.weight_s_channel`, a codebook | ConvRot, 4 bits |
//! | nvfp4 | the same, E4M3 for 16 columns, and `X.weight_scale_2` | `code * scale * scale_2` |
//! | FP8 in blocks | `X.weight_scale_inv`, one for 128 rows and 128 columns | `w * scale` |
//! | bitsandbytes | `X.weight.absmax`, `X.weight.quant_state....` (JSON) | `code * absmax` |
//! | bitsandbytes int8 | `X.SCB`, one a row; `X.weight_format` (0) | `w * SCB / 127` |
//! | aredden | `X.float8_data` for `X.weight`, `X.scale_reciprocal` | `w * scale_reciprocal` |
//!
//! `_quantization_metadata` is an entry of the header. The scales of bitsandbytes may themselves be
//! quantised: `nested_absmax`, `nested_quant_map`. Scales of activations (`input_scale`) are not
//! used.

mod bitsandbytes;
mod layer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use crate::dtype::DType;
use crate::dtype::int8::Rotation;
use crate::error::{Error, Result};
use crate::tensor::Scale;
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::{
    MAX_JSON_BYTES, MAX_RECORD_BYTES, TensorEntry, parse_json,
};
use layer::{original_shape, packed, whole_blocks};

/// How a component stores 8-bit weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `scaled_fp8` and `X.scale_weight`.
    Old,
    /// `X.weight_scale` and `X.comfy_quant` or header metadata.
    New,
    /// `X.weight_scale_inv`.
    Tiles,
    /// `X.float8_data`.
    Aredden,
}

impl Scheme {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Old => "scaled fp8 (old)",
            Scheme::New => "scaled fp8 (new)",
            Scheme::Tiles => "fp8 in blocks",
            Scheme::Aredden => "scaled fp8 (aredden)",
        }
    }

    /// What stands for `.weight` in the name of a matrix's scale, if each matrix has one.
    pub fn scale_ending(self) -> Option<&'static str> {
        match self {
            Scheme::Old => Some(".scale_weight"),
            Scheme::New => Some(".weight_scale"),
            Scheme::Tiles => Some(".weight_scale_inv"),
            // The data have a name of their own and are never read without a scale.
            Scheme::Aredden => None,
        }
    }
}

type Companion = (Arc<WeightFile>, TensorEntry);

/// The companions of one layer, by the ending of their names.
#[derive(Default)]
struct Layer {
    tensors: HashMap<&'static str, Companion>,
    /// ComfyUI's quantisation record.
    record: Option<Value>,
    /// The rotation that the record names.
    rotation: Option<Rotation>,
}

/// All companions of a component's weights, by stored layer name (`X` of `X.weight`).
#[derive(Default)]
pub struct Companions {
    layers: HashMap<String, Layer>,
    /// Layers that have `X.float8_data`.
    aredden: HashSet<String>,
    /// How the values are scaled, if they are.
    pub scheme: Option<Scheme>,
}

/// How one tensor is read.
#[derive(Debug)]
pub struct Reading {
    /// The stored type.
    pub dtype: DType,
    /// The shape of the tensor, not of the bytes that it is packed into.
    pub shape: Vec<usize>,
    /// The factors of the stored values.
    pub scale: Scale,
    /// The rotation of the stored rows.
    pub rotation: Option<Rotation>,
}

/// Endings of companion tensors.
const COMPANIONS: [&str; 20] = [
    ".scale_weight",
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_s_rel",
    ".weight_s_channel",
    ".weight_codebook",
    ".weight_correction",
    ".comfy_quant",
    ".scale_input",
    ".input_scale",
    ".input_scale_reciprocal",
    ".pre_quant_scale",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
    ".weight.nested_quant_map",
    ".weight.quant_state.bitsandbytes__nf4",
    ".SCB",
    ".weight_format",
];
/// The endings of a scale of the whole weight, of its rows, or of its tiles.
const SCALES: [&str; 3] = [".scale_weight", ".weight_scale", ".weight_scale_inv"];
const FP4_STATE: &str = ".weight.quant_state.bitsandbytes__fp4";
const NF4_STATE: &str = ".weight.quant_state.bitsandbytes__nf4";
/// Endings in aredden's layers; elsewhere `X.scale` is the gain of a norm.
const AREDDEN: [&str; 2] = [".scale", ".scale_reciprocal"];
const FLOAT8_DATA: &str = ".float8_data";
/// ComfyUI's name of 4-bit weights for products in 8-bit integers.
const W4A8: &str = "asym_w4a8_int8";

impl Companions {
    /// No companions yet, for a component that has these tensors.
    pub fn among<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let aredden: HashSet<String> =
            names.filter_map(|n| n.strip_suffix(FLOAT8_DATA)).map(String::from).collect();
        let scheme = (!aredden.is_empty()).then_some(Scheme::Aredden);
        Companions { aredden, scheme, layers: HashMap::new() }
    }

    /// Whether a layer is in bitsandbytes' int8.
    pub fn has_bitsandbytes_int8(&self) -> bool {
        self.layers.values().any(|layer| layer.tensors.contains_key(".SCB"))
    }

    /// Stores `entry` if it is a companion of a weight; returns `false` if it is not one.
    pub fn take(&mut self, file: &Arc<WeightFile>, entry: &TensorEntry) -> Result<bool> {
        let name = entry.name.as_str();
        if name == "scaled_fp8" || name.ends_with(".scaled_fp8") {
            self.scheme = Some(Scheme::Old);
            return Ok(true);
        }
        let endings = COMPANIONS.iter().chain([&FP4_STATE]);
        let known = endings.copied().find_map(|e| Some((name.strip_suffix(e)?, e)));
        let of_aredden = || {
            let found = AREDDEN.into_iter().find_map(|e| Some((name.strip_suffix(e)?, e)));
            found.filter(|(layer, _)| self.aredden.contains(*layer))
        };
        let Some((layer, ending)) = known.or_else(of_aredden) else {
            // aredden's `X.weight` is a placeholder: `X.float8_data` is the weight.
            return Ok(name
                .strip_suffix(".weight")
                .is_some_and(|layer| self.aredden.contains(layer)));
        };
        match ending {
            ".scale_weight" => self.scheme = Some(Scheme::Old),
            ".weight_scale" => self.scheme = Some(Scheme::New),
            ".weight_scale_inv" => self.scheme = Some(Scheme::Tiles),
            ".comfy_quant" => {
                self.scheme = Some(Scheme::New);
                let text = &file.source.bytes()[entry.range.clone()];
                let json = parse_json("quantisation record", text, MAX_RECORD_BYTES)
                    .map_err(|e| e.at(name))?;
                return self.set_record(layer, json).map(|()| true);
            }
            _ => {}
        }
        let tensors = &mut self.layers.entry(layer.into()).or_default().tensors;
        let again = tensors.insert(ending, (file.clone(), entry.clone())).is_some();
        if again || SCALES.iter().filter(|scale| tensors.contains_key(*scale)).count() > 1 {
            return Err(Error::model("weight has two scales").at(layer));
        }
        Ok(true)
    }

    /// Stores the records of the header's `_quantization_metadata`, if there is one.
    pub fn take_metadata(
        &mut self,
        metadata: &BTreeMap<String, String>,
        prefix: &str,
    ) -> Result<()> {
        let Some(text) = metadata.get("_quantization_metadata") else { return Ok(()) };
        let at = |e: Error| e.at("_quantization_metadata");
        let json = parse_json("metadata", text.as_bytes(), MAX_JSON_BYTES).map_err(at)?;
        let layers = json.get("layers").and_then(Value::as_object);
        for (layer, record) in layers.ok_or_else(|| at(Error::model("metadata has no layers")))? {
            self.scheme = Some(Scheme::New);
            let stored =
                if layer.starts_with(prefix) { layer.clone() } else { format!("{prefix}{layer}") };
            self.set_record(&stored, record.clone())?;
        }
        Ok(())
    }

    fn set_record(&mut self, layer: &str, record: Value) -> Result<()> {
        let Some(format) = record.get("format").and_then(Value::as_str) else {
            return Err(Error::model("quantisation record names no format")
                .at(layer)
                .found(record));
        };
        if !matches!(
            format,
            "float8_e4m3fn" | "float8_e5m2" | "mxfp8" | "nvfp4" | "int8_tensorwise" | W4A8
        ) {
            return Err(unsupported(format).at(layer));
        }
        let rotation = rotation_of(&record, format).map_err(|e| e.at(layer))?;
        // The rest of a record has no effect, and may be large.
        let record = match format {
            W4A8 => {
                serde_json::json!({ "format": format, "group_size": field(&record, "group_size") })
            }
            _ => serde_json::json!({ "format": format }),
        };
        let layer = self.layers.entry(layer.into()).or_default();
        (layer.record, layer.rotation) = (Some(record), rotation);
        Ok(())
    }

    /// Checks that every scaled layer has a record if one of them has: without it, another
    /// program would read the layer in another way.
    pub fn check_records(&self) -> Result<()> {
        // Records in a header may be of layers of other components, which have no tensors here.
        let has = |layer: &Layer| layer.record.is_some() && !layer.tensors.is_empty();
        if !self.layers.values().any(has) {
            return Ok(());
        }
        let lacks = |(_, layer): &(&String, &Layer)| {
            layer.record.is_none() && layer.tensors.contains_key(".weight_scale")
        };
        match self.layers.iter().filter(lacks).map(|(name, _)| name).min() {
            None => Ok(()),
            Some(name) => Err(Error::model(
                "the quantisation record of this layer is missing; others have one",
            )
            .at(format!("{name}.comfy_quant"))
            .try_("the file or a shard is incomplete: download it again")),
        }
    }

    /// How the tensor `entry` of `file` is read.
    pub fn read(&self, file: &WeightFile, entry: &TensorEntry) -> Result<Reading> {
        let shape = original_shape(file, entry)?;
        if let Some(layer) = entry.name.strip_suffix(FLOAT8_DATA) {
            return self.layers.get(layer).unwrap_or(&Layer::default()).aredden(entry, shape);
        }
        match entry.name.strip_suffix(".weight").and_then(|x| self.layers.get(x)) {
            Some(layer) => layer.read(entry, shape),
            None => {
                let Some(dtype) = entry.stored.float() else { return Err(packed(entry)) };
                whole_blocks(dtype, entry, &shape)?;
                Ok(Reading { dtype, shape, scale: Scale::One, rotation: None })
            }
        }
    }
}

/// The value of `key` in ComfyUI's record of a layer.
fn field<'a>(record: &'a Value, key: &str) -> Option<&'a Value> {
    [Some(record), record.get("params")].into_iter().flatten().find_map(|place| place.get(key))
}

/// The rotation that ComfyUI's record of a layer names, if it names one. Rows of `asym_w4a8_int8`
/// are always rotated.
fn rotation_of(record: &Value, format: &str) -> Result<Option<Rotation>> {
    if format != W4A8 && field(record, "convrot").and_then(Value::as_bool) != Some(true) {
        return Ok(None);
    }
    if format != "int8_tensorwise" && format != W4A8 {
        return Err(unsupported(&format!("{format} with rotated inputs (convrot)")));
    }
    let group = field(record, "convrot_groupsize").cloned().unwrap_or_else(|| 256.into());
    let rotation = group.as_u64().and_then(|n| Rotation::new(usize::try_from(n).ok()?));
    rotation.map(Some).ok_or_else(|| {
        Error::model("rows are rotated in groups of an unusable size")
            .found(group)
            .expected("a power of 4 from 4 to 4096")
    })
}

/// The name of the weight that aredden's data `name` stands for.
pub fn weight_name(name: &str) -> Option<String> {
    name.strip_suffix(FLOAT8_DATA).map(|layer| format!("{layer}.weight"))
}

/// The error for weights in a format that cannot be read.
pub fn unsupported(format: &str) -> Error {
    Error::model(format!("weights are stored as {format}, which is not supported"))
        .try_("use a bf16, fp16, fp8, NF4 or GGUF file of the same model")
}

#[cfg(test)]
mod tests;
