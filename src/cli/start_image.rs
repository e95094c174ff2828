//! The image of `--init-img`: checked before the model is opened, decoded afterwards, within the
//! bound on memory. The other images that models see.

use std::path::{Path, PathBuf};

use super::args::{EngineArgs, RequestArgs};
use super::values::Budget;
use crate::error::{Error, Result};
use crate::host;
use crate::pipeline::Engine;
use crate::pipeline::images::ImageFile;
use crate::pipeline::request::{ControlImage, Image, Mask, Request, Settings};
use crate::text::one_line;
use crate::units;
use crate::units::ByteSize;

/// Room for stacks, working memory of the decoders, and what a process may need more when it is
/// started again, in bytes. (The resident set is not exact while threads run.)
const SPARE_BYTES: u64 = 64 << 20;

/// An image file that is there, complete and of a format that can be read.
pub struct StartImage {
    path: PathBuf,
    file: ImageFile,
    /// The image in its own size, if only a part of it is repainted.
    part: Option<Part>,
}

/// The image of which a part is repainted.
struct Part {
    image: Image,
    mask: Option<Mask>,
    /// The transparent pixels of the image are its mask.
    is_transparent: bool,
}

impl StartImage {
    /// The image that the arguments name, if they name one: a file, or stdin for `-`. If there is a
    /// mask, both are decoded at once, within `ram`.
    pub fn open(args: &RequestArgs, ram: Budget) -> Result<Option<StartImage>> {
        let Some(path) = &args.init_img else { return Ok(None) };
        let (path, file) = match path.as_os_str() == "-" {
            true => ("stdin".into(), ImageFile::read(std::io::stdin().lock(), "stdin")?),
            false => (path.clone(), ImageFile::open(path)?),
        };
        let mut start = StartImage { path, file, part: None };
        if args.mask.is_some() || args.outpaint.is_some() || start.file.has_alpha() {
            start.part = start.decode_part(args, ram)?;
        }
        Ok(Some(start))
    }

    fn decode_part(&self, args: &RequestArgs, ram: Budget) -> Result<Option<Part>> {
        let mask = match &args.mask {
            Some(path) => Some((path, ImageFile::open(path)?)),
            None => None,
        };
        // Before the bound on memory: no larger bound would help.
        self.file.check_whole().map_err(|e| e.at_path(&self.path))?;
        if let Some((path, file)) = &mask {
            file.check_whole().map_err(|e| e.at_path(path).at_parameter("mask"))?;
        }
        let mask_bytes = mask.as_ref().map_or(0, |(_, file)| file.mask_bytes());
        let bytes = self.file.mask_bytes() + mask_bytes;
        check_ram(ram.size(), START, Reading::Whole, bytes, &self.path)?;
        let (image, transparent) =
            self.file.decode_with_mask().map_err(|e| e.at_path(&self.path))?;
        let is_transparent = mask.is_none() && transparent.is_some();
        let mask = match mask {
            Some((path, file)) => Some(file.mask().map_err(|e| e.at_path(path))?),
            None => transparent,
        };
        let is_part = mask.is_some() || args.outpaint.is_some();
        Ok(is_part.then_some(Part { image, mask, is_transparent }))
    }

    /// Gives `request` the image: the whole of it, or a placeholder for one that is decoded later.
    pub fn add_to(&self, request: &mut Request) {
        let Some(part) = &self.part else {
            request.init = Some(Image { width: 1, height: 1, rgb: vec![0; 3] });
            return;
        };
        request.init = Some(part.image.clone());
        request.mask.clone_from(&part.mask);
        if part.is_transparent && request.strength.is_none() {
            request.strength = Some(1.0);
        }
    }

    /// Whether only a part of it is repainted.
    pub fn is_masked(&self) -> bool {
        self.part.is_some()
    }

