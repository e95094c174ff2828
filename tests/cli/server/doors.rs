//! The APIs of other services: Replicate, fal, Black Forest Labs, Hugging Face, Together; and
//! stable-diffusion.cpp's.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

#[cfg(unix)]
use super::kill;
use super::{Answer, Server, decoded, drawn_by_command, endless, wait_for};

/// The bytes of a data URI.
fn inline(uri: &Value) -> Vec<u8> {
    let (_, encoded) = uri.as_str().unwrap().split_once(";base64,").unwrap();
    BASE64_STANDARD.decode(encoded).unwrap()
}

/// What an absolute link of the server returns.
fn follow(server: &Server, url: &Value) -> Answer {
    let url = url.as_str().unwrap_or_else(|| panic!("{url}"));
    server.get(url.strip_prefix(&format!("http://{}", server.address)).unwrap())
}

/// The file of `a fox` with 3 steps and seed 7.
fn fox(folder: &Path) -> Vec<u8> {
    drawn_by_command(folder, &["a fox", "--steps", "3", "--seed", "7"])
}

#[test]
pub fn replicate_waits_or_polls_and_has_every_field() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let path = "/v1/models/black-forest-labs/flux-tiny/predictions";
    let input = json!({"prompt": "a fox", "num_inference_steps": 3, "seed": 7,
                       "output_format": "png", "go_fast": true, "prompt_strength": 0.8});
    let body = json!({"input": input}).to_string();
    let answer = server.request("POST", path, &[("Prefer", "wait=60")], body.as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let answer = answer.json();
    assert_eq!((&answer["status"], &answer["input"]), (&json!("succeeded"), &input));
    assert_eq!(answer["model"], "black-forest-labs/flux-tiny");
    assert!(inline(&answer["output"][0]) == fox(folder.path()));
    for name in [
        "id",
        "version",
        "logs",
        "error",
        "metrics",
        "created_at",
        "started_at",
        "completed_at",
        "urls",
    ] {
        assert!(answer.get(name).is_some(), "{name}");
    }
    assert_eq!(follow(&server, &answer["urls"]["get"]).json(), answer);
    let events = follow(&server, &answer["urls"]["stream"]).text();
    assert!(events.contains("event: output\n") && events.ends_with("event: done\ndata: {}\n\n"));

    // Without `wait` the answer comes at once, and the job can be cancelled.
    let body = json!({"version": "flux-tiny", "input":
        {"prompt": "a fox", "num_inference_steps": 1000, "num_outputs": 8, "aspect_ratio": "2:1"}});
    let answer = server.post("/v1/predictions", &body).json();
    assert_eq!((&answer["status"], &answer["output"]), (&json!("starting"), &Value::Null));
    let cancel = answer["urls"]["cancel"].as_str().unwrap();
    let cancel = cancel.split_once(&server.address).unwrap().1;
    assert_eq!(server.post(cancel, &json!({})).status, 200);
    wait_for("the end of the prediction", || {
        (follow(&server, &answer["urls"]["get"]).json()["status"] == "canceled").then_some(())
    });
    assert_eq!(server.get("/v1/predictions").json()["results"].as_array().unwrap().len(), 2);
    for (path, body, status) in [
        (path, json!({"input": {}}), 422),
        (path, json!({}), 422),
        (path, json!({"input": {"prompt": "x", "mask": "data:,"}}), 422),
        (path, json!({"input": {"prompt": "x", "megapixels": "4"}}), 422),
        (path, json!({"input": {"prompt": "x", "aspect_ratio": "wide"}}), 422),
        (path, json!({"input": {"prompt": "x", "lora_weights": "https://x/y.safetensors"}}), 404),
        ("/v1/models/a/other/predictions", json!({"input": {"prompt": "x"}}), 404),
        (path, json!({"input": {"prompt": "x"}, "webhook": "http://127.0.0.1:1/"}), 422),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert_eq!(answer.json()["status"], status);
        assert!(answer.json()["detail"].is_string());
    }
    assert_eq!(server.get("/v1/predictions/nothing").status, 404);
}

