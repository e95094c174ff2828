//! Writes a model's weights in another type: FP8 with scales in a safetensors file, or GGUF.
//!
//! Tensors are converted one after another, some rows at a time, so a model of full size needs
//! little memory. The file is written under a temporary name and renamed when it is complete.
//! Tensors that are small but matter for the quality keep their type: everything outside of the
//! blocks, biases, norms.

pub use super::open_only;

mod container;
mod make;
mod rotated;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Checkpoint;
use super::checkpoint::MODEL_INDEX;
use crate::dtype::DType;
use crate::dtype::int8::Rotation;
use crate::error::{Error, Result};
use crate::host::{remove_abandoned, start_shared_threads, unfinished_file};
use crate::spec::{Component, Role};
use crate::units;
use crate::weights::ComponentWeights;
use container::Container;
use make::{Make, OutputTensor, Source};

/// The type and container to convert to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// FP8 (e4m3) with one scale per matrix, as ComfyUI stores it (`X.weight_scale`,
    /// `X.comfy_quant`).
    Fp8,
    /// The same with one scale per row: a little more exact, and read by fewer programs.
    Fp8Rows,
    /// 8-bit integers with one scale per row.
    Int8,
    /// 8-bit integers in rotated rows (ComfyUI's ConvRot), for products in integers. The other
    /// matrices of a transformer keep their type; components without such products become
    /// [`Target::Int8`].
    Int8ConvRot,
    /// FP8 in the tensors of flux-fp8-api.
    Aredden,
    /// nf4, fp4, mxfp8 or nvfp4, as bitsandbytes and ComfyUI store them.
    Blocks(DType),
    /// A GGUF file. Rows that are not a whole number of its blocks become Q8_0.
    Gguf(DType),
}

impl Target {
    /// The targets of the command line, by name.
    pub const NAMED: [(&'static str, Target); 11] = [
        ("fp8", Target::Fp8),
        ("fp8-rows", Target::Fp8Rows),
        ("int8", Target::Int8),
        ("int8-convrot", Target::Int8ConvRot),
        ("nf4", Target::Blocks(DType::Nf4)),
        ("q8_0", Target::Gguf(DType::Q8_0)),
        ("q6_k", Target::Gguf(DType::Q6K)),
        ("q5_k", Target::Gguf(DType::Q5K)),
        ("q4_k", Target::Gguf(DType::Q4K)),
        ("q5_0", Target::Gguf(DType::Q5_0)),
        ("q4_0", Target::Gguf(DType::Q4_0)),
    ];

    /// The ending of its files.
    pub fn extension(self) -> &'static str {
        if matches!(self, Target::Gguf(_)) { "gguf" } else { "safetensors" }
    }

    /// What the matrix `name` of `component` becomes; `None` if it keeps its type.
    fn of(self, component: Component, name: &str, source: &Source) -> Option<Target> {
        if !component.is_quantised(name, &source.shape) {
            return None;
        }
        match self {
            Target::Int8ConvRot if component.0.int8.is_empty() => Some(Target::Int8),
            Target::Int8ConvRot => {
                let rotates = Rotation::of_columns(source.cols).is_some();
                (component.is_int8(name) && rotates).then_some(self)
            }
            _ => Some(self),
        }
    }

    fn block(self) -> usize {
        match self {
            Target::Blocks(dtype) | Target::Gguf(dtype) => dtype.format().map_or(1, |f| f.block),
            _ => 1,
        }
    }
}

/// The file that was written.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Report {
    /// Its path.
    pub path: PathBuf,
    /// Its components.
    pub components: Vec<Component>,
    /// The number of canonical tensors.
    pub tensors: usize,
    /// The number of matrices in the new type; the other tensors keep theirs.
    pub quantised: usize,
    /// Its size in bytes.
    pub bytes: u64,
    /// The size of the same components before, in bytes.
    pub from_bytes: u64,
    /// Components of the model that this kind of file cannot contain.
    pub left_out: Vec<Component>,
}

