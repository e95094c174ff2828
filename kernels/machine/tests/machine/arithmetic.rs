//! Arithmetic, logic, comparisons and memory of single instructions against plain definitions.

use crate::common::{Lab, Random, eval, kernel};

/// Numbers at the limits of the range, and others.
fn edges(seed: u64) -> Vec<u64> {
    let mut r = Random(seed);
    let known = [
        0u32,
        1,
        2,
        31,
        32,
        33,
        0x7f,
        0x80,
        0xff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0xffff_fffe,
        0x8000_0001,
    ];
    (0..32).map(|i| known.get(i).map_or_else(|| r.next() as u32, |k| *k) as u64).collect()
}

fn shuffled(seed: u64) -> Vec<u64> {
    let mut v = edges(seed);
    let mut r = Random(seed + 7);
    for i in (1..32).rev() {
        v.swap(i, r.next() as usize % (i + 1));
    }
    v
}

fn check2(code: &str, f: impl Fn(u32, u32) -> u32) {
    for seed in 0..8 {
        let (a, b) = (shuffled(seed), shuffled(seed + 100));
        let out = eval(code, "b32", &[("b32", a.clone()), ("b32", b.clone())]);
        for l in 0..32 {
            assert_eq!(
                out[l] as u32,
                f(a[l] as u32, b[l] as u32),
                "{code} of {:#x}, {:#x}",
                a[l],
                b[l]
            );
        }
    }
}

#[test]
fn integers_of_32_bits() {
    check2("add.s32 %o, %a, %b;", u32::wrapping_add);
    check2("sub.s32 %o, %a, %b;", u32::wrapping_sub);
    check2("mul.lo.s32 %o, %a, %b;", u32::wrapping_mul);
    check2("mul.hi.u32 %o, %a, %b;", |x, y| ((x as u64 * y as u64) >> 32) as u32);
    check2("mul.hi.s32 %o, %a, %b;", |x, y| ((x as i32 as i64 * y as i32 as i64) >> 32) as u32);
    check2("mad.lo.s32 %o, %a, %b, 7;", |x, y| x.wrapping_mul(y).wrapping_add(7));
    check2("min.s32 %o, %a, %b;", |x, y| (x as i32).min(y as i32) as u32);
    check2("max.u32 %o, %a, %b;", u32::max);
    check2("shl.b32 %o, %a, %b;", |x, y| if y > 31 { 0 } else { x << y });
    check2("shr.u32 %o, %a, %b;", |x, y| if y > 31 { 0 } else { x >> y });
    check2("shr.s32 %o, %a, %b;", |x, y| ((x as i32) >> y.min(31)) as u32);
    check2("shf.l.wrap.b32 %o, %a, %b, 5;", |x, y| y << 5 | x >> 27);
    check2("shf.r.clamp.b32 %o, %a, %b, 40;", |_, y| y);
    check2("xor.b32 %o, %a, %b;", |x, y| x ^ y);
    check2("lop3.b32 %o, %a, %b, 0x0f0f0f0f, 0xE8;", |x, y| {
        x & y | x & 0x0f0f0f0f | y & 0x0f0f0f0f
    });
    check2("popc.b32 %o, %a;", |x, _| x.count_ones());
    check2("clz.b32 %o, %a;", |x, _| x.leading_zeros());
    check2("brev.b32 %o, %a;", |x, _| x.reverse_bits());
    check2("abs.s32 %o, %a;", |x, _| (x as i32).wrapping_abs() as u32);
    check2("not.b32 %o, %a;", |x, _| !x);
    check2("add.sat.s32 %o, %a, %b;", |x, y| (x as i32).saturating_add(y as i32) as u32);
    check2("bfind.u32 %o, %a;", |x, _| if x == 0 { !0 } else { x.ilog2() });
    check2("dp4a.s32.s32 %o, %a, %b, 3;", |x, y| {
        let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
        (0..4).map(|i| x[i] as i8 as i32 * y[i] as i8 as i32).sum::<i32>().wrapping_add(3) as u32
    });
    let some = |y: u32| y | 1 << 30;
    check2("or.b32 %r1, %b, 0x40000000; div.u32 %o, %a, %r1;", move |x, y| x / some(y));
    check2("or.b32 %r1, %b, 0x40000000; rem.s32 %o, %a, %r1;", move |x, y| {
        (x as i32).wrapping_rem(some(y) as i32) as u32
    });
}

