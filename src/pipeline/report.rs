//! The report that `flux-fast plan` prints before anything runs: the memory of each phase, which
//! weights stay on the device and which pass to it in every run.

use std::fmt;

use serde::Serialize;

use crate::event::Phase;
use crate::message::{Message, Neutral, Words};
use crate::text::one_line;
use crate::units;

/// Where the times of a plan come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimeSource {
    /// The same work was measured on this device.
    Measured,
    /// Other sizes were measured on this device.
    MeasuredAtOtherSizes,
    /// Operations are divided by a speed that is assumed for this kind of processor.
    Assumed,
}

impl TimeSource {
    /// Words for it.
    pub fn text(self) -> &'static str {
        match self {
            TimeSource::Measured => "measured in an earlier run on this device",
            TimeSource::MeasuredAtOtherSizes => {
                "estimated from runs of other sizes that were measured on this device"
            }
            TimeSource::Assumed => {
                "a rough estimate from the number of operations at an assumed speed: no such run \
                 on this device was measured yet"
            }
        }
    }
}

/// The plan of one generation, as text (`Display`) and as JSON (`Serialize`).
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// The name of the model.
    pub model: String,
    /// A description of the device.
    pub device: String,
    /// Width of each image in pixels.
    pub width: usize,
    /// Height of each image in pixels.
    pub height: usize,
    /// Images.
    pub count: usize,
    /// Denoising steps, before image-to-image skips some.
    pub steps: usize,
    /// The bound on the memory that phases divide, in bytes.
    pub budget_bytes: u64,
    /// Where that bound comes from.
    pub budget_source: Message,
    /// Host memory besides the phases, in bytes: the program itself, tokenizers, embeddings,
    /// modulation, the finished images.
    pub host_bytes: u64,
    /// Device memory that context and code need, in bytes; 0 for the CPU.
    pub overhead_bytes: u64,
    /// Host memory that may be pinned for weights that pass in every step, in bytes; 0 for the CPU.
    pub pinned_bytes: u64,
    /// The device has memory of its own: `budget_bytes` and `peak_bytes` count that memory, not the
    /// host's.
    pub own_memory: bool,
    /// The weights of all phases stay in memory from one generation to the next.
    pub keeps_weights: bool,
    /// The device computes products in 8-bit integers where it is asked to.
    pub offers_int8: bool,
    /// One line for each LoRA, and one for tensors of it that are not used.
    pub loras: Vec<String>,
    /// One line for each ControlNet that acts.
    pub controlnets: Vec<String>,
    /// Bytes of the LoRA matrices in all phases, which always stay in memory.
    pub lora_bytes: u64,
    /// One entry per program, in the order in which they run.
    pub phases: Vec<PhaseReport>,
    /// The most memory that is needed at one time, in bytes: the largest phase and the host's
    /// share, or the device's overhead.
    pub peak_bytes: u64,
    /// The time of all phases in seconds, without opening the model; `None` if it is not known.
    pub seconds: Option<f64>,
    /// Where the least certain of the times comes from; `None` if one of them is not known.
    pub time_source: Option<TimeSource>,
}

/// One program of a phase.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseReport {
    /// See [`Phase::name`].
    pub phase: &'static str,
    /// The name of the program.
    pub program: String,
    /// How often the program runs: once, once per step, or once per band and image.
    pub runs: usize,
    /// Operations of one run.
    pub operations: usize,
    /// Matrix work of one run, in 10^12 operations.
    pub teraflop: f64,
    /// The part of it in products that may be computed in 8-bit integers.
    pub int8_teraflop: f64,
    /// Products are computed in 8-bit integers: because that was asked for, or because the weights
    /// are stored for it.
    pub int8: bool,
    /// Bytes of all weights, in the form in which the device stores them.
    pub weight_bytes: u64,
    /// Bytes of activations and scratch.
    pub arena_bytes: u64,
    /// Bytes of the weights that stay on the device.
    pub resident_bytes: u64,
    /// Bytes of the ring through which the other weights pass.
    pub ring_bytes: u64,
    /// Bytes that pass through the ring in each run.
    pub streamed_bytes_per_run: u64,
    /// Blocks of the model that have weights.
    pub blocks: usize,
    /// Blocks of which at least one weight passes through the ring.
    pub blocks_streamed: usize,
    /// Bytes of arena, resident weights and ring together.
    pub peak_bytes: u64,
    /// The time of all runs in seconds; `None` if it is not known. See
    /// [`PlanReport::time_source`].
    pub seconds: Option<f64>,
    /// Runs of programs that compute a band of rows each, because the image does not fit as a
    /// whole; 0 if it does. All programs of the phase are one entry then: `runs` is 1, and work and
    /// bytes are those of all their runs, or of the largest program.
    pub bands: usize,
    /// Bytes that bands move between the host and the device.
    pub moved_bytes: u64,
}

