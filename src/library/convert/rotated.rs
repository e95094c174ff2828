//! Matrices as rotated rows of integers: ComfyUI's ConvRot.

use serde_json::json;

use super::make::{Make, OutputTensor, Source};
use super::{Work, bytes, record_name};
use crate::dtype::int8::{Int8, Rotation};
use crate::error::Result;

/// The matrix `name` of `layer` with its companions.
pub fn quantise<'a>(
    name: &str,
    layer: &str,
    source: Source<'a>,
    work: &mut Work,
) -> Result<Vec<OutputTensor<'a>>> {
    let (rows, cols) = (source.rows, source.cols);
    let int8 = Int8 { rotation: Rotation::of_columns(cols) };
    let scales = source.scales(int8)?;
    work.add(source.stored_bytes())?;
    let values = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let beside = OutputTensor {
        shape: vec![rows, 1],
        ..bytes(format!("{layer}.weight_scale"), "F32", values)
    };
    let record = json!({
        "format": "int8_tensorwise",
        "convrot": true,
        "convrot_groupsize": int8.rotation.map_or(0, Rotation::group),
    });
    let tensor = OutputTensor {
        name: name.into(),
        dtype: "I8",
        shape: vec![rows, cols],
        make: Make::Integers { source, int8 },
    };
    Ok(vec![tensor, beside, bytes(record_name(layer), "U8", record.to_string().into())])
}
