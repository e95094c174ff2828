//! The Hugging Face cache on disk: where it lies, its folders, and how a file comes under its final name.
//!
//! `models--org--name/{blobs,refs,snapshots}`: a blob is called by its ETag, `refs/main` holds a commit, and `snapshots/<commit>/` holds the repository's
//! tree as links to blobs. Other tools read and write the same folders, and the same locks.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How environment variables are read; tests have their own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process.
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The value of `name` if it is set and not empty.
pub fn set(env: Env, name: &str) -> Option<OsString> {
    env(name).filter(|v| !v.is_empty())
}

/// Whether `name` is set to what Hugging Face's tools take for yes.
pub fn truth(env: Env, name: &str) -> bool {
    set(env, name).is_some_and(|v| {
        matches!(v.to_string_lossy().to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
    })
}

/// The user's home folder.
pub fn home(env: Env) -> Option<PathBuf> {
    set(env, "HOME").or_else(|| set(env, "USERPROFILE")).map(PathBuf::from)
}

/// `~`, `$NAME`, `${NAME}` and `%NAME%` in a path that a person wrote. What is not set stays as it stands.
pub fn expand(env: Env, text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    if let (Some(after), Some(home)) = (text.strip_prefix('~'), home(env))
        && (after.is_empty() || after.starts_with(['/', '\\']))
    {
        out.push_str(&home.to_string_lossy());
        rest = after;
    }
    while let Some(at) = rest.find(['$', '%']) {
        out.push_str(&rest[..at]);
        let (name, whole) = variable(&rest[at..]);
        match set(env, name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value.to_string_lossy()),
            None => out.push_str(&rest[at..at + whole]),
        }
        rest = &rest[at + whole..];
    }
    out.push_str(rest);
    PathBuf::from(out)
}

/// The name of the variable that `text` begins with, and how many bytes stand for it.
fn variable(text: &str) -> (&str, usize) {
    let word = |s: &str| s.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (open, close) = match text {
        t if t.starts_with("${") => (2, "}"),
        t if t.starts_with('%') => (1, "%"),
        _ => (1, ""),
    };
    let name = &text[open..open + word(&text[open..])];
    match text[open + name.len()..].starts_with(close) {
        true if !name.is_empty() => (name, open + name.len() + close.len()),
        _ => ("", 1),
    }
}

/// `HF_HOME`, else `huggingface` in the user's cache folder.
pub fn hf_home(env: Env) -> PathBuf {
    match set(env, "HF_HOME") {
        Some(path) => expand(env, &path.to_string_lossy()),
        None => match set(env, "XDG_CACHE_HOME") {
            Some(path) => expand(env, &path.to_string_lossy()).join("huggingface"),
            None => home(env).unwrap_or_default().join(".cache").join("huggingface"),
        },
    }
}

/// The folder of the cache: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, else `hub` in `HF_HOME`.
pub fn hub_cache(env: Env) -> PathBuf {
    match set(env, "HF_HUB_CACHE").or_else(|| set(env, "HUGGINGFACE_HUB_CACHE")) {
        Some(path) => expand(env, &path.to_string_lossy()),
        None => hf_home(env).join("hub"),
    }
}

/// Whether `id` is `org/name` (or the old `name`), as the hub allows them. No such id leads out of the cache's folder.
pub fn is_repo_id(id: &str) -> bool {
    let part = |p: &str| {
        p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !p.is_empty()
            && !p.starts_with(['-', '.'])
            && !p.ends_with(['-', '.'])
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2
        && parts.iter().all(|p| part(p))
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
        && id.len() <= 96
}

/// Whether `name` is a path that stays below the folder it is joined to, on every system.
pub fn is_inside(name: &str) -> bool {
    let device = |part: &str| {
        let stem = part.split('.').next().unwrap_or_default().to_ascii_uppercase();
        let numbered = |s: &str| s.len() == 4 && (s.starts_with("COM") || s.starts_with("LPT"));
        matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL")
            || numbered(&stem) && stem.ends_with(|c: char| c.is_ascii_digit())
    };
    !name.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
        && name.len() <= 1024
        && name.split('/').all(|p| !p.is_empty() && !p.ends_with(['.', ' ']) && !device(p))
}

/// Whether `text` is a whole commit hash.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The cache in one folder.
#[derive(Debug, Clone)]
pub struct Cache {
    pub root: PathBuf,
}

impl Cache {
    /// The folder of the repository `id`, which must be a repository's id.
    pub fn repo(&self, id: &str) -> RepoFolder {
        debug_assert!(is_repo_id(id));
        let name = format!("models--{}", id.replace('/', "--"));
        RepoFolder { path: self.root.join(&name), locks: self.root.join(".locks").join(name) }
    }

    /// The ids of all model repositories in it, sorted.
    pub fn repos(&self) -> Vec<String> {
        let names = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|n| Some(n.strip_prefix("models--")?.replacen("--", "/", 1)));
        let mut ids: Vec<String> = ids.filter(|id| is_repo_id(id)).collect();
        ids.sort();
        ids
    }

    /// Marks the folder as a cache, for backup programs.
    pub(super) fn tag(&self) {
        let path = self.root.join("CACHEDIR.TAG");
        if !path.exists() {
            let text = "Signature: 8a477f597d28d172789f06886806bc55\n# Downloaded models. See https://bford.info/cachedir/\n";
            fs::write(path, text).ok();
        }
    }
}

