//! PTX types and register banks.

/// A PTX fundamental type, or one of the packed types of `cvt` and arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    BF16,
    B32,
    U32,
    S32,
    F32,
    TF32,
    F16x2,
    BF16x2,
    B64,
    U64,
    S64,
    F64,
    E4M3,
    E5M2,
    E4M3x2,
    E5M2x2,
    B128,
}

impl Type {
    pub(crate) fn from_name(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "u8" => Type::U8,
            "s8" => Type::S8,
            "b16" => Type::B16,
            "u16" => Type::U16,
            "s16" => Type::S16,
            "f16" => Type::F16,
            "bf16" => Type::BF16,
            "b32" => Type::B32,
            "u32" => Type::U32,
            "s32" => Type::S32,
            "f32" => Type::F32,
            "tf32" => Type::TF32,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::BF16x2,
            "b64" => Type::B64,
            "u64" => Type::U64,
            "s64" => Type::S64,
            "f64" => Type::F64,
            "e4m3" => Type::E4M3,
            "e5m2" => Type::E5M2,
            "e4m3x2" => Type::E4M3x2,
            "e5m2x2" => Type::E5M2x2,
            "b128" => Type::B128,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Type::Pred | Type::B8 | Type::U8 | Type::S8 | Type::E4M3 | Type::E5M2 => 1,
            Type::B16
            | Type::U16
            | Type::S16
            | Type::F16
            | Type::BF16
            | Type::E4M3x2
            | Type::E5M2x2 => 2,
            Type::B32
            | Type::U32
            | Type::S32
            | Type::F32
            | Type::TF32
            | Type::F16x2
            | Type::BF16x2 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
        }
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub(crate) fn float(self) -> bool {
        matches!(
            self,
            Type::F16
                | Type::BF16
                | Type::F32
                | Type::TF32
                | Type::F64
                | Type::F16x2
                | Type::BF16x2
                | Type::E4M3
                | Type::E5M2
        )
    }
}

/// The bank of a register: 32-bit registers (also 16-bit ones), 64-bit registers, or predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Word(u32),
    Double(u32),
    Pred(u32),
}

/// Special registers, each with its own slot, which is filled when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
    Warp,
    Warps,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    SharedBytes,
    Zero,
    One,
}

impl Special {
    pub(crate) fn from_name(name: &str) -> Option<Special> {
        let axis = |s: &str| match s {
            "x" => Some(0u8),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        if let Some((stem, a)) = name.rsplit_once('.')
            && let Some(a) = axis(a)
        {
            return Some(match stem {
                "%tid" => Special::Tid(a),
                "%ntid" => Special::Ntid(a),
                "%ctaid" => Special::Ctaid(a),
                "%nctaid" => Special::Nctaid(a),
                "%clusterid" => Special::Ctaid(a),
                "%nclusterid" => Special::Nctaid(a),
                "%cluster_ctaid" => Special::Zero,
                "%cluster_nctaid" => Special::One,
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Warps,
            "%lanemask_eq" => Special::MaskEq,
            "%lanemask_lt" => Special::MaskLt,
            "%lanemask_le" => Special::MaskLe,
            "%lanemask_gt" => Special::MaskGt,
            "%lanemask_ge" => Special::MaskGe,
            "%dynamic_smem_size" | "%total_smem_size" => Special::SharedBytes,
            "%smid" | "%gridid" | "%cluster_ctarank" | "%is_explicit_cluster" => Special::Zero,
            "%nsmid" | "%cluster_nctarank" => Special::One,
            _ => return None,
        })
    }
}
