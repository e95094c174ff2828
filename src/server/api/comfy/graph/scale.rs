//! Nodes that change the size of an image.

use axum::body::Bytes;

use super::Picture;
use crate::pipeline::images::nearest_kontext_size;
use crate::server::draft::MAX_INPUT_PIXELS;
use crate::server::fault::Fault;
use crate::server::masks::fitted_file;

/// The size of `FluxKontextImageScale` for an image of `size`: the one with the nearest shape.
pub fn kontext(size: (u32, u32)) -> (u32, u32) {
    let (width, height) = nearest_kontext_size(f64::from(size.0) / f64::from(size.1));
    (width as u32, height as u32)
}

/// The size of `ImageScaleToTotalPixels` for an image of `size`; `None` if it is too large. A
/// megapixel is 1024 x 1024 pixels there.
pub fn to_total(size: (u32, u32), megapixels: f32, multiple: u32) -> Option<(u32, u32)> {
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    let total = f64::from(megapixels) * 1024.0 * 1024.0;
    let scale = (total / (width * height)).sqrt();
    let multiple = f64::from(multiple.max(1));
    let side = |side: f64| ((side * scale / multiple).round() * multiple).max(multiple);
    let (width, height) = (side(width), side(height));
    (width * height <= MAX_INPUT_PIXELS as f64).then_some((width as u32, height as u32))
}

/// The file of `picture` in the size that its nodes have given it.
///
/// # Errors
/// 422 for a file that is damaged or too large, 503 if many others are being decoded.
pub fn file_of(picture: &Picture) -> Result<Bytes, Fault> {
    let (width, height) = picture.size;
    fitted_file("image", &picture.bytes, (width as usize, height as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::images::{Format, decode, encode};
    use crate::pipeline::request::Image;

    #[test]
    fn sizes_are_those_of_comfyui() {
        assert_eq!(kontext((100, 100)), (1024, 1024));
        assert_eq!(kontext((1920, 1080)), (1392, 752));
        assert_eq!(to_total((512, 512), 1.0, 1), Some((1024, 1024)));
        assert_eq!(to_total((2000, 1000), 1.0, 16), Some((1456, 720)));
        assert_eq!(to_total((100, 50), 1e6, 1), None);
        assert_eq!(to_total((100, 50), 0.0, 16), Some((16, 16)));
    }

    #[test]
    fn a_picture_is_scaled_only_where_a_node_says_so() {
        let image = Image { width: 100, height: 50, rgb: vec![9; 100 * 50 * 3] };
        let bytes: Bytes = encode(&image, Format::Png, 90, "").unwrap().into();
        let picture = |size| Picture { bytes: bytes.clone(), size, margins: None, is_edges: false };
        assert_eq!(file_of(&picture((100, 50))).unwrap(), bytes);
        let scaled = decode(&file_of(&picture((64, 64))).unwrap()).unwrap();
        assert_eq!((scaled.width, scaled.height), (64, 64));
        assert!(scaled.rgb.iter().all(|value| *value == 9));
    }
}
