//! From names to files: finds, opens, downloads, converts and inspects models.
//!
//! `open` takes a file or a folder, recognises what it holds by tensor names, looks for missing components where people keep them,
//! and returns each component as `ComponentWeights`.

pub mod config;
pub mod convert;
pub mod file_names;
pub mod find;
pub mod hf_cache;
pub mod hub;
mod inspect;
pub mod lookup;
pub mod open;
pub mod places;
pub mod repo_id;
pub mod similar;
pub mod synthetic;
pub mod unit;

pub use inspect::{Inspection, inspect, inspect_among};
pub use lookup::ModelFiles;
pub(crate) use open::open_shapes;
pub use open::{
    Checkpoint, Files, open, open_among, open_bytes, open_only, open_source, open_source_among,
};
