//! What clients leave on the server: images to start from, and files of batches. Every owner sees
//! only its own. No name of a client becomes a path: files are called by hashes of names.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::access::hash;
use super::clock::Clock;
use super::fault::Fault;
use super::job::hex;
use crate::pipeline::images::write_beside;

/// The most bytes of one owner and kind.
pub const MAX_BYTES: u64 = 1 << 30;
/// The most entries of one owner and kind.
const MAX_ENTRIES: usize = 10_000;
/// The length of a file's name.
const NAME: usize = 32;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An image to start from.
    Image,
    /// A file of a batch.
    File,
    /// A batch.
    Batch,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Image, Kind::File, Kind::Batch];

    fn folder(self) -> &'static str {
        match self {
            Kind::Image => "images",
            Kind::File => "files",
            Kind::Batch => "batches",
        }
    }

    /// How long entries are kept after they were written.
    pub fn life(self) -> Duration {
        let days = match self {
            Kind::Image => 1,
            Kind::File | Kind::Batch => 30,
        };
        Duration::from_secs(days * 24 * 3600)
    }
}

/// The first line of a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// The name that the client gave it.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// When it was written first, in seconds since 1970.
    pub created: f64,
    /// Data of the API that wrote it.
    pub more: Value,
}

/// The files of all owners.
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Keeps everything in the folder `root`.
    pub fn at(root: PathBuf) -> Self {
        Store { root }
    }

    fn folder(&self, owner: &str, kind: Kind) -> PathBuf {
        self.root.join(kind.folder()).join(&hex(&hash(owner))[..NAME])
    }

    fn path(&self, owner: &str, kind: Kind, name: &str) -> PathBuf {
        self.folder(owner, kind).join(&hex(&hash(name))[..NAME])
    }

    /// Writes an entry, durably; one of the same name is replaced.
    ///
    /// # Errors
    /// 507 if the owner has too many already, 500 if it cannot be written.
    pub fn put(
        &self,
        owner: &str,
        kind: Kind,
        name: &str,
        more: Value,
        bytes: &[u8],
    ) -> Result<Facts, Fault> {
        let folder = self.folder(owner, kind);
        let unwritable = |_| Fault::internal("the file cannot be stored");
        fs::create_dir_all(&folder).map_err(unwritable)?;
        let sizes: Vec<u64> =
            entries(&folder).iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).collect();
        if sizes.len() >= MAX_ENTRIES || sizes.iter().sum::<u64>() + bytes.len() as u64 > MAX_BYTES
        {
            return Err(storage_full());
        }
        let created = self
            .facts(owner, kind, name)
            // An image that is sent again is a new one: older ones make room for it.
            .filter(|_| kind != Kind::Image)
            .map_or_else(|| Clock::after(0).seconds(), |facts| facts.created);
        let facts = Facts { name: name.into(), owner: owner.into(), created, more };
        let mut whole = serde_json::to_vec(&facts)
            .map_err(|e| Fault::internal(format!("the file cannot be stored: {e}")))?;
        whole.push(b'\n');
        whole.extend_from_slice(bytes);
        write_beside(&self.path(owner, kind, name), &whole)?;
        Ok(facts)
    }

    /// The entry of this name.
    pub fn get(&self, owner: &str, kind: Kind, name: &str) -> Option<(Facts, Bytes)> {
        let bytes = Bytes::from(fs::read(self.path(owner, kind, name)).ok()?);
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let facts = serde_json::from_slice(&bytes[..end]).ok()?;
        Some((facts, bytes.slice(end + 1..)))
    }

    /// The facts of the entry of this name.
    pub fn facts(&self, owner: &str, kind: Kind, name: &str) -> Option<Facts> {
        read_facts(&self.path(owner, kind, name))
    }

    /// Deletes the entry of this name. Returns whether there was one.
    pub fn remove(&self, owner: &str, kind: Kind, name: &str) -> bool {
        fs::remove_file(self.path(owner, kind, name)).is_ok()
    }

    /// All entries of `owner`, the newest first.
    pub fn list(&self, owner: &str, kind: Kind) -> Vec<Facts> {
        sorted(&[self.folder(owner, kind)])
    }

    /// The entries of all owners, the oldest last.
    pub fn all(&self, kind: Kind) -> Vec<Facts> {
        sorted(&children(&self.root.join(kind.folder())))
    }

    /// Deletes what has been kept long enough.
    pub fn sweep(&self) {
        for kind in Kind::ALL {
            for folder in children(&self.root.join(kind.folder())) {
                for path in children(&folder) {
                    let written = fs::metadata(&path).and_then(|facts| facts.modified());
                    let age = written.ok().and_then(|written| written.elapsed().ok());
                    if age.is_some_and(|age| age > kind.life()) {
                        fs::remove_file(&path).ok();
                    }
                }
            }
        }
    }
}

/// The code of [`storage_full`].
pub const FULL: &str = "storage_full";

/// The fault of an owner who has stored too much.
pub fn storage_full() -> Fault {
    Fault::new(507, FULL, "too many files are stored on the server").hint("delete some")
}

fn sorted(folders: &[PathBuf]) -> Vec<Facts> {
    let paths = folders.iter().flat_map(|folder| entries(folder));
    let mut all: Vec<Facts> = paths.filter_map(|path| read_facts(&path)).collect();
    all.sort_by(|a, b| b.created.total_cmp(&a.created));
    all
}

fn read_facts(path: &Path) -> Option<Facts> {
    use std::io::{BufRead, BufReader, Read};
    let mut line = Vec::new();
    // The first line is written here, and is not long.
    BufReader::new(fs::File::open(path).ok()?.take(1 << 20)).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The files in a folder that are finished.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let is_name = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() == NAME && name.bytes().all(|b| b.is_ascii_hexdigit())
    };
    children(folder).into_iter().filter(is_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn owners_see_only_their_own_and_names_are_not_paths() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("kept"));
        let name = "../../x.png";
        store.put("a", Kind::Image, name, json!({"n": 1}), b"\nbytes\n").unwrap();
        let (facts, bytes) = store.get("a", Kind::Image, name).unwrap();
        assert_eq!(
            (facts.name.as_str(), facts.more, &bytes[..]),
            (name, json!({"n": 1}), &b"\nbytes\n"[..])
        );
        assert!(store.get("b", Kind::Image, name).is_none());
        assert!(store.get("a", Kind::File, name).is_none());
        store.put("a", Kind::Image, name, json!(2), b"").unwrap();
        store.put("a", Kind::Image, "y", json!(3), b"").unwrap();
        let all: Vec<_> = store.list("a", Kind::Image).into_iter().map(|f| f.name).collect();
        assert_eq!(all, ["y", name]);
        assert_eq!(store.all(Kind::Image).len(), 2);
        store.sweep();
        assert!(store.remove("a", Kind::Image, name) && !store.remove("a", Kind::Image, name));
        assert_eq!(children(folder.path()).len(), 1);
    }
}