    /// A note about what the program does without being asked for it.
    pub fn note(&self) -> Option<String> {
        let is_transparent = self.part.as_ref().is_some_and(|part| part.is_transparent);
        is_transparent.then(|| {
            format!(
                "the transparent pixels of {} are repainted, and the others are kept",
                one_line(&self.path.to_string_lossy())
            )
        })
    }

    /// The file as it is.
    #[cfg(feature = "server")]
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// The image at the size of `request`, if there is memory to decode it within `--ram`; `None`
    /// if the request has it already.
    pub fn decode_for(
        self,
        request: &Request,
        engine: &EngineArgs,
        pipeline: &Engine,
    ) -> Result<Option<Image>> {
        if self.is_masked() {
            return Ok(None);
        }
        if engine.ram.size().is_some() {
            // If the plan needs more than the image, its number is the one to name.
            pipeline.plan(request)?;
        }
        let Settings { width, height, .. } = pipeline.settings(request)?;
        let bytes = self.file.fitted_bytes(width, height);
        check_ram(engine.ram.size(), START, Reading::Rows, bytes, &self.path)?;
        self.file.fitted(width, height).map(Some).map_err(|e| e.at_path(&self.path))
    }
}

/// Images that a model looks at, besides the one to start from. The files are read before the
/// model is opened. All but styles are decoded afterwards, when the memory that is left of `--ram`
/// and the sizes that the model reads are known.
pub struct SeenImages {
    references: Vec<(PathBuf, ImageFile)>,
    pub styles: Vec<Image>,
    /// What a model for Canny or Depth sees.
    control: Option<(PathBuf, ImageFile)>,
    /// What each ControlNet sees.
    control_images: Vec<(PathBuf, ImageFile)>,
}

/// The images of [`SeenImages`] that are decoded after the model was opened.
#[derive(Clone)]
struct Decoded {
    references: Vec<Image>,
    control: Option<Image>,
    control_images: Vec<ControlImage>,
}

impl Decoded {
    /// Replaces the placeholders of `request`.
    fn add_to(self, request: &mut Request) {
        if !self.references.is_empty() {
            request.references = self.references;
        }
        if self.control.is_some() {
            request.control = self.control;
        }
        if !self.control_images.is_empty() {
            request.control_images = self.control_images;
        }
    }
}

impl SeenImages {
    /// Those that the arguments name, if there is memory to decode styles one after another within
    /// `ram`.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
    pub fn load(args: &RequestArgs, ram: Option<ByteSize>) -> Result<SeenImages> {
        let styles = args.styles.iter().map(|style| {
            let file = ImageFile::open(&style.path)?;
            whole(&style.path, &file, "the style image", ram)
        });
        let at = |e: Error| e.at_parameter("style");
        let opened = |path: &PathBuf| Ok((path.clone(), ImageFile::open(path)?));
        let seen = |path: &PathBuf, parameter: &str| {
            let file = ImageFile::open(path).map_err(|e| e.at_parameter(parameter))?;
            // Opening a model takes long, so a file that cannot be used is refused first.
            file.check_whole().map_err(|e| e.at_path(path).at_parameter(parameter))?;
            Ok((path.clone(), file))
        };
        let nets = args.controlnets.iter().map(|net| seen(&net.image, "controlnet"));
        Ok(SeenImages {
            references: args.references.iter().map(opened).collect::<Result<_>>()?,
            styles: styles.collect::<Result<_>>().map_err(at)?,
            control: args.control.as_ref().map(|path| seen(path, "control")).transpose()?,
            control_images: nets.collect::<Result<_>>()?,
        })
    }

    /// Gives `request` the images, with placeholders for those that are not decoded yet.
    pub fn add_to(&self, request: &mut Request) {
        let placeholder = || Image { width: 1, height: 1, rgb: vec![0; 3] };
        request.references = vec![placeholder(); self.references.len()];
        request.styles.clone_from(&self.styles);
        request.control = self.control.as_ref().map(|_| placeholder());
        let seen = self.control_images.iter();
        request.control_images = seen.map(|_| ControlImage::from(placeholder())).collect();
    }

