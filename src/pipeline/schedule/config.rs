//! The configuration of the noise levels: `scheduler_config.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::library::config::read_json;
use crate::message::Message;
use crate::pipeline::request::Parameter;

/// The keys of diffusers' `scheduler/scheduler_config.json` that decide FLUX.1's noise levels, with
/// diffusers' defaults for those left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduleConfig {
    /// Fixed shift, 1 for none; unused with `use_dynamic_shifting`.
    pub shift: f64,
    /// Whether the shift depends on the size of the image.
    pub use_dynamic_shifting: bool,
    /// `mu` for `base_image_seq_len` tokens.
    pub base_shift: f64,
    /// `mu` for `max_image_seq_len` tokens.
    pub max_shift: f64,
    /// Image tokens at which `mu` is `base_shift`. A token is 2 x 2 latents, 16 x 16 pixels.
    pub base_image_seq_len: usize,
    /// Image tokens at which `mu` is `max_shift`.
    pub max_image_seq_len: usize,
    /// How the dynamic shift follows from `mu`.
    pub time_shift_type: TimeShift,
    /// The last level before 0, to which the others are stretched; `None` leaves them.
    pub shift_terminal: Option<f64>,
}

/// How the dynamic shift follows from `mu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// `e^mu`.
    #[default]
    Exponential,
    /// `mu` itself.
    Linear,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
        }
    }
}

/// The class whose configuration this is.
const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// Keys that would give other levels if they were set.
const UNSUPPORTED: [&str; 6] = [
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "stochastic_sampling",
    "invert_sigmas",
];

/// Keys of [`ScheduleConfig`].
const KEYS: [&str; 8] = [
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
    "shift_terminal",
];

impl ScheduleConfig {
    /// The config in FLUX.1-dev's repository.
    pub fn dev() -> Self {
        Self { shift: 3.0, use_dynamic_shifting: true, ..Self::default() }
    }

    /// The config in FLUX.1-schnell's repository.
    pub fn schnell() -> Self {
        Self::default()
    }

    /// A fixed shift at every size.
    pub fn fixed(shift: f64) -> Self {
        Self { shift, ..Self::default() }
    }

    /// Reads the content of a `scheduler_config.json`. Keys that are not known are reported in
    /// `notes`.
    ///
    /// # Errors
    /// If it is the configuration of another scheduler, asks for levels that are not supported, or
    /// has unusable numbers.
    pub fn read(config: Value, notes: &mut Vec<Message>) -> Result<Self> {
        let Value::Object(keys) = &config else {
            return Err(unusable("it is not a JSON object"));
        };
        if let Some(class) = keys.get("_class_name").and_then(Value::as_str)
            && class != CLASS
        {
            return Err(unusable(format!("a {class}")).expected(CLASS));
        }
        if let Some(flag) = UNSUPPORTED.iter().find(|flag| is_set(keys.get(**flag))) {
            return Err(unusable(format!("{flag}, which this version does not support")));
        }
        if let Some(steps) = keys.get("num_train_timesteps").filter(|n| n.as_f64() != Some(1000.0))
        {
            return Err(unusable(format!("num_train_timesteps {steps}")).expected(1000));
        }
        let known = |key: &str| {
            key.starts_with('_')
                || key == "num_train_timesteps"
                || KEYS.contains(&key)
                || UNSUPPORTED.contains(&key)
        };
        let unknown: Vec<&str> = keys
            .iter()
            .filter(|(key, value)| !known(key) && is_set(Some(*value)))
            .map(|(key, _)| key.as_str())
            .collect();
        if !unknown.is_empty() {
            notes.push(Message::plain(format!(
                "keys of the scheduler config that are not known have no effect: {}",
                unknown.join(", ")
            )));
        }
        // diffusers writes null for what is not set.
        let set = keys.iter().filter(|(_, value)| !value.is_null());
        let set = set.map(|(key, value)| (key.clone(), value.clone())).collect();
        let config: Self =
            serde_json::from_value(Value::Object(set)).map_err(|e| unusable(e.to_string()))?;
        config.check().map_err(unusable)?;
        Ok(config)
    }

    /// Reads a `scheduler_config.json`, or the one in a model's folder or its `scheduler` folder.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) if there is none, and those of
    /// [`ScheduleConfig::read`]. Keys that are not known are an error here: the file was given for
    /// its effect.
    pub fn open(path: &Path) -> Result<Self> {
        const NAME: &str = "scheduler_config.json";
        let inside = [path.join(NAME), path.join("scheduler").join(NAME)];
        let file = match path.is_dir() {
            true => inside.iter().find(|file| file.exists()).map_or(path, PathBuf::as_path),
            false => path,
        };
        let missing = || Error::missing("there is no scheduler config").at_path(path);
        if file.is_dir() {
            return Err(missing().expected(NAME));
        }
        let config = read_json(file)?.ok_or_else(missing)?;
        let mut notes = Vec::new();
        let read = Self::read(config, &mut notes).map_err(|e| e.at_path(file))?;
        match notes.pop() {
            None => Ok(read),
            Some(note) => Err(Error::model(note.as_str())
                .at_path(file)
                .try_("remove the keys from the file if the noise levels do not depend on them")),
        }
    }

