//! Reference images through every API that has words for them, with a small FLUX.2 model.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flux_fast::model::{Flux2Config, Qwen3Config, VaeConfig, flux2, qwen3, vae};
use flux_fast::spec::Component;
use flux_fast::spec::flux2::{QWEN3, TRANSFORMER, VAE};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::{Value, json};

use super::{Answer, Server, decoded, drawn_by_command, form, wait_for};

/// Writes a small model with noise as weights.
pub fn klein(folder: &Path) -> PathBuf {
    let flux = Flux2Config {
        in_channels: 32,
        out_channels: 32,
        hidden: 128,
        heads: 2,
        head_dim: 64,
        mlp_hidden: 384,
        depth_double: 1,
        depth_single: 1,
        context: 144,
        axes: vec![16; 4],
        ..Flux2Config::klein_4b()
    };
    let text = Qwen3Config {
        width: 48,
        heads: 3,
        kv_heads: 1,
        head_dim: 32,
        ff: 96,
        layers: 30,
        ..Qwen3Config::qwen3_4b()
    };
    let image = VaeConfig {
        encoder_channels: None,
        channels: vec![32, 64, 64, 64],
        blocks: 1,
        latent: 8,
        groups: 32,
        ..VaeConfig::flux2()
    };
    let configs = json!({
        "transformer": {
            "_class_name": "Flux2Transformer2DModel", "attention_head_dim": 64,
            "axes_dims_rope": [16, 16, 16, 16], "guidance_embeds": false, "in_channels": 32,
            "joint_attention_dim": 144, "mlp_ratio": 3.0, "num_attention_heads": 2,
            "num_layers": 1, "num_single_layers": 1, "patch_size": 1, "rope_theta": 2000,
            "timestep_guidance_channels": 256,
        },
        "text_encoder": {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32,
            "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3,
            "num_hidden_layers": 30, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000, "tie_word_embeddings": true, "vocab_size": text.vocab,
        },
        "vae": {
            "_class_name": "AutoencoderKLFlux2", "block_out_channels": [32, 64, 64, 64],
            "latent_channels": 8, "layers_per_block": 1, "norm_num_groups": 32,
            "use_quant_conv": true, "use_post_quant_conv": true,
            "mid_block_add_attention": true, "batch_norm_eps": 1e-4,
        },
    });
    let named = |component: Component, list: Vec<(String, Vec<usize>)>| {
        list.into_iter().map(move |(name, shape)| (component, name, shape))
    };
    let tensors = named(TRANSFORMER, flux2::tensors(&flux))
        .chain(named(QWEN3, qwen3::tensors(&text)))
        .chain(named(VAE, vae::tensors(&image)))
        .collect();
    let (grid, storage, dialect) = (Grid::F8, Storage::BF16, Dialect::Comfy);
    let spec = SynthSpec { seed: 7, tensors, grid, storage, dialect, configs };
    let path = folder.join("small-klein.safetensors");
    synth::write(&spec, &path).unwrap();
    path
}

/// Writes an image of this size with a pattern.
pub fn picture(path: &Path, width: u32, height: u32) -> String {
    let pixel = |x: u32, y: u32| image::Rgb([(x * 3) as u8, (y * 2) as u8, (x ^ y) as u8]);
    image::RgbImage::from_fn(width, height, pixel).save(path).unwrap();
    BASE64_STANDARD.encode(std::fs::read(path).unwrap())
}

/// The image of a graph that looks at two uploaded images.
fn by_graph(server: &Server, model: &str, names: [&str; 2]) -> Vec<u8> {
    let graph = json!({
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": model}},
        "2": {"class_type": "CLIPLoader", "inputs":
            {"clip_name": "qwen_3_4b.safetensors", "type": "flux2"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "flux2-vae.safetensors"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["2", 0]}},
        "5": {"class_type": "LoadImage", "inputs": {"image": names[0]}},
        "6": {"class_type": "LoadImage", "inputs": {"image": names[1]}},
        "7": {"class_type": "VAEEncode", "inputs": {"pixels": ["5", 0], "vae": ["3", 0]}},
        "8": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["3", 0]}},
        "9": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["4", 0], "latent": ["7", 0]}},
        "10": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["9", 0], "latent": ["8", 0]}},
        "11": {"class_type": "GetImageSize", "inputs": {"image": ["5", 0]}},
        "12": {"class_type": "EmptyFlux2LatentImage", "inputs":
            {"width": ["11", 0], "height": ["11", 1], "batch_size": 1}},
        "13": {"class_type": "Flux2Scheduler", "inputs":
            {"steps": 2, "width": ["11", 0], "height": ["11", 1]}},
        "14": {"class_type": "BasicGuider", "inputs":
            {"model": ["1", 0], "conditioning": ["10", 0]}},
        "15": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "16": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "17": {"class_type": "SamplerCustomAdvanced", "inputs":
            {"noise": ["16", 0], "guider": ["14", 0], "sampler": ["15", 0], "sigmas": ["13", 0],
             "latent_image": ["12", 0]}},
        "18": {"class_type": "VAEDecode", "inputs": {"samples": ["17", 0], "vae": ["3", 0]}},
        "19": {"class_type": "SaveImage", "inputs": {"images": ["18", 0]}},
    });
    server.draw_graph(&graph, "19")
}