#[test]
pub fn fal_queues_runs_and_cancels() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--key", "sesame"]);
    let call = |method: &str, path: &str, body: Value| {
        let key = [("Authorization", "Key sesame")];
        server.request(method, path, &key, body.to_string().as_bytes())
    };
    let path_of =
        |url: &Value| url.as_str().unwrap().split_once(&server.address).unwrap().1.to_string();
    let body = json!({"prompt": "a fox", "num_inference_steps": 3, "seed": 7,
                      "image_size": {"width": 128, "height": 128}, "output_format": "png"});
    let submitted = call("POST", "/fal/queue/fal-ai/flux-tiny", body.clone());
    assert_eq!(submitted.status, 200, "{}", submitted.text());
    let submitted = submitted.json();
    assert_eq!(submitted["status"], "IN_QUEUE");
    let status = path_of(&submitted["status_url"]);
    let status = wait_for("the end of the request", || {
        let status = call("GET", &status, json!({})).json();
        (status["status"] == "COMPLETED").then_some(status)
    });
    assert!(status["logs"].is_array() && status["metrics"]["inference_time"].is_number());
    let result = call("GET", &path_of(&submitted["response_url"]), json!({})).json();
    assert_eq!((&result["seed"], &result["prompt"]), (&json!(7), &json!("a fox")));
    let image = &result["images"][0];
    assert_eq!((&image["width"], &image["content_type"]), (&json!(128), &json!("image/png")));
    let reference = fox(folder.path());
    // Links are signed: they need no key.
    assert!(follow(&server, &image["url"]).body == reference);

    let mut body = body;
    body["sync_mode"] = json!(true);
    let ran = call("POST", "/fal/run/fal-ai/flux-tiny", body).json();
    assert!(inline(&ran["images"][0]["url"]) == reference);

    let long = json!({"prompt": "a fox", "num_inference_steps": 1000, "num_images": 8});
    let long = call("POST", "/fal/queue/fal-ai/flux-tiny", long).json();
    assert_eq!(call("GET", &path_of(&long["response_url"]), json!({})).status, 400);
    let cancel = path_of(&long["cancel_url"]);
    assert_eq!(call("PUT", &cancel, json!({})).status, 202);
    wait_for("the end of the request", || {
        let status = call("GET", &path_of(&long["status_url"]), json!({})).json();
        (status["status"] == "COMPLETED" && status["error"].is_string()).then_some(())
    });
    assert_eq!(call("PUT", &cancel, json!({})).status, 400);
    for (body, status) in [
        (json!({}), 422),
        (json!({"prompt": "x", "image_size": "huge"}), 422),
        (json!({"prompt": "x", "image_url": "http://127.0.0.1/x.png"}), 422),
        (json!({"prompt": "x", "loras": [{"path": "../x"}]}), 404),
    ] {
        let answer = call("POST", "/fal/queue/fal-ai/flux-tiny", body);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.header("x-fal-error-type").is_some());
        assert!(!answer.json()["detail"].is_null());
    }
    assert_eq!(call("POST", "/fal/run/fal-ai/other", json!({"prompt": "x"})).status, 404);
    assert_eq!(call("GET", "/fal/queue/fal-ai/flux-tiny/requests/x/status", json!({})).status, 404);
    assert_eq!(server.post("/fal/run/flux-tiny", &json!({"prompt": "x"})).status, 401);
}

