//! The weights of one component under canonical names, whichever dialect they are stored in.

mod checks;
mod pieces;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::recognise::Recognised;
use super::storage::{Companions, unsupported, weight_name};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::Component;
use crate::spec::names::Meaning;
use crate::tensor::{HostPart, HostWeight};
use crate::weights::container::file::{FNV_OFFSET, WeightFile};
use crate::weights::container::header::TensorEntry;
use crate::weights::container::slice;
use checks::{add_alias, check_scales, refuse_others, refuse_unknown};
use pieces::{Piece, Weight, assemble};

/// How many names an error or a note lists.
const LISTED: usize = 10;

/// The weights of one component. Nothing is copied: the parts that [`ComponentWeights::get`]
/// returns point into the files.
pub struct ComponentWeights {
    found: Recognised,
    dialect: String,
    files: Vec<Arc<WeightFile>>,
    weights: BTreeMap<String, Weight>,
    /// Stored names that no weight uses.
    extras: Vec<String>,
    config: Option<Value>,
}

impl ComponentWeights {
    /// Collects the tensors of `found` from `files` (one file, or all shards of one model).
    pub(crate) fn collect(
        files: &[Arc<WeightFile>],
        found: &Recognised,
        others: &[Recognised],
    ) -> Result<Self> {
        let component = found.component;
        let place = files.first().map(|f| f.path.clone()).unwrap_or_default();
        refuse_others(files, found, others).map_err(|e| e.at_path(&place))?;
        let all = files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str());
        let mut companions = Companions::among(all);
        let mut tensors: Vec<(&Arc<WeightFile>, &TensorEntry, &str)> = Vec::new();
        let mut used: Vec<Arc<WeightFile>> = Vec::new();
        for file in files {
            let before = tensors.len();
            for entry in &file.header.tensors {
                let Some(short) = owner(&entry.name, found, others) else { continue };
                if !companions.take(file, entry).map_err(|e| e.at_path(&file.path))? {
                    tensors.push((file, entry, short));
                }
            }
            companions
                .take_metadata(&file.header.metadata, &found.prefix)
                .map_err(|e| e.at_path(&file.path))?;
            if tensors.len() > before {
                used.push(file.clone());
            }
        }
        companions.check_records().map_err(|e| e.at_path(&place))?;
        let mut pieces: BTreeMap<String, Vec<Option<Piece>>> = BTreeMap::new();
        let mut aliases: Vec<(String, Piece)> = Vec::new();
        let mut extras = Vec::new();
        let mut modules = HashSet::new();
        for (file, entry, short) in tensors {
            let piece = |swap| {
                Piece::new(file, entry, &companions, swap).map_err(|e| e.at_path(&file.path))
            };
            let weight = weight_name(short);
            let name = weight.as_deref().unwrap_or(short);
            let meaning = component.meaning(found.dialect, found.levels, name);
            if matches!(meaning, Meaning::Part { .. } | Meaning::Alias { .. }) {
                modules.extend(module(short));
            }
            match meaning {
                Meaning::Part { canonical, part, parts, swapped } => {
                    let slots = pieces
                        .entry(canonical)
                        .or_insert_with(|| (0..parts).map(|_| None).collect());
                    if slots[part].is_some() {
                        return Err(Error::model("tensor is stored twice")
                            .at(&entry.name)
                            .at_path(&file.path));
                    }
                    slots[part] = Some(piece(swapped)?);
                }
                Meaning::Alias { canonical } => aliases.push((canonical, piece(false)?)),
                Meaning::Unused => {}
                Meaning::Unknown => extras.push((entry.name.clone(), short)),
            }
        }
        for (canonical, piece) in aliases {
            add_alias(&mut pieces, canonical, piece).map_err(|e| e.at_path(&place))?;
        }
        refuse_unknown(component, &extras, &modules).map_err(|e| e.at_path(&place))?;
        let weights = pieces.into_iter().map(|(name, parts)| {
            let weight = assemble(found, &name, parts).map_err(|e| e.at_path(&place))?;
            Ok((name, weight))
        });
        let weights = weights.collect::<Result<BTreeMap<_, _>>>()?;
        check_scales(found, &weights, &companions).map_err(|e| e.at_path(&place))?;
        let dialect = describe(found, &used, &weights, &companions);
        let extras = extras.into_iter().map(|(name, _)| name).collect();
        Ok(ComponentWeights {
            found: found.clone(),
            dialect,
            files: used,
            weights,
            extras,
            config: None,
        })
    }

    pub(crate) fn with_config(mut self, config: Option<Value>) -> Result<Self> {
        let method =
            config.as_ref().and_then(|c| c.get("quantization_config")).filter(|q| !q.is_null());
        if let Some(q) = method {
            let name = q
                .get("quant_method")
                .or(q.get("quant_type"))
                .and_then(Value::as_str)
                .unwrap_or("an unnamed format");
            // Its types are recognised by their tensors.
            if !matches!(name, "bitsandbytes" | "fp8") {
                let place = format!("{} config.json", self.component().name);
                return Err(unsupported(name).at(place));
            }
        }
        self.config = config;
        Ok(self)
    }

    /// The component.
    pub fn component(&self) -> Component {
        self.found.component
    }

    /// How its files call the canonical tensor `name`: the stored names, prefix included, joined
    /// by ` + ` where it is stored in parts.
    pub fn stored_name(&self, name: &str) -> String {
        stored_name(&self.found, name)
    }

    /// How it is stored, for users: `BFL, scaled fp8 (new)`.
    pub fn dialect(&self) -> &str {
        &self.dialect
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &std::path::Path> {
        self.files.iter().map(|f| f.path.as_path())
    }

    /// The values of these keys in the metadata of its files.
    pub fn metadata<'a>(&'a self, keys: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let of = |f: &'a Arc<WeightFile>| keys.iter().filter_map(|key| f.header.metadata.get(*key));
        self.files.iter().flat_map(of).map(String::as_str)
    }

    /// Rows and columns of the canonical tensor `name`. Vectors are `1 x n`, convolutions
    /// `out x (in * kh * kw)`; fused projections are whole even if they are stored in parts.
    pub fn shape(&self, name: &str) -> Option<(usize, usize)> {
        self.weights.get(name).map(Weight::rows_cols)
    }

    /// All axes of the canonical tensor `name`: `[n]`, `[rows, cols]` or `[out, in, kh, kw]`.
    pub fn full_shape(&self, name: &str) -> Option<&[usize]> {
        self.weights.get(name).map(|w| w.shape.as_slice())
    }

    /// The canonical names that are present, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// Rows `first .. first + rows` of the canonical tensor `name`, as `rows x cols`. For a vector,
    /// `rows` is 1 and the elements are `first .. first + cols`.
    ///
    /// Parts point into the files. Copied are only: vectors that are stored in parts, 8-bit vectors
    /// and convolutions (widened to f32, since only matrices may have 8 bits), and vectors that are
    /// not aligned to their element size.
    ///
    /// # Errors
    /// [`crate::error::Kind::Model`] if the tensor is absent or has another shape.
    pub fn get(&self, name: &str, first: usize, rows: usize, cols: usize) -> Result<HostWeight> {
        let Some(weight) = self.weights.get(name) else {
            return Err(Error::model("tensor is missing").at(name).at(self.place()));
        };
        let (all_rows, all_cols) = weight.rows_cols();
        let (fits, offset) = if weight.is_vector() {
            (rows == 1 && first.checked_add(cols).is_some_and(|end| end <= all_cols), first)
        } else {
            (cols == all_cols && first.checked_add(rows).is_some_and(|end| end <= all_rows), first)
        };
        if !fits {
            return Err(Error::model("tensor has the wrong shape")
                .at(name)
                .at(self.place())
                .found(format!("{all_rows} x {all_cols}"))
                .expected(format!("at least {rows} x {cols} from {first}")));
        }
        let parts = if weight.is_vector() {
            slice::elements(&weight.parts, offset, cols)
        } else {
            slice::rows(&weight.parts, offset, rows, weight.shape.len() == 2)
        };
        Ok(HostWeight { int8: None, rows, cols, parts })
    }

    /// Compares the weights with the canonical names and shapes that a model needs (`[n]`,
    /// `[rows, cols]`, `[out, in, kh, kw]`). Returns notes for the user about tensors that are not
    /// known.
    ///
    /// # Errors
    /// Lists up to ten tensors that are absent, that have another shape, or that the component has
    /// in other sizes and this model does not need: a network of other sizes than `expected` would
    /// give a wrong image.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<Vec<String>> {
        let (mut missing, mut bad) = (0, Vec::new());
        for (name, shape) in expected {
            let stored = || self.stored_name(name);
            match self.weights.get(name) {
                None => {
                    missing += 1;
                    bad.push(format!("{} is missing, expected {shape:?}", stored()));
                }
                Some(w) if w.shape != *shape => {
                    bad.push(format!("{} is {:?}, expected {shape:?}", stored(), w.shape))
                }
                Some(_) => {}
            }
        }
        let wrong = bad.len() - missing;
        let wanted: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let unused = self.names().filter(|name| !wanted.contains(name));
        bad.extend(
            unused.map(|name| format!("{} is not a tensor of this model", self.stored_name(name))),
        );
        if !bad.is_empty() {
            let unused = bad.len() - missing - wrong;
            return Err(Error::model(format!(
                "{} weights do not fit the model ({missing} missing, {wrong} of another shape, \
                 {unused} not part of it): {}",
                self.component().name,
                listed(bad.iter().map(String::as_str))
            ))
            .at(self.place())
            .try_("inspect the file: it may be incomplete or of another model"));
        }
        Ok(if self.extras.is_empty() {
            vec![]
        } else {
            vec![format!(
                "{}: {} tensors are not used: {}",
                self.place(),
                self.extras.len(),
                listed(self.extras.iter().map(String::as_str))
            )]
        })
    }

    /// The component's `config.json` (diffusers' keys), from its folder or from the metadata of the
    /// file.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// Stored names that were not understood.
    pub fn extras(&self) -> &[String] {
        &self.extras
    }

    /// The size of all weights as stored, in bytes, including the scales of blocks.
    pub fn stored_bytes(&self) -> u64 {
        self.weights
            .values()
            .flat_map(|w| &w.parts)
            .flat_map(HostPart::ranges)
            .map(|(_, r)| r.len() as u64)
            .sum()
    }

    /// Whether any of its matrices is stored rotated, for products in 8-bit integers.
    pub fn is_rotated(&self) -> bool {
        self.weights.values().flat_map(|w| &w.parts).any(|p| p.rotation.is_some())
    }

    /// Ten hex digits that recognise these files.
    pub fn hash(&self) -> String {
        let hash = self.files.iter().fold(FNV_OFFSET, |h, f| f.fingerprint(h));
        format!("{hash:016x}")[..10].to_string()
    }

    /// Checks that the files were not changed since they were opened.
    pub fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|f| f.source.check())
    }

    /// The path of its first file, for messages.
    pub fn place(&self) -> String {
        self.files.first().map_or_else(String::new, |f| f.path.display().to_string())
    }
}

