//! The tag directories that EXIF and TIFF share. Only as much as is needed to write two kinds of
//! blocks, and to find a tag in any block.

use super::image_text::ImageText;

/// The prompt and the settings in TIFF, and a copy in EXIF that simple viewers show.
pub const IMAGE_DESCRIPTION: u16 = 0x010e;
/// The prompt and the settings in EXIF.
pub const USER_COMMENT: u16 = 0x9286;
const EXIF_DIRECTORY: u16 = 0x8769;

/// A tag and its value, big-endian.
pub struct Entry {
    tag: u16,
    kind: u16,
    count: u32,
    value: Vec<u8>,
}

impl Entry {
    pub fn text(tag: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        Entry { tag, kind: 2, count: value.len() as u32, value }
    }

    pub fn shorts(tag: u16, values: &[u16]) -> Self {
        let value = values.iter().flat_map(|v| v.to_be_bytes()).collect();
        Entry { tag, kind: 3, count: values.len() as u32, value }
    }

    pub fn long(tag: u16, value: u32) -> Self {
        Entry { tag, kind: 4, count: 1, value: value.to_be_bytes().to_vec() }
    }

    pub fn ratio(tag: u16, numerator: u32, denominator: u32) -> Self {
        let value = [numerator.to_be_bytes(), denominator.to_be_bytes()].concat();
        Entry { tag, kind: 5, count: 1, value }
    }

    fn bytes(tag: u16, value: Vec<u8>) -> Self {
        Entry { tag, kind: 7, count: value.len() as u32, value }
    }
}

/// The eight bytes before the first directory of a big-endian file.
pub const HEADER: [u8; 8] = *b"MM\0\x2a\0\0\0\x08";

/// The number of bytes that `directory` returns for these entries.
pub fn directory_size(entries: &[Entry]) -> usize {
    let outside = |e: &Entry| if e.value.len() > 4 { e.value.len().next_multiple_of(2) } else { 0 };
    6 + entries.iter().map(|e| 12 + outside(e)).sum::<usize>()
}

/// A directory that will be `at` bytes from the start of the file: the entries in ascending order
/// of their tags, followed by the values that do not fit into their entries.
pub fn directory(entries: &[Entry], at: usize) -> Vec<u8> {
    let mut out = (entries.len() as u16).to_be_bytes().to_vec();
    let mut outside = Vec::new();
    let values_at = at + 6 + 12 * entries.len();
    for entry in entries {
        out.extend(entry.tag.to_be_bytes());
        out.extend(entry.kind.to_be_bytes());
        out.extend(entry.count.to_be_bytes());
        if entry.value.len() <= 4 {
            out.extend(&entry.value);
            out.resize(out.len() + 4 - entry.value.len(), 0);
        } else {
            out.extend(((values_at + outside.len()) as u32).to_be_bytes());
            outside.extend(&entry.value);
            outside.resize(outside.len().next_multiple_of(2), 0);
        }
    }
    out.extend([0; 4]); // no further directory
    out.extend(outside);
    out
}

/// How an EXIF block encodes its text. Each form is smaller than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// UTF-16 in UserComment and a copy in ImageDescription. This is what most tools expect.
    Both,
    /// UTF-16 in UserComment only.
    Wide,
    /// UTF-8 in UserComment, marked as an unknown encoding.
    Narrow,
}

/// An EXIF block with `text`, in at most `limit` bytes and without the `Exif\0\0` that JPEG puts
/// before it. `None` if the text does not fit in any form.
pub fn exif(text: &str, limit: usize) -> Option<Vec<u8>> {
    [Spelling::Both, Spelling::Wide, Spelling::Narrow]
        .into_iter()
        .map(|s| spelled(text, s))
        .find(|b| b.len() <= limit)
}

