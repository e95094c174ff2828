//! Masks, margins and control images through every API that has words for them.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, flux1, t5, vae};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use image::{DynamicImage, GrayImage, Luma, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::references::klein;
use super::{Answer, Server, decoded, drawn_by_command, form, wait_for};
use crate::styles;

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
fn masks_through_the_native_api_and_remote_give_the_image_of_the_command_line() {
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
        (json!({"init": bomb, "mask": mask}), "image", "6000x4000"),
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

#[test]
fn openai_repaints_transparent_pixels() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let reference = pictures.drawn(&["--mask", &pictures.path("mask")]);
    let (photo, mask) = (pictures.bytes("photo"), pictures.bytes("clear"));
    let parts = [
        ("prompt", None, &b"a fox"[..]),
        ("steps", None, b"2"),
        ("seed", None, b"7"),
        ("size", None, b"auto"),
        ("image", Some("photo.png"), &photo),
        ("mask", Some("mask.png"), &mask),
    ];
    let (head, body) = form(&parts);
    let answer = ok(server.request("POST", "/v1/images/edits", &head, &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "a form");
    assert_eq!(answer["size"], "128x96");
    let uri = |name: &str| format!("data:image/png;base64,{}", pictures.base64(name));
    let body = json!({"prompt": "a fox", "steps": 2, "seed": 7,
                      "images": [{"image_url": uri("photo")}],
                      "mask": {"image_url": uri("clear")}});
    let answer = ok(server.post("/v1/images/edits", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "JSON");
    // Without a mask, the transparent pixels of the image.
    let clear = pictures.path("clear");
    let common = ["a fox", "--steps", "2", "--seed", "7", "-i", &clear];
    let transparent = drawn_by_command(data.path(), &common);
    let body = json!({"prompt": "a fox", "steps": 2, "seed": 7, "image": uri("clear")});
    let answer = ok(server.post("/v1/images/edits", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == transparent, "a transparent image");
    // White is not what that API marks with.
    let body = json!({"prompt": "a fox", "image": uri("photo"), "mask": uri("mask")});
    let answer = server.post("/v1/images/edits", &body);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (422, &json!("mask")));
    let body = json!({"prompt": "a fox", "size": "64x128", "image": uri("photo"),
                      "mask": uri("clear")});
    let answer = server.post("/v1/images/edits", &body);
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (422, &json!("size")));
}

#[test]
fn a_model_that_reads_references_sees_the_image_that_it_repaints() {
    let pictures = Pictures::new(128, 96);
    let folder = tempfile::tempdir().unwrap();
    let model = klein(folder.path());
    let model = model.to_str().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let (photo, mask) = (pictures.path("photo"), pictures.path("mask"));
    let masked = ["--mask", &mask, "--model", model];
    let edit = [&masked[..], &["--strength", "1", "--reference", &photo]].concat();
    let edited = pictures.drawn(&edit);
    pictures.check_kept(&edited);
    let body = json!({"prompt": "a fox", "steps": 2, "seed": 7, "image": pictures.base64("photo"),
                      "mask": pictures.base64("clear")});
    let answer = ok(server.post("/v1/images/edits", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == edited, "an edit");
    let mut started = body.clone();
    started["strength"] = json!(0.5);
    let answer = ok(server.post("/v1/images/edits", &started));
    let reference = pictures.drawn(&[&masked[..], &["--strength", "0.5"]].concat());
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "image to image");
}

#[test]
fn automatic1111_inpaints() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mask = pictures.path("mask");
    let call = |more: Value| {
        let mut body = json!({"prompt": "a fox", "steps": 2, "seed": 7, "inpainting_fill": 0,
                              "init_images": [pictures.base64("photo")], "mask_blur": 0,
                              "mask": pictures.base64("mask")});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        server.post("/sdapi/v1/img2img", &body)
    };
    let drawn = |more: Value| decoded(&ok(call(more))["images"][0]);
    let whole = pictures.drawn(&["--mask", &mask]);
    let size = json!({"inpaint_full_res": false, "width": 128, "height": 96});
    assert!(drawn(size) == whole, "the whole picture");
    assert!(drawn(json!({"inpaint_full_res": 0})) == whole, "its own size");
    for mask in ["painted", "inverse"] {
        let more = json!({"inpaint_full_res": false, "mask": pictures.base64(mask),
                          "inpainting_mask_invert": i32::from(mask == "inverse")});
        assert!(drawn(more) == whole, "{mask}");
    }
    let blurred = ["--mask", &mask, "--mask-blur", "3", "--mask-padding", "8", "--size", "96x96"];
    let more = json!({"inpaint_full_res": true, "inpaint_full_res_padding": 8, "mask_blur": 3,
                      "width": 96, "height": 96});
    assert!(drawn(more) == pictures.drawn(&blurred), "only masked");
    // What clients leave out is what it is there.
    let usual = pictures.drawn(&["--mask", &mask, "--mask-blur", "4", "--mask-padding", "0"]);
    let answer = ok(call(json!({"mask_blur": null})));
    assert!(decoded(&answer["images"][0]) == usual, "the defaults");
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    let notes = &info["extra_generation_params"];
    assert_eq!((&notes["Masked content"], &notes["Mask blur"]), (&json!("original"), &json!(4.0)));
    // A picture in another size than it was asked for.
    let small = drawn(json!({"inpaint_full_res": false, "width": 64, "height": 48}));
    let small = image::load_from_memory(&small).unwrap().to_rgb8();
    assert_eq!(small.dimensions(), (64, 48));
    let photo = image::open(pictures.path("photo")).unwrap().to_rgb8();
    let near = |a: &image::Rgb<u8>, b: &image::Rgb<u8>| {
        a.0.iter().zip(b.0).all(|(a, b)| a.abs_diff(b) < 40)
    };
    let kept = (1..30).filter(|x| near(small.get_pixel(*x, 10), photo.get_pixel(2 * x, 20)));
    assert!(kept.count() > 24, "the left part is kept");
    let units = json!({"controlnet": {"args": [{"enabled": true, "model": "union"}]}});
    let answer = call(json!({"alwayson_scripts": units}));
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("ControlNet"), "{}", answer.text());
    let off = json!({"ControlNet": {"args": [{"enabled": false, "model": "union"}]}});
    assert_eq!(call(json!({"alwayson_scripts": off})).status, 200);
}

