//! How a tensor with companions is read: the layouts of each format, with every size checked.

use serde_json::Value;

use super::{Companion, FP4_STATE, Layer, NF4_STATE, Reading, SCALES, W4A8, unsupported};
use crate::dtype::DType;
use crate::dtype::blocks::W4A8_LEVELS;
use crate::error::{Error, Result};
use crate::tensor::{BlockScale, BlockScales, Scale};
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::TensorEntry;

impl Layer {
    pub(super) fn get(&self, ending: &str) -> Option<&Companion> {
        self.tensors.get(ending)
    }

    pub(super) fn read(&self, entry: &TensorEntry, shape: Vec<usize>) -> Result<Reading> {
        if self.get(".pre_quant_scale").is_some() {
            return Err(unsupported("nvfp4 with factors of a layer's inputs (pre_quant_scale)")
                .at(&entry.name));
        }
        for (ending, dtype) in [(NF4_STATE, DType::Nf4), (FP4_STATE, DType::Fp4)] {
            if let Some(state) = self.get(ending) {
                return self.four_bits(entry, state, dtype);
            }
        }
        if let Some(scb) = self.get(".SCB") {
            return self.eight_bits(entry, scb, shape);
        }
        if let Some((_, format)) = self.get(".weight_format") {
            return Err(lacks(entry, "SCB").found(&format.name));
        }
        let format = self.record.as_ref().and_then(|r| r.get("format")).and_then(Value::as_str);
        // Other layouts have the same endings; only a record distinguishes them.
        if let (Some((_, second)), true) = (self.get(".weight_scale_2"), format != Some("nvfp4")) {
            return Err(unsupported("nvfp4 without ComfyUI's quantisation record").at(&second.name));
        }
        if let Some((_, absmax)) = self.get(".weight.absmax") {
            let weight = absmax.name.strip_suffix(".absmax").unwrap_or(&absmax.name);
            return Err(unsupported("bitsandbytes 4-bit without its quant_state")
                .at(format!("{weight}.quant_state.bitsandbytes__nf4"))
                .found(&absmax.name));
        }
        let two = |shape: &[usize]| match *shape {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(Error::model("scaled weight is not a matrix")
                .at(&entry.name)
                .found(format!("{shape:?}"))),
        };
        match format {
            Some("nvfp4") => {
                named(entry, &["U8"], "nvfp4")?;
                let (rows, half) = two(&shape)?;
                let cols = half.checked_mul(2).ok_or_else(|| huge(entry))?;
                let second =
                    self.get(".weight_scale_2").ok_or_else(|| lacks(entry, "weight_scale_2"))?;
                let factor = one_scale(second)?;
                self.blocks(entry, DType::Nvfp4, (rows, cols), BlockScale::E4M3, factor)
            }
            Some("mxfp8") => {
                named(entry, &["F8_E4M3"], "mxfp8")?;
                self.blocks(entry, DType::Mxfp8, two(&shape)?, BlockScale::E8M0, 1.0)
            }
            Some(W4A8) => {
                named(entry, &["I8", "U8"], "asym_w4a8_int8")?;
                self.codes(entry, two(&shape)?)
            }
            _ => self.scaled(entry, shape, format),
        }
    }

