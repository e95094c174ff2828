//! The download of a selection of files of one repository.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::download::{Download, Outcome, RemoteFile, is_complete};
use super::http::{Http, encode};
use super::options::PullOptions;
use super::progress::{PullProgress, Reporter};
use super::responses::Subject;
use super::select::{ListedFile, Selection, select};
use super::store::{create_cache, link_blob, write_reference};
use crate::error::{Error, Result};
use crate::host;
use crate::library::file_names::is_weights;
use crate::library::hf_cache::{HubCache, RepoFolder};
use crate::library::repo_id::{is_commit, is_inside, is_repo_id};
use crate::units;

/// Bytes that are left free on the disk.
const DISK_MARGIN: u64 = 64 << 20;
/// A file that changes on the hub more often than this while it is downloaded is an error.
const MAX_CHANGES: u32 = 3;

/// The result of [`pull`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pulled {
    /// The folder that contains the files under their names in the repository.
    pub snapshot: PathBuf,
    /// The commit that the files belong to.
    pub commit: String,
    /// The names of the files in the repository.
    pub files: Vec<String>,
    /// The size of these files together.
    pub bytes: u64,
    /// How many bytes were received over the network.
    pub received: u64,
}

/// Downloads the selected files of a repository into the cache, and reports to `progress`, which
/// can stop it. Files that are in the cache are not downloaded again.
///
/// Errors: `Argument` for names that are not valid, `Missing` for repositories, files and servers
/// that cannot be reached, `Model` for responses and checksums that are wrong, `Output` for a cache
/// that cannot be written, and `Cancelled`.
pub fn pull(
    options: &PullOptions,
    progress: &mut dyn FnMut(PullProgress) -> ControlFlow<()>,
) -> Result<Pulled> {
    let PullOptions { repo, revision, selection, .. } = options;
    let named: &[String] = if let Selection::Named(names) = selection { names } else { &[] };
    if !is_repo_id(repo) || !is_inside(revision) || !named.iter().all(|n| is_inside(n)) {
        return Err(Error::argument("not the name of a repository, a revision or a file")
            .expected("org/name"));
    }
    let cache = HubCache { root: options.cache.clone() };
    let folder = cache.repo(repo);
    if options.offline {
        return find_offline(options, &folder);
    }
    let certificates = options.certificates.as_deref();
    let http = Http::new(&options.endpoint, &options.token, certificates, options.retry)?;
    let mut pull = Pull { options, http, folder, reporter: Reporter { receiver: progress } };
    let (commit, listed) = pull.list()?;
    let chosen = select(repo, &listed, selection)?;
    let missing = pull.missing(&commit, &chosen)?;
    let bytes = chosen.iter().map(|f| f.bytes.unwrap_or(0)).sum();
    let cached = bytes - missing.iter().map(|f| f.bytes.unwrap_or(0)).sum::<u64>().min(bytes);
    pull.reporter.report(PullProgress::Planned { files: chosen.len(), bytes, cached })?;
    let mut received = 0;
    if !missing.is_empty() {
        create_cache(&cache)?;
        pull.check_disk(&missing)?;
        let mut done = cached;
        for file in missing {
            let size = file.bytes.unwrap_or(0);
            received += pull.download(&commit, file, done, bytes)?;
            done += size;
        }
    }
    // A cache that cannot be written serves as well, as long as nothing had to be written.
    write_reference(&pull.folder, revision, &commit)
        .or_else(|e| if received == 0 { Ok(()) } else { Err(e) })?;
    let files = chosen.into_iter().map(|f| f.name).collect();
    Ok(Pulled { snapshot: pull.folder.snapshot(&commit), commit, files, bytes, received })
}

/// A running download of several files.
struct Pull<'a, 'r> {
    options: &'a PullOptions,
    http: Http,
    folder: RepoFolder,
    reporter: Reporter<'r>,
}

