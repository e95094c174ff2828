//! ControlNets on every door that has words for them: the image is that of the command line.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, GrayImage};
use serde_json::{Value, json};

use super::masks::{Pictures, ok};
use super::{Server, command, decoded, form, references, wait_for};
use crate::controlnets::write;

/// A folder with ControlNets for the embedded model, where a ComfyUI has them.
pub struct Nets {
    pub folder: tempfile::TempDir,
    pub pictures: Pictures,
}

impl Nets {
    pub fn new() -> Nets {
        let nets = Nets { folder: tempfile::tempdir().unwrap(), pictures: Pictures::new(96, 64) };
        let models = nets.path().join("ComfyUI/models");
        std::fs::create_dir_all(models.join("loras")).unwrap();
        let file = |name: &str| models.join("controlnet").join(name);
        write(&file("union.safetensors"), 1, Some(7), false);
        write(&file("plain.safetensors"), 2, None, false);
        write(&file("inpaint.safetensors"), 3, None, true);
        nets
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn server(&self, arguments: &[&str]) -> Server {
        let mut command = command(&self.path().join("data"), arguments);
        let server = Server::of(command.current_dir(self.path()));
        wait_for("its model", || (server.get("/ready").status == 200).then_some(()));
        server
    }

    /// The file of the command line for these ControlNets, `NAME:IMAGE` with what may follow.
    pub fn drawn(&self, nets: &[&str], more: &[&str]) -> Vec<u8> {
        let path = self.path().join("reference.png");
        let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
        command
            .env("FLUX_FAST_CONFIG", "")
            .current_dir(self.path())
            .args(["a fox", "--steps", "2", "--seed", "7", "--device", "cpu", "--no-cache", "-o"])
            .arg(&path)
            .args(more);
        for net in nets {
            command.args(["--controlnet", net]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(path).unwrap()
    }

    /// An image of depths for the union model, half as strong, in most of the steps.
    fn depth(&self) -> Vec<u8> {
        let photo = self.pictures.path("photo");
        let net = format!("union.safetensors:{photo}:0.5:0-0.9,mode=depth");
        self.drawn(&[&net], &SIZE)
    }

    fn uri(&self, name: &str) -> String {
        format!("data:image/png;base64,{}", self.pictures.base64(name))
    }
}

const SIZE: [&str; 2] = ["--size", "96x64"];

fn extended(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
pub fn controlnets_are_listed_planned_and_drawn() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let listed = server.get("/api/v2/controlnets").json()["controlnets"].clone();
    let of = |name: &str| {
        let all = listed.as_array().unwrap().iter();
        all.clone().find(|net| net["name"] == name).unwrap_or_else(|| panic!("{listed}")).clone()
    };
    assert_eq!(of("union.safetensors")["modes"][2], "depth");
    assert_eq!(of("plain.safetensors")["modes"], json!([]));
    assert_eq!(of("inpaint.safetensors")["reads_mask"], true);
    let models = server.get("/api/v2/models").json();
    let model = &models["models"][0];
    assert_eq!(
        (&model["reads_controlnets"], &model["reads_styles"]),
        (&json!(true), &json!(false))
    );

    let photo = nets.pictures.path("photo");
    let request = |controlnets: Value| {
        json!({"prompt": "a fox", "steps": 2, "seed": 7, "size": "96x64",
               "controlnets": controlnets})
    };
    let image = nets.pictures.base64("photo");
    let union = json!({"name": "union.safetensors", "image": image, "strength": 0.5, "end": 0.9,
                       "mode": "depth"});
    let reference = nets.depth();
    assert!(server.image(&server.submit(request(json!([union])))) == reference, "one");
    let plain = json!({"name": "plain.safetensors", "image": image});
    let edges = extended(plain.clone(), json!({"edges": true, "strength": 2}));
    let both = [
        format!("union.safetensors:{photo}:0.5:0-0.9,mode=depth"),
        format!("plain.safetensors:{photo}:2,edges"),
    ];
    let drawn = nets.drawn(&[&both[0], &both[1]], &SIZE);
    assert!(drawn != reference);
    let id = server.submit(request(json!([union, edges])));
    assert!(server.image(&id) == drawn, "two");
    // The job says which they were, and never their images.
    let job = server.job(&id);
    assert_eq!(job["request"]["controlnets"][1]["name"], "plain.safetensors");
    assert!(job["request"]["controlnets"][1]["image"].is_null());
    assert_eq!(job["settings"]["controlnets"].as_array().unwrap().len(), 2);

    // What is repainted is that of the transparent pixels, or of the mask.
    let clear = format!("inpaint.safetensors:{}", nets.pictures.path("clear"));
    let hole = json!({"name": "inpaint.safetensors", "image": nets.pictures.base64("clear")});
    let drawn = nets.drawn(&[&clear], &SIZE);
    assert!(server.image(&server.submit(request(json!([hole])))) == drawn, "transparent");
    let mask = nets.pictures.path("mask");
    let masked = ["-i", &photo, "--mask", &mask];
    let drawn = nets.drawn(&[&format!("inpaint.safetensors:{photo}")], &masked);
    let body = json!({"prompt": "a fox", "steps": 2, "seed": 7, "init": image,
                      "mask": nets.pictures.base64("mask"),
                      "controlnets": [{"name": "inpaint.safetensors", "image": image}]});
    assert!(server.image(&server.submit(body)) == drawn, "masked");

    // A plan needs no images.
    let plan = |body: Value| ok(server.post("/api/v2/plan", &body));
    let without = plan(json!({"size": "96x64", "steps": 2}));
    let net = json!([{"name": "plain.safetensors", "strength": 0.5}]);
    let with = plan(json!({"size": "96x64", "steps": 2, "controlnets": net}));
    let bytes = |plan: &Value| -> u64 {
        let phases = plan["phases"].as_array().unwrap().iter();
        phases.map(|phase| phase["weight_bytes"].as_u64().unwrap()).sum()
    };
    assert!(bytes(&with) > bytes(&without), "{with}");
}

#[test]
fn remote_sends_controlnets() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let photo = nets.pictures.path("photo");
    let file = nets.path().join("remote.png");
    let remote = |net: &str| {
        Command::new(env!("CARGO_BIN_EXE_flux-fast"))
            .env("FLUX_FAST_CONFIG", "")
            .args(["remote", &format!("http://{}", server.address), "a fox", "--steps", "2"])
            .args(["--seed", "7", "--size", "96x64", "--controlnet", net, "-o"])
            .arg(&file)
            .output()
            .unwrap()
    };
    let output = remote(&format!("union.safetensors:{photo}:0.5:0-0.9,mode=depth"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(&file).unwrap() == nets.depth());
    let output = remote(&format!("nowhere:{photo}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("union.safetensors"), "{text}");
}

#[test]
fn what_controlnets_cannot_do_is_refused_by_name() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let image = nets.pictures.base64("photo");
    let large = {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = DynamicImage::from(GrayImage::new(5000, 4000));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        BASE64_STANDARD.encode(bytes.into_inner())
    };
    let net = |more: Value| extended(json!({"name": "plain.safetensors", "image": image}), more);
    for (net, status, parameter, word) in [
        (net(json!({"name": "nowhere"})), 404, "controlnets", "plain.safetensors"),
        (net(json!({"name": "/etc/passwd"})), 404, "controlnets", "no controlnet"),
        (net(json!({"name": "../plain.safetensors"})), 404, "controlnets", "no controlnet"),
        (net(json!({"name": "union.safetensors"})), 422, "controlnets", "canny or tile"),
        (net(json!({"mode": "depth"})), 422, "controlnets", "has no modes"),
        (net(json!({"mode": "sketch"})), 422, "controlnets", "no mode of this name"),
        (net(json!({"image": null})), 422, "controlnets", "needs an image"),
        (net(json!({"image": "aGk="})), 422, "controlnets", "image"),
        (net(json!({"image": large})), 422, "controlnets", "pixels"),
        (net(json!({"weight": 1})), 422, "controlnets", "weight"),
        (net(json!({"strength": 11})), 422, "controlnets", "0 to 10"),
        (net(json!({"start": 0.8, "end": 0.2})), 422, "controlnets", "0.8-0.2"),
        (net(json!({"name": "inpaint.safetensors"})), 422, "controlnets", "repaints a part"),
        (json!("plain.safetensors"), 422, "controlnets", "objects"),
    ] {
        let body = json!({"prompt": "x", "controlnets": [net]});
        let answer = server.post("/api/v2/jobs", &body);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["parameter"]), (status, &json!(parameter)), "{error}");
        assert!(error.to_string().contains(word), "{error}: {word}");
    }
    let many = vec![net(json!({})); 5];
    let answer = server.post("/api/v2/jobs", &json!({"prompt": "x", "controlnets": many}));
    assert_eq!(answer.status, 422, "{}", answer.text());
    drop(server);
    let model = references::klein(nets.path());
    let server = nets.server(&["--model", model.to_str().unwrap()]);
    let body = json!({"prompt": "x", "controlnets": [net(json!({}))]});
    let answer = server.post("/api/v2/jobs", &body);
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("FLUX.1"), "{}", answer.text());
}

#[test]
fn automatic1111_units_are_controlnets() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let image = nets.pictures.base64("photo");
    let call = |path: &str, unit: Value, more: Value| {
        let body = json!({"prompt": "a fox", "steps": 2, "seed": 7, "width": 96, "height": 64,
                          "alwayson_scripts": {"ControlNet": {"args": [unit]}}});
        server.post(path, &extended(body, more))
    };
    // What a client sends that says everything.
    let unit = json!({
        "enabled": true, "module": "none", "model": "union.safetensors [0123abcd]", "weight": 0.5,
        "input_image": image, "mask": null, "guidance_start": 0.0, "guidance_end": 0.9,
        "resize_mode": "Resize and Fill", "low_vram": false, "processor_res": 512,
        "threshold_a": 64, "threshold_b": 64, "control_mode": 0, "pixel_perfect": false,
        "union_control_type": "Depth", "hr_option": "Both",
    });
    let answer = ok(call("/sdapi/v1/txt2img", unit.clone(), json!({})));
    assert!(decoded(&answer["images"][0]) == nets.depth());
    assert!(
        answer["parameters"]["alwayson_scripts"]["ControlNet"]["args"][0]["input_image"].is_null()
    );
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    let note = info["extra_generation_params"]["ControlNet 0"].as_str().unwrap();
    assert!(note.contains("Model: union.safetensors, Weight: 0.5"), "{note}");

