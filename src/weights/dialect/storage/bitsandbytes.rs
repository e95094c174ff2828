//! The 4-bit and 8-bit types of bitsandbytes.

use std::sync::Arc;

use serde_json::Value;

use super::layer::{floats, huge, lacks, named, whole_blocks};
use super::{Companion, Layer, Reading, unsupported};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{BlockScale, BlockScales, Scale};
use crate::weights::container::header::{MAX_RECORD_BYTES, TensorEntry, parse_json};

impl Layer {
    /// bitsandbytes' 4-bit types.
    pub(super) fn four_bits(
        &self,
        entry: &TensorEntry,
        (file, state): &Companion,
        dtype: DType,
    ) -> Result<Reading> {
        let text = &file.source.bytes()[state.range.clone()];
        let json = parse_json("quant_state", text, MAX_RECORD_BYTES);
        let json = json.map_err(|e| e.at(&state.name))?;
        let whole = |key: &str| json.get(key).and_then(Value::as_u64).map(|v| v as usize);
        let wrong = |key: &str, expected: &str| {
            let found = json.get(key).cloned().unwrap_or(Value::Null);
            Error::model(format!("quant_state has an unusable {key}"))
                .at(&state.name)
                .found(found)
                .expected(expected)
        };
        let shape: Vec<usize> = json
            .get("shape")
            .and_then(Value::as_array)
            .and_then(|a| a.iter().map(|v| usize::try_from(v.as_u64()?).ok()).collect())
            .filter(|s: &Vec<usize>| s.len() == 2)
            .ok_or_else(|| wrong("shape", "[rows, columns]"))?;
        // A larger block is several of the format's blocks with one scale.
        let block = dtype.format().map_or(64, |f| f.block);
        let size = whole("blocksize").filter(|size| *size > 0 && size % block == 0);
        let size = size.ok_or_else(|| wrong("blocksize", "64 or a multiple of it"))?;
        whole_blocks(dtype, entry, &shape)?;
        let elements = shape[0].checked_mul(shape[1]).ok_or_else(|| huge(entry))?;
        if entry.range.len() != elements / 2 {
            return Err(Error::model("packed weight has the wrong size")
                .at(&entry.name)
                .found(format!("{} bytes", entry.range.len()))
                .expected(format!("{} bytes for {shape:?}", elements / 2)));
        }
        let (file, absmax) =
            self.get(".weight.absmax").ok_or_else(|| lacks(entry, "weight.absmax"))?;
        let blocks = elements.div_ceil(size);
        let nested = match (self.get(".weight.nested_absmax"), self.get(".weight.nested_quant_map"))
        {
            (Some(_), None) => return Err(lacks(entry, "weight.nested_quant_map")),
            (None, Some(_)) => return Err(lacks(entry, "weight.nested_absmax")),
            (outer, map) => outer.zip(map),
        };
        let stored = match nested {
            None => BlockScale::F32,
            Some((outer, map)) => {
                let group = whole("nested_blocksize")
                    .filter(|g| *g > 0)
                    .ok_or_else(|| wrong("nested_blocksize", "256"))?;
                let offset =
                    json.get("nested_offset").and_then(Value::as_f64).filter(|o| o.is_finite());
                let offset = offset.ok_or_else(|| wrong("nested_offset", "a number"))? as f32;
                let codes: [f32; 256] = floats(map)?.try_into().map_err(|_| {
                    Error::model("nested_quant_map has the wrong size")
                        .at(&map.1.name)
                        .expected("256 values")
                })?;
                let absmax = floats(outer)?;
                if absmax.len() != blocks.div_ceil(group) {
                    return Err(Error::model("nested_absmax has the wrong size")
                        .at(&outer.1.name)
                        .found(absmax.len())
                        .expected(blocks.div_ceil(group)));
                }
                BlockScale::Nested { codes: Arc::new(codes), absmax: absmax.into(), group, offset }
            }
        };
        let (kind, bytes) = if nested.is_some() { ("U8", 1) } else { ("F32", 4) };
        named(absmax, &[kind], dtype.name())?;
        if absmax.range.len() / bytes != blocks {
            return Err(Error::model("absmax has the wrong size")
                .at(&absmax.name)
                .found(absmax.range.len() / bytes)
                .expected(format!("{blocks}, one for every {size} of {shape:?}")));
        }
        let (source, offset) = (file.source.clone(), absmax.range.start);
        let per_row = shape[1] / block;
        let scales = BlockScales {
            shared: size / block,
            ..BlockScales::new(source, offset, stored, per_row)
        };
        Ok(Reading { dtype, shape, scale: Scale::Blocks(scales), rotation: None })
    }

    /// bitsandbytes' int8: rows of 8-bit integers, of which 127 stands for the largest value of the
    /// row, its `SCB`.
    pub(super) fn eight_bits(
        &self,
        entry: &TensorEntry,
        scb: &Companion,
        shape: Vec<usize>,
    ) -> Result<Reading> {
        /// 1 / 127, as bitsandbytes multiplies.
        const STEP: f32 = 1.0 / 127.0;
        named(entry, &["I8"], "bitsandbytes int8")
            .map_err(|e| e.try_("the file may be damaged: download it again"))?;
        let &[rows, _] = shape.as_slice() else {
            return Err(Error::model("scaled weight is not a matrix")
                .at(&entry.name)
                .found(format!("{shape:?}")));
        };
        // Older versions stored the order in which a GPU multiplied.
        if let Some((file, format)) = self.get(".weight_format")
            && file.source.bytes()[format.range.clone()].iter().any(|byte| *byte != 0)
        {
            return Err(unsupported("bitsandbytes int8 in the order of a GPU (weight_format)")
                .at(&format.name));
        }
        let largest = floats(scb)?;
        if largest.len() != rows {
            return Err(Error::model("SCB has the wrong size")
                .at(&scb.1.name)
                .found(largest.len())
                .expected(format!("{rows}, one for each row")));
        }
        if let Some(bad) = largest.iter().find(|v| **v < 0.0) {
            return Err(Error::model("SCB is negative").at(&scb.1.name).found(bad));
        }
        let factors: Vec<f32> = largest.iter().map(|v| v * STEP).collect();
        Ok(Reading { dtype: DType::I8, shape, scale: Scale::Rows(factors.into()), rotation: None })
    }
}
