//! Images written and read with their settings; unusual, truncated and hostile image files.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use flux_fast::error::Kind;
use flux_fast::pipeline::images::metadata;
use flux_fast::pipeline::images::{
    Format, Metadata, decode, encode, fit, load_init_image, probe_output, provenance_of,
    read_metadata, save, write_beside,
};
use flux_fast::pipeline::request::{Image, Settings};

fn picture(width: usize, height: usize) -> Image {
    let pixel = |i: usize| [(i * 7) as u8, (i * 13) as u8, (i / width * 5) as u8];
    Image { width, height, rgb: (0..width * height).flat_map(pixel).collect() }
}

fn plain(width: usize, height: usize, colour: [u8; 3]) -> Image {
    Image { width, height, rgb: colour.repeat(width * height) }
}

fn settings(prompt: &str) -> Settings {
    let mut settings = Settings::default();
    settings.prompt = prompt.into();
    settings.negative = Some("blur, \"noise\"\nand 雨".to_string());
    settings.count = 2;
    settings.steps = 4;
    settings.seed = 12345678901234567890;
    (settings.width, settings.height) = (48, 32);
    settings.guidance = Some(3.5);
    settings.cfg_scale = 1.5;
    settings.strength = Some(0.7);
    settings.model = "flux-tiny".to_string();
    settings.model_hash = "0123456789".to_string();
    settings
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn left_over(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with('.')).collect()
}

fn rgba_png(
    width: u32,
    height: u32,
    pixels: &[u8],
    colour: png::ColorType,
    depth: png::BitDepth,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == png::ColorType::Indexed {
        encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    }
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    out
}

#[test]
fn every_format_keeps_the_pixels() {
    let folder = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        for (w, h) in [(48, 32), (1, 1), (17, 3)] {
            let picture = picture(w, h);
            let path = folder.path().join(format!("x.{}", format.extension()));
            save(&picture, &path, format, 95, &Metadata { settings: &settings("a fox"), index: 0 })
                .unwrap();
            let back = load_init_image(&path).unwrap();
            assert_eq!((back.width, back.height), (w, h), "{format:?}");
            if format == Format::Jpeg {
                let off = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
                let error: f64 = picture.rgb.iter().zip(&back.rgb).map(off).sum::<f64>()
                    / picture.rgb.len() as f64;
                assert!(error < 8.0, "JPEG {w}x{h} is off by {error} on average");
            } else {
                assert_eq!(back, picture, "{format:?}");
            }
        }
    }
    assert_eq!(left_over(folder.path()), [""; 0]);
}

#[test]
fn every_format_with_metadata_keeps_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a \"quoted\", long prompt\n".repeat(9_900 / 24);
    let prompts = [
        "a fox",
        "",
        "two\nlines, commas: \"quotes\" \\",
        "emoji 🦊👩‍👩‍👧, 狐, שלום",
        " edge ",
        "Negative prompt: x",
        &long,
    ];
    for prompt in prompts {
        let settings = settings(prompt);
        for format in [Format::Png, Format::Jpeg, Format::WebP, Format::Tiff] {
            let path = folder.path().join(format!("x.{}", format.extension()));
            save(&picture(48, 32), &path, format, 90, &Metadata { settings: &settings, index: 1 })
                .unwrap();
            assert_eq!(read_metadata(&path).unwrap(), settings, "{format:?} {prompt:?}");
        }
    }
    let path = folder.path().join("x.bmp");
    save(
        &picture(48, 32),
        &path,
        Format::Bmp,
        90,
        &Metadata { settings: &settings("a fox"), index: 0 },
    )
    .unwrap();
    assert_eq!(read_metadata(&path).unwrap_err().kind(), Kind::Argument);
}

#[test]
fn the_longest_prompts_fit_into_a_jpeg() {
    let mut settings = settings(&"\"".repeat(10_000));
    settings.negative = Some(" \\".repeat(5_000));
    let bytes = encode(&picture(16, 16), Format::Jpeg, 90, &metadata::write(&settings, 0)).unwrap();
    assert_eq!(provenance_of(&bytes).unwrap().settings, settings);
}

