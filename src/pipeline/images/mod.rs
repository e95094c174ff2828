//! Image files: pictures out, with the settings that made them, and pictures in.

mod complete;
mod encode;
mod exif;
mod load;
pub mod metadata;
mod other_formats;
mod save;
mod scan;
mod texts;

pub use encode::{DEFAULT_QUALITY, Format, PNG_KEY, encode};
pub use load::{
    ImageFile, MAX_PIXELS, decode, fit, image_size, load_init_image, provenance_of, read_metadata,
    read_provenance,
};
pub use metadata::Provenance;
pub use save::{Metadata, probe_output, save, to_bytes, with_suffix, write_beside, write_new};
pub use texts::{ImageText, MAX_TEXT_BYTES, texts_in};
