//! Comparisons, predicates and selections.

use crate::decode::{Decoded, at, unknown};
use crate::machine::regs::{Alu, Lane, Regs, compare, ternary};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;

pub(crate) fn predicates(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let Arg::Name(d) = at(args, 0)? else { return Err(unknown()) };
    let d = b.dst_pred(d)?;
    let (x, nx) = b.src_pred(at(args, 1)?)?;
    let (y, ny) = if args.len() > 2 { b.src_pred(at(args, 2)?)? } else { (x, nx) };
    let f: fn(u32, u32) -> u32 = match parts[0] {
        "and" => |x, y| x & y,
        "or" => |x, y| x | y,
        "xor" => |x, y| x ^ y,
        "not" => |x, _| !x,
        _ => return Err(unknown()),
    };
    let flip = |n: bool| if n { !0 } else { 0 };
    let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
        let v = f(regs.preds[x as usize] ^ flip(nx), regs.preds[y as usize] ^ flip(ny));
        regs.put_pred(d, v, mask)
    });
    Ok((Action::Alu(alu), Class::Integer, 0))
}

type Comparison = Box<dyn Fn(&Regs) -> u32 + Send + Sync>;

#[allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::nonminimal_bool,
    clippy::double_comparisons,
    reason = "the forms differ for NaN"
)]
/// A comparison of arguments 1 and 2 by the name of its operator.
fn comparison(
    b: &mut Builder,
    name: &str,
    first: usize,
    args: &[Arg],
    ty: Type,
) -> Result<Comparison, Error> {
    macro_rules! slots {
        ($T:ty) => {
            [b.src::<$T>(at(args, first)?, ty)?, b.src::<$T>(at(args, first + 1)?, ty)?]
        };
    }
    macro_rules! ordered {
        ($T:ty) => {{
            let s = slots!($T);
            match name {
                "eq" => compare::<$T>(s, |x, y| x == y),
                "ne" => compare::<$T>(s, |x, y| x != y),
                "lt" | "lo" => compare::<$T>(s, |x, y| x < y),
                "le" | "ls" => compare::<$T>(s, |x, y| x <= y),
                "gt" | "hi" => compare::<$T>(s, |x, y| x > y),
                "ge" | "hs" => compare::<$T>(s, |x, y| x >= y),
                _ => return Err(unknown()),
            }
        }};
    }
    macro_rules! float {
        ($T:ty) => {{
            let s = slots!($T);
            match name {
                "eq" => compare::<$T>(s, |x, y| x == y),
                "ne" => compare::<$T>(s, |x, y| x < y || x > y),
                "lt" => compare::<$T>(s, |x, y| x < y),
                "le" => compare::<$T>(s, |x, y| x <= y),
                "gt" => compare::<$T>(s, |x, y| x > y),
                "ge" => compare::<$T>(s, |x, y| x >= y),
                "equ" => compare::<$T>(s, |x, y| !(x < y || x > y)),
                "neu" => compare::<$T>(s, |x, y| x != y),
                "ltu" => compare::<$T>(s, |x, y| !(x >= y)),
                "leu" => compare::<$T>(s, |x, y| !(x > y)),
                "gtu" => compare::<$T>(s, |x, y| !(x <= y)),
                "geu" => compare::<$T>(s, |x, y| !(x < y)),
                "num" => compare::<$T>(s, |x, y| x <= y || x >= y),
                "nan" => compare::<$T>(s, |x, y| !(x <= y || x >= y)),
                _ => return Err(unknown()),
            }
        }};
    }
    Ok(match ty {
        Type::U16 | Type::B16 => ordered!(u16),
        Type::S16 => ordered!(i16),
        Type::U32 | Type::B32 => ordered!(u32),
        Type::S32 => ordered!(i32),
        Type::U64 | Type::B64 => ordered!(u64),
        Type::S64 => ordered!(i64),
        Type::F32 => float!(f32),
        Type::F64 => float!(f64),
        Type::F16 => float!(half::f16),
        Type::BF16 => float!(half::bf16),
        _ => return Err(unknown()),
    })
}

pub(crate) fn setp(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
    let (p, q) = match at(args, 0)? {
        Arg::Name(p) => (b.dst_pred(p)?, None),
        Arg::Pair(p, q) => (b.dst_pred(p)?, Some(b.dst_pred(q)?)),
        _ => return Err(unknown()),
    };
    let test = comparison(b, parts[1], 1, args, ty)?;
    let third = args.get(3).map(|a| b.src_pred(a)).transpose()?;
    let join: fn(u32, u32) -> u32 = match parts[2] {
        "and" => |x, y| x & y,
        "or" => |x, y| x | y,
        "xor" => |x, y| x ^ y,
        _ => |x, _| x,
    };
    let alu: Alu =
        Box::new(move |regs: &mut Regs, mask| {
            let v = test(regs);
            let c = third.map_or(0, |(c, negate)| {
                if negate { !regs.preds[c as usize] } else { regs.preds[c as usize] }
            });
            regs.put_pred(p, join(v, c), mask);
            if let Some(q) = q {
                regs.put_pred(q, join(!v, c), mask);
            }
        });
    Ok((Action::Alu(alu), if ty.float() { Class::Float } else { Class::Integer }, 0))
}

/// `set.lt.u32.f32 d, a, b`: all ones or 1.0 where the comparison is true.
pub(crate) fn set(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
    let result = Type::from_name(parts[parts.len() - 2]).ok_or_else(unknown)?;
    if args.len() > 3 {
        return Err(unknown());
    }
    let one = match result {
        Type::F32 => 1f32.to_bits(),
        Type::U32 | Type::S32 => !0,
        _ => return Err(unknown()),
    };
    let test = comparison(b, parts[1], 1, args, ty)?;
    let d = b.dst::<u32>(at(args, 0)?)?;
    let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
        let v = test(regs);
        regs.put_word(d, std::array::from_fn(|l| if v >> l & 1 == 1 { one } else { 0 }), mask)
    });
    Ok((Action::Alu(alu), Class::Integer, 0))
}

pub(crate) fn selp(b: &mut Builder, args: &[Arg], ty: Type) -> Decoded {
    let (p, negate) = b.src_pred(at(args, 3)?)?;
    macro_rules! by {
        ($T:ty, $bank:ident, $put:ident) => {{
            let d = b.dst::<$T>(at(args, 0)?)?;
            let s = [b.src::<$T>(at(args, 1)?, ty)?, b.src::<$T>(at(args, 2)?, ty)?];
            let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
                let p = if negate { !regs.preds[p as usize] } else { regs.preds[p as usize] };
                let [x, y] = s.map(|s| regs.$bank[s as usize]);
                regs.$put(
                    d,
                    std::array::from_fn(|l| if p >> l & 1 == 1 { x[l] } else { y[l] }),
                    mask,
                )
            });
            alu
        }};
    }
    let alu =
        if ty.bytes() == 8 { by!(u64, doubles, put_double) } else { by!(u32, words, put_word) };
    Ok((Action::Alu(alu), Class::Integer, 0))
}

pub(crate) fn slct<T: Lane, C: Lane>(
    b: &mut Builder,
    args: &[Arg],
    ty: Type,
    f: fn(C) -> bool,
) -> Result<Alu, Error> {
    let d = b.dst::<T>(at(args, 0)?)?;
    let s = [
        b.src::<T>(at(args, 1)?, ty)?,
        b.src::<T>(at(args, 2)?, ty)?,
        b.src::<C>(at(args, 3)?, ty)?,
    ];
    Ok(ternary(d, s, move |x: T, y: T, c: C| if f(c) { x } else { y }))
}
