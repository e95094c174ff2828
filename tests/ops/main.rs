//! The operation table: every operation, at ragged shapes, in every stored type, by every variant
//! that this machine can run, against the reference loops. Each family has a file. Inputs are
//! random and new in every run; a failing test prints the seed, and `FLUX_FAST_TEST_SEED` repeats
//! it.
//!
//! The CUDA variants run on the same cases in BF16, on the PTX machine behind a driver without a
//! GPU (`cuda`); the WGSL variants on the first adapter, in F32 and in BF16 (`wgpu`).
//!
//! Sentinels surround every tensor, outputs are NaN before the run, and bytes outside the output
//! must not change. Every CPU variant runs on one thread and on two, which must agree to the bit.

mod adapter;
mod attention;
mod blocks;
mod case;
#[path = "../common/mod.rs"]
mod common;
mod conv2d;
mod cuda;
mod elementwise;
mod gpu;
mod int8;
mod int8_attention;
mod kernels;
mod latents;
mod linear;
mod norm;
mod shaders;
mod sums;
mod wgpu;

use std::collections::BTreeMap;

use flux_fast::backend::cpu::variants;

/// Every variant of these operations has run in this test on every backend: a table whose entries
/// refuse everything would pass otherwise.
#[track_caller]
fn all_ran(ops: &[&str]) {
    for op in ops {
        cuda::all_ran(op);
        wgpu::all_ran(op);
    }
}

const ROWS: [usize; 4] = [1, 17, 255, 257];

#[test]
fn every_operation_is_in_this_table() {
    let mut known: BTreeMap<&str, usize> = variants::ops().map(|op| (op, 0)).collect();
    let source = concat!(
        include_str!("adapter.rs"),
        include_str!("attention.rs"),
        include_str!("conv2d.rs"),
        include_str!("elementwise.rs"),
        include_str!("latents.rs"),
        include_str!("linear.rs"),
        include_str!("norm.rs"),
    );
    for (op, count) in &mut known {
        let camel: String = op.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
        let literal = format!("{camel} {{");
        let starts = source.match_indices(&literal).map(|(at, _)| source[..at].chars().last());
        *count = starts.filter(|before| matches!(before, Some('(' | ' '))).count();
    }
    assert!(known.values().all(|n| *n > 0), "{known:?}");
}
