//! The fake CUDA driver through `cudarc`, as programs use it.
#![cfg(target_os = "linux")]

mod common;
mod graphs;
mod launches;
mod memory;
mod processes;
mod streams;