    let photo = nets.pictures.path("photo");
    let canny = json!({"module": "canny", "model": "union.safetensors",
                       "image": {"image": image, "mask": null}});
    let drawn = nets.drawn(&[&format!("union.safetensors:{photo},mode=canny,edges")], &SIZE);
    let answer = ok(call("/sdapi/v1/txt2img", canny, json!({})));
    assert!(decoded(&answer["images"][0]) == drawn, "canny");
    // With thresholds, in either order; the answer says in which size edges are found.
    let canny = json!({"module": "canny", "model": "union.safetensors", "image": image,
                       "threshold_a": 300, "threshold_b": 100, "processor_res": 512});
    let edges = format!("union.safetensors:{photo},mode=canny,edges=100-300");
    let answer = ok(call("/sdapi/v1/txt2img", canny, json!({})));
    assert!(decoded(&answer["images"][0]) == nets.drawn(&[&edges], &SIZE), "thresholds");
    assert!(decoded(&answer["images"][0]) != drawn, "thresholds have an effect");
    let info = answer["info"].as_str().unwrap();
    assert!(info.contains("Processor Res: 64, Threshold A: 100.0, Threshold B: 300.0"), "{info}");
    // Without an image of its own, a unit sees the one to start from. A type that a model does not
    // need is ignored.
    let plain = json!({"model": "plain.safetensors", "union_control_type": "Depth"});
    let start = json!({"init_images": [image], "denoising_strength": 0.5});
    let drawn = nets.drawn(
        &[&format!("plain.safetensors:{photo}")],
        &["--size", "96x64", "-i", &photo, "--strength", "0.5"],
    );
    let answer = ok(call("/sdapi/v1/img2img", plain, start));
    assert!(decoded(&answer["images"][0]) == drawn, "image to image");

