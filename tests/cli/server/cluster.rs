//! Several fronts and workers behind one queue, over a real NATS server.

mod claims;
mod kills;
mod login;
mod partition;
mod proxy;
mod replicas;
mod uploads;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::nats::{Broker, on_nats};
use super::{Server, command, drawn_by_command, endless, form, kill, program, start, wait_for};
use proxy::Proxy;

/// A worker of a cluster. It is killed when it goes out of scope.
struct Worker {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Worker {
    fn start(url: &str, data: &Path) -> Worker {
        Self::of(Self::command(url, data))
    }

    fn command(url: &str, data: &Path) -> Command {
        let mut command = program();
        command
            .args(["worker", "--device", "cpu", "--no-cache", "--broker", url])
            .args(["--lost-after", "4", "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn of(mut command: Command) -> Worker {
        let log = Arc::default();
        let child = start(&mut command, &log);
        Worker { child, log }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn wait(&self) {
        let ready = || self.log().contains("drawing for the cluster").then_some(());
        wait_for("the worker", ready);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("the log of a worker:\n{}", self.log());
        }
    }
}

fn front(url: &str, data: &Path, more: &[&str]) -> Server {
    let arguments = [&["--broker", url, "--lost-after", "4"], more].concat();
    Server::of(&mut command(data, &arguments))
}

fn ready(front: &Server) {
    wait_for("a worker", || (front.get("/ready").status == 200).then_some(()));
}

#[test]
fn a_job_of_one_front_is_drawn_elsewhere_and_seen_by_another_front() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let url = broker.url("plain");
    let (one, two) = (front(&url, &at("1"), &[]), front(&url, &at("2"), &[]));
    // Before any worker was there nobody knows what can be drawn.
    let refused = one.post("/api/v2/jobs", &json!({"prompt": "a fox"}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("no_worker")));
    let worker = Worker::start(&url, &at("w"));
    worker.wait();
    ready(&one);
    ready(&two);

    let id = one.submit(json!({"prompt": "a fox", "steps": 30, "seed": 7}));
    let events = two.get(&format!("/api/v2/jobs/{id}/events")).events();
    let names: Vec<&str> = events.iter().map(|e| e.1.as_str()).collect();
    assert!(names.contains(&"progress") && names.contains(&"preview"), "{names:?}");
    assert_eq!(events.iter().filter(|e| e.2["status"] == "succeeded").count(), 1, "{events:?}");
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "30", "--seed", "7"]);
    for server in [&one, &two] {
        assert!(server.image(&id) == reference);
    }
    // A link of one front works at the other.
    let link = one.job(&id)["outputs"][0]["url"].as_str().unwrap().to_string();
    let path = link.strip_prefix(&format!("http://{}", one.address)).unwrap();
    assert!(two.get(path).body == reference);
    let models = two.get("/api/v2/models").json();
    assert_eq!(models["models"][0]["name"], "flux-tiny");

    // An image to start from travels to the worker.
    let image = {
        use base64::Engine;
        base64::prelude::BASE64_STANDARD.encode(&reference)
    };
    let edit = json!({"prompt": "a cat", "steps": 4, "seed": 1, "init": image, "strength": 0.5});
    assert!(!two.image(&one.submit(edit)).is_empty());

    // Cancelled through the other front, in the queue and while it runs.
    let (running, queued) = (one.submit(endless()), one.submit(endless()));
    two.wait(&running, &["running"]);
    assert_eq!(two.job(&queued)["queue_position"], 0);
    for id in [&queued, &running] {
        two.request("DELETE", &format!("/api/v2/jobs/{id}"), &[], b"");
        one.wait(id, &["canceled"]);
    }
    status(&url, &one);
    // Files of batches are known to one front only, which the other says.
    let (head, body) = form(&[("purpose", None, b"batch"), ("file", Some("a.jsonl"), b"{}")]);
    let file = one.request("POST", "/v1/files", &head, &body).json()["id"].clone();
    let path = format!("/v1/files/{}", file.as_str().unwrap());
    assert_eq!(one.get(&path).status, 200);
    let elsewhere = two.get(&path);
    assert_eq!(elsewhere.status, 404);
    assert!(elsewhere.text().contains("the front that received them"), "{}", elsewhere.text());
}

