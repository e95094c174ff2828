//! Integer and logic instructions, comparisons and selections; floats are in `float.rs`.

use crate::builder::Builder;
use crate::decode::{Decoded, at, last_type, unknown};
use crate::program::*;
use crate::regs::{Alu, Lane, Regs, binary, compare, ternary, unary};
use crate::text::Arg;
use crate::types::Type;

/// Destination and two operands of one type.
pub(crate) fn two<T: Lane, D: Lane>(
    b: &mut Builder,
    args: &[Arg],
    ty: Type,
    f: impl Fn(T, T) -> D + Send + Sync + 'static,
) -> Result<Alu, Error> {
    let d = b.dst::<D>(at(args, 0)?)?;
    let s = [b.src::<T>(at(args, 1)?, ty)?, b.src::<T>(at(args, 2)?, ty)?];
    Ok(binary(d, s, f))
}

pub(crate) fn one<T: Lane, D: Lane>(
    b: &mut Builder,
    args: &[Arg],
    ty: Type,
    f: impl Fn(T) -> D + Send + Sync + 'static,
) -> Result<Alu, Error> {
    let d = b.dst::<D>(at(args, 0)?)?;
    Ok(unary(d, b.src::<T>(at(args, 1)?, ty)?, f))
}

pub(crate) fn three<T: Lane, C: Lane, D: Lane>(
    b: &mut Builder,
    args: &[Arg],
    ty: Type,
    f: impl Fn(T, T, C) -> D + Send + Sync + 'static,
) -> Result<Alu, Error> {
    let d = b.dst::<D>(at(args, 0)?)?;
    let s = [b.src::<T>(at(args, 1)?, ty)?, b.src::<T>(at(args, 2)?, ty)?, b.src::<C>(at(args, 3)?, ty)?];
    Ok(ternary(d, s, f))
}

