//! Nodes that make masks, and what uses them: inpainting, margins, and control images.

use axum::body::Bytes;

use super::mask_change::MaskChange;
use super::picture::{MAX_CHANGES, Picture};
use super::place::Place;
use super::reader::Reader;
use super::{Latent, Output, UNIT};
use crate::pipeline::images::{Filter, MaskMarks, stretched};
use crate::pipeline::request::{Margins, Mask};
use crate::server::api::comfy::finish::Finish;
use crate::server::draft::{parse_image, size_of};
use crate::server::fault::Fault;
use crate::server::masks::{DraftMask, decoding, read_mask, scaled};

/// The most pixels by which a mask grows or shrinks.
const MAX_GROWTH: i64 = 1024;
/// The seam of margins, in pixels: what the node has by default.
const FEATHERING: u64 = 40;

/// The most products that the blurs of one mask need: a few seconds of one core.
const MAX_PRODUCTS: u64 = 8_000_000_000;

/// What is repainted.
#[derive(Debug, Clone, PartialEq)]
pub enum GraphMask {
    /// A part of an image.
    Marked { bytes: Bytes, marks: MaskMarks, changes: Vec<MaskChange> },
    /// What was added on the sides of an image.
    Margins(Margins),
}

impl GraphMask {
    /// The pixels of an image that `marks` says.
    pub fn new(bytes: Bytes, marks: MaskMarks) -> GraphMask {
        GraphMask::Marked { bytes, marks, changes: Vec::new() }
    }

    /// A mask of one value: 0 is black, 1 is white.
    ///
    /// # Errors
    /// If it has no pixels.
    pub fn plain(size: (u32, u32), value: f32) -> Result<GraphMask, Fault> {
        let gray = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        let picture = Picture::plain(size, [gray; 3])?;
        Ok(GraphMask::new(picture.bytes, MaskMarks::Channel(0)))
    }

    /// The mask after a change.
    ///
    /// # Errors
    /// At `node`, if that cannot be done.
    pub(super) fn changed(self, change: MaskChange, node: &Place) -> Result<GraphMask, Fault> {
        match self {
            GraphMask::Marked { bytes, marks, mut changes } => {
                if changes.len() >= MAX_CHANGES {
                    return Err(node.unsupported("too many nodes change this mask"));
                }
                changes.push(change);
                Ok(GraphMask::Marked { bytes, marks, changes })
            }
            GraphMask::Margins(_) => Err(node.unsupported("it changes the mask of margins")),
        }
    }

    /// The number of its changes.
    pub fn change_count(&self) -> usize {
        match self {
            GraphMask::Marked { changes, .. } => changes.len(),
            GraphMask::Margins(_) => 0,
        }
    }

    /// Its pixels.
    ///
    /// # Errors
    /// For a file that cannot be read, for the mask of margins, for blurs that take too long, and
    /// 503 if many are being read.
    pub fn pixels(&self) -> Result<Mask, Fault> {
        match self {
            GraphMask::Marked { bytes, marks, changes } => {
                let (width, height) = size_of(bytes, "mask")?;
                let pixels = u64::from(width) * u64::from(height);
                let products = changes.iter().map(|change| change.products(pixels));
                if products.fold(0, u64::saturating_add) > MAX_PRODUCTS {
                    let message = "the mask is blurred over too many pixels: blur it less, or \
                                   use a smaller mask";
                    return Err(Fault::invalid("mask", message));
                }
                let apply = |mask: &mut Mask| changes.iter().for_each(|change| change.apply(mask));
                read_mask("mask", bytes, *marks, apply)
            }
            GraphMask::Margins(_) => {
                Err(Fault::invalid("mask", "the mask of margins has no pixels of its own"))
            }
        }
    }
}

/// The mask of `picture`; `None` if only its margins are painted.
pub(super) fn read(
    mask: &GraphMask,
    picture: &Picture,
    node: &Place,
) -> Result<Option<DraftMask>, Fault> {
    match mask {
        GraphMask::Margins(margins) if picture.margins == Some(*margins) => return Ok(None),
        GraphMask::Margins(_) => {
            return Err(node.unsupported("its mask is that of the margins of another image"));
        }
        GraphMask::Marked { .. } if picture.margins.is_some() => {
            return Err(node.unsupported("an image with margins is painted with their mask only"));
        }
        GraphMask::Marked { .. } => {}
    }
    let size = (picture.size.0 as usize, picture.size.1 as usize);
    let read = mask.pixels().and_then(|mask| DraftMask::of(&of_size(mask, size)?));
    read.map(Some).map_err(|fault| node.at(fault))
}

/// `mask` with so many columns and rows. One of another shape is stretched, as ComfyUI does.
fn of_size(mask: Mask, (width, height): (usize, usize)) -> Result<Mask, Fault> {
    if (mask.width, mask.height) == (width, height) {
        return Ok(mask);
    }
    let _alone = decoding()?;
    Ok(scaled(mask, |image| stretched(image, width, height, Filter::Bilinear)))
}

