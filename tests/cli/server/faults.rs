//! What happens when a process, the client or the machine goes away.
#![cfg(unix)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Server, drawn_by_command, endless, kill, wait_for};

/// A job that takes a second or so.
fn second() -> serde_json::Value {
    json!({"prompt": "a fox", "steps": 200, "seed": 3})
}

#[test]
pub fn f10_f25_a_worker_that_is_killed_is_replaced_and_its_job_gives_the_same_image() {
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
pub fn f26_a_worker_that_hangs_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--hang-after", "5"]);
    let job = server.submit(second());
    server.wait(&job, &["running"]);
    server.kill_worker("-STOP");
    server.image(&job);
    assert!(server.log().contains("it hung"));
}

#[test]
pub fn f45_a_client_that_hangs_up_cancels_its_job() {
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
pub fn f46_accepted_jobs_survive_the_end_of_the_server_and_run_once() {
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
pub fn f46_a_running_job_is_put_back_when_the_server_ends_and_requests_are_refused_meanwhile() {
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

#[test]
pub fn f16_f17_a_result_that_cannot_be_written_fails_its_job_only() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let results = folder.path().join("results");
    std::fs::remove_dir_all(&results).unwrap();
    let job = server.submit(json!({"prompt": "a fox", "steps": 1}));
    let failed = server.wait(&job, &["failed", "succeeded"]);
    assert_eq!(failed["error"]["code"], "output", "{failed}");
    assert!(!failed.to_string().contains(folder.path().to_str().unwrap()), "{failed}");
    std::fs::create_dir(&results).unwrap();
    server.image(&server.submit(json!({"prompt": "a fox", "steps": 1})));
    assert_eq!(server.workers().len(), 1);
}

#[test]
pub fn f39_f46_clients_that_stall_do_not_hold_up_the_end_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut stalled = Vec::new();
    for head in [
        "",
        "GET / HTTP/1.1\r\n",
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n\
                 Content-Length: 9\r\n\r\n{",
    ] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stalled.push(stream);
    }
    let running = server.submit(json!({"prompt": "a fox", "steps": 1}));
    server.image(&running);
    let events = server.submit(endless());
    stalled.push(server.open("GET", &format!("/api/v2/jobs/{events}/events"), &[], b""));
    server.wait(&events, &["running"]);
    let begun = Instant::now();
    kill(server.child.id(), "-TERM");
    assert_eq!(server.end(), Some(0));
    // 8 seconds for the running job, and one for connections.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
pub fn f46_a_second_signal_ends_the_server_at_once_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let job = server.submit(endless());
    server.wait(&job, &["running"]);
    kill(server.child.id(), "-TERM");
    wait_for("the end to begin", || server.log().contains("the server ends").then_some(()));
    kill(server.child.id(), "-TERM");
    assert_eq!(server.end(), Some(128 + 15));
    let server = Server::start(folder.path(), &[]);
    server.wait(&job, &["running"]);
    server.request("DELETE", &format!("/api/v2/jobs/{job}"), &[], b"");
    server.wait(&job, &["canceled"]);
}

/// A server at a fixed address, started by a line of shell in which `$0` is the command.
fn by_shell(data: &std::path::Path, line: &str) -> Server {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let program = env!("CARGO_BIN_EXE_flux-fast");
    let command = format!(
        "{program} serve --device cpu --no-cache --listen {address} --data {}",
        data.display()
    );
    let child = Command::new("sh")
        .args(["-c", line, &command])
        .env("FLUX_FAST_CONFIG", "")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server { child, drawer: None, address, log: Default::default() };
    wait_for("the server", || {
        TcpStream::connect(&server.address).ok()?;
        (server.get("/ready").status == 200).then_some(())
    });
    server
}

#[test]
pub fn f48_a_full_disk_behind_the_log_changes_nothing() {
    if !std::path::Path::new("/dev/full").exists() {
        eprintln!("skipped: this system has no /dev/full");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = by_shell(folder.path(), "exec $0 2>/dev/full");
    server.image(&server.submit(json!({"prompt": "a fox", "steps": 1})));
    kill(server.child.id(), "-TERM");
    assert_eq!(server.end(), Some(0));
}

#[test]
pub fn f48_too_few_file_descriptors_delay_connections_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let server = by_shell(folder.path(), "ulimit -n 64; exec $0");
    let job = server.submit(endless());
    server.wait(&job, &["running"]);
    let many: Vec<TcpStream> =
        (0..100).map_while(|_| TcpStream::connect(&server.address).ok()).collect();
    std::thread::sleep(Duration::from_secs(1));
    // While there are none left, the server waits instead of trying again and again.
    let used = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<i64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .filter_map(|f| f.parse().ok())
            .collect();
        // Ticks of user and system time; the state before them is a letter.
        fields.get(10).zip(fields.get(11)).map_or(0, |(user, system)| user + system)
    };
    let before = used(server.child.id());
    std::thread::sleep(Duration::from_secs(2));
    let ticks = used(server.child.id()) - before;
    assert!(ticks < 100, "{ticks} ticks in 2 seconds");
    drop(many);
    server.request("DELETE", &format!("/api/v2/jobs/{job}"), &[], b"");
    server.wait(&job, &["canceled"]);
    server.image(&server.submit(json!({"prompt": "a fox", "steps": 1})));
}
