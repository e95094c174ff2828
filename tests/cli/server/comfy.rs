//! ComfyUI's API.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{Answer, PATIENCE, Server, drawn_by_command, wait_for};

/// The stock graph with a checkpoint.
pub fn graph(steps: u64, batch: u64) -> Value {
    json!({
        "3": {"class_type": "KSampler", "inputs": {
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0], "seed": 7, "steps": steps, "cfg": 7, "denoise": 1,
            "sampler_name": "euler", "scheduler": "simple"}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux-tiny"}},
        "5": {"class_type": "EmptyLatentImage", "inputs":
            {"width": 128, "height": 128, "batch_size": batch}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    })
}

/// A connection to `/ws`.
struct Socket(TcpStream);

/// A message: JSON, or bytes.
enum Message {
    Text(Value),
    Binary(Vec<u8>),
}

impl Socket {
    fn open(server: &Server, path: &str) -> Socket {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            server.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        Socket(stream)
    }

    /// Sends a text, masked with zeros.
    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        assert!(text.len() < 126);
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).unwrap();
    }

    fn next(&mut self) -> Message {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).unwrap();
            let length = match head[1] {
                126 => {
                    let mut bytes = [0; 2];
                    self.0.read_exact(&mut bytes).unwrap();
                    u64::from(u16::from_be_bytes(bytes))
                }
                127 => {
                    let mut bytes = [0; 8];
                    self.0.read_exact(&mut bytes).unwrap();
                    u64::from_be_bytes(bytes)
                }
                length => u64::from(length),
            };
            let mut body = vec![0; length as usize];
            self.0.read_exact(&mut body).unwrap();
            match head[0] & 15 {
                1 => return Message::Text(serde_json::from_slice(&body).unwrap()),
                2 => return Message::Binary(body),
                _ => {}
            }
        }
    }

    /// Messages up to the `executing` with no node of a prompt.
    fn until_end(&mut self, id: &str) -> (Vec<Value>, Vec<Vec<u8>>) {
        let (mut texts, mut frames) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                Message::Binary(bytes) => frames.push(bytes),
                Message::Text(text) => {
                    texts.push(text.clone());
                    let data = &text["data"];
                    if text["type"] == "executing" && data["node"].is_null() {
                        assert_eq!(data["prompt_id"], id);
                        return (texts, frames);
                    }
                }
            }
        }
    }
}

fn kinds(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|m| m["type"].as_str().unwrap()).collect()
}

/// Sends a graph, and returns the id of its prompt.
pub fn prompt(server: &Server, body: &Value) -> String {
    let answer = server.post("/prompt", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["node_errors"], json!({}));
    answer.json()["prompt_id"].as_str().unwrap().to_string()
}

#[test]
pub fn a_prompt_is_drawn_and_told_of_in_the_order_of_comfyui() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let mut socket = Socket::open(&server, "/ws?clientId=me");
    let Message::Text(first) = socket.next() else { panic!("a frame") };
    assert_eq!(first["data"]["status"]["exec_info"]["queue_remaining"], 0);
    assert_eq!(first["data"]["sid"], "me");
    let id = prompt(&server, &json!({"prompt": graph(3, 1), "client_id": "me"}));
    let (messages, frames) = socket.until_end(&id);
    assert!(frames.is_empty(), "previews are sent only where they are asked for");
    let mut order = kinds(&messages);
    order.dedup();
    assert_eq!(order[..2], ["status", "execution_start"]);
    let at = |kind: &str| order.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("{kind}"));
    assert!(at("execution_cached") < at("executing") && at("executing") < at("progress"));
    assert!(at("progress") < at("executed") && at("executed") < at("execution_success"));
    let last = messages.iter().rfind(|m| m["type"] == "progress").unwrap();
    assert_eq!((&last["data"]["value"], &last["data"]["max"]), (&json!(3), &json!(3)));
    let executed = messages.iter().find(|m| m["type"] == "executed").unwrap();
    assert_eq!(executed["data"]["node"], "9");
    let Message::Text(status) = socket.next() else { panic!("a frame") };
    assert_eq!(status["data"]["status"]["exec_info"]["queue_remaining"], 0);

    let history = server.get(&format!("/history/{id}")).json();
    let entry = &history[&id];
    assert_eq!(entry["status"]["status_str"], "success");
    assert_eq!(entry["prompt"][2], graph(3, 1));
    let image = &entry["outputs"]["9"]["images"][0];
    assert_eq!(*image, executed["data"]["output"]["images"][0]);
    let name = image["filename"].as_str().unwrap();
    let view = server.get(&format!("/api/view?filename={name}&type=output&subfolder="));
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "3", "--seed", "7"]);
    assert!(view.body == reference);
    // A socket that comes late is told once more only of what nobody was told.
    let mut late = Socket::open(&server, "/ws?clientId=me");
    let Message::Text(first) = late.next() else { panic!("a frame") };
    assert_eq!(first["type"], "status");
    let second = prompt(&server, &json!({"prompt": graph(2, 1), "client_id": "me"}));
    let (messages, _) = late.until_end(&second);
    assert!(messages.iter().all(|m| m["data"]["prompt_id"] != json!(id)));
    assert_eq!(server.get("/history?max_items=1").json().as_object().unwrap().len(), 1);
    let all = server.get("/api/history").json();
    assert_eq!(all.as_object().unwrap().keys().collect::<Vec<_>>(), [&id, &second]);
}

