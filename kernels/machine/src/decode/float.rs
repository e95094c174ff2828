//! Floating-point instructions.

use crate::decode::arithmetic::{one, three, two};
use crate::decode::{Decoded, unknown};
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

/// 1 where it saturates, and no NaN.
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

/// The larger one; a number wins over NaN unless NaN is wanted, and +0 over -0.
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

/// A 16-bit float: arithmetic is done in wider types and rounded once.
trait Small: crate::machine::regs::Lane {
    fn wide(self) -> f32;
    fn round(x: f64) -> Self;
    fn map(self, f: impl Fn(u16) -> u16) -> Self;
}
impl Small for f16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn round(x: f64) -> f16 {
        if x.is_nan() { f16::from_bits(0x7fff) } else { f16::from_f64(x) }
    }
    fn map(self, f: impl Fn(u16) -> u16) -> f16 {
        f16::from_bits(f(self.to_bits()))
    }
}
impl Small for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }
    fn round(x: f64) -> bf16 {
        if x.is_nan() { bf16::from_bits(0x7fff) } else { bf16::from_f64(x) }
    }
    fn map(self, f: impl Fn(u16) -> u16) -> bf16 {
        bf16::from_bits(f(self.to_bits()))
    }
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type) -> Decoded {
    let class = if ["ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt", "div"].contains(&parts[0]) {
        Class::Special
    } else {
        Class::Float
    };
    let alu = match ty {
        Type::F32 => single(b, parts, args)?,
        Type::F64 => double(b, parts, args)?,
        Type::F16 => small::<f16>(b, parts, args, ty)?,
        Type::BF16 => small::<bf16>(b, parts, args, ty)?,
        Type::F16x2 => packed::<f16>(b, parts, args, ty)?,
        Type::BF16x2 => packed::<bf16>(b, parts, args, ty)?,
        _ => return Err(unknown()),
    };
    Ok((Action::Alu(alu), class, 0))
}

/// Directed roundings: the result of an exact operation in f64 that was rounded to f32 toward zero, down, up.
fn direct(mode: &str) -> Option<fn(f64) -> f32> {
    Some(match mode {
        "rz" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Zero),
        "rm" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Down),
        "rp" => |x| crate::decode::convert::round_f32(x, crate::decode::convert::Rounding::Up),
        _ => return None,
    })
}

