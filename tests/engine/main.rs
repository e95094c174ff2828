//! The engine: budgets, streamed weights, and the backends with memory of their own.

mod bands;
mod budgets;
mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod cuda;
mod editing;
mod memory;
mod segments;
mod stream;
mod wgpu;
