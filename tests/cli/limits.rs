//! Limits of the system, and signals: an error with its exit code, never a panic.

use std::fs;
use std::io::Read;
use std::process::Command;

use serde_json::{Value, json};

use super::stranger::{BINARY, finished, prepare, shell, texts};
use crate::common::tensors::Tensors;

#[test]
fn a_hangup_stops_a_run_unless_it_was_started_to_ignore_it() {
    // A shell cannot undo what it inherits, for example from nohup.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    if u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 != 0 {
        eprintln!("SKIPPED: this process ignores SIGHUP");
        return;
    }
    for (before, code) in [(":", Some(129)), ("trap '' HUP", Some(0))] {
        let dir = tempfile::tempdir().unwrap();
        let steps = if code == Some(0) { "20" } else { "1000" };
        let arguments = ["a fox", "--steps", steps, "--device", "cpu", "--no-cache", "-o", "x.png"];
        let mut child = shell(dir.path(), before, &arguments).spawn().unwrap();
        let stderr = child.stderr.as_mut().unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&seen).contains("denoise")
            && stderr.read(&mut byte).unwrap() == 1
        {
            seen.push(byte[0]);
        }
        let kill = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let output = finished(child, "a run that was hung up");
        assert_eq!(output.status.code(), code, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), usize::from(code == Some(0)));
    }
}

#[test]
fn limits_of_the_system_are_errors_and_not_aborts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let arguments = ["a fox", "--steps", "1", "--device", "cpu", "--no-cache", "-o", "x.png"];
    // Address space and data: from less than the program needs to enough.
    for limit in ["-v 160000", "-v 220000", "-v 300000", "-v 400000", "-d 20000", "-d 60000"] {
        let child = shell(folder, &format!("ulimit {limit}"), &arguments).spawn().unwrap();
        let (code, _, err) = texts(finished(child, limit));
        assert!(matches!(code, Some(0 | 5 | 6)), "{limit}: {code:?} {err}");
        assert!(!err.contains("panicked"), "{limit}: {err}");
        let has_image = folder.join("x.png").exists();
        assert_eq!(has_image, code == Some(0), "{limit}: {err}");
        fs::remove_file(folder.join("x.png")).ok();
    }
    // The size of files: a write is an error, not a signal, and nothing is left.
    let child = shell(folder, "ulimit -f 1", &arguments).spawn().unwrap();
    let (code, _, err) = texts(finished(child, "-f 1"));
    assert_eq!(code, Some(7), "{err}");
    assert!(err.contains("x.png") && !err.contains(".flux-fast-"), "{err}");
    Tensors::tiny().write(folder.join("flux.safetensors"));
    let convert = ["convert", "flux.safetensors", "--to", "fp8", "-o", "y.safetensors"];
    let child = shell(folder, "ulimit -f 100", &convert).spawn().unwrap();
    let (code, _, err) = texts(finished(child, "-f 100"));
    assert_eq!(code, Some(7), "{err}");
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["flux.safetensors"]);
}

#[test]
fn an_abort_is_told_as_exhausted_memory_only_where_memory_is_limited() {
    for (before, expected, words) in
        [("ulimit -v unlimited", 6, "was aborted"), ("ulimit -v 16000000", 5, "no more memory")]
    {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["a fox", "--steps", "1000", "--device", "cpu", "--no-cache"];
        let mut child = shell(dir.path(), before, &arguments).spawn().unwrap();
        let stderr = child.stderr.as_mut().unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&seen).contains("denoise")
            && stderr.read(&mut byte).unwrap() == 1
        {
            seen.push(byte[0]);
        }
        let kill = Command::new("kill").args(["-ABRT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let (code, _, err) = texts(finished(child, "a run that was aborted"));
        assert_eq!(code, Some(expected), "{before}: {err}");
        assert!(err.contains(words), "{before}: {err}");
    }
}

/// Limits on processes do not apply to root, so that another user is needed there.
#[test]
fn a_limit_on_threads_is_an_error_or_fewer_threads() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let is_root = fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    });
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let starts = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        prepare(&mut command, folder).args(&words[1..]);
        command.output().is_ok_and(|output| output.status.success())
    };
    if is_root && !starts(&[&user[..], &["prlimit", BINARY, "--version"]].concat()) {
        eprintln!("SKIPPED: the program cannot be started as another user");
        return;
    }
    let before: &[&str] = if is_root { &user } else { &["env"] };
    for limit in ["1", "2", "8"] {
        let limit = format!("--nproc={limit}");
        let arguments = ["a fox", "--steps", "1", "--device", "cpu", "--no-cache", "-o", "x.png"];
        let mut command = Command::new(before[0]);
        prepare(&mut command, folder)
            .args(&before[1..])
            .args(["prlimit", &limit, BINARY])
            .args(arguments);
        let (code, _, err) = texts(finished(command.spawn().unwrap(), &limit));
        assert!(matches!(code, Some(0 | 5 | 6)), "{limit}: {code:?} {err}");
        assert!(!err.contains("panicked"), "{limit}: {err}");
        assert!(code == Some(0) || err.contains("ulimit -u"), "{limit}: {err}");
    }
}

/// A disk of its own, in a mount namespace that ends with the process.
#[test]
fn a_full_disk_says_which_images_exist() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = |command: &str| {
        let script = format!("mount -t tmpfs -o size=128k tmpfs disk && cd disk && {command}");
        let mut shell = Command::new("unshare");
        prepare(&mut shell, folder).args(["--mount", "sh", "-c", &script, BINARY]);
        shell
    };
    if !mounted("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no file system can be mounted here (that needs root)");
        return;
    }
    // An image of 128x128 is 49 KB.
    let draw = "\"$0\" fox -n 4 --steps 1 --device cpu --no-cache --json -o x.bmp; code=$?; ls -A; \
                exit $code";
    let child = mounted(draw).spawn().unwrap();
    let (code, out, err) = texts(finished(child, "a full disk"));
    assert_eq!(code, Some(7), "{err}");
    let (json, names) = out.split_once('\n').unwrap();
    let error = &serde_json::from_str::<Value>(json).unwrap()["error"];
    assert_eq!(error["written"], json!(["x-1.bmp", "x-2.bmp"]), "{error}");
    assert_eq!(names.lines().collect::<Vec<_>>(), ["x-1.bmp", "x-2.bmp"]);
    assert!(err.contains("x-3.bmp") && err.contains("2 of 4 images"), "{err}");
    assert!(err.contains("free some space") && !err.contains(".flux-fast-"), "{err}");
}
