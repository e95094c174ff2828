//! Nodes that load images, change their size, and make latents of them.

use super::place::Place;
use super::reader::Reader;
use super::scale::{kontext, to_total};
use super::{Latent, Output, Picture, UNIT};
use crate::pipeline::request::MAX_SIDE;
use crate::server::draft::{MAX_INPUT_PIXELS, parse_image, size_of};
use crate::server::fault::Fault;

/// Whether an image of `from` has the shape of `to`, up to a pixel.
fn is_shape(from: (u32, u32), to: (u32, u32)) -> bool {
    let [w, h, width, height] = [from.0, from.1, to.0, to.1].map(f64::from);
    (w * height / h - width).abs() <= 1.0 || (h * width / w - height).abs() <= 1.0
}

impl Reader<'_> {
    pub(super) fn start(&mut self, node: &Place) -> Result<Latent, Fault> {
        match node.class {
            "VAEEncode" => match self.link(node, "pixels")? {
                Output::Picture(picture) if !picture.is_edges => {
                    Ok(Latent::Encoded { picture, mask: None, count: 1 })
                }
                Output::Picture(_) => Err(node.unsupported("edges are no image to start from")),
                Output::Images { .. } => {
                    Err(node.unsupported("it starts from an image of another sampler"))
                }
                _ => Err(node.wrong_type("pixels", "IMAGE")),
            },
            "SetLatentNoiseMask" | "VAEEncodeForInpaint" => self.inpainted(node),
            "RepeatLatentBatch" => {
                let amount = self.count(node, "amount")?;
                match self.latent(node, "samples")? {
                    Latent::Empty { width, height, count } => {
                        Ok(Latent::Empty { width, height, count: count.saturating_mul(amount) })
                    }
                    Latent::Encoded { picture, mask, count } => {
                        let count = count.saturating_mul(amount);
                        Ok(Latent::Encoded { picture, mask, count })
                    }
                    Latent::Drawn(_) => Err(node.unsupported("it repeats a drawn latent")),
                }
            }
            _ => {
                let (mut width, mut height) =
                    (self.count(node, "width")?, self.count(node, "height")?);
                if node.class == "EmptyFlux2LatentImage" {
                    // It cuts what is measured of an image to whole tokens.
                    let unit = UNIT as usize;
                    let cut = (width / unit * unit, height / unit * unit);
                    if cut != (width, height) {
                        let (width, height) = cut;
                        self.notes.push(format!("drawn at {width}x{height}: multiples of {unit}"));
                    }
                    (width, height) = cut;
                }
                let has_count = node.inputs.get("batch_size").is_some();
                let count = if has_count { self.count(node, "batch_size")? } else { 1 };
                Ok(Latent::Empty { width, height, count })
            }
        }
    }

    pub(super) fn load(&mut self, node: &Place) -> Result<Picture, Fault> {
        let missing = || node.invalid("image", "the name of an image that was uploaded");
        let bytes = match node.class {
            "ETN_LoadImageBase64" => {
                let text = self.text(node, "image")?;
                parse_image("image", &text).map_err(|f| node.invalid("image", &f.message))?
            }
            "ETN_LoadImageCache" => {
                let id = self.text(node, "id")?;
                self.around.cached_image(&id)?.ok_or_else(missing)?
            }
            _ => {
                let name = self.text(node, "image")?;
                self.around.image(&name)?.ok_or_else(missing)?
            }
        };
        let size = size_of(&bytes, "image");
        let size = size.map_err(|fault| node.invalid("image", &fault.message))?;
        Ok(Picture { bytes, size, margins: None, is_edges: false })
    }

    /// The image that a node changes.
    pub(super) fn picture(&mut self, node: &Place) -> Result<Picture, Fault> {
        match self.link(node, "image")? {
            Output::Picture(picture) => Ok(picture),
            Output::Images { .. } => Err(node.unsupported("it takes a drawn image")),
            _ => Err(node.wrong_type("image", "IMAGE")),
        }
    }

    pub(super) fn scale(&mut self, node: &Place) -> Result<Picture, Fault> {
        let picture = self.picture(node)?;
        if picture.margins.is_some() {
            return Err(node.unsupported("it scales an image with margins: scale the image first"));
        }
        let size = match node.class {
            "FluxKontextImageScale" => kontext(picture.size),
            "ImageScaleToTotalPixels" => {
                let megapixels = self.real(node, "megapixels")?;
                let has_steps = node.inputs.get("resolution_steps").is_some();
                let steps = if has_steps { self.whole(node, "resolution_steps")? } else { 1 };
                let steps = u32::try_from(steps).unwrap_or(u32::MAX);
                to_total(picture.size, megapixels, steps)
                    .ok_or_else(|| node.invalid("megapixels", "a smaller number"))?
            }
            _ => {
                let size = self.scaled_size(node, picture.size)?;
                if node.inputs["crop"] != "center" && !is_shape(picture.size, size) {
                    self.note("an image is cropped to another shape, not stretched");
                }
                size
            }
        };
        Ok(Picture { size, ..picture })
    }

    /// The size of `ImageScale`.
    fn scaled_size(&mut self, node: &Place, from: (u32, u32)) -> Result<(u32, u32), Fault> {
        let (width, height) = (self.count(node, "width")?, self.count(node, "height")?);
        if width.max(height) > MAX_SIDE {
            return Err(node.invalid("width", "a smaller size"));
        }
        let (from_width, from_height) = (from.0 as f64, from.1 as f64);
        // 0 keeps the aspect ratio.
        let size = match (width as f64, height as f64) {
            (0.0, 0.0) => (from_width, from_height),
            (0.0, height) => (from_width * height / from_height, height),
            (width, 0.0) => (width, from_height * width / from_width),
            size => size,
        };
        let side = |pixels: f64| pixels.round().clamp(1.0, MAX_SIDE as f64) as u32;
        let (width, height) = (side(size.0), side(size.1));
        match u64::from(width) * u64::from(height) <= MAX_INPUT_PIXELS {
            true => Ok((width, height)),
            false => {
                let most = MAX_INPUT_PIXELS / 1_000_000;
                Err(node.invalid("width", &format!("at most {most} million pixels in all")))
            }
        }
    }
}