#[test]
fn bit_fields() {
    // Position and length from the bits of b.
    let take = "and.b32 %r1, %b, 63; bfe.u32 %r2, %b, 8, 6; ";
    let fields = |y: u32| (y & 63, y >> 8 & 63);
    check2(&format!("{take} bfe.u32 %o, %a, %r1, %r2;"), move |x, y| {
        let (p, n) = fields(y);
        ((x as u64) >> p & ((1u64 << n) - 1)) as u32
    });
    check2(&format!("{take} bfe.s32 %o, %a, %r1, %r2;"), move |x, y| {
        // Bit by bit, as the manual defines it: beyond the field is its highest bit, at most bit
        // 31.
        let (p, n) = fields(y);
        let sign = n > 0 && x >> (p + n - 1).min(31) & 1 == 1;
        (0..32).fold(0, |d, i| {
            let bit = if i < n && p + i < 32 { x >> (p + i) & 1 == 1 } else { sign };
            d | (bit as u32) << i
        })
    });
    check2(&format!("{take} bfi.b32 %o, %a, 0x12345678, %r1, %r2;"), move |x, y| {
        let (p, n) = fields(y);
        (0..32).fold(0u32, |d, i| {
            let inside = i >= p && i < p + n;
            d | (if inside { x >> (i - p) & 1 } else { 0x12345678 >> i & 1 }) << i
        })
    });
    check2("prmt.b32 %o, %a, %b, 0x7531;", |x, y| {
        let b = [x.to_le_bytes(), y.to_le_bytes()].concat();
        u32::from_le_bytes([b[1], b[3], b[5], b[7]])
    });
    check2("prmt.b32 %o, %a, 0x80112233, %b;", |x, c| {
        let b = [x.to_le_bytes(), 0x80112233u32.to_le_bytes()].concat();
        u32::from_le_bytes(std::array::from_fn(|i| {
            let n = c >> (4 * i) & 15;
            let v = b[n as usize & 7];
            if n > 7 { if v > 127 { 255 } else { 0 } } else { v }
        }))
    });
}

#[test]
fn integers_of_16_and_64_bits() {
    check2("cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; mul.wide.u16 %o, %h0, %h1;", |x, y| {
        (x & 0xffff) * (y & 0xffff)
    });
    check2(
        "cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; sub.s16 %h2, %h0, %h1; cvt.s32.s16 %o, %h2;",
        |x, y| (x as u16).wrapping_sub(y as u16) as i16 as u32,
    );
    check2("cvt.u16.u32 %h0, %a; shr.s16 %h1, %h0, 3; cvt.u32.u16 %o, %h1;", |x, _| {
        (x as i16 >> 3) as u16 as u32
    });
    check2("mul.wide.s32 %d0, %a, %b; shr.u64 %d1, %d0, 32; cvt.u32.u64 %o, %d1;", |x, y| {
        ((x as i32 as i64 * y as i32 as i64) >> 32) as u32
    });
    check2("cvt.u64.u32 %d0, %b; mad.wide.u32 %d1, %a, 3, %d0; cvt.u32.u64 %o, %d1;", |x, y| {
        x.wrapping_mul(3).wrapping_add(y)
    });
    check2(
        "cvt.s64.s32 %d0, %a; cvt.s64.s32 %d1, %b; min.s64 %d2, %d0, %d1; cvt.u32.u64 %o, %d2;",
        |x, y| (x as i32).min(y as i32) as u32,
    );
    check2("mov.b64 %d0, {%a, %b}; mov.b64 {_, %o}, %d0;", |_, y| y);
    check2("mov.b32 {%h0, %h1}, %a; mov.b32 %o, {%h1, %h0};", |x, _| x.rotate_left(16));
    check2("cvt.u64.u32 %d0, %a; mul.hi.u64 %d1, %d0, 0x100000000; cvt.u32.u64 %o, %d1;", |_, _| 0);
    check2("cvt.u64.u32 %d0, %a; shl.b64 %d1, %d0, 20; popc.b64 %o, %d1;", |x, _| x.count_ones());
}

