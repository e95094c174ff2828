//! The plugin Krita AI Diffusion. The graphs in `tests/data/krita` are those that its version 1.53
//! makes, with the images that it uploads; `make.py` there calls the plugin's own code.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{RgbImage, RgbaImage};
use serde_json::{Value, json};

use super::comfy::prompt;
use super::{Server, drawn_by_command, wait_for};

/// Headers that the plugin sends with each request.
const HEADERS: [(&str, &str); 2] =
    [("ngrok-skip-browser-warning", "69420"), ("skip_zrok_interstitial", "69420")];

/// A graph of the plugin with its images.
struct Recorded(Value);

macro_rules! recorded {
    ($name:literal) => {
        Recorded(
            serde_json::from_str(include_str!(concat!("../../data/krita/", $name, ".json")))
                .unwrap(),
        )
    };
}

impl Recorded {
    /// The file of an upload.
    fn image(&self, id: &str) -> Vec<u8> {
        BASE64_STANDARD.decode(self.0["images"][id].as_str().unwrap()).unwrap()
    }

    /// The ids of its uploads: the canvas, and the mask of what is selected.
    fn ids(&self) -> Vec<&str> {
        let images = self.0["images"].as_object().unwrap();
        let mut ids: Vec<&str> = images.keys().map(String::as_str).collect();
        let is_mask = |id: &&str| {
            let image = image::load_from_memory(&self.image(id)).unwrap();
            !image.color().has_color()
        };
        ids.sort_by_key(is_mask);
        ids
    }

    /// The first column and row of the canvas that its result has.
    fn offset(&self) -> (u32, u32) {
        let mut nodes = self.0["prompt"].as_object().unwrap().values();
        let cut = nodes.find(|node| node["class_type"] == "CropMask");
        let of = |name: &str| cut.map_or(0, |cut| cut["inputs"][name].as_u64().unwrap() as u32);
        (of("x"), of("y"))
    }

    /// Uploads the images, sends the graph, and returns what the plugin would receive.
    fn draw(&self, server: &Server) -> Vec<u8> {
        for id in self.ids() {
            let path = format!("/api/etn/image/{id}");
            let answer = server.request("PUT", &path, &HEADERS, &self.image(id));
            assert!([200, 201].contains(&answer.status), "{}", answer.text());
        }
        let id = prompt(server, &json!({"prompt": self.0["prompt"], "client_id": "krita"}));
        let entry = wait_for("the end of the prompt", || {
            server.get(&format!("/history/{id}")).json().get(&id).cloned()
        });
        assert_eq!(entry["status"]["status_str"], "success", "{entry}");
        let outputs = entry["outputs"].as_object().unwrap();
        assert_eq!(outputs.len(), 1);
        let image = &outputs.values().next().unwrap()["images"][0];
        assert_eq!(
            (&image["source"], &image["content-type"]),
            (&json!("http"), &json!("image/png"))
        );
        let answer = server.get(&format!("/api/etn/image/{}", image["id"].as_str().unwrap()));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
        answer.body
    }
}

/// Writes `bytes` to a file in `folder`, and returns its path.
fn file(folder: &std::path::Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_string()
}

fn rgb(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

fn rgba(bytes: &[u8]) -> RgbaImage {
    let image = image::load_from_memory(bytes).unwrap();
    assert!(image.color().has_alpha());
    image.into_rgba8()
}

#[test]
fn the_plugin_connects() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let get = |path: &str| server.request("GET", path, &HEADERS, b"").json();
    assert!(get("/system_stats")["devices"][0]["vram_total"].is_u64());
    let info = get("/object_info");
    for class in [
        "InpaintPreprocessor",
        "DepthAnythingV2Preprocessor",
        "IPAdapterModelLoader",
        "IPAdapter",
        "ETN_LoadImageCache",
        "ETN_SaveImageCache",
        "ETN_Translate",
        "INPAINT_LoadFooocusInpaint",
        "INPAINT_ShrinkMask",
        "INPAINT_StabilizeMask",
        "INPAINT_ColorMatch",
    ] {
        assert!(info[class].is_object(), "{class}");
    }
    let has = |class: &str, input: &str, part: &str| {
        let names = &info[class]["input"]["required"][input][0];
        let names = names.as_array().unwrap();
        assert!(names.iter().any(|name| name.as_str().unwrap().contains(part)), "{part}");
    };
    has("UpscaleModelLoader", "model_name", "4x_NMKD-Superscale-SP_178000_G.pth");
    has("UpscaleModelLoader", "model_name", "OmniSR_X2_DIV2K.safetensors");
    has("INPAINT_LoadInpaintModel", "model_name", "MAT_Places512_G_fp16");
    // Without networks for them there are no style images.
    assert_eq!(info["StyleModelLoader"]["input"]["required"]["style_model_name"], json!([[]]));
    // Other clients see only what is there.
    assert!(server.get("/object_info").json()["IPAdapter"].is_null());
    let mut graph = super::comfy::graph(1, 1);
    graph["30"] = json!({"class_type": "IPAdapter", "inputs": {}});
    let refused = server.request(
        "POST",
        "/prompt",
        &HEADERS,
        json!({"prompt": graph}).to_string().as_bytes(),
    );
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("IPAdapter"), "{}", refused.text());

    let models = get("/api/etn/model_info/checkpoints?offset=0&limit=8");
    assert_eq!(models["_meta"], json!({"offset": 0, "count": 1, "total": 1}));
    assert_eq!(models["flux-tiny"], json!({"base_model": "flux", "is_inpaint": false}));
    let none = get("/api/etn/model_info/unet_gguf?offset=0&limit=8");
    assert_eq!(none, json!({"_meta": {"offset": 0, "count": 0, "total": 0}}));
    assert_eq!(get("/api/etn/languages"), json!([]));
    let body = json!({"client_id": "krita"});
    assert_eq!(server.post("/api/etn/workflow/subscribe", &body).status, 200);
    assert_eq!(server.post("/api/etn/workflow/unsubscribe", &body).status, 200);
    let lora = server.request("PUT", "/api/etn/upload/loras/x.safetensors", &HEADERS, b"x");
    assert_eq!(lora.status, 403, "{}", lora.text());
}

