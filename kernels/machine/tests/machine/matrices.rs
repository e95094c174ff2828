//! `mma`, `ldmatrix`, `stmatrix` and `cp.async` against plain definitions.

use crate::common::{Lab, Random, kernel};
use half::{bf16, f16};

/// How elements of one type are encoded and decoded.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Bf16,
    F16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
}

impl Kind {
    fn bits(self) -> usize {
        match self {
            Kind::Bf16 | Kind::F16 => 16,
            Kind::Tf32 => 32,
            _ => 8,
        }
    }

    fn name(self) -> &'static str {
        ["bf16", "f16", "tf32", "e4m3", "e5m2", "s8", "u8"][self as usize]
    }

    /// A number of the type: its bits and its value.
    fn pick(self, r: &mut Random) -> (u32, f64) {
        let x = r.unit();
        let small = |exponents: u32| {
            // Medium exponents, so that all sums are exact enough.
            let mantissas = 7 - exponents;
            let (s, e, m) =
                (r_bit(x), 4 + (x.to_bits() >> 3 & 3), x.to_bits() & ((1 << mantissas) - 1));
            let bias = (1i32 << (exponents - 1)) - 1;
            let v = (1.0 + m as f64 / (1u32 << mantissas) as f64) * 2f64.powi(e as i32 - bias);
            (s << 7 | e << mantissas | m, if s == 1 { -v } else { v })
        };
        match self {
            Kind::Bf16 => (bf16::from_f32(x).to_bits() as u32, bf16::from_f32(x).to_f64()),
            Kind::F16 => (f16::from_f32(x).to_bits() as u32, f16::from_f32(x).to_f64()),
            // The low bits are ignored.
            Kind::Tf32 => (x.to_bits(), f32::from_bits(x.to_bits() & !0x1fff) as f64),
            Kind::E4m3 => small(4),
            Kind::E5m2 => small(5),
            Kind::S8 => ((x * 127.0) as i8 as u8 as u32, (x * 127.0) as i8 as f64),
            Kind::U8 => ((x.abs() * 255.0) as u32, ((x.abs() * 255.0) as u32) as f64),
        }
    }
}

fn r_bit(x: f32) -> u32 {
    x.to_bits() >> 9 & 1
}

/// Row and column of element `i` of A in a lane, from the manual, for each shape.
fn place_a(bits: usize, k: usize, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    match (bits, k) {
        (16, 16) => (
            if i < 2 || (4..6).contains(&i) { g } else { g + 8 },
            t * 2 + (i & 1) + if i < 4 { 0 } else { 8 },
        ),
        (16, 8) => (if i < 2 { g } else { g + 8 }, t * 2 + (i & 1)),
        (8, 32) => (
            if i < 4 || (8..12).contains(&i) { g } else { g + 8 },
            t * 4 + (i & 3) + if i < 8 { 0 } else { 16 },
        ),
        (8, 16) => (if i < 4 { g } else { g + 8 }, t * 4 + (i & 3)),
        (32, 8) => (if i.is_multiple_of(2) { g } else { g + 8 }, if i < 2 { t } else { t + 4 }),
        _ => (if i == 0 { g } else { g + 8 }, t),
    }
}

/// The same for B.
fn place_b(bits: usize, k: usize, lane: usize, i: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    let row = match (bits, k) {
        (16, _) => t * 2 + (i & 1) + if i < 2 { 0 } else { 8 },
        (8, _) => t * 4 + (i & 3) + if i < 4 { 0 } else { 16 },
        _ => t + 4 * i,
    };
    (row, g)
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + (i & 1))
}

