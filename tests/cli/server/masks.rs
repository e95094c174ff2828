//! Masks and margins through the native API and `remote`, and the pictures of tests with masks.

use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, GrayImage, Luma, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::{Answer, Server, drawn_by_command};

/// Whether a pixel is repainted in the tests.
fn is_white(x: u32, y: u32) -> bool {
    x >= 70 && y >= 30
}

/// An image, its mask, and both as other programs write them, in a folder.
pub struct Pictures {
    folder: tempfile::TempDir,
}

impl Pictures {
    pub fn new(width: u32, height: u32) -> Pictures {
        let folder = tempfile::tempdir().unwrap();
        let pixel = |x: u32, y: u32| [(x * 3) as u8, (y * 2) as u8, (x ^ y) as u8];
        let photo = RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
        let mask = |white: bool| {
            GrayImage::from_fn(width, height, |x, y| {
                Luma([255 * u8::from(is_white(x, y) == white)])
            })
        };
        let clear = RgbaImage::from_fn(width, height, |x, y| {
            let [r, g, b] = pixel(x, y);
            Rgba([r, g, b, 255 * u8::from(!is_white(x, y))])
        });
        let painted = RgbaImage::from_fn(width, height, |x, y| {
            Rgba([9, 9, 9, 255 * u8::from(is_white(x, y))])
        });
        let all: [(&str, DynamicImage); 5] = [
            ("photo", photo.into()),
            ("mask", mask(true).into()),
            ("inverse", mask(false).into()),
            ("clear", clear.into()),
            ("painted", painted.into()),
        ];
        for (name, image) in all {
            image.save(folder.path().join(format!("{name}.png"))).unwrap();
        }
        Pictures { folder }
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(format!("{name}.png")).to_str().unwrap().to_string()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn base64(&self, name: &str) -> String {
        BASE64_STANDARD.encode(self.bytes(name))
    }

    /// The file of the command line for the photo, the options `more` and those of every request
    /// of these tests.
    pub fn drawn(&self, more: &[&str]) -> Vec<u8> {
        let photo = self.path("photo");
        let common = ["a fox", "--steps", "2", "--seed", "7", "-i", &photo];
        drawn_by_command(self.folder.path(), &[&common[..], more].concat())
    }

    /// Checks that a result is the photo where it is not repainted.
    pub fn check_kept(&self, result: &[u8]) {
        let found = image::load_from_memory(result).unwrap().to_rgb8();
        let photo = image::open(self.path("photo")).unwrap().to_rgb8();
        assert_eq!(found.dimensions(), photo.dimensions());
        let mut changed = 0;
        for (x, y, pixel) in found.enumerate_pixels() {
            if pixel != photo.get_pixel(x, y) {
                assert!(is_white(x, y), "pixel {x}, {y} changed");
                changed += 1;
            }
        }
        assert!(changed > 500, "{changed} pixels changed");
    }
}

pub fn ok(answer: Answer) -> Value {
    assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.text());
    answer.json()
}

