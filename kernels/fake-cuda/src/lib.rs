//! A CUDA driver with no GPU behind it: what programs call of `libcuda.so`, over the PTX machine.
//!
//! The shared library exports the driver API as far as the `cudarc` crate uses it, and a little of NVML. Programs run on it
//! unmodified: kernels are interpreted, and everything around them is as strict, as late and as short of memory as a real
//! device may be. See `settings.rs` for what can be configured, `stream.rs` for what "late" means, `space.rs` for the memory.
//!
//! Tests load the library with [`install`] before the first use of CUDA, or start programs with [`folder`] in their
//! `LD_LIBRARY_PATH`. It works on Linux; elsewhere this crate builds, but installing says that it cannot.
//!
//! # Settings
//!
//! `FLUX_FAKE_CUDA`, read at the first call, and [`Handle::configure`] take `key=value` pairs, separated by commas or lines:
//!
//! | key | value | default |
//! |---|---|---|
//! | `default` | no value: resets everything that stands before it | |
//! | `name.N`, `capability.N`, `memory.N`, `sms.N`, `shared.N`, `l2.N` | what preset N is | see `settings.rs` |
//! | `taken.N` | memory of preset N that other programs use | `0` |
//! | `visible` | presets that exist, such as `2+0`, in the order of their ordinals; none for no device | `0+1+2+3` |
//! | `driver` | what `cuDriverGetVersion` says; newer PTX is refused | `12080` |
//! | `context` | device memory that a context costs | `300M` |
//! | `pinned` | limit of pinned host memory | `64G` |
//! | `order` | `late` (or `late=1`), `early`, `random:SEED`, `blocking` (or `late=0`); see `stream.rs` | `late` |
//! | `polls` | how many times an event or a stream is polled until that makes it progress | `3` |
//! | `kernels` | `run`, or `skip`: launches are only checked and counted | `run` |
//! | `copies` | `run`, or `skip`: copies of 1 MiB and more, but for those to the host, are only checked and counted | `run` |
//! | `checks` | `0`: the PTX machine does not look for races, bank conflicts and the like | `1` |
//! | `poison` | `0`: fresh device memory reads as zero, not as NaN | `1` |
//! | `report` | a file to which the report goes when a device's last user lets it go | none |
//! | `log` | `1`: operations are logged | `0` |
//! | `fail` | `KIND:N` or `KIND:N:CODE`: the N-th call of a kind from now on fails | |
//!
//! What can fail: `init`, `context`, `alloc`, `host` (pinning), `copy`, `launch`, `module`. Copies and launches fail when they run,
//! and their context with them; the others return the code at once.

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