#[test]
pub fn a_client_that_connects_after_its_prompt_is_told_of_the_end_and_may_choose_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let body = json!({"prompt": graph(1, 1), "client_id": "me", "prompt_id": "my own/id"});
    // Without a type, as some clients send it; twice is once.
    for _ in 0..2 {
        let answer = server.request("POST", "/prompt", &[], body.to_string().as_bytes());
        assert_eq!(answer.json()["prompt_id"], "my own/id");
    }
    wait_for("the end of the prompt", || {
        let history = server.get("/history/my%20own%2Fid").json();
        history.as_object().is_some_and(|history| !history.is_empty()).then_some(())
    });
    let mut socket = Socket::open(&server, "/api/ws?clientId=me");
    let (messages, _) = socket.until_end("my own/id");
    assert!(kinds(&messages).contains(&"execution_success"), "{messages:?}");
    let jobs = server.get("/api/jobs").json();
    assert_eq!(
        (&jobs["jobs"][0]["status"], &jobs["pagination"]["total"]),
        (&json!("completed"), &json!(1))
    );
    let job = server.get("/api/jobs/my%20own%2Fid").json();
    assert_eq!(job["outputs"]["9"]["images"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/history/other").json(), json!({}));
    assert_eq!(server.get("/api/jobs/other").status, 404);
}

#[test]
pub fn previews_interrupts_and_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut socket = Socket::open(&server, "/ws?clientId=me");
    socket.send(&json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}}));
    // The steps of models that need few are capped: many large images give time to interrupt.
    let mut large = graph(1000, 8);
    large["5"]["inputs"]["width"] = json!(256);
    large["5"]["inputs"]["height"] = json!(256);
    let body = json!({"prompt": large, "client_id": "me"});
    let first = prompt(&server, &body);
    let second = prompt(&server, &body);
    let frame = loop {
        if let Message::Binary(frame) = socket.next() {
            break frame;
        }
    };
    assert_eq!(frame[..4], 4u32.to_be_bytes());
    let length = u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize;
    let facts: Value = serde_json::from_slice(&frame[8..8 + length]).unwrap();
    assert_eq!((&facts["image_type"], &facts["prompt_id"]), (&json!("image/jpeg"), &json!(first)));
    assert!(frame[8 + length..].starts_with(b"\xff\xd8"));
    let queue = server.get("/queue").json();
    assert_eq!(
        (&queue["queue_running"][0][1], &queue["queue_pending"][0][1]),
        (&json!(first), &json!(second))
    );
    assert_eq!(server.get("/prompt").json()["exec_info"]["queue_remaining"], 2);
    assert_eq!(server.post("/queue", &json!({"delete": [second]})).status, 200);
    assert_eq!(server.post("/interrupt", &json!({})).status, 200);
    let mut ended = Vec::new();
    let mut seen = Vec::new();
    while ended.len() < 2 {
        if let Message::Text(message) = socket.next() {
            if message["type"] == "executing" && message["data"]["node"].is_null() {
                ended.push(message["data"]["prompt_id"].clone());
            }
            seen.push(message);
        }
    }
    assert!(kinds(&seen).contains(&"execution_interrupted"));
    let history = server.get("/history").json();
    assert_eq!(history[&first]["status"]["completed"], false);
    assert_eq!(server.get("/queue").json(), json!({"queue_running": [], "queue_pending": []}));
}

/// A form with an image.
pub fn upload(server: &Server, name: &str, image: &[u8], more: &str) -> Answer {
    let head = format!(
        "--xyz\r\nContent-Disposition: form-data; name=\"image\"; filename=\"{name}\"\r\n\
         Content-Type: image/png\r\n\r\n"
    );
    let body = [head.as_bytes(), image, more.as_bytes(), b"\r\n--xyz--\r\n"].concat();
    let form = [("Content-Type", "multipart/form-data; boundary=xyz")];
    server.request("POST", "/upload/image", &form, &body)
}

