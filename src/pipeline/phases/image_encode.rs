//! The image that image-to-image starts from, to latents, tile by tile.

use super::tiles::{Canvas, crop_pixels, pack, unpack};
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

/// Encodes [`Values::init`] and mixes it with the noise in [`Values::latents`].
pub struct ImageEncode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// Images and tokens.
    pub shape: DenoiseShape,
    /// The noise level at which image-to-image starts; `None` for text-to-image.
    pub sigma: Option<f32>,
}

impl GenerationPhase for ImageEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let factor = self.vae.config.factor();
        let record = move |tiling: Tiling| {
            let (h, w) = tiling.size();
            Variant {
                program: vae::encode(&self.vae.config, h * factor, w * factor, activation),
                runs: tiling.count(),
                tiling: Some(tiling),
            }
        };
        let tilings = Tiling::candidates(2 * self.shape.height, 2 * self.shape.width);
        vec![Draft {
            phase: Phase::ImageEncode,
            weights: &self.vae.weights,
            optional: true,
            variants: Box::new(tilings.filter(|_| self.sigma.is_some()).map(record)),
        }]
    }

    /// The image fits in what [`Decode`](super::decode::Decode) needs later.
    fn host_bytes(&self) -> u64 {
        0
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let (Some(tiling), Some(image), Some(sigma)) = (&planned.tiling, &values.init, self.sigma)
        else {
            unreachable!("planned for a request with an image")
        };
        let vae = &self.vae.config;
        let (factor, channels) = (vae.factor(), vae.latent);
        let (rows, cols) = (2 * self.shape.height, 2 * self.shape.width);
        let size = tiling.size();
        let mut progress =
            Progress::start(Phase::ImageEncode, tiling.count(), planned.plan.peak_bytes(), on)?;
        let mut session = device.session(planned)?;
        let mut canvas = Canvas::new(rows, cols, channels);
        for (i, (top, left)) in tiling.corners().enumerate() {
            let corner = (top * factor, left * factor);
            let pixels = crop_pixels(image, corner, (size.0 * factor, size.1 * factor));
            session.write_f32(planned.program.input("pixels"), &pixels)?;
            session.run(i + 1 < tiling.count(), &mut |_, _| progress.poll())?;
            let tokens = session.read_f32(planned.program.output("latents"))?;
            check_finite(&tokens, &mut session, planned)?;
            let latents = unpack(&tokens, size.0, size.1, channels);
            canvas.add(&latents, (top, left), size, tiling.overlap);
            progress.advance()?;
        }
        session.finish()?;
        progress.end()?;
        let latents: Vec<f32> =
            canvas.finish().into_iter().map(|v| (v - vae.shift) * vae.scaling).collect();
        let image = pack(&latents, rows, cols, channels);
        for (noise, x) in values.latents.iter_mut().zip(image.iter().cycle()) {
            *noise = sigma * *noise + (1.0 - sigma) * x;
        }
        Ok(())
    }
}