#[test]
fn comparisons_and_selections() {
    check2("setp.lt.s32 %q0, %a, %b; selp.b32 %o, %a, %b, %q0;", |x, y| {
        (x as i32).min(y as i32) as u32
    });
    check2("setp.lo.u32 %q0, %a, %b; selp.u32 %o, 1, 0, %q0;", |x, y| (x < y) as u32);
    check2(
        "setp.ne.s32 %q1, %a, 0; setp.gt.and.s32 %q0|%q2, %a, %b, %q1; selp.u32 %r1, 1, 0, %q0; selp.u32 %r2, 2, 0, %q2; or.b32 %o, %r1, %r2;",
        |x, y| {
            let (c, v) = (x != 0, x as i32 > y as i32);
            (v && c) as u32 | ((!v && c) as u32) << 1
        },
    );
    check2(
        "setp.eq.s32 %q1, %a, %b; setp.ge.or.u32 %q0, %a, %b, !%q1; @%q0 mov.u32 %o, 5; @!%q0 mov.u32 %o, 6;",
        |x, y| {
            if x >= y || x != y { 5 } else { 6 }
        },
    );
    check2("set.le.u32.s32 %o, %a, %b;", |x, y| if x as i32 <= y as i32 { !0 } else { 0 });
    check2(
        "setp.lt.s32 %q0, %a, 0; setp.lt.s32 %q1, %b, 0; xor.pred %q2, %q0, %q1; not.pred %q3, %q2; selp.u32 %o, 1, 0, %q3;",
        |x, y| ((x as i32) < 0) as u32 ^ ((y as i32) < 0) as u32 ^ 1,
    );
}

fn floats(seed: u64) -> Vec<u64> {
    let known = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-40,
        -1e-40,
        f32::MAX,
        3.5,
        -2.5,
        1e-20,
        0.5,
        16777217.0,
    ];
    let mut r = Random(seed);
    let mut v: Vec<u64> = (0..32)
        .map(|i| known.get(i).copied().unwrap_or_else(|| r.unit() * 100.0).to_bits() as u64)
        .collect();
    for i in (1..32).rev() {
        v.swap(i, r.next() as usize % (i + 1));
    }
    v
}

fn check_float(code: &str, f: impl Fn(f32, f32) -> f32) {
    for seed in 0..8 {
        let (a, b) = (floats(seed), floats(seed + 50));
        let out = eval(code, "f32", &[("f32", a.clone()), ("f32", b.clone())]);
        for l in 0..32 {
            let (x, y) = (f32::from_bits(a[l] as u32), f32::from_bits(b[l] as u32));
            let (got, want) = (f32::from_bits(out[l] as u32), f(x, y));
            let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
            assert!(same, "{code} of {x}, {y}: {got} instead of {want}");
        }
    }
}

#[test]
fn floats_of_32_bits() {
    check_float("add.f32 %o, %a, %b;", |x, y| x + y);
    check_float("sub.rn.f32 %o, %a, %b;", |x, y| x - y);
    check_float("mul.f32 %o, %a, %b;", |x, y| x * y);
    check_float("fma.rn.f32 %o, %a, %b, 0f3F800000;", |x, y| x.mul_add(y, 1.0));
    check_float("div.rn.f32 %o, %a, %b;", |x, y| x / y);
    check_float("neg.f32 %o, %a;", |x, _| -x);
    check_float("abs.f32 %o, %a;", |x, _| x.abs());
    check_float("sqrt.rn.f32 %o, %a;", |x, _| x.sqrt());
    check_float("rcp.rn.f32 %o, %a;", |x, _| 1.0 / x);
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
    check_float("mul.ftz.f32 %o, %a, %b;", move |x, y| flush(flush(x) * flush(y)));
    check_float("add.ftz.f32 %o, %a, %b;", move |x, y| flush(flush(x) + flush(y)));
    check_float("add.sat.f32 %o, %a, %b;", |x, y| {
        if (x + y).is_nan() { 0.0 } else { (x + y).clamp(0.0, 1.0) }
    });
    // A number takes precedence over NaN, and zeros are ordered.
    check_float("max.f32 %o, %a, %b;", |x, y| match (x.is_nan(), y.is_nan()) {
        (true, _) => y,
        (_, true) => x,
        _ if x == 0.0 && y == 0.0 => {
            if x.is_sign_positive() {
                x
            } else {
                y
            }
        }
        _ => x.max(y),
    });
    check_float("min.NaN.f32 %o, %a, %b;", |x, y| match x.is_nan() || y.is_nan() {
        true => f32::NAN,
        _ if x == 0.0 && y == 0.0 => {
            if x.is_sign_negative() {
                x
            } else {
                y
            }
        }
        _ => x.min(y),
    });
    check_float("setp.gtu.f32 %q0, %a, %b; selp.f32 %o, 0f3F800000, 0f00000000, %q0;", |x, y| {
        (x.is_nan() || y.is_nan() || x > y) as u32 as f32
    });
    check_float("setp.ne.f32 %q0, %a, %b; selp.f32 %o, 0f3F800000, 0f00000000, %q0;", |x, y| {
        matches!(x.partial_cmp(&y), Some(o) if o.is_ne()) as u32 as f32
    });
    check_float("setp.num.f32 %q0, %a, %b; selp.f32 %o, 0f3F800000, 0f00000000, %q0;", |x, y| {
        (!x.is_nan() && !y.is_nan()) as u32 as f32
    });
    // Rounded toward zero: not larger than the exact result.
    check_float("mul.rz.f32 %o, %a, %b;", |x, y| {
        let exact = x as f64 * y as f64;
        let near = exact as f32;
        if near.is_infinite() && exact.is_finite() {
            f32::MAX.copysign(near)
        } else if (near as f64).abs() > exact.abs() {
            f32::from_bits(near.to_bits() - 1)
        } else {
            near
        }
    });
}