/// What `cluster status` and `/metrics` say of a cluster with an idle worker.
fn status(url: &str, front: &Server) {
    let output = program().args(["cluster", "status", "--json", "--broker", url]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let worker = &status["workers"][0];
    assert_eq!((&worker["held"], &worker["ready"]), (&json!("flux-tiny"), &json!(true)));
    assert_eq!((&status["queued"], &status["running"]), (&json!(0), &json!(0)));
    assert_eq!(status["models"][0]["workers"], 1);
    let metrics = front.get("/metrics").text();
    for line in [
        "flux_fast_cluster_workers{state=\"idle\"} 1",
        "flux_fast_cluster_model_workers{model=\"flux-tiny\"} 1",
        "flux_fast_jobs_ended_total{state=\"succeeded\"} 2",
        "flux_fast_jobs_ended_total{state=\"canceled\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
}

#[test]
fn a_job_whose_workers_die_three_times_has_failed_and_others_go_on() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = broker.url("poison");
    let front = front(&url, &folder.path().join("front"), &[]);
    let start = |n: usize| {
        let worker = Worker::start(&url, &folder.path().join(format!("w{n}")));
        worker.wait();
        worker
    };
    let mut worker = start(0);
    ready(&front);
    let poison = front.submit(endless());
    let next = front.submit(json!({"prompt": "a", "steps": 1, "seed": 1}));
    for attempt in 1..=3 {
        wait_for("the attempt", || {
            let job = front.job(&poison);
            (job["status"] == "running" && job["attempts"] == attempt).then_some(())
        });
        kill(worker.child.id(), "-KILL");
        worker = start(attempt);
    }
    let failed = front.wait(&poison, &["failed"]);
    assert_eq!(failed["error"]["code"], "worker_died", "{failed}");
    front.image(&next);
    assert_eq!(front.job(&next)["attempts"], 1);
}

#[test]
fn a_front_that_is_killed_and_a_broker_that_is_killed_lose_nothing() {
    let Some(mut broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = broker.url("kills");
    let at = |name: &str| folder.path().join(name);
    let (one, two) = (front(&url, &at("1"), &[]), front(&url, &at("2"), &[]));
    let worker = Worker::start(&url, &at("w"));
    worker.wait();
    ready(&one);
    let running = one.submit(json!({"prompt": "a fox", "steps": 200, "seed": 3}));
    let queued = one.submit(json!({"prompt": "a", "steps": 1, "seed": 1}));
    two.wait(&running, &["running"]);
    // The front that gave the job away, too.
    kill(one.child.id(), "-KILL");
    one.end();
    broker.restart();
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "200", "--seed", "3"]);
    assert!(two.image(&running) == reference);
    two.image(&queued);
    assert_eq!(two.job(&running)["attempts"], 1);
    let one = front(&url, &at("1"), &[]);
    assert!(one.image(&running) == reference);
    // Without a broker, what is known is still told, and the rest is refused with a reason.
    broker.stop();
    let unready = wait_for("the front to be unready", || {
        let answer = two.get("/ready");
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(unready.json()["reason"], "the broker is out of reach");
    assert!(two.get("/metrics").text().contains("flux_fast_ready 0\n"));
    assert_eq!(two.job(&running)["status"], "succeeded");
    let refused = two.post("/api/v2/jobs", &json!({"prompt": "a", "steps": 1}));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "broker_unreachable");
}

#[test]
fn a_worker_that_is_cut_off_loses_its_job_and_comes_back_without_harm() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let url = broker.url("cut");
    let proxy = Proxy::to(broker.port());
    let front = front(&url, &at("front"), &[]);
    let far = Worker::start(&proxy.url("cut"), &at("far"));
    far.wait();
    ready(&front);
    let steps = ["a fox", "--steps", "100", "--seed", "3"];
    let job = front.submit(json!({"prompt": "a fox", "steps": 100, "seed": 3}));
    front.wait(&job, &["running"]);
    proxy.cut(true);
    let near = Worker::start(&url, &at("near"));
    near.wait();
    let done = front.wait(&job, &["succeeded", "failed"]);
    assert_eq!((&done["status"], &done["attempts"]), (&json!("succeeded"), &json!(2)));
    let reference = drawn_by_command(folder.path(), &steps);
    assert!(front.image(&job) == reference);
    // What the other one has drawn changes nothing.
    proxy.cut(false);
    wait_for("its return", || far.log().contains("had ended").then_some(()));
    let now = front.job(&job);
    for part in ["status", "attempts", "started_at", "completed_at", "settings"] {
        assert_eq!(now[part], done[part], "{part}");
    }
    drop(near);
    front.image(&front.submit(json!({"prompt": "a", "steps": 1, "seed": 1})));
}

