//! The variants of one operation, best first, and the choice among them.
//!
//! The choice depends on the processor, the requested arithmetic and the variants that the user
//! forces, never on free memory or sizes.

use super::isa::Isa;
use super::product;
use super::simd::Lanes;
use crate::backend::Compute;
use crate::backend::forced::Forced;
use crate::tensor::DTypes;

/// How a variant computes its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// The plain loops of the module `reference`.
    Reference,
    /// Rows in parallel, plain Rust within a row.
    Plain,
    /// Rows in parallel, f32 vectors.
    Simd(Lanes),
    /// Like `Simd(Avx512)`, with products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Bf16,
    /// Like `Bf16`, with products of tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
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
#[derive(Clone, Copy)]
pub(crate) enum Kernels {
    /// A matrix product, whose variant depends on how the weight is stored.
    Product { op: &'static str, variants: &'static [product::Variant], reference: &'static str },
    /// Any other operation. The last variant is the reference.
    Other { op: &'static str, variants: &'static [Variant] },
}

impl Kernels {
    /// Name of the operation.
    pub(super) fn op(&self) -> &'static str {
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
        ("_bf16_amx", Amx, Amx),
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
        $crate::backend::cpu::kernels::Kernels::Other {
            op: $op,
            variants: &[$($(#[$cfg])* $crate::backend::cpu::kernels::Variant {
                name: concat!($op, $suffix),
                needs: $crate::backend::cpu::isa::Isa::$isa,
                how: $crate::backend::cpu::kernels::How::$($how)+,
            }),*],
        }
    };
}
pub(super) use kernels;

/// The chosen variant of a matrix product.
pub(crate) enum Product {
    Reference,
    Fast(&'static product::Variant),
}

/// The chosen variants of all operations.
#[derive(Debug)]
pub(crate) struct Choice {
    pub isa: Isa,
    pub compute: Compute,
    pub forced: Forced,
}

impl Choice {
    /// The variant of an operation other than a matrix product.
    ///
    /// # Panics
    /// For a matrix product.
    pub(crate) fn of(&self, kernels: &Kernels) -> &'static Variant {
        let &Kernels::Other { op, variants } = kernels else {
            panic!("{} is a matrix product", kernels.op())
        };
        let forced = self.forced.of(op);
        let suits = |v: &&Variant| match forced {
            Some(name) => v.name == name,
            None => v.needs <= self.isa && !(is_bf16(v.how) && self.compute == Compute::F32),
        };
        variants
            .iter()
            .find(suits)
            .expect("the reference suits every processor, and forced names were checked")
    }

    /// The variant of a matrix product for a weight stored as `stored`.
    ///
    /// # Panics
    /// For any other operation.
    pub(crate) fn product(&self, kernels: &Kernels, stored: DTypes) -> Product {
        let &Kernels::Product { op, variants, reference } = kernels else {
            panic!("{} is not a matrix product", kernels.op())
        };
        match self.forced.of(op) {
            Some(name) if name == reference => Product::Reference,
            forced => product::choose(variants, self.isa, stored, self.compute, forced)
                .map_or(Product::Reference, Product::Fast),
        }
    }
}

fn is_bf16(how: How) -> bool {
    #[cfg(target_arch = "x86_64")]
    return matches!(how, How::Bf16 | How::Amx);
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
