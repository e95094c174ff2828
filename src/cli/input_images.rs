//! The images that a request names. Their files are checked before the model is opened. They are
//! decoded within the bound on memory, most of them when the model and the sizes that it reads are
//! known.

use std::mem;
use std::path::{Path, PathBuf};

use super::args::RequestArgs;
use super::image_memory::{Decoding, Reading, check};
use crate::error::{Error, Result};
use crate::pipeline::Engine;
use crate::pipeline::images::{ImageFile, ReferenceSize};
use crate::pipeline::request::{ControlImage, Image, Mask, Request, Settings};
use crate::text::one_line;
use crate::units::ByteSize;

/// A file that was opened, and is complete.
type Opened = (PathBuf, ImageFile);

/// The images that the arguments name.
pub struct InputImages {
    start: Option<StartImage>,
    references: Vec<Opened>,
    /// What a model for Canny or Depth sees.
    control: Option<Opened>,
    /// What each ControlNet sees.
    control_images: Vec<Opened>,
    /// Placeholders for what is not decoded yet.
    pixels: Pixels,
    /// Images that are decoded before the model is opened, if the bound on memory had room for
    /// them. The refusal waits for the model: the run may need more than they do.
    postponed: Vec<Decoding>,
}

/// The image to start from.
struct StartImage {
    path: PathBuf,
    /// Until it is decoded.
    file: Option<ImageFile>,
    use_: StartUse,
}

/// What is done with the image to start from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StartUse {
    /// It is drawn over as a whole, in the size of the request.
    Whole,
    /// A part of it is repainted.
    Part,
    /// Its transparent pixels are repainted.
    Transparent,
    /// It has room for transparent pixels, and was not decoded to look for them.
    Unknown,
}

/// The images of a request, which are moved into it while it is checked or drawn, so that there is
/// one copy of them.
#[derive(Default)]
struct Pixels {
    init: Option<Image>,
    mask: Option<Mask>,
    references: Vec<Image>,
    styles: Vec<Image>,
    control: Option<Image>,
    control_images: Vec<ControlImage>,
}

impl InputImages {
    /// Opens the files that the arguments name; `-` is stdin for the image to start from. Those
    /// that decide what is drawn (an image of which a part is repainted, its mask) or are used as
    /// they are (styles) are decoded at once, if there is memory for it within `ram`.
    pub fn open(args: &RequestArgs, ram: Option<ByteSize>) -> Result<InputImages> {
        let opened = |path: &PathBuf| Ok::<_, Error>((path.clone(), ImageFile::open(path)?));
        let seen = |path: &PathBuf, parameter: &str| {
            let file = ImageFile::open(path).map_err(|e| e.at_parameter(parameter))?;
            // Opening a model takes long, so a file that cannot be used is refused first.
            file.check_whole().map_err(|e| e.at_path(path).at_parameter(parameter))?;
            Ok::<_, Error>((path.clone(), file))
        };
        let nets = args.controlnets.iter().map(|net| seen(&net.image, "controlnet"));
        let mut images = InputImages {
            start: None,
            references: args.references.iter().map(opened).collect::<Result<_>>()?,
            control: args.control.as_ref().map(|path| seen(path, "control")).transpose()?,
            control_images: nets.collect::<Result<_>>()?,
            pixels: Pixels::default(),
            postponed: Vec::new(),
        };
        images.open_start(args, ram)?;
        for style in &args.styles {
            let image = images.open_style(&style.path, ram).map_err(|e| e.at_parameter("style"))?;
            images.pixels.styles.push(image);
        }
        let unknown = || blank_image((1, 1));
        let pixels = &mut images.pixels;
        pixels.references = images.references.iter().map(|_| unknown()).collect();
        pixels.control = images.control.as_ref().map(|_| unknown());
        pixels.control_images =
            images.control_images.iter().map(|_| ControlImage::from(unknown())).collect();
        Ok(images)
    }

    fn open_start(&mut self, args: &RequestArgs, ram: Option<ByteSize>) -> Result<()> {
        let Some(path) = &args.init_img else { return Ok(()) };
        let (path, file) = match path.as_os_str() == "-" {
            true => ("stdin".into(), ImageFile::read(std::io::stdin().lock(), "stdin")?),
            false => (path.clone(), ImageFile::open(path)?),
        };
        let use_ = match args.mask.is_some() || args.outpaint.is_some() || file.has_alpha() {
            true => self.decode_part(args, &path, &file, ram)?,
            false => StartUse::Whole,
        };
        if use_ == StartUse::Whole {
            self.pixels.init = Some(blank_image((1, 1)));
        }
        self.start = Some(StartImage { path, file: Some(file), use_ });
        Ok(())
    }

