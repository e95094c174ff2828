//! What a caller chooses about the arithmetic: the device, the type that products are computed in,
//! and single kernels.
//!
//! Each of these types is spelled in one way only, by [`FromStr`] and [`Display`](fmt::Display);
//! flags, configuration files and JSON all use that spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The device that a model runs on: `auto`, `cpu`, `cuda`, `cuda:1`, `wgpu`, `wgpu:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Device {
    /// The best GPU that works, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, numbered as its driver does.
    Cuda(usize),
    /// A GPU reached by Vulkan, Metal or DirectX 12, numbered as `flux-fast doctor` lists them.
    Wgpu(usize),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, number.parse::<u16>().ok().map(usize::from)),
            None => (text, Some(0)),
        };
        match (kind, number) {
            ("auto", _) if kind == text => Ok(Device::Auto),
            ("cpu", _) if kind == text => Ok(Device::Cpu),
            ("cuda", Some(number)) => Ok(Device::Cuda(number)),
            ("wgpu", Some(number)) => Ok(Device::Wgpu(number)),
            _ => Err(Error::argument("not a device")
                .at_parameter("device")
                .found(text)
                .expected("auto, cpu, cuda, cuda:N, wgpu or wgpu:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            Device::Wgpu(number) => write!(f, "wgpu:{number}"),
        }
    }
}

/// The type that matrix products and attention are computed in: `auto`, `f32`, `f16`, `bf16`,
/// `fp8`, `int8`. Sums are F32 on every device, and those of `int8` exact. Each backend refuses
/// what it does not offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Compute {
    /// The backend's choice. GPUs compute in BF16; the CPU computes in F32 where a part of the
    /// weight is stored as F32, else in BF16 if the processor has it.
    #[default]
    Auto,
    /// F32 products, and on GPUs F32 activations (CPU, wgpu).
    F32,
    /// F16 products of BF16 activations: faster where the adapter has them, less exact, and values
    /// beyond 65504 overflow (wgpu).
    F16,
    /// BF16 products; the CPU falls back to F32 where the processor does not have them.
    BF16,
    /// FP8 products where weights are FP8, activations scaled row by row (CUDA).
    Fp8,
    /// Products of 8-bit integers in the blocks of transformers, whatever the weights are stored
    /// as; see [`int8`](crate::dtype::int8). On most GPUs with CUDA also attention over more than
    /// 512 keys with heads of 128 columns; see [`attention`](crate::dtype::int8::attention). The
    /// rest as with `Auto`.
    Int8,
}

impl Compute {
    /// All, in the order in which they are listed.
    pub const ALL: [Compute; 6] =
        [Compute::Auto, Compute::F32, Compute::BF16, Compute::F16, Compute::Fp8, Compute::Int8];

    /// The word that stands for it.
    pub fn name(self) -> &'static str {
        match self {
            Compute::Auto => "auto",
            Compute::F32 => "f32",
            Compute::F16 => "f16",
            Compute::BF16 => "bf16",
            Compute::Fp8 => "fp8",
            Compute::Int8 => "int8",
        }
    }

    /// That a backend has no such products; `expected` lists those that it has.
    pub(crate) fn refused(self, expected: &str) -> Error {
        Error::argument("this arithmetic is not available on the device")
            .at_parameter("compute")
            .found(self)
            .expected(expected)
            .try_("{compute=auto}")
    }
}

impl FromStr for Compute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Compute::ALL.into_iter().find(|c| c.name() == text).ok_or_else(|| {
            Error::argument("not an arithmetic")
                .at_parameter("compute")
                .found(text)
                .expected(Compute::ALL.map(Compute::name).join(", "))
        })
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A kernel variant to use for one operation instead of the backend's choice:
/// `linear=linear_f32_avx2`. Where an operation is named several times, the last choice counts; on
/// GPUs, the last one that can run the operands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KernelChoice {
    /// The operation, such as `linear`.
    pub op: String,
    /// The variant, such as `linear_f32_avx2`.
    pub name: String,
}

impl KernelChoice {
    /// The variant `name` for the operation `op`. The backend that runs it checks both.
    pub fn new(op: impl Into<String>, name: impl Into<String>) -> Self {
        KernelChoice { op: op.into(), name: name.into() }
    }
}

impl FromStr for KernelChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((op, name)) if !op.is_empty() && !name.is_empty() => {
                Ok(KernelChoice::new(op, name))
            }
            _ => Err(Error::argument("not a choice of a kernel")
                .at_parameter("kernel")
                .found(text)
                .expected("OPERATION=NAME such as linear=linear_f32_avx2")),
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.op, self.name)
    }
}

/// Serialisation as text, by `Display` and `FromStr`.
macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )+};
}

as_text!(Device, Compute, KernelChoice);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_read_back() {
        let devices =
            [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3), Device::Wgpu(1)];
        for device in devices {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for compute in Compute::ALL {
            assert_eq!(compute.to_string().parse::<Compute>().unwrap(), compute);
        }
        let kernel = KernelChoice::new("linear", "linear_any");
        assert_eq!(kernel.to_string().parse::<KernelChoice>().unwrap(), kernel);
    }

    #[test]
    fn wrong_spellings_are_refused_with_the_right_ones() {
        for text in ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:0", "cuda:-1", "cuda:99999", ""] {
            let e = text.parse::<Device>().unwrap_err();
            assert!(e.to_string().contains("wgpu:N"), "{text}: {e}");
        }
        assert!(
            "F32"
                .parse::<Compute>()
                .unwrap_err()
                .to_string()
                .contains("auto, f32, bf16, f16, fp8, int8")
        );
        for text in ["", "linear", "=x", "linear="] {
            assert!(text.parse::<KernelChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_uses_the_same_spelling() {
        assert_eq!(serde_json::to_string(&Device::Cuda(1)).unwrap(), "\"cuda:1\"");
        assert_eq!(serde_json::from_str::<Compute>("\"bf16\"").unwrap(), Compute::BF16);
        assert!(serde_json::from_str::<Device>("\"gpu\"").is_err());
    }
}
