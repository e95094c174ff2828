//! Reads ComfyUI's `extra_model_paths.yaml`: groups of folders with a common `base_path`. A key may
//! have several folders, one per line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, ScalarStyle};

use crate::error::{Error, Result};
use crate::host::read_regular_text;

/// The largest file that is read, in bytes, and the largest size of its strings after aliases are
/// replaced. ComfyUI's own are much smaller.
const MAX_BYTES: u64 = 1 << 20;
/// The largest number of folders.
const MAX_FOLDERS: usize = 1000;

/// A folder in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraFolder {
    /// The name of the group: `a1111`, `comfyui`, or any other.
    pub group: String,
    /// What the folder is for: `checkpoints`, `loras`, ...
    pub key: String,
    /// The folder.
    pub folder: PathBuf,
    /// Whether it takes precedence over ComfyUI's own folders.
    pub first: bool,
}

/// Reads the file at `path`. `expand` replaces `~` and variables. A relative path starts from the
/// `base_path` of its group, and a relative `base_path` from the folder of the file.
pub fn read(path: &Path, expand: &dyn Fn(&str) -> PathBuf) -> Result<Vec<ExtraFolder>> {
    let broken =
        |what: String| Error::model(format!("not a list of model folders: {what}")).at_path(path);
    let text = read_regular_text(path, MAX_BYTES).map_err(|e| broken(e.to_string()))?;
    let groups = groups(text.trim_start_matches('\u{feff}')).map_err(broken)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut extras = Vec::new();
    for (group, keys) in groups {
        let value = |key: &str| keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.trim());
        let base = folder.join(value("base_path").map_or(PathBuf::new(), expand));
        let first = value("is_default")
            .is_some_and(|v| matches!(v.to_lowercase().as_str(), "true" | "yes" | "on"));
        for (key, value) in keys.iter().filter(|(k, _)| k != "base_path" && k != "is_default") {
            for line in value.lines().map(str::trim).filter(|l| !l.is_empty()) {
                if extras.len() == MAX_FOLDERS {
                    return Err(broken(format!("it has more than {MAX_FOLDERS} folders")));
                }
                let folder = base.join(expand(line));
                extras.push(ExtraFolder { group: group.clone(), key: key.clone(), folder, first });
            }
        }
    }
    Ok(extras)
}

type Groups = Vec<(String, Vec<(String, String)>)>;

