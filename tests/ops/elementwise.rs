//! Operations on single elements, and copies.

use flux_fast::dtype::DType;
use flux_fast::op::{Add, Cast, CopyRows, GeluMul, Silu, SiluMul};

use crate::case::Case;
use crate::{ROWS, all_ran};

#[test]
fn element_by_element() {
    for rows in ROWS {
        for cols in [1, 37, 512] {
            let mut c = Case::new();
            let (a, b, out) = (c.input(rows, cols), c.input(rows, cols), c.output(rows, cols));
            for out in [out, a, b] {
                c.check(Add { a, b, out }, 0);
                c.check(GeluMul { gate: a, up: b, out }, 0);
            }
            c.check(Silu { x: a, out }, 0);
            c.check(Silu { x: a, out: a }, 0);
            c.check_nan(Add { a, b, out }, b);
            c.check_nan(GeluMul { gate: a, up: b, out }, a);
            c.check_nan(Silu { x: a, out: a }, a);
        }
    }
    all_ran(&["add", "gelu_mul", "silu"]);
}

/// The halves of one product are gate and up, and the result is a window, too.
#[test]
fn windows_are_multiplied_with_silu() {
    for rows in ROWS {
        for (cols, before) in [(1, 0), (37, 3), (512, 0), (64, 128)] {
            let mut c = Case::new();
            let both = c.input(rows, 2 * cols);
            let (gate, up) = (both.columns(0, cols), both.columns(cols, cols));
            let out = c.output(rows, before + cols);
            let op = |out| SiluMul { gate, up, out };
            c.check(op(out.columns(before, cols)), rows * before);
            c.check(op(up), 0);
            c.check_nan(op(out.columns(before, cols)), both);
            let (a, b) = (c.input(rows, cols), c.input(rows, cols));
            for out in [a, b] {
                c.check(SiluMul { gate: a.all(), up: b.all(), out: out.all() }, 0);
            }
        }
    }
    all_ran(&["silu_mul"]);
}

#[test]
fn copies_and_casts() {
    for dtype in [DType::F32, DType::BF16] {
        for (batch, from_rows, to_rows, from, to, count) in
            [(1, 1, 1, 0, 0, 1), (2, 17, 20, 3, 9, 11), (1, 257, 255, 2, 0, 255)]
        {
            let mut c = Case::new();
            let (x, out) =
                (c.stored(batch * from_rows, 33, dtype), c.blank(batch * to_rows, 33, dtype));
            c.check(CopyRows { x, out, batch, from, to, count }, batch * (to_rows - count) * 33);
        }
        let mut c = Case::new();
        let (x, out) = (c.stored(20, 40, dtype), c.blank(30, 40, dtype));
        c.check(CopyRows { x, out, batch: 2, from: 3, to: 8, count: 7 }, 16 * 40);
    }
    let kinds = [DType::F32, DType::BF16, DType::F16];
    for (a, b) in kinds.iter().flat_map(|a| kinds.iter().map(move |b| (*a, *b))) {
        for rows in ROWS {
            let mut c = Case::new();
            let (x, out) = (c.stored(rows, 40, a), c.blank(rows, 50, b));
            c.check(Cast { x: x.columns(3, 21), out: out.columns(10, 21) }, rows * 29);
            c.check(Cast { x: x.columns(8, 32), out: out.columns(0, 32) }, rows * 18);
        }
    }
    all_ran(&["copy_rows", "cast"]);
}
