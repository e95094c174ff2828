//! PEFT's configuration of an adapter: `adapter_config.json` of a folder, or the header in which
//! diffusers stores the same. It has the alphas of layers, by patterns of their names.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use fancy_regex::Regex;
use serde_json::Value;

use super::group::{Configured, Group};
use super::keys::{Layer, Part};
use crate::error::{Error, Result};
use crate::spec::Role;
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::TensorEntry;

/// The name of the weights in a PEFT folder.
pub const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// The name of the configuration in a PEFT folder.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// The key of the header in which diffusers stores configurations.
const HEADER_KEY: &str = "lora_adapter_metadata";
/// The largest configuration, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The largest number of patterns; FLUX.1 has some 500 layers.
const MAX_PATTERNS: usize = 2000;
/// The largest pattern, in bytes.
const MAX_PATTERN: usize = 2000;

/// Settings that change what the matrices mean.
const UNKNOWN_SETTINGS: [&str; 8] = [
    "fan_in_fan_out",
    "megatron_config",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "trainable_token_indices",
];

/// Whether this way of starting a training takes a part of the base weight out of it: without that
/// part the adapter is another one.
fn changes_base(init: &str) -> bool {
    let init = init.to_lowercase();
    ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|name| init.starts_with(name))
}

/// The configuration of a file, if it has one.
pub struct Config {
    value: Option<Value>,
    /// Where it was read, for errors.
    place: &'static str,
    /// The patterns of each list, compiled when they are first needed.
    patterns: Vec<Pattern>,
}

/// A pattern of layer names with its number.
struct Pattern {
    /// The key of the list: `alpha_pattern`, possibly behind the name of a component.
    list: String,
    text: String,
    regex: Regex,
    number: f64,
}

