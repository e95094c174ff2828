//! From a request to pictures: text, noise, schedule, the phases, and image files.

mod engine;
mod generate;
pub mod images;
pub mod metadata;
mod model;
pub mod noise;
mod phases;
pub mod report;
pub mod request;
pub mod schedule;
mod synthetic;
mod tiles;
pub mod tokenizers;

pub use engine::Pipeline;
pub use report::PlanReport;

pub use crate::weights::{Inspection, inspect as inspect_weights};
