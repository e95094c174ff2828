//! What a person who runs the server sees and decides: metrics, the log, models in memory.

use serde_json::{Value, json};

use super::{Server, command, drawn_by_command, wait_for};

/// The value of a metric, such as `jobs{state="queued"}`.
fn metric(server: &Server, name: &str) -> Option<f64> {
    let text = server.get("/metrics").text();
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("flux_fast_{name} ")));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn metrics_count_jobs_phases_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    for seed in 0..2 {
        server.image(&server.submit(json!({"prompt": "a fox", "steps": 2, "seed": seed})));
    }
    assert_eq!(server.post("/api/v2/jobs", &json!({})).status, 422);
    let of = |name: &str| metric(&server, name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(of("jobs{state=\"queued\"}"), 0.0);
    assert_eq!(of("jobs_ended_total{state=\"succeeded\"}"), 2.0);
    assert_eq!(of("jobs_ended_total{state=\"failed\"}"), 0.0);
    assert_eq!(of("phase_runs_total{phase=\"denoise\"}"), 2.0);
    assert!(of("phase_seconds_total{phase=\"denoise\"}") > 0.0);
    assert!(of("phase_planned_bytes{phase=\"denoise\"}") > 1e6);
    wait_for("the memory of the worker", || {
        metric(&server, "resident_bytes{process=\"worker\"}").filter(|bytes| *bytes > 1e6)
    });
    assert!(of("resident_bytes{process=\"front\"}") > 1e6);
    assert_eq!(of("http_answers_total{status=\"422\"}"), 1.0);
    assert_eq!(of("http_answers_total{status=\"201\"}"), 2.0);
    assert_eq!(of("model_loaded{model=\"flux-tiny\"}"), 1.0);
    assert!(of("connections") >= 1.0);
    assert_eq!((of("ready"), of("workers_started_total")), (1.0, 1.0));
    for line in server.get("/metrics").text().lines() {
        let is_sample = line.starts_with("flux_fast_") && line.split(' ').count() == 2;
        assert!(is_sample || line.starts_with("# "), "{line}");
    }
}

#[test]
fn the_log_is_one_json_object_per_line_if_asked_and_quiet_says_only_where() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("a"), &["--log-format", "json"]);
    server.get("/v1/models?secret=1");
    server.request("GET", "/no%0asuch\u{1b}[31m", &[("x-key", "hidden")], b"");
    let line = wait_for("the line of a request", || {
        let log = server.log();
        let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        lines.into_iter().find(|l| l["path"] == "/v1/models")
    });
    assert_eq!((&line["method"], &line["status"]), (&json!("GET"), &json!(200)));
    assert_eq!(line["id"].as_str().unwrap().len(), 16);
    assert!(!server.log().contains("hidden") && !server.log().contains("secret"));
    drop(server);
    let server = Server::start(&folder.path().join("b"), &["-q"]);
    server.get("/v1/models");
    assert_eq!(server.log().lines().count(), 1, "{}", server.log());
}

#[test]
fn a_model_is_closed_after_its_time_or_on_request_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "2", "--seed", "5"]);
    let draw = |server: &Server| {
        let id = server.submit(json!({"prompt": "a fox", "steps": 2, "seed": 5}));
        assert!(server.image(&id) == reference);
    };
    let closed = |server: &Server| {
        wait_for("the model to be closed", || {
            metric(server, "model_loaded{model=\"flux-tiny\"}").is_none().then_some(())
        });
    };
    let server = Server::start(&folder.path().join("a"), &["--keep-alive", "0"]);
    closed(&server);
    assert_eq!(server.get("/ready").status, 200);
    draw(&server);
    closed(&server);
    drop(server);
    let server = Server::start(&folder.path().join("b"), &[]);
    draw(&server);
    assert_eq!(metric(&server, "model_loaded{model=\"flux-tiny\"}"), Some(1.0));
    assert_eq!(server.post("/sdapi/v1/unload-checkpoint", &json!({})).status, 200);
    closed(&server);
    draw(&server);
    assert_eq!(server.workers().len(), 1);
}

#[test]
fn another_model_is_opened_when_it_is_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let asset = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny.safetensors");
    std::fs::copy(asset, folder.path().join("other.safetensors")).unwrap();
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "2", "--seed", "5"]);
    let data = folder.path().join("data");
    let server = Server::of(command(&data, &["--alias", "house=other"]).current_dir(folder.path()));
    let models = server.get("/v1/models").json();
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert!(names.starts_with(&["flux-tiny"]) && names.contains(&"other.safetensors"), "{names:?}");
    for (model, loaded) in [("other", "other"), ("flux-tiny", "flux-tiny"), ("house", "other")] {
        let body = json!({"prompt": "a fox", "steps": 2, "seed": 5, "model": model});
        let answer = server.post("/v1/images/generations", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let image = super::decoded(&answer.json()["data"][0]["b64_json"]);
        let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8().into_raw();
        assert!(pixels(&image) == pixels(&reference), "{model}");
        assert_eq!(metric(&server, &format!("model_loaded{{model=\"{loaded}\"}}")), Some(1.0));
    }
    assert_eq!(server.workers().len(), 1);
    // The file disappears while jobs for it wait.
    let waiting = server.submit(super::endless());
    let late = server.submit(json!({"prompt": "x", "model": "other", "steps": 1}));
    std::fs::remove_file(folder.path().join("other.safetensors")).unwrap();
    server.request("DELETE", &format!("/api/v2/jobs/{waiting}"), &[], b"");
    let late = server.wait(&late, &["failed", "succeeded"]);
    assert!(!late.to_string().contains(folder.path().to_str().unwrap()), "{late}");
    server.image(&server.submit(json!({"prompt": "x", "steps": 1})));
}