/// `name` without the prefix of `found`, unless it belongs to a component with a longer prefix.
fn owner<'a>(name: &'a str, found: &Recognised, others: &[Recognised]) -> Option<&'a str> {
    let short = name.strip_prefix(found.prefix.as_str())?;
    let longer = |o: &&Recognised| {
        o.prefix.len() > found.prefix.len() && name.starts_with(o.prefix.as_str())
    };
    if others.iter().any(|o| longer(&o)) {
        return None;
    }
    // Among components with the same prefix, a tensor belongs to those that know its name.
    let same: Vec<&Recognised> = others
        .iter()
        .filter(|o| o.prefix == found.prefix && o.component != found.component)
        .collect();
    let understood =
        |f: &Recognised| f.component.meaning(f.dialect, f.levels, short) != Meaning::Unknown;
    (same.is_empty() || understood(found) || !same.iter().any(|o| understood(o))).then_some(short)
}

/// The outermost module of a tensor; `None` for a tensor outside of modules.
fn module(name: &str) -> Option<&str> {
    name.split_once('.').map(|(module, _)| module)
}

/// The stored names of the canonical tensor `name`; itself if the dialect has none for it.
fn stored_name(found: &Recognised, name: &str) -> String {
    let stored = found.stored(name);
    if stored.is_empty() { name.into() } else { stored.join(" + ") }
}

