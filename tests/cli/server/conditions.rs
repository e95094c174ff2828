//! Images that a model needs or reads next to the prompt: control images, the mask of Fill, styles.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flux_fast::model::{ClipConfig, FluxConfig, T5Config, VaeConfig, clip, flux1, t5, vae};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::json;

use super::masks::{Pictures, ok};
use super::{Server, comfy, drawn_by_command, form, wait_for};
use crate::styles;

/// A server whose model reads style images, and pictures for it.
pub struct StyleServer {
    pub server: Server,
    pub pictures: Pictures,
    pub folder: tempfile::TempDir,
    model: String,
}

impl StyleServer {
    pub fn start() -> StyleServer {
        let folder = tempfile::tempdir().unwrap();
        let model = styles::tiny(folder.path()).to_str().unwrap().to_string();
        let server = Server::start(&folder.path().join("data"), &["--model", &model]);
        StyleServer { server, pictures: Pictures::new(90, 60), folder, model }
    }

    /// The image of the command line with the same model.
    pub fn drawn(&self, arguments: &[&str]) -> Vec<u8> {
        let model = ["--model", self.model.as_str()];
        drawn_by_command(self.folder.path(), &[arguments, &model].concat())
    }
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
pub fn control_images_are_drawn_by_the_models_that_need_them() {
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
pub fn fill_is_served_and_needs_a_mask() {
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
pub fn style_images_are_sent_to_the_server() {
    let styled = StyleServer::start();
    let StyleServer { server, pictures, folder, .. } = &styled;
    let photo = pictures.path("photo");
    let style = format!("{photo}:0.5");
    let common = ["a fox", "--steps", "2", "--seed", "7", "--style"];
    let drawn = |style: &str| styled.drawn(&[&common[..], &[style]].concat());
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
    let weighted = json!({"image": image, "weight": 2});
    let answer = server.post("/api/v2/jobs", &json!({"prompt": "x", "styles": [weighted]}));
    assert_eq!((answer.status, &answer.json()["error"]["parameter"]), (422, &json!("styles")));
}

#[test]
fn style_images_are_refused_at_every_door_where_nothing_reads_them() {
    let pictures = Pictures::new(90, 60);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    wait_for("the model", || (server.get("/ready").status == 200).then_some(()));
    assert_eq!(server.get("/api/v2/models").json()["models"][0]["reads_styles"], false);
    let image = pictures.base64("photo");
    let (head, body) = form(&[("image", Some("photo.png"), &pictures.bytes("photo"))]);
    ok(server.request("POST", "/upload/image", &head, &body));
    let mut graph = comfy::graph(2, 1);
    let more = json!({
        "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "21": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "sigclip.safetensors"}},
        "22": {"class_type": "CLIPVisionEncode", "inputs":
            {"clip_vision": ["21", 0], "image": ["20", 0], "crop": "none"}},
        "23": {"class_type": "StyleModelLoader", "inputs": {"style_model_name": "redux"}},
        "24": {"class_type": "StyleModelApply", "inputs":
            {"conditioning": graph["3"]["inputs"]["positive"], "style_model": ["23", 0],
             "clip_vision_output": ["22", 0]}},
    });
    graph.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    graph["3"]["inputs"]["positive"] = json!(["24", 0]);
    for (path, body, status) in [
        ("/api/v2/jobs", json!({"prompt": "x", "styles": [image]}), 422),
        ("/fal/run/fal-ai/flux-tiny/redux", json!({"prompt": "x", "image_url": image}), 422),
        (
            "/v1/predictions",
            json!({"version": "flux-tiny", "input": {"prompt": "x", "redux_image": image}}),
            422,
        ),
        ("/v1/flux-pro-1.1", json!({"prompt": "x", "image_prompt": image}), 422),
        ("/prompt", json!({"prompt": graph}), 400),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.text().contains("Redux"), "{path}: {}", answer.text());
    }
}
