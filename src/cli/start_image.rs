//! The image of `--init-img`: checked before the model is opened, decoded afterwards, within the
//! bound on memory. Reference images, which are made smaller at once.

use std::path::{Path, PathBuf};

use super::args::{EngineArgs, RequestArgs};
use super::values::{Budget, StyleArg};
use crate::error::{Error, Result};
use crate::host;
use crate::pipeline::Engine;
use crate::pipeline::images::ImageFile;
use crate::pipeline::request::{Image, Mask, Request, Settings};
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
        let mask_bytes = mask.as_ref().map_or(0, |(_, file)| file.mask_bytes());
        self.check_memory(self.file.mask_bytes() + mask_bytes, ram)?;
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
        self.check_memory(self.file.fitted_bytes(width, height), engine.ram)?;
        self.file.fitted(width, height).map(Some).map_err(|e| e.at_path(&self.path))
    }

    /// Checks that `bytes` for decoding fit in `ram`.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
    fn check_memory(&self, bytes: u64, ram: Budget) -> Result<()> {
        check_ram(ram.size(), "the image to start from", bytes, &self.path)
    }
}

/// Images that a model looks at, besides the one to start from.
pub struct SeenImages {
    /// Not decoded yet: in which size they are read depends on the model.
    references: Vec<(PathBuf, ImageFile)>,
    pub styles: Vec<Image>,
}

impl SeenImages {
    /// Those that the arguments name, if there is memory to decode them one after another within
    /// `ram`.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
    pub fn load(args: &RequestArgs, ram: Option<ByteSize>) -> Result<SeenImages> {
        let style = |style: &StyleArg| {
            let file = ImageFile::open(&style.path)?;
            check_ram(ram, "the style image", file.whole_bytes(), &style.path)?;
            file.decode().map_err(|e| e.at_path(&style.path))
        };
        let styles = args.styles.iter().map(style);
        let at = |e: Error| e.at_parameter("style");
        let reference = |path: &PathBuf| Ok((path.clone(), ImageFile::open(path)?));
        Ok(SeenImages {
            references: args.references.iter().map(reference).collect::<Result<_>>()?,
            styles: styles.collect::<Result<_>>().map_err(at)?,
        })
    }

    /// Gives `request` the images, with placeholders for references.
    pub fn add_to(&self, request: &mut Request) {
        let placeholder = Image { width: 1, height: 1, rgb: vec![0; 3] };
        request.references = vec![placeholder; self.references.len()];
        request.styles.clone_from(&self.styles);
    }

    /// The references in the size in which `pipeline` reads them, decoded one after another within
    /// `ram`, for `request`, which has placeholders for them.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough, and the error of
    /// a model that reads none.
    pub fn decode_references(
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
            check_ram(ram, "the reference image", file.reference_bytes(size), path)?;
            file.reference(size).map_err(|e| e.at_path(path))
        };
        self.references.iter().map(decode).collect()
    }
}

/// Checks that `bytes` more fit within `--ram`, to decode `what` in the file at `path`.
fn check_ram(ram: Option<ByteSize>, what: &str, bytes: u64, path: &Path) -> Result<()> {
    let need = host::steady_memory() + bytes + SPARE_BYTES;
    match ram {
        Some(ram) if need > ram.0 => {
            // It may be somewhat more at the next start.
            let enough = need.div_ceil(1_000_000) + 8;
            Err(Error::memory(format!("{what} does not fit in the bound on memory"))
                .with_code("budget_too_small")
                .at_path(path)
                .found(units::bytes(ram.0))
                .expected(format!("at least {enough} MB to decode it"))
                .try_(format!(
                    "--ram {enough}M, or save the image smaller, or as a PNG that is not \
                     interlaced or a JPEG that is not progressive, which are read row by row"
                )))
        }
        _ => Ok(()),
    }
}
