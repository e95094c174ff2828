//! `serve` from outside: a server process on a free port, and a client that is a few lines of HTTP.

mod a1111;
mod batches;
#[cfg(unix)]
mod cluster;
mod comfy;
mod conditions;
mod controlnets;
mod doors;
mod faults;
mod inpaint;
mod krita;
mod limits;
mod load;
mod masks;
mod mcp;
mod native;
#[cfg(unix)]
mod nats;
mod openai;
mod operation;
#[cfg(unix)]
mod page;
#[cfg(unix)]
mod page_images;
#[cfg(unix)]
mod page_nets;
mod references;
mod remote;
mod security;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server. It is killed when it goes out of scope.
struct Server {
    child: Child,
    /// The worker of a cluster that it starts with, if its broker is NATS.
    drawer: Option<Child>,
    address: String,
    /// What it has logged so far.
    log: Arc<Mutex<String>>,
}

fn command(data: &Path, arguments: &[&str]) -> Command {
    command_at(data, "127.0.0.1:0", arguments)
}

fn command_at(data: &Path, address: &str, arguments: &[&str]) -> Command {
    let mut command = program();
    command
        .args(["serve", "--listen", address, "--device", "cpu", "--no-cache", "--data"])
        .arg(data)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    #[cfg(unix)]
    command.args(nats::arguments(data));
    command
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command.env("FLUX_FAST_CONFIG", "");
    command
}

/// Starts `command`, and copies what it logs to `log`.
fn start(command: &mut Command, log: &Arc<Mutex<String>>) -> Child {
    let mut child = command.spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let copy = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            *copy.lock().unwrap() += &format!("{line}\n");
        }
    });
    child
}

impl Server {
    fn start(data: &Path, arguments: &[&str]) -> Server {
        Server::of(&mut command(data, arguments))
    }

    /// The server that `command` starts.
    fn of(command: &mut Command) -> Server {
        let log = Arc::new(Mutex::new(String::new()));
        let child = start(command, &log);
        #[cfg(unix)]
        let drawer = nats::worker_of(command).map(|mut worker| start(&mut worker, &log));
        #[cfg(not(unix))]
        let drawer = None;
        let mut server = Server { child, drawer, address: String::new(), log };
        server.address = wait_for("the address of the server", || {
            let log = server.log();
            let line = log.lines().find_map(|l| l.split_once("listening on http://"));
            let of_address = |c: &char| c.is_ascii_digit() || ".:".contains(*c);
            line.map(|(_, rest)| rest.chars().take_while(of_address).collect())
        });
        if server.drawer.is_some() {
            wait_for("the worker", || {
                server.log().contains("drawing for the cluster").then_some(())
            });
            wait_for("its model", || (server.get("/ready").status == 200).then_some(()));
        }
        server
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The process ids of all workers so far.
    fn workers(&self) -> Vec<u32> {
        let log = self.log();
        let ids = log.lines().filter_map(|l| {
            let (_, rest) = l.split_once("worker ")?;
            rest.strip_suffix(" started")?.parse().ok()
        });
        ids.collect()
    }

    fn kill_worker(&self, signal: &str) {
        kill(*self.workers().last().unwrap(), signal);
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[], body.to_string().as_bytes())
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.open(method, path, headers, body);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::parse(&bytes)
    }

    /// Sends a request, and leaves its answer in the stream.
    fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        // In one piece: with two, the second may wait for the answer to the first.
        let whole = [head.as_bytes(), body].concat();
        stream.write_all(&whole).unwrap();
        stream
    }

    /// Submits a native job and returns its id.
    fn submit(&self, request: Value) -> String {
        let answer = self.post("/api/v2/jobs", &json!({"request": request}));
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_string()
    }

    fn job(&self, id: &str) -> Value {
        self.get(&format!("/api/v2/jobs/{id}")).json()
    }

    /// The job once it is in one of `states`.
    fn wait(&self, id: &str, states: &[&str]) -> Value {
        wait_for(&format!("job {id} to be {states:?}"), || {
            let job = self.job(id);
            states.contains(&job["status"].as_str().unwrap_or_default()).then_some(job)
        })
    }

    /// The first image of a job that succeeds.
    fn image(&self, id: &str) -> Vec<u8> {
        let job = self.wait(id, &["succeeded", "failed", "canceled"]);
        assert_eq!(job["status"], "succeeded", "{job}");
        let answer = self.get(&format!("/api/v2/jobs/{id}/images/0"));
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
        answer.body
    }

    /// The image that the node `output` of a ComfyUI graph saves.
    fn draw_graph(&self, graph: &Value, output: &str) -> Vec<u8> {
        let id = comfy::prompt(self, &json!({"prompt": graph}));
        let past = wait_for("the prompt", || {
            let history = self.get(&format!("/history/{id}")).json();
            history.get(&id).cloned()
        });
        let name = past["outputs"][output]["images"][0]["filename"].as_str();
        let name = name.unwrap_or_else(|| panic!("{past}"));
        self.get(&format!("/view?filename={name}&type=output")).body
    }

    /// Waits for the end of the process.
    fn end(mut self) -> Option<i32> {
        wait_for("the end of the server", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.child).chain(&mut self.drawer) {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("the log of the server:\n{}", self.log());
        }
    }
}

/// An answer.
struct Answer {
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap().splitn(3, ' ').skip(1);
        let status = first.next().unwrap().parse().unwrap();
        let reason = first.next().unwrap_or_default().to_string();
        let headers = lines.filter_map(|l| l.split_once(": "));
        let headers = headers.map(|(k, v)| (k.to_lowercase(), v.to_string())).collect();
        let mut answer = Answer { status, reason, headers, body: bytes[end..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = dechunked(&answer.body);
        }
        answer
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Server-sent events: id, name and data.
    fn events(&self) -> Vec<(String, String, Value)> {
        let text = self.text();
        let events = text.split("\n\n").filter(|e| e.contains("data:"));
        let field = |event: &str, name: &str| {
            let line = event.lines().find_map(|l| l.strip_prefix(&format!("{name}: ")));
            line.unwrap_or_default().to_string()
        };
        events
            .map(|e| {
                let data = serde_json::from_str(&field(e, "data")).unwrap();
                (field(e, "id"), field(e, "event"), data)
            })
            .collect()
    }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = bytes.windows(2).position(|w| w == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..line]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        let from = line + 2;
        out.extend(&bytes[from..from + length]);
        bytes = &bytes[from + length + 2..];
    }
    out
}

/// Head and body of a form: name, file name, and content of each part.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> ([(&'static str, &'static str); 1], Vec<u8>) {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        let head =
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend(head.as_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--xyz--\r\n");
    ([("Content-Type", "multipart/form-data; boundary=xyz")], body)
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(process: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

/// The file that the command line writes for the same request.
fn drawn_by_command(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let path: PathBuf = folder.join("reference.png");
    let output = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
        .env("FLUX_FAST_CONFIG", "")
        .args(["--device", "cpu", "--no-cache", "-o"])
        .arg(&path)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(path).unwrap()
}

fn decoded(base64: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(base64.as_str().unwrap_or_else(|| panic!("{base64}"))).unwrap()
}

/// A request that runs until it is stopped.
fn endless() -> Value {
    json!({"prompt": "a fox", "steps": 1000, "count": 8, "seed": 1})
}
