//! An image without a LoRA and with it at several strengths: `flux-tiny-pixel-lora.safetensors`
//! turns what the embedded model draws into pixel art.
//!
//! `cargo run --release --example lora [LORA]`

use flux_fast::{Engine, Options, Request};

const PIXEL_ART: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora.safetensors");

fn main() -> flux_fast::Result<()> {
    let lora = std::env::args().nth(1).unwrap_or_else(|| PIXEL_ART.to_string());
    let mut engine = Engine::open(Options::default())?;
    let request = Request::new("a fox, 3D style, on a blue background").seed(7);
    engine.generate(&request)?.save("fox-plain.png")?;
    for strength in [0.5, 1.0] {
        let with_lora = request.clone().lora(&lora, strength);
        engine.generate(&with_lora)?.save(format!("fox-lora-{strength}.png"))?;
    }
    Ok(())
}
