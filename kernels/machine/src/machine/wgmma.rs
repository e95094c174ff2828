//! `wgmma`: products of a warpgroup, whose operands are in shared memory (A may be in registers).
//!
//! A product is computed when it is issued. Everything that must not be accessed before the program
//! waits for it is marked: accumulators, registers of A, and the operands in shared memory.

use crate::decode::{Decoded, at, unknown};
use crate::machine::block::Env;
use crate::machine::mma::{load_accumulators, product, store_accumulators};
use crate::machine::operands::Matrix;
use crate::machine::regs::{Regs, has_avx2};
use crate::machine::sums::{self, Sums};
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;
use crate::report::{Fault, FaultKind};
use std::collections::VecDeque;

/// The source of A; numbers are slots.
pub(crate) enum Source {
    Descriptor(u32),
    Registers([u32; 4]),
}

pub(crate) struct Wgmma {
    pub n: usize,
    pub ty_a: Type,
    pub ty_b: Type,
    /// Accumulators are f16.
    pub half: bool,
    /// All registers of D.
    pub d: Vec<u32>,
    pub a: Source,
    pub b: u32,
    pub add: (u32, bool),
    pub negate: bool,
    pub transposed_a: bool,
    pub transposed_b: bool,
    pub run: Run,
}

/// A tile of A or B, elements as f32: rows of A, or 8 columns at a time of B.
type Run = fn(&Wgmma, &[[f32; 32]; 16], &[[f32; 8]], bool, &mut Regs);

/// What the warps of a warpgroup have executed, to check that they execute the same products.
#[derive(Default)]
pub(crate) struct Group {
    log: VecDeque<Logged>,
    first: u64,
    position: [u64; 4],
}

struct Logged {
    pc: u32,
    operands: [u64; 2],
    add: bool,
    /// B as f32, for the warps that follow.
    b: Vec<[f32; 8]>,
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |a| Ok((a, Class::Other, 0));
    match parts[1] {
        "fence" => return done(Action::WgmmaFence),
        "commit_group" => return done(Action::WgmmaCommit),
        "wait_group" => {
            let Arg::Name(n) = at(args, 0)? else { return Err(unknown()) };
            return done(Action::WgmmaWait(
                crate::read::text::integer(n).ok_or_else(unknown)? as u32
            ));
        }
        "mma_async" => {}
        _ => return Err(unknown()),
    }
    let [.., shape, d, x, y] = parts else { return Err(unknown()) };
    let (n, k) = shape.strip_prefix("m64n").and_then(|s| s.split_once('k')).ok_or_else(unknown)?;
    let (n, k) =
        (n.parse::<usize>().map_err(|_| unknown())?, k.parse::<usize>().map_err(|_| unknown())?);
    let ty = |n: &str| Type::from_name(n).ok_or_else(unknown);
    let (td, ty_a, ty_b) = (ty(d)?, ty(x)?, ty(y)?);
    let half = td == Type::F16;
    let width = ty_a.bytes().min(4);
    if !n.is_multiple_of(8) || n == 0 || n > 256 || k * width != 32 || parts.contains(&"sp") {
        return Err(unknown());
    }
    let run = match (ty_a, ty_b) {
        (Type::BF16, Type::BF16) if !half => pick::<16>(),
        (Type::F16, Type::F16) => pick::<16>(),
        (Type::E4M3 | Type::E5M2, Type::E4M3 | Type::E5M2) => pick::<32>(),
        (Type::TF32, Type::TF32) if !half => pick::<8>(),
        _ => return Err(unknown()),
    };
    if td != Type::F32 && !half {
        return Err(unknown());
    }
    let Arg::List(names) = at(args, 0)? else { return Err(unknown()) };
    let d = names
        .iter()
        .map(|n| b.dst::<u32>(&Arg::Name(n.clone())))
        .collect::<Result<Vec<u32>, _>>()?;
    if d.len() != n / if half { 4 } else { 2 } {
        return Err(Error::new("number of registers"));
    }
    let a = match at(args, 1)? {
        Arg::List(names) if names.len() == 4 => {
            let mut slots = [0; 4];
            for (s, n) in slots.iter_mut().zip(names) {
                *s = b.src_word(&Arg::Name(n.clone()))?;
            }
            Source::Registers(slots)
        }
        a => Source::Descriptor(b.src::<u64>(a, Type::B64)?),
    };
    let y = b.src::<u64>(at(args, 2)?, Type::B64)?;
    let add = b.src_pred(at(args, 3)?)?;
    let flag = |i: usize| -> Result<i64, Error> {
        match args.get(i) {
            None => Ok(0),
            Some(Arg::Name(n)) => crate::read::text::integer(n).ok_or_else(unknown),
            _ => Err(unknown()),
        }
    };
    let negate = (flag(4)? < 0) != (flag(5)? < 0);
    let (ta, tb) = match a {
        Source::Descriptor(_) => (flag(6)? == 1, flag(7)? == 1),
        Source::Registers(_) => (false, flag(6)? == 1),
    };
    if (ta || tb) && width != 2 {
        return Err(Error::new("transposed operand of this type"));
    }
    let w = Wgmma {
        n,
        ty_a,
        ty_b,
        half,
        d,
        a,
        b: y,
        add,
        negate,
        transposed_a: ta,
        transposed_b: tb,
        run,
    };
    // A warp computes a quarter of the product.
    Ok((Action::Wgmma(Box::new(w)), Class::Wgmma, 2 * 16 * (n * k) as u64))
}

