//! One file into the cache: fetched beside its final name, resumed where it stopped, checked, then renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Progress;
use super::answers::{About, fault};
use super::cache::{RepoFolder, folder_of, unwritable};
use super::http::{Http, text};
use super::patience::{Fault, Patience, Watch};
use crate::error::{Error, Result};

const CHUNK: usize = 256 << 10;

/// A file that is to be fetched.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name in the repository.
    pub name: String,
    pub url: String,
    pub etag: String,
    /// Whether the ETag is git's hash of the file.
    pub git: bool,
    pub bytes: Option<u64>,
}

/// How a download ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The blob lies in the cache; so many bytes were received.
    Done(u64),
    /// The hub now has another file under this name.
    Changed,
}

/// The file's own checksum: the hub calls large files by their SHA-256, small ones by git's hash.
enum Check {
    Sha256(Sha256),
    Git(Sha1),
    None,
}

impl Check {
    fn new(wanted: &Wanted) -> Self {
        let hex = wanted.etag.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (wanted.etag.len(), wanted.bytes) {
            (64, _) if hex => Check::Sha256(Sha256::new()),
            (40, Some(bytes)) if hex && wanted.git => {
                Check::Git(Sha1::new_with_prefix(format!("blob {bytes}\0")))
            }
            _ => Check::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Check::Sha256(hash) => hash.update(bytes),
            Check::Git(hash) => hash.update(bytes),
            Check::None => {}
        }
    }

    /// What was found, if that is not `etag`.
    fn mismatch(self, etag: &str) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let found = match self {
            Check::Sha256(hash) => hex(&hash.finalize()),
            Check::Git(hash) => hex(&hash.finalize()),
            Check::None => return None,
        };
        (found != etag).then_some(found)
    }
}

/// Fetches one file; `tell` hears how many of its bytes are there.
pub struct Download<'a, 'w> {
    pub http: &'a Http,
    pub about: About<'a>,
    pub wanted: &'a Wanted,
    pub watch: &'a mut Watch<'w>,
    /// Bytes of the whole pull that are there without this file, and all bytes of the pull.
    pub others: u64,
    pub all: u64,
}

