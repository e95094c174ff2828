//! Models in the folders where people keep them: the Hugging Face cache, the folders of ComfyUI and
//! A1111, and the current folder.
//!
//! [`ModelPlaces`] knows these folders. It lists the models in them ([`ModelPlaces::list`]), and
//! finds one of them by its name ([`ModelPlaces::named`]). A name is looked up among the files that
//! were found, so that no name leads to any other file.

mod components;
mod describe;
mod entries;
mod extra_paths;
mod listing;
mod naming;
mod roots;

pub use describe::{ModelKind, describe};
pub use entries::{Entry, ModelPlaces};
pub use listing::Listing;
pub(crate) use naming::is_called;
#[cfg(feature = "server")]
pub(crate) use naming::{Called, find_called};
pub use roots::{ModelFolder, Role};
