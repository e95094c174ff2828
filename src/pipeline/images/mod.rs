//! Image files: pictures out, with the settings that made them, and pictures in.

mod encode;
mod exif;
mod load;
pub mod metadata;
mod save;

pub use encode::{DEFAULT_QUALITY, Format, encode};
pub use load::{MAX_PIXELS, decode, fit, load_init_image, read_init_image, read_metadata, text_in};
pub use save::{Metadata, probe_output, save, to_bytes, with_suffix, write_beside};