    let wide = nets.pictures.path("photo").replace("photo", "wide");
    image::GrayImage::new(200, 20).save(&wide).unwrap();
    for (change, status, word) in [
        (json!({"model": "nowhere"}), 404, "union.safetensors"),
        (json!({"module": "openpose_full"}), 422, "module"),
        (json!({"control_mode": "My prompt is more important"}), 422, "control_mode"),
        (json!({"input_image": nets.pictures.base64("wide")}), 422, "resize_mode"),
        (json!({"mask": image}), 422, "mask"),
        (json!({"union_control_type": "Segmentation"}), 422, "pose"),
        (json!({"union_control_type": "Unknown"}), 422, "canny or tile"),
        (json!({"input_image": null}), 422, "needs an image"),
    ] {
        let answer = call("/sdapi/v1/txt2img", extended(unit.clone(), change), json!({}));
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(word), "{}: {word}", answer.text());
    }
    for off in [json!({"enabled": false}), json!({"model": "None"})] {
        let off = extended(unit.clone(), extended(json!({"module": "openpose_full"}), off));
        assert_eq!(call("/sdapi/v1/txt2img", off, json!({})).status, 200);
    }
    let list = |path: &str| server.get(&format!("/controlnet/{path}")).json();
    let names = list("model_list")["model_list"].to_string();
    assert!(names.contains("\"union.safetensors\""), "{names}");
    assert_eq!(list("module_list")["module_list"], json!(["none", "canny"]));
    assert_eq!(list("settings")["control_net_unit_count"], 4);
    assert!(list("control_types")["control_types"]["All"]["model_list"].is_array());
    assert!(list("version")["version"].is_number());
}

