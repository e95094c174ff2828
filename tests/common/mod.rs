//! Shared by the integration tests: golden files, and running one recorded program on the CPU.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod adapter;
pub mod denoiser;
pub mod driver;
pub mod forward;
pub mod operation;
pub mod tensors;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use flux_fast::backend::Backend;
use flux_fast::backend::Compute;
use flux_fast::backend::cpu::{CpuBackend, CpuOptions};
use flux_fast::op::Program;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::Request;
use flux_fast::plan;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::HostWeight;
use flux_fast::weights::ComponentWeights;
use serde_json::Value;

/// One golden file: tensors by name, JSON metadata.
pub struct Golden {
    pub name: String,
    bytes: Vec<u8>,
    pub config: Value,
    pub pipeline: Value,
    pub seed: u64,
}

pub const MODELS: [&str; 6] = ["a_dev", "a_schnell", "b_dev", "b_schnell", "c_dev", "c_schnell"];

impl Golden {
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let meta = metadata.metadata().as_ref().unwrap();
        let json = |key: &str| serde_json::from_str::<Value>(&meta[key]).unwrap();
        let (config, pipeline, seed) =
            (json("config"), json("pipeline"), meta["seed"].parse().unwrap());
        Golden { name: name.into(), bytes, config, pipeline, seed }
    }

    /// A file of tensors without a pipeline.
    pub fn of(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { name: name.into(), bytes, config: Value::Null, pipeline: Value::Null, seed: 0 }
    }

    pub fn has(&self, name: &str) -> bool {
        safetensors::SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        safetensors::SafeTensors::deserialize(&self.bytes)
            .unwrap()
            .tensor(name)
            .unwrap()
            .shape()
            .to_vec()
    }

    fn raw(&self, name: &str) -> Vec<u8> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name)).data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.raw(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<i32> {
        self.raw(name)
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32)
            .collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.raw(name)
    }

    pub fn number(&self, key: &str) -> f64 {
        self.pipeline[key].as_f64().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }

    pub fn text(&self, key: &str) -> &str {
        self.pipeline[key].as_str().unwrap_or_else(|| panic!("{}: no {key}", self.name))
    }
}

/// ||a - b|| / ||b||. Panics if a value of `a` is not finite.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|v| v.is_finite()), "not finite");
    let norm = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(|i| f(i).powi(2)).sum::<f64>().sqrt();
    norm(&|i| f64::from(a[i]) - f64::from(b[i])) / norm(&|i| f64::from(b[i]))
}

/// `softmax(scale q . k^T) . v` of one head in F64: `q` has `queries x dim` elements, `k` and `v`
/// have `tokens x dim`.
pub fn exact_attention(q: &[f32], k: &[f32], v: &[f32], dim: usize, scale: f32) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let row = |q: &[f32]| {
        let scores: Vec<f64> = k.chunks(dim).map(|k| dot(q, k) * f64::from(scale)).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let column = |c: usize| -> f64 {
            weights.iter().zip(v.chunks(dim)).map(|(w, v)| w * f64::from(v[c])).sum()
        };
        (0..dim).map(|c| (column(c) / total) as f32).collect::<Vec<f32>>()
    };
    q.chunks(dim).flat_map(row).collect()
}

/// Peak signal-to-noise ratio in dB of two images with values 0..=peak.
pub fn psnr(a: &[f32], b: &[f32], peak: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let mse = a.iter().zip(b).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>()
        / a.len() as f64;
    10.0 * (peak * peak / mse.max(1e-30)).log10()
}

/// Transposes `channels x pixels` to `pixels x channels`.
pub fn channels_last(planar: &[f32], channels: usize) -> Vec<f32> {
    let pixels = planar.len() / channels;
    (0..pixels).flat_map(|p| (0..channels).map(move |c| planar[c * pixels + p])).collect()
}

pub fn cpu(compute: Compute) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: None, compute, kernels: vec![], isa: None }).unwrap()
}

pub fn resolve(program: &Program, weights: &ComponentWeights) -> Vec<HostWeight> {
    program.weights.iter().map(|w| weights.get(&w.name, w.first, w.rows, w.cols).unwrap()).collect()
}