    fn decode_part(
        &mut self,
        args: &RequestArgs,
        path: &Path,
        file: &ImageFile,
        ram: Option<ByteSize>,
    ) -> Result<StartUse> {
        let mask = match &args.mask {
            Some(path) => Some((path, ImageFile::open(path)?)),
            None => None,
        };
        // Before the bound on memory: no larger bound would help.
        file.check_whole().map_err(|e| e.at_path(path))?;
        if let Some((path, file)) = &mask {
            file.check_whole().map_err(|e| e.at_path(path).at_parameter("mask"))?;
        }
        let mask_bytes = mask.as_ref().map_or(0, |(_, file)| file.mask_bytes());
        let bytes = file.mask_bytes() + mask_bytes;
        let is_certain = mask.is_some() || args.outpaint.is_some();
        let (width, height) = file.size();
        let mut decoding = Decoding {
            kept: 4 * (width * height) as u64,
            ..Decoding::of(START, Reading::Whole, path, bytes)
        };
        if !decoding.fits(ram) {
            self.postponed.push(decoding);
            self.pixels.init = Some(blank_image((width, height)));
            self.pixels.mask = match (&mask, is_certain) {
                (Some((_, file)), _) => Some(blank_mask(file.size())),
                (None, true) => None,
                (None, false) => Some(blank_mask((width, height))),
            };
            return Ok(if is_certain { StartUse::Part } else { StartUse::Unknown });
        }
        let (image, transparent) = file.decode_with_mask().map_err(|e| e.at_path(path))?;
        let is_transparent = mask.is_none() && transparent.is_some();
        let mask = match mask {
            Some((path, file)) => Some(file.mask().map_err(|e| e.at_path(path))?),
            None => transparent,
        };
        if mask.is_none() && args.outpaint.is_none() {
            return Ok(StartUse::Whole);
        }
        (self.pixels.init, self.pixels.mask) = (Some(image), mask);
        Ok(if is_transparent { StartUse::Transparent } else { StartUse::Part })
    }

    fn open_style(&mut self, path: &Path, ram: Option<ByteSize>) -> Result<Image> {
        let file = ImageFile::open(path)?;
        file.check_whole().map_err(|e| e.at_path(path))?;
        let mut decoding = Decoding {
            parameter: Some("style"),
            ..Decoding::whole("the style image", path, &file, file.whole_bytes())
        };
        if !decoding.fits(ram) {
            self.postponed.push(decoding);
            return Ok(blank_image(file.size()));
        }
        file.decode().map_err(|e| e.at_path(path))
    }

    /// Moves the images into `request`; when they are there, moves them back.
    pub fn swap(&mut self, request: &mut Request) {
        let pixels = &mut self.pixels;
        if self.start.is_some() {
            mem::swap(&mut pixels.init, &mut request.init);
            mem::swap(&mut pixels.mask, &mut request.mask);
        }
        mem::swap(&mut pixels.references, &mut request.references);
        mem::swap(&mut pixels.styles, &mut request.styles);
        mem::swap(&mut pixels.control, &mut request.control);
        mem::swap(&mut pixels.control_images, &mut request.control_images);
    }

