//! The texts in image files in which programs keep the settings that made them.

use std::io::Cursor;

use image::{ImageDecoder, ImageFormat};

use super::complete::jpeg_segments;
use super::decoder::{decoder, unreadable};
use super::exif;
use super::image_text::{ImageText, MAX_TEXT_BYTES, PNG_KEY};
use crate::error::Result;

/// How many texts of one file are looked at.
const MAX_TEXTS: usize = 64;

/// Under which keywords programs keep settings in PNG files.
const PNG_KEYS: [&str; 7] = [
    PNG_KEY,
    "invokeai_metadata",
    "prompt",
    "workflow",
    "Comment",
    "UserComment",
    "XML:com.adobe.xmp",
];

/// The texts of an image that may contain settings, in the order of the file.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if the headers cannot be read.
pub fn texts_in(bytes: &[u8], format: ImageFormat) -> Result<Vec<ImageText>> {
    let mut texts = match format {
        ImageFormat::Png => png_texts(bytes),
        ImageFormat::Tiff => exif::texts_of(bytes),
        ImageFormat::Jpeg | ImageFormat::WebP => {
            let mut decoder = decoder(bytes)?;
            let block = decoder.exif_metadata().map_err(unreadable)?;
            let mut texts = block.map_or(vec![], |block| exif::texts_of(&block));
            texts.extend(decoder.xmp_metadata().ok().flatten().map_or(vec![], |x| xmp_texts(&x)));
            if format == ImageFormat::Jpeg {
                texts.extend(jpeg_comments(bytes));
            }
            texts
        }
        _ => {
            return Err(super::metadata::no_settings()
                .found("an image in a format that has no place for them"));
        }
    };
    texts.iter_mut().for_each(split_key);
    texts.truncate(MAX_TEXTS);
    Ok(texts)
}

/// ComfyUI's nodes write `prompt:{...}` and `workflow:{...}` where there are no keywords.
fn split_key(text: &mut ImageText) {
    let Some(content) = text.text.as_deref() else { return };
    if let Some((key, rest)) = content.split_once(':')
        && key.len() < 20
        && key.chars().all(char::is_alphabetic)
        && rest.trim_start().starts_with('{')
    {
        *text = ImageText::new(&key.to_lowercase(), rest.to_string());
    }
}

fn png_texts(bytes: &[u8]) -> Vec<ImageText> {
    let limits = png::Limits { bytes: MAX_TEXT_BYTES };
    let decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    let mut reader = match decoder.read_info() {
        Ok(reader) => reader,
        Err(png::DecodingError::LimitsExceeded) => {
            return vec![ImageText { key: super::PNG_KEY.into(), text: None }];
        }
        Err(_) => return vec![],
    };
    let found = texts_of_png(reader.info());
    if !found.is_empty() {
        return found;
    }
    // Some tools write their text after the pixels, others into EXIF.
    reader.finish().ok();
    let found = texts_of_png(reader.info());
    let exif = || reader.info().exif_metadata.as_ref().map(|block| exif::texts_of(block));
    if found.is_empty() { exif().unwrap_or_default() } else { found }
}

fn texts_of_png(info: &png::Info) -> Vec<ImageText> {
    let is_known = |key: &str| PNG_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key));
    let mut texts = Vec::new();
    for chunk in info.uncompressed_latin1_text.iter().filter(|c| is_known(&c.keyword)) {
        texts.push(ImageText::new(&chunk.keyword, latin_or_utf8(&chunk.text)));
    }
    for chunk in info.compressed_latin1_text.iter().filter(|c| is_known(&c.keyword)) {
        let mut chunk = chunk.clone();
        let text = chunk.decompress_text_with_limit(MAX_TEXT_BYTES).and_then(|()| chunk.get_text());
        let text = text.ok().map(|text| latin_or_utf8(&text));
        texts.push(ImageText { key: chunk.keyword.clone(), text });
    }
    for chunk in info.utf8_text.iter().filter(|c| is_known(&c.keyword)) {
        let mut chunk = chunk.clone();
        let text = chunk.decompress_text_with_limit(MAX_TEXT_BYTES).and_then(|()| chunk.get_text());
        texts.push(ImageText { key: chunk.keyword.clone(), text: text.ok() });
    }
    for text in &mut texts {
        // Some programs write the names in another case.
        let known = PNG_KEYS.iter().find(|known| known.eq_ignore_ascii_case(&text.key));
        text.key = known.map_or_else(|| text.key.clone(), |known| known.to_string());
    }
    let is_xmp = |text: &&ImageText| text.key == "XML:com.adobe.xmp";
    let xmp: Vec<ImageText> = texts
        .iter()
        .filter(is_xmp)
        .filter_map(|text| Some(xmp_texts(text.text.as_deref()?.as_bytes())))
        .flatten()
        .collect();
    texts.retain(|text| !is_xmp(&text));
    texts.extend(xmp);
    texts
}

/// The text of a chunk that is Latin-1 by the standard: `text` has one character per byte. Many
/// programs write UTF-8 there. Text of another language is hardly ever valid UTF-8 by chance.
fn latin_or_utf8(text: &str) -> String {
    if text.is_ascii() {
        return text.to_string();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.and_then(|b| String::from_utf8(b).ok()).unwrap_or_else(|| text.to_string())
}

/// Whether a chunk of Latin-1 with this text would be read as the same text: see
/// [`latin_or_utf8`].
pub fn is_plain_latin(text: &str) -> bool {
    text.is_ascii() || text.chars().all(|c| u32::from(c) < 256) && latin_or_utf8(text) == text
}

/// The comments of a JPEG. stable-diffusion.cpp puts the keyword of its PNG chunk before the text.
fn jpeg_comments(bytes: &[u8]) -> Vec<ImageText> {
    let mut texts = Vec::new();
    for segment in jpeg_segments(bytes).take_while(|s| s.marker != 0xda) {
        if segment.marker == 0xfe {
            let text = exif::utf8(segment.content);
            let text = text.trim_end_matches('\0');
            let text = text.strip_prefix("parameters\0").unwrap_or(text);
            texts.push(ImageText::new("comment", text.to_string()));
        }
    }
    texts
}

/// The texts of the elements and attributes of XMP that look like settings.
fn xmp_texts(bytes: &[u8]) -> Vec<ImageText> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT_BYTES)]);
    // The values of attributes stand in quotes inside of a tag.
    let pieces = text.split(['<', '\u{0}']).flat_map(|piece| {
        let (tag, content) = piece.split_once('>').unwrap_or((piece, ""));
        tag.split('"').chain([content])
    });
    let likely = |piece: &&str| {
        let piece = piece.trim_start();
        piece.contains("Steps:") || piece.starts_with('{')
    };
    let texts = pieces.filter(likely).map(|piece| ImageText::new("xmp", unescape(piece)));
    texts.take(MAX_TEXTS).collect()
}

/// Replaces the entities of XML.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out += before;
        rest = after;
        // Entities are short; an ampersand by itself stays.
        let end = after.bytes().take(10).position(|b| b == b';');
        let entity = end.map(|end| &after[..end]);
        let number = |e: &str| match e.strip_prefix('#')?.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => e[1..].parse().ok(),
        };
        let character = entity.and_then(|entity| match entity {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            other => number(other).and_then(char::from_u32),
        });
        match character.zip(end) {
            Some((character, end)) => {
                out.push(character);
                rest = &after[end + 1..];
            }
            None => out.push('&'),
        }
    }
    out + rest
}
