//! From a request to pictures: text, noise, schedule, the phases, and image files.

pub mod noise;
pub mod request;
pub mod schedule;
