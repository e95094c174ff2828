//! From a request to images.
//!
//! An [`Engine`] has a loaded model and an open device. It turns a [`Request`](request::Request)
//! into [`Settings`](request::Settings), plans the phases that the model's family supplies, draws
//! the noise and runs the phases. [`images`] reads and writes the files.

mod again;
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
mod budget;
mod control_images;
mod controlnets;
mod device;
mod embedded;
mod engine;
mod flux1_kind;
mod generate;
pub mod images;
mod inputs;
mod int8;
mod loaded;
#[cfg_attr(not(internals), doc(hidden))]
pub mod loras;
mod model;
#[cfg_attr(not(internals), doc(hidden))]
pub mod noise;
mod open_device;
mod opened_file;
mod outlook;
mod phases;
mod progress;
mod recover;
pub mod report;
pub mod request;
pub mod schedule;
mod settle;
mod speed;
mod styles;
mod text_cache;
#[cfg_attr(not(internals), doc(hidden))]
pub mod tokenizers;

pub use again::{find_recorded_controlnets, find_recorded_loras, recorded_model, work};
pub use embedded::{EMBEDDED, model as embedded_model};
pub use engine::Engine;
pub use inputs::{ControlNetInputs, ModelInputs};
pub use outlook::{Outlook, PublishedModel, outlook};
pub use report::{PlanReport, TimeSource};
#[cfg(feature = "server")]
pub(crate) use settle::{check_side, random_seed};

pub use crate::host::cache_folder;
#[cfg(feature = "hub")]
pub use crate::library::hub;
pub use crate::library::{Inspection, convert, inspect as inspect_weights, places as models};
pub use crate::weights::{exit_on_abort, exit_on_lost_pages};
