//! Masks and margins through the APIs of other services.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::masks::{Pictures, ok};
use super::references::klein;
use super::{Server, decoded, drawn_by_command, form, wait_for};

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
pub fn a_model_that_reads_references_sees_the_image_that_it_repaints() {
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
    let answer = call(json!({"alwayson_scripts": units.clone()}));
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(answer.text().contains("controlnet_not_found"), "{}", answer.text());
    for enabled in [json!(false), json!("False"), json!(0)] {
        let off = json!({"ControlNet": {"args": [{"enabled": enabled, "model": "union"}, null]}});
        assert_eq!(call(json!({"alwayson_scripts": off})).status, 200, "{enabled}");
    }
    for wrong in [
        json!("ControlNet"),
        json!([units]),
        json!({"ControlNet": [{"model": "union"}]}),
        json!({"ControlNet": {"args": {"model": "union"}}}),
        json!({"ControlNet": {"args": ["union"]}}),
        json!({"ControlNet": {"args": [{"model": 5}]}}),
        json!({"ControlNet": {"args": [{"model": "union", "enabled": "perhaps"}]}}),
    ] {
        let answer = call(json!({"alwayson_scripts": wrong}));
        assert_eq!(answer.status, 422, "{wrong}: {}", answer.text());
    }
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
pub fn comfyui_graphs_repaint_a_part() {
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
    let draw = |graph: &Value| server.draw_graph(graph, "9");
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
    by_mask["10"] = json!({"class_type": "INPAINT_ApplyFooocusInpaint", "inputs": {}});
    let refused = server.post("/prompt", &json!({"prompt": by_mask}));
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("put back by the server itself"), "{}", refused.text());
}
