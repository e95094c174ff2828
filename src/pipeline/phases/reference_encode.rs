//! Reference images to latents.

use super::bands;
use super::image_encode::{encode, encode_in_bands};
use super::{Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, start_runs};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::vae::Network as Half;
use crate::model::{VaeConfig, vae};
use crate::pipeline::model::{LatentScale, Network};
use crate::pipeline::progress::Listener;
use crate::pipeline::request::MAX_REFERENCES;

/// Encodes [`Values::reference_images`] to [`Values::references`]: each in one piece, or all in
/// bands of rows where one of them does not fit.
pub struct ReferenceEncode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// How its latents are scaled.
    pub latents: &'a LatentScale,
    /// Rows and columns of the grid of tokens of each image.
    pub grids: Vec<(usize, usize)>,
}

impl ReferenceEncode<'_> {
    /// Height and width in pixels of an image of this grid.
    fn size(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let edge = 2 * self.vae.config.factor();
        (edge * height, edge * width)
    }

    fn half(&self, grid: (usize, usize), activation: DType) -> Half {
        let (height, width) = self.size(grid);
        Half::encoder(&self.vae.config, height, width, activation)
    }
}

impl GenerationPhase for ReferenceEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move |&grid: &(usize, usize)| {
            let (height, width) = self.size(grid);
            Variant::whole(vae::encode(&self.vae.config, height, width, activation), 1)
        };
        let draft = |grid: Option<&(usize, usize)>| {
            Draft::optional(Phase::ImageEncode, &self.vae.weights, grid.map(record))
        };
        (0..MAX_REFERENCES).map(|i| draft(self.grids.get(i))).collect()
    }

    fn small_drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let draft = |i: usize| {
            let grid = self.grids.get(i).copied();
            // Every image has the same stages, whatever its size.
            let half = self.half(grid.unwrap_or((1, 1)), activation);
            let weights = &self.vae.weights;
            let mut drafts = bands::drafts(&half, Phase::ImageEncode, weights, true, 1);
            if grid.is_none() {
                drafts.iter_mut().for_each(|d| d.variants = Box::new(std::iter::empty()));
            }
            drafts
        };
        (0..MAX_REFERENCES).flat_map(draft).collect()
    }

    /// The images and their latents, and the work in bands.
    fn host_bytes(&self) -> u64 {
        if self.grids.is_empty() {
            return 0;
        }
        let edge = 2 * self.vae.config.factor();
        let tokens: usize = self.grids.iter().map(|(height, width)| height * width).sum();
        (tokens * (3 * edge * edge + 4 * 4 * self.vae.config.latent)) as u64 + bands::HOST_BYTES
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let mut progress = start_runs(programs, on)?;
        let per_image = programs.len() / self.grids.len();
        let images = values.reference_images.iter().zip(&self.grids);
        for (programs, (image, grid)) in programs.chunks_exact(per_image).zip(images) {
            let planned = &programs[0];
            let mut tokens = match planned.band {
                Some(_) => {
                    let half = self.half(*grid, planned.activation());
                    encode_in_bands(&half, programs, device, image, None, &mut progress)?
                }
                None => encode(planned, device, image, None, &mut progress)?,
            };
            self.latents.encoded(&self.vae.config, &mut tokens);
            values.references.append(&mut tokens);
        }
        progress.end()
    }
}
