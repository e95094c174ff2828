//! Shared by the configurations of all networks: sizes from tensor shapes, and other values from a
//! `config.json`.

use serde_json::Value;

use crate::error::{Error, Result};

/// Looks up a canonical tensor: (rows, columns). Vectors are `1 x n`, convolutions
/// `out x (in * kh * kw)`.
pub type Shapes<'a> = &'a dyn Fn(&str) -> Option<(usize, usize)>;

/// The canonical name and the shape of a tensor as files store it: `[n]`, `[rows, cols]` or
/// `[out, in, kh, kw]`.
pub type TensorSpec = (String, Vec<usize>);

/// The error for a tensor that a configuration needs and a file does not have.
pub(super) fn missing(component: &str, name: &str) -> Error {
    Error::model(format!("the {component} weights lack a tensor that shows their sizes"))
        .at(name)
        .try_("check with {:inspect} that the file contains a whole model")
}

/// The error for sizes that no model of this architecture has.
pub(super) fn geometry(what: impl Into<String>) -> Error {
    Error::model(what).try_("the file may be of another architecture; see {:inspect FILE}")
}

/// The number of blocks: how many of `prefix{i}suffix` there are, from i = 0.
pub(super) fn count(shapes: Shapes, prefix: &str, suffix: &str) -> usize {
    (0..).take_while(|i| shapes(&format!("{prefix}{i}{suffix}")).is_some()).count()
}

/// A whole number of `config`, if it is there.
pub(super) fn uint(config: Option<&Value>, key: &str) -> Option<usize> {
    config?.get(key)?.as_u64().map(|v| v as usize)
}

/// A number of `config`, if it is there.
pub(super) fn float(config: Option<&Value>, key: &str) -> Option<f64> {
    config?.get(key)?.as_f64()
}

/// The epsilon of a normalisation.
///
/// # Errors
/// If it is not between 0 and 1.
pub(super) fn epsilon(config: Option<&Value>, key: &str, default: f64) -> Result<f32> {
    let eps = float(config, key).unwrap_or(default);
    if eps > 0.0 && eps < 1.0 {
        Ok(eps as f32)
    } else {
        Err(geometry(format!("{key} is out of range")).found(eps).expected("between 0 and 1"))
    }
}
