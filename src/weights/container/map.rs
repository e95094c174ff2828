//! The bytes of a checkpoint file: mapped read-only, or read into memory if the system cannot map
//! it.

use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::{Error, Result};
use crate::host::open_regular;
use crate::tensor::ByteSource;
use crate::units;

/// An open file, and a warning for the user if it could not be mapped.
pub type MappedFile = (Arc<dyn ByteSource>, Option<String>);

/// Maps the file at `path`. If the system refuses (some network and FUSE file systems do), the
/// whole file is read instead.
pub fn open(path: &Path) -> Result<MappedFile> {
    open_with(path, |file| {
        // SAFETY: the map is read-only and private to this process. Another process that truncates
        // or rewrites the file while it is mapped can still change or remove bytes. `Map::check`
        // looks for that at block boundaries, and no value from the map is trusted for memory
        // safety.
        unsafe { Mmap::map(file) }
    })
}

fn open_with(path: &Path, map: impl FnOnce(&File) -> std::io::Result<Mmap>) -> Result<MappedFile> {
    let (file, metadata) = open_regular(path).map_err(|e| unreadable(path, &e))?;
    match map(&file) {
        Ok(map) => Ok((
            Arc::new(Map { map, identity: Identity::of(&metadata), file, path: path.into() }),
            None,
        )),
        Err(refusal) => {
            let bytes = read_whole(path, file, metadata.len())?;
            let note = format!(
                "{} cannot be mapped ({refusal}), so it was read into memory; its {} cannot be \
                 released",
                path.display(),
                units::bytes(bytes.len() as u64)
            );
            Ok((Arc::new(bytes), Some(note)))
        }
    }
}

fn read_whole(path: &Path, mut file: File, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let room = usize::try_from(size).ok().and_then(|n| bytes.try_reserve_exact(n).ok());
    if room.is_none() {
        return Err(Error::memory("file cannot be mapped, and memory cannot hold it")
            .at_path(path)
            .found(units::bytes(size))
            .try_("raise the limits of the process (ulimit -v), or copy it to a local disk"));
    }
    file.read_to_end(&mut bytes).map_err(|e| unreadable(path, &e))?;
    Ok(bytes)
}

/// Converts an I/O error of opening or reading `path` to the error that the user sees.
pub fn unreadable(path: &Path, e: &std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::NotFound => Error::missing("no such file").at_path(path),
        std::io::ErrorKind::OutOfMemory => {
            Error::memory(format!("cannot be read: {e}")).at_path(path)
        }
        _ => Error::model(format!("cannot be read: {e}")).at_path(path),
    }
}

/// What shows that a file was written to: its length and its modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Identity { bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}

/// A mapped file. The handle stays open, so that `check` looks at the mapped file even if another
/// file has taken its name.
struct Map {
    map: Mmap,
    file: File,
    identity: Identity,
    path: PathBuf,
}

const PAGE: usize = 4096;

impl ByteSource for Map {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileExt;
            self.file.read_exact_at(to, offset as u64).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    Error::model("the file was truncated while it was in use")
                        .at_path(&self.path)
                        .try_("download it again")
                }
                _ => unreadable(&self.path, &e),
            })
        }
        #[cfg(not(unix))]
        {
            to.copy_from_slice(&self.map[offset..offset + to.len()]);
            Ok(())
        }
    }

    fn will_need(&self, range: Range<usize>) -> Result<()> {
        if range.is_empty() || range.end > self.map.len() {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        {
            // Reads ahead and fills the page tables in one call. A failing disk or a truncated file
            // is an error here, not a signal.
            match self.map.advise_range(Advice::PopulateRead, range.start, range.len()) {
                Ok(()) => return Ok(()),
                // Linux before 5.14
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(unreadable(&self.path, &e)),
            }
        }
        #[cfg(unix)]
        let _ = self.map.advise_range(Advice::WillNeed, range.start, range.len());
        for page in range.step_by(PAGE) {
            std::hint::black_box(self.map[page]);
        }
        Ok(())
    }

    fn let_go(&self, range: Range<usize>) {
        if range.end > self.map.len() {
            return;
        }
        // Neighbouring tensors share the pages at both ends.
        let (first, last) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if first >= last {
            return;
        }
        #[cfg(unix)]
        {
            // SAFETY: on a read-only map of a file, DONTNEED only clears page table entries. The
            // next read loads the same bytes from the file again.
            let _ = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, first, last - first)
            };
        }
    }

    fn check(&self) -> Result<()> {
        let now = Identity::of(&self.file.metadata().map_err(|e| unreadable(&self.path, &e))?);
        if now == self.identity {
            return Ok(());
        }
        let e = Error::model("file was changed while it was in use").at_path(&self.path);
        let e = if now.bytes != self.identity.bytes {
            e.found(format!("{} bytes", now.bytes))
                .expected(format!("{} bytes", self.identity.bytes))
        } else {
            e
        };
        Err(e.try_("run again, and replace model files by renaming, never by writing into them"))
    }
}

