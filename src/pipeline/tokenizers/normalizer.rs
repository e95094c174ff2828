//! The steps of a `tokenizer.json` before its model: they are checked before the `tokenizers` crate
//! reads them, and their growth is bounded when they run.

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper};

/// The most bytes that a step may put in place of one match or one character. U+FDFA, a whole
/// sentence, becomes 33.
const MAX_REPLACEMENT: usize = 100;
/// A prompt may become this many times as long, and [`MAX_ADDED`] bytes longer.
const MAX_GROWTH: usize = 16;
const MAX_ADDED: usize = 4096;
/// The most pre-tokenizers, each of which may double the text. CLIP has two.
const MAX_PRE_TOKENIZERS: usize = 4;

/// The normalizer of a file, after its tables were checked.
pub fn read(value: Option<Value>) -> Result<Option<NormalizerWrapper>, String> {
    let Some(value) = value else { return Ok(None) };
    check_tables(&value)?;
    serde_json::from_value(value).map_err(|e| format!("its normalizer cannot be read: {e}"))
}

/// Runs the steps of `normalizer` on `text`, and refuses text that grows far beyond what any
/// language needs. A few steps that replace a letter by a hundred would ask for terabytes.
pub fn check_growth(normalizer: Option<&NormalizerWrapper>, text: &str) -> Result<(), String> {
    let most = text.len().saturating_mul(MAX_GROWTH).saturating_add(MAX_ADDED);
    match normalizer {
        Some(normalizer) => apply(normalizer, &mut NormalizedString::from(text), most),
        None => Ok(()),
    }
}

fn apply(step: &NormalizerWrapper, text: &mut NormalizedString, most: usize) -> Result<(), String> {
    if let NormalizerWrapper::Sequence(steps) = step {
        return steps.as_ref().iter().try_for_each(|step| apply(step, text, most));
    }
    step.normalize(text).map_err(|e| e.to_string())?;
    if text.len() > most {
        return Err(format!(
            "its normalizer makes {} bytes of {}",
            text.len(),
            text.len_original()
        ));
    }
    Ok(())
}

/// Refuses more pre-tokenizers than any real file has.
pub fn check_pre_tokenizers(steps: Option<&PreTokenizerWrapper>) -> Result<(), String> {
    fn count(step: &PreTokenizerWrapper) -> usize {
        match step {
            PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().map(count).sum(),
            _ => 1,
        }
    }
    match steps.map_or(0, count) {
        n if n > MAX_PRE_TOKENIZERS => {
            Err(format!("it has {n} pre-tokenizers, expected at most {MAX_PRE_TOKENIZERS}"))
        }
        _ => Ok(()),
    }
}

/// Refuses tables of characters and replacements that the crate must not see.
fn check_tables(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_tables),
        Value::Object(fields) => {
            if let Some(Value::String(table)) = fields.get("precompiled_charsmap") {
                check_charsmap(table)?;
            }
            for key in ["content", "prepend"] {
                let length = fields.get(key).and_then(Value::as_str).map_or(0, str::len);
                if length > MAX_REPLACEMENT {
                    return Err(format!(
                        "a step of its normalizer inserts {length} bytes, expected at most \
                         {MAX_REPLACEMENT}"
                    ));
                }
            }
            fields.values().try_for_each(check_tables)
        }
        _ => Ok(()),
    }
}

/// Checks a table of characters in base64: the length of a search tree, the tree, and the
/// replacements, each with a zero byte after it.
///
/// The crate allocates as many bytes as the first four bytes say, up to 4 GB, and a refused
/// allocation ends the process instead of a panic that could be caught.
fn check_charsmap(table: &str) -> Result<(), String> {
    // The crate refuses other characters.
    let Some(bytes) = base64(table) else { return Ok(()) };
    let Some((size, rest)) = bytes.split_first_chunk::<4>() else { return Ok(()) };
    let size = u32::from_le_bytes(*size) as usize;
    let Some(replacements) = rest.get(size..) else {
        let length = table.len();
        return Err(format!(
            "its table of characters is damaged: it should have {size} bytes, in {length} of base64"
        ));
    };
    let longest = replacements.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAX_REPLACEMENT {
        return Err(format!(
            "its table of characters inserts {longest} bytes, expected at most {MAX_REPLACEMENT}"
        ));
    }
    Ok(())
}

/// The bytes of base64 text, with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::build::t5_from_json;
    use super::*;

    #[test]
    fn f14_a_table_that_claims_gigabytes_is_refused_before_they_are_allocated() {
        let refused = |table: &str| {
            let file = format!(
                r#"{{"normalizer": {{"type": "Sequence", "normalizers": [
                    {{"type": "Precompiled", "precompiled_charsmap": "{table}"}}]}},
                "model": {{"unk_id": 2, "vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}}}}"#
            );
            t5_from_json(&file).err().unwrap()
        };
        assert!(refused("/////w==").contains("should have 4294967295 bytes, in 8 of base64"));
        assert!(refused("AAAAgAAA").contains("should have 2147483648 bytes"));
        // No tree, and one replacement of 120 bytes.
        let long = format!("AAAAAGFh{}", "YWFh".repeat(40));
        assert!(refused(&long).contains("inserts 122 bytes"), "{}", refused(&long));
        assert_eq!(base64("TWFueQ==").unwrap(), b"Many");
        assert_eq!(base64("TWFu").unwrap(), b"Man");
    }

    /// A tokenizer with these normalizers and these pieces after its first three.
    fn t5(normalizers: &str, pieces: &[&str]) -> Result<tokenizers::Tokenizer, String> {
        let pieces: String = pieces.iter().map(|p| format!(r#", ["{p}", 0.0]"#)).collect();
        t5_from_json(&format!(
            r#"{{"normalizer": {{"type": "Sequence", "normalizers": [{normalizers}]}},
            "model": {{"unk_id": 2, "vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]{pieces}]}}}}"#
        ))
    }

    fn replace(times: usize) -> String {
        let content = "a".repeat(times);
        format!(r#"{{"type": "Replace", "pattern": {{"String": "a"}}, "content": "{content}"}}"#)
    }

    #[test]
    fn steps_that_multiply_text_are_refused() {
        assert!(t5(&replace(1000), &[]).unwrap_err().contains("inserts 1000 bytes"));
        let growing = [replace(100), replace(100), replace(100), replace(100)].join(", ");
        let tokenizer = t5(&growing, &[]).unwrap();
        let check = |text: &str| check_growth(tokenizer.get_normalizer(), text);
        assert!(check("a photo").unwrap_err().contains("makes 10006 bytes of 7"));
        check("xyz").unwrap();
        check_growth(None, "a").unwrap();
    }

    #[test]
    fn many_pre_tokenizers_are_refused() {
        let file = |n: usize| {
            let step = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}"#;
            let steps = vec![step; n].join(", ");
            t5_from_json(&format!(
                r#"{{"pre_tokenizer": {{"type": "Sequence", "pretokenizers": [{steps}]}},
                "model": {{"unk_id": 2, "vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}}}}"#
            ))
        };
        file(4).unwrap();
        assert!(file(30).unwrap_err().contains("30 pre-tokenizers"));
    }

    #[test]
    fn long_pieces_are_refused_before_a_tree_is_built_of_them() {
        t5("", &["d".repeat(512).as_str()]).unwrap();
        let e = t5("", &["d".repeat(200_000).as_str()]).unwrap_err();
        assert!(e.contains("a piece of 200000 bytes"), "{e}");
    }
}
