//! How long phases take: the speed of earlier generations on the same device, kept in the cache
//! folder, or an assumed speed where there was none.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::report::{PhaseReport, TimeSource};
use crate::backend::cpu::isa::Isa;
use crate::event::{Event, Phase};
use crate::host::{read_regular, unfinished_file};

/// How many measurements are kept; the oldest are dropped.
const KEPT: usize = 200;

/// The largest file of measurements that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Sizes count as the same if their operations differ by less than this factor.
const SAME_SIZE: f64 = 1.05;

/// The speed at one size says something about another up to this factor. Small programs spend most
/// of their time between operations.
const SIMILAR_SIZE: f64 = 10.0;

/// The speed of one phase in one generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Speed {
    /// Device, arithmetic and version of the program.
    device: String,
    /// See [`Phase::name`].
    phase: String,
    /// 10^12 operations of one run of the phase's programs: small programs are slower per
    /// operation.
    teraflop: f64,
    /// Weights passed to the device, which takes time of its own.
    streamed: bool,
    teraflop_per_second: f64,
}

/// Measured speeds, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Speeds(Vec<Speed>);

/// The work of one phase: all its programs together.
struct Work {
    /// Of one run of each program, in 10^12 operations.
    teraflop: f64,
    /// Of all runs.
    all: f64,
    streamed: bool,
}

fn work(phase: &str, programs: &[PhaseReport]) -> Work {
    let own = || programs.iter().filter(|p| p.phase == phase);
    Work {
        teraflop: own().map(|p| p.teraflop).sum(),
        all: own().map(|p| p.teraflop * p.runs as f64).sum(),
        streamed: own().any(|p| p.streamed_bytes_per_run > 0),
    }
}

