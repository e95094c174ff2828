//! Files that are not images that can be read, by name, with what to do about them.

use crate::error::Error;

/// The hint for a file of this format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    /// Another program converts it.
    Convert(&'static str),
    /// It is not an image at all.
    Other(&'static str),
}

const IMAGEMAGICK: Advice = Advice::Convert("magick");
const VIDEO: Advice = Advice::Other("save one frame of the video as image.png with a video player");

/// The first bytes of a kind of file: where they are, what they are, what it is.
const KINDS: [(usize, &[u8], &str, Advice); 33] = [
    (0, b"GIF8", "a GIF", IMAGEMAGICK),
    (4, b"ftyp", "a video (MP4, MOV)", VIDEO),
    (4, b"moov", "a video (MOV)", VIDEO),
    (0, b"\x1a\x45\xdf\xa3", "a video (WebM, Matroska)", VIDEO),
    (8, b"AVI ", "a video (AVI)", VIDEO),
    (0, b"FLV\x01", "a video (FLV)", VIDEO),
    (0, b"\0\0\x01\xba", "a video (MPEG)", VIDEO),
    (0, b"\xff\x0a", "a JPEG XL", Advice::Convert("djxl")),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", Advice::Convert("djxl")),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000", IMAGEMAGICK),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000", IMAGEMAGICK),
    (0, b"II\x2b\0", "a BigTIFF", IMAGEMAGICK),
    (0, b"MM\0\x2b", "a BigTIFF", IMAGEMAGICK),
    (0, b"8BPS", "a Photoshop file (PSD)", IMAGEMAGICK),
    (0, b"gimp xcf", "a GIMP file (XCF)", IMAGEMAGICK),
    (0, b"\0\0\x01\0", "an icon (ICO)", IMAGEMAGICK),
    (0, b"qoif", "a QOI", IMAGEMAGICK),
    (0, b"DDS ", "a DDS texture", IMAGEMAGICK),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR", IMAGEMAGICK),
    (0, b"#?RADIANCE", "a Radiance HDR", IMAGEMAGICK),
    (0, b"farbfeld", "a farbfeld", IMAGEMAGICK),
    (0, b"FUJIFILMCCD-RAW", "a raw photo of a camera", IMAGEMAGICK),
    (0, b"II\x2a\0\x10\0\0\0CR", "a raw photo of a camera", IMAGEMAGICK),
    (0, b"%PDF", "a PDF", IMAGEMAGICK),
    (0, b"<svg", "an SVG", IMAGEMAGICK),
    (0, b"<?xml", "an SVG or another XML file", IMAGEMAGICK),
    (0, b"<!DOCTYPE", "a web page", Advice::Other("download the image again")),
    (0, b"<!doctype", "a web page", Advice::Other("download the image again")),
    (0, b"<html", "a web page", Advice::Other("download the image again")),
    (0, b"version https://git-lfs", "a Git LFS pointer", Advice::Other("git lfs pull")),
    (0, b"GGUF", "a model file (GGUF)", Advice::Other("give it to {model}")),
    (8, b"{\"", "a model file (safetensors)", Advice::Other("give it to {model} or {lora}")),
    (0, b"PK\x03\x04", "an archive (ZIP)", Advice::Other("take the image out of it")),
];

