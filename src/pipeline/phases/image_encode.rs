//! The image that image-to-image starts from, to latents.

use super::bands::{self, Bands};
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, check_finite, peak_bytes,
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

/// Pixels that are converted at a time.
const PIECE: usize = 1 << 16;

/// Encodes [`Values::init`] and mixes it with the noise in [`Values::latents`]: in one piece, or in
/// bands of rows where that does not fit.
pub struct ImageEncode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// How its latents are scaled.
    pub latents: &'a LatentScale,
    /// Images and tokens.
    pub shape: DenoiseShape,
    /// The noise level at which image-to-image starts; `None` for text-to-image.
    pub sigma: Option<f32>,
}

impl ImageEncode<'_> {
    /// Height and width in pixels.
    fn size(&self) -> (usize, usize) {
        let edge = 2 * self.vae.config.factor();
        (edge * self.shape.height, edge * self.shape.width)
    }

    fn half(&self, activation: DType) -> Half {
        let (height, width) = self.size();
        Half::encoder(&self.vae.config, height, width, activation)
    }
}

impl GenerationPhase for ImageEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let (height, width) = self.size();
        let record =
            move || Variant::whole(vae::encode(&self.vae.config, height, width, activation), 1);
        vec![Draft {
            phase: Phase::ImageEncode,
            weights: &self.vae.weights,
            optional: true,
            variants: Box::new(self.sigma.map(|_| record()).into_iter()),
        }]
    }

    fn small_drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let half = self.half(activation);
        let mut drafts = bands::drafts(&half, Phase::ImageEncode, &self.vae.weights, true, 1);
        if self.sigma.is_none() {
            drafts.iter_mut().for_each(|draft| draft.variants = Box::new(std::iter::empty()));
        }
        drafts
    }

    /// The image as it was given and in the size of the request, if it was that already.
    fn host_bytes(&self) -> u64 {
        let (height, width) = self.size();
        if self.sigma.is_some() { (6 * height * width) as u64 } else { 0 }
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let (Some(image), Some(sigma)) = (&values.init, self.sigma) else {
            unreachable!("planned for a request with an image")
        };
        let planned = &programs[0];
        let runs = programs.iter().map(|p| p.plan.runs).sum();
        let mut progress = Progress::start(Phase::ImageEncode, runs, peak_bytes(programs), on)?;
        let mut image = match planned.band {
            Some(_) => {
                let half = self.half(planned.activation());
                encode_in_bands(&half, programs, device, image, &mut progress)?
            }
            None => encode(planned, device, image, &mut progress)?,
        };
        progress.end()?;
        self.latents.encoded(&self.vae.config, &mut image);
        for (noise, x) in values.latents.iter_mut().zip(image.iter().cycle()) {
            *noise = sigma * *noise + (1.0 - sigma) * x;
        }
        Ok(())
    }
}

/// The latents of `image` as packed tokens, not yet scaled, by a program of the whole encoder.
pub(super) fn encode(
    planned: &PlannedProgram,
    device: &mut SharedDevice<'_>,
    image: &Image,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>> {
    let mut session = device.session(planned)?;
    for (first, values) in pieces(image) {
        let bytes = bytemuck::cast_slice(&values);
        session.write_rows(planned.program.input("pixels"), first, bytes)?;
    }
    session.run(false, &mut |_, _| progress.poll())?;
    let tokens = session.read_f32(planned.program.output("latents"))?;
    check_finite(&tokens, &mut session, planned)?;
    progress.advance()?;
    session.finish()?;
    Ok(tokens)
}

/// The same by `programs`, those of all stages of `half`, in bands of rows.
pub(super) fn encode_in_bands(
    half: &Half,
    programs: &[PlannedProgram],
    device: &mut SharedDevice<'_>,
    image: &Image,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>> {
    let mut bands = Bands::new(half);
    let plane = bands.plane(0)?;
    for (first, values) in pieces(image) {
        plane.write(12 * first as u64, bytemuck::cast_slice(&values))?;
    }
    let mut tokens = Vec::new();
    bands.run(programs, device, &mut tokens, progress)?;
    Ok(tokens)
}

/// The pixels of `image` as values from -1 to 1, piece by piece, each with the number of its first
/// pixel.
fn pieces(image: &Image) -> impl Iterator<Item = (usize, Vec<f32>)> {
    let value = |b: &u8| f32::from(*b) / 255.0 * 2.0 - 1.0;
    let pieces = image.rgb.chunks(3 * PIECE).enumerate();
    pieces.map(move |(i, rgb)| (i * PIECE, rgb.iter().map(value).collect()))
}
