//! The queue of one machine: SQLite, in one file.

mod limiter;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;

use super::fair::Waiting;
use super::queue::JobQueue;
use super::{Broker, Cancelled, Counts, NewJob, Place, Submitted};
use crate::server::clock::{Clock, SECOND};
use crate::server::fault::Fault;
use crate::server::job::{Job, Lane, Outcome, State};
use crate::server::limits::Verdict;
use limiter::Limiter;

/// How often a job is given to a worker before it counts as the cause of its failures.
const MAX_ATTEMPTS: u32 = 2;
/// The version of the tables below.
const VERSION: i32 = 1;

const TABLES: &str = "
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        state TEXT NOT NULL,
        spec TEXT,
        model TEXT NOT NULL,
        lane INTEGER NOT NULL,
        cost REAL NOT NULL,
        instant INTEGER NOT NULL,
        images INTEGER NOT NULL,
        pixels INTEGER NOT NULL,
        created REAL NOT NULL,
        started REAL,
        finished REAL,
        attempts INTEGER NOT NULL DEFAULT 0,
        outputs TEXT NOT NULL DEFAULT '[]',
        settings TEXT,
        fault TEXT,
        idempotency_key TEXT,
        idempotency_hash TEXT
    );
    CREATE UNIQUE INDEX idempotency ON jobs (owner, idempotency_key)
        WHERE idempotency_key IS NOT NULL;
    CREATE INDEX by_state ON jobs (state);
    CREATE INDEX by_owner ON jobs (owner, seq);
    PRAGMA user_version = 1;
";

/// The columns of a [`Waiting`].
const WAITING: &str = "id, owner, lane, model, cost";
/// The columns that [`read_job`] reads.
const COLUMNS: &str = "id, owner, state, spec, created, started, finished, attempts, outputs, \
                       settings, fault";

/// A [`Broker`] in a file of SQLite.
pub struct LocalBroker {
    inner: Mutex<Inner>,
    clock: Clock,
    max_queued: usize,
}

struct Inner {
    db: Connection,
    /// The queued jobs of the database, in memory.
    queue: JobQueue,
    /// The jobs that run, and their owners.
    running: HashMap<String, String>,
    limiter: Limiter,
}

