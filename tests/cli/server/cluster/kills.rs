//! Many jobs of two models and two keys, at two fronts and four workers, while workers and the
//! broker are killed.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::nats::Broker;
use super::super::{Server, command, drawn_by_command, kill};
use super::{Worker, ready};

/// SHA-256 of `foo` and of `bar`.
const FOO: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
const BAR: &str = "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9";
/// The most active jobs of the key `foo`, and the most of its requests in the seconds of a window.
const ACTIVE: usize = 12;
const WINDOW: (usize, f64) = (30, 2.0);
/// How many jobs there are, unless `FLUX_FAST_TEST_JOBS` says something else.
const JOBS: usize = 150;

fn front(url: &str, folder: &Path, name: &str) -> Server {
    let config = folder.join("config.toml");
    let (most, seconds) = WINDOW;
    let text = format!(
        "plans.mine = {{ limits = [\"{most}/{seconds}s\", \"{ACTIVE} active\"] }}\n\
         keys.\"{FOO}\" = {{ plan = \"mine\" }}\nkeys.\"{BAR}\" = {{}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let arguments = ["--broker", url, "--lost-after", "4", "--max-queue", "2000", "--config"];
    let mut command = command(&folder.join(name), &arguments);
    Server::of(command.arg(config).env_remove("FLUX_FAST_CONFIG"))
}

fn worker(url: &str, folder: &Path, number: usize) -> Worker {
    let mut command = Worker::command(url, &folder.join(format!("w{number}")));
    command.current_dir(folder);
    Worker::of(command)
}

fn request(
    server: &Server,
    method: &str,
    key: &str,
    path: &str,
    more: &[(&str, &str)],
    body: &str,
) -> Option<(u16, Value)> {
    use std::io::Read;
    let mut headers = vec![("x-key", key)];
    headers.extend(more);
    let mut stream = server.open(method, path, &headers, body.as_bytes());
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let answer = super::super::Answer::parse(&bytes);
    let value = serde_json::from_slice(&answer.body).ok()?;
    Some((answer.status, value))
}

/// Whose job it is.
fn key_of(number: usize) -> &'static str {
    if number.is_multiple_of(2) { "foo" } else { "bar" }
}

/// Submits job number `number` until it is accepted. A client that does not know whether it was
/// sends it again with the same idempotency key.
fn submit(servers: [&Server; 2], number: usize) -> String {
    let key = key_of(number);
    let model = if number.is_multiple_of(3) { "other" } else { "flux-tiny" };
    let body = json!({"request": {
        "prompt": "a fox", "steps": 1, "width": 64, "height": 64, "seed": number, "model": model,
    }});
    let name = format!("job-{number}");
    for attempt in 0.. {
        // Another front may be asked the next time.
        let server = servers[(number / 2 + attempt) % 2];
        let more = [("Idempotency-Key", name.as_str())];
        match request(server, "POST", key, "/api/v2/jobs", &more, &body.to_string()) {
            Some((200 | 201, job)) => return job["id"].as_str().unwrap().to_string(),
            Some((429 | 503, _)) | None => std::thread::sleep(Duration::from_millis(100)),
            Some(other) => panic!("{other:?}"),
        }
    }
    unreachable!()
}

/// Sets a flag when it goes out of scope: also if its thread panics, so that nobody waits for it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sets a flag if its thread panics.
struct SetOnPanic<'a>(&'a AtomicBool);

