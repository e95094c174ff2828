//! Plans of keys: what is refused, with which headers, and that windows survive everything.

use std::path::Path;

use serde_json::{Value, json};

use super::{Answer, Server, command, endless, kill};

/// SHA-256 of `foo` and of `bar`.
const FOO: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
const BAR: &str = "sha256:fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9";

/// A server whose key `foo` has `plan`, and whose key `bar` has none.
fn server(folder: &Path, plan: &str) -> Server {
    let config = folder.join("config.toml");
    let text = format!(
        "plans.mine = {plan}\nkeys.\"{FOO}\" = {{ plan = \"mine\", name = \"anna\" }}\n\
         keys.\"{BAR}\" = {{}}\n"
    );
    std::fs::write(&config, text).unwrap();
    let data = folder.join("data");
    Server::of(
        command(&data, &["--config", config.to_str().unwrap()]).env_remove("FLUX_FAST_CONFIG"),
    )
}

fn post(server: &Server, key: &str, path: &str, body: &Value) -> Answer {
    server.request("POST", path, &[("x-key", key)], body.to_string().as_bytes())
}

fn small() -> Value {
    json!({"prompt": "a fox", "steps": 1, "width": 64, "height": 64})
}

#[test]
pub fn f42_f43_limits_are_told_in_headers_and_survive_kills_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let start = || server(folder.path(), "{ limits = [\"3/h\", \"100 images/month\"] }");
    let mut running = start();
    // F42: an address that a client invents gives it nothing.
    let number = std::cell::Cell::new(0);
    let ask = |server: &Server, body: &Value| {
        number.set(number.get() + 1);
        let address = format!("10.0.0.{}", number.get());
        let headers = [("x-key", "foo"), ("X-Forwarded-For", &*address), ("Forwarded", &*address)];
        server.request("POST", "/api/v2/jobs", &headers, body.to_string().as_bytes())
    };
    let first = ask(&running, &small());
    assert_eq!(first.status, 201, "{}", first.text());
    assert_eq!(
        first.header("ratelimit-policy"),
        Some("\"1h\";q=3;w=3600,\"month-images\";q=100;w=2592000;ff-unit=\"images\"")
    );
    assert_eq!(first.header("ratelimit"), Some("\"1h\";r=2;t=3600"));
    // What is refused for another reason, polls and lists do not count.
    assert_eq!(ask(&running, &json!({"prompt": "x", "steps": 0})).status, 422);
    let id = first.json()["id"].as_str().unwrap().to_string();
    for _ in 0..5 {
        let job = running.request("GET", &format!("/api/v2/jobs/{id}"), &[("x-key", "foo")], b"");
        assert_eq!((job.status, job.header("ratelimit")), (200, None));
    }
    assert_eq!(ask(&running, &small()).header("x-ratelimit-remaining-requests"), Some("1"));
    kill(running.child.id(), "-KILL");
    running.end();
    running = start();
    assert_eq!(ask(&running, &small()).status, 201);
    let refused = ask(&running, &small());
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    let ms: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
    assert!((3400..=3610).contains(&seconds) && ms <= seconds * 1000, "{seconds} {ms}");
    let limit = refused.header("ratelimit").unwrap();
    assert_eq!(limit, format!("\"1h\";r=0;t={seconds}"));
    // Each API has its own words for it.
    let openai = post(&running, "foo", "/v1/images/generations", &small());
    let error = &openai.json()["error"];
    assert_eq!((openai.status, &error["type"]), (429, &json!("requests")));
    assert_eq!(error["code"], "rate_limit_exceeded");
    let a1111 = post(&running, "foo", "/sdapi/v1/txt2img", &small());
    assert_eq!((a1111.status, &a1111.json()["error"]), (429, &json!("rate_limit_exceeded")));
    // Another key has its own limits: none.
    let other = post(&running, "bar", "/api/v2/jobs", &small());
    assert_eq!((other.status, other.header("ratelimit")), (201, None));
    let log = running.log();
    let mut words = log.split(|c: char| !c.is_alphanumeric());
    assert!(words.clone().any(|word| word == "anna") && words.all(|word| word != "foo"), "{log}");
}

#[test]
pub fn what_no_time_makes_acceptable_is_not_a_429_and_images_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let plan = "{ limits = [\"4 images/day\", \"3 active\"], max_pixels = 4096, \
                 models = [\"flux-tiny\"] }";
    let server = server(folder.path(), plan);
    let ask = |fields: Value| {
        let mut body = small();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        post(&server, "foo", "/api/v2/jobs", &body)
    };
    let many = ask(json!({"count": 5}));
    assert_eq!((many.status, &many.json()["error"]["parameter"]), (422, &json!("count")));
    assert!(many.text().contains("4 images/day"), "{}", many.text());
    let large = ask(json!({"width": 80}));
    assert_eq!((large.status, &large.json()["error"]["parameter"]), (422, &json!("size")));
    let spread = |n: u64| {
        let mut body = endless();
        body["count"] = json!(n);
        body["width"] = json!(64);
        body["height"] = json!(64);
        post(&server, "foo", "/api/v2/jobs", &body)
    };
    // It runs until it is stopped; a second waits, and its images come back when it is cancelled.
    let (running, waiting) = (spread(2), spread(2));
    assert_eq!((running.status, waiting.status), (201, 201));
    assert_eq!(ask(json!({})).status, 429);
    let id = waiting.json()["id"].as_str().unwrap().to_string();
    let cancelled =
        server.request("DELETE", &format!("/api/v2/jobs/{id}"), &[("x-key", "foo")], b"");
    assert_eq!(cancelled.json()["status"], "canceled");
    assert_eq!((ask(json!({})).status, ask(json!({})).status), (201, 201));
    let active = ask(json!({}));
    assert_eq!(active.status, 429);
    assert!(active.json()["error"]["message"].as_str().unwrap().contains("active"));
    assert!(active.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}

#[test]
pub fn f44_a_greedy_key_waits_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), "{}");
    let id = |answer: Answer| answer.json()["id"].as_str().unwrap().to_string();
    let blocking = id(post(&server, "foo", "/api/v2/jobs", &endless()));
    let greedy: Vec<String> =
        (0..50).map(|_| id(post(&server, "foo", "/api/v2/jobs", &small()))).collect();
    let low = json!({"prompt": "a", "steps": 1, "width": 64, "height": 64, "priority": "low"});
    let low = id(post(&server, "bar", "/api/v2/jobs", &low));
    let modest = id(post(&server, "bar", "/api/v2/jobs", &small()));
    let position = |key: &str, id: &str| {
        let job = server.request("GET", &format!("/api/v2/jobs/{id}"), &[("x-key", key)], b"");
        let job = job.json();
        (job["queue_position"].as_u64(), job["predicted_seconds"].as_f64())
    };
    assert!(position("bar", &modest).0 <= Some(1), "{:?}", position("bar", &modest));
    assert_eq!(position("bar", &low).0, Some(51));
    let (first, last) = (position("foo", &greedy[0]), position("foo", &greedy[49]));
    assert!(first.1.unwrap() < last.1.unwrap(), "{first:?} {last:?}");
    server.request("DELETE", &format!("/api/v2/jobs/{blocking}"), &[("x-key", "foo")], b"");
}