impl LocalBroker {
    /// Opens or creates the database at `path`. Jobs that ran when its last process ended are
    /// queued again, or have failed if that happened before. At most `max_queued` jobs may wait.
    ///
    /// # Errors
    /// 500 if the file cannot be used, or was written by a later version.
    pub fn open(path: &Path, max_queued: usize) -> Result<Self, Fault> {
        let db = Connection::open(path).map_err(stored)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(stored)?;
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(stored)?;
        let version: i32 =
            db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(stored)?;
        match version {
            0 => db.execute_batch(&format!("BEGIN; {TABLES} COMMIT;")).map_err(stored)?,
            VERSION => {}
            _ => {
                return Err(Fault::internal(format!(
                    "the list of jobs was written by another version of this program: found \
                     version {version}, expected {VERSION}"
                )));
            }
        }
        let newest = db.query_row("SELECT MAX(instant) FROM jobs", [], |row| row.get(0));
        let newest: Option<i64> = newest.map_err(stored)?;
        let clock = Clock::after(newest.unwrap_or(0));
        let mut inner = Inner {
            db,
            queue: JobQueue::default(),
            running: HashMap::new(),
            limiter: Limiter::default(),
        };
        inner.replay(clock.seconds())?;
        Ok(LocalBroker { inner: Mutex::new(inner), clock, max_queued })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Settles the jobs that ran when the last process ended, and reads the queue.
    fn replay(&mut self, now: f64) -> Result<(), Fault> {
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
        let rows = statement.query_map([], read_waiting);
        for waiting in rows.map_err(stored)? {
            self.queue.push(waiting.map_err(stored)?);
        }
        Ok(())
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
}

impl Broker for LocalBroker {
    fn submit(&self, new: NewJob) -> Result<Submitted, Fault> {
        let mut inner = self.lock();
        if let Some(job) = inner.same(&new)? {
            return Ok(Submitted::Same(job));
        }
        // Under the lock, so that instants are stored in order.
        let now = self.clock.nanoseconds();
        let standings = match inner.decide(&new, now)? {
            Verdict::Admit(standings) => standings,
            Verdict::Wait { wait, violated, standings } => {
                return Ok(Submitted::Limited { wait, violated, standings });
            }
            Verdict::Never(limit, amount) => return Ok(Submitted::Never(limit, amount)),
        };
        if inner.queue.len() >= self.max_queued {
            return Err(Fault::new(503, "queue_full", "the queue is full")
                .hint("send the request again later")
                .retry_after(5));
        }
        let (key, hash) = new.idempotency.unzip();
        let spec = serde_json::to_string(&new.spec)
            .map_err(|e| Fault::internal(format!("the job cannot be written: {e}")))?;
        let NewJob { id, owner, lane, cost, charge, .. } = new;
        let model = new.spec.model;
        inner
            .db
            .prepare(
                "INSERT INTO jobs (id, owner, state, spec, model, lane, cost, instant, images,
                 pixels, created, idempotency_key, idempotency_hash)
                 VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )
            .and_then(|mut insert| {
                let created = now as f64 / SECOND as f64;
                let (images, pixels) = (charge.images as i64, charge.pixels as i64);
                insert.execute(params![
                    id,
                    owner,
                    spec,
                    model,
                    number_of(lane),
                    cost,
                    now,
                    images,
                    pixels,
                    created,
                    key,
                    hash
                ])
            })
            .map_err(stored)?;
        inner.limiter.add(&owner, now, charge);
        let job = inner.known(&id)?;
        inner.queue.push(Waiting { id, owner, lane, model, cost });
        Ok(Submitted::New(job, standings))
    }

    fn next(&self, held: Option<&str>) -> Result<Option<Job>, Fault> {
        let mut inner = self.lock();
        let Some(waiting) = inner.queue.pop(held, self.clock.nanoseconds()) else {
            return Ok(None);
        };
        let taken = inner.db.execute(
            "UPDATE jobs SET state = 'running', started = ?2, attempts = attempts + 1
             WHERE id = ?1",
            params![waiting.id, self.clock.seconds()],
        );
        if let Err(e) = taken {
            inner.queue.push_front(waiting);
            return Err(stored(e));
        }
        let job = inner.known(&waiting.id)?;
        inner.running.insert(waiting.id, waiting.owner);
        Ok(Some(job))
    }

    fn give_back(&self, id: &str, counts: bool) -> Result<(), Fault> {
        let mut inner = self.lock();
        let job = inner.known(id)?;
        let attempts = job.attempts.saturating_sub(u32::from(!counts));
        if job.state == State::Canceling || attempts >= MAX_ATTEMPTS {
            drop(inner);
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
        inner
            .db
            .execute(
                "UPDATE jobs SET state = 'queued', started = NULL, attempts = ?2 WHERE id = ?1",
                params![id, attempts],
            )
            .map_err(stored)?;
        inner.running.remove(id);
        let sql = format!("SELECT {WAITING} FROM jobs WHERE id = ?1");
        let waiting = inner.db.query_row(&sql, [id], read_waiting).map_err(stored)?;
        inner.queue.push_front(waiting);
        Ok(())
    }

    fn finish(&self, id: &str, outcome: Outcome) -> Result<(), Fault> {
        let mut inner = self.lock();
        let state = outcome.state().name();
        let failed = matches!(outcome, Outcome::Failed(_));
        let (outputs, settings, fault) = match outcome {
            Outcome::Succeeded { outputs, settings } => {
                (serde_json::to_string(&outputs), Some(settings.to_string()), None)
            }
            Outcome::Failed(fault) => (Ok("[]".into()), None, serde_json::to_string(&fault).ok()),
            Outcome::Canceled => (Ok("[]".into()), None, None),
        };
        let now = self.clock.seconds();
        let changed = inner
            .db
            .execute(
                "UPDATE jobs SET state = ?2, finished = ?3, outputs = ?4, settings = ?5, fault = ?6
                 WHERE id = ?1 AND state IN ('running', 'canceling')",
                params![id, state, now, outputs.unwrap_or_default(), settings, fault],
            )
            .map_err(stored)?;
        inner.running.remove(id);
        // It was not the owner's fault.
        if failed && changed > 0 { inner.refund(id) } else { Ok(()) }
    }

    fn cancel(&self, id: &str, owner: &str) -> Result<Option<Cancelled>, Fault> {
        let mut inner = self.lock();
        let Some(job) = inner.job(id)?.filter(|job| job.owner == owner) else { return Ok(None) };
        let (state, finished) = match job.state {
            State::Queued => (State::Canceled, Some(self.clock.seconds())),
            State::Running => (State::Canceling, None),
            State::Canceling => return Ok(Some(Cancelled::Running(job))),
            _ => return Ok(Some(Cancelled::Over(job))),
        };
        inner
            .db
            .execute(
                "UPDATE jobs SET state = ?2, finished = ?3 WHERE id = ?1",
                params![id, state.name(), finished],
            )
            .map_err(stored)?;
        let job = inner.known(id)?;
        if state == State::Canceled {
            inner.queue.remove(id);
            inner.refund(id)?;
            return Ok(Some(Cancelled::Queued(job)));
        }
        Ok(Some(Cancelled::Running(job)))
    }

    fn job(&self, id: &str, owner: &str) -> Result<Option<Job>, Fault> {
        Ok(self.lock().job(id)?.filter(|job| job.owner == owner))
    }

    fn list(&self, owner: &str, limit: usize) -> Result<Vec<Job>, Fault> {
        let inner = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE owner = ?1 ORDER BY seq DESC LIMIT ?2");
        let mut statement = inner.db.prepare(&sql).map_err(stored)?;
        let rows = statement.query_map(params![owner, limit as i64], read_job).map_err(stored)?;
        rows.collect::<Result<_, _>>().map_err(stored)
    }

    fn active(&self, owner: &str) -> Result<Vec<Job>, Fault> {
        let inner = self.lock();
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE owner = ?1
             AND state IN ('queued', 'running', 'canceling') ORDER BY seq"
        );
        let mut statement = inner.db.prepare(&sql).map_err(stored)?;
        let rows = statement.query_map([owner], read_job).map_err(stored)?;
        rows.collect::<Result<_, _>>().map_err(stored)
    }

    fn refund(&self, id: &str) -> Result<(), Fault> {
        self.lock().refund(id)
    }

    fn place(&self, id: &str) -> Option<Place> {
        self.lock().queue.place(id)
    }

    fn counts(&self) -> Counts {
        let inner = self.lock();
        Counts { queued: inner.queue.len(), running: inner.running.len() }
    }

    fn expire(&self, data_before: f64, rows_before: f64) -> Result<Vec<String>, Fault> {
        let mut inner = self.lock();
        let transaction = inner.db.transaction().map_err(stored)?;
        let expired: Vec<String> = {
            let mut statement = transaction
                .prepare("SELECT id FROM jobs WHERE finished < ?1 AND spec IS NOT NULL")
                .map_err(stored)?;
            let rows = statement.query_map([data_before], |row| row.get(0)).map_err(stored)?;
            rows.collect::<Result<_, _>>().map_err(stored)?
        };
        transaction
            .execute(
                "UPDATE jobs SET spec = NULL, settings = NULL, outputs = '[]',
                 state = CASE state WHEN 'succeeded' THEN 'expired' ELSE state END
                 WHERE finished < ?1 AND spec IS NOT NULL",
                [data_before],
            )
            .map_err(stored)?;
        transaction
            .execute("DELETE FROM jobs WHERE finished < ?1", [rows_before])
            .map_err(stored)?;
        transaction.commit().map_err(stored)?;
        Ok(expired)
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

/// The fault of a job whose worker ended twice while it ran.
pub fn worker_died() -> Fault {
    Fault::new(500, "worker_died", "the process that draws ended twice while it ran this job")
        .hint("see the log of the server; a smaller image needs less memory")
}

fn read_job(row: &Row) -> rusqlite::Result<Job> {
    let state: String = row.get("state")?;
    Ok(Job {
        id: row.get("id")?,
        owner: row.get("owner")?,
        spec: json(row.get("spec")?),
        state: State::parse(&state).unwrap_or(State::Failed),
        created: row.get("created")?,
        started: row.get("started")?,
        finished: row.get("finished")?,
        attempts: row.get("attempts")?,
        outputs: json(row.get("outputs")?).unwrap_or_default(),
        settings: json(row.get("settings")?),
        fault: json(row.get("fault")?),
    })
}

fn read_waiting(row: &Row) -> rusqlite::Result<Waiting> {
    let lane: i64 = row.get("lane")?;
    Ok(Waiting {
        id: row.get("id")?,
        owner: row.get("owner")?,
        lane: if lane == number_of(Lane::Low) { Lane::Low } else { Lane::Normal },
        model: row.get("model")?,
        cost: row.get("cost")?,
    })
}

/// A lane in the database.
fn number_of(lane: Lane) -> i64 {
    match lane {
        Lane::Normal => 0,
        Lane::Low => 1,
    }
}

fn json<T: DeserializeOwned>(text: Option<String>) -> Option<T> {
    serde_json::from_str(&text?).ok()
}

/// An error of SQLite. Its text may name the file, so it is not shown to clients.
fn stored(error: rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Fault::new(507, "disk_full", "the disk of the server is full").retry_after(30)
        }
        code => Fault::internal(match code {
            Some(code) => format!("the list of jobs cannot be used: {code:?}"),
            None => "the list of jobs cannot be used".to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
