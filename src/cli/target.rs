//! File names of images, from `-o`, `--format`, the seed and the number of images.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::args::How;
use super::output;
use crate::error::{Error, Result};
use crate::pipeline::images::{Format, probe_output, with_suffix, write_beside, write_new};

/// How many numbers are tried for a name of the program's own choice.
const MAX_TRIES: usize = 100_000;

/// Where the images are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// May contain `{seed}` and `{i}`.
    pattern: PathBuf,
    pub format: Format,
    /// The name was chosen by the program: a file with this name is from an earlier run and is
    /// kept.
    keep_existing: bool,
    /// The image goes to stdout.
    stdout: bool,
}

impl Target {
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the extension is not an image format, or
    /// differs from `format`.
    pub fn new(output: Option<&Path>, format: Option<Format>) -> Result<Self> {
        let own_name = |format: Option<Format>| {
            format!("flux-{{seed}}.{}", format.unwrap_or(Format::Png).extension())
        };
        let ours = |pattern| {
            let format = format.unwrap_or(Format::Png);
            Ok(Target { pattern, format, keep_existing: true, stdout: false })
        };
        let Some(output) = output else { return ours(own_name(format).into()) };
        if output == Path::new("-") {
            let format = format.unwrap_or(Format::Png);
            return Ok(Target { pattern: "-".into(), format, keep_existing: false, stdout: true });
        }
        if output.is_dir() || output.as_os_str().to_string_lossy().ends_with('/') {
            return ours(output.join(own_name(format)));
        }
        let extension = output.extension().map(|e| e.to_string_lossy().into_owned());
        let named = extension.as_deref().map(|e| (e, Format::parse(e)));
        let format = match (format, named) {
            (Some(format), Some((extension, Some(named)))) if format != named => {
                return Err(Error::argument("--format and the extension of the output disagree")
                    .at_path(output)
                    .found(format!(".{extension}"))
                    .expected(format!(".{}", format.extension()))
                    .try_("leave out one of the two"));
            }
            (Some(format), _) | (None, Some((_, Some(format)))) => format,
            (None, None) => Format::Png,
            (None, Some((extension, None))) => {
                return Err(Error::argument("this extension is not an image format")
                    .at_path(output)
                    .found(format!(".{extension}"))
                    .expected("png, jpg, webp, bmp or tiff")
                    .try_("use another extension, or --format png"));
            }
        };
        Ok(Target { pattern: output.to_path_buf(), format, keep_existing: false, stdout: false })
    }

    /// Whether the image goes to stdout.
    pub fn is_stdout(&self) -> bool {
        self.stdout
    }

    /// Fails if stdout cannot be the place of `images` images: it takes one, and nothing else.
    pub fn check_stdout(&self, images: usize, how: How) -> Result<()> {
        let (what, hint) = if !self.stdout {
            return Ok(());
        } else if how.json {
            (
                "stdout cannot be both the image and the JSON object",
                "give a file after -o, or --json-events in place of --json",
            )
        } else if images > 1 {
            ("stdout takes one image, not several", "give a file or a folder after -o")
        } else if std::io::stdout().is_terminal() {
            (
                "stdout is a terminal, which does not show the bytes of an image",
                "redirect stdout to a file or a program",
            )
        } else {
            return output::check_open();
        };
        Err(Error::argument(what).at("-o -").try_(hint))
    }

    /// Fails now if the images could not be written later.
    pub fn probe(&self) -> Result<()> {
        if self.stdout { Ok(()) } else { probe_output(&self.path(u64::MAX, 0, 1)) }
    }

    /// Writes the bytes of image `index` (from 0) of `count`, and returns its path.
    pub fn write(&self, bytes: &[u8], seed: u64, index: usize, count: usize) -> Result<PathBuf> {
        let path = self.path(seed, index, count);
        if !self.keep_existing {
            return write_beside(&path, bytes).map(|()| path);
        }
        let later = (2..MAX_TRIES).map(|again| with_suffix(&path, &format!("_{again}")));
        write_new(std::iter::once(path.clone()).chain(later), bytes)
    }

    /// The first name for image `index` (from 0) of `count`. A pattern of the program's own choice
    /// gets a number if a file has this name.
    pub fn path(&self, seed: u64, index: usize, count: usize) -> PathBuf {
        let number = (index + 1).to_string();
        let pattern = self.pattern.file_name().unwrap_or_default();
        let numbered = pattern.to_string_lossy().contains("{i}");
        let name = replace(pattern, "{seed}", &seed.to_string());
        let path = self.pattern.with_file_name(replace(&name, "{i}", &number));
        if count > 1 && !numbered { with_suffix(&path, &format!("-{number}")) } else { path }
    }
}

