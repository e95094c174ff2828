//! From a request to pictures: text, noise, schedule, the phases, and image files.

mod device;
mod engine;
mod generate;
pub mod images;
pub mod loras;
mod model;
pub mod noise;
mod outlook;
mod phases;
pub mod report;
pub mod request;
pub mod schedule;
mod text_cache;
pub mod tokenizers;

pub use engine::Pipeline;
pub use outlook::{Outlook, outlook};
pub use report::PlanReport;

pub use crate::host::cache_folder;
pub use crate::library::{Inspection, convert, hub, inspect as inspect_weights, places as models};
pub use crate::weights::exit_on_lost_pages;