fn single(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<crate::machine::regs::Alu, Error> {
    let ty = Type::F32;
    let ftz = parts.contains(&"ftz");
    let sat = parts.contains(&"sat");
    let nan = parts.contains(&"NaN");
    let z = move |x| flush(ftz, x);
    let out = move |x| saturate(sat, flush(ftz, x));
    if let Some(round) = parts.iter().find_map(|p| direct(p)) {
        // Sums and products of two f32 are exact enough in f64; `fma` with these roundings is not offered.
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
        // The common ones without the branches.
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
        "fma" | "mad" => three(b, args, ty, move |x: f32, y: f32, c: f32| out(z(x).mul_add(z(y), z(c)))),
        "div" => two(b, args, ty, move |x: f32, y: f32| out(z(x) / z(y))),
        "max" if args.len() == 4 => {
            three(b, args, ty, move |x: f32, y: f32, c: f32| maximum(nan, maximum(nan, z(x), z(y)), z(c)))
        }
        "min" if args.len() == 4 => {
            three(b, args, ty, move |x: f32, y: f32, c: f32| minimum(nan, minimum(nan, z(x), z(y)), z(c)))
        }
        "max" => two(b, args, ty, move |x: f32, y: f32| maximum(nan, z(x), z(y))),
        "min" => two(b, args, ty, move |x: f32, y: f32| minimum(nan, z(x), z(y))),
        "abs" => one(b, args, ty, move |x: f32| z(x).abs()),
        "neg" => one(b, args, ty, move |x: f32| -z(x)),
        "rcp" => one(b, args, ty, move |x: f32| out(1.0 / z(x))),
        "sqrt" => one(b, args, ty, move |x: f32| out(z(x).sqrt())),
        "rsqrt" => one(b, args, ty, move |x: f32| out((1.0 / (z(x) as f64).sqrt()) as f32)),
        "ex2" => one(b, args, ty, move |x: f32| out(z(x).exp2())),
        "lg2" => one(b, args, ty, move |x: f32| out(z(x).log2())),
        "sin" => one(b, args, ty, move |x: f32| out(z(x).sin())),
        "cos" => one(b, args, ty, move |x: f32| out(z(x).cos())),
        "tanh" => one(b, args, ty, move |x: f32| out(x.tanh())),
        "copysign" => two(b, args, ty, |x: f32, y: f32| y.copysign(x)),
        _ => Err(unknown()),
    }
}

fn double(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<crate::machine::regs::Alu, Error> {
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

/// Functions of 16-bit floats by name: of one, two and three arguments.
enum Function<S> {
    One(Box<dyn Fn(S) -> S + Send + Sync>),
    Two(Box<dyn Fn(S, S) -> S + Send + Sync>),
    Three(Box<dyn Fn(S, S, S) -> S + Send + Sync>),
}

fn function<S: Small + Send + Sync>(parts: &[&str]) -> Result<Function<S>, Error> {
    let relu = parts.contains(&"relu");
    let sat = parts.contains(&"sat");
    let nan = parts.contains(&"NaN");
    let done = move |x: f64| {
        let y = S::round(x);
        let w = y.wide();
        if sat && !(0.0..=1.0).contains(&w) {
            S::round(saturate(true, w) as f64)
        } else if relu && w < 0.0 {
            S::round(0.0)
        } else {
            y
        }
    };
    let d = |x: S| x.wide() as f64;
    Ok(match parts[0] {
        "add" => Function::Two(Box::new(move |x, y| done(d(x) + d(y)))),
        "sub" => Function::Two(Box::new(move |x, y| done(d(x) - d(y)))),
        "mul" => Function::Two(Box::new(move |x, y| done(d(x) * d(y)))),
        "fma" => Function::Three(Box::new(move |x, y, z| done(d(x).mul_add(d(y), d(z))))),
        "max" => Function::Two(Box::new(move |x, y| done(maximum(nan, x.wide(), y.wide()) as f64))),
        "min" => Function::Two(Box::new(move |x, y| done(minimum(nan, x.wide(), y.wide()) as f64))),
        "neg" => Function::One(Box::new(|x| x.map(|b| b ^ 0x8000))),
        "abs" => Function::One(Box::new(|x| x.map(|b| b & 0x7fff))),
        "ex2" => Function::One(Box::new(move |x| done(d(x).exp2()))),
        "tanh" => Function::One(Box::new(move |x| done(d(x).tanh()))),
        _ => return Err(unknown()),
    })
}

fn small<S: Small + Send + Sync>(
    b: &mut Builder,
    parts: &[&str],
    args: &[Arg],
    ty: Type,
) -> Result<crate::machine::regs::Alu, Error> {
    match function::<S>(parts)? {
        Function::One(f) => one(b, args, ty, move |x: S| f(x)),
        Function::Two(f) => two(b, args, ty, move |x: S, y: S| f(x, y)),
        Function::Three(f) => three(b, args, ty, move |x: S, y: S, z: S| f(x, y, z)),
    }
}

fn packed<S: Small + Send + Sync>(
    b: &mut Builder,
    parts: &[&str],
    args: &[Arg],
    ty: Type,
) -> Result<crate::machine::regs::Alu, Error>
where
    [S; 2]: crate::machine::regs::Lane,
{
    match function::<S>(parts)? {
        Function::One(f) => one(b, args, ty, move |x: [S; 2]| x.map(&f)),
        Function::Two(f) => two(b, args, ty, move |x: [S; 2], y: [S; 2]| [f(x[0], y[0]), f(x[1], y[1])]),
        Function::Three(f) => {
            three(b, args, ty, move |x: [S; 2], y: [S; 2], z: [S; 2]| [f(x[0], y[0], z[0]), f(x[1], y[1], z[1])])
        }
    }
}
