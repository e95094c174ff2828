//! Images that are decoded as a whole count against the bound on memory: they are refused before
//! they are decoded, and the number that the refusal names is enough.

use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use jpeg_encoder::{ColorType, Encoder};

use super::runs::command;

/// Runs the program in `folder`; its exit code, what it said, and the most memory that it had.
fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, Option<u64>) {
    let base = ["--device", "cpu", "--steps", "1", "--threads", "2", "--json"];
    let output = command(folder, &[&["a fox"], arguments, &base].concat()).output().unwrap();
    let report = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said, report["peak_memory_bytes"].as_u64())
}

fn photo(side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| Rgb([x as u8, y as u8, (x / 64 * y / 64) as u8]))
}

/// The bound on memory that a refusal names.
fn named(said: &str) -> u64 {
    let number = said.split("--ram ").nth(1).and_then(|text| text.split('M').next());
    number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no number in {said}"))
}

#[test]
fn a_progressive_photo_is_refused_with_the_memory_that_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let side = 4000;
    let mut bytes = vec![];
    let mut encoder = Encoder::new(&mut bytes, 80);
    encoder.set_progressive(true);
    encoder.encode(photo(side).as_raw(), side as u16, side as u16, ColorType::Rgb).unwrap();
    std::fs::write(dir.path().join("photo.jpg"), bytes).unwrap();
    let request = ["-i", "photo.jpg", "-o", "x.png", "--ram"];
    let (code, said, _) = run(dir.path(), &[&request[..], &["250M"]].concat());
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("photo.jpg") && said.contains("not progressive"), "{said}");
    let enough = named(&said);
    let (code, said, peak) = run(dir.path(), &[&request[..], &[&format!("{enough}M")]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(peak.unwrap() <= enough * 1_000_000, "{peak:?} of {enough} MB");
}

/// No bound on memory would help where the model does not read the image.
#[test]
fn an_image_that_the_model_does_not_read_is_refused_before_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    photo(5000).save(dir.path().join("photo.png")).unwrap();
    let options = [
        ("--control", "photo.png"),
        ("--style", "photo.png"),
        ("--reference", "photo.png"),
        ("--controlnet", "net.safetensors:photo.png"),
    ];
    for (option, value) in options {
        let (code, said, _) = run(dir.path(), &[option, value, "-o", "x.png", "--ram", "120M"]);
        assert!(matches!(code, Some(2 | 4)), "{option}: {code:?}: {said}");
        // The bound itself is printed before.
        let (_, refusal) = said.split_once("error: ").unwrap();
        assert!(!refusal.contains("--ram"), "{option}: {said}");
    }
}

/// The image and its mask are decoded before the model is known, and count all the same.
#[test]
fn a_mask_and_its_image_count_against_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let side = 3000;
    photo(side).save(dir.path().join("photo.png")).unwrap();
    let mask = GrayImage::from_fn(side, side, |x, _| Luma([if x < 900 { 255 } else { 0 }]));
    mask.save(dir.path().join("mask.png")).unwrap();
    let clear =
        |x, y, p: &Rgb<u8>| Rgba([p[0], p[1], p[2], if x < 900 && y < 900 { 0 } else { 255 }]);
    let whole = photo(side);
    let pixel = |x, y| clear(x, y, whole.get_pixel(x, y));
    RgbaImage::from_fn(side, side, pixel).save(dir.path().join("clear.png")).unwrap();
    let opaque = |x, y| clear(900 + x, y, whole.get_pixel(x, y));
    RgbaImage::from_fn(side, side, opaque).save(dir.path().join("opaque.png")).unwrap();
    let small = ["--size", "128x128", "-o", "x.png", "--ram"];
    let requests: [&[&str]; 5] = [
        &["-i", "photo.png", "--mask", "mask.png"],
        &["-i", "photo.png", "--mask", "mask.png", "--mask-padding", "50"],
        &["-i", "photo.png", "--outpaint", "0,60,0,60"],
        &["-i", "clear.png"],
        &["-i", "opaque.png"],
    ];
    for request in requests {
        let (code, said, _) = run(dir.path(), &[request, &small, &["100M"]].concat());
        assert_eq!(code, Some(5), "{request:?}: {said}");
        assert!(said.contains("the image to start from"), "{request:?}: {said}");
        // These are decoded as a whole, whatever their format.
        assert!(!said.contains("row by row"), "{said}");
        let enough = named(&said);
        let bound = format!("{enough}M");
        let (code, said, peak) = run(dir.path(), &[request, &small, &[&bound]].concat());
        assert_eq!(code, Some(0), "{request:?} in {enough} MB: {said}");
        assert!(peak.unwrap() <= enough * 1_000_000, "{request:?}: {peak:?} of {enough} MB");
    }
}

/// A file that can be read row by row may have more pixels than one that is decoded as a whole.
#[test]
fn a_mask_or_an_image_with_one_is_refused_by_its_size() {
    let dir = tempfile::tempdir().unwrap();
    photo(128).save(dir.path().join("photo.png")).unwrap();
    GrayImage::new(9000, 9000).save(dir.path().join("large.png")).unwrap();
    for (init, mask) in [("photo.png", "large.png"), ("large.png", "photo.png")] {
        let (code, said, _) = run(dir.path(), &["-i", init, "--mask", mask, "--ram", "200M"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("large.png") && said.contains("9000x9000"), "{said}");
        assert!(said.contains("1 to 64 million pixels"), "{said}");
    }
}
