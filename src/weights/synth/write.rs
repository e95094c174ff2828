//! Lays out synthetic tensors in the files of a dialect, and streams them: one chunk is computed
//! while the previous one is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::values::{Field, Rounding, fill, stored_scale};
use super::{Dialect, Storage, SynthSpec};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::host::{remove_abandoned, start_shared_threads, unfinished_file};
use crate::spec::names::{Split, StoredNames};
use crate::spec::{Component, FAMILIES, Role};
use crate::weights::container::write::{TensorHeader, safetensors_header};

/// Bytes that are computed at a time. Writing needs memory for two such chunks.
const CHUNK: usize = 32 << 20;
/// Bytes that one thread computes at a time.
const PIECE: usize = 256 << 10;

/// A tensor of a file.
pub(super) struct SynthTensor {
    pub name: String,
    /// The container's name of the element type.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub content: Content,
}

/// What a stored tensor is made of.
pub(super) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Ranges of elements (first, count) of a canonical tensor, in sequence.
    Values { field: Field, rounding: Rounding, dtype: DType, scale: f32, runs: Vec<(u64, u64)> },
}

impl SynthTensor {
    fn scalar(name: String, value: f32) -> Self {
        SynthTensor {
            name,
            dtype: "F32",
            shape: vec![],
            content: Content::Bytes(value.to_le_bytes().into()),
        }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Bytes(b) => b.len() as u64,
            Content::Values { dtype, runs, .. } => {
                runs.iter().map(|r| r.1).sum::<u64>() * dtype.size() as u64
            }
        }
    }

    /// Wide elements come first, so that every tensor is aligned.
    fn width(&self) -> u64 {
        match &self.content {
            Content::Bytes(_) if self.dtype == "F32" => 4,
            Content::Bytes(_) => 1,
            Content::Values { dtype, .. } => dtype.size() as u64,
        }
    }
}

/// A file to write: its tensors and its metadata.
pub(super) struct Plan {
    pub tensors: Vec<SynthTensor>,
    pub metadata: BTreeMap<String, String>,
}

/// Writes the checkpoint to `path` (see [`Dialect`] for what that is) and returns the weight files.
/// Each file gets a temporary name first, and is renamed when it is complete.
pub fn write(spec: &SynthSpec, path: &Path) -> Result<Vec<PathBuf>> {
    match spec.dialect {
        Dialect::Comfy => {
            write_file(&comfy(spec)?, path)?;
            Ok(vec![path.into()])
        }
        Dialect::Bfl => write_bfl(spec, path),
        Dialect::Diffusers { shard_bytes } => write_diffusers(spec, path, shard_bytes),
    }
}

/// The progress of a long write, for another thread.
#[derive(Debug, Default)]
pub struct Watch {
    /// The number of bytes that are written.
    pub written: AtomicU64,
    /// Set this to stop the write; the temporary file is then removed.
    pub stop: AtomicBool,
}

/// Like [`write()`] for [`Dialect::Comfy`], with progress in `watch`.
pub fn write_watched(spec: &SynthSpec, path: &Path, watch: &Watch) -> Result<()> {
    let plan = comfy(spec)?;
    let written = place(path, |file| stream(&plan, &mut Watched { file, watch }));
    if watch.stop.load(Ordering::Relaxed) {
        Err(Error::cancelled("stopped").at_path(path))
    } else {
        written
    }
}

struct Watched<'a> {
    file: &'a mut std::fs::File,
    watch: &'a Watch,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.watch.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("stopped"));
        }
        let n = self.file.write(bytes)?;
        self.watch.written.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The checkpoint as the bytes of one file with ComfyUI's names, whatever dialect the spec has. For
/// small models in memory.
pub fn to_bytes(spec: &SynthSpec) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream(&comfy(spec)?, &mut bytes)
        .map_err(|e| Error::output(format!("the checkpoint cannot be written: {e}")))?;
    Ok(bytes)
}

/// One file in ComfyUI's layout.
pub(super) fn comfy(spec: &SynthSpec) -> Result<Plan> {
    let mut tensors = Vec::new();
    for component in present(spec) {
        tensors.extend(component_tensors(spec, component, component.comfy_prefix, false)?);
    }
    let all = spec.configs.as_object().cloned().unwrap_or_default();
    Ok(Plan { tensors, metadata: config_metadata(all) })
}

