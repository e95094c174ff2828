//! `wgmma` against plain definitions of its operands' layouts, with deliberate bugs.

use crate::common::{Lab, Random, kernel};
use half::{bf16, f16};
use ptx_machine::{FaultKind, Report};

/// The layout of an operand in shared memory: bytes of the swizzle (16: none), and whether its
/// rows, not k, are contiguous.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    swizzle: usize,
    rows_contiguous: bool,
}

const OPERAND: usize = 32 * 1024;

impl Layout {
    /// Leading and stride offsets that the tests use, for `rows` rows.
    fn offsets(self, rows: usize) -> (usize, usize) {
        match (self.swizzle, self.rows_contiguous) {
            // Core matrices of 128 bytes: neighbours along k follow each other, then along the
            // rows.
            (16, false) => (128, 256),
            (16, true) => (128 * rows / 8, 128),
            (s, false) => (16, 8 * s),
            // Blocks of `swizzle` bytes of rows and 8 k; along k first.
            (s, true) => (2 * 8 * s, 8 * s),
        }
    }

    /// Byte offset of an element from the start, by the canonical layouts of the manual.
    fn place(self, rows: usize, bytes: usize, row: usize, k: usize) -> usize {
        let (leading, stride) = self.offsets(rows);
        let (s, kb) = (self.swizzle, k * bytes);
        let plain = match (s, self.rows_contiguous) {
            (16, false) => row / 8 * stride + kb / 16 * leading + row % 8 * 16 + kb % 16,
            (16, true) => row / 8 * stride + k / 8 * leading + k % 8 * 16 + row % 8 * 2,
            (_, false) => row / 8 * stride + row % 8 * s + kb,
            (_, true) => {
                let across = s / 2;
                row / across * leading + k / 8 * stride + k % 8 * s + row % across * 2
            }
        };
        // The chunk is permuted by the number of the 128-byte line.
        let (line, chunk) = (plain / 128, plain / 16 % 8);
        let pattern = line % (s / 16);
        line * 128 + (chunk ^ pattern) * 16 + plain % 16
    }

    fn descriptor(self, address: usize, rows: usize) -> u64 {
        let (leading, stride) = self.offsets(rows);
        let mode = match self.swizzle {
            128 => 1u64,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        (address as u64 >> 4)
            | (leading as u64 >> 4) << 16
            | (stride as u64 >> 4) << 32
            | mode << 62
    }
}

struct Case {
    n: usize,
    kind: &'static str,
    accumulator: &'static str,
    /// `None`: A comes from registers.
    a: Option<Layout>,
    b: Layout,
    scale: [i32; 2],
}

fn encode(kind: &str, x: f32) -> (Vec<u8>, f64) {
    match kind {
        "bf16" => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f64()),
        "f16" => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f64()),
        "tf32" => (x.to_le_bytes().to_vec(), f32::from_bits(x.to_bits() & !0x1fff) as f64),
        _ => {
            // Sign, exponents around that of one, mantissa.
            let bits = x.to_bits();
            let (m, bias) = if kind == "e4m3" { (3, 7) } else { (2, 15) };
            let (s, e, f) = (bits >> 9 & 1, bias - 2 + (bits >> 4 & 3), bits & ((1 << m) - 1));
            let v = (1.0 + f as f64 / (1 << m) as f64) * 2f64.powi(e as i32 - bias as i32);
            (vec![(s << 7 | e << m | f) as u8], if s == 1 { -v } else { v })
        }
    }
}

