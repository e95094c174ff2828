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

/// The Levenshtein distance: how many characters must be inserted, removed or replaced to turn `a`
/// into `b`.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_single_characters() {
        for (a, b, distance) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ö", "o", 1)]
        {
            assert_eq!((edit_distance(a, b), edit_distance(b, a)), (distance, distance), "{a} {b}");
        }
    }
}
