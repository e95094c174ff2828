//! LoRAs with their strengths, merged per weight and applied to programs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rayon::prelude::*;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::library::file_hash;
use crate::op::{Program, SideFactor, Use, WeightSpec};
use crate::spec::{Component, Role};
use crate::tensor::HostWeight;
use crate::weights::ComponentWeights;
use crate::weights::lora::{self, Adapter, Combined};

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    pub path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device, number, and the time of the last change of the file itself, where there are any: a
    /// copy may have the length and the modification time of another file.
    inode: Option<[i64; 4]>,
}

/// How often a file is read again that was replaced in the meantime.
const READS: usize = 5;

impl LoraFile {
    /// The file at `path` as it is now.
    pub fn at(path: PathBuf) -> Result<LoraFile> {
        let metadata = path
            .metadata()
            .map_err(|e| Error::missing(format!("cannot be read: {e}")).at_path(&path))?;
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            let (device, number) = (metadata.dev() as i64, metadata.ino() as i64);
            Some([device, number, metadata.ctime(), metadata.ctime_nsec()])
        };
        #[cfg(not(unix))]
        let inode = None;
        Ok(LoraFile { path, bytes: metadata.len(), modified: metadata.modified().ok(), inode })
    }

    /// Calls `read` with the path. If the file is replaced meanwhile, it is read again, and this
    /// becomes the file that was read.
    ///
    /// # Errors
    /// Those of `read`; [`Kind::Model`](crate::error::Kind::Model) if the file is replaced again
    /// and again.
    pub fn read<T>(&mut self, mut read: impl FnMut(&Path) -> Result<T>) -> Result<T> {
        for _ in 0..READS {
            let outcome = read(&self.path);
            let now = LoraFile::at(self.path.clone())?;
            if std::mem::replace(self, now.clone()) == now {
                return outcome;
            }
        }
        Err(Error::model("the file is replaced again and again while it is read")
            .at_path(&self.path)
            .try_("run again when the program that writes it has ended"))
    }
}

/// LoRAs with their strengths, ready for programs.
pub struct LoraSet {
    adapters: Vec<(Arc<Adapter>, f32)>,
    /// The user was informed about them.
    reported: AtomicBool,
    files: Vec<(LoraFile, f32)>,
    /// Distinguishes this set from all others of the pipeline.
    pub number: u32,
    /// The merged pair of each weight; `None` if the set has no effect on the weight.
    merged: Mutex<HashMap<MergeKey, Option<Arc<Combined>>>>,
}

/// Component, name and first row of a weight.
type MergeKey = (Component, String, usize);

fn merge_key(component: Component, spec: &WeightSpec) -> MergeKey {
    (component, spec.name.clone(), spec.first)
}

impl LoraSet {
    /// `adapters` with their strengths, read from `files`.
    pub(super) fn new(
        adapters: Vec<(Arc<Adapter>, f32)>,
        files: Vec<(LoraFile, f32)>,
        number: u32,
    ) -> LoraSet {
        LoraSet {
            adapters,
            reported: AtomicBool::default(),
            files,
            number,
            merged: Mutex::default(),
        }
    }

    /// `adapters` with their strengths, for programs that run without a pipeline.
    pub fn of(adapters: Vec<(Arc<Adapter>, f32)>) -> LoraSet {
        LoraSet::new(adapters, vec![], 1)
    }

    /// Whether the set was read from `files`, with these strengths.
    pub(super) fn is_of(&self, files: &[(LoraFile, f32)]) -> bool {
        self.files == files
    }

    /// A hash of each file, in the order of the choices; empty where it cannot be read any more.
    pub fn hashes(&self) -> Vec<String> {
        let hash = |(file, _): &(LoraFile, f32)| file_hash(&file.path).unwrap_or_default();
        self.files.iter().map(hash).collect()
    }

