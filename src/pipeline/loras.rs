//! The LoRAs of a request: found, read once, put together per weight, and given to programs as
//! sides.
//!
//! Nothing of the model changes: a program with LoRAs is the program without, each `Linear` that
//! has one with a side (`Program::with_sides`). Several LoRAs beside one weight are one pair of
//! matrices with their weights multiplied in, so what a step costs depends on the ranks in all.
//! What was read and put together is kept, so that another picture with the same LoRAs costs
//! nothing, and one with other weights only the multiplication.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rayon::prelude::*;

use super::request::LoraChoice;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::library::places::{ModelPlaces, Role};
use crate::op::{Lora, Program, Use, WeightSpec};
use crate::spec::{Component, Family, Role as Part};
use crate::tensor::HostWeight;
use crate::weights::ComponentWeights;
use crate::weights::lora::{self, Adapter, Combined};

/// Files that were read and are kept open.
const KEPT: usize = 16;

/// What a pipeline knows of LoRAs.
pub struct Loras {
    places: ModelPlaces,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The latest last.
    files: Vec<(File, Arc<Adapter>)>,
    set: Option<Arc<LoraSet>>,
    sets: u32,
}

/// A file as it was when it was read.
#[derive(Clone, PartialEq)]
struct File {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// LoRAs with their weights, ready for programs.
pub struct LoraSet {
    adapters: Vec<(Arc<Adapter>, f32)>,
    /// The user was told of them.
    told: AtomicBool,
    files: Vec<(File, f32)>,
    /// Tells this set from all others of the pipeline.
    pub number: u32,
    /// By weight and its first row; `None` where they do nothing.
    combined: Mutex<HashMap<Beside, Option<Arc<Combined>>>>,
}

type Beside = (Component, String, usize);

fn key(component: Component, spec: &WeightSpec) -> Beside {
    (component, spec.name.clone(), spec.first)
}

impl Loras {
    pub fn new(places: &ModelPlaces) -> Self {
        Loras { places: places.clone(), state: Mutex::default() }
    }

    /// The LoRAs of `choices` for `model`, read and checked whole; those of weight 0 too, though
    /// they then take no part.
    pub fn set<'a>(
        &self,
        choices: &[LoraChoice],
        family: &'static Family,
        weights: &dyn Fn(Component) -> Option<&'a ComponentWeights>,
    ) -> Result<Arc<LoraSet>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        for choice in choices {
            let path = self.path(choice).map_err(|e| e.at(choice.place()))?;
            let metadata = path
                .metadata()
                .map_err(|e| Error::missing(format!("cannot be read: {e}")).at_path(&path))?;
            files.push((
                File { path, bytes: metadata.len(), modified: metadata.modified().ok() },
                choice.strength,
            ));
        }
        if let Some(set) = state.set.as_ref().filter(|s| s.files == files) {
            return Ok(set.clone());
        }
        let mut adapters = Vec::new();
        for ((file, weight), choice) in files.iter().zip(choices) {
            let known = state.files.iter().position(|(f, _)| f == file);
            let adapter = match known {
                Some(at) => {
                    let entry = state.files.remove(at);
                    let adapter = entry.1.clone();
                    state.files.push(entry);
                    adapter
                }
                None => {
                    let opened = open(&file.path, family, weights);
                    let adapter = Arc::new(opened.map_err(|e| e.at(choice.place()))?);
                    state.files.retain(|(f, _)| f.path != file.path);
                    state.files.push((file.clone(), adapter.clone()));
                    adapter
                }
            };
            adapters.push((adapter, *weight));
        }
        while state.files.len() > KEPT.max(files.len()) {
            state.files.remove(0);
        }
        state.sets += 1;
        let set = LoraSet {
            adapters,
            told: AtomicBool::default(),
            files,
            number: state.sets,
            combined: Mutex::default(),
        };
        let set = Arc::new(set);
        state.set = Some(set.clone());
        Ok(set)
    }

    /// A tag in a prompt may come from anyone, so it holds names only; an option may hold a path.
    fn path(&self, choice: &LoraChoice) -> Result<PathBuf> {
        if choice.tag {
            self.places.named(&choice.name, Role::Lora)
        } else {
            self.places.resolve(&choice.name, Role::Lora)
        }
    }
}

