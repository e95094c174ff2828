//! `--mask`, `--outpaint` and transparent pixels: a part of an image is repainted, and the rest of
//! it comes back unchanged.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};

/// Runs the program in `folder` and returns its stderr.
fn run(folder: &Path, arguments: &[&str], exit: i32) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .current_dir(folder)
        // The tests do not depend on the user's own files.
        .env("FLUX_FAST_CONFIG", "")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .args(arguments)
        .args(["--device", "cpu"])
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {err}");
    assert!(!err.contains("panicked"), "{err}");
    err
}

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, (2 * y) as u8, (x * y % 251) as u8]))
}

/// White from column 70 and row 30 on.
fn mask(width: u32, height: u32) -> GrayImage {
    GrayImage::from_fn(width, height, |x, y| Luma([255 * u8::from(x >= 70 && y >= 30)]))
}

fn open(path: &Path) -> RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

/// How many pixels of `found` differ from `photo` where `is_repainted` says so; no other may.
fn changed(found: &RgbImage, photo: &RgbImage, is_repainted: impl Fn(u32, u32) -> bool) -> usize {
    assert_eq!(found.dimensions(), photo.dimensions());
    let differ = found.enumerate_pixels().filter(|&(x, y, p)| p != photo.get_pixel(x, y));
    differ.inspect(|&(x, y, _)| assert!(is_repainted(x, y), "pixel {x}, {y} changed")).count()
}

#[test]
fn a_masked_part_is_repainted_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let white = |x, y| x >= 70 && y >= 30;
    photo(131, 100).save(folder.join("photo.png")).unwrap();
    mask(131, 100).save(folder.join("mask.png")).unwrap();
    let base = ["a fox", "-i", "photo.png", "--mask", "mask.png", "--steps", "2", "--seed", "3"];
    for (name, more) in [
        ("a.png", &[][..]),
        ("b.png", &["--mask-padding", "4"]),
        ("c.png", &["--strength", "1", "--width", "64"]),
    ] {
        run(folder, &[&base[..], &["-o", name], more].concat(), 0);
        let found = open(&folder.join(name));
        let count = changed(&found, &photo(131, 100), white);
        assert!(count > 2000, "{name}: {count} pixels changed");
    }
    // Strength 0 draws nothing.
    run(folder, &[&base[..], &["-o", "d.png", "--strength", "0"]].concat(), 0);
    assert!(open(&folder.join("d.png")) == photo(131, 100));
    // Blurred: a larger part, and still not all.
    run(folder, &[&base[..], &["-o", "e.png", "--mask-blur", "3"]].concat(), 0);
    let near = |x, y| x >= 70 - 20 && y >= 30 - 20;
    assert!(changed(&open(&folder.join("e.png")), &photo(131, 100), near) > 2000);
    // The settings draw it again, and need the mask.
    let again = ["again", "b.png", "-i", "photo.png", "-o", "again.png"];
    run(folder, &[&again[..], &["--mask", "mask.png"]].concat(), 0);
    assert!(open(&folder.join("again.png")) == open(&folder.join("b.png")));
    let err = run(folder, &again, 2);
    assert!(err.contains("--mask"), "{err}");
}

#[test]
fn margins_are_painted_around_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    photo(64, 64).save(folder.join("photo.png")).unwrap();
    let base = ["a fox", "-i", "photo.png", "--outpaint", "30,0,0,20", "--steps", "2"];
    run(folder, &[&base[..], &["-o", "x.png"]].concat(), 0);
    let found = open(&folder.join("x.png"));
    assert_eq!(found.dimensions(), (94, 84));
    // A small image is kept whole.
    let part = image::imageops::crop_imm(&found, 30, 0, 64, 64).to_image();
    assert!(part == photo(64, 64));
    let err = run(folder, &["a fox", "-i", "photo.png", "--outpaint", "1,2,3"], 2);
    assert!(err.contains("LEFT,TOP,RIGHT,BOTTOM"), "{err}");
}

#[test]
fn transparent_pixels_are_repainted_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let whole = photo(96, 64);
    let image = RgbaImage::from_fn(96, 64, |x, y| {
        let Rgb([r, g, b]) = *whole.get_pixel(x, y);
        if x < 40 { Rgba([0, 0, 0, 0]) } else { Rgba([r, g, b, 255]) }
    });
    image.save(folder.join("photo.png")).unwrap();
    let err = run(folder, &["a fox", "-i", "photo.png", "--steps", "2", "-o", "x.png"], 0);
    assert!(err.contains("the transparent pixels of photo.png are repainted"), "{err}");
    let found = open(&folder.join("x.png"));
    assert!(changed(&found, &whole, |x, _| x < 40) > 1000);
    // Opaque pixels in a format with transparency are an image like any other.
    let opaque = RgbaImage::from_pixel(96, 64, Rgba([9, 90, 200, 255]));
    opaque.save(folder.join("opaque.png")).unwrap();
    let err = run(folder, &["a fox", "-i", "opaque.png", "--steps", "2", "-o", "y.png"], 0);
    assert!(!err.contains("transparent"), "{err}");
    assert_eq!(open(&folder.join("y.png")).dimensions(), (128, 128));
}

#[test]
fn masks_that_cannot_be_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    photo(64, 64).save(folder.join("photo.png")).unwrap();
    mask(64, 48).save(folder.join("other.png")).unwrap();
    GrayImage::new(64, 64).save(folder.join("black.png")).unwrap();
    fs::write(folder.join("text.png"), "no image").unwrap();
    let photo = ["a fox", "-i", "photo.png"];
    for (arguments, exit, words) in [
        (&["--mask", "other.png"][..], 2, &["64x48", "64x64"][..]),
        (&["--mask", "black.png"], 2, &["empty"]),
        (&["--mask", "none.png"], 4, &["none.png"]),
        (&["--mask", "text.png"], 2, &["text.png"]),
        (&["--mask-blur", "3"], 2, &["--mask-blur", "--mask"]),
        (&["--mask-padding", "3"], 2, &["--mask-padding"]),
        (&["--outpaint", "0,0,0,0"], 2, &["--outpaint"]),
        (&["--outpaint", "100000,0,0,0"], 2, &["too large"]),
        (&["--outpaint", "64,0,0,0", "--size", "64x128"], 2, &["128x64"]),
    ] {
        let err = run(folder, &[&photo[..], arguments].concat(), exit);
        assert!(words.iter().all(|word| err.contains(word)), "{arguments:?}: {err}");
    }
    // The embedded model has no use for a control image, which is read and not ignored.
    let err = run(folder, &["a fox", "--control", "photo.png"], 2);
    assert!(err.contains("does not read a control image"), "{err}");
    run(folder, &["a fox", "--control", "none.png"], 4);
    for arguments in [&["--mask", "black.png"][..], &["--outpaint", "1,1,1,1"]] {
        let err = run(folder, &[&["a fox"], arguments].concat(), 2);
        assert!(err.contains("--init-img"), "{err}");
    }
}