/// From now on, the process ends with a message and exit code 3 if a mapped file is truncated or
/// its disk fails. Such an access is a bus error, from which a process cannot continue. Only for
/// programs that own their process.
#[cfg(unix)]
pub fn exit_on_lost_pages() {
    extern "C" fn lost(_: libc::c_int) {
        const TEXT: &[u8] = concat!(
            "error: a model file was truncated or could not be read while it was in use\n",
            "  try: run again, with the whole file on a disk that works\n",
        )
        .as_bytes();
        // SAFETY: write and _exit may be called in a signal handler, and the text is static.
        unsafe {
            libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
            libc::_exit(3);
        }
    }
    // SAFETY: the handler has the required type, and calls only functions that a handler may call.
    unsafe {
        libc::signal(libc::SIGBUS, lost as *const () as libc::sighandler_t);
    }
}

/// From now on, an abort of the process ends it with a message and an exit code. A process aborts
/// if an allocation fails (exit code 5), which happens where the system limits its address space;
/// no code can continue then. Libraries and drivers abort for reasons of their own (exit code 6).
/// Only for programs that own their process.
#[cfg(unix)]
pub fn exit_on_abort() {
    const MEMORY: &str = concat!(
        "error: the process cannot continue: the system gave it no more memory\n",
        "  try: raise the limits of the process (ulimit -v, ulimit -d), or close other ",
        "programs\n",
    );
    const OTHER: &str = concat!(
        "error: the process was aborted, by a driver or by a fault of this program\n",
        "  try: run it on another device; if it happens again, report it with all lines above\n",
    );
    extern "C" fn aborted(_: libc::c_int) {
        let (text, code) = if is_out_of_memory() { (MEMORY, 5) } else { (OTHER, 6) };
        // SAFETY: write and _exit may be called in a signal handler, and the text is static.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::_exit(code);
        }
    }
    // SAFETY: the handler has the required type, and calls only functions that a handler may call.
    unsafe {
        libc::signal(libc::SIGABRT, aborted as *const () as libc::sighandler_t);
    }
}

/// Whether an abort is probably a failed allocation: the memory of the process is limited, or the
/// system gives it none. Called in a signal handler, so it makes only system calls.
#[cfg(unix)]
fn is_out_of_memory() -> bool {
    /// A piece that any run needs.
    const BYTES: usize = 64 << 20;
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: getrlimit writes to the structure that it is given, and mmap with these arguments
    // makes a new private map, which is unmapped again.
    unsafe {
        let mut is_limited = false;
        libc::getrlimit(libc::RLIMIT_AS, &mut limit);
        is_limited |= limit.rlim_cur != libc::RLIM_INFINITY;
        libc::getrlimit(libc::RLIMIT_DATA, &mut limit);
        is_limited |= limit.rlim_cur != libc::RLIM_INFINITY;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), BYTES, access, flags, -1, 0);
        if map == libc::MAP_FAILED {
            return true;
        }
        libc::munmap(map, BYTES);
        is_limited
    }
}

/// Does nothing: only Unix has this signal.
#[cfg(not(unix))]
pub fn exit_on_lost_pages() {}

