//! The server with a worker that is a shell script: what no model and no device does on request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::routing::get;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::pipeline::request::Options;

/// What every script begins with: it opens the model.
const READY: &str =
    r#"read open; echo '{"event":"ready","defaults":{"width":128,"height":128,"steps":4}}'"#;

fn options(folder: &Path, script: &str, stop: Arc<AtomicBool>) -> ServerOptions {
    let arguments = vec!["-c".into(), format!("{READY}\n{script}").into()];
    let engine = Options::default();
    let stop = Arc::new(move || stop.load(Ordering::Relaxed));
    let mut options =
        ServerOptions::new(engine, folder.join("data"), ("sh".into(), arguments), stop);
    options.listen = ([127, 0, 0, 1], 0).into();
    options.grace = Duration::from_millis(100);
    options
}

/// A server that runs until it goes out of scope.
struct Running {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Running {
    fn start(folder: &Path, script: &str) -> Running {
        // The port is free for as long as nobody else asks for one.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let stop = Arc::new(AtomicBool::new(false));
        let mut options = options(folder, script, stop.clone());
        options.listen = address;
        let thread = Some(std::thread::spawn(move || serve(options)));
        let running = Running { address, stop, thread };
        running.wait("ready", || running.send("GET", "/ready", "").0 == 200);
        running
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return (0, String::new()) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = String::new();
        stream.write_all(head.as_bytes()).and_then(|()| stream.read_to_string(&mut answer)).ok();
        let status = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, b)| b.to_string()))
    }

    fn submit(&self) -> String {
        self.submit_request(r#"{"prompt": "a fox"}"#)
    }

    fn submit_request(&self, request: &str) -> String {
        let (status, body) = self.send("POST", "/api/v2/jobs", request);
        assert_eq!(status, 201, "{body}");
        let job: Value = serde_json::from_str(&body).unwrap();
        job["id"].as_str().unwrap().to_string()
    }

    fn job(&self, id: &str) -> Value {
        let (_, body) = self.send("GET", &format!("/api/v2/jobs/{id}"), "");
        serde_json::from_str(&body).unwrap_or_default()
    }

    fn wait(&self, what: &str, mut look: impl FnMut() -> bool) {
        let since = Instant::now();
        while !look() {
            assert!(since.elapsed() < Duration::from_secs(60), "waited too long: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(outcome)) = self.thread.take().map(|thread| thread.join())
            && !std::thread::panicking()
        {
            outcome.unwrap();
        }
    }
}

/// A server that does not run: no worker, and nobody listens.
pub async fn idle_server(folder: &Path) -> Arc<Server> {
    let options = options(folder, "", Arc::default());
    let (data, lock) = DataFolder::create(&options.data).unwrap();
    let broker = open_broker(&options, &data, false).await.unwrap();
    Server::new(options, None, (data, lock), broker).unwrap().0
}

/// A script that reads orders and calls `job` with the id of each job.
fn on_job(job: &str) -> String {
    format!(
        "while read -r line; do case $line in *'\"order\":\"job\"'*) \
         id=${{line#*\\\"id\\\":\\\"}}; id=${{id%%\\\"*}}; {job} ;; esac; done"
    )
}

#[test]
fn f22_a_lost_device_makes_the_server_unready_and_keeps_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    // Every job loses the device; the process ends a moment later, as after a slow cleanup.
    let fail = r#"
        fault='{"status":503,"code":"device_lost","message":"gone"}'
        echo '{"event":"failed","id":"'$id'","cancelled":false,"ends":true,"fault":'$fault'}'
        sleep 0.5
        exit 6"#;
    let server = Running::start(folder.path(), &on_job(fail));
    let (first, second) = (server.submit(), server.submit());
    let mut unready = false;
    server.wait("the first job to fail", || {
        unready |= server.send("GET", "/ready", "").0 == 503;
        assert_ne!(server.job(&second)["error"]["code"], "worker_died");
        server.job(&first)["status"] == "failed"
    });
    assert!(unready, "/ready said that a lost device can draw");
    let job = server.job(&first);
    assert_eq!((&job["error"]["code"], &job["attempts"]), (&json!("device_lost"), &json!(2)));
    server.wait("the second job to fail", || server.job(&second)["status"] == "failed");
    assert_eq!(server.job(&second)["error"]["code"], "device_lost");
}

#[test]
fn jobs_that_wait_for_the_same_images_are_drawn_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    // Draws when the file `go` is there, and notes that it did.
    let draw = format!(
        r#"while [ ! -e {go} ]; do sleep 0.05; done
        echo $id >> {drawn}
        echo image of $id > {results}/$id-0.png
        output='{{"file":"'$id'-0.png","width":16,"height":16,"bytes":9}}'
        echo '{{"event":"finished","id":"'$id'","outputs":['$output'],"settings":{{"seed":7}}}}'"#,
        go = at("go"),
        drawn = at("drawn"),
        results = at("data/results"),
    );
    let server = Running::start(folder.path(), &on_job(&draw));
    let same = r#"{"prompt": "a fox", "seed": 7}"#;
    let first = server.submit_request(same);
    server.wait("the first job to run", || server.job(&first)["status"] == "running");
    let other = server.submit_request(r#"{"prompt": "a fox", "seed": 8}"#);
    let jpeg = server.submit_request(r#"{"prompt": "a fox", "seed": 7, "format": "jpeg"}"#);
    let alike = [server.submit_request(same), server.submit_request(same)];
    let cancelled = server.submit_request(same);
    server.send("POST", &format!("/api/v2/jobs/{cancelled}/cancel"), "");
    std::fs::write(at("go"), "").unwrap();
    for id in [&first, &other, &jpeg, &alike[0], &alike[1]] {
        server.wait("the jobs to succeed", || server.job(id)["status"] == "succeeded");
    }
    let drawn = std::fs::read_to_string(at("drawn")).unwrap();
    assert_eq!(drawn.lines().collect::<Vec<_>>(), [&first, &other, &jpeg]);
    for id in &alike {
        let job = server.job(id);
        assert_eq!(
            (&job["outputs"][0]["name"], &job["attempts"]),
            (&json!(format!("{id}-0.png")), &json!(1))
        );
        assert_eq!(job["settings"], json!({"seed": 7}));
        let (status, image) = server.send("GET", &format!("/api/v2/jobs/{id}/images/0"), "");
        assert_eq!((status, image), (200, format!("image of {first}\n")));
    }
    assert_eq!(server.job(&cancelled)["status"], "canceled");
    let (_, numbers) = server.send("GET", "/metrics", "");
    assert!(numbers.contains("flux_fast_jobs_shared_total 2\n"), "{numbers}");
}

#[test]
fn f47_a_worker_that_says_nonsense_or_ends_fails_its_job_only() {
    let folder = tempfile::tempdir().unwrap();
    // The first job of each process is answered with rubbish, those after it with an end.
    let server = Running::start(folder.path(), &on_job("echo nonsense"));
    let job = server.submit();
    server.wait("the job to fail", || server.job(&job)["status"] == "failed");
    assert_eq!(server.job(&job)["error"]["code"], "worker_died");
    assert_eq!(server.send("GET", "/health", "").0, 200);
}

#[test]
fn a_worker_that_cannot_open_the_model_ends_the_server_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let unusable = r#"read open
        echo '{"event":"unusable","message":"no such model","hint":null,"exit_code":4}'"#;
    let mut options = options(folder.path(), "", Arc::default());
    options.worker.1 = vec!["-c".into(), unusable.into()];
    let error = serve(options).unwrap_err();
    assert_eq!((error.kind().exit_code(), error.to_string().contains("no such model")), (4, true));
}

#[test]
fn f47_a_handler_that_panics_is_a_500_of_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = "127.0.0.1:1".parse().unwrap();
    let options = options(folder.path(), "", Arc::default());
    let (data, lock) = DataFolder::create(&options.data).unwrap();
    let broker = runtime.block_on(open_broker(&options, &data, false)).unwrap();
    let (server, _inbox) = Server::new(options, Some(address), (data, lock), broker).unwrap();
    let panic = || async {
        if true {
            panic!("a mistake in /home/anna")
        }
    };
    let router: Router = Router::new()
        .route("/panic", get(panic))
        .route("/fine", get(async || "fine"))
        .layer(layers::from_fn_with_state(server.clone(), middleware::guard));
    let ask = |path: &str| {
        let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        runtime.block_on(async {
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            (status, axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap())
        })
    };
    let (status, body) = ask("/panic");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["error"]["code"]), (500, &json!("internal")));
    assert!(!body.to_string().contains("anna"), "{body}");
    assert_eq!(ask("/fine").0, 200);
}