/// `name` with `to` in place of `from`. A name that is not UTF-8 stays as it is otherwise.
#[cfg(unix)]
fn replace(name: &OsStr, from: &str, to: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some(at) = rest.windows(from.len()).position(|part| part == from.as_bytes()) {
        out.extend(&rest[..at]);
        out.extend(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    out.extend(rest);
    OsString::from_vec(out)
}

/// `name` with `to` in place of `from`. A name that is not Unicode stays as it is.
#[cfg(not(unix))]
fn replace(name: &OsStr, from: &str, to: &str) -> OsString {
    name.to_str().map_or_else(|| name.to_os_string(), |name| name.replace(from, to).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern_the_seed_and_the_count() {
        let path = |output: &str, index, count| {
            let target = Target::new(Some(Path::new(output)), None).unwrap();
            target.path(7, index, count).display().to_string()
        };
        assert_eq!(path("no-such-folder/fox.png", 0, 1), "no-such-folder/fox.png");
        assert_eq!(path("fox.jpg", 1, 3), "fox-2.jpg");
        assert_eq!(path("fox.v2.webp", 0, 2), "fox.v2-1.webp");
        assert_eq!(path("{seed}-{i}.tif", 1, 3), "7-2.tif");
        assert_eq!(path("fox", 0, 1), "fox");
        assert_eq!(path("fox", 2, 3), "fox-3");
        assert_eq!(path("no-such-folder/", 0, 1), "no-such-folder/flux-7.png");
    }

    #[test]
    fn our_own_names_never_replace_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::new(Some(folder.path()), Some(Format::Jpeg)).unwrap();
        let written = |content: &str, index, count| {
            let path = target.write(content.as_bytes(), 7, index, count).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            path.file_name().unwrap().to_str().unwrap().to_string()
        };
        assert_eq!(written("a", 0, 1), "flux-7.jpg");
        assert_eq!(written("b", 0, 1), "flux-7_2.jpg");
        assert_eq!(written("c", 0, 1), "flux-7_3.jpg");
        assert_eq!(written("d", 0, 2), "flux-7-1.jpg");
        assert_eq!(written("e", 0, 2), "flux-7-1_2.jpg");
        #[cfg(unix)]
        {
            // A link to nothing has the name, too.
            std::os::unix::fs::symlink("nowhere", folder.path().join("flux-8.jpg")).unwrap();
            let path = target.write(b"f", 8, 0, 1).unwrap();
            assert_eq!(path, folder.path().join("flux-8_2.jpg"));
        }
        let named = Target::new(Some(&folder.path().join("flux-7.jpg")), None).unwrap();
        assert_eq!(named.write(b"new", 7, 0, 1).unwrap(), folder.path().join("flux-7.jpg"));
        assert_eq!(std::fs::read(folder.path().join("flux-7.jpg")).unwrap(), b"new");
    }

    #[test]
    fn writers_at_the_same_time_get_different_names() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::new(Some(folder.path()), None).unwrap();
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let write = |i: usize| {
                let target = &target;
                scope.spawn(move || target.write(i.to_string().as_bytes(), 1, 0, 1).unwrap())
            };
            let threads: Vec<_> = (0..16).map(write).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(std::fs::read_to_string(path).unwrap(), i.to_string());
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 16);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_stay_as_they_are() {
        use std::os::unix::ffi::OsStrExt;
        let name = OsStr::from_bytes(b"caf\xe9-{seed}.png");
        let target = Target::new(Some(Path::new(name)), None).unwrap();
        assert_eq!(target.path(7, 0, 1).as_os_str().as_bytes(), b"caf\xe9-7.png");
        assert_eq!(target.path(7, 1, 2).as_os_str().as_bytes(), b"caf\xe9-7-2.png");
    }

    #[test]
    fn the_format_comes_from_the_flag_or_the_extension_and_they_must_agree() {
        let format = |output: Option<&str>, format| {
            Target::new(output.map(Path::new), format).map(|t| t.format)
        };
        assert_eq!(format(None, None).unwrap(), Format::Png);
        assert_eq!(format(None, Some(Format::WebP)).unwrap(), Format::WebP);
        assert_eq!(format(Some("x.JPEG"), None).unwrap(), Format::Jpeg);
        assert_eq!(format(Some("x.jpg"), Some(Format::Jpeg)).unwrap(), Format::Jpeg);
        assert_eq!(format(Some("x.data"), Some(Format::Bmp)).unwrap(), Format::Bmp);
        for (output, flag) in [("x.gif", None), ("x.", None), ("x.png", Some(Format::Jpeg))] {
            assert_eq!(
                format(Some(output), flag).unwrap_err().kind(),
                crate::error::Kind::Argument,
                "{output}"
            );
        }
    }
}
