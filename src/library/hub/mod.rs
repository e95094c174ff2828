//! `pull`: files of a hub's repository into the Hugging Face cache, where every tool finds them.
//!
//! The commit and the list of files come from the hub's API, everything else from `resolve` addresses of that commit, so that all files are of one moment.
//! A file is written beside its final name, checked, then renamed; the snapshot is named by a branch only when it is whole.

mod answers;
pub mod cache;
mod download;
mod http;
mod patience;
pub mod select;
mod token;

pub use patience::Retry;
pub use select::Files;
pub use token::Credentials;

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::units;
use answers::About;
use cache::{
    Cache, Env, RepoFolder, hub_cache, is_commit, is_inside, is_repo_id, set, truth, unwritable,
};
use download::{Download, Outcome, Wanted, is_whole};
use http::{Http, encode};
use patience::Watch;
use select::{Listed, is_weights, select};

/// Room that is left on a disk.
const MARGIN: u64 = 64 << 20;
/// A file that changes more often than this while it is fetched is given up.
const CHANGES: u32 = 3;

/// What to pull, from where, to where.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    pub files: Files,
    /// `https://huggingface.co`.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    pub token: Credentials,
    /// Only the cache is looked at.
    pub offline: bool,
    pub retry: Retry,
    /// Certificates (PEM) to trust in place of the built-in ones.
    pub ca: Option<PathBuf>,
}

impl PullOptions {
    /// What `name` asks for (see `parse`), with everything else as the environment says it to Hugging Face's own tools.
    pub fn from_env(name: &str, env: Env) -> Result<Self> {
        let endpoint = set(env, "HF_ENDPOINT")
            .map_or("https://huggingface.co".into(), |e| e.to_string_lossy().into_owned());
        let (repo, revision, files) = parse(name, &endpoint)?;
        Ok(PullOptions {
            repo,
            revision,
            files,
            endpoint,
            cache: hub_cache(env),
            token: Credentials::find(env),
            offline: truth(env, "HF_HUB_OFFLINE") || truth(env, "TRANSFORMERS_OFFLINE"),
            retry: Retry::default(),
            ca: set(env, "SSL_CERT_FILE").map(PathBuf::from),
        })
    }
}

/// Reads `org/name`, `org/name@revision`, `org/name/file`, or the address of a repository or a file as a browser shows it.
pub fn parse(text: &str, endpoint: &str) -> Result<(String, String, Files)> {
    let wrong = || {
        Error::argument("not a repository of the hub")
            .found(format!("{text:?}"))
            .expected("org/name, org/name@revision or org/name/file.safetensors")
    };
    let hosts = [endpoint.trim_end_matches('/'), "https://huggingface.co", "https://hf.co", "hf:/"];
    let path = hosts.iter().find_map(|h| text.strip_prefix(h)?.strip_prefix('/'));
    let is_address = path.is_some();
    let path =
        path.unwrap_or(text).split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let [org, name, rest @ ..] = parts.as_slice() else { return Err(wrong()) };
    let (name, mut revision) = name.split_once('@').unwrap_or((name, "main"));
    let rest = match rest {
        ["resolve" | "blob" | "tree", at, rest @ ..] if is_address => {
            revision = at;
            rest
        }
        rest => rest,
    };
    let (repo, file) = (format!("{org}/{name}"), rest.join("/"));
    if !is_repo_id(&repo) || !is_inside(revision) || !(file.is_empty() || is_inside(&file)) {
        return Err(wrong());
    }
    let files = if file.is_empty() { Files::Needed } else { Files::Named(vec![file]) };
    Ok((repo, revision.to_string(), files))
}

