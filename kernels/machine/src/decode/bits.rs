//! Shifts, bit fields, permutations of bytes.

use crate::decode::arithmetic::three;
use crate::decode::{Decoded, at, unknown};
use crate::machine::regs::{Alu, Regs, binary, ternary};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::Type;

pub(crate) fn shift(b: &mut Builder, left: bool, args: &[Arg], ty: Type) -> Decoded {
    macro_rules! by {
        ($T:ty, $f:expr) => {{
            let d = b.dst::<$T>(at(args, 0)?)?;
            let s = [b.src::<$T>(at(args, 1)?, ty)?, b.src::<u32>(at(args, 2)?, Type::U32)?];
            binary::<$T, u32, $T>(d, s, $f)
        }};
    }
    // Shifts by the width or more give zero, or copies of the sign.
    let alu = match (left, ty) {
        (true, Type::B16 | Type::U16 | Type::S16) => by!(u16, |x, n| x.checked_shl(n).unwrap_or(0)),
        (true, Type::B32 | Type::U32 | Type::S32) => {
            by!(u32, |x, n| if n > 31 { 0 } else { x << (n & 31) })
        }
        (true, Type::B64 | Type::U64 | Type::S64) => {
            by!(u64, |x, n| if n > 63 { 0 } else { x << (n & 63) })
        }
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

pub(crate) fn bfe(b: &mut Builder, args: &[Arg], ty: Type) -> Result<Alu, Error> {
    let (signed, bits) = (ty.signed(), ty.bytes() as u32 * 8);
    let field = move |x: u64, pos: u32, len: u32| -> u64 {
        let (pos, len) = (pos & 255, len & 255);
        let x = if bits == 32 { x & 0xffff_ffff } else { x };
        let top = if len == 0 { 0 } else { x >> (pos + len - 1).min(bits - 1) & 1 };
        let kept = len.min(bits.saturating_sub(pos));
        let low = if kept == 0 { 0 } else { x >> pos & (u64::MAX >> (64 - kept)) };
        if signed && top == 1 && len > 0 && kept < 64 { low | u64::MAX << kept } else { low }
    };
    let (pos, len) =
        (b.src::<u32>(at(args, 2)?, Type::U32)?, b.src::<u32>(at(args, 3)?, Type::U32)?);
    Ok(if bits == 32 {
        let (d, a) = (b.dst::<u32>(at(args, 0)?)?, b.src::<u32>(at(args, 1)?, ty)?);
        ternary(d, [a, pos, len], move |x: u32, p: u32, n: u32| field(x as u64, p, n) as u32)
    } else {
        let (d, a) = (b.dst::<u64>(at(args, 0)?)?, b.src::<u64>(at(args, 1)?, ty)?);
        ternary(d, [a, pos, len], field)
    })
}

pub(crate) fn bfi(b: &mut Builder, args: &[Arg], ty: Type) -> Result<Alu, Error> {
    let insert = |a: u64, base: u64, pos: u32, len: u32, bits: u32| -> u64 {
        let (pos, len) = (pos & 255, (len & 255).min(bits));
        if len == 0 || pos >= bits {
            return base;
        }
        let field = (u64::MAX >> (64 - len)) << pos;
        base & !field | a << pos & field
    };
    let known = |i: usize| match args.get(i) {
        Some(Arg::Name(n)) => crate::read::text::integer(n).map(|v| v as u32),
        _ => None,
    };
    if let (4, Some(pos), Some(len)) = (ty.bytes(), known(3), known(4)) {
        let field = insert(u64::MAX, 0, pos, len, 32) as u32;
        return crate::decode::arithmetic::two(b, args, ty, move |x: u32, base: u32| {
            base & !field | x.checked_shl(pos & 255).unwrap_or(0) & field
        });
    }
    let (pos, len) =
        (b.src::<u32>(at(args, 3)?, Type::U32)?, b.src::<u32>(at(args, 4)?, Type::U32)?);
    if ty.bytes() == 4 {
        let d = b.dst::<u32>(at(args, 0)?)?;
        let (x, y) = (b.src::<u32>(at(args, 1)?, ty)?, b.src::<u32>(at(args, 2)?, ty)?);
        return Ok(Box::new(move |regs: &mut Regs, mask| {
            let [x, y, pos, len] = [x, y, pos, len].map(|s| regs.words[s as usize]);
            let out = std::array::from_fn(|l| {
                insert(x[l] as u64, y[l] as u64, pos[l], len[l], 32) as u32
            });
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

pub(crate) fn lop3(b: &mut Builder, args: &[Arg]) -> Result<Alu, Error> {
    let Some(Arg::Name(table)) = args.get(4) else { return Err(unknown()) };
    let table = crate::read::text::integer(table).ok_or_else(unknown)? as u32;
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

pub(crate) fn prmt(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let mode = parts.get(2).copied().unwrap_or("");
    if !["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"].contains(&mode) {
        return Err(unknown());
    }
    if let (Some(Arg::Name(n)), "") = (args.get(3), mode)
        && let Some(c) = crate::read::text::integer(n)
    {
        return fixed_prmt(b, args, c as u32);
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

/// With a selector that is known.
fn fixed_prmt(b: &mut Builder, args: &[Arg], selector: u32) -> Decoded {
    let n: [u32; 4] = std::array::from_fn(|i| selector >> (i * 4) & 15);
    let alu = crate::decode::arithmetic::two(b, args, Type::B32, move |x: u32, y: u32| {
        let mut out = 0;
        for (i, n) in n.iter().enumerate() {
            let byte = (if n & 4 == 0 { x } else { y }) >> ((n & 3) * 8) & 255;
            let byte = if n & 8 == 0 { byte } else { 0u32.wrapping_sub(byte >> 7) & 255 };
            out |= byte << (i * 8);
        }
        out
    })?;
    Ok((Action::Alu(alu), Class::Integer, 0))
}

pub(crate) fn dp4a(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Result<Alu, Error> {
    let (sx, sy) = (parts[1] == "s32", parts[2] == "s32");
    let byte = |x: u32, i: u32, signed: bool| {
        let v = (x >> (i * 8)) as u8;
        if signed { v as i8 as i32 } else { v as i32 }
    };
    three(b, args, Type::B32, move |x: u32, y: u32, z: u32| {
        (0..4).fold(z, |acc, i| acc.wrapping_add((byte(x, i, sx) * byte(y, i, sy)) as u32))
    })
}