#[test]
fn another_tool_s_jpeg_is_read() {
    let settings = read_metadata(&data("a1111.jpg")).unwrap();
    assert_eq!((settings.prompt.as_str(), settings.negative.as_deref()), ("a cat", Some("dog")));
    assert_eq!((settings.steps, settings.seed, settings.cfg_scale), (20, 5, 7.0));
}

#[test]
fn depths_palettes_gray_and_alpha_become_rgb_on_white() {
    use png::{BitDepth, ColorType};
    let one =
        |pixels: &[u8], colour, depth| decode(&rgba_png(1, 1, pixels, colour, depth)).unwrap().rgb;
    assert_eq!(
        one(&[0x80, 0, 0xff, 0xff, 0, 0], ColorType::Rgb, BitDepth::Sixteen),
        [0x80, 255, 0]
    );
    assert_eq!(one(&[77], ColorType::Grayscale, BitDepth::Eight), [77; 3]);
    assert_eq!(one(&[0x80], ColorType::Indexed, BitDepth::One), [40, 50, 60]);
    assert_eq!(one(&[9, 9, 9, 0], ColorType::Rgba, BitDepth::Eight), [255; 3]);
    assert_eq!(one(&[0, 100, 200, 255], ColorType::Rgba, BitDepth::Eight), [0, 100, 200]);
    assert_eq!(one(&[0, 0, 0, 128], ColorType::Rgba, BitDepth::Eight), [127; 3]);
    assert_eq!(one(&[0, 0], ColorType::GrayscaleAlpha, BitDepth::Eight), [255; 3]);
}

#[test]
fn cmyk_is_converted_and_the_first_frame_of_an_animation_is_used() {
    let cmyk = load_init_image(&data("cmyk.jpg")).unwrap();
    assert!(cmyk.rgb[0] > 240 && cmyk.rgb[1] < 15 && cmyk.rgb[2] < 15, "{:?}", &cmyk.rgb[..3]);
    for name in ["animated.webp", "animated.png"] {
        assert_eq!(load_init_image(&data(name)).unwrap().rgb[..3], [255, 0, 0], "{name}");
    }
}

#[test]
fn orientation_is_applied_once() {
    // EXIF with nothing but the orientation.
    let block = |o: u8| {
        [b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[o, 0, 0, 0, 0, 0, 0]]
            .concat()
    };
    let picture = Image { width: 2, height: 1, rgb: vec![255, 0, 0, 0, 0, 255] };
    let (red, blue) = ([255, 0, 0], [0, 0, 255]);
    for (o, size, first) in
        [(1, (2, 1), red), (2, (2, 1), blue), (3, (2, 1), blue), (4, (2, 1), red)]
            .into_iter()
            .chain([(5, (1, 2), red), (6, (1, 2), red), (7, (1, 2), blue), (8, (1, 2), blue)])
    {
        let mut bytes = Vec::new();
        let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
        encoder.set_exif_metadata(block(o));
        encoder.encode(&picture.rgb, 2, 1, image_webp::ColorType::Rgb8).unwrap();
        let back = decode(&bytes).unwrap();
        assert_eq!(
            ((back.width, back.height), &back.rgb[..3]),
            (size, &first[..]),
            "WebP, orientation {o}"
        );
    }
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 100);
    encoder.add_exif_metadata(&block(6)).unwrap();
    encoder.encode(&plain(32, 16, red).rgb, 32, 16, jpeg_encoder::ColorType::Rgb).unwrap();
    let back = decode(&bytes).unwrap();
    assert_eq!((back.width, back.height), (16, 32));
}

