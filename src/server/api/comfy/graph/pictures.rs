//! Nodes that load images, change their size, and make latents of them.

use axum::body::Bytes;

use super::picture::Picture;
use super::place::Place;
use super::reader::Reader;
use super::scale::{kontext, to_total};
use super::{Drawn, Latent, Output, UNIT};
use crate::pipeline::images::Filter;
use crate::server::api::comfy::finish::{Finish, size_after};
use crate::server::draft::{MAX_INPUT_PIXELS, parse_image, size_of};
use crate::server::fault::Fault;

/// The longest side of an image that a node changes, in pixels.
const MAX_SIDE: usize = 16384;

impl Reader<'_> {
    pub(super) fn start(&mut self, node: &Place) -> Result<Latent, Fault> {
        match node.class {
            "VAEEncode" | "VAEEncodeTiled" => match self.link(node, "pixels")? {
                Output::Picture(picture) if !picture.is_edges => {
                    Ok(Latent::Encoded { picture, mask: None, count: 1 })
                }
                Output::Picture(_) => Err(node.unsupported("edges are no image to start from")),
                Output::Images(_) => {
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
                self.work(node)?;
                self.around.cached_image(&id)?.ok_or_else(missing)?
            }
            _ => {
                let name = self.text(node, "image")?;
                self.work(node)?;
                self.around.image(&name)?.ok_or_else(missing)?
            }
        };
        let size = size_of(&bytes, "image");
        let size = size.map_err(|fault| node.invalid("image", &fault.message))?;
        Ok(Picture::new(bytes, size))
    }

    /// The image that a node changes.
    pub(super) fn picture(&mut self, node: &Place) -> Result<Picture, Fault> {
        match self.link(node, "image")? {
            Output::Picture(picture) => Ok(picture),
            Output::Images(_) => {
                Err(node.unsupported("its image must be loaded, not drawn by the graph"))
            }
            _ => Err(node.wrong_type("image", "IMAGE")),
        }
    }

    /// The file of a picture, with its changes.
    pub(super) fn file(&mut self, node: &Place, picture: &Picture) -> Result<Bytes, Fault> {
        self.work(node)?;
        picture.file().map_err(|fault| node.at(fault))
    }

    /// `picture`, unless it has too many changes or pixels.
    pub(super) fn changed(&self, node: &Place, picture: Picture) -> Result<Picture, Fault> {
        let pixels = u64::from(picture.size.0) * u64::from(picture.size.1);
        match picture.is_overdone() {
            true => Err(node.unsupported("too many nodes change this image")),
            false if pixels == 0 => Err(node.unsupported("its image would have no pixels")),
            false if pixels > MAX_INPUT_PIXELS => {
                Err(node.unsupported("its image would have more than 16 million pixels"))
            }
            false => Ok(picture),
        }
    }

    /// A drawn image after one step more.
    pub(super) fn finished(
        &self,
        node: &Place,
        mut drawn: Drawn,
        step: Finish<Bytes>,
    ) -> Result<Output, Fault> {
        if drawn.finish.iter().any(|step| matches!(step, Finish::Alpha(_))) {
            return Err(node.unsupported("it changes an image that has transparent pixels"));
        }
        let is_scale = matches!(step, Finish::Scale(..));
        if std::mem::take(&mut drawn.is_enlarged) && is_scale {
            // Only the last size matters.
            drawn.finish.pop();
        }
        let size = size_after(drawn.size, &step);
        drawn.size = size.ok_or_else(|| node.unsupported("its image would be too large"))?;
        drawn.finish.push(step);
        if drawn.finish.len() > super::picture::MAX_CHANGES {
            return Err(node.unsupported("too many nodes change this image"));
        }
        Ok(Output::Images(drawn))
    }

    /// Nodes that change the size of an image.
    pub(super) fn scale(&mut self, node: &Place) -> Result<Output, Fault> {
        let image = self.link(node, node.image_input())?;
        let from = match &image {
            Output::Picture(picture) if picture.margins.is_some() => {
                let why = "it scales an image with margins: scale the image first";
                return Err(node.unsupported(why));
            }
            Output::Picture(picture) => picture.size,
            Output::Images(drawn) => drawn.size,
            _ => return Err(node.wrong_type(node.image_input(), "IMAGE")),
        };
        let size = match node.class {
            "FluxKontextImageScale" => kontext(from),
            "ImageScaleToTotalPixels" => {
                let megapixels = self.real(node, "megapixels")?;
                let has_steps = node.inputs.get("resolution_steps").is_some();
                let steps = if has_steps { self.whole(node, "resolution_steps")? } else { 1 };
                let steps = u32::try_from(steps).unwrap_or(u32::MAX);
                to_total(from, megapixels, steps)
                    .ok_or_else(|| node.invalid("megapixels", "a smaller number"))?
            }
            "HintImageEnchance" => {
                if node.inputs["resize_mode"] != "Just Resize" {
                    return Err(node.invalid("resize_mode", "Just Resize"));
                }
                (self.side(node, "image_gen_width")?, self.side(node, "image_gen_height")?)
            }
            _ => self.scaled_size(node, from)?,
        };
        let is_whole = ["ImageScale", "HintImageEnchance"].contains(&node.class)
            && self.value(node, "crop")? != "center";
        let filter = self.filter(node)?;
        match image {
            Output::Picture(picture) => {
                let scaled = match is_whole {
                    true => picture.stretched(size, filter),
                    false => picture.fitted(size),
                };
                self.changed(node, scaled).map(Output::Picture)
            }
            Output::Images(drawn) if drawn.size == size => Ok(Output::Images(drawn)),
            Output::Images(drawn) if is_whole || node.class == "ImageScaleToTotalPixels" => {
                self.finished(node, drawn, Finish::Scale(size.0, size.1))
            }
            _ => Err(node.unsupported("it cuts a drawn image around its centre")),
        }
    }

    /// The filter of a node that changes the size of an image.
    fn filter(&mut self, node: &Place) -> Result<Filter, Fault> {
        let method = self.value(node, "upscale_method")?;
        Ok(match method.as_str() {
            Some("bilinear") => Filter::Bilinear,
            Some("bicubic") => Filter::Bicubic,
            None | Some("lanczos") => Filter::Lanczos,
            Some(other) => {
                self.note(&format!("images are scaled by lanczos in place of {other}"));
                Filter::Lanczos
            }
        })
    }

    /// `ImageCrop`: a part of an image, as far as there is one.
    pub(super) fn crop(&mut self, node: &Place) -> Result<Output, Fault> {
        let mut side = |name: &str| self.side(node, name);
        let (x, y, width, height) = (side("x")?, side("y")?, side("width")?, side("height")?);
        let inside = |size: (u32, u32)| {
            let at = (x.min(size.0 - 1), y.min(size.1 - 1));
            (at, (width.clamp(1, size.0 - at.0), height.clamp(1, size.1 - at.1)))
        };
        match self.link(node, "image")? {
            Output::Picture(picture) if picture.margins.is_some() => {
                Err(node.unsupported("it cuts an image with margins"))
            }
            Output::Picture(picture) => {
                let (at, size) = inside(picture.size);
                self.changed(node, picture.cropped(at, size)).map(Output::Picture)
            }
            Output::Images(drawn) => {
                let (at, size) = inside(drawn.size);
                if size == drawn.size {
                    return Ok(Output::Images(drawn));
                }
                self.finished(node, drawn, Finish::Crop(at.0, at.1, size.0, size.1))
            }
            _ => Err(node.wrong_type("image", "IMAGE")),
        }
    }

    /// Pixels of one side, or of an offset.
    pub(super) fn side(&mut self, node: &Place, input: &str) -> Result<u32, Fault> {
        let side = u32::try_from(self.whole(node, input)?).ok();
        side.filter(|side| *side as usize <= MAX_SIDE)
            .ok_or_else(|| node.invalid(input, &format!("a whole number from 0 to {MAX_SIDE}")))
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
        Ok((side(size.0), side(size.1)))
    }
}