/// Writes the components of `checkpoint` to `path` as `target`. `tell` receives the number of bytes
/// done and of all bytes, and may stop the conversion.
///
/// # Errors
/// If there is nothing to convert, a weight is not finite, or the file cannot be written.
pub fn convert(
    checkpoint: &Checkpoint,
    target: Target,
    path: &Path,
    tell: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Report> {
    start_shared_threads()?;
    let present: Vec<Component> = checkpoint.components().collect();
    let gguf = matches!(target, Target::Gguf(_));
    // A GGUF file contains one component: loaders expect only one.
    let holds = |c: &Component| !gguf || present.first() == Some(c);
    let (components, left_out): (Vec<_>, Vec<_>) = present.iter().copied().partition(holds);
    let readable = |c: &&Component| !gguf || c.gguf.is_some();
    let Some(first) = components.first().filter(readable).copied() else {
        return Err(Error::model("there is no component to convert")
            .at(&checkpoint.name)
            .expected(if gguf {
                "a FLUX transformer or a T5 encoder"
            } else {
                "a component of a FLUX model"
            }));
    };
    let tensors: usize =
        components.iter().filter_map(|c| checkpoint.get(*c)).map(|w| w.names().count()).sum();
    let from_bytes = components
        .iter()
        .filter_map(|c| checkpoint.get(*c))
        .map(ComponentWeights::stored_bytes)
        .sum();
    let mut work = Work { done: 0, all: from_bytes, tell };
    let mut stored = Vec::new();
    let mut quantised = 0;
    for &component in &components {
        let weights = checkpoint.get(component).expect("it is present");
        let prefix = if components.len() == 1 { "" } else { component.comfy_prefix };
        for name in weights.names() {
            let source = Source::new(weights, name)?;
            let out_name = match gguf {
                true => component.gguf_name(name),
                false => format!("{prefix}{name}"),
            };
            if let Some(target) = target.of(component, name, &source) {
                quantised += 1;
                stored.extend(quantise(&out_name, source, target, &mut work)?);
            } else {
                stored.push(kept(out_name, source, gguf));
            }
        }
    }
    let container = match gguf {
        true => Container::Gguf { architecture: first.0.gguf.unwrap_or_default() },
        false => Container::Safetensors,
    };
    let written = container.layout(stored, &metadata(checkpoint, &components));
    work.all = work.done + written.bytes;
    write(path, written.bytes, |file, io| fill(file, &written, &mut work, io))?;
    Ok(Report {
        path: path.into(),
        components,
        tensors,
        quantised,
        bytes: written.bytes,
        from_bytes,
        left_out,
    })
}

/// The progress of a conversion.
struct Work<'a> {
    done: u64,
    all: u64,
    tell: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

impl Work<'_> {
    fn add(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        match (self.tell)(self.done, self.all.max(self.done)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("stopped")),
        }
    }
}

/// A tensor that keeps its type, or becomes BF16 if its type is not a wide one.
fn kept(name: String, source: Source, gguf: bool) -> OutputTensor {
    let vector = source.shape.len() <= 1;
    let dtype = match source.stored() {
        // Loaders of GGUF add biases in the type that they find.
        _ if gguf && vector => DType::F32,
        Some(dtype) if dtype.is_wide() => dtype,
        _ => DType::BF16,
    };
    OutputTensor {
        name,
        dtype: dtype.name(),
        shape: source.shape.clone(),
        make: Make::Plain { source, dtype },
    }
}

/// A matrix in the new type, with its companions.
fn quantise<'a>(
    name: &str,
    source: Source<'a>,
    target: Target,
    work: &mut Work,
) -> Result<Vec<OutputTensor<'a>>> {
    let (rows, cols) = (source.rows, source.cols);
    let layer = name.strip_suffix(".weight").unwrap_or(name).to_string();
    let record = |format: &str| format_record(&layer, format);
    let scalar = |ending: &str, value: f32| scalar(&layer, ending, value);
    if !cols.is_multiple_of(target.block()) {
        return Ok(match target {
            Target::Gguf(_) if cols.is_multiple_of(32) => {
                let format = DType::Q8_0.format().expect("Q8_0 is a format");
                vec![OutputTensor {
                    name: name.into(),
                    dtype: format.name,
                    shape: vec![rows, cols],
                    make: Make::Blocks { source, format, whole: 0.0 },
                }]
            }
            _ => vec![kept(name.into(), source, matches!(target, Target::Gguf(_)))],
        });
    }
    let eight = |name: String, source, dtype: DType, scales: Arc<[f32]>| OutputTensor {
        name,
        dtype: dtype.name(),
        shape: vec![rows, cols],
        make: Make::Eight { source, dtype, scales },
    };
    // A scale that is too small for f32 would be 0; such values are negligible.
    let scale = |v: f32, top: f32| if v / top >= f32::MIN_POSITIVE { v / top } else { 1.0 };
    Ok(match target {
        Target::Fp8 | Target::Aredden => {
            let whole = largest(&source, work)?.into_iter().fold(0f32, f32::max);
            let s = scale(whole, 448.0);
            if target == Target::Fp8 {
                let tensor = eight(name.into(), source, DType::F8E4M3, [s].into());
                vec![tensor, scalar(".weight_scale", s), record("float8_e4m3fn")]
            } else {
                let zero = bytes(name.into(), "BF16", vec![0, 0]);
                let zero = OutputTensor { shape: vec![1], ..zero };
                let tensor =
                    eight(format!("{layer}.float8_data"), source, DType::F8E4M3, [s].into());
                vec![tensor, zero, scalar(".scale", 1.0 / s), scalar(".scale_reciprocal", s)]
            }
        }
        Target::Fp8Rows | Target::Int8 => {
            let (dtype, top, format) = match target {
                Target::Int8 => (DType::I8, 127.0, "int8_tensorwise"),
                _ => (DType::F8E4M3, 448.0, "float8_e4m3fn"),
            };
            let scales: Arc<[f32]> =
                largest(&source, work)?.into_iter().map(|v| scale(v, top)).collect();
            let values = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            let beside = OutputTensor {
                shape: vec![rows, 1],
                ..bytes(format!("{layer}.weight_scale"), "F32", values)
            };
            vec![eight(name.into(), source, dtype, scales), beside, record(format)]
        }
        Target::Int8ConvRot => rotated::quantise(name, &layer, source, work)?,
        Target::Gguf(dtype) => {
            let format = dtype.format().expect("targets are formats");
            let make = Make::Blocks { source, format, whole: 0.0 };
            vec![OutputTensor {
                name: name.into(),
                dtype: format.name,
                shape: vec![rows, cols],
                make,
            }]
        }
        Target::Blocks(dtype) => quantise_blocks(name, &layer, source, dtype, work)?,
    })
}

