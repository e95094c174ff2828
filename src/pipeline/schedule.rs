//! The noise levels of a run: flow matching with Euler steps and the shifts of FLUX.1-dev and
//! FLUX.1-schnell.
//!
//! An image is made from `x = noise` by `x += (sigma[i + 1] - sigma[i]) * velocity(x, sigma[i])`.
//! The levels run from 1 to 0. Before any shift they are `1, (N - 1)/N, ..., 1/N` and a final 0:
//! diffusers writes `linspace(1, 1/N, N)` and appends the 0, Black Forest Labs' own code
//! `linspace(1, 0, N + 1)`, which is the same set of points. Both shifts below leave 0 and 1 where
//! they are, so the two agree after the shift too.
//!
//! - FLUX.1-schnell: no shift. Four steps: 1, 0.75, 0.5, 0.25, 0.
//! - FLUX.1-dev: a larger image needs more noise before it is lost, so the levels are raised by an
//!   amount `mu` that grows with the number of image tokens: `sigma = e^mu / (e^mu + 1/t - 1)`,
//!   where `mu` is the straight line through `(base_image_seq_len, base_shift)` and
//!   `(max_image_seq_len, max_shift)`, not clamped at its ends. The config's `shift` is not
//!   used then.
//! - `time_shift_type` linear puts `mu` in place of `e^mu`. `shift_terminal` stretches the levels
//!   so that the last one before 0 has this value.
//! - A fixed shift, where `use_dynamic_shifting` is off: `sigma = shift * t / (1 + (shift - 1) *
//!   t)`, the same curve with `shift = e^mu`.
//!
//! diffusers computes `mu` and `e^mu` in f64 and the rest in f32, step by step; so does this code,
//! to get the same f32 values. (The caller multiplies by 1000 and divides again, as diffusers does
//! for the model's timestep.)

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::request::Parameter;
use crate::error::{Error, Result};
use crate::library::config::read_json;
use crate::message::Message;

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

/// The noise levels of one run, from 1 (noise alone) down to 0 (the image).
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// One level before each step, then the final 0: number of steps + 1 values, decreasing.
    pub sigmas: Vec<f32>,
}

