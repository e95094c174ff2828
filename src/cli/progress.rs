//! Progress on stderr: a bar on a terminal, plain lines elsewhere, or JSON objects.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::How;
use super::words::Typed;
use super::{events, signals, tell};
use crate::event::{Event, Phase};
use crate::text::one_line;
use crate::units;

/// Minimum time between plain lines, except before the last one of a phase.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Plain lines of transfers, which take hours, come less often.
const BYTES_EVERY: Duration = Duration::from_secs(10);

/// How progress is shown.
enum Style {
    /// Only warnings.
    Quiet,
    /// A bar that is drawn again and again, on a terminal.
    Bar(ProgressBar),
    /// Plain lines, where stderr is not a terminal.
    Lines,
    /// JSON objects.
    Json,
}

/// Shows what happens on stderr.
pub struct Progress {
    style: Style,
    /// The memory of this process says something about the run: it draws itself.
    shows_memory: bool,
    /// The place in the queue that was shown last.
    place: Option<u64>,
    last_line: Option<Instant>,
    /// The times of the finished steps of the current phase.
    times: Vec<f64>,
}

impl Progress {
    pub fn new(how: How) -> Self {
        let style = if how.json_events {
            Style::Json
        } else if how.quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len}  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            Style::Bar(bar)
        } else {
            Style::Lines
        };
        Progress { style, shows_memory: true, place: None, last_line: None, times: Vec::new() }
    }

    /// For a run of another machine.
    #[cfg(feature = "server")]
    pub fn remote(how: How) -> Self {
        Progress { shows_memory: false, ..Progress::new(how) }
    }

    /// Shows that a job waits, with `place` jobs before it.
    #[cfg(feature = "server")]
    pub fn queued(&mut self, place: u64) {
        if self.place.replace(place) == Some(place) {
            return;
        }
        let text = match place {
            0 => "next in the queue".to_string(),
            1 => "1 job before this one".to_string(),
            n => format!("{n} jobs before this one"),
        };
        match &self.style {
            Style::Bar(bar) => {
                bar.reset();
                bar.set_length(1);
                bar.set_prefix("queued");
                bar.set_message(text);
                bar.tick();
            }
            Style::Json => events::print(&json!({"event": "queued", "jobs_before": place})),
            Style::Lines => self.note(&text),
            Style::Quiet => {}
        }
    }

    /// Shows `event`; `Break` once a signal was received.
    pub fn event(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::PhaseStart { .. } => self.times.clear(),
            Event::Step { seconds, .. } => self.times.push(seconds),
            _ => {}
        }
        if let Style::Json = self.style {
            let object = events::of(&event, |phase, left| self.left(phase, left));
            object.iter().for_each(events::print);
        } else {
            self.show(event);
        }
        if signals::received().is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Warning(text) => self.warning(&text.in_words(&Typed)),
            Event::Note(text) => self.note(&text.in_words(&Typed)),
            Event::PhaseStart { phase, steps } => {
                (self.last_line, self.place) = (None, None);
                if let Style::Bar(bar) = &self.style {
                    bar.reset();
                    bar.set_length(steps as u64);
                    bar.set_prefix(phase.name());
                    bar.set_message("");
                }
            }
            Event::Step { phase, done, steps, seconds } => self.step(phase, done, steps, seconds),
            Event::Tick | Event::Preview { .. } => {}
            Event::PhaseEnd { phase, seconds, peak_bytes } => {
                let planned = units::bytes(peak_bytes);
                self.note(&format!(
                    "{:>9} {}, planned {planned}{}",
                    phase.name(),
                    units::seconds(seconds),
                    self.memory_now()
                ));
            }
        }
    }

    /// A line that --quiet leaves out.
    pub fn note(&self, text: &str) {
        match self.style {
            Style::Quiet => {}
            Style::Json => events::print(&json!({"event": "note", "text": text})),
            Style::Bar(_) | Style::Lines => self.line(text),
        }
    }

    /// A warning, which is always shown.
    pub fn warning(&self, text: &str) {
        match self.style {
            Style::Json => events::print(&json!({"event": "warning", "text": text})),
            _ => self.line(&format!("warning: {text}")),
        }
    }

    fn line(&self, text: &str) {
        let text = one_line(text);
        match &self.style {
            Style::Bar(bar) => bar.suspend(|| tell(&format!("{text}\n"))),
            _ => tell(&format!("{text}\n")),
        }
    }

    /// The seconds that `left` more steps of `phase` take; `None` for phases whose steps differ too
    /// much: those of denoising are alike, except that the first one may also load weights.
    fn left(&self, phase: Phase, left: usize) -> Option<f64> {
        let typical = match self.times.as_slice() {
            [_, later @ ..] if !later.is_empty() => later,
            all => all,
        };
        let mean = typical.iter().sum::<f64>() / typical.len().max(1) as f64;
        (phase == Phase::Denoise).then_some(mean * left as f64)
    }

    /// The same as text; empty where it is too short to matter.
    fn left_text(&self, phase: Phase, left: usize) -> String {
        match self.left(phase, left) {
            Some(seconds) if seconds >= 1.0 => format!(", {} left", units::duration(seconds)),
            _ => String::new(),
        }
    }

    fn step(&mut self, phase: Phase, done: usize, steps: usize, seconds: f64) {
        let left = self.left_text(phase, steps.saturating_sub(done));
        if let Style::Bar(bar) = &self.style {
            bar.set_length(steps as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("{}{left}{}", units::seconds(seconds), self.memory_now()));
        } else if let Style::Lines = self.style {
            let due = self.last_line.is_none_or(|at| at.elapsed() >= PLAIN_EVERY);
            if due || done == steps {
                self.last_line = Some(Instant::now());
                self.line(&format!(
                    "{:>9} {done}/{steps}  {}{left}{}",
                    phase.name(),
                    units::seconds(seconds),
                    self.memory_now()
                ));
            }
        }
    }

    fn memory_now(&self) -> String {
        let resident = resident().filter(|_| self.shows_memory);
        resident.map_or(String::new(), |(now, peak)| {
            format!(", memory {} (peak {})", units::bytes(now), units::bytes(peak))
        })
    }

    /// Shows that `done` of `all` bytes have been transferred, and that `file` is current.
    pub fn bytes(&mut self, file: &str, done: u64, all: u64) {
        if let Style::Bar(bar) = &self.style {
            if self.last_line.is_none() {
                let style = ProgressStyle::with_template(
                    "{wide_bar} {decimal_bytes}/{decimal_total_bytes}, \
                     {decimal_bytes_per_sec}, {eta} left  {msg}",
                );
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                // Bytes that were in the cache already say nothing about the speed of the network.
                bar.set_length(all);
                bar.set_position(done);
                bar.reset_eta();
                self.last_line = Some(Instant::now());
            }
            bar.set_length(all);
            bar.set_position(done);
            bar.set_message(one_line(file).into_owned());
            return;
        }
        let every = if let Style::Json = self.style { PLAIN_EVERY } else { BYTES_EVERY };
        let due = self.last_line.is_none_or(|at| at.elapsed() >= every);
        if due || done == all {
            self.last_line = Some(Instant::now());
            if let Style::Json = self.style {
                events::print(&json!({
                    "event": "transfer", "file": file, "done_bytes": done, "total_bytes": all,
                }));
                return;
            }
            let percent = if all == 0 { 100 } else { (done as u128 * 100 / all as u128) as u64 };
            self.note(&format!(
                "{percent:>3} %  {} of {}  {file}",
                units::bytes(done),
                units::bytes(all)
            ));
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        if let Style::Bar(bar) = &self.style {
            bar.finish_and_clear();
        }
    }
}