/// A line for the user about a LoRA, and what of it has no place, if any.
fn told(path: &Path, weight: f32, adapter: &Adapter) -> (String, Option<String>) {
    let s = &adapter.summary;
    let ranks: Vec<String> = s.ranks.keys().map(usize::to_string).collect();
    let line = format!(
        "lora: {} at {weight} ({}, rank {}, {} of {} keys used)",
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

/// The LoRA at `path`, checked whole against a model's components.
pub fn open<'a>(
    path: &Path,
    family: &'static Family,
    of: &dyn Fn(Component) -> Option<&'a ComponentWeights>,
) -> Result<Adapter> {
    // Only matrices of `Linear` can have a side.
    lora::open(path, family, &|component, name| {
        let weights = of(component)?;
        weights.full_shape(name).filter(|shape| component.is_matrix(name, shape))?;
        weights.shape(name)
    })
}

impl LoraSet {
    /// These LoRAs, each with its weight, for programs that are run without a pipeline.
    pub fn of(adapters: Vec<(Arc<Adapter>, f32)>) -> LoraSet {
        LoraSet {
            adapters,
            told: AtomicBool::default(),
            files: vec![],
            number: 1,
            combined: Mutex::default(),
        }
    }

    /// What the user should know of them, once.
    pub fn tell(&self) -> Vec<Event> {
        if self.told.swap(true, Ordering::Relaxed) {
            return vec![];
        }
        let mut events = vec![];
        for ((adapter, weight), (file, _)) in self.adapters.iter().zip(&self.files) {
            let (line, unmatched) = told(&file.path, *weight, adapter);
            events.push(Event::Note(line));
            events.extend(unmatched.map(Event::Warning));
            events.extend(adapter.summary.notes.iter().cloned().map(Event::Note));
        }
        events
    }

    /// The same as lines, for a plan.
    pub fn lines(&self) -> Vec<String> {
        let told = self
            .adapters
            .iter()
            .zip(&self.files)
            .map(|((a, weight), (f, _))| told(&f.path, *weight, a));
        told.flat_map(|(line, unmatched)| [Some(line), unmatched]).flatten().collect()
    }

    /// Whether `component` is changed by any of them.
    pub fn touches(&self, component: Component) -> bool {
        self.adapters
            .iter()
            .any(|(a, s)| *s != 0.0 && a.pairs().iter().any(|p| p.component == component))
    }

    /// What text embeddings depend on: the files with their weights, as far as they change a text
    /// encoder.
    pub fn text_key(&self) -> String {
        let text = |p: &lora::Pair| matches!(p.component.role, Part::Text(_));
        let touched = self.adapters.iter().any(|(a, s)| *s != 0.0 && a.pairs().iter().any(text));
        if !touched {
            return String::new();
        }
        let files = self
            .files
            .iter()
            .map(|(f, s)| format!("{} {} {:?} {s}", f.path.display(), f.bytes, f.modified));
        files.collect::<Vec<_>>().join("; ")
    }

    /// The most bytes that the matrices take when they are put together: beside a weight, all ranks
    /// by its rows and columns, in F32. Beside weights narrower than that it is half.
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

    /// `program` with the sides that these LoRAs give it, and the weights that it then names, in
    /// its order. Nothing of the model is copied.
    pub fn apply(
        &self,
        weights: &ComponentWeights,
        program: Program,
    ) -> Result<(Program, Vec<HostWeight>)> {
        let component = weights.component();
        let program = self.beside(component, weights, program)?;
        let resolved = program.weights.iter().map(|w| match w.lora {
            None => weights.get(&w.name, w.first, w.rows, w.cols),
            Some(which) => self.matrix(component, w, which),
        });
        let resolved = resolved.collect::<Result<_>>()?;
        Ok((program, resolved))
    }

    /// `program` with a side at every weight that these LoRAs are beside.
    fn beside(
        &self,
        component: Component,
        weights: &ComponentWeights,
        program: Program,
    ) -> Result<Program> {
        if !self.touches(component) {
            return Ok(program);
        }
        let uses = program.uses();
        let beside = |spec: &WeightSpec| {
            self.adapters.iter().any(|(a, _)| !a.of(component, &spec.name).is_empty())
        };
        let mut combined = self.combined.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&WeightSpec> = program
            .weights
            .iter()
            .zip(&uses)
            .filter(|(spec, how)| **how == Use::Matrix && spec.lora.is_none() && beside(spec))
            .map(|(spec, _)| spec)
            .filter(|spec| !combined.contains_key(&key(component, spec)))
            .collect();
        let loras: Vec<(&Adapter, f32)> =
            self.adapters.iter().map(|(a, s)| (a.as_ref(), *s)).collect();
        let made = new.into_par_iter().map(|spec| {
            // As wide as the weight itself: f32 beside f32, else bf16.
            let stored = weights.get(&spec.name, spec.first, spec.rows, spec.cols)?.stored();
            let dtype = if stored.has(DType::F32) { DType::F32 } else { DType::BF16 };
            let pair = lora::combine(
                &loras,
                component,
                &spec.name,
                spec.first..spec.first + spec.rows,
                dtype,
            )?;
            Ok((key(component, spec), pair.map(Arc::new)))
        });
        combined.extend(made.collect::<Result<Vec<_>>>()?);
        let rank = |spec: &WeightSpec| {
            let pair = combined.get(&key(component, spec))?.as_ref()?;
            assert_eq!(
                (pair.b.rows, pair.a.cols),
                (spec.rows, spec.cols),
                "one weight is used in two ways"
            );
            Some(pair.rank())
        };
        Ok(program.with_sides(&rank))
    }

    /// The matrix of a side.
    fn matrix(&self, component: Component, spec: &WeightSpec, which: Lora) -> Result<HostWeight> {
        let combined = self.combined.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Some(pair)) = combined.get(&key(component, spec)) else {
            return Err(
                Error::device("a program names a LoRA that was not put together").at(&spec.name)
            );
        };
        let part = if which == Lora::Down { pair.a.clone() } else { pair.b.clone() };
        Ok(HostWeight { rows: part.rows, cols: part.cols, parts: vec![part] })
    }
}