impl Drop for SetOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn many_jobs_are_all_drawn_once_while_workers_and_the_broker_are_killed() {
    let Some(mut broker) = Broker::start() else { return };
    let count = std::env::var("FLUX_FAST_TEST_JOBS").ok().and_then(|n| n.parse().ok());
    let count: usize = count.unwrap_or(JOBS);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let asset = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny.safetensors");
    std::fs::copy(asset, path.join("other.safetensors")).unwrap();
    let url = broker.url("many");
    let begun = Instant::now();
    let fronts = [front(&url, path, "1"), front(&url, path, "2")];
    let mut workers: Vec<Worker> = (0..4).map(|n| worker(&url, path, n)).collect();
    workers.iter().for_each(Worker::wait);
    fronts.iter().for_each(ready);

    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failed = AtomicBool::new(false);
    let ids = Mutex::new(HashMap::new());
    let kills = std::thread::scope(|scope| {
        let both = [&fronts[0], &fronts[1]];
        for _ in 0..4 {
            let (next, ids, failed) = (&next, &ids, &failed);
            scope.spawn(move || {
                let _failed = SetOnPanic(failed);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let id = submit(both, number);
                    ids.lock().unwrap().insert(number, id);
                }
            });
        }
        let done = &done;
        // Without it, the thread that watches would go on after a failure of this one.
        let is_done = SetOnDrop(done);
        // The limit on active jobs is kept at every moment, at both fronts.
        let watched = scope.spawn(move || {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                for server in both {
                    let Some((200, jobs)) =
                        request(server, "GET", "foo", "/api/v2/jobs?limit=100", &[], "")
                    else {
                        continue;
                    };
                    let active =
                        |job: &&Value| job["status"] == "queued" || job["status"] == "running";
                    most = most.max(jobs["jobs"].as_array().unwrap().iter().filter(active).count());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        });
        let kills = kill_at_random(&mut workers, &mut broker, &ids, count, &failed, |n| {
            worker(&url, path, n)
        });
        for number in 0..count {
            let ids = ids.lock().unwrap();
            let key = key_of(number);
            let id = ids[&number].clone();
            drop(ids);
            super::super::wait_for(&format!("job {number}"), || {
                let job =
                    request(both[number % 2], "GET", key, &format!("/api/v2/jobs/{id}"), &[], "");
                (job?.1["status"] == "succeeded").then_some(())
            });
        }
        drop(is_done);
        assert!(watched.join().unwrap() <= ACTIVE, "too many jobs were active");
        kills
    });
    let ids = ids.into_inner().unwrap();
    println!(
        "{count} jobs, {kills} workers and one broker killed, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    check(&fronts, &ids, count);
    // The first and the last image are those of the command line.
    for number in [0, count - 1] {
        let seed = number.to_string();
        let size = ["--steps", "1", "--width", "64", "--height", "64", "--seed", &seed];
        let reference = drawn_by_command(path, &[&["a fox"], &size[..]].concat());
        let key = key_of(number);
        let address = format!("/api/v2/jobs/{}/images/0", ids[&number]);
        let image = fronts[0].request("GET", &address, &[("x-key", key)], b"").body;
        let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8().into_raw();
        assert!(pixels(&image) == pixels(&reference), "{number}");
    }
}

/// Kills workers at random while the jobs are submitted, and the broker in the middle. Returns how
/// many workers.
fn kill_at_random(
    workers: &mut [Worker],
    broker: &mut Broker,
    ids: &Mutex<HashMap<usize, String>>,
    count: usize,
    failed: &AtomicBool,
    start: impl Fn(usize) -> Worker,
) -> usize {
    let most = 4 + count / 100;
    let (mut kills, mut random, mut broken) = (0, 7_u64, false);
    loop {
        assert!(!failed.load(Ordering::Relaxed), "a thread that submits jobs has failed");
        let submitted = ids.lock().unwrap().len();
        if submitted >= count && kills >= most && broken {
            return kills;
        }
        if kills < most && submitted * (most + 1) >= (kills + 1) * count {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let victim = (random >> 33) as usize % workers.len();
            kill(workers[victim].child.id(), "-KILL");
            kills += 1;
            workers[victim] = start(10 + kills);
        }
        if !broken && submitted * 2 > count {
            broker.restart();
            broken = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every job was accepted once and is over once, and the limits were kept.
fn check(fronts: &[Server; 2], ids: &HashMap<usize, String>, count: usize) {
    assert_eq!(ids.values().collect::<HashSet<_>>().len(), count, "each is a job of its own");
    for server in fronts {
        let mut instants = Vec::new();
        for (number, id) in ids {
            let path = format!("/api/v2/jobs/{id}");
            let (status, job) = request(server, "GET", key_of(*number), &path, &[], "").unwrap();
            assert_eq!((status, &job["status"]), (200, &json!("succeeded")), "{job}");
            if key_of(*number) == "foo" {
                instants.push(job["created_at"].as_f64().unwrap());
            }
        }
        instants.sort_by(f64::total_cmp);
        let (most, window) = WINDOW;
        let exceeded = instants.windows(most + 1).find(|w| w[most] - w[0] < window - 1e-3);
        assert_eq!(exceeded, None, "more than {most} in {window} s");
        // Each end was told once at each front.
        let metrics = server.request("GET", "/metrics", &[("x-key", "bar")], b"").text();
        let line = format!("flux_fast_jobs_ended_total{{state=\"succeeded\"}} {count}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}
