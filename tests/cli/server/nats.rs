//! A real NATS server for the tests of clusters. Without `nats-server` on the path, or under
//! `FLUX_FAST_NATS_SERVER`, these tests are skipped and say so, unless `FLUX_FAST_TEST_NATS` is
//! set.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{program, wait_for};

/// A NATS server with files of its own. It is killed when it goes out of scope.
pub struct Broker {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

/// The file of `nats-server`; `None` if the tests are to be skipped.
fn executable() -> Option<OsString> {
    let file = std::env::var_os("FLUX_FAST_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
    let found = Command::new(&file).arg("--version").output();
    match found {
        Ok(output) if output.status.success() => Some(file),
        other => {
            let must = std::env::var_os("FLUX_FAST_TEST_NATS").is_some();
            assert!(!must, "nats-server cannot be started: {other:?}");
            eprintln!("SKIPPED: nats-server cannot be started");
            None
        }
    }
}

impl Broker {
    pub fn start() -> Option<Broker> {
        Self::with("")
    }

    /// A server at a free port, with `lines` at the end of its configuration.
    pub fn with(lines: &str) -> Option<Broker> {
        let [port] = free_ports();
        Self::at(port, lines)
    }

    /// The same at `port`.
    pub fn at(port: u16, lines: &str) -> Option<Broker> {
        let file = executable()?;
        let folder = tempfile::tempdir().unwrap();
        configure(folder.path(), port, lines);
        let child = Self::spawn(&file, folder.path());
        let broker = Broker { child, port, folder };
        broker.wait();
        Some(broker)
    }

    fn spawn(file: &OsStr, folder: &Path) -> Child {
        Command::new(file)
            .arg("-c")
            .arg(folder.join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        wait_for("nats-server", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of the cluster called `name`.
    pub fn url(&self, name: &str) -> String {
        format!("nats://127.0.0.1:{}/{name}", self.port)
    }

    /// The answer to a request without a body, as JSON. The protocol of NATS is lines of text.
    pub fn ask(&self, subject: &str) -> Value {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let words =
            format!("CONNECT {{\"verbose\":false}}\r\nSUB me 1\r\nPUB {subject} me 0\r\n\r\n");
        (&stream).write_all(words.as_bytes()).unwrap();
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let answer = lines.find(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// Kills the server, and starts it again with the files that it has left.
    pub fn restart(&mut self) {
        self.stop();
        self.child = Self::spawn(&executable().unwrap(), self.folder.path());
        self.wait();
    }

    /// The same with other lines in its configuration.
    pub fn restart_with(&mut self, lines: &str) {
        configure(self.folder.path(), self.port, lines);
        self.restart();
    }

    /// Kills the server, if it runs.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Different ports that are not in use.
pub fn free_ports<const N: usize>() -> [u16; N] {
    // All are open at the same time: a port that is closed may be given out again.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Writes the configuration of a server at `port` with its files in `folder`.
fn configure(folder: &Path, port: u16, lines: &str) {
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\n\
         jetstream {{ store_dir: \"{}\", max_mem: 64MB, max_file: 4GB, \
         sync_interval: always }}\n{lines}\n",
        folder.join("store").display()
    );
    std::fs::write(folder.join("nats.conf"), config).unwrap();
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The server of the tests that need no server of their own. Nothing drops it: a shell ends it once
/// the tests have ended.
static SHARED: Mutex<Option<String>> = Mutex::new(None);

fn shared() -> MutexGuard<'static, Option<String>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address of a server that all tests of the process share.
fn shared_address() -> Option<String> {
    let mut shared = shared();
    if shared.is_none() {
        let broker = Broker::start()?;
        // It ends with this process.
        let line = format!(
            "while kill -0 {} 2>/dev/null; do sleep 1; done; kill -9 {}; rm -rf '{}'",
            std::process::id(),
            broker.child.id(),
            broker.folder.path().display()
        );
        let reaper = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).spawn().unwrap();
        // It outlives this process, so that nothing waits for it.
        std::mem::forget(reaper);
        *shared = Some(format!("nats://127.0.0.1:{}", broker.port));
        std::mem::forget(broker);
    }
    shared.clone()
}

thread_local! {
    /// Servers that this thread starts are fronts of clusters, each with a worker.
    static CLUSTERS: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test of `serve` with the queue on NATS in place of the file.
pub fn on_nats(test: fn()) {
    if executable().is_some() {
        CLUSTERS.set(true);
        test();
    }
}

/// The options of a server with its files in `data`, if servers of this thread are fronts.
pub fn arguments(data: &Path) -> Vec<String> {
    if !CLUSTERS.get() {
        return Vec::new();
    }
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    // After a restart it is the same cluster.
    let url = format!("{}/t{:016x}", shared_address().unwrap(), hasher.finish());
    ["--broker", &url, "--lost-after", "5"].map(String::from).into()
}

/// The options of `serve` that are also options of `worker`.
const COMMON: [&str; 8] = [
    "--broker",
    "--lost-after",
    "--device",
    "--model",
    "--hang-after",
    "--keep-alive",
    "--ram",
    "--log-format",
];

/// The worker for the front that `front` starts, if servers of this thread are fronts.
pub fn worker_of(front: &Command) -> Option<Command> {
    if !CLUSTERS.get() {
        return None;
    }
    let mut worker = program();
    let arguments: Vec<&OsStr> = front.get_args().collect();
    worker.args(["worker", "--no-cache", "--grace", "1"]);
    for pair in arguments.windows(2) {
        if COMMON.iter().any(|name| pair[0] == *name) {
            worker.args(pair);
        }
        if pair[0] == "--data" {
            worker.arg("--data").arg(Path::new(pair[1]).join("worker"));
        }
    }
    if let Some(folder) = front.get_current_dir() {
        worker.current_dir(folder);
    }
    worker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Some(worker)
}