/// One repository in the cache.
#[derive(Debug, Clone)]
pub struct RepoFolder {
    pub path: PathBuf,
    locks: PathBuf,
}

impl RepoFolder {
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(etag)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// The snapshot of `revision` (a branch, a tag or a commit), if it is there.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = match is_commit(revision) {
            true => revision.to_string(),
            false if is_inside(revision) => {
                fs::read_to_string(self.path.join("refs").join(revision)).ok()?.trim().into()
            }
            false => return None,
        };
        Some(self.snapshot(&commit)).filter(|s| is_commit(&commit) && s.is_dir())
    }

    /// The snapshot of `main`; where that was never pulled, the newest there is.
    pub fn current(&self) -> Option<PathBuf> {
        let all = || {
            fs::read_dir(self.path.join("snapshots"))
                .into_iter()
                .flatten()
                .filter_map(|e| Some(e.ok()?.path()))
        };
        let age = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
        self.snapshot_of("main").or_else(|| all().filter(|p| p.is_dir()).max_by_key(age))
    }

    /// Notes that `revision` is `commit`, if that is new.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.path.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        let beside = beside(&path);
        let written = folder_of(&path)
            .and_then(|()| fs::write(&beside, commit))
            .and_then(|()| fs::rename(&beside, &path));
        written.map_err(|e| {
            fs::remove_file(&beside).ok();
            unwritable(&path, &e)
        })
    }

    /// Puts `name` of the snapshot `commit` in place: a link to the blob. Where links cannot be made it is the blob itself, if nothing else can
    /// use that yet (`new`), or a copy.
    pub(super) fn point(&self, commit: &str, name: &str, etag: &str, new: bool) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        let up = "../".repeat(name.split('/').count() + 1);
        let blob = self.blob(etag);
        let ways: [Way; 3] = [
            &|at| symlink(Path::new(&format!("{up}blobs/{etag}")), at),
            &|at| fs::hard_link(&blob, at),
            &|at| {
                if new { fs::rename(&blob, at) } else { fs::copy(&blob, at).map(drop) }
            },
        ];
        place(&pointer, &ways).map_err(|e| unwritable(&pointer, &e))
    }
}

/// Makes a file at a path.
type Way<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// Makes `path` in the first of the `ways` that works: beside it, then renamed, so that it is there whole or not at all.
fn place(path: &Path, ways: &[Way]) -> io::Result<()> {
    folder_of(path)?;
    let beside = beside(path);
    let mut outcome = Ok(());
    for way in ways {
        outcome = way(&beside).and_then(|()| fs::rename(&beside, path));
        // Renaming one hard link onto another of the same file leaves both.
        fs::remove_file(&beside).ok();
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(unix)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
fn symlink(target: &Path, at: &Path) -> io::Result<()> {
    let target = target.to_string_lossy().replace('/', "\\");
    std::os::windows::fs::symlink_file(target, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A name of its own beside `path`.
fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// Makes the folder that `path` lies in.
pub(super) fn folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// An error of writing into the cache.
pub(super) fn unwritable(path: &Path, e: &io::Error) -> Error {
    let hint = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space and pull again: what came is kept; or set HF_HUB_CACHE to a folder on a larger disk"
        }
        _ => "set HF_HUB_CACHE to a folder that can be written to",
    };
    Error::output(format!("the Hugging Face cache cannot be written: {e}")).at_path(path).try_(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_home_are_filled_in_and_unknown_ones_stay() {
        let env = |name: &str| match name {
            "HOME" => Some("/home/u".into()),
            "DISK" => Some("/mnt/d".into()),
            _ => None,
        };
        let cases = [
            ("~", "/home/u"),
            ("~/x/~", "/home/u/x/~"),
            ("~other/x", "~other/x"),
            ("$DISK/a", "/mnt/d/a"),
            ("${DISK}a", "/mnt/da"),
            ("%DISK%/b", "/mnt/d/b"),
            ("$NOT/%NOT%/${DISK/5%/$", "$NOT/%NOT%/${DISK/5%/$"),
            ("ä$DISKö", "ä/mnt/dö"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(&env, text), Path::new(expected), "{text}");
        }
    }

    #[test]
    fn ids_and_names_that_lead_elsewhere_are_none() {
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
    fn without_symlinks_a_file_is_linked_or_copied_and_no_half_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, "abc").unwrap();
        let path = folder.path().join("a/b");
        let fails = |at: &Path| {
            fs::write(at, "half")?;
            Err(io::Error::from(io::ErrorKind::Unsupported))
        };
        assert!(place(&path, &[&fails, &fails]).is_err());
        assert!(fs::read_dir(path.parent().unwrap()).unwrap().next().is_none());
        for _ in 0..2 {
            place(&path, &[&fails, &|at| fs::hard_link(&blob, at)]).unwrap();
            place(&path, &[&fails, &fails, &|at| fs::copy(&blob, at).map(drop)]).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
    }
}
