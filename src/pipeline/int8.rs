//! Which products of a program are computed in 8-bit integers: a function of the component, of how
//! a weight is stored, and of what the device uses them for.

use crate::backend::Int8Use;
use crate::dtype::int8::{Int8, Rotation};
use crate::op::{Linear, Op, Operation, Program};
use crate::spec::Component;
use crate::tensor::HostWeight;

/// How products with `weight`, which the `component` calls `name`, are computed, if in integers.
///
/// Weights that are stored as integers are used as they are; others are rotated.
pub fn of(component: Component, name: &str, weight: &HostWeight, used: Int8Use) -> Option<Int8> {
    if used == Int8Use::Never || !component.is_int8(name) {
        return None;
    }
    let rotation = weight.parts.first().and_then(|p| p.rotation);
    let stored = Int8 { rotation };
    let as_stored = weight.has_integers_of(stored) && rotation.is_none_or(Rotation::has_kernels);
    match used {
        Int8Use::All if as_stored => Some(stored),
        Int8Use::All => {
            Rotation::of_columns(weight.cols).map(|rotation| Int8 { rotation: Some(rotation) })
        }
        _ => (as_stored && rotation.is_some()).then_some(stored),
    }
}

/// The operations of `program` in products that may be computed in integers.
pub fn flops(component: Component, program: &Program) -> u64 {
    let may = |linear: &Linear| {
        let spec = &program.weights[linear.w.id as usize];
        component.is_int8(&spec.name) && Rotation::of_columns(spec.cols).is_some()
    };
    let products = program.steps.iter().filter_map(|step| match &step.op {
        Op::Linear(linear) if may(linear) => Some(linear.flops()),
        _ => None,
    });
    products.sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dtype::DType;
    use crate::spec::flux1::FLUX1;
    use crate::tensor::{HostPart, Scale};

    fn weight(cols: usize, parts: &[(DType, usize)]) -> HostWeight {
        let part = |(dtype, group): &(DType, usize)| HostPart {
            source: Arc::new(vec![0u8; 4 * cols]),
            offset: 0,
            rows: 1,
            cols,
            dtype: *dtype,
            scale: Scale::One,
            rotation: Rotation::new(*group),
        };
        let parts: Vec<_> = parts.iter().map(part).collect();
        HostWeight { rows: parts.len(), cols, parts, int8: None }
    }

    #[test]
    fn blocks_are_computed_in_integers_where_they_are_asked_for_or_stored_for_it() {
        use DType::{BF16, I8};
        let of = |cols, parts: &[(DType, usize)], used| {
            let name = "single_blocks.3.linear1.weight";
            let found = of(FLUX1.transformer(), name, &weight(cols, parts), used);
            found.map(|int8| int8.rotation.map(Rotation::group))
        };
        let (all, stored) = (Int8Use::All, Int8Use::Stored);
        assert_eq!(of(3072, &[(BF16, 0)], all), Some(Some(256)));
        assert_eq!(of(192, &[(BF16, 0)], all), Some(Some(64)));
        assert_eq!(of(40, &[(BF16, 0)], all), None);
        assert_eq!(of(3072, &[(BF16, 0)], stored), None);
        // As they are stored: rotated, or not.
        assert_eq!(of(3072, &[(I8, 64), (I8, 64)], all), Some(Some(64)));
        assert_eq!(of(3072, &[(I8, 64), (I8, 64)], stored), Some(Some(64)));
        assert_eq!(of(3072, &[(I8, 0)], all), Some(None));
        assert_eq!(of(3072, &[(I8, 0)], stored), None);
        // Mixed, or in groups for which there are no kernels.
        assert_eq!(of(3072, &[(I8, 64), (BF16, 0)], all), Some(Some(256)));
        assert_eq!(of(3072, &[(I8, 64), (I8, 256)], stored), None);
        assert_eq!(of(3072, &[(I8, 1024)], all), Some(Some(256)));
        assert_eq!(of(3072, &[(I8, 1024)], stored), None);
        assert_eq!(of(3072, &[(I8, 256)], Int8Use::Never), None);
        // Codes of integers, which have no scales here since none are read.
        assert_eq!(of(3072, &[(DType::W4A8, 256)], stored), Some(Some(256)));
        assert_eq!(of(3072, &[(DType::W4A8, 64), (DType::W4A8, 64)], all), Some(Some(64)));
        assert_eq!(of(3072, &[(DType::W4A8, 256), (I8, 256)], stored), None);
    }

    #[test]
    fn what_is_not_in_a_block_is_not() {
        let w = weight(3072, &[(DType::BF16, 0)]);
        let of = |name: &str| of(FLUX1.transformer(), name, &w, Int8Use::All).is_some();
        assert!(
            of("double_blocks.0.img_attn.qkv.weight") && of("double_blocks.18.txt_mlp.2.weight")
        );
        for name in [
            "img_in.weight",
            "double_blocks.0.img_mod.lin.weight",
            "single_blocks.0.modulation.lin.weight",
            "final_layer.linear.weight",
        ] {
            assert!(!of(name), "{name}");
        }
    }
}