#[test]
fn comfyui_graphs_apply_controlnets() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let bytes = nets.pictures.bytes("photo");
    let (head, body) = form(&[("image", Some("photo.png"), &bytes)]);
    ok(server.request("POST", "/upload/image", &head, &body));
    let graph = json!({
        "3": {"class_type": "KSampler", "inputs": {
            "model": ["4", 0], "positive": ["22", 0], "negative": ["22", 1],
            "latent_image": ["5", 0], "seed": 7, "steps": 2, "cfg": 1,
            "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux-tiny"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 64}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
        "19": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "20": {"class_type": "ControlNetLoader", "inputs":
            {"control_net_name": "union.safetensors"}},
        "21": {"class_type": "SetUnionControlNetType", "inputs":
            {"control_net": ["20", 0], "type": "depth"}},
        "22": {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["6", 0], "negative": ["7", 0], "control_net": ["21", 0],
            "image": ["19", 0], "vae": ["4", 2], "strength": 0.5, "start_percent": 0.0,
            "end_percent": 0.9}},
    });
    let draw = |graph: &Value| server.draw_graph(graph, "9");
    assert!(draw(&graph) == nets.depth());
    // The plain node, a ControlNet without modes to which one is said, and edges.
    let photo = nets.pictures.path("photo");
    let mut plain = graph.clone();
    plain["20"]["inputs"]["control_net_name"] = json!("plain.safetensors");
    plain["18"] = json!({"class_type": "Canny", "inputs": {"image": ["19", 0]}});
    plain["22"] = json!({"class_type": "ControlNetApply", "inputs": {
        "conditioning": ["6", 0], "control_net": ["21", 0], "image": ["18", 0], "strength": 0.7}});
    plain["3"]["inputs"]["negative"] = json!(["7", 0]);
    let drawn = nets.drawn(&[&format!("plain.safetensors:{photo}:0.7,edges")], &SIZE);
    assert!(draw(&plain) == drawn, "edges");
    for (node, input, value, word) in [
        ("20", "control_net_name", json!("nowhere"), "union.safetensors"),
        ("21", "type", json!("segment"), "no such mode"),
        ("21", "type", json!("auto"), "canny or tile"),
        ("22", "control_net", json!(["4", 0]), "CONTROL_NET"),
    ] {
        let mut graph = graph.clone();
        graph[node]["inputs"][input] = value;
        let answer = server.post("/prompt", &json!({"prompt": graph}));
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.text().contains(word), "{}: {word}", answer.text());
        assert_ne!(answer.json()["node_errors"], json!({}), "{}", answer.text());
    }
    let info = server.get("/object_info/ControlNetLoader").json();
    let names = &info["ControlNetLoader"]["input"]["required"]["control_net_name"][0];
    assert!(names.to_string().contains("union.safetensors"), "{info}");
    assert_eq!(server.get("/models/controlnet").json().as_array().unwrap().len(), 3);
}