#[test]
pub fn black_forest_labs_polls_until_ready_or_error() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--alias", "flux-dev=flux-tiny"]);
    let body = json!({"prompt": "a fox", "steps": 3, "seed": 7, "width": 128, "height": 128,
                      "output_format": "png", "safety_tolerance": 2, "prompt_upsampling": false});
    let answer = server.post("/v1/flux-dev", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["output_mp"], 0.02);
    let ready = wait_for("the result", || {
        let result = follow(&server, &answer["polling_url"]).json();
        assert!(["Pending", "Ready"].contains(&result["status"].as_str().unwrap()), "{result}");
        (result["status"] == "Ready").then_some(result)
    });
    assert_eq!((&ready["result"]["seed"], &ready["progress"]), (&json!(7), &json!(1.0)));
    assert_eq!(ready["result"]["prompt"], "a fox");
    assert!(follow(&server, &ready["result"]["sample"]).body == fox(folder.path()));
    let unknown = server.get("/v1/get_result?id=nothing");
    assert_eq!((unknown.status, &unknown.json()["status"]), (404, &json!("Task not found")));
    assert!(server.get("/v1/credits").json()["credits"].as_f64().unwrap() > 0.0);
    assert_eq!(server.get("/v1/my_finetunes").json(), json!({"finetunes": []}));
    let long = json!({"prompt": "a fox", "steps": 1000});
    let long = server.post("/v1/flux-pro-1.1", &long).json();
    let id = long["id"].as_str().unwrap();
    server.post(&format!("/api/v2/jobs/{id}/cancel"), &json!({}));
    wait_for("the end of the task", || {
        let result = follow(&server, &long["polling_url"]).json();
        (result["status"] == "Error").then_some(())
    });
    for (path, body, field) in [
        ("/v1/flux-dev", json!({}), "prompt"),
        ("/v1/flux-dev", json!({"prompt": "x", "width": 100}), "width"),
        ("/v1/flux-dev", json!({"prompt": "x", "image_prompt": "aGk="}), "image_prompt"),
        ("/v1/flux-dev", json!({"prompt": "x", "input_image": "http://a/b"}), "input_image"),
        ("/v1/flux-dev", json!({"prompt": "x", "aspect_ratio": "100:1"}), "aspect_ratio"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 422, "{body}: {}", answer.text());
        let answer = answer.json();
        assert_eq!(answer["detail"][0]["loc"], json!(["body", field]));
        assert_eq!(answer["message"], answer["details"][field]);
    }
    assert_eq!(server.post("/v1/flux-2-max", &json!({"prompt": "x"})).status, 404);
}

/// The next request to `listener`, which is answered with `status`.
fn receive(listener: &TcpListener, status: &str) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut text, mut part) = (String::new(), [0; 4096]);
    let length = |head: &str| {
        let line = head.lines().find(|l| l.to_lowercase().starts_with("content-length:"));
        line.unwrap().split_once(':').unwrap().1.trim().parse::<usize>().unwrap()
    };
    loop {
        let n = stream.read(&mut part).unwrap();
        text += std::str::from_utf8(&part[..n]).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= length(head)
        {
            break;
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).unwrap();
    text
}

#[test]
pub fn f36_a_webhook_is_called_where_the_operator_allows_it_and_is_signed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--webhook-origin", &origin]);
    let body = json!({"prompt": "a fox", "steps": 1, "webhook_url": format!("{origin}/done?x=1"),
                      "webhook_secret": "secret"});
    let answer = server.post("/v1/flux-pro", &body).json();
    assert_eq!(answer["webhook_url"], body["webhook_url"]);
    assert!(answer.get("polling_url").is_none());
    // It is called again until it accepts.
    let first = receive(&listener, "503 Busy");
    let second = receive(&listener, "200 OK");
    assert_eq!(first.split_once("\r\n\r\n").unwrap().1, second.split_once("\r\n\r\n").unwrap().1);
    let (head, body) = second.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /done?x=1 HTTP/1.1\r\n"), "{head}");
    let signed = head.to_lowercase().contains("x-bfl-signature: sha256=");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((signed, &body["id"], &body["status"]), (true, &answer["id"], &json!("Ready")));
    assert!(body["result"]["sample"].as_str().unwrap().starts_with("http://127.0.0.1:"));
}

#[test]
#[cfg(unix)]
fn f36_f46_webhooks_of_jobs_that_ended_are_called_by_the_next_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let start = || Server::start(folder.path(), &["--webhook-origin", &origin]);
    let server = start();
    let id = |name: &str| {
        let body = json!({"prompt": "a fox", "steps": 1,
                          "webhook_url": format!("{origin}/{name}")});
        server.post("/v1/flux-pro", &body).json()["id"].as_str().unwrap().to_string()
    };
    let (answered, refused) = (id("answered"), id("refused"));
    assert!(receive(&listener, "200 OK").starts_with("POST /answered "));
    wait_for("the note of the call", || server.log().contains("webhook 200").then_some(()));
    // The server dies between two attempts.
    assert!(receive(&listener, "503 Busy").starts_with("POST /refused "));
    kill(server.child.id(), "-KILL");
    drop(server);
    let server = start();
    let again = receive(&listener, "204 Fine");
    assert!(again.starts_with("POST /refused "), "{again}");
    assert!(again.contains(&refused) && !again.contains(&answered), "{again}");
    wait_for("the note of the call", || server.log().contains("webhook 204").then_some(()));
    drop(server);
    let server = start();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!server.log().contains("webhook"), "{}", server.log());
}

