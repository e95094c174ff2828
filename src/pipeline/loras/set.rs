//! LoRAs with their strengths, merged per weight and applied to programs.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::describe::describe;
use crate::backend::Int8Use;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::library::file_hash;
use crate::op::{
    LinearChange, LinearTerm, Program, SideFactor, TermFactor, TermKind, Use, WeightSpec,
};
use crate::pipeline::int8;
use crate::pipeline::opened_file::OpenedFile;
use crate::pipeline::request::LoraChoice;
use crate::spec::lora::ADDED_INPUTS;
use crate::spec::{Component, Role};
use crate::tensor::{HostPart, HostWeight};
use crate::weights::ComponentWeights;
use crate::weights::lora::{self, Adapter, Combined, Merged, Target, TermMatrix};

/// How strongly a LoRA changes the components of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strengths {
    /// The strength for the transformer.
    pub transformer: f32,
    /// The strength for the text encoders.
    pub text: f32,
}

impl Strengths {
    /// The strengths of a choice.
    pub fn of(choice: &LoraChoice) -> Self {
        let text = choice.text_strength.unwrap_or(choice.strength);
        Strengths { transformer: choice.strength, text }
    }

    /// The strength for a component.
    pub(super) fn at(self, component: Component) -> f32 {
        if component.role == Role::Transformer { self.transformer } else { self.text }
    }
}

/// The same strength for all components.
impl From<f32> for Strengths {
    fn from(strength: f32) -> Self {
        Strengths { transformer: strength, text: strength }
    }
}

impl fmt::Display for Strengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.transformer)?;
        match self.text == self.transformer {
            true => Ok(()),
            false => write!(f, ", text encoders {}", self.text),
        }
    }
}

/// LoRAs with their strengths, ready for programs.
pub struct LoraSet {
    pub(super) adapters: Vec<(Arc<Adapter>, Strengths)>,
    /// The user was informed about them.
    reported: AtomicBool,
    files: Vec<(OpenedFile, Strengths)>,
    /// Distinguishes this set from all others of the pipeline.
    pub number: u32,
    merged: Mutex<AllMerged>,
}

/// What was merged so far.
#[derive(Default)]
struct AllMerged {
    /// The changes of each matrix, run of rows after run of rows; none if the set has no effect on
    /// it.
    matrices: HashMap<MergeKey, Vec<Arc<Merged>>>,
    /// The same by the first row of each run.
    runs: HashMap<MergeKey, Arc<Merged>>,
    /// The changed vectors; `None` if the set has no effect on one.
    vectors: HashMap<MergeKey, Option<HostPart>>,
}

/// Component, name and first row of a weight.
type MergeKey = (Component, String, usize);

fn merge_key(component: Component, spec: &WeightSpec) -> MergeKey {
    (component, spec.name.clone(), spec.first)
}

