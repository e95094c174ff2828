//! The WGSL variants on the same cases, on the first adapter of this machine (Mesa's lavapipe will do): in F32 and in BF16, whole, and with windows so small that
//! operands are cut.
//!
//! Without an adapter they are skipped, aloud; with `FLUX_FAST_TEST_WGPU=1` that is a failure.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use flux_fast::backend::wgpu::{WgpuBackend, WgpuOptions, names};
use flux_fast::backend::{Compute, KernelChoice};
use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::error::{Error, Kind};
use flux_fast::op::{Linear, Op};
use flux_fast::tensor::Tensor;

use crate::case::{Case, compare};
use crate::common::adapter;
use crate::gpu::{GAP, exact, known, out_types, over, typed, with_nan};

thread_local! {
    /// Variants that ran in this test, and those that this machine cannot run, said aloud.
    static RAN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    /// The same, with the type that weights were stored in.
    static RAN_ON: RefCell<BTreeSet<(&'static str, &'static str)>> = const { RefCell::new(BTreeSet::new()) };
    /// Operations whose operands were cut where windows are small.
    static CUT: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

/// How the adapter is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    compute: Compute,
    /// Windows of this many bytes at most.
    windows: Option<u64>,
}

const WIDE: Mode = Mode { compute: Compute::F32, windows: None };
const NARROW: Mode = Mode { compute: Compute::BF16, windows: None };
const HALF: Mode = Mode { compute: Compute::F16, windows: None };
/// Windows of this many bytes at least, where they are small.
const SMALL: u64 = 8 << 10;

/// Operations of a submission at most, where dispatches are cut: a few workgroups of most cases.
const MOST_WORK: u64 = 100_000;

/// Opened once: shaders are compiled when they are first used, which takes longer than most cases.
static BACKEND: Mutex<Option<WgpuBackend>> = Mutex::new(None);

fn on<T>(mode: Mode, f: impl FnOnce(&mut WgpuBackend) -> T) -> T {
    let mut backend = BACKEND.lock().unwrap_or_else(PoisonError::into_inner);
    let open = || {
        WgpuBackend::new(WgpuOptions { staging_bytes: Some(1 << 20), ..WgpuOptions::default() })
            .unwrap()
    };
    let backend = backend.get_or_insert_with(open);
    // Where windows are small, dispatches are, too.
    let most_work = if mode.windows.is_some() { MOST_WORK } else { u64::MAX };
    backend.pretend(mode.compute, mode.windows.unwrap_or(u64::MAX), most_work);
    f(backend)
}

/// Runs every WGSL variant of `op` that accepts it, and the one that is chosen, against the reference.
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
        () if half && written => 2e-3,
        () if half => 1e-2,
        // Convolution kernels become BF16 where activations are.
        () if wide || (written && !matches!(op, Op::Conv2d(_))) => 1e-5,
        () => 4e-3, // rounded once
    }
}

/// Runs every WGSL variant of `op` that accepts it, in F32, for what cannot be judged by an error against the reference.
#[track_caller]
pub fn judge(case: &Case, op: Op, judge: &mut dyn FnMut(&str, &[f32])) {
    if adapter::get().is_some() {
        run_all(WIDE, case, op, judge);
    }
}

/// What comes of an operation that must be refused.
pub fn refused(case: &Case, op: Op) -> Option<Error> {
    adapter::get()?;
    let image = case.image_between(GAP);
    on(WIDE, |backend| {
        backend.force(vec![]).unwrap();
        Some(
            case.run_on(backend, op, "the chosen variant", &image)
                .expect_err("it is to be refused"),
        )
    })
}

/// A NaN in the middle of `tensor` shows in the output of every WGSL variant.
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
            assert!(found.iter().any(|x| x.is_nan()), "{variant}: swallowed a NaN: {op}");
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
    // What is chosen where nothing is forced must run, whatever the case; with small windows it must give the same bits, unless a matrix is refused that
    // cannot be cut.
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
    // Two thirds of the largest operand: it must be cut.
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
            // A matrix that cannot be cut, a few of whose rows must be seen together.
            let weight =
                op.weights().iter().map(|w| 4 * (w.rows * w.cols) as u64).max().unwrap_or(0);
            assert!(largest > SMALL || weight > SMALL / 2, "{e}: {op}");
        }
        Err(e) => panic!("small windows: {e}: {op}"),
    }
}

/// Which of `FORMATS` the weights of `op` are stored in, where that is one of them.
fn format(case: &Case, op: &Op) -> Option<usize> {
    let Op::Linear(Linear { w, .. }) = op else { return None };
    let dtype = case.weights[w.id as usize].parts[0].dtype;
    FORMATS.iter().position(|f| f.dtype == dtype)
}

/// Tiles differ in what they do with elements, not in how these are made, and compiling takes long: of the tiles and of the variants for few rows every
/// format takes its turn, and runs in one type of activations.
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

/// Whether `op` runs in F32; in what GPUs compute in otherwise.
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

/// Whether a variant of `linear` takes what tests/ops/blocks.rs has.
fn of_blocks(variant: &str) -> bool {
    variant.starts_with("linear_blocks_") || variant.starts_with("linear_i8_")
}

/// Every WGSL variant of `op` has run in this test: a table whose entries refuse everything would pass otherwise. Those for blocks have tests of their own.
#[track_caller]
pub fn all_ran(op: &str) {
    let all = names(op).expect("every operation has WGSL variants");
    ran(op, all.into_iter().map(|(n, _)| n).filter(|n| !of_blocks(n)).collect());
}

/// Every WGSL variant of `linear` for blocks and I8 has run, and on every format one of each kind.
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
    // The cases of these are smaller than any window.
    let small = ["timestep_embed", "pack", "unpack", "euler_step", "copy_rows"];
    assert!(small.contains(&op) || CUT.with_borrow(|cut| cut.contains(op)), "{op} was never cut");
}
