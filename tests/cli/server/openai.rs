//! `/v1`.

use flux_fast::pipeline::images::{Format, encode};
use flux_fast::pipeline::request::Image;
use serde_json::json;

use super::{Server, decoded, drawn_by_command};

#[test]
pub fn generations_are_the_files_of_the_command_line_under_any_usual_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--alias", "house=flux-tiny"]);
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "2", "--seed", "5"]);
    for model in [json!("gpt-image-1"), json!("dall-e-3"), json!("house"), json!(null)] {
        let body = json!({
            "model": model, "prompt": "a fox", "n": 1, "size": "128x128", "quality": "auto",
            "user": "x", "style": null, "seed": 5, "steps": 2, "background": "auto",
        });
        let answer = server.post("/v1/images/generations", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        assert!(decoded(&json["data"][0]["b64_json"]) == reference, "{model}");
        assert_eq!((&json["size"], &json["output_format"]), (&json!("128x128"), &json!("png")));
        assert_eq!(json["data"][0]["index"], 0);
    }
    // As clients of stable-diffusion.cpp's server send what has no field there.
    let extra = r#"a fox<sd_cpp_extra_args>{"steps": 2, "seed": 5}</sd_cpp_extra_args>"#;
    let answer = server.post("/v1/images/generations", &json!({"prompt": extra, "steps": 1}));
    assert!(decoded(&answer.json()["data"][0]["b64_json"]) == reference, "fields in the prompt");
    let two = json!({"prompt": "a fox", "n": 2, "steps": 1, "response_format": "url",
                     "output_format": "jpeg"});
    let answer = server.post("/v1/images/generations", &two).json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    let url = answer["data"][1]["url"].as_str().unwrap();
    let image = server.get(url.strip_prefix(&format!("http://{}", server.address)).unwrap());
    assert_eq!((image.status, image.header("content-type")), (200, Some("image/jpeg")));
    // Clients of DALL-E that name no form read links, others base64: both are there.
    let both = json!({"prompt": "a fox", "steps": 1, "model": "dall-e-3"});
    let answer = server.post("/v1/images/generations", &both).json();
    let url = answer["data"][0]["url"].as_str().unwrap();
    let image = server.get(url.strip_prefix(&format!("http://{}", server.address)).unwrap());
    assert!(image.body == super::decoded(&answer["data"][0]["b64_json"]));

    let models = server.get("/v1/models").json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&json!("list"), &json!("flux-tiny"))
    );
    assert_eq!(server.get("/v1/models/house").json()["id"], "flux-tiny");
    let error = server.post("/v1/images/generations", &json!({"prompt": "x", "model": "nothing"}));
    let body = error.json();
    assert_eq!((error.status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(
        (&body["error"]["type"], &body["error"]["param"]),
        (&json!("invalid_request_error"), &json!("model"))
    );
    let error = server.post("/v1/images/generations", &json!({"prompt": "x", "size": "100x128"}));
    assert_eq!(error.status, 422);
    assert!(error.reason.contains("multiple of 16"), "{}", error.reason);
}

#[test]
pub fn a_stream_has_partial_images_and_then_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let body = json!({"prompt": "a fox", "stream": true, "partial_images": 2, "steps": 12,
                      "seed": 5, "count": null});
    let events = server.post("/v1/images/generations", &body).events();
    let (last, partial) = events.split_last().unwrap();
    assert_eq!(last.1, "image_generation.completed");
    assert_eq!(last.2["type"], "image_generation.completed");
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "12", "--seed", "5"]);
    assert!(decoded(&last.2["b64_json"]) == reference);
    assert!(!partial.is_empty() && partial.len() <= 2, "{} partial images", partial.len());
    for (index, (_, name, data)) in partial.iter().enumerate() {
        assert_eq!(name, "image_generation.partial_image");
        assert_eq!(data["partial_image_index"], index);
        assert!(image::load_from_memory(&decoded(&data["b64_json"])).is_ok());
    }
    let refused = server.post(
        "/v1/images/generations",
        &json!({"prompt": "x", "stream": true,
        "steps": 0}),
    );
    assert_eq!(refused.status, 422);
}

#[test]
pub fn edits_start_from_the_first_image_of_a_form_or_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let picture = drawn_by_command(folder.path(), &["a pizza", "--steps", "2", "--seed", "5"]);
    let input = folder.path().join("input.png");
    std::fs::write(&input, &picture).unwrap();
    let reference = drawn_by_command(
        folder.path(),
        &[
            "a fox",
            "--steps",
            "4",
            "--seed",
            "5",
            "-i",
            input.to_str().unwrap(),
            "--strength",
            "0.5",
        ],
    );
    let part = |name: &str, value: &[u8], file: &str| {
        let head =
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        [head.as_bytes(), value, b"\r\n"].concat()
    };
    let body = [
        part("prompt", b"a fox", ""),
        part("image[]", &picture, "; filename=\"../x.png\"\r\nContent-Type: image/png"),
        part("steps", b"4", ""),
        part("seed", b"5", ""),
        part("strength", b"0.5", ""),
        part("size", b"128x128", ""),
        b"--xyz--\r\n".to_vec(),
    ]
    .concat();
    let form = [("Content-Type", "multipart/form-data; boundary=xyz")];
    let answer = server.request("POST", "/v1/images/edits", &form, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(decoded(&answer.json()["data"][0]["b64_json"]) == reference);

    use base64::Engine as _;
    let data = base64::prelude::BASE64_STANDARD.encode(&picture);
    let body = json!({"prompt": "a fox", "steps": 4, "seed": 5, "strength": 0.5,
                      "images": [{"image_url": format!("data:image/png;base64,{data}")}]});
    let answer = server.post("/v1/images/edits", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(decoded(&answer.json()["data"][0]["b64_json"]) == reference);
    for (body, param) in [
        (json!({"prompt": "x"}), "image"),
        (json!({"prompt": "x", "images": [{"image_url": "http://127.0.0.1:1/x.png"}]}), "image"),
        (json!({"prompt": "x", "image": data, "mask": data}), "mask"),
        (json!({"image": data}), "prompt"),
    ] {
        let answer = server.post("/v1/images/edits", &body);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (422, &json!(param)));
    }
    // A photo is larger than the default limits of web frameworks, and its shape is kept.
    let photo = Image { width: 1600, height: 800, rgb: vec![200; 1600 * 800 * 3] };
    let photo = encode(&photo, Format::Bmp, 90, "").unwrap();
    let body = [
        part("prompt", b"a fox", ""),
        part("image", &photo, "; filename=\"photo.bmp\""),
        part("steps", b"2", ""),
        b"--xyz--\r\n".to_vec(),
    ]
    .concat();
    let answer = server.request("POST", "/v1/images/edits", &form, &body);
    assert_eq!((answer.status, &answer.json()["size"]), (200, &json!("176x96")));
    let broken = server.request("POST", "/v1/images/edits", &form, b"--xyz\r\nrubbish");
    assert_eq!(broken.status, 400);
}
