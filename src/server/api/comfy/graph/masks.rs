//! Nodes that make masks, and what uses them: inpainting, margins, and control images.

use axum::body::Bytes;

use super::place::Place;
use super::reader::Reader;
use super::scale;
use super::{GraphMask, Latent, MaskChange, Output, Picture, UNIT};
use crate::pipeline::images::MaskMarks;
use crate::pipeline::request::{Margins, Mask};
use crate::server::draft::parse_image;
use crate::server::fault::Fault;
use crate::server::masks::{DraftMask, invert};

/// The most pixels by which a mask grows or shrinks.
const MAX_GROWTH: i64 = 1024;
/// The seam of margins, in pixels: what the node has by default.
const FEATHERING: u64 = 40;

impl GraphMask {
    /// The pixels of an image that `marks` says.
    pub(super) fn new(bytes: Bytes, marks: MaskMarks) -> GraphMask {
        GraphMask::Marked { bytes, marks, changes: Vec::new() }
    }

    fn changed(self, change: MaskChange, node: &Place) -> Result<GraphMask, Fault> {
        match self {
            GraphMask::Marked { bytes, marks, mut changes } => {
                changes.push(change);
                Ok(GraphMask::Marked { bytes, marks, changes })
            }
            GraphMask::Margins(_) => Err(node.unsupported("it changes the mask of margins")),
        }
    }
}

/// The mask of `picture`; `None` if only its margins are painted.
pub(super) fn read(
    mask: &GraphMask,
    picture: &Picture,
    node: &Place,
) -> Result<Option<DraftMask>, Fault> {
    let (bytes, marks, changes) = match mask {
        GraphMask::Margins(margins) if picture.margins == Some(*margins) => return Ok(None),
        GraphMask::Margins(_) => {
            return Err(node.unsupported("its mask is that of the margins of another image"));
        }
        GraphMask::Marked { .. } if picture.margins.is_some() => {
            return Err(node.unsupported("an image with margins is painted with their mask only"));
        }
        GraphMask::Marked { bytes, marks, changes } => (bytes, *marks, changes),
    };
    let apply = |mask: &mut Mask| changes.iter().for_each(|change| change.apply(mask));
    let read = DraftMask::read("mask", bytes, marks, apply);
    let size = (picture.size.0 as usize, picture.size.1 as usize);
    let read = read.and_then(|mask| mask.fitted(size, |_| ()));
    read.map(Some).map_err(|fault| node.at(fault))
}

impl MaskChange {
    fn apply(self, mask: &mut Mask) {
        match self {
            MaskChange::Invert => invert(mask),
            MaskChange::Grow(by) => {
                let shrinks = by < 0;
                if shrinks {
                    invert(mask);
                }
                grow(mask, by.unsigned_abs() as usize);
                if shrinks {
                    invert(mask);
                }
            }
            MaskChange::Threshold(part) => {
                let is_above = |v: u8| f32::from(v) / 255.0 > part;
                mask.values.iter_mut().for_each(|v| *v = 255 * u8::from(is_above(*v)));
            }
        }
    }
}

/// The largest value within `radius` rows and columns of every pixel.
fn grow(mask: &mut Mask, radius: usize) {
    let Mask { width, height, values } = mask;
    let (w, h) = (*width, *height);
    let mut line = Vec::new();
    for row in values.chunks_exact_mut(w) {
        largest(row, radius, &mut line);
        row.copy_from_slice(&line);
    }
    let mut column = vec![0; h];
    for x in 0..w {
        (0..h).for_each(|y| column[y] = values[y * w + x]);
        largest(&column, radius, &mut line);
        (0..h).for_each(|y| values[y * w + x] = line[y]);
    }
}

/// The largest value within `radius` of every place. The queue holds places of decreasing values.
fn largest(values: &[u8], radius: usize, out: &mut Vec<u8>) {
    out.clear();
    let mut queue = std::collections::VecDeque::new();
    let mut next = 0;
    for at in 0..values.len() {
        while next < values.len() && next <= at + radius {
            while queue.back().is_some_and(|&last: &usize| values[last] <= values[next]) {
                queue.pop_back();
            }
            queue.push_back(next);
            next += 1;
        }
        while queue.front().is_some_and(|&first| first + radius < at) {
            queue.pop_front();
        }
        out.push(queue.front().map_or(0, |&first| values[first]));
    }
}