/// A matrix in blocks (mxfp8, nvfp4, or a 4-bit type of bitsandbytes), with its companions.
fn quantise_blocks<'a>(
    name: &str,
    layer: &str,
    source: Source<'a>,
    dtype: DType,
    work: &mut Work,
) -> Result<Vec<OutputTensor<'a>>> {
    let (rows, cols) = (source.rows, source.cols);
    let format = dtype.format().expect("targets are formats");
    let whole = match dtype {
        DType::Nvfp4 => largest(&source, work)?.into_iter().fold(0f32, f32::max),
        _ => 0.0,
    };
    let tiles = vec![rows.next_multiple_of(128), (cols / format.block).next_multiple_of(4)];
    let scales = |name: String, dtype: &'static str, shape: Vec<usize>, tiled| {
        let make = Make::BlockScales { source: source.clone(), format, whole, tiled };
        OutputTensor { name, dtype, shape, make }
    };
    let made = Make::Blocks { source: source.clone(), format, whole };
    let tensor =
        |dtype: &'static str, shape| OutputTensor { name: name.into(), dtype, shape, make: made };
    Ok(match dtype {
        DType::Mxfp8 => vec![
            tensor("F8_E4M3", vec![rows, cols]),
            scales(format!("{layer}.weight_scale"), "F8_E8M0", tiles, true),
            format_record(layer, "mxfp8"),
        ],
        DType::Nvfp4 => vec![
            tensor("U8", vec![rows, cols / 2]),
            scales(format!("{layer}.weight_scale"), "F8_E4M3", tiles, true),
            scalar(layer, ".weight_scale_2", crate::dtype::encode::nvfp4_factor(whole)),
            format_record(layer, "nvfp4"),
        ],
        _ => {
            let state = json!({
                "quant_type": format.name,
                "blocksize": format.block,
                "dtype": "bfloat16",
                "shape": [rows, cols],
            });
            let table = if dtype == DType::Fp4 {
                &crate::dtype::blocks::FP4
            } else {
                &crate::dtype::blocks::NF4
            };
            let table = table.iter().flat_map(|v| v.to_le_bytes()).collect();
            let state_name = format!("{name}.quant_state.bitsandbytes__{}", format.name);
            vec![
                tensor("U8", vec![rows * cols / 2, 1]),
                scales(format!("{name}.absmax"), "F32", vec![rows * cols / format.block], false),
                bytes(format!("{name}.quant_map"), "F32", table),
                bytes(state_name, "U8", state.to_string().into()),
            ]
        }
    })
}

/// The largest absolute value of each row of `source`. Reading them counts as work.
fn largest(source: &Source, work: &mut Work) -> Result<Vec<f32>> {
    let largest = source.largest()?;
    work.add(source.stored_bytes())?;
    Ok(largest)
}