/// The keys and strings at depth two, sorted by group. Deeper levels are ignored. Parser events are
/// used instead of a tree, so that a deeply nested file needs neither stack nor memory.
fn groups(text: &str) -> std::result::Result<Groups, String> {
    let mut groups: Groups = Vec::new();
    // The depth of the next event, and the key at depth two whose value comes next.
    let (mut depth, mut key): (usize, Option<String>) = (0, None);
    let mut anchors: BTreeMap<usize, String> = BTreeMap::new();
    // At depth one, keys and values alternate.
    let mut is_value = false;
    let mut bytes = 0;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|e| e.to_string())?;
        let scalar = match &event {
            Event::Scalar(text, style, anchor, _) => {
                let null = *style == ScalarStyle::Plain
                    && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                if *anchor > 0 {
                    anchors.insert(*anchor, text.to_string());
                }
                Some(if null { String::new() } else { text.to_string() })
            }
            Event::Alias(anchor) => Some(anchors.get(anchor).cloned().unwrap_or_default()),
            _ => None,
        };
        // A few long strings that are repeated by aliases would take gigabytes.
        bytes += scalar.as_ref().map_or(0, String::len);
        if bytes as u64 > MAX_BYTES {
            return Err(format!("it has more than {MAX_BYTES} bytes once aliases are replaced"));
        }
        match (&event, scalar) {
            (Event::SequenceStart(..), _) if depth == 0 => {
                return Err("a list instead of groups".to_string());
            }
            (Event::SequenceStart(..), _) => depth += 1,
            (Event::MappingStart(..), _) => {
                depth += 1;
                key = None;
            }
            (Event::MappingEnd | Event::SequenceEnd, _) => {
                depth -= 1;
                match depth {
                    1 => is_value = false,
                    2 => key = None,
                    _ => {}
                }
            }
            (_, Some(text)) => match (depth, key.take()) {
                (0, _) if !text.is_empty() => {
                    return Err("a string instead of groups".to_string());
                }
                (1, _) => {
                    if !is_value {
                        groups.push((text, Vec::new()));
                    }
                    is_value = !is_value;
                }
                (2, None) => key = Some(text),
                (2, Some(key)) => {
                    groups.last_mut().ok_or("a group without a name")?.1.push((key, text))
                }
                // A list instead of lines.
                (3, Some(name)) => {
                    groups.last_mut().ok_or("a group without a name")?.1.push((name.clone(), text));
                    key = Some(name);
                }
                (_, unused) => key = unused,
            },
            _ => {}
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<ExtraFolder>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("extra_model_paths.yaml");
        std::fs::write(&path, text).unwrap();
        let extras = read(&path, &|p| PathBuf::from(p.replace('~', "/home/u")))?;
        let short = |e: ExtraFolder| ExtraFolder {
            folder: e.folder.strip_prefix(folder.path()).unwrap_or(&e.folder).into(),
            ..e
        };
        Ok(extras.into_iter().map(short).collect())
    }

    fn extra(group: &str, key: &str, folder: &str, first: bool) -> ExtraFolder {
        ExtraFolder { group: group.into(), key: key.into(), folder: folder.into(), first }
    }

    #[test]
    fn groups_lines_base_paths_and_comments_are_read() {
        let text = "\u{feff}#Rename this

a1111:
    base_path: ~/webui/

    checkpoints: models/Stable-diffusion
    vae: models/VAE  # ours
    loras: |
         models/Lora
         models/LyCORIS

comfyui:
     is_default: true
     base_path: 'sub dir'
     clip: \"models/clip/\"
     vae: /abs/vae
     unet: [a, b]
empty:
nobase:
  checkpoints: x
";
        let expected = [
            extra("a1111", "checkpoints", "/home/u/webui/models/Stable-diffusion", false),
            extra("a1111", "vae", "/home/u/webui/models/VAE", false),
            extra("a1111", "loras", "/home/u/webui/models/Lora", false),
            extra("a1111", "loras", "/home/u/webui/models/LyCORIS", false),
            extra("comfyui", "clip", "sub dir/models/clip/", true),
            extra("comfyui", "vae", "/abs/vae", true),
            extra("comfyui", "unet", "sub dir/a", true),
            extra("comfyui", "unet", "sub dir/b", true),
            extra("nobase", "checkpoints", "x", false),
        ];
        assert_eq!(of(text).unwrap(), expected);
    }

    #[test]
    fn deeper_levels_are_ignored_and_broken_files_are_errors() {
        let text = "
g:
  checkpoints: a
  more: {x: {y: z}}
  vae: b
h: text
i:
  base_path: &b c
  loras: *b
  ? [k]
  : v
";
        let expected = [
            extra("g", "checkpoints", "a", false),
            extra("g", "vae", "b", false),
            extra("i", "loras", "c/c", false),
        ];
        assert_eq!(of(text).unwrap()[..3], expected);
        assert_eq!(of("").unwrap(), []);
        assert_eq!(of("# only words\n").unwrap(), []);
        for bad in
            ["- a\n- b\n", "a: b: c\n", "a:\n\tb: c\n", "just words", "a: [", "a:\n  b: \"x\n"]
        {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        // Aliases and long lists are bounded.
        let long = "A".repeat(5000);
        let bomb = format!("g:\n  vae: &a \"{long}\"\n{}", "  loras: *a\n".repeat(1000));
        assert!(of(&bomb).unwrap_err().to_string().contains("aliases are replaced"));
        let many = |n: usize| format!("g:\n  loras: [{}]", "x, ".repeat(n));
        assert_eq!(of(&many(1000)).unwrap().len(), 1000);
        assert!(of(&many(1001)).unwrap_err().to_string().contains("more than 1000 folders"));
        // Deep nesting needs neither stack nor memory.
        for (open, n) in [("[", 200_000), ("{a: ", 100_000), ("- ", 100_000)] {
            of(&format!("g: {}", open.repeat(n))).ok();
        }
    }
}