/// Runs a body for the integer type at hand.
macro_rules! integers {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U16 | Type::B16 => {
                type $T = u16;
                $body
            }
            Type::S16 => {
                type $T = i16;
                $body
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $body
            }
            Type::S32 => {
                type $T = i32;
                $body
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $body
            }
            Type::S64 => {
                type $T = i64;
                $body
            }
            _ => return Err(unknown()),
        }
    };
}
/// The same for bits, where the sign does not matter.
macro_rules! bits {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty.bytes() {
            2 => {
                type $T = u16;
                $body
            }
            4 => {
                type $T = u32;
                $body
            }
            8 => {
                type $T = u64;
                $body
            }
            _ => return Err(unknown()),
        }
    };
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let Ok(ty) = last_type(parts) else {
        return match parts[0] {
            "prmt" => prmt(b, parts, args),
            _ => Err(unknown()),
        };
    };
    match parts[0] {
        "setp" => return setp(b, parts, args, ty),
        "set" => return set(b, parts, args, ty),
        "selp" => return selp(b, args, ty),
        "prmt" => return prmt(b, parts, args),
        "slct" => {
            let alu = if ty == Type::F32 {
                bits!(Type::from_name(parts[1]).ok_or_else(unknown)?, T => slct::<T, f32>(b, args, ty, |c| c >= 0.0))
            } else {
                bits!(Type::from_name(parts[parts.len() - 2]).ok_or_else(unknown)?, T => slct::<T, i32>(b, args, ty, |c| c >= 0))
            }?;
            return Ok((Action::Alu(alu), Class::Integer, 0));
        }
        _ => {}
    }
    if ty == Type::Pred {
        return predicates(b, parts, args);
    }
    if ty.float() {
        return crate::float::decode(b, parts, args, ty);
    }
    let wide = parts.contains(&"wide");
    let hi = parts.contains(&"hi");
    let sat = parts.contains(&"sat");
    let alu = match parts[0] {
        "add" if sat => two::<i32, i32>(b, args, ty, i32::saturating_add),
        "sub" if sat => two::<i32, i32>(b, args, ty, i32::saturating_sub),
        "add" if !parts.contains(&"cc") => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_add(y))),
        "sub" if !parts.contains(&"cc") => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_sub(y))),
        "mul" | "mad" if wide => return wide_product(b, parts[0] == "mad", args, ty),
        "mul" if hi => match ty {
            Type::U32 => two::<u32, u32>(b, args, ty, |x, y| (x as u64 * y as u64 >> 32) as u32),
            Type::S32 => two::<i32, i32>(b, args, ty, |x, y| (x as i64 * y as i64 >> 32) as i32),
            Type::U64 => two::<u64, u64>(b, args, ty, |x, y| (x as u128 * y as u128 >> 64) as u64),
            Type::S64 => two::<i64, i64>(b, args, ty, |x, y| (x as i128 * y as i128 >> 64) as i64),
            Type::U16 => two::<u16, u16>(b, args, ty, |x, y| (x as u32 * y as u32 >> 16) as u16),
            Type::S16 => two::<i16, i16>(b, args, ty, |x, y| (x as i32 * y as i32 >> 16) as i16),
            _ => return Err(unknown()),
        },
        "mul" => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_mul(y))),
        "mad" if hi => match ty {
            Type::U32 => three(b, args, ty, |x: u32, y, z: u32| ((x as u64 * y as u64 >> 32) as u32).wrapping_add(z)),
            Type::S32 => three(b, args, ty, |x: i32, y, z: i32| ((x as i64 * y as i64 >> 32) as i32).wrapping_add(z)),
            Type::U64 => three(b, args, ty, |x: u64, y, z: u64| ((x as u128 * y as u128 >> 64) as u64).wrapping_add(z)),
            _ => return Err(unknown()),
        },
        "mad" => bits!(ty, T => three::<T, T, T>(b, args, ty, |x, y, z| x.wrapping_mul(y).wrapping_add(z))),
        "mul24" => two::<u32, u32>(b, args, ty, |x, y| (x << 8 >> 8).wrapping_mul(y << 8 >> 8)),
        // What the hardware gives for a division by zero is undefined; all ones here.
        "div" => integers!(ty, T => two::<T, T>(b, args, ty, |x, y| if y == 0 { !0 } else { x.wrapping_div(y) })),
        "rem" => integers!(ty, T => two::<T, T>(b, args, ty, |x, y| if y == 0 { x } else { x.wrapping_rem(y) })),
        "min" => integers!(ty, T => two::<T, T>(b, args, ty, |x, y| x.min(y))),
        "max" => integers!(ty, T => two::<T, T>(b, args, ty, |x, y| x.max(y))),
        "abs" => match ty {
            Type::S16 => one(b, args, ty, i16::wrapping_abs),
            Type::S32 => one(b, args, ty, i32::wrapping_abs),
            Type::S64 => one(b, args, ty, i64::wrapping_abs),
            _ => return Err(unknown()),
        },
        "neg" => bits!(ty, T => one::<T, T>(b, args, ty, |x| x.wrapping_neg())),
        "not" => bits!(ty, T => one::<T, T>(b, args, ty, |x| !x)),
        "cnot" => bits!(ty, T => one::<T, T>(b, args, ty, |x| (x == 0) as T)),
        "and" => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x & y)),
        "or" => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x | y)),
        "xor" => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x ^ y)),
        "shl" | "shr" => return shift(b, parts[0] == "shl", args, ty),
        "shf" => {
            let (left, clamp) = (parts[1] == "l", parts[2] == "clamp");
            three(b, args, ty, move |low: u32, high: u32, n: u32| {
                let n = if clamp { n.min(32) } else { n & 31 };
                let both = (high as u64) << 32 | low as u64;
                if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
            })
        }
        "bfe" => bfe(b, args, ty),
        "bfi" => bfi(b, args, ty),
        "lop3" => lop3(b, args),
        "popc" => count(b, args, ty, u64::count_ones),
        "clz" if ty.bytes() == 8 => count(b, args, ty, u64::leading_zeros),
        "clz" => count(b, args, ty, |x| (x as u32).leading_zeros()),
        "brev" => match ty.bytes() {
            4 => one(b, args, ty, u32::reverse_bits),
            _ => one(b, args, ty, u64::reverse_bits),
        },
        "bfind" => {
            let (signed, amount, bits) = (ty.signed(), parts.contains(&"shiftamt"), ty.bytes() as u32 * 8);
            count(b, args, ty, move |x| {
                let x = if signed && x >> (bits - 1) & 1 == 1 { !x & (u64::MAX >> (64 - bits)) } else { x };
                if x == 0 {
                    !0
                } else if amount {
                    bits - 1 - x.ilog2()
                } else {
                    x.ilog2()
                }
            })
        }
        "dp4a" => dp4a(b, parts, args),
        "sad" => {
            integers!(ty, T => three::<T, T, T>(b, args, ty, |x, y, z| z.wrapping_add(x.max(y).wrapping_sub(x.min(y)))))
        }
        _ => return Err(unknown()),
    }?;
    Ok((Action::Alu(alu), Class::Integer, 0))
}

