//! The queue of one machine: SQLite, in one file.

mod limiter;
mod schema;
mod unwritten;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::fair::Waiting;
use super::queue::JobQueue;
use super::{Broker, Cancelled, Counts, NewJob, Place, Submitted};
use crate::server::clock::{Clock, SECOND};
use crate::server::fault::Fault;
use crate::server::job::{Job, Outcome, State};
use crate::server::limits::Verdict;
use limiter::Limiter;
use schema::{COLUMNS, WAITING, connect, number_of, prepare, read_job, read_waiting, stored};
use unwritten::Unwritten;

/// How often a job is given to a worker before it counts as the cause of its failures.
const MAX_ATTEMPTS: u32 = 2;

/// A [`Broker`] in a file of SQLite.
pub struct LocalBroker {
    /// Makes all changes of the file, one after another.
    writer: Mutex<Writer>,
    /// Reads the file. It never waits for a change that is being written.
    reader: Mutex<Connection>,
    /// It is locked for moments only; where `writer` is locked too, after it.
    memory: Mutex<Memory>,
    clock: Clock,
    max_queued: usize,
}

struct Writer {
    db: Connection,
    limiter: Limiter,
}

/// A copy of the queue in memory.
#[derive(Default)]
struct Memory {
    /// The queued jobs.
    queue: JobQueue,
    /// The jobs that run, and their owners.
    running: HashMap<String, String>,
    /// Ends of jobs that could not be written yet.
    unwritten: Unwritten,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalBroker {
    /// Opens or creates the database at `path`. Jobs that ran when its last process ended are
    /// queued again, or have failed if that happened before. At most `max_queued` jobs may wait.
    ///
    /// # Errors
    /// 500 if the file cannot be used, or was written by a later version.
    pub fn open(path: &Path, max_queued: usize) -> Result<Self, Fault> {
        let db = connect(path)?;
        prepare(&db)?;
        let newest = db.query_row("SELECT MAX(instant) FROM jobs", [], |row| row.get(0));
        let newest: Option<i64> = newest.map_err(stored)?;
        let clock = Clock::after(newest.unwrap_or(0));
        let mut writer = Writer { db, limiter: Limiter::default() };
        let memory = writer.replay(clock.seconds())?;
        let reader = connect(path)?;
        reader.execute_batch("PRAGMA query_only = ON;").map_err(stored)?;
        Ok(LocalBroker {
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            memory: Mutex::new(memory),
            clock,
            max_queued,
        })
    }

    /// The jobs that `condition` selects, by the numbered `values` in it.
    fn select(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Job>, Fault> {
        let reader = lock(&self.reader);
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE {condition}");
        let mut statement = reader.prepare(&sql).map_err(stored)?;
        let rows = statement.query_map(values, read_job).map_err(stored)?;
        let mut jobs = rows.collect::<Result<Vec<_>, _>>().map_err(stored)?;
        drop(statement);
        lock(&self.memory).unwritten.apply(&mut jobs);
        Ok(jobs)
    }

    /// Writes the ends of jobs that could not be written before, as far as that is possible now.
    fn catch_up(&self, writer: &mut Writer) {
        let waiting = lock(&self.memory).unwritten.ids();
        for id in waiting {
            let Some((outcome, at)) = lock(&self.memory).unwritten.get(&id) else { continue };
            if writer.end(&id, &outcome, at).is_err() {
                return;
            }
            lock(&self.memory).unwritten.remove(&id);
        }
    }

    /// Lets `waiting` run, which was taken out of the queue.
    fn start(&self, writer: &Writer, waiting: Waiting) -> Result<Job, Fault> {
        let started = writer.without_sync(|db| {
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?2, attempts = attempts + 1
                 WHERE id = ?1",
                params![waiting.id, self.clock.seconds()],
            )
        });
        let job = started.map_err(stored).and_then(|_| writer.known(&waiting.id));
        let mut memory = lock(&self.memory);
        match job {
            Ok(job) => {
                memory.running.insert(waiting.id, waiting.owner);
                Ok(job)
            }
            Err(fault) => {
                memory.queue.push_front(waiting);
                Err(fault)
            }
        }
    }
}

impl Writer {
    /// Settles the jobs that ran when the last process ended, and reads the queue.
    fn replay(&mut self, now: f64) -> Result<Memory, Fault> {
        let died = serde_json::to_string(&worker_died()).unwrap_or_default();
        let transaction = self.db.transaction().map_err(stored)?;
        let update = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            transaction.execute(sql, values).map_err(stored)
        };
        update(
            "UPDATE jobs SET state = 'canceled', finished = ?1 WHERE state = 'canceling'",
            params![now],
        )?;
        update(
            "UPDATE jobs SET state = 'failed', finished = ?1, fault = ?2, images = 0, pixels = 0
             WHERE state = 'running' AND attempts >= ?3",
            params![now, died, MAX_ATTEMPTS],
        )?;
        update("UPDATE jobs SET state = 'queued', started = NULL WHERE state = 'running'", &[])?;
        transaction.commit().map_err(stored)?;
        let mut statement = self
            .db
            .prepare(&format!("SELECT {WAITING} FROM jobs WHERE state = 'queued' ORDER BY seq"))
            .map_err(stored)?;
        let mut memory = Memory::default();
        for waiting in statement.query_map([], read_waiting).map_err(stored)? {
            memory.queue.push(waiting.map_err(stored)?);
        }
        Ok(memory)
    }

