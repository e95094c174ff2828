//! `bench`: measures how long a request takes, phase by phase.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::json;

use super::args::{BenchArgs, How};
use super::generate::{fill, fit_to_model, one_prompt, open, settings_as_json};
use super::input_images::InputImages;
use super::progress::{self, Progress};
use super::{cancelled, output};
use crate::error::Result;
use crate::event::{Event, Phase};
use crate::pipeline::request::Request;
use crate::units;

/// The prompt if none is given; its content does not change the time.
const PROMPT: &str = "a fox, 3D style, on a blue background";

/// Runs the same request several times, writes no file, and prints the times.
pub fn bench(args: BenchArgs, how: How) -> Result<()> {
    let given = args.words.as_deref().or(args.request.prompt.as_deref());
    let prompt = one_prompt(given, &args.request)?;
    let mut request = Request::new(prompt.unwrap_or_else(|| PROMPT.to_string())).seed(0);
    let mut images = InputImages::open(&args.request, args.engine.ram.size())?;
    fill(&mut request, &args.request, &mut images)?;

    let mut progress = Progress::new(how);
    let begin = Instant::now();
    let mut pipeline = open(&args.engine, &mut progress)?;
    fit_to_model(&mut request, &args.request, &pipeline);
    // Embeddings read from the cache would not be timed.
    pipeline.use_text_cache(false);
    let load = begin.elapsed().as_secs_f64();
    images.decode(&mut request, args.engine.ram.size(), &pipeline)?;
    images.swap(&mut request);
    let mut times = Times::default();
    let mut settings = None;
    for run in 0..=args.runs {
        progress.note(&if run == 0 {
            "warming up".to_string()
        } else {
            format!("run {run} of {}", args.runs)
        });
        let begin = Instant::now();
        let generated = pipeline.generate_with(&request, |event| {
            if run > 0 {
                times.note(&event);
            }
            match event {
                // Drawing on the terminal would slow down a timed run.
                Event::Step { .. } | Event::PhaseStart { .. } if run > 0 => stop_if_asked(),
                event => progress.event(event),
            }
        })?;
        cancelled()?;
        if run > 0 {
            times.total.push(begin.elapsed().as_secs_f64());
        }
        settings = Some(generated.settings);
    }
    progress.finish();

    let peak = progress::resident().map(|(_, peak)| peak);
    let rows = times.rows();
    if how.json {
        let of = |seconds: &[f64]| {
            json!({
                "min": minimum(seconds), "median": median(seconds), "samples": seconds.len(),
            })
        };
        let phases: serde_json::Map<_, _> =
            rows.iter().map(|(name, s)| (name.to_string(), of(s))).collect();
        return output::json(&json!({
            "load_seconds": load,
            "seconds": phases,
            "peak_memory_bytes": peak,
            "settings": settings.as_ref().map(settings_as_json),
        }));
    }
    let mut text = format!("{:<12} {:>10} {:>10} {:>8}\n", "seconds", "min", "median", "samples");
    text += &format!("{:<12} {load:>10.3} {load:>10.3} {:>8}\n", "load", 1);
    for (name, seconds) in &rows {
        text += &format!(
            "{name:<12} {:>10.3} {:>10.3} {:>8}\n",
            minimum(seconds),
            median(seconds),
            seconds.len()
        );
    }
    if let Some(peak) = peak {
        text += &format!("peak memory {}\n", units::bytes(peak));
    }
    output::text(&text)
}

fn stop_if_asked() -> ControlFlow<()> {
    if cancelled().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

#[derive(Default)]
struct Times {
    /// The times of each phase, in the order of the phases.
    phases: Vec<(Phase, Vec<f64>)>,
    steps: Vec<f64>,
    total: Vec<f64>,
}

impl Times {
    fn note(&mut self, event: &Event) {
        match *event {
            Event::Step { phase: Phase::Denoise, seconds, .. } => self.steps.push(seconds),
            Event::PhaseEnd { phase, seconds, .. } => {
                match self.phases.iter_mut().find(|(p, _)| *p == phase) {
                    Some((_, list)) => list.push(seconds),
                    None => self.phases.push((phase, vec![seconds])),
                }
            }
            _ => {}
        }
    }

    fn rows(&self) -> Vec<(&'static str, &[f64])> {
        let phases = self.phases.iter().map(|(phase, list)| (phase.name(), list.as_slice()));
        phases
            .chain([("step", self.steps.as_slice()), ("total", self.total.as_slice())])
            .filter(|r| !r.1.is_empty())
            .collect()
    }
}

fn minimum(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(f64::INFINITY, f64::min)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_sorted_by_phase() {
        let mut times = Times::default();
        for seconds in [3.0, 1.0, 2.0, 10.0] {
            times.note(&Event::Step { phase: Phase::Denoise, done: 1, steps: 4, seconds });
            times.note(&Event::Step { phase: Phase::Decode, done: 1, steps: 4, seconds });
            times.note(&Event::PhaseEnd { phase: Phase::TextEncode, seconds, peak_bytes: 0 });
        }
        let rows = times.rows();
        assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), ["text", "step"]);
        assert_eq!(
            (minimum(rows[1].1), median(rows[1].1), median(&rows[1].1[..3])),
            (1.0, 2.5, 2.0)
        );
    }
}