fn slct<T: Lane, C: Lane>(b: &mut Builder, args: &[Arg], ty: Type, f: fn(C) -> bool) -> Result<Alu, Error> {
    let d = b.dst::<T>(at(args, 0)?)?;
    let s = [b.src::<T>(at(args, 1)?, ty)?, b.src::<T>(at(args, 2)?, ty)?, b.src::<C>(at(args, 3)?, ty)?];
    Ok(ternary(d, s, move |x: T, y: T, c: C| if f(c) { x } else { y }))
}

fn count(
    b: &mut Builder,
    args: &[Arg],
    ty: Type,
    f: impl Fn(u64) -> u32 + Send + Sync + 'static,
) -> Result<Alu, Error> {
    if ty.bytes() == 8 { one(b, args, ty, f) } else { one(b, args, ty, move |x: u32| f(x as u64)) }
}

fn wide_product(b: &mut Builder, mad: bool, args: &[Arg], ty: Type) -> Decoded {
    let alu = match (ty, mad) {
        (Type::U16, false) => two(b, args, ty, |x: u16, y: u16| x as u32 * y as u32),
        (Type::S16, false) => two(b, args, ty, |x: i16, y: i16| x as i32 * y as i32),
        (Type::U32, false) => two(b, args, ty, |x: u32, y: u32| x as u64 * y as u64),
        (Type::S32, false) => two(b, args, ty, |x: i32, y: i32| x as i64 * y as i64),
        (Type::U16, true) => three(b, args, ty, |x: u16, y: u16, z: u32| (x as u32 * y as u32).wrapping_add(z)),
        (Type::S16, true) => three(b, args, ty, |x: i16, y: i16, z: i32| (x as i32 * y as i32).wrapping_add(z)),
        (Type::U32, true) => three(b, args, ty, |x: u32, y: u32, z: u64| (x as u64 * y as u64).wrapping_add(z)),
        (Type::S32, true) => three(b, args, ty, |x: i32, y: i32, z: i64| (x as i64 * y as i64).wrapping_add(z)),
        _ => return Err(unknown()),
    }?;
    Ok((Action::Alu(alu), Class::Integer, 0))
}

fn shift(b: &mut Builder, left: bool, args: &[Arg], ty: Type) -> Decoded {
    macro_rules! by {
        ($T:ty, $f:expr) => {{
            let d = b.dst::<$T>(at(args, 0)?)?;
            let s = [b.src::<$T>(at(args, 1)?, ty)?, b.src::<u32>(at(args, 2)?, Type::U32)?];
            binary::<$T, u32, $T>(d, s, $f)
        }};
    }
    // Shifts by the width or more leave nothing, or copies of the sign.
    let alu = match (left, ty) {
        (true, Type::B16 | Type::U16 | Type::S16) => by!(u16, |x, n| x.checked_shl(n).unwrap_or(0)),
        (true, Type::B32 | Type::U32 | Type::S32) => by!(u32, |x, n| if n > 31 { 0 } else { x << (n & 31) }),
        (true, Type::B64 | Type::U64 | Type::S64) => by!(u64, |x, n| if n > 63 { 0 } else { x << (n & 63) }),
        (false, Type::B16 | Type::U16) => by!(u16, |x, n| x.checked_shr(n).unwrap_or(0)),
        (false, Type::B32 | Type::U32) => by!(u32, |x, n| if n > 31 { 0 } else { x >> (n & 31) }),
        (false, Type::B64 | Type::U64) => by!(u64, |x, n| if n > 63 { 0 } else { x >> (n & 63) }),
        (false, Type::S16) => by!(i16, |x, n| x >> n.min(15)),
        (false, Type::S32) => by!(i32, |x, n| x >> n.min(31)),
        (false, Type::S64) => by!(i64, |x, n| x >> n.min(63)),
        _ => return Err(unknown()),
    };
    Ok((Action::Alu(alu), Class::Integer, 0))
}

