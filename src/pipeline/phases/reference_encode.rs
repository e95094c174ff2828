//! Reference images to latents.

use super::image_encode::encode;
use super::{Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, peak_bytes};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::{VaeConfig, vae};
use crate::pipeline::model::{LatentScale, Network};
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::MAX_REFERENCES;

/// Encodes [`Values::reference_images`] to [`Values::references`].
pub struct ReferenceEncode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// How its latents are scaled.
    pub latents: &'a LatentScale,
    /// Rows and columns of the grid of tokens of each image.
    pub grids: Vec<(usize, usize)>,
}

impl GenerationPhase for ReferenceEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let edge = 2 * self.vae.config.factor();
        let record = move |&(height, width): &(usize, usize)| {
            let config = &self.vae.config;
            Variant::whole(vae::encode(config, edge * height, edge * width, activation), 1)
        };
        let draft = |grid: Option<&(usize, usize)>| {
            let variant = grid.map(record);
            Draft {
                phase: Phase::ImageEncode,
                weights: &self.vae.weights,
                optional: true,
                variants: Box::new(variant.into_iter()),
            }
        };
        (0..MAX_REFERENCES).map(|i| draft(self.grids.get(i))).collect()
    }

    /// The images and their latents.
    fn host_bytes(&self) -> u64 {
        let edge = 2 * self.vae.config.factor();
        let tokens: usize = self.grids.iter().map(|(height, width)| height * width).sum();
        (tokens * (3 * edge * edge + 4 * 4 * self.vae.config.latent)) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let peak = peak_bytes(programs);
        let mut progress = Progress::start(Phase::ImageEncode, programs.len(), peak, on)?;
        for (planned, image) in programs.iter().zip(&values.reference_images) {
            let mut tokens = encode(planned, device, image, &mut progress)?;
            self.latents.encoded(&self.vae.config, &mut tokens);
            values.references.append(&mut tokens);
        }
        progress.end()
    }
}
