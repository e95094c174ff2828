//! From a request to pictures: text, noise, schedule, the phases, and image files.

pub mod images;
pub mod metadata;
pub mod request;
pub mod tokenizers;