fn check(a: Kind, b: Kind, k: usize, accumulator: &str) {
    let mut r = Random(k as u64 * 31 + a as u64 * 7 + b as u64);
    let bits = a.bits();
    let (na, nb) = (16 * k / 32, 8 * k / 32);
    let per = 32 / bits;
    let (ra, rb) = (na / per, nb / per);
    let mut x = vec![vec![0.0; k]; 16];
    let mut y = vec![vec![0.0; 8]; k];
    let mut words_a = vec![0u32; 32 * ra];
    let mut words_b = vec![0u32; 32 * rb];
    for lane in 0..32 {
        for i in 0..na {
            let (v, (row, col)) = (a.pick(&mut r), place_a(bits, k, lane, i));
            words_a[lane * ra + i / per] |= v.0 << (i % per * bits);
            x[row][col] = v.1;
        }
        for i in 0..nb {
            let (v, (row, col)) = (b.pick(&mut r), place_b(bits, k, lane, i));
            words_b[lane * rb + i / per] |= v.0 << (i % per * bits);
            y[row][col] = v.1;
        }
    }
    let rc = if accumulator == "f16" { 2 } else { 4 };
    let mut words_c = vec![0u32; 32 * rc];
    let mut c = vec![vec![0.0; 8]; 16];
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = place_c(lane, i);
            let v = r.unit();
            match accumulator {
                "f32" => {
                    c[row][col] = v as f64;
                    words_c[lane * 4 + i] = v.to_bits();
                }
                "f16" => {
                    c[row][col] = f16::from_f32(v).to_f64();
                    words_c[lane * 2 + i / 2] |=
                        (f16::from_f32(v).to_bits() as u32) << (i % 2 * 16);
                }
                _ => {
                    c[row][col] = (v * 1e6) as i32 as f64;
                    words_c[lane * 4 + i] = (v * 1e6) as i32 as u32;
                }
            }
        }
    }
    let names = |first: usize, n: usize| {
        (first..first + n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", ")
    };
    let load = |p: usize, first: usize, n: usize| {
        let mut s = format!("mul.wide.u32 %d0, %r60, {}; add.u64 %d1, %p{p}, %d0;\n", 4 * n);
        (0..n).for_each(|i| {
            s.push_str(&format!("ld.global.u32 %r{}, [%d1+{}];\n", first + i, 4 * i))
        });
        s
    };
    let mut body =
        format!("mov.u32 %r60, %laneid;\n{}{}{}", load(0, 0, ra), load(1, 8, rb), load(2, 16, rc));
    body.push_str(&format!(
        "mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{}.{}.{accumulator} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n",
        a.name(),
        b.name(),
        names(24, rc),
        names(0, ra),
        names(8, rb),
        names(16, rc)
    ));
    body.push_str(&format!("mul.wide.u32 %d0, %r60, {}; add.u64 %d1, %p3, %d0;\n", 4 * rc));
    (0..rc).for_each(|i| body.push_str(&format!("st.global.u32 [%d1+{}], %r{};\n", 4 * i, 24 + i)));
    let mut lab = Lab::new();
    let addresses =
        [lab.words(words_a), lab.words(words_b), lab.words(words_c), lab.words(vec![0; 32 * rc])];
    let report = lab.run(&kernel(4, "", &body), 1, 32, 0, &addresses).unwrap();
    assert!(report.clean());
    assert_eq!(report.counts.mma_flops, 2 * 16 * 8 * k as u64);
    let out = lab.read(addresses[3]);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = place_c(lane, i);
            let want = (0..k).map(|j| x[row][j] * y[j][col]).sum::<f64>() + c[row][col];
            let got = match accumulator {
                "f32" => f32::from_bits(out[lane * 4 + i]) as f64,
                "f16" => f16::from_bits((out[lane * 2 + i / 2] >> (i % 2 * 16)) as u16).to_f64(),
                _ => out[lane * 4 + i] as i32 as f64,
            };
            let tolerance = match accumulator {
                "f32" => 1e-5,
                "f16" => 1e-2,
                _ => 0.0,
            };
            assert!(
                (got - want).abs() <= tolerance * want.abs().max(1.0),
                "{a:?} {b:?} k {k} at {row}, {col}: {got} instead of {want}"
            );
        }
    }
}

#[test]
fn products_of_all_types() {
    for k in [8, 16] {
        check(Kind::Bf16, Kind::Bf16, k, "f32");
        check(Kind::F16, Kind::F16, k, "f32");
        check(Kind::F16, Kind::F16, k, "f16");
    }
    check(Kind::Tf32, Kind::Tf32, 4, "f32");
    check(Kind::Tf32, Kind::Tf32, 8, "f32");
    check(Kind::E4m3, Kind::E4m3, 32, "f32");
    check(Kind::E4m3, Kind::E5m2, 32, "f32");
    check(Kind::E5m2, Kind::E4m3, 16, "f32");
    for k in [16, 32] {
        check(Kind::S8, Kind::S8, k, "s32");
        check(Kind::U8, Kind::S8, k, "s32");
    }
}