impl LoraSet {
    /// `adapters` with their strengths, read from `files`.
    pub(super) fn new(
        adapters: Vec<(Arc<Adapter>, Strengths)>,
        files: Vec<(OpenedFile, Strengths)>,
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
    pub fn of<S: Into<Strengths>>(adapters: Vec<(Arc<Adapter>, S)>) -> LoraSet {
        LoraSet::new(adapters.into_iter().map(|(a, s)| (a, s.into())).collect(), vec![], 1)
    }

    /// Whether the set was read from `files`, with these strengths.
    pub(super) fn is_of(&self, files: &[(OpenedFile, Strengths)]) -> bool {
        self.files == files
    }

    /// A hash of each file, in the order of the choices; empty where it cannot be read any more.
    pub fn hashes(&self) -> Vec<String> {
        let hash = |(file, _): &(OpenedFile, Strengths)| file_hash(&file.path).unwrap_or_default();
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

    /// All changes that have an effect.
    pub(super) fn changes(&self) -> impl Iterator<Item = &lora::Change> {
        self.adapters.iter().flat_map(|(adapter, strengths)| {
            adapter.changes().iter().filter(|change| strengths.at(change.component) != 0.0)
        })
    }

    /// Whether any LoRA of the set changes `component`.
    pub fn touches(&self, component: Component) -> bool {
        self.changes().any(|change| change.component == component)
    }

    /// What text embeddings depend on: the files with their strengths, if they change a text
    /// encoder; else empty.
    pub fn text_key(&self) -> String {
        if !self.changes().any(|change| matches!(change.component.role, Role::Text(_))) {
            return String::new();
        }
        let files = self.files.iter().map(|(f, s)| format!("{} {}", f.key(), s.text));
        files.collect::<Vec<_>>().join("; ")
    }

    /// Upper bound of the size of the merged matrices, in bytes: for each weight the sum of the
    /// ranks times its rows and columns, in F32, and the matrices that have no low rank. Half of it
    /// if the weights are narrower than F32.
    pub fn bytes(&self) -> u64 {
        let mut weights: HashMap<(Component, &str), (u64, u64)> = HashMap::new();
        let mut whole = 0;
        for change in self.changes() {
            let rows = change.blocks.iter().map(|b| b.row + b.rows).max().unwrap_or(0);
            let cols = change.delta.shape().1;
            let (rank, size) = weights.entry((change.component, &change.weight)).or_default();
            *rank += change.delta.side_rank() as u64;
            *size = (*size).max((rows + cols) as u64);
            let vectors = if change.magnitude.is_some() { 2 * (rows + cols) } else { 0 };
            // Computed as one matrix.
            let added = if change.weight.ends_with(ADDED_INPUTS) { rows * cols } else { 0 };
            whole += 4 * (change.delta.whole_elements() + vectors + added) as u64;
        }
        whole + weights.values().map(|(rank, size)| 4 * rank * size).sum::<u64>()
    }

    /// `program` with everything that these LoRAs change, and all the weights that it then needs,
    /// in its order. `weights` is the component that the program runs; nothing of it is copied.
    /// The device computes in integers as `used` says.
    pub fn apply(
        &self,
        weights: &ComponentWeights,
        program: Program,
        used: Int8Use,
    ) -> Result<(Program, Vec<HostWeight>)> {
        self.apply_among(weights, &[], program, used)
    }

    /// The same for a program within which `others` run, which no LoRA changes; each has the number
    /// of an opened network.
    pub fn apply_among(
        &self,
        weights: &ComponentWeights,
        others: &[(&ComponentWeights, u32)],
        program: Program,
        used: Int8Use,
    ) -> Result<(Program, Vec<HostWeight>)> {
        let component = weights.component();
        let program = self.with_changes(component, weights, program)?;
        let resolved = program.weights.iter().map(|w| match w.side {
            None => {
                let net = match w.net {
                    0 => weights,
                    net => others[net as usize - 1].0,
                };
                let weight = net.get(&w.name, w.first, w.rows, w.cols)?;
                let int8 = int8::of(net.component(), &w.name, &weight, used);
                Ok(HostWeight { int8, ..weight })
            }
            Some(SideFactor::Rows) => self.row_factors(weights, w, used),
            Some(which) => self.weight(component, w, which),
        });
        let resolved = resolved.collect::<Result<_>>()?;
        Ok((program, resolved))
    }

    fn with_changes(
        &self,
        component: Component,
        weights: &ComponentWeights,
        program: Program,
    ) -> Result<Program> {
        if !self.touches(component) {
            return Ok(program);
        }
        self.merge(component, weights, &program)?;
        let merged = self.merged();
        let changes = |spec: &WeightSpec| {
            if spec.net != 0 {
                return Vec::new();
            }
            let runs = merged.matrices.get(&merge_key(component, spec));
            let runs = runs.map(Vec::as_slice).unwrap_or_default();
            let rows: usize = runs.iter().map(|run| run.rows.len()).sum();
            assert!(rows == spec.rows || runs.is_empty(), "one weight is used in two ways");
            runs.iter().map(|run| linear_change(run, spec.first)).collect()
        };
        let vector = |spec: &WeightSpec| {
            let vector = merged.vectors.get(&merge_key(component, spec));
            spec.net == 0 && vector.is_some_and(Option::is_some)
        };
        Ok(program.with_changes(&changes, &vector))
    }

    fn merged(&self) -> std::sync::MutexGuard<'_, AllMerged> {
        self.merged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges the LoRAs of every weight of `program` that was not merged before.
    fn merge(
        &self,
        component: Component,
        weights: &ComponentWeights,
        program: &Program,
    ) -> Result<()> {
        let mut merged = self.merged();
        let loras: Vec<(&Adapter, f32)> =
            self.adapters.iter().map(|(a, s)| (a.as_ref(), s.at(component))).collect();
        let changed = |spec: &WeightSpec| {
            spec.side.is_none()
                && spec.net == 0
                && loras.iter().any(|(a, _)| !a.of(component, &spec.name).is_empty())
        };
        let specs = program.weights.iter().zip(program.uses()).filter(|(spec, _)| changed(spec));
        let (vectors, matrices): (Vec<_>, Vec<_>) = specs.partition(|(_, how)| *how == Use::Vector);
        let new = matrices.into_iter().map(|(spec, _)| spec);
        let new: Vec<&WeightSpec> =
            new.filter(|spec| !merged.matrices.contains_key(&merge_key(component, spec))).collect();
        let runs = new.into_par_iter().map(|spec| {
            let runs = merge_matrix(&loras, component, weights, spec)?;
            Ok((merge_key(component, spec), runs))
        });
        for (key, runs) in runs.collect::<Result<Vec<_>>>()? {
            for run in &runs {
                let key = (component, key.1.clone(), run.rows.start);
                merged.runs.insert(key, run.clone());
            }
            merged.matrices.insert(key, runs);
        }
        for (spec, _) in vectors {
            let base = weights.get(&spec.name, spec.first, spec.rows, spec.cols)?;
            let range = spec.first..spec.first + spec.cols;
            let vector = lora::merge_vector(&loras, component, &spec.name, range, &base)?;
            merged.vectors.insert(merge_key(component, spec), vector);
        }
        Ok(())
    }

    /// The factors of the rows of a matrix. They take the place of those that are stored with it,
    /// except where products are computed in integers, whose scales are applied besides them.
    fn row_factors(
        &self,
        weights: &ComponentWeights,
        spec: &WeightSpec,
        used: Int8Use,
    ) -> Result<HostWeight> {
        let component = weights.component();
        let factors = self.weight(component, spec, SideFactor::Rows)?;
        let cols = weights.shape(&spec.name).map_or(0, |(_, cols)| cols);
        let base = weights.get(&spec.name, spec.first, factors.cols, cols)?;
        if int8::of(component, &spec.name, &base, used).is_some() {
            return Ok(factors);
        }
        let stored = base.parts.iter().flat_map(|p| (0..p.rows).map(|r| p.scale.of(r)));
        let times = lora::times(&factors.parts[0], &stored.collect::<Vec<_>>());
        Ok(HostWeight { parts: vec![times], ..factors })
    }

    /// A matrix or vector of the LoRAs.
    fn weight(
        &self,
        component: Component,
        spec: &WeightSpec,
        which: SideFactor,
    ) -> Result<HostWeight> {
        if which == SideFactor::Added {
            return self.added(component, spec);
        }
        let merged = self.merged();
        let run = || Some(merged.runs.get(&merge_key(component, spec))?.as_ref());
        let term = |i: u32| run()?.terms.get(i as usize);
        let found = match which {
            SideFactor::Down => run().and_then(|m| Some(&m.pair.as_ref()?.a)),
            SideFactor::Up => run().and_then(|m| Some(&m.pair.as_ref()?.b)),
            SideFactor::Rows => run().and_then(|m| m.factors.as_ref()),
            SideFactor::Columns => run().and_then(|m| m.columns.as_ref()),
            SideFactor::Changed => {
                merged.vectors.get(&merge_key(component, spec)).and_then(Option::as_ref)
            }
            SideFactor::Term(i, factor) => term(i).and_then(|term| match (factor, &term.matrix) {
                (TermFactor::Whole, TermMatrix::Whole(whole)) => Some(whole),
                (TermFactor::Outer, TermMatrix::Kronecker { outer, .. }) => Some(outer),
                (TermFactor::Inner, TermMatrix::Kronecker { inner, .. }) => Some(inner),
                (TermFactor::Rows, _) => term.factors.as_ref(),
                (TermFactor::Columns, _) => term.columns.as_ref(),
                _ => None,
            }),
            SideFactor::Added => None,
        };
        let part = found.cloned().ok_or_else(|| {
            Error::device("a program names a LoRA that was not merged").at(&spec.name)
        })?;
        Ok(HostWeight { int8: None, rows: part.rows, cols: part.cols, parts: vec![part] })
    }
}

/// Merges the LoRAs of the rows `spec` of a matrix.
fn merge_matrix(
    loras: &[(&Adapter, f32)],
    component: Component,
    weights: &ComponentWeights,
    spec: &WeightSpec,
) -> Result<Vec<Arc<Merged>>> {
    // F32 for an F32 weight, else BF16.
    let base = weights.get(&spec.name, spec.first, spec.rows, spec.cols)?;
    let dtype = if base.stored().has(DType::F32) { DType::F32 } else { DType::BF16 };
    let rows = |first, rows| weights.get(&spec.name, first, rows, spec.cols);
    let (weight, cols) = (spec.name.as_str(), spec.cols);
    let target = Target { loras, component, weight, cols, dtype, base: &rows };
    let runs = lora::merge(&target, spec.first..spec.first + spec.rows)?;
    Ok(runs.into_iter().map(Arc::new).collect())
}

/// The change of a program that `run` needs. `first` is the first row of its weight there.
fn linear_change(run: &Merged, first: usize) -> LinearChange {
    let term = |term: &lora::Term| LinearTerm {
        first: term.first,
        rows: term.rows,
        kind: match &term.matrix {
            TermMatrix::Whole(_) => TermKind::Whole,
            TermMatrix::Kronecker { groups, inner, skip, .. } => {
                TermKind::Kronecker { outer: *groups, inner: (inner.rows, inner.cols), skip: *skip }
            }
        },
        row_factors: term.factors.is_some(),
        column_factors: term.columns.is_some(),
    };
    LinearChange {
        first: run.rows.start - first,
        rows: run.rows.len(),
        rank: run.pair.as_ref().map(Combined::rank),
        row_factors: run.factors.is_some(),
        column_factors: run.columns.is_some(),
        terms: run.terms.iter().map(term).collect(),
    }
}
