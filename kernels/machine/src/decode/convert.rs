//! `cvt`, and its number formats.

use crate::decode::{Decoded, at, formats, unknown};
use crate::machine::regs::{Alu, Lane, binary, unary};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;
use half::{bf16, f16};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To the nearest, ties to even.
    Near,
    /// To the nearest, ties away from zero.
    Away,
    Zero,
    Down,
    Up,
}

impl Rounding {
    fn whole(self, x: f64) -> f64 {
        match self {
            Rounding::Near => x.round_ties_even(),
            Rounding::Away => x.round(),
            Rounding::Zero => x.trunc(),
            Rounding::Down => x.floor(),
            Rounding::Up => x.ceil(),
        }
    }
}

/// A binary format: bits of the significand with the hidden one, exponent of the smallest normal
/// number, largest finite number.
struct Format {
    precision: i32,
    least: i32,
    most: f64,
}

fn format(ty: Type) -> Option<Format> {
    let f = |precision, least, most| Some(Format { precision, least, most });
    match ty {
        Type::F32 => f(24, -126, f32::MAX as f64),
        Type::TF32 => f(11, -126, f32::MAX as f64),
        Type::F16 | Type::F16x2 => f(11, -14, 65504.0),
        Type::BF16 | Type::BF16x2 => f(8, -126, bf16::MAX.to_f64()),
        Type::E4M3 | Type::E4M3x2 => f(4, -6, 448.0),
        Type::E5M2 | Type::E5M2x2 => f(3, -14, 57344.0),
        _ => None,
    }
}

/// The result of a rounding to a format; infinite if it overflows away from zero.
fn round(x: f64, f: &Format, mode: Rounding) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(f.least);
    let unit = 2f64.powi(exponent - f.precision + 1);
    let y = (mode.whole(x.abs() / unit * x.signum()) * unit).abs();
    let y = if y > f.most {
        let toward_zero = match mode {
            Rounding::Zero => true,
            Rounding::Down => x > 0.0,
            Rounding::Up => x < 0.0,
            _ => false,
        };
        if toward_zero { f.most } else { f64::INFINITY }
    } else {
        y
    };
    y.copysign(x)
}

/// Rounds to f32 in a chosen direction.
pub(crate) fn round_f32(x: f64, mode: Rounding) -> f32 {
    if mode == Rounding::Near {
        return x as f32;
    }
    let y = round(x, &Format { precision: 24, least: -126, most: f32::MAX as f64 }, mode);
    y as f32
}

/// Value of an FP8 number with this many exponent bits (4: E4M3, 5: E5M2).
pub(crate) fn fp8_value(bits: u8, exponent_bits: u32) -> f32 {
    let mantissa_bits = 7 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let (e, m) =
        ((bits & 0x7f) as i32 >> mantissa_bits, (bits as u32 & ((1 << mantissa_bits) - 1)) as f32);
    let unit = 2f32.powi(-(mantissa_bits as i32));
    let v = if exponent_bits == 4 && bits & 0x7f == 0x7f {
        f32::NAN
    } else if exponent_bits == 5 && e == 31 {
        if m == 0.0 { f32::INFINITY } else { f32::NAN }
    } else if e == 0 {
        m * unit * 2f32.powi(1 - bias)
    } else {
        (1.0 + m * unit) * 2f32.powi(e - bias)
    };
    if bits & 0x80 != 0 { -v } else { v }
}

/// The FP8 number nearest to a value, the largest finite one beyond that.
pub(crate) fn fp8_bits(x: f64, exponent_bits: u32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let ty = if exponent_bits == 4 { Type::E4M3 } else { Type::E5M2 };
    let Some(f) = format(ty) else { return 0 };
    let v = round(x, &f, Rounding::Near).abs().min(f.most);
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let mantissa_bits = 7 - exponent_bits;
    let least = 2f64.powi(f.least);
    let code = if v < least {
        (v / least * (1 << mantissa_bits) as f64) as u8
    } else {
        let e = (v.to_bits() >> 52) as i32 - 1023;
        let m = (v / 2f64.powi(e) - 1.0) * (1 << mantissa_bits) as f64;
        (((e - f.least + 1) as u8) << mantissa_bits) + m as u8
    };
    sign | code
}