    /// A weight of one byte per element with one scale or one scale per row; or any weight without
    /// scales.
    fn scaled(
        &self,
        entry: &TensorEntry,
        shape: Vec<usize>,
        format: Option<&str>,
    ) -> Result<Reading> {
        let error = |what: &str| Error::model(what).at(&entry.name);
        let named = match format {
            Some("float8_e5m2") => Some(DType::F8E5M2),
            Some("int8_tensorwise") => Some(DType::I8),
            Some(_) => Some(DType::F8E4M3),
            None => None,
        };
        let dtype = match entry.stored.name() {
            "I8" if named == Some(DType::I8) => DType::I8,
            _ => entry.stored.float().ok_or_else(|| packed(entry))?,
        };
        if let Some(named) = named.filter(|n| *n != dtype) {
            return Err(error("weight is not stored in the format of its quantisation record")
                .found(dtype.name())
                .expected(named.name()));
        }
        whole_blocks(dtype, entry, &shape)?;
        let Some(scale) = SCALES.iter().find_map(|ending| self.get(ending)) else {
            if named.is_none() {
                // Its only companions are scales of activations.
                return Ok(Reading { dtype, shape, scale: Scale::One, rotation: None });
            }
            return Err(lacks(entry, "weight_scale"));
        };
        if let (DType::F8E4M3, &[rows, cols]) = (dtype, shape.as_slice())
            && let [tall, wide] = *scale.1.shape.as_slice()
            && (tall, wide) == (rows.div_ceil(TILE), cols.div_ceil(TILE))
            && tall * wide > 1
            && (tall, wide) != (rows, 1)
        {
            return tiles(entry, scale, (rows, cols));
        }
        let values = scales(scale)?;
        let rows = shape.first().copied().unwrap_or(1);
        let read = match (scale.1.shape.as_slice(), shape.as_slice()) {
            ([] | [1] | [1, 1], _) => Scale::Tensor(values[0]),
            ([n] | [n, 1], [rows, _]) if n == rows => Scale::Rows(values.into()),
            (found, _) => {
                return Err(Error::model("scale has the wrong shape")
                    .at(&scale.1.name)
                    .found(format!("{found:?}"))
                    .expected(format!("[] or [{rows}]")));
            }
        };
        let narrow = matches!(dtype, DType::F8E4M3 | DType::F8E5M2 | DType::I8);
        let scale = match read {
            Scale::Tensor(1.0) if !narrow => Scale::One,
            _ if !narrow => {
                return Err(error("weight has a scale but is not 8-bit").found(dtype.name()));
            }
            _ if shape.len() != 2 => {
                return Err(error("scaled weight is not a matrix").found(format!("{shape:?}")));
            }
            scale => scale,
        };
        self.check_rotation(entry, &shape)?;
        Ok(Reading { dtype, shape, scale, rotation: self.rotation })
    }

    fn check_rotation(&self, entry: &TensorEntry, shape: &[usize]) -> Result<()> {
        match self.rotation {
            Some(rotation) if !shape[1].is_multiple_of(rotation.group()) => {
                Err(Error::model("rows are not a whole number of the groups that are rotated")
                    .at(&entry.name)
                    .found(format!("{shape:?}"))
                    .expected(format!("columns in multiples of {}", rotation.group())))
            }
            _ => Ok(()),
        }
    }

    /// ComfyUI's `asym_w4a8_int8`: a code of 4 bits stands for one of 16 levels, which times the
    /// scale of its group, rounded, is an integer of rotated rows (comfy-kitchen's
    /// `tensor/w4a8_int8.py`).
    fn codes(&self, entry: &TensorEntry, (rows, width): (usize, usize)) -> Result<Reading> {
        const BLOCK: usize = 16;
        if let Some((_, correction)) = self.get(".weight_correction") {
            return Err(unsupported("asym_w4a8_int8 with offsets of groups (correction)")
                .at(&correction.name));
        }
        let record = self.record.as_ref();
        let group = record.and_then(|r| r.get("group_size")).filter(|size| !size.is_null());
        let size = group.map_or(Some(BLOCK as u64), Value::as_u64).unwrap_or(0) as usize;
        if size == 0 || !size.is_multiple_of(BLOCK) {
            return Err(unsupported("asym_w4a8_int8 in groups that are not a multiple of 16")
                .at(&entry.name)
                .found(format!("groups of {}", group.unwrap_or(&Value::Null))));
        }
        let (file, scale) =
            self.get(".weight_s_rel").ok_or_else(|| lacks(entry, "weight_s_rel"))?;
        named(scale, &["F8_E4M3", "F32"], "asym_w4a8_int8")?;
        let groups = match *scale.shape.as_slice() {
            [n, groups] if n == rows => groups,
            _ => 0,
        };
        let cols = groups.checked_mul(size).ok_or_else(|| huge(entry))?;
        if cols == 0 || cols != width.checked_mul(2).ok_or_else(|| huge(entry))? {
            // Rows of 6-bit codes are 3/4 of a byte for each column.
            let six = cols > 0 && width == cols / 4 * 3;
            return Err(match six {
                true => unsupported("asym_w4a8_int8 with codes of 6 bits").at(&entry.name),
                false => Error::model("scales of groups have the wrong shape")
                    .at(&scale.name)
                    .found(format!("{:?}", scale.shape))
                    .expected(format!("[{rows}, {}]", 2 * width / size)),
            });
        }
        let shape = vec![rows, cols];
        self.check_rotation(entry, &shape)?;
        let book = self
            .get(".weight_codebook")
            .ok_or_else(|| unsupported("asym_w4a8_int8 without a codebook").at(&entry.name))?;
        if floats(book)? != W4A8_LEVELS {
            return Err(unsupported("asym_w4a8_int8 with a codebook of its own")
                .at(&book.1.name)
                .expected("the one of comfy-kitchen"));
        }
        let row_scales =
            self.get(".weight_s_channel").ok_or_else(|| lacks(entry, "weight_s_channel"))?;
        let factors = scales(row_scales)?;
        if factors.len() != rows {
            return Err(Error::model("scale has the wrong shape")
                .at(&row_scales.1.name)
                .found(factors.len())
                .expected(format!("[{rows}]")));
        }
        let stored = match scale.stored.name() {
            "F32" => BlockScale::F32,
            _ => BlockScale::E4M3,
        };
        let blocks = BlockScales {
            shared: size / BLOCK,
            factors: Some(factors.into()),
            ..BlockScales::new(file.source.clone(), scale.range.start, stored, cols / BLOCK)
        };
        let (dtype, scale) = (DType::W4A8, Scale::Blocks(blocks));
        Ok(Reading { dtype, shape, scale, rotation: self.rotation })
    }

