//! The layout of the Hugging Face cache on disk, for reading.
//!
//! A repository is in `models--org--name/{blobs,refs,snapshots}`. A blob has its ETag as its name,
//! `refs/main` contains a commit, and `snapshots/<commit>/` contains the tree of the repository as
//! links to blobs. Other tools read and write the same folders.

use std::fs;
use std::path::{Path, PathBuf};

use super::repo_id::{is_commit, is_inside, is_repo_id};
use crate::host::{Environment, expand, home_folder, read_regular_text, variable};

/// The largest file that names a commit, in bytes.
const MAX_REFERENCE: u64 = 1024;

/// The folder of Hugging Face's tools: `HF_HOME`, else `huggingface` in the user's cache folder.
pub fn hf_home(env: Environment) -> PathBuf {
    let folder = |name| variable(env, name).map(|path| expand(env, &path.to_string_lossy()));
    let user_cache = || {
        folder("XDG_CACHE_HOME")
            .unwrap_or_else(|| home_folder(env).unwrap_or_default().join(".cache"))
    };
    folder("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"))
}

/// The Hugging Face cache: a folder with one subfolder per repository.
#[derive(Debug, Clone)]
pub struct HubCache {
    /// The folder that contains `models--org--name`.
    pub root: PathBuf,
}

impl HubCache {
    /// The cache that `env` names: `HF_HUB_CACHE` or `HUGGINGFACE_HUB_CACHE`, else `hub` in
    /// [`hf_home`].
    pub fn from_env(env: Environment) -> HubCache {
        let path = variable(env, "HF_HUB_CACHE").or_else(|| variable(env, "HUGGINGFACE_HUB_CACHE"));
        let root = match path {
            Some(path) => expand(env, &path.to_string_lossy()),
            None => hf_home(env).join("hub"),
        };
        HubCache { root }
    }

    /// The folder of the repository `id`, which [`is_repo_id`] must accept. It need not exist.
    pub fn repo(&self, id: &str) -> RepoFolder {
        debug_assert!(is_repo_id(id));
        let name = format!("models--{}", id.replace('/', "--"));
        RepoFolder { path: self.root.join(&name), locks: self.root.join(".locks").join(name) }
    }

    /// The ids of all model repositories in the cache, sorted.
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
}

/// The folder of one repository in the cache.
#[derive(Debug, Clone)]
pub struct RepoFolder {
    /// `models--org--name`.
    pub path: PathBuf,
    locks: PathBuf,
}

impl RepoFolder {
    /// The path of the blob with this ETag.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.path.join("blobs").join(etag)
    }

    /// The folder of the snapshot of `commit`.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    /// The file that contains the commit of `revision`.
    pub fn reference(&self, revision: &str) -> PathBuf {
        self.path.join("refs").join(revision)
    }

    /// The lock file of the blob with this ETag.
    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// The commit that the cache has for the branch or tag `revision`.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let text = read_regular_text(&self.reference(revision), MAX_REFERENCE).ok()?;
        Some(text.trim().to_string())
    }

    /// The snapshot of `revision` (a branch, a tag or a commit), if it is in the cache.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = match is_commit(revision) {
            true => revision.to_string(),
            false if is_inside(revision) => self.commit_of(revision)?,
            false => return None,
        };
        Some(self.snapshot(&commit)).filter(|s| is_commit(&commit) && s.is_dir())
    }

    /// The snapshot of `main`; if that was never downloaded, the newest snapshot.
    pub fn current(&self) -> Option<PathBuf> {
        let newest = || {
            let entries = fs::read_dir(self.path.join("snapshots")).into_iter().flatten();
            let folders = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir());
            folders.max_by_key(|p| modified(p))
        };
        self.snapshot_of("main").or_else(newest)
    }
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}
