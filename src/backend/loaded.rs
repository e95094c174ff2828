//! Errors of steps whose weights are not what the program says.

use crate::error::{Error, Result};
use crate::tensor::Weight;

/// The error that a step uses the weight `handle` before it was loaded.
pub(super) fn not_loaded(handle: Weight) -> Error {
    Error::device("a step uses a weight that was not loaded").found(handle)
}

/// Checks that the loaded weight is `rows x cols`, as the program says.
pub(super) fn check_shape((rows, cols): (usize, usize), handle: Weight) -> Result<()> {
    if (rows, cols) == (handle.rows, handle.cols) {
        return Ok(());
    }
    Err(Error::model("a weight has the wrong shape")
        .found(format!("{rows} x {cols}"))
        .expected(format!("{} x {}", handle.rows, handle.cols)))
}
