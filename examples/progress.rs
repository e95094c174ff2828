//! Events while an image is made, and a generation that is cancelled.
//!
//! `cargo run --release --example progress`

use std::ops::ControlFlow;

use flux_fast::{Engine, Event, Kind, Options, Phase, Request};

fn main() -> flux_fast::Result<()> {
    let mut engine = Engine::open_with(Options::default(), |event| {
        if let Event::Note(text) | Event::Warning(text) = event {
            println!("{text}");
        }
        ControlFlow::Continue(())
    })?;

    let request = Request::new("a lighthouse, 3D style, on a blue background").steps(4).seed(1);
    let images = engine.generate_with(&request, |event| {
        match event {
            Event::PhaseStart { phase, .. } => println!("{}", phase.name()),
            Event::Step { phase: Phase::Denoise, done, steps, seconds } => {
                println!("  step {done} of {steps}, {seconds:.2} s");
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    images.save("lighthouse.png")?;

    // The listener cancels by returning `Break`. The engine can be used again afterwards.
    let cancelled = engine.generate_with(&request, |event| match event {
        Event::Step { phase: Phase::Denoise, done: 2, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    match cancelled {
        Err(error) if error.kind() == Kind::Cancelled => println!("cancelled after two steps"),
        Err(error) => return Err(error),
        Ok(_) => println!("finished before it could be cancelled"),
    }
    Ok(())
}
