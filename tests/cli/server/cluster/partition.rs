//! A front that is cut off from the broker, while the others go on.

use serde_json::json;

use super::super::nats::Broker;
use super::proxy::Proxy;
use super::{Worker, front, ready, wait_for};

#[test]
fn a_front_that_is_cut_off_refuses_jobs_and_learns_later_what_became_of_the_others() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let url = broker.url("partition");
    let proxy = Proxy::to(broker.port());
    // The first front gives jobs to workers.
    let far = front(&proxy.url("partition"), &at("far"), &[]);
    wait_for("the leader", || far.log().contains("gives jobs to workers").then_some(()));
    let near = front(&url, &at("near"), &[]);
    let worker = Worker::start(&url, &at("worker"));
    worker.wait();
    ready(&far);
    ready(&near);
    let before = far.submit(json!({"prompt": "a", "steps": 400, "seed": 1}));
    near.wait(&before, &["running"]);
    proxy.cut(true);
    let request = json!({"request": {"prompt": "b", "steps": 1, "seed": 2}});
    let refused = far.post("/api/v2/jobs", &request);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "broker_unreachable");
    // It reports the last state that it received.
    assert_eq!(far.job(&before)["status"], "running");
    let during = near.submit(request["request"].clone());
    near.image(&during);
    assert_eq!(near.wait(&before, &["succeeded"])["attempts"], 1);
    assert!(near.log().contains("this front gives jobs to workers"));
    assert_eq!(far.job(&before)["status"], "running");

    proxy.cut(false);
    far.image(&before);
    far.image(&during);
    let after = wait_for("a job to be accepted", || {
        let answer = far.post("/api/v2/jobs", &request);
        (answer.status == 201).then(|| answer.json()["id"].as_str().unwrap().to_string())
    });
    far.image(&after);
    near.image(&after);
    // Both counted the end of each job once. The refused job does not exist.
    let jobs = near.get("/api/v2/jobs").json();
    let ended = jobs["jobs"].as_array().unwrap().len();
    for server in [&far, &near] {
        let metrics = server.get("/metrics").text();
        let line = format!("flux_fast_jobs_ended_total{{state=\"succeeded\"}} {ended}\n");
        assert!(metrics.contains(&line), "{line} is missing in:\n{metrics}");
    }
    assert_eq!(ended, 3, "{jobs}");
}
