//! The LoRAs of a request: their files are found and read once, and applied to programs.
//!
//! The model does not change: a program with LoRAs is the program without them in which every
//! [`Linear`](crate::op::Linear) with a LoRA has a side product, or what its kind of adapter needs
//! ([`Program::with_changes`](crate::op::Program::with_changes)). Several LoRAs of one weight are
//! merged into one pair of matrices with the strengths multiplied in, so the cost of a step depends
//! on the sum of their ranks. Files and merged matrices are kept: the next image with the same
//! LoRAs reads nothing, and other strengths only repeat the merge.

mod control;
mod describe;
mod set;

pub use set::{LoraSet, Strengths};

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::opened_file::OpenedFile;
use super::request::LoraChoice;
use crate::error::{Kind, Result};
use crate::host::start_shared_threads;
use crate::library::places::{ModelPlaces, Role};
use crate::spec::{Component, Family};
use crate::weights::ComponentWeights;
use crate::weights::lora::{self, Adapter};

/// How many files are kept open after they were read.
const KEPT_FILES: usize = 16;

/// The LoRAs that a pipeline has read.
pub struct Loras {
    places: ModelPlaces,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one that was used last is at the end.
    files: Vec<(OpenedFile, Arc<Adapter>)>,
    /// The set of the last request.
    set: Option<Arc<LoraSet>>,
    /// How many sets there were so far.
    sets: u32,
}

impl Loras {
    /// No LoRA yet; names are looked up in `places`.
    pub fn new(places: &ModelPlaces) -> Self {
        Loras { places: places.clone(), state: Mutex::default() }
    }

    /// The LoRAs of `choices` for a model of `family` with the weights that `weights` returns, read
    /// and checked. A LoRA of strength 0 is checked too, but has no effect.
    ///
    /// # Errors
    /// [`Kind::Missing`] if a file is not found,
    /// [`Kind::Model`] if it is not a LoRA for this model.
    pub fn set<'a>(
        &self,
        choices: &[LoraChoice],
        family: &'static Family,
        weights: &dyn Fn(Component) -> Option<&'a ComponentWeights>,
    ) -> Result<Arc<LoraSet>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        for choice in choices {
            let path = self.path(choice).map_err(|e| e.at_message(choice.place()))?;
            let path = lora::file_of(&path).map_err(|e| e.at_message(choice.place()))?;
            files.push((OpenedFile::at(path)?, Strengths::of(choice)));
        }
        if let Some(set) = state.set.as_ref().filter(|set| set.is_of(&files)) {
            return Ok(set.clone());
        }
        let mut adapters = Vec::new();
        for ((file, strength), choice) in files.iter_mut().zip(choices) {
            let adapter = state.adapter(file, family, weights);
            adapters.push((adapter.map_err(|e| e.at_message(choice.place()))?, *strength));
        }
        let surplus = state.files.len().saturating_sub(KEPT_FILES.max(files.len()));
        state.files.drain(..surplus);
        state.sets += 1;
        let set = Arc::new(LoraSet::new(adapters, files, state.sets));
        state.set = Some(set.clone());
        Ok(set)
    }

    /// A tag in a prompt may come from an untrusted user, so it can only give a name; an option may
    /// give a path.
    fn path(&self, choice: &LoraChoice) -> Result<PathBuf> {
        let find = |name: &str| match choice.tag {
            true => self.places.named(name, Role::Lora),
            false => self.places.resolve(name, Role::Lora),
        };
        // A name may be that of a folder with an adapter in it.
        find(&choice.name).or_else(|e| {
            let mut inside = lora::names_in_folder(&choice.name);
            let found = inside.find_map(|name| self.places.named(&name, Role::Lora).ok());
            if e.kind() == Kind::Missing { found.ok_or(e) } else { Err(e) }
        })
    }
}

impl State {
    /// The LoRA in `file`, from memory if it was read before. If another file has taken its name,
    /// `file` becomes the one that was read.
    fn adapter<'a>(
        &mut self,
        file: &mut OpenedFile,
        family: &'static Family,
        weights: &dyn Fn(Component) -> Option<&'a ComponentWeights>,
    ) -> Result<Arc<Adapter>> {
        if let Some(at) = self.files.iter().position(|(known, _)| known == &*file) {
            let entry = self.files.remove(at);
            let adapter = entry.1.clone();
            self.files.push(entry);
            return Ok(adapter);
        }
        let adapter = Arc::new(file.read(|path| open(path, family, weights))?);
        self.files.retain(|(known, _)| known.path != file.path);
        self.files.push((file.clone(), adapter.clone()));
        Ok(adapter)
    }
}

/// The LoRA at `path`, checked against the components of a model.
///
/// # Errors
/// [`Kind::Model`] if it is not a LoRA for this model.
pub fn open<'a>(
    path: &Path,
    family: &'static Family,
    of: &dyn Fn(Component) -> Option<&'a ComponentWeights>,
) -> Result<Adapter> {
    start_shared_threads()?;
    // Only the matrix of a `Linear` can have a side product; vectors can be changed as a whole.
    lora::open(path, family, &|component, name| {
        let weights = of(component)?;
        let changes = |shape: &&[usize]| shape.len() == 1 || component.is_matrix(name, shape);
        weights.full_shape(name).filter(changes)?;
        weights.shape(name)
    })
}
