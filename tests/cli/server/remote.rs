//! `remote`: the command line on another machine's server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Server, drawn_by_command, endless, kill};

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    command.env("FLUX_FAST_CONFIG", "").env_remove("FLUX_FAST_KEY").args(["remote", url]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn remote(url: &str, arguments: &[&str]) -> Output {
    command(url, arguments).output().unwrap()
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_remote_image_is_that_of_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &["--key", "sesame"]);
    let image = folder.path().join("fox.png");
    let image = image.to_str().unwrap();
    // Progress is asked for now and then: enough steps for that.
    let options = ["a fox", "--steps", "40", "--seed", "7", "--size", "2:1"];
    let output = command(&url(&server), &options)
        .env("FLUX_FAST_KEY", "sesame")
        .args(["--json", "-o", image])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&result["files"], &result["settings"]["seed_text"]),
        (&json!([image]), &json!("7"))
    );
    assert!(stderr(&output).contains("denoise 40/40"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("memory"), "{}", stderr(&output));
    assert!(std::fs::read(image).unwrap() == drawn_by_command(folder.path(), &options));

    // Image to image, two images, another format, and the key as an option.
    let pattern = folder.path().join("x.jpg");
    let output = remote(
        &url(&server),
        &[
            "a cat",
            "-i",
            image,
            "--strength",
            "0.5",
            "-n",
            "2",
            "--steps",
            "2",
            "--key",
            "sesame",
            "-o",
            pattern.to_str().unwrap(),
        ],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["x-1.jpg", "x-2.jpg"] {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), image::ImageFormat::Jpeg);
    }

    // Refusals are those of the server, in the words of the command line.
    let refused = |arguments: &[&str], key: &str| {
        let output = command(&url(&server), arguments).env("FLUX_FAST_KEY", key).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    let (code, text) = refused(&["a fox", "--model", "no-such-model"], "sesame");
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("flux-tiny"), "{text}");
    let (code, text) = refused(&["a fox"], "wrong");
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = refused(&["a fox", "--lora", "no-such-lora:0.5"], "sesame");
    assert_eq!(code, Some(4), "{text}");
    let output = remote(&url(&server), &["a fox"]);
    assert!(stderr(&output).contains("FLUX_FAST_KEY"), "{}", stderr(&output));
}

#[test]
fn ctrl_c_cancels_a_remote_job_in_the_queue_and_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let running = server.submit(endless());
    server.wait(&running, &["running"]);
    let start = || {
        let mut child = command(&url(&server), &["a fox", "--steps", "1000", "-n", "8"])
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        (child, lines.map_while(Result::ok))
    };
    let newest =
        || server.get("/api/v2/jobs").json()["jobs"][0]["id"].as_str().unwrap().to_string();
    let (mut child, mut lines) = start();
    assert!(lines.any(|line| line == "next in the queue"));
    let id = newest();
    kill(child.id(), "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(lines.any(|line| line.contains("the job was cancelled")));
    server.wait(&id, &["canceled"]);

    server.post(&format!("/api/v2/jobs/{running}/cancel"), &json!({}));
    let (mut child, mut lines) = start();
    assert!(lines.any(|line| line.trim_start().starts_with("denoise ")));
    let id = newest();
    kill(child.id(), "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    server.wait(&id, &["canceled"]);
    assert!(
        std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .all(|f| f.path().extension().is_none() || f.path().extension().unwrap() != "png")
    );
}

/// Answers the first requests with `answers`, and passes the others on to `server`. Returns its
/// address and, at the end, the heads of all requests with the times at which they came.
fn in_front_of(
    server: &Server,
    answers: &'static [&'static str],
) -> (String, std::sync::mpsc::Receiver<(Instant, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let address = server.address.clone();
    let (sender, heads) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut answers = answers.iter();
        for stream in listener.incoming().flatten() {
            let request = read_request(&stream);
            sender.send((Instant::now(), request.clone())).ok();
            let answer = match answers.next() {
                // As a server that dies does.
                Some(&"") => continue,
                Some(answer) => answer.as_bytes().to_vec(),
                None => {
                    let mut behind = TcpStream::connect(&address).unwrap();
                    let (head, body) = request.split_once("\r\n\r\n").unwrap();
                    let head = head.replace("onnection: ", "-ignored: ");
                    let text = format!("{head}\r\nConnection: close\r\n\r\n{body}");
                    behind.write_all(text.as_bytes()).unwrap();
                    let mut bytes = Vec::new();
                    behind.read_to_end(&mut bytes).unwrap();
                    bytes
                }
            };
            (&stream).write_all(&answer).ok();
        }
    });
    (url, heads)
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        text += &line;
        if line == "\r\n" || line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    text + std::str::from_utf8(&body).unwrap()
}

