//! The variants of matrix products.

use super::gemm::Micro;
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
    micro: &'static Micro,
}

impl Variant {
    pub(super) const fn new(name: &'static str, micro: &'static Micro) -> Variant {
        Variant { name, needs: micro.isa, micro }
    }

    /// Whether the variant is used for weights stored as `stored`, with the arithmetic `compute`.
    pub fn accepts(&self, stored: DTypes, compute: Compute) -> bool {
        let bf16 = self.micro.per_word == 2;
        if stored.int8 {
            return false;
        }
        match compute {
            // On processors without bf16 arithmetic, f32 is used instead.
            Compute::Auto | Compute::Int8 => !(bf16 && stored.has(DType::F32)),
            Compute::F32 => !bf16,
            // The backend refuses the other types when it is opened.
            Compute::BF16 | Compute::F16 | Compute::Fp8 => true,
        }
    }

    pub(super) fn micro(&self) -> &'static Micro {
        self.micro
    }
}

/// The first variant of `table` that `isa` can run and that accepts the case, or the variant named
/// `forced` if `isa` can run it.
pub fn choose(
    table: &'static [Variant],
    isa: Isa,
    stored: DTypes,
    compute: Compute,
    forced: Option<&str>,
) -> Option<&'static Variant> {
    table.iter().filter(|v| v.needs <= isa).find(|v| match forced {
        Some(name) => v.name == name,
        None => v.accepts(stored, compute),
    })
}