#[test]
pub fn masks_through_the_native_api_and_remote_give_the_image_of_the_command_line() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let (photo, mask) = (pictures.base64("photo"), pictures.base64("mask"));
    let path = pictures.path("mask");
    let whole = pictures.drawn(&["--mask", &path]);
    pictures.check_kept(&whole);
    let base = json!({"prompt": "a fox", "steps": 2, "seed": 7, "init": photo, "mask": mask});
    let with = |more: Value| {
        let mut request = base.clone();
        for (name, value) in more.as_object().unwrap() {
            request[name] = value.clone();
        }
        request
    };
    assert!(server.image(&server.submit(base.clone())) == whole, "a mask");
    let padded = pictures.drawn(&["--mask", &path, "--mask-padding", "4", "--mask-blur", "2"]);
    let request = with(json!({"mask_padding": 4, "mask_blur": 2}));
    assert!(server.image(&server.submit(request)) == padded, "padding and blur");
    let wide = pictures.drawn(&["--outpaint", "30,0,0,16"]);
    let request = with(json!({"mask": null, "outpaint": "30,0,0,16"}));
    let id = server.submit(request);
    assert!(server.image(&id) == wide, "margins");
    let output = &server.job(&id)["outputs"][0];
    assert_eq!((&output["width"], &output["height"]), (&json!(158), &json!(112)));
    // Transparent pixels of the image itself.
    let clear = pictures.path("clear");
    let common = ["a fox", "--steps", "2", "--seed", "7", "-i", &clear];
    let transparent = drawn_by_command(data.path(), &common);
    let request = with(json!({"init": pictures.base64("clear"), "mask": null}));
    assert!(server.image(&server.submit(request)) == transparent, "transparent pixels");
    // A black and white mask in any file, and the transparent pixels of another one.
    let request = with(json!({"mask": pictures.base64("clear")}));
    assert!(server.image(&server.submit(request)) == whole, "a mask of transparent pixels");

    for (more, expected) in [
        (&["--mask", &path][..], &whole),
        (&["--mask", &path, "--mask-padding", "4", "--mask-blur", "2"], &padded),
        (&["--outpaint", "30,0,0,16"], &wide),
    ] {
        let file = data.path().join("remote.png");
        let photo = pictures.path("photo");
        let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
            .env("FLUX_FAST_CONFIG", "")
            .args(["remote", &format!("http://{}", server.address)])
            .args(["a fox", "--steps", "2", "--seed", "7", "-i", &photo])
            .args(more)
            .arg("-o")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(&file).unwrap() == *expected, "remote {more:?}");
    }

    // The cost follows from sizes alone, and is that of the part that is drawn.
    let plan = |more: Value| ok(server.post("/api/v2/plan", &json!({"request": more})));
    let sizes = json!({"init_size": "640x480", "mask_box": [0, 0, 640, 100], "steps": 2});
    let all = plan(sizes.clone());
    assert_eq!((&all["width"], &all["height"]), (&json!(640), &json!(480)), "{all}");
    let real = plan(base.clone());
    assert_eq!((&real["width"], &real["height"]), (&json!(128), &json!(96)), "{real}");
    let wide = plan(json!({"init_size": "64x64", "outpaint": "0,0,64,0"}));
    assert_eq!((&wide["width"], &wide["height"]), (&json!(128), &json!(64)), "{wide}");
    for (field, value) in
        [("mask_box", json!([600, 0, 50, 1])), ("init_size", json!("99999x99999"))]
    {
        let mut wrong = sizes.clone();
        wrong[field] = value;
        let answer = server.post("/api/v2/plan", &json!({"request": wrong}));
        assert_eq!((answer.status, &answer.json()["error"]["parameter"]), (422, &json!(field)));
    }
}

#[test]
fn masks_that_cannot_be_used_are_refused_before_they_are_decoded() {
    let pictures = Pictures::new(96, 64);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let (photo, mask) = (pictures.base64("photo"), pictures.base64("mask"));
    let other = Pictures::new(80, 64).base64("mask");
    let gray = |width, height, value| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = GrayImage::from_pixel(width, height, Luma([value]));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        BASE64_STANDARD.encode(bytes.into_inner())
    };
    let bomb = gray(6000, 4000, 255);
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    for (mut request, parameter, word) in [
        (json!({"mask": mask}), "mask", "image"),
        (json!({"init": photo, "mask": other}), "mask", "80x64"),
        (json!({"init": photo, "mask": gray(96, 64, 0)}), "mask", "empty"),
        (json!({"init": photo, "mask": bomb}), "mask", "6000x4000"),
        (json!({"init": bomb, "mask": mask}), "init", "6000x4000"),
        (json!({"init": photo, "mask": "aGk="}), "mask", ""),
        (json!({"init": photo, "mask_padding": 3}), "mask_padding", "no mask"),
        (json!({"init": photo, "mask_blur": 3}), "mask_blur", "no mask"),
        (json!({"init": photo, "mask": mask, "mask_blur": 999}), "mask_blur", ""),
        (json!({"init": photo, "outpaint": "1,2,3"}), "outpaint", ""),
        (json!({"init": photo, "outpaint": "8000,0,0,8000"}), "outpaint", "million"),
        (json!({"init": photo, "control": photo}), "control", "control image"),
        (json!({"outpaint": "1,1,1,1"}), "outpaint", "image"),
    ] {
        request["prompt"] = json!("a fox");
        let answer = server.post("/api/v2/jobs", &request);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["parameter"]), (422, &json!(parameter)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    // The same key with another mask is another request.
    let post = |mask: &str| {
        let body = json!({"prompt": "a fox", "steps": 1, "seed": 1, "init": photo, "mask": mask});
        server.request(
            "POST",
            "/api/v2/jobs",
            &[("Idempotency-Key", "one")],
            body.to_string().as_bytes(),
        )
    };
    let first = post(&mask);
    assert_eq!((first.status, post(&mask).status), (201, 200));
    let reused = post(&pictures.base64("inverse"));
    assert_eq!(
        (reused.status, reused.json()["error"]["code"].as_str()),
        (422, Some("idempotency_key_reuse"))
    );
    // Its files are there until it expires.
    let id = first.json()["id"].as_str().unwrap().to_string();
    assert!(data.path().join(format!("inputs/{id}-mask")).exists());
}
