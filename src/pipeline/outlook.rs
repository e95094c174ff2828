//! Whether a published model fits a device, and what must pass to the device in each step if it
//! does not: for `doctor`, without a model file.

use crate::backend::Grain;
use crate::dtype::DType;
use crate::model::SequenceShape;
use crate::model::flux1::DenoiseShape;
use crate::model::{Flux2Config, FluxConfig, flux1, flux2};
use crate::op::Program;
use crate::plan;

/// How the denoiser of a model with FP8 weights fits at 1024x1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// All weights of the denoiser stay on the device, which needs this many bytes.
    Resident(u64),
    /// This many bytes pass to the device in each step.
    Streamed(u64),
    /// At least this many bytes are needed.
    TooSmall(u64),
}

/// A model whose sizes are known without its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishedModel {
    /// FLUX.1 \[dev\].
    Dev,
    /// FLUX.1 \[schnell\].
    Schnell,
    /// FLUX.2 \[klein\] 4B.
    Klein4b,
}

impl PublishedModel {
    /// The program of a step at 1024x1024.
    fn denoise(self, activation: DType) -> Program {
        let shape = |text_tokens| DenoiseShape {
            images: 1,
            cfg: false,
            text_tokens,
            height: 64,
            width: 64,
        };
        match self {
            PublishedModel::Dev => flux1::denoise(&FluxConfig::dev(), &shape(512), activation),
            PublishedModel::Schnell => {
                flux1::denoise(&FluxConfig::schnell(), &shape(256), activation)
            }
            PublishedModel::Klein4b => {
                let shape =
                    SequenceShape { image: shape(512), references: Vec::new(), added_inputs: 0 };
                flux2::denoise(&Flux2Config::klein_4b(), &shape, activation)
            }
        }
    }
}

/// Plans a denoising step of `model` at 1024x1024, with weights of one byte and activations of the
/// type `activation`, under `bytes` of memory.
pub fn outlook(model: PublishedModel, grain: Grain, activation: DType, bytes: u64) -> Outlook {
    let program = model.denoise(activation);
    let weights: Vec<usize> = program.weights.iter().map(|w| w.rows * w.cols).collect();
    let scratch = vec![0; program.steps.len()];
    match plan::phase(&program, 2, &weights, &scratch, grain, bytes) {
        Ok(p) if p.residency.ring_bytes == 0 => Outlook::Resident(p.peak_bytes()),
        Ok(p) => Outlook::Streamed(p.streamed_bytes()),
        Err(_) => Outlook::TooSmall(plan::least_bytes(&program, &weights, &scratch, grain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_stays_on_a_card_of_12_gb_and_is_streamed_to_one_of_2_gb() {
        let grain = Grain { align: 256, chunk: 2 << 30 };
        let of = |model, bytes| outlook(model, grain, DType::BF16, bytes);
        let dev = |bytes| of(PublishedModel::Dev, bytes);
        let klein = of(PublishedModel::Klein4b, 6_000_000_000);
        assert!(matches!(klein, Outlook::Resident(n) if n < 5_000_000_000), "{klein:?}");
        assert!(matches!(dev(11_000_000_000), Outlook::Resident(n) if n < 10_000_000_000));
        let Outlook::Streamed(few) = dev(8_000_000_000) else { panic!("8 GB") };
        let Outlook::Streamed(many) = dev(2_000_000_000) else { panic!("2 GB") };
        assert!(few < many && many < 9_000_000_000, "{few} {many}");
        assert!(matches!(dev(200 << 20), Outlook::TooSmall(n) if n > 200 << 20));
    }
}