#[test]
fn sdcpp_repaints_white_pixels() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let reference = pictures.drawn(&["--mask", &pictures.path("mask")]);
    let body = json!({"prompt": "a fox", "seed": 7, "sample_params": {"sample_steps": 2},
                      "width": 128, "height": 96, "init_image": pictures.base64("photo"),
                      "mask_image": pictures.base64("mask"), "control_image": ""});
    let poll = ok(server.post("/sdcpp/v1/img_gen", &body))["poll_url"].clone();
    let job = wait_for("the job", || {
        let job = server.get(poll.as_str().unwrap()).json();
        (job["status"] == "completed").then_some(job)
    });
    assert!(decoded(&job["result"]["images"][0]["b64_json"]) == reference);
    let features = server.get("/sdcpp/v1/capabilities").json()["features"].clone();
    assert_eq!(
        (&features["mask_image"], &features["control_image"]),
        (&json!(true), &json!(false))
    );
}

/// Writes a small FLUX.1 model with noise as weights whose transformer has `inputs` inputs.
pub fn small_flux1(path: &Path, inputs: usize) {
    let flux = FluxConfig {
        in_channels: inputs,
        out_channels: 64,
        hidden: 128,
        heads: 2,
        head_dim: 64,
        mlp_hidden: 256,
        depth_double: 1,
        depth_single: 1,
        context: 64,
        pooled: 64,
        axes: vec![16, 24, 24],
        ..FluxConfig::dev()
    };
    let long = T5Config { width: 64, heads: 2, head_dim: 32, ff: 64, layers: 1, ..T5Config::xxl() };
    let pooled = ClipConfig { width: 64, heads: 1, layers: 1, ..ClipConfig::large() };
    let image = VaeConfig {
        encoder_channels: None,
        channels: vec![32, 32, 32, 32],
        blocks: 1,
        ..VaeConfig::flux()
    };
    let configs = json!({
        "transformer": flux.to_json(), "text_encoder": pooled.to_json(),
        "text_encoder_2": long.to_json(), "vae": image.to_json(),
    });
    let named = |component: Component, list: Vec<(String, Vec<usize>)>| {
        list.into_iter().map(move |(name, shape)| (component, name, shape))
    };
    let tensors = named(TRANSFORMER, flux1::tensors(&flux))
        .chain(named(T5, t5::tensors(&long)))
        .chain(named(CLIP, clip::tensors(&pooled)))
        .chain(named(VAE, vae::tensors(&image)))
        .collect();
    let (grid, storage, dialect) = (Grid::F8, Storage::BF16, Dialect::Comfy);
    let spec = SynthSpec { seed: 7, tensors, grid, storage, dialect, configs };
    synth::write(&spec, path).unwrap();
}

