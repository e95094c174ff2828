//! The program with `--device wgpu`, run as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::adapter;
use crate::common::{psnr, temp_dir};

fn program(env: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
    // These tests use neither another backend's driver nor cached text encodings.
    command
        .args(arguments)
        .arg("--no-cache")
        .env_remove("FLUX_FAST_CACHE")
        .envs(env.iter().copied());
    command.output().unwrap()
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn pixels(path: &Path) -> Vec<f32> {
    let picture = image::open(path).unwrap().to_rgb8();
    picture.into_raw().into_iter().map(f32::from).collect()
}

/// The whole engine, from the prompt to the file, against the CPU.
#[test]
fn the_image_of_the_embedded_model_equals_the_cpus() {
    let Some(adapter) = adapter::get() else { return };
    let folder = temp_dir();
    let out = folder.path().join("out.png");
    let draw = |more: &[&str]| {
        let fixed =
            ["a fox, 3D style, on a blue background", "-s", "7", "-q", "-o", out.to_str().unwrap()];
        let ran = program(&[], &[&fixed[..], more].concat());
        assert!(ran.status.success(), "{more:?}: {}", messages(&ran));
        pixels(&out)
    };
    let mut modes = vec![("auto", "auto", 45.0), ("f32", "f32", 60.0)];
    if adapter.f16 {
        modes.push(("f16", "auto", 30.0));
    }
    for (compute, on_cpu, least) in modes {
        let want = draw(&["--device", "cpu", "--compute", on_cpu]);
        let db = psnr(&draw(&["--device", "wgpu", "--compute", compute]), &want, 255.0);
        println!("{compute}: {db:.1} dB of the CPU's {on_cpu}");
        assert!(db >= least, "{compute}: {db:.1} dB");
    }
}

#[test]
fn a_budget_is_printed_and_kept_and_too_small_a_budget_is_refused() {
    if adapter::get().is_none() {
        return;
    }
    let folder = temp_dir();
    let out = folder.path().join("out.png");
    let draw = |vram: &str| {
        program(
            &[],
            &[
                "a fox",
                "--steps",
                "1",
                "--device",
                "wgpu",
                "--vram",
                vram,
                "-o",
                out.to_str().unwrap(),
            ],
        )
    };
    let refused = draw("10M");
    assert_eq!(refused.status.code(), Some(5), "{}", messages(&refused));
    // The budget that the error names is enough.
    let text = messages(&refused);
    let enough = text
        .split("--vram ")
        .nth(1)
        .and_then(|s| s.split(['M', ',']).next())
        .unwrap_or_else(|| panic!("{text}"));
    let drawn = draw(&format!("{enough}M"));
    assert!(drawn.status.success(), "{enough}M: {}", messages(&drawn));
    let plan = program(
        &[],
        &[
            "plan",
            "a fox",
            "--steps",
            "1",
            "--device",
            "wgpu",
            "--vram",
            &format!("{enough}M"),
            "--json",
        ],
    );
    let plan: serde_json::Value =
        serde_json::from_slice(&plan.stdout).unwrap_or_else(|e| panic!("{e}: {}", messages(&plan)));
    let peak = plan["peak_bytes"].as_u64().unwrap();
    assert!(peak <= enough.parse::<u64>().unwrap() * 1_000_000, "{peak} of {enough}M");
}

#[test]
fn errors_have_their_exit_codes_and_say_what_to_do() {
    if adapter::get().is_none() {
        return;
    }
    let folder = temp_dir();
    let out = folder.path().join("out.png");
    let none = [("VK_ICD_FILENAMES", "/nowhere"), ("VK_DRIVER_FILES", "/nowhere")];
    type Expected<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], i32, &'a [&'a str]);
    let cases: &[Expected] = &[
        (&[], &["--device", "wgpu:99"], 6, &["wgpu:99", "doctor"]),
        (&[], &["--device", "wgpu", "--compute", "fp8"], 2, &["--compute", "f16"]),
        (&[], &["--device", "wgpu", "--kernel", "linear=linear_f64"], 2, &["linear_any"]),
        (&[], &["--device", "wgpu", "--kernel", "linaer=x"], 2, &["layer_norm_modulate"]),
        (&none, &["--device", "wgpu"], 6, &["Vulkan", "mesa-vulkan-drivers", "--device cpu"]),
    ];
    for (env, more, code, says) in cases {
        // Hiding Vulkan's drivers hides all adapters only on systems without another interface.
        if !env.is_empty() && !cfg!(target_os = "linux") {
            continue;
        }
        let ran = program(
            env,
            &[&["a fox", "--steps", "1", "-o", out.to_str().unwrap()], *more].concat(),
        );
        let text = messages(&ran);
        assert_eq!(ran.status.code(), Some(*code), "{more:?}: {text}");
        assert!(says.iter().all(|s| text.contains(s)), "{more:?}: {text}");
        assert!(!text.contains("panicked") && !out.exists(), "{more:?}: {text}");
    }
}

#[test]
fn doctor_lists_adapters_and_how_flux_fits_them() {
    let Some(adapter) = adapter::get() else { return };
    let ran = Command::new(env!("CARGO_BIN_EXE_flux-fast")).arg("doctor").output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(
        ran.status.success() && text.contains("wgpu:0") && text.contains(&adapter.name),
        "{text}"
    );
    assert!(
        text.contains("dev (fp8, 1024x1024)") && text.contains("schnell (fp8, 1024x1024)"),
        "{text}"
    );
}
