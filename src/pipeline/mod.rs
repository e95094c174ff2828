//! From a request to pictures: text, noise, schedule, the phases, and image files.

mod generate;
pub mod images;
pub mod metadata;
pub mod request;
pub mod tokenizers;

pub use generate::{Inspection, Pipeline, PlanReport, inspect_weights};
