//! Instruction sets of this processor, in the order in which the kernels prefer them.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::amx::{Amx, amx};

/// A level of vector instructions that some kernels need. Each level includes all levels before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust for any processor.
    Portable,
    /// AVX2, FMA and F16C: 256-bit f32 (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, DQ, VL: 512-bit f32 (x86-64-v4).
    Avx512,
    /// AVX512-VNNI: products of bytes with 32-bit sums (Ice Lake, Cascade Lake, Zen 4 and later).
    Avx512Vnni,
    /// AVX512-BF16, and VBMI for byte table look-ups: bf16 products accumulated in f32 (Zen 4 and
    /// later, Sapphire Rapids and later).
    Avx512Bf16,
    /// AMX with bf16 and bytes: products of tiles (Sapphire Rapids and later), where the operating
    /// system lets this process use them.
    Amx,
}

impl Isa {
    /// The highest level of this processor.
    pub fn detect() -> Isa {
        static BEST: LazyLock<Isa> =
            LazyLock::new(|| *Isa::available().last().unwrap_or(&Isa::Portable));
        *BEST
    }

    /// All levels of this processor, lowest first.
    pub fn available() -> Vec<Isa> {
        use Isa::{Amx, Avx2, Avx512, Avx512Bf16, Avx512Vnni, Portable};
        let levels = [Portable, Avx2, Avx512, Avx512Vnni, Avx512Bf16, Amx];
        levels.into_iter().take_while(|level| level.present()).collect()
    }

    /// The name shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn present(self) -> bool {
        use std::is_x86_feature_detected as has;
        match self {
            Isa::Portable => true,
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::Avx512 => {
                has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")
            }
            Isa::Avx512Vnni => has!("avx512vnni"),
            Isa::Avx512Bf16 => has!("avx512bf16") && has!("avx512vbmi"),
            Isa::Amx => amx() == Amx::Usable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn present(self) -> bool {
        self == Isa::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_a_chain_from_portable_to_the_detected_one() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::Portable);
        assert!(all.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(all.last(), Some(&Isa::detect()));
    }
}
