//! The image of `--init-img`: checked before the model is opened, decoded afterwards, within the
//! bound on memory. Reference images, which are made smaller at once.

use std::path::{Path, PathBuf};

use super::args::{EngineArgs, RequestArgs};
use crate::error::{Error, Result};
use crate::host;
use crate::pipeline::Engine;
use crate::pipeline::images::ImageFile;
use crate::pipeline::request::{Image, Request, Settings};
use crate::units;
use crate::units::ByteSize;

/// Room for stacks, working memory of the decoders, and what a process may need more when it is
/// started again, in bytes. (The resident set is not exact while threads run.)
const SPARE_BYTES: u64 = 64 << 20;

/// An image file that is there, complete and of a format that can be read.
pub struct StartImage {
    path: PathBuf,
    file: ImageFile,
}

impl StartImage {
    /// The image that the arguments name, if they name one: a file, or stdin for `-`.
    pub fn open(args: &RequestArgs) -> Result<Option<StartImage>> {
        let open = |path: &PathBuf| {
            let (path, file) = match path.as_os_str() == "-" {
                true => ("stdin".into(), ImageFile::read(std::io::stdin().lock(), "stdin")?),
                false => (path.clone(), ImageFile::open(path)?),
            };
            Ok(StartImage { path, file })
        };
        args.init_img.as_ref().map(open).transpose()
    }

    /// The file as it is.
    #[cfg(feature = "server")]
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// An image that stands for the one that is not decoded yet.
    pub fn placeholder() -> Image {
        Image { width: 1, height: 1, rgb: vec![0; 3] }
    }

    /// The image at the size of `request`, if there is memory to decode it within `--ram`.
    pub fn decode_for(
        self,
        request: &Request,
        engine: &EngineArgs,
        pipeline: &Engine,
    ) -> Result<Image> {
        if engine.ram.size().is_some() {
            // If the plan needs more than the image, its number is the one to name.
            pipeline.plan(request)?;
        }
        self.decode(engine, &pipeline.settings(request)?)
    }

    /// The image at the size of `settings`, if there is memory to decode it within `--ram`.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
    fn decode(self, engine: &EngineArgs, settings: &Settings) -> Result<Image> {
        let (width, height) = (settings.width, settings.height);
        let bytes = self.file.fitted_bytes(width, height);
        check_ram(engine.ram.size(), "the image to start from", bytes, &self.path)?;
        self.file.fitted(width, height).map_err(|e| e.at_path(&self.path))
    }
}

/// The reference images that the arguments name, if there is memory to decode them one after
/// another within `ram`.
///
/// # Errors
/// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
pub fn load_references(args: &RequestArgs, ram: Option<ByteSize>) -> Result<Vec<Image>> {
    let load = |path: &PathBuf| {
        let file = ImageFile::open(path)?;
        check_ram(ram, "the reference image", file.reference_bytes(), path)?;
        file.reference().map_err(|e| e.at_path(path))
    };
    args.references.iter().map(load).collect()
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
                    "--ram {enough}M, or save the image smaller or as a PNG that is not \
                     interlaced, which is read row by row"
                )))
        }
        _ => Ok(()),
    }
}