/// Brands of files that begin with a box `ftyp`: the first one in this order that a file has says
/// what it is. Many files have a general main brand (`mif1`), and the exact one only in the list of
/// brands that they are compatible with.
const BRANDS: [(&[&[u8; 4]], &str, Advice); 6] = [
    (&[b"avif", b"avis", b"avio"], "an AVIF", IMAGEMAGICK),
    (
        &[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"],
        "a HEIC (a photo of a phone)",
        Advice::Convert("heif-convert"),
    ),
    (&[b"jxl "], "a JPEG XL", Advice::Convert("djxl")),
    (&[b"jp2 ", b"jpx ", b"j2ki", b"j2is"], "a JPEG 2000", IMAGEMAGICK),
    (&[b"crx "], "a raw photo of a camera", IMAGEMAGICK),
    (&[b"mif1", b"mif2", b"msf1", b"miaf"], "a HEIF", Advice::Convert("heif-convert")),
];

/// What the brands in the box `ftyp` at the start of `bytes` say that a file is.
fn brand(bytes: &[u8]) -> Option<(&'static str, Advice)> {
    /// More brands are not looked at; files have about six.
    const MOST: usize = 64;
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let content = rest.strip_prefix(b"ftyp")?;
    let length = (u32::from_be_bytes(*size) as usize).saturating_sub(8).max(4);
    let content = &content[..length.min(content.len())];
    let all: Vec<&[u8]> = content.chunks_exact(4).take(MOST).collect();
    // After the main brand comes the number of its version.
    let is = |brand: &&[u8; 4]| {
        all.iter().enumerate().any(|(i, found)| i != 1 && *found == brand.as_slice())
    };
    let known = BRANDS.iter().find(|(brands, ..)| brands.iter().any(is));
    known.map(|&(_, name, advice)| (name, advice))
}

/// The error for a file that begins with `bytes`.
pub fn refusal(bytes: &[u8]) -> Error {
    let e = Error::argument("this is not an image that can be read")
        .expected("PNG, JPEG, WebP, BMP or TIFF");
    let is_kind = |(at, start, _, _): &&(usize, &[u8], &str, Advice)| {
        bytes.get(*at..).is_some_and(|b| b.starts_with(start))
    };
    let netpbm = matches!(bytes, [b'P', b'1'..=b'7', b'\n' | b' ' | b'\r' | b'\t', ..]);
    let start = || KINDS.iter().find(is_kind).map(|&(_, _, name, advice)| (name, advice));
    let kind = brand(bytes).or_else(start);
    let kind = kind.or(netpbm.then_some(("a Netpbm image (PPM)", IMAGEMAGICK)));
    match kind {
        Some((name, Advice::Convert(program))) => {
            e.found(name).try_(format!("convert it first: {program} INPUT image.png"))
        }
        Some((name, Advice::Other(hint))) => e.found(name).try_(hint),
        None if bytes.is_empty() => e.found("an empty file").try_("give another file"),
        None => e.try_("open it in another program and save it as PNG"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_with_what_to_do() {
        for (bytes, name, hint) in [
            (b"GIF89a\x01\0".as_slice(), "a GIF", "image.png"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF", "magick"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC", "heif-convert"),
            (b"\0\0\0\x18ftypmif1", "a HEIF", "heif-convert"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "an AVIF", "magick"),
            (b"\0\0\0\x20ftypmsf1\0\0\0\0avismsf1iso8", "an AVIF", "magick"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC", "heif-convert"),
            // Past the end of the box there is something else.
            (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "a HEIF", "heif-convert"),
            (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "a video", "image.png"),
            (b"\0\0\0\x18ftypisomavifisommp42", "a video", "image.png"),
            (b"\0\0\0\x14ftypjxl \0\0\0\0jxl ", "a JPEG XL", "djxl"),
            (b"\xff\xff\xff\xffftypmif1", "a HEIF", "heif-convert"),
            (b"\0\0\0\x20ftypisom", "a video", "image.png"),
            (b"\0\0\0\x14ftypqt  ", "a video", "image.png"),
            (b"RIFF\0\0\0\0AVI LIST", "a video", "image.png"),
            (b"\x1a\x45\xdf\xa3\x01", "WebM", "image.png"),
            (b"\xff\x0a\x00\x00", "a JPEG XL", "djxl"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", "djxl"),
            (b"8BPS\0\x01", "PSD", "image.png"),
            (b"II\x2b\0\x08\0\0\0", "a BigTIFF", "image.png"),
            (b"P6\n1 1\n255\n", "PPM", "image.png"),
            (b"<!DOCTYPE html>", "a web page", "download"),
            (b"\x10\0\0\0\0\0\0\0{\"a\":1}", "safetensors", "model"),
            (b"", "an empty file", "another file"),
        ] {
            let e = refusal(bytes);
            assert!(e.found_value().is_some_and(|f| f.contains(name)), "{name}: {e}");
            assert!(e.hint().is_some_and(|h| h.contains(hint)), "{name}: {:?}", e.hint());
            assert!(e.to_string().contains("PNG"));
        }
        assert!(refusal(b"not a picture").found_value().is_none());
    }
}
