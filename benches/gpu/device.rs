//! The GPU that a bench runs on, with CUDA or wgpu: how time is measured, and the peaks that it
//! reaches.

use std::io::Write;
use std::time::Instant;

use flux_fast::backend::cuda::{CudaBackend, CudaOptions};
use flux_fast::backend::wgpu::{WgpuBackend, WgpuOptions};
use flux_fast::backend::{Backend, Compute};

#[path = "yardstick.rs"]
mod yardstick;

/// The GPU given on the command line.
#[derive(Debug, Clone)]
pub struct Asked {
    pub wgpu: bool,
    pub ordinal: usize,
}

/// The value of `--device cuda[:N]` or `--device wgpu[:N]`, if given.
pub fn asked() -> Option<Asked> {
    let device = after("--device").pop()?;
    let (name, ordinal) = device.split_once(':').unwrap_or((&device, "0"));
    let ordinal = ordinal.parse().expect("--device cuda:N or wgpu:N");
    ["cuda", "wgpu"].contains(&name).then(|| Asked { wgpu: name == "wgpu", ordinal })
}

/// The values of a flag that may be given several times.
pub fn after(flag: &str) -> Vec<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let pairs = arguments.iter().zip(arguments.iter().skip(1));
    pairs.filter(|(f, _)| *f == flag).map(|(_, v)| v.clone()).collect()
}

pub fn has(flag: &str) -> bool {
    std::env::args().any(|a| a == flag)
}

/// Appends a line to the file of results, if `FLUX_FAST_BENCH_JSON` names one.
pub fn record(line: &str) {
    if let Some(path) = std::env::var_os("FLUX_FAST_BENCH_JSON") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut f| writeln!(f, "{line}")).expect("the file of results can be written");
    }
}

#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Kind {
    Cuda(CudaBackend),
    Wgpu(WgpuBackend),
}

/// An opened GPU with its measured peaks.
pub struct Device {
    kind: Kind,
    /// `cuda` or `wgpu`.
    pub api: &'static str,
    /// TFLOP/s of products: BF16 on tensor cores with CUDA; with wgpu, on a driver that computes on
    /// the processor, the F32 matrix product of `yardstick`, which is tuned for such drivers.
    pub teraflops: f64,
    /// GB/s of copies within device memory, reads and writes counted.
    pub gigabytes: f64,
    /// GB/s of copies from pinned host memory.
    pub upload_gigabytes: f64,
    /// Whether the driver computes on the processor: full-size cases would take hours.
    pub software: bool,
}

/// Opens the GPU; ends the process with a message if that is not possible.
pub fn open(asked: &Asked, pinned_bytes: u64) -> Device {
    let skip = |e: flux_fast::error::Error| -> ! {
        eprintln!("SKIPPED: {e}");
        std::process::exit(0);
    };
    let kernels = after("--kernel");
    let kernels = kernels.iter().map(|k| k.parse().expect("--kernel OP=NAME")).collect();
    if asked.wgpu {
        let compute = after("--compute").pop().map_or(Ok(Compute::Auto), |c| c.parse());
        let compute = compute.expect("--compute f32, f16 or bf16");
        let options =
            WgpuOptions { ordinal: asked.ordinal, compute, kernels, ..WgpuOptions::default() };
        let backend = WgpuBackend::new(options).unwrap_or_else(|e| skip(e));
        let software = backend.device().software;
        let (teraflops, gigabytes, upload_gigabytes) = yardstick::measure(asked.ordinal, software);
        println!(
            "{}; yardstick matmul f32 1024^3: {:.1} GFLOP/s",
            backend.caps().description,
            teraflops * 1e3
        );
        Device {
            kind: Kind::Wgpu(backend),
            api: "wgpu",
            teraflops,
            gigabytes,
            upload_gigabytes,
            software,
        }
    } else {
        let options = CudaOptions {
            ordinal: asked.ordinal,
            compute: match (has("--fp8"), has("--int8")) {
                (true, _) => Compute::Fp8,
                (_, true) => Compute::Int8,
                _ => Compute::Auto,
            },
            kernels,
            pinned_bytes,
            ..CudaOptions::default()
        };
        let mut backend = CudaBackend::new(options).unwrap_or_else(|e| skip(e));
        let c = backend.ceilings().expect("the ceilings can be measured");
        println!("{}: {c:?}", backend.caps().description);
        let (teraflops, gigabytes, upload_gigabytes) =
            (c.teraflops, c.gigabytes, c.upload_gigabytes);
        Device {
            kind: Kind::Cuda(backend),
            api: "cuda",
            teraflops,
            gigabytes,
            upload_gigabytes,
            software: false,
        }
    }
}

impl Device {
    pub fn backend(&mut self) -> &mut dyn Backend {
        match &mut self.kind {
            Kind::Cuda(b) => b,
            Kind::Wgpu(b) => b,
        }
    }

    /// GPU seconds of `work`, by the GPU's own clock if it has one.
    pub fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Backend)) -> f64 {
        match &mut self.kind {
            Kind::Cuda(b) => {
                let start = b.mark().expect("a clock");
                work(b);
                let end = b.mark().expect("a clock");
                b.seconds(&start, &end).expect("a clock")
            }
            Kind::Wgpu(b) => {
                b.sync().expect("runs");
                let start = Instant::now();
                work(b);
                b.sync().expect("runs");
                start.elapsed().as_secs_f64()
            }
        }
    }

    /// Device memory in use, in bytes.
    pub fn held_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Cuda(b) => {
                let caps = b.caps();
                caps.free_bytes.saturating_sub(b.free_bytes().expect("the driver tells"))
                    + caps.overhead_bytes
            }
            Kind::Wgpu(b) => b.held_bytes().0,
        }
    }
}