/// The times of one generation, from its events.
#[derive(Debug, Default)]
pub struct Stopwatch {
    /// The times of the current phase's steps.
    steps: Vec<f64>,
    /// Phases that computed, with the seconds of all their runs.
    phases: Vec<(&'static str, f64)>,
}

impl Stopwatch {
    /// Reads the times in `event`.
    pub fn note(&mut self, event: &Event) {
        match *event {
            Event::PhaseStart { .. } => self.steps.clear(),
            Event::Step { seconds, .. } => self.steps.push(seconds),
            // A phase without steps was answered by a cache.
            Event::PhaseEnd { phase, seconds, .. } if !self.steps.is_empty() => {
                let seconds = match phase {
                    // The first step of a process also brings in the weights.
                    Phase::Denoise => median(&mut self.steps) * self.steps.len() as f64,
                    _ => seconds,
                };
                // Several phases of a generation may have one name: with ControlNets, say.
                match self.phases.iter_mut().find(|(name, _)| *name == phase.name()) {
                    Some((_, sum)) => *sum += seconds,
                    None => self.phases.push((phase.name(), seconds)),
                }
            }
            _ => {}
        }
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

impl Speeds {
    /// The speeds that were saved in `cache`; none if there is no such file or it is damaged.
    pub fn load(cache: &Path) -> Speeds {
        let text = read_regular(&cache.join("speeds.json"), MAX_BYTES).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Saves them in `cache`. A full disk or a read-only folder is not an error.
    pub fn save(&self, cache: &Path) {
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(cache)?;
            let mut file = unfinished_file(cache)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.persist(cache.join("speeds.json"))?;
            Ok(())
        };
        write().ok();
    }

    /// Adds what `watch` measured of `programs` on `device`, in place of older measurements of the
    /// same work.
    pub fn add(&mut self, device: &str, programs: &[PhaseReport], watch: &Stopwatch) {
        for &(phase, seconds) in &watch.phases {
            let Work { teraflop, all, streamed, .. } = work(phase, programs);
            let speed = all / seconds;
            if !(speed.is_finite() && speed > 0.0) {
                continue;
            }
            self.0.retain(|s| {
                let same = s.device == device && s.phase == phase && s.streamed == streamed;
                !(same && distance(s.teraflop, teraflop) < SAME_SIZE)
            });
            self.0.push(Speed {
                device: device.into(),
                phase: phase.into(),
                teraflop,
                streamed,
                teraflop_per_second: speed,
            });
        }
        let surplus = self.0.len().saturating_sub(KEPT);
        self.0.drain(..surplus);
    }

    /// Sets the seconds of every program in `programs` that runs on `device`. `assumed` is the
    /// speed in 10^12 operations a second where nothing was measured. Returns where the least
    /// certain of the times comes from; `None` if a time is not known.
    pub fn estimate(
        &self,
        device: &str,
        programs: &mut [PhaseReport],
        assumed: Option<f64>,
    ) -> Option<TimeSource> {
        let mut sources = Vec::new();
        let all = programs.to_vec();
        for program in &mut *programs {
            let (speed, source) = self.speed(device, program.phase, &all, assumed)?;
            program.seconds = Some(program.teraflop * program.runs as f64 / speed);
            sources.push(source);
        }
        sources.into_iter().max()
    }

    fn speed(
        &self,
        device: &str,
        phase: &str,
        programs: &[PhaseReport],
        assumed: Option<f64>,
    ) -> Option<(f64, TimeSource)> {
        let Work { teraflop, streamed, .. } = work(phase, programs);
        let own = self.0.iter().filter(|s| {
            let is_similar = distance(s.teraflop, teraflop) < SIMILAR_SIZE;
            s.device == device && s.phase == phase && is_similar
        });
        // The same way of loading first, then the nearest size.
        let rank = |s: &&Speed| (s.streamed != streamed, distance(s.teraflop, teraflop));
        let nearest = own.min_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        match nearest {
            Some(s) if s.streamed == streamed && distance(s.teraflop, teraflop) < SAME_SIZE => {
                Some((s.teraflop_per_second, TimeSource::Measured))
            }
            Some(s) => Some((s.teraflop_per_second, TimeSource::MeasuredAtOtherSizes)),
            None => assumed.map(|speed| (speed, TimeSource::Assumed)),
        }
    }
}

/// The factor between two sizes, at least 1.
fn distance(a: f64, b: f64) -> f64 {
    let (small, large) = (a.min(b), a.max(b));
    if large <= 0.0 { 1.0 } else { large / small.max(f64::MIN_POSITIVE) }
}

/// A speed to assume for this processor with `threads` threads, in 10^12 operations a second. With
/// AVX512-BF16 it is that of a step of dev at 1024x1024 on 2 cores of an AMD EPYC (74 * 10^12
/// operations in 110 s), with AVX2 0.27 times as much, as measured for products. With AMX it is
/// that of two blocks of klein on 2 cores of a Xeon (0.84 * 10^12 operations in 1.30 s:
/// benches/results/2026-11-30-amx.md). The others are estimates between and below.
pub fn assumed_cpu(threads: usize) -> f64 {
    let core = match Isa::detect() {
        Isa::Amx => 0.32,
        Isa::Avx512Bf16 => 0.34,
        Isa::Avx512 | Isa::Avx512Vnni => 0.15,
        Isa::Avx2 => 0.09,
        Isa::Portable => 0.01,
    };
    core * threads as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(phase: Phase, teraflop: f64, runs: usize, streamed: u64) -> PhaseReport {
        PhaseReport {
            bands: 0,
            moved_bytes: 0,
            phase: phase.name(),
            program: phase.name().into(),
            runs,
            operations: 1,
            teraflop,
            int8_teraflop: 0.0,
            int8: false,
            weight_bytes: 0,
            arena_bytes: 0,
            resident_bytes: 0,
            ring_bytes: 0,
            streamed_bytes_per_run: streamed,
            blocks: 0,
            blocks_streamed: 0,
            peak_bytes: 0,
            seconds: None,
        }
    }

    fn watch(steps: &[f64]) -> Stopwatch {
        let mut watch = Stopwatch::default();
        let phase = Phase::Denoise;
        watch.note(&Event::PhaseStart { phase, steps: steps.len() });
        for (i, &seconds) in steps.iter().enumerate() {
            watch.note(&Event::Step { phase, done: i + 1, steps: steps.len(), seconds });
        }
        watch.note(&Event::PhaseEnd { phase, seconds: steps.iter().sum(), peak_bytes: 0 });
        watch
    }

    #[test]
    fn the_same_work_takes_the_measured_time_and_other_work_is_scaled() {
        let mut speeds = Speeds::default();
        // The first step, which loads the weights, is not typical.
        speeds.add("cpu", &[program(Phase::Denoise, 2.0, 3, 0)], &watch(&[9.0, 4.0, 4.0]));
        let time = |device: &str, teraflop, streamed, assumed| {
            let mut programs = [program(Phase::Denoise, teraflop, 10, streamed)];
            let source = speeds.estimate(device, &mut programs, assumed);
            (programs[0].seconds, source)
        };
        assert_eq!(time("cpu", 2.0, 0, None), (Some(40.0), Some(TimeSource::Measured)));
        let other = Some(TimeSource::MeasuredAtOtherSizes);
        assert_eq!(time("cpu", 4.0, 0, None), (Some(80.0), other));
        assert_eq!(time("cpu", 2.0, 1, None), (Some(40.0), other));
        // A much larger program is not as slow per operation.
        assert_eq!(time("cpu", 2000.0, 0, Some(2.0)), (Some(1e4), Some(TimeSource::Assumed)));
        assert_eq!(time("gpu", 2.0, 0, Some(0.1)), (Some(200.0), Some(TimeSource::Assumed)));
        assert_eq!(time("gpu", 2.0, 0, None), (None, None));
    }

    #[test]
    fn speeds_are_kept_in_a_file_and_replaced_by_newer_ones() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Speeds::load(dir.path()), Speeds::default());
        let mut speeds = Speeds::default();
        for seconds in [1.0, 2.0] {
            speeds.add("cpu", &[program(Phase::Denoise, 2.0, 1, 0)], &watch(&[seconds]));
        }
        assert_eq!((speeds.0.len(), speeds.0[0].teraflop_per_second), (1, 1.0));
        for i in 0..2 * KEPT as i32 {
            let size = 1.1f64.powi(i);
            speeds.add("cpu", &[program(Phase::Denoise, size, 1, 0)], &watch(&[1.0]));
        }
        assert_eq!(speeds.0.len(), KEPT);
        let cache = dir.path().join("new");
        speeds.save(&cache);
        let read = Speeds::load(&cache);
        assert_eq!((read.0.len(), read.0[7].phase.as_str()), (KEPT, "denoise"));
        assert!(distance(read.0[7].teraflop, speeds.0[7].teraflop) < 1.0 + 1e-9);
        fs::write(cache.join("speeds.json"), "[{").unwrap();
        assert_eq!(Speeds::load(&cache), Speeds::default());
    }

    #[test]
    fn a_phase_that_a_cache_answered_is_not_measured() {
        let mut watch = Stopwatch::default();
        watch.note(&Event::PhaseStart { phase: Phase::TextEncode, steps: 9 });
        watch.note(&Event::PhaseEnd { phase: Phase::TextEncode, seconds: 0.001, peak_bytes: 0 });
        assert!(watch.phases.is_empty());
    }
}
