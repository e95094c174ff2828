//! The table of all operations with their variants.

use super::isa::Isa;
use super::kernels::{Choice, Kernels};
use crate::backend::forced::Forced;
use crate::backend::{Compute, KernelChoice};
use crate::error::Result;
use crate::op::for_operations;

macro_rules! table {
    ($($operation:ident)*) => {
        /// The variants of every operation.
        const TABLE: &[Kernels] =
            &[$(<crate::op::$operation as super::step::CpuOperation>::KERNELS),*];
    };
}
for_operations!(table);

pub(super) fn kernels_of(op: &str) -> Option<&'static Kernels> {
    TABLE.iter().find(|kernels| kernels.op() == op)
}

/// A choice for a processor with `isa`, after checking the names of forced variants.
pub(super) fn choice(isa: Isa, compute: Compute, forced: Vec<KernelChoice>) -> Result<Choice> {
    let why = |needs: Isa| {
        let (needs, has) = (needs.name(), isa.name());
        format!("it needs {needs}, and only {has} can be used")
    };
    let variants = |op: &str| {
        Some(names(op)?.into_iter().map(|(name, n)| (name, (n > isa).then(|| why(n)))).collect())
    };
    let forced = Forced::new(forced, &ops().collect::<Vec<_>>(), &variants)?;
    Ok(Choice { isa, compute, forced })
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
    use crate::backend::cpu::kernels::How;
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
        let kernels = kernels_of("attention").unwrap();
        let pick = |isa, compute| choice(isa, compute, vec![]).unwrap().of(kernels).name;
        assert_eq!(pick(Isa::Portable, Compute::Auto), "attention_f32_portable");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(pick(Isa::Amx, Compute::Auto), "attention_bf16_amx");
            assert_eq!(pick(Isa::Amx, Compute::F32), "attention_f32_avx512");
            assert_eq!(pick(Isa::Avx512Bf16, Compute::Auto), "attention_bf16_avx512bf16");
            assert_eq!(pick(Isa::Avx512Bf16, Compute::F32), "attention_f32_avx512");
            assert_eq!(pick(Isa::Avx2, Compute::Auto), "attention_f32_avx2");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let e = choice(Isa::Portable, Compute::Auto, forced("atention", "x")).unwrap_err();
        assert_eq!(e.kind(), Kind::Argument);
        assert!(e.to_string().contains("layer_norm_modulate"), "{e}");
        let e = choice(Isa::Portable, Compute::Auto, forced("silu", "silu_f64")).unwrap_err();
        assert!(e.to_string().contains("silu_reference"), "{e}");
        let e = choice(Isa::Portable, Compute::Auto, forced("linear", "linear_int3")).unwrap_err();
        assert!(e.to_string().contains("linear_f32_portable"), "{e}");
        if cfg!(target_arch = "x86_64") {
            let e =
                choice(Isa::Avx2, Compute::Auto, forced("silu", "silu_f32_avx512")).unwrap_err();
            assert!(e.to_string().contains("avx512"), "{e}");
        }
        let choice =
            choice(Isa::detect(), Compute::Auto, forced("silu", "silu_reference")).unwrap();
        assert_eq!(choice.of(kernels_of("silu").unwrap()).how, How::Reference);
    }
}
