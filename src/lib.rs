//! flux-fast: FLUX.1 inference for small GPUs and plain CPUs. See ARCHITECTURE.md for the floors and their rules.

pub mod backend;
pub mod cli;
pub mod dtype;
pub mod error;
pub mod event;
pub mod host;
pub mod library;
pub mod model;
pub mod op;
pub mod pipeline;
pub mod plan;
pub mod spec;
pub mod stream;
pub mod tensor;
pub mod units;
pub mod weights;
