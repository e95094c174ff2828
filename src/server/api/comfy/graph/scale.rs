//! Sizes of nodes that scale images.

use crate::pipeline::images::nearest_kontext_size;
use crate::server::draft::MAX_INPUT_PIXELS;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_comfyui() {
        assert_eq!(kontext((100, 100)), (1024, 1024));
        assert_eq!(kontext((1920, 1080)), (1392, 752));
        assert_eq!(to_total((512, 512), 1.0, 1), Some((1024, 1024)));
        assert_eq!(to_total((2000, 1000), 1.0, 16), Some((1456, 720)));
        assert_eq!(to_total((100, 50), 1e6, 1), None);
        assert_eq!(to_total((100, 50), 0.0, 16), Some((16, 16)));
    }
}
