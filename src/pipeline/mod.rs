//! From a request to pictures: text, noise, schedule, the phases, and image files.

pub mod request;
pub mod tokenizers;
