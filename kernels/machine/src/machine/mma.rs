//! `mma.sync`: products of 16x8 tiles.
//!
//! Lane l = 4 g + t holds rows g and g + 8 of A and C, and column g of B. A register holds e = 32 /
//! bits elements that are neighbours in k: element j of register h of a row has k = (4 h + t) e +
//! j. C has columns 2 t and 2 t + 1. Rows of C are kept in the order of its registers: even
//! columns, then odd ones.

use crate::decode::{Decoded, at, formats, unknown};
use crate::machine::regs::{Alu, Lanes, Regs, has_avx2};
use crate::machine::sums::{self, Sums};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;

/// Element `j` of a register, counted from the lowest, as f32.
#[inline(always)]
pub(crate) fn element(ty: Type, x: u32, j: usize) -> f32 {
    match ty {
        Type::BF16 if j == 0 => f32::from_bits(x << 16),
        Type::BF16 => f32::from_bits(x & 0xffff_0000),
        Type::F16 => formats::f16_value(x >> (16 * j) & 0xffff),
        Type::TF32 => f32::from_bits(x & 0xffff_e000),
        Type::E4M3 => formats::fp8_value::<3>(x >> (8 * j) & 255),
        _ => formats::fp8_value::<2>(x >> (8 * j) & 255),
    }
}

/// Registers of an instruction.
struct Operands {
    d: Vec<u32>,
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<u32>,
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let shape = parts.iter().find(|p| p.starts_with("m16n8k")).ok_or_else(unknown)?;
    let k: usize = shape["m16n8k".len()..].parse().map_err(|_| unknown())?;
    if !parts.contains(&"row")
        || !parts.contains(&"col")
        || parts.iter().any(|p| p.starts_with("sp") || p.contains("block_scale"))
    {
        return Err(unknown());
    }
    let types: Vec<&str> = parts.iter().rev().take(4).rev().copied().collect();
    let [d, x, y, c] = types[..] else { return Err(unknown()) };
    let ty = |n: &str| Type::from_name(n).ok_or_else(unknown);
    let (td, tx, ty, tc) = (ty(d)?, ty(x)?, ty(y)?, ty(c)?);
    if td != tc {
        return Err(unknown());
    }
    let mut list = |i: usize, write: bool| -> Result<Vec<u32>, Error> {
        let names = match at(args, i)? {
            Arg::List(n) => n.clone(),
            Arg::Name(n) => vec![n.clone()],
            _ => return Err(unknown()),
        };
        names
            .into_iter()
            .map(|n| {
                if write {
                    b.dst::<u32>(&Arg::Name(n))
                } else {
                    b.src::<u32>(&Arg::Name(n), Type::F32)
                }
            })
            .collect()
    };
    let o =
        Operands { d: list(0, true)?, a: list(1, false)?, b: list(2, false)?, c: list(3, false)? };
    let halves = k * tx.bytes().min(4) / 16;
    let accumulators = if td == Type::F16 { 2 } else { 4 };
    if o.a.len() != 2 * halves
        || o.b.len() != halves
        || o.c.len() != accumulators
        || o.d.len() != accumulators
    {
        return Err(Error::new("number of registers"));
    }
    let alu = match (tx, ty, td, k) {
        (Type::BF16, Type::BF16, Type::F32, 16) => float::<16>(o, tx, ty, false),
        (Type::BF16, Type::BF16, Type::F32, 8) => float::<8>(o, tx, ty, false),
        (Type::F16, Type::F16, Type::F32 | Type::F16, 16) => {
            float::<16>(o, tx, ty, td == Type::F16)
        }
        (Type::F16, Type::F16, Type::F32 | Type::F16, 8) => float::<8>(o, tx, ty, td == Type::F16),
        (Type::TF32, Type::TF32, Type::F32, 8) => float::<8>(o, tx, ty, false),
        (Type::TF32, Type::TF32, Type::F32, 4) => float::<4>(o, tx, ty, false),
        (Type::E4M3 | Type::E5M2, Type::E4M3 | Type::E5M2, Type::F32 | Type::F16, 32) => {
            float::<32>(o, tx, ty, td == Type::F16)
        }
        (Type::E4M3 | Type::E5M2, Type::E4M3 | Type::E5M2, Type::F32 | Type::F16, 16) => {
            float::<16>(o, tx, ty, td == Type::F16)
        }
        (Type::S8 | Type::U8, Type::S8 | Type::U8, Type::S32, 32) => {
            whole::<32>(o, tx == Type::S8, ty == Type::S8, parts.contains(&"satfinite"))
        }
        (Type::S8 | Type::U8, Type::S8 | Type::U8, Type::S32, 16) => {
            whole::<16>(o, tx == Type::S8, ty == Type::S8, parts.contains(&"satfinite"))
        }
        _ => return Err(unknown()),
    };
    Ok((Action::Mma(alu), Class::Mma, 2 * 16 * 8 * k as u64))
}

