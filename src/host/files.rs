//! Files from elsewhere: opened only if they are regular files, and read only up to a limit.
//!
//! Opening a FIFO waits for a writer, reading `/dev/zero` never ends, and opening some devices
//! changes them. A path may come from an image or an index, so the kind of a file is checked
//! before it is opened, and once more on the open file.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use crate::units;

/// Opens the regular file at `path` for reading, without ever waiting.
///
/// # Errors
/// Those of the system; [`ErrorKind::InvalidInput`] for a folder, a FIFO, a device or a socket.
pub fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    check_kind(&path.metadata()?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Another file may have taken the name in the meantime.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    check_kind(&metadata)?;
    Ok((file, metadata))
}

/// Locks `file` once no other process has locked it; closing it ends the lock. `None` on a file
/// system without locks. While another process has the lock, calls `wait` again and again, which
/// may sleep: `true` the first time.
///
/// # Errors
/// Those of `wait`.
pub fn lock_when_free<E>(
    file: File,
    wait: &mut dyn FnMut(bool) -> std::result::Result<(), E>,
) -> std::result::Result<Option<File>, E> {
    let mut is_first = true;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => wait(std::mem::replace(&mut is_first, false))?,
        }
    }
}

/// Reads the regular file at `path`, which may have at most `most` bytes.
///
/// # Errors
/// Those of [`open_regular`]; [`ErrorKind::FileTooLarge`] for a larger file.
pub fn read_regular(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut bytes = Vec::new();
    // The size that the system reports may be wrong, as it is for files in /proc.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("it has more than {}", units::bytes(most));
        return Err(Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// [`read_regular`] for a file that must be UTF-8.
pub fn read_regular_text(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read_regular(path, most)?)
        .map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn check_kind(metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let text = format!("it is {}, not a regular file", kind(metadata));
    Err(Error::new(ErrorKind::InvalidInput, text))
}

/// What a file is, with its article.
fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a FIFO";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "a special file"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_the_limit_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_regular_text(&path, 5).unwrap(), "12345");
        assert_eq!(read_regular(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let e = open_regular(folder.path()).unwrap_err();
        assert_eq!(e.to_string(), "it is a folder, not a regular file");
        let e = read_regular(&folder.path().join("y"), 1).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_and_a_device_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for (path, kind) in [(fifo.as_path(), "a FIFO"), (Path::new("/dev/zero"), "a device")] {
            let e = read_regular(path, 10).unwrap_err();
            assert_eq!(e.to_string(), format!("it is {kind}, not a regular file"));
        }
    }
}