    /// Whether the transparent pixels of the image to start from are repainted.
    pub fn is_transparent(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.use_ == StartUse::Transparent)
    }

    /// A note about what the program does without being asked for it.
    pub fn note(&self) -> Option<String> {
        let start = self.start.as_ref().filter(|_| self.is_transparent())?;
        Some(format!(
            "the transparent pixels of {} are repainted, and the others are kept",
            one_line(&start.path.to_string_lossy())
        ))
    }

    /// The file of the image to start from, as it is.
    #[cfg(feature = "server")]
    pub fn start_bytes(&self) -> Option<&[u8]> {
        self.start.as_ref()?.file.as_ref().map(ImageFile::bytes)
    }

    /// Gives the placeholders the sizes in which `engine` reads the images of `request`, so that
    /// its plan is that of the run.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) for images that the model does not read.
    pub fn measure(&mut self, request: &mut Request, engine: &Engine) -> Result<()> {
        if !self.references.is_empty() {
            let Some(size) = engine.reference_size() else {
                // The error says which models read them.
                return self.lent(request, |request, _| engine.settings(request).map(drop));
            };
            let sized = |(path, file): &Opened| {
                file.reference_size(size).map(blank_image).map_err(|e| e.at_path(path))
            };
            self.pixels.references = self.references.iter().map(sized).collect::<Result<_>>()?;
        }
        self.pixels.control = self.control.as_ref().map(|(_, file)| blank_image(file.size()));
        let seen_by_net = |(_, file): &Opened| ControlImage {
            image: blank_image(file.size()),
            mask: file.has_alpha().then(|| blank_mask(file.size())),
        };
        self.pixels.control_images = self.control_images.iter().map(seen_by_net).collect();
        if self.start.as_ref().is_some_and(|start| start.use_ == StartUse::Whole) {
            let settings = self.lent(request, |request, _| engine.settings(request))?;
            self.pixels.init = Some(blank_image((settings.width, settings.height)));
        }
        Ok(())
    }

    /// Decodes what is not decoded yet, one image after another, and drops the files: `request`,
    /// without its images, is one of those that are drawn, and `engine` draws it. Called once.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough for the images
    /// and for the run, and those of [`measure`](InputImages::measure).
    pub fn decode(
        &mut self,
        request: &mut Request,
        ram: Option<ByteSize>,
        engine: &Engine,
    ) -> Result<()> {
        self.measure(request, engine)?;
        if let Some(ram) = ram.filter(|_| !self.is_empty()) {
            self.lent(request, |request, images| images.check_memory(request, ram, engine))?;
        }
        if let Some(size) = engine.reference_size() {
            let read = |(path, file): &Opened| file.reference(size).map_err(|e| e.at_path(path));
            self.pixels.references = self.references.iter().map(read).collect::<Result<_>>()?;
        }
        let control = self
            .control
            .as_ref()
            .map(|(path, file)| file.decode().map_err(|e| e.at_path(path).at_parameter("control")));
        self.pixels.control = control.transpose()?;
        let seen_by_net = |(path, file): &Opened| {
            file.decode_control().map_err(|e| e.at_path(path).at_parameter("controlnet"))
        };
        self.pixels.control_images =
            self.control_images.iter().map(seen_by_net).collect::<Result<_>>()?;
        if let (Some(start), Some(blank)) = (&mut self.start, &self.pixels.init)
            && let Some(file) = start.file.take()
            && start.use_ == StartUse::Whole
        {
            let image = file.fitted(blank.width, blank.height);
            self.pixels.init = Some(image.map_err(|e| e.at_path(&start.path))?);
        }
        self.references.clear();
        self.control_images.clear();
        self.control = None;
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.start.is_none()
            && self.references.is_empty()
            && self.pixels.styles.is_empty()
            && self.control.is_none()
            && self.control_images.is_empty()
    }

    /// Calls `work` with the images in `request`.
    pub fn lent<T>(
        &mut self,
        request: &mut Request,
        work: impl FnOnce(&mut Request, &InputImages) -> Result<T>,
    ) -> Result<T> {
        self.swap(request);
        let result = work(request, self);
        self.swap(request);
        result
    }

    /// Checks that there is memory within `ram` to decode the images, and to draw `request`, which
    /// has placeholders in their sizes.
    fn check_memory(&self, request: &mut Request, ram: ByteSize, engine: &Engine) -> Result<()> {
        let late: u64 = self.postponed.iter().map(|decoding| decoding.kept).sum();
        let mut enough = engine.least_ram(request)? + late;
        if self.start.as_ref().is_some_and(|start| start.use_ == StartUse::Unknown) {
            // Perhaps no pixel is transparent, and all of it is drawn over.
            let part = (request.init.take(), request.mask.take());
            request.init = Some(blank_image((1, 1)));
            if let Ok(Settings { width, height, .. }) = engine.settings(request) {
                request.init = Some(blank_image((width, height)));
                enough = enough.max(engine.least_ram(request)? + late);
            }
            (request.init, request.mask) = part;
        }
        let mut decodings = self.postponed.clone();
        if let Some(size) = engine.reference_size() {
            let reading = match size {
                ReferenceSize::Limited => Reading::Rows,
                ReferenceSize::Kontext { .. } => Reading::PngRows,
            };
            decodings.extend(self.references.iter().zip(&request.references).map(
                |((path, file), image)| Decoding {
                    kept: image.rgb.len() as u64,
                    ..Decoding::of("the reference image", reading, path, file.reference_bytes(size))
                },
            ));
        }
        decodings.extend(self.control.iter().map(|(path, file)| Decoding {
            parameter: Some("control"),
            ..Decoding::whole("the control image", path, file, file.whole_bytes())
        }));
        decodings.extend(self.control_images.iter().map(|(path, file)| Decoding {
            parameter: Some("controlnet"),
            ..Decoding::whole("the image of a ControlNet", path, file, file.control_bytes())
        }));
        if let (Some(StartImage { path, file: Some(file), use_: StartUse::Whole }), Some(image)) =
            (&self.start, &request.init)
        {
            let bytes = file.fitted_bytes(image.width, image.height);
            decodings.push(Decoding::of(START, Reading::Rows, path, bytes));
        }
        check(&decodings, ram, enough)
    }
}

/// The image of `--init-img` in errors.
const START: &str = "the image to start from";

/// A placeholder for an image of that size. Zeros that nobody reads take no memory.
fn blank_image((width, height): (usize, usize)) -> Image {
    Image { width, height, rgb: vec![0; 3 * width * height] }
}

/// A placeholder for a mask of that size: as if all of the image were repainted.
fn blank_mask((width, height): (usize, usize)) -> Mask {
    let mut values = vec![0; width * height];
    let last = values.len() - 1;
    (values[0], values[last]) = (255, 255);
    Mask { width, height, values }
}
