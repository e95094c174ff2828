//! What a user is told about a LoRA.

use std::path::Path;

use super::Strengths;
use crate::weights::lora::Adapter;

/// A line for the user about a LoRA, and one about its tensors that match no weight, if there are
/// any.
pub fn describe(path: &Path, strength: Strengths, adapter: &Adapter) -> (String, Option<String>) {
    let s = &adapter.summary;
    let ranks: Vec<String> = s.ranks.keys().map(usize::to_string).collect();
    let kinds: Vec<&str> = s.kinds.keys().map(String::as_str).filter(|k| *k != "LoRA").collect();
    let mut words = vec![s.dialect.clone()];
    if !kinds.is_empty() {
        words.push(kinds.join(" + "));
    }
    if !ranks.is_empty() {
        words.push(format!("rank {}", ranks.join(", ")));
    }
    let line = format!(
        "lora: {} at {strength} ({}, {} of {} keys used)",
        path.display(),
        words.join(", "),
        s.matched,
        s.matched + s.unmatched
    );
    let unmatched = (s.unmatched > 0).then(|| {
        let first: Vec<String> =
            s.first_unmatched.iter().map(|u| format!("{} ({})", u.key, u.why)).collect();
        let keys = if s.unmatched == 1 { "key" } else { "keys" };
        format!("{} {keys} of {} are not used: {}", s.unmatched, path.display(), first.join("; "))
    });
    (line, unmatched)
}
