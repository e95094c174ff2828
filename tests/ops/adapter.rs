//! Operations that only adapters need.

use flux_fast::op::{Epilogue, GroupMix, ScaledAdd};

use crate::case::Case;
use crate::{ROWS, all_ran};

#[test]
fn groups_of_columns_are_mixed() {
    for rows in ROWS {
        // (outputs, inputs, width)
        for (outputs, inputs, width) in [(1, 1, 5), (3, 2, 7), (2, 4, 16), (16, 16, 12), (5, 1, 64)]
        {
            let mut c = Case::new();
            let x = c.input(rows, inputs * width + 3);
            let (w, out) = (c.vector(outputs * inputs), c.output(rows, outputs * width));
            let x = x.columns(2, inputs * width);
            c.check(GroupMix { x, w, inputs, out }, 0);
        }
    }
    let mut c = Case::new();
    let (x, w, out) = (c.input(17, 32), c.vector(16), c.output(17, 32));
    c.check(GroupMix { x: x.all(), w, inputs: 4, out }, 0);
    c.check_nan(GroupMix { x: x.all(), w, inputs: 4, out }, x);
    all_ran(&["group_mix"]);
}

#[test]
fn scaled_add_with_every_epilogue() {
    for rows in ROWS {
        for cols in [1, 37, 512] {
            let mut c = Case::new();
            let x = c.input(rows, cols + 3).columns(1, cols);
            let add = c.input(rows, cols + 2).columns(2, cols);
            let (scale, residual) = (c.vector(cols), c.input(rows, cols));
            let out = c.output(rows, cols);
            let gates = [c.input(1, cols).all(), c.input(rows, cols + 5).columns(3, cols)];
            let mut epilogues = vec![
                Epilogue::None,
                Epilogue::Silu,
                Epilogue::GeluTanh,
                Epilogue::QuickGelu,
                Epilogue::Add { residual },
            ];
            epilogues.extend(gates.map(|gate| Epilogue::GatedAdd { residual, gate }));
            for epilogue in epilogues {
                for (add, scale) in [(None, None), (Some(add), None), (Some(add), Some(scale))] {
                    let op = ScaledAdd { x, add, scale, epilogue, out: out.all() };
                    c.check(op, 0);
                }
            }
            // In place, and into a window.
            let whole = c.input(rows, cols);
            let (add, epilogue) = (Some(add), Epilogue::GeluTanh);
            c.check(ScaledAdd { x: whole.all(), add, scale: None, epilogue, out: whole.all() }, 0);
            c.check(ScaledAdd { x, add, scale: Some(scale), epilogue, out: x }, 0);
            let epilogue = Epilogue::Add { residual: whole };
            c.check(ScaledAdd { x, add, scale: None, epilogue, out: whole.all() }, 0);
            let (x, epilogue) = (whole.all(), Epilogue::None);
            c.check_nan(ScaledAdd { x, add, scale: None, epilogue, out: out.all() }, whole);
        }
    }
    all_ran(&["scaled_add"]);
}
