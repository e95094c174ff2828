//! Keys, foreign pages, and clients that waste what the server has.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Server, command};

#[test]
pub fn f41_every_path_needs_the_key_and_one_key_does_not_see_the_jobs_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "# keys\nsesame\n\nother\n").unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&data, &["--key-file", keys.to_str().unwrap()]);
    for path in ["/health", "/ready"] {
        assert_eq!(server.get(path).status, 200);
    }
    for path in [
        "/",
        "//v1/models",
        "/v1/models",
        "/%2fv1/models",
        "/api/v2/jobs",
        "/api/v2/models",
        "/sdapi/v1/options",
        "/sdapi/v1/progress",
        "/metrics",
        "/v1/images/generations",
        "/nothing",
    ] {
        for headers in [
            &[][..],
            &[("Authorization", "Basic")],
            &[("Authorization", "Bearer sesam")],
            &[("x-key", "sesames")],
        ] {
            let answer = server.request("GET", path, headers, b"");
            assert_eq!(answer.status, 401, "{path} {headers:?}");
            assert!(answer.header("www-authenticate").is_some());
        }
    }
    assert_eq!(server.get("/results/x?expires=1&signature=x").status, 403);
    let body = json!({"prompt": "a fox", "steps": 1}).to_string();
    let post = |key| server.request("POST", "/api/v2/jobs", &[("x-key", key)], body.as_bytes());
    let id = post("sesame").json()["id"].as_str().unwrap().to_string();
    let path = format!("/api/v2/jobs/{id}");
    let get = |key: &str, path: &str| {
        server.request("GET", path, &[("Authorization", &format!("Bearer {key}"))], b"")
    };
    assert_eq!(get("sesame", &path).status, 200);
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("POST", format!("{path}/cancel")),
        ("GET", format!("{path}/events")),
        ("GET", format!("{path}/images/0")),
    ] {
        assert_eq!(server.request(method, &path, &[("x-key", "other")], b"").status, 404, "{path}");
    }
    assert_eq!(get("other", "/api/v2/jobs").json()["jobs"], json!([]));
    assert_eq!(server.request("OPTIONS", "/v1/models", &[], b"").status, 204);
    assert!(!server.log().contains("sesame"));
}

#[test]
fn f40_foreign_pages_are_kept_out_by_host_and_origin() {
    let folder = tempfile::tempdir().unwrap();
    let page = "https://lite.koboldai.net";
    let server = Server::start(folder.path(), &["--cors-origin", page]);
    let port = server.address.rsplit_once(':').unwrap().1.to_string();
    let own = format!("http://localhost:{port}");
    let local = format!("localhost:{port}");
    let get = |headers: &[(&str, &str)]| server.request("GET", "/v1/models", headers, b"");
    assert_eq!(get(&[("Host", "evil.example")]).status, 403);
    assert_eq!(get(&[("Host", &format!("evil.example:{port}"))]).status, 403);
    for origin in ["null", "http://evil.example", "https://lite.koboldai.net.evil.example"] {
        assert_eq!(get(&[("Origin", origin)]).status, 403, "{origin}");
        let post = server.request("POST", "/api/v2/jobs", &[("Origin", origin)], b"{}");
        assert_eq!(post.status, 403, "{origin}");
    }
    let answer = get(&[("Host", &local), ("Origin", &own)]);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
    let answer = get(&[("Origin", page)]);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(page)));
    let preflight = server.request("OPTIONS", "/sdapi/v1/txt2img", &[("Origin", page)], b"");
    assert_eq!(preflight.status, 204);
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
}

#[test]
fn f29_f37_f39_large_slow_and_bursting_requests_are_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let connect = |head: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let post = format!("POST /v1/images/generations HTTP/1.1\r\nHost: {}\r\n", server.address);
    let mut answer = [0; 12];
    let mut large = connect(&format!("{post}Content-Length: 100000000000\r\n\r\n"));
    large.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // A head that does not end, and a body that does not.
    let begun = Instant::now();
    let mut heads = connect(&post);
    let mut bodies = connect(&format!("{post}Content-Length: 100\r\n\r\n{{"));
    bodies.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    let mut rest = Vec::new();
    heads.read_to_end(&mut rest).ok();
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    // An image that is small as a file: 20,000 x 20,000 pixels.
    let mut png = Vec::new();
    {
        let mut encoder = png::Encoder::new(&mut png, 20_000, 20_000);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&vec![0; 20_000 * 2_500]).unwrap();
    }
    use base64::Engine as _;
    let image = base64::prelude::BASE64_STANDARD.encode(&png);
    let answer = server.post("/api/v2/jobs", &json!({"prompt": "x", "init": image}));
    assert_eq!((answer.status, &answer.json()["error"]["parameter"]), (422, &json!("init")));
    assert_eq!(server.get("/ready").status, 200);
}

#[test]
fn a_server_that_cannot_be_started_safely_is_refused_with_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&data, &[]);
    let taken = server.address.clone();
    let other = folder.path().join("other");
    for (data, arguments, code, expected) in [
        (&other, &["--listen", "0.0.0.0:0"][..], 2, "--key"),
        (&other, &["--key", " "], 2, "--key"),
        (&other, &["--key-file", "no-such-file"], 4, "no-such-file"),
        (&other, &["--listen", &taken], 2, "--listen"),
        (&other, &["--model", "no-such-model.safetensors"], 4, "no-such-model"),
        (&other, &["--ram", "lots"], 2, "8GiB"),
        (&other, &["--alias", "x"], 2, "NAME=MODEL"),
        (&data, &[], 7, "another server"),
    ] {
        // The last `--listen` counts.
        let mut command = command(data, &[]);
        let listen = arguments.first() == Some(&"--listen");
        if listen {
            command = std::process::Command::new(env!("CARGO_BIN_EXE_flux-fast"));
            command.env("FLUX_FAST_CONFIG", "").args(["serve", "--data"]).arg(data);
        }
        let output = command.args(arguments).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
        assert!(err.contains("error: ") && err.contains(expected), "{arguments:?}: {err}");
    }
}
