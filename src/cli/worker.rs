//! `worker` and `cluster`: several machines behind one queue.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::args::{BrokerArgs, How, WorkerArgs};
use super::config::Config;
use super::{output, serve, server_config};
use crate::error::{Error, Result};
use crate::host;
use crate::server::{self, ClusterOptions};
use crate::units::ByteSize;

/// The most workers of one machine that find a folder by themselves.
const MAX_FOLDERS: usize = 64;

/// The cluster of `--broker`, or else of `broker` in the configuration file (`configured`).
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for a login without a broker.
pub fn cluster(args: &BrokerArgs, configured: Option<String>) -> Result<Option<ClusterOptions>> {
    let Some(broker) = args.broker.clone().or(configured) else { return no_login(args) };
    let mut options = ClusterOptions::new(broker);
    options.credentials = args.nats_creds.clone();
    options.nkey = args.nats_nkey.clone();
    options.ca_certificates = args.nats_ca.clone();
    options.certificate = args.nats_cert.clone().zip(args.nats_key.clone());
    options.replicas = args.nats_replicas;
    options.lost_after = Duration::from_secs(args.lost_after);
    Ok(Some(options))
}

/// Refuses options that say how to log in where there is no broker to log in to.
fn no_login(args: &BrokerArgs) -> Result<Option<ClusterOptions>> {
    let given = [
        ("--nats-creds", args.nats_creds.is_some()),
        ("--nats-nkey", args.nats_nkey.is_some()),
        ("--nats-ca", args.nats_ca.is_some()),
        ("--nats-cert", args.nats_cert.is_some()),
        ("--nats-key", args.nats_key.is_some()),
        ("--nats-replicas", args.nats_replicas > 1),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((option, _)) => {
            Err(no_broker("the option is for a broker, and no broker is named").at(option))
        }
        None => Ok(None),
    }
}

fn no_broker(what: &str) -> Error {
    Error::argument(what)
        .expected("such as nats://broker:4222")
        .try_("{broker}, or a line broker = \"...\" in the configuration file")
}

fn needed(args: &BrokerArgs, configured: Option<String>) -> Result<ClusterOptions> {
    cluster(args, configured)?
        .ok_or_else(|| no_broker("the address of a broker is missing").at("--broker"))
}

/// Draws the jobs of a cluster until a signal arrives.
pub fn worker(args: WorkerArgs, how: How, config: &Config) -> Result<()> {
    let config = server_config::read(config)?;
    let cluster = needed(&args.drawing.cluster, config.broker)?;
    let data = args.data.map_or_else(free_folder, Ok)?;
    let mut options = serve::start(&args.drawing, data, how)?;
    options.models = config.models;
    options.grace = Duration::from_secs(args.grace);
    options.cluster = Some(cluster);
    server::draw_for_cluster(options)
}

/// A folder that no other worker of this machine uses.
fn free_folder() -> Result<PathBuf> {
    let folder = |number: usize| host::data_folder().join(format!("worker-{number}"));
    let is_free = |path: &PathBuf| match std::fs::File::open(path.join("lock")) {
        Ok(lock) => lock.try_lock().is_ok(),
        Err(_) => true,
    };
    (0..MAX_FOLDERS).map(folder).find(is_free).ok_or_else(|| {
        Error::output("too many workers run on this machine")
            .found(MAX_FOLDERS)
            .try_("--data with a folder of its own for each".to_string())
    })
}

/// Shows the workers and the queue of a cluster.
pub fn status(args: BrokerArgs, how: How, config: &Config) -> Result<()> {
    let options = needed(&args, server_config::read(config)?.broker)?;
    let status = server::cluster_status(&options)?;
    match how.json {
        true => output::text(&format!("{status}\n")),
        false => output::text(&table(&status)),
    }
}

/// The status for people.
fn table(status: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let workers = list(&status["workers"]);
    writeln!(
        out,
        "{}: {} workers, {} jobs waiting, {} running",
        text(&status["broker"]),
        workers.len(),
        status["queued"],
        status["running"]
    )
    .ok();
    let rows = |rows: Vec<Vec<String>>, out: &mut String| {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end()).ok();
        }
    };
    let heads = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let models = list(&status["models"]);
    if !models.is_empty() {
        writeln!(out, "\nqueue").ok();
        let mut lines = vec![heads(&["model", "jobs", "seconds", "workers that hold it"])];
        lines.extend(models.iter().map(|model| {
            let seconds = format!("{:.1}", model["seconds"].as_f64().unwrap_or(0.0));
            vec![text(&model["model"]), text(&model["queued"]), seconds, text(&model["workers"])]
        }));
        rows(lines, &mut out);
    }
    if !workers.is_empty() {
        writeln!(out, "\nworkers").ok();
        let mut lines =
            vec![heads(&["id", "host", "state", "holds", "seconds left", "drawn", "vram"])];
        lines.extend(workers.iter().map(|worker| {
            let busy = !list(&worker["jobs"]).is_empty();
            let state = match worker["ready"].as_bool() {
                _ if busy => "draws",
                Some(true) => "idle",
                _ => "not ready",
            };
            let left = format!("{:.1}", worker["busy_for"].as_f64().unwrap_or(0.0));
            let vram = worker["vram"].as_u64().map_or("-".into(), |b| ByteSize(b).to_string());
            let (id, host) = (text(&worker["id"]), text(&worker["host"]));
            vec![id, host, state.into(), text(&worker["held"]), left, text(&worker["drawn"]), vram]
        }));
        rows(lines, &mut out);
        for worker in workers.iter().filter(|worker| worker["left_out"].as_u64() > Some(0)) {
            let (id, count) = (text(&worker["id"]), &worker["left_out"]);
            writeln!(
                out,
                "\n{count} names of {id} do not fit into a message of the broker, and nobody can \
                 ask for them: raise its max_payload"
            )
            .ok();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_is_a_table_with_a_line_per_model_and_worker() {
        let worker = json!({
            "id": "00ff", "host": "a", "ready": true, "held": "m", "jobs": ["1"],
            "busy_for": 2.04, "drawn": 7, "vram": null,
        });
        let status = json!({
            "broker": "nats://b:4222", "queued": 3, "running": 1,
            "models": [{"model": "m", "queued": 3, "seconds": 6.0, "workers": 1}],
            "workers": [worker],
        });
        let table = table(&status);
        assert!(table.starts_with("nats://b:4222: 1 workers, 3 jobs waiting, 1 running\n"));
        assert!(table.contains("  m      3     6.0      1\n"), "{table}");
        assert!(table.contains("  00ff  a     draws  m      2.0           7      -\n"), "{table}");
    }
}