impl Reader<'_> {
    /// Says once that something is drawn otherwise than the graph says.
    pub(super) fn note(&mut self, text: &str) {
        if self.notes.iter().all(|note| note != text) {
            self.notes.push(text.into());
        }
    }

    pub(super) fn mask(&mut self, node: &Place, input: &str) -> Result<GraphMask, Fault> {
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
                return Ok(GraphMask::new(self.file(node, &picture)?, marks));
            }
            "InvertMask" => MaskChange::Invert,
            "CropMask" => {
                let (x, y) = (self.count(node, "x")?, self.count(node, "y")?);
                let (width, height) = (self.count(node, "width")?, self.count(node, "height")?);
                MaskChange::Crop { x, y, width, height }
            }
            "GrowMask" => {
                let limits = -MAX_GROWTH..=MAX_GROWTH;
                if self.value(node, "tapered_corners")? == true {
                    self.note("the corners of a grown mask are square");
                }
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
        let mut picture = self.picture(node)?;
        if picture.margins.is_some() || picture.is_edges {
            return Err(node.unsupported("it pads an image that was padded, or edges"));
        }
        let mut side = |name: &str| self.side(node, name).map(|side| side as usize);
        let (left, top) = (side("left")?, side("top")?);
        let margins = Margins { left, top, right: side("right")?, bottom: side("bottom")? };
        let has_feathering = node.inputs.get("feathering").is_some();
        if has_feathering && self.whole(node, "feathering")? != FEATHERING {
            self.note(&format!("the seam of margins is {FEATHERING} pixels wide"));
        }
        picture.margins = Some(margins);
        Ok((picture, margins))
    }

    /// The edges of an image: the model's own code finds them.
    pub(super) fn edges(&mut self, node: &Place) -> Result<Picture, Fault> {
        let mut picture = self.picture(node)?;
        picture.is_edges = true;
        self.note("edges are found with the thresholds that the model was trained with");
        Ok(picture)
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
            // The node grows it by that many pixels in all, with the pixel itself if it is odd.
            mask => mask.changed(MaskChange::Grow(growth / 2), node)?,
        };
        self.encoded(node, mask)
    }

    fn encoded(&mut self, node: &Place, mask: GraphMask) -> Result<Latent, Fault> {
        match self.link(node, "pixels")? {
            Output::Picture(picture) if !picture.is_edges => {
                Ok(Latent::Encoded { picture, mask: Some(mask), count: 1 })
            }
            Output::Picture(_) | Output::Images(_) => {
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
        let is_fill = node.class != "InstructPixToPixConditioning";
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
            Output::Picture(picture) if picture.margins.is_none() && !picture.is_filled => {
                Ok(picture)
            }
            Output::Picture(_) | Output::Images(_) => {
                Err(node.unsupported("its image is drawn, or has margins or a filling"))
            }
            _ => Err(node.wrong_type("pixels", "IMAGE")),
        }
    }

    /// `ImageCompositeMasked`: one image over another, or a drawn image put back by its mask, which
    /// comes with the other pixels unchanged.
    pub(super) fn composite(&mut self, node: &Place) -> Result<Output, Fault> {
        let at = (self.side(node, "x")?, self.side(node, "y")?);
        match self.link(node, "source")? {
            Output::Images(drawn) => {
                if at != (0, 0) || !drawn.finish.is_empty() {
                    return Err(node.unsupported("it moves the drawn image, or puts back a part"));
                }
                let Latent::Encoded { picture, mask: Some(_), .. } = &drawn.drawing.latent else {
                    let why = "it takes an image that was not drawn with a mask";
                    return Err(node.unsupported(why));
                };
                let Output::Picture(below) = self.link(node, "destination")? else {
                    return Err(node.unsupported("it puts an image over a drawn one"));
                };
                if !below.shows_same(picture) {
                    let why = "it puts a drawn image over another image than it was drawn over";
                    return Err(node.unsupported(why));
                }
                if below.size != picture.size {
                    self.note("the result has the size of the image that is repainted");
                }
                Ok(Output::Images(drawn))
            }
            Output::Picture(source) => {
                let Output::Picture(picture) = self.link(node, "destination")? else {
                    return Err(node.unsupported("it puts an image over a drawn one"));
                };
                let has_mask = node.inputs.get("mask").is_some_and(|mask| !mask.is_null());
                let mask = if has_mask { Some(self.mask(node, "mask")?) } else { None };
                let is_plain = |picture: &Picture| {
                    picture.margins.is_none() && !picture.is_edges && !picture.is_filled
                };
                if source.is_covered() || !is_plain(&source) || !is_plain(&picture) {
                    return Err(node.unsupported("an image of one file covers another one here"));
                }
                if picture.is_covered() {
                    return Err(node.unsupported("only one image covers another one here"));
                }
                let source = match self.value(node, "resize_source")? == true {
                    true => source.stretched(picture.size, Filter::Lanczos),
                    false => source,
                };
                self.changed(node, picture.covered(source, mask, at)).map(Output::Picture)
            }
            _ => Err(node.wrong_type("source", "IMAGE")),
        }
    }

    /// `ETN_ApplyMaskToImage`: what is black in the mask becomes transparent.
    pub(super) fn cut_out(&mut self, node: &Place) -> Result<Output, Fault> {
        let Output::Images(drawn) = self.link(node, "image")? else {
            return Err(node.unsupported("its image is not drawn by a sampler"));
        };
        let mask = self.mask(node, "mask")?;
        self.work(node)?;
        let mask = mask.pixels().map_err(|fault| node.at(fault))?;
        if (mask.width as u32, mask.height as u32) != drawn.size {
            let (width, height) = drawn.size;
            let why = format!(
                "its mask has {}x{} pixels, but its image has {width}x{height}",
                mask.width, mask.height
            );
            return Err(node.unsupported(&why));
        }
        let png = DraftMask::of(&mask)?.png;
        self.finished(node, drawn, Finish::Alpha(png))
    }
}

impl super::Drawing {
    pub(super) fn is_masked(&self) -> bool {
        matches!(self.latent, Latent::Encoded { mask: Some(_), .. })
    }
}