/// The kernel: all threads copy the image of A and B from `%p0` to shared memory, then come two
/// products and their results.
fn text(c: &Case, k: usize, image: usize, change: impl Fn(String) -> String) -> String {
    let registers = if c.accumulator == "f16" { c.n / 4 } else { c.n / 2 };
    let prefix = if c.accumulator == "f16" { "r" } else { "f" };
    let sums = |first: usize| {
        let all: Vec<String> =
            (first..first + registers).map(|i| format!("%{prefix}{i}")).collect();
        format!("{{{}}}", all.join(", "))
    };
    let first = if prefix == "r" { 0 } else { 100 };
    let flags = match c.a {
        Some(a) if c.kind.ends_with("f16") => {
            format!(", {}, {}", a.rows_contiguous as u8, c.b.rows_contiguous as u8)
        }
        None if c.kind.ends_with("f16") => format!(", {}", c.b.rows_contiguous as u8),
        _ => String::new(),
    };
    let a = if c.a.is_some() { "%d10".to_string() } else { "{%r60, %r61, %r62, %r63}".to_string() };
    let zeros: String = (first..first + registers)
        .map(|i| {
            if prefix == "r" {
                format!("mov.b32 %r{i}, 0;\n")
            } else {
                format!("mov.f32 %f{i}, 0f3F800000;\n")
            }
        })
        .collect();
    let product = |add: u8| {
        format!(
            "{{ .reg .pred p; setp.ne.b32 p, {add}, 0; wgmma.mma_async.sync.aligned.m64n{}k{k}.{}.{}.{} {}, {a}, %d11, p, {}, {}{flags}; }}\n",
            c.n,
            c.accumulator,
            c.kind,
            c.kind,
            sums(first),
            c.scale[0],
            c.scale[1]
        )
    };
    let (ra, rb) = (c.a.map_or(0, |a| a.descriptor(2048, 64)), c.b.descriptor(2048 + OPERAND, c.n));
    let stores: String = (0..registers)
        .map(|i| format!("st.global.b32 [%d3+{}], %{prefix}{};\n", 4 * i, first + i))
        .collect();
    let body = format!(
        "mov.u32 %r50, %tid.x; shl.b32 %r51, %r50, 4;
         $fill: setp.ge.u32 %q0, %r51, {image}; @%q0 bra $filled; cvt.u64.u32 %d0, %r51; add.u64 %d1, %p0, %d0;
         ld.global.v4.u32 {{%r52, %r53, %r54, %r55}}, [%d1]; st.shared.v4.u32 [%r51+2048], {{%r52, %r53, %r54, %r55}};
         add.u32 %r51, %r51, 2048; bra $fill;
         $filled: mul.wide.u32 %d0, %r50, 16; add.u64 %d1, %p1, %d0; ld.global.v4.u32 {{%r60, %r61, %r62, %r63}}, [%d1];
         fence.proxy.async.shared::cta; bar.sync 0;
         {zeros} mov.b64 %d10, {ra}; mov.b64 %d11, {rb};
         wgmma.fence.sync.aligned;
         {}{}wgmma.commit_group.sync.aligned;
         wgmma.wait_group.sync.aligned 0;
         mul.wide.u32 %d2, %r50, {}; add.u64 %d3, %p2, %d2; {stores}",
        product(0),
        product(1),
        registers * 4
    );
    kernel(3, "", &change(body))
}

fn run(
    c: &Case,
    change: impl Fn(String) -> String,
) -> (Result<Report, ptx_machine::Fault>, Lab, u64, Vec<Vec<f64>>) {
    let mut r = Random(c.n as u64 + 77);
    let bytes = encode(c.kind, 0.0).0.len();
    let k = 32 / bytes;
    let mut image = vec![0u8; 2 * OPERAND];
    let mut x = vec![vec![0.0; k]; 64];
    let mut y = vec![vec![0.0; k]; c.n];
    let mut registers = vec![0u8; 128 * 16];
    for (row, values) in x.iter_mut().enumerate() {
        for (j, v) in values.iter_mut().enumerate() {
            let (code, value) = encode(c.kind, r.unit());
            *v = value;
            let at = match c.a {
                Some(a) => a.place(64, bytes, row, j),
                None => {
                    // Warp, group of four lanes, lane in it; register by half of k and half of the
                    // rows.
                    let per = 4 / bytes;
                    let (warp, low, g) = (row / 16, row % 16 / 8, row % 8);
                    let (h, t, e) = (j / (4 * per), j / per % 4, j % per);
                    (warp * 32 + g * 4 + t) * 16 + (2 * h + low) * 4 + e * bytes
                }
            };
            let to = if c.a.is_some() { &mut image } else { &mut registers };
            to[at..at + bytes].copy_from_slice(&code);
        }
    }
    for (row, values) in y.iter_mut().enumerate() {
        for (j, v) in values.iter_mut().enumerate() {
            let (code, value) = encode(c.kind, r.unit());
            *v = value;
            let at = OPERAND + c.b.place(c.n, bytes, row, j);
            image[at..at + bytes].copy_from_slice(&code);
        }
    }
    let sign = (c.scale[0] * c.scale[1]) as f64;
    let want = x
        .iter()
        .map(|x| {
            y.iter()
                .map(|y| 2.0 * sign * x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>())
                .collect()
        })
        .collect();
    let mut lab = Lab::new();
    let size = image.len();
    let (i, a, o) = (lab.buffer(image), lab.buffer(registers), lab.words(vec![0; 128 * 128]));
    let report = lab.run(&text(c, k, size, change), 1, 128, 1024 + 2 * OPERAND, &[i, a, o]);
    (report, lab, o, want)
}

