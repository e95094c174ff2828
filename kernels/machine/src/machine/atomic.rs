//! Atomics.

use crate::machine::access::{POISON, lanes, read, write};
use crate::machine::block::Env;
use crate::machine::shared::Touch;
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::types::{Slot, Type};
use crate::report::{Fault, FaultKind};

impl Env<'_> {
    pub(crate) fn atomic(&mut self, w: &mut Warp, a: &Atomic, mask: u32) -> Result<(), Fault> {
        let size = a.ty.bytes();
        let addresses = self.addresses(w, a.address);
        let (pointers, kept) = self.pointers(w, a.space, &addresses, mask, size, Touch::Atomic)?;
        let operand = |w: &Warp, i: usize, l: usize| {
            if size == 8 {
                w.regs.doubles[a.operands[i] as usize][l]
            } else {
                w.regs.words[a.operands[i] as usize][l] as u64
            }
        };
        let mut out = [POISON; 32];
        for l in lanes(kept) {
            // SAFETY: as in `load`. Blocks of a kernel with global atomics run one after the other.
            unsafe {
                let old = read(pointers[l], size, false);
                out[l] = old;
                let y = if a.op == AtomOp::Cas { operand(w, 1, l) } else { 0 };
                match update(a.op, a.ty, old, operand(w, 0, l), y) {
                    Some(new) => write(pointers[l], size, new),
                    None => return self.fault(FaultKind::Unsupported, "atomic of this type"),
                }
            }
        }
        match a.result {
            Some(Slot::Word(s)) => w.regs.put_word(s, out.map(|x| x as u32), mask),
            Some(Slot::Double(s)) => w.regs.put_double(s, out, mask),
            _ => {}
        }
        Ok(())
    }
}

/// The value that an atomic stores.
fn update(op: AtomOp, ty: Type, old: u64, x: u64, y: u64) -> Option<u64> {
    let wide = ty.bytes() == 8;
    let sign = |v: u64| if wide { v as i64 } else { v as u32 as i32 as i64 };
    Some(match (op, ty) {
        (AtomOp::Add, Type::F32) => {
            (f32::from_bits(old as u32) + f32::from_bits(x as u32)).to_bits() as u64
        }
        (AtomOp::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        (_, t) if t.float() => return None,
        (AtomOp::Add, _) => old.wrapping_add(x),
        (AtomOp::Min, t) if t.signed() => sign(old).min(sign(x)) as u64,
        (AtomOp::Max, t) if t.signed() => sign(old).max(sign(x)) as u64,
        (AtomOp::Min, _) => old.min(x),
        (AtomOp::Max, _) => old.max(x),
        (AtomOp::And, _) => old & x,
        (AtomOp::Or, _) => old | x,
        (AtomOp::Xor, _) => old ^ x,
        (AtomOp::Exch, _) => x,
        (AtomOp::Cas, _) => {
            if old == x {
                y
            } else {
                old
            }
        }
        (AtomOp::Inc, _) => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    })
}
