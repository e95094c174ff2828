//! "Did you mean": names that are similar to one that was not found.

use std::path::Path;

use crate::error::Error;

/// The error for a path where nothing exists. The hint lists similar names in the same folder.
pub fn no_such_path(path: &Path) -> Error {
    let wanted = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut near: Vec<(usize, String)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .map(|name| (edit_distance(&wanted, &name.to_lowercase()), name))
        .filter(|(d, name)| *d <= 3.max(name.len() / 3))
        .collect();
    near.sort();
    let e = Error::missing("no such file or folder").at_path(path);
    match near.as_slice() {
        [] if folder.is_dir() => e,
        [] => e.try_(format!("the folder {} does not exist either", folder.display())),
        near => {
            let names: Vec<&str> = near.iter().take(3).map(|(_, n)| n.as_str()).collect();
            e.try_(format!("did you mean {}?", names.join(" or ")))
        }
    }
}

/// How many characters must be inserted, removed, replaced, or swapped with their neighbour to turn
/// `a` into `b`; no part of the text is changed twice.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Distances of the first `i - 1`, `i` and `i + 1` characters of `a` to all starts of `b`.
    let mut before = vec![0; b.len() + 1];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1; b.len() + 1];
        for (j, y) in b.iter().enumerate() {
            let other = usize::from(x != y);
            next[j + 1] = (row[j] + other).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && (x, &a[i - 1]) == (&b[j - 1], y) {
                next[j + 1] = next[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_single_characters() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("ö", "o", 1),
            ("dev", "dve", 1),
        ] {
            assert_eq!((edit_distance(a, b), edit_distance(b, a)), (distance, distance), "{a} {b}");
        }
    }
}
