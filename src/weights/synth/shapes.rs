//! A synthetic checkpoint as shapes only: enough to plan a run, without any weights.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::SynthSpec;
use super::write::{Content, comfy};
use crate::error::{Error, Result};
use crate::tensor::ByteSource;
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::{Header, StoredType, TensorEntry};

/// Where the weights would begin, in bytes: every element type is aligned there.
const ALIGN: usize = 64;

/// The bytes of scales and quantisation records. The weights would follow them.
struct ShapesOnly(Vec<u8>);

impl ShapesOnly {
    fn check_range(&self, end: usize) -> Result<()> {
        if end <= self.0.len() {
            return Ok(());
        }
        Err(Error::model("this model was opened as shapes only: its weights do not exist"))
    }
}

impl ByteSource for ShapesOnly {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.check_range(offset.saturating_add(to.len()))?;
        to.copy_from_slice(&self.0[offset..offset + to.len()]);
        Ok(())
    }

    fn will_need(&self, range: Range<usize>) -> Result<()> {
        self.check_range(range.end)
    }
}

/// The file that [`super::write()`] would make of `spec` in ComfyUI's layout, without its weights:
/// names, types, shapes and scales are there, and reading a weight is an error. `name` is only
/// for messages.
pub fn shapes(spec: &SynthSpec, name: &Path) -> Result<WeightFile> {
    let plan = comfy(spec)?;
    let entry = |name: &str, dtype: &str, shape: &[usize], range| {
        let stored = StoredType::parse(dtype)
            .ok_or_else(|| Error::model("tensor has an unknown element type").at(name))?;
        Ok(TensorEntry { name: name.into(), stored, shape: shape.to_vec(), range })
    };
    let mut bytes: Vec<u8> = Vec::new();
    let mut tensors = Vec::new();
    for t in &plan.tensors {
        let Content::Bytes(content) = &t.content else { continue };
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        let start = bytes.len();
        bytes.extend(content);
        tensors.push(entry(&t.name, t.dtype, &t.shape, start..bytes.len())?);
    }
    let base = bytes.as_ptr() as usize;
    let mut end = bytes.len();
    for t in plan.tensors.iter().filter(|t| matches!(t.content, Content::Values { .. })) {
        // Aligned in memory, since the engine copies vectors that are not.
        let start = (base + end).next_multiple_of(ALIGN) - base;
        end = start + t.bytes() as usize;
        tensors.push(entry(&t.name, t.dtype, &t.shape, start..end)?);
    }
    let header = Header { tensors, metadata: plan.metadata, data_start: 0 };
    Ok(WeightFile { path: name.into(), source: Arc::new(ShapesOnly(bytes)), header, note: None })
}