/// The value of an input.
pub enum Input<'a> {
    F32(&'a [f32]),
    I32(&'a [i32]),
}

/// The smallest budget in bytes with which `program` runs.
pub fn least_bytes(backend: &dyn Backend, program: &Program, weights: &[HostWeight]) -> u64 {
    let (bytes, scratch) = sizes(backend, program, weights);
    plan::least_bytes(program, &bytes, &scratch, backend.caps().grain)
}

fn sizes(
    backend: &dyn Backend,
    program: &Program,
    weights: &[HostWeight],
) -> (Vec<usize>, Vec<usize>) {
    let bytes =
        weights.iter().zip(program.uses()).map(|(w, how)| backend.weight_bytes(w, how)).collect();
    let weight = |w: flux_fast::tensor::Weight| &weights[w.id as usize];
    (bytes, program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect())
}

/// Runs `program` `runs` times within `budget` bytes and returns every output and input (some are
/// updated in place) by name.
pub fn run(
    backend: &mut dyn Backend,
    program: &Program,
    weights: &[HostWeight],
    inputs: &[(&'static str, Input)],
    budget: u64,
    runs: usize,
) -> HashMap<&'static str, Vec<f32>> {
    let mut whole = |session: &mut Session, more| {
        session.run(more, &mut |_, _| ControlFlow::Continue(())).unwrap();
    };
    run_by(&mut whole, backend, program, weights, inputs, budget, runs)
}

/// The same as [`run`], where `one` does one run; its second argument says whether another follows.
pub fn run_by(
    one: &mut dyn FnMut(&mut Session, bool),
    backend: &mut dyn Backend,
    program: &Program,
    weights: &[HostWeight],
    inputs: &[(&'static str, Input)],
    budget: u64,
    runs: usize,
) -> HashMap<&'static str, Vec<f32>> {
    let (bytes, scratch) = sizes(backend, program, weights);
    let plan = plan::phase(program, runs, &bytes, &scratch, backend.caps().grain, budget).unwrap();
    assert!(plan.peak_bytes() <= budget);
    let mut holdings = Holdings::default();
    holdings.reserve(backend, plan.layout(), false).unwrap();
    // Weights of different networks may have the same number.
    let owners = std::array::from_fn(|net| net as u32);
    let tenancy = Tenancy { owners, ..Tenancy::default() };
    let mut session =
        Session::new(backend, &mut holdings, program, &plan, weights.to_vec(), tenancy);
    for (name, value) in inputs {
        match value {
            Input::F32(v) => session.write_f32(program.input(name), v).unwrap(),
            Input::I32(v) => session.write_i32(program.input(name), v).unwrap(),
        }
    }
    for i in 0..runs {
        one(&mut session, i + 1 < runs);
    }
    let float = |t: &flux_fast::tensor::Tensor| t.dtype != flux_fast::dtype::DType::I32;
    let wanted: Vec<_> =
        program.outputs.iter().chain(&program.inputs).filter(|io| float(&io.tensor)).collect();
    let out = wanted.iter().map(|io| (io.name, session.read_f32(io.tensor).unwrap())).collect();
    session.finish().unwrap();
    out
}

/// A folder that is removed when the test ends.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("flux-fast-test-").tempdir().unwrap()
}

pub fn files(path: &Path) -> flux_fast::library::ModelFiles {
    flux_fast::library::ModelFiles {
        model: Some(path.to_string_lossy().into_owned()),
        ..Default::default()
    }
}

/// Gives a test a process of its own, where what it does to the whole process (a panic hook, peak
/// memory) meets no other test. `test` is the test's own name with its modules. In the parent this
/// runs the child, checks that it passed, and returns false; in the child it returns true.
pub fn in_own_process(test: &str) -> bool {
    const NAME: &str = "FLUX_FAST_TEST_OWN_PROCESS";
    if std::env::var(NAME).is_ok_and(|name| name == test) {
        return true;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(NAME, test)
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed"), "{test}: {out}{err}");
    print!("{out}");
    false
}

pub fn path(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

/// Limits the memory of `engine` to the least with which `request` can be planned, within `exact`
/// bytes, and returns it.
pub fn limit_to_least(engine: &mut Engine, request: &Request, exact: u64) -> u64 {
    // The largest budget with which nothing fits, and the smallest with which everything does.
    let (mut low, mut high) = (0, engine.plan(request).unwrap().peak_bytes + (64 << 20));
    while high - low > exact {
        let middle = low.midpoint(high);
        engine.limit_memory(middle).unwrap();
        *(if engine.plan(request).is_ok() { &mut high } else { &mut low }) = middle;
    }
    engine.limit_memory(high).unwrap();
    high
}