    /// Notes and warnings about the LoRAs: all of them at the first call, none later.
    pub fn events(&self) -> Vec<Event> {
        if self.reported.swap(true, Ordering::Relaxed) {
            return vec![];
        }
        let mut events = vec![];
        for ((adapter, strength), (file, _)) in self.adapters.iter().zip(&self.files) {
            let (line, unmatched) = describe(&file.path, *strength, adapter);
            events.push(Event::note(line));
            events.extend(unmatched.map(Event::warning));
            events.extend(adapter.summary.notes.iter().cloned().map(Event::note));
        }
        events
    }

    /// The same as lines of a plan's report.
    pub fn lines(&self) -> Vec<String> {
        let pairs = self.adapters.iter().zip(&self.files);
        pairs
            .map(|((adapter, strength), (file, _))| describe(&file.path, *strength, adapter))
            .flat_map(|(line, unmatched)| [Some(line), unmatched])
            .flatten()
            .collect()
    }

    /// Whether any LoRA of the set changes a pair for which `which` is true.
    fn changes(&self, which: impl Fn(&lora::Pair) -> bool) -> bool {
        self.adapters.iter().any(|(a, strength)| *strength != 0.0 && a.pairs().iter().any(&which))
    }

    /// Whether any LoRA of the set changes `component`.
    pub fn touches(&self, component: Component) -> bool {
        self.changes(|pair| pair.component == component)
    }

    /// What text embeddings depend on: the files with their strengths, if they change a text
    /// encoder; else empty.
    pub fn text_key(&self) -> String {
        if !self.changes(|pair| matches!(pair.component.role, Role::Text(_))) {
            return String::new();
        }
        let files = self
            .files
            .iter()
            .map(|(f, s)| format!("{} {} {:?} {s}", f.path.display(), f.bytes, f.modified));
        files.collect::<Vec<_>>().join("; ")
    }

    /// Upper bound of the size of the merged matrices, in bytes: for each weight the sum of the
    /// ranks times its rows and columns, in F32. Half of it if the weights are narrower than F32.
    pub fn bytes(&self) -> u64 {
        let mut weights: HashMap<(Component, &str), (u64, u64)> = HashMap::new();
        for pair in self.adapters.iter().filter(|(_, s)| *s != 0.0).flat_map(|(a, _)| a.pairs()) {
            let rows = pair.blocks.iter().map(|b| b.row + b.rows).max().unwrap_or(0);
            let (rank, size) = weights.entry((pair.component, &pair.weight)).or_default();
            *rank += pair.a.rows as u64;
            *size = (*size).max((rows + pair.a.cols) as u64);
        }
        weights.values().map(|(rank, size)| 4 * rank * size).sum()
    }

    /// `program` with a side product for every weight that these LoRAs change, and all the weights
    /// that it then needs, in its order. `weights` is the component that the program runs; nothing
    /// of it is copied.
    pub fn apply(
        &self,
        weights: &ComponentWeights,
        program: Program,
    ) -> Result<(Program, Vec<HostWeight>)> {
        let component = weights.component();
        let program = self.with_sides(component, weights, program)?;
        let resolved = program.weights.iter().map(|w| match w.side {
            None => weights.get(&w.name, w.first, w.rows, w.cols),
            Some(which) => self.matrix(component, w, which),
        });
        let resolved = resolved.collect::<Result<_>>()?;
        Ok((program, resolved))
    }

    fn with_sides(
        &self,
        component: Component,
        weights: &ComponentWeights,
        program: Program,
    ) -> Result<Program> {
        if !self.touches(component) {
            return Ok(program);
        }
        self.merge(component, weights, &program)?;
        let merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        let rank = |spec: &WeightSpec| {
            let pair = merged.get(&merge_key(component, spec))?.as_ref()?;
            assert_eq!(
                (pair.b.rows, pair.a.cols),
                (spec.rows, spec.cols),
                "one weight is used in two ways"
            );
            Some(pair.rank())
        };
        Ok(program.with_sides(&rank))
    }

