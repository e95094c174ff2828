//! Pulls that succeed: complete, resumed, redirected, and several at the same time.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flux_fast::error::{Kind, Result};
use flux_fast::library::hf_cache::HubCache;
use flux_fast::library::hub::{PullOptions, PullProgress, Pulled, Selection, pull};

use super::server::{
    Answer, COMMIT, Kept, Request, Server, TOKEN, hub, noise, options, repository,
};

/// Pulls without a receiver of progress.
pub fn quietly(options: &PullOptions) -> Result<Pulled> {
    pull(options, &mut |_| ControlFlow::Continue(()))
}

/// The same, with the notes that were reported.
fn with_notes(options: &PullOptions) -> (Result<Pulled>, Vec<String>) {
    let mut notes = Vec::new();
    let outcome = pull(options, &mut |p| {
        if let PullProgress::Note(text) = p {
            notes.push(text.to_string());
        }
        ControlFlow::Continue(())
    });
    (outcome, notes)
}

/// The names of all files below `folder`.
pub fn tree(folder: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() && !entry.path().is_symlink() {
            true => out.extend(tree(&entry.path()).into_iter().map(|n| format!("{name}/{n}"))),
            false => out.push(name),
        }
    }
    out.sort();
    out
}

/// The names of the blobs of the test repository.
pub fn blobs(cache: &Path) -> Vec<String> {
    tree(&cache.join("models--org--name/blobs"))
}

/// The weight file of the test repository.
fn weights() -> Kept {
    repository().swap_remove(2)
}

/// Asserts that the files have the right bytes.
fn assert_complete(pulled: &Pulled) {
    for file in repository().iter().filter(|f| pulled.files.iter().any(|n| n == f.name)) {
        assert!(
            fs::read(pulled.snapshot.join(file.name)).unwrap() == file.bytes,
            "{} differs",
            file.name
        );
    }
}

/// A server that passes its answer to a GET request for the weights through `answer`.
fn server(answer: impl Fn(Answer, &Request, usize) -> Answer + Send + Sync + 'static) -> Server {
    let files = repository();
    Server::start(move |request, before| {
        let usual = hub(&files, request);
        let is_weights = request.method == "GET" && request.path.ends_with("model.safetensors");
        if is_weights { answer(usual, request, before) } else { usual }
    })
}

