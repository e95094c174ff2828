//! Events to stderr: a bar where a terminal shows it, plain lines elsewhere; and the flag that a signal sets.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{signals, tell};
use crate::event::{Event, Phase};
use crate::units;

/// Plain lines come at most this often, apart from a phase's last.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// A download of hours is told of less often.
const BYTES_EVERY: Duration = Duration::from_secs(10);

/// Tells what happens, unless it shall be quiet.
pub struct Progress {
    quiet: bool,
    /// Only where stderr is a terminal.
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { quiet, bar, last_line: None }
    }

    /// Shows `event`; `Break` once a signal has come.
    pub fn event(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Note(text) => self.note(&text),
            Event::PhaseStart { phase, steps } => {
                self.last_line = None;
                if let Some(bar) = &self.bar {
                    bar.reset();
                    bar.set_length(steps as u64);
                    bar.set_prefix(phase.name());
                    bar.set_message("");
                }
            }
            Event::Step { phase, done, steps, seconds } => self.step(phase, done, steps, seconds),
            Event::Tick => {}
            Event::PhaseEnd { phase, seconds, peak_bytes } => {
                let planned = units::bytes(peak_bytes);
                self.note(&format!(
                    "{:>9} {}, planned {planned}{}",
                    phase.name(),
                    units::seconds(seconds),
                    memory_now()
                ));
            }
        }
        if signals::received().is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// A line that quiet runs go without.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A line that everyone sees.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(&format!("{text}\n"))),
            None => tell(&format!("{text}\n")),
        }
    }

    fn step(&mut self, phase: Phase, done: usize, steps: usize, seconds: f64) {
        if let Some(bar) = &self.bar {
            bar.set_length(steps as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{}{}", units::seconds(seconds), memory_now()));
        } else if !self.quiet {
            let due = self.last_line.is_none_or(|at| at.elapsed() >= PLAIN_EVERY);
            if due || done == steps {
                self.last_line = Some(Instant::now());
                self.line(&format!(
                    "{:>9} {done}/{steps}  {}{}",
                    phase.name(),
                    units::seconds(seconds),
                    memory_now()
                ));
            }
        }
    }

    /// Shows that `done` of `all` bytes are there, and that `file` is on its way.
    pub fn bytes(&mut self, file: &str, done: u64, all: u64) {
        if let Some(bar) = &self.bar {
            if self.last_line.is_none() {
                let style = ProgressStyle::with_template(
                    "{wide_bar} {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left  {msg}",
                );
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                // What was there already says nothing about the network.
                bar.set_length(all);
                bar.set_position(done);
                bar.reset_eta();
                self.last_line = Some(Instant::now());
            }
            bar.set_length(all);
            bar.set_position(done);
            bar.set_message(file.to_string());
        } else if !self.quiet && self.last_line.is_none_or(|at| at.elapsed() >= BYTES_EVERY) {
            self.last_line = Some(Instant::now());
            let percent = if all == 0 { 100 } else { (done as u128 * 100 / all as u128) as u64 };
            self.line(&format!(
                "{percent:>3} %  {} of {}  {file}",
                units::bytes(done),
                units::bytes(all)
            ));
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Memory that this process holds now, and the most it held, in bytes; where the system tells.
pub fn resident() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = |key: &str| {
        let kib = status.lines().find_map(|l| l.strip_prefix(key))?.trim().strip_suffix("kB")?;
        Some(kib.trim().parse::<u64>().ok()? * 1024)
    };
    Some((line("VmRSS:")?, line("VmHWM:")?))
}

fn memory_now() -> String {
    resident().map_or(String::new(), |(now, peak)| {
        format!(", memory {} (peak {})", units::bytes(now), units::bytes(peak))
    })
}