/// Each type has its own body, so that the element type is known at compile time.
fn float<const K: usize>(o: Operands, ta: Type, tb: Type, half: bool) -> Alu {
    match (ta, tb) {
        (Type::BF16, _) => typed::<K, 0>(o, ta, tb, half),
        (Type::F16, _) => typed::<K, 1>(o, ta, tb, half),
        (Type::TF32, _) => typed::<K, 2>(o, ta, tb, half),
        (Type::E4M3, Type::E4M3) => typed::<K, 3>(o, ta, tb, half),
        _ => typed::<K, 4>(o, ta, tb, half),
    }
}

fn typed<const K: usize, const KIND: u8>(o: Operands, ta: Type, tb: Type, half: bool) -> Alu {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn vector<const K: usize, const KIND: u8>(
            o: &Operands,
            ta: Type,
            tb: Type,
            half: bool,
            regs: &mut Regs,
        ) {
            body::<K, KIND, true>(o, ta, tb, half, regs)
        }
        return Box::new(move |regs: &mut Regs, _| {
            // SAFETY: the features were detected above.
            unsafe { vector::<K, KIND>(&o, ta, tb, half, regs) }
        });
    }
    Box::new(move |regs: &mut Regs, _| body::<K, KIND, false>(&o, ta, tb, half, regs))
}

#[inline(always)]
fn body<const K: usize, const KIND: u8, const FMA: bool>(
    o: &Operands,
    ta: Type,
    tb: Type,
    half: bool,
    regs: &mut Regs,
) {
    let (ta, tb) = match KIND {
        0 => (Type::BF16, Type::BF16),
        1 => (Type::F16, Type::F16),
        2 => (Type::TF32, Type::TF32),
        3 => (Type::E4M3, Type::E4M3),
        _ => (ta, tb),
    };
    let e = [2, 2, 1, 4, 4][KIND as usize];
    // The sum runs over k in the order h, j, t, so that the four lanes of a row are neighbours.
    let mut b = [[0f32; 8]; K];
    for h in 0..K / (4 * e) {
        let x = &regs.words[o.b[h] as usize];
        for t in 0..4 {
            let column =
                [x[t], x[t + 8], x[t + 16], x[t + 24], x[t + 4], x[t + 12], x[t + 20], x[t + 28]];
            for j in 0..e {
                let to = &mut b[(h * e + j) * 4 + t];
                for g in 0..8 {
                    to[g] = element(tb, column[g], j);
                }
            }
        }
    }
    let mut sums = [[[0f32; 8]; 8]; 2];
    for (low, sum) in sums.iter_mut().enumerate() {
        let mut a = [[0f32; K]; 8];
        for h in 0..K / (4 * e) {
            let x = &regs.words[o.a[2 * h + low] as usize];
            for (g, row) in a.iter_mut().enumerate() {
                for j in 0..e {
                    for t in 0..4 {
                        row[(h * e + j) * 4 + t] = element(ta, x[g * 4 + t], j);
                    }
                }
            }
        }
        *sum = load_accumulators(&o.c, low, half, regs);
        match regs.sums {
            Sums::Nearest => product::<K, FMA>(&a, &b, sum),
            Sums::Of(chip) => {
                sums::product(chip.cut(ta, K, false), (ta, tb), half, (&a, &b), sum);
            }
        }
    }
    for (low, sum) in sums.iter().enumerate() {
        store_accumulators(&o.d, low, half, sum, regs);
    }
}