    /// Merges the LoRAs of every weight of `program` that was not merged before.
    fn merge(
        &self,
        component: Component,
        weights: &ComponentWeights,
        program: &Program,
    ) -> Result<()> {
        let mut merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        let has_pair = |spec: &WeightSpec| {
            self.adapters.iter().any(|(a, _)| !a.of(component, &spec.name).is_empty())
        };
        let new: Vec<&WeightSpec> = program
            .weights
            .iter()
            .zip(program.uses())
            .filter(|(spec, how)| *how == Use::Matrix && spec.side.is_none() && has_pair(spec))
            .map(|(spec, _)| spec)
            .filter(|spec| !merged.contains_key(&merge_key(component, spec)))
            .collect();
        let loras: Vec<(&Adapter, f32)> =
            self.adapters.iter().map(|(a, s)| (a.as_ref(), *s)).collect();
        let pairs = new.into_par_iter().map(|spec| {
            // F32 for an F32 weight, else BF16.
            let stored = weights.get(&spec.name, spec.first, spec.rows, spec.cols)?.stored();
            let dtype = if stored.has(DType::F32) { DType::F32 } else { DType::BF16 };
            let rows = spec.first..spec.first + spec.rows;
            let pair = lora::combine(&loras, component, &spec.name, rows, dtype)?;
            Ok((merge_key(component, spec), pair.map(Arc::new)))
        });
        merged.extend(pairs.collect::<Result<Vec<_>>>()?);
        Ok(())
    }

    /// One matrix of a merged pair.
    fn matrix(
        &self,
        component: Component,
        spec: &WeightSpec,
        which: SideFactor,
    ) -> Result<HostWeight> {
        let merged = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(pair)) = merged.get(&merge_key(component, spec)) else {
            return Err(Error::device("a program names a LoRA that was not merged").at(&spec.name));
        };
        let part = if which == SideFactor::Down { pair.a.clone() } else { pair.b.clone() };
        Ok(HostWeight { rows: part.rows, cols: part.cols, parts: vec![part] })
    }
}

/// A line for the user about a LoRA, and one about its tensors that match no weight, if there are
/// any.
fn describe(path: &Path, strength: f32, adapter: &Adapter) -> (String, Option<String>) {
    let s = &adapter.summary;
    let ranks: Vec<String> = s.ranks.keys().map(usize::to_string).collect();
    let line = format!(
        "lora: {} at {strength} ({}, rank {}, {} of {} keys used)",
        path.display(),
        s.dialect,
        ranks.join(", "),
        s.matched,
        s.matched + s.unmatched
    );
    let unmatched = (s.unmatched > 0).then(|| {
        let first: Vec<String> =
            s.first_unmatched.iter().map(|u| format!("{} ({})", u.key, u.why)).collect();
        let keys = if s.unmatched == 1 { "key" } else { "keys" };
        format!("{} {keys} of {} are not used: {}", s.unmatched, path.display(), first.join("; "))
    });
    (line, unmatched)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let time = SystemTime::UNIX_EPOCH;
        // The same length and the same time: only the file is another one.
        let put = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        put("old");
        let mut file = LoraFile::at(path.clone()).unwrap();
        let before = file.clone();
        let mut reads = 0;
        let text = file.read(|path| {
            reads += 1;
            let text = std::fs::read_to_string(path).unwrap();
            if reads == 1 {
                put("new");
            }
            Ok(text)
        });
        assert_eq!((text.unwrap().as_str(), reads), ("new", 2));
        assert_eq!(file, LoraFile::at(path.clone()).unwrap());
        assert_ne!(file, before);
        // A file that never rests is an error.
        let mut n = 0;
        let e = file.read(|_| {
            n += 1;
            std::fs::write(&path, "x".repeat(10 + n)).unwrap();
            Ok(())
        });
        assert!(e.unwrap_err().to_string().contains("again and again"));
    }
}
