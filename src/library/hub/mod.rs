//! Downloads files of a repository of a hub into the Hugging Face cache, where every tool finds
//! them.
//!
//! [`pull`] does all of it. The commit and the list of files come from the API of the hub;
//! everything else comes from `resolve` addresses of that commit, so that all files belong to one
//! revision. A file is written under a temporary name, checked, then renamed. The name of the
//! branch is written only after all files of the snapshot are complete.
//!
//! This is the only module that uses the network. The layout of the cache is in
//! [`hf_cache`](super::hf_cache), names of repositories are in [`repo_id`](super::repo_id).

mod checksum;
mod download;
mod headers;
mod http;
mod options;
mod progress;
mod pull;
mod responses;
mod retry;
mod select;
mod store;
mod token;

pub use options::PullOptions;
pub use progress::PullProgress;
pub use pull::{Pulled, pull};
pub use retry::Retry;
pub use select::Selection;
pub use token::Credentials;