    /// Blocks whose scales are stored separately, in the tiles of cuBLAS.
    fn blocks(
        &self,
        entry: &TensorEntry,
        dtype: DType,
        (rows, cols): (usize, usize),
        stored: BlockScale,
        factor: f32,
    ) -> Result<Reading> {
        let shape = vec![rows, cols];
        whole_blocks(dtype, entry, &shape)?;
        let (file, scale) =
            self.get(".weight_scale").ok_or_else(|| lacks(entry, "weight_scale"))?;
        named(
            scale,
            if dtype == DType::Mxfp8 { &["F8_E8M0", "U8"] } else { &["F8_E4M3", "U8"] },
            dtype.name(),
        )?;
        let per_row = dtype.format().map_or(0, |f| f.blocks(cols));
        let bytes = rows
            .checked_next_multiple_of(128)
            .and_then(|r| r.checked_mul(per_row.next_multiple_of(4)));
        if bytes != Some(scale.range.len()) {
            return Err(Error::model("scales of blocks have the wrong size")
                .at(&scale.name)
                .found(format!("{:?}", scale.shape))
                .expected(format!(
                    "[{}, {}]",
                    rows.next_multiple_of(128),
                    per_row.next_multiple_of(4)
                )));
        }
        let offset = scale.range.start;
        let source = file.source.clone();
        let scales = BlockScales {
            tiled: true,
            factor,
            ..BlockScales::new(source, offset, stored, per_row)
        };
        Ok(Reading { dtype, shape, scale: Scale::Blocks(scales), rotation: None })
    }

    pub(super) fn aredden(&self, entry: &TensorEntry, shape: Vec<usize>) -> Result<Reading> {
        let dtype = entry.stored.float().filter(|d| matches!(d, DType::F8E4M3 | DType::F8E5M2));
        let dtype = dtype.ok_or_else(|| {
            Error::model("float8_data is not 8-bit")
                .at(&entry.name)
                .found(entry.stored.name())
                .expected("F8_E4M3")
        })?;
        let scale = match (self.get(".scale_reciprocal"), self.get(".scale")) {
            (Some(reciprocal), _) => one_scale(reciprocal)?,
            (None, Some(scale)) => 1.0 / one_scale(scale)?,
            (None, None) => return Err(lacks(entry, "scale_reciprocal")),
        };
        Ok(Reading { dtype, shape, scale: Scale::Tensor(scale), rotation: None })
    }
}

/// Rows, and columns, that share a scale in FP8 files of language models.
const TILE: usize = 128;

/// FP8 with a scale for each tile of 128 rows and columns; the last tiles may have fewer rows.
fn tiles(entry: &TensorEntry, scale: &Companion, (rows, cols): (usize, usize)) -> Result<Reading> {
    let shape = vec![rows, cols];
    whole_blocks(DType::F8Block, entry, &shape)?;
    let (file, stored) = scale;
    // All are read once, to check them.
    scales(scale)?;
    let kind = match stored.stored.name() {
        "BF16" => BlockScale::BF16,
        _ => BlockScale::F32,
    };
    named(stored, &["BF16", "F32"], "FP8 in blocks")?;
    let (source, offset) = (file.source.clone(), stored.range.start);
    let blocks = BlockScales { tall: TILE, ..BlockScales::new(source, offset, kind, cols / TILE) };
    Ok(Reading { dtype: DType::F8Block, shape, scale: Scale::Blocks(blocks), rotation: None })
}

