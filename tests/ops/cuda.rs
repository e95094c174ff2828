//! The CUDA variants on the same cases: tensors are BF16 where they are BF16 in the models, and
//! expected values come from the CPU's reference on the rounded inputs.
//!
//! Kernels run on the PTX machine, which also reports races and out-of-bounds or uninitialised
//! accesses. With `FLUX_FAST_TEST_GPU=1` they run on the first GPU.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flux_fast::backend::cuda::Arch;
use flux_fast::backend::cuda::{CudaBackend, CudaOptions, names};
use flux_fast::backend::{Backend, Compute, KernelChoice};
use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::op::Op;
use flux_fast::tensor::{Tensor, Weight};

use crate::case::{Case, compare};
use crate::common::driver::{self, Driver};
use crate::gpu::{GAP, exact, known, out_types, over, typed, with_nan};

thread_local! {
    /// How the fake driver's tensor cores add in this test.
    static SUMS: Cell<&str> = const { Cell::new("nearest") };

    /// Variants that ran in this test, and those that were skipped with a message because this
    /// machine cannot run them.
    static RAN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// One backend for each kind of GPU, opened once: loading the kernels takes longer than most cases.
static BACKENDS: Mutex<Vec<(usize, CudaBackend)>> = Mutex::new(Vec::new());

/// Runs `f` with the backend of GPU `ordinal`, with no other user of the driver at the same time.
fn on<T>(driver: &Driver, ordinal: usize, f: impl FnOnce(&mut CudaBackend) -> T) -> T {
    let _turn = driver::take_turn();
    let mut backends: MutexGuard<_> = BACKENDS.lock().unwrap_or_else(PoisonError::into_inner);
    let at = backends.iter().position(|(o, _)| *o == ordinal).unwrap_or_else(|| {
        // Few multiprocessors, so that small cases already give each block several tiles.
        driver.configure("sms.1=4,sms.2=2");
        let compute = if fp8(driver, ordinal) { Compute::Fp8 } else { Compute::Auto };
        let backend =
            CudaBackend::new(CudaOptions { ordinal, compute, ..CudaOptions::default() }).unwrap();
        backends.push((ordinal, backend));
        backends.len() - 1
    });
    driver.configure(&format!("sums={}", SUMS.get()));
    f(&mut backends[at].1)
}

/// Calls `work`, whose kernels add as the tensor cores of each GPU do, not exactly but for each
/// rounding. (A real GPU does so anyway.)
pub fn with_hardware_sums(work: impl FnOnce()) {
    SUMS.set("hardware");
    work();
    SUMS.set("nearest");
}

/// Whether GPU `ordinal` multiplies FP8.
fn fp8(driver: &Driver, ordinal: usize) -> bool {
    match driver {
        Driver::Real { capability } => *capability >= (8, 9),
        Driver::Fake(_) => ordinal != driver::RTX_3060,
    }
}

/// The GPU on which variants for `arch` run; `None` if the real GPU cannot run them.
fn gpu_for(driver: &Driver, arch: Arch) -> Option<usize> {
    match driver {
        // The FP8 kernels for Ada are not meant for Hopper and data-centre Blackwell GPUs.
        Driver::Real { capability: (9..=11, _) } if arch == Arch::From(8, 9) => None,
        Driver::Real { capability } => arch.runs_on(*capability).then_some(0),
        Driver::Fake(_) => Some(match arch {
            Arch::From(8, 0) => driver::RTX_3060,
            Arch::From(..) => driver::RTX_4060,
            Arch::Only(..) => driver::H100,
        }),
    }
}

/// Runs every CUDA variant that accepts `op`, and the variant that the backend chooses, against the
/// reference.
#[track_caller]
pub fn check(case: &Case, op: Op, left_alone: usize) {
    let Some(driver) = driver::get() else { return };
    for &f32_out in out_types(&op) {
        let (narrow, wide) = typed(case, &op, f32_out);
        let typed_op = over(op, &narrow);
        if !known(&typed_op) {
            continue;
        }
        let reference = format!("{}_reference", op.name());
        let expected = wide.written(&op, &wide.run(op, &reference, 1, &wide.image()).unwrap());
        assert_eq!(expected.iter().filter(|x| x.is_nan()).count(), left_alone);
        run_all(driver, &narrow, typed_op, &mut |variant, found| {
            compare(&typed_op, variant, found, &expected, bound(&typed_op, variant));
        });
    }
}

/// Checks that every CUDA variant that accepts `op`, which writes F32, gives exactly `expected`.
#[track_caller]
pub fn check_bits(case: &Case, op: Op, expected: &[f32]) {
    let Some(driver) = driver::get() else { return };
    let (narrow, _) = typed(case, &op, true);
    run_all(driver, &narrow, over(op, &narrow), &mut |variant, found| {
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!(
                f.to_bits() == e.to_bits() || *f == *e,
                "{variant}: element {i}: {f:e} for {e:e}: {op}",
            );
        }
    });
}