#[test]
fn the_plugin_generates_and_refines() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let common = ["a red fox", "--size", "256x256", "--seed", "7", "--guidance", "3.5"];
    let drawn = |more: &[&str]| drawn_by_command(folder.path(), &[&common[..], more].concat());
    let generate = recorded!("generate").draw(&server);
    assert!(generate == drawn(&["--steps", "3"]), "generate");

    // A strength of 60 % with 3 steps at least.
    let refine = recorded!("refine");
    let canvas = file(folder.path(), "canvas.png", &refine.image(refine.ids()[0]));
    let by_command = drawn(&["-i", &canvas, "--strength", "0.6", "--steps", "5"]);
    assert!(refine.draw(&server) == by_command, "refine");
    // A canvas in a size that no model draws: drawn in a larger one, and scaled back.
    let odd = rgb(&recorded!("generate_odd").draw(&server));
    assert_eq!(odd.dimensions(), (270, 250));
}

/// Checks a result for a selection without a soft edge: `by_command` is the same for the whole
/// canvas, of which the plugin receives the part at `at`.
fn check_selection(result: &[u8], by_command: &[u8], mask: &[u8], at: (u32, u32)) {
    let (result, whole) = (rgba(result), rgb(by_command));
    let mask = image::load_from_memory(mask).unwrap().into_luma8();
    let mut opaque = 0;
    for (x, y, pixel) in result.enumerate_pixels() {
        let (x, y) = (x + at.0, y + at.1);
        assert_eq!(pixel.0[..3], whole.get_pixel(x, y).0, "pixel {x}, {y}");
        assert_eq!(pixel.0[3], mask.get_pixel(x, y).0[0], "opacity of pixel {x}, {y}");
        opaque += usize::from(pixel.0[3] == 255);
    }
    assert!(opaque > 1000, "{opaque} opaque pixels");
}

#[test]
fn the_plugin_repaints_a_selection() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    for (recorded, strength, steps, guidance) in [
        (recorded!("hard_fill"), "1", "3", "30"),
        (recorded!("hard_refine_region"), "0.6", "5", "3.5"),
    ] {
        let [canvas, mask] = recorded.ids()[..] else { panic!("a canvas and a mask") };
        let (canvas, mask) = (recorded.image(canvas), recorded.image(mask));
        let (photo, selected) =
            (file(folder.path(), "photo.png", &canvas), file(folder.path(), "mask.png", &mask));
        let by_command = drawn_by_command(
            folder.path(),
            &[
                "a red fox",
                "--steps",
                steps,
                "--seed",
                "7",
                "-i",
                &photo,
                "--mask",
                &selected,
                "--strength",
                strength,
                "--guidance",
                guidance,
            ],
        );
        check_selection(&recorded.draw(&server), &by_command, &mask, recorded.offset());
    }
}

/// The soft edges of a selection: what the result does to the canvas.
#[test]
fn a_selection_of_the_plugin_leaves_the_rest_of_the_canvas_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    for (recorded, name) in [
        (recorded!("fill"), "fill"),
        (recorded!("replace_background"), "replace_background"),
        (recorded!("refine_region"), "refine_region"),
    ] {
        let [canvas, mask] = recorded.ids()[..] else { panic!("a canvas and a mask") };
        let (canvas, mask) = (rgb(&recorded.image(canvas)), recorded.image(mask));
        let mask = image::load_from_memory(&mask).unwrap().into_luma8();
        let result = rgba(&recorded.draw(&server));
        let (left, top) = recorded.offset();
        let (mut kept, mut changed) = (0, 0);
        for (x, y, pixel) in result.enumerate_pixels() {
            let old = canvas.get_pixel(x + left, y + top);
            if mask.get_pixel(x + left, y + top).0[0] == 255 {
                // Masks have 8 bits between two nodes, floats in ComfyUI: at corners a blur falls
                // below half a step, so that the plugin's threshold at 0 loses a pixel.
                assert!(pixel.0[3] >= 252, "{name}: opacity {} at {x}, {y}", pixel.0[3]);
                changed += usize::from(pixel.0[..3] != old.0);
            } else if pixel.0[3] == 0 {
                kept += 1;
            }
        }
        if name == "refine_region" {
            // Nothing is scaled here. The selection grows by 13 pixels and half of a blur.
            let is_near = |x: u32, y: u32| (54..202).contains(&x) && (66..194).contains(&y);
            for (x, y, pixel) in result.enumerate_pixels().filter(|(x, y, _)| !is_near(*x, *y)) {
                assert_eq!(pixel.0[..3], canvas.get_pixel(x, y).0, "pixel {x}, {y}");
            }
        }
        assert!(changed > 1000, "{name}: {changed} pixels changed");
        assert!(kept > 100, "{name}: {kept} transparent pixels");
    }
}
