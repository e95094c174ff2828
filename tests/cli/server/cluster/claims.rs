//! One request that reaches two fronts, and what refused ones leave on the broker.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::super::comfy::graph;
use super::super::nats::Broker;
use super::proxy::Proxy;
use super::{Server, Worker, drawn_by_command, front, ready};

/// An image of a megabyte, in base64.
fn noise() -> String {
    let mut random = 7_u32;
    let image = image::RgbImage::from_fn(600, 600, |_, _| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, r, g, b] = random.to_le_bytes();
        image::Rgb([r, g, b])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    BASE64_STANDARD.encode(bytes.into_inner())
}

/// The messages in the bucket of images of the cluster called `name`.
fn stored(broker: &Broker, name: &str) -> u64 {
    let info = broker.ask(&format!("$JS.API.STREAM.INFO.OBJ_FF_{name}_IMG"));
    info["state"]["messages"].as_u64().unwrap_or_else(|| panic!("{info}"))
}

#[test]
fn an_idempotency_key_at_two_fronts_is_one_job_however_long_the_upload_takes() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let url = broker.url("claims");
    let proxy = Proxy::to(broker.port());
    let (slow, quick) =
        (front(&proxy.url("claims"), &at("slow"), &[]), front(&url, &at("quick"), &[]));
    let worker = Worker::start(&url, &at("worker"));
    worker.wait();
    ready(&slow);
    ready(&quick);
    let send = |server: &Server, request: &Value| {
        let body = json!({"request": request}).to_string();
        let answer =
            server.request("POST", "/api/v2/jobs", &[("Idempotency-Key", "one")], body.as_bytes());
        (answer.status, answer.json())
    };
    let request = json!({"prompt": "a fox", "steps": 2, "seed": 1, "size": "64x64",
                         "init": noise(), "strength": 0.5});
    // The upload of the first one takes about seven seconds.
    proxy.limit(150_000);
    let [first, second] = std::thread::scope(|scope| {
        let first = scope.spawn(|| send(&slow, &request));
        std::thread::sleep(Duration::from_millis(700));
        let second = send(&quick, &request);
        [first.join().unwrap(), second]
    });
    proxy.limit(0);
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 201], "{first:?} {second:?}");
    assert_eq!(first.1["id"], second.1["id"]);
    let id = first.1["id"].as_str().unwrap();
    assert_eq!(quick.get("/api/v2/jobs").json()["jobs"].as_array().unwrap().len(), 1);
    assert!(!quick.image(id).is_empty());
    assert!(slow.image(id) == quick.image(id));
    // Another request with the key, at either front.
    let mut other = request.clone();
    other["init"] = json!(null);
    other["strength"] = json!(null);
    for server in [&slow, &quick] {
        let (status, body) = send(server, &other);
        assert_eq!((status, &body["error"]["code"]), (422, &json!("idempotency_key_reuse")));
        assert_eq!(send(server, &request).1["id"], id);
    }
}

#[test]
fn a_request_that_is_refused_leaves_no_image_on_the_broker() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = broker.url("refused");
    let front = front(&url, &folder.path().join("front"), &[]);
    let worker = Worker::start(&url, &folder.path().join("worker"));
    worker.wait();
    ready(&front);
    let mut graph = graph(2, 1);
    graph["20"] = json!({"class_type": "ETN_LoadImageBase64", "inputs": {"image": noise()}});
    graph["5"] = json!({"class_type": "VAEEncode", "inputs":
        {"pixels": ["20", 0], "vae": ["4", 2]}});
    graph["3"]["inputs"]["denoise"] = json!(0.5);
    // A message of the broker has at most a megabyte, and a job keeps what its client adds.
    let notes = vec!["x".repeat(1000); 1043];
    let large = json!({"prompt": graph, "extra_data": {"notes": notes}});
    let refused = front.post("/prompt", &large);
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (413, &json!("too_large")));
    assert_eq!(stored(&broker, "refused"), 0);
    // What is accepted is stored.
    assert!(!front.draw_graph(&graph, "9").is_empty());
    assert!(stored(&broker, "refused") > 0);
}

#[test]
fn names_of_loras_may_be_short_and_in_any_case() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let asset =
        concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny-pixel-lora.safetensors");
    std::fs::copy(asset, at("Some-Style.safetensors")).unwrap();
    let url = broker.url("names");
    let front = front(&url, &at("front"), &[]);
    let mut command = Worker::command(&url, &at("worker"));
    command.current_dir(folder.path());
    let worker = Worker::of(command);
    worker.wait();
    ready(&front);
    let file = at("Some-Style.safetensors").display().to_string();
    let arguments = ["a fox", "--steps", "2", "--seed", "7", "--lora", &file];
    let reference = drawn_by_command(folder.path(), &arguments);
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8().into_raw();
    for name in ["Some-Style.safetensors", "Some-Style", "some-style", "SOME-STYLE.SAFETENSORS"] {
        let request = json!({"prompt": "a fox", "steps": 2, "seed": 7, "loras": [name]});
        let image = front.image(&front.submit(request));
        assert!(pixels(&image) == pixels(&reference), "{name}");
    }
    let unknown = front.post("/api/v2/jobs", &json!({"prompt": "x", "loras": ["other"]}));
    assert_eq!(unknown.status, 404, "{}", unknown.text());
}
