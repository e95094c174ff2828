//! Names of repositories of a hub, of their revisions and of their files.
//!
//! Nothing here uses the network. A name that passes these checks can be joined to a folder without
//! leading out of it.

use crate::error::{Error, Result};

/// The address of the hub of Hugging Face.
pub const HUGGING_FACE: &str = "https://huggingface.co";

/// Whether `id` is `org/name`, or the old form `name`, as the hub permits them.
pub fn is_repo_id(id: &str) -> bool {
    let is_part = |p: &str| {
        p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !p.is_empty()
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2
        && parts.iter().all(|p| is_part(p))
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
        && id.len() <= 96
}

/// Whether `text` is a complete commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `name` is a relative path that stays below the folder that it is joined to, on every
/// operating system.
pub fn is_inside(name: &str) -> bool {
    let is_device = |part: &str| {
        let stem = part.split('.').next().unwrap_or_default().to_ascii_uppercase();
        let is_port = stem.len() == 4 && (stem.starts_with("COM") || stem.starts_with("LPT"));
        matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL")
            || is_port && stem.ends_with(|c: char| c.is_ascii_digit())
    };
    !name.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
        && name.len() <= 1024
        && name.split('/').all(|p| !p.is_empty() && !p.ends_with(['.', ' ']) && !is_device(p))
}

/// A repository of a hub, one of its revisions, and possibly one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoRef {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` if none was given.
    pub revision: String,
    /// The path of a file in the repository.
    pub file: Option<String>,
}

impl RepoRef {
    /// Reads `org/name`, `org/name@revision`, `org/name/file`, or the address of a repository or a
    /// file, as a browser shows it. `endpoint` is the address of the hub, such as [`HUGGING_FACE`].
    pub fn parse(text: &str, endpoint: &str) -> Result<RepoRef> {
        let wrong = || {
            Error::argument("not a repository of the hub")
                .found(format!("{text:?}"))
                .expected("org/name, org/name@revision or org/name/file.safetensors")
        };
        let hosts = [endpoint.trim_end_matches('/'), HUGGING_FACE, "https://hf.co", "hf:/"];
        let path = hosts.iter().find_map(|h| text.strip_prefix(h)?.strip_prefix('/'));
        let is_address = path.is_some();
        let path =
            path.unwrap_or(text).split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let [org, name, rest @ ..] = parts.as_slice() else { return Err(wrong()) };
        let (name, mut revision) = name.split_once('@').unwrap_or((name, "main"));
        let rest = match rest {
            ["resolve" | "blob" | "tree", at, rest @ ..] if is_address => {
                revision = at;
                rest
            }
            rest => rest,
        };
        let (repo, file) = (format!("{org}/{name}"), rest.join("/"));
        let file = Some(file).filter(|file| !file.is_empty());
        let is_file_inside = file.as_deref().is_none_or(is_inside);
        if !is_repo_id(&repo) || !is_inside(revision) || !is_file_inside {
            return Err(wrong());
        }
        Ok(RepoRef { repo, revision: revision.to_string(), file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_paths_that_lead_elsewhere_are_rejected() {
        for good in ["org/name", "name", "black-forest-labs/FLUX.1-dev", "a_b/c.d"] {
            assert!(is_repo_id(good), "{good}");
        }
        for bad in [
            "", "/", "a/b/c", "../x", "a/..", "a--b", "a/b.git", ".a", "a/-b", "a b", "a/b\0",
            "C:/x", "a\\b",
        ] {
            assert!(!is_repo_id(bad), "{bad}");
        }
        for good in ["a", "vae/x-00001-of-00002.safetensors", "refs/pr/1", "..a", "ö/ü"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "./a",
            "a\\b",
            "C:x",
            "a\0",
            "con",
            "x/NUL.txt",
            "com1",
            "a ",
            "a\nb",
        ] {
            assert!(!is_inside(bad), "{bad:?}");
        }
    }

    #[test]
    fn ids_files_and_addresses_are_read() {
        let dev = "black-forest-labs/FLUX.1-dev";
        for (text, revision, file) in [
            (dev, "main", None),
            ("black-forest-labs/FLUX.1-dev@abc", "abc", None),
            ("black-forest-labs/FLUX.1-dev/vae/x.sft", "main", Some("vae/x.sft")),
            ("hf://black-forest-labs/FLUX.1-dev/a.safetensors", "main", Some("a.safetensors")),
            ("https://huggingface.co/black-forest-labs/FLUX.1-dev/", "main", None),
            ("https://huggingface.co/black-forest-labs/FLUX.1-dev/tree/refs", "refs", None),
            (
                "https://hf.co/black-forest-labs/FLUX.1-dev/blob/v1/a.gguf?download=true",
                "v1",
                Some("a.gguf"),
            ),
            ("https://mirror.example/black-forest-labs/FLUX.1-dev", "main", None),
        ] {
            let expected = RepoRef {
                repo: dev.to_string(),
                revision: revision.to_string(),
                file: file.map(str::to_string),
            };
            assert_eq!(
                RepoRef::parse(text, "https://mirror.example/").unwrap(),
                expected,
                "{text}"
            );
        }
        for bad in [
            "",
            "name",
            "/a/b",
            "../a/b",
            "a/b/../c",
            "https://evil.example/a/b",
            "a/b@../c",
            "a/b\\c",
        ] {
            let e = RepoRef::parse(bad, HUGGING_FACE).unwrap_err();
            assert_eq!(e.kind(), crate::error::Kind::Argument, "{bad}");
        }
    }
}
