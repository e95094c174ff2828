//! A dispatch as a plain value: which shader over which windows of buffers. Families (`linear`, `attention` ...) make them, `gpu` records them.

use bytemuck::{Pod, Zeroable};

use crate::backend::gpu::{self, Arguments, Location};
use crate::dtype::{DType, blocks};

/// Storage buffers that a shader may bind: `@group(0) @binding(0)` to `@binding(BINDINGS - 1)`. One layout serves all pipelines.
pub const BINDINGS: usize = 8;
/// Bytes of `Params` at most: what every Vulkan device takes as immediate data.
pub const PARAMS_BYTES: usize = 128;

/// Windows are whole vectors of 16 bytes: shaders see arrays of those, too. Buffers are multiples of it.
const WORD: u64 = 16;

/// A buffer of the backend, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BufferId(pub u32);

/// Bytes of a buffer that a shader sees as one binding; `offset` is a multiple of [`WgpuDevice::alignment`], `bytes` of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    pub buffer: BufferId,
    pub offset: u64,
    pub bytes: u64,
}

/// Where something begins: a byte of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spot {
    pub buffer: BufferId,
    pub offset: u64,
}

impl Location for Spot {
    // Shaders see the bytes of blocks as words.
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

    /// Bytes from the first element to behind the last.
    pub fn span(&self) -> u64 {
        match self.rows {
            0 => 0,
            rows => ((rows - 1) * self.stride_bytes() + self.row_bytes()) as u64,
        }
    }

    /// The window that holds the matrix, and the number of the matrix's first element in it (counted as strides are). The window begins at a
    /// multiple of the device's alignment and so may show what lies before the matrix.
    pub fn bind(&self, device: &WgpuDevice) -> (Window, u32) {
        let offset = self.place.offset / device.alignment * device.alignment;
        let before = self.place.offset - offset;
        let bytes = (before + self.span()).next_multiple_of(WORD).max(WORD);
        let unit = self.unit() as u64;
        debug_assert!(before.is_multiple_of(unit));
        (Window { buffer: self.place.buffer, offset, bytes }, (before / unit) as u32)
    }

    /// Whether `bind` gives a window that the device takes.
    pub fn binds(&self, device: &WgpuDevice) -> bool {
        self.span() + device.alignment + WORD <= device.binding_bytes
    }

    /// Rows of this matrix at most, from any one on, that the device takes as one window.
    pub fn rows_that_bind(&self, device: &WgpuDevice) -> usize {
        let row = self.stride_bytes().max(self.unit()) as u64;
        let room =
            device.binding_bytes.saturating_sub(device.alignment + WORD + self.row_bytes() as u64);
        if self.binds(device) { self.rows.max(1) } else { (room / row) as usize }
    }

    /// Whether pairs of elements never share a 32-bit word with another row, nor with what lies beside the window: then a word is written by one thread.
    /// True of all four-byte types, and of two-byte types where the first element, the columns and the stride are even.
    pub fn whole_words(&self) -> bool {
        let per_word = 4 / self.dtype.size();
        per_word <= 1
            || (self.place.offset.is_multiple_of(4)
                && self.cols.is_multiple_of(per_word)
                && (self.rows <= 1 || self.stride.is_multiple_of(per_word)))
    }

    /// Whether rows are whole vectors of 16 bytes, beginning at multiples of 16 bytes.
    pub fn whole_vectors(&self) -> bool {
        let per_vector = 16 / self.dtype.size();
        self.place.offset.is_multiple_of(16)
            && self.cols.is_multiple_of(per_vector)
            && (self.rows <= 1 || self.stride.is_multiple_of(per_vector))
    }
}

/// Ranges of rows, `most` at a time and in steps of `unit`, that together are `rows`.
pub fn blocks(
    rows: usize,
    most: usize,
    unit: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let step = if most >= rows { rows.max(1) } else { (most / unit * unit).max(1) };
    (0..rows).step_by(step).map(move |first| first..rows.min(first + step))
}

/// What the device needs for a shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The source begins with `enable f16;`.
    pub f16: bool,
    /// Subgroup operations; naga knows no `enable` for them.
    pub subgroups: bool,
    /// The source begins with `enable wgpu_cooperative_matrix;`.
    pub cooperative_matrix: bool,
    /// Threads of a workgroup.
    pub threads: u32,
    /// Bytes of workgroup memory.
    pub shared_bytes: u32,
}

impl Needs {
    pub const fn new(threads: u32, shared_bytes: u32) -> Needs {
        Needs { f16: false, subgroups: false, cooperative_matrix: false, threads, shared_bytes }
    }

    /// Why `device` cannot run it, if it cannot.
    pub fn missing(&self, device: &WgpuDevice) -> Option<&'static str> {
        let checks = [
            (!self.f16 || device.f16, "the adapter has no f16"),
            (!self.subgroups || device.subgroups.is_some(), "the adapter has no subgroups"),
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

/// A WGSL module with one entry point `main`: sources one after another, the first with its `enable` lines.
#[derive(Debug, PartialEq, Eq)]
pub struct Shader {
    pub name: &'static str,
    pub sources: &'static [&'static str],
    /// Bytes of its `Params`.
    pub params_bytes: usize,
    /// Storage buffers that it binds, from binding 0 on.
    pub buffers: usize,
}

impl Shader {
    pub fn text(&self) -> String {
        self.sources.concat()
    }
}

/// Values of a module's `override`s.
pub type Constants = Vec<(&'static str, f64)>;

/// The first two words of every `Params`: which workgroups of the whole grid a dispatch does. `gpu` fills them in.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Grid {
    /// Number of the dispatch's first workgroup.
    pub first: u32,
    /// Workgroups of the whole grid: others do nothing.
    pub groups: u32,
}

/// One dispatch (or several, where it would take too long or has too many workgroups: `gpu` cuts it).
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    pub shader: &'static Shader,
    /// Values of the module's `override`s.
    pub constants: Constants,
    /// By binding; `None` is not read.
    pub buffers: Vec<Option<Window>>,
    /// `Params` of the shader, with `Grid` in front.
    pub params: Vec<u8>,
    /// Workgroups, numbered from 0: `group_number()` in the shader.
    pub groups: u64,
    /// Operations that all of them do, about: long dispatches are cut by it.
    pub work: u64,
}

/// What an adapter is and takes, as far as variants care.
#[derive(Debug, Clone, PartialEq)]
pub struct WgpuDevice {
    /// Element type of activations, F32 or BF16.
    pub activation: DType,
    /// Products in f16 where a variant has them; the user's choice.
    pub half: bool,
    /// Largest window in bytes.
    pub binding_bytes: u64,
    /// Windows begin at multiples of this many bytes, 16 at least.
    pub alignment: u64,
    /// Workgroup memory in bytes.
    pub shared_bytes: u32,
    /// Threads of a workgroup at most.
    pub threads: u32,
    pub f16: bool,
    /// Smallest and largest subgroup.
    pub subgroups: Option<(u32, u32)>,
    pub cooperative_matrix: bool,
    /// A driver that computes on the processor.
    pub software: bool,
}

/// GPUs by wgpu.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wgpu;

/// The arguments of the operation `O`.
pub type Args<O> = <O as Arguments>::Args<Wgpu>;

/// One way to run the operation `O`; named `{op}_{types}_{what is special}`.
pub type Variant<O> = gpu::Variant<Wgpu, O>;

/// Element types as shaders number them.
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
