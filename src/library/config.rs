//! Configuration files next to weights, as diffusers and transformers write them.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::host::read_regular;
use crate::spec::Component;
use crate::spec::names::matches_glob;
use crate::weights::container::map::unreadable;

/// The `config.json` in the folder of the files of `component`, if its class is one of that
/// component.
pub fn folder_config(folder: &Path, component: Component) -> Result<Option<Value>> {
    let Some(config) = read_json(&folder.join("config.json"))? else { return Ok(None) };
    let class = config.get("_class_name").and_then(Value::as_str);
    let Some(class) = class.or_else(|| config.get("architectures")?.get(0)?.as_str()) else {
        return Ok(None);
    };
    let fits = matches_glob(&[component.diffusers.classes], class);
    Ok(fits.then_some(config))
}

/// The largest JSON file that is read, in bytes. The index of shards of a large model has a few
/// hundred kilobytes.
const MOST_BYTES: u64 = 4 << 20;

/// Reads a JSON file that comes with a model.
///
/// # Errors
/// If there is none, if it is not a regular file, and if it is too large.
pub fn read_json_bytes(path: &Path) -> Result<Vec<u8>> {
    read_regular(path, MOST_BYTES).map_err(|e| unreadable(path, &e))
}

/// Reads a configuration file, if there is one. A file that cannot be read is an error, since the
/// defaults would differ from its settings.
pub fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_json_bytes(path)?;
    let value = serde_json::from_slice(&bytes).map_err(|e| {
        Error::model("not valid JSON").at_path(path).found(e).try_("download the file again")
    })?;
    Ok(Some(value))
}

/// `model_max_length` of a tokenizer's configuration; "no limit" is written as 1e30 there.
pub fn max_length(config: &Value) -> Option<usize> {
    let n = config.get("model_max_length").and_then(Value::as_f64)?;
    (1.0..=4096.0).contains(&n).then_some(n as usize)
}