fn write_bfl(spec: &SynthSpec, path: &Path) -> Result<Vec<PathBuf>> {
    let present: Vec<Component> = present(spec);
    let single = path.extension().is_some_and(|e| e == "safetensors");
    if single && present.len() != 1 {
        return Err(Error::argument("one file in BFL's names contains one component")
            .at_path(path)
            .found(format!("{} components", present.len()))
            .try_("give a folder"));
    }
    let mut written = Vec::new();
    for component in present {
        let name = component.files.written;
        let mut keys = vec![component.diffusers.folder];
        if component.role == Role::Transformer {
            keys.extend(["scheduler", "generation"]);
            keys.extend(tokenizers(spec));
        }
        let config = keys
            .iter()
            .filter_map(|k| Some((k.to_string(), spec.configs.get(*k)?.clone())))
            .collect();
        let plan = Plan {
            tensors: component_tensors(spec, component, "", false)?,
            metadata: config_metadata(config),
        };
        let file = if single { path.to_path_buf() } else { path.join(name) };
        write_file(&plan, &file)?;
        written.push(file);
    }
    Ok(written)
}

fn write_diffusers(
    spec: &SynthSpec,
    root: &Path,
    shard_bytes: Option<u64>,
) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let present = present(spec);
    let family = present.first().and_then(|c| FAMILIES.of(*c));
    let class = family.map_or("DiffusionPipeline", |f| f.pipeline_class);
    let mut index = Map::from_iter([("_class_name".to_string(), json!(class))]);
    for component in present {
        let place = &component.0.diffusers;
        let (python_library, class) = (place.python_library, place.class);
        index.insert(place.folder.into(), json!([python_library, class]));
        let folder = root.join(place.folder);
        if let Some(config) = spec.configs.get(place.folder).filter(|c| !c.is_null()) {
            let mut config = config.clone();
            if let Some(object) = config.as_object_mut() {
                match python_library {
                    "diffusers" => object.insert("_class_name".into(), json!(class)),
                    _ => object.insert("architectures".into(), json!([class])),
                };
            }
            write_json(&config, &folder.join("config.json"))?;
        }
        let tensors = component_tensors(spec, component, "", true)?;
        written.extend(write_shards(tensors, &folder, place.stem(), shard_bytes)?);
    }
    let mut extra = vec![
        ("scheduler", "scheduler/scheduler_config.json".to_string()),
        ("generation", "generation_config.json".to_string()),
    ];
    extra.extend(tokenizers(spec).map(|key| (key, format!("{key}/tokenizer_config.json"))));
    for (key, file) in extra {
        if let Some(config) = spec.configs.get(key).filter(|c| !c.is_null()) {
            write_json(config, &root.join(file))?;
        }
    }
    write_json(&Value::Object(index), &root.join("model_index.json"))?;
    Ok(written)
}

/// Splits the tensors, in order, into files of at most `shard_bytes`. If there are several, an
/// index is added.
fn write_shards(
    tensors: Vec<SynthTensor>,
    folder: &Path,
    stem: &str,
    shard_bytes: Option<u64>,
) -> Result<Vec<PathBuf>> {
    let mut shards: Vec<Vec<SynthTensor>> = vec![vec![]];
    let mut room = shard_bytes.unwrap_or(u64::MAX);
    let total: u64 = tensors.iter().map(SynthTensor::bytes).sum();
    for tensor in tensors {
        if tensor.bytes() > room && shards.last().is_some_and(|s| !s.is_empty()) {
            shards.push(vec![]);
            room = shard_bytes.unwrap_or(u64::MAX);
        }
        room = room.saturating_sub(tensor.bytes());
        shards.last_mut().expect("there is always one").push(tensor);
    }
    let count = shards.len();
    let mut weight_map = Map::new();
    let mut written = Vec::new();
    for (i, tensors) in shards.into_iter().enumerate() {
        let name = if count == 1 {
            format!("{stem}.safetensors")
        } else {
            format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1)
        };
        weight_map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_file(&Plan { tensors, metadata }, &folder.join(&name))?;
        written.push(folder.join(name));
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&index, &folder.join(format!("{stem}.safetensors.index.json")))?;
    }
    Ok(written)
}

