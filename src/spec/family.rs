//! What a family and a component are: the types whose values the modules of the families fill in.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use super::lora::{LoraLayers, LoraSpec};
use super::names::{Dialect, Meaning, StoredNames, matches, matches_glob, rename};

/// A family of models that share one set of components: FLUX.1, say.
#[derive(Debug)]
pub struct Family {
    /// Its short name: `flux1`.
    pub name: &'static str,
    /// Its name for people: `FLUX.1`.
    pub title: &'static str,
    /// The class of its pipeline in a diffusers folder's `model_index.json`.
    pub pipeline_class: &'static str,
    /// The words in the name of a model that was not distilled to few steps, where other models of
    /// the family were: `klein` and `base` in `flux-2-klein-base-4b`.
    pub undistilled: Option<&'static [&'static str]>,
    /// How models are named that keep keys and values of reference images over all steps, if the
    /// family has such models. No tensor shows it.
    pub keeps_references: Option<KeepsReferences>,
    /// Its components, the transformer first.
    pub components: &'static [Component],
    /// Networks that a request adds to a model, each by its file: a model is complete without them.
    pub add_ons: &'static [Component],
    /// How its LoRAs are named.
    pub lora: LoraSpec,
}

/// The names of models that keep keys and values of reference images over all steps.
#[derive(Debug)]
pub struct KeepsReferences {
    /// The words in their names: `klein` and `kv` in `flux-2-klein-9b-kv`.
    pub words: &'static [&'static str],
    /// The class of their pipeline in `model_index.json`. They are distilled unless it says
    /// otherwise.
    pub pipeline_class: &'static str,
}

/// The short name identifies a family.
impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Family {}

impl Family {
    /// The component that has this role.
    pub fn role(&self, role: Role) -> Option<Component> {
        self.components.iter().copied().find(|c| c.role == role)
    }

    /// Its transformer.
    ///
    /// # Panics
    /// If the family has none.
    pub fn transformer(&self) -> Component {
        self.role(Role::Transformer).expect("every family has a transformer")
    }

    /// The component that the command line option `--name` gives.
    pub fn option(&self, name: &str) -> Option<Component> {
        self.components.iter().copied().find(|c| c.option == Some(name))
    }

    /// Whether `component` is one of its components or add-ons.
    pub fn has(&self, component: Component) -> bool {
        self.components.contains(&component) || self.add_ons.contains(&component)
    }
}

/// The families among which a file is recognised: [`super::FAMILIES`], or a caller's own.
#[derive(Debug, Clone, Copy)]
pub struct Families(pub &'static [&'static Family]);

impl Families {
    /// Every component and add-on of every family, each once.
    pub fn components(self) -> Vec<Component> {
        let mut all: Vec<Component> = vec![];
        for component in self.0.iter().flat_map(|f| f.components.iter().chain(f.add_ons)) {
            if !all.contains(component) {
                all.push(*component);
            }
        }
        all
    }

    /// The transformers.
    pub fn transformers(self) -> impl Iterator<Item = Component> {
        self.0.iter().map(|f| f.transformer())
    }

    /// The first family that has `component`.
    pub fn of(self, component: Component) -> Option<&'static Family> {
        self.0.iter().copied().find(|f| f.has(component))
    }

    /// The component that the command line option `--name` gives, in the first family that has it.
    pub fn option(self, name: &str) -> Option<Component> {
        self.0.iter().find_map(|f| f.option(name))
    }

    /// The titles of the families, for messages: `FLUX.1`.
    pub fn titles(self) -> String {
        self.0.iter().map(|f| f.title).collect::<Vec<_>>().join(" or ")
    }
}

/// The part that a component plays in its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The network that denoises.
    Transformer,
    /// A text encoder: 0 is the one whose token states the transformer attends to.
    Text(u8),
    /// The network between pixels and latents.
    Autoencoder,
    /// A network that reads images as a prompt.
    Vision,
    /// A network that sees a control image, and changes what a transformer computes.
    Control,
    /// A network that turns what the vision network has read into tokens like those of a prompt.
    Style,
}

impl Role {
    /// Whether a model is complete without it: it is looked for when a request needs it.
    pub fn is_optional(self) -> bool {
        matches!(self, Role::Vision | Role::Style)
    }
}

