//! The CUDA driver that tests use: the fake driver, which runs kernels on the PTX machine, or with
//! `FLUX_FAST_TEST_GPU=1` the real one.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use flux_fast::backend::cuda;
use serde_json::Value;

// The GPUs of the fake driver.
pub const RTX_3060: usize = 0;
pub const RTX_4060: usize = 1;
pub const H100: usize = 2;

pub enum Driver {
    Fake(fake_cuda::Handle),
    Real { capability: (u32, u32) },
}

/// The driver, or `None` with a message where the fake driver does not work: anywhere but on Linux.
pub fn get() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    let open = || {
        if std::env::var_os("FLUX_FAST_TEST_GPU").is_some() {
            let gpus = cuda::gpus().expect("FLUX_FAST_TEST_GPU is set, so there must be a GPU");
            return Some(Driver::Real { capability: gpus[0].capability });
        }
        match fake_cuda::install() {
            Ok(handle) => Some(Driver::Fake(handle)),
            Err(e) if cfg!(target_os = "linux") => panic!("{e}"),
            Err(e) => {
                eprintln!("SKIPPED all CUDA kernels: {e}");
                None
            }
        }
    };
    DRIVER.get_or_init(open).as_ref()
}

/// The fake driver's settings, devices and reports belong to the process. A test that changes or
/// reads them keeps what this returns until it is done, so that no other test does so at the same
/// time.
pub fn take_turn() -> MutexGuard<'static, ()> {
    static TURNS: Mutex<()> = Mutex::new(());
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// The driver's report since the last call: one object for each kernel, device and kind of
    /// copy. Empty for a real GPU.
    pub fn report(&self) -> Vec<Value> {
        match self {
            Driver::Fake(handle) => {
                handle.report().lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
            }
            Driver::Real { .. } => Vec::new(),
        }
    }

    /// Changes settings of the fake driver; does nothing to a real one.
    pub fn configure(&self, settings: &str) {
        if let Driver::Fake(handle) = self {
            handle.configure(settings).expect("valid settings of the fake driver");
        }
    }

    /// Checks that no kernel raced, read uninitialised memory or accessed memory out of bounds.
    /// Returns the names of the kernels that ran.
    #[track_caller]
    pub fn check_findings(&self, what: &str) -> Vec<String> {
        let mut ran = Vec::new();
        for line in self.report() {
            let findings = line["findings"].as_array().map_or(&[][..], Vec::as_slice);
            assert!(findings.is_empty(), "{what}: {}: {findings:#?}", line["kernel"]);
            if line["runs"].as_u64().is_some_and(|n| n > 0) {
                ran.extend(line["kernel"].as_str().map(str::to_string));
            }
        }
        ran
    }
}
