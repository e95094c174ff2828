//! Images that a client leaves on one front, for requests at another.

use serde_json::json;

use super::super::comfy::{graph, prompt, upload};
use super::super::nats::Broker;
use super::super::{drawn_by_command, wait_for};
use super::{Worker, front, ready};

/// The part of a form by which ComfyUI's clients replace an image.
const OVERWRITE: &str =
    "\r\n--xyz\r\nContent-Disposition: form-data; name=\"overwrite\"\r\n\r\ntrue";

#[test]
fn every_front_finds_what_was_uploaded_at_another() {
    let Some(mut broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let url = broker.url("uploads");
    let (one, two) = (front(&url, &at("1"), &[]), front(&url, &at("2"), &[]));
    let drawn =
        |what: &str| drawn_by_command(folder.path(), &[what, "--steps", "1", "--seed", "1"]);
    let (dog, cat) = (drawn("a dog"), drawn("a cat"));
    let name = |answer: super::super::Answer| answer.json()["name"].as_str().unwrap().to_string();
    assert_eq!(name(upload(&one, "dog.png", &cat, "")), "dog.png");
    // Replaced at the other front: no front may return the old one again.
    assert_eq!(name(upload(&two, "dog.png", &dog, OVERWRITE)), "dog.png");
    assert_eq!(name(upload(&one, "dog.png", &dog, "")), "dog.png");
    assert_eq!(name(upload(&two, "dog.png", &cat, "")), "dog (1).png");
    for server in [&one, &two] {
        assert!(server.get("/view?filename=dog.png&type=input").body == dog);
        assert!(server.get("/view?filename=dog%20(1).png&type=input").body == cat);
        let info = server.get("/object_info/LoadImage").json();
        let names = &info["LoadImage"]["input"]["required"]["image"][0];
        assert_eq!(*names, json!(["dog (1).png", "dog.png"]));
    }
    assert_eq!(one.request("PUT", "/api/etn/image/a", &[], &dog).status, 201);
    assert_eq!(two.request("PUT", "/api/etn/image/a", &[], &cat).status, 200);
    assert!(one.get("/api/etn/image/a").body == cat);

    let worker = Worker::start(&url, &at("worker"));
    worker.wait();
    ready(&two);
    let mut graph = graph(2, 1);
    graph["5"] = json!({"class_type": "VAEEncode", "inputs":
        {"pixels": ["20", 0], "vae": ["4", 2]}});
    graph["20"] = json!({"class_type": "LoadImage", "inputs": {"image": "dog.png"}});
    graph["3"]["inputs"]["denoise"] = json!(0.5);
    let graph = json!({"prompt": graph});
    let id = prompt(&two, &graph);
    let entry = wait_for("the end of the prompt", || {
        one.get(&format!("/history/{id}")).json().get(&id).cloned()
    });
    let name = entry["outputs"]["9"]["images"][0]["filename"].as_str().unwrap();
    let image = one.get(&format!("/view?filename={name}")).body;
    let path = at("dog.png");
    std::fs::write(&path, &dog).unwrap();
    let path = path.to_str().unwrap();
    let arguments = ["a fox", "--steps", "4", "--seed", "7", "-i", path, "--strength", "0.5"];
    assert!(image == drawn_by_command(folder.path(), &arguments));

    // Images that are out of reach are not reported as missing.
    broker.stop();
    assert_eq!(upload(&one, "dog.png", &dog, "").status, 503);
    assert_eq!(one.get("/view?filename=dog.png&type=input").status, 503);
    assert_eq!(one.post("/prompt", &graph).status, 503);
}
