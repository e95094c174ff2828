//! The variants of matrix products.

use super::gemm::Micro;
use super::gemm::integers::IntegerMicro;
use super::isa::Isa;
use crate::backend::Compute;
use crate::dtype::DType;
use crate::tensor::DTypes;

/// One way to compute a matrix product.
pub struct Variant {
    /// `{op}_{arithmetic}_{instruction set}`
    pub name: &'static str,
    /// The instruction set that the variant needs.
    pub needs: Isa,
    /// How products of floats are computed, and the sides of those of integers.
    micro: &'static Micro,
    /// How products of integers are computed, if the variant is for these.
    integers: Option<fn() -> &'static IntegerMicro>,
}

impl Variant {
    pub(super) const fn new(name: &'static str, micro: &'static Micro) -> Variant {
        Variant { name, needs: micro.isa, micro, integers: None }
    }

    /// A variant for products in 8-bit integers.
    pub(super) const fn of_integers(
        name: &'static str,
        needs: Isa,
        micro: &'static Micro,
        integers: fn() -> &'static IntegerMicro,
    ) -> Variant {
        Variant { name, needs, micro, integers: Some(integers) }
    }

    /// Whether the variant is used for weights stored as `stored`, with the arithmetic `compute`.
    pub fn accepts(&self, stored: DTypes, compute: Compute) -> bool {
        let bf16 = self.micro.per_word == 2;
        if stored.int8 || self.integers.is_some() {
            return self.is_for(stored);
        }
        match compute {
            // On processors without bf16 arithmetic, f32 is used instead.
            Compute::Auto | Compute::Int8 => !(bf16 && stored.has(DType::F32)),
            Compute::F32 => !bf16,
            // The backend refuses the other types when it is opened.
            Compute::BF16 | Compute::F16 | Compute::Fp8 => true,
        }
    }

    /// Whether the variant computes what products with weights stored as `stored` are computed in:
    /// integers or floats.
    fn is_for(&self, stored: DTypes) -> bool {
        stored.int8 == self.integers.is_some()
    }

    /// Whether it computes products in integers.
    pub fn is_of_integers(&self) -> bool {
        self.integers.is_some()
    }

    pub(super) fn micro(&self) -> &'static Micro {
        self.micro
    }

    pub(super) fn integers(&self) -> Option<&'static IntegerMicro> {
        self.integers.map(|integers| integers())
    }
}

/// The first variant of `table` that `isa` can run and that accepts the case, or the variant named
/// `forced` if `isa` can run it. A forced variant for integers does not count for products of
/// floats, nor the other way round.
pub fn choose(
    table: &'static [Variant],
    isa: Isa,
    stored: DTypes,
    compute: Compute,
    forced: Option<&str>,
) -> Option<&'static Variant> {
    let forced = forced.filter(|name| !table.iter().any(|v| v.name == *name && !v.is_for(stored)));
    table.iter().filter(|v| v.needs <= isa).find(|v| match forced {
        Some(name) => v.name == name,
        None => v.accepts(stored, compute),
    })
}
