//! From names to files: finds, opens, downloads, converts and inspects models.
//!
//! [`open()`] takes a file or a folder, recognises its components by their tensor names, looks for
//! absent components in the usual folders, and returns a [`Checkpoint`] with the
//! [`ComponentWeights`](crate::weights::ComponentWeights) of each.

pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod file_names;
pub mod find;
#[cfg(any(feature = "hub", all(feature = "cli", feature = "server")))]
pub(crate) mod given;
pub mod hf_cache;
#[cfg(feature = "hub")]
pub mod hub;
mod inspect;
pub mod lookup;
pub mod networks;
pub mod open;
mod opened;
pub mod places;
mod recorded;
pub mod repo_id;
pub mod similar;
pub mod synthetic;
pub mod unit;

pub use checkpoint::Checkpoint;
pub use inspect::{Inspection, inspect, inspect_among};
pub use lookup::ModelFiles;
pub(crate) use open::open_shapes;
pub use open::{
    Files, open, open_among, open_bytes, open_component, open_only, open_source, open_source_among,
};
pub use recorded::file_hash;