/// A float of any type from its bits.
fn value(bits: u64, ty: Type) -> f64 {
    match ty {
        Type::F32 | Type::TF32 => f32::from_bits(bits as u32) as f64,
        Type::F64 => f64::from_bits(bits),
        Type::F16 | Type::F16x2 => f16::from_bits(bits as u16).to_f64(),
        Type::BF16 | Type::BF16x2 => bf16::from_bits(bits as u16).to_f64(),
        Type::E4M3 | Type::E4M3x2 => fp8_value(bits as u8, 4) as f64,
        _ => fp8_value(bits as u8, 5) as f64,
    }
}

/// How a conversion rounds and saturates.
#[derive(Clone, Copy)]
struct How {
    rounding: Rounding,
    /// To an integer first.
    whole: bool,
    sat: bool,
    finite: bool,
    relu: bool,
    ftz: bool,
}

/// Bits of a float in a type.
fn float_bits(x: f64, ty: Type, how: How) -> u64 {
    let mut x = if how.whole { how.rounding.whole(x) } else { x };
    if how.sat {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if how.relu && x < 0.0 {
        x = 0.0;
    }
    let Some(f) = format(ty) else { return x.to_bits() };
    let mut y = if how.whole { x } else { round(x, &f, how.rounding) };
    if how.finite && y.is_infinite() {
        y = f.most.copysign(y);
    }
    match ty {
        Type::F32 | Type::TF32 => {
            let y = y as f32;
            let y = if how.ftz && y.abs() < f32::MIN_POSITIVE { 0f32.copysign(y) } else { y };
            if y.is_nan() { 0x7fff_ffff } else { y.to_bits() as u64 }
        }
        Type::F16 | Type::F16x2 => {
            if y.is_nan() {
                0x7fff
            } else {
                f16::from_f64(y).to_bits() as u64
            }
        }
        Type::BF16 | Type::BF16x2 => {
            if y.is_nan() {
                0x7fff
            } else {
                bf16::from_f64(y).to_bits() as u64
            }
        }
        Type::E4M3 | Type::E4M3x2 => fp8_bits(y, 4) as u64,
        _ => fp8_bits(y, 5) as u64,
    }
}

/// An integer from the low bits of a register.
fn whole(bits: u64, ty: Type) -> i128 {
    match ty {
        Type::U8 | Type::B8 => bits as u8 as i128,
        Type::S8 => bits as i8 as i128,
        Type::U16 | Type::B16 => bits as u16 as i128,
        Type::S16 => bits as i16 as i128,
        Type::U32 | Type::B32 => bits as u32 as i128,
        Type::S32 => bits as i32 as i128,
        Type::S64 => bits as i64 as i128,
        _ => bits as i128,
    }
}

/// Smallest and largest number of an integer type.
fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bytes() as u32 * 8;
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn scalar(bits: u64, from: Type, to: Type, how: How) -> u64 {
    match (from.float(), to.float()) {
        (false, false) => {
            let x = whole(bits, from);
            let (low, high) = range(to);
            let x = if how.sat { x.clamp(low, high) } else { whole(x as u64, to) };
            x as u64
        }
        (false, true) => {
            let x = whole(bits, from);
            if to == Type::F32 && how.rounding == Rounding::Near {
                (x as f32).to_bits() as u64
            } else {
                float_bits(x as f64, to, how)
            }
        }
        (true, false) => {
            let mut x = value(bits, from);
            if how.ftz && from == Type::F32 && x.abs() < f32::MIN_POSITIVE as f64 {
                x = 0.0;
            }
            let (low, high) = range(to);
            // Values beyond the range saturate, and NaN gives 0.
            (how.rounding.whole(x) as i128).clamp(low, high) as u64
        }
        (true, true) => {
            let mut x = value(bits, from);
            if how.ftz && from == Type::F32 && x.abs() < f32::MIN_POSITIVE as f64 {
                x = 0f64.copysign(x);
            }
            if x.is_nan() && from == to && from == Type::F32 && !how.sat {
                return bits;
            }
            float_bits(x, to, how)
        }
    }
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    if parts.contains(&"pack") {
        return Err(unknown());
    }
    let types: Vec<Type> = parts.iter().filter_map(|p| Type::from_name(p)).collect();
    let [to, from] = types[..] else { return Err(unknown()) };
    let mut how = How {
        rounding: Rounding::Near,
        whole: false,
        sat: false,
        finite: false,
        relu: false,
        ftz: false,
    };
    for p in &parts[1..] {
        match *p {
            "rn" | "rni" => how.rounding = Rounding::Near,
            "rna" => how.rounding = Rounding::Away,
            "rz" | "rzi" => how.rounding = Rounding::Zero,
            "rm" | "rmi" => how.rounding = Rounding::Down,
            "rp" | "rpi" => how.rounding = Rounding::Up,
            "sat" => how.sat = true,
            "satfinite" => how.finite = true,
            "relu" => how.relu = true,
            "ftz" => how.ftz = true,
            p if Type::from_name(p).is_some() => {}
            _ => return Err(unknown()),
        }
        how.whole |= p.ends_with('i') && p.starts_with('r');
    }
    let plain = !how.sat && !how.finite && !how.relu && !how.ftz;
    let near = how.rounding == Rounding::Near && plain;
    let packed = |t| matches!(t, Type::F16x2 | Type::BF16x2 | Type::E4M3x2 | Type::E5M2x2);
    let alu = if packed(to) {
        pairs(b, args, from, to, how, near)?
    } else {
        // The frequent ones first, in a form that the compiler can vectorise.
        match (to, from) {
            (Type::F32, Type::BF16) if plain => by::<u32, f32>(b, args, from, formats::bf16_value)?,
            (Type::BF16, Type::F32) if near => by::<f32, u32>(b, args, from, formats::bf16_bits)?,
            (Type::F32, Type::F16) if plain => {
                by::<u32, f32>(b, args, from, |x| formats::f16_value(x & 0xffff))?
            }
            (Type::F16, Type::F32) if near => by::<f32, u32>(b, args, from, formats::f16_bits)?,
            (Type::F32, Type::S32) if near => by::<i32, f32>(b, args, from, |x| x as f32)?,
            (Type::F32, Type::U32) if near => by::<u32, f32>(b, args, from, |x| x as f32)?,
            (Type::S32, Type::F32) if plain => match how.rounding {
                Rounding::Near => by::<f32, i32>(b, args, from, |x| x.round_ties_even() as i32)?,
                Rounding::Zero => by::<f32, i32>(b, args, from, |x| x as i32)?,
                Rounding::Down => by::<f32, i32>(b, args, from, |x| x.floor() as i32)?,
                _ => by::<f32, i32>(b, args, from, |x| x.ceil() as i32)?,
            },
            (Type::F32, Type::F32) if plain && how.whole => match how.rounding {
                Rounding::Near => by::<f32, f32>(b, args, from, f32::round_ties_even)?,
                Rounding::Zero => by::<f32, f32>(b, args, from, f32::trunc)?,
                Rounding::Down => by::<f32, f32>(b, args, from, f32::floor)?,
                _ => by::<f32, f32>(b, args, from, f32::ceil)?,
            },
            _ if !from.float() && !to.float() && !how.sat => integers(b, args, from, to)?,
            _ => general(b, args, from, to, how)?,
        }
    };
    Ok((Action::Alu(alu), Class::Convert, 0))
}

fn by<A: Lane, D: Lane>(
    b: &mut Builder,
    args: &[Arg],
    from: Type,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Result<Alu, Error> {
    Ok(unary(b.dst::<D>(at(args, 0)?)?, b.src::<A>(at(args, 1)?, from)?, f))
}

/// Whether a register has 64 bits: it may be wider than the type.
fn is_wide(b: &mut Builder, a: &Arg, ty: Type) -> bool {
    match a {
        Arg::Name(n) => b
            .register(n)
            .map_or(ty.bytes() == 8, |slot| matches!(slot, crate::read::types::Slot::Double(_))),
        _ => ty.bytes() == 8,
    }
}

/// The low bits of a register, extended from one type, and then those of the other.
fn integers(b: &mut Builder, args: &[Arg], from: Type, to: Type) -> Result<Alu, Error> {
    let (d, s) = (at(args, 0)?, at(args, 1)?);
    let (wide_d, wide_s) = (is_wide(b, d, to), is_wide(b, s, from));
    let extend = |ty: Type| {
        let (shift, signed) = (64 - 8 * ty.bytes() as u32, ty.signed());
        move |x: u64| {
            let x = x << shift;
            if signed { (x as i64 >> shift) as u64 } else { x >> shift }
        }
    };
    let (first, second) = (extend(from), extend(to));
    let f = move |x: u64| second(first(x));
    Ok(match (wide_d, wide_s) {
        (true, true) => unary(b.dst::<u64>(d)?, b.src::<u64>(s, from)?, f),
        (true, false) => unary(b.dst::<u64>(d)?, b.src::<u32>(s, from)?, move |x: u32| f(x as u64)),
        (false, true) => unary(b.dst::<u32>(d)?, b.src::<u64>(s, from)?, move |x: u64| f(x) as u32),
        (false, false) => {
            // The same in 32 bits.
            let extend = |ty: Type| {
                let (shift, signed) = (32 - 8 * ty.bytes().min(4) as u32, ty.signed());
                move |x: u32| {
                    let x = x << shift;
                    if signed { (x as i32 >> shift) as u32 } else { x >> shift }
                }
            };
            let (first, second) = (extend(from), extend(to));
            unary(b.dst::<u32>(d)?, b.src::<u32>(s, from)?, move |x: u32| second(first(x)))
        }
    })
}

fn general(b: &mut Builder, args: &[Arg], from: Type, to: Type, how: How) -> Result<Alu, Error> {
    let (d, s) = (at(args, 0)?, at(args, 1)?);
    let (wide_d, wide_s) = (is_wide(b, d, to), is_wide(b, s, from));
    let f = move |x: u64| scalar(x, from, to, how);
    Ok(match (wide_d, wide_s) {
        (true, true) => unary(b.dst::<u64>(d)?, b.src::<u64>(s, from)?, f),
        (true, false) => unary(b.dst::<u64>(d)?, b.src::<u32>(s, from)?, move |x: u32| f(x as u64)),
        (false, true) => unary(b.dst::<u32>(d)?, b.src::<u64>(s, from)?, move |x: u64| f(x) as u32),
        (false, false) => {
            unary(b.dst::<u32>(d)?, b.src::<u32>(s, from)?, move |x: u32| f(x as u64) as u32)
        }
    })
}

/// Conversions to pairs: of two f32, the first of which becomes the upper half, or of another pair.
fn pairs(
    b: &mut Builder,
    args: &[Arg],
    from: Type,
    to: Type,
    how: How,
    near: bool,
) -> Result<Alu, Error> {
    let d = b.dst::<u32>(at(args, 0)?)?;
    let bits = to.bytes() as u32 * 4;
    if from == Type::F32 {
        let s = [b.src::<f32>(at(args, 1)?, from)?, b.src::<f32>(at(args, 2)?, from)?];
        let finite =
            how.rounding == Rounding::Near && !how.sat && !how.relu && !how.ftz && how.finite;
        return Ok(match to {
            Type::BF16x2 if near => binary(d, s, |high: f32, low: f32| {
                formats::bf16_bits(high) << 16 | formats::bf16_bits(low)
            }),
            Type::F16x2 if near => binary(d, s, |high: f32, low: f32| {
                formats::f16_bits(high) << 16 | formats::f16_bits(low)
            }),
            Type::E4M3x2 if finite => binary(d, s, |high: f32, low: f32| {
                formats::fp8_bits::<3>(high) << 8 | formats::fp8_bits::<3>(low)
            }),
            Type::E5M2x2 if finite => binary(d, s, |high: f32, low: f32| {
                formats::fp8_bits::<2>(high) << 8 | formats::fp8_bits::<2>(low)
            }),
            _ => binary(d, s, move |high: f32, low: f32| {
                let each = |x: f32| {
                    let x = if how.ftz && x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
                    float_bits(x as f64, to, how) as u32
                };
                each(high) << bits | each(low)
            }),
        });
    }
    let step = from.bytes() as u32 * 4;
    let s = b.src_word(at(args, 1)?)?;
    // E4M3 and E5M2 are exact in f16.
    if (from, to) == (Type::E4M3x2, Type::F16x2) && !how.relu {
        let each = |x: u32| formats::f16_bits(formats::fp8_value::<3>(x & 255));
        return Ok(unary(d, s, move |x: u32| each(x >> 8) << 16 | each(x)));
    }
    if (from, to) == (Type::E5M2x2, Type::F16x2) && !how.relu {
        let each = |x: u32| formats::f16_bits(formats::fp8_value::<2>(x & 255));
        return Ok(unary(d, s, move |x: u32| each(x >> 8) << 16 | each(x)));
    }
    Ok(unary(d, s, move |x: u32| {
        let low = x & (u32::MAX >> (32 - step));
        let each = |x: u32| float_bits(value(x as u64, from), to, how) as u32;
        each(x >> step & (u32::MAX >> (32 - step))) << bits | each(low)
    }))
}
