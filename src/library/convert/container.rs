//! The two containers: the place of each tensor in the file, and the header.

use std::collections::BTreeMap;

use super::make::OutputTensor;
use crate::dtype::blocks::FORMATS;
use crate::weights::container::write::{TensorHeader, safetensors_header};

/// The default alignment of GGUF in bytes.
const ALIGNMENT: u64 = 32;

pub enum Container {
    Safetensors,
    Gguf { architecture: &'static str },
}

/// The layout of a file.
pub struct Layout<'a> {
    pub header: Vec<u8>,
    /// The tensors in order, each with its first byte in the file.
    pub tensors: Vec<(u64, OutputTensor<'a>)>,
    pub bytes: u64,
}

impl Container {
    pub fn layout<'a>(
        &self,
        tensors: Vec<OutputTensor<'a>>,
        metadata: &BTreeMap<String, String>,
    ) -> Layout<'a> {
        match self {
            Container::Safetensors => safetensors(tensors, metadata),
            Container::Gguf { architecture } => gguf(tensors, architecture, metadata),
        }
    }
}

fn safetensors<'a>(
    mut tensors: Vec<OutputTensor<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Layout<'a> {
    // Wide elements first, so that every tensor is aligned.
    tensors.sort_by_key(|t| match t.dtype {
        "F32" => 0,
        "BF16" | "F16" => 1,
        _ => 2,
    });
    let headers = tensors.iter().map(|t| TensorHeader {
        name: &t.name,
        dtype: t.dtype,
        shape: &t.shape,
        bytes: t.bytes(),
    });
    let header = safetensors_header(metadata, headers);
    let mut bytes = header.len() as u64;
    let place = |tensor: OutputTensor<'a>| {
        let start = bytes;
        bytes += tensor.bytes();
        (start, tensor)
    };
    let tensors = tensors.into_iter().map(place).collect();
    Layout { header, tensors, bytes }
}

fn gguf<'a>(
    tensors: Vec<OutputTensor<'a>>,
    architecture: &str,
    metadata: &BTreeMap<String, String>,
) -> Layout<'a> {
    const U32: u32 = 4;
    const STRING: u32 = 8;
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let config = metadata.get("config");
    header.extend((2 + u64::from(config.is_some())).to_le_bytes());
    let strings = [
        Some(("general.architecture", architecture)),
        config.map(|c| ("flux_fast.config", c.as_str())),
    ];
    for (key, value) in strings.into_iter().flatten() {
        text(&mut header, key);
        header.extend(STRING.to_le_bytes());
        text(&mut header, value);
    }
    text(&mut header, "general.quantization_version");
    header.extend(U32.to_le_bytes());
    header.extend(2u32.to_le_bytes());
    let mut end = 0u64;
    let mut starts = Vec::new();
    for t in &tensors {
        let start = end.next_multiple_of(ALIGNMENT);
        starts.push(start);
        end = start + t.bytes();
        text(&mut header, &t.name);
        header.extend((t.shape.len() as u32).to_le_bytes());
        // Columns first.
        t.shape.iter().rev().for_each(|n| header.extend((*n as u64).to_le_bytes()));
        header.extend(type_number(t.dtype).to_le_bytes());
        header.extend(start.to_le_bytes());
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    let data = header.len() as u64;
    let tensors = starts.into_iter().map(|s| s + data).zip(tensors).collect();
    Layout { header, tensors, bytes: data + end.next_multiple_of(ALIGNMENT) }
}

fn type_number(name: &str) -> u32 {
    match name {
        "F32" => 0,
        "F16" => 1,
        "BF16" => 30,
        _ => FORMATS
            .iter()
            .find(|f| f.name == name)
            .and_then(|f| f.ggml)
            .expect("GGUF's own types only"),
    }
}