fn check(c: Case) {
    let (report, lab, o, want) = run(&c, |s| s);
    let name = format!("n {} {} {} {:?} {:?}", c.n, c.kind, c.accumulator, c.a, c.b);
    let report = report.unwrap_or_else(|f| panic!("{name}: {f}"));
    assert!(report.clean(), "{name}: {report}");
    let out = lab.read(o);
    let half = c.accumulator == "f16";
    let registers = if half { c.n / 4 } else { c.n / 2 };
    for thread in 0..128 {
        for i in 0..c.n / 2 {
            let (row, col) = (
                thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8,
                i / 4 * 8 + thread % 4 * 2 + i % 2,
            );
            let got = if half {
                f16::from_bits((out[thread * registers + i / 2] >> (i % 2 * 16)) as u16).to_f64()
            } else {
                f32::from_bits(out[thread * registers + i]) as f64
            };
            let tolerance = if half { 2e-2 } else { 1e-5 };
            assert!(
                (got - want[row][col]).abs() <= tolerance * want[row][col].abs().max(1.0),
                "{name}: {row}, {col}: {got}, {}",
                want[row][col]
            );
        }
    }
}

const fn layout(swizzle: usize, rows_contiguous: bool) -> Layout {
    Layout { swizzle, rows_contiguous }
}

const ROWS: Layout = layout(128, false);

#[test]
fn operands_in_all_layouts() {
    for s in [16, 32, 64, 128] {
        check(Case {
            n: 64,
            kind: "bf16",
            accumulator: "f32",
            a: Some(layout(s, false)),
            b: layout(s, false),
            scale: [1, 1],
        });
        check(Case {
            n: 128,
            kind: "bf16",
            accumulator: "f32",
            a: Some(layout(s, false)),
            b: layout(s, true),
            scale: [1, 1],
        });
        check(Case {
            n: 64,
            kind: "f16",
            accumulator: "f32",
            a: Some(layout(s, true)),
            b: layout(s, false),
            scale: [1, 1],
        });
        check(Case {
            n: 64,
            kind: "e4m3",
            accumulator: "f32",
            a: Some(layout(s, false)),
            b: layout(s, false),
            scale: [1, 1],
        });
    }
}

#[test]
fn other_types_widths_and_signs() {
    check(Case { n: 8, kind: "bf16", accumulator: "f32", a: Some(ROWS), b: ROWS, scale: [-1, 1] });
    check(Case {
        n: 256,
        kind: "bf16",
        accumulator: "f32",
        a: Some(ROWS),
        b: ROWS,
        scale: [-1, -1],
    });
    check(Case { n: 24, kind: "bf16", accumulator: "f32", a: None, b: ROWS, scale: [1, 1] });
    check(Case {
        n: 64,
        kind: "bf16",
        accumulator: "f32",
        a: None,
        b: layout(128, true),
        scale: [1, -1],
    });
    check(Case { n: 32, kind: "e4m3", accumulator: "f32", a: None, b: ROWS, scale: [1, 1] });
    check(Case { n: 32, kind: "e5m2", accumulator: "f32", a: Some(ROWS), b: ROWS, scale: [1, 1] });
    check(Case { n: 40, kind: "tf32", accumulator: "f32", a: Some(ROWS), b: ROWS, scale: [1, 1] });
    check(Case { n: 64, kind: "f16", accumulator: "f16", a: Some(ROWS), b: ROWS, scale: [1, 1] });
}

