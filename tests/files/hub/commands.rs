//! The command `flux-fast pull` against the test server.

use std::process::Command;
use std::time::Duration;

use super::binary::{Home, json, stderr, stdout, tiny};
use super::pulls::{blobs, tree};
use super::server::{Answer, COMMIT, Kept, Request, Server, TOKEN, hub, repository};

/// A home folder, and a server with the embedded model.
fn a_hub(answer: impl Fn(Answer, &Request) -> Answer + Send + Sync + 'static) -> (Home, Server) {
    let files = [
        Kept { name: "config.json", bytes: b"{}".to_vec(), large: false },
        Kept { name: "tiny.safetensors", bytes: tiny(), large: true },
    ];
    (Home::new(), Server::start(move |request, _| answer(hub(&files, request), request)))
}

fn pull(home: &Home, server: &Server, arguments: &[&str]) -> Command {
    let mut command = home.command(&[&["pull"], arguments].concat());
    command.env("HF_ENDPOINT", &server.address).env("HF_TOKEN", TOKEN);
    command
}

#[test]
fn a_pulled_model_is_used_by_its_id() {
    let (home, server) = a_hub(|usual, _| usual);
    let output = pull(&home, &server, &["org/name"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let snapshot = home.at.join(format!("hf/hub/models--org--name/snapshots/{COMMIT}"));
    assert_eq!(std::fs::read(snapshot.join("tiny.safetensors")).unwrap(), tiny());
    let said = stdout(&output);
    assert!(said.contains(&format!("org/name is in {}; ", snapshot.display())), "{said}");
    assert!(
        said.ends_with("flux-fast \"a fox\" --model org/name/tiny.safetensors\n")
            && said.lines().count() == 1
    );
    assert!(
        stderr(&output).contains("2 files") && stderr(&output).contains("received in"),
        "{}",
        stderr(&output)
    );

    let again = json(&pull(&home, &server, &["org/name", "--json", "--quiet"]).output().unwrap());
    assert_eq!(
        (again["received_bytes"].as_u64(), again["commit"].as_str()),
        (Some(0), Some(COMMIT)),
        "{again}"
    );
    assert_eq!(again["model"], "org/name/tiny.safetensors");
    assert_eq!(again["snapshot"], snapshot.to_str().unwrap());

    for name in ["org/name", "org/name/tiny.safetensors", "tiny"] {
        let output = home.run(&[
            "a fox",
            "--model",
            name,
            "--device",
            "cpu",
            "--steps",
            "1",
            "--no-cache",
            "-o",
            "fox.png",
        ]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("(found in the Hugging Face cache)"),
            "{name}: {}",
            stderr(&output)
        );
        std::fs::remove_file(home.at.join("here/fox.png")).unwrap();
    }
}

#[test]
fn a_quiet_pull_prints_only_the_result_and_files_can_be_named() {
    let (home, server) = a_hub(|usual, _| usual);
    let output = pull(&home, &server, &["org/name", "tiny.safetensors", "-q"]).output().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), ""),
        "{}",
        stdout(&output)
    );
    let files = tree(&home.at.join("hf/hub/models--org--name/snapshots"));
    assert_eq!(files, [format!("{COMMIT}/tiny.safetensors")]);
    for (arguments, code, words) in [
        (&["name"][..], 2, "org/name"),
        (&["../../etc"], 2, "org/name"),
        (&["org/name", "../x"], 2, "a file"),
        (&["org/name@v1", "--revision", "v2"], 2, "one of the two"),
        (&["org/name", "no.safetensors"], 4, "org/name/tiny.safetensors"),
        (&["org/name", "x.ckpt"], 2, "pickle"),
        (&["org/other"], 4, "HTTP 404"),
    ] {
        let output = pull(&home, &server, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn weights_that_are_not_a_model_are_reported() {
    let files = repository();
    let (home, server) = (Home::new(), Server::start(move |request, _| hub(&files, request)));
    let output = pull(&home, &server, &["org/name"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("org/name/model.safetensors cannot be used"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn the_error_for_a_gated_repository_contains_the_page_the_source_of_the_token_and_the_status() {
    for (status, token) in [(401, None), (403, Some(TOKEN))] {
        let (home, server) = a_hub(move |usual, request| match request.method.as_str() {
            "HEAD" => Answer::status(status).with("X-Error-Code", "GatedRepo"),
            _ => usual,
        });
        let mut command = pull(&home, &server, &["org/name", "--json"]);
        match token {
            Some(token) => command.env("HF_TOKEN", token),
            None => command.env_remove("HF_TOKEN"),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        let said = stderr(&output);
        let source =
            if token.is_some() { "the environment variable HF_TOKEN" } else { "HF_TOKEN and" };
        for part in
            [&format!("HTTP {status}"), source, "licence", &format!("{}/org/name", server.address)]
        {
            assert!(said.contains(part), "{part} is missing in: {said}");
        }
        assert!(!said.contains(TOKEN) && !stdout(&output).contains(TOKEN));
        assert_eq!(json(&output)["error"]["code"], "missing_file");
    }
}

#[test]
#[cfg(unix)]
fn an_interrupted_pull_is_reported_and_resumed() {
    let (home, server) = a_hub(|usual, request| match request.from() {
        // The first download is slow enough to be interrupted.
        None => Answer { pause: Duration::from_millis(20), ..usual },
        Some(_) => usual,
    });
    let mut child = pull(&home, &server, &["org/name"]).spawn().unwrap();
    let cache = home.at.join("hf/hub");
    let partial = || {
        let name = blobs(&cache).into_iter().find(|b| b.ends_with(".incomplete"))?;
        Some(cache.join("models--org--name/blobs").join(name).metadata().ok()?.len())
    };
    while partial().is_none_or(|bytes| bytes < 1 << 20) {
        assert!(child.try_wait().unwrap().is_none(), "the pull ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(10));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let words = "stopped; what was downloaded is kept, run it again to resume";
    assert!(stderr(&output).contains(words), "{}", stderr(&output));
    assert!(!stderr(&output).contains("image") && stdout(&output).is_empty());
    let had = partial().expect("the received part is kept");

    let output = json(&pull(&home, &server, &["org/name", "--json"]).output().unwrap());
    assert_eq!(output["received_bytes"].as_u64(), Some(tiny().len() as u64 - had), "{output}");
    assert_eq!(partial(), None);
    let from: Vec<_> =
        server.requests("GET", "tiny.safetensors").iter().map(Request::from).collect();
    assert_eq!(from, [None, Some(had as usize)]);
}

/// A repository of Redux has no transformer, and BFL's file next to the folders.
#[test]
fn a_pulled_redux_repository_is_found_by_the_next_style() {
    let dir = tempfile::tempdir().unwrap();
    let names = super::redux::write(dir.path());
    let read = |name: &&str| std::fs::read(dir.path().join(name)).unwrap();
    let mut files: Vec<Kept> =
        names.iter().map(|&name| Kept { name, bytes: read(&name), large: false }).collect();
    files.push(Kept { name: "flux1-redux-dev.safetensors", bytes: vec![0; 99], large: true });
    let home = Home::new();
    let server = Server::start(move |request, _| hub(&files, request));
    let output = pull(&home, &server, &["org/name"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.ends_with("flux-fast \"a fox\" --model MODEL --style IMAGE\n"), "{said}");
    let snapshot = home.at.join(format!("hf/hub/models--org--name/snapshots/{COMMIT}"));
    assert!(!snapshot.join("flux1-redux-dev.safetensors").exists());
    assert!(names.iter().all(|name| snapshot.join(name).is_file()));
    let models = json(&home.run(&["models", "--json"]));
    let listed = models["models"].as_array().unwrap().iter().find(|m| m["name"] == "org/name");
    let listed = listed.unwrap_or_else(|| panic!("{models}"));
    assert!(listed["what"].as_str().unwrap().contains("folder; with"), "{listed}");

    home.put("here/tiny.safetensors", &tiny());
    let pixel = [255u8, 0, 0].repeat(64 * 48);
    let path = home.at.join("here/a.png");
    image::RgbImage::from_raw(64, 48, pixel).unwrap().save(path).unwrap();
    let draw = |more: &[&str]| {
        let fixed = ["a fox", "--model", "tiny.safetensors", "--device", "cpu", "--steps", "1"];
        let output = home.run(&[&fixed[..], &["--style", "a.png", "-o", "x.png"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        std::fs::remove_file(home.at.join("here/x.png")).unwrap();
        stderr(&output)
    };
    assert!(draw(&[]).matches("found in the Hugging Face cache").count() == 2);
    let said = draw(&["--redux", "org/name", "--siglip", "org/name"]);
    assert!(said.contains("(given)"), "{said}");
}
