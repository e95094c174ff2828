//! From a request to pictures: text, noise, schedule, the phases, and image files.

mod budget;
mod device;
mod engine;
mod generate;
pub mod images;
mod loaded;
pub mod loras;
mod model;
pub mod noise;
mod open_device;
mod outlook;
mod phases;
mod progress;
mod recover;
pub mod report;
pub mod request;
pub mod schedule;
mod settle;
mod text_cache;
pub mod tokenizers;

pub use engine::Pipeline;
pub use outlook::{Outlook, outlook};
pub use report::PlanReport;

pub use crate::host::cache_folder;
pub use crate::library::{Inspection, convert, hub, inspect as inspect_weights, places as models};
pub use crate::weights::exit_on_lost_pages;
