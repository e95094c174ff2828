//! The images that clients leave here, by their names in this API.

use axum::body::Bytes;

use crate::server::access::Owner;
use crate::server::fault::Fault;
use crate::server::job::hex;
use crate::server::state::Server;
use crate::server::submit::hash_bytes;

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

/// The key of the image that the caller has put under `id`, there.
pub fn cache_key(id: &str) -> String {
    format!("cache:{id}")
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
    let name = format!("mask:{}", hex(&hash_bytes(png)));
    server.uploads().put(&owner.0, &name, png, true)?;
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
