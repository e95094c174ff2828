//! The header of a safetensors file that is written.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// One tensor of a file: its name, the container's name of its element type, its shape, and its
/// size in bytes.
pub struct TensorHeader<'a> {
    /// The name.
    pub name: &'a str,
    /// The container's name of the element type: `BF16`.
    pub dtype: &'a str,
    /// The axes.
    pub shape: &'a [usize],
    /// The size in bytes.
    pub bytes: u64,
}

/// The bytes before the data of a safetensors file: the length of the header and the header, padded
/// to a multiple of 8. The tensors follow each other in this order, without gaps.
pub fn safetensors_header<'a>(
    metadata: &impl Serialize,
    tensors: impl Iterator<Item = TensorHeader<'a>>,
) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut end = 0;
    for TensorHeader { name, dtype, shape, bytes } in tensors {
        let start = end;
        end += bytes;
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name.into(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat()
}