#[test]
pub fn hugging_face_answers_with_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let parameters = json!({"num_inference_steps": 3, "seed": 7, "negative_prompt": "blur"});
    let body = json!({"inputs": "a fox", "parameters": parameters});
    let answer = server.post("/hf/flux-tiny", &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
    assert!(answer.body == fox(folder.path()));
    // Image to image, as a JPEG.
    let image = BASE64_STANDARD.encode(&answer.body);
    let parameters = json!({"prompt": "a fox", "strength": 0.5, "num_inference_steps": 2});
    let body = json!({"inputs": image, "parameters": parameters}).to_string();
    let accept = [("Accept", "image/jpeg")];
    let answer = server.request("POST", "/hf/models/flux-tiny", &accept, body.as_bytes());
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/jpeg")));
    for (path, body, status) in [
        ("/hf/flux-tiny", json!({}), 422),
        ("/hf/flux-tiny", json!({"inputs": "x", "parameters": 1}), 422),
        ("/hf/flux-tiny", json!({"inputs": "x", "parameters": {"width": 100}}), 422),
        ("/hf/other", json!({"inputs": "x"}), 404),
    ] {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, answer.json()["error"].is_string()), (status, true));
    }
}

#[test]
pub fn sdcpp_jobs_are_drawn_listed_and_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let capabilities = server.get("/sdcpp/v1/capabilities").json();
    assert_eq!(capabilities["model"]["name"], "flux-tiny");
    assert_eq!(capabilities["defaults"]["width"], 128);
    let body = json!({
        "prompt": "a fox<sd_cpp_extra_args>{\"seed\": 7}</sd_cpp_extra_args>", "seed": -1,
        "width": 128, "height": 128, "batch_count": 1, "strength": 0.75, "init_image": null,
        "mask_image": "", "lora": [], "output_format": "png",
        "sample_params": {"sample_method": "euler", "scheduler": "simple", "sample_steps": 3,
                          "guidance": {"txt_cfg": 7.0, "distilled_guidance": 3.5}},
    });
    let answer = server.post("/sdcpp/v1/img_gen", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let path = answer.json()["poll_url"].as_str().unwrap().to_string();
    let job = wait_for("the job", || {
        let job = server.get(&path).json();
        (job["status"] == "completed").then_some(job)
    });
    let reference = drawn_by_command(
        folder.path(),
        &["a fox", "--steps", "3", "--seed", "7", "--guidance", "3.5"],
    );
    assert!(decoded(&job["result"]["images"][0]["b64_json"]) == reference);
    let running = server.submit(endless());
    let queued = server.post("/sdcpp/v1/img_gen", &json!({"prompt": "a fox"})).json();
    server.wait(&running, &["running"]);
    assert_eq!(server.get(queued["poll_url"].as_str().unwrap()).json()["queue_position"], 1);
    for (id, status) in [(queued["id"].as_str().unwrap(), "cancelled"), (&running, "generating")] {
        let answer = server.post(&format!("/sdcpp/v1/jobs/{id}/cancel"), &json!({}));
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!(status)));
    }
    assert_eq!(server.get("/sdcpp/v1/jobs/nothing").status, 404);
    for (field, value, code) in [
        ("hires", json!({"enabled": true}), "unsupported"),
        ("mask_image", json!("aGk="), "bad_argument"),
    ] {
        let refused = server.post("/sdcpp/v1/img_gen", &json!({"prompt": "x", field: value}));
        assert_eq!((refused.status, &refused.json()["error"]), (422, &json!(code)), "{field}");
    }
}

#[test]
pub fn together_sends_and_reads_its_own_fields() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let body = json!({
        "model": "black-forest-labs/FLUX-tiny-Free", "prompt": "a fox", "steps": 3, "seed": 7,
        "width": 128, "height": 128, "n": 1, "response_format": "base64", "image_loras": [],
        "reference_images": [], "disable_safety_checker": true,
    });
    let answer = server.post("/v1/images/generations", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!((&answer["object"], &answer["data"][0]["index"]), (&json!("list"), &json!(0)));
    assert!(decoded(&answer["data"][0]["b64_json"]) == fox(folder.path()));
    let mut body = body;
    body["reference_images"] = json!(["data:image/png;base64,aGk="]);
    assert_eq!(server.post("/v1/images/generations", &body).status, 422, "not an image");
}

