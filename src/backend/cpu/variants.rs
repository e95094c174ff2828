//! The variants of every operation, best first, and the choice among them.
//!
//! The choice depends on the processor, the requested arithmetic and the variants that the user
//! forces, never on free memory or sizes.

use super::isa::Isa;
use super::linear;
use super::simd::Lanes;
use crate::backend::{Compute, KernelChoice};
use crate::error::{Error, Result};
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

macro_rules! table {
    ($($op:literal $kind:ident;)*) => {
        const TABLE: &[(&str, &[Variant])] = &[$(($op, table!(@$kind $op))),*];
    };
    (@bf16 $op:literal) => { table!(@list $op,
        #[cfg(target_arch = "x86_64")]
        ("_bf16_avx512bf16", Avx512Bf16, How::Bf16),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx512", Avx512, How::Simd(Lanes::Avx512)),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx2", Avx2, How::Simd(Lanes::Avx2)),
        ("_f32_portable", Portable, How::Simd(Lanes::Portable)),
        ("_reference", Portable, How::Reference),
    ) };
    (@f32 $op:literal) => { table!(@list $op,
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx512", Avx512, How::Simd(Lanes::Avx512)),
        #[cfg(target_arch = "x86_64")]
        ("_f32_avx2", Avx2, How::Simd(Lanes::Avx2)),
        ("_f32_portable", Portable, How::Simd(Lanes::Portable)),
        ("_reference", Portable, How::Reference),
    ) };
    (@plain $op:literal) => { table!(@list $op,
        ("_portable", Portable, How::Plain),
        ("_reference", Portable, How::Reference),
    ) };
    (@only $op:literal) => { table!(@list $op, ("_reference", Portable, How::Reference),) };
    (@list $op:literal, $($(#[$cfg:meta])* ($suffix:literal, $isa:ident, $how:expr),)*) => {
        &[$($(#[$cfg])* Variant { name: concat!($op, $suffix), needs: Isa::$isa, how: $how }),*]
    };
}

// The time embedding has no fast variant: a whole generation computes only a few thousand elements.
table! {
    "attention" bf16;
    "layer_norm_modulate" f32;
    "layer_norm" f32;
    "rms_norm" f32;
    "qk_norm_rope" f32;
    "gelu_mul" f32;
    "silu" f32;
    "add" f32;
    "group_norm" f32;
    "embed" plain;
    "timestep_embed" only;
    "pack" plain;
    "unpack" plain;
    "euler_step" plain;
    "copy_rows" plain;
    "cast" plain;
}

/// The tables of the matrix products, which are in the files of their kernels, and the name of the
/// reference.
const PRODUCTS: &[(&str, &[linear::Variant], &str)] = &[
    ("linear", linear::LINEAR, "linear_reference"),
    ("conv2d", super::conv::CONV2D, "conv2d_reference"),
];

/// How a matrix product is computed.
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
                Error::argument("there is no such operation to choose a kernel for")
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
        let (_, variants) =
            TABLE.iter().find(|(o, _)| *o == op).expect("every operation is in the table");
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
        let (_, table, reference) =
            PRODUCTS.iter().find(|(o, ..)| *o == op).expect("linear or conv2d");
        match self.forced(op) {
            Some(name) if name == *reference => Product::Reference,
            forced => linear::choose(table, self.isa, stored, self.compute, forced)
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
    PRODUCTS.iter().map(|(op, ..)| *op).chain(TABLE.iter().map(|(op, _)| *op))
}

/// The variants of `op`, best first, each with the instruction set that it needs. `None` if there
/// is no such operation.
pub fn names(op: &str) -> Option<Vec<(&'static str, Isa)>> {
    if let Some((_, table, reference)) = PRODUCTS.iter().find(|(o, ..)| *o == op) {
        let fast = table.iter().map(|v| (v.name, v.needs));
        return Some(fast.chain([(*reference, Isa::Portable)]).collect());
    }
    let (_, table) = TABLE.iter().find(|(o, _)| *o == op)?;
    Some(table.iter().map(|v| (v.name, v.needs)).collect())
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