#[test]
fn control_images_are_drawn_by_the_models_that_need_them() {
    let pictures = Pictures::new(96, 64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1-canny-dev.safetensors");
    small_flux1(&path, 128);
    let model = path.to_str().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let models = server.get("/api/v2/models").json();
    let listed = &models["models"][0];
    assert_eq!((&listed["needs_control"], &listed["needs_mask"]), (&json!(true), &json!(false)));
    let photo = pictures.path("photo");
    let common = ["a fox", "--steps", "2", "--seed", "7", "--size", "96x64", "--control", &photo];
    let reference = drawn_by_command(folder.path(), &[&common[..], &["--model", model]].concat());
    let request = json!({"prompt": "a fox", "steps": 2, "seed": 7, "size": "96x64",
                         "control": pictures.base64("photo")});
    assert!(server.image(&server.submit(request)) == reference, "native");
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .env("FLUX_FAST_CONFIG", "")
        .args(["remote", &format!("http://{}", server.address)])
        .args(common)
        .args(["-o", folder.path().join("remote.png").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(folder.path().join("remote.png")).unwrap() == reference, "remote");
    let plan = json!({"prompt": "x", "size": "96x64", "steps": 2, "control_size": "500x400"});
    assert_eq!(ok(server.post("/api/v2/plan", &plan))["width"], 96);
    for path in ["/api/v2/jobs", "/api/v2/plan"] {
        let answer = server.post(path, &json!({"prompt": "a fox"}));
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["parameter"]), (422, &json!("control")), "{error}");
    }
}

