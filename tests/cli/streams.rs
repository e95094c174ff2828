//! Streams, and files that are not regular: stdin, stdout, FIFOs. And what is said of a prompt.

use std::fs;
use std::path::Path;
use std::process::Command;

use flux_fast::pipeline::images::{Format, encode};
use flux_fast::pipeline::request::Image;
use serde_json::Value;

use super::binary::{a_picture, code, command, run, stderr, stdout};

#[test]
#[cfg(target_os = "linux")]
fn a_full_stdout_is_exit_7_and_a_reader_that_went_away_is_not_an_error() {
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["models"],
        &["models", "--json"],
        &["plan", "a fox"],
        &["completions", "bash"],
        &["man"],
        &["inspect", "assets/tiny/flux-tiny.safetensors"],
        &["--help"],
        &["plan", "--help"],
        &["--version"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command(arguments).stdout(full).output().unwrap();
        assert_eq!(code(&output), Some(7), "{arguments:?}: {}", stderr(&output));
        // A driver that `doctor` opens may print to stderr, too.
        assert!(
            stderr(&output).lines().any(|l| l.starts_with("error: stdout: ")),
            "{}",
            stderr(&output)
        );

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(arguments).stdout(writer).output().unwrap();
        assert_eq!(code(&output), Some(0), "{arguments:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(!said.contains("panicked") && !said.contains("stdout"), "{arguments:?}: {said}");
    }
    // An image that nobody receives is lost.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let lost = ["a fox", "--steps", "1", "-o", "-"];
    let output = command(&lost).stdout(writer).output().unwrap();
    assert_eq!(code(&output), Some(7), "{}", stderr(&output));
    // With stderr closed, too, the exit code still says it.
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = command(&["a fox", "--steps", "0", "--json"])
        .stdout(full())
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
    let status =
        command(&["inspect", "/nowhere", "--json"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn images_on_stdin_are_inspected_and_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    a_picture(&path, None);
    let with = |arguments: &[&str], file: &Path| {
        let stdin = fs::File::open(file).unwrap();
        command(arguments).current_dir(&folder).stdin(stdin).output().unwrap()
    };
    let output = with(&["inspect", "-"], &path);
    assert!(stdout(&output).contains("size: 16x16\n"), "{}", stderr(&output));
    let output = with(&["inspect", "-", "--json"], &path);
    let told: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(told["seed_text"], "18446744073709551615");
    let bare = folder.path().join("bare.bmp");
    let picture = Image { width: 16, height: 8, rgb: vec![127; 384] };
    fs::write(&bare, encode(&picture, Format::Bmp, 90, "").unwrap()).unwrap();
    let output = with(&["inspect", "-"], &bare);
    assert!(stdout(&output).contains("16x8, no settings inside"), "{}", stderr(&output));
    let again = ["again", "-", "--model", "embedded", "--steps", "1", "-o", "y.png"];
    let output = with(&again, &path);
    assert_eq!(code(&output), Some(0), "{}", stderr(&output));
    assert!(folder.path().join("y.png").is_file());

    let text = folder.path().join("x.txt");
    fs::write(&text, "not an image").unwrap();
    for (arguments, words) in [
        (&["inspect", "-"][..], "only images"),
        (&["again", "-"], "PNG, JPEG"),
        (&["again", "-", "-p", "-"], "stdin cannot be both"),
        (&["again", "-", "-i", "-"], "stdin cannot be both"),
    ] {
        let output = with(arguments, &text);
        assert_eq!(code(&output), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn an_empty_prompt_is_drawn_with_a_note_and_an_empty_stdin_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for prompt in ["", "  "] {
        let arguments = [prompt, "--steps", "1", "-o", "x.png"];
        let output = command(&arguments).current_dir(&folder).output().unwrap();
        assert_eq!(code(&output), Some(0), "{}", stderr(&output));
        assert!(stderr(&output).contains("the prompt is empty"), "{}", stderr(&output));
    }
    let output = command(&["-"]).current_dir(&folder).output().unwrap();
    assert_eq!(code(&output), Some(2));
    assert!(stderr(&output).contains("no prompt on stdin"), "{}", stderr(&output));
}

#[test]
fn syntax_of_other_programs_is_said_in_one_note_for_each_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "a (red:1.2) fox BREAK {snow|rain}",
        "--negative",
        "((blurry))",
        "--cfg-scale",
        "2",
        "--steps",
        "1",
    ];
    let output = command(&arguments).current_dir(&folder).output().unwrap();
    let said = stderr(&output);
    assert_eq!(code(&output), Some(0), "{said}");
    let notes: Vec<&str> = said.lines().filter(|l| l.contains("other programs")).collect();
    assert_eq!(notes.len(), 2, "{said}");
    assert!(notes[0].contains("(red:1.2)") && notes[0].contains("{snow|rain}"), "{said}");
    assert!(notes[1].contains("the negative prompt") && notes[1].contains("((blurry))"), "{said}");
}

#[test]
#[cfg(unix)]
fn a_configuration_that_is_not_a_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [fifo.to_str().unwrap(), "/dev/zero", "."] {
        let output = run(&["doctor", "--config", path]);
        assert_eq!(code(&output), Some(2), "{path}: {}", stderr(&output));
        assert!(stderr(&output).contains("not a regular file"), "{}", stderr(&output));
    }
    assert_eq!(code(&run(&["doctor", "--config", "/dev/null"])), Some(0));
}