fn bfe(b: &mut Builder, args: &[Arg], ty: Type) -> Result<Alu, Error> {
    let (signed, bits) = (ty.signed(), ty.bytes() as u32 * 8);
    let field = move |x: u64, pos: u32, len: u32| -> u64 {
        let (pos, len) = (pos & 255, len & 255);
        let x = if bits == 32 { x & 0xffff_ffff } else { x };
        let top = if len == 0 { 0 } else { x >> (pos + len - 1).min(bits - 1) & 1 };
        let kept = len.min(bits.saturating_sub(pos));
        let low = if kept == 0 { 0 } else { x >> pos & (u64::MAX >> (64 - kept)) };
        if signed && top == 1 && len > 0 && kept < 64 { low | u64::MAX << kept } else { low }
    };
    let (pos, len) = (b.src::<u32>(at(args, 2)?, Type::U32)?, b.src::<u32>(at(args, 3)?, Type::U32)?);
    Ok(if bits == 32 {
        let (d, a) = (b.dst::<u32>(at(args, 0)?)?, b.src::<u32>(at(args, 1)?, ty)?);
        ternary(d, [a, pos, len], move |x: u32, p: u32, n: u32| field(x as u64, p, n) as u32)
    } else {
        let (d, a) = (b.dst::<u64>(at(args, 0)?)?, b.src::<u64>(at(args, 1)?, ty)?);
        ternary(d, [a, pos, len], field)
    })
}

fn bfi(b: &mut Builder, args: &[Arg], ty: Type) -> Result<Alu, Error> {
    let insert = |a: u64, base: u64, pos: u32, len: u32, bits: u32| -> u64 {
        let (pos, len) = (pos & 255, (len & 255).min(bits));
        if len == 0 || pos >= bits {
            return base;
        }
        let field = (u64::MAX >> (64 - len)) << pos;
        base & !field | a << pos & field
    };
    let (pos, len) = (b.src::<u32>(at(args, 3)?, Type::U32)?, b.src::<u32>(at(args, 4)?, Type::U32)?);
    if ty.bytes() == 4 {
        let d = b.dst::<u32>(at(args, 0)?)?;
        let (x, y) = (b.src::<u32>(at(args, 1)?, ty)?, b.src::<u32>(at(args, 2)?, ty)?);
        return Ok(Box::new(move |regs: &mut Regs, mask| {
            let [x, y, pos, len] = [x, y, pos, len].map(|s| regs.words[s as usize]);
            let out = std::array::from_fn(|l| insert(x[l] as u64, y[l] as u64, pos[l], len[l], 32) as u32);
            regs.put_word(d, out, mask)
        }));
    }
    let d = b.dst::<u64>(at(args, 0)?)?;
    let (x, y) = (b.src::<u64>(at(args, 1)?, ty)?, b.src::<u64>(at(args, 2)?, ty)?);
    Ok(Box::new(move |regs: &mut Regs, mask| {
        let ([x, y], [pos, len]) =
            ([x, y].map(|s| regs.doubles[s as usize]), [pos, len].map(|s| regs.words[s as usize]));
        regs.put_double(d, std::array::from_fn(|l| insert(x[l], y[l], pos[l], len[l], 64)), mask)
    }))
}

fn lop3(b: &mut Builder, args: &[Arg]) -> Result<Alu, Error> {
    let Some(Arg::Name(table)) = args.get(4) else { return Err(unknown()) };
    let table = crate::text::integer(table).ok_or_else(unknown)? as u32;
    three(b, args, Type::B32, move |x: u32, y: u32, z: u32| {
        let mut out = 0;
        for i in 0..8u32 {
            let term = (if i & 4 != 0 { x } else { !x })
                & (if i & 2 != 0 { y } else { !y })
                & (if i & 1 != 0 { z } else { !z });
            out |= term & 0u32.wrapping_sub(table >> i & 1);
        }
        out
    })
}