/// Tests of a single machine that must pass with this queue as well.
macro_rules! on_nats {
    ($($module:ident: $($test:ident),+;)+) => {
        $(mod $module {
            $(#[test]
            fn $test() {
                super::on_nats(super::super::$module::$test);
            })+
        })+
    };
}

on_nats! {
    native:
        a_job_gives_the_file_of_the_command_line_and_its_events_can_be_resumed,
        a_request_without_a_seed_has_one_that_gives_the_same_image_again,
        cancelled_jobs_stop_in_the_queue_and_while_they_run,
        f44_the_queue_is_bounded_and_a_repeated_request_is_one_job,
        f28_f30_to_f36_what_cannot_be_drawn_is_refused_with_its_parameter_and_no_path;
    openai:
        generations_are_the_files_of_the_command_line_under_any_usual_name,
        a_stream_has_partial_images_and_then_the_whole,
        edits_start_from_the_first_image_of_a_form_or_of_json;
    a1111:
        txt2img_and_img2img_answer_with_bare_pngs_and_everything_that_clients_read,
        progress_shows_the_running_job_and_interrupt_stops_it;
    comfy:
        a_prompt_is_drawn_and_told_of_in_the_order_of_comfyui,
        a_client_that_connects_after_its_prompt_is_told_of_the_end_and_may_choose_its_id,
        previews_interrupts_and_the_queue,
        an_uploaded_image_is_what_a_graph_starts_from,
        history_is_cleared_for_its_owner_with_the_images;
    doors:
        replicate_waits_or_polls_and_has_every_field,
        fal_queues_runs_and_cancels,
        black_forest_labs_polls_until_ready_or_error,
        f36_a_webhook_is_called_where_the_operator_allows_it_and_is_signed,
        hugging_face_answers_with_the_image,
        sdcpp_jobs_are_drawn_listed_and_cancelled,
        together_sends_and_reads_its_own_fields;
    batches:
        a_batch_draws_every_line_and_goes_on_after_a_restart,
        batches_are_cancelled_and_wrong_ones_are_refused;
    faults:
        f26_a_worker_that_hangs_is_replaced,
        f45_a_client_that_hangs_up_cancels_its_job;
    conditions:
        control_images_are_drawn_by_the_models_that_need_them,
        fill_is_served_and_needs_a_mask,
        style_images_are_sent_to_the_server;
    inpaint:
        a_model_that_reads_references_sees_the_image_that_it_repaints,
        comfyui_graphs_repaint_a_part;
    masks:
        masks_through_the_native_api_and_remote_give_the_image_of_the_command_line;
    references:
        reference_images_through_every_api_give_the_image_of_the_command_line;
    security:
        f41_every_path_needs_the_key_and_one_key_does_not_see_the_jobs_of_another;
    limits:
        f42_f43_limits_are_told_in_headers_and_survive_kills_of_the_server,
        what_no_time_makes_acceptable_is_not_a_429_and_images_come_back,
        f44_a_greedy_key_waits_for_another;
    controlnets:
        controlnets_are_listed_planned_and_drawn;
    mcp:
        mcp_tools_draw_and_report_progress;
}
