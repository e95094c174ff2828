//! Counts operations, and reports them as lines of JSON.

use crate::driver::Driver;
use crate::status::*;
use crate::stream::Direction;
use ptx_machine::{Counts as Costs, Report};
use std::collections::BTreeMap;
use std::fmt::Write;

/// How many findings of a kernel are reported.
const FINDINGS: usize = 8;

/// The counters of a kernel.
#[derive(Default)]
struct Tally {
    /// Launches that were accepted, those of graphs included.
    launches: u64,
    /// Launches that have run.
    runs: u64,
    machine: Report,
    findings: Vec<String>,
}

#[derive(Default)]
pub struct Counts {
    kernels: BTreeMap<String, Tally>,
    /// Copies made and their bytes, by direction.
    copies: [(u64, u64); 3],
    pinned_peak: u64,
    pinned_sizes: Vec<u64>,
    /// Launches, copies, fills and allocations that were requested after their context had failed.
    pub refused: u64,
}

impl Counts {
    pub fn launched(&mut self, kernel: &str) {
        self.tally(kernel).launches += 1;
    }

    fn tally(&mut self, kernel: &str) -> &mut Tally {
        if !self.kernels.contains_key(kernel) {
            self.kernels.insert(kernel.to_string(), Tally::default());
        }
        self.kernels.get_mut(kernel).expect("the entry was just inserted")
    }

    /// Counts a kernel that has run. An access to memory that does not exist is an error, as on a
    /// device.
    pub fn ran(&mut self, kernel: &str, report: &Report) -> Outcome {
        let tally = self.tally(kernel);
        tally.runs += 1;
        // The costs of single instructions are left out: they are not used here, and adding them up
        // takes long.
        let mut sums = Report::default();
        sums.blocks = report.blocks;
        (sums.counts, sums.loops) = (report.counts, report.loops);
        (sums.races, sums.uninitialised) = (report.races, report.uninitialised);
        (sums.out_of_bounds, sums.misaligned) = (report.out_of_bounds, report.misaligned);
        tally.machine.merge(&sums);
        let room = FINDINGS - tally.findings.len();
        tally.findings.extend(report.findings.iter().take(room).map(|f| f.to_string()));
        if report.out_of_bounds + report.misaligned == 0 {
            return Ok(());
        }
        for finding in report.findings.iter().take(room) {
            eprintln!("fake-cuda: {finding}");
        }
        Err(if report.out_of_bounds > 0 { ILLEGAL_ADDRESS } else { MISALIGNED_ADDRESS })
    }

    /// Counts a kernel that could not run to its end.
    pub fn faulted(&mut self, kernel: &str, why: String) {
        let tally = self.tally(kernel);
        tally.runs += 1;
        if tally.findings.len() < FINDINGS {
            tally.findings.push(why);
        }
    }

    pub fn copied(&mut self, direction: Direction, bytes: u64) {
        let (number, sum) = &mut self.copies[direction as usize];
        *number += 1;
        *sum += bytes;
    }

    /// Counts host memory that was pinned; `total` includes it.
    pub fn pinned(&mut self, bytes: u64, total: u64) {
        self.pinned_sizes.push(bytes);
        self.pinned_peak = self.pinned_peak.max(total);
    }
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut to = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => to.extend(['\\', c]),
            '\n' => to.push_str("\\n"),
            c if c < ' ' => {
                write!(to, "\\u{:04x}", c as u32).expect("writing to a string cannot fail")
            }
            c => to.push(c),
        }
    }
    to.push('"');
    to
}

fn list(numbers: &[u64]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("[{}]", numbers.join(","))
}

impl Tally {
    fn line(&self, name: &str) -> String {
        let m = &self.machine;
        let touched = |c: &Costs| c.load_sectors + c.store_sectors + c.copy_sectors;
        let needed = |c: &Costs| c.load_ideal + c.store_ideal + c.copy_ideal;
        let numbers = [
            ("launches", self.launches),
            ("runs", self.runs),
            ("blocks", m.blocks),
            ("instructions", m.counts.instructions),
            ("mma_flops", m.counts.mma_flops),
            ("races", m.races),
            ("uninitialised", m.uninitialised),
            ("out_of_bounds", m.out_of_bounds),
            ("misaligned", m.misaligned),
            ("sectors", touched(&m.counts)),
            ("ideal_sectors", needed(&m.counts)),
            ("loop_sectors", touched(&m.loops)),
            ("ideal_loop_sectors", needed(&m.loops)),
            ("wavefronts", m.counts.wavefronts),
            ("ideal_wavefronts", m.counts.ideal_wavefronts),
            ("loop_wavefronts", m.loops.wavefronts),
            ("ideal_loop_wavefronts", m.loops.ideal_wavefronts),
        ];
        let numbers: String = numbers.iter().map(|(key, n)| format!(r#""{key}":{n},"#)).collect();
        let findings: Vec<String> = self.findings.iter().map(|f| quoted(f)).collect();
        format!(r#"{{"kernel":{},{numbers}"findings":[{}]}}"#, quoted(name), findings.join(","))
    }
}

impl Driver {
    /// One line for each kernel and each device, one for the copies, one for the pinned memory, and
    /// one for the calls after an error.
    pub fn report(&self) -> String {
        let mut lines = Vec::new();
        lines.extend(self.counts.kernels.iter().map(|(name, tally)| tally.line(name)));
        for (ordinal, device) in self.devices.iter().enumerate() {
            lines.push(format!(
                r#"{{"device":{ordinal},"name":{},"memory":{},"used":{},"peak":{},"allocations":{}}}"#,
                quoted(&device.spec.name),
                device.spec.memory,
                device.used(),
                device.peak,
                list(&device.sizes)
            ));
        }
        for direction in [Direction::ToDevice, Direction::ToHost, Direction::OnDevice] {
            let (copies, bytes) = self.counts.copies[direction as usize];
            lines.push(format!(
                r#"{{"copy":"{}","copies":{copies},"bytes":{bytes}}}"#,
                direction.name()
            ));
        }
        lines.push(format!(
            r#"{{"pinned":{},"peak":{},"allocations":{}}}"#,
            self.pinned_bytes,
            self.counts.pinned_peak,
            list(&self.counts.pinned_sizes)
        ));
        lines.push(format!(r#"{{"refused":{}}}"#, self.counts.refused));
        lines.into_iter().map(|l| l + "\n").collect()
    }

    pub fn reset_counts(&mut self) {
        self.counts = Counts { pinned_peak: self.pinned_bytes, ..Counts::default() };
        for device in &mut self.devices {
            device.peak = device.used();
            device.sizes.clear();
        }
    }
}