    /// Makes a change that need not wait for the disk: it survives the end of the process, and may
    /// be lost if the machine loses power. The job then runs once more, and gives the same images.
    /// With a write-ahead log the database stays whole, and the next job that is accepted, or any
    /// other change that does wait, brings this one to the disk, too.
    fn without_sync<T>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.db.execute_batch("PRAGMA synchronous = NORMAL;")?;
        let changed = change(&self.db);
        self.db.execute_batch("PRAGMA synchronous = FULL;")?;
        changed
    }

    /// Writes how a job ended.
    fn end(&mut self, id: &str, outcome: &Outcome, now: f64) -> Result<(), Fault> {
        let state = outcome.state().name();
        let (outputs, settings, fault) = match outcome {
            Outcome::Succeeded { outputs, settings } => {
                (serde_json::to_string(outputs), Some(settings.to_string()), None)
            }
            Outcome::Failed(fault) => (Ok("[]".into()), None, serde_json::to_string(fault).ok()),
            Outcome::Canceled => (Ok("[]".into()), None, None),
        };
        let changed = self
            .without_sync(|db| {
                db.execute(
                    "UPDATE jobs SET state = ?2, finished = ?3, outputs = ?4, settings = ?5,
                     fault = ?6 WHERE id = ?1 AND state IN ('running', 'canceling')",
                    params![id, state, now, outputs.unwrap_or_default(), settings, fault],
                )
            })
            .map_err(stored)?;
        // It was not the owner's fault.
        let failed = matches!(outcome, Outcome::Failed(_));
        if failed && changed > 0 { self.refund(id) } else { Ok(()) }
    }

    fn job(&self, id: &str) -> Result<Option<Job>, Fault> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
        self.db.query_row(&sql, [id], read_job).optional().map_err(stored)
    }

    fn known(&self, id: &str) -> Result<Job, Fault> {
        self.job(id)?.ok_or_else(|| Fault::internal("a job is missing from the list of jobs"))
    }

    /// The job that was submitted with the same idempotency key.
    fn same(&self, new: &NewJob) -> Result<Option<Job>, Fault> {
        let Some((key, hash)) = &new.idempotency else { return Ok(None) };
        let sql = format!(
            "SELECT {COLUMNS}, idempotency_hash FROM jobs WHERE owner = ?1 AND idempotency_key = ?2"
        );
        let found = self.db.query_row(&sql, [&new.owner, key], |row| {
            Ok((read_job(row)?, row.get::<_, String>("idempotency_hash")?))
        });
        match found.optional().map_err(stored)? {
            Some((job, known)) if known == *hash => Ok(Some(job)),
            Some(_) => Err(Fault::new(
                422,
                "idempotency_key_reuse",
                "this idempotency key was used for another request",
            )
            .hint("use a new key for every new request")),
            None => Ok(None),
        }
    }

    /// Writes a job that is accepted at `now`.
    fn insert(&self, new: &NewJob, now: i64) -> Result<(), Fault> {
        let (key, hash) = new.idempotency.as_ref().map(|(key, hash)| (key, hash)).unzip();
        let spec = serde_json::to_string(&new.spec)
            .map_err(|e| Fault::internal(format!("the job cannot be written: {e}")))?;
        let (images, pixels) = (new.charge.images as i64, new.charge.pixels as i64);
        let created = now as f64 / SECOND as f64;
        let inserted = self
            .db
            .prepare(
                "INSERT INTO jobs (id, owner, state, spec, model, lane, cost, instant, images,
                 pixels, created, idempotency_key, idempotency_hash, alike, owes_call)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    new.id,
                    new.owner,
                    spec,
                    new.spec.model,
                    number_of(new.lane),
                    new.cost,
                    now,
                    images,
                    pixels,
                    created,
                    key,
                    hash,
                    new.alike,
                    new.spec.webhook.is_some(),
                ])
            });
        inserted.map(drop).map_err(stored)
    }
}

