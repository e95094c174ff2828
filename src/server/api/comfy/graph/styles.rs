//! Nodes that give the model images whose content and style the result has.

use super::picture::Picture;
use super::place::Place;
use super::reader::Reader;
use super::{Conditioning, Output};
use crate::server::fault::Fault;

impl Reader<'_> {
    /// An image for a style model.
    pub(super) fn seen(&mut self, node: &Place) -> Result<Picture, Fault> {
        if !matches!(self.link(node, "clip_vision")?, Output::ClipVision) {
            return Err(node.wrong_type("clip_vision", "CLIP_VISION"));
        }
        let picture = self.picture(node)?;
        if picture.margins.is_some() || picture.is_edges || picture.is_filled {
            return Err(node.unsupported("it takes an image that was padded or filled, or edges"));
        }
        let (width, height) = picture.size;
        if node.inputs["crop"] == "center" && width != height {
            self.note("the whole image is seen for its style, not only its centre");
        }
        Ok(picture)
    }

    /// A prompt with an image next to it.
    pub(super) fn styled(&mut self, node: &Place) -> Result<Conditioning, Fault> {
        if !matches!(self.link(node, "style_model")?, Output::StyleModel) {
            return Err(node.wrong_type("style_model", "STYLE_MODEL"));
        }
        let mut conditioning = self.conditioning(node, "conditioning")?;
        let has_strength = node.inputs.get("strength").is_some();
        let strength = if has_strength { self.real(node, "strength")? } else { 1.0 };
        let has_type = node.inputs.get("strength_type").is_some();
        if has_type && strength != 1.0 && self.text(node, "strength_type")? != "multiply" {
            return Err(node.unsupported("a strength other than 1 multiplies here"));
        }
        match self.link(node, "clip_vision_output")? {
            Output::Seen(picture) => conditioning.styles.push((picture, strength)),
            _ => return Err(node.wrong_type("clip_vision_output", "CLIP_VISION_OUTPUT")),
        }
        Ok(conditioning)
    }
}