    /// Checks that the numbers give a usable schedule; `Err` names the number that does not.
    pub fn check(&self) -> Result<(), String> {
        if !(self.shift > 0.0 && self.shift <= 1e6) {
            return Err(format!("shift is {}, expected a positive number", self.shift));
        }
        let mild = |mu: f64| mu.is_finite() && mu.abs() <= 20.0;
        if !(mild(self.base_shift) && mild(self.max_shift))
            || self.base_image_seq_len > 1 << 24
            || self.max_image_seq_len > 1 << 24
        {
            return Err(format!(
                "base_shift {} and max_shift {} are not numbers near 1",
                self.base_shift, self.max_shift
            ));
        }
        let is_linear = self.use_dynamic_shifting && self.time_shift_type == TimeShift::Linear;
        if is_linear && !(self.base_shift > 0.0 && self.max_shift > 0.0) {
            return Err("a linear time shift needs a positive base_shift and max_shift".into());
        }
        match self.shift_terminal {
            Some(last) if !(0.0..1.0).contains(&last) => {
                Err(format!("shift_terminal is {last}, expected 0 to 1"))
            }
            _ => Ok(()),
        }
    }

    /// The logarithm of the dynamic shift for an image of `image_tokens` tokens.
    pub fn mu(&self, image_tokens: usize) -> f64 {
        let (low, high) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope =
            if low == high { 0.0 } else { (self.max_shift - self.base_shift) / (high - low) };
        image_tokens as f64 * slope + (self.base_shift - slope * low)
    }
}

/// Whether a value of a configuration asks for something: it is not null, false or absent.
fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(|v| !v.is_null() && v.as_bool() != Some(false))
}

fn unusable(why: impl Into<String>) -> Error {
    Error::model("the scheduler config cannot be used")
        .found(why.into())
        .try_("compare it with scheduler/scheduler_config.json of FLUX.1 [dev]")
}

/// As text: its JSON, with only the keys whose values differ from the defaults.
impl Parameter for ScheduleConfig {
    fn to_text(&self) -> Option<String> {
        Some(self.to_value().to_string())
    }

    fn from_text(text: &str) -> Option<Self> {
        Self::read(serde_json::from_str(text).ok()?, &mut vec![]).ok()
    }

    fn to_json<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl ScheduleConfig {
    fn to_value(&self) -> Value {
        let all = |config: &Self| serde_json::to_value(config).unwrap_or_default();
        let (mut own, defaults) = (all(self), all(&Self::default()));
        if let Value::Object(keys) = &mut own {
            keys.retain(|key, value| defaults.get(key) != Some(value));
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mu_runs_through_the_two_given_points() {
        let dev = ScheduleConfig::dev();
        assert!((dev.mu(256) - 0.5).abs() < 1e-12 && (dev.mu(4096) - 1.15).abs() < 1e-12);
    }

    #[test]
    fn configs_of_other_schedulers_are_refused_and_unknown_keys_are_noted() {
        let read = |text: &str| {
            let mut notes = vec![];
            ScheduleConfig::read(serde_json::from_str(text).unwrap(), &mut notes)
                .map(|config| (config, notes))
        };
        for (text, words) in [
            (r#"{"_class_name": "EulerDiscreteScheduler"}"#, "EulerDiscreteScheduler"),
            (r#"{"use_karras_sigmas": true}"#, "use_karras_sigmas"),
            (r#"{"invert_sigmas": true}"#, "invert_sigmas"),
            (r#"{"num_train_timesteps": 500}"#, "num_train_timesteps"),
            (r#"{"time_shift_type": "cubic"}"#, "cubic"),
            (r#"{"shift_terminal": 1.5}"#, "shift_terminal"),
            (r#"{"shift": 0}"#, "shift is 0"),
            (r#"{"shift": "3"}"#, "invalid type"),
            ("[]", "not a JSON object"),
        ] {
            let e = read(text).unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Model);
            assert!(e.to_string().contains(words), "{text}: {e}");
        }
        let (config, notes) =
            read(r#"{"shift": 2.5, "shift_terminal": null, "new_key": 1, "old": false}"#).unwrap();
        assert_eq!(config, ScheduleConfig::fixed(2.5));
        assert!(notes.len() == 1 && notes[0].as_str().ends_with(": new_key"), "{notes:?}");
    }

    #[test]
    fn configs_come_back_from_their_text() {
        let all = ScheduleConfig {
            shift: 1.7,
            use_dynamic_shifting: true,
            base_shift: 0.4,
            max_shift: 1.2,
            base_image_seq_len: 200,
            max_image_seq_len: 4000,
            time_shift_type: TimeShift::Linear,
            shift_terminal: Some(0.02),
        };
        for config in [all, ScheduleConfig::dev(), ScheduleConfig::schnell()] {
            let text = config.to_text().unwrap();
            assert_eq!(ScheduleConfig::from_text(&text), Some(config), "{text}");
        }
        assert_eq!(ScheduleConfig::fixed(3.0).to_text().unwrap(), r#"{"shift":3.0}"#);
        assert_eq!(ScheduleConfig::from_text("{\"shift\":-1}"), None);
    }
}
