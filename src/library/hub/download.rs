//! Downloads one file into the cache: resumed where an earlier download stopped, checked, then
//! renamed to its final name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use super::checksum::Checksum;
use super::headers::header;
use super::http::{Http, Method};
use super::progress::{PullProgress, Reporter};
use super::responses::{Subject, connection_fault};
use super::retry::{Attempts, Fault};
use super::store::{create_parent, unwritable};
use crate::error::{Error, Result};
use crate::host::lock_when_free;
use crate::library::hf_cache::RepoFolder;

/// How many bytes are read at once.
const CHUNK: usize = 256 << 10;

/// A file to download.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    /// Its name in the repository.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Its ETag, which is the name of its blob.
    pub etag: String,
    /// Whether the ETag is the hash that git gives to the file.
    pub is_git_hash: bool,
    /// Its size, if the hub reports it.
    pub bytes: Option<u64>,
}

/// How a download ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The blob is in the cache. The number of bytes that were received for it.
    Done(u64),
    /// The hub has another file under this name now.
    Changed,
}

/// The download of one file.
pub(super) struct Download<'a, 'r> {
    pub http: &'a Http,
    pub subject: Subject<'a>,
    pub file: &'a RemoteFile,
    pub reporter: &'a mut Reporter<'r>,
    /// Bytes of the other files of this pull that are in the cache, for progress.
    pub others_done: u64,
    /// Bytes of all files of this pull, for progress.
    pub all_bytes: u64,
}

impl Download<'_, '_> {
    /// Puts the blob into the cache, unless it is there. If another process downloads the same
    /// file, this waits for it.
    pub fn run(mut self, folder: &RepoFolder) -> Result<Outcome> {
        let blob = folder.blob(&self.file.etag);
        create_parent(&blob).map_err(|e| unwritable(&blob, &e))?;
        let _lock = self.lock(&folder.lock(&self.file.etag))?;
        if is_complete(&blob, self.file.bytes) {
            return Ok(Outcome::Done(0));
        }
        let partial = folder.blob(&format!("{}.incomplete", self.file.etag));
        let received = match self.fetch(&partial)? {
            Outcome::Done(received) => received,
            Outcome::Changed => {
                fs::remove_file(&partial).ok();
                return Ok(Outcome::Changed);
            }
        };
        fs::rename(&partial, &blob).map_err(|e| unwritable(&blob, &e))?;
        Ok(Outcome::Done(received))
    }

    /// Takes the lock at `path`, which Hugging Face's tools use, too. On a file system without
    /// locks there is none; if two processes then write the same file, the checksum detects it.
    fn lock(&mut self, path: &Path) -> Result<Option<File>> {
        let open = || {
            create_parent(path)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(path)
        };
        let file = open().map_err(|e| unwritable(path, &e))?;
        lock_when_free(file, &mut |is_first| {
            if is_first {
                let note =
                    format!("{}: waiting for another process that downloads it", self.file.name);
                self.reporter.report(PullProgress::Note(&note))?;
            }
            self.reporter.wait(Duration::from_millis(100))
        })
    }

    /// Fills `partial` until it is complete and its checksum is right.
    fn fetch(&mut self, partial: &Path) -> Result<Outcome> {
        let mut attempts = Attempts::new(self.http.retry);
        let (mut most, mut received, mut is_second_try) = (0, 0, false);
        loop {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(partial);
            let file = file.as_mut().map_err(|e| unwritable(partial, e))?;
            let mut checksum = self.checksum();
            let mut have = self.reread(file, partial, &mut checksum)?;
            let before = have;
            let outcome = match self.file.bytes {
                Some(bytes) if have == bytes => Ok(()),
                _ => self.attempt(file, partial, &mut have, &mut checksum, &mut received),
            };
            match outcome {
                Ok(()) => {}
                Err(Stop::Changed) => return Ok(Outcome::Changed),
                Err(Stop::Fault(fault)) => {
                    // Only new bytes count as progress: a server may start from the beginning each
                    // time and never reach the end.
                    if have > most.max(before) {
                        attempts.reset();
                    }
                    most = most.max(have);
                    attempts.wait_after(fault, self.reporter)?;
                    continue;
                }
            }
            let Some(found) = checksum.mismatch(&self.file.etag) else {
                file.sync_all().map_err(|e| unwritable(partial, &e))?;
                return Ok(Outcome::Done(received));
            };
            fs::remove_file(partial).map_err(|e| unwritable(partial, &e))?;
            let error = Error::model("the checksum of the received file is wrong")
                .at(format!("{}/{}", self.subject.repo, self.file.name))
                .found(found)
                .expected(&self.file.etag);
            if is_second_try {
                return Err(error.try_("another network or proxy: this one seems to change files"));
            }
            is_second_try = true;
            let note = format!("{error}; downloading it again from the start");
            self.reporter.report(PullProgress::Note(&note))?;
        }
    }