fn spelled(text: &str, spelling: Spelling) -> Vec<u8> {
    let mut comment =
        if spelling == Spelling::Narrow { [0; 8].to_vec() } else { b"UNICODE\0".to_vec() };
    match spelling {
        Spelling::Narrow => comment.extend(text.as_bytes()),
        Spelling::Both | Spelling::Wide => {
            comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes))
        }
    }
    let mut main = Vec::new();
    if spelling == Spelling::Both {
        main.push(Entry::text(IMAGE_DESCRIPTION, text));
    }
    main.push(Entry::long(EXIF_DIRECTORY, 0));
    let inner_at = HEADER.len() + directory_size(&main);
    main.pop();
    main.push(Entry::long(EXIF_DIRECTORY, inner_at as u32));
    let mut out = HEADER.to_vec();
    out.extend(directory(&main, HEADER.len()));
    out.extend(directory(&[Entry::bytes(USER_COMMENT, comment)], inner_at));
    out
}

/// Tags besides UserComment in which programs write text, with the names that messages use.
/// ComfyUI's nodes use those of the camera.
const TEXT_TAGS: [(u16, &str); 5] = [
    (IMAGE_DESCRIPTION, "ImageDescription"),
    (0x0110, "Model"),
    (0x010f, "Make"),
    (0x0131, "Software"),
    (0x9c9c, "XPComment"),
];

/// The texts of an EXIF block or a TIFF file from any program, UserComment first.
pub fn texts_of(bytes: &[u8]) -> Vec<ImageText> {
    let bytes = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let Some(file) = Reader::new(bytes) else { return vec![] };
    let Some(main) = file.u32(4).map(|at| at as usize) else { return vec![] };
    let comment = || {
        let inner = file.find(main, EXIF_DIRECTORY)?;
        let inner = file.u32_of(inner)? as usize;
        user_comment(file.find(inner, USER_COMMENT)?, file.big)
    };
    let tag = |tag: u16| {
        let value = file.find(main, tag)?;
        Some(match tag {
            0x9c9c => utf16(value, false),
            _ => utf8(value),
        })
    };
    let found = [("UserComment", comment())]
        .into_iter()
        .chain(TEXT_TAGS.iter().map(|(number, name)| (*name, tag(*number))));
    found
        .filter_map(|(name, text)| {
            let text = text.map(|text| text.trim_end_matches('\0').to_string());
            let text = text.filter(|text| !text.is_empty())?;
            Some(ImageText { key: name.into(), text: Some(text) })
        })
        .collect()
}

/// UserComment starts with eight bytes that name its encoding. Some tools write UTF-16 in the
/// opposite byte order to the file's, so the order that gives more letters of English is used: the
/// fields have English names. Others leave the eight bytes out.
fn user_comment(value: &[u8], big: bool) -> Option<String> {
    let Some((mark, text)) = value.split_at_checked(8) else { return Some(utf8(value)) };
    match mark {
        b"UNICODE\0" => {
            let (first, second) = (utf16(text, big), utf16(text, !big));
            let letters = |text: &str| text.chars().filter(char::is_ascii).count();
            Some(if letters(&second) > letters(&first) { second } else { first })
        }
        b"ASCII\0\0\0" | b"JIS\0\0\0\0\0" | [0, 0, 0, 0, 0, 0, 0, 0] => Some(utf8(text)),
        _ => Some(utf8(value)),
    }
}

/// A text in UTF-8, or else in Latin-1.
pub fn utf8(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_string(),
        Err(_) => value.iter().map(|b| char::from(*b)).collect(),
    }
}

