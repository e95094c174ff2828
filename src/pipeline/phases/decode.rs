//! Latents to pixels, tile by tile.

use super::tiles::{Canvas, crop_tokens};
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Tiling, Values, Variant, check_finite,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::flux1::DenoiseShape;
use crate::model::{VaeConfig, vae};
use crate::pipeline::model::Network;
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::Image;

/// Makes [`Values::images`] from [`Values::latents`].
pub struct Decode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// Images and tokens.
    pub shape: DenoiseShape,
}

impl GenerationPhase for Decode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move |tiling: Tiling| {
            let (h, w) = tiling.size();
            Variant {
                program: vae::decode(&self.vae.config, h, w, activation),
                runs: self.shape.images * tiling.count(),
                tiling: Some(tiling),
            }
        };
        let tilings = Tiling::candidates(2 * self.shape.height, 2 * self.shape.width);
        vec![Draft {
            phase: Phase::Decode,
            weights: &self.vae.weights,
            optional: false,
            variants: Box::new(tilings.map(record)),
        }]
    }

    /// The plane into which tiles are blended, and the finished images.
    fn host_bytes(&self) -> u64 {
        let edge = 2 * self.vae.config.factor();
        let (height, width) = (edge * self.shape.height, edge * self.shape.width);
        let floats = 8 * height * width + 1024 * (height + width);
        (4 * floats + 3 * self.shape.images * height * width) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let tiling = planned.tiling.as_ref().expect("every variant is tiled");
        let (factor, token) = (self.vae.config.factor(), 4 * self.vae.config.latent);
        let (rows, cols) = (2 * self.shape.height, 2 * self.shape.width);
        let (height, width) = (rows * factor, cols * factor);
        let (tile_rows, tile_cols) = tiling.size();
        let tiles = tiling.count() * self.shape.images;
        let mut progress = Progress::start(Phase::Decode, tiles, planned.plan.peak_bytes(), on)?;
        let mut session = device.session(planned)?;
        let mut done = 0;
        for tokens in values.latents.chunks_exact(values.latents.len() / self.shape.images) {
            let mut canvas = Canvas::new(height, width, 3);
            for (top, left) in tiling.corners() {
                let tile = crop_tokens(tokens, cols, token, (top, left), (tile_rows, tile_cols));
                session.write_f32(planned.program.input("latents"), &tile)?;
                done += 1;
                session.run(done < tiles, &mut |_, _| progress.poll())?;
                let pixels = session.read_f32(planned.program.output("pixels"))?;
                check_finite(&pixels, &mut session, planned)?;
                canvas.add(
                    &pixels,
                    (top * factor, left * factor),
                    (tile_rows * factor, tile_cols * factor),
                    tiling.overlap * factor,
                );
                progress.advance()?;
            }
            let byte = |v: f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
            let rgb = canvas.finish().into_iter().map(byte).collect();
            values.images.push(Image { width, height, rgb });
        }
        session.finish()?;
        progress.end()
    }
}
