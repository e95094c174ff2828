//! The images that clients leave here, by their names in this API.

use axum::body::Bytes;
use sha2::{Digest, Sha256};

use crate::server::access::Owner;
use crate::server::fault::Fault;
use crate::server::job::hex;
use crate::server::state::Server;
use crate::server::store::FULL;
use crate::server::uploads::Upload;

/// The name of an image in a folder.
pub fn joined(folder: &str, name: &str) -> String {
    match folder.trim_matches('/') {
        "" => name.to_string(),
        folder => format!("{folder}/{name}"),
    }
}

/// The key of the image uploaded as `name`, among all uploads of the caller.
pub fn upload_key(name: &str) -> String {
    format!("input:{name}")
}

/// What the keys of images begin with that a client puts under an id for its next graph, and of
/// masks that graphs have made. They are of use for a short time only.
const CACHED: &str = "cache:";
const MASK: &str = "mask:";

/// The key of the image that the caller has put under `id`, there.
fn cache_key(id: &str) -> String {
    format!("{CACHED}{id}")
}

/// Stores an image under a key of those above. A client that draws all day sends more of them than
/// one may store, so the older half of them makes room.
fn put_cached(server: &Server, owner: &Owner, key: &str, bytes: &Bytes) -> Result<Upload, Fault> {
    let uploads = server.uploads();
    let stored = uploads.put(&owner.0, key, bytes, true);
    if !stored.as_ref().is_err_and(|fault| fault.code == FULL) {
        return stored;
    }
    uploads.remove(&owner.0, &older_half(uploads.names(&owner.0)?))?;
    uploads.put(&owner.0, key, bytes, true)
}

/// The older half of those `names` that are of use for a short time only. `names` begins with the
/// newest.
fn older_half(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.starts_with(CACHED) || name.starts_with(MASK));
    names.split_off(names.len() / 2)
}

/// Stores an image that a client puts under `id`.
///
/// # Errors
/// 507 if the caller has stored too much else, 503.
pub fn put_image(server: &Server, owner: &Owner, id: &str, bytes: &Bytes) -> Result<Upload, Fault> {
    put_cached(server, owner, &cache_key(id), bytes)
}

/// The image that the caller has uploaded as `name`.
///
/// # Errors
/// 503.
pub fn find_uploaded(server: &Server, owner: &Owner, name: &str) -> Result<Option<Bytes>, Fault> {
    server.uploads().get(&owner.0, &upload_key(name))
}

/// The image that the caller has put under `id`.
///
/// # Errors
/// 503.
pub fn find_cached(server: &Server, owner: &Owner, id: &str) -> Result<Option<Bytes>, Fault> {
    server.uploads().get(&owner.0, &cache_key(id))
}

/// Stores a mask that a graph has made, and returns its name.
///
/// # Errors
/// 507 if the caller has stored too much already, 503.
pub fn keep(server: &Server, owner: &Owner, png: &Bytes) -> Result<String, Fault> {
    let name = format!("{MASK}{}", hex(&Sha256::digest(png)));
    put_cached(server, owner, &name, png)?;
    Ok(name)
}

/// The mask that [`keep`] has stored under this name.
///
/// # Errors
/// 503.
pub fn find_kept(server: &Server, owner: &Owner, name: &str) -> Result<Option<Bytes>, Fault> {
    server.uploads().get(&owner.0, name)
}

/// The names of the images that the caller has uploaded.
///
/// # Errors
/// 503.
pub fn names(server: &Server, owner: &Owner) -> Result<Vec<String>, Fault> {
    let all = server.uploads().names(&owner.0)?;
    Ok(all.iter().filter_map(|name| name.strip_prefix("input:").map(str::to_string)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_older_images_of_short_use() {
        let names = ["cache:3", "input:b", "mask:2", "cache:1", "input:a"].map(String::from);
        assert_eq!(older_half(names.to_vec()), ["mask:2", "cache:1"]);
        assert_eq!(older_half(vec!["cache:1".into()]), ["cache:1"]);
    }
}