fn utf16(value: &[u8], big: bool) -> String {
    let units = value.chunks_exact(2).map(|b| match big {
        true => u16::from_be_bytes([b[0], b[1]]),
        false => u16::from_le_bytes([b[0], b[1]]),
    });
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Whether the pixels of a TIFF's first image are in the file. Files that are not understood here
/// count as complete: their decoder judges them.
pub fn tiff_is_complete(bytes: &[u8]) -> bool {
    const STRIPS: (u16, u16) = (0x0111, 0x0117);
    const TILES: (u16, u16) = (0x0144, 0x0145);
    let Some(file) = Reader::new(bytes) else { return true };
    let Some(main) = file.u32(4).map(|at| at as usize) else { return false };
    if file.u16(main).is_none() {
        return false;
    }
    [STRIPS, TILES].into_iter().all(|(offsets, sizes)| {
        let ranges = file.numbers(main, offsets).zip(file.numbers(main, sizes));
        let Some((offsets, sizes)) = ranges else { return !file.is_cut(main, offsets) };
        let ends = offsets.iter().zip(&sizes).map(|(offset, size)| offset.saturating_add(*size));
        ends.max().is_none_or(|end| end <= bytes.len() as u64)
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let big = match bytes.get(..4)? {
            b"MM\0\x2a" => true,
            b"II\x2a\0" => false,
            _ => return None,
        };
        Some(Reader { bytes, big })
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let b = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.u32_of(self.bytes.get(at..at.checked_add(4)?)?)
    }

    fn u32_of(&self, value: &[u8]) -> Option<u32> {
        let b = value.try_into().ok()?;
        Some(if self.big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
    }

    /// Where the entry of `tag` in the directory at byte `at` is.
    fn entry(&self, at: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.u16(at)?);
        (0..count).map(|i| at + 2 + 12 * i).find(|&entry| self.u16(entry) == Some(tag))
    }

    /// Whether the directory has `tag`, but its value is not in the file.
    fn is_cut(&self, at: usize, tag: u16) -> bool {
        self.entry(at, tag).is_some() && self.find(at, tag).is_none()
    }

    /// The values of `tag` if they are whole numbers of 16 or 32 bits.
    fn numbers(&self, at: usize, tag: u16) -> Option<Vec<u64>> {
        let kind = self.u16(self.entry(at, tag)? + 2)?;
        let value = self.find(at, tag)?;
        let short = |b: &[u8]| {
            let b = [b[0], b[1]];
            u64::from(if self.big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) })
        };
        match kind {
            3 => Some(value.chunks_exact(2).map(short).collect()),
            4 => value.chunks_exact(4).map(|b| self.u32_of(b).map(u64::from)).collect(),
            _ => None,
        }
    }

    /// The value of `tag` in the directory at byte `at`.
    fn find(&self, at: usize, tag: u16) -> Option<&'a [u8]> {
        let entry = self.entry(at, tag)?;
        let unit = match self.u16(entry + 2)? {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 => 8,
            _ => return None,
        };
        let length = (self.u32(entry + 4)? as usize).checked_mul(unit)?;
        let begin = if length <= 4 { entry + 8 } else { self.u32(entry + 8)? as usize };
        self.bytes.get(begin..begin.checked_add(length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(bytes: &[u8]) -> Option<String> {
        texts_of(bytes).into_iter().next()?.text
    }

    #[test]
    fn text_survives_every_spelling_and_the_smallest_that_fits_is_taken() {
        let text = "狐 🦊 a \"fox\",\nSteps: 3";
        for spelling in [Spelling::Both, Spelling::Wide, Spelling::Narrow] {
            assert_eq!(text_of(&spelled(text, spelling)).as_deref(), Some(text), "{spelling:?}");
        }
        let long = "x".repeat(30_000);
        assert_eq!(exif(&long, 65_000).unwrap(), spelled(&long, Spelling::Wide));
        assert_eq!(exif(&long, 50_000).unwrap(), spelled(&long, Spelling::Narrow));
        assert_eq!(exif(&long, 20_000), None);
    }

    #[test]
    fn little_endian_blocks_and_mixed_orders_are_read() {
        let text = "x\nSteps: 3";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(
            user_comment(&[b"UNICODE\0".as_slice(), &little].concat(), true).as_deref(),
            Some(text)
        );
        let mut file =
            b"II\x2a\0\x08\0\0\0\x01\0\x0e\x01\x02\0\x06\0\0\0\x1a\0\0\0\0\0\0\0".to_vec();
        file.extend(b"hello\0");
        assert_eq!(text_of(&file).as_deref(), Some("hello"));
    }

    #[test]
    fn no_cut_and_no_flipped_byte_makes_it_panic() {
        let good = spelled("a fox\nSteps: 3", Spelling::Both);
        for end in 0..good.len() {
            let _ = (text_of(&good[..end]), tiff_is_complete(&good[..end]));
        }
        for i in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[i] = value;
                let _ = (text_of(&bad), tiff_is_complete(&bad));
            }
        }
    }
}
