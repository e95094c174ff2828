//! `/api/v2`.

use serde_json::json;

use super::{Server, drawn_by_command, endless};

#[test]
pub fn a_job_gives_the_file_of_the_command_line_and_its_events_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let id = server.submit(json!({"prompt": "a fox", "steps": 3, "seed": "7"}));
    let events = server.get(&format!("/api/v2/jobs/{id}/events"));
    let image = server.image(&id);
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "3", "--seed", "7"]);
    assert!(image == reference, "{} and {} bytes", image.len(), reference.len());

    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    let events = events.events();
    let of = |name: &str| events.iter().filter(|e| e.1 == name).map(|e| &e.2).collect::<Vec<_>>();
    let states: Vec<_> = of("status").iter().map(|s| s["status"].as_str().unwrap()).collect();
    assert!(states.ends_with(&["running", "succeeded"]), "{states:?}");
    assert!(of("progress").iter().any(|p| p["step"] == 3 && p["steps"] == 3 && p["value"] == 1.0));
    assert_eq!(of("output")[0]["width"], 128);
    let preview = super::decoded(&of("preview").last().unwrap()["data"]);
    assert_eq!(image::load_from_memory(&preview).unwrap().width(), 64);

    // From the middle on, and after the end.
    let (half, last) = (events.len() / 2, events.last().unwrap());
    let from = |id: &str| {
        server.request(
            "GET",
            &format!("/api/v2/jobs/{}/events", last.2["id"].as_str().unwrap()),
            &[("Last-Event-ID", id)],
            b"",
        )
    };
    let rest = from(&events[half].0).events();
    assert_eq!(rest, events[half + 1..].to_vec());
    assert_eq!(from(&last.0).status, 204);
    // An id of another process means nothing: everything is sent.
    assert_eq!(from("ffffffff-3").events().last(), Some(last));

    let job = server.job(&id);
    assert_eq!((&job["settings"]["seed"], &job["seed_text"]), (&json!(7), &json!("7")));
    assert_eq!(job["outputs"][0]["size_bytes"], image.len());
    // The signed link works as it is.
    let url = job["outputs"][0]["url"].as_str().unwrap();
    let path = url.strip_prefix(&format!("http://{}", server.address)).unwrap();
    assert!(server.get(path).body == image);
    assert_eq!(server.get(&path.replace("-0.png", "-1.png")).status, 403);
    assert_eq!(server.get(&format!("/api/v2/jobs/{id}/images/1")).status, 404);

    let models = server.get("/api/v2/models").json();
    assert_eq!(
        (&models["models"][0]["name"], &models["models"][0]["default"]),
        (&json!("flux-tiny"), &json!(true))
    );
}

#[test]
pub fn a_request_without_a_seed_has_one_that_gives_the_same_image_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let id = server.submit(json!({"prompt": "a pizza", "steps": 2}));
    let image = server.image(&id);
    let seed = server.job(&id)["seed_text"].clone();
    let again = server.submit(json!({"prompt": "a pizza", "steps": 2, "seed": seed}));
    assert!(server.image(&again) == image);
}

#[test]
pub fn cancelled_jobs_stop_in_the_queue_and_while_they_run() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let running = server.submit(endless());
    let queued = server.submit(endless());
    let last = server.submit(json!({"prompt": "a fox", "steps": 1, "seed": 1}));
    server.wait(&running, &["running"]);
    assert_eq!(server.job(&queued)["queue_position"], 0);
    assert_eq!(server.job(&last)["queue_position"], 1);
    let answer = server.request("DELETE", &format!("/api/v2/jobs/{queued}"), &[], b"");
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("canceled")));
    let answer = server.post(&format!("/api/v2/jobs/{running}/cancel"), &json!({}));
    assert_eq!(answer.json()["status"], "canceling");
    server.image(&last);
    assert_eq!(server.job(&running)["status"], "canceled");
    // One that is over stays as it is.
    server.request("DELETE", &format!("/api/v2/jobs/{last}"), &[], b"");
    assert_eq!(server.job(&last)["status"], "succeeded");
    assert_eq!(server.get(&format!("/api/v2/jobs/{running}/images/0")).status, 409);
    let list = server.get("/api/v2/jobs?status=canceled").json();
    assert_eq!(list["jobs"].as_array().unwrap().len(), 2);
    assert_eq!(server.workers().len(), 1);
}

