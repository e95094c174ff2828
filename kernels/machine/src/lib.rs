//! A machine for PTX: it runs kernels on the CPU and reports their errors.
//!
//! A warp executes an instruction for 32 lanes at once; lanes that diverge in a branch converge
//! again at the lowest program counter. Shared memory has a shadow that records which bytes were
//! written, and how barriers order the accesses; global memory consists only of mapped ranges.
//! Everything that the hardware may do late (such as `cp.async`) happens as late as possible.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ptx_machine::{Launch, Memory, Module, Options, run};
//! let module = Module::parse(&std::fs::read_to_string("kernel.ptx")?)?;
//! let mut data = vec![0u8; 1024];
//! let mut memory = Memory::new();
//! // SAFETY: `data` outlives the launch.
//! unsafe { memory.map(0x7f00_0000_0000, data.as_mut_ptr(), data.len()) };
//! let entry = module.entry("kernel").ok_or("no such kernel")?;
//! let params = 0x7f00_0000_0000u64.to_le_bytes();
//! let launch = Launch { entry, grid: [1, 1, 1], block: [256, 1, 1], shared: 0, params: &params };
//! let report = run(&launch, &memory, &Options::default())?;
//! assert!(report.clean(), "{report}");
//! # Ok(())
//! # }
//! ```

#![allow(clippy::needless_range_loop, reason = "a lane indexes several registers at once")]

mod decode;
mod launch;
mod machine;
mod memory;
mod program;
mod read;
mod report;
mod tensor_map;

pub use launch::{Launch, Options, run};
pub use machine::sums::{Chip, Sums};
pub use memory::Memory;
pub use program::{Entry, Error, Module, Param};
pub use report::{Counts, FINDINGS, Fault, FaultKind, Finding, FindingKind, Hot, Report};
pub use tensor_map::TensorMap;