    /// Gives `requests`, which differ in their prompts, the images in place of the placeholders:
    /// decoded one after another within `ram`, references in the size in which `pipeline` reads
    /// them.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough, and the error of
    /// a model that reads no references.
    pub fn decode_for(
        &self,
        requests: &mut [Request],
        ram: Option<ByteSize>,
        pipeline: &Engine,
    ) -> Result<()> {
        let Some((last, others)) = requests.split_last_mut() else { return Ok(()) };
        let control = self.control.as_ref().map(|(path, file)| {
            let image = whole(path, file, "the control image", ram);
            image.map_err(|e| e.at_parameter("control"))
        });
        let nets = self.control_images.iter().map(|(path, file)| {
            let image = control_image(path, file, ram);
            image.map_err(|e| e.at_parameter("controlnet"))
        });
        let decoded = Decoded {
            references: self.decode_references(last, ram, pipeline)?,
            control: control.transpose()?,
            control_images: nets.collect::<Result<_>>()?,
        };
        for request in others {
            decoded.clone().add_to(request);
        }
        decoded.add_to(last);
        Ok(())
    }

    fn decode_references(
        &self,
        request: &Request,
        ram: Option<ByteSize>,
        pipeline: &Engine,
    ) -> Result<Vec<Image>> {
        if self.references.is_empty() {
            return Ok(Vec::new());
        }
        let Some(size) = pipeline.reference_size() else {
            // The error says which models read them.
            return pipeline.settings(request).map(|_| Vec::new());
        };
        let decode = |(path, file): &(PathBuf, ImageFile)| {
            let bytes = file.reference_bytes(size);
            check_ram(ram, "the reference image", Reading::Rows, bytes, path)?;
            file.reference(size).map_err(|e| e.at_path(path))
        };
        self.references.iter().map(decode).collect()
    }
}

/// The image of `--init-img` in errors.
const START: &str = "the image to start from";

/// How an image file is decoded.
enum Reading {
    /// As a whole, whatever its format.
    Whole,
    /// Row by row, where its format allows it.
    Rows,
}

/// Checks that `bytes` more fit within `--ram`, to decode `what` in the file at `path`.
///
/// # Errors
/// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
fn check_ram(
    ram: Option<ByteSize>,
    what: &str,
    reading: Reading,
    bytes: u64,
    path: &Path,
) -> Result<()> {
    let need = host::steady_memory() + bytes + SPARE_BYTES;
    let Some(ram) = ram.filter(|ram| need > ram.0) else { return Ok(()) };
    // It may be somewhat more at the next start.
    let enough = need.div_ceil(1_000_000) + 8;
    let or = match reading {
        Reading::Whole => "",
        Reading::Rows => {
            ", or as a PNG that is not interlaced or a JPEG that is not progressive, which are \
             read row by row"
        }
    };
    Err(Error::memory(format!("{what} does not fit in the bound on memory"))
        .with_code("budget_too_small")
        .at_path(path)
        .found(units::bytes(ram.0))
        .expected(format!("at least {enough} MB to decode it"))
        .try_(format!("--ram {enough}M, or save the image smaller{or}")))
}

/// The image in `file`, which is decoded as a whole within `ram`; `what` it is in errors.
fn whole(path: &Path, file: &ImageFile, what: &str, ram: Option<ByteSize>) -> Result<Image> {
    file.check_whole().map_err(|e| e.at_path(path))?;
    check_ram(ram, what, Reading::Whole, file.whole_bytes(), path)?;
    file.decode().map_err(|e| e.at_path(path))
}

/// The image that a ControlNet sees, decoded within `ram`.
fn control_image(path: &Path, file: &ImageFile, ram: Option<ByteSize>) -> Result<ControlImage> {
    check_ram(ram, "the image of a ControlNet", Reading::Whole, file.control_bytes(), path)?;
    file.decode_control().map_err(|e| e.at_path(path))
}
