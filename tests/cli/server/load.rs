//! Many requests at a time, and kills at random moments. Tests with `#[ignore]` take minutes. They
//! run only with `cargo test --test cli -- --ignored --nocapture --test-threads 1 load`.
//! `FLUX_FAST_TEST_ROUNDS` is the number of kills of each kind (SIGKILL and SIGTERM of the server
//! and of its worker; 50).
#![cfg(unix)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Answer, Server, kill};

/// How long the last of a thousand images may take on a busy machine.
const LONG: Duration = Duration::from_secs(3600);

/// A small image: the server is what is tested.
fn small(seed: u64) -> Value {
    json!({"prompt": "a fox", "steps": 1, "width": 32, "height": 32, "seed": seed})
}

/// Numbers that only look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }
}

/// `cargo test --test cli -- --ignored --nocapture load_a_thousand`
#[test]
#[ignore = "a thousand connections at a time take minutes: see CONTRIBUTING.md"]
fn load_a_thousand_connections_at_a_time_all_get_their_image() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--max-queue", "2000", "-q"]);
    let times = Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..1000 {
            let (server, times) = (&server, &times);
            let draw = move || {
                let begun = Instant::now();
                let body = small(seed).to_string();
                let mut stream =
                    server.open("POST", "/v1/images/generations", &[], body.as_bytes());
                // The last of a thousand waits for all others.
                stream.set_read_timeout(Some(LONG)).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                let answer = Answer::parse(&bytes);
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(super::decoded(&answer.json()["data"][0]["b64_json"]).len() > 100);
                times.lock().unwrap().push(begun.elapsed());
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, draw).unwrap();
        }
    });
    let mut times = times.into_inner().unwrap();
    times.sort();
    assert_eq!(times.len(), 1000);
    println!(
        "1000 requests at a time: {:.1} s in all, {:.1} per second; slowest answer {:.1} s",
        begun.elapsed().as_secs_f64(),
        1000.0 / begun.elapsed().as_secs_f64(),
        times[999].as_secs_f64(),
    );
    assert_eq!(server.workers().len(), 0, "a quiet server says nothing of its workers");
}

/// `cargo test --test cli -- --ignored --nocapture load_kills`
#[test]
#[ignore = "many kills of the server and of its worker take minutes: see CONTRIBUTING.md"]
fn load_kills_at_random_moments_lose_no_accepted_job() {
    let rounds = std::env::var("FLUX_FAST_TEST_ROUNDS").ok().and_then(|n| n.parse().ok());
    kill_at_random_moments(rounds.unwrap_or(50));
}

#[test]
fn f46_a_few_kills_at_random_moments_lose_no_accepted_job() {
    kill_at_random_moments(3);
}

/// The jobs of a series of servers with one data folder.
#[derive(Default)]
struct Seen {
    /// Those that were accepted, in order.
    accepted: Vec<String>,
    /// Requests that were refused, or whose connection broke.
    refused: usize,
    /// How each job ended, once it was seen to be over.
    over: HashMap<String, Value>,
}

impl Seen {
    /// Submits a job. A connection that breaks while it is answered was not accepted for sure: the
    /// job may be there or not, and a client would send it again with its idempotency key.
    fn submit(&mut self, server: &Server) {
        let body = small(self.accepted.len() as u64).to_string();
        let Ok(mut stream) = TcpStream::connect(&server.address) else { return };
        let head = format!(
            "POST /api/v2/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        stream.write_all(head.as_bytes()).ok();
        stream.read_to_string(&mut answer).ok();
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 201") => {
                if let Ok(job) = serde_json::from_str::<Value>(body) {
                    self.accepted.push(job["id"].as_str().unwrap().to_string());
                }
            }
            _ => self.refused += 1,
        }
    }

    /// Looks at all jobs that were not seen to be over. Returns how many still are not.
    fn look(&mut self, server: &Server) -> usize {
        for id in &self.accepted {
            if self.over.contains_key(id) {
                continue;
            }
            let job = job(server, id);
            if ["succeeded", "failed"].contains(&job["status"].as_str().unwrap()) {
                self.over.insert(id.clone(), job);
            }
        }
        self.accepted.len() - self.over.len()
    }
}

fn job(server: &Server, id: &str) -> Value {
    let answer = server.get(&format!("/api/v2/jobs/{id}"));
    assert_eq!(answer.status, 200, "a lost job: {}", answer.text());
    answer.json()
}

/// Kills `rounds` servers and as many workers, and asks as many of each to end.
fn kill_at_random_moments(rounds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let start = || Server::start(folder.path(), &["--max-queue", "100000"]);
    let mut random = Random(7);
    let mut seen = Seen::default();
    let begun = Instant::now();
    let (mut server, mut starts) = (start(), 1);
    for round in 0..4 * rounds {
        let until = Instant::now() + Duration::from_millis(random.below(400));
        while Instant::now() < until {
            seen.submit(&server);
        }
        let signal = if round % 2 == 0 { "-KILL" } else { "-TERM" };
        if round % 4 >= 2 {
            // It may have ended, and its successor not started yet.
            let worker = *server.workers().last().unwrap();
            Command::new("kill").args([signal, &worker.to_string()]).status().unwrap();
            seen.submit(&server);
        } else {
            kill(server.child.id(), signal);
            server.child.wait().unwrap();
            (server, starts) = (start(), starts + 1);
            seen.look(&server);
        }
    }
    println!(
        "{} jobs accepted over {starts} starts of the server, {} requests refused or broken",
        seen.accepted.len(),
        seen.refused
    );
    while seen.look(&server) > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut failed = Vec::new();
    for (id, first) in &seen.over {
        // A job that was over has not been run again.
        let last = job(&server, id);
        for field in ["status", "attempts", "completed_at"] {
            assert!(!first[field].is_null() && first[field] == last[field], "{first} and {last}");
        }
        assert!(last["attempts"].as_u64().unwrap() <= 2, "{last}");
        if last["status"] != "succeeded" {
            failed.push(last["error"]["code"].clone());
        }
    }
    println!(
        "{} succeeded, {} failed {failed:?}, {:.0} s in all",
        seen.over.len() - failed.len(),
        failed.len(),
        begun.elapsed().as_secs_f64()
    );
    // Only a job that was hit by two kills may fail.
    assert!(failed.iter().all(|code| code == "worker_died"), "{failed:?}");
    assert!(failed.len() as u64 <= rounds, "{}", failed.len());
}

/// `cargo test --test cli -- --ignored --nocapture load_memory`
#[test]
#[ignore = "1,300 images take minutes: see CONTRIBUTING.md"]
fn load_memory_does_not_grow_with_the_number_of_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["-q"]);
    let memory = || {
        let text = server.get("/metrics").text();
        let of = |process: &str| {
            let name = format!("flux_fast_resident_bytes{{process=\"{process}\"}} ");
            let line = text.lines().find_map(|l| l.strip_prefix(&name)).unwrap();
            line.parse::<f64>().unwrap() / 1e6
        };
        (of("front"), of("worker"))
    };
    let draw = |from: u64, to: u64| {
        for seed in from..to {
            assert_eq!(server.post("/v1/images/generations", &small(seed)).status, 200);
        }
    };
    draw(0, 300);
    let (front, worker) = memory();
    draw(300, 1300);
    let (front_after, worker_after) = memory();
    println!(
        "resident memory over 1000 jobs: front {front:.1} to {front_after:.1} MB, worker \
         {worker:.1} to {worker_after:.1} MB"
    );
    // Events of jobs that ended are kept for 5 minutes: about 1 kB each.
    assert!(front_after - front < 4.0 && worker_after - worker < 1.0);
}
