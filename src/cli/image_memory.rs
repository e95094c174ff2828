//! The memory to decode images, compared with the bound on it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host;
use crate::pipeline::images::ImageFile;
use crate::units;
use crate::units::ByteSize;

/// Room for stacks, working memory of the decoders, and what a process may need more when it is
/// started again, in bytes. (The resident set is not exact while threads run.)
const SPARE_BYTES: u64 = 64 << 20;

/// How an image file is decoded.
#[derive(Debug, Clone, Copy)]
pub enum Reading {
    /// As a whole, whatever its format.
    Whole,
    /// Row by row, if it is a PNG.
    PngRows,
    /// Row by row, where its format allows it.
    Rows,
}

/// An image file that is to be decoded.
#[derive(Clone)]
pub struct Decoding {
    /// What the image is, in errors.
    pub what: &'static str,
    /// The parameter that names the file, if errors name it.
    pub parameter: Option<&'static str>,
    pub reading: Reading,
    pub path: PathBuf,
    /// The memory that decoding needs, in bytes.
    pub bytes: u64,
    /// The part of it that the image keeps, in bytes.
    pub kept: u64,
    /// The memory that was too much when the image did not fit, or 0, in bytes.
    pub refused: u64,
}

impl Decoding {
    /// Of the file at `path`, which needs `bytes` and keeps none of them.
    pub fn of(what: &'static str, reading: Reading, path: &Path, bytes: u64) -> Decoding {
        Decoding { what, parameter: None, reading, path: path.into(), bytes, kept: 0, refused: 0 }
    }

    /// Of `file`, which is decoded and kept in its own size.
    pub fn whole(what: &'static str, path: &Path, file: &ImageFile, bytes: u64) -> Decoding {
        let (width, height) = file.size();
        let channels = if file.has_alpha() { 4 } else { 3 };
        let kept = channels * (width * height) as u64;
        Decoding { kept, ..Decoding::of(what, Reading::Whole, path, bytes) }
    }

    /// Whether there is memory for it now, within `ram`. If not, [`check`] refuses it, too, even if
    /// the process is smaller by then (memory was released or moved to swap): the run would draw
    /// without the image.
    pub fn fits(&mut self, ram: Option<ByteSize>) -> bool {
        let need = self.need(host::steady_memory());
        let fits = ram.is_none_or(|ram| need <= ram.0);
        self.refused = if fits { 0 } else { need };
        fits
    }

    /// The memory of the process while the image is decoded, in bytes, if it has `held` before.
    fn need(&self, held: u64) -> u64 {
        (held + self.bytes + SPARE_BYTES).max(self.refused)
    }

    /// The error for an image that needs `need` bytes, more than `ram`, in a run that needs
    /// `enough` MB.
    fn refusal(&self, ram: ByteSize, need: u64, enough: u64) -> Error {
        let or = match self.reading {
            Reading::Whole => "",
            Reading::PngRows => ", or as a PNG that is not interlaced, which is read row by row",
            Reading::Rows => {
                ", or as a PNG that is not interlaced or a JPEG that is not progressive, which \
                 are read row by row"
            }
        };
        let decoding = megabytes(need);
        let expected = match enough > decoding {
            true => format!("at least {decoding} MB to decode it, and {enough} MB to draw"),
            false => format!("at least {enough} MB to decode it"),
        };
        let error = Error::memory(format!("{} does not fit in the bound on memory", self.what))
            .with_code("budget_too_small")
            .at_path(&self.path)
            .found(units::bytes(ram.0))
            .expected(expected)
            .try_(format!("--ram {enough}M, or save the image smaller{or}"));
        match self.parameter {
            Some(parameter) => error.at_parameter(parameter),
            None => error,
        }
    }
}

/// Checks that the images of `decodings` can be decoded one after another within `ram`. A refusal
/// names what is enough for all of them and for the run, which needs `run_bytes`.
///
/// # Errors
/// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
pub fn check(decodings: &[Decoding], ram: ByteSize, run_bytes: u64) -> Result<()> {
    check_after(host::steady_memory(), decodings, ram, run_bytes)
}

/// [`check`] in a process that has `held` bytes.
fn check_after(mut held: u64, decodings: &[Decoding], ram: ByteSize, run_bytes: u64) -> Result<()> {
    let needs: Vec<u64> = decodings
        .iter()
        .map(|decoding| {
            let need = decoding.need(held);
            held += decoding.kept;
            need
        })
        .collect();
    let most = needs.iter().copied().max().unwrap_or(0);
    let enough = megabytes(most).max(run_bytes.div_ceil(1_000_000));
    match decodings.iter().zip(&needs).find(|(_, need)| **need > ram.0) {
        Some((decoding, need)) => Err(decoding.refusal(ram, *need, enough)),
        None => Ok(()),
    }
}

/// `bytes` in MB, rounded up, with some room: it may be somewhat more at the next start.
fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000) + 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::Typed;

    /// The bound that the refusal of `decodings` in 1 MB names.
    fn named(decodings: &[Decoding], run_bytes: u64) -> u64 {
        let refused =
            check_after(100 << 20, decodings, ByteSize(1_000_000), run_bytes).unwrap_err();
        let refused = refused.in_words(&Typed).hint().unwrap();
        let number = refused.split("--ram ").nth(1).and_then(|text| text.split('M').next());
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{refused}"))
    }

    #[test]
    fn a_refusal_names_what_is_enough_for_all_images_and_the_run() {
        let image = |bytes, kept| Decoding {
            kept,
            ..Decoding::of("the image", Reading::Whole, Path::new("a.png"), bytes)
        };
        let (small, large) = (image(100 << 20, 50 << 20), image(1 << 30, 500 << 20));
        // The images before it are in memory while one is decoded.
        let one = named(std::slice::from_ref(&large), 0);
        let both = named(&[small.clone(), large.clone()], 0);
        assert!((48..64).contains(&(both - one)), "{one} {both}");
        assert_eq!(named(&[small, large.clone()], 9_000_000_000), 9_000);
        let enough = ByteSize(one * 1_000_000);
        assert!(check_after(100 << 20, std::slice::from_ref(&large), enough, 0).is_ok());
        let mut late = large;
        assert!(late.fits(Some(ByteSize(1 << 40))) && late.fits(None));
        // What did not fit is refused later, too, though the process may be smaller then.
        let bound = ByteSize(1 << 30);
        assert!(!late.fits(Some(bound)));
        late.bytes = 0;
        assert!(check(&[late], bound, 0).is_err());
    }
}
