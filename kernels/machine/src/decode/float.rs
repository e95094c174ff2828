//! Floating-point instructions.

use crate::decode::arithmetic::{one, three, two};
use crate::decode::{Decoded, formats, unknown};
use crate::machine::regs::Alu;
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;
use half::{bf16, f16};

/// Subnormal numbers as zero of the same sign.
#[inline(always)]
fn flush(ftz: bool, x: f32) -> f32 {
    if ftz && x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// 1 if it saturates; NaN becomes 0.
#[inline(always)]
fn saturate(sat: bool, x: f32) -> f32 {
    if !sat {
        x
    } else if x > 0.0 {
        if x > 1.0 { 1.0 } else { x }
    } else {
        0.0
    }
}

/// The larger one; a number takes precedence over NaN unless NaN is requested, and +0 over -0.
#[inline(always)]
fn maximum(nan: bool, x: f32, y: f32) -> f32 {
    if x.is_nan() || y.is_nan() {
        if nan || (x.is_nan() && y.is_nan()) {
            f32::from_bits(0x7fff_ffff)
        } else if x.is_nan() {
            y
        } else {
            x
        }
    } else if x == y {
        f32::from_bits(x.to_bits() & y.to_bits())
    } else if x > y {
        x
    } else {
        y
    }
}

#[inline(always)]
fn minimum(nan: bool, x: f32, y: f32) -> f32 {
    -maximum(nan, -x, -y)
}

/// A 16-bit float, as the low bits of a word: arithmetic is done in wider types and rounded once.
trait Small: 'static {
    /// Its exponent range is small.
    const SHORT: bool;
    fn wide(bits: u32) -> f32;
    fn round(x: f32) -> u32;
}
impl Small for f16 {
    const SHORT: bool = true;
    #[inline(always)]
    fn wide(bits: u32) -> f32 {
        formats::f16_value(bits)
    }
    #[inline(always)]
    fn round(x: f32) -> u32 {
        formats::f16_bits(x)
    }
}
impl Small for bf16 {
    const SHORT: bool = false;
    #[inline(always)]
    fn wide(bits: u32) -> f32 {
        formats::bf16_value(bits)
    }
    #[inline(always)]
    fn round(x: f32) -> u32 {
        formats::bf16_bits(x)
    }
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
    let class = if ["ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt", "div"]
        .contains(&parts[0])
    {
        Class::Special
    } else {
        Class::Float
    };
    let alu = match ty {
        Type::F32 => single(b, parts, args)?,
        Type::F64 => double(b, parts, args)?,
        Type::F16 => small::<f16, false>(b, parts, args, ty)?,
        Type::BF16 => small::<bf16, false>(b, parts, args, ty)?,
        Type::F16x2 => small::<f16, true>(b, parts, args, ty)?,
        Type::BF16x2 => small::<bf16, true>(b, parts, args, ty)?,
        _ => return Err(unknown()),
    };
    Ok((Action::Alu(alu), class, 0))
}

/// Directed roundings: the result of an exact operation in f64 that was rounded to f32 toward zero,
/// down, up.
fn direct(mode: &str) -> Option<fn(f64) -> f32> {
    Some(match mode {
        "rz" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Zero),
        "rm" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Down),
        "rp" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Up),
        _ => return None,
    })
}

