//! The CPU backend.

pub mod conv;
pub mod gemm;
pub mod isa;
pub mod linear;
pub mod matrix;