#[test]
fn a_pull_has_the_layout_of_hugging_faces_tools() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, _| usual);
    let options = options(&server.address, &cache.path().join("hub"));
    let mut planned = None;
    let mut last = 0;
    let pulled = pull(&options, &mut |p| {
        match p {
            PullProgress::Planned { files, bytes, cached } => {
                planned = Some((files, bytes, cached))
            }
            PullProgress::Bytes { done, bytes, .. } => {
                assert!(done >= last && done <= bytes, "{last} {done} {bytes}");
                last = done;
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(planned, Some((2, (1 << 20) + 2, 0)));
    assert_eq!((pulled.received, pulled.commit.as_str()), ((1 << 20) + 2, COMMIT));
    assert_complete(&pulled);
    let etags = [repository()[1].etag(), weights().etag()];
    let folder = "models--org--name";
    let mut expected = vec![
        "CACHEDIR.TAG".to_string(),
        format!("{folder}/refs/main"),
        format!("{folder}/snapshots/{COMMIT}/config.json"),
        format!("{folder}/snapshots/{COMMIT}/model.safetensors"),
    ];
    expected.extend(
        etags
            .iter()
            .flat_map(|e| [format!("{folder}/blobs/{e}"), format!(".locks/{folder}/{e}.lock")]),
    );
    expected.sort();
    assert_eq!(tree(&options.cache), expected);
    assert_eq!(fs::read_to_string(options.cache.join(folder).join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(pulled.snapshot.join("model.safetensors")).unwrap(),
        Path::new(&format!("../../blobs/{}", weights().etag()))
    );
    let again = quietly(&options).unwrap();
    assert_eq!((again.received, again.bytes), (0, pulled.bytes));
    assert_eq!(server.requests("GET", "model.safetensors").len(), 1);
    assert_eq!(
        server.requests("HEAD", "").len(),
        2,
        "files in the snapshot are not requested again"
    );
    let cache = HubCache { root: options.cache.clone() };
    assert_eq!(cache.repos(), ["org/name"]);
    assert_eq!(cache.repo("org/name").current(), Some(pulled.snapshot));
}

#[test]
fn only_named_files_are_pulled_and_the_cache_serves_offline() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, _| usual);
    let mut options = options(&server.address, cache.path());
    options.selection = Selection::Named(vec!["model.safetensors".into()]);
    assert_eq!(quietly(&options).unwrap().files, ["model.safetensors"]);
    let before = server.log.lock().unwrap().len();
    options.offline = true;
    assert_complete(&quietly(&options).unwrap());
    options.selection = Selection::Needed;
    assert_eq!(quietly(&options).unwrap().files, ["model.safetensors"]);
    options.selection = Selection::Named(vec!["config.json".into()]);
    let e = quietly(&options).unwrap_err();
    assert!(e.kind() == Kind::Missing && e.to_string().contains("offline"), "{e}");
    assert!(e.hint().unwrap().contains("HF_HUB_OFFLINE"), "{e:?}");
    assert_eq!(server.log.lock().unwrap().len(), before, "offline makes no requests");
}

#[test]
fn a_download_resumes_after_a_lost_connection() {
    let cache = tempfile::tempdir().unwrap();
    let server =
        server(|usual, _, before| Answer { cut: (before < 2).then_some(300_000), ..usual });
    let (pulled, notes) = with_notes(&options(&server.address, cache.path()));
    let pulled = pulled.unwrap();
    assert_complete(&pulled);
    assert_eq!(pulled.received, pulled.bytes, "nothing was received twice");
    let from: Vec<_> =
        server.requests("GET", "model.safetensors").iter().map(Request::from).collect();
    assert_eq!(from, [None, Some(300_000), Some(600_000)]);
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn a_server_without_ranges_starts_over() {
    let cache = tempfile::tempdir().unwrap();
    let whole = weights().bytes;
    let server = server(move |usual, _, before| Answer {
        status: 200,
        body: whole.clone(),
        cut: (before == 0).then_some(300_000),
        headers: usual.headers.into_iter().filter(|(n, _)| n != "Content-Range").collect(),
        ..Answer::default()
    });
    let (pulled, notes) = with_notes(&options(&server.address, cache.path()));
    assert_complete(&pulled.unwrap());
    assert!(notes.iter().any(|n| n.contains("cannot resume")), "{notes:?}");
    assert_eq!(server.requests("GET", "model.safetensors").len(), 2);
}

#[test]
fn another_range_than_asked_for_starts_over() {
    for wrong in ["bytes 0-1048575/1048576", "bytes 300000-1048575/9", "nonsense"] {
        let cache = tempfile::tempdir().unwrap();
        let server = server(move |usual, request, before| match (before, request.from()) {
            (0, _) => Answer { cut: Some(300_000), ..usual },
            (_, Some(_)) => Answer { status: 206, body: usual.body, ..Answer::default() }
                .with("Content-Range", wrong),
            _ => usual,
        });
        assert_complete(&quietly(&options(&server.address, cache.path())).unwrap());
    }
}

#[test]
fn a_stopped_pull_is_resumed_by_the_next_one() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, _| Answer { pause: Duration::from_millis(1), ..usual });
    let options = options(&server.address, cache.path());
    let mut had = 0;
    let e = pull(&options, &mut |p| match p {
        PullProgress::Bytes { file: "model.safetensors", file_done, .. } if file_done > 200_000 => {
            had = file_done;
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })
    .unwrap_err();
    assert_eq!(e.kind(), Kind::Cancelled);
    assert!(
        !cache
            .path()
            .join(format!("models--org--name/snapshots/{COMMIT}/model.safetensors"))
            .exists()
    );
    assert!(
        !cache.path().join("models--org--name/refs/main").exists(),
        "an incomplete snapshot has no reference"
    );
    let partial = format!("{}.incomplete", weights().etag());
    assert!(blobs(cache.path()).contains(&partial), "{:?}", blobs(cache.path()));
    let pulled = quietly(&options).unwrap();
    assert_complete(&pulled);
    assert_eq!(pulled.received, (1 << 20) - had);
    assert!(!blobs(cache.path()).contains(&partial));
}

#[test]
fn a_file_that_changes_during_the_download_is_downloaded_under_its_new_etag() {
    let cache = tempfile::tempdir().unwrap();
    let new = Kept { name: "model.safetensors", bytes: noise(9, 1 << 20), large: true };
    let fetched = Arc::new(AtomicUsize::new(0));
    let (old, expected) = (repository(), new.clone());
    let server = Server::start(move |request, _| {
        let is_get = request.method == "GET" && request.path.ends_with("model.safetensors");
        match fetched.load(Ordering::SeqCst) {
            0 if is_get => {
                fetched.store(1, Ordering::SeqCst);
                Answer { cut: Some(300_000), ..hub(&old, request) }
            }
            0 => hub(&old, request),
            _ => hub(&[old[1].clone(), new.clone()], request),
        }
    });
    let (pulled, notes) = with_notes(&options(&server.address, cache.path()));
    let pulled = pulled.unwrap();
    assert!(fs::read(pulled.snapshot.join("model.safetensors")).unwrap() == expected.bytes);
    assert!(notes.iter().any(|n| n.contains("changed on the hub")), "{notes:?}");
    let mut names = vec![repository()[1].etag(), expected.etag()];
    names.sort();
    assert_eq!(blobs(cache.path()), names, "nothing is left of the old file");
}

#[test]
fn a_damaged_part_is_detected_and_downloaded_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, _| usual);
    let folder = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&folder).unwrap();
    // As after a stopped download and a disk error. A part cannot be longer than the file.
    for part in [noise(7, 300_000), noise(7, 1 << 20), noise(7, 2 << 20)] {
        fs::remove_dir_all(cache.path()).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{}.incomplete", weights().etag())), part).unwrap();
        assert_complete(&quietly(&options(&server.address, cache.path())).unwrap());
    }
}

