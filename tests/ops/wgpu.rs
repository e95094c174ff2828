//! The WGSL variants on the same cases, on the first adapter of this machine (Mesa's lavapipe is
//! enough): in F32 and in BF16, with whole operands, and with windows so small that operands are
//! split.
//!
//! Without an adapter these tests are skipped with a message; with `FLUX_FAST_TEST_WGPU=1` that is
//! a failure.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use flux_fast::backend::wgpu::{WgpuBackend, WgpuOptions, names};
use flux_fast::backend::{Compute, KernelChoice};
use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::error::Kind;
use flux_fast::op::{Linear, Op};
use flux_fast::tensor::Tensor;

use crate::case::{Case, compare};
use crate::common::adapter;
use crate::gpu::{GAP, exact, known, out_types, over, typed, with_nan};

thread_local! {
    /// Variants that ran in this test, and those that were skipped with a message because this
    /// machine cannot run them.
    static RAN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    /// The same, with the stored type of the weights.
    static RAN_ON: RefCell<BTreeSet<(&'static str, &'static str)>> =
        const { RefCell::new(BTreeSet::new()) };
    /// Operations whose operands were split by small windows.
    static CUT: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

/// How the adapter is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    compute: Compute,
    /// Upper bound of a window, in bytes.
    windows: Option<u64>,
}

const WIDE: Mode = Mode { compute: Compute::F32, windows: None };
const NARROW: Mode = Mode { compute: Compute::BF16, windows: None };
const HALF: Mode = Mode { compute: Compute::F16, windows: None };
/// Lower bound of a small window, in bytes.
const SMALL: u64 = 8 << 10;

/// Upper bound of the arithmetic operations of a submission when dispatches are split: a few
/// workgroups of most cases.
const MOST_WORK: u64 = 100_000;

/// Backends that no test uses now. Opening one is quick, but a shader is compiled when a backend
/// first uses it, which takes longer than most cases. So each test takes one and gives it back:
/// there are as many as tests that run at the same time.
static IDLE: Mutex<Vec<WgpuBackend>> = Mutex::new(Vec::new());

/// The backend of a test, and so of a thread.
struct Lent(Option<WgpuBackend>);

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.0.take());
    }
}

thread_local! {
    static BACKEND: RefCell<Lent> = const { RefCell::new(Lent(None)) };
}

fn on<T>(mode: Mode, f: impl FnOnce(&mut WgpuBackend) -> T) -> T {
    BACKEND.with_borrow_mut(|lent| {
        let open = || {
            let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
            idle.unwrap_or_else(|| {
                let staging_bytes = Some(1 << 20);
                WgpuBackend::new(WgpuOptions { staging_bytes, ..WgpuOptions::default() }).unwrap()
            })
        };
        let backend = lent.0.get_or_insert_with(open);
        // Small windows come with small dispatches.
        let most_work = if mode.windows.is_some() { MOST_WORK } else { u64::MAX };
        backend.pretend(mode.compute, mode.windows.unwrap_or(u64::MAX), most_work);
        f(backend)
    })
}

/// Runs every WGSL variant that accepts `op`, and the variant that the backend chooses, against the
/// reference.
#[track_caller]
pub fn check(case: &Case, op: Op, left_alone: usize) {
    let Some(f16) = adapter::get().map(|a| a.f16) else { return };
    if !known(&op) {
        return;
    }
    let reference = format!("{}_reference", op.name());
    let expect = |case: &Case| {
        let expected = case.written(&op, &case.run(op, &reference, 1, &case.image()).unwrap());
        assert_eq!(expected.iter().filter(|x| x.is_nan()).count(), left_alone);
        expected
    };
    let expected = expect(case);
    if wide_turn(case, &op) != Some(false) {
        let judge = &mut |variant: &str, found: &[f32]| {
            compare(&op, variant, found, &expected, bound(&op, variant))
        };
        run_all(WIDE, case, op, judge);
    }
    if wide_turn(case, &op) == Some(true) {
        return;
    }
    for &f32_out in out_types(&op) {
        let (narrow, wide) = typed(case, &op, f32_out);
        let (typed_op, expected) = (over(op, &narrow), expect(&wide));
        run_all(if f16 { HALF } else { NARROW }, &narrow, typed_op, &mut |variant, found| {
            compare(&typed_op, variant, found, &expected, bound(&typed_op, variant));
        });
    }
}

fn bound(op: &Op, variant: &str) -> f64 {
    let all = op.reads().into_iter().chain(op.writes());
    let wide = all.filter(|t| t.dtype != DType::I32).all(|t| t.dtype == DType::F32);
    let written = op.writes().iter().all(|t| t.dtype == DType::F32);
    let half = names(op.name()).unwrap().iter().any(|(name, needs)| *name == variant && needs.f16);
    match () {
        () if exact(op) => 0.0,
        () if variant.starts_with("linear_int8_") && written => integers_bound(),
        () if half && written => 2e-3,
        () if half => 1e-2,
        // Convolution kernels are rounded to BF16 if activations are BF16.
        () if wide || (written && !matches!(op, Op::Conv2d(_))) => 1e-5,
        () => 4e-3, // rounded once
    }
}

