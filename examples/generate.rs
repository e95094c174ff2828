//! The smallest program: one image from a prompt, with the embedded model, on the best device.
//!
//! `cargo run --release --example generate`

use flux_fast::{Device, Engine, Options, Request};

fn main() -> flux_fast::Result<()> {
    let options = Options::default().device(Device::Auto).vram("8G".parse()?);
    let mut engine = Engine::open(options)?;
    let picture = engine.generate(&Request::new("a fox").seed(7))?;
    for path in picture.save("fox.png")? {
        println!("{}", path.display());
    }
    Ok(())
}
