//! Nodes that let ControlNets act on what is drawn.

use super::place::Place;
use super::reader::Reader;
use super::{Control, Output};
use crate::pipeline::request::ControlNetChoice;
use crate::server::controlnets::mode_of;
use crate::server::fault::Fault;

impl Reader<'_> {
    /// A loaded ControlNet, with the kind of image that it is for.
    pub(super) fn controlnet(&mut self, node: &Place) -> Result<ControlNetChoice, Fault> {
        if node.class == "ControlNetLoader" {
            return Ok(ControlNetChoice::new(self.text(node, "control_net_name")?, 1.0));
        }
        let mut choice = self.linked_controlnet(node)?;
        let text = self.text(node, "type")?;
        choice.mode = mode_of("type", &text).map_err(|_| {
            node.unsupported(
                "ControlNets for FLUX.1 have no such mode: use canny, tile, depth or openpose",
            )
        })?;
        Ok(choice)
    }

    fn linked_controlnet(&mut self, node: &Place) -> Result<ControlNetChoice, Fault> {
        match self.link(node, "control_net")? {
            Output::ControlNet(choice) => Ok(choice),
            _ => Err(node.wrong_type("control_net", "CONTROL_NET")),
        }
    }

    /// A prompt on which a ControlNet acts. The nodes that have two outputs return the negative
    /// prompt in the second.
    pub(super) fn controlled(&mut self, node: &Place, slot: usize) -> Result<Output, Fault> {
        let input = match (node.class, slot) {
            ("ControlNetApply", _) => "conditioning",
            (_, 0) => "positive",
            _ => "negative",
        };
        let mut conditioning = self.conditioning(node, input)?;
        let mut choice = self.linked_controlnet(node)?;
        choice.strength = self.real(node, "strength")?;
        if node.class != "ControlNetApply" {
            let (start, end) = (self.real(node, "start_percent")?, self.real(node, "end_percent")?);
            choice = choice.steps(start, end);
            if (start, end) != (0.0, 1.0) {
                self.note("a ControlNet acts in the whole steps between its start and its end");
            }
        }
        let mut picture = self.picture(node)?;
        if picture.margins.is_some() {
            return Err(node.unsupported("its image has margins: scale the image itself"));
        }
        if picture.is_filled {
            return Err(node.unsupported("its image has a filling, which is left out here"));
        }
        choice.edges = std::mem::take(&mut picture.is_edges);
        if node.class == "ControlNetInpaintingAliMamaApply" {
            // It reads the mask of the sampler's latent.
            conditioning.control_masks.push(self.mask(node, "mask")?);
        }
        conditioning.controlnets.push(Control {
            choice,
            picture,
            node: format!("{}#{}", node.class, node.id),
        });
        Ok(Output::Conditioning(conditioning))
    }
}