/// Fills shared memory with the numbers of its 16-bit cells, calls `code`, and returns `%r0` ..
/// `%r3` of each lane.
fn matrices(code: &str) -> Vec<u32> {
    let body = format!(
        "mov.u32 %r60, %laneid; mov.u32 %r10, 0;
         $fill: shl.b32 %r11, %r10, 5; add.u32 %r11, %r11, %r60; shl.b32 %r12, %r11, 1; cvt.u16.u32 %h0, %r11;
         add.u32 %r12, %r12, 1024; st.shared.u16 [%r12], %h0; add.u32 %r10, %r10, 1; setp.lt.u32 %q0, %r10, 32; @%q0 bra $fill;
         bar.warp.sync -1;
         mov.u32 %r0, 0; mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 0;
         shl.b32 %r20, %r60, 4; add.u32 %r20, %r20, 1024;
         {code}
         mul.wide.u32 %d0, %r60, 16; add.u64 %d1, %p0, %d0; st.global.v4.u32 [%d1], {{%r0, %r1, %r2, %r3}};"
    );
    let mut lab = Lab::new();
    let o = lab.words(vec![0; 128]);
    let report = lab.run(&kernel(1, "", &body), 1, 32, 2048, &[o]).unwrap();
    assert!(report.clean(), "{report}");
    lab.read(o)
}

#[test]
fn matrices_are_loaded_and_stored() {
    // Row r of matrix m begins at cell 64 m + 8 r.
    let pair = |a: u32, b: u32| a | b << 16;
    let out = matrices("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%r20];");
    for l in 0..32 {
        for m in 0..4 {
            let first = 64 * m + 8 * (l / 4) + 2 * (l % 4);
            assert_eq!(out[l as usize * 4 + m as usize], pair(first, first + 1));
        }
    }
    let out = matrices("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r0, %r1}, [%r20+128];");
    for l in 0..32 {
        for m in 0..2 {
            let cell = |row: u32, col: u32| 64 * (m + 1) + 8 * row + col;
            assert_eq!(
                out[l as usize * 4 + m as usize],
                pair(cell(2 * (l % 4), l / 4), cell(2 * (l % 4) + 1, l / 4))
            );
        }
    }
    // Stored transposed and loaded plain: the same as loaded transposed.
    let out = matrices(
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r5}, [%r20];
         stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r20+128], {%r5}; bar.warp.sync -1;
         ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r20+128]; ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r1}, [%r20];
         stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r20+128], {%r5}; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r20+128];
         mov.u32 %r3, %r5;",
    );
    for l in out.chunks(4) {
        assert_eq!((l[0], l[2]), (l[1], l[3]));
    }
}

#[test]
fn copies_complete_at_the_wait() {
    // Three groups; the kernel waits for the first one separately. Sizes below 16 and partial
    // sources fill up with zeros.
    let body = "
        cp.async.ca.shared.global [1024], [%p0], 4; cp.async.commit_group;
        cp.async.ca.shared.global [1032], [%p0+8], 8; cp.async.commit_group;
        mov.u32 %r0, 8; cp.async.cg.shared.global [1040], [%p0+16], 16, %r0; mov.u32 %r0, 0; cp.async.cg.shared.global [1056], [%p0], 16, %r0;
        cp.async.wait_group 1; ld.shared.u32 %r1, [1024];
        cp.async.wait_all;
        ld.shared.v2.u32 {%r2, %r3}, [1032]; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [1040]; ld.shared.v4.u32 {%r8, %r9, %r10, %r11}, [1056];
        st.global.v4.u32 [%p1], {%r1, %r2, %r3, %r4}; st.global.v4.u32 [%p1+16], {%r5, %r6, %r7, %r8}; st.global.u32 [%p1+32], %r11;";
    let mut lab = Lab::new();
    let (a, o) = (lab.words(1..13), lab.words([99; 9]));
    let report = lab.run(&kernel(2, "", body), 1, 1, 64, &[a, o]).unwrap();
    assert!(report.clean(), "{report}");
    assert_eq!(lab.read(o), [1, 3, 4, 5, 6, 0, 0, 0, 0]);
}