impl Config {
    /// The configuration in the header of `file`, or in the file next to it.
    pub fn of(file: &WeightFile) -> Result<Self> {
        let next_to = || {
            let name = file.path.file_name()?;
            (name == PEFT_WEIGHTS).then(|| file.path.with_file_name(PEFT_CONFIG))
        };
        let read;
        let (text, place) = match file.header.metadata.get(HEADER_KEY) {
            Some(text) => (Some(text.as_str()), HEADER_KEY),
            None => match next_to().filter(|path| path.exists()) {
                Some(path) => {
                    read = read_text(&path)?;
                    (Some(read.as_str()), PEFT_CONFIG)
                }
                None => (None, PEFT_CONFIG),
            },
        };
        let Some(text) = text else { return Ok(Config { value: None, place, patterns: vec![] }) };
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::model("the configuration of this LoRA is too long")
                .at(place)
                .expected(format!("at most {MAX_BYTES} bytes")));
        }
        let value: Value = serde_json::from_str(text).map_err(|e| {
            Error::model("the configuration of this LoRA is not valid JSON")
                .at(place)
                .found(e)
                .try_("download the file again")
        })?;
        let mut config = Config { value: Some(value), place, patterns: vec![] };
        config.check_kind()?;
        config.patterns = config.compile()?;
        Ok(config)
    }

    fn check_kind(&self) -> Result<()> {
        let is_set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        };
        for (key, value) in self.value.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let at = || format!("{}, {key}", self.place);
            let text = value.as_str().unwrap_or_default();
            // diffusers writes the name of the component before each.
            match key.rsplit('.').next().unwrap_or(key) {
                "peft_type"
                    if !text.is_empty()
                        && !["LORA", "LOHA", "LOKR"].contains(&text.to_uppercase().as_str()) =>
                {
                    return Err(Error::model("this kind of PEFT adapter is not supported")
                        .at(at())
                        .found(text)
                        .expected("LORA, LOHA or LOKR"));
                }
                "init_lora_weights" | "init_weights" if changes_base(text) => {
                    return Err(Error::model(
                        "this LoRA belongs to weights that its training changed, not to those of \
                         the published model",
                    )
                    .at(at())
                    .found(text)
                    .try_(
                        "convert it with PEFT: save_pretrained(..., \
                         path_initial_model_for_weight_conversion=...)",
                    ));
                }
                short if UNKNOWN_SETTINGS.contains(&short) && is_set(value) => {
                    return Err(
                        Error::model("a setting of this PEFT adapter is not supported").at(at())
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All patterns of all lists.
    fn compile(&self) -> Result<Vec<Pattern>> {
        let Some(Value::Object(all)) = &self.value else { return Ok(vec![]) };
        let mut patterns = vec![];
        for (list, entries) in all {
            let short = list.rsplit('.').next().unwrap_or(list);
            let Value::Object(entries) = entries else { continue };
            if !["alpha_pattern", "rank_pattern"].contains(&short) {
                continue;
            }
            if patterns.len() + entries.len() > MAX_PATTERNS {
                return Err(Error::model("the configuration of this LoRA has too many patterns")
                    .at(format!("{}, {list}", self.place))
                    .found(entries.len())
                    .expected(format!("at most {MAX_PATTERNS}")));
            }
            for (text, number) in entries {
                let place = || format!("{}, {list}, {text}", self.place);
                let number = number.as_f64().ok_or_else(|| {
                    Error::model("the value of a pattern is not a number").at(place()).found(number)
                })?;
                // As PEFT reads it: the whole name, or what follows a dot in it.
                let whole = format!(r"^(?:.*\.)?(?:{text})$");
                let regex = Some(whole).filter(|w| w.len() <= MAX_PATTERN);
                let regex = regex.and_then(|whole| Regex::new(&whole).ok()).ok_or_else(|| {
                    Error::model("a pattern is not a regular expression that can be used")
                        .at(place())
                })?;
                let (list, text) = (list.clone(), text.clone());
                patterns.push(Pattern { list, text, regex, number });
            }
        }
        Ok(patterns)
    }

    /// The value of `key` for a component: behind the component's name, or, for the transformer,
    /// alone.
    fn get(&self, layer: &Layer, key: &str) -> Option<&Value> {
        let config = self.value.as_ref()?;
        let own = config.get(format!("{}.{key}", layer.component.diffusers.folder));
        own.or_else(|| (layer.component.role == Role::Transformer).then(|| config.get(key))?)
    }

    /// The first pattern of `list` that matches the layer.
    fn pattern(&self, layer: &Layer, list: &str) -> Result<Option<&Pattern>> {
        let own = format!("{}.{list}", layer.component.diffusers.folder);
        let alone = layer.component.role == Role::Transformer;
        for pattern in &self.patterns {
            if pattern.list != own && !(alone && pattern.list == list) {
                continue;
            }
            let matched = pattern.regex.is_match(&layer.module).map_err(|e| {
                Error::model("a pattern takes too long to compare")
                    .at(format!("{}, {}, {}", self.place, pattern.list, pattern.text))
                    .found(e)
            })?;
            if matched {
                return Ok(Some(pattern));
            }
        }
        Ok(None)
    }

    /// What the configuration says about each of `groups`, in their order.
    ///
    /// # Errors
    /// If a pattern matches none of them: the layer that it means is missing, or is misread. If a
    /// pattern gives a layer another rank than its matrices have.
    pub fn apply(&self, groups: &mut [Group], tensors: &[TensorEntry]) -> Result<()> {
        if self.value.is_none() {
            return Ok(());
        }
        let mut used = BTreeSet::new();
        for group in &mut *groups {
            let layer = &group.layer;
            let (alphas, ranks) =
                (self.pattern(layer, "alpha_pattern")?, self.pattern(layer, "rank_pattern")?);
            used.extend([alphas, ranks].into_iter().flatten().map(std::ptr::from_ref));
            if let Some(pattern) = ranks {
                self.check_rank(pattern, group, tensors)?;
            }
            let number = |key: &str| self.get(layer, key).and_then(Value::as_f64);
            let alpha = alphas.map(|p| p.number).or_else(|| number("lora_alpha"));
            let Some(alpha) = alpha.or_else(|| number("alpha")) else { continue };
            let root = self.get(layer, "use_rslora").and_then(Value::as_bool).unwrap_or(false);
            let rank = ranks.map(|p| p.number).or_else(|| number("r"));
            group.configured = Some(Configured { alpha, root, rank });
        }
        for group in &*groups {
            let dora = self.get(&group.layer, "use_dora").and_then(Value::as_bool);
            if dora == Some(true) && group.matrices() && !group.parts.contains_key(&Part::Magnitude)
            {
                return Err(Error::model(
                    "the configuration says DoRA, but a layer has no lengths",
                )
                .at(&group.base)
                .expected("a tensor lora_magnitude_vector"));
            }
        }
        match self.patterns.iter().find(|p| !used.contains(&std::ptr::from_ref(*p))) {
            Some(pattern) => Err(Error::model("a pattern of this LoRA matches none of its layers")
                .at(format!("{}, {}", self.place, pattern.list))
                .found(&pattern.text)
                .expected("the name of a layer, or a regular expression that matches one")
                .try_("the file is incomplete, or its names were changed; save it again")),
            None => Ok(()),
        }
    }

    fn check_rank(&self, pattern: &Pattern, group: &Group, tensors: &[TensorEntry]) -> Result<()> {
        let rank = group.parts.get(&Part::Down).and_then(|i| tensors[*i].shape.first());
        match rank.filter(|rank| **rank as f64 != pattern.number) {
            Some(rank) => Err(Error::model("a layer of this LoRA has another rank than it says")
                .at(format!("{}, {}, {}", self.place, pattern.list, pattern.text))
                .found(format!("rank {rank} of {}", group.base))
                .expected(pattern.number)),
            None => Ok(()),
        }
    }
}

fn read_text(path: &Path) -> Result<String> {
    let fails = |e| Error::missing(format!("cannot be read: {e}")).at_path(path);
    let file = std::fs::File::open(path).map_err(fails)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(fails)?;
    Ok(text)
}
