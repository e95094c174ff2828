//! A file that was read, and whether it is still the same one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenedFile {
    /// Where it is.
    pub path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device, number, and the time of the last change of the file itself, where there are any: a
    /// copy may have the length and the modification time of another file.
    inode: Option<[i64; 4]>,
}

/// How often a file is read again that was replaced in the meantime.
const READS: usize = 5;

impl OpenedFile {
    /// The file at `path` as it is now.
    pub fn at(path: PathBuf) -> Result<OpenedFile> {
        let metadata = path
            .metadata()
            .map_err(|e| Error::missing(format!("cannot be read: {e}")).at_path(&path))?;
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            let (device, number) = (metadata.dev() as i64, metadata.ino() as i64);
            Some([device, number, metadata.ctime(), metadata.ctime_nsec()])
        };
        #[cfg(not(unix))]
        let inode = None;
        Ok(OpenedFile { path, bytes: metadata.len(), modified: metadata.modified().ok(), inode })
    }

    /// A text that another file does not have, as far as path, length and time tell.
    pub fn key(&self) -> String {
        format!("{} {} {:?}", self.path.display(), self.bytes, self.modified)
    }

    /// Calls `read` with the path. If the file is replaced meanwhile, it is read again, and this
    /// becomes the file that was read.
    ///
    /// # Errors
    /// Those of `read`; [`Kind::Model`](crate::error::Kind::Model) if the file is replaced again
    /// and again.
    pub fn read<T>(&mut self, mut read: impl FnMut(&Path) -> Result<T>) -> Result<T> {
        for _ in 0..READS {
            let outcome = read(&self.path);
            let now = OpenedFile::at(self.path.clone())?;
            if std::mem::replace(self, now.clone()) == now {
                return outcome;
            }
        }
        Err(Error::model("the file is replaced again and again while it is read")
            .at_path(&self.path)
            .try_("run again when the program that writes it has ended"))
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_while_it_is_read_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let time = SystemTime::UNIX_EPOCH;
        // The same length and the same time: only the file is another one.
        let put = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        put("old");
        let mut file = OpenedFile::at(path.clone()).unwrap();
        let before = file.clone();
        let mut reads = 0;
        let text = file.read(|path| {
            reads += 1;
            let text = std::fs::read_to_string(path).unwrap();
            if reads == 1 {
                put("new");
            }
            Ok(text)
        });
        assert_eq!((text.unwrap().as_str(), reads), ("new", 2));
        assert_eq!(file, OpenedFile::at(path.clone()).unwrap());
        assert_ne!(file, before);
        // A file that never rests is an error.
        let mut n = 0;
        let e = file.read(|_| {
            n += 1;
            std::fs::write(&path, "x".repeat(10 + n)).unwrap();
            Ok(())
        });
        assert!(e.unwrap_err().to_string().contains("again and again"));
    }
}
