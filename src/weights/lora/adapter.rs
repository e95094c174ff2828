//! A LoRA that was read: the changes of each weight.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::delta::Delta;
use super::summary::Summary;
use crate::error::Result;
use crate::spec::Component;
use crate::spec::lora::Block;
use crate::tensor::{HostPart, HostWeight};

/// A LoRA file that was checked completely against a model.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The file.
    pub path: PathBuf,
    /// Its contents, for users.
    pub summary: Summary,
    /// By component, weight and rows.
    pub(super) changes: Vec<Change>,
}

/// A change of some rows of a weight: `factor` times its delta, and DoRA's lengths.
#[derive(Debug, Clone)]
pub struct Change {
    /// The component that has the weight.
    pub component: Component,
    /// The canonical weight.
    pub weight: String,
    /// The name of the layer in the file.
    pub key: String,
    /// Whether the weight is a vector: a bias or a gain.
    pub vector: bool,
    /// The change without its factor.
    pub delta: Delta,
    /// The rows of the weight (or elements of a vector) that the rows of the delta change.
    pub blocks: Vec<Block>,
    /// Alpha, if the file has one.
    pub alpha: Option<f64>,
    /// alpha / rank; 1 without alpha.
    pub factor: f64,
    /// The lengths that the changed rows or columns get (DoRA).
    pub magnitude: Option<Magnitude>,
    /// Whether the delta is put in place whatever the strength, unless that is 0.
    pub is_fixed: bool,
}

/// Lengths of rows or columns.
#[derive(Debug, Clone)]
pub struct Magnitude {
    /// A length for each row or column.
    pub values: HostPart,
    /// Whether they are lengths of rows or of columns.
    pub axis: Axis,
    /// What the changed rows or columns are multiplied with, once it was computed. It depends on
    /// the base weight.
    pub(super) scales: OnceLock<Arc<[f32]>>,
}

/// Rows or columns of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Outputs.
    Rows,
    /// Inputs.
    Columns,
}

/// Returns rows `first .. first + rows` of the base weight.
pub type BaseRows<'a> = &'a dyn Fn(usize, usize) -> Result<HostWeight>;

impl Adapter {
    /// All changes, by component, weight and rows.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The changes of a weight.
    pub fn of(&self, component: Component, weight: &str) -> &[Change] {
        let key = |c: &Change| (c.component, c.weight.as_str()).cmp(&(component, weight));
        let first = self.changes.partition_point(|c| key(c).is_lt());
        let count = self.changes[first..].partition_point(|c| key(c).is_eq());
        &self.changes[first..first + count]
    }

    /// The weights that it changes, each once.
    pub fn weights(&self) -> impl Iterator<Item = (Component, &str)> {
        self.changes.chunk_by(|a, b| (a.component, &a.weight) == (b.component, &b.weight)).map(
            |run| {
                let first = &run[0];
                (first.component, first.weight.as_str())
            },
        )
    }
}
