//! Three brokers that keep copies of everything.

use std::path::Path;
use std::process::Command;

use super::super::nats::{Broker, free_ports};
use super::super::{drawn_by_command, program, wait_for};
use super::{Worker, front, ready};
use serde_json::{Value, json};

/// Three brokers in a cluster.
fn three() -> Option<[Broker; 3]> {
    let [a, b, c, d, e, f] = free_ports();
    let (ports, routes) = ([a, b, c], [d, e, f]);
    let all = routes.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
    let start = |n: usize| {
        let lines = format!(
            "server_name: n{n}\n\
             cluster {{ name: three, listen: \"127.0.0.1:{}\", routes: [{all}] }}",
            routes[n]
        );
        Broker::at(ports[n], &lines)
    };
    Some([start(0)?, start(1)?, start(2)?])
}

/// Starts a front that asks for so many copies, and stops it once it listens.
fn asked(url: &str, data: &Path, replicas: &str) {
    drop(front(url, data, &["--nats-replicas", replicas]));
}

#[test]
fn with_three_copies_any_broker_may_be_killed() {
    let Some(mut brokers) = three() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let urls: Vec<String> = brokers.iter().map(|broker| broker.url("copies")).collect();
    // The name of the cluster is that of the last address.
    let url = urls.join(",").replace("/copies,", ",");
    // They need a moment to agree on who leads.
    wait_for("the brokers", || {
        let mut command: Command = program();
        command.args(["cluster", "status", "--json", "--broker", &url]);
        // Nobody has used them yet.
        (command.output().unwrap().status.code() == Some(4)).then_some(())
    });
    // The first process asks for one copy, the second for more.
    for replicas in ["1", "3", "1"] {
        asked(&url, &at("first"), replicas);
    }
    let streams = |broker: &Broker| {
        ["KV_FF_copies_STATE", "KV_FF_copies_LIMITS", "OBJ_FF_copies_IMG"]
            .map(|name| broker.ask(&format!("$JS.API.STREAM.INFO.{name}")))
    };
    for info in streams(&brokers[0]) {
        assert_eq!(info["config"]["num_replicas"], 3, "{info}");
        assert_eq!(info["config"]["storage"], "file", "{info}");
    }
    let copied = |broker: &Broker| {
        wait_for("the copies", || {
            let current = |info: &Value| {
                let others = info["cluster"]["replicas"].as_array();
                others.is_some_and(|all| all.len() == 2 && all.iter().all(|r| r["current"] == true))
            };
            streams(broker).iter().all(current).then_some(())
        });
    };
    copied(&brokers[0]);
    let options = ["--nats-replicas", "3"];
    let (one, two) = (front(&url, &at("1"), &options), front(&url, &at("2"), &options));
    let worker = Worker::start(&url, &at("worker"));
    worker.wait();
    ready(&one);
    let running = one.submit(json!({"prompt": "a fox", "steps": 100, "seed": 3}));
    let queued = one.submit(json!({"prompt": "a", "steps": 1, "seed": 1}));
    two.wait(&running, &["running"]);
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "100", "--seed", "3"]);
    // Each broker in turn, so that the one that leads a bucket is killed, too.
    for broker in &mut brokers {
        broker.stop();
        let request = json!({"request": {"prompt": "a", "steps": 1, "seed": 2}});
        let id = wait_for("a job to be accepted", || {
            let answer = two.post("/api/v2/jobs", &request);
            (answer.status == 201).then(|| answer.json()["id"].as_str().unwrap().to_string())
        });
        assert_eq!(two.wait(&id, &["succeeded", "failed"])["status"], "succeeded");
        // The bucket of images may still be without a leader.
        wait_for("the image", || {
            (two.get(&format!("/api/v2/jobs/{id}/images/0")).status == 200).then_some(())
        });
        broker.restart();
        copied(broker);
    }
    assert!(two.image(&running) == reference);
    one.image(&queued);
    assert_eq!(two.job(&queued)["status"], "succeeded");
}

#[test]
fn one_broker_cannot_keep_three_copies() {
    let Some(broker) = Broker::start() else { return };
    let url = broker.url("alone");
    let folder = tempfile::tempdir().unwrap();
    let refused = || {
        let mut command = Worker::command(&url, folder.path());
        let output = command.args(["--nats-replicas", "3"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{text}");
        assert!(
            text.contains("cannot keep 3 copies") && text.contains("--nats-replicas"),
            "{text}"
        );
    };
    refused();
    asked(&url, folder.path(), "1");
    // It cannot give more copies to buckets that exist, either.
    refused();
}
