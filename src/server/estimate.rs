//! How long jobs take: the plan of the model at first, then what was measured.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// Seconds for a million pixels and step, per model.
#[derive(Debug, Default)]
pub struct Rates {
    models: Mutex<HashMap<String, f64>>,
}

impl Rates {
    /// The seconds that `work` (million pixels times steps) takes with `model`, as far as that is
    /// known: from other models if it was not used yet.
    pub fn seconds(&self, model: &str, work: f64) -> Option<f64> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let of_others = || models.values().copied().reduce(f64::max);
        let rate = models.get(model).copied().or_else(of_others)?;
        Some(rate * work)
    }

    /// Sets the rate from the plan of `model`, unless there is a measurement, which is better.
    pub fn plan(&self, model: &str, work: f64, seconds: f64) {
        if let Some(rate) = rate(work, seconds) {
            let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
            models.entry(model.to_string()).or_insert(rate);
        }
    }

    /// `work` took `seconds`.
    pub fn measured(&self, model: &str, work: f64, seconds: f64) {
        if let Some(rate) = rate(work, seconds) {
            let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
            let known = models.entry(model.to_string()).or_insert(rate);
            *known += (rate - *known) * NEWEST;
        }
    }
}

fn rate(work: f64, seconds: f64) -> Option<f64> {
    let rate = seconds / work;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_replace_the_plan_little_by_little() {
        let rates = Rates::default();
        assert_eq!(rates.seconds("a", 1.0), None);
        rates.plan("a", 2.0, 8.0);
        assert_eq!(rates.seconds("a", 1.0), Some(4.0));
        rates.plan("a", 2.0, 100.0);
        assert_eq!(rates.seconds("b", 2.0), Some(8.0));
        rates.measured("a", 1.0, 14.0);
        assert_eq!(rates.seconds("a", 1.0), Some(7.0));
        rates.measured("a", 0.0, 1.0);
        assert_eq!(rates.seconds("a", 1.0), Some(7.0));
    }
}
