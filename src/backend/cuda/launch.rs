//! What stands between operations and the driver: kernels, what they need, and launches as plain values. Nothing here calls CUDA, so that
//! every launch can be made, looked at and run on the PTX machine without a GPU.

use crate::dtype::{DType, blocks};

/// An entry point of an embedded PTX module and how it wants to be called: buffers first, then TMA descriptors, then its parameters by value.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Stem of the PTX file in `kernels/ptx`, such as `linear.sm80`.
    pub module: &'static str,
    pub entry: &'static str,
    /// How many device addresses it takes.
    pub buffers: usize,
    /// How many TMA descriptors (128 bytes each) follow them.
    pub maps: usize,
    /// `size_of` its `Params`.
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
    /// Blocks along x, y, z; y and z stay under 65,536.
    pub grid: [u32; 3],
    /// Device addresses, `kernel.buffers` of them; 0 where an optional buffer is absent.
    pub buffers: Vec<u64>,
    /// Tiles that TMA copies, `kernel.maps` of them.
    pub maps: Vec<TensorMap>,
    /// The bytes of the kernel's `Params`.
    pub params: Vec<u8>,
}

/// A matrix from which TMA copies boxes: what `cuTensorMapEncodeTiled` is told (two dimensions, 128-byte swizzle, zero fill).
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

/// A dense matrix, or a window of its columns, in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Address of the first element of the window.
    pub address: u64,
    pub rows: usize,
    pub cols: usize,
    /// Elements from row to row; bytes where `dtype` is stored in blocks.
    pub stride: usize,
    pub dtype: DType,
}

impl Matrix {
    /// Bytes from row to row.
    pub fn row_bytes(&self) -> usize {
        if self.dtype.is_plain() { self.stride * self.dtype.size() } else { self.stride }
    }

    /// The rows `first .. first + rows`.
    pub fn band(&self, first: usize, rows: usize) -> Matrix {
        assert!(first + rows <= self.rows);
        Matrix { address: self.address + (first * self.row_bytes()) as u64, rows, ..*self }
    }

    /// Whether rows begin at multiples of 16 bytes, and are whole numbers of 16 bytes: what vector loads and `cp.async` want.
    pub fn aligned(&self) -> bool {
        let size = self.dtype.size();
        self.address.is_multiple_of(16)
            && (self.stride * size).is_multiple_of(16)
            && (self.cols * size).is_multiple_of(16)
    }

    /// The columns `first .. first + cols`.
    pub fn columns(&self, first: usize, cols: usize) -> Matrix {
        assert!(first + cols <= self.cols);
        Matrix { address: self.address + (first * self.dtype.size()) as u64, cols, ..*self }
    }
}

/// Element types as `common.cuh` numbers them.
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

/// What a variant may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Compute capability, such as (8, 6).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Shared memory that one block may have, in bytes (opt-in limit).
    pub shared_bytes: u32,
    pub l2_bytes: u32,
    /// Matrix products may run in FP8 (`--compute fp8`).
    pub fp8: bool,
}

/// Which devices can run a PTX module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// This compute capability and all later ones.
    From(u32, u32),
    /// Exactly this one: `sm_90a` code is not forward compatible.
    Only(u32, u32),
}

impl Arch {
    /// Whether a GPU of `capability` can run it.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Arch::From(major, minor) => capability >= (major, minor),
            Arch::Only(major, minor) => capability == (major, minor),
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arch::From(major, minor) => write!(f, "compute capability {major}.{minor} or newer"),
            Arch::Only(major, minor) => write!(f, "compute capability {major}.{minor}"),
        }
    }
}

/// One way to run an operation; `A` is the operation with its operands' places.
pub struct Variant<A: 'static> {
    /// `{op}_{dtypes}_{arch}`.
    pub name: &'static str,
    pub arch: Arch,
    /// Why it cannot run these operands, if it cannot.
    pub accepts: fn(&A, &Device) -> Result<(), &'static str>,
    /// Bytes of scratch. Addresses in `A` may be 0 plus the offset of a window.
    pub scratch: fn(&A, &Device) -> usize,
    /// The launches, in order.
    pub launches: fn(&A, &Device) -> Vec<Launch>,
}