/// One network of a family: a handle to its [`ComponentSpec`], compared by identity.
#[derive(Clone, Copy)]
pub struct Component(pub &'static ComponentSpec);

/// Everything that readers and writers of files know about one network.
#[derive(Debug)]
pub struct ComponentSpec {
    /// Its part in the family.
    pub role: Role,
    /// Its short name, `t5`: in messages, in JSON, and in the seeds of synthetic weights.
    pub name: &'static str,
    /// Its name for people, `T5 text encoder`.
    pub title: &'static str,
    /// The command line option that gives its file, without the dashes; `None` for the transformer,
    /// which is the model itself.
    pub option: Option<&'static str>,
    /// Where a diffusers folder keeps it.
    pub diffusers: Diffusers,
    /// Its tokenizer, of a text encoder.
    pub tokenizer: Option<Tokenizer>,
    /// The names of its files.
    pub files: FileNames,
    /// A repository's file of it that suits every model of the family: `org/name/file`.
    pub source: Option<&'static str>,
    /// The prefix of its names in a file of ComfyUI that has several components.
    pub comfy_prefix: &'static str,
    /// `general.architecture` of its GGUF files; `None` where no loader reads such files.
    pub gguf: Option<&'static str>,
    /// Patterns of the canonical names (see [`super::names`]).
    pub tensors: &'static [&'static str],
    /// The dialects in which it is stored. The first one that a file matches is taken.
    pub dialects: &'static [Dialect],
    /// Second names of tensors in any dialect: patterns of (stored, canonical).
    pub aliases: &'static [(&'static str, &'static str)],
    /// Globs of stored tensors that are known and not used.
    pub unused: &'static [&'static str],
    /// Other networks with the same markers.
    pub lookalikes: &'static [Lookalike],
    /// How its size must fit the transformer.
    pub fit: Option<Fit>,
    /// Every matrix is a 1x1 convolution. Its weights stay in wide types.
    pub convolutional: bool,
    /// Patterns of the tensors that are looked up, not multiplied with. They are never quantised.
    pub tables: &'static [&'static str],
    /// Beginnings of the canonical names of matrices that a conversion quantises.
    pub quantised: &'static [&'static str],
    /// Patterns of the matrices whose products may be computed in 8-bit integers: those of blocks,
    /// which take nearly all of the time. Modulation, embedders and the last layer are few
    /// products, and the image depends most on them.
    pub int8: &'static [&'static str],
    /// Query weights whose attention has no softmax scale, and the head width that they make up
    /// for in synthetic weights.
    pub unscaled_queries: Option<(&'static str, f64)>,
    /// Facts that `inspect` derives from the tensors, each with its label.
    pub facts: &'static [(&'static str, Fact)],
    /// How a listing distinguishes models of this architecture.
    pub variant: Option<Variant>,
    /// The layers that a LoRA may change.
    pub lora: LoraLayers,
}

/// Where a diffusers folder keeps a component.
#[derive(Debug)]
pub struct Diffusers {
    /// The folder, which is also the component's key in the metadata's `config`.
    pub folder: &'static str,
    /// `diffusers` or `transformers`.
    pub python_library: &'static str,
    /// Its class, in `model_index.json` and `config.json`.
    pub class: &'static str,
    /// Glob of the classes whose `config.json` is accepted.
    pub classes: &'static str,
}

impl Diffusers {
    /// The weights' file name without its ending.
    pub fn stem(&self) -> &'static str {
        if self.python_library == "transformers" { "model" } else { "diffusion_pytorch_model" }
    }
}

/// The tokenizer of a text encoder.
#[derive(Debug)]
pub struct Tokenizer {
    /// Its folder in a diffusers model, which is also its key in the metadata's `config`.
    pub folder: &'static str,
    /// Whether `model_max_length` of its configuration sets the length of a prompt.
    pub sets_length: bool,
}

/// What the files of a component are called, and where users keep them. All comparisons are in
/// lower case with `_` for `-`.
#[derive(Debug)]
pub struct FileNames {
    /// Folders below a folder of models, or next to the transformer's.
    pub folders: &'static [&'static str],
    /// Globs of file names without the ending; earlier groups are preferred.
    pub ranks: &'static [&'static [&'static str]],
    /// Globs of whole names, folders included, by which the component is known among unsorted
    /// files.
    pub known: &'static [&'static str],
    /// Globs of names that are never it.
    pub not: &'static [&'static str],
    /// The name under which synthetic weights are written.
    pub written: &'static str,
}

impl FileNames {
    /// How much the file name `stem` (without the ending) looks like the component; 0 is best.
    pub fn rank(&self, stem: &str) -> usize {
        let stem = stem.replace('-', "_");
        let group = self.ranks.iter().position(|globs| matches_glob(globs, &stem));
        group.unwrap_or(self.ranks.len())
    }

    /// Whether `name`, a path among unsorted files, is a known name of the component.
    pub fn is_known(&self, name: &str) -> bool {
        let name = name.to_lowercase().replace('-', "_");
        matches_glob(self.known, &name) && !matches_glob(self.not, &name)
    }
}

/// A network that has the markers of a component, and is another one.
#[derive(Debug)]
pub struct Lookalike {
    /// Globs of stored names, without the prefix of a file, that only the other network has.
    pub signs: &'static [&'static str],
    /// What the other network is, with its article.
    pub what: &'static str,
}

