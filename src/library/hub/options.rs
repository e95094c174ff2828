//! What to download, from where, and to where.

use std::path::PathBuf;

use super::retry::Retry;
use super::select::Selection;
use super::token::Credentials;
use crate::error::Result;
use crate::host::{Environment, flag, variable};
use crate::library::hf_cache::HubCache;
use crate::library::repo_id::{HUGGING_FACE, RepoRef};

/// The parameters of [`pull`](super::pull).
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// The repository, `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Which files of the repository to download.
    pub selection: Selection,
    /// The address of the hub, such as `https://huggingface.co`.
    pub endpoint: String,
    /// The folder of the cache: it contains `models--org--name`.
    pub cache: PathBuf,
    /// The token to send to the hub.
    pub token: Credentials,
    /// Use only files that are in the cache already, without the network.
    pub offline: bool,
    /// How failures are retried.
    pub retry: Retry,
    /// A PEM file with the certificates to trust instead of the built-in ones.
    pub certificates: Option<PathBuf>,
}

impl PullOptions {
    /// The options for `name`, as [`RepoRef::parse`] reads it. Everything else comes from the
    /// environment variables that the tools of Hugging Face use: `HF_ENDPOINT`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `SSL_CERT_FILE` and others.
    pub fn from_env(name: &str, env: Environment) -> Result<Self> {
        let endpoint = variable(env, "HF_ENDPOINT")
            .map_or(HUGGING_FACE.into(), |e| e.to_string_lossy().into_owned());
        let RepoRef { repo, revision, file } = RepoRef::parse(name, &endpoint)?;
        Ok(PullOptions {
            repo,
            revision,
            selection: file.map_or(Selection::Needed, |file| Selection::Named(vec![file])),
            endpoint,
            cache: HubCache::from_env(env).root,
            token: Credentials::from_env(env),
            offline: flag(env, "HF_HUB_OFFLINE") || flag(env, "TRANSFORMERS_OFFLINE"),
            retry: Retry::default(),
            certificates: variable(env, "SSL_CERT_FILE").map(PathBuf::from),
        })
    }
}