/// The components of which the spec contains tensors.
fn present(spec: &SynthSpec) -> Vec<Component> {
    spec.tensors.iter().map(|t| t.0).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The keys of the tokenizers' configurations.
fn tokenizers(spec: &SynthSpec) -> impl Iterator<Item = &'static str> {
    present(spec).into_iter().filter_map(|c| c.0.tokenizer.as_ref().map(|t| t.folder))
}

fn config_metadata(config: Map<String, Value>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    if !config.is_empty() {
        metadata.insert("config".into(), Value::Object(config).to_string());
    }
    metadata
}

/// The tensors of `component` as a file stores them, including the scales of scaled fp8.
fn component_tensors(
    spec: &SynthSpec,
    component: Component,
    prefix: &str,
    diffusers: bool,
) -> Result<Vec<SynthTensor>> {
    let mine = || spec.tensors.iter().filter(move |t| t.0 == component);
    let dialect = component.dialect("diffusers").filter(|_| diffusers);
    let levels = dialect.map_or(0, |d| d.naming.levels(mine().map(|t| t.1.as_str())));
    let mut out = Vec::new();
    for (_, name, shape) in mine() {
        let field = Field::new(spec.seed, component, name, shape);
        let rounding = Rounding::of(spec.grid, component, name, shape, &field);
        let matrix = component.is_matrix(name, shape);
        let dtype = match (spec.storage, matrix) {
            (Storage::F32, _) => DType::F32,
            (Storage::F16, _) => DType::F16,
            (Storage::BF16, _) | (_, false) => DType::BF16,
            (Storage::F8E5M2, true) => DType::F8E5M2,
            (_, true) => DType::F8E4M3,
        };
        let scaled = matrix && matches!(spec.storage, Storage::F8ScaledOld | Storage::F8ScaledNew);
        let scale = if scaled { stored_scale(&field, rounding) } else { 1.0 };
        let stored = dialect.and_then(|d| d.naming.write(levels, name));
        let StoredNames { names, split, swapped, flat } =
            stored.unwrap_or_else(|| StoredNames::same(name));
        let rows = shape.first().copied().unwrap_or(1) as u64;
        let cols = shape.iter().skip(1).product::<usize>() as u64;
        let counts = split_rows((rows, cols), (split, names.len()), name, mine())?;
        let mut first = 0;
        for (stored_name, count) in names.into_iter().zip(counts) {
            let mut stored_shape = shape.clone();
            if let Some(axis) = stored_shape.first_mut() {
                *axis = count as usize;
            }
            if flat {
                stored_shape.truncate(2);
            }
            let runs = match swapped {
                false => vec![(first * cols, count * cols)],
                true => vec![(rows / 2 * cols, (rows - rows / 2) * cols), (0, rows / 2 * cols)],
            };
            let name = format!("{prefix}{stored_name}");
            if let (true, Some(layer)) = (scaled, name.strip_suffix(".weight")) {
                out.extend(companions(spec.storage, layer, scale));
            }
            let content = Content::Values { field, rounding, dtype, scale, runs };
            out.push(SynthTensor { name, dtype: dtype.name(), shape: stored_shape, content });
            first += count;
        }
    }
    if spec.storage == Storage::F8ScaledOld && !out.is_empty() {
        let marker = Content::Bytes(vec![]);
        out.push(SynthTensor {
            name: format!("{prefix}scaled_fp8"),
            dtype: "F8_E4M3",
            shape: vec![0],
            content: marker,
        });
    }
    Ok(out)
}

fn companions(storage: Storage, layer: &str, scale: f32) -> Vec<SynthTensor> {
    if storage == Storage::F8ScaledOld {
        return vec![SynthTensor::scalar(format!("{layer}.scale_weight"), scale)];
    }
    let record = br#"{"format":"float8_e4m3fn"}"#.to_vec();
    let (name, shape) = (format!("{layer}.comfy_quant"), vec![record.len()]);
    vec![
        SynthTensor::scalar(format!("{layer}.weight_scale"), scale),
        SynthTensor { name, dtype: "U8", shape, content: Content::Bytes(record) },
    ]
}