impl Reader<'_> {
    /// Says once that something is drawn otherwise than the graph says.
    pub(super) fn note(&mut self, text: &str) {
        if self.notes.iter().all(|note| note != text) {
            self.notes.push(text.into());
        }
    }

    fn mask(&mut self, node: &Place, input: &str) -> Result<GraphMask, Fault> {
        match self.link(node, input)? {
            Output::Mask(mask) => Ok(mask),
            _ => Err(node.wrong_type(input, "MASK")),
        }
    }

    /// A node whose output is a mask.
    pub(super) fn masked(&mut self, node: &Place) -> Result<GraphMask, Fault> {
        let change = match node.class {
            "LoadImageMask" => {
                let marks = self.channel(node)?;
                return Ok(GraphMask::new(self.load(node)?.bytes, marks));
            }
            "ETN_LoadMaskBase64" => {
                let text = self.text(node, "mask")?;
                let bytes = parse_image("mask", &text);
                let bytes = bytes.map_err(|fault| node.invalid("mask", &fault.message))?;
                return Ok(GraphMask::new(bytes, MaskMarks::Channel(0)));
            }
            "ImageToMask" => {
                let marks = self.channel(node)?;
                let picture = self.picture(node)?;
                let file = scale::file_of(&picture).map_err(|fault| node.at(fault))?;
                return Ok(GraphMask::new(file, marks));
            }
            "InvertMask" => MaskChange::Invert,
            "GrowMask" => {
                let limits = -MAX_GROWTH..=MAX_GROWTH;
                let by = self.value(node, "expand")?.as_i64().filter(|by| limits.contains(by));
                MaskChange::Grow(by.ok_or_else(|| node.invalid("expand", "a small number"))?)
            }
            _ => MaskChange::Threshold(self.real(node, "value")?),
        };
        self.mask(node, "mask")?.changed(change, node)
    }

    fn channel(&mut self, node: &Place) -> Result<MaskMarks, Fault> {
        match self.text(node, "channel")?.as_str() {
            "alpha" => Ok(MaskMarks::Transparent),
            "red" => Ok(MaskMarks::Channel(0)),
            "green" => Ok(MaskMarks::Channel(1)),
            "blue" => Ok(MaskMarks::Channel(2)),
            _ => Err(node.invalid("channel", "alpha, red, green or blue")),
        }
    }

    /// An image with margins.
    pub(super) fn padded(&mut self, node: &Place) -> Result<(Picture, Margins), Fault> {
        let picture = self.picture(node)?;
        if picture.margins.is_some() || picture.is_edges {
            return Err(node.unsupported("it pads an image that was padded, or edges"));
        }
        let mut side = |name: &str| self.count(node, name);
        let (left, top) = (side("left")?, side("top")?);
        let margins = Margins { left, top, right: side("right")?, bottom: side("bottom")? };
        let has_feathering = node.inputs.get("feathering").is_some();
        if has_feathering && self.whole(node, "feathering")? != FEATHERING {
            self.note(&format!("the seam of margins is {FEATHERING} pixels wide"));
        }
        Ok((Picture { margins: Some(margins), ..picture }, margins))
    }

    /// The edges of an image: the model's own code finds them.
    pub(super) fn edges(&mut self, node: &Place) -> Result<Picture, Fault> {
        let picture = self.picture(node)?;
        self.note("edges are found with the thresholds that the model was trained with");
        Ok(Picture { is_edges: true, ..picture })
    }

    /// A latent of which a part is repainted.
    pub(super) fn inpainted(&mut self, node: &Place) -> Result<Latent, Fault> {
        let mask = self.mask(node, "mask")?;
        if node.class == "SetLatentNoiseMask" {
            return match self.latent(node, "samples")? {
                Latent::Encoded { picture, count, .. } => {
                    Ok(Latent::Encoded { picture, mask: Some(mask), count })
                }
                _ => Err(node.unsupported("only a part of an image can be repainted")),
            };
        }
        let has_growth = node.inputs.get("grow_mask_by").is_some();
        let growth = if has_growth { self.whole(node, "grow_mask_by")? as i64 } else { 6 };
        if growth > MAX_GROWTH {
            return Err(node.invalid("grow_mask_by", "a small number"));
        }
        self.note("what is repainted is drawn over the image itself, not over gray");
        let mask = match mask {
            GraphMask::Margins(_) => mask,
            // The node grows it by that many pixels in all.
            mask => mask.changed(MaskChange::Grow((growth + 1) / 2), node)?,
        };
        self.encoded(node, mask)
    }

    fn encoded(&mut self, node: &Place, mask: GraphMask) -> Result<Latent, Fault> {
        match self.link(node, "pixels")? {
            Output::Picture(picture) if !picture.is_edges => {
                Ok(Latent::Encoded { picture, mask: Some(mask), count: 1 })
            }
            Output::Picture(_) | Output::Images { .. } => {
                Err(node.unsupported("only a part of an uploaded image can be repainted"))
            }
            _ => Err(node.wrong_type("pixels", "IMAGE")),
        }
    }

    /// The outputs of nodes that give the model an image next to the prompt.
    pub(super) fn image_conditioning(
        &mut self,
        node: &Place,
        slot: usize,
    ) -> Result<Output, Fault> {
        let is_fill = node.class == "InpaintModelConditioning";
        if slot < 2 {
            let input = if slot == 0 { "positive" } else { "negative" };
            let mut conditioning = self.conditioning(node, input)?;
            if !is_fill {
                conditioning.control = Some(self.pixels(node)?);
            }
            return Ok(Output::Conditioning(conditioning));
        }
        if is_fill {
            if node.inputs["noise_mask"] == false {
                self.note("pixels outside of the mask are kept");
            }
            let mask = self.mask(node, "mask")?;
            return self.encoded(node, mask).map(Output::Latent);
        }
        let (width, height) = self.pixels(node)?.size;
        let side = |pixels: u32| (pixels / UNIT * UNIT).max(UNIT) as usize;
        let (width, height) = (side(width), side(height));
        Ok(Output::Latent(Latent::Empty { width, height, count: 1 }))
    }

    fn pixels(&mut self, node: &Place) -> Result<Picture, Fault> {
        match self.link(node, "pixels")? {
            Output::Picture(picture) if picture.margins.is_none() => Ok(picture),
            Output::Picture(_) | Output::Images { .. } => {
                Err(node.unsupported("its image is drawn or has margins"))
            }
            _ => Err(node.wrong_type("pixels", "IMAGE")),
        }
    }

    /// Nodes that put a drawn image back by its mask: it comes with the other pixels unchanged.
    pub(super) fn put_back(&mut self, node: &Place) -> Result<Output, Fault> {
        let is_composite = node.class == "ImageCompositeMasked";
        let input = if is_composite { "source" } else { "image" };
        if is_composite && (self.count(node, "x")?, self.count(node, "y")?) != (0, 0) {
            return Err(node.unsupported("it moves the drawn image"));
        }
        match self.link(node, input)? {
            Output::Images { drawing, decode } if drawing.is_masked() => {
                Ok(Output::Images { drawing, decode })
            }
            Output::Images { .. } => {
                Err(node.unsupported("it takes an image that was not drawn with a mask"))
            }
            Output::Picture(_) => Err(node.unsupported("its image is not drawn by a sampler")),
            _ => Err(node.wrong_type(input, "IMAGE")),
        }
    }
}

impl super::Drawing {
    fn is_masked(&self) -> bool {
        matches!(self.latent, Latent::Encoded { mask: Some(_), .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_grow_and_shrink_by_whole_pixels() {
        let mut mask = Mask { width: 7, height: 5, values: vec![0; 35] };
        mask.values[2 * 7 + 3] = 200;
        MaskChange::Grow(1).apply(&mut mask);
        let white = |mask: &Mask| mask.values.iter().filter(|v| **v == 200).count();
        assert_eq!((white(&mask), mask.values[7 + 2], mask.values[7 + 1]), (9, 200, 0));
        MaskChange::Grow(-1).apply(&mut mask);
        assert_eq!(white(&mask), 1);
        MaskChange::Threshold(0.9).apply(&mut mask);
        assert_eq!(white(&mask), 0);
        MaskChange::Invert.apply(&mut mask);
        assert!(mask.values.iter().all(|v| *v == 255));
        // Any radius is as quick as one.
        let mut wide = Mask { width: 3, height: 2, values: vec![0, 0, 9, 0, 0, 0] };
        grow(&mut wide, 1000);
        assert_eq!(wide.values, [9; 6]);
    }
}
