//! `cvt` between all number formats against plain definitions.

use crate::common::{Random, eval};
use half::{bf16, f16};

/// Finite numbers of all magnitudes, and special values, as f32 bits.
fn inputs(seed: u64) -> Vec<u64> {
    let mut r = Random(seed);
    let known = [
        0.0,
        -0.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        1e10,
        -1e10,
        448.0,
        464.0,
        465.0,
        1e-40,
    ];
    (0..32)
        .map(|i| {
            let scale = 2f32.powi((r.next() % 40) as i32 - 24);
            if seed.is_multiple_of(2) && i < known.len() { known[i] } else { r.unit() * scale }
                .to_bits() as u64
        })
        .collect()
}

fn check(code: &str, out: &str, f: impl Fn(f32) -> u64) {
    for seed in 0..16 {
        let a = inputs(seed);
        let got = eval(code, out, &[("f32", a.clone())]);
        for l in 0..32 {
            let x = f32::from_bits(a[l] as u32);
            assert_eq!(got[l], f(x), "{code} of {x} = {:#x}", a[l]);
        }
    }
}

#[test]
fn to_integers() {
    check("cvt.rni.s32.f32 %o, %a;", "b32", |x| x.round_ties_even() as i32 as u32 as u64);
    check("cvt.rzi.s32.f32 %o, %a;", "b32", |x| x as i32 as u32 as u64);
    check("cvt.rmi.s32.f32 %o, %a;", "b32", |x| x.floor() as i32 as u32 as u64);
    check("cvt.rpi.u32.f32 %o, %a;", "b32", |x| x.ceil() as u32 as u64);
    check("cvt.rzi.u64.f32 %o, %a;", "b64", |x| x as u64);
    check("cvt.rzi.s16.f32 %h0, %a; cvt.s32.s16 %o, %h0;", "b32", |x| {
        x as i16 as i32 as u32 as u64
    });
    check("cvt.rni.f32.f32 %o, %a;", "f32", |x| x.round_ties_even().to_bits() as u64);
    check("cvt.rmi.f32.f32 %o, %a;", "f32", |x| x.floor().to_bits() as u64);
}

#[test]
fn from_integers() {
    let mut r = Random(5);
    for _ in 0..8 {
        let a = r.words();
        let go = |code: &str, out: &str, f: &dyn Fn(u32) -> u64| {
            for (x, y) in a.iter().zip(eval(code, out, &[("b32", a.clone())])) {
                assert_eq!(y, f(*x as u32), "{code} of {x:#x}");
            }
        };
        go("cvt.rn.f32.s32 %o, %a;", "f32", &|x| (x as i32 as f32).to_bits() as u64);
        go("cvt.rn.f32.u32 %o, %a;", "f32", &|x| (x as f32).to_bits() as u64);
        go("cvt.rz.f32.u32 %o, %a;", "f32", &|x| {
            let near = x as f32;
            if near as f64 > x as f64 { near.to_bits() as u64 - 1 } else { near.to_bits() as u64 }
        });
        go("cvt.u16.u32 %h0, %a; cvt.rn.f32.u16 %o, %h0;", "f32", &|x| {
            (x as u16 as f32).to_bits() as u64
        });
        go("cvt.s64.s32 %d0, %a; cvt.rn.f32.s64 %o, %d0;", "f32", &|x| {
            (x as i32 as f32).to_bits() as u64
        });
        go("cvt.rn.f64.u32 %g0, %a; cvt.rn.f32.f64 %o, %g0;", "f32", &|x| {
            (x as f64 as f32).to_bits() as u64
        });
        go("cvt.s32.s8 %o, %a;", "b32", &|x| x as i8 as i32 as u32 as u64);
        go("cvt.u32.u8 %o, %a;", "b32", &|x| x as u8 as u64);
        go("cvt.sat.s8.s32 %h0, %a; cvt.s32.s8 %o, %h0;", "b32", &|x| {
            (x as i32).clamp(-128, 127) as u32 as u64
        });
        go("cvt.sat.u8.s32 %h0, %a; cvt.u32.u8 %o, %h0;", "b32", &|x| {
            (x as i32).clamp(0, 255) as u64
        });
    }
}