impl Schedule {
    /// The levels for `steps` steps on an image of `image_tokens` tokens (`(height / 16) * (width
    /// / 16)` for FLUX.1's autoencoder).
    pub fn new(config: &ScheduleConfig, steps: usize, image_tokens: usize) -> Self {
        let mu = config.mu(image_tokens);
        let dynamic = match config.time_shift_type {
            // A steep line through two points leaves the numbers of f32 at other sizes.
            TimeShift::Exponential => mu.clamp(-80.0, 80.0).exp() as f32,
            TimeShift::Linear => mu.clamp(1e-3, 1e30) as f32,
        };
        let shifted = |t: f32| {
            if config.use_dynamic_shifting {
                dynamic / (dynamic + (1.0 / t - 1.0))
            } else {
                config.shift as f32 * t / (1.0 + (config.shift - 1.0) as f32 * t)
            }
        };
        let mut sigmas: Vec<f32> = (0..steps).map(|i| shifted(unshifted(steps, i))).collect();
        if let (Some(last), Some(terminal)) = (sigmas.last().copied(), config.shift_terminal)
            && last < 1.0
            && terminal > 0.0
        {
            let scale = (1.0 - last) / (1.0 - terminal) as f32;
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
        sigmas.push(0.0);
        Self { sigmas }
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// The index of the level at which an image-to-image run of this `strength` enters: it starts
    /// from `(1 - sigma) * image + sigma * noise` with that level and takes the steps from there
    /// on.
    ///
    /// Strength 1 gives 0, the whole run; strength 0 gives [`Schedule::steps`], no step at all. The
    /// formula is that of diffusers' `FluxImg2ImgPipeline`, `int(max(steps - min(steps * strength,
    /// steps), 0))` in f64. To round as Python does, the f32 is read as the decimal number that it
    /// prints as: 10 steps at 0.7 are 7, although the f32 next to 0.7 is less.
    pub fn from_strength(&self, strength: f32) -> usize {
        let steps = self.steps() as f64;
        let strength = strength.to_string().parse::<f64>().unwrap_or(f64::NAN).clamp(0.0, 1.0);
        (steps - steps * strength) as usize
    }
}

/// The `i`th of `steps` levels before the shift, rounded as `numpy.linspace(1, 1 / steps, steps)`
/// in f64 and a conversion to f32 round it.
fn unshifted(steps: usize, i: usize) -> f32 {
    let last = 1.0 / steps as f64;
    if steps > 1 && i + 1 == steps {
        return last as f32;
    }
    let stride = (last - 1.0) / (steps.max(2) - 1) as f64;
    (i as f64 * stride + 1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn goldens() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/schedule.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_levels_match_diffusers() {
        let goldens = goldens();
        let cases = goldens["cases"].as_array().unwrap();
        assert!(cases.len() > 80);
        for case in cases {
            let config: ScheduleConfig = serde_json::from_value(
                goldens["configs"][case["config"].as_str().unwrap()].clone(),
            )
            .unwrap();
            let number = |key: &str| case[key].as_u64().unwrap() as usize;
            let schedule = Schedule::new(&config, number("steps"), number("image_tokens"));
            let expected: Vec<f32> = case["sigmas"]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap() as f32)
                .collect();
            assert_eq!(schedule.sigmas.len(), expected.len());
            for (&got, &want) in schedule.sigmas.iter().zip(&expected) {
                // One unit in the last place for another system's exp.
                assert!((got - want).abs() <= want * f32::EPSILON, "{got} for {want} in {case}");
            }
        }
    }

    #[test]
    fn the_first_step_matches_diffusers() {
        let goldens = goldens();
        let cases = goldens["first_step_of_steps_and_percent"].as_array().unwrap();
        assert!(cases.len() > 1000);
        for case in cases {
            let [steps, percent, first] = [0, 1, 2].map(|i| case[i].as_u64().unwrap() as usize);
            let schedule = Schedule::new(&ScheduleConfig::schnell(), steps, 256);
            assert_eq!(
                schedule.from_strength(percent as f32 / 100.0),
                first,
                "{steps} steps, strength {percent} %"
            );
        }
    }

    #[test]
    fn a_strength_outside_0_to_1_is_clamped() {
        let schedule = Schedule::new(&ScheduleConfig::dev(), 20, 4096);
        assert_eq!(schedule.from_strength(1.5), 0);
        assert_eq!(schedule.from_strength(-0.5), 20);
    }

    #[test]
    fn published_configs_are_read_and_defaults_fill_the_gaps() {
        let dev = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler",
            "_diffusers_version": "0.30.0.dev0", "base_image_seq_len": 256, "base_shift": 0.5,
            "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
            "use_dynamic_shifting": true}"#;
        assert_eq!(serde_json::from_str::<ScheduleConfig>(dev).unwrap(), ScheduleConfig::dev());
        assert_eq!(
            serde_json::from_str::<ScheduleConfig>("{}").unwrap(),
            ScheduleConfig::schnell()
        );
        assert_eq!(
            Schedule::new(&ScheduleConfig::schnell(), 4, 4096).sigmas,
            [1.0, 0.75, 0.5, 0.25, 0.0]
        );
    }

    #[test]
    fn mu_runs_through_the_two_given_points() {
        let dev = ScheduleConfig::dev();
        assert!((dev.mu(256) - 0.5).abs() < 1e-12 && (dev.mu(4096) - 1.15).abs() < 1e-12);
    }

    #[test]
    fn the_linear_shift_and_the_terminal_level_are_those_of_diffusers() {
        // FlowMatchEulerDiscreteScheduler.set_timesteps(sigmas=linspace(1, 1/4, 4), mu) in NumPy.
        let config = ScheduleConfig { time_shift_type: TimeShift::Linear, ..ScheduleConfig::dev() };
        let got = Schedule::new(&config, 4, 4096).sigmas;
        let want = |t: f64| 1.15 / (1.15 + (1.0 / t - 1.0));
        for (got, t) in got.iter().zip([1.0, 0.75, 0.5, 0.25]) {
            assert!((f64::from(*got) - want(t)).abs() < 1e-6, "{got} {t}");
        }
        let config = ScheduleConfig { shift_terminal: Some(0.1), ..ScheduleConfig::fixed(3.0) };
        let got = Schedule::new(&config, 4, 4096).sigmas;
        let shifted = [1.0, 0.75, 0.5, 0.25].map(|t: f64| 3.0 * t / (1.0 + 2.0 * t));
        let scale = (1.0 - shifted[3]) / 0.9;
        for (got, z) in got.iter().zip(shifted) {
            assert!((f64::from(*got) - (1.0 - (1.0 - z) / scale)).abs() < 1e-6, "{got} {z}");
        }
        assert!((got[3] - 0.1).abs() < 1e-6 && got[4] == 0.0);
        // A line that no model has still gives levels.
        let steep = ScheduleConfig {
            base_image_seq_len: 1,
            max_image_seq_len: 2,
            base_shift: -20.0,
            max_shift: 20.0,
            ..ScheduleConfig::dev()
        };
        assert!(steep.check().is_ok());
        for tokens in [1, 65_536] {
            let levels = Schedule::new(&steep, 4, tokens).sigmas;
            assert!(levels.iter().all(|s| (0.0..=1.0).contains(s)), "{levels:?}");
        }
        // One step has no level to stretch.
        assert_eq!(Schedule::new(&config, 1, 4096).sigmas, [1.0, 0.0]);
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