fn case() -> Case {
    Case { n: 16, kind: "bf16", accumulator: "f32", a: Some(ROWS), b: ROWS, scale: [1, 1] }
}

fn changed(from: &str, to: &str) -> Result<Report, ptx_machine::Fault> {
    run(&case(), |s| {
        assert!(s.contains(from));
        s.replacen(from, to, 1)
    })
    .0
}

const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

#[test]
fn missing_fences_are_reported() {
    assert!(changed("fence.proxy.async.shared::cta;", "").unwrap().asynchronous > 0);
    assert!(changed("wgmma.fence.sync.aligned;", "").unwrap().asynchronous > 0);
    // A register of the accumulators is written after the fence.
    let late = changed(
        "wgmma.fence.sync.aligned;",
        "wgmma.fence.sync.aligned; add.f32 %f100, %f100, %f100;",
    )
    .unwrap();
    assert!(late.asynchronous > 0);
    // A fence by the reading threads, after the barrier, is sufficient, too.
    let report = changed(
        "fence.proxy.async.shared::cta; bar.sync 0;",
        "bar.sync 0; fence.proxy.async.shared::cta;",
    )
    .unwrap();
    assert!(report.clean(), "{report}");
}

#[test]
fn results_and_operands_must_not_be_used_before_the_wait() {
    let early = changed(WAIT, &format!("add.f32 %f90, %f100, %f101; {WAIT}")).unwrap();
    assert_eq!(early.asynchronous, 4);
    assert_eq!(changed(WAIT, "").unwrap().asynchronous, 4 * 8);
    assert_eq!(changed(WAIT, "wgmma.wait_group.sync.aligned 1;").unwrap().asynchronous, 4 * 8);
    // Shared memory is overwritten while it is read; after the wait and a barrier that is allowed.
    let store = "st.shared.u32 [2048], 0;";
    assert!(changed(WAIT, &format!("{store} {WAIT}")).unwrap().races > 0);
    assert!(changed(WAIT, &format!("{WAIT} {store}")).unwrap().races > 0);
    let report =
        changed(WAIT, &format!("{WAIT} bar.sync 0; setp.eq.u32 %q5, %r50, 0; @%q5 {store}"))
            .unwrap();
    assert!(report.clean(), "{report}");
    // Registers of A.
    let c = Case { a: None, ..case() };
    let report = run(&c, |s| s.replacen(WAIT, &format!("mov.u32 %r60, 0; {WAIT}"), 1)).0.unwrap();
    assert_eq!(report.asynchronous, 4);
    let report =
        run(&c, |s| s.replacen(WAIT, &format!("mov.u32 %r1, %r60; {WAIT} mov.u32 %r60, 0;"), 1))
            .0
            .unwrap();
    assert!(report.clean(), "{report}");
}

#[test]
fn the_warps_of_a_warpgroup_execute_the_same_products() {
    let skip = |s: String| {
        s.replacen(
            "wgmma.fence.sync.aligned;",
            "wgmma.fence.sync.aligned; setp.lt.u32 %q5, %r50, 32; @%q5 bra $skip;",
            1,
        )
        .replacen("wgmma.commit_group", "$skip: wgmma.commit_group", 1)
    };
    assert_eq!(run(&case(), skip).0.unwrap_err().kind, FaultKind::Divergence);
    let other = "mov.b64 %d11, %d10; setp.lt.u32 %q5, %r50, 32; @%q5 mov.b64 %d11, 0; wgmma.fence.sync.aligned;";
    assert_eq!(
        changed("wgmma.fence.sync.aligned;", other).unwrap_err().kind,
        FaultKind::Divergence
    );
}