impl Broker for LocalBroker {
    fn submit(&self, new: NewJob) -> Result<Submitted, Fault> {
        let mut writer = lock(&self.writer);
        if let Some(job) = writer.same(&new)? {
            return Ok(Submitted::Same(job));
        }
        let (queued, active) = {
            let memory = lock(&self.memory);
            let running = memory.running.values().filter(|owner| **owner == new.owner).count();
            (memory.queue.len(), memory.queue.len_of(&new.owner) + running)
        };
        // Under the lock, so that instants are stored in order.
        let now = self.clock.nanoseconds();
        let standings = match writer.decide(&new, active, now)? {
            Verdict::Admit(standings) => standings,
            Verdict::Wait { wait, violated, standings } => {
                return Ok(Submitted::Limited { wait, violated, standings });
            }
            Verdict::Never(limit, amount) => return Ok(Submitted::Never(limit, amount)),
        };
        if queued >= self.max_queued {
            return Err(Fault::new(503, "queue_full", "the queue is full")
                .hint("send the request again later")
                .retry_after(5));
        }
        writer.insert(&new, now)?;
        writer.limiter.add(&new.owner, now, new.charge);
        let job = writer.known(&new.id)?;
        let NewJob { id, owner, lane, cost, spec, .. } = new;
        let waiting = Waiting { id, owner, lane, model: spec.model, cost };
        lock(&self.memory).queue.push(waiting);
        Ok(Submitted::New(job, standings))
    }

    fn next(&self, held: Option<&str>) -> Result<Option<Job>, Fault> {
        let mut writer = lock(&self.writer);
        self.catch_up(&mut writer);
        let waiting = lock(&self.memory).queue.pop(held, self.clock.nanoseconds());
        waiting.map(|waiting| self.start(&writer, waiting)).transpose()
    }

    fn next_alike(&self, id: &str) -> Result<Option<Job>, Fault> {
        let writer = lock(&self.writer);
        let sql = "SELECT id FROM jobs WHERE state = 'queued'
                   AND alike = (SELECT alike FROM jobs WHERE id = ?1) ORDER BY seq LIMIT 1";
        let found = writer.db.prepare(sql).and_then(|mut statement| {
            statement.query_row([id], |row| row.get::<_, String>(0)).optional()
        });
        let Some(id) = found.map_err(stored)? else { return Ok(None) };
        let waiting = lock(&self.memory).queue.remove(&id);
        waiting.map(|waiting| self.start(&writer, waiting)).transpose()
    }

    fn give_back(&self, id: &str, counts: bool) -> Result<(), Fault> {
        let writer = lock(&self.writer);
        let job = writer.known(id)?;
        let attempts = job.attempts.saturating_sub(u32::from(!counts));
        if job.state == State::Canceling || attempts >= MAX_ATTEMPTS {
            drop(writer);
            return self.finish(
                id,
                match job.state {
                    State::Canceling => Outcome::Canceled,
                    _ => Outcome::Failed(worker_died()),
                },
            );
        }
        if job.state != State::Running {
            return Ok(());
        }
        writer
            .db
            .execute(
                "UPDATE jobs SET state = 'queued', started = NULL, attempts = ?2 WHERE id = ?1",
                params![id, attempts],
            )
            .map_err(stored)?;
        let sql = format!("SELECT {WAITING} FROM jobs WHERE id = ?1");
        let waiting = writer.db.query_row(&sql, [id], read_waiting).map_err(stored)?;
        let mut memory = lock(&self.memory);
        memory.running.remove(id);
        memory.queue.push_front(waiting);
        Ok(())
    }

    fn finish(&self, id: &str, outcome: Outcome) -> Result<(), Fault> {
        let mut writer = lock(&self.writer);
        self.catch_up(&mut writer);
        let now = self.clock.seconds();
        let written = writer.end(id, &outcome, now);
        let mut memory = lock(&self.memory);
        memory.running.remove(id);
        if written.is_err() {
            // Nobody waits for a job that is over, only because the disk is full.
            memory.unwritten.add(id, outcome, now);
        }
        written
    }

