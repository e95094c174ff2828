//! Limits of a key: plans of several rolling windows, decided together.
//!
//! A window is `(now - W, now]` and never starts at a fixed time. [`decide`] is a pure function of
//! the plan, what was admitted before, the time and the charge: a request counts in every limit of
//! its plan, or in none.

mod headers;
mod noted;
mod plan;
mod window;

pub use headers::insert_headers;
pub use noted::{note_limits, with_limits};
pub use plan::{Limit, Plan, Unit, presets};
pub use window::Window;

use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// The amounts that one request counts in the limits of its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Charge {
    /// Images.
    pub images: u64,
    /// Pixels of all images.
    pub pixels: u64,
}

impl Charge {
    /// The amount that counts in a limit of `unit`.
    fn amount(self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests | Unit::Active => 1,
            Unit::Images => self.images,
            Unit::Pixels => self.pixels,
        }
    }
}

/// What was admitted under a plan: one window for each of its limits, in order. Limits of jobs that
/// are active have none: the queue counts those.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Admitted {
    windows: Vec<Window>,
}

impl Admitted {
    /// Nothing was admitted yet.
    pub fn new(plan: &Plan) -> Self {
        Admitted { windows: plan.limits.iter().map(|_| Window::default()).collect() }
    }

    /// Takes what was admitted under the limits `before`, as far as they are among those of `plan`.
    #[cfg(feature = "nats")]
    pub fn keep(&mut self, plan: &[Limit], other: &Admitted, before: &[Limit]) {
        for (limit, window) in plan.iter().zip(&mut self.windows) {
            if let Some(at) = before.iter().position(|known| known == limit)
                && let Some(known) = other.windows.get(at)
            {
                window.clone_from(known);
            }
        }
    }

    /// Records a request that was admitted at `now`.
    pub fn add(&mut self, plan: &Plan, now: i64, charge: Charge) {
        for (limit, window) in plan.limits.iter().zip(&mut self.windows) {
            if let Some(length) = limit.window {
                window.add(now, length, charge.amount(limit.unit));
            }
        }
    }

    /// Gives images and pixels of a request back that was admitted at `at`. Requests are not given
    /// back.
    pub fn refund(&mut self, plan: &Plan, at: i64, charge: Charge) {
        for (limit, window) in plan.limits.iter().zip(&mut self.windows) {
            if limit.window.is_some() && matches!(limit.unit, Unit::Images | Unit::Pixels) {
                window.take_back(at, charge.amount(limit.unit));
            }
        }
    }
}

/// How one limit stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The limit.
    pub limit: Limit,
    /// The amount that is left of the limit.
    pub remaining: u64,
    /// Nanoseconds until there is more; 0 if nothing of it is used.
    pub reset: i64,
}

/// Whether a request is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be accepted. The standings include it.
    Admit(Vec<Standing>),
    /// It must wait. The standings are those without it.
    Wait {
        /// Nanoseconds until it could be admitted; `None` if that depends on when a job ends.
        wait: Option<i64>,
        /// The limits that it would exceed.
        violated: Vec<Limit>,
        /// Every limit.
        standings: Vec<Standing>,
    },
    /// It exceeds a limit by itself and can never be admitted: the limit, and how much it needs.
    Never(Limit, u64),
}

/// Decides about a request at `now` (nanoseconds) that takes `charge`, when its owner has `active`
/// jobs that wait or run. Nothing is changed: see [`Admitted::add`].
pub fn decide(plan: &Plan, before: &Admitted, now: i64, charge: Charge, active: u64) -> Verdict {
    let (mut waits, mut violated) = (Vec::new(), Vec::new());
    let used = |limit: &Limit, window: &Window| match limit.window {
        Some(length) => window.used(now, length),
        None => active,
    };
    for (limit, window) in plan.limits.iter().zip(&before.windows) {
        let amount = charge.amount(limit.unit);
        if amount > limit.quota {
            return Verdict::Never(limit.clone(), amount);
        }
        if used(limit, window).saturating_add(amount) > limit.quota {
            violated.push(limit.clone());
            let room = limit.quota - amount;
            waits.push(limit.window.map(|length| window.wait(now, length, room)));
        }
    }
    let admitted = violated.is_empty();
    let standings = plan.limits.iter().zip(&before.windows).map(|(limit, window)| {
        let mine = if admitted { charge.amount(limit.unit) } else { 0 };
        let used = used(limit, window).saturating_add(mine);
        let reset = match limit.window {
            None => 0,
            Some(length) => {
                window.first_leaves(now, length).unwrap_or(if mine > 0 { length } else { 0 })
            }
        };
        Standing { limit: limit.clone(), remaining: limit.quota.saturating_sub(used), reset }
    });
    let standings: Vec<Standing> = standings.collect();
    if admitted {
        return Verdict::Admit(standings);
    }
    // The longest wait over all limits that are violated.
    let rolling = waits.iter().flatten().max().copied();
    Verdict::Wait { wait: rolling, violated, standings }
}

impl Plan {
    /// Refuses an image that is larger than the plan allows, or another model than those of the
    /// plan: `is_meant` says whether a name means the model of the request. No time makes such a
    /// request acceptable, so it is never a 429.
    ///
    /// # Errors
    /// 422 and 403.
    pub fn check(&self, is_meant: impl Fn(&str) -> bool, pixels_of_one: u64) -> Result<(), Fault> {
        if let Some(models) = &self.models
            && !models.iter().any(|name| is_meant(name))
        {
            let message = "model: this model is not part of the plan of your key";
            return Err(Fault::new(403, "forbidden", message)
                .parameter("model")
                .hint(format!("one of: {}", models.join(", "))));
        }
        match self.max_pixels {
            Some(most) if pixels_of_one > most => Err(Fault::invalid(
                "size",
                format!(
                    "size: the plan of your key allows images of at most {most} pixels: found \
                     {pixels_of_one}"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The fault of a request that can never be admitted.
pub fn too_much(limit: &Limit, amount: u64) -> Fault {
    let (found, parameter) = match limit.unit {
        Unit::Images => (format!("{amount} images"), "count"),
        Unit::Pixels => (format!("{:.2} megapixels", amount as f64 / 1e6), "size"),
        Unit::Requests | Unit::Active => (format!("{amount} requests"), "count"),
    };
    let message = format!("{parameter}: the plan of your key allows {limit}: found {found}");
    Fault::invalid(parameter, message).hint("ask for less at a time")
}

#[cfg(test)]
mod tests;
