//! Writes a file completely or not at all: under a temporary name first, then renamed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::encode::{DEFAULT_QUALITY, Format, encode};
use super::metadata;
use crate::error::{Error, Result};
use crate::host::{remove_abandoned, unfinished_file};
use crate::pipeline::request::{Generated, Image, Settings};

/// What is stored in an image file besides the pixels.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    /// The settings that made the image.
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
    /// [`Kind::Output`](crate::error::Kind::Output) if a file cannot be written, with
    /// [`Error::written`] for those before it,
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
            save(image, &path, format, DEFAULT_QUALITY, &metadata)
                .map_err(|e| e.after_writing(&paths, self.images.len()))?;
            paths.push(path);
        }
        Ok(paths)
    }
}

/// `path` with `suffix` between the stem of its name and its extension. The name need not be
/// UTF-8.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Checks before the work starts whether `path` can be written: its folder exists and accepts new
/// files, and the name is one that a file can have. Also removes unfinished files that a killed
/// process left there.
pub fn probe_output(path: &Path) -> Result<()> {
    let Target::File { folder, path } = target(path)? else { return Ok(()) };
    remove_abandoned(&folder);
    let file = unfinished_file(&folder).map_err(|e| failed(e, &path))?;
    // The file system decides which names are allowed (length, characters), so ask it.
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e, &path)),
        _ => file.close().map_err(|e| failed(e, &path)),
    }
}

/// Writes `bytes` to a new file in the folder of `path`, makes sure that they are on the disk, and
/// renames the file. A file that is replaced leaves its permissions. Devices and pipes are written
/// directly.
pub fn write_beside(path: &Path, bytes: &[u8]) -> Result<()> {
    let (folder, path) = match target(path)? {
        Target::File { folder, path } => (folder, path),
        Target::Stream => return write_stream(path, bytes).map_err(|e| failed(e, path)),
    };
    let write = || -> io::Result<()> {
        let file = written(&folder, bytes)?;
        if let Ok(old) = fs::metadata(&path) {
            // Not every file system has permissions to keep.
            file.as_file().set_permissions(old.permissions()).ok();
        }
        file.persist(&path).map_err(|e| e.error)?;
        sync_folder(&folder);
        Ok(())
    };
    write().map_err(|e| failed(e, &path))
}

/// Writes `bytes` to the first of `paths` where nothing is yet, and returns that path. Other
/// processes may look for a name at the same time: no file is ever replaced.
///
/// # Errors
/// [`Kind::Output`](crate::error::Kind::Output) if the file cannot be written.
pub fn write_new(paths: impl Iterator<Item = PathBuf>, bytes: &[u8]) -> Result<PathBuf> {
    let mut ready: Option<(PathBuf, tempfile::NamedTempFile)> = None;
    for path in paths {
        let folder = folder_of(&path);
        let file = match ready.take().filter(|(place, _)| *place == folder) {
            Some((_, file)) => file,
            None => {
                target(&path)?;
                written(&folder, bytes).map_err(|e| failed(e, &path))?
            }
        };
        match place_new(file, &path) {
            Ok(()) => {
                sync_folder(&folder);
                return Ok(path);
            }
            Err((e, file)) if e.kind() == io::ErrorKind::AlreadyExists => {
                ready = file.map(|file| (folder, file));
            }
            Err((e, _)) => return Err(failed(e, &path)),
        }
    }
    Err(Error::output("there is no free name for the image").try_("give {output} a name"))
}

/// Gives `file` its name unless something has it. The file comes back with an error.
fn place_new(
    file: tempfile::NamedTempFile,
    path: &Path,
) -> std::result::Result<(), (io::Error, Option<tempfile::NamedTempFile>)> {
    let e = match file.persist_noclobber(path) {
        Ok(_) => return Ok(()),
        Err(e) => e,
    };
    if e.error.kind() == io::ErrorKind::AlreadyExists || !is_unsupported(&e.error) {
        return Err((e.error, Some(e.file)));
    }
    // A file system with neither links nor a rename that does not replace, such as FAT: an empty
    // file takes the name first.
    if let Err(error) = fs::OpenOptions::new().write(true).create_new(true).open(path) {
        return Err((error, Some(e.file)));
    }
    e.file.persist(path).map(drop).map_err(|e| {
        fs::remove_file(path).ok();
        (e.error, None)
    })
}

/// Whether a file system cannot do what was asked for.
fn is_unsupported(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

/// A temporary file in `folder` with `bytes`, on the disk.
fn written(folder: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let mut file = unfinished_file(folder)?;
    // Not through `file` itself, whose errors contain its temporary name.
    file.as_file_mut().write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn write_stream(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut stream = fs::OpenOptions::new().write(true).open(path)?;
    stream.write_all(bytes)?;
    stream.flush()
}

/// The name of a new file should survive a power failure, too. Not every file system supports that,
/// and the file is complete in any case.
fn sync_folder(folder: &Path) {
    if let Ok(folder) = fs::File::open(folder) {
        folder.sync_all().ok();
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
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
    let path = fs::canonicalize(path).unwrap_or_else(|_| follow(path));
    let folder = folder_of(&path);
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

/// The path that a link to nothing leads to; other paths as they are.
fn follow(path: &Path) -> PathBuf {
    /// As many as systems follow.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&path) else { break };
        path = folder_of(&path).join(next);
    }
    path
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
