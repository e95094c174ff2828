//! The normalizer of a `tokenizer.json`, whose tables are looked at before the crate that reads them.

use serde_json::Value;
use tokenizers::NormalizerWrapper;

/// A file's normalizer, once its tables are known to be no longer than the file.
pub fn read(value: Option<Value>) -> std::result::Result<Option<NormalizerWrapper>, String> {
    let Some(value) = value else { return Ok(None) };
    check_tables(&value)?;
    serde_json::from_value(value).map_err(|e| format!("its normalizer cannot be read: {e}"))
}

/// Refuses a table of characters that says it is longer than it is. The crate allocates as much as the first four bytes say, up to 8 GB, and what follows from a
/// refused allocation is no panic that could be caught but the end of the process.
fn check_tables(value: &Value) -> std::result::Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_tables),
        Value::Object(fields) => {
            if let Some(Value::String(table)) = fields.get("precompiled_charsmap") {
                // Six characters of base64 hold 36 bits, of which the number has 32. Other characters the crate refuses.
                let bits = table.bytes().take(6).try_fold(0u64, |bits, c| {
                    let digit = match c {
                        b'A'..=b'Z' => c - b'A',
                        b'a'..=b'z' => c - b'a' + 26,
                        b'0'..=b'9' => c - b'0' + 52,
                        b'+' => 62,
                        b'/' => 63,
                        _ => return None,
                    };
                    Some(bits << 6 | u64::from(digit))
                });
                let size = bits.map(|bits| ((bits >> 4) as u32).swap_bytes());
                if let Some(size) = size.filter(|size| *size as usize > table.len()) {
                    let length = table.len();
                    return Err(format!(
                        "its table of characters promises {size} bytes in {length} characters"
                    ));
                }
            }
            fields.values().try_for_each(check_tables)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::t5_from_json;

    #[test]
    fn f14_a_table_that_promises_gigabytes_is_refused_before_they_are_asked_for() {
        let refused = |table: &str| {
            let file = format!(
                r#"{{"normalizer": {{"type": "Sequence", "normalizers": [{{"type": "Precompiled", "precompiled_charsmap": "{table}"}}]}},
                "model": {{"unk_id": 2, "vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}}}}"#
            );
            t5_from_json(&file).err().unwrap()
        };
        assert!(refused("/////w==").contains("promises 4294967295 bytes in 8 characters"));
        assert!(refused("AAAAgAAA").contains("promises 2147483648 bytes"));
    }
}
