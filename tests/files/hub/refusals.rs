//! Pulls that fail: each error says what failed, where, and what to try, and no incomplete file has
//! a final name.

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use flux_fast::error::{Error, Kind};
use flux_fast::library::hub::{Credentials, PullOptions, PullProgress, pull};

use super::pulls::{blobs, quietly, tree};
use super::server::{Answer, COMMIT, Request, Server, TOKEN, hub, noise, options, repository};

/// The error of a pull from a server that gives `answer` to every request whose path ends with
/// `path`.
fn refused(path: &'static str, answer: Answer) -> (Error, Server) {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server =
        Server::start(
            move |r, _| if r.path.ends_with(path) { answer.clone() } else { hub(&files, r) },
        );
    let e = quietly(&options(&server.address, cache.path())).unwrap_err();
    assert!(
        !tree(cache.path()).iter().any(|f| f.contains("snapshots") || f.contains("refs")),
        "{:?}",
        tree(cache.path())
    );
    assert!(!format!("{e} {e:?}").contains(TOKEN), "{e:?}");
    (e, server)
}

fn contains(e: &Error, parts: &[&str]) {
    let text = format!("{e}\n{}", e.hint().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn a_gated_repository_names_the_licence_page_the_token_and_the_code() {
    for status in [401, 403] {
        let (e, server) =
            refused("model.safetensors", Answer::status(status).with("X-Error-Code", "GatedRepo"));
        let page = format!("{}/org/name", server.address);
        contains(
            &e,
            &[
                "gated",
                &format!("HTTP {status}"),
                "the environment variable HF_TOKEN",
                "licence",
                &page,
            ],
        );
        assert_eq!(e.kind(), Kind::Missing);
        assert_eq!(
            server.requests("HEAD", "model.safetensors").len(),
            1,
            "a refusal is not retried"
        );
        assert!(
            server.requests("GET", "config.json").is_empty(),
            "nothing is downloaded before that"
        );
    }
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| Answer::status(401).with("X-Error-Code", "GatedRepo"));
    let token = Credentials::none("HF_TOKEN is not set");
    let e = quietly(&PullOptions { token, ..options(&server.address, cache.path()) }).unwrap_err();
    contains(&e, &["no token (HF_TOKEN is not set)"]);
    assert!(server.log.lock().unwrap().iter().all(|r| !r.headers.contains_key("authorization")));
}

#[test]
fn each_refusal_has_its_own_message() {
    let with = |status: u16, code: &str| Answer::status(status).with("X-Error-Code", code);
    let api = "?blobs=true";
    let cases: [(&'static str, Answer, &[&str]); 8] = [
        (api, with(404, "RepoNotFound"), &["no such repository", "HTTP 404"]),
        (
            api,
            with(401, "RepoNotFound"),
            &["no such repository, or a private one", "HTTP 401", "HF_TOKEN"],
        ),
        (api, with(404, "RevisionNotFound"), &["no revision `main`", "HTTP 404"]),
        (
            "model.safetensors",
            with(404, "EntryNotFound"),
            &["no such file", "org/name/model.safetensors"],
        ),
        (
            api,
            Answer::status(401)
                .with("X-Error-Message", "Invalid credentials in Authorization header"),
            &["does not accept the token of the environment variable HF_TOKEN", "settings/tokens"],
        ),
        (
            api,
            Answer::status(403).with("X-Error-Message", "Only for members"),
            &["HTTP 403", "Only for members"],
        ),
        (
            api,
            Answer { body: b"<html>".to_vec(), ..Answer::status(200) },
            &["does not answer like a hub", "login page"],
        ),
        (api, Answer::status(404), &["not found (HTTP 404)"]),
    ];
    for (path, answer, parts) in cases {
        contains(&refused(path, answer).0, parts);
    }
}

#[test]
fn servers_that_keep_failing_are_given_up() {
    let (e, server) = refused("?blobs=true", Answer::status(500));
    contains(&e, &["HTTP 500", "3 attempts"]);
    assert_eq!(server.requests("GET", "?blobs=true").len(), 3);
    let (e, server) =
        refused("?blobs=true", Answer::status(429).with("RateLimit", "\"api\";r=0;t=250"));
    contains(&e, &["HTTP 429", "again in 250 s"]);
    assert_eq!(server.requests("GET", "?blobs=true").len(), 1);
    let cache = tempfile::tempdir().unwrap();
    let e = quietly(&options("http://127.0.0.1:1", cache.path())).unwrap_err();
    contains(&e, &["127.0.0.1 cannot be reached", "HTTPS_PROXY"]);
    let server = Server::start(|_, _| Answer::status(200));
    let e =
        quietly(&options(&server.address.replace("http:", "https:"), cache.path())).unwrap_err();
    contains(&e, &["does not use https"]);
    let e = quietly(&options("ftp://x", cache.path())).unwrap_err();
    assert_eq!(e.kind(), Kind::Argument);
    // Redirects that form a loop, or do not lead to an address.
    for location in ["?blobs=true", "nowhere://", "http://"] {
        refused("?blobs=true", Answer::status(302).with("Location", location));
    }
}

#[test]
fn a_server_that_makes_no_progress_is_given_up() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    // Without ranges, and cut at the same byte each time, the download would never end.
    let server = Server::start(move |request, _| {
        let usual = hub(&files, &Request { headers: Default::default(), ..request.clone() });
        let is_weights = request.method == "GET" && request.path.ends_with("model.safetensors");
        Answer { cut: is_weights.then_some(300_000), ..usual }
    });
    contains(&quietly(&options(&server.address, cache.path())).unwrap_err(), &["attempts failed"]);
    assert!(server.requests("GET", "model.safetensors").len() <= 5);
    // A connection on which nothing arrives: the test ends only if the silence is noticed.
    let files = repository();
    let server = Server::start(move |request, _| {
        let silent = request.path.ends_with("model.safetensors");
        let pause = if silent { Duration::MAX } else { Duration::ZERO };
        Answer { pause, ..hub(&files, request) }
    });
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&server.address, cache.path());
    options.retry.attempts = 1;
    assert!(quietly(&options).is_err());
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_nothing() {
    for (index, name) in [(2, "model.safetensors"), (1, "config.json")] {
        let cache = tempfile::tempdir().unwrap();
        let files = repository();
        let server = Server::start(move |request, _| {
            let mut answer = hub(&files, request);
            if request.method == "GET" && request.path.ends_with(name) {
                answer.body[1] ^= 1;
            }
            answer
        });
        let e = quietly(&options(&server.address, cache.path())).unwrap_err();
        contains(&e, &["checksum", name, &repository()[index].etag()]);
        assert_eq!(e.kind(), Kind::Model);
        assert!(!blobs(cache.path()).iter().any(|b| b.starts_with(&repository()[index].etag())));
        assert_eq!(server.requests("GET", name).len(), 2, "the download is tried a second time");
    }
    let longer = Answer { body: noise(1, (1 << 20) + 5), ..Answer::status(200) };
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server =
        Server::start(move |request, _| match request.path.ends_with("model.safetensors") {
            true if request.method == "GET" => longer.clone(),
            _ => hub(&files, request),
        });
    contains(
        &quietly(&options(&server.address, cache.path())).unwrap_err(),
        &["more bytes than the file has"],
    );
}

#[test]
fn a_full_disk_is_detected_before_the_download_or_reported_with_the_path() {
    let (e, server) = refused(
        "model.safetensors",
        Answer::status(200)
            .with("X-Linked-Etag", "x")
            .with("X-Linked-Size", 1u64 << 60)
            .with("X-Repo-Commit", COMMIT),
    );
    contains(&e, &["not enough free space", "found", "expected 1152921", "HF_HUB_CACHE"]);
    assert_eq!(e.kind(), Kind::Output);
    assert!(server.requests("GET", "config.json").is_empty());
    #[cfg(target_os = "linux")]
    {
        let cache = tempfile::tempdir().unwrap();
        let files = repository();
        let part =
            cache.path().join(format!("models--org--name/blobs/{}.incomplete", files[2].etag()));
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/full", part).unwrap();
        let server = Server::start(move |request, _| hub(&files, request));
        let e = quietly(&options(&server.address, cache.path())).unwrap_err();
        contains(&e, &["No space left", ".incomplete", "free space"]);
        assert_eq!(e.kind(), Kind::Output);
    }
    // A file where the folder of the cache should be.
    let file = tempfile::NamedTempFile::new().unwrap();
    let files = repository();
    let server = Server::start(move |request, _| hub(&files, request));
    assert_eq!(quietly(&options(&server.address, file.path())).unwrap_err().kind(), Kind::Output);
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    let inside = cache.path().join("a/b");
    for evil in [
        "../../evil.safetensors",
        "/tmp/evil.safetensors",
        "a\\\\..\\\\evil.safetensors",
        "x/../../evil.safetensors",
    ] {
        let server = Server::start(move |request, _| {
            let list = format!(
                r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{evil}", "size": 3}}]}}"#
            );
            match request.path.starts_with("/api/") {
                true => Answer { body: list.into_bytes(), ..Answer::status(200) },
                false => Answer { body: b"abc".to_vec(), ..Answer::status(200).with("ETag", "e") },
            }
        });
        contains(
            &quietly(&options(&server.address, &inside)).unwrap_err(),
            &["outside its folder"],
        );
        assert_eq!(server.log.lock().unwrap().len(), 1);
    }
    for etag in ["../../evil", "a/b", ".x", "", "a b", "a:b"] {
        let answer =
            Answer::status(200).with("ETag", format!("\"{etag}\"")).with("X-Repo-Commit", COMMIT);
        let (e, _) = refused("config.json", answer);
        contains(&e, &["ETag"]);
    }
    let (e, _) = refused(
        "config.json",
        Answer::status(200).with("ETag", "\"e\"").with("X-Repo-Commit", "../x"),
    );
    contains(&e, &["another commit"]);
    for repo in ["../x", "org/../x", "org/name/x", "a--b/c", "org/na me"] {
        let options = PullOptions { repo: repo.into(), ..options("http://127.0.0.1:1", &inside) };
        assert_eq!(quietly(&options).unwrap_err().kind(), Kind::Argument, "{repo}");
    }
    for revision in ["../main", "/main", "a/../../b"] {
        let options =
            PullOptions { revision: revision.into(), ..options("http://127.0.0.1:1", &inside) };
        assert_eq!(quietly(&options).unwrap_err().kind(), Kind::Argument, "{revision}");
    }
    assert!(tree(cache.path()).is_empty());
}

#[test]
fn a_token_is_found_where_other_tools_keep_it_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().to_str().unwrap().to_string();
    fs::write(folder.path().join("token"), format!(" {TOKEN}\n")).unwrap();
    fs::write(folder.path().join("other"), "two words").unwrap();
    let found = |variables: &[(&str, &str)]| {
        let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        Credentials::from_env(&env)
    };
    let other = format!("{home}/other");
    let cases: [(&[(&str, &str)], &str); 6] = [
        (
            &[("HF_TOKEN", TOKEN), ("HF_HOME", &home)],
            "the token of the environment variable HF_TOKEN",
        ),
        (
            &[("HF_TOKEN", " "), ("HUGGING_FACE_HUB_TOKEN", TOKEN)],
            "variable HUGGING_FACE_HUB_TOKEN",
        ),
        (&[("HF_HOME", &home)], &format!("the token of {home}/token")),
        (&[("HF_TOKEN_PATH", &other), ("HF_HOME", &home)], &format!("the token of {other}")),
        (&[("HOME", &home)], &format!("{home}/.cache/huggingface/token does not exist")),
        (
            &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", TOKEN)],
            "no token (HF_HUB_DISABLE_IMPLICIT_TOKEN is set)",
        ),
    ];
    for (variables, words) in cases {
        let credentials = found(variables);
        assert!(credentials.describe().contains(words), "{}", credentials.describe());
        assert!(!format!("{credentials:?} {}", credentials.describe()).contains(TOKEN));
    }
    let bad = PullOptions {
        token: found(&[("HF_TOKEN_PATH", &other)]),
        ..options("http://127.0.0.1:1", folder.path())
    };
    let e = quietly(&bad).unwrap_err();
    contains(&e, &["is not a token", &other]);
    assert!(!e.to_string().contains("two words"));
}

#[test]
fn a_pull_that_is_stopped_during_a_wait_stops_at_once() {
    let cache = tempfile::tempdir().unwrap();
    // The test ends only if the wait of 11 days is interrupted.
    let server = Server::start(|_, _| Answer::status(503).with("Retry-After", 1_000_000));
    let mut noted = false;
    let mut options = options(&server.address, cache.path());
    options.retry.max_wait = Duration::MAX;
    let e = pull(&options, &mut |p| {
        noted |= matches!(p, PullProgress::Note(_));
        if noted && p == PullProgress::Tick {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(e.unwrap_err().kind(), Kind::Cancelled);
}
