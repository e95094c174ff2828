//! A test server in place of the hub: plain HTTP, one thread per connection, with a log of all
//! requests.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flux_fast::library::hub::{Credentials, PullOptions, Retry, Selection};
use sha1::Sha1;
use sha2::{Digest, Sha256};

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    /// The first byte that is requested, if the request has a range.
    pub fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    pub cut: Option<usize>,
    /// The wait after each part of the body.
    pub pause: Duration,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Answer { status, ..Answer::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    /// `bytes`, from the byte that the request asks for.
    pub fn bytes(bytes: &[u8], request: &Request) -> Self {
        match request.from() {
            Some(from) if from >= bytes.len() => Answer::status(416),
            Some(from) => Answer { status: 206, body: bytes[from..].to_vec(), ..Answer::default() }
                .with("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
            None => Answer { status: 200, body: bytes.to_vec(), ..Answer::default() },
        }
    }
}

pub struct Server {
    pub address: String,
    pub log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server. `answer` receives a request and the number of earlier requests with the
    /// same method and path.
    pub fn start(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::<Request>::new()));
        let (answer, shared) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        Server { address, log }
    }

    /// The requests with this method whose path ends with `end`.
    pub fn requests(&self, method: &str, end: &str) -> Vec<Request> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|r| r.method == method && r.path.ends_with(end)).cloned().collect()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Request, usize) -> Answer, log: &Mutex<Vec<Request>>) {
    let Some(request) = read(&stream) else {
        (&stream).write_all(b"HTTP/1.1 400 -\r\n\r\n").ok();
        return;
    };
    let before = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.iter().filter(|r| r.method == request.method && r.path == request.path).count() - 1
    };
    write(stream, &request, &answer(&request, before)).ok();
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream).take(64 << 10);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_string);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    Some(Request { method, path, headers })
}

fn write(mut stream: TcpStream, request: &Request, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !answer.headers.iter().any(|(name, _)| name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    for part in body.chunks(64 << 10) {
        stream.write_all(part)?;
        std::thread::sleep(answer.pause);
    }
    stream.flush()?;
    stream.shutdown(Shutdown::Both)
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const TOKEN: &str = "hf_a-secret-of-mine";

/// A file of the repository. The ETag of a large file is its SHA-256, that of a small one the hash
/// of git.
#[derive(Clone)]
pub struct Kept {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub large: bool,
}

impl Kept {
    pub fn etag(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self.large {
            true => hex(&Sha256::digest(&self.bytes)),
            false => hex(&Sha1::new_with_prefix(format!("blob {}\0", self.bytes.len()))
                .chain_update(&self.bytes)
                .finalize()),
        }
    }
}

/// Pseudo-random bytes.
pub fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// `org/name` with one weight file of 1 MiB, its configuration, and files that are not needed.
pub fn repository() -> Vec<Kept> {
    let file = |name, bytes, large| Kept { name, bytes, large };
    vec![
        file("README.md", b"words".to_vec(), false),
        file("config.json", b"{}".to_vec(), false),
        file("model.safetensors", noise(1, 1 << 20), true),
        file("model.ckpt", noise(2, 100), true),
    ]
}

/// The answer of the hub for a repository with these files.
pub fn hub(files: &[Kept], request: &Request) -> Answer {
    let path = request.path.as_str();
    if path == "/api/models/org/name/revision/main?blobs=true" {
        let siblings: Vec<String> = files.iter().map(listed).collect();
        let body =
            format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(", ")).into_bytes();
        return Answer { status: 200, body, ..Answer::default() };
    }
    let resolve = format!("/org/name/resolve/{COMMIT}/");
    let file = path.strip_prefix(&resolve).and_then(|name| files.iter().find(|f| f.name == name));
    let Some(file) = file else { return Answer::status(404).with("X-Error-Code", "EntryNotFound") };
    let answer = Answer::bytes(&file.bytes, request).with("X-Repo-Commit", COMMIT);
    match file.large {
        true => answer
            .with("ETag", "\"of-the-store\"")
            .with("X-Linked-Etag", format!("\"{}\"", file.etag())),
        false => answer.with("ETag", format!("W/\"{}\"", file.etag())),
    }
}

fn listed(file: &Kept) -> String {
    let (name, bytes, etag) = (file.name, file.bytes.len(), file.etag());
    match file.large {
        true => format!(
            r#"{{"rfilename": "{name}", "size": {bytes}, "blobId": "x", "lfs": {{"sha256": "{etag}", "size": {bytes}}}}}"#
        ),
        false => format!(r#"{{"rfilename": "{name}", "size": {bytes}, "blobId": "{etag}"}}"#),
    }
}

/// Options for `org/name` at `server`, with a token and short waits.
pub fn options(server: &str, cache: &std::path::Path) -> PullOptions {
    let milliseconds = Duration::from_millis;
    PullOptions {
        repo: "org/name".to_string(),
        revision: "main".to_string(),
        selection: Selection::Needed,
        endpoint: server.to_string(),
        cache: cache.to_path_buf(),
        token: Credentials::given(TOKEN, "the environment variable HF_TOKEN"),
        offline: false,
        retry: Retry {
            attempts: 3,
            wait: milliseconds(5),
            max_wait: milliseconds(3000),
            silence: milliseconds(500),
        },
        certificates: None,
    }
}