#[test]
fn approximations_are_close() {
    let near = |code: &str, f: fn(f64) -> f64, low: f32, high: f32| {
        let mut r = Random(9);
        let a: Vec<u64> = (0..32)
            .map(|_| (low + (high - low) * (r.unit() * 0.5 + 0.5)).to_bits() as u64)
            .collect();
        for (x, y) in a.iter().zip(eval(code, "f32", &[("f32", a.clone())])) {
            let (x, y) = (f32::from_bits(*x as u32), f32::from_bits(y as u32));
            let want = f(x as f64);
            assert!(
                (y as f64 - want).abs() <= 1e-6 * want.abs().max(1e-3),
                "{code} of {x}: {y} instead of {want}"
            );
        }
    };
    near("ex2.approx.ftz.f32 %o, %a;", f64::exp2, -100.0, 100.0);
    near("lg2.approx.f32 %o, %a;", f64::log2, 0.1, 100.0);
    near("rsqrt.approx.f32 %o, %a;", |x| 1.0 / x.sqrt(), 0.1, 100.0);
    near("tanh.approx.f32 %o, %a;", f64::tanh, -4.0, 4.0);
    near("sin.approx.f32 %o, %a;", f64::sin, -4.0, 4.0);
    near("cos.approx.f32 %o, %a;", f64::cos, -1.0, 1.0);
}

#[test]
fn packed_floats_round_once() {
    use half::{bf16, f16};
    let mut r = Random(3);
    let mut pairs = |scale: f32| -> Vec<u64> {
        (0..32)
            .map(|_| {
                bf16::from_f32(r.unit() * scale).to_bits() as u64
                    | (bf16::from_f32(r.unit()).to_bits() as u64) << 16
            })
            .collect()
    };
    let (a, b, c) = (pairs(1.0), pairs(3.0), pairs(1e-3));
    let halves =
        |x: u64| [bf16::from_bits(x as u16).to_f64(), bf16::from_bits((x >> 16) as u16).to_f64()];
    let input = [("b32", a.clone()), ("b32", b.clone()), ("b32", c.clone())];
    let out = eval("fma.rn.bf16x2 %o, %a, %b, %c;", "b32", &input);
    for l in 0..32 {
        let (x, y, z) = (halves(a[l]), halves(b[l]), halves(c[l]));
        let want: Vec<u16> = (0..2).map(|i| bf16::from_f64(x[i] * y[i] + z[i]).to_bits()).collect();
        assert_eq!(out[l] as u32, want[0] as u32 | (want[1] as u32) << 16);
    }
    let out = eval("max.bf16x2 %r1, %a, %b; neg.bf16x2 %o, %r1;", "b32", &input);
    for l in 0..32 {
        let (x, y) = (halves(a[l]), halves(b[l]));
        let want: Vec<u16> = (0..2).map(|i| bf16::from_f64(-x[i].max(y[i])).to_bits()).collect();
        assert_eq!(out[l] as u32, want[0] as u32 | (want[1] as u32) << 16);
    }
    let f = |x: u64| [f16::from_bits(x as u16).to_f64(), f16::from_bits((x >> 16) as u16).to_f64()];
    let out = eval("mul.f16x2 %o, %a, %b;", "b32", &input);
    for l in 0..32 {
        let (x, y) = (f(a[l]), f(b[l]));
        let got = f(out[l]);
        for i in 0..2 {
            let want = f16::from_f64(x[i] * y[i]).to_f64();
            assert!(got[i] == want || (got[i].is_nan() && want.is_nan()));
        }
    }
}