/// What a running pull tells. The receiver answers `Break` to stop it; what came is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress<'a> {
    /// So many files, with so many bytes, of which `there` are in the cache already.
    Planned { files: usize, bytes: u64, there: u64 },
    /// `done` of the `bytes` of `file` are there, and `all_done` of `all` bytes of the pull.
    Bytes { file: &'a str, done: u64, bytes: Option<u64>, all_done: u64, all: u64 },
    /// A line for the user.
    Note(&'a str),
    /// Nothing to show, but a moment at which `Break` is heeded.
    Tick,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pulled {
    /// The folder that holds the files under their names in the repository.
    pub snapshot: PathBuf,
    pub commit: String,
    pub files: Vec<String>,
    /// Their size.
    pub bytes: u64,
    /// What came over the network now.
    pub received: u64,
}

/// Brings files of a repository into the cache.
pub fn pull(
    options: &PullOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Pulled> {
    let PullOptions { repo, revision, files, .. } = options;
    let named: &[String] = if let Files::Named(names) = files { names } else { &[] };
    if !is_repo_id(repo) || !is_inside(revision) || !named.iter().all(|n| is_inside(n)) {
        return Err(Error::argument("not the name of a repository, a revision or a file")
            .expected("org/name"));
    }
    let cache = Cache { root: options.cache.clone() };
    let folder = cache.repo(repo);
    if options.offline {
        return offline(options, &folder);
    }
    let http = Http::new(&options.endpoint, &options.token, options.ca.as_deref(), options.retry)?;
    let mut pull = Pull { options, http, folder, watch: Watch { tell: progress } };
    let (commit, listed) = pull.list()?;
    let chosen = select(repo, &listed, files)?;
    let missing = pull.missing(&commit, &chosen)?;
    let bytes = chosen.iter().map(|f| f.bytes.unwrap_or(0)).sum();
    let there = bytes - missing.iter().map(|w| w.bytes.unwrap_or(0)).sum::<u64>().min(bytes);
    pull.watch.tell(Progress::Planned { files: chosen.len(), bytes, there })?;
    let mut received = 0;
    if !missing.is_empty() {
        std::fs::create_dir_all(&cache.root).map_err(|e| unwritable(&cache.root, &e))?;
        pull.check_room(&missing)?;
        cache.tag();
        let mut others = there;
        for wanted in missing {
            let size = wanted.bytes.unwrap_or(0);
            received += pull.bring(&commit, wanted, others, bytes)?;
            others += size;
        }
    }
    pull.folder
        .refer(revision, &commit)
        .or_else(|e| if received == 0 { Ok(()) } else { Err(e) })?;
    let files = chosen.into_iter().map(|f| f.name).collect();
    Ok(Pulled { snapshot: pull.folder.snapshot(&commit), commit, files, bytes, received })
}

struct Pull<'a, 'w> {
    options: &'a PullOptions,
    http: Http,
    folder: RepoFolder,
    watch: Watch<'w>,
}

impl<'a> Pull<'a, '_> {
    fn about(&self, file: Option<&'a str>) -> About<'a> {
        About { repo: &self.options.repo, revision: &self.options.revision, file }
    }

    /// The commit that the revision is now, and its files.
    fn list(&mut self) -> Result<(String, Vec<Listed>)> {
        let PullOptions { repo, revision, .. } = self.options;
        let url = self
            .http
            .url(&format!("api/models/{repo}/revision/{}?blobs=true", encode(revision, false)));
        let about = self.about(None);
        let text = self.http.read(&url, &about, &mut self.watch)?;
        let strange = |what: &str| {
            Error::model(format!("the answer of {} is not a hub's: {what}", self.http.host()))
                .at(repo)
                .try_("look at HF_ENDPOINT, and whether a login page of the network is in the way")
        };
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| strange(&format!("not JSON: {e}")))?;
        let commit =
            json["sha"].as_str().filter(|s| is_commit(s)).ok_or_else(|| strange("no commit"))?;
        let files = json["siblings"].as_array().ok_or_else(|| strange("no list of files"))?;
        let listed = files.iter().filter_map(|f| {
            let name = f["rfilename"].as_str()?.to_string();
            let bytes = f["lfs"]["size"].as_u64().or(f["size"].as_u64());
            let etag =
                f["lfs"]["sha256"].as_str().or(f["lfs"]["oid"].as_str()).or(f["blobId"].as_str());
            Some(Listed { name, bytes, etag: etag.map(str::to_string) })
        });
        Ok((commit.to_string(), listed.collect()))
    }

    /// The files that the snapshot lacks, with what the hub says about each.
    fn missing(&mut self, commit: &str, chosen: &[Listed]) -> Result<Vec<Wanted>> {
        let snapshot = self.folder.snapshot(commit);
        let mut missing = Vec::new();
        for file in chosen.iter().filter(|f| !is_whole(&snapshot.join(&f.name), f.bytes)) {
            missing.push(self.ask(commit, &file.name, Some(file))?);
        }
        Ok(missing)
    }

    /// Where a file lies, what it is called, and how long it is.
    fn ask(&mut self, commit: &str, name: &str, listed: Option<&Listed>) -> Result<Wanted> {
        let repo = &self.options.repo;
        let url = self.http.url(&format!("{repo}/resolve/{commit}/{}", encode(name, true)));
        let about = About { repo, revision: &self.options.revision, file: Some(name) };
        let said = self.http.head(&url, &about, &mut self.watch)?;
        let strange = |what: &str| {
            Error::model(format!("the hub's answer is not about this file: {what}"))
                .at(format!("{repo}/{name}"))
        };
        if let Some(other) = said.commit.as_deref().filter(|c| *c != commit) {
            return Err(strange("another commit").found(other).expected(commit));
        }
        let etag = said.etag().map(str::to_string).or_else(|| listed?.etag.clone());
        let etag = etag.ok_or_else(|| strange("no ETag"))?;
        // It becomes the name of a file.
        let plain = etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || !is_inside(&etag) || etag.starts_with('.') || etag.len() > 128 {
            return Err(strange("an ETag that cannot be a file's name"));
        }
        let bytes = said.bytes.or_else(|| listed?.bytes);
        // Mirrors may have ETags of another making.
        let git = listed.is_some_and(|f| f.etag.as_ref() == Some(&etag));
        Ok(Wanted { name: name.to_string(), url, etag, git, bytes })
    }

    /// Whether the disk has room for what is still to come.
    fn check_room(&self, missing: &[Wanted]) -> Result<()> {
        let at = &self.options.cache;
        let lacks = |w: &Wanted| {
            let there = |path: PathBuf| path.metadata().map_or(0, |m| m.len());
            let bytes = w.bytes.unwrap_or(0);
            let partial = there(self.folder.blob(&format!("{}.incomplete", w.etag)));
            if is_whole(&self.folder.blob(&w.etag), w.bytes) {
                0
            } else {
                bytes.saturating_sub(partial)
            }
        };
        let need = missing.iter().map(lacks).fold(0, u64::saturating_add);
        match fs4::available_space(at) {
            Ok(free) if need > 0 && free < need.saturating_add(MARGIN) => {
                Err(Error::output("not enough room on the disk of the Hugging Face cache")
                    .at_path(at)
                    .found(units::bytes(free))
                    .expected(units::bytes(need.saturating_add(MARGIN)))
                    .try_("free space, or set HF_HUB_CACHE to a folder on a larger disk"))
            }
            _ => Ok(()),
        }
    }

    /// Brings one file into the cache and the snapshot; the bytes received.
    fn bring(&mut self, commit: &str, mut wanted: Wanted, others: u64, all: u64) -> Result<u64> {
        for _ in 0..CHANGES {
            let about = About {
                repo: &self.options.repo,
                revision: &self.options.revision,
                file: Some(&wanted.name),
            };
            let download = Download {
                http: &self.http,
                about,
                wanted: &wanted,
                watch: &mut self.watch,
                others,
                all,
            };
            if let Outcome::Done(received) = download.run(&self.folder)? {
                self.folder.point(commit, &wanted.name, &wanted.etag, received > 0)?;
                return Ok(received);
            }
            self.watch.tell(Progress::Note(&format!(
                "{} changed on the hub; fetching what is there now",
                wanted.name
            )))?;
            wanted = self.ask(commit, &wanted.name, None)?;
        }
        Err(Error::missing("the file changes while it is fetched")
            .at(format!("{}/{}", self.options.repo, wanted.name)))
    }
}

/// The same from the cache alone.
fn offline(options: &PullOptions, folder: &RepoFolder) -> Result<Pulled> {
    let PullOptions { repo, revision, .. } = options;
    let lacks = |what: String| {
        Error::missing(what).at(repo).try_(
            "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or pull it where there is a network",
        )
    };
    let Some(snapshot) = folder.snapshot_of(revision) else {
        return Err(lacks(format!(
            "offline, and revision `{revision}` is not in the cache {}",
            options.cache.display()
        )));
    };
    let files = match &options.files {
        Files::Named(names) => names.clone(),
        Files::Needed => {
            let mut files = Vec::new();
            walk(&snapshot, "", 3, &mut files);
            files
        }
    };
    if let Some(name) = files.iter().find(|n| !snapshot.join(n).is_file()) {
        return Err(lacks(format!(
            "offline, and `{name}` is not in the cache {}",
            options.cache.display()
        )));
    }
    if !files.iter().any(|f| is_weights(f)) {
        return Err(lacks(format!(
            "offline, and the cache {} has no weights of it",
            options.cache.display()
        )));
    }
    let bytes = files.iter().filter_map(|n| Some(snapshot.join(n).metadata().ok()?.len())).sum();
    let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Pulled { snapshot, commit, files, bytes, received: 0 })
}

/// The names of the files below `folder`.
fn walk(folder: &std::path::Path, prefix: &str, depth: u32, out: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path() {
            path if path.is_dir() && depth > 0 => walk(&path, &format!("{name}/"), depth - 1, out),
            path if !path.is_dir() => out.push(name),
            _ => {}
        }
    }
}