#[test]
fn a_server_that_is_full_or_away_is_asked_again_with_the_same_idempotency_key() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let body = json!({"error": {"code": "queue_full", "message": "the queue is full"}}).to_string();
    let full = format!(
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let full: &'static str = Box::leak(full.into_boxed_str());
    let answers: &'static [&'static str] = Box::leak(Box::new([full, ""]));
    let (url, requests) = in_front_of(&server, answers);
    let image = folder.path().join("fox.png");
    let output =
        remote(&url, &["a fox", "--steps", "1", "--seed", "1", "-o", image.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the queue is full; trying again in 2"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("cannot be reached"), "{}", stderr(&output));
    assert!(image.exists());
    let posts: Vec<_> =
        requests.try_iter().filter(|(_, r)| r.starts_with("POST /api/v2/jobs ")).collect();
    assert_eq!(posts.len(), 3);
    assert!(posts[1].0 - posts[0].0 >= Duration::from_secs(2), "Retry-After was not obeyed");
    let key = |request: &str| {
        let line = request.lines().find(|l| l.to_lowercase().starts_with("idempotency-key:"));
        line.unwrap().to_string()
    };
    assert!(posts.iter().all(|(_, r)| key(r) == key(&posts[0].1)));
    assert_eq!(server.get("/api/v2/jobs").json()["jobs"].as_array().unwrap().len(), 1);

    // Patience ends.
    let (url, _requests) = in_front_of(&server, answers);
    let output = remote(&url, &["a fox", "--patience", "1"]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = remote(&format!("http://{nobody}"), &["a fox", "--patience", "0"]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
}

#[test]
fn a_wrong_address_is_an_error_at_once_and_a_server_that_went_away_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{nobody}"), "http://no-such-host.invalid:8188".into()] {
        let begun = Instant::now();
        let output = remote(&url, &["a fox"]);
        assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains("cannot be reached") && !text.contains("trying again"), "{text}");
        // The patience is 600 seconds; resolvers may take some themselves.
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    }
    // Once it has answered, a server that is started again is waited for.
    let server = Server::start(&folder.path().join("data"), &[]);
    let address = server.address.clone();
    let mut child = command(&url(&server), &["a fox", "--steps", "1000", "-n", "8"])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.trim_start().starts_with("denoise ")));
    kill(server.child.id(), "-KILL");
    drop(server);
    assert!(lines.any(|line| line.contains("trying again")));
    let mut again = super::command_at(&folder.path().join("data"), &address, &[]);
    let server = Server::of(&mut again);
    let id = server.get("/api/v2/jobs").json()["jobs"][0]["id"].as_str().unwrap().to_string();
    server.wait(&id, &["running"]);
    server.post(&format!("/api/v2/jobs/{id}/cancel"), &json!({}));
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_is_not_a_server_is_said() {
    let remote = |url: &str| {
        let output = remote(url, &["a fox", "--patience", "0"]);
        (output.status.code(), stderr(&output))
    };
    let (code, text) = remote("draw.example:8188");
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = remote("a fox");
    assert_eq!(code, Some(2), "{text}");
}
