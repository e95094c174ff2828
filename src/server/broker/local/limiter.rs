//! The limits of owners: kept in memory, and rebuilt from the rows of jobs when an owner is seen
//! first.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::Writer;
use super::schema::stored;
use crate::server::broker::NewJob;
use crate::server::fault::Fault;
use crate::server::limits::{Admitted, Charge, Plan, Verdict, decide};

/// What was admitted for each owner. Owners are keys of the server, so there are only as many as
/// there are keys: a request without one is refused before.
#[derive(Debug, Default)]
pub struct Limiter {
    owners: HashMap<String, (Arc<Plan>, Admitted)>,
}

impl Limiter {
    /// Records an admitted request of `owner`, if it has limits.
    pub fn add(&mut self, owner: &str, now: i64, charge: Charge) {
        if let Some((plan, admitted)) = self.owners.get_mut(owner) {
            admitted.add(plan, now, charge);
        }
    }

    fn refund(&mut self, owner: &str, at: i64, charge: Charge) {
        if let Some((plan, admitted)) = self.owners.get_mut(owner) {
            admitted.refund(plan, at, charge);
        }
    }
}

impl Writer {
    /// Decides whether the limits of its owner, who has `active` jobs that wait or run, admit a job
    /// at `now`.
    pub fn decide(&mut self, new: &NewJob, active: usize, now: i64) -> Result<Verdict, Fault> {
        let Some(plan) = &new.plan else { return Ok(Verdict::Admit(Vec::new())) };
        if !self.limiter.owners.contains_key(&new.owner) {
            let admitted = self.admitted(plan, &new.owner, now)?;
            self.limiter.owners.insert(new.owner.clone(), (plan.clone(), admitted));
        }
        let Some((plan, admitted)) = self.limiter.owners.get(&new.owner) else {
            return Err(Fault::internal("the limits of a key are missing"));
        };
        Ok(decide(plan, admitted, now, new.charge, active as u64))
    }

    /// What `owner` was admitted before, from the rows of its jobs.
    fn admitted(&self, plan: &Plan, owner: &str, now: i64) -> Result<Admitted, Fault> {
        let mut admitted = Admitted::new(plan);
        let mut statement = self
            .db
            .prepare(
                "SELECT instant, images, pixels FROM jobs WHERE owner = ?1 AND instant > ?2
                 ORDER BY seq",
            )
            .map_err(stored)?;
        let rows = statement.query_map(params![owner, now - plan.longest()], |row| {
            let (images, pixels): (i64, i64) = (row.get(1)?, row.get(2)?);
            let charge = Charge { images: images as u64, pixels: pixels as u64 };
            Ok((row.get::<_, i64>(0)?, charge))
        });
        for row in rows.map_err(stored)? {
            let (at, charge) = row.map_err(stored)?;
            admitted.add(plan, at, charge);
        }
        Ok(admitted)
    }

    /// Gives the images of the job `id` back.
    pub fn refund(&mut self, id: &str) -> Result<(), Fault> {
        let sql = "SELECT owner, instant, images, pixels FROM jobs WHERE id = ?1";
        let row = self.db.query_row(sql, [id], |row| {
            let (images, pixels): (i64, i64) = (row.get(2)?, row.get(3)?);
            let charge = Charge { images: images as u64, pixels: pixels as u64 };
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, charge))
        });
        let Some((owner, at, charge)) = row.optional().map_err(stored)? else { return Ok(()) };
        self.db
            .execute("UPDATE jobs SET images = 0, pixels = 0 WHERE id = ?1", [id])
            .map_err(stored)?;
        self.limiter.refund(&owner, at, charge);
        Ok(())
    }
}