#[test]
fn an_image_format_is_recognised_by_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really-a-png.jpg");
    fs::write(&path, encode(&picture(4, 4), Format::Png, 90, "").unwrap()).unwrap();
    assert_eq!(load_init_image(&path).unwrap(), picture(4, 4));
    for (name, bytes) in [
        ("a.png", b"not a picture".as_slice()),
        ("b.png", b""),
        ("c.gif", b"GIF89a\x01\0\x01\0\0\0\0"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = load_init_image(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Argument, "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("PNG"), "{error}");
        assert_eq!(read_metadata(&path).unwrap_err().kind(), Kind::Argument);
    }
    assert_eq!(load_init_image(&folder.path().join("none.png")).unwrap_err().kind(), Kind::Missing);
    assert_eq!(load_init_image(folder.path()).unwrap_err().kind(), Kind::Argument);
}

#[test]
fn truncated_and_damaged_files_are_errors_or_images_but_never_panic() {
    for format in Format::ALL {
        let good =
            encode(&picture(20, 12), format, 90, &metadata::write(&settings("a fox"), 0)).unwrap();
        for end in (0..good.len()).step_by(3) {
            let _ = (decode(&good[..end]), provenance_of(&good[..end]));
        }
        // Other programs decode a JPEG as far as it goes, and leave the rest gray.
        let bare = encode(&picture(64, 64), format, 90, "").unwrap();
        decode(&bare).unwrap();
        for percent in [20, 50, 55, 90, 99] {
            let cut = &bare[..bare.len() * percent / 100];
            let e = decode(cut).expect_err("cut");
            assert_eq!(e.kind(), Kind::Argument);
            assert!(e.to_string().contains("ends early"), "{percent} % of a {format:?}: {e}");
        }
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0xff;
            let _ = (decode(&bad), provenance_of(&bad));
        }
    }
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    // A header for 30000 x 30000 pixels with hardly any data.
    let mut bomb = encode(&picture(1, 1), Format::Png, 90, "").unwrap();
    bomb[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
    let mut crc = !0u32;
    for byte in &bomb[12..29] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bomb[29..33].copy_from_slice(&(!crc).to_be_bytes());
    let error = decode(&bomb).unwrap_err();
    assert!(error.to_string().contains("30000x30000"), "{error}");

    let mut bomb = encode(&picture(1, 1), Format::Bmp, 90, "").unwrap();
    bomb[18..26].copy_from_slice(&[0x30, 0x75, 0, 0, 0x30, 0x75, 0, 0]);
    assert!(decode(&bomb).is_err());
}

#[test]
fn fit_crops_the_middle_and_keeps_an_image_of_the_right_size() {
    assert_eq!(fit(&picture(8, 8), 8, 8), picture(8, 8));
    // Left third red, middle third green, right third blue: only green is in the middle square.
    let row: Vec<u8> =
        [[255, 0, 0].repeat(16), [0, 255, 0].repeat(16), [0, 0, 255].repeat(16)].concat();
    let wide = Image { width: 48, height: 16, rgb: row.repeat(16) };
    assert_eq!(fit(&wide, 32, 32), plain(32, 32, [0, 255, 0]));
    let tall = fit(&plain(16, 64, [1, 2, 3]), 64, 16);
    assert_eq!(tall, plain(64, 16, [1, 2, 3]));
    for (w, h) in [(1, 1), (1, 1000), (1000, 1)] {
        let fitted = fit(&plain(w, h, [9, 8, 7]), 16, 48);
        assert_eq!(fitted, plain(16, 48, [9, 8, 7]), "from {w}x{h}");
    }
}

#[test]
fn a_failed_write_is_an_output_error_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let name = |n: &str| folder.path().join(n);
    fs::write(name("file"), b"").unwrap();
    let long = "x".repeat(300) + ".png";
    for path in [
        name("missing/x.png"),
        folder.path().to_path_buf(),
        name("file/x.png"),
        name(&long),
        PathBuf::new(),
    ] {
        let probed = probe_output(&path).unwrap_err();
        let written = write_beside(&path, b"x").unwrap_err();
        for error in [probed, written] {
            assert_eq!(error.kind(), Kind::Output, "{error}");
            assert!(error.hint().is_some(), "{error}");
        }
    }
    assert_eq!(left_over(folder.path()), [""; 0]);
    assert!(probe_output(&name("x.png")).is_ok());
    assert!(!name("x.png").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_keeps_the_old_file() {
    let error = write_beside(Path::new("/dev/full"), b"x").unwrap_err();
    assert_eq!(error.kind(), Kind::Output);
    assert!(error.to_string().contains("/dev/full"), "{error}");
    assert!(Path::new("/dev/full").exists());

    // A link is followed: its target is replaced, the link stays.
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real.png"), folder.path().join("link.png"));
    fs::write(&real, b"old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write_beside(&link, b"new").unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
}

#[test]
#[cfg(target_os = "linux")]
fn temporary_files_of_dead_processes_are_removed_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join(".flux-fast-999999999-abc.tmp");
    let alive = folder.path().join(format!(".flux-fast-{}-abc.tmp", std::process::id()));
    let other = folder.path().join(".flux-fast-notes.tmp");
    for path in [&dead, &alive, &other] {
        fs::write(path, b"x").unwrap();
    }
    // A process locks the file that it writes.
    let lock = fs::File::open(&alive).unwrap();
    lock.try_lock().unwrap();
    probe_output(&folder.path().join("x.png")).unwrap();
    assert!(!dead.exists() && alive.exists() && other.exists());
}

#[test]
fn the_encoders_accept_only_pixels_that_match_the_size() {
    let bad = Image { width: 4, height: 4, rgb: vec![0; 47] };
    for format in Format::ALL {
        assert_eq!(encode(&bad, format, 90, "").unwrap_err().kind(), Kind::Output);
    }
    let chunked = encode(&picture(3, 3), Format::Png, 90, "caf\u{e9}").unwrap();
    assert!(
        png::Decoder::new(Cursor::new(&chunked))
            .read_info()
            .unwrap()
            .info()
            .uncompressed_latin1_text
            .len()
            == 1
    );
}

#[test]
fn an_image_that_ends_early_is_refused_whatever_its_compression() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.jpg");
    for (progressive, restart) in [(false, 0), (true, 0), (false, 4)] {
        let mut jpeg = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 90);
        encoder.set_progressive(progressive);
        encoder.set_restart_interval(restart);
        encoder.encode(&picture(256, 256).rgb, 256, 256, jpeg_encoder::ColorType::Rgb).unwrap();
        assert!(decode(&jpeg).is_ok());
        // What a download with space reserved leaves behind.
        let mut zeros = jpeg[..jpeg.len() * 55 / 100].to_vec();
        zeros.resize(jpeg.len(), 0);
        for bytes in [&jpeg[..jpeg.len() * 55 / 100], &jpeg[..jpeg.len() - 1], &zeros] {
            fs::write(&path, bytes).unwrap();
            let e = load_init_image(&path).unwrap_err();
            assert!(e.to_string().contains("cut.jpg: the image ends early"), "{e}");
            assert!(e.hint().is_some());
        }
    }
    // TIFF in strips that are compressed.
    let mut tiff = Cursor::new(Vec::new());
    image::DynamicImage::ImageRgb8(image::RgbImage::from_raw(64, 64, picture(64, 64).rgb).unwrap())
        .write_to(&mut tiff, image::ImageFormat::Tiff)
        .unwrap();
    let tiff = tiff.into_inner();
    assert_eq!(decode(&tiff).unwrap(), picture(64, 64));
    for end in [tiff.len() / 3, tiff.len() / 2, tiff.len() * 9 / 10] {
        assert!(decode(&tiff[..end]).unwrap_err().to_string().contains("ends early"), "{end}");
    }
}

