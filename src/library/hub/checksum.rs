//! The checksum of a file that is being downloaded.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash that the ETag of a file contains. The hub names large files by their SHA-256, small
/// ones by the hash that git gives to a blob.
pub(super) enum Checksum {
    Sha256(Sha256),
    Git(Sha1),
    /// The ETag is not a hash of the file, so there is nothing to compare.
    None,
}

impl Checksum {
    /// The checksum of no bytes, for a file with this ETag. `is_git_hash` says that an ETag of 40
    /// digits is git's hash; git hashes the size in `bytes` together with the file.
    pub fn new(etag: &str, is_git_hash: bool, bytes: Option<u64>) -> Self {
        let is_hex = etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (etag.len(), bytes) {
            (64, _) if is_hex => Checksum::Sha256(Sha256::new()),
            (40, Some(bytes)) if is_hex && is_git_hash => {
                Checksum::Git(Sha1::new_with_prefix(format!("blob {bytes}\0")))
            }
            _ => Checksum::None,
        }
    }

    /// Adds bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Sha256(hash) => hash.update(bytes),
            Checksum::Git(hash) => hash.update(bytes),
            Checksum::None => {}
        }
    }

    /// The hash of the file, if it is not `etag`.
    pub fn mismatch(self, etag: &str) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let found = match self {
            Checksum::Sha256(hash) => hex(&hash.finalize()),
            Checksum::Git(hash) => hex(&hash.finalize()),
            Checksum::None => return None,
        };
        (found != etag).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_of_the_hub_are_compared() {
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        for (etag, is_git_hash) in [(sha256, false), (git, true)] {
            let mismatch = |text: &[u8]| {
                let mut checksum = Checksum::new(etag, is_git_hash, Some(3));
                checksum.update(&text[..1]);
                checksum.update(&text[1..]);
                checksum.mismatch(etag)
            };
            assert_eq!(mismatch(b"abc"), None);
            assert_eq!(mismatch(b"abd").map(|found| found.len()), Some(etag.len()));
        }
        for (etag, is_git_hash) in [(git, false), ("of-another-kind", true)] {
            assert!(matches!(Checksum::new(etag, is_git_hash, Some(3)), Checksum::None));
        }
    }
}