/// The bound of a product in integers that is stored in F32. The integers are those of the
/// reference where the driver divides with exact rounding. Elsewhere (WGSL allows an error of 2.5
/// units in the last place) the scale of a row can differ in its last bit, and a quotient near the
/// middle of two integers can become the other one.
fn integers_bound() -> f64 {
    let exact = adapter::get().is_some_and(|a| a.name.contains("llvmpipe"));
    if exact { 1e-5 } else { 3e-3 }
}

/// Runs every WGSL variant that accepts `op`, in F32, for results that are not compared with the
/// reference.
#[track_caller]
pub fn judge(case: &Case, op: Op, judge: &mut dyn FnMut(&str, &[f32])) {
    if adapter::get().is_some() {
        run_all(WIDE, case, op, judge);
    }
}

/// Checks that a NaN in the middle of `tensor` reaches the output of every WGSL variant.
#[track_caller]
pub fn check_nan(case: &Case, op: Op, tensor: Tensor) {
    let Some(f16) = adapter::get().map(|a| a.f16) else { return };
    let (narrow, typed_op) = with_nan(case, op, tensor);
    let mut wide = case.again();
    for (to, (t, from)) in wide.tensors.iter_mut().zip(&narrow.tensors) {
        if to.0.dtype == DType::F32 {
            to.1 = from
                .chunks_exact(t.dtype.size())
                .flat_map(|b| t.dtype.decode(b).to_le_bytes())
                .collect();
        }
    }
    let modes = [(WIDE, &wide, op), (if f16 { HALF } else { NARROW }, &narrow, typed_op)];
    for (mode, case, op) in modes {
        if wide_turn(case, &op).is_some_and(|wide| wide != (mode == WIDE)) {
            continue;
        }
        run_all(mode, case, op, &mut |variant, found| {
            assert!(found.iter().any(|x| x.is_nan()), "{variant}: lost a NaN: {op}");
        });
    }
}

#[track_caller]
fn run_all(mode: Mode, case: &Case, op: Op, judge: &mut dyn FnMut(&str, &[f32])) {
    let image = case.image_between(GAP);
    let mut ran = false;
    for (variant, needs) in names(op.name()).expect("every operation has WGSL variants") {
        if !in_turn(case, &op, mode, variant) {
            continue;
        }
        let answer = on(mode, |backend| {
            if let Some(why) = needs.missing(backend.device()) {
                eprintln!("SKIPPED {variant}: {why}");
                ran_one(variant, case, &op);
                return None;
            }
            backend.force(vec![KernelChoice::new(op.name(), variant)]).unwrap();
            Some(case.run_on(backend, op, variant, &image))
        });
        match answer {
            None => {}
            Some(Ok(after)) => {
                case.check_surroundings(&op, variant, &image, &after);
                judge(variant, &case.written(&op, &after));
                ran_one(variant, case, &op);
                ran = true;
            }
            Some(Err(e))
                if e.kind() == Kind::Argument && e.to_string().contains("cannot run this") => {}
            Some(Err(e)) => panic!("{variant}: {e}: {op}"),
        }
    }
    assert!(ran, "no WGSL variant runs {op}");
    // The variant that the backend chooses must run every case. With small windows it must give the
    // same bits, unless it refuses a matrix that cannot be split.
    let plain =
        Mode { compute: if mode == WIDE { Compute::F32 } else { Compute::BF16 }, windows: None };
    let chosen = |mode| {
        on(mode, |backend| {
            backend.force(vec![]).unwrap();
            let before = backend.dispatches();
            case.run_on(backend, op, "the chosen variant", &image)
                .map(|after| (after, backend.dispatches() - before))
        })
    };
    let (after, whole) = chosen(plain).unwrap_or_else(|e| panic!("{e}: {op}"));
    case.check_surroundings(&op, "the chosen variant", &image, &after);
    judge("the chosen variant", &case.written(&op, &after));
    // Windows of two thirds of the largest operand, so that it must be split.
    let largest =
        op.reads().iter().chain(&op.writes()).map(|t| t.bytes() as u64).max().unwrap_or(0);
    match chosen(Mode { windows: Some((largest / 3 * 2).max(SMALL)), ..plain }) {
        Ok((cut, dispatches)) => {
            assert!(cut == after, "small windows change the result: {op}");
            if dispatches > whole {
                CUT.with_borrow_mut(|cut| cut.insert(op.name()));
            }
        }
        Err(e) if e.kind() == Kind::Memory && e.to_string().contains("no shader for this") => {
            // A matrix that cannot be split because several rows must be in one window.
            let weight =
                op.weights().iter().map(|w| 4 * (w.rows * w.cols) as u64).max().unwrap_or(0);
            assert!(largest > SMALL || weight > SMALL / 2, "{e}: {op}");
        }
        Err(e) => panic!("small windows: {e}: {op}"),
    }
}

