//! Kernels and their launches, as plain values. Nothing here calls CUDA, so that every launch can
//! be made, inspected and run on the PTX machine without a GPU.

use crate::backend::gpu::{self, Arguments, Location};
use crate::dtype::{DType, blocks};

/// An entry point of an embedded PTX module, and its arguments: device addresses first, then TMA
/// descriptors, then its parameters by value.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Stem of the PTX file in `kernels/ptx`, such as `linear.sm80`.
    pub module: &'static str,
    pub entry: &'static str,
    /// Number of device addresses.
    pub buffers: usize,
    /// Number of TMA descriptors (128 bytes each).
    pub maps: usize,
    /// Size of its `Params` in bytes.
    pub params: usize,
    /// Threads of a block (one dimension).
    pub threads: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared: u32,
}

/// One launch, ready for the driver.
#[derive(Debug, Clone)]
pub struct Launch {
    pub kernel: &'static Kernel,
    /// Blocks along x, y, z; at most 65,535 along y and z.
    pub grid: [u32; 3],
    /// Device addresses, `kernel.buffers` of them; 0 where an optional buffer is absent.
    pub buffers: Vec<u64>,
    /// Matrices that TMA reads, `kernel.maps` of them.
    pub maps: Vec<TensorMap>,
    /// The bytes of the kernel's `Params`.
    pub params: Vec<u8>,
}

/// A matrix from which TMA copies boxes: the arguments of `cuTensorMapEncodeTiled` (two dimensions,
/// 128-byte swizzle, zero fill).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    /// A multiple of 16.
    pub address: u64,
    pub rows: usize,
    pub cols: usize,
    /// Bytes from row to row, a multiple of 16.
    pub pitch: usize,
    /// BF16 or one-byte elements.
    pub dtype: DType,
    /// Rows and columns of a box; its columns span 128 bytes.
    pub box_rows: u32,
    pub box_cols: u32,
}

impl Location for u64 {
    const BLOCK_UNIT: usize = 1;

    fn after(self, bytes: usize) -> u64 {
        self + bytes as u64
    }
}

/// A matrix at a device address.
pub type Matrix = gpu::Matrix<u64>;

impl Matrix {
    /// Address of the first element.
    pub fn address(&self) -> u64 {
        self.place
    }

    /// Whether rows begin at multiples of 16 bytes and are whole numbers of 16 bytes, as vector
    /// loads and `cp.async` require.
    pub fn aligned(&self) -> bool {
        let size = self.dtype.size();
        self.place.is_multiple_of(16)
            && (self.stride * size).is_multiple_of(16)
            && (self.cols * size).is_multiple_of(16)
    }
}

/// The address of an optional operand; 0 if there is none.
pub fn address(m: Option<Matrix>) -> u64 {
    m.map_or(0, |m| m.place)
}

/// A side branch, which a `linear` adds before its bias: `t . b^T`. LoRAs are applied this way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Side {
    /// `rows x rank`, BF16; its rows may begin anywhere.
    pub t: Matrix,
    /// `N x rank`, BF16 or F16; its rows begin at multiples of 16 bytes and are padded with zeros,
    /// as those of the weight are.
    pub b: Matrix,
}

/// The number of an element type in `common.cuh`.
pub fn code(dtype: DType) -> u32 {
    match dtype {
        DType::BF16 => 0,
        DType::F32 => 1,
        DType::F16 => 2,
        DType::F8E4M3 => 3,
        DType::F8E5M2 => 4,
        DType::I8 => 6,
        DType::I32 => unreachable!("indices are read by kernels that know it"),
        in_blocks => blocks::code(in_blocks),
    }
}

/// GPUs through CUDA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cuda;

/// The arguments of the operation `O`.
pub type Args<O> = <O as Arguments>::Args<Cuda>;

/// One way to run the operation `O`; named `{op}_{dtypes}_{arch}`.
pub type Variant<O> = gpu::Variant<Cuda, O>;