fn prmt(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let mode = parts.get(2).copied().unwrap_or("");
    if !["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].contains(&mode) {
        return Err(unknown());
    }
    let mode = mode.to_string();
    // For the named modes, the selector of each byte from the low two bits of c.
    let selector = move |c: u32| -> u32 {
        let s = c & 3;
        let each = |f: &dyn Fn(u32) -> u32| (0..4).fold(0, |acc, i| acc | (f(i) & 7) << (i * 4));
        match mode.as_str() {
            "f4e" => each(&|i| s + i),
            "b4e" => each(&|i| s.wrapping_sub(i)),
            "rc8" => each(&|_| s),
            "ecl" => each(&|i| s.max(i)),
            "ecr" => each(&|i| s.min(i)),
            "rc16" => each(&|i| (s & 1) * 2 + (i & 1)),
            _ => c,
        }
    };
    let d = b.dst::<u32>(at(args, 0)?)?;
    let s = [b.src_word(at(args, 1)?)?, b.src_word(at(args, 2)?)?, b.src_word(at(args, 3)?)?];
    let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
        let [x, y, c] = s.map(|s| regs.words[s as usize]);
        let out = std::array::from_fn(|l| {
            let bytes = (y[l] as u64) << 32 | x[l] as u64;
            let c = selector(c[l]);
            (0..4).fold(0, |acc, i| {
                let n = c >> (i * 4) & 15;
                let byte = (bytes >> ((n & 7) * 8)) as u8;
                let byte = if n & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
                acc | (byte as u32) << (i * 8)
            })
        });
        regs.put_word(d, out, mask)
    });
    Ok((Action::Alu(alu), Class::Integer, 0))
}

fn dp4a(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<Alu, Error> {
    let (sx, sy) = (parts[1] == "s32", parts[2] == "s32");
    let byte = |x: u32, i: u32, signed: bool| {
        let v = (x >> (i * 8)) as u8;
        if signed { v as i8 as i32 } else { v as i32 }
    };
    three(b, args, Type::B32, move |x: u32, y: u32, z: u32| {
        (0..4).fold(z, |acc, i| acc.wrapping_add((byte(x, i, sx) * byte(y, i, sy)) as u32))
    })
}

fn predicates(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
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

/// A comparison of arguments 1 and 2 by the name of its operator.
fn comparison(b: &mut Builder, name: &str, first: usize, args: &[Arg], ty: Type) -> Result<Comparison, Error> {
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

fn setp(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
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
    let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
        let v = test(regs);
        let c = third.map_or(0, |(c, negate)| if negate { !regs.preds[c as usize] } else { regs.preds[c as usize] });
        regs.put_pred(p, join(v, c), mask);
        if let Some(q) = q {
            regs.put_pred(q, join(!v, c), mask);
        }
    });
    Ok((Action::Alu(alu), if ty.float() { Class::Float } else { Class::Integer }, 0))
}

/// `set.lt.u32.f32 d, a, b`: all ones or 1.0 where it holds.
fn set(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
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

fn selp(b: &mut Builder, args: &[Arg], ty: Type) -> Decoded {
    let (p, negate) = b.src_pred(at(args, 3)?)?;
    macro_rules! by {
        ($T:ty, $bank:ident, $put:ident) => {{
            let d = b.dst::<$T>(at(args, 0)?)?;
            let s = [b.src::<$T>(at(args, 1)?, ty)?, b.src::<$T>(at(args, 2)?, ty)?];
            let alu: Alu = Box::new(move |regs: &mut Regs, mask| {
                let p = if negate { !regs.preds[p as usize] } else { regs.preds[p as usize] };
                let [x, y] = s.map(|s| regs.$bank[s as usize]);
                regs.$put(d, std::array::from_fn(|l| if p >> l & 1 == 1 { x[l] } else { y[l] }), mask)
            });
            alu
        }};
    }
    let alu = if ty.bytes() == 8 { by!(u64, doubles, put_double) } else { by!(u32, words, put_word) };
    Ok((Action::Alu(alu), Class::Integer, 0))
}