impl Pull<'_, '_> {
    /// The commit of the revision, and its files.
    fn list(&mut self) -> Result<(String, Vec<ListedFile>)> {
        let PullOptions { repo, revision, .. } = self.options;
        let url = self
            .http
            .url(&format!("api/models/{repo}/revision/{}?blobs=true", encode(revision, false)));
        let subject = Subject { repo, revision, file: None };
        let text = self.http.read(&url, &subject, &mut self.reporter)?;
        let unexpected = |what: &str| {
            let host = self.http.host();
            Error::model(format!("{host} does not answer like a hub: {what}")).at(repo).try_(
                "check HF_ENDPOINT, and whether the network requires a login page to be filled in",
            )
        };
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| unexpected(&format!("not JSON: {e}")))?;
        let commit =
            json["sha"].as_str().filter(|s| is_commit(s)).ok_or_else(|| unexpected("no commit"))?;
        let files = json["siblings"].as_array().ok_or_else(|| unexpected("no list of files"))?;
        let listed = files.iter().filter_map(|f| {
            let name = f["rfilename"].as_str()?.to_string();
            let bytes = f["lfs"]["size"].as_u64().or(f["size"].as_u64());
            let etag =
                f["lfs"]["sha256"].as_str().or(f["lfs"]["oid"].as_str()).or(f["blobId"].as_str());
            Some(ListedFile { name, bytes, etag: etag.map(str::to_string) })
        });
        Ok((commit.to_string(), listed.collect()))
    }

    /// The files that are not in the snapshot, with what the hub reports about each.
    fn missing(&mut self, commit: &str, chosen: &[ListedFile]) -> Result<Vec<RemoteFile>> {
        let snapshot = self.folder.snapshot(commit);
        let mut missing = Vec::new();
        for file in chosen.iter().filter(|f| !is_complete(&snapshot.join(&f.name), f.bytes)) {
            missing.push(self.describe(commit, &file.name, Some(file))?);
        }
        Ok(missing)
    }

    /// Asks the hub for the address, the ETag and the size of a file. `listed` fills in what the
    /// response does not contain.
    fn describe(
        &mut self,
        commit: &str,
        name: &str,
        listed: Option<&ListedFile>,
    ) -> Result<RemoteFile> {
        let PullOptions { repo, revision, .. } = self.options;
        let url = self.http.url(&format!("{repo}/resolve/{commit}/{}", encode(name, true)));
        let subject = Subject { repo, revision, file: Some(name) };
        let facts = self.http.head(&url, &subject, &mut self.reporter)?;
        let unexpected = |what: &str| {
            Error::model(format!("the answer of the hub does not fit this file: {what}"))
                .at(format!("{repo}/{name}"))
        };
        if let Some(other) = facts.commit.as_deref().filter(|c| *c != commit) {
            return Err(unexpected("another commit").found(other).expected(commit));
        }
        let etag = facts.etag().map(str::to_string).or_else(|| listed?.etag.clone());
        let etag = etag.ok_or_else(|| unexpected("no ETag"))?;
        // The ETag becomes the name of a file.
        let is_plain = etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !is_plain || !is_inside(&etag) || etag.starts_with('.') || etag.len() > 128 {
            return Err(unexpected("an ETag that cannot be the name of a file"));
        }
        let bytes = facts.bytes.or_else(|| listed?.bytes);
        // The ETags of a mirror may be something else than hashes of the files.
        let is_git_hash = listed.is_some_and(|f| f.etag.as_ref() == Some(&etag));
        Ok(RemoteFile { name: name.to_string(), url, etag, is_git_hash, bytes })
    }

    /// Checks that the disk has room for what is still to be received.
    fn check_disk(&self, missing: &[RemoteFile]) -> Result<()> {
        let folder = &self.options.cache;
        let remaining = |file: &RemoteFile| {
            if is_complete(&self.folder.blob(&file.etag), file.bytes) {
                return 0;
            }
            let partial = self.folder.blob(&format!("{}.incomplete", file.etag));
            let received = partial.metadata().map_or(0, |m| m.len());
            file.bytes.unwrap_or(0).saturating_sub(received)
        };
        let remaining = missing.iter().map(remaining).fold(0, u64::saturating_add);
        let required = remaining.saturating_add(DISK_MARGIN);
        match host::free_disk_bytes(folder) {
            Some(free) if remaining > 0 && free < required => {
                Err(Error::output("not enough free space on the disk of the Hugging Face cache")
                    .at_path(folder)
                    .found(units::bytes(free))
                    .expected(units::bytes(required))
                    .try_("free space, or set HF_HUB_CACHE to a folder on a larger disk"))
            }
            _ => Ok(()),
        }
    }

    /// Downloads one file into the cache and links it into the snapshot. Returns how many bytes
    /// were received. `done` and `bytes` describe the whole pull, for progress.
    fn download(
        &mut self,
        commit: &str,
        mut file: RemoteFile,
        done: u64,
        bytes: u64,
    ) -> Result<u64> {
        let PullOptions { repo, revision, .. } = self.options;
        for _ in 0..MAX_CHANGES {
            let download = Download {
                http: &self.http,
                subject: Subject { repo, revision, file: Some(&file.name) },
                file: &file,
                reporter: &mut self.reporter,
                others_done: done,
                all_bytes: bytes,
            };
            if let Outcome::Done(received) = download.run(&self.folder)? {
                link_blob(&self.folder, commit, &file.name, &file.etag, received > 0)?;
                return Ok(received);
            }
            self.reporter.report(PullProgress::Note(&format!(
                "{} changed on the hub; downloading the new file",
                file.name
            )))?;
            file = self.describe(commit, &file.name, None)?;
        }
        Err(Error::missing("the file changes while it is downloaded")
            .at(format!("{repo}/{}", file.name)))
    }
}

/// The result of a pull without the network: what the cache contains of the repository.
fn find_offline(options: &PullOptions, folder: &RepoFolder) -> Result<Pulled> {
    let PullOptions { repo, revision, cache, .. } = options;
    let missing = |what: String| {
        Error::missing(format!("offline, and {what}")).at(repo).try_(
            "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, or pull it on a machine with a network",
        )
    };
    let cache = cache.display();
    let Some(snapshot) = folder.snapshot_of(revision) else {
        return Err(missing(format!("revision `{revision}` is not in the cache {cache}")));
    };
    let files = match &options.selection {
        Selection::Named(names) => names.clone(),
        Selection::Needed => {
            let mut files = Vec::new();
            list_files(&snapshot, "", 3, &mut files);
            files
        }
    };
    if let Some(name) = files.iter().find(|n| !snapshot.join(n).is_file()) {
        return Err(missing(format!("`{name}` is not in the cache {cache}")));
    }
    if !files.iter().any(|f| is_weights(f)) {
        return Err(missing(format!("the cache {cache} contains no weights of this model")));
    }
    let bytes = files.iter().filter_map(|n| Some(snapshot.join(n).metadata().ok()?.len())).sum();
    let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Pulled { snapshot, commit, files, bytes, received: 0 })
}

/// Adds the names of the files below `folder`, at most `depth` folders deep, to `out`.
fn list_files(folder: &Path, prefix: &str, depth: u32, out: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path() {
            path if path.is_dir() && depth > 0 => {
                list_files(&path, &format!("{name}/"), depth - 1, out);
            }
            path if !path.is_dir() => out.push(name),
            _ => {}
        }
    }
}