#[test]
fn memory_of_all_spaces() {
    let mut lab = Lab::new();
    let text = kernel(
        2,
        ".const .align 4 .b8 table[8] = {1, 2, 3, 4, 250, 6, 7, 8};\n.global .align 4 .u32 numbers[2] = {77, 0x80};",
        r#"
        .local .align 16 .b8 depot[32];
        .shared .align 4 .b8 box[16];
        .reg .b64 %SP, %SPL;
        mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
        ld.global.v2.u32 {%r1, %r2}, [%p0+8];
        st.local.u32 [%SPL+4], %r1; st.u32 [%SP+8], %r2;
        ld.u32 %r3, [%SP+4]; ld.local.u32 %r4, [%SPL+8];
        st.global.u32 [%p1], %r3; st.global.u32 [%p1+4], %r4;
        mov.u64 %d0, box; cvta.shared.u64 %d1, %d0;
        mov.u32 %r5, 0xfffe; st.shared.u16 [box+2], %r5; st.u16 [%d1], %r5;
        ld.shared.s16 %r6, [box+2]; st.global.u32 [%p1+8], %r6;
        cvta.to.shared.u64 %d2, %d1; ld.shared.u8 %r7, [%d2+1]; st.global.u32 [%p1+12], %r7;
        ld.const.s8 %r8, [table+4]; st.global.u32 [%p1+16], %r8;
        ld.global.u32 %r9, [numbers+4]; st.global.u32 [%p1+20], %r9;
        mov.u64 %d3, table; ld.u8 %r10, [%d3+3]; st.global.u8 [%p1+24], %r10;
        mov.b64 %d4, k_param_1; cvta.param.u64 %d5, %d4; ld.u64 %d6, [%d5]; sub.u64 %d7, %d6, %p1; st.global.u64 [%p1+32], %d7;
        "#,
    );
    let (a, o) = (lab.words([10, 20, 30, 40]), lab.words([9; 10]));
    let report = lab.run(&text, 1, 1, 0, &[a, o]).unwrap();
    assert!(report.clean(), "{report}");
    assert_eq!(lab.read(o), [30, 40, -2i32 as u32, 255, -6i32 as u32, 0x80, 4, 9, 0, 0]);
}

#[test]
fn atomics() {
    let mut lab = Lab::new();
    let text = kernel(
        1,
        "",
        r#"
        .shared .align 4 .b8 box[8];
        mov.u32 %r0, %tid.x; setp.ne.s32 %q0, %r0, 0;
        @!%q0 st.shared.u32 [box], 0;
        bar.sync 0;
        atom.shared.add.u32 %r1, [box], 2;
        red.global.max.s32 [%p0], %r0; atom.global.add.u32 %r2, [%p0+4], 1; red.global.add.f32 [%p0+8], 0f3F000000;
        atom.global.cas.b32 %r3, [%p0+12], 5, %r0; atom.global.inc.u32 %r4, [%p0+16], 9; atom.global.exch.b32 %r5, [%p0+20], 3;
        bar.sync 0;
        ld.shared.u32 %r6, [box]; st.global.u32 [%p0+24], %r6;
        "#,
    );
    let o = lab.words([-5i32 as u32, 0, 0, 5, 0, 0, 0]);
    let report = lab.run(&text, 2, 64, 0, &[o]).unwrap();
    assert!(report.clean(), "{report}");
    assert_eq!(lab.read(o), [63, 128, 64f32.to_bits(), 0, 128 % 10, 3, 128]);
}

#[test]
fn branches_and_loops_converge_again() {
    let mut lab = Lab::new();
    // Each lane sums the odd numbers up to its own, with a jump table in the loop.
    let text = kernel(
        1,
        "",
        r#"
        mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u32 %r2, 0;
        $loop:
        setp.ge.u32 %q0, %r1, %r0; @%q0 bra $done;
        and.b32 %r3, %r1, 1;
        $table: .branchtargets $even, $odd;
        brx.idx %r3, $table;
        $odd: add.u32 %r2, %r2, %r1;
        $even: add.u32 %r1, %r1, 1; bra.uni $loop;
        $done:
        activemask.b32 %r4;
        mul.wide.u32 %d0, %r0, 8; add.u64 %d1, %p0, %d0; st.global.v2.u32 [%d1], {%r2, %r4};
        "#,
    );
    let o = lab.words([0; 64]);
    let report = lab.run(&text, 1, 32, 0, &[o]).unwrap();
    for (l, pair) in lab.read(o).chunks(2).enumerate() {
        assert_eq!(pair, [(0..l as u32).filter(|i| i % 2 == 1).sum::<u32>(), !0]);
    }
    assert!(
        report.loops.instructions > 0 && report.loops.instructions < report.counts.instructions
    );
}