/// The number of rows of each stored part.
fn split_rows<'a>(
    (rows, cols): (u64, u64),
    (split, parts): (Split, usize),
    name: &str,
    mut tensors: impl Iterator<Item = &'a (Component, String, Vec<usize>)>,
) -> Result<Vec<u64>> {
    let width = match name.strip_suffix(".bias") {
        // A bias has no columns that show the width, but its weight has.
        Some(layer) if split == Split::Square => {
            let weight = format!("{layer}.weight");
            tensors.find(|t| t.1 == weight).and_then(|t| t.2.get(1)).map_or(0, |n| *n as u64)
        }
        _ => cols,
    };
    let (count, first) = (parts as u64, (parts as u64 - 1) * width);
    let counts = match split {
        Split::Equal if rows.is_multiple_of(count) => vec![rows / count; parts],
        Split::Square if first < rows => {
            let mut counts = vec![width; parts - 1];
            counts.push(rows - first);
            counts
        }
        _ => {
            return Err(Error::argument("fused tensor cannot be split as diffusers does")
                .at(name)
                .found(format!("{rows} rows")));
        }
    };
    Ok(counts)
}

fn unwritable(path: &Path, e: std::io::Error) -> Error {
    Error::output(format!("cannot be written: {e}")).at_path(path)
}

fn write_json(value: &Value, path: &Path) -> Result<()> {
    place(path, |file| file.write_all(format!("{value:#}\n").as_bytes()))
}

fn write_file(plan: &Plan, path: &Path) -> Result<()> {
    place(path, |file| stream(plan, file))
}

/// Calls `write` with a temporary file in the folder of `path`, then renames that file.
fn place(path: &Path, write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |e| unwritable(path, e);
    std::fs::create_dir_all(folder).map_err(io)?;
    start_shared_threads()?;
    remove_abandoned(folder);
    let mut file = unfinished_file(folder).map_err(io)?;
    write(file.as_file_mut()).map_err(io)?;
    file.persist(path).map_err(|e| unwritable(path, e.error))?;
    Ok(())
}

/// The tensors in the order in which they are in the file, and the header of the file.
fn layout(plan: &Plan) -> (Vec<&SynthTensor>, Vec<u8>) {
    let mut order: Vec<&SynthTensor> = plan.tensors.iter().collect();
    order.sort_by_key(|t| std::cmp::Reverse(t.width()));
    let headers = order.iter().map(|t| TensorHeader {
        name: &t.name,
        dtype: t.dtype,
        shape: &t.shape,
        bytes: t.bytes(),
    });
    let header = safetensors_header(&plan.metadata, headers);
    (order, header)
}

/// Like [`write()`] for [`Dialect::Comfy`], but all values are zero and occupy no disk space on a
/// file system with sparse files: full-size geometry without delay, for testing plans and
/// transfers.
pub fn write_hollow(spec: &SynthSpec, path: &Path) -> Result<()> {
    let plan = comfy(spec)?;
    place(path, |file| {
        let (order, header) = layout(&plan);
        file.write_all(&header)?;
        let mut at = header.len() as u64;
        for tensor in order {
            if let Content::Bytes(bytes) = &tensor.content {
                file.seek(SeekFrom::Start(at))?;
                file.write_all(bytes)?;
            }
            at += tensor.bytes();
        }
        file.set_len(at)
    })
}

fn stream(plan: &Plan, out: &mut (impl Write + Send)) -> std::io::Result<()> {
    let (order, header) = layout(plan);
    out.write_all(&header)?;

    let (mut ready, mut next) = (Vec::new(), Vec::new());
    for tensor in order {
        match &tensor.content {
            Content::Bytes(bytes) => {
                out.write_all(&ready)?;
                ready.clear();
                out.write_all(bytes)?;
            }
            Content::Values { field, rounding, dtype, scale, runs } => {
                for &(first, count) in runs {
                    let mut done = 0;
                    while done < count {
                        let n = (count - done).min((CHUNK / dtype.size()) as u64);
                        next.resize(n as usize * dtype.size(), 0u8);
                        let make = || {
                            next.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
                                let at = first + done + (i * PIECE / dtype.size()) as u64;
                                fill(piece, *dtype, field, *rounding, *scale, at);
                            });
                        };
                        rayon::join(|| out.write_all(&ready), make).0?;
                        std::mem::swap(&mut ready, &mut next);
                        done += n;
                    }
                }
            }
        }
    }
    out.write_all(&ready)?;
    out.flush()
}
