//! The search for the first step that writes a number that is not finite.

use super::Session;
use crate::error::Result;
use crate::tensor::View;

/// At most as many bytes are read from the device at a time.
const READ_BYTES: usize = 4 << 20;

impl Session<'_> {
    /// Runs once more from the current inputs and returns the label of the first step that writes a
    /// number that is not finite. This is slow; it makes the error message.
    pub fn first_not_finite(&mut self) -> Result<Option<String>> {
        let mut found = None;
        self.run_steps(0..self.steps(), false, &mut |session, _, step| {
            for view in step.op.checked_outputs() {
                if found.is_none() && !session.is_finite(view)? {
                    found = Some(step.label.clone());
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether every element of `view` is finite. Some rows are read at a time: less memory than
    /// the whole tensor, fewer transfers than one for each row.
    fn is_finite(&mut self, view: View) -> Result<bool> {
        let dtype = view.tensor.dtype;
        let size = dtype.size();
        let (pitch, from) = (view.tensor.cols * size, view.col * size);
        let step = (READ_BYTES / pitch.max(1)).max(1);
        let mut rows = vec![0u8; step.min(view.rows()) * pitch];
        for first in (0..view.rows()).step_by(step) {
            let block = &mut rows[..step.min(view.rows() - first) * pitch];
            self.backend.read(self.places.of(&view.tensor) + first * pitch, block)?;
            let wrong = |row: &[u8]| {
                let mut elements = row[from..from + view.cols * size].chunks_exact(size);
                elements.any(|bytes| !dtype.decode(bytes).is_finite())
            };
            if block.chunks_exact(pitch).any(wrong) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
