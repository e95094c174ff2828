//! Execution: warps and their registers, shared memory, barriers, copies, products of matrices.

pub(crate) mod access;
pub(crate) mod atomic;
pub(crate) mod banks;
pub(crate) mod barrier;
pub(crate) mod block;
pub(crate) mod bulk;
pub(crate) mod clocks;
pub(crate) mod flights;
pub(crate) mod matrix;
pub(crate) mod mbarrier;
pub(crate) mod mma;
pub(crate) mod operands;
pub(crate) mod regs;
pub(crate) mod shared;
pub(crate) mod step;
pub(crate) mod sums;
pub(crate) mod warp;
pub(crate) mod wgmma;
pub(crate) mod writers;
