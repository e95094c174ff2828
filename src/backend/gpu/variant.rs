//! The ways in which a GPU can run an operation.

use std::fmt;

use super::matrix::{Location, Matrix};
use crate::error::Error;
use crate::op::Located;

/// A kind of GPU: the types in which its backend thinks. Implemented by empty types.
pub trait GpuApi: Copy + fmt::Debug + PartialEq + 'static {
    /// Where an operand begins.
    type Place: Location;
    /// What is known about the GPU in use; variants are chosen by it.
    type Device;
    /// The features that a variant needs.
    type Needs: Copy + 'static;
    /// One call of a kernel, as a plain value.
    type Launch: 'static;
    /// The form in which a `linear` takes the side branch of a LoRA.
    type Side: Copy + fmt::Debug + PartialEq + 'static;

    /// Whether `device` can run variants with `needs`.
    fn runs(device: &Self::Device, needs: Self::Needs) -> bool;

    /// Why `device` cannot run variants with `needs`.
    fn why_not(device: &Self::Device, needs: Self::Needs) -> String;

    /// The error that no variant of `op` can run the operands at hand.
    fn no_variant(op: &str, why: &str) -> Error;
}

/// An operation that GPUs run.
pub trait Arguments: Copy + 'static {
    /// As [`Op::name`](crate::op::Op::name).
    const NAME: &'static str;
    /// The operation with its operands in device memory: what a variant is asked to run.
    type Args<G: GpuApi>: Copy;
}

impl<O: Located> Arguments for O {
    const NAME: &'static str = <O as Located>::NAME;
    type Args<G: GpuApi> = O::On<Matrix<G::Place>>;
}

/// A [`GpuApi`] that can run the operation `O`.
pub trait Runs<O: Arguments>: GpuApi {
    /// All variants of the operation, best first. The last one of the last table runs on every
    /// supported GPU.
    fn tables() -> Vec<&'static [Variant<Self, O>]>;

    /// The variant that is expected to be the fastest for `args`, or why there is none. A function
    /// of shapes, types, alignment and the device, never of free memory.
    fn choose(
        args: &O::Args<Self>,
        device: &Self::Device,
    ) -> Result<&'static Variant<Self, O>, &'static str> {
        first(Self::tables().into_iter().flatten(), args, device)
    }
}

/// One way to run the operation `O` on the GPU `G`.
#[allow(clippy::type_complexity, reason = "functions of the arguments, used in tables")]
pub struct Variant<G: GpuApi, O: Arguments> {
    /// `{op}_{types}_{what is special}`, as `--kernel OP=NAME` takes it.
    pub name: &'static str,
    pub needs: G::Needs,
    /// Why the variant cannot run these operands, if it cannot: never because of speed or of free
    /// memory.
    pub accepts: fn(&O::Args<G>, &G::Device) -> Result<(), &'static str>,
    /// Bytes of scratch memory.
    pub scratch: fn(&O::Args<G>, &G::Device) -> usize,
    /// The launches, in order.
    pub launches: fn(&O::Args<G>, &G::Device) -> Vec<G::Launch>,
}

impl<G: GpuApi, O: Arguments> Variant<G, O> {
    /// Whether `device` can run the variant and the variant can run `args`.
    pub fn fits(&self, args: &O::Args<G>, device: &G::Device) -> bool {
        G::runs(device, self.needs) && (self.accepts)(args, device).is_ok()
    }
}

impl<G: GpuApi, O: Arguments> fmt::Debug for Variant<G, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// The first of `variants` that runs on `device` and accepts `args`, or why the last of them does
/// not.
pub fn first<G: GpuApi, O: Arguments>(
    variants: impl IntoIterator<Item = &'static Variant<G, O>>,
    args: &O::Args<G>,
    device: &G::Device,
) -> Result<&'static Variant<G, O>, &'static str> {
    let mut why = "no variant is for this GPU";
    for variant in variants {
        if G::runs(device, variant.needs) {
            match (variant.accepts)(args, device) {
                Ok(()) => return Ok(variant),
                Err(reason) => why = reason,
            }
        }
    }
    Err(why)
}

/// Lists the tables of an operation's variants on a GPU, best first, and after a semicolon the
/// function that chooses among them, unless the first that fits is chosen:
/// `variants!(Cuda, Silu: SILU);`
macro_rules! variants {
    ($gpu:ty, $op:ty: $($table:expr),+ $(; $choose:expr)?) => {
        impl $crate::backend::gpu::Runs<$op> for $gpu {
            fn tables() -> Vec<&'static [$crate::backend::gpu::Variant<$gpu, $op>]> {
                vec![$($table),+]
            }

            $(fn choose(
                args: &<$op as $crate::backend::gpu::Arguments>::Args<$gpu>,
                device: &<$gpu as $crate::backend::gpu::GpuApi>::Device,
            ) -> Result<&'static $crate::backend::gpu::Variant<$gpu, $op>, &'static str> {
                $choose(args, device)
            })?
        }
    };
}
pub(in crate::backend) use variants;
