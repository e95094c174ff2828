//! Shaders and their dispatches, as plain values. The files named like operations make dispatches,
//! `submit` records them.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::{self, Arguments, Location};
use crate::dtype::{DType, blocks};

/// Storage buffers that a shader may bind, as `@group(0) @binding(0)` to `@binding(BINDINGS - 1)`.
/// All pipelines share one layout.
pub const BINDINGS: usize = 8;
/// Bytes of `Params` at most: as many as every Vulkan device takes as immediate data.
pub const PARAMS_BYTES: usize = 128;

/// The size of a window is a multiple of this: shaders access arrays of 16-byte vectors, too. So is
/// the size of a buffer.
const WORD: u64 = 16;

/// A buffer of the backend, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BufferId(pub u32);

/// A range of a buffer that a shader accesses as one binding; `offset` is a multiple of
/// [`WgpuDevice::alignment`], `bytes` of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    pub buffer: BufferId,
    pub offset: u64,
    pub bytes: u64,
}

/// Where an operand begins: a byte of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spot {
    pub buffer: BufferId,
    pub offset: u64,
}

impl Location for Spot {
    // Shaders access block-quantised weights as words.
    const BLOCK_UNIT: usize = 4;

    fn after(self, bytes: usize) -> Spot {
        Spot { offset: self.offset + bytes as u64, ..self }
    }
}

/// A matrix in a buffer.
pub type Matrix = gpu::Matrix<Spot>;

impl Matrix {
    /// Bytes of one row.
    fn row_bytes(&self) -> usize {
        if self.dtype.is_plain() { self.cols * self.dtype.size() } else { self.stride_bytes() }
    }

    /// Bytes from the first element to the end of the last one.
    pub fn span(&self) -> u64 {
        match self.rows {
            0 => 0,
            rows => ((rows - 1) * self.stride_bytes() + self.row_bytes()) as u64,
        }
    }

    /// The window that contains the matrix, and the index of the first element of the matrix in
    /// this window, in units of the stride. The window begins at a multiple of the device's
    /// alignment, so it can begin before the matrix.
    pub fn bind(&self, device: &WgpuDevice) -> (Window, u32) {
        let offset = self.place.offset / device.alignment * device.alignment;
        let before = self.place.offset - offset;
        let bytes = (before + self.span()).next_multiple_of(WORD).max(WORD);
        let unit = self.unit() as u64;
        debug_assert!(before.is_multiple_of(unit));
        (Window { buffer: self.place.buffer, offset, bytes }, (before / unit) as u32)
    }

    /// Whether the window of [`bind`](Self::bind) is not too large for the device.
    pub fn binds(&self, device: &WgpuDevice) -> bool {
        self.span() + device.alignment + WORD <= device.binding_bytes
    }

    /// The most rows of this matrix, from any row on, that fit into one window.
    pub fn rows_that_bind(&self, device: &WgpuDevice) -> usize {
        let row = self.stride_bytes().max(self.unit()) as u64;
        let room =
            device.binding_bytes.saturating_sub(device.alignment + WORD + self.row_bytes() as u64);
        if self.binds(device) { self.rows.max(1) } else { (room / row) as usize }
    }

    /// Whether no pair of elements shares a 32-bit word with another row or with elements outside
    /// the window: then each word is written by one thread. True for all four-byte types, and for
    /// two-byte types if the first element, the columns and the stride are even.
    pub fn whole_words(&self) -> bool {
        let per_word = 4 / self.dtype.size();
        per_word <= 1
            || (self.place.offset.is_multiple_of(4)
                && self.cols.is_multiple_of(per_word)
                && (self.rows <= 1 || self.stride.is_multiple_of(per_word)))
    }

    /// Whether rows consist of whole vectors of 16 bytes and begin at multiples of 16 bytes.
    pub fn whole_vectors(&self) -> bool {
        let per_vector = 16 / self.dtype.size();
        self.place.offset.is_multiple_of(16)
            && self.cols.is_multiple_of(per_vector)
            && (self.rows <= 1 || self.stride.is_multiple_of(per_vector))
    }
}

/// Ranges that together are `rows` rows, each of at most `most` rows and a multiple of `unit`.
pub fn blocks(
    rows: usize,
    most: usize,
    unit: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let step = if most >= rows { rows.max(1) } else { (most / unit * unit).max(1) };
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}

/// The features and limits that a shader needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The source begins with `enable f16;`.
    pub f16: bool,
    /// Subgroup operations (naga has no `enable` for them), with subgroups of this many threads,
    /// from and to.
    pub subgroups: Option<(u32, u32)>,
    /// A driver that computes on the processor: elsewhere the shader would be slow.
    pub software: bool,
    /// The source begins with `enable wgpu_cooperative_matrix;`.
    pub cooperative_matrix: bool,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of workgroup memory.
    pub shared_bytes: u32,
}