/// c += a . b, eight rows.
#[inline(always)]
pub(crate) fn product<const K: usize, const FMA: bool>(
    a: &[[f32; K]; 8],
    b: &[[f32; 8]; K],
    c: &mut [[f32; 8]; 8],
) {
    let mut acc = *c;
    for k in 0..K {
        let y = b[k];
        for i in 0..8 {
            let x = a[i][k];
            for n in 0..8 {
                // Products of the small formats are exact in f32, so both computations give the
                // same sum.
                acc[i][n] = if FMA { x.mul_add(y[n], acc[i][n]) } else { acc[i][n] + x * y[n] };
            }
        }
    }
    *c = acc;
}

/// The upper or lower eight rows of a 16x8 tile from its registers: one of two for f16, two of four
/// for f32.
#[inline(always)]
pub(crate) fn load_accumulators(
    slots: &[u32],
    low: usize,
    half: bool,
    regs: &Regs,
) -> [[f32; 8]; 8] {
    let mut rows = [[0f32; 8]; 8];
    let pair = if half { [low, low] } else { [low * 2, low * 2 + 1] };
    let [even, odd] = pair.map(|i| &regs.words[slots[i] as usize]);
    for g in 0..8 {
        for t in 0..4 {
            let (x, y) = (even[g * 4 + t], odd[g * 4 + t]);
            rows[g][t] = if half { element(Type::F16, x, 0) } else { f32::from_bits(x) };
            rows[g][4 + t] = if half { element(Type::F16, y, 1) } else { f32::from_bits(y) };
        }
    }
    rows
}

#[inline(always)]
pub(crate) fn store_accumulators(
    slots: &[u32],
    low: usize,
    half: bool,
    rows: &[[f32; 8]; 8],
    regs: &mut Regs,
) {
    if half {
        let bits = formats::f16_bits;
        let out: Lanes<u32> =
            std::array::from_fn(|l| bits(rows[l / 4][l % 4]) | bits(rows[l / 4][4 + l % 4]) << 16);
        regs.words[slots[low] as usize] = out;
        return;
    }
    for odd in 0..2 {
        let to = &mut regs.words[slots[low * 2 + odd] as usize];
        for g in 0..8 {
            for t in 0..4 {
                to[g * 4 + t] = rows[g][odd * 4 + t].to_bits();
            }
        }
    }
}

/// Products of bytes, summed in 32 bits.
fn whole<const K: usize>(o: Operands, signed_a: bool, signed_b: bool, saturate: bool) -> Alu {
    let byte = |x: u32, j: usize, signed: bool| {
        let v = (x >> (8 * j)) as u8;
        if signed { v as i8 as i32 } else { v as i32 }
    };
    Box::new(move |regs: &mut Regs, _| {
        let mut b = [[0i32; 8]; K];
        for (k, row) in b.iter_mut().enumerate() {
            let (x, t, j) = (&regs.words[o.b[k / 16] as usize], k % 16 / 4, k % 4);
            for (g, to) in row.iter_mut().enumerate() {
                *to = byte(x[g * 4 + t], j, signed_b);
            }
        }
        let mut out = [[0u32; 32]; 4];
        for row in 0..16 {
            let mut part = [0i32; 8];
            for k in 0..K {
                let x = regs.words[o.a[k / 16 * 2 + row / 8] as usize][row % 8 * 4 + k % 16 / 4];
                let x = byte(x, k % 4, signed_a);
                for n in 0..8 {
                    part[n] += x * b[k][n];
                }
            }
            for n in 0..8 {
                let (i, lane) = (row / 8 * 2 + n % 2, row % 8 * 4 + n / 2);
                let sum = regs.words[o.c[i] as usize][lane] as i32 as i64 + part[n] as i64;
                out[i][lane] = if saturate {
                    sum.clamp(i32::MIN as i64, i32::MAX as i64) as u32
                } else {
                    sum as u32
                };
            }
        }
        for (d, out) in o.d.iter().zip(out) {
            regs.words[*d as usize] = out;
        }
    })
}
