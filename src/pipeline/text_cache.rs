//! Text embeddings on disk: T5 reads gigabytes of weights for every prompt, and users often repeat
//! a prompt with other seeds.
//!
//! The key of an entry is everything that its numbers depend on (weights, token ids, arithmetic),
//! so an entry is bitwise the output of the encoders. An error of the cache is never an error of
//! the generation: the encoders run instead.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::host::{read_regular, remove_abandoned, unfinished_file};

/// How many entries are kept; the oldest are deleted first. An entry of FLUX.1-dev takes 8 MB.
const ENTRIES: usize = 48;

/// The largest entry that is read, in bytes: more than the embeddings of two long prompts.
const MAX_ENTRY_BYTES: u64 = 256 << 20;

const MAGIC: &[u8; 8] = b"fluxtxt1";

/// A folder of entries.
pub struct TextCache {
    folder: PathBuf,
}

/// The embeddings of a request's prompts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// The hidden states of T5, prompt after prompt: `t5_length x context` each.
    pub context: Vec<f32>,
    /// The pooled embeddings of CLIP, prompt after prompt: `pooled` values each.
    pub pooled: Vec<f32>,
}

impl TextCache {
    /// The entries are files in `cache/text`; the first save creates the folder.
    pub fn new(cache: &Path) -> Self {
        TextCache { folder: cache.join("text") }
    }

    fn path(&self, key: &[u8]) -> PathBuf {
        self.folder.join(format!("{:016x}", fnv(key)))
    }

    /// The entry of `key`, if it exists and is not damaged.
    pub fn load(&self, key: &[u8]) -> Option<Text> {
        let bytes = read_regular(&self.path(key), MAX_ENTRY_BYTES).ok()?;
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        if fnv(body) != u64::from_le_bytes(*sum) {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let (found, rest) = take(rest)?;
        // Two keys may have the same hash: the entry contains the whole key.
        if found != key {
            return None;
        }
        let floats = |bytes: &[u8]| {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let (context, rest) = take(rest)?;
        let (pooled, rest) = take(rest)?;
        rest.is_empty().then(|| Text { context: floats(context), pooled: floats(pooled) })
    }

    /// Stores `text` under `key`. A full disk or a read-only folder is not an error.
    pub fn save(&self, key: &[u8], text: &Text) {
        let mut body = MAGIC.to_vec();
        for part in [key, bytemuck::cast_slice(&text.context), bytemuck::cast_slice(&text.pooled)] {
            body.extend((part.len() as u64).to_le_bytes());
            body.extend(part);
        }
        let sum = fnv(&body);
        body.extend(sum.to_le_bytes());
        let _ = self.write(&self.path(key), &body);
        let _ = self.prune();
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        remove_abandoned(&self.folder);
        let mut file = unfinished_file(&self.folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }

    fn prune(&self) -> std::io::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(&self.folder)?
            .flatten()
            // Another process may be writing a new entry.
            .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        entries.sort();
        let surplus = entries.len().saturating_sub(ENTRIES);
        entries.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// Reads a length of 8 bytes and that many bytes; returns them and the rest.
fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

/// FNV-1a over words of 8 bytes, then over the remaining bytes: fast enough for 8 MB.
fn fnv(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x100_0000_01b3;
    let (words, tail) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |h, w| {
        (h ^ u64::from_le_bytes(*w)).wrapping_mul(PRIME).rotate_left(23)
    });
    tail.iter().fold(hash, |h, &b| (h ^ u64::from(b)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_not_returned() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TextCache::new(dir.path());
        let text = Text { context: vec![1.0, -2.5, f32::MIN_POSITIVE], pooled: vec![0.0, 7.25] };
        assert_eq!(cache.load(b"key"), None);
        cache.save(b"key", &text);
        assert_eq!(cache.load(b"key"), Some(text.clone()));
        assert_eq!(cache.load(b"other"), None);
        let path = cache.path(b"key");
        let whole = fs::read(&path).unwrap();
        for cut in [0, 7, 20, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(cache.load(b"key"), None, "cut to {cut}");
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert_eq!(cache.load(b"key"), None, "a bit of byte {at} flipped");
        }
    }

    #[test]
    fn the_oldest_entries_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TextCache::new(dir.path());
        for i in 0..ENTRIES as u32 + 5 {
            cache.save(&i.to_le_bytes(), &Text { context: vec![i as f32], pooled: vec![] });
        }
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), ENTRIES);
        assert!(cache.load(&(ENTRIES as u32 + 4).to_le_bytes()).is_some());
    }
}
