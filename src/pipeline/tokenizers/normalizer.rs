//! The normalizer of a `tokenizer.json`, whose tables are checked before the `tokenizers` crate
//! reads them.

use serde_json::Value;
use tokenizers::NormalizerWrapper;

/// The normalizer of a file, after its tables were checked.
pub fn read(value: Option<Value>) -> Result<Option<NormalizerWrapper>, String> {
    let Some(value) = value else { return Ok(None) };
    check_tables(&value)?;
    serde_json::from_value(value).map_err(|e| format!("its normalizer cannot be read: {e}"))
}

/// Refuses a table of characters that claims to be longer than it is. The crate allocates as many
/// bytes as the first four bytes say, up to 4 GB, and a refused allocation ends the process instead
/// of a panic that could be caught.
fn check_tables(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_tables),
        Value::Object(fields) => {
            if let Some(Value::String(table)) = fields.get("precompiled_charsmap") {
                // Six characters of base64 are 36 bits, of which the length is the first 32. The
                // crate refuses other characters.
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
                        "its table of characters claims {size} bytes in {length} characters"
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
    use super::super::build::t5_from_json;

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
        assert!(refused("/////w==").contains("claims 4294967295 bytes in 8 characters"));
        assert!(refused("AAAAgAAA").contains("claims 2147483648 bytes"));
    }
}
