//! How far a cluster scales: simulated workers, which take the time that the plan predicts, with
//! the real queue and schedule. It prints a table of throughput, waits and models that had to be
//! opened, next to the waits of a single queue that loses no time.
//!
//! `cargo bench --bench cluster -- SECONDS`: what the broker needs for one change of a job. No time
//! passes but that of the computation.

use flux_fast::server::{Simulation, simulate};

/// FLUX.1 [schnell], 1024x1024, 4 steps on an RTX 3060, and 12 GB from a fast disk, in seconds:
/// both are calculated (benches/results/2026-11-22-cuda-calculated.md).
const JOB: f64 = 11.8;
const LOAD: f64 = 8.0;
/// Models that clients ask for, and their keys.
const MODELS: usize = 4;
const KEYS: usize = 8;
/// A durable change with `sync_interval: always`, measured (benches/results/2026-11-30-cluster.md).
const CHANGE: f64 = 0.002;

fn main() {
    let given = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let change: f64 = given.unwrap_or(CHANGE);
    println!("{change} s for a change");
    println!(
        "workers  demand   jobs  jobs/s  wait p50  wait p99  bound p50  bound p99  models opened"
    );
    for workers in [1, 4, 16, 64, 250, 1000] {
        for demand in [0.5, 0.9] {
            let (job, load, jobs) = (JOB, LOAD, (40 * workers).clamp(1000, 20_000));
            let (models, keys) = (MODELS, KEYS);
            let simulation = Simulation { workers, models, keys, job, load, demand, jobs, change };
            let m = simulate(&simulation);
            println!(
                "{workers:>7}  {demand:>6}  {jobs:>5}  {:>6.2}  {:>8.2}  {:>8.2}  {:>9.2}  {:>9.2}  \
                 {:>11.1} %",
                m.throughput,
                m.wait.0,
                m.wait.1,
                m.bound.0,
                m.bound.1,
                100.0 * m.cold
            );
        }
    }
}