    fn cancel(&self, id: &str, owner: &str) -> Result<Option<Cancelled>, Fault> {
        let mut writer = lock(&self.writer);
        self.catch_up(&mut writer);
        let Some(mut job) = writer.job(id)?.filter(|job| job.owner == owner) else {
            return Ok(None);
        };
        lock(&self.memory).unwritten.apply(std::slice::from_mut(&mut job));
        let (state, finished) = match job.state {
            State::Queued => (State::Canceled, Some(self.clock.seconds())),
            State::Running => (State::Canceling, None),
            State::Canceling => return Ok(Some(Cancelled::Running(job))),
            _ => return Ok(Some(Cancelled::Over(job))),
        };
        writer
            .db
            .execute(
                "UPDATE jobs SET state = ?2, finished = ?3 WHERE id = ?1",
                params![id, state.name(), finished],
            )
            .map_err(stored)?;
        let job = writer.known(id)?;
        if state == State::Canceled {
            lock(&self.memory).queue.remove(id);
            writer.refund(id)?;
            return Ok(Some(Cancelled::Queued(job)));
        }
        Ok(Some(Cancelled::Running(job)))
    }

    fn job(&self, id: &str, owner: &str) -> Result<Option<Job>, Fault> {
        Ok(self.select("id = ?1 AND owner = ?2", params![id, owner])?.pop())
    }

    fn list(&self, owner: &str, limit: usize) -> Result<Vec<Job>, Fault> {
        self.select("owner = ?1 ORDER BY seq DESC LIMIT ?2", params![owner, limit as i64])
    }

    fn active(&self, owner: &str) -> Result<Vec<Job>, Fault> {
        let condition = "owner = ?1 AND state IN ('queued', 'running', 'canceling') ORDER BY seq";
        let mut active = self.select(condition, params![owner])?;
        active.retain(|job| !job.state.is_final());
        Ok(active)
    }

    fn owed_calls(&self) -> Result<Vec<Job>, Fault> {
        self.select("owes_call = 1 AND finished IS NOT NULL ORDER BY seq", params![])
    }

    fn call_settled(&self, id: &str) -> Result<(), Fault> {
        let writer = lock(&self.writer);
        let change = writer.db.execute("UPDATE jobs SET owes_call = 0 WHERE id = ?1", [id]);
        change.map(drop).map_err(stored)
    }

    fn refund(&self, id: &str) -> Result<(), Fault> {
        lock(&self.writer).refund(id)
    }

    fn place(&self, id: &str) -> Option<Place> {
        lock(&self.memory).queue.place(id)
    }

    fn counts(&self) -> Counts {
        let memory = lock(&self.memory);
        Counts { queued: memory.queue.len(), running: memory.running.len() }
    }

    fn expire(&self, data_before: f64, rows_before: f64) -> Result<Vec<String>, Fault> {
        let mut writer = lock(&self.writer);
        let transaction = writer.db.transaction().map_err(stored)?;
        let condition = "finished < ?1 AND owes_call = 0";
        let expired = drop_data(&transaction, condition, &[&data_before])?;
        transaction
            .execute(&format!("DELETE FROM jobs WHERE {condition}"), [rows_before])
            .map_err(stored)?;
        transaction.commit().map_err(stored)?;
        Ok(expired)
    }

    fn forget(&self, id: &str, owner: &str) -> Result<bool, Fault> {
        let mut writer = lock(&self.writer);
        let transaction = writer.db.transaction().map_err(stored)?;
        let condition = "id = ?1 AND owner = ?2 AND finished IS NOT NULL";
        let forgotten = drop_data(&transaction, condition, &[&id, &owner])?;
        transaction.commit().map_err(stored)?;
        Ok(!forgotten.is_empty())
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn max_attempts(&self) -> u32 {
        MAX_ATTEMPTS
    }
}

/// Takes the data of the jobs that `condition` selects. Returns the ids of those that had some.
fn drop_data(
    transaction: &Transaction,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Vec<String>, Fault> {
    let sql = format!(
        "UPDATE jobs SET spec = NULL, settings = NULL, outputs = '[]',
         state = CASE state WHEN 'succeeded' THEN 'expired' ELSE state END
         WHERE {condition} AND spec IS NOT NULL RETURNING id"
    );
    let mut statement = transaction.prepare(&sql).map_err(stored)?;
    let rows = statement.query_map(values, |row| row.get(0)).map_err(stored)?;
    rows.collect::<Result<_, _>>().map_err(stored)
}

/// The fault of a job whose worker ended twice while it ran.
pub fn worker_died() -> Fault {
    Fault::new(500, "worker_died", "the process that draws ended twice while it ran this job")
        .hint("see the log of the server; a smaller image needs less memory")
}

#[cfg(test)]
mod tests;
