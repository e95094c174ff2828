//! Whether an image file is complete. Decoders of JPEG fill up what is missing with gray, so this
//! is checked before the pixels are decoded.

use image::ImageFormat;

use super::decoder::ends_early;
use super::exif;
use super::scan::holds_all_blocks;
use crate::error::Result;

/// Refuses a file that ends before its image does.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument).
pub fn check_complete(bytes: &[u8], format: ImageFormat) -> Result<()> {
    let is_complete = match format {
        ImageFormat::Png => png_is_complete(bytes),
        ImageFormat::Jpeg => {
            jpeg_segments(bytes).any(|segment| segment.marker == EOI) && holds_all_blocks(bytes)
        }
        ImageFormat::WebP => riff_is_complete(bytes),
        ImageFormat::Tiff => exif::tiff_is_complete(bytes),
        // The pixels of a BMP are the end of the file, and its decoder misses them.
        _ => true,
    };
    if is_complete { Ok(()) } else { Err(ends_early().found(format!("{} bytes", bytes.len()))) }
}

/// Every chunk up to the last one, IEND, is there.
fn png_is_complete(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((head, body)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        // Four bytes of checksum follow.
        let Some(next) = length.checked_add(4).and_then(|n| body.get(n..)) else { return false };
        if &head[4..] == b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

/// The size in the header is that of everything after its eight bytes.
fn riff_is_complete(bytes: &[u8]) -> bool {
    let size = bytes.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    size.is_some_and(|size| bytes.len() as u64 >= u64::from(size) + 8)
}

/// A segment of a JPEG.
pub struct JpegSegment<'a> {
    /// The second byte of its marker.
    pub marker: u8,
    /// What follows its length; empty for markers without one.
    pub content: &'a [u8],
}

/// The marker of the end of a JPEG.
const EOI: u8 = 0xd9;
/// The marker of a scan, which compressed data follow.
const SOS: u8 = 0xda;

/// The segments of a JPEG, up to its end or to where it is cut or damaged. The compressed data
/// between them are skipped.
pub fn jpeg_segments(bytes: &[u8]) -> impl Iterator<Item = JpegSegment<'_>> {
    let mut rest = bytes.strip_prefix(b"\xff\xd8").unwrap_or_default();
    let mut in_scan = false;
    std::iter::from_fn(move || {
        loop {
            let at = rest.iter().position(|b| *b == 0xff)?;
            if at > 0 && !in_scan {
                // Decoders skip such bytes, too.
                rest = &rest[at..];
                continue;
            }
            let marker = *rest.get(at + 1)?;
            rest = &rest[at + 1..];
            match marker {
                // A fill byte: it may be the start of a marker itself.
                0xff => continue,
                // A data byte 255, or a restart between data.
                0x00 | 0xd0..=0xd7 | 0x01 => {
                    rest = &rest[1..];
                    continue;
                }
                EOI => {
                    rest = &[];
                    return Some(JpegSegment { marker, content: &[] });
                }
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes([*rest.get(1)?, *rest.get(2)?]));
            let content = rest.get(3..(length + 1).max(3))?;
            rest = &rest[(length + 1).max(3)..];
            in_scan = marker == SOS;
            return Some(JpegSegment { marker, content });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg(progressive: bool, restart: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.set_progressive(progressive);
        encoder.set_restart_interval(restart);
        // A thumbnail inside has an end of its own.
        encoder.add_app_segment(1, b"Exif\0\0\xff\xd8\xff\xd9".to_vec()).unwrap();
        let rgb: Vec<u8> = (0..96 * 64 * 3).map(|i| (i * i / 7) as u8).collect();
        encoder.encode(&rgb, 96, 64, jpeg_encoder::ColorType::Rgb).unwrap();
        bytes
    }

    #[test]
    fn a_jpeg_is_complete_only_with_its_last_byte() {
        for (progressive, restart) in [(false, 0), (true, 0), (false, 2)] {
            let whole = jpeg(progressive, restart);
            assert!(check_complete(&whole, ImageFormat::Jpeg).is_ok());
            let more = [whole.as_slice(), b"more"].concat();
            assert!(check_complete(&more, ImageFormat::Jpeg).is_ok());
            for end in 0..whole.len() {
                assert!(check_complete(&whole[..end], ImageFormat::Jpeg).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn a_jpeg_is_complete_only_with_all_its_blocks() {
        for (progressive, restart) in [(false, 0), (true, 0), (false, 2)] {
            let whole = jpeg(progressive, restart);
            // The first scan has blocks of all components in either kind.
            let start = whole.windows(2).position(|w| w == [0xff, SOS]).unwrap() + 14;
            let refused = |bytes: &[u8], what: &str| {
                let outcome = check_complete(bytes, ImageFormat::Jpeg);
                assert!(outcome.is_err(), "{what}, {progressive}, {restart}");
            };
            let end = |bytes: &[u8]| [bytes, &[0xff, EOI]].concat();
            refused(&end(&whole[..start]), "headers only");
            refused(&end(&whole[..start + 20]), "the first bytes");
            if !progressive {
                refused(&end(&whole[..whole.len() * 6 / 10]), "more than half");
                let mut zeros = whole[..whole.len() / 2].to_vec();
                zeros.resize(whole.len() - 2, 0);
                refused(&end(&zeros), "zeros");
            }
        }
    }
}