    fn checksum(&self) -> Checksum {
        Checksum::new(&self.file.etag, self.file.is_git_hash, self.file.bytes)
    }

    /// Adds what is in the file already to the checksum, and returns its length. A file that is
    /// longer than it should be is emptied.
    fn reread(&mut self, file: &mut File, path: &Path, checksum: &mut Checksum) -> Result<u64> {
        let size = file.metadata().map_err(|e| unwritable(path, &e))?.len();
        if self.file.bytes.is_none_or(|bytes| size > bytes) {
            file.set_len(0).map_err(|e| unwritable(path, &e))?;
            return Ok(0);
        }
        let mut buffer = vec![0; CHUNK];
        let mut have = 0;
        while have < size {
            let n = file.read(&mut buffer).map_err(|e| unwritable(path, &e))?;
            if n == 0 {
                break;
            }
            checksum.update(&buffer[..n]);
            have += n as u64;
            self.reporter.report(PullProgress::Tick)?;
        }
        Ok(have)
    }

    /// One request for what is missing. `have` is the length of the file and `received` counts the
    /// bytes of all attempts; both are right after an error, too.
    fn attempt(
        &mut self,
        file: &mut File,
        path: &Path,
        have: &mut u64,
        checksum: &mut Checksum,
        received: &mut u64,
    ) -> Result<(), Stop> {
        let from = (*have > 0).then_some(*have);
        let (mut response, facts) =
            self.http.attempt(Method::Get, &self.file.url, from, &self.subject)?;
        if facts.etag().is_some_and(|etag| etag != self.file.etag) {
            return Err(Stop::Changed);
        }
        let status = response.status().as_u16();
        let continues = status == 206
            && from.is_some()
            && self.continues_at(*have, header(response.headers(), "content-range"));
        if status == 206 && !continues || status == 416 || status == 204 {
            file.set_len(0).map_err(|e| unwritable(path, &e))?;
            *have = 0;
            return Err(broken("the server sent another part of the file than requested"));
        }
        if !continues && *have > 0 {
            let note = format!(
                "{}: the server cannot resume; downloading it from the start",
                self.file.name
            );
            self.reporter.report(PullProgress::Note(&note))?;
            file.set_len(0).map_err(|e| unwritable(path, &e))?;
            *have = 0;
            *checksum = self.checksum();
        }
        let size = self.file.bytes.or(response.body().content_length().map(|n| n + *have));
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            self.report(*have, size)?;
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let e = ureq::Error::from(e);
                    return Err(Stop::Fault(connection_fault(&e, self.http.host())));
                }
            };
            if size.is_some_and(|size| *have + n as u64 > size) {
                file.set_len(0).map_err(|e| unwritable(path, &e))?;
                *have = 0;
                return Err(broken("the server sent more bytes than the file has"));
            }
            file.write_all(&buffer[..n]).map_err(|e| unwritable(path, &e))?;
            checksum.update(&buffer[..n]);
            *have += n as u64;
            *received += n as u64;
        }
        match size {
            Some(size) if *have < size => {
                Err(broken(&format!("the connection ended after {have} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a `Content-Range` such as `bytes 10-99/100` begins at byte `have` of this file.
    fn continues_at(&self, have: u64, range: Option<&str>) -> bool {
        let parsed = || {
            let (span, total) = range?.trim().strip_prefix("bytes ")?.split_once('/')?;
            let start: u64 = span.split_once('-')?.0.parse().ok()?;
            let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
            Some(start == have && (total.is_none() || total == self.file.bytes))
        };
        parsed() == Some(true)
    }

    fn report(&mut self, file_done: u64, file_bytes: Option<u64>) -> Result<()> {
        let done = self.others_done + file_done;
        self.reporter.report(PullProgress::Bytes {
            file: &self.file.name,
            file_done,
            file_bytes,
            done,
            bytes: self.all_bytes.max(done),
        })
    }
}

/// Why an attempt did not complete the file.
enum Stop {
    Changed,
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Fault(Fault::Final(error))
    }
}

fn broken(what: &str) -> Stop {
    Stop::Fault(Fault::temporary(Error::missing(what)))
}

/// Whether there is a file of `bytes` bytes at `path`, or of any size if that is `None`.
pub(super) fn is_complete(path: &Path, bytes: Option<u64>) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && bytes.is_none_or(|b| m.len() == b))
}
