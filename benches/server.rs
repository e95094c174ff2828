//! The server: what it adds to the time of the engine for a job, how many requests it answers in a
//! second, and how long `/ready` takes while it draws. The model is the embedded one, and images
//! are small, so that the server is what is measured.
//!
//! `cargo bench --bench server`, on a machine with nothing else to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A running server. It is killed when it goes out of scope.
struct Server {
    child: Child,
    address: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_flux-fast"))
            .args(["serve", "--no-config", "--listen", "127.0.0.1:0", "--device", "cpu", "-q"])
            .args(["--no-cache", "--data"])
            .arg(data.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("listening on http://")).unwrap();
        let (_, rest) = line.split_once("listening on http://").unwrap();
        let of_address = |c: &char| c.is_ascii_digit() || ".:".contains(*c);
        let address = rest.chars().take_while(of_address).collect();
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address, _data: data }
    }

    /// Sends a request on a connection of its own, and returns the whole answer.
    fn send(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let whole = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(whole.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    fn draw(&self, seed: u64, side: usize, steps: usize) {
        let body = format!(
            "{{\"prompt\": \"a fox\", \"steps\": {steps}, \"size\": \"{side}x{side}\", \
             \"seed\": {seed}}}"
        );
        self.send("POST", "/v1/images/generations", &body);
    }

    /// The seconds of all phases of the engine so far.
    fn engine_seconds(&self) -> f64 {
        let text = self.send("GET", "/metrics", "");
        let seconds = text.lines().filter_map(|l| l.strip_prefix("flux_fast_phase_seconds_total"));
        seconds.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Median, 99th percentile and the largest of some times, in milliseconds.
fn percentiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    let last = times.len() - 1;
    [last / 2, last * 99 / 100, last].map(|at| times[at].as_secs_f64() * 1e3)
}

fn overhead(server: &Server) {
    (0..20).for_each(|seed| server.draw(seed, 32, 1));
    let jobs = 200;
    let (before, begun) = (server.engine_seconds(), Instant::now());
    (0..jobs).for_each(|seed| server.draw(seed, 32, 1));
    let (all, engine) = (begun.elapsed().as_secs_f64(), server.engine_seconds() - before);
    let per_job = |seconds: f64| seconds * 1e3 / jobs as f64;
    println!(
        "a job: {:.2} ms, of which the phases of the engine {:.2} ms: {:.2} ms more",
        per_job(all),
        per_job(engine),
        per_job(all - engine),
    );
}

fn requests(server: &Server) {
    let (clients, each) = (8, 25);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let draw = move || (0..each).for_each(|n| server.draw(1000 * client + n, 32, 1));
            scope.spawn(draw);
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!("{clients} clients: {:.1} images per second", (clients * each) as f64 / seconds);
    let polls = 2000;
    let begun = Instant::now();
    (0..polls).for_each(|_| drop(server.send("GET", "/api/v2/jobs?limit=1", "")));
    let seconds = begun.elapsed().as_secs_f64();
    println!("one client: {:.0} looks at a job per second", polls as f64 / seconds);
}

fn ready_while_drawing(server: &Server) {
    let (stop, drawn) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                server.draw(drawn.fetch_add(1, Ordering::Relaxed), 128, 4);
            }
        });
        for _ in 0..1000 {
            let begun = Instant::now();
            server.send("GET", "/ready", "");
            times.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let [median, p99, most] = percentiles(times);
    let drawn = drawn.load(Ordering::Relaxed);
    println!(
        "/ready while {drawn} images were drawn: median {median:.2} ms, p99 {p99:.2} ms, most \
         {most:.2} ms"
    );
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let server = Server::start();
    overhead(&server);
    requests(&server);
    ready_while_drawing(&server);
}
