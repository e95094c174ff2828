use flux_fast::pipeline::{Pipeline, request::*};
use std::ops::ControlFlow;
fn main() {
    let t = std::time::Instant::now();
    let mut on = |e: flux_fast::event::Event| { if !matches!(e, flux_fast::event::Event::Tick | flux_fast::event::Event::Step{phase: flux_fast::event::Phase::TextEncode,..}| flux_fast::event::Event::Step{phase: flux_fast::event::Phase::Modulate,..}) { eprintln!("{e:?}"); } ControlFlow::Continue(()) };
    let mut opts = RunOptions::default();
    opts.compute = std::env::args().nth(2).unwrap_or_default();
    let mut p = Pipeline::open(&ModelFiles::default(), &opts, &mut on).unwrap();
    eprintln!("open {:?}", t.elapsed());
    let r = Request { prompt: std::env::args().nth(1).unwrap(), seed: Some(3), ..Default::default() };
    println!("{}", p.plan(&r).unwrap());
    let g = p.generate(&r, &mut on).unwrap();
    eprintln!("done {:?}", t.elapsed());
    let pic = &g.pictures[0];
    image::save_buffer("/tmp/w/first.png", &pic.rgb, pic.width as u32, pic.height as u32, image::ColorType::Rgb8).unwrap();
}