/// The bits that the CUDA variants that accept `op` write in F32, in the order of the table. Empty
/// without the fake driver, whose sums `with_hardware_sums` changes.
#[track_caller]
pub fn bits(case: &Case, op: Op) -> Vec<u32> {
    let fake = driver::get().filter(|driver| matches!(driver, Driver::Fake(_)));
    let Some(driver) = fake else { return Vec::new() };
    let (narrow, _) = typed(case, &op, true);
    let mut all = Vec::new();
    run_all(driver, &narrow, over(op, &narrow), &mut |_, found| {
        all.extend(found.iter().map(|x| x.to_bits()));
    });
    all
}

fn bound(op: &Op, variant: &str) -> f64 {
    let wide = op.writes().iter().all(|t| t.dtype == DType::F32);
    let products = matches!(op, Op::Linear(_) | Op::Conv2d(_) | Op::Attention(_));
    match (exact(op), variant.contains("_w8a8_"), wide && !products) {
        (true, ..) => 0.0,
        // The integers are those of the reference, so only the epilogue differs.
        _ if of_integers(variant) && wide => 1e-5,
        // Scores are products of integers; `int8_attention` has the tight bounds.
        _ if variant.contains("attention_d128_int8_") => 5e-2,
        // Both operands have three bits of mantissa.
        (_, true, _) => 6e-2,
        (_, _, true) => 1e-5,
        _ => 1e-2,
    }
}

/// Checks that a NaN in the middle of `tensor` reaches the output of every CUDA variant.
#[track_caller]
pub fn check_nan(case: &Case, op: Op, tensor: Tensor) {
    let Some(driver) = driver::get() else { return };
    let (narrow, typed_op) = with_nan(case, op, tensor);
    run_all(driver, &narrow, typed_op, &mut |variant, found| {
        assert!(found.iter().any(|x| x.is_nan()), "{variant}: lost a NaN: {op}");
    });
}

/// The elements that `op` writes in BF16, and its scratch memory, after `variant` ran; checks the
/// surroundings and, with the PTX machine, every access. `None` without a driver.
#[track_caller]
pub fn run_one(case: &Case, op: Op, variant: &str) -> Option<(Vec<f32>, Vec<u8>)> {
    let driver = driver::get()?;
    let (narrow, _) = typed(case, &op, false);
    let op = over(op, &narrow);
    let image = narrow.image_between(GAP);
    on(driver, 0, |backend| {
        backend.force(vec![KernelChoice::new(op.name(), variant)]).unwrap();
        let after = narrow.run_on(backend, op, variant, &image).unwrap();
        driver.check_findings(&format!("{variant}: {op}"));
        narrow.check_surroundings(&op, variant, &image, &after);
        let weight = |w: Weight| &narrow.weights[w.id as usize];
        let mut scratch = vec![0; backend.scratch_bytes(&op, &weight)];
        backend.read(image.len(), &mut scratch).unwrap();
        Some((narrow.written(&op, &after), scratch))
    })
}