#[test]
fn between_floats() {
    let nan = |x: f32, y: u64, canonical: u64| if x.is_nan() { canonical } else { y };
    check("cvt.rn.f16.f32 %o, %a;", "b16", |x| nan(x, f16::from_f32(x).to_bits() as u64, 0x7fff));
    check("cvt.rn.bf16.f32 %o, %a;", "b16", |x| nan(x, bf16::from_f32(x).to_bits() as u64, 0x7fff));
    check("cvt.rz.bf16.f32 %o, %a;", "b16", |x| nan(x, x.to_bits() as u64 >> 16, 0x7fff));
    check("cvt.rn.bf16x2.f32 %o, %a, 0f3F800000;", "b32", |x| {
        nan(x, bf16::from_f32(x).to_bits() as u64, 0x7fff) << 16 | 0x3f80
    });
    check("cvt.rn.f16x2.f32 %o, 0f3F800000, %a;", "b32", |x| {
        nan(x, f16::from_f32(x).to_bits() as u64, 0x7fff) | 0x3c00 << 16
    });
    check("cvt.rn.relu.bf16x2.f32 %o, %a, %a;", "b32", |x| {
        let y = nan(x, bf16::from_f32(if x < 0.0 { 0.0 } else { x }).to_bits() as u64, 0x7fff);
        y | y << 16
    });
    check("cvt.sat.f32.f32 %o, %a;", "f32", |x| {
        (if x > 0.0 { x.min(1.0) } else { 0.0 }).to_bits() as u64
    });
    // Conversions to tf32 round ties away from zero.
    check("cvt.rna.tf32.f32 %o, %a;", "b32", |x| {
        let b = x.to_bits();
        if x.is_nan() { 0x7fff_ffff } else { (b.wrapping_add(0x1000) & !0x1fff) as u64 }
            .min(if x.is_infinite() { b as u64 } else { !0 })
    });
    let mut r = Random(8);
    let all: Vec<u64> = (0..32).map(|_| r.next() & 0xffff).collect();
    for (x, y) in all.iter().zip(eval("cvt.f32.f16 %o, %a;", "f32", &[("b16", all.clone())])) {
        let (want, got) = (f16::from_bits(*x as u16).to_f32(), f32::from_bits(y as u32));
        assert!(want == got || want.is_nan() && got.is_nan());
    }
    for (x, y) in all.iter().zip(eval("mov.b32 %o, {0, %a};", "b32", &[("b16", all.clone())])) {
        assert_eq!(y, x << 16);
    }
}

/// All numbers of an 8-bit format, by their definition: sign, exponent, mantissa.
fn fp8(bits: u8, exponents: u32) -> Option<f64> {
    let mantissas = 7 - exponents;
    let (e, m) = ((bits & 0x7f) >> mantissas, bits & ((1 << mantissas) - 1));
    let bias = (1 << (exponents - 1)) - 1;
    let special = if exponents == 4 { bits & 0x7f == 0x7f } else { e == 31 };
    let fraction = m as f64 / (1u32 << mantissas) as f64;
    let v = if e == 0 {
        fraction * 2f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2f64.powi(e as i32 - bias)
    };
    (!special).then_some(if bits > 127 { -v } else { v })
}

#[test]
fn to_and_from_8_bits() {
    for (name, exponents, most) in [("e4m3", 4, 448.0), ("e5m2", 5, 57344.0)] {
        // Decoding, two at a time.
        for first in (0..256).step_by(32) {
            let a: Vec<u64> = (first..first + 32).map(|x| x | (255 - x) << 8).collect();
            let out = eval(&format!("cvt.rn.f16x2.{name}x2 %o, %a;"), "b32", &[("b16", a.clone())]);
            for (x, y) in a.iter().zip(out) {
                for half in 0..2 {
                    let got = f16::from_bits((y >> (16 * half)) as u16).to_f64();
                    match fp8((x >> (8 * half)) as u8, exponents) {
                        Some(v) => assert_eq!(got, v),
                        None => assert!(!got.is_finite()),
                    }
                }
            }
        }
        // Encoding: the nearest number, the even one of a tie, and the largest number for all
        // larger values.
        let code =
            format!("cvt.rn.satfinite.{name}x2.f32 %h0, 0f3F800000, %a; cvt.u32.u16 %o, %h0;");
        check(&code, "b32", |x| {
            let one = if exponents == 4 { 0x38 } else { 0x3c };
            let best = (0..256)
                .filter(|b| (*b > 127) == x.is_sign_negative())
                .filter_map(|b| {
                    fp8(b as u8, exponents).map(|v| (b, (v - (x as f64).clamp(-most, most)).abs()))
                })
                .min_by(|a, b| a.1.total_cmp(&b.1).then((a.0 & 1).cmp(&(b.0 & 1))))
                .map_or(0, |b| b.0);
            one << 8 | if x.is_nan() { 0x7f } else { best }
        });
    }
}
