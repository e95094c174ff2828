//! Nodes of the packages that the plugin Krita AI Diffusion needs: comfyui-tooling-nodes and
//! comfyui-inpaint-nodes; and nodes that it uses of others.

use super::mask_change::{Kernel, MaskChange};
use super::masks::GraphMask;
use super::picture::Picture;
use super::place::Place;
use super::reader::Reader;
use super::{Conditioning, Output};
use crate::pipeline::images::MaskMarks;
use crate::server::api::comfy::finish::Finish;
use crate::server::api::comfy::nodes::UPSCALERS;
use crate::server::fault::Fault;

/// The most pixels by which a mask grows or is blurred.
const MAX_REACH: usize = 1024;
/// The most files that are read and written for one graph.
const MAX_WORK: usize = 64;

impl Reader<'_> {
    /// Counts a file that is read and written for this graph.
    pub(super) fn work(&mut self, node: &Place) -> Result<(), Fault> {
        self.worked += 1;
        match self.worked > MAX_WORK {
            true => Err(node.unsupported("the graph loads or changes too many images and masks")),
            false => Ok(()),
        }
    }

    /// The output of a node of these packages.
    pub(super) fn of_packages(&mut self, node: &Place, slot: usize) -> Result<Output, Fault> {
        match node.class {
            "INPAINT_ExpandMask" | "INPAINT_ShrinkMask" | "INPAINT_StabilizeMask" => {
                self.changed_mask(node).map(Output::Mask)
            }
            "SolidMask" => {
                let size = self.size(node)?;
                self.work(node)?;
                let mask = GraphMask::plain(size, self.real(node, "value")?);
                Ok(Output::Mask(mask?))
            }
            "MaskToImage" => {
                let mask = self.mask(node, "mask")?;
                self.work(node)?;
                let mask = mask.pixels().map_err(|fault| node.at(fault))?;
                let size = (mask.width as u32, mask.height as u32);
                let png = crate::server::masks::DraftMask::of(&mask)?.png;
                Ok(Output::Picture(Picture::new(png, size)))
            }
            "EmptyImage" => {
                let size = self.size(node)?;
                let has_count = node.inputs.get("batch_size").is_some();
                if has_count && self.count(node, "batch_size")? > 1 {
                    return Err(node.invalid("batch_size", "one image"));
                }
                let color = self.count(node, "color")?;
                self.work(node)?;
                let part = |shift: usize| (color >> shift & 255) as u8;
                Ok(Output::Picture(Picture::plain(size, [part(16), part(8), part(0)])?))
            }
            "ImageInvert" => {
                let picture = self.picture(node)?.inverted();
                self.changed(node, picture).map(Output::Picture)
            }
            "ImageCrop" => self.crop(node),
            "INPAINT_MaskedFill" | "INPAINT_MaskedBlur" | "INPAINT_InpaintWithModel" => {
                self.note("what is repainted is drawn over the image itself, without a filling");
                let mut picture = self.picture(node)?;
                picture.is_filled = true;
                Ok(Output::Picture(picture))
            }
            "INPAINT_LoadInpaintModel" => Ok(Output::InpaintModel),
            "INPAINT_ColorMatch" => self.matched(node),
            "UpscaleModelLoader" => {
                let name = self.text(node, "model_name")?;
                let found = UPSCALERS.iter().find(|(upscaler, _)| *upscaler == name);
                let (_, factor) = found.ok_or_else(|| {
                    let why = "images are not made larger by another model here, only by Lanczos";
                    node.unsupported(why)
                })?;
                Ok(Output::Upscaler(*factor))
            }
            "ImageUpscaleWithModel" => self.enlarged(node),
            "ETN_ReferenceImage" => self.seen_images(node).map(Output::SeenImages),
            "ETN_ApplyReferenceImages" => self.with_seen_images(node).map(Output::Conditioning),
            "ETN_Translate" => {
                let text = self.text(node, "text")?;
                match text.contains("lang:") {
                    true => Err(node.unsupported("there is no translator here")),
                    false => Ok(Output::Value(text.into())),
                }
            }
            "EasyCache" => {
                self.note("every step is computed: EasyCache is left out");
                self.model(node, "model").map(Output::Model)
            }
            _ => Err(node.unsupported(&format!("it has no output {slot}"))),
        }
    }

    fn size(&mut self, node: &Place) -> Result<(u32, u32), Fault> {
        let size = (self.side(node, "width")?, self.side(node, "height")?);
        let pixels = u64::from(size.0) * u64::from(size.1);
        match (1..=crate::server::draft::MAX_INPUT_PIXELS).contains(&pixels) {
            true => Ok(size),
            false => Err(node.invalid("width", "a size with 1 to 16 million pixels")),
        }
    }

    fn changed_mask(&mut self, node: &Place) -> Result<GraphMask, Fault> {
        let mut mask = self.mask(node, "mask")?;
        if node.class == "INPAINT_StabilizeMask" {
            return mask.changed(MaskChange::Stabilise(self.real(node, "epsilon")?), node);
        }
        let mut reach = |input: &str| match self.count(node, input)? {
            pixels if pixels > MAX_REACH => Err(node.invalid(input, "at most 1024 pixels")),
            pixels => Ok(pixels),
        };
        let (by, change): (usize, fn(usize) -> MaskChange) = match node.class {
            "INPAINT_ExpandMask" => (reach("grow")?, MaskChange::Dilate),
            _ => (reach("shrink")?, MaskChange::Erode),
        };
        let blur = reach("blur")?;
        if by > 0 {
            mask = mask.changed(change(by), node)?;
        }
        let kernel = match self.value(node, "blur_type")?.as_str() {
            None | Some("gaussian") => Kernel::Gaussian,
            Some("linear") => Kernel::Linear,
            Some("box") => Kernel::Box,
            Some(_) => return Err(node.invalid("blur_type", "box, linear or gaussian")),
        };
        // The number of pixels is odd, and two of them are not worth a blur.
        match blur | 1 {
            1 => Ok(mask),
            size => mask.changed(MaskChange::Blur { size, kernel }, node),
        }
    }

    /// The colours outside of a mask are those of the image already.
    fn matched(&mut self, node: &Place) -> Result<Output, Fault> {
        match self.link(node, "target")? {
            Output::Images(drawn) if drawn.drawing.is_masked() => {
                self.note(
                    "colours are not matched: pixels outside of the mask are kept as they are",
                );
                Ok(Output::Images(drawn))
            }
            Output::Images(_) | Output::Picture(_) => {
                Err(node.unsupported("it changes the colours of an image without a mask"))
            }
            _ => Err(node.wrong_type("target", "IMAGE")),
        }
    }

    fn enlarged(&mut self, node: &Place) -> Result<Output, Fault> {
        let Output::Upscaler(factor) = self.link(node, "upscale_model")? else {
            return Err(node.wrong_type("upscale_model", "UPSCALE_MODEL"));
        };
        let Output::Images(drawn) = self.link(node, "image")? else {
            return Err(node.unsupported("it makes an image larger that is not drawn here"));
        };
        self.note("images are made larger by Lanczos, not by another model");
        let (width, height) = drawn.size;
        let (width, height) = (width.saturating_mul(factor), height.saturating_mul(factor));
        match self.finished(node, drawn, Finish::Scale(width, height))? {
            Output::Images(mut drawn) => {
                drawn.is_enlarged = true;
                Ok(Output::Images(drawn))
            }
            other => Ok(other),
        }
    }

    /// Images for a style model, each with its strength.
    fn seen_images(&mut self, node: &Place) -> Result<Vec<(Picture, f32)>, Fault> {
        let has_more = node.inputs.get("reference_images").is_some_and(|more| !more.is_null());
        let mut images = match has_more {
            false => Vec::new(),
            true => self.linked_images(node, "reference_images")?,
        };
        let picture = self.picture(node)?;
        if picture.margins.is_some() || picture.is_edges || picture.is_filled {
            return Err(node.unsupported("it takes an image that was padded or filled, or edges"));
        }
        let strength = self.real(node, "weight")?.clamp(0.0, 1.0);
        if strength < 1.0 {
            self.note("the weight of a reference image multiplies its tokens");
        }
        if (self.real(node, "range_start")?, self.real(node, "range_end")?) != (0.0, 1.0) {
            self.note("a reference image acts in all steps");
        }
        images.push((picture, strength));
        Ok(images)
    }

    fn linked_images(&mut self, node: &Place, input: &str) -> Result<Vec<(Picture, f32)>, Fault> {
        match self.link(node, input)? {
            Output::SeenImages(images) => Ok(images),
            _ => Err(node.wrong_type(input, "ReferenceImage")),
        }
    }

    fn with_seen_images(&mut self, node: &Place) -> Result<Conditioning, Fault> {
        if !matches!(self.link(node, "clip_vision")?, Output::ClipVision) {
            return Err(node.wrong_type("clip_vision", "CLIP_VISION"));
        }
        if !matches!(self.link(node, "style_model")?, Output::StyleModel) {
            return Err(node.wrong_type("style_model", "STYLE_MODEL"));
        }
        let mut conditioning = self.conditioning(node, "conditioning")?;
        conditioning.styles.extend(self.linked_images(node, "references")?);
        Ok(conditioning)
    }
}

/// What of an image the mask of a node of comfyui-tooling-nodes is.
pub fn marks_of(class: &str) -> MaskMarks {
    match class.starts_with("ETN_") {
        true => MaskMarks::Opacity,
        false => MaskMarks::Transparent,
    }
}