impl Needs {
    /// A shader with workgroups of `threads` threads and `shared_bytes` bytes of memory, and no
    /// features.
    pub const fn new(threads: u32, shared_bytes: u32) -> Needs {
        Needs {
            f16: false,
            subgroups: None,
            software: false,
            cooperative_matrix: false,
            threads,
            shared_bytes,
        }
    }

    /// What `device` lacks to run the shader, if anything.
    pub fn missing(&self, device: &WgpuDevice) -> Option<&'static str> {
        let sizes = match (self.subgroups, device.subgroups) {
            (Some((least, most)), Some((smallest, largest))) => {
                least <= smallest && largest <= most
            }
            _ => true,
        };
        let checks = [
            (!self.f16 || device.f16, "the adapter has no f16"),
            (
                self.subgroups.is_none() || device.subgroups.is_some(),
                "the adapter has no subgroups",
            ),
            (sizes, "the adapter has subgroups of other sizes"),
            (!self.software || device.software, "for drivers that compute on the processor"),
            (
                !self.cooperative_matrix || device.cooperative_matrix,
                "the adapter has no cooperative matrices",
            ),
            (self.threads <= device.threads, "the adapter's workgroups are too small"),
            (
                self.shared_bytes <= device.shared_bytes,
                "the adapter has too little workgroup memory",
            ),
        ];
        checks.iter().find(|(ok, _)| !ok).map(|(_, why)| *why)
    }
}

/// A WGSL module with one entry point `main`: sources one after another; the first has the `enable`
/// lines.
#[derive(Debug, PartialEq, Eq)]
pub struct Shader {
    /// The name in errors and reports.
    pub name: &'static str,
    /// The text, in parts.
    pub sources: &'static [&'static str],
    /// Bytes of its `Params`.
    pub params_bytes: usize,
    /// Storage buffers that it binds, from binding 0 on.
    pub buffers: usize,
}

impl Shader {
    /// The whole text.
    pub fn text(&self) -> String {
        self.sources.concat()
    }
}

/// Values of the `override`s of a module.
pub type Constants = Vec<(&'static str, f64)>;

/// The first two words of every `Params`: the workgroups of the whole grid that a dispatch runs.
/// `submit` sets them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Grid {
    /// Number of the first workgroup of the dispatch.
    pub first: u32,
    /// Workgroups of the whole grid; surplus ones do nothing.
    pub groups: u32,
}

/// One dispatch; `submit` cuts it into several if it takes too long or has too many workgroups.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    pub shader: &'static Shader,
    /// Values of the module's `override`s.
    pub constants: Constants,
    /// In the order of the bindings; `None` is not accessed.
    pub buffers: Vec<Option<Window>>,
    /// `Params` of the shader, beginning with [`Grid`].
    pub params: Vec<u8>,
    /// Workgroups, numbered from 0: `group_number()` in the shader.
    pub groups: u64,
    /// Operations of all workgroups together, roughly; long dispatches are cut by it.
    pub work: u64,
}

/// The facts by which variants are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct WgpuDevice {
    /// Element type of activations, F32 or BF16.
    pub activation: DType,
    /// Products in f16 if a variant has them; the user's choice.
    pub half: bool,
    /// Bytes of the largest window.
    pub binding_bytes: u64,
    /// Windows begin at multiples of this many bytes, 16 at least.
    pub alignment: u64,
    /// Workgroup memory in bytes.
    pub shared_bytes: u32,
    /// Threads of a workgroup at most.
    pub threads: u32,
    /// Shaders may use f16.
    pub f16: bool,
    /// Threads of the smallest and the largest subgroup.
    pub subgroups: Option<(u32, u32)>,
    /// Shaders may use products of 8x8 matrices of f32.
    pub cooperative_matrix: bool,
    /// A driver that computes on the processor.
    pub software: bool,
}

/// GPUs through wgpu.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wgpu;

/// The arguments of the operation `O`.
pub type Args<O> = <O as Arguments>::Args<Wgpu>;

/// One way to run the operation `O`; named `{op}_{types}_{what is special}`.
pub type Variant<O> = gpu::Variant<Wgpu, O>;

/// The number of an element type in the shaders.
pub fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
        DType::F8E4M3 => 3,
        DType::F8E5M2 => 4,
        DType::I8 => 6,
        DType::I32 => 5,
        in_blocks => blocks::code(in_blocks),
    }
}
