//! Names in the lists of other machines, by the rule that this machine has for its own folders.

use super::Listed;
use crate::library::places::{Called, find_called};

/// What `name` means among `listed`.
pub fn find_listed<'a>(listed: &'a [Listed], name: &str) -> Called<'a, Listed> {
    let name = name.trim_end_matches('/');
    let all: Vec<&Listed> = listed.iter().collect();
    match find_called(&all, |listed| &listed.name, name) {
        // The id of a repository in the Hugging Face cache means its only file.
        Called::None if name.contains('/') => {
            let is_inside =
                |l: &Listed| l.name.strip_prefix(name).is_some_and(|r| r.starts_with('/'));
            let files: Vec<&Listed> = all.into_iter().filter(|l| is_inside(l)).collect();
            match files.as_slice() {
                [] => Called::None,
                [one] => Called::One(one),
                _ => Called::Several(files),
            }
        }
        found => found,
    }
}

/// Whether `name` means one of `listed`.
pub fn is_listed(listed: &[Listed], name: &str) -> bool {
    matches!(find_listed(listed, name), Called::One(_))
}