fn single(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<Alu, Error> {
    let ty = Type::F32;
    let ftz = parts.contains(&"ftz");
    let sat = parts.contains(&"sat");
    let nan = parts.contains(&"NaN");
    let z = move |x| flush(ftz, x);
    let out = move |x| saturate(sat, flush(ftz, x));
    if let Some(round) = parts.iter().find_map(|p| direct(p)) {
        // Sums and products of two f32 are exact enough in f64; `fma` with these roundings is not
        // supported.
        return match parts[0] {
            "add" => two(b, args, ty, move |x: f32, y: f32| out(round(z(x) as f64 + z(y) as f64))),
            "sub" => two(b, args, ty, move |x: f32, y: f32| out(round(z(x) as f64 - z(y) as f64))),
            "mul" => two(b, args, ty, move |x: f32, y: f32| out(round(z(x) as f64 * z(y) as f64))),
            "div" => two(b, args, ty, move |x: f32, y: f32| out(round(z(x) as f64 / z(y) as f64))),
            "rcp" => one(b, args, ty, move |x: f32| out(round(1.0 / z(x) as f64))),
            "sqrt" => one(b, args, ty, move |x: f32| out(round((z(x) as f64).sqrt()))),
            "fma" => three(b, args, ty, move |x: f32, y: f32, c: f32| {
                out(round((z(x) as f64).mul_add(z(y) as f64, z(c) as f64)))
            }),
            _ => Err(unknown()),
        };
    }
    if !ftz && !sat {
        // The common ones, without the branches.
        match parts[0] {
            "add" => return two(b, args, ty, |x: f32, y: f32| x + y),
            "sub" => return two(b, args, ty, |x: f32, y: f32| x - y),
            "mul" => return two(b, args, ty, |x: f32, y: f32| x * y),
            "fma" | "mad" => return three(b, args, ty, |x: f32, y: f32, c: f32| x.mul_add(y, c)),
            _ => {}
        }
    }
    match parts[0] {
        "add" => two(b, args, ty, move |x: f32, y: f32| out(z(x) + z(y))),
        "sub" => two(b, args, ty, move |x: f32, y: f32| out(z(x) - z(y))),
        "mul" => two(b, args, ty, move |x: f32, y: f32| out(z(x) * z(y))),
        "fma" | "mad" => {
            three(b, args, ty, move |x: f32, y: f32, c: f32| out(z(x).mul_add(z(y), z(c))))
        }
        "div" => two(b, args, ty, move |x: f32, y: f32| out(z(x) / z(y))),
        "max" if args.len() == 4 => three(b, args, ty, move |x: f32, y: f32, c: f32| {
            maximum(nan, maximum(nan, z(x), z(y)), z(c))
        }),
        "min" if args.len() == 4 => three(b, args, ty, move |x: f32, y: f32, c: f32| {
            minimum(nan, minimum(nan, z(x), z(y)), z(c))
        }),
        "max" => two(b, args, ty, move |x: f32, y: f32| maximum(nan, z(x), z(y))),
        "min" => two(b, args, ty, move |x: f32, y: f32| minimum(nan, z(x), z(y))),
        "abs" => one(b, args, ty, move |x: f32| z(x).abs()),
        "neg" => one(b, args, ty, move |x: f32| -z(x)),
        "rcp" => one(b, args, ty, move |x: f32| out(1.0 / z(x))),
        "sqrt" => one(b, args, ty, move |x: f32| out(z(x).sqrt())),
        "rsqrt" => one(b, args, ty, move |x: f32| out((1.0 / (z(x) as f64).sqrt()) as f32)),
        "ex2" => one(b, args, ty, move |x: f32| out(formats::exp2(z(x)))),
        "lg2" => one(b, args, ty, move |x: f32| out(z(x).log2())),
        "sin" => one(b, args, ty, move |x: f32| out(z(x).sin())),
        "cos" => one(b, args, ty, move |x: f32| out(z(x).cos())),
        "tanh" => one(b, args, ty, move |x: f32| out(formats::tanh(x))),
        "copysign" => two(b, args, ty, |x: f32, y: f32| y.copysign(x)),
        _ => Err(unknown()),
    }
}

fn double(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<Alu, Error> {
    let ty = Type::F64;
    if parts.iter().any(|p| ["rz", "rm", "rp"].contains(p)) {
        return Err(unknown());
    }
    match parts[0] {
        "add" => two(b, args, ty, |x: f64, y: f64| x + y),
        "sub" => two(b, args, ty, |x: f64, y: f64| x - y),
        "mul" => two(b, args, ty, |x: f64, y: f64| x * y),
        "div" => two(b, args, ty, |x: f64, y: f64| x / y),
        "fma" | "mad" => three(b, args, ty, |x: f64, y: f64, z: f64| x.mul_add(y, z)),
        "max" => two(b, args, ty, f64::max),
        "min" => two(b, args, ty, f64::min),
        "abs" => one(b, args, ty, f64::abs),
        "neg" => one(b, args, ty, |x: f64| -x),
        "rcp" => one(b, args, ty, |x: f64| 1.0 / x),
        "sqrt" => one(b, args, ty, f64::sqrt),
        "rsqrt" => one(b, args, ty, |x: f64| 1.0 / x.sqrt()),
        "copysign" => two(b, args, ty, |x: f64, y: f64| y.copysign(x)),
        _ => Err(unknown()),
    }
}

/// Instructions of one 16-bit float, or of two in a register.
fn small<S: Small, const TWO: bool>(
    b: &mut Builder,
    parts: &[&str],
    args: &[Arg],
    ty: Type,
) -> Result<Alu, Error> {
    let relu = parts.contains(&"relu");
    let sat = parts.contains(&"sat");
    let nan = parts.contains(&"NaN");
    // Saturation and rounding can be exchanged: 0 and 1 are numbers of all formats.
    let done = move |x: f32| {
        let x = saturate(sat, x);
        S::round(if relu && x < 0.0 { 0.0 } else { x })
    };
    let w = S::wide;
    // Both halves, each as the low bits of a word.
    macro_rules! apply {
        ($n:ident, |$($x:ident),*| $e:expr) => {
            $n(b, args, ty, move |$($x: u32),*| {
                let f = |$($x: u32),*| $e;
                let low = f($($x & 0xffff),*);
                if TWO { f($($x >> 16),*) << 16 | low } else { low }
            })
        };
    }
    match parts[0] {
        // Sums in f32 are wide enough to be rounded again. So are products of f16; those of bf16
        // may underflow.
        "add" => apply!(two, |x, y| done(w(x) + w(y))),
        "sub" => apply!(two, |x, y| done(w(x) - w(y))),
        "mul" if S::SHORT => apply!(two, |x, y| done(w(x) * w(y))),
        "mul" => apply!(two, |x, y| done(formats::odd(w(x) as f64 * w(y) as f64))),
        "fma" => apply!(three, |x, y, z| done(formats::fma_odd(w(x), w(y), w(z)))),
        "max" => apply!(two, |x, y| done(maximum(nan, w(x), w(y)))),
        "min" => apply!(two, |x, y| done(minimum(nan, w(x), w(y)))),
        "neg" => apply!(one, |x| x ^ 0x8000),
        "abs" => apply!(one, |x| x & 0x7fff),
        "ex2" => apply!(one, |x| done(formats::exp2(w(x)))),
        "tanh" => apply!(one, |x| done(formats::tanh(w(x)))),
        _ => Err(unknown()),
    }
}