fn pick<const K: usize>() -> Run {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn vector<const K: usize>(
            w: &Wgmma,
            a: &[[f32; 32]; 16],
            b: &[[f32; 8]],
            add: bool,
            regs: &mut Regs,
        ) {
            rows::<K, true>(w, a, b, add, regs)
        }
        return |w, a, b, add, regs| {
            // SAFETY: the features were detected above.
            unsafe { vector::<K>(w, a, b, add, regs) }
        };
    }
    rows::<K, false>
}

/// Sixteen rows of the product.
#[inline(always)]
fn rows<const K: usize, const FMA: bool>(
    w: &Wgmma,
    a: &[[f32; 32]; 16],
    b: &[[f32; 8]],
    add: bool,
    regs: &mut Regs,
) {
    let per = if w.half { 2 } else { 4 };
    for low in 0..2 {
        let a: [[f32; K]; 8] = std::array::from_fn(|r| std::array::from_fn(|k| a[low * 8 + r][k]));
        for (slots, b) in w.d.chunks_exact(per).zip(b.chunks_exact(K)) {
            let mut c =
                if add { load_accumulators(slots, low, w.half, regs) } else { [[0.0; 8]; 8] };
            let Ok(b) = b.try_into() else { continue };
            match regs.sums {
                Sums::Nearest => product::<K, FMA>(&a, b, &mut c),
                Sums::Of(chip) => {
                    let (cut, types) = (chip.cut(w.ty_a, K, true), (w.ty_a, w.ty_b));
                    sums::product(cut, types, w.half, (&a, b), &mut c);
                }
            }
            store_accumulators(slots, low, w.half, &c, regs);
        }
    }
}

impl Env<'_> {
    pub(crate) fn wgmma(&mut self, w: &mut Warp, m: &Wgmma) -> Result<(), Fault> {
        let (group, quarter) = (w.index / 4, w.index % 4);
        if (group + 1) * 4 > self.blocked.len() {
            return self.fault(FaultKind::Divergence, "not a whole warpgroup");
        }
        let common = |slot: u32| {
            let x = &w.regs.doubles[slot as usize];
            if x.iter().all(|y| *y == x[0]) { Some(x[0]) } else { None }
        };
        let bits_a = match m.a {
            Source::Descriptor(s) => common(s),
            Source::Registers(_) => Some(0),
        };
        let (Some(bits_a), Some(bits_b)) = (bits_a, common(m.b)) else {
            return self.fault(FaultKind::Divergence, "lanes with different descriptors");
        };
        let p = w.regs.preds[m.add.0 as usize];
        let add = (if m.add.1 { !p } else { p }) & 1 == 1;
        let a = matches!(m.a, Source::Descriptor(_)).then(|| Matrix::new(bits_a, m.transposed_a));
        let b = Matrix::new(bits_b, m.transposed_b);
        let new = self.log(group, quarter, [bits_a, bits_b], add)?;

        if self.place.checks {
            self.launch_flight(w, m, a.as_ref(), &b, quarter == 0);
        }
        if new {
            let tile = self.tile_b(m, &b);
            if let Some(l) = self.groups[group].log.back_mut() {
                l.b = tile;
            }
        }
        let rows = self.tile_a(m, a.as_ref(), quarter, &w.regs);
        let g = &mut self.groups[group];
        let at = (g.position[quarter] - 1 - g.first) as usize;
        (m.run)(m, &rows, &g.log[at].b, add, &mut w.regs);
        // Products that all four warps have executed are removed.
        while g.position.iter().all(|p| *p > g.first) {
            g.log.pop_front();
            g.first += 1;
        }
        Ok(())
    }

    /// Compares a product with what the other warps of the group executed; true if this warp is the
    /// first.
    fn log(
        &mut self,
        group: usize,
        quarter: usize,
        operands: [u64; 2],
        add: bool,
    ) -> Result<bool, Fault> {
        let pc = self.pc;
        let g = &mut self.groups[group];
        let at = (g.position[quarter] - g.first) as usize;
        g.position[quarter] += 1;
        match g.log.get(at) {
            None => {
                g.log.push_back(Logged { pc, operands, add, b: vec![] });
                Ok(true)
            }
            Some(l) if (l.pc, l.operands, l.add) == (pc, operands, add) => Ok(false),
            Some(_) => {
                self.fault(FaultKind::Divergence, "warps of a warpgroup execute different products")
            }
        }
    }

    /// Whether all warps of all groups have executed the same number of products.
    pub(crate) fn groups_even(&self) -> bool {
        self.groups.iter().all(|g| g.position.iter().all(|p| *p == g.position[0]))
    }
}
