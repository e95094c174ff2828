//! The transformer of any family, as the phases of a generation see it.

use crate::dtype::DType;
use crate::model::SequenceShape;
use crate::model::flux1::DenoiseShape;
use crate::model::flux1::control::Control;
use crate::model::{Flux2Config, FluxConfig, flux1, flux2};
use crate::op::Program;
use crate::pipeline::controlnets::Controlling;
use crate::pipeline::model::Network;
use crate::weights::ComponentWeights;

/// A transformer and what it works on.
#[derive(Clone)]
pub enum Transformer<'a> {
    /// FLUX.1's.
    Flux1 {
        /// Sizes and weights.
        network: &'a Network<FluxConfig>,
        /// Images, prompts, tokens and references.
        shape: SequenceShape,
        /// Its ControlNets.
        controls: &'a [Controlling],
    },
    /// FLUX.2's.
    Flux2 {
        /// Sizes and weights.
        network: &'a Network<Flux2Config>,
        /// Images, prompts, tokens and references.
        shape: SequenceShape,
    },
}

impl<'a> Transformer<'a> {
    /// The weights.
    pub fn weights(&self) -> &'a ComponentWeights {
        match self {
            Transformer::Flux1 { network, .. } => &network.weights,
            Transformer::Flux2 { network, .. } => &network.weights,
        }
    }

    /// Images, prompts, text tokens, and the grid of image tokens.
    pub fn shape(&self) -> &DenoiseShape {
        match self {
            Transformer::Flux1 { shape, .. } | Transformer::Flux2 { shape, .. } => &shape.image,
        }
    }

    /// Channels of a latent token.
    pub fn channels(&self) -> usize {
        match self {
            Transformer::Flux1 { network, .. } => network.config.out_channels,
            Transformer::Flux2 { network, .. } => network.config.out_channels,
        }
    }

    /// Rows of the modulation of one step: FLUX.1's depends on the prompt.
    pub fn modulation_rows(&self) -> usize {
        match self {
            Transformer::Flux1 { shape, .. } => shape.image.prompts(),
            Transformer::Flux2 { .. } => 1,
        }
    }

    /// Columns of the modulation.
    pub fn modulation_cols(&self) -> usize {
        match self {
            Transformer::Flux1 { network, .. } => network.config.modulation_cols(),
            Transformer::Flux2 { network, .. } => network.config.modulation_cols(),
        }
    }

    /// The program that computes `rows` rows of the modulation.
    pub fn modulate(&self, rows: usize, activation: DType) -> Program {
        match self {
            Transformer::Flux1 { network, .. } => {
                flux1::modulate(&network.config, rows, activation)
            }
            Transformer::Flux2 { network, .. } => {
                flux2::modulate(&network.config, rows, activation)
            }
        }
    }

    /// Whether keys and values of references are computed before the first step, with a row of the
    /// modulation of their own ([`flux2::reference_keys`]).
    pub fn keeps_references(&self) -> bool {
        match self {
            Transformer::Flux1 { .. } => false,
            Transformer::Flux2 { network, shape } => {
                network.config.keeps_references && !shape.references.is_empty()
            }
        }
    }

    /// The program that computes them, with its rotations; `None` if there is none.
    pub fn reference_keys(&self, activation: DType) -> Option<(Program, Vec<f32>)> {
        match self {
            Transformer::Flux2 { network, shape } if self.keeps_references() => {
                let config = &network.config;
                let program = flux2::reference_keys(config, shape, activation);
                Some((program, flux2::reference_rope(config, shape)))
            }
            _ => None,
        }
    }

    /// Elements of the keys and values of references.
    pub fn reference_elements(&self) -> usize {
        match self {
            Transformer::Flux2 { network, shape } if self.keeps_references() => {
                let config = &network.config;
                shape.reference_tokens() * 2 * config.hidden * config.blocks()
            }
            _ => 0,
        }
    }

    /// The program of one step.
    pub fn denoise(&self, activation: DType) -> Program {
        match self {
            Transformer::Flux1 { network, shape, controls } => {
                let controls = controls.iter().map(|c| Control { config: &c.net.network.config });
                let controls: Vec<Control<'_>> = controls.collect();
                flux1::denoise_with(&network.config, shape, &controls, activation)
            }
            Transformer::Flux2 { network, shape } => {
                flux2::denoise(&network.config, shape, activation)
            }
        }
    }

    /// Its ControlNets, in the order of their numbers.
    pub fn controls(&self) -> &'a [Controlling] {
        match self {
            Transformer::Flux1 { controls, .. } => controls,
            Transformer::Flux2 { .. } => &[],
        }
    }

    /// The rotations of all tokens.
    pub fn rope(&self) -> Vec<f32> {
        match self {
            Transformer::Flux1 { network, shape, .. } => flux1::rope(&network.config, shape),
            Transformer::Flux2 { network, shape } => flux2::rope(&network.config, shape),
        }
    }
}
