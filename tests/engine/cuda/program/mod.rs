//! The whole program on the fake driver, each run with its own settings (`FLUX_FAKE_CUDA`) and
//! report.

mod memory;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::common::{psnr, temp_dir};
pub use memory::named;

/// A run of the program that has ended.
pub struct Ran {
    output: Output,
    /// The driver's report: one object for each kernel, device and kind of copy. Empty if no device
    /// was opened.
    report: Vec<Value>,
}

impl Ran {
    fn messages(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    #[track_caller]
    pub fn succeeded(self) -> Ran {
        assert!(self.output.status.success(), "{}", self.messages());
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", self.messages()))
    }

    /// The object that has this key.
    #[track_caller]
    pub fn line(&self, key: &str) -> &Value {
        self.report
            .iter()
            .find(|v| v.get(key).is_some())
            .unwrap_or_else(|| panic!("no {key}: {}", self.messages()))
    }

    /// Peak pinned host memory, in bytes.
    fn pinned(&self) -> u64 {
        self.line("pinned")["peak"].as_u64().unwrap()
    }

    /// Checks that no kernel raced, read uninitialised memory or accessed memory out of bounds.
    /// Returns the names of the kernels that ran.
    #[track_caller]
    fn kernels(&self) -> Vec<&str> {
        let kernels: Vec<&Value> =
            self.report.iter().filter(|v| v["runs"].as_u64() > Some(0)).collect();
        assert!(!kernels.is_empty(), "nothing ran: {}", self.messages());
        kernels.iter().for_each(|v| assert_eq!(v["findings"], json!([]), "{}", v["kernel"]));
        kernels.iter().map(|v| v["kernel"].as_str().unwrap()).collect()
    }
}

/// Runs the program on the fake driver with `settings`. `None`, with a message, where the fake
/// driver does not work.
pub fn program(settings: &str, arguments: &[&str]) -> Option<Ran> {
    program_with(&[], settings, arguments)
}

/// The same with variables of the environment.
fn program_with(env: &[(&str, &Path)], settings: &str, arguments: &[&str]) -> Option<Ran> {
    let folder = match fake_cuda::folder() {
        Ok(folder) => folder,
        Err(e) if cfg!(target_os = "linux") => panic!("{e}"),
        Err(e) => {
            eprintln!("SKIPPED the program on a GPU: {e}");
            return None;
        }
    };
    let own = temp_dir();
    let report = own.path().join("report");
    let settings = format!("{settings},report={}", report.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    // With one heap for all threads, two runs take about the same host memory. Images with default
    // names go to a temporary folder.
    command.env("MALLOC_ARENA_MAX", "1");
    command
        .envs(env.iter().copied())
        .env("LD_LIBRARY_PATH", folder)
        .env("FLUX_FAKE_CUDA", settings)
        .current_dir(own.path())
        .args(arguments);
    let output = command.output().unwrap();
    let report = std::fs::read_to_string(report).unwrap_or_default();
    Some(Ran { output, report: report.lines().map(|l| serde_json::from_str(l).unwrap()).collect() })
}

fn pixels(path: &Path) -> Vec<f32> {
    image::open(path).unwrap().to_rgb8().into_raw().into_iter().map(f32::from).collect()
}

/// The whole engine, from the prompt to the file, on the PTX machine against the CPU.
#[test]
fn the_image_of_the_embedded_model_equals_the_cpus() {
    let folder = temp_dir();
    let draw = |settings: &str, device: &str, more: &[&str]| {
        let out = folder.path().join("out.png");
        let mut arguments = vec![
            "a fox, 3D style, on a blue background",
            "-s",
            "7",
            "--device",
            device,
            "-q",
            "-o",
        ];
        arguments.push(out.to_str().unwrap());
        arguments.extend(more);
        let ran = program(settings, &arguments)?.succeeded();
        Some((pixels(&out), ran))
    };
    let Some((whole, _)) = draw("", "cpu", &[]) else { return };
    let (gpu, _) = draw("checks=0", "cuda:0", &[]).unwrap();
    let db = psnr(&gpu, &whole, 255.0);
    assert!(db >= 40.0, "{db:.1} dB");
    let (short, _) = draw("", "cpu", &["--steps", "4"]).unwrap();
    // One multiprocessor, so that the small model has enough tiles for the kernels that need one
    // per multiprocessor.
    for (settings, device, compute, least, kernels) in [
        ("order=early", "cuda:0", "auto", 40.0, ["linear_e4m3_64x64_sm80", "attention_d128"]),
        (
            "sms.1=1",
            "cuda:1",
            "fp8",
            25.0,
            ["linear_e4m3_w8a8_128x128_sm89", "quantise_rows_e4m3_sm89"],
        ),
        ("order=random:3", "cuda:0", "int8", 25.0, ["linear_int8_64x64_sm80", "rotate_quantise_"]),
        ("sms.2=1", "cuda:2", "auto", 40.0, ["linear_e4m3_wgmma_", "attention_d128_wgmma_sm90a"]),
        (
            "sms.2=1",
            "cuda:2",
            "fp8",
            25.0,
            ["linear_e4m3_w8a8_wgmma_", "attention_d128_wgmma_sm90a"],
        ),
    ] {
        let (gpu, ran) = draw(settings, device, &["--steps", "4", "--compute", compute]).unwrap();
        let db = psnr(&gpu, &short, 255.0);
        assert!(db >= least, "{device} {compute}: {db:.1} dB");
        let seen = ran.kernels();
        assert!(
            kernels.iter().all(|k| seen.iter().any(|s| s.starts_with(k))),
            "{device} {compute}: {seen:?}"
        );
    }
}

#[test]
fn errors_have_their_exit_codes_and_say_what_to_do() {
    let folder = temp_dir();
    let out = folder.path().join("out.png");
    let out = out.to_str().unwrap();
    let draw = |device| ["a fox", "--device", device, "--steps", "1", "-o", out];
    let cases: &[(&str, i32, &[&str])] = &[
        ("fail=alloc:1", 5, &["out of memory", "device memory", "--vram"]),
        ("fail=host:1", 5, &["out of memory", "host memory"]),
        ("fail=context:1", 5, &["out of memory", "context"]),
        ("taken.0=11900M", 5, &["does not fit", "--vram"]),
        ("fail=module:1", 6, &["compiling kernels", "INVALID_PTX"]),
        ("fail=launch:3", 6, &["lost", "719", "--device cpu"]),
        ("fail=copy:2", 6, &["lost", "214", "nvidia-smi"]),
        ("fail=copy:30,order=random:3", 6, &["lost", "214", "nvidia-smi"]),
        ("fail=launch:100,order=random:4", 6, &["lost", "719", "--device cpu"]),
        ("fail=init:1", 6, &["does not work", "nvidia-smi"]),
        ("visible=", 6, &["cuda"]),
        ("visible=3", 6, &["RTX 2060", "7.5", "8.0"]),
        ("driver=11040", 6, &["too old", "11.4", "11.8"]),
    ];
    for (settings, code, says) in cases {
        let Some(ran) = program(&format!("{settings},checks=0"), &draw("cuda")) else { return };
        let messages = ran.messages();
        assert_eq!(ran.output.status.code(), Some(*code), "{settings}: {messages}");
        assert!(says.iter().all(|s| messages.contains(s)), "{settings}: {messages}");
        assert!(!messages.contains("panicked"), "{settings}: {messages}");
        assert!(!Path::new(out).exists(), "{settings}: an image was written");
        // A lost device gets no more calls, except that two threads may find it lost at the same
        // time.
        if messages.contains("lost") {
            assert!(
                ran.line("refused")["refused"].as_u64().unwrap() <= 1,
                "{settings}: {:?}",
                ran.line("refused")
            );
        }
    }
    // Less memory than usual is not an error if it is enough.
    program("taken.0=11G,checks=0", &draw("cuda")).unwrap().succeeded();
    // A GPU that does not exist, and FP8 products on a GPU without them.
    let ran = program("", &draw("cuda:9")).unwrap();
    assert_eq!(ran.output.status.code(), Some(6), "{}", ran.messages());
    let ran = program("", &[&draw("cuda:0")[..], &["--compute", "fp8"]].concat()).unwrap();
    assert_eq!(ran.output.status.code(), Some(2), "{}", ran.messages());
    // `auto` uses the CPU if the GPU cannot be used, and says so.
    let ran = program("visible=3", &draw("auto")).unwrap().succeeded();
    assert!(ran.messages().contains("CPU"), "{}", ran.messages());
}

#[test]
fn doctor_prints_what_the_driver_made_of_the_kernels() {
    let Some(ran) = program("visible=0+3", &["doctor", "--kernels", "--json"]) else { return };
    let ran = ran.succeeded();
    let told: Value = serde_json::from_slice(&ran.output.stdout).unwrap();
    let kernels = |gpu: usize| told["cuda"]["gpus"][gpu]["kernels"].as_array();
    let large =
        kernels(0).unwrap().iter().find(|k| k["name"] == "linear_bf16_128x128_sm80").unwrap();
    assert_eq!((&large["threads"], &large["shared_bytes"]), (&json!(128), &json!(49_152)));
    // The RTX 3060 does not load modules for other GPUs, and the RTX 2060 cannot be used.
    assert!(kernels(0).unwrap().iter().all(|k| k["blocks"].as_u64() > Some(0)), "{told}");
    assert!(!kernels(0).unwrap().iter().any(|k| k["name"].as_str().unwrap().contains("sm90a")));
    assert_eq!(kernels(1), None);
    let ran = program("visible=0", &["doctor", "--kernels"]).unwrap().succeeded();
    let text = String::from_utf8_lossy(&ran.output.stdout).into_owned();
    assert!(text.contains("registers") && text.contains("attention_d128_masked"), "{text}");
}

#[test]
fn without_a_driver_there_is_no_gpu() {
    let places = ["/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg", "/usr/lib64/libcuda.so.1"];
    let places = places
        .into_iter()
        .chain(["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "C:\\Windows\\System32\\nvcuda.dll"]);
    if let Some(driver) = places.into_iter().find(|p| Path::new(p).exists()) {
        eprintln!("SKIPPED a machine without an NVIDIA driver: {driver}");
        return;
    }
    let folder = temp_dir();
    let out = folder.path().join("out.png");
    let arguments = ["a fox", "--device", "cuda", "-o", out.to_str().unwrap()];
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    let output = command.env_remove("LD_LIBRARY_PATH").args(arguments).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{messages}");
    assert!(messages.contains("no NVIDIA driver") && !messages.contains("panicked"), "{messages}");
}