#[test]
pub fn f44_the_queue_is_bounded_and_a_repeated_request_is_one_job() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &["--max-queue", "2"]);
    let running = server.submit(endless());
    server.wait(&running, &["running"]);
    let body = json!({"request": {"prompt": "a fox", "steps": 1}}).to_string();
    let post = |key: &str, body: &str| {
        server.request("POST", "/api/v2/jobs", &[("Idempotency-Key", key)], body.as_bytes())
    };
    let first = post("k", &body);
    assert_eq!(first.status, 201);
    server.submit(endless());
    let full = post("other", &body);
    assert_eq!((full.status, &full.json()["error"]["code"]), (503, &json!("queue_full")));
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    // The same again is the same job, even now.
    let again = post("k", &body);
    assert_eq!((again.status, &again.json()["id"]), (200, &first.json()["id"]));
    let reused = post("k", &body.replace("fox", "dog"));
    assert_eq!(
        (reused.status, &reused.json()["error"]["code"]),
        (422, &json!("idempotency_key_reuse"))
    );
}

#[test]
pub fn f28_f30_to_f36_what_cannot_be_drawn_is_refused_with_its_parameter_and_no_path() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let long = "a".repeat(1 << 20);
    let cases = [
        (json!({"width": 0}), "width"),
        (json!({"width": -1}), "width"),
        (json!({"height": 17}), "height"),
        (json!({"height": 1_000_000_000}), "height"),
        (json!({"size": "16x16x16"}), "size"),
        (json!({"steps": 0}), "steps"),
        (json!({"steps": 1_000_000_000}), "steps"),
        (json!({"seed": -2}), "seed"),
        (json!({"seed": "18446744073709551616"}), "seed"),
        (json!({"count": 1_000_000_000}), "count"),
        (json!({"guidance": 1e39}), "guidance"),
        (json!({"guidance": "nan"}), "guidance"),
        (json!({"prompt": long}), "prompt"),
        (json!({"prompt": "a\u{0}b"}), "prompt"),
        (json!({"strength": 0.5}), "strength"),
        (json!({"init": "http://127.0.0.1/x.png"}), "init"),
        (json!({"init": "aGVsbG8="}), "init"),
        (json!({"stepz": 4}), "stepz"),
        (json!({"model": "../../etc/passwd"}), "model"),
        (json!({"model": "/etc/passwd"}), "model"),
        (json!({"loras": ["/etc/passwd"]}), "loras"),
        (json!({"prompt": "<lora:../x:1>"}), "loras"),
    ];
    for (fields, parameter) in cases {
        let mut request = json!({"prompt": "a fox"});
        request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.post("/api/v2/jobs", &json!({"request": request}));
        let text = answer.text();
        let status = if ["model", "loras"].contains(&parameter) { 404 } else { 422 };
        assert_eq!(answer.status, status, "{fields}: {text}");
        assert_eq!(answer.json()["error"]["parameter"], parameter, "{text}");
        assert!(
            !text.contains("passwd") && !text.contains(folder.path().to_str().unwrap()),
            "{text}"
        );
        assert_eq!(answer.json()["error"]["request_id"].as_str(), answer.header("x-request-id"));
        assert!(answer.reason.is_ascii() && answer.reason.len() <= 80, "{}", answer.reason);
    }
    for (body, status) in [
        (&b"{"[..], 400),
        (b"\xff\xfe", 400),
        ("[".repeat(100_000).as_bytes(), 400),
        (br#"{"prompt": "x", "guidance": 1e400}"#, 422),
        (br#"{"prompt": "\ud800"}"#, 400),
        (b"[]", 422),
        (b"", 422),
    ] {
        let answer = server.request("POST", "/api/v2/jobs", &[], body);
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    let answer = server.request("POST", "/api/v2/jobs", &[("Content-Type", "image/png")], b"\x89");
    assert_eq!(answer.status, 415);
    // F30: JSON is JSON whatever it is called; 422 says that it was read.
    for kind in
        ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "application/json"]
    {
        let answer = server.request("POST", "/api/v2/jobs", &[("Content-Type", kind)], b"[]");
        assert_eq!(answer.status, 422, "{kind}");
    }
    for path in ["/nothing", "/api/v2/jobs/nothing", "/api/v2/jobs/x/images/0", "//", "/%2f"] {
        let answer = server.get(path);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("not_found")));
    }
    assert_eq!(server.request("DELETE", "/api/v2/models", &[], b"").status, 405);
    assert_eq!(server.get("/api/v2/jobs").json()["jobs"], json!([]));
}