#[test]
fn fill_is_served_and_needs_a_mask() {
    let pictures = Pictures::new(96, 64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1-fill-dev.safetensors");
    small_flux1(&path, 384);
    let model = path.to_str().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let reference = pictures.drawn(&["--mask", &pictures.path("mask"), "--model", model]);
    let request = json!({"prompt": "a fox", "steps": 2, "seed": 7,
                         "init": pictures.base64("photo"), "mask": pictures.base64("mask")});
    assert!(server.image(&server.submit(request)) == reference);
    let answer = server.post("/api/v2/jobs", &json!({"prompt": "a fox"}));
    assert_eq!((answer.status, &answer.json()["error"]["parameter"]), (422, &json!("mask")));
}

#[test]
fn other_services_inpaint() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let reference = pictures.drawn(&["--mask", &pictures.path("mask")]);
    let (photo, mask) = (pictures.base64("photo"), pictures.base64("mask"));
    let uri = |image: &str| format!("data:image/png;base64,{image}");

    let by_bfl = |model: &str, more: Value| {
        let mut body = json!({"steps": 2, "seed": 7, "output_format": "png", "image": photo});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = ok(server.post(&format!("/v1/{model}"), &body));
        let url = answer["polling_url"].as_str().unwrap().to_string();
        let ready = wait_for("the result", || {
            let result = server.get(url.split_once(&server.address).unwrap().1).json();
            (result["status"] != "Pending").then_some(result)
        });
        let sample = ready["result"]["sample"].as_str().unwrap_or_else(|| panic!("{ready}"));
        server.get(sample.split_once(&server.address).unwrap().1).body
    };
    let masked = json!({"prompt": "a fox", "mask": mask, "prompt_upsampling": false});
    assert!(by_bfl("flux-pro-1.0-fill", masked) == reference, "Black Forest Labs, fill");
    let wide = pictures.drawn(&["--outpaint", "0,16,32,0"]);
    let margins = json!({"prompt": "a fox", "top": 16, "bottom": 0, "left": 0, "right": 32});
    assert!(by_bfl("flux-pro-1.0-expand", margins) == wide, "Black Forest Labs, expand");
    let clear = pictures.path("clear");
    let common = ["a fox", "--steps", "2", "--seed", "7", "-i", &clear];
    let transparent = drawn_by_command(data.path(), &common);
    let alpha = json!({"prompt": "a fox", "image": pictures.base64("clear")});
    assert!(by_bfl("flux-pro-1.0-fill", alpha) == transparent, "the alpha of the image");
    let body = json!({"prompt": "x", "control_image": photo});
    let answer = server.post("/v1/flux-pro-1.0-canny", &body);
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("does not read a control image"), "{}", answer.text());

    let input = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7, "megapixels": "1",
                       "image": uri(&photo), "mask": uri(&mask), "output_format": "png"});
    let body = json!({"version": "flux-tiny", "input": input}).to_string();
    let answer = server.request("POST", "/v1/predictions", &[("Prefer", "wait")], body.as_bytes());
    let output = ok(answer)["output"][0].as_str().unwrap().to_string();
    let output = output.split_once(";base64,").unwrap().1;
    assert!(BASE64_STANDARD.decode(output).unwrap() == reference, "Replicate");

    let body = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7, "sync_mode": true,
                      "image_url": uri(&photo), "mask_url": uri(&mask), "output_format": "png"});
    let answer = ok(server.post("/fal/run/fal-ai/flux-tiny/inpainting", &body));
    let output = answer["images"][0]["url"].as_str().unwrap().split_once(";base64,").unwrap().1;
    assert!(BASE64_STANDARD.decode(output).unwrap() == reference, "fal");

    let parameters = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7,
                            "mask_image": mask});
    let body = json!({"inputs": photo, "parameters": parameters});
    assert!(server.post("/hf", &body).body == reference, "Hugging Face");
    let parameters = json!({"num_inference_steps": 2, "seed": 7});
    let body = json!({"inputs": "a fox", "image": photo, "mask_image": mask,
                      "parameters": parameters});
    assert!(server.post("/hf", &body).body == reference, "Hugging Face, image and mask");

    let arguments = json!({"prompt": "a fox", "seed": 7, "steps": 2, "image": photo, "mask": mask});
    let params = json!({"name": "generate_image", "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let answer = ok(server.post("/mcp", &body));
    assert!(decoded(&answer["result"]["content"][0]["data"]) == reference, "MCP");
}

#[test]
fn depths_are_not_made_from_photos() {
    let pictures = Pictures::new(96, 64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1-depth-dev.safetensors");
    small_flux1(&path, 128);
    let model = path.to_str().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let depths = pictures.path("photo");
    let common = ["a fox", "--steps", "2", "--seed", "7", "--size", "96x64", "--control", &depths];
    let reference = drawn_by_command(folder.path(), &[&common[..], &["--model", model]].concat());
    let body = |field: &str| {
        json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7, "output_format": "png",
               "image_size": {"width": 96, "height": 64}, "sync_mode": true,
               field: pictures.base64("photo")})
    };
    let app = "/fal/run/fal-ai/flux-lora-depth";
    for (body, path) in [
        (body("image_url"), app),
        (
            json!({"prompt": "x", "control_image": pictures.base64("photo")}),
            "/v1/flux-pro-1.0-depth",
        ),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert!(answer.text().contains("depths"), "{}", answer.text());
    }
    let mut prepared = body("image_url");
    prepared["preprocess_depth"] = json!(false);
    let answer = ok(server.post(app, &prepared));
    let output = answer["images"][0]["url"].as_str().unwrap().split_once(";base64,").unwrap().1;
    assert!(BASE64_STANDARD.decode(output).unwrap() == reference);
}