/// Checks that no block continues in the next row.
pub(super) fn whole_blocks(dtype: DType, entry: &TensorEntry, shape: &[usize]) -> Result<()> {
    let Some(format) = dtype.format() else { return Ok(()) };
    match shape.last() {
        Some(cols) if cols % format.block == 0 => Ok(()),
        _ => Err(Error::model(format!(
            "rows of this {} tensor are not a whole number of blocks",
            format.name
        ))
        .at(&entry.name)
        .found(format!("{shape:?}"))
        .expected(format!("columns in multiples of {}", format.block))),
    }
}

/// The original shape of a tensor that a GGUF file stores in another shape.
pub(super) fn original_shape(file: &WeightFile, entry: &TensorEntry) -> Result<Vec<usize>> {
    let Some(text) = file.header.metadata.get(&format!("comfy.gguf.orig_shape.{}", entry.name))
    else {
        return Ok(entry.shape.clone());
    };
    let shape: Option<Vec<usize>> = serde_json::from_str(text).ok();
    let count = |s: &[usize]| s.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    shape.filter(|s| count(s).is_some() && count(s) == count(&entry.shape)).ok_or_else(|| {
        Error::model("the original shape does not fit the tensor")
            .at(&entry.name)
            .found(text)
            .expected(format!("as many elements as {:?}", entry.shape))
    })
}

pub(super) fn named(entry: &TensorEntry, types: &[&str], format: &str) -> Result<()> {
    if types.contains(&entry.stored.name()) {
        return Ok(());
    }
    Err(Error::model(format!("tensor does not have the type of {format}"))
        .at(&entry.name)
        .found(entry.stored.name())
        .expected(types.join(" or ")))
}

/// The error for a tensor that must stand next to the weight `entry`: `X.{what}` for `X.weight`.
pub(super) fn lacks(entry: &TensorEntry, what: &str) -> Error {
    let layer = entry.name.strip_suffix(".weight").or(entry.name.strip_suffix(".float8_data"));
    Error::model(format!("the quantised weight has no {what}"))
        .at(format!("{}.{what}", layer.unwrap_or(&entry.name)))
        .found(&entry.name)
        .try_("the file or a shard is incomplete: download it again")
}

pub(super) fn huge(entry: &TensorEntry) -> Error {
    Error::model("tensor has too many elements").at(&entry.name).found(format!("{:?}", entry.shape))
}

/// All values of a small tensor. Values that are not finite are an error.
pub(super) fn floats(stored: &Companion) -> Result<Vec<f32>> {
    let values = values(stored)?;
    match values.iter().find(|s| !s.is_finite()) {
        Some(bad) => {
            Err(Error::model("scale is not a finite number").at(&stored.1.name).found(bad))
        }
        None => Ok(values),
    }
}

fn values((file, entry): &Companion) -> Result<Vec<f32>> {
    let Some(dtype) = entry.stored.float().filter(|d| d.is_wide()) else {
        return Err(Error::model("scale has an unusable type")
            .at(&entry.name)
            .found(entry.stored.name())
            .expected("F32"));
    };
    let bytes = &file.source.bytes()[entry.range.clone()];
    let values: Vec<f32> = bytes.chunks_exact(dtype.size()).map(|b| dtype.decode(b)).collect();
    if values.is_empty() { Err(Error::model("scale is empty").at(&entry.name)) } else { Ok(values) }
}

/// The same for scales, which must be positive.
fn scales(stored: &Companion) -> Result<Vec<f32>> {
    let entry = &stored.1;
    // Scales of blocks without a quantisation record.
    match entry.stored.name() {
        "F8_E8M0" => return Err(unsupported("mxfp8 without a quantisation record").at(&entry.name)),
        "F8_E4M3" | "U8" if entry.shape.len() == 2 => {
            return Err(unsupported(
                "blocks with scales (nvfp4 or the like), without a quantisation record",
            )
            .at(&entry.name));
        }
        _ => {}
    }
    let values = values(stored)?;
    match values.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        Some(bad) => Err(Error::model("scale is not a positive number").at(&entry.name).found(bad)),
        None => Ok(values),
    }
}

fn one_scale(stored: &Companion) -> Result<f32> {
    match scales(stored)?.as_slice() {
        [one] => Ok(*one),
        more => Err(Error::model("scale has the wrong shape")
            .at(&stored.1.name)
            .found(format!("{} values", more.len()))
            .expected("one")),
    }
}

/// The error for a tensor of bytes without companions that explain it.
pub(super) fn packed(entry: &TensorEntry) -> Error {
    let hint = match entry.stored.name() {
        "I8" => "int8 without a quantisation record",
        "U8" => "packed bytes without a record of how (4-bit quantisation)",
        other => other,
    };
    unsupported(hint).at(&entry.name)
}