#[test]
fn fields_without_effect_are_refused_by_name_at_any_value_but_the_neutral_one() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let post = |path: &str, field: &str, value: &Value| {
        let mut fields = json!({"prompt": "a fox"});
        fields[field] = value.clone();
        let body = match path {
            "/v1/predictions" => json!({"version": "flux-tiny", "input": fields}),
            "/hf/flux-tiny" => json!({"inputs": "a fox", "parameters": fields}),
            _ => fields,
        };
        server.post(path, &body)
    };
    let (fal, a1111) = ("/fal/queue/fal-ai/flux-tiny", "/sdapi/v1/txt2img");
    let scripts = json!({"ADetailer": {"args": [true, false, {"ad_model": "face"}]}});
    let units = json!({"ADetailer": {"args": [{"ad_model": "None"}, {"ad_model": "face"}]}});
    for (path, field, value) in [
        (a1111, "enable_hr", json!(true)),
        (a1111, "styles", json!(["anime"])),
        (a1111, "subseed_strength", json!(0.3)),
        (a1111, "alwayson_scripts", scripts),
        (a1111, "alwayson_scripts", units),
        (fal, "fill_image", json!({"fill_image_url": "x"})),
        (fal, "real_cfg_scale", json!(5)),
        (fal, "negative_prompt", json!("blur")),
        (fal, "scheduler", json!("dpmpp_2m")),
        (fal, "max_shift", json!(3)),
        ("/v1/predictions", "negative_prompt", json!("blur")),
        ("/v1/predictions", "control_type", json!("canny")),
        ("/v1/flux-pro-1.1", "raw", json!(true)),
        ("/hf/flux-tiny", "scheduler", json!("DDIMScheduler")),
        ("/hf/flux-tiny", "num_images_per_prompt", json!(4)),
        ("/v1/images/generations", "background", json!("transparent")),
        ("/v1/images/generations", "mask", json!("aGk=")),
    ] {
        let answer = post(path, field, &value);
        assert_eq!(answer.status, 422, "{path} {field}: {}", answer.text());
        assert!(answer.text().contains(field), "{path} {field}: {}", answer.text());
    }
    let sample = json!({"prompt": "x", "sample_params": {"sample_method": "heun"}});
    let answer = server.post("/sdcpp/v1/img_gen", &sample);
    assert!(answer.status == 422 && answer.text().contains("sample_method"), "{}", answer.text());
    // What clients send if their user has set nothing.
    for (path, body) in [
        (
            a1111,
            json!({"prompt": "a fox", "steps": 1, "enable_hr": false, "hr_scale": 2, "styles": [],
                   "subseed": -1, "subseed_strength": 0, "seed_resize_from_h": -1, "tiling": false,
                   "restore_faces": false, "script_name": null, "s_churn": 0, "eta": 1.0,
                   "refiner_checkpoint": "", "alwayson_scripts": {"Other": {"args": [false]}}}),
        ),
        (
            fal,
            json!({"prompt": "a fox", "num_inference_steps": 1, "negative_prompt": "",
                   "use_real_cfg": false, "real_cfg_scale": 3.5, "scheduler": "euler",
                   "max_shift": 1.15, "base_shift": 0.5, "reference_strength": 0.65,
                   "reference_end": 1, "fill_image": null, "nag_scale": 3, "acceleration": "none"}),
        ),
        ("/v1/images/generations", json!({"prompt": "a fox", "steps": 1, "background": "auto"})),
    ] {
        assert_eq!(server.post(path, &body).status, 200, "{path}: {}", server.log());
    }
    // With true CFG, the negative prompt has its effect.
    let body = json!({"prompt": "a fox", "num_inference_steps": 2, "seed": 7, "use_real_cfg": true,
                      "real_cfg_scale": 3, "negative_prompt": "blur", "sync_mode": true,
                      "output_format": "png"});
    let answer = server.post("/fal/run/fal-ai/flux-tiny", &body).json();
    let image = inline(&answer["images"][0]["url"]);
    let reference = drawn_by_command(
        folder.path(),
        &["a fox", "--steps", "2", "--seed", "7", "--cfg-scale", "3", "--negative", "blur"],
    );
    assert!(image == reference);
}
