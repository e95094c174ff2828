//! What happens when a process, the client or the machine goes away.
#![cfg(unix)]

use serde_json::json;

use super::{Server, drawn_by_command, endless, kill, wait_for};

/// A job that takes a second or so.
fn second() -> serde_json::Value {
    json!({"prompt": "a fox", "steps": 200, "seed": 3})
}

#[test]
fn f10_f25_a_worker_that_is_killed_is_replaced_and_its_job_gives_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let (job, next) = (server.submit(second()), server.submit(json!({"prompt": "a", "steps": 1})));
    server.wait(&job, &["running"]);
    server.kill_worker("-KILL");
    let image = server.image(&job);
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "200", "--seed", "3"]);
    assert!(image == reference);
    assert_eq!(server.job(&job)["attempts"], 2);
    server.image(&next);
    assert_eq!(server.workers().len(), 2);

    // The second time the job is to blame. Others go on.
    let job = server.submit(endless());
    for attempt in 1..=2 {
        wait_for("the attempt", || {
            let job = server.job(&job);
            (job["status"] == "running" && job["attempts"] == attempt).then_some(())
        });
        server.kill_worker("-BUS");
    }
    let failed = server.wait(&job, &["failed"]);
    assert_eq!(failed["error"]["code"], "worker_died");
    server.image(&server.submit(json!({"prompt": "a", "steps": 1})));
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn f26_a_worker_that_hangs_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--hang-after", "5"]);
    let job = server.submit(second());
    server.wait(&job, &["running"]);
    server.kill_worker("-STOP");
    server.image(&job);
    assert!(server.log().contains("it hung"));
}

#[test]
fn f45_a_client_that_hangs_up_cancels_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let body = json!({"prompt": "a fox", "steps": 1000, "n": 8}).to_string();
    let streamed = json!({"prompt": "a fox", "steps": 1000, "n": 8, "stream": true}).to_string();
    for body in [&body, &streamed] {
        let stream = server.open("POST", "/v1/images/generations", &[], body.as_bytes());
        let other = server.open("POST", "/v1/images/generations", &[], body.as_bytes());
        let running = |state: &str, count: usize| {
            wait_for(state, || {
                let jobs = server.get(&format!("/api/v2/jobs?status={state}")).json();
                (jobs["jobs"].as_array().unwrap().len() >= count).then_some(())
            });
        };
        running("running", 1);
        running("queued", 1);
        drop((stream, other));
        wait_for("an empty queue", || {
            let jobs = server.get("/api/v2/jobs").json();
            let all = jobs["jobs"].as_array().unwrap();
            all.iter().all(|j| j["status"] == "canceled").then_some(())
        });
    }
    assert_eq!(server.workers().len(), 1);
}

#[test]
fn f46_accepted_jobs_survive_the_end_of_the_server_and_run_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut jobs = Vec::new();
    // Two killed, two asked to end.
    for signal in ["-KILL", "-TERM", "-KILL", "-TERM"] {
        let server = Server::start(folder.path(), &[]);
        jobs.extend(
            (0..3).map(|n| server.submit(json!({"prompt": "a fox", "steps": 20, "seed": n}))),
        );
        server.wait(jobs.last().unwrap(), &["queued", "running", "succeeded"]);
        kill(server.child.id(), signal);
        let code = server.end();
        assert_eq!(code, if signal == "-TERM" { Some(0) } else { None });
    }
    let server = Server::start(folder.path(), &[]);
    for id in &jobs {
        server.image(id);
        assert!(server.job(id)["attempts"].as_u64().unwrap() <= 2);
    }
    let list = server.get("/api/v2/jobs").json();
    assert_eq!(list["jobs"].as_array().unwrap().len(), jobs.len());
}

#[test]
fn f46_a_running_job_is_put_back_when_the_server_ends_and_requests_are_refused_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let job = server.submit(endless());
    server.wait(&job, &["running"]);
    kill(server.child.id(), "-TERM");
    wait_for("the end to begin", || server.log().contains("the server ends").then_some(()));
    assert_eq!(server.get("/ready").status, 503);
    let refused = server.post("/api/v2/jobs", &json!({"prompt": "x"}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("shutting_down")));
    assert_eq!(server.end(), Some(0));
    let server = Server::start(folder.path(), &[]);
    let again = server.wait(&job, &["running"]);
    // The first attempt does not count: it was not the job's fault.
    assert_eq!(again["attempts"], 1);
    server.request("DELETE", &format!("/api/v2/jobs/{job}"), &[], b"");
    server.wait(&job, &["canceled"]);
}