#[test]
fn too_many_requests_and_server_errors_are_retried_after_a_wait() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, before| match before {
        0 => Answer::status(429).with("Retry-After", 2),
        1 => Answer::status(503),
        _ => usual,
    });
    let (pulled, notes) = with_notes(&options(&server.address, cache.path()));
    assert_complete(&pulled.unwrap());
    assert!(notes[0].contains("429") && notes[0].contains("in 2 s"), "{notes:?}");
    assert!(notes[1].contains("503") && notes[1].contains("in 1 s"), "{notes:?}");
}

#[test]
fn the_token_does_not_follow_a_redirect_to_another_host() {
    let cache = tempfile::tempdir().unwrap();
    let store = Server::start(|request, _| {
        Answer::bytes(&weights().bytes, request).with("ETag", "\"of-the-store\"")
    });
    let (files, away) = (repository(), store.address.clone());
    let hub = Server::start(move |request, before| {
        let usual = hub(&files, request);
        match request.path.as_str() {
            // A renamed repository on the same host: the token is sent there, too.
            p if p.starts_with("/old/") => {
                Answer::status(307).with("Location", p.replace("/old/", "/org/"))
            }
            "/api/models/old/name/revision/main?blobs=true" => Answer::status(301)
                .with("Location", "/api/models/org/name/revision/main?blobs=true"),
            p if p.ends_with("model.safetensors") => {
                let mut answer = Answer { body: vec![], status: 302, ..usual };
                answer.headers.retain(|(n, _)| n != "Content-Range");
                answer
                    .with("X-Linked-Size", 1 << 20)
                    .with("Location", format!("{away}/signed?n={before}"))
            }
            _ => usual,
        }
    });
    let mut options = options(&hub.address, cache.path());
    options.repo = "old/name".to_string();
    let pulled = quietly(&options).unwrap();
    assert_complete(&pulled);
    assert!(pulled.snapshot.to_string_lossy().contains("models--old--name"));
    let bearer = format!("Bearer {TOKEN}");
    for request in hub.log.lock().unwrap().iter() {
        assert_eq!(request.headers.get("authorization"), Some(&bearer), "{request:?}");
    }
    let log = store.log.lock().unwrap();
    assert_eq!(log.len(), 1, "the size is known from the hub");
    assert!(log.iter().all(|r| !format!("{r:?}").contains(TOKEN)), "{log:?}");
}

#[test]
fn pulls_at_the_same_time_download_each_file_once() {
    let cache = tempfile::tempdir().unwrap();
    let server = server(|usual, _, _| Answer { pause: Duration::from_millis(20), ..usual });
    let options = options(&server.address, cache.path());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| with_notes(&options))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let received: u64 = outcomes.iter().map(|(pulled, _)| pulled.as_ref().unwrap().received).sum();
    assert_eq!(received, (1 << 20) + 2);
    assert!(
        outcomes.iter().any(|(_, notes)| notes.iter().any(|n| n.contains("another process"))),
        "{outcomes:?}"
    );
    assert_complete(outcomes[0].0.as_ref().unwrap());
}
