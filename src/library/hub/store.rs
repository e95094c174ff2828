//! Writing into the Hugging Face cache: how files get their final names.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::{remove_abandoned, unfinished_name};
use crate::library::hf_cache::{HubCache, RepoFolder};

/// Creates the folder of the cache, and marks it for backup programs, which then skip it.
pub(super) fn create_cache(cache: &HubCache) -> Result<()> {
    fs::create_dir_all(&cache.root).map_err(|e| unwritable(&cache.root, &e))?;
    let path = cache.root.join("CACHEDIR.TAG");
    if !path.exists() {
        let text = "Signature: 8a477f597d28d172789f06886806bc55\n\
                    # Downloaded models. See https://bford.info/cachedir/\n";
        // The cache works without the mark.
        fs::write(path, text).ok();
    }
    Ok(())
}

/// Writes that `revision` is `commit`, unless the cache says so already.
pub(super) fn write_reference(repo: &RepoFolder, revision: &str, commit: &str) -> Result<()> {
    let path = repo.reference(revision);
    if revision == commit || repo.commit_of(revision).is_some_and(|old| old == commit) {
        return Ok(());
    }
    create(&path, &[&|at| fs::write(at, commit)]).map_err(|e| unwritable(&path, &e))
}

/// Creates the file `name` of the snapshot `commit`: a link to the blob `etag`. Where links cannot
/// be made, the blob itself is moved if it `is_new` and nothing else can refer to it, and copied
/// otherwise.
pub(super) fn link_blob(
    repo: &RepoFolder,
    commit: &str,
    name: &str,
    etag: &str,
    is_new: bool,
) -> Result<()> {
    let pointer = repo.snapshot(commit).join(name);
    let up = "../".repeat(name.split('/').count() + 1);
    let blob = repo.blob(etag);
    let ways: [Way; 3] = [
        &|at| symlink(Path::new(&format!("{up}blobs/{etag}")), at),
        &|at| fs::hard_link(&blob, at),
        &|at| {
            if is_new { fs::rename(&blob, at) } else { fs::copy(&blob, at).map(drop) }
        },
    ];
    create(&pointer, &ways).map_err(|e| unwritable(&pointer, &e))
}

/// A way to make a file at a path.
type Way<'a> = &'a dyn Fn(&Path) -> io::Result<()>;

/// Makes `path` in the first of the `ways` that works. The file is made under a temporary name and
/// renamed, so that it is either complete or absent.
fn create(path: &Path, ways: &[Way]) -> io::Result<()> {
    create_parent(path)?;
    path.parent().into_iter().for_each(remove_abandoned);
    let temporary = unfinished_name(path);
    let mut outcome = Ok(());
    for way in ways {
        outcome = way(&temporary).and_then(|()| fs::rename(&temporary, path));
        // The temporary name is still there if the attempt failed, and also if both names are hard
        // links to the same file, because then the rename does nothing.
        fs::remove_file(&temporary).ok();
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

/// Creates the folder that contains `path`.
pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// The error for a failure to write into the cache.
pub(super) fn unwritable(path: &Path, e: &io::Error) -> Error {
    let hint = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space and pull again (what was received is kept), or set HF_HUB_CACHE to a \
             folder on a larger disk"
        }
        _ => "set HF_HUB_CACHE to a folder that can be written to",
    };
    Error::output(format!("the Hugging Face cache cannot be written: {e}")).at_path(path).try_(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_symlinks_a_file_is_linked_or_copied_and_no_partial_file_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let blob = folder.path().join("blob");
        fs::write(&blob, "abc").unwrap();
        let path = folder.path().join("a/b");
        let fails = |at: &Path| {
            fs::write(at, "half")?;
            Err(io::Error::from(io::ErrorKind::Unsupported))
        };
        assert!(create(&path, &[&fails, &fails]).is_err());
        assert!(fs::read_dir(path.parent().unwrap()).unwrap().next().is_none());
        for _ in 0..2 {
            create(&path, &[&fails, &|at| fs::hard_link(&blob, at)]).unwrap();
            create(&path, &[&fails, &fails, &|at| fs::copy(&blob, at).map(drop)]).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
    }
}
