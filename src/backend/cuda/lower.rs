//! CUDA as the shared lowering sees it, and how a `linear` becomes matrix products.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Cuda, Launch, Side, Variant};
use super::linear::{self, LINEAR};
use super::linear_fp8::{self, LINEAR_FP8};
use super::linear_hopper::{self, LINEAR_HOPPER};
use super::linear_int8::{self, LINEAR_INT8};
use crate::backend::form::Segment;
use crate::backend::gpu::{GpuApi, GpuBackend, Lowering, Matrix, Product, variants};
use crate::error::{Error, Result};
use crate::op::{Linear, Locate, Use};

impl GpuApi for Cuda {
    type Place = u64;
    type Device = CudaDevice;
    type Needs = Arch;
    type Launch = Launch;
    type Side = Side;

    fn runs(device: &CudaDevice, arch: Arch) -> bool {
        device.runs(arch)
    }

    fn why_not(device: &CudaDevice, arch: Arch) -> String {
        let ((major, minor), driver) = (device.capability, device.driver);
        format!(
            "it needs {arch}, this is compute capability {major}.{minor}, CUDA {}.{}",
            driver / 1000,
            driver % 1000 / 10
        )
    }

    fn no_variant(op: &str, why: &str) -> Error {
        Error::device(format!("the GPU has no kernel for this {op}: {why}"))
    }
}

variants!(Cuda, Linear: LINEAR_INT8, LINEAR_HOPPER, LINEAR_FP8, LINEAR; choose);

/// The best of what each family offers: products of integers where the weight is one of them, else
/// the kernels for Hopper, FP8 products where they are asked for, then BF16.
fn choose(
    args: &Args<Linear>,
    device: &CudaDevice,
) -> Result<&'static Variant<Linear>, &'static str> {
    if args.int8.is_some() {
        return linear_int8::choose(args, device);
    }
    let special = [linear_hopper::choose(args, device), linear_fp8::choose(args, device)];
    match special.into_iter().flatten().find(|v| device.runs(v.needs)) {
        Some(variant) => Ok(variant),
        None => linear::choose(args, device),
    }
}

impl GpuBackend for Cuda {
    /// One product for each run of rows that have one element type, both in the weight and in the
    /// side branch.
    fn lower_linear(op: &Linear, to: &mut Lowering<Cuda>) -> Result<()> {
        let product = Product::new(op, to)?;
        let (form, place) = to.form(op.w, Use::Matrix)?;
        let side = match op.side {
            Some(side) => Some((to.tensor(side.t)?, to.form(side.b, Use::Matrix)?)),
            None => None,
        };
        let mut push = |segment: &Segment, rows: (usize, usize), side: Option<Side>| {
            let args = product.with(segment, place, rows, side);
            to.push_with_scratch::<Linear>(args, |args, scratch| args.scratch = Some(scratch))
        };
        for s in &form.segments {
            let Some((t, (sides, at))) = &side else {
                push(s, (s.first, s.rows), None)?;
                continue;
            };
            for b in &sides.segments {
                let (first, end) = (s.first.max(b.first), (s.first + s.rows).min(b.first + b.rows));
                if first < end {
                    let rows = Matrix::of_segment(b, *at).band(first - b.first, end - first);
                    push(s, (first, end - first), Some(Side { t: *t, b: rows }))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KernelChoice;
    use crate::backend::gpu::{Choice, names, operations};
    use crate::error::Kind;

    fn device(capability: (u32, u32), driver: i32) -> CudaDevice {
        CudaDevice {
            capability,
            processors: 28,
            shared_bytes: 101_376,
            l2_bytes: 3 << 20,
            driver,
            fp8: false,
            int8: false,
        }
    }

    #[test]
    fn names_begin_with_their_operation_and_end_with_their_arch() {
        for op in operations() {
            let names = names::<Cuda>(op).unwrap();
            assert!(
                names.iter().all(|(n, _)| n.starts_with(&format!("{op}_")) && n.contains("_sm")),
                "{names:?}"
            );
            let mut unique: Vec<_> = names.iter().map(|(n, _)| n).collect();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), names.len(), "{names:?}");
            // The last one runs everywhere.
            assert_eq!(names.last().unwrap().1, Arch::From(8, 0));
        }
    }

    #[test]
    fn wrong_names_and_other_gpus_are_refused_with_what_there_is() {
        let forced = |op: &str, name: &str| vec![KernelChoice::new(op, name)];
        let refuse = |f| Choice::<Cuda>::new(device((8, 6), 12040), f).unwrap_err();
        assert!(refuse(forced("linaer", "x")).to_string().contains("layer_norm_modulate"));
        assert!(refuse(forced("silu", "silu_f64")).to_string().contains("silu_any_sm80"));
        assert_eq!(refuse(forced("silu", "silu_f64")).kind(), Kind::Argument);
        assert!(
            Choice::<Cuda>::new(device((8, 6), 12040), forced("silu", "silu_any_sm80")).is_ok()
        );
    }

    #[test]
    fn an_old_driver_reads_only_old_ptx() {
        let of = |driver| device((9, 0), driver);
        assert!(
            of(11080).runs(Arch::From(8, 0))
                && !of(13000).runs(Arch::From(8, 9))
                && !of(11080).runs(Arch::From(8, 9))
                && !of(12000).runs(Arch::Only(9, 0))
        );
        assert!(of(12040).runs(Arch::Only(9, 0)));
        let ada = device((8, 9), 13000);
        assert!(ada.runs(Arch::From(8, 9)) && !ada.runs(Arch::Only(9, 0)));
    }
}