#[test]
fn a_png_is_fitted_row_by_row_to_the_same_pixels() {
    use flux_fast::pipeline::images::ImageFile;
    let values = |n: usize| (0..n).map(|i| (i * 7919 % 251) as u8).collect::<Vec<u8>>();
    for (colour, channels) in [
        (png::ColorType::Grayscale, 1),
        (png::ColorType::GrayscaleAlpha, 2),
        (png::ColorType::Rgb, 3),
        (png::ColorType::Rgba, 4),
    ] {
        for (depth, bytes) in [(png::BitDepth::Eight, 1), (png::BitDepth::Sixteen, 2)] {
            let pixels = values(70 * 50 * channels * bytes);
            let file = ImageFile::of(rgba_png(70, 50, &pixels, colour, depth)).unwrap();
            let whole = file.decode().unwrap();
            for (width, height) in [(32, 32), (96, 48), (70, 50), (16, 160)] {
                let fitted = file.fitted(width, height).unwrap();
                assert!(fitted == fit(&whole, width, height), "{colour:?} {depth:?}");
            }
        }
    }
    // Others are decoded as a whole.
    let file = ImageFile::of(encode(&picture(64, 48), Format::Jpeg, 90, "").unwrap()).unwrap();
    assert!(file.fitted(32, 32).unwrap() == fit(&file.decode().unwrap(), 32, 32));
    assert_eq!(file.fitted_bytes(32, 32), file.decode_bytes(32, 32));
    // 64 million pixels of 16 bits, all of them black: a few megabytes.
    let mut large = Vec::new();
    let mut encoder = png::Encoder::new(&mut large, 8000, 8000);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let row = vec![0; 8000 * 6];
    (0..8000).for_each(|_| stream.write_all(&row).unwrap());
    stream.finish().unwrap();
    writer.finish().unwrap();
    let file = ImageFile::of(large).unwrap();
    assert!(file.fitted_bytes(1024, 1024) < 10_000_000, "{}", file.fitted_bytes(1024, 1024));
    assert!(file.decode_bytes(1024, 1024) > 380_000_000);
    // Damage in the middle is an error in either way.
    let mut bytes = encode(&picture(300, 200), Format::Png, 90, "").unwrap();
    let at = bytes.len() / 2;
    bytes[at..at + 40].fill(0x55);
    if let Ok(file) = ImageFile::of(bytes) {
        assert!(file.fitted(64, 64).is_err() && file.decode().is_err());
    }
}

