//! The weights that are loaded, where their file or memory holds them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::WeightKey;
use crate::backend::loaded::{check_shape, not_loaded};
use crate::error::Result;
use crate::tensor::{HostWeight, Weight};

struct Loaded {
    weight: HostWeight,
    /// The weight as f32, made when an operation first needs it as a bias or gain.
    vector: Option<Arc<[f32]>>,
}

/// The loaded weights by key.
#[derive(Default)]
pub(super) struct LoadedWeights(HashMap<WeightKey, Loaded>);

impl LoadedWeights {
    /// Adds a weight.
    pub(super) fn insert(&mut self, key: WeightKey, weight: HostWeight) {
        self.0.insert(key, Loaded { weight, vector: None });
    }

    /// Removes a weight and returns it, if it was there.
    pub(super) fn remove(&mut self, key: WeightKey) -> Option<HostWeight> {
        self.0.remove(&key).map(|loaded| loaded.weight)
    }

    /// The weight `key`, which must have the shape of `handle`.
    pub(super) fn get(&self, key: WeightKey, handle: Weight) -> Result<&HostWeight> {
        let loaded = self.0.get(&key).ok_or_else(|| not_loaded(handle))?;
        check_shape((loaded.weight.rows, loaded.weight.cols), handle)?;
        Ok(&loaded.weight)
    }

    /// The bias or gain `key` as f32; it must have the shape of `handle`.
    pub(super) fn vector(&mut self, key: WeightKey, handle: Weight) -> Result<Arc<[f32]>> {
        let loaded = self.0.get_mut(&key).ok_or_else(|| not_loaded(handle))?;
        check_shape((loaded.weight.rows, loaded.weight.cols), handle)?;
        Ok(loaded.vector.get_or_insert_with(|| loaded.weight.to_f32().into()).clone())
    }
}
