//! The list of all models in the places.

use std::path::PathBuf;

use serde::Serialize;

use super::describe::{ModelKind, describe};
use super::entries::ModelPlaces;

/// A file or folder in the places, and what it contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// What a user types for it: its name, or its path if the name is not unique.
    pub name: String,
    /// Whether [`ModelPlaces::named`] finds something by `name`: it does not if `name` is a path
    /// outside the places, and such a file cannot be named by clients of a server.
    #[serde(skip)]
    pub is_named: bool,
    /// How it can be used.
    pub kind: ModelKind,
    /// A description such as `FLUX transformer (dev), BFL, fp8; with T5, CLIP, VAE`; for
    /// [`ModelKind::Other`] the reason why it cannot be used.
    pub what: String,
    /// The size of a file with all its shards, or of the weights in a folder.
    pub bytes: u64,
    /// Words for the place where it was found.
    pub place: String,
    /// The file or folder.
    pub path: PathBuf,
}

impl ModelPlaces {
    /// Every file and folder with the name of a model, and what it contains, in the order of the
    /// places. Only headers are read.
    pub fn list(&self) -> Vec<Listing> {
        let entries = self.entries();
        let list = entries.iter().map(|entry| {
            let (kind, what) = describe(&entry.path, self.families);
            let name = self.shortest_name(entry, kind.role(), &entries);
            let found = self.named_among(&name, kind.role(), &|| entries.as_slice().into());
            Listing {
                is_named: found.is_ok(),
                name,
                kind,
                what,
                bytes: entry.bytes,
                place: entry.place.clone(),
                path: entry.path.clone(),
            }
        });
        list.collect()
    }
}