/// Checks that `variant` cannot run `op`.
#[track_caller]
pub fn check_refused(case: &Case, op: Op, variant: &str) {
    let Some(driver) = driver::get() else { return };
    let (narrow, _) = typed(case, &op, false);
    let op = over(op, &narrow);
    let answer = on(driver, 0, |backend| {
        backend.force(vec![KernelChoice::new(op.name(), variant)]).unwrap();
        narrow.run_on(backend, op, variant, &narrow.image_between(GAP))
    });
    let why = answer.expect_err("the variant ran");
    assert!(why.kind() == Kind::Argument && why.to_string().contains("cannot run this"), "{why}");
}

#[track_caller]
fn run_all(driver: &Driver, case: &Case, op: Op, judge: &mut dyn FnMut(&str, &[f32])) {
    let image = case.image_between(GAP);
    let mut ran = false;
    for (variant, arch) in names(op.name()).expect("every operation has CUDA variants") {
        let Some(ordinal) = gpu_for(driver, arch) else { continue };
        let answer = on(driver, ordinal, |backend| {
            if let Err(e) = backend.force(vec![KernelChoice::new(op.name(), variant)]) {
                // The GPU could run it, but the driver is too old.
                assert!(matches!(driver, Driver::Real { .. }), "{e}");
                eprintln!("SKIPPED {variant}: {e}");
                RAN.with_borrow_mut(|ran| ran.insert(variant.to_string()));
                return None;
            }
            let answer = case.run_on(backend, op, variant, &image);
            driver.check_findings(&format!("{variant}: {op}"));
            Some(answer)
        });
        let Some(answer) = answer else { continue };
        match answer {
            Ok(after) => {
                case.check_surroundings(&op, variant, &image, &after);
                judge(variant, &case.written(&op, &after));
                RAN.with_borrow_mut(|ran| ran.insert(variant.to_string()));
                ran = true;
            }
            Err(e) if e.kind() == Kind::Argument && e.to_string().contains("cannot run this") => {}
            Err(e) => panic!("{variant}: {e}: {op}"),
        }
    }
    assert!(ran, "no CUDA variant runs {op}");
    // The variant that the backend chooses must run every case.
    let ordinals: &[usize] = match driver {
        Driver::Real { .. } => &[0],
        Driver::Fake(_) => &[driver::RTX_3060, driver::RTX_4060, driver::H100],
    };
    for &ordinal in ordinals {
        let (chosen, kernels) = on(driver, ordinal, |backend| {
            backend.force(vec![]).unwrap();
            let chosen = case.run_on(backend, op, "the chosen variant", &image);
            (chosen, driver.check_findings(&format!("the chosen variant: {op}")))
        });
        // A real driver does not report which kernels ran.
        let guess = matches!(driver, Driver::Real { .. })
            && fp8(driver, ordinal)
            && matches!(op, Op::Linear(_));
        let kernels =
            if guess { "perhaps one with _w8a8_".to_string() } else { kernels.join(", ") };
        let variant = format!("the chosen variant ({kernels})");
        let after = chosen.unwrap_or_else(|e| panic!("{variant}: {e}: {op}"));
        case.check_surroundings(&op, &variant, &image, &after);
        judge(&variant, &case.written(&op, &after));
    }
}

/// Whether a variant of `linear`, or the chosen variant with its kernels, computes in integers.
fn of_integers(variant: &str) -> bool {
    variant.contains("linear_int8_")
}

/// Checks that every CUDA variant of `op` has run in this test, except those in integers: without
/// this check, variants that refuse every case would pass.
#[track_caller]
pub fn all_ran(op: &str) {
    ran(op, &|name| !of_integers(name));
}

/// Checks that every CUDA variant of `linear` in integers has run in this test.
#[track_caller]
pub fn all_ran_in_int8() {
    ran("linear", &of_integers);
}

#[track_caller]
fn ran(op: &str, wanted: &dyn Fn(&str) -> bool) {
    let Some(driver) = driver::get() else { return };
    let missing: Vec<&str> = names(op)
        .expect("every operation has CUDA variants")
        .into_iter()
        .filter(|(name, arch)| {
            wanted(name)
                && gpu_for(driver, *arch).is_some()
                && !RAN.with_borrow(|ran| ran.contains(*name))
        })
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "never ran: {missing:?}");
}