#[test]
fn fal_and_sdcpp_have_controlnets() {
    let nets = Nets::new();
    let server = nets.server(&[]);
    let uri = nets.uri("photo");
    let fal = |more: Value| {
        let body = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7,
                          "sync_mode": true, "output_format": "png",
                          "image_size": {"width": 96, "height": 64}});
        server.post("/fal/run/fal-ai/flux-tiny", &extended(body, more))
    };
    let image = |answer: Value| {
        let url = answer["images"][0]["url"].as_str().unwrap().to_string();
        BASE64_STANDARD.decode(url.split_once(";base64,").unwrap().1).unwrap()
    };
    let control = json!({"control_image_url": uri, "control_mode": "depth",
                         "conditioning_scale": 0.5, "end_percentage": 0.9});
    let unions = |path: &str, control: &Value| {
        let nets = json!([{"path": path, "controls": [control]}]);
        json!({"controlnet_unions": nets})
    };
    let drawn = image(ok(fal(unions("union.safetensors", &control))));
    assert!(drawn == nets.depth(), "fal, a union");
    let photo = nets.pictures.path("photo");
    let plain = json!({"controlnets": [{"path": "plain.safetensors", "control_image_url": uri}]});
    let reference = nets.drawn(&[&format!("plain.safetensors:{photo}")], &SIZE);
    assert!(image(ok(fal(plain))) == reference, "fal");
    let masked = extended(control.clone(), json!({"mask_image_url": uri}));
    for (body, status, word) in [
        (unions("https://x/y.safetensors", &control), 404, "no controlnet of this name"),
        (unions("union.safetensors", &masked), 422, "mask_image_url"),
        (json!({"controlnets": [{"path": "plain.safetensors"}]}), 422, "control_image_url"),
        (json!({"controlnets": [{"control_image_url": uri}]}), 422, "path"),
        (json!({"controlnet_unions": [{"path": "union.safetensors"}]}), 422, "controls"),
        (json!({"easycontrols": [{"image_url": uri}]}), 422, "easycontrols"),
    ] {
        let answer = fal(body);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(word), "{}: {word}", answer.text());
    }

    let body = json!({"prompt": "a fox", "seed": 7, "sample_params": {"sample_steps": 2},
                      "width": 96, "height": 64, "control_image": nets.pictures.base64("photo"),
                      "control_net": "plain.safetensors", "control_strength": 0.9});
    let poll = ok(server.post("/sdcpp/v1/img_gen", &body))["poll_url"].clone();
    let job = wait_for("the job", || {
        let job = server.get(poll.as_str().unwrap()).json();
        (job["status"] == "completed").then_some(job)
    });
    let reference = nets.drawn(&[&format!("plain.safetensors:{photo}:0.9")], &SIZE);
    assert!(decoded(&job["result"]["images"][0]["b64_json"]) == reference, "stable-diffusion.cpp");
    let capabilities = server.get("/sdcpp/v1/capabilities").json();
    assert_eq!(capabilities["features"]["control_image"], true);
    assert_eq!(capabilities["control_nets"].as_array().unwrap().len(), 3);
}
