//! The tables of the database, and what its rows mean.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row};
use serde::de::DeserializeOwned;

use crate::server::broker::fair::Waiting;
use crate::server::fault::Fault;
use crate::server::job::{Job, Lane, State};

/// The version of the tables below.
const VERSION: i32 = 2;

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
";

/// What version 2 adds: a hash that is the same for jobs with the same images, and whether an
/// address must still be called once the job is over.
const SECOND_VERSION: &str = "
    ALTER TABLE jobs ADD COLUMN alike TEXT;
    ALTER TABLE jobs ADD COLUMN owes_call INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX by_alike ON jobs (alike) WHERE state = 'queued';
    CREATE INDEX by_call ON jobs (seq) WHERE owes_call = 1;
    PRAGMA user_version = 2;
";

/// The columns of a [`Waiting`].
pub const WAITING: &str = "id, owner, lane, model, cost";
/// The columns that [`read_job`] reads.
pub const COLUMNS: &str = "id, owner, state, spec, created, started, finished, attempts, outputs, \
                           settings, fault";

/// Memory for pages of the database, in KiB, for each of two connections. The pages that requests
/// need are the last ones and those of the indices; SQLite would keep 2 MB of others.
const CACHE_KIB: u32 = 256;

/// A connection to the database at `path`.
///
/// # Errors
/// 500.
pub fn connect(path: &Path) -> Result<Connection, Fault> {
    let db = Connection::open(path).map_err(stored)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(stored)?;
    db.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -{CACHE_KIB};"
    ))
    .map_err(stored)?;
    Ok(db)
}

/// Makes the tables, or adds what an earlier version of this program did not have.
///
/// # Errors
/// 500, also for tables of a later version.
pub fn prepare(db: &Connection) -> Result<(), Fault> {
    let version: i32 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(stored)?;
    let changes = match version {
        0 => [TABLES, SECOND_VERSION].concat(),
        1 => SECOND_VERSION.to_string(),
        VERSION => return Ok(()),
        _ => {
            return Err(Fault::internal(format!(
                "the list of jobs was written by another version of this program: found version \
                 {version}, expected {VERSION}"
            )));
        }
    };
    db.execute_batch(&format!("BEGIN; {changes} COMMIT;")).map_err(stored)
}

/// The job in a row with [`COLUMNS`].
pub fn read_job(row: &Row) -> rusqlite::Result<Job> {
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

/// The queued job in a row with [`WAITING`].
pub fn read_waiting(row: &Row) -> rusqlite::Result<Waiting> {
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
pub fn number_of(lane: Lane) -> i64 {
    match lane {
        Lane::Normal => 0,
        Lane::Low => 1,
    }
}

fn json<T: DeserializeOwned>(text: Option<String>) -> Option<T> {
    serde_json::from_str(&text?).ok()
}

/// An error of SQLite. Its text may name the file, so it is not shown to clients.
pub fn stored(error: rusqlite::Error) -> Fault {
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
