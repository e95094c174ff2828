//! Latents to pixels.

use super::bands::{self, Bands};
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, check_finite, start_runs,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::flux1::DenoiseShape;
use crate::model::vae::Network as Half;
use crate::model::{VaeConfig, vae};
use crate::pipeline::model::{LatentScale, Network};
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::Image;

/// Bytes of pixels that are converted at a time.
const PIECE: usize = 1 << 20;

/// Makes [`Values::images`] from [`Values::latents`]: in one piece, or in bands of rows where that
/// does not fit.
pub struct Decode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// How its latents are scaled.
    pub latents: &'a LatentScale,
    /// Images and tokens.
    pub shape: DenoiseShape,
}

impl Decode<'_> {
    /// Height and width in latent pixels.
    fn size(&self) -> (usize, usize) {
        (2 * self.shape.height, 2 * self.shape.width)
    }

    fn half(&self, activation: DType) -> Half {
        let (height, width) = self.size();
        Half::decoder(&self.vae.config, height, width, activation)
    }
}

impl GenerationPhase for Decode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let (height, width) = self.size();
        let record = move || {
            let program = vae::decode(&self.vae.config, height, width, activation);
            Variant::whole(program, self.shape.images)
        };
        vec![Draft::always(Phase::Decode, &self.vae.weights, record)]
    }

    fn small_drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let half = self.half(activation);
        bands::drafts(&half, Phase::Decode, &self.vae.weights, false, self.shape.images)
    }

    /// The finished images, and pieces of one while it is converted.
    fn host_bytes(&self) -> u64 {
        let edge = 2 * self.vae.config.factor();
        let pixels = edge * self.shape.height * edge * self.shape.width;
        (3 * self.shape.images * pixels + 2 * PIECE) as u64 + bands::HOST_BYTES
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let factor = self.vae.config.factor();
        let (height, width) = (self.size().0 * factor, self.size().1 * factor);
        let mut progress = start_runs(programs, on)?;
        let latents = values.latents.chunks_exact(values.latents.len() / self.shape.images);
        let latents = latents.map(|tokens| self.latents.decoded(tokens));
        let mut image = |rgb| values.images.push(Image { width, height, rgb });
        if programs[0].band.is_some() {
            let half = self.half(programs[0].activation());
            for latents in latents {
                image(self.decode_in_bands(&half, programs, device, &latents, &mut progress)?);
            }
            return progress.end();
        }
        let planned = &programs[0];
        let mut session = device.session(planned)?;
        let pixels = planned.program.output("pixels");
        for (done, latents) in latents.enumerate() {
            session.write_f32(planned.program.input("latents"), &latents)?;
            session.run(done + 1 < self.shape.images, &mut |_, _| progress.poll())?;
            let mut rgb = Vec::with_capacity(3 * pixels.rows);
            let most = PIECE / (pixels.cols * 4);
            for first in (0..pixels.rows).step_by(most) {
                let mut piece = vec![0f32; most.min(pixels.rows - first) * pixels.cols];
                session.read_rows(pixels, first, bytemuck::cast_slice_mut(&mut piece))?;
                check_finite(&piece, &mut session, planned)?;
                rgb.extend(piece.into_iter().map(byte));
            }
            image(rgb);
            progress.advance()?;
        }
        session.finish()?;
        progress.end()
    }
}

impl Decode<'_> {
    fn decode_in_bands(
        &self,
        half: &Half,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        latents: &[f32],
        progress: &mut Progress<'_>,
    ) -> Result<Vec<u8>> {
        let mut bands = Bands::new(half);
        bands.run(programs, device, &mut latents.to_vec(), progress)?;
        let last = half.planes.len() - 1;
        let (plane, bytes) = (bands.plane(last)?, half.planes[last].bytes());
        let mut rgb = Vec::with_capacity(bytes / 4);
        for first in (0..bytes).step_by(PIECE) {
            let mut piece = vec![0f32; PIECE.min(bytes - first) / 4];
            plane.read(first as u64, bytemuck::cast_slice_mut(&mut piece))?;
            rgb.extend(piece.into_iter().map(byte));
        }
        Ok(rgb)
    }
}

/// A value of the network as one of an image.
fn byte(v: f32) -> u8 {
    ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}
