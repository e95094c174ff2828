//! The tag directories that EXIF and TIFF share. Only as much as is needed to write two kinds of
//! blocks, and to find a tag in any block.

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

/// The text of an EXIF block or a TIFF file from any program: UserComment if there is one, else
/// ImageDescription.
pub fn text_of(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let file = Reader::new(bytes)?;
    let main = file.u32(4)? as usize;
    let comment = || {
        let inner = file.find(main, EXIF_DIRECTORY)?;
        let inner = file.u32_of(inner)? as usize;
        user_comment(file.find(inner, USER_COMMENT)?, file.big)
    };
    let description = || {
        let value = file.find(main, IMAGE_DESCRIPTION)?;
        Some(String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned())
    };
    comment().or_else(description).filter(|text| !text.is_empty())
}

/// UserComment starts with eight bytes that name its encoding. Some tools write UTF-16 in the
/// opposite byte order to the file's, so the order that gives readable settings is used.
fn user_comment(value: &[u8], big: bool) -> Option<String> {
    let (mark, text) = value.split_at_checked(8)?;
    if mark != b"UNICODE\0" {
        return Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_string());
    }
    let decode = |big: bool| {
        let units = text.chunks_exact(2).map(|b| match big {
            true => u16::from_be_bytes([b[0], b[1]]),
            false => u16::from_le_bytes([b[0], b[1]]),
        });
        char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>()
    };
    let (first, second) = (decode(big), decode(!big));
    Some(if !first.contains("Steps:") && second.contains("Steps:") { second } else { first })
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

    /// The value of `tag` in the directory at byte `at`.
    fn find(&self, at: usize, tag: u16) -> Option<&'a [u8]> {
        let count = usize::from(self.u16(at)?);
        let entry =
            (0..count).map(|i| at + 2 + 12 * i).find(|&entry| self.u16(entry) == Some(tag))?;
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
            text_of(&good[..end]);
        }
        for i in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[i] = value;
                text_of(&bad);
            }
        }
    }
}
