//! Image files: written with the settings that made them, and read.

mod canny;
mod complete;
mod decoder;
mod encode;
mod exif;
mod image_text;
mod jpeg_rows;
mod kontext;
mod load;
mod mask_file;
mod masking;
pub mod metadata;
mod other_formats;
mod png_rows;
mod reference;
mod resize;
mod save;
mod scan;
mod stretch;
mod texts;

pub(crate) use canny::{THRESHOLDS, canny, is_drawing_of_edges};
pub use decoder::MAX_PIXELS;
pub use encode::{DEFAULT_QUALITY, Format, encode};
pub use image_text::{ImageText, MAX_TEXT_BYTES, PNG_KEY};
#[cfg(feature = "server")]
pub(crate) use kontext::nearest_kontext_size;
pub(crate) use kontext::{kontext_size, prepare_kontext};
pub use load::{
    ImageFile, decode, image_size, load_control_image, load_init_image, provenance_of,
    read_metadata, read_provenance, read_stream,
};
#[cfg(feature = "server")]
pub(crate) use mask_file::encode_with_alpha;
pub use mask_file::{MaskMarks, encode_mask};
#[cfg(feature = "server")]
pub(crate) use masking::Region;
pub(crate) use masking::{Masking, fit_mask, is_hard};
pub use metadata::Provenance;
pub use reference::ReferenceSize;
pub(crate) use reference::{check_reference, prepare_bytes, prepare_reference, reference_size};
pub use resize::{fit, fit_bytes};
pub use save::{Metadata, probe_output, save, to_bytes, with_suffix, write_beside, write_new};
pub(crate) use stretch::{Filter, stretch_bytes, stretched};
pub use texts::texts_in;
