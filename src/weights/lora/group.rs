//! The keys of one layer, and what of a file no layer uses: passed on from the first look at a LoRA
//! to every later one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::keys::{Layer, Part};
use crate::error::{Error, Result};
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::StoredType;

/// An alpha that a configuration gives to a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Configured {
    /// Alpha.
    pub alpha: f64,
    /// It is divided by the square root of the rank (rsLoRA).
    pub root: bool,
    /// The rank that the configuration gives to the layer.
    pub rank: Option<f64>,
}

/// The keys of one layer: indices among the file's tensors.
pub struct Group {
    /// The beginning that the keys have in common.
    pub base: String,
    /// The layer.
    pub layer: Layer,
    /// Its tensors.
    pub parts: BTreeMap<Part, usize>,
    /// Alpha from a configuration. The tensor takes precedence.
    pub configured: Option<Configured>,
}

impl Group {
    /// Its tensors.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.parts.values().copied()
    }

    /// Whether it has any of the tensors that make up a change of a matrix.
    pub fn matrices(&self) -> bool {
        self.parts.keys().any(|part| part.family().is_some())
    }

    /// Its alpha: from the tensor, of any type, or from the header. `None` if there is none.
    pub fn alpha(&self, file: &WeightFile) -> Result<Option<f64>> {
        let Some(i) = self.parts.get(&Part::Alpha) else {
            return Ok(self.configured.map(|c| c.alpha));
        };
        let entry = &file.header.tensors[*i];
        let bytes = &file.source.bytes()[entry.range.clone()];
        let one = entry.shape.iter().all(|n| *n == 1);
        let value = match (entry.stored, bytes) {
            (StoredType::Float(dtype), bytes) if one => Some(f64::from(dtype.decode(bytes))),
            (StoredType::Other("F64", _), &[a, b, c, d, e, f, g, h]) => {
                Some(f64::from_le_bytes([a, b, c, d, e, f, g, h]))
            }
            (StoredType::Other("I64", _), &[a, b, c, d, e, f, g, h]) => {
                Some(i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64)
            }
            (StoredType::Other("I32", _), &[a, b, c, d]) => {
                Some(f64::from(i32::from_le_bytes([a, b, c, d])))
            }
            (StoredType::Other("I16", _), &[a, b]) => Some(f64::from(i16::from_le_bytes([a, b]))),
            (StoredType::Other("U8", _), &[a]) => Some(f64::from(a)),
            _ => None,
        };
        match value {
            Some(value) => Ok(Some(value)),
            None => Err(Error::model("alpha is not one number").at(&entry.name).found(format!(
                "{} {:?}",
                entry.stored.name(),
                entry.shape
            ))),
        }
    }
}

/// A key that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// The key.
    pub key: String,
    /// The reason.
    pub why: String,
}

impl Unmatched {
    /// `key`, which is not used because of `why`.
    pub fn new(key: &str, why: impl Into<String>) -> Self {
        Unmatched { key: key.into(), why: why.into() }
    }
}

/// The keys of a file, sorted by layer.
#[derive(Default)]
pub struct Grouped {
    /// The groups, in the order of component, weight and rows.
    pub groups: Vec<Group>,
    /// The keys that are not used.
    pub unmatched: Vec<Unmatched>,
    /// Those among them that might change the image: the file cannot be used.
    pub unknown: Vec<Unmatched>,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// The metadata keys in which trainers write the model that a LoRA was trained on.
const BASE_MODEL: [&str; 4] =
    ["modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "sshs_base_model"];

/// The model that the LoRA was trained on, according to its metadata.
pub fn base_model(file: &WeightFile) -> Option<&String> {
    BASE_MODEL.iter().find_map(|key| file.header.metadata.get(*key))
}
