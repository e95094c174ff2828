//! The variants of every operation, best first, and the choice among them.
//!
//! The choice depends on the processor, the requested arithmetic and the variants that the user
//! forces, never on free memory or sizes.

use super::isa::Isa;
use super::linear;
use super::simd::Lanes;
use crate::backend::{Compute, KernelChoice};
use crate::error::{Error, Result};
use crate::op::for_operations;
use crate::tensor::DTypes;

/// How a variant computes its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// The plain loops of `reference`.
    Reference,
    /// Rows in parallel, plain Rust within a row.
    Plain,
    /// Rows in parallel, f32 vectors.
    Simd(Lanes),
    /// Like `Simd(Avx512)`, with products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Bf16,
}

/// One way to run an operation other than a matrix product.
#[derive(Debug)]
pub(crate) struct Variant {
    /// `{op}_{arithmetic}_{instruction set}`, or `{op}_reference`.
    pub name: &'static str,
    pub needs: Isa,
    pub how: How,
}

/// The variants of one operation.
pub(crate) enum Kernels {
    /// A matrix product, whose variant depends on how the weight is stored.
    Product { op: &'static str, variants: &'static [linear::Variant], reference: &'static str },
    /// Any other operation. The last variant is the reference.
    Other { op: &'static str, variants: &'static [Variant] },
}

impl Kernels {
    /// Name of the operation.
    fn op(&self) -> &'static str {
        match self {
            Kernels::Product { op, .. } | Kernels::Other { op, .. } => op,
        }
    }
}

/// The [`Kernels`] of an operation other than a matrix product:
/// - `bf16`: f32 vectors, and products of pairs of bf16 where the processor has them
/// - `f32`: f32 vectors
/// - `plain`: plain Rust
/// - `only`: the reference alone
macro_rules! kernels {
    (bf16 $op:literal) => { kernels!(@list $op,
        #[cfg(target_arch = "x86_64")]
        ("_bf16_avx512bf16", Avx512Bf16, Bf16),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx512", Avx512, Simd($crate::backend::cpu::simd::Lanes::Avx512)),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx2", Avx2, Simd($crate::backend::cpu::simd::Lanes::Avx2)),
        ("_f32_portable", Portable, Simd($crate::backend::cpu::simd::Lanes::Portable)),
        ("_reference", Portable, Reference),
    ) };
    (f32 $op:literal) => { kernels!(@list $op,
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx512", Avx512, Simd($crate::backend::cpu::simd::Lanes::Avx512)),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx2", Avx2, Simd($crate::backend::cpu::simd::Lanes::Avx2)),
        ("_f32_portable", Portable, Simd($crate::backend::cpu::simd::Lanes::Portable)),
        ("_reference", Portable, Reference),
    ) };
    (plain $op:literal) => { kernels!(@list $op,
        ("_portable", Portable, Plain),
        ("_reference", Portable, Reference),
    ) };
    (only $op:literal) => { kernels!(@list $op, ("_reference", Portable, Reference),) };
    (@list $op:literal, $($(#[$cfg:meta])* ($suffix:literal, $isa:ident, $($how:tt)+),)*) => {
        $crate::backend::cpu::variants::Kernels::Other {
            op: $op,
            variants: &[$($(#[$cfg])* $crate::backend::cpu::variants::Variant {
                name: concat!($op, $suffix),
                needs: $crate::backend::cpu::isa::Isa::$isa,
                how: $crate::backend::cpu::variants::How::$($how)+,
            }),*],
        }
    };
}
pub(super) use kernels;

macro_rules! table {
    ($($operation:ident)*) => {
        /// The variants of every operation.
        const TABLE: &[Kernels] =
            &[$(<crate::op::$operation as super::step::CpuOperation>::KERNELS),*];
    };
}
for_operations!(table);

fn kernels_of(op: &str) -> Option<&'static Kernels> {
    TABLE.iter().find(|kernels| kernels.op() == op)
}

/// The chosen variant of a matrix product.
pub(crate) enum Product {
    Reference,
    Fast(&'static linear::Variant),
}

/// The chosen variants of all operations.
#[derive(Debug)]
pub(crate) struct Choice {
    isa: Isa,
    compute: Compute,
    forced: Vec<KernelChoice>,
}

impl Choice {
    /// Checks the names of forced variants.
    pub(crate) fn new(isa: Isa, compute: Compute, forced: Vec<KernelChoice>) -> Result<Choice> {
        for KernelChoice { op, name } in &forced {
            let variants = names(op).ok_or_else(|| {
                Error::argument("a kernel was chosen for an unknown operation")
                    .found(op)
                    .expected(format!("one of {}", ops().collect::<Vec<_>>().join(", ")))
            })?;
            let known = || variants.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            let (_, needs) = variants.iter().find(|(n, _)| n == name).ok_or_else(|| {
                Error::argument(format!("{op} has no such kernel"))
                    .found(name)
                    .expected(format!("one of {}", known()))
            })?;
            if *needs > isa {
                return Err(Error::argument(format!(
                    "{name} needs instructions that are not available"
                ))
                .found(isa.name())
                .expected(needs.name())
                .try_(format!("one of {} that the processor can run", known())));
            }
        }
        Ok(Choice { isa, compute, forced })
    }

