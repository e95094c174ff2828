//! Files under a temporary name until they are complete.
//!
//! A process that is killed leaves such a file behind, which may have gigabytes. All of them are
//! named `.flux-fast-PROCESS-RANDOM.tmp`, and the next process that writes into the folder removes
//! them. A file that is still being written is locked by its process; where the file system has no
//! locks, the number of the process and the age decide.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::NamedTempFile;

const PREFIX: &str = ".flux-fast-";
const SUFFIX: &str = ".tmp";
/// The start of the names of links and copies, which no process can lock while it makes them.
const UNLOCKED: &str = "link-";
/// A file that is not locked, and whose process cannot be looked up, counts as abandoned at this
/// age.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How often a new file is made again because another process removed it before it was locked.
const TRIES: usize = 8;

/// A new file in `folder` that removes itself unless it gets its final name. It is locked, so that
/// no other process removes it. The umask decides who may read it.
pub fn unfinished_file(folder: &Path) -> Result<NamedTempFile> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(plain)?;
    for _ in 0..TRIES {
        // Another process may lock and remove the file before this one locks it.
        match file.as_file().try_lock() {
            Ok(()) if file.path().exists() => break,
            Err(TryLockError::Error(_)) => break,
            _ => file = builder.tempfile_in(folder).map_err(plain)?,
        }
    }
    Ok(file)
}

/// An error of the system without the temporary name that `tempfile` adds to it: users know the
/// file by its final name.
fn plain(error: std::io::Error) -> std::io::Error {
    if error.raw_os_error().is_some() {
        return error;
    }
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((cause, _)) => std::io::Error::new(error.kind(), cause.to_string()),
        None => error,
    }
}

/// A name in the folder of `path` that no other thread or process uses, for a link or a copy that
/// is made under it and then renamed.
pub fn unfinished_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    path.with_file_name(format!("{PREFIX}{UNLOCKED}{process}-{number}{SUFFIX}"))
}

/// Removes the unfinished files in `folder` whose processes have ended.
pub fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let middle = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        let Some(middle) = middle else { continue };
        let is_unlocked = middle.starts_with(UNLOCKED);
        let process = middle.strip_prefix(UNLOCKED).unwrap_or(middle).split_once('-');
        let Some(process) = process.and_then(|(id, _)| id.parse::<u32>().ok()) else { continue };
        let path = entry.path();
        // The lock is kept until the file is removed.
        let (is_abandoned, _lock) = match lock(&path).filter(|_| !is_unlocked) {
            Some(Ok(file)) => (true, Some(file)),
            Some(Err(TryLockError::WouldBlock)) => (false, None),
            Some(Err(TryLockError::Error(_))) | None => (has_ended(process, &path), None),
        };
        if is_abandoned {
            fs::remove_file(path).ok();
        }
    }
}

/// Tries to lock the regular file at `path`; `None` if it cannot be opened.
fn lock(path: &Path) -> Option<std::result::Result<File, TryLockError>> {
    if !path.symlink_metadata().ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new().write(true).open(path).ok()?;
    Some(file.try_lock().map(|()| file))
}

/// Whether the process that made the file at `path` has ended, as far as the system shows.
fn has_ended(process: u32, path: &Path) -> bool {
    if Path::new("/proc/self").exists() {
        return !Path::new("/proc").join(process.to_string()).exists();
    }
    let modified = path.symlink_metadata().and_then(|facts| facts.modified()).ok();
    modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > ABANDONED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn errors_do_not_contain_the_temporary_name() {
        let folder = tempfile::tempdir().unwrap();
        let e = unfinished_file(&folder.path().join("none")).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
        assert!(!e.to_string().contains(PREFIX), "{e}");
    }

    #[test]
    fn files_of_ended_processes_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let mine = unfinished_file(folder.path()).unwrap();
        let link = unfinished_name(&folder.path().join("x"));
        fs::write(&link, "copying").unwrap();
        // The number of a running process, but nobody has the lock: it was used again.
        let reused = format!(".flux-fast-{}-abc.tmp", std::process::id());
        for name in [
            reused.as_str(),
            ".flux-fast-4294967294-abc.tmp",
            ".flux-fast-link-4294967294-0.tmp",
            ".flux-fast-x.tmp",
            "fox.png",
            ".flux-fast-1-a.png",
        ] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_abandoned(folder.path());
        let name = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_string();
        let mut kept = vec![name(mine.path()), name(&link)];
        kept.extend([".flux-fast-x.tmp", "fox.png", ".flux-fast-1-a.png"].map(String::from));
        if !Path::new("/proc/self").exists() {
            // Only the age shows that its process has ended.
            kept.push(".flux-fast-link-4294967294-0.tmp".into());
        }
        kept.sort();
        assert_eq!(names(folder.path()), kept);
        // A file with its final name is not locked any more.
        mine.persist(folder.path().join("done")).unwrap();
        File::open(folder.path().join("done")).unwrap().try_lock().unwrap();
    }
}