/// Does nothing: only Unix has this signal.
#[cfg(not(unix))]
pub fn exit_on_abort() {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut f = tempfile::NamedTempFile::new().unwrap();
        f.write_all(bytes).unwrap();
        f.flush().unwrap();
        f
    }

    #[cfg(target_os = "linux")]
    fn resident_kb(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|l| !l.ends_with(path.to_str().unwrap()));
        let rss = lines.find(|l| l.starts_with("Rss:")).unwrap();
        rss.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn will_need_brings_pages_in_and_let_go_gives_them_back_but_keeps_them_readable() {
        let data: Vec<u8> = (0..64 * PAGE).map(|i| (i / PAGE) as u8).collect();
        let f = file(&data);
        let (source, note) = open(f.path()).unwrap();
        assert_eq!(note, None);
        source.let_go(0..data.len());
        assert_eq!(resident_kb(f.path()), 0);
        source.will_need(10 * PAGE + 5..20 * PAGE + 5).unwrap();
        assert!(resident_kb(f.path()) >= 11 * PAGE / 1024);
        source.will_need(0..data.len()).unwrap();
        // Pages that are only partly inside the range stay.
        source.let_go(1..data.len() - 1);
        assert_eq!(resident_kb(f.path()), 2 * PAGE / 1024);
        assert_eq!(source.bytes(), data);
        source.will_need(0..data.len() + 1).unwrap();
        source.let_go(5..5);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn f10_a_file_cut_while_it_is_mapped_is_an_error_where_it_is_read_ahead() {
        let f = file(&[7; 64 * PAGE]);
        let (source, _) = open(f.path()).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(f.path())
            .unwrap()
            .set_len(2 * PAGE as u64)
            .unwrap();
        // Touching these pages would end the process. Every weight passes one of these checks
        // first.
        assert_eq!(source.will_need(10 * PAGE..20 * PAGE).unwrap_err().kind(), Kind::Model);
        let e = source.read_at(10 * PAGE, &mut [0; 16]).unwrap_err();
        assert!(e.kind() == Kind::Model && e.to_string().contains("truncated"), "{e}");
        assert_eq!(source.check().unwrap_err().kind(), Kind::Model);
        source.will_need(0..2 * PAGE).unwrap();
        assert_eq!(source.bytes()[..2 * PAGE], [7; 2 * PAGE]);
    }

    #[test]
    fn f11_a_renamed_or_unlinked_file_stays_usable() {
        let f = file(b"old bytes");
        let path = f.path().to_path_buf();
        let (source, _) = open(&path).unwrap();
        let other = file(b"other");
        std::fs::rename(other.path(), &path).unwrap();
        assert!(source.check().is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(source.check().is_ok());
        assert_eq!(source.bytes(), b"old bytes");
    }

    #[test]
    fn f12_a_file_edited_or_cut_in_place_is_noticed() {
        let f = file(&[7; 3 * PAGE]);
        let (source, _) = open(f.path()).unwrap();
        let writer = std::fs::OpenOptions::new().write(true).open(f.path()).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(1);
        writer.set_modified(later).unwrap();
        assert_eq!(source.check().unwrap_err().kind(), Kind::Model);
        let (source, _) = open(f.path()).unwrap();
        writer.set_len(2 * PAGE as u64).unwrap();
        writer.set_modified(later).unwrap();
        let e = source.check().unwrap_err().to_string();
        assert!(e.contains("found 8192 bytes, expected 12288 bytes"), "{e}");
    }

    #[test]
    fn f13_a_refused_map_becomes_a_plain_read_and_a_warning() {
        let f = file(b"bytes");
        let refuse = |_: &File| Err(std::io::Error::from_raw_os_error(libc::ENODEV));
        let (source, note) = open_with(f.path(), refuse).unwrap();
        assert_eq!(source.bytes(), b"bytes");
        assert!(note.unwrap().contains("cannot be mapped"));
    }

    #[test]
    fn a_missing_file_and_a_folder_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(&dir.path().join("x")).err().unwrap().kind(), Kind::Missing);
        assert_eq!(open(dir.path()).err().unwrap().kind(), Kind::Model);
    }
}
