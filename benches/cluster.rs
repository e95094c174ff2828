//! How far a cluster scales: simulated workers, which wait for the time that the plan predicts, with a
//! real broker and the real queue. It prints a table of throughput, waits and models that had to be
//! opened, next to the waits of a single queue that loses no time.
//!
//! `cargo bench --bench cluster` with `nats-server` on the path, on a machine with nothing else to do.

use std::process::{Child, Command, Stdio};

use flux_fast::server::{ClusterOptions, Simulation, simulate};

/// FLUX.1 [schnell], 1024x1024, 4 steps on an RTX 3060, and 12 GB from a fast disk, in seconds: both
/// are calculated (benches/results/2026-11-22-cuda-calculated.md).
const JOB: f64 = 11.8;
const LOAD: f64 = 8.0;
/// Models that clients ask for.
const MODELS: usize = 4;
/// Keys of clients.
const KEYS: usize = 8;

struct Broker {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Broker {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("nats.conf");
        let store = folder.path().join("store");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("nats-server")
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server on the path");
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Broker { child, port, _folder: folder }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn main() {
    println!(
        "workers  speed  demand  jobs  jobs/s  wait p50  wait p99  bound p50  bound p99  cold  \
         submit p50  submit p99"
    );
    // Few workers run in quicker time, so that there are enough jobs.
    for (workers, speed, duration) in
        [(1, 40.0, 60.0), (4, 20.0, 60.0), (16, 10.0, 60.0), (100, 4.0, 60.0), (1000, 1.0, 90.0)]
    {
        for demand in [0.5, 0.9] {
            let broker = Broker::start();
            let options = ClusterOptions::new(format!("nats://127.0.0.1:{}/bench", broker.port));
            let simulation = Simulation {
                workers,
                models: MODELS,
                keys: KEYS,
                job: JOB / speed,
                load: LOAD / speed,
                demand,
                duration,
            };
            let m = simulate(&options, &simulation).unwrap();
            println!(
                "{workers:>7}  {speed:>5}  {demand:>6}  {:>4}  {:>6.1}  {:>8.2}  {:>8.2}  {:>9.2}  \
                 {:>9.2}  {:>3.0} %  {:>10.4}  {:>10.4}",
                m.jobs,
                m.throughput,
                m.wait.0,
                m.wait.1,
                m.bound.0,
                m.bound.1,
                100.0 * m.cold,
                m.submit.0,
                m.submit.1
            );
        }
    }
}