/// Memory that this process uses now, and the most that it used, in bytes; `None` where the system
/// has no `/proc`.
pub fn resident() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = |key: &str| {
        let kib = status.lines().find_map(|l| l.strip_prefix(key))?.trim().strip_suffix("kB")?;
        Some(kib.trim().parse::<u64>().ok()? * 1024)
    };
    Some((line("VmRSS:")?, line("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_steps_after_the_first() {
        let how = How { json: false, quiet: true, json_events: false };
        let mut progress = Progress::new(how);
        let (phase, steps) = (Phase::Denoise, 10);
        let step = |done, seconds| Event::Step { phase, done, steps, seconds };
        for event in [step(1, 99.0), Event::PhaseStart { phase, steps }, step(1, 6.0)] {
            assert!(progress.event(event).is_continue());
        }
        assert_eq!((progress.left(phase, 9), progress.left(phase, 0)), (Some(54.0), Some(0.0)));
        for event in [step(2, 3.0), step(3, 5.0)] {
            assert!(progress.event(event).is_continue());
        }
        assert_eq!(progress.left(phase, 7), Some(28.0));
        assert_eq!(progress.left_text(phase, 7), ", 28 s left");
        assert_eq!(progress.left_text(phase, 0), "");
        assert_eq!(progress.left(Phase::TextEncode, 7), None);
    }
}