#[test]
pub fn an_uploaded_image_is_what_a_graph_starts_from() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let image = drawn_by_command(folder.path(), &["a dog", "--steps", "1", "--seed", "1"]);
    let path = folder.path().join("dog.png");
    std::fs::write(&path, &image).unwrap();
    let answer = upload(&server, "../../dog.png", &image, "");
    assert_eq!(answer.json(), json!({"name": "dog.png", "subfolder": "", "type": "input"}));
    assert_eq!(upload(&server, "dog.png", &image, "").json()["name"], "dog.png");
    let other = drawn_by_command(folder.path(), &["a cat", "--steps", "1", "--seed", "1"]);
    assert_eq!(upload(&server, "dog.png", &other, "").json()["name"], "dog (1).png");
    assert_eq!(upload(&server, "x.png", b"rubbish", "").status, 422);
    assert!(server.get("/view?filename=dog.png&type=input").body == image);
    assert_eq!(server.get("/view?filename=../../dog.png").status, 404);
    let info = server.get("/object_info/LoadImage").json();
    let names = &info["LoadImage"]["input"]["required"]["image"][0];
    assert!(names.as_array().unwrap().contains(&json!("dog.png")), "{names}");

    let mut graph = graph(2, 1);
    graph["5"] = json!({"class_type": "VAEEncode", "inputs":
        {"pixels": ["20", 0], "vae": ["4", 2]}});
    graph["20"] = json!({"class_type": "LoadImage", "inputs": {"image": "dog.png"}});
    graph["3"]["inputs"]["denoise"] = json!(0.5);
    let id = prompt(&server, &json!({"prompt": graph}));
    let entry = wait_for("the end of the prompt", || {
        let history = server.get(&format!("/history/{id}")).json();
        history.get(&id).cloned()
    });
    let name = entry["outputs"]["9"]["images"][0]["filename"].as_str().unwrap();
    let drawn = server.get(&format!("/view?filename={name}")).body;
    let path = path.to_str().unwrap();
    let arguments = ["a fox", "--steps", "4", "--seed", "7", "-i", path, "--strength", "0.5"];
    assert!(drawn == drawn_by_command(folder.path(), &arguments));
}

#[test]
pub fn graphs_that_are_not_understood_are_refused_by_the_name_of_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let mut unknown = graph(1, 1);
    unknown["8"]["class_type"] = json!("UltimateSDUpscale");
    let answer = server.post("/prompt", &json!({"prompt": unknown}));
    assert_eq!(answer.status, 400);
    assert!(answer.reason.contains("UltimateSDUpscale"), "{}", answer.reason);
    let answer = answer.json();
    assert_eq!(answer["error"]["type"], "missing_node_type");
    assert_eq!(answer["node_errors"]["8"]["class_type"], "UltimateSDUpscale");
    let mut width = graph(1, 1);
    width["5"]["inputs"]["width"] = json!(100);
    let mut model = graph(1, 1);
    model["4"]["inputs"]["ckpt_name"] = json!("../../x.safetensors");
    for body in [json!({"prompt": width}), json!({"prompt": model}), json!({}), json!([])] {
        let answer = server.post("/prompt", &body);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.json()["error"]["message"].is_string());
    }
    let info = server.get("/api/object_info").json();
    assert_eq!(
        info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0],
        json!(["flux-tiny"])
    );
    assert_eq!(info["KSampler"]["input"]["required"]["sampler_name"], json!([["euler"]]));
    for path in [
        "/system_stats",
        "/models",
        "/models/checkpoints",
        "/models/loras",
        "/embeddings",
        "/features",
        "/queue",
        "/api/queue",
    ] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/models/nothing").status, 404);
}

#[test]
pub fn history_is_cleared_for_its_owner_with_the_images() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let draw = |seed: u64| {
        let mut graph = graph(1, 1);
        graph["3"]["inputs"]["seed"] = json!(seed);
        let answer = server.post("/prompt", &json!({"prompt": graph})).json();
        let id = answer["prompt_id"].as_str().unwrap().to_string();
        wait_for("the prompt", || {
            server.get(&format!("/history/{id}")).json().get(&id).is_some().then_some(())
        });
        id
    };
    let ids = [draw(1), draw(2), draw(3)];
    let native = server.submit(json!({"prompt": "a fox", "steps": 1}));
    server.image(&native);
    let known = || -> Vec<String> {
        let history = server.get("/history").json();
        history.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(known(), ids);
    assert_eq!(server.post("/history", &json!({"delete": [ids[0], "unknown"]})).status, 200);
    assert_eq!(known(), ids[1..]);
    assert_eq!(server.get(&format!("/history/{}", ids[0])).json(), json!({}));
    assert_eq!(server.get(&format!("/view?filename={}-0.png", ids[0])).status, 404);
    assert_eq!(server.post("/api/history", &json!({"clear": true})).status, 200);
    assert!(known().is_empty());
    let files = std::fs::read_dir(folder.path().join("results")).unwrap();
    let files: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    // Jobs of other APIs stay.
    assert_eq!(files, [format!("{native}-0.png")]);
}
