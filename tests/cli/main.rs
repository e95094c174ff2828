//! The command line from outside.

#[path = "../common/mod.rs"]
mod common;

mod again;
mod binary;
mod controlnets;
mod files;
mod first_steps;
mod klein;
#[cfg(target_os = "linux")]
mod large_images;
#[cfg(target_os = "linux")]
mod limits;
mod masks;
mod references;
mod runs;
#[cfg(feature = "server")]
mod server;
mod stranger;
mod streams;
mod styles;
