//! Large photos as start images and references: JPEG files are read row by row.

use flux_fast::pipeline::images::{ImageFile, ReferenceSize, decode, fit};
use flux_fast::pipeline::request::Image;
use jpeg_encoder::{ColorType, Encoder, ImageBuffer, JpegColorType, SamplingFactor};

/// Soft colours with hard edges.
fn colour(x: usize, y: usize) -> [u8; 3] {
    let wave = |at: usize, length: f32| ((at as f32 / length).sin() * 100.0 + 128.0) as u8;
    let edge = if (x / 37 + y / 23).is_multiple_of(2) { 60 } else { 0 };
    [wave(x, 31.0).saturating_add(edge), wave(y, 17.0), wave(x + y, 53.0).saturating_sub(edge)]
}

fn photo(width: usize, height: usize) -> Image {
    let rgb = (0..width * height).flat_map(|i| colour(i % width, i / width)).collect();
    Image { width, height, rgb }
}

fn jpeg(image: &Image, how: impl Fn(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 90);
    how(&mut encoder);
    let (w, h) = (image.width as u16, image.height as u16);
    encoder.encode(&image.rgb, w, h, ColorType::Rgb).unwrap();
    bytes
}

/// EXIF with nothing but the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let head = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
    [head.as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]].concat()
}

/// The mean and the largest difference.
fn differences(a: &Image, b: &Image) -> (f64, u8) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let each = || a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = each().map(f64::from).sum();
    (sum / a.rgb.len() as f64, each().max().unwrap())
}

#[test]
fn a_jpeg_that_becomes_smaller_is_read_by_rows_as_it_is_decoded() {
    let image = photo(413, 307);
    let mut files = vec![];
    for factor in [
        SamplingFactor::F_1_1,
        SamplingFactor::F_2_1,
        SamplingFactor::F_1_2,
        SamplingFactor::F_2_2,
        SamplingFactor::F_4_1,
    ] {
        files.push(jpeg(&image, |e| e.set_sampling_factor(factor)));
        files.push(jpeg(&image, |e| {
            e.set_sampling_factor(factor);
            e.set_restart_interval(5);
        }));
    }
    let gray: Vec<u8> = image.rgb.as_chunks::<3>().0.iter().map(|p| p[1]).collect();
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, 90).encode(&gray, 413, 307, ColorType::Luma).unwrap();
    files.push(bytes);
    for (i, bytes) in files.into_iter().enumerate() {
        let file = ImageFile::of(bytes).unwrap();
        let whole = file.decode().unwrap();
        for (width, height) in [(64, 64), (192, 144), (16, 128), (206, 153)] {
            let got = file.fitted(width, height).unwrap();
            let (mean, most) = differences(&got, &fit(&whole, width, height));
            // At half the size, edges show that colours are not interpolated: up to 12 here.
            assert!(mean < 1.2 && most <= 20, "file {i}, {width}x{height}: {mean:.2}, {most}");
            assert!(
                file.fitted_bytes(width, height) < file.decode_bytes(width, height) + (2 << 20)
            );
        }
        // One that keeps more than half of its size is decoded as a whole.
        assert!(file.fitted(240, 160).unwrap() == fit(&whole, 240, 160), "file {i}");
    }
}

#[test]
fn other_kinds_of_jpeg_are_decoded_as_a_whole() {
    let image = photo(300, 200);
    let data = |name: &str| std::fs::read(format!("tests/data/{name}")).unwrap();
    let progressive = jpeg(&image, |e| e.set_progressive(true));
    for bytes in [progressive, data("cmyk.jpg")] {
        let file = ImageFile::of(bytes).unwrap();
        let whole = file.decode().unwrap();
        assert!(file.fitted(16, 16).unwrap() == fit(&whole, 16, 16));
    }
}

#[test]
fn rows_of_a_photo_are_turned_as_exif_says() {
    let image = photo(320, 200);
    for orientation in 1..=8 {
        let bytes = jpeg(&image, |e| e.add_exif_metadata(&exif(orientation)).unwrap());
        let file = ImageFile::of(bytes).unwrap();
        let whole = file.decode().unwrap();
        for (width, height) in [(64, 64), (96, 48), (48, 96)] {
            let (mean, _) =
                differences(&file.fitted(width, height).unwrap(), &fit(&whole, width, height));
            assert!(mean < 1.0, "orientation {orientation}, {width}x{height}: {mean:.2}");
        }
    }
    // A reference keeps its shape.
    let large = jpeg(&photo(2500, 2100), |e| e.add_exif_metadata(&exif(6)).unwrap());
    let file = ImageFile::of(large).unwrap();
    let reference = file.reference(ReferenceSize::Limited).unwrap();
    assert!(reference.width < reference.height);
    let bytes = file.reference_bytes(ReferenceSize::Limited);
    assert!(bytes < 12 << 20, "{bytes}");
}

/// A picture of which an encoder asks one row after another.
struct Rows(u16, u16);

impl ImageBuffer for Rows {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.0
    }

    fn height(&self) -> u16 {
        self.1
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let blue = (u32::from(y) * 255 / u32::from(self.1)) as u8;
        for (buffer, value) in buffers.iter_mut().zip([150, blue, 128]) {
            buffer.resize(buffer.len() + usize::from(self.0), value);
        }
    }
}

#[test]
fn a_photo_of_108_million_pixels_needs_a_few_megabytes() {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 80);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode_image(Rows(12_000, 9_000)).unwrap();
    let file = ImageFile::of(bytes).unwrap();
    let need = file.fitted_bytes(1024, 768);
    assert!(need < 12 << 20, "{need}");
    let small = file.fitted(1024, 768).unwrap();
    let blue = |row: usize| f64::from(small.rgb[3 * 1024 * row + 2]);
    assert!(blue(10) < 5.0 && blue(760) > 250.0, "{} {}", blue(10), blue(760));
    // As a whole it is too large.
    for whole in [file.decode(), decode(file.bytes())] {
        assert!(whole.unwrap_err().to_string().contains("64 million"));
    }
}

#[test]
fn damage_in_the_data_is_an_error_and_no_panic() {
    let bytes = jpeg(&photo(200, 160), |e| e.set_restart_interval(7));
    let start = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    for at in (start..bytes.len() - 2).step_by(11) {
        for value in [0x00, 0x55, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            if let Ok(file) = ImageFile::of(damaged) {
                // Other colours, or an error.
                let _ = file.fitted(64, 64);
            }
        }
    }
}