impl PhaseReport {
    /// Adds another program of the same phase that works in bands.
    pub(super) fn join(&mut self, other: &PhaseReport) {
        let total = |r: &PhaseReport| r.teraflop * r.runs as f64;
        self.program = self.program.split('.').next().unwrap_or_default().to_string();
        self.teraflop = total(self) + total(other);
        self.runs = 1;
        self.bands += other.bands;
        self.moved_bytes += other.moved_bytes;
        self.int8_teraflop = 0.0;
        self.operations += other.operations;
        self.weight_bytes += other.weight_bytes;
        self.arena_bytes = self.arena_bytes.max(other.arena_bytes);
        self.resident_bytes = self.resident_bytes.max(other.resident_bytes);
        self.ring_bytes = self.ring_bytes.max(other.ring_bytes);
        self.streamed_bytes_per_run += other.streamed_bytes_per_run;
        self.blocks += other.blocks;
        self.blocks_streamed += other.blocks_streamed;
        self.peak_bytes = self.peak_bytes.max(other.peak_bytes);
    }
}

impl PlanReport {
    /// The first program of `phase`; `None` if the generation does not have that phase.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseReport> {
        self.phases.iter().find(|p| p.phase == phase.name())
    }
}

impl PlanReport {
    /// The report as text, in the words of a front end.
    pub fn in_words(&self, words: &dyn Words) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        self.write(&mut text, words).ok();
        text
    }

    fn write(&self, f: &mut dyn fmt::Write, words: &dyn Words) -> fmt::Result {
        let Self { device, width, height, count, steps, .. } = self;
        let model = one_line(&self.model);
        writeln!(f, "{model} on {device}: {count} x {width}x{height}, {steps} steps")?;
        writeln!(
            f,
            "budget {} ({})",
            units::bytes(self.budget_bytes),
            self.budget_source.in_words(words)
        )?;
        writeln!(
            f,
            "{:<10} {:>5} {:>8} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12} {:>10}",
            "program",
            "runs",
            "TFLOP",
            "weights",
            "arena",
            "resident",
            "ring",
            "streamed/run",
            "blocks",
            "peak"
        )?;
        for p in &self.phases {
            writeln!(
                f,
                "{:<10} {:>5} {:>8.3} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12} {:>10}",
                p.program,
                p.runs,
                p.teraflop,
                units::bytes(p.weight_bytes),
                units::bytes(p.arena_bytes),
                units::bytes(p.resident_bytes),
                units::bytes(p.ring_bytes),
                units::bytes(p.streamed_bytes_per_run),
                format!("{}/{} pass", p.blocks_streamed, p.blocks),
                units::bytes(p.peak_bytes),
            )?;
        }
        for p in self.phases.iter().filter(|p| p.bands > 0) {
            writeln!(
                f,
                "{}: in {} bands of rows, because the image does not fit as a whole; {} pass \
                 between the program and a temporary file",
                p.phase,
                p.bands,
                units::bytes(p.moved_bytes),
            )?;
        }
        for line in self.loras.iter().chain(&self.controlnets) {
            writeln!(f, "{}", one_line(line))?;
        }
        if self.lora_bytes > 0 {
            writeln!(
                f,
                "LoRA matrices, included in the resident weights: {}",
                units::bytes(self.lora_bytes)
            )?;
        }
        let keep = if self.keeps_weights { "; all weights stay loaded between images" } else { "" };
        if self.own_memory {
            writeln!(
                f,
                "device memory besides these: {} for context and code{keep}",
                units::bytes(self.overhead_bytes)
            )?;
            writeln!(
                f,
                "host memory: {}, and at most {} pinned",
                units::bytes(self.host_bytes),
                units::bytes(self.pinned_bytes)
            )?;
            writeln!(f, "peak: {} of device memory", units::bytes(self.peak_bytes))?;
        } else {
            writeln!(f, "host memory besides these: {}{keep}", units::bytes(self.host_bytes))?;
            writeln!(f, "peak: {}", units::bytes(self.peak_bytes))?;
        }
        self.write_int8(f, words)?;
        self.write_time(f)
    }

    /// Writes the share of operations in 8-bit integers, now or with `--compute int8`.
    fn write_int8(&self, f: &mut dyn fmt::Write, words: &dyn Words) -> fmt::Result {
        let Some(denoise) = self.phase(Phase::Denoise).filter(|p| p.int8_teraflop > 0.0) else {
            return Ok(());
        };
        let percent = format!("{:.0}", 100.0 * denoise.int8_teraflop / denoise.teraflop);
        if denoise.int8 {
            return writeln!(f, "int8: {percent} % of the operations of a step");
        }
        if !self.offers_int8 {
            return Ok(());
        }
        let line = Message::with(
            "int8: {compute=int8} would compute {} % of the operations of a step in 8-bit \
             integers, at up to twice the speed and less exactly",
            [percent.into()],
        );
        writeln!(f, "{}", line.in_words(words))
    }

    fn write_time(&self, f: &mut dyn fmt::Write) -> fmt::Result {
        let (Some(seconds), Some(source)) = (self.seconds, self.time_source) else {
            return write!(f, "time: not known, the first such run on this device measures it");
        };
        let denoise = self.phase(Phase::Denoise).filter(|p| p.runs > 0);
        let step = denoise.and_then(|p| Some(p.seconds? / p.runs as f64));
        let step = step.map_or(String::new(), |s| format!(", {} a step", units::seconds(s)));
        write!(f, "time: about {}{step} ({})", units::duration(seconds), source.text())
    }
}

/// In neutral words.
impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &Neutral)
    }
}
