//! A CUDA driver without a GPU: the functions of `libcuda.so` that programs call, on top of the PTX
//! machine.
//!
//! The shared library exports the driver API as far as the `cudarc` crate uses it, and a little of
//! NVML. Programs run on it unmodified: kernels are interpreted, and everything else is as strict,
//! as late and as limited in memory as a real device can be. See `settings.rs` for the
//! configuration, `stream.rs` for the meaning of "late", and `space.rs` for the memory.
//!
//! Tests load the library with [`install`] before the first use of CUDA, or start programs with
//! [`folder`] in their `LD_LIBRARY_PATH`. It works on Linux; elsewhere this crate builds, but
//! [`install`] returns an error.
//!
//! # Settings
//!
//! `FLUX_FAKE_CUDA`, read at the first call, and [`Handle::configure`] take `key=value` pairs,
//! separated by commas or lines:
//!
//! | key | value | default |
//! |---|---|---|
//! | `default` | no value: resets everything before it | |
//! | `name.N`, `capability.N`, `memory.N`, `sms.N`, `shared.N`, `l2.N` | the properties of preset N | see `settings.rs` |
//! | `taken.N` | memory of preset N that other programs use | `0` |
//! | `visible` | presets that exist, such as `2+0`, in the order of their ordinals; empty for no device | `0+1+2+3` |
//! | `driver` | the result of `cuDriverGetVersion`; newer PTX is refused | `12080` |
//! | `context` | device memory that a context uses | `300M` |
//! | `pinned` | limit of pinned host memory | `64G` |
//! | `order` | `late` (or `late=1`), `early`, `random:SEED`, `blocking` (or `late=0`); see `stream.rs` | `late` |
//! | `polls` | how often an event or a stream is polled before its operations are run | `3` |
//! | `kernels` | `run`, or `skip`: launches are only checked and counted | `run` |
//! | `copies` | `run`, or `skip`: copies of 1 MiB and more, except those to the host, are only checked and counted | `run` |
//! | `checks` | `0`: the PTX machine does not look for races, bank conflicts and the like | `1` |
//! | `poison` | `0`: new device memory reads as zero, not as NaN | `1` |
//! | `report` | a file that the report is written to when the last context of a device is released | none |
//! | `log` | `1`: operations are logged | `0` |
//! | `fail` | `KIND:N` or `KIND:N:CODE`: the N-th call of a kind from now on fails | |
//!
//! Kinds of calls that can fail: `init`, `context`, `alloc`, `host` (pinning), `copy`, `launch`,
//! `module`. Copies and launches fail when they run, and their context with them; the others return
//! the code at once.

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod capture;
#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod driver;
mod install;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod module;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod space;
#[cfg(target_os = "linux")]
mod status;
#[cfg(target_os = "linux")]
mod stream;
#[cfg(target_os = "linux")]
mod tensor_map;

pub use install::{Handle, folder, install};
