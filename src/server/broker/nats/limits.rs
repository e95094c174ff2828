//! The limits of owners, exact across fronts: one value per owner, changed by compare-and-set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::link::{Link, get, set};
use crate::server::access::hash;
use crate::server::broker::NewJob;
use crate::server::clock::SECOND;
use crate::server::fault::Fault;
use crate::server::job::hex;
use crate::server::limits::{Admitted, Charge, Limit, Plan, Verdict, decide};

/// How often a change is tried while other fronts change the same value.
const ATTEMPTS: usize = 200;
/// How long a job counts as active before this front has heard of it.
const GRACE: i64 = 60 * SECOND;

/// What one owner was admitted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The limits that the windows belong to.
    limits: Vec<Limit>,
    admitted: Admitted,
    /// The jobs that count as active, with the instants at which they were accepted.
    active: BTreeMap<String, i64>,
    /// The newest instant.
    newest: i64,
}

impl Account {
    /// An account of `plan` with what was admitted before: instants and charges, in order.
    fn new(plan: &Plan, before: impl Iterator<Item = (i64, Charge)>) -> Self {
        let mut admitted = Admitted::new(plan);
        let mut newest = 0;
        for (at, charge) in before {
            admitted.add(plan, at, charge);
            newest = at;
        }
        let limits = plan.limits.clone();
        Account { limits, admitted, active: BTreeMap::new(), newest }
    }

    fn plan(&self) -> Plan {
        Plan { limits: self.limits.clone(), ..Plan::default() }
    }
}

/// What a front knows of the jobs of an owner.
pub trait Jobs {
    /// The instants and charges of those that were accepted, in order.
    fn accepted(&self) -> Vec<(i64, Charge)>;
    /// Whether the job called `id` is over; `None` if it is not known here.
    fn is_over(&self, id: &str) -> Option<bool>;
}

fn key(owner: &str) -> String {
    format!("owner.{}", hex(&hash(owner)))
}

impl Link {
    /// Decides whether the limits of its owner admit a job at about `now`, and counts it then.
    /// `room` says that there is room for it in the queue. Returns the instant at which it was
    /// accepted, too: after all earlier ones.
    ///
    /// # Errors
    /// 503, and what `room` returns.
    pub async fn admit(
        &self,
        new: &NewJob,
        now: i64,
        jobs: &impl Jobs,
        room: impl Fn() -> Result<(), Fault>,
    ) -> Result<(Verdict, i64), Fault> {
        let Some(plan) = &new.plan else {
            room()?;
            return Ok((Verdict::Admit(Vec::new()), now));
        };
        let key = key(&new.owner);
        for _ in 0..ATTEMPTS {
            let known = get::<Account>(&self.shared, &key).await?;
            let revision = known.as_ref().map_or(0, |(_, revision)| *revision);
            let known = known.map(|(account, _)| account);
            let mut account = match known {
                Some(account) if account.limits == plan.limits => account,
                // The first job, or the operator has changed the plan.
                known => {
                    let mut account = Account::new(plan, jobs.accepted().into_iter());
                    if let Some(known) = known {
                        account.admitted.keep(&plan.limits, &known.admitted, &known.limits);
                        account.active = known.active;
                        account.newest = account.newest.max(known.newest);
                    }
                    account
                }
            };
            // Fronts have clocks of their own, and instants are added in order.
            let now = now.max(account.newest + 1);
            account.active.retain(|id, since| match jobs.is_over(id) {
                Some(over) => !over,
                None => now - *since < GRACE,
            });
            let active = account.active.len() as u64;
            let verdict = decide(plan, &account.admitted, now, new.charge, active);
            if !matches!(verdict, Verdict::Admit(_)) {
                return Ok((verdict, now));
            }
            room()?;
            account.admitted.add(plan, now, new.charge);
            account.active.insert(new.id.clone(), now);
            account.newest = now;
            if set(&self.shared, &key, &account, revision).await?.is_some() {
                return Ok((verdict, now));
            }
        }
        Err(Fault::new(503, "busy", "too many requests of this key at the same time")
            .retry_after(1))
    }

    /// Gives images of a job that was accepted at `at` back to the limits of `owner`.
    ///
    /// # Errors
    /// 503.
    pub async fn give_images_back(
        &self,
        owner: &str,
        at: i64,
        charge: Charge,
    ) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            let Some((mut account, revision)) = get::<Account>(&self.shared, &key(owner)).await?
            else {
                return Ok(());
            };
            let plan = account.plan();
            account.admitted.refund(&plan, at, charge);
            if set(&self.shared, &key(owner), &account, revision).await?.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Strikes a job that was counted and then not stored.
    pub async fn strike(&self, new: &NewJob, at: i64) {
        self.give_images_back(&new.owner, at, new.charge).await.ok();
        for _ in 0..ATTEMPTS {
            let known = get::<Account>(&self.shared, &key(&new.owner)).await;
            let Ok(Some((mut account, revision))) = known else { return };
            account.active.remove(&new.id);
            if !matches!(set(&self.shared, &key(&new.owner), &account, revision).await, Ok(None)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_plan_keeps_what_was_admitted_under_the_limits_that_stay() {
        let plan = |limits: &[&str]| Plan::of(limits).unwrap();
        let one = Charge { images: 1, pixels: 1 };
        let before = plan(&["3/h", "9/day"]);
        let mut account = Account::new(&before, [(1, one), (2, one)].into_iter());
        let after = plan(&["2/h", "9/day"]);
        let mut changed = Account::new(&after, [(2, one)].into_iter());
        changed.admitted.keep(&after.limits, &account.admitted, &account.limits);
        let left = |plan: &Plan, admitted: &Admitted| match decide(plan, admitted, 3, one, 0) {
            Verdict::Admit(standings) => standings.iter().map(|s| s.remaining).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(left(&after, &changed.admitted), [0, 6]);
        assert_eq!(left(&before, &account.admitted), [0, 6]);
        // What is stored is what is read.
        account.active.insert("a".into(), 1);
        let text = serde_json::to_string(&account).unwrap();
        assert_eq!(serde_json::from_str::<Account>(&text).unwrap(), account);
    }
}
