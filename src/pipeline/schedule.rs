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
//! - FLUX.2 has the curve of dev with another `mu`, which depends on the steps, too
//!   ([`empirical_mu`]), whatever its configuration says.
//! - `time_shift_type` linear puts `mu` in place of `e^mu`. `shift_terminal` stretches the levels
//!   so that the last one before 0 has this value.
//! - A fixed shift, where `use_dynamic_shifting` is off: `sigma = shift * t / (1 + (shift - 1) *
//!   t)`, the same curve with `shift = e^mu`.
//!
//! diffusers computes `mu` and `e^mu` in f64 and the rest in f32, step by step; so does this code,
//! to get the same f32 values. (The caller multiplies by 1000 and divides again, as diffusers does
//! for the model's timestep.)

mod config;

pub use config::{ScheduleConfig, TimeShift};

/// FLUX.2's logarithm of the dynamic shift, which depends on the number of steps, too: between the
/// measured lines of 10 and of 200 steps; that of 200 steps for large images.
pub fn empirical_mu(image_tokens: usize, steps: usize) -> f64 {
    const LARGE: usize = 4300;
    let tokens = image_tokens as f64;
    let (of_10, of_200) = (8.73809524e-5 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666);
    if image_tokens > LARGE {
        return of_200;
    }
    let slope = (of_200 - of_10) / 190.0;
    slope * steps as f64 + (of_200 - 200.0 * slope)
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
        Self::with_mu(config, steps, config.mu(image_tokens))
    }

    /// The levels for `steps` steps, where a dynamic shift is that of `mu`.
    pub fn with_mu(config: &ScheduleConfig, steps: usize, mu: f64) -> Self {
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
}