fn describe(
    found: &Recognised,
    files: &[Arc<WeightFile>],
    weights: &BTreeMap<String, Weight>,
    companions: &Companions,
) -> String {
    let program = found.program();
    let mut words = vec![match program == found.dialect.name {
        true => program.to_string(),
        false => format!("{program} ({}*)", found.prefix),
    }];
    let mut bytes: HashMap<DType, usize> = HashMap::new();
    for part in weights.values().flat_map(|w| &w.parts) {
        *bytes.entry(part.dtype).or_default() += part.range().len();
    }
    let rotated = weights.values().flat_map(|w| &w.parts).any(|p| p.rotation.is_some());
    let main = bytes.iter().max_by_key(|(dtype, n)| (**n, dtype.name())).map(|(dtype, _)| *dtype);
    words.extend(main.map(|dtype| match (dtype, companions.scheme) {
        (DType::F8E4M3 | DType::F8E5M2, Some(scheme)) => scheme.name().to_string(),
        (DType::F8E4M3, None) => "plain fp8".to_string(),
        (DType::F8E5M2, None) => "plain fp8 (e5m2)".to_string(),
        (DType::I8, _) if companions.has_bitsandbytes_int8() => "bitsandbytes int8".to_string(),
        (DType::I8, _) if rotated => "int8 (ConvRot)".to_string(),
        (DType::I8, _) => "int8".to_string(),
        (DType::Nf4 | DType::Fp4, _) => format!("bitsandbytes {}", dtype.name()),
        (other, _) if other.is_plain() => other.name().to_lowercase(),
        (other, _) => other.name().to_string(),
    }));
    // Quantised files keep some layers wider, and files of K types mix them: name the other types
    // that make up more than 2 % of the bytes.
    let total: usize = bytes.values().sum();
    let mut others: Vec<&str> = bytes
        .iter()
        .filter(|(d, n)| Some(**d) != main && **n * 50 > total)
        .map(|(d, _)| d.name())
        .collect();
    others.sort_unstable();
    if let (false, Some(last)) = (others.is_empty(), words.last_mut()) {
        *last += &format!(" with {}", others.join(", "));
    }
    if files.iter().any(|f| f.is_gguf()) {
        words.push("GGUF".into());
    }
    if files.len() > 1 {
        words.push(format!("{} shards", files.len()));
    }
    words.join(", ")
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(LISTED);
    let mut text = names.take(LISTED).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text += &format!("; and {more} more");
    }
    text
}