/// A size that a component and its transformer share.
#[derive(Debug)]
pub struct Fit {
    /// A canonical tensor of the component, and its axis.
    pub own: (&'static str, usize),
    /// A canonical tensor of the transformer, and its axis.
    pub transformer: (&'static str, usize),
    /// By which the transformer's size is divided.
    pub divisor: usize,
}

/// Something that tensor shapes say about a component.
#[derive(Debug, Clone, Copy)]
pub enum Fact {
    /// How many blocks there are with this beginning of their names.
    Count(&'static str),
    /// The length of an axis of a canonical tensor.
    Axis(&'static str, usize),
    /// What models with this length of such an axis are called, if the list has it.
    Named(&'static str, usize, &'static [(usize, &'static str)]),
    /// Whether there is this canonical tensor: `yes` or `no`.
    Present(&'static str),
}

/// What tells models of one architecture apart in a listing.
#[derive(Debug)]
pub enum Variant {
    /// A name with the canonical tensor and another without it.
    Either {
        /// The canonical tensor.
        tensor: &'static str,
        /// The name of models that have it.
        with: &'static str,
        /// The name of models that do not.
        without: &'static str,
    },
    /// A label and the length of an axis of a canonical tensor.
    Size {
        /// What is counted.
        label: &'static str,
        /// The canonical tensor.
        tensor: &'static str,
        /// The axis of its shape.
        axis: usize,
    },
}

impl ComponentSpec {
    /// Nothing said: what a component's table leaves out is taken from here.
    pub const EMPTY: ComponentSpec = ComponentSpec {
        role: Role::Transformer,
        name: "",
        title: "",
        option: None,
        diffusers: Diffusers { folder: "", python_library: "diffusers", class: "", classes: "" },
        tokenizer: None,
        files: FileNames { folders: &[], ranks: &[], known: &[], not: &[], written: "" },
        source: None,
        comfy_prefix: "",
        gguf: None,
        tensors: &[],
        dialects: &[],
        aliases: &[],
        unused: &[],
        lookalikes: &[],
        fit: None,
        convolutional: false,
        tables: &[],
        quantised: &[],
        int8: &[],
        unscaled_queries: None,
        facts: &[],
        variant: None,
        lora: LoraLayers::NONE,
    };

    /// Whether `name` is a canonical name that this component may have.
    pub fn is_canonical(&self, name: &str) -> bool {
        matches(self.tensors, name)
    }

    /// What the stored tensor `name` (without the file's prefix) is for. `levels` is what
    /// [`super::names::Naming::levels`] returned for the file.
    pub fn meaning(&self, dialect: &Dialect, levels: usize, name: &str) -> Meaning {
        if let Some(part) = dialect.naming.read(self.tensors, levels, name) {
            return part;
        }
        let alias = |(stored, canonical): &(&str, &str)| rename(stored, canonical, name);
        match self.aliases.iter().find_map(alias) {
            Some(canonical) => Meaning::Alias { canonical },
            None if matches_glob(self.unused, name) => Meaning::Unused,
            None => Meaning::Unknown,
        }
    }

    /// The network that tensors of these names (without the file's prefix) are of, if it is one
    /// that only resembles this component.
    pub fn lookalike<'a>(
        &self,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<&'static Lookalike> {
        let shows = |l: &&Lookalike| names.clone().any(|name| matches_glob(l.signs, name));
        self.lookalikes.iter().find(shows)
    }

    /// The dialect of this name.
    pub fn dialect(&self, name: &str) -> Option<&Dialect> {
        self.dialects.iter().find(|d| d.name == name)
    }

    /// How GGUF files spell the canonical tensor `name`.
    pub fn gguf_name(&self, name: &str) -> String {
        let names = self.dialects.iter().find(|d| d.gguf).and_then(|d| d.naming.write(0, name));
        match names {
            Some(StoredNames { names, .. }) => names.concat(),
            None => name.to_string(),
        }
    }

    /// Whether `name` is looked up, not multiplied with.
    pub fn is_table(&self, name: &str) -> bool {
        matches(self.tables, name)
    }

    /// Whether products with the matrix may be computed in 8-bit integers.
    pub fn is_int8(&self, name: &str) -> bool {
        matches(self.int8, name)
    }

    /// Whether the tensor can be stored in 8 bits: a matrix that is multiplied with.
    pub fn is_matrix(&self, name: &str, shape: &[usize]) -> bool {
        shape.len() == 2 && !self.convolutional && !self.is_table(name)
    }

    /// Whether a conversion quantises the tensor.
    pub fn is_quantised(&self, name: &str, shape: &[usize]) -> bool {
        self.is_matrix(name, shape) && self.quantised.iter().any(|start| name.starts_with(start))
    }
}

impl Deref for Component {
    type Target = ComponentSpec;

    fn deref(&self) -> &ComponentSpec {
        self.0
    }
}

impl PartialEq for Component {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Component {}

impl Hash for Component {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.0, state);
    }
}

impl Ord for Component {
    /// By role, then by name.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |c: &Self| (c.role, c.name, std::ptr::from_ref(c.0));
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Component {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl serde::Serialize for Component {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}