impl Download<'_, '_> {
    /// Makes the blob, unless it is there. Other processes that want the same file wait.
    pub fn run(mut self, folder: &RepoFolder) -> Result<Outcome> {
        let blob = folder.blob(&self.wanted.etag);
        folder_of(&blob).map_err(|e| unwritable(&blob, &e))?;
        let _lock = self.lock(&folder.lock(&self.wanted.etag))?;
        if is_whole(&blob, self.wanted.bytes) {
            return Ok(Outcome::Done(0));
        }
        let partial = folder.blob(&format!("{}.incomplete", self.wanted.etag));
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

    /// The lock that Hugging Face's tools take, too. Where the file system knows none, each process is on its own; the checksum finds out.
    fn lock(&mut self, path: &Path) -> Result<Option<File>> {
        let open = || {
            folder_of(path)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(path)
        };
        let file = open().map_err(|e| unwritable(path, &e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        let note = format!(
                            "{}: another process fetches it; waiting for that",
                            self.wanted.name
                        );
                        self.watch.tell(Progress::Note(&note))?;
                    }
                    self.watch.wait(Duration::from_millis(100))?;
                }
            }
        }
    }

    /// Fills `partial` until it is whole and right.
    fn fetch(&mut self, partial: &Path) -> Result<Outcome> {
        let mut patience = Patience::new(self.http.retry);
        let (mut most, mut received, mut wrong) = (0, 0, false);
        loop {
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(partial);
            let file = file.as_mut().map_err(|e| unwritable(partial, e))?;
            let mut check = Check::new(self.wanted);
            let mut have = self.reread(file, partial, &mut check)?;
            let before = have;
            let outcome = match self.wanted.bytes {
                Some(bytes) if have == bytes => Ok(()),
                _ => self.attempt(file, partial, &mut have, &mut check, &mut received),
            };
            match outcome {
                Ok(()) => {}
                Err(Stop::Changed) => return Ok(Outcome::Changed),
                Err(Stop::Fault(fault)) => {
                    // A server that always starts over and always breaks off shall not be asked for ever.
                    if have > most.max(before) {
                        patience.reset();
                    }
                    most = most.max(have);
                    patience.after(fault, self.watch)?;
                    continue;
                }
            }
            let Some(found) = check.mismatch(&self.wanted.etag) else {
                file.sync_all().map_err(|e| unwritable(partial, &e))?;
                return Ok(Outcome::Done(received));
            };
            fs::remove_file(partial).map_err(|e| unwritable(partial, &e))?;
            let error = Error::model("what came is not the file: its checksum is wrong")
                .at(format!("{}/{}", self.about.repo, self.wanted.name))
                .found(found)
                .expected(&self.wanted.etag);
            if wrong {
                return Err(error.try_("another network or proxy: this one seems to change files"));
            }
            wrong = true;
            self.watch
                .tell(Progress::Note(&format!("{error}; fetching it again from the start")))?;
        }
    }

    /// Feeds what is there already to the checksum; how much that is. More than the file has is dropped.
    fn reread(&mut self, file: &mut File, path: &Path, check: &mut Check) -> Result<u64> {
        let size = file.metadata().map_err(|e| unwritable(path, &e))?.len();
        if self.wanted.bytes.is_none_or(|bytes| size > bytes) {
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
            check.update(&buffer[..n]);
            have += n as u64;
            self.watch.tell(Progress::Tick)?;
        }
        Ok(have)
    }

    /// One request for what is missing. `have` counts what is in the file, also when this fails.
    fn attempt(
        &mut self,
        file: &mut File,
        path: &Path,
        have: &mut u64,
        check: &mut Check,
        received: &mut u64,
    ) -> Result<(), Stop> {
        let from = (*have > 0).then_some(*have);
        let (mut response, said) = self.http.attempt("GET", &self.wanted.url, from, &self.about)?;
        if said.etag().is_some_and(|etag| etag != self.wanted.etag) {
            return Err(Stop::Changed);
        }
        let status = response.status().as_u16();
        let goes_on = status == 206
            && from.is_some()
            && self.continues(text(response.headers(), "content-range"), *have);
        if status == 206 && !goes_on || status == 416 || status == 204 {
            file.set_len(0).map_err(|e| unwritable(path, &e))?;
            *have = 0;
            return Err(broken("the server gave another part of the file than was asked for"));
        }
        if !goes_on && *have > 0 {
            let note = format!(
                "{}: the server cannot resume; fetching it from the start",
                self.wanted.name
            );
            self.watch.tell(Progress::Note(&note))?;
            file.set_len(0).map_err(|e| unwritable(path, &e))?;
            *have = 0;
            *check = Check::new(self.wanted);
        }
        let size = self.wanted.bytes.or(response.body().content_length().map(|n| n + *have));
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            self.progress(*have, size)?;
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Stop::Fault(fault(&ureq::Error::from(e), self.http.host()))),
            };
            if size.is_some_and(|size| *have + n as u64 > size) {
                file.set_len(0).map_err(|e| unwritable(path, &e))?;
                *have = 0;
                return Err(broken("the server sent more than the file has"));
            }
            file.write_all(&buffer[..n]).map_err(|e| unwritable(path, &e))?;
            check.update(&buffer[..n]);
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

    /// Whether a `Content-Range` such as `bytes 10-99/100` goes on where the file ends.
    fn continues(&self, range: Option<&str>, have: u64) -> bool {
        let parsed = || {
            let (span, total) = range?.trim().strip_prefix("bytes ")?.split_once('/')?;
            let start: u64 = span.split_once('-')?.0.parse().ok()?;
            let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
            Some(start == have && (total.is_none() || total == self.wanted.bytes))
        };
        parsed() == Some(true)
    }

    fn progress(&mut self, done: u64, bytes: Option<u64>) -> Result<()> {
        let (file, all_done) = (self.wanted.name.as_str(), self.others + done);
        self.watch.tell(Progress::Bytes {
            file,
            done,
            bytes,
            all_done,
            all: self.all.max(all_done),
        })
    }
}

/// Why an attempt did not bring the file.
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
    Stop::Fault(Fault::passing(Error::missing(what)))
}

/// Whether a file of the right length lies at `path`.
pub fn is_whole(path: &Path, bytes: Option<u64>) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && bytes.is_none_or(|b| m.len() == b))
}