#[test]
fn decoding_says_how_much_memory_it_needs() {
    use flux_fast::pipeline::images::ImageFile;
    let need = |bytes: Vec<u8>| ImageFile::of(bytes).unwrap().decode_bytes(16, 16);
    let deep = vec![0; 300 * 200 * 8];
    let pixels = 300 * 200;
    let sixteen = rgba_png(300, 200, &deep, png::ColorType::Rgba, png::BitDepth::Sixteen);
    assert_eq!(need(sixteen), pixels * (8 + 4));
    let deep = &deep[..300 * 200 * 6];
    let sixteen = rgba_png(300, 200, deep, png::ColorType::Rgb, png::BitDepth::Sixteen);
    assert_eq!(need(sixteen), pixels * (6 + 3));
    assert!(need(encode(&picture(300, 200), Format::Png, 90, "").unwrap()) >= pixels * 3);
}

#[test]
fn other_formats_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for (name, start, words) in [
        ("x.gif", b"GIF89a\x01\0\x01\0\0\0\0".as_slice(), "a GIF"),
        ("x.avif", b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC"),
        ("x.jxl", b"\xff\x0a\0\0\0\0\0\0", "a JPEG XL"),
        ("x.mp4", b"\0\0\0\x20ftypisom\0\0\x02\0", "a video"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, start).unwrap();
        let e = load_init_image(&path).unwrap_err();
        assert_eq!(e.kind(), Kind::Argument);
        assert!(e.to_string().contains(words) && e.to_string().contains(name), "{e}");
        assert!(e.hint().is_some_and(|hint| hint.contains("image.png")), "{:?}", e.hint());
    }
}

#[test]
#[cfg(unix)]
fn replacing_a_file_keeps_its_permissions_and_follows_links_to_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("x.png"), folder.path().join("link.png"));
    fs::write(&path, b"old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write_beside(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    std::os::unix::fs::symlink("later.png", &link).unwrap();
    write_beside(&link, b"linked").unwrap();
    assert_eq!(fs::read(folder.path().join("later.png")).unwrap(), b"linked");
    assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
    assert_eq!(left_over(folder.path()), [""; 0]);
}
