//! Weights in device memory.

use std::collections::HashMap;

use crate::backend::WeightKey;
use crate::backend::form::Form;
use crate::backend::loaded::{check_shape, not_loaded};
use crate::error::Result;
use crate::tensor::Weight;

/// A weight that is in device memory, or is being copied there.
#[derive(Debug, Clone)]
pub struct Loaded<P> {
    pub(in crate::backend) form: Form,
    pub place: P,
    pub rows: usize,
    pub cols: usize,
}

impl<P: Copy> Loaded<P> {
    /// The form and place of the weight `key`, which the program calls `handle`.
    ///
    /// # Errors
    /// If the weight was not loaded, or has another shape.
    pub(in crate::backend) fn find(
        weights: &HashMap<WeightKey, Loaded<P>>,
        key: WeightKey,
        handle: Weight,
    ) -> Result<(Form, P)> {
        let loaded = weights.get(&key).ok_or_else(|| not_loaded(handle))?;
        check_shape((loaded.rows, loaded.cols), handle)?;
        Ok((loaded.form.clone(), loaded.place))
    }
}