#[test]
fn comfyui_graphs_repaint_a_part() {
    let pictures = Pictures::new(128, 96);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let reference = pictures.drawn(&["--mask", &pictures.path("mask"), "--strength", "1"]);
    for name in ["photo", "mask", "clear"] {
        let bytes = pictures.bytes(name);
        let file = format!("{name}.png");
        let (head, body) = form(&[("image", Some(file.as_str()), &bytes)]);
        ok(server.request("POST", "/upload/image", &head, &body));
    }
    let graph = |mask: Value| {
        json!({
            "3": {"class_type": "KSampler", "inputs": {
                "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
                "latent_image": ["23", 0], "seed": 7, "steps": 2, "cfg": 1,
                "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux-tiny"}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
            "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
            "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
            "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
            "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
            "21": mask,
            "22": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["4", 2]}},
            "23": {"class_type": "SetLatentNoiseMask", "inputs":
                {"samples": ["22", 0], "mask": ["21", 1]}},
        })
    };
    let draw = |graph: &Value| {
        let answer = server.post("/prompt", &json!({"prompt": graph}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let id = answer.json()["prompt_id"].as_str().unwrap().to_string();
        let past = wait_for("the prompt", || {
            let history = server.get(&format!("/history/{id}")).json();
            history.get(&id).cloned()
        });
        let name = past["outputs"]["9"]["images"][0]["filename"].as_str();
        let name = name.unwrap_or_else(|| panic!("{past}"));
        server.get(&format!("/view?filename={name}&type=output")).body
    };
    let clear = json!({"class_type": "LoadImage", "inputs": {"image": "clear.png"}});
    assert!(draw(&graph(clear)) == reference, "the alpha of an image");
    let mask = json!({"class_type": "LoadImageMask", "inputs":
        {"image": "mask.png", "channel": "red"}});
    let mut by_mask = graph(mask);
    by_mask["23"]["inputs"]["mask"] = json!(["21", 0]);
    assert!(draw(&by_mask) == reference, "a mask");
    let inline = json!({"class_type": "ETN_LoadMaskBase64", "inputs":
        {"mask": pictures.base64("mask")}});
    by_mask["21"] = inline;
    by_mask["20"] = json!({"class_type": "ETN_LoadImageBase64", "inputs":
        {"image": pictures.base64("photo")}});
    assert!(draw(&by_mask) == reference, "inside the graph");
    by_mask["10"] = json!({"class_type": "INPAINT_MaskedBlur", "inputs": {}});
    let refused = server.post("/prompt", &json!({"prompt": by_mask}));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("put back by the server itself"), "{}", refused.text());
}

#[test]
fn style_images_are_sent_to_the_server() {
    let pictures = Pictures::new(90, 60);
    let folder = tempfile::tempdir().unwrap();
    let model = styles::tiny(folder.path());
    let model = model.to_str().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let photo = pictures.path("photo");
    let style = format!("{photo}:0.5");
    let common = ["a fox", "--steps", "2", "--seed", "7", "--style"];
    let drawn = |style: &str| {
        drawn_by_command(folder.path(), &[&common[..], &[style, "--model", model]].concat())
    };
    let (whole, half) = (drawn(&photo), drawn(&style));
    assert!(whole != half);
    let image = pictures.base64("photo");
    let request = json!({"prompt": "a fox", "steps": 2, "seed": 7, "styles": [image]});
    assert!(server.image(&server.submit(request)) == whole, "native");
    let styles = json!([{"image": image, "strength": 0.5}]);
    let request = json!({"prompt": "a fox", "steps": 2, "seed": 7, "styles": styles});
    assert!(server.image(&server.submit(request.clone())) == half, "native, with a strength");
    let plan = ok(server.post("/api/v2/plan", &json!({"request": request})));
    assert!(plan["phases"].as_array().unwrap().len() > 4, "{plan}");
    let file = folder.path().join("remote.png");
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .env("FLUX_FAST_CONFIG", "")
        .args(["remote", &format!("http://{}", server.address)])
        .args(common)
        .args([&style, "-o", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(&file).unwrap() == half, "remote");
    let body = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7, "sync_mode": true,
                      "output_format": "png", "image_url": image});
    let answer = ok(server.post("/fal/run/fal-ai/tiny/redux", &body));
    let output = answer["images"][0]["url"].as_str().unwrap().split_once(";base64,").unwrap().1;
    assert!(BASE64_STANDARD.decode(output).unwrap() == whole, "fal");
    let input = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7,
                       "output_format": "png", "redux_image": image});
    let body = json!({"version": "tiny", "input": input}).to_string();
    let answer = server.request("POST", "/v1/predictions", &[("Prefer", "wait")], body.as_bytes());
    let output = ok(answer)["output"][0].as_str().unwrap().to_string();
    let output = output.split_once(";base64,").unwrap().1;
    assert!(BASE64_STANDARD.decode(output).unwrap() == whole, "Replicate");
    let answer = server.post("/api/v2/jobs", &json!({"prompt": "x", "styles": ["aGk="]}));
    assert_eq!((answer.status, &answer.json()["error"]["parameter"]), (422, &json!("styles")));
}
