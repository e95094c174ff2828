//! Writes a file completely or not at all: under a temporary name first, then renamed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::encode::{DEFAULT_QUALITY, Format, encode};
use super::metadata;
use crate::error::{Error, Result};
use crate::pipeline::request::{Generated, Image, Settings};

/// The start of the names of unfinished files; the process id and random letters follow.
const PREFIX: &str = ".flux-fast-";
const SUFFIX: &str = ".tmp";
/// Where the system cannot be asked for processes, an unfinished file of this age counts as
/// abandoned.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// What is stored in an image file besides the pixels.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    /// What determined the image.
    pub settings: &'a Settings,
    /// The number of the image among `settings.count` images, from 0.
    pub index: usize,
}

/// Writes `picture` to `path` completely, or leaves what was there.
pub fn save(
    picture: &Image,
    path: &Path,
    format: Format,
    quality: u8,
    metadata: &Metadata,
) -> Result<()> {
    let bytes = to_bytes(picture, format, quality, metadata).map_err(|e| e.at_path(path))?;
    write_beside(path, &bytes)
}

/// The bytes of the file that [`save`] writes.
pub fn to_bytes(
    picture: &Image,
    format: Format,
    quality: u8,
    metadata: &Metadata,
) -> Result<Vec<u8>> {
    encode(picture, format, quality, &metadata::write(metadata.settings, metadata.index))
}

impl Generated {
    /// Writes the images with their settings inside, and returns the paths. The extension of `path`
    /// gives the format: png, jpg, webp, bmp (without settings) or tiff; none is PNG. A single
    /// image gets exactly this path; several are numbered, `fox-1.png`, `fox-2.png` and so on. Each
    /// file is written whole or not at all, and replaces one that is there.
    ///
    /// # Errors
    /// [`Kind::Output`](crate::error::Kind::Output) if a file cannot be written,
    /// [`Kind::Argument`](crate::error::Kind::Argument) for an unknown extension.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let path = path.as_ref();
        let format = match path.extension() {
            None => Format::Png,
            Some(extension) => Format::parse(&extension.to_string_lossy()).ok_or_else(|| {
                Error::argument("this extension is not an image format")
                    .at_path(path)
                    .expected("png, jpg, webp, bmp or tiff")
            })?,
        };
        let mut paths = Vec::new();
        for (index, image) in self.images.iter().enumerate() {
            let path = match self.images.len() {
                1 => path.to_path_buf(),
                _ => with_suffix(path, &format!("-{}", index + 1)),
            };
            let metadata = Metadata { settings: &self.settings, index };
            save(image, &path, format, DEFAULT_QUALITY, &metadata)?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// `path` with `suffix` between the stem of its name and its extension.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!("{stem}{suffix}.{extension}"),
        _ => format!("{name}{suffix}"),
    })
}

/// Checks before the work starts whether `path` can be written: its folder exists and accepts new
/// files, and the name is one that a file can have. Also removes unfinished files that a killed
/// process left there.
pub fn probe_output(path: &Path) -> Result<()> {
    let Target::File { folder, path } = target(path)? else { return Ok(()) };
    sweep(&folder);
    let file = temporary(&folder).map_err(|e| failed(e, &path))?;
    // The file system decides which names are allowed (length, characters), so ask it.
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e, &path)),
        _ => file.close().map_err(|e| failed(e, &path)),
    }
}

/// Writes `bytes` to a new file in the folder of `path`, makes sure that they are on the disk, and
/// renames the file. Devices and pipes are written directly.
pub fn write_beside(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<Result<()>> {
        let (folder, path) = match target(path) {
            Ok(Target::File { folder, path }) => (folder, path),
            Ok(Target::Stream) => {
                let mut stream = fs::OpenOptions::new().write(true).open(path)?;
                stream.write_all(bytes)?;
                return stream.flush().map(Ok);
            }
            Err(error) => return Ok(Err(error)),
        };
        let mut file = temporary(&folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|e| e.error)?;
        // The name should survive a power failure, too. Not every file system supports that, and
        // the file is complete in any case.
        if let Ok(folder) = fs::File::open(&folder) {
            folder.sync_all().ok();
        }
        Ok(Ok(()))
    };
    write().unwrap_or_else(|e| Err(failed(e, path)))
}

enum Target {
    /// A regular file, or nothing yet. Links are followed: the file that they point to is replaced,
    /// not the link.
    File { folder: PathBuf, path: PathBuf },
    /// A device, a pipe or a socket.
    Stream,
}

fn target(path: &Path) -> Result<Target> {
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        return Err(Error::output("this is not a file name")
            .at_path(path)
            .try_("give a name such as fox.png"));
    }
    match fs::metadata(path) {
        Ok(facts) if facts.is_dir() => {
            return Err(Error::output("a folder has this name")
                .at_path(path)
                .try_("give another name"));
        }
        Ok(facts) if !facts.is_file() => return Ok(Target::Stream),
        _ => {}
    }
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    match fs::metadata(&folder) {
        Ok(facts) if facts.is_dir() => Ok(Target::File { folder, path }),
        Ok(_) => Err(Error::output("the output's folder is a file")
            .at_path(&folder)
            .try_("give another {output}")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::output("the output's folder does not exist")
                .at_path(&folder)
                .try_(format!("mkdir -p {}", folder.display())))
        }
        Err(e) => Err(failed(e, &folder)),
    }
}

/// A file that removes itself unless it gets its final name. The umask decides who may read it.
fn temporary(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Removes the unfinished files of processes that have ended.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let middle = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        let Some(process) = middle.and_then(|m| m.split_once('-')?.0.parse::<u32>().ok()) else {
            continue;
        };
        let gone = if Path::new("/proc/self").exists() {
            !Path::new("/proc").join(process.to_string()).exists()
        } else {
            let age =
                entry.metadata().and_then(|f| f.modified()).ok().and_then(|t| t.elapsed().ok());
            age.is_some_and(|age| age > ABANDONED)
        };
        if gone {
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn failed(error: io::Error, path: &Path) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, or write to another disk with {output}"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "write to another folder with {output}"
        }
        io::ErrorKind::InvalidFilename => "give {output} a shorter name",
        _ => "give another {output}",
    };
    Error::output(format!("the image cannot be written: {error}")).at_path(path).try_(hint)
}
