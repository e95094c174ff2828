//! Integer and logic instructions, comparisons and selections; floats are in `float.rs`.

use crate::decode::{Decoded, at, bits, compare, last_type, unknown};
use crate::machine::regs::{Alu, Lane, binary, ternary, unary};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;

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
    let s = [
        b.src::<T>(at(args, 1)?, ty)?,
        b.src::<T>(at(args, 2)?, ty)?,
        b.src::<C>(at(args, 3)?, ty)?,
    ];
    Ok(ternary(d, s, f))
}

/// Runs a body for the given integer type.
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
            "prmt" => bits::prmt(b, parts, args),
            _ => Err(unknown()),
        };
    };
    match parts[0] {
        "setp" => return compare::setp(b, parts, args, ty),
        "set" => return compare::set(b, parts, args, ty),
        "selp" => return compare::selp(b, args, ty),
        "prmt" => return bits::prmt(b, parts, args),
        "slct" => {
            let alu = if ty == Type::F32 {
                bits!(Type::from_name(parts[1]).ok_or_else(unknown)?, T => compare::slct::<T, f32>(b, args, ty, |c| c >= 0.0))
            } else {
                bits!(Type::from_name(parts[parts.len() - 2]).ok_or_else(unknown)?, T => compare::slct::<T, i32>(b, args, ty, |c| c >= 0))
            }?;
            return Ok((Action::Alu(alu), Class::Integer, 0));
        }
        _ => {}
    }
    if ty == Type::Pred {
        return compare::predicates(b, parts, args);
    }
    if ty.float() {
        return crate::decode::float::decode(b, parts, args, ty);
    }
    let wide = parts.contains(&"wide");
    let hi = parts.contains(&"hi");
    let sat = parts.contains(&"sat");
    let alu = match parts[0] {
        "add" if sat => two::<i32, i32>(b, args, ty, i32::saturating_add),
        "sub" if sat => two::<i32, i32>(b, args, ty, i32::saturating_sub),
        "add" if !parts.contains(&"cc") => {
            bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_add(y)))
        }
        "sub" if !parts.contains(&"cc") => {
            bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_sub(y)))
        }
        "mul" | "mad" if wide => return wide_product(b, parts[0] == "mad", args, ty),
        "mul" if hi => match ty {
            Type::U32 => two::<u32, u32>(b, args, ty, |x, y| ((x as u64 * y as u64) >> 32) as u32),
            Type::S32 => two::<i32, i32>(b, args, ty, |x, y| ((x as i64 * y as i64) >> 32) as i32),
            Type::U64 => {
                two::<u64, u64>(b, args, ty, |x, y| ((x as u128 * y as u128) >> 64) as u64)
            }
            Type::S64 => {
                two::<i64, i64>(b, args, ty, |x, y| ((x as i128 * y as i128) >> 64) as i64)
            }
            Type::U16 => two::<u16, u16>(b, args, ty, |x, y| ((x as u32 * y as u32) >> 16) as u16),
            Type::S16 => two::<i16, i16>(b, args, ty, |x, y| ((x as i32 * y as i32) >> 16) as i16),
            _ => return Err(unknown()),
        },
        "mul" => bits!(ty, T => two::<T, T>(b, args, ty, |x, y| x.wrapping_mul(y))),
        "mad" if hi => match ty {
            Type::U32 => three(b, args, ty, |x: u32, y, z: u32| {
                (((x as u64 * y as u64) >> 32) as u32).wrapping_add(z)
            }),
            Type::S32 => three(b, args, ty, |x: i32, y, z: i32| {
                (((x as i64 * y as i64) >> 32) as i32).wrapping_add(z)
            }),
            Type::U64 => three(b, args, ty, |x: u64, y, z: u64| {
                (((x as u128 * y as u128) >> 64) as u64).wrapping_add(z)
            }),
            _ => return Err(unknown()),
        },
        "mad" => {
            bits!(ty, T => three::<T, T, T>(b, args, ty, |x, y, z| x.wrapping_mul(y).wrapping_add(z)))
        }
        "mul24" => two::<u32, u32>(b, args, ty, |x, y| (x << 8 >> 8).wrapping_mul(y << 8 >> 8)),
        // The result of a division by zero is undefined on hardware; here it is all ones.
        "div" => {
            integers!(ty, T => two::<T, T>(b, args, ty, |x, y| if y == 0 { !0 } else { x.wrapping_div(y) }))
        }
        "rem" => {
            integers!(ty, T => two::<T, T>(b, args, ty, |x, y| if y == 0 { x } else { x.wrapping_rem(y) }))
        }
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
        "shl" | "shr" => return bits::shift(b, parts[0] == "shl", args, ty),
        "shf" => {
            let (left, clamp) = (parts[1] == "l", parts[2] == "clamp");
            three(b, args, ty, move |low: u32, high: u32, n: u32| {
                let n = if clamp { n.min(32) } else { n & 31 };
                let both = (high as u64) << 32 | low as u64;
                if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
            })
        }
        "bfe" => bits::bfe(b, args, ty),
        "bfi" => bits::bfi(b, args, ty),
        "lop3" => bits::lop3(b, args),
        "popc" => count(b, args, ty, u64::count_ones),
        "clz" if ty.bytes() == 8 => count(b, args, ty, u64::leading_zeros),
        "clz" => count(b, args, ty, |x| (x as u32).leading_zeros()),
        "brev" => match ty.bytes() {
            4 => one(b, args, ty, u32::reverse_bits),
            _ => one(b, args, ty, u64::reverse_bits),
        },
        "bfind" => {
            let (signed, amount, bits) =
                (ty.signed(), parts.contains(&"shiftamt"), ty.bytes() as u32 * 8);
            count(b, args, ty, move |x| {
                let x = if signed && x >> (bits - 1) & 1 == 1 {
                    !x & (u64::MAX >> (64 - bits))
                } else {
                    x
                };
                if x == 0 {
                    !0
                } else if amount {
                    bits - 1 - x.ilog2()
                } else {
                    x.ilog2()
                }
            })
        }
        "dp4a" => bits::dp4a(b, parts, args),
        "sad" => {
            integers!(ty, T => three::<T, T, T>(b, args, ty, |x, y, z| z.wrapping_add(x.max(y).wrapping_sub(x.min(y)))))
        }
        _ => return Err(unknown()),
    }?;
    Ok((Action::Alu(alu), Class::Integer, 0))
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
        (Type::U16, true) => {
            three(b, args, ty, |x: u16, y: u16, z: u32| (x as u32 * y as u32).wrapping_add(z))
        }
        (Type::S16, true) => {
            three(b, args, ty, |x: i16, y: i16, z: i32| (x as i32 * y as i32).wrapping_add(z))
        }
        (Type::U32, true) => {
            three(b, args, ty, |x: u32, y: u32, z: u64| (x as u64 * y as u64).wrapping_add(z))
        }
        (Type::S32, true) => {
            three(b, args, ty, |x: i32, y: i32, z: i64| (x as i64 * y as i64).wrapping_add(z))
        }
        _ => return Err(unknown()),
    }?;
    Ok((Action::Alu(alu), Class::Integer, 0))
}
