//! The memory traffic of an operation, for throughputs.

use flux_fast::op::{Access, Op, Operand};

/// Bytes of the activations that `op` reads and writes, each operand once. Weights come on top, in
/// their stored size.
pub fn activation_bytes(op: &Op) -> u64 {
    let mut bytes = 0;
    let mut op = *op;
    op.visit(&mut |operand| {
        if let Operand::Tensor { window, access, .. } = operand {
            let passes = if access == Access::Update { 2 } else { 1 };
            bytes += passes * window.rows() * window.cols * window.tensor.dtype.size();
        }
    });
    bytes as u64
}