    fn forced(&self, op: &str) -> Option<&str> {
        KernelChoice::find(&self.forced, op)
    }

    /// The variant of an operation other than a matrix product.
    pub(crate) fn of(&self, op: &str) -> &'static Variant {
        let Some(Kernels::Other { variants, .. }) = kernels_of(op) else {
            panic!("{op} is a matrix product or unknown")
        };
        let forced = self.forced(op);
        let suits = |v: &&Variant| match forced {
            Some(name) => v.name == name,
            None => v.needs <= self.isa && !(is_bf16(v.how) && self.compute == Compute::F32),
        };
        variants
            .iter()
            .find(suits)
            .expect("the reference suits every processor, and forced names were checked")
    }

    /// The variant of `linear` or `conv2d` for a weight stored as `stored`.
    pub(crate) fn product(&self, op: &str, stored: DTypes) -> Product {
        let Some(Kernels::Product { variants, reference, .. }) = kernels_of(op) else {
            panic!("{op} is not a matrix product")
        };
        match self.forced(op) {
            Some(name) if name == *reference => Product::Reference,
            forced => linear::choose(variants, self.isa, stored, self.compute, forced)
                .map_or(Product::Reference, Product::Fast),
        }
    }
}

fn is_bf16(how: How) -> bool {
    #[cfg(target_arch = "x86_64")]
    return how == How::Bf16;
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// All operations that have variants.
pub fn ops() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(Kernels::op)
}

/// The variants of `op`, best first, each with the instruction set that it needs. `None` if there
/// is no such operation.
pub fn names(op: &str) -> Option<Vec<(&'static str, Isa)>> {
    Some(match kernels_of(op)? {
        Kernels::Product { variants, reference, .. } => {
            let fast = variants.iter().map(|v| (v.name, v.needs));
            fast.chain([(*reference, Isa::Portable)]).collect()
        }
        Kernels::Other { variants, .. } => variants.iter().map(|v| (v.name, v.needs)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn forced(op: &str, name: &str) -> Vec<KernelChoice> {
        vec![KernelChoice::new(op, name)]
    }

    #[test]
    fn every_name_starts_with_its_operation_and_the_reference_comes_last() {
        for op in ops() {
            let names = names(op).unwrap();
            assert!(names.iter().all(|(n, _)| n.starts_with(op)), "{op}: {names:?}");
            assert_eq!(names.last().unwrap(), &(format!("{op}_reference").as_str(), Isa::Portable));
        }
    }

    #[test]
    fn the_best_runnable_variant_wins_and_f32_excludes_bf16() {
        let pick = |isa, compute| Choice::new(isa, compute, vec![]).unwrap().of("attention").name;
        assert_eq!(pick(Isa::Portable, Compute::Auto), "attention_f32_portable");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(pick(Isa::Avx512Bf16, Compute::Auto), "attention_bf16_avx512bf16");
            assert_eq!(pick(Isa::Avx512Bf16, Compute::F32), "attention_f32_avx512");
            assert_eq!(pick(Isa::Avx2, Compute::Auto), "attention_f32_avx2");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let e = Choice::new(Isa::Portable, Compute::Auto, forced("atention", "x")).unwrap_err();
        assert_eq!(e.kind(), Kind::Argument);
        assert!(e.to_string().contains("layer_norm_modulate"), "{e}");
        let e = Choice::new(Isa::Portable, Compute::Auto, forced("silu", "silu_f64")).unwrap_err();
        assert!(e.to_string().contains("silu_reference"), "{e}");
        let e =
            Choice::new(Isa::Portable, Compute::Auto, forced("linear", "linear_int3")).unwrap_err();
        assert!(e.to_string().contains("linear_f32_portable"), "{e}");
        if cfg!(target_arch = "x86_64") {
            let e = Choice::new(Isa::Avx2, Compute::Auto, forced("silu", "silu_f32_avx512"))
                .unwrap_err();
            assert!(e.to_string().contains("avx512"), "{e}");
        }
        let choice =
            Choice::new(Isa::detect(), Compute::Auto, forced("silu", "silu_reference")).unwrap();
        assert_eq!(choice.of("silu").how, How::Reference);
    }
}