/// The index in `FORMATS` of the stored type of `op`'s weights, if it is a block format.
fn format(case: &Case, op: &Op) -> Option<usize> {
    let Op::Linear(Linear { w, .. }) = op else { return None };
    let dtype = case.weights[w.id as usize].parts[0].dtype;
    FORMATS.iter().position(|f| f.dtype == dtype)
}

/// Whether `variant` runs on the format of `op`. Tiles differ in how they use elements, not in how
/// they decode them, and compiling them takes long. So each format runs one of the tiles and one of
/// the variants for few rows, with one type of activations.
fn in_turn(case: &Case, op: &Op, mode: Mode, variant: &str) -> bool {
    let Some(format) = format(case, op) else { return true };
    let tiles: &[&str] = match mode == WIDE {
        true => &["128x128", "64x64", "32x64"],
        false => &["f16_128x128", "f16_64x64", "128x128", "64x64", "32x64"],
    };
    let few = ["rows16", "rows16_subgroup"];
    let turn =
        |of: &[&str], kind: &str| of.contains(&kind).then(|| of[format / 2 % of.len()] == kind);
    let kind = variant.strip_prefix("linear_blocks_").unwrap_or(variant);
    turn(tiles, kind).or(turn(&few, kind)).unwrap_or(true)
}

/// Whether `op` runs in F32 (`true`) or in the GPU's narrow type (`false`); `None`: in both.
fn wide_turn(case: &Case, op: &Op) -> Option<bool> {
    format(case, op).map(|f| f % 2 == 0)
}

fn ran_one(variant: &'static str, case: &Case, op: &Op) {
    RAN.with_borrow_mut(|ran| ran.insert(variant.to_string()));
    if let Op::Linear(Linear { w, .. }) = op {
        let parts = &case.weights[w.id as usize].parts;
        RAN_ON.with_borrow_mut(|ran| ran.extend(parts.iter().map(|p| (variant, p.dtype.name()))));
    }
}

/// Whether a variant of `linear` is for the weights of `blocks`.
fn of_blocks(variant: &str) -> bool {
    variant.starts_with("linear_blocks_") || variant.starts_with("linear_i8_")
}

/// Whether a variant of `linear` is for the weights of `int8`.
fn of_integers(variant: &str) -> bool {
    variant.starts_with("linear_int8_")
}

/// Checks that every WGSL variant of `op` has run in this test, except the variants for blocks and
/// for integers: without this check, variants that refuse every case would pass.
#[track_caller]
pub fn all_ran(op: &str) {
    let all = names(op).expect("every operation has WGSL variants");
    let here = |n: &&str| !of_blocks(n) && !of_integers(n);
    ran(op, all.into_iter().map(|(n, _)| n).filter(here).collect());
}

/// Checks that every WGSL variant of `linear` for integers has run.
#[track_caller]
pub fn all_ran_in_int8() {
    let all = names("linear").unwrap().into_iter().map(|(n, _)| n);
    ran("linear", all.filter(|n| of_integers(n)).collect());
}

/// Checks that every WGSL variant of `linear` for blocks and I8 has run, and one of each kind on
/// every format.
#[track_caller]
pub fn all_ran_on_blocks() {
    let all = || names("linear").unwrap().into_iter().map(|(n, _)| n);
    ran("linear", all().filter(|n| of_blocks(n)).collect());
    for (format, kind) in
        FORMATS.iter().flat_map(|f| ["x", "rows16", "software", "any"].map(|kind| (f.name, kind)))
    {
        let of_kind = |n: &str| {
            n == "linear_any" && kind == "any"
                || n.starts_with("linear_blocks_") && n.contains(kind)
        };
        let done = RAN_ON.with_borrow(|ran| ran.iter().any(|(n, on)| of_kind(n) && *on == format));
        assert!(adapter::get().is_none() || done, "no variant of the kind {kind} ran on {format}");
    }
}

#[track_caller]
fn ran(op: &str, all: Vec<&'static str>) {
    if adapter::get().is_none() {
        return;
    }
    let missing: Vec<&str> =
        all.into_iter().filter(|n| !RAN.with_borrow(|ran| ran.contains(*n))).collect();
    assert!(missing.is_empty(), "never ran: {missing:?}");
    // The cases of these operations are smaller than any window.
    let small = ["timestep_embed", "pack", "unpack", "euler_step", "copy_rows"];
    assert!(small.contains(&op) || CUT.with_borrow(|cut| cut.contains(op)), "{op} was never split");
}
