//! The images that clients leave here, by their names in this API.

use axum::body::Bytes;

use crate::server::access::Owner;
use crate::server::state::Server;
use crate::server::store::Kind;

/// The name of an image in a folder.
pub fn joined(folder: &str, name: &str) -> String {
    match folder.trim_matches('/') {
        "" => name.to_string(),
        folder => format!("{folder}/{name}"),
    }
}

/// The image that the caller has uploaded as `name`.
pub fn find_uploaded(server: &Server, owner: &Owner, name: &str) -> Option<Bytes> {
    server.store.get(&owner.0, Kind::Image, &format!("input:{name}")).map(|(_, bytes)| bytes)
}

/// The image that the caller has put under `id`.
pub fn find_cached(server: &Server, owner: &Owner, id: &str) -> Option<Bytes> {
    server.store.get(&owner.0, Kind::Image, &format!("cache:{id}")).map(|(_, bytes)| bytes)
}

/// The names of the images that the caller has uploaded.
pub fn names(server: &Server, owner: &Owner) -> Vec<String> {
    let all = server.store.list(&owner.0, Kind::Image);
    all.iter().filter_map(|facts| facts.name.strip_prefix("input:").map(str::to_string)).collect()
}