/// ComfyUI's record of how the matrix of `layer` is stored.
fn format_record<'a>(layer: &str, format: &str) -> OutputTensor<'a> {
    bytes(record_name(layer), "U8", json!({ "format": format }).to_string().into())
}

fn record_name(layer: &str) -> String {
    format!("{layer}.comfy_quant")
}

/// A number in F32 whose name is `layer` with `ending`.
fn scalar<'a>(layer: &str, ending: &str, value: f32) -> OutputTensor<'a> {
    let tensor = bytes(format!("{layer}{ending}"), "F32", value.to_le_bytes().into());
    OutputTensor { shape: vec![], ..tensor }
}

/// A small tensor that is in memory; a vector.
fn bytes<'a>(name: String, dtype: &'static str, bytes: Vec<u8>) -> OutputTensor<'a> {
    let size = if dtype == "F32" { 4 } else { 1 };
    OutputTensor { name, dtype, shape: vec![bytes.len() / size], make: Make::Bytes(bytes) }
}

/// The metadata of the file: the configurations, which a model of another size than the released
/// ones needs.
fn metadata(checkpoint: &Checkpoint, components: &[Component]) -> BTreeMap<String, String> {
    let mut config = Map::new();
    for &component in components {
        let own =
            checkpoint.get(component).and_then(ComponentWeights::config).cloned().map(|mut c| {
                // How the weights are stored is recognised by their tensors.
                if let Some(object) = c.as_object_mut() {
                    object.remove("quantization_config");
                }
                c
            });
        config.extend(own.map(|c| (component.diffusers.folder.to_string(), c)));
    }
    if components.iter().any(|c| c.role == Role::Transformer) {
        let more = [
            ("scheduler", checkpoint.scheduler.clone()),
            ("generation", checkpoint.generation.clone()),
            (MODEL_INDEX, checkpoint.model_index()),
        ];
        config.extend(more.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?))));
        for component in checkpoint.family.components {
            let tokenizer = component.0.tokenizer.as_ref();
            let length =
                checkpoint.max_length(*component).map(|n| json!({ "model_max_length": n }));
            config.extend(tokenizer.zip(length).map(|(t, length)| (t.folder.to_string(), length)));
        }
    }
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    if !config.is_empty() {
        metadata.insert("config".into(), Value::Object(config).to_string());
    }
    metadata
}

/// Writes the bytes of a model file to `path` as they are, for a model that is not in a file.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn write_bytes(bytes: &[u8], path: &Path) -> Result<()> {
    write(path, bytes.len() as u64, |file, io| file.write_all(bytes).map_err(io))
}

/// Writes a new file of `bytes` bytes by `fill`, whole or not at all.
fn write(
    path: &Path,
    bytes: u64,
    fill: impl FnOnce(&mut File, &dyn Fn(std::io::Error) -> Error) -> Result<()>,
) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |e: std::io::Error| Error::output(format!("cannot be written: {e}")).at_path(path);
    std::fs::create_dir_all(folder).map_err(io)?;
    // Before the space is counted.
    remove_abandoned(folder);
    if let Some(free) = crate::host::free_disk_bytes(folder)
        && free < bytes
    {
        return Err(Error::output("there is not enough space on the disk")
            .at_path(folder)
            .found(units::bytes(free))
            .expected(units::bytes(bytes)));
    }
    let mut file = unfinished_file(folder).map_err(io)?;
    fill(file.as_file_mut(), &io)?;
    file.as_file().sync_all().map_err(io)?;
    // No file is replaced, not even one that was created during the conversion.
    file.persist_noclobber(path).map_err(|e| io(e.error))?;
    Ok(())
}

fn fill(
    file: &mut File,
    layout: &container::Layout,
    work: &mut Work,
    io: &dyn Fn(std::io::Error) -> Error,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&layout.header).map_err(io)?;
    let mut at = layout.header.len() as u64;
    work.add(at)?;
    for (start, tensor) in &layout.tensors {
        // Padding between tensors is zero.
        out.write_all(&vec![0; (start - at) as usize]).map_err(io)?;
        work.add(start - at)?;
        at = *start;
        tensor.make.each(&mut |bytes| {
            at += bytes.len() as u64;
            out.write_all(bytes).map_err(io)?;
            work.add(bytes.len() as u64)
        })?;
        let whole = start + tensor.bytes();
        if at != whole {
            return Err(Error::output("a tensor has another size than planned")
                .at(&tensor.name)
                .found(at)
                .expected(whole));
        }
    }
    out.write_all(&vec![0; (layout.bytes - at) as usize]).map_err(io)?;
    work.add(layout.bytes - at)?;
    out.flush().map_err(io)
}