/// The image behind an address that an answer names.
fn linked(server: &Server, url: &Value) -> Vec<u8> {
    let url = url.as_str().unwrap_or_else(|| panic!("{url}"));
    match url.strip_prefix("data:image/png;base64,") {
        Some(data) => BASE64_STANDARD.decode(data).unwrap(),
        None => server.get(url.split_once(&server.address).unwrap().1).body,
    }
}

fn ok(answer: Answer) -> Value {
    assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.text());
    answer.json()
}

#[test]
pub fn reference_images_through_every_api_give_the_image_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let model = klein(folder.path());
    let model = model.to_str().unwrap();
    let [first, second] = ["first.png", "second.png"].map(|name| folder.path().join(name));
    let images = [picture(&first, 96, 64), picture(&second, 64, 80)];
    let [first, second] = [&first, &second].map(|path| path.to_str().unwrap());
    let common =
        ["a red fox", "--steps", "2", "--seed", "7", "--reference", first, "--reference", second];
    let reference = drawn_by_command(folder.path(), &[&common[..], &["--model", model]].concat());
    assert_eq!(
        image::load_from_memory(&reference).unwrap().to_rgb8().dimensions(),
        (96, 64),
        "the size of the first reference"
    );
    let server = Server::start(&folder.path().join("data"), &["--model", model]);
    let models = server.get("/api/v2/models").json();
    assert_eq!(models["models"][0]["reads_references"], true, "{models}");
    let (prompt, steps, seed) = ("a red fox", 2, 7);

    let request = json!({"prompt": prompt, "steps": steps, "seed": seed, "references": images});
    assert!(server.image(&server.submit(request.clone())) == reference, "native");
    let plan = ok(server.post(
        "/api/v2/plan",
        &json!({"request": {
        "prompt": prompt, "steps": steps, "reference_sizes": ["96x64", "64x80"]}}),
    ));
    assert_eq!((&plan["width"], &plan["height"]), (&json!(96), &json!(64)), "{plan}");
    let without = ok(server.post(
        "/api/v2/plan",
        &json!({"request": {
        "prompt": prompt, "steps": steps, "width": 96, "height": 64}}),
    ));
    assert!(plan["phases"].as_array().unwrap().len() > without["phases"].as_array().unwrap().len());

    let bytes = images.each_ref().map(|image| BASE64_STANDARD.decode(image).unwrap());
    let parts = [
        ("prompt", None, prompt.as_bytes()),
        ("steps", None, b"2"),
        ("seed", None, b"7"),
        ("image[]", Some("first.png"), &bytes[0][..]),
        ("image[]", Some("second.png"), &bytes[1][..]),
    ];
    let (head, body) = form(&parts);
    let answer = ok(server.request("POST", "/v1/images/edits", &head, &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "OpenAI's form");
    let body = json!({"prompt": prompt, "steps": steps, "seed": seed,
                      "images": [{"image_url": images[0]}, {"image_url": images[1]}]});
    let answer = ok(server.post("/v1/images/edits", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "OpenAI's JSON");
    let body = json!({"prompt": prompt, "steps": steps, "seed": seed, "reference_images": images});
    let answer = ok(server.post("/v1/images/generations", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == reference, "Together");

    let body = json!({"prompt": prompt, "steps": steps, "seed": seed, "output_format": "png",
                      "input_image": images[0], "input_image_2": images[1]});
    let answer = ok(server.post("/v1/flux-pro-2", &body));
    assert_eq!(answer["input_mp"], 0.01);
    let url = answer["polling_url"].as_str().unwrap();
    let ready = wait_for("the result", || {
        let result = server.get(url.split_once(&server.address).unwrap().1).json();
        (result["status"] == "Ready").then_some(result)
    });
    assert!(linked(&server, &ready["result"]["sample"]) == reference, "Black Forest Labs");

    let body = json!({"version": "small-klein", "input": {"prompt": prompt, "seed": seed,
        "num_inference_steps": steps, "output_format": "png", "input_images": images,
        "aspect_ratio": "match_input_image"}});
    let wait = [("Prefer", "wait")];
    let answer = server.request("POST", "/v1/predictions", &wait, body.to_string().as_bytes());
    assert!(linked(&server, &ok(answer)["output"][0]) == reference, "Replicate");

    let uris = images.each_ref().map(|image| format!("data:image/png;base64,{image}"));
    let body = json!({"prompt": prompt, "seed": seed, "num_inference_steps": steps,
                      "output_format": "png", "image_urls": uris});
    let answer = ok(server.post("/fal/run/small-klein/edit", &body));
    assert!(linked(&server, &answer["images"][0]["url"]) == reference, "fal");

    let body = json!({"prompt": prompt, "seed": seed, "sample_params": {"sample_steps": steps},
                      "ref_images": images});
    let poll = ok(server.post("/sdcpp/v1/img_gen", &body))["poll_url"].clone();
    let job = wait_for("the job", || {
        let job = server.get(poll.as_str().unwrap()).json();
        (job["status"] == "completed").then_some(job)
    });
    assert!(decoded(&job["result"]["images"][0]["b64_json"]) == reference, "sd.cpp");

    let arguments = json!({"prompt": prompt, "seed": seed, "steps": steps, "references": images});
    let params = json!({"name": "generate_image", "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let answer = ok(server.post("/mcp", &body));
    assert!(decoded(&answer["result"]["content"][0]["data"]) == reference, "MCP");

    for (name, bytes) in ["first.png", "second.png"].iter().zip(&bytes) {
        let (head, body) = form(&[("image", Some(*name), bytes)]);
        ok(server.request("POST", "/upload/image", &head, &body));
    }
    let drawn = by_graph(&server, "small-klein", ["first.png", "second.png"]);
    assert!(drawn == reference, "ComfyUI");

    let file = folder.path().join("remote.png");
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .env("FLUX_FAST_CONFIG", "")
        .args(["remote", &format!("http://{}", server.address)])
        .args(common)
        .arg("-o")
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(&file).unwrap() == reference, "remote");

    // One image; a strength makes it the image to start from.
    let alone = [&common[..7], &["--model", model]].concat();
    let alone = drawn_by_command(folder.path(), &alone);
    let parameters = json!({"prompt": prompt, "seed": seed, "num_inference_steps": steps});
    let body = json!({"inputs": images[0], "parameters": parameters});
    assert!(server.post("/hf/small-klein", &body).body == alone, "Hugging Face");
    let started = ["a red fox", "--steps", "2", "--seed", "7", "-i", first, "--strength", "0.5"];
    let started = [&started[..], &["--size", "96x64", "--model", model]].concat();
    let started = drawn_by_command(folder.path(), &started);
    let body = json!({"prompt": prompt, "steps": steps, "seed": seed, "strength": 0.5,
                      "size": "96x64", "image": images[0]});
    let answer = ok(server.post("/v1/images/edits", &body));
    assert!(decoded(&answer["data"][0]["b64_json"]) == started, "image to image");

    let narrow = picture(&folder.path().join("narrow.png"), 64, 600);
    for references in [json!([narrow]), json!(["aGk="]), json!(7), json!(vec![&images[0]; 11])] {
        let body = json!({"prompt": prompt, "references": references});
        let answer = server.post("/api/v2/jobs", &body);
        assert_eq!(answer.status, 422, "{}", answer.text());
        assert_eq!(answer.json()["error"]["parameter"], "references");
    }
    // Nothing is left of jobs whose results are gone.
    let inputs = folder.path().join("data/inputs");
    assert!(std::fs::read_dir(&inputs).unwrap().count() > 2);
}

#[test]
fn a_model_that_reads_no_references_refuses_them_before_it_draws() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let image = picture(&folder.path().join("x.png"), 64, 64);
    assert_eq!(server.get("/api/v2/models").json()["models"][0]["reads_references"], false);
    for path in ["/api/v2/jobs", "/api/v2/plan"] {
        let answer = server.post(path, &json!({"prompt": "a fox", "references": [image]}));
        assert_eq!(
            (answer.status, &answer.json()["error"]["parameter"]),
            (422, &json!("references"))
        );
    }
    let two = json!([image, image]);
    for (path, body, field) in [
        ("/v1/images/edits", json!({"prompt": "x", "image": two}), "image"),
        (
            "/v1/images/generations",
            json!({"prompt": "x", "reference_images": [image]}),
            "reference_images",
        ),
        (
            "/v1/flux-pro",
            json!({"prompt": "x", "input_image": image, "input_image_2": image}),
            "input_image_2",
        ),
        ("/fal/run/flux-tiny", json!({"prompt": "x", "image_urls": two}), "image_urls"),
        (
            "/fal/run/flux-tiny",
            json!({"prompt": "x", "image_url": image, "image_urls": [image]}),
            "image_urls",
        ),
        ("/sdcpp/v1/img_gen", json!({"prompt": "x", "ref_images": [image]}), "ref_images"),
        (
            "/v1/predictions",
            json!({"version": "flux-tiny", "input":
            {"prompt": "x", "input_images": two}}),
            "input_images",
        ),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 422, "{path}: {}", answer.text());
        assert!(answer.text().contains(field), "{path}: {}", answer.text());
    }
    assert!(server.get("/api/v2/jobs").json()["jobs"].as_array().unwrap().is_empty());
}
