//! Shared by the configurations of all networks: sizes from tensor shapes, and other values from a
//! `config.json`.

use std::fmt::Display;

use serde_json::Value;

use crate::error::{Error, Result};

/// The canonical tensors of a component, as far as its sizes depend on them.
pub trait TensorShapes {
    /// Rows and columns of a canonical tensor. Vectors are `1 x n`, convolutions
    /// `out x (in * kh * kw)`.
    fn shape(&self, name: &str) -> Option<(usize, usize)>;

    /// All canonical names that are there.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// How the files call a canonical tensor, for messages.
    fn stored_name(&self, name: &str) -> String;
}

/// The canonical name and the shape of a tensor as files store it: `[n]`, `[rows, cols]` or
/// `[out, in, kh, kw]`.
pub type TensorSpec = (String, Vec<usize>);

/// Adds bias and weight of the layer `name`; `shape` is that of the weight.
pub(super) fn push_affine(out: &mut Vec<TensorSpec>, name: impl Display, shape: Vec<usize>) {
    out.push((format!("{name}.bias"), vec![shape[0]]));
    out.push((format!("{name}.weight"), shape));
}

/// Rows and columns of a tensor that shows sizes of `component`.
///
/// # Errors
/// If it is missing.
pub(super) fn shape(
    shapes: &dyn TensorShapes,
    component: &str,
    name: &str,
) -> Result<(usize, usize)> {
    shapes.shape(name).ok_or_else(|| {
        Error::model(format!("the {component} weights lack a tensor that shows their sizes"))
            .at(shapes.stored_name(name))
            .try_("check with {:inspect} that the file contains a whole model")
    })
}

/// The error for sizes that no model of this architecture has.
pub(super) fn geometry(what: impl Into<String>) -> Error {
    Error::model(what).try_("the file may be of another architecture; see {:inspect FILE}")
}

/// The largest number of blocks or levels that a configuration may have.
const MOST_BLOCKS: usize = 10_000;

/// The number of blocks `start{i}.`: that of the configuration, if it has the number `key`, else
/// one more than the highest number in the names. A tensor that is missing thus leaves a hole,
/// which the check of all tensors reports, and not a smaller model.
pub(super) fn blocks(
    shapes: &dyn TensorShapes,
    start: &str,
    config: Option<&Value>,
    key: &str,
) -> Result<usize> {
    match uint(config, key) {
        None => Ok(numbered(shapes, start, "")),
        Some(n) if n <= MOST_BLOCKS => Ok(n),
        Some(n) => Err(geometry(format!("{key} of the config is out of range"))
            .found(n)
            .expected(format!("at most {MOST_BLOCKS}"))),
    }
}

/// Checks the number of blocks `start{i}.` where the configuration does not have the number `key`:
/// a model of a width that was published has one of the numbers `known`. Otherwise the loss of its
/// last blocks would not be seen.
pub(super) fn known_blocks(
    config: Option<&Value>,
    key: &str,
    start: &str,
    found: usize,
    known: &[usize],
) -> Result<()> {
    if uint(config, key).is_some() || known.contains(&found) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(usize::to_string).collect();
    Err(Error::model("a model of this width has another number of blocks")
        .at(format!("{start}*"))
        .found(found)
        .expected(known.join(" or "))
        .try_(format!(
            "download the file again: its last blocks are missing; if it was made with this number \
             of blocks, put its config.json with {key} next to it"
        )))
}

/// One more than the highest number behind `start` in the names; with a `middle`, behind
/// `start{i}.middle`.
pub(super) fn numbered(shapes: &dyn TensorShapes, start: &str, middle: &str) -> usize {
    let number = |name: &str| {
        let (first, rest) = name.strip_prefix(start)?.split_once('.')?;
        let number = match middle {
            "" => first,
            _ => rest.strip_prefix(middle)?.split('.').next()?,
        };
        number.parse::<usize>().ok().filter(|n| *n < MOST_BLOCKS)
    };
    shapes.names().filter_map(number).max().map_or(0, |n| n + 1)
}

/// Checks a size that tensors show against the configuration, where that has the number `key`.
pub(super) fn agree(config: Option<&Value>, key: &str, found: usize) -> Result<()> {
    match uint(config, key) {
        Some(expected) if expected != found => {
            Err(geometry(format!("the tensors do not have the {key} of the config"))
                .at("config.json")
                .found(found)
                .expected(expected))
        }
        _ => Ok(()),
    }
}

/// A whole number of `config`, if it is there.
pub(super) fn uint(config: Option<&Value>, key: &str) -> Option<usize> {
    config?.get(key)?.as_u64().map(|v| v as usize)
}

/// Yes or no in `config`, if it is there.
pub(super) fn boolean(config: Option<&Value>, key: &str) -> Option<bool> {
    config?.get(key)?.as_bool()
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
