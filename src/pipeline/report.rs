//! What `flux-fast plan` prints: phases, the peak of each, what stays and what passes through,
//! before anything runs.

use std::fmt;

use serde::Serialize;

use crate::event::Phase;
use crate::units;

/// The plan of one generation, for people (`Display`) and programs (`Serialize`).
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    pub model: String,
    pub device: String,
    /// Picture size in pixels, pictures, steps.
    pub width: usize,
    pub height: usize,
    pub count: usize,
    pub steps: usize,
    /// The bound that the plan keeps to, and how it came about.
    pub budget_bytes: u64,
    pub budget_source: String,
    /// Host memory beside the plan: the program itself, tokenizers, embeddings, modulation, the
    /// picture.
    pub host_bytes: u64,
    /// Device memory that context and code take; 0 for the CPU.
    pub overhead_bytes: u64,
    /// Host memory that may be pinned for weights that pass in every step; 0 for the CPU.
    pub pinned_bytes: u64,
    /// The device has memory of its own: `budget_bytes` and `peak_bytes` count that, and not the
    /// host's.
    pub own_memory: bool,
    /// All phases' weights stay in memory from one generation to the next.
    pub keeps_weights: bool,
    /// What LoRAs there are, and the bytes of their matrices in all phases: they always stay.
    pub loras: Vec<String>,
    pub lora_bytes: u64,
    pub phases: Vec<PhaseReport>,
    /// The largest phase together with the host's share, or with the device's overhead.
    pub peak_bytes: u64,
}

/// One phase.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseReport {
    pub phase: &'static str,
    pub program: String,
    /// How often the program runs: steps, or tiles times pictures.
    pub runs: usize,
    pub operations: usize,
    /// Matrix work of one run, in 10^12 operations.
    pub teraflop: f64,
    pub weight_bytes: u64,
    pub arena_bytes: u64,
    pub resident_bytes: u64,
    pub ring_bytes: u64,
    pub streamed_bytes_per_run: u64,
    pub blocks: usize,
    pub blocks_streamed: usize,
    pub peak_bytes: u64,
}

impl PlanReport {
    /// The report of one phase, if it has it.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseReport> {
        self.phases.iter().find(|p| p.phase == phase.name())
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, device, width, height, count, steps, .. } = self;
        writeln!(f, "{model} on {device}: {count} x {width}x{height}, {steps} steps")?;
        writeln!(f, "budget {} ({})", units::bytes(self.budget_bytes), self.budget_source)?;
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
        for line in &self.loras {
            writeln!(f, "{line}")?;
        }
        if self.lora_bytes > 0 {
            writeln!(
                f,
                "matrices of LoRAs, among the resident: {}",
                units::bytes(self.lora_bytes)
            )?;
        }
        let keep =
            if self.keeps_weights { "; all weights stay loaded between pictures" } else { "" };
        if self.own_memory {
            writeln!(
                f,
                "device memory beside these: {} for context and code{keep}",
                units::bytes(self.overhead_bytes)
            )?;
            writeln!(
                f,
                "host memory: {}, and at most {} pinned",
                units::bytes(self.host_bytes),
                units::bytes(self.pinned_bytes)
            )?;
            write!(f, "peak: {} of device memory", units::bytes(self.peak_bytes))
        } else {
            writeln!(f, "host memory beside these: {}{keep}", units::bytes(self.host_bytes))?;
            write!(f, "peak: {}", units::bytes(self.peak_bytes))
        }
    }
}
