//! Types whose elements are stored in blocks that share scales: those of GGUF, the 4-bit types of
//! bitsandbytes, mxfp8, nvfp4 and FP8 in blocks. One table, [`FORMATS`], describes all of them.
//!
//! A row is a whole number of blocks. In the formats of GGUF, a block contains its scales; in the
//! others, each block has one scale in a separate tensor of the file. All formats are decoded in
//! groups of [`GROUP`] elements.

use super::{DType, E4M3, GROUP, ggml};

/// A range of bytes of every block that a device stores separately: the numbers of all blocks
/// together, then the scales of all blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// First byte within the block.
    pub from: usize,
    /// Number of bytes.
    pub bytes: usize,
}

/// How a type is stored.
#[derive(Debug)]
pub struct Format {
    /// The element type.
    pub dtype: DType,
    /// The name in GGUF files, or in the metadata of ComfyUI and bitsandbytes.
    pub name: &'static str,
    /// The number of the type in GGUF files, if it has one.
    pub ggml: Option<u32>,
    /// Elements of a block.
    pub block: usize,
    /// Bytes of a block, without a scale that is stored separately.
    pub bytes: usize,
    /// The parts of a block that a device stores separately: for each row, first those of the first
    /// plane, then those of the second, and so on. Together they are the whole block.
    pub planes: &'static [Plane],
    /// Bytes of a separate scale on a device: 4 (F32) or 1 (F8_E8M0, F8_E4M3); 0 if the block
    /// contains its scale.
    pub scale_bytes: usize,
    /// Upper bound of the relative error (Frobenius norm) of normally distributed values that
    /// [`encode`](super::encode) stores in this type. The real error is at most 30 % smaller.
    pub error: f32,
    decode: fn(&[u8], usize, &[f32], &mut [f32; GROUP]),
}

/// How a device stores a row: plane after plane, then the separate scales. Each begins at a
/// multiple of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// The byte of the row at which each of [`Format::planes`] begins, then the one of the scales.
    /// Unused entries are 0.
    pub planes: [usize; 5],
    /// Bytes from one row to the next, a multiple of 16.
    pub bytes: usize,
}

impl Format {
    /// How a device stores a row of `cols` elements.
    pub fn layout(&self, cols: usize) -> RowLayout {
        let mut layout = RowLayout { planes: [0; 5], bytes: 0 };
        let sizes = self
            .planes
            .iter()
            .map(|p| p.bytes)
            .chain((self.scale_bytes > 0).then_some(self.scale_bytes));
        for (plane, size) in layout.planes.iter_mut().zip(sizes) {
            *plane = layout.bytes;
            layout.bytes += (self.blocks(cols) * size).next_multiple_of(16);
        }
        layout
    }

    /// Copies the blocks of a stored row into the planes of `layout`. Separate scales are left to
    /// the caller.
    pub fn split(&self, row: &[u8], out: &mut [u8], layout: &RowLayout) {
        for (plane, from) in self.planes.iter().zip(layout.planes) {
            let to = out[from..].chunks_exact_mut(plane.bytes);
            for (to, block) in to.zip(row.chunks_exact(self.bytes)) {
                to.copy_from_slice(&block[plane.from..plane.from + plane.bytes]);
            }
        }
    }

    /// Bytes of `elements` elements, which must be a multiple of the block.
    pub fn bytes_of(&self, elements: usize) -> usize {
        debug_assert!(elements.is_multiple_of(self.block), "{elements} elements of {}", self.name);
        elements / self.block * self.bytes
    }

    /// The number of blocks in a row of `cols` elements.
    pub fn blocks(&self, cols: usize) -> usize {
        cols / self.block
    }

    /// Decodes the elements of a row from element `first` on into `out`.
    ///
    /// `row` are the bytes of the row, and `scales` the scales of its blocks; empty if the blocks
    /// contain them. `first` and the length of `out` are multiples of [`GROUP`], except at the end
    /// of a row.
    #[inline(always)]
    pub fn decode(&self, row: &[u8], scales: &[f32], first: usize, out: &mut [f32]) {
        debug_assert!(first.is_multiple_of(GROUP));
        let per = self.block.max(GROUP);
        let (stride, scale_stride) =
            (self.bytes * (per / self.block), if scales.is_empty() { 0 } else { per / self.block });
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let (block, group) = (at / per, at % per / GROUP);
            let bytes = &row[block * stride..row.len().min((block + 1) * stride)];
            let scales = &scales[(block * scale_stride).min(scales.len())..];
            if rest.len() < GROUP {
                // The last half group of a row of nvfp4.
                let mut whole = [0.0; GROUP];
                (self.decode)(bytes, group, scales, &mut whole);
                return rest.copy_from_slice(&whole[..rest.len()]);
            }
            let (whole, left) = rest.split_first_chunk_mut::<GROUP>().expect("there are as many");
            (self.decode)(bytes, group, scales, whole);
            rest = left;
            at += GROUP;
        }
    }
}

/// The number of a type that is stored in blocks in kernels and shaders: from 16 on, in the order
/// of [`FORMATS`].
pub fn code(dtype: DType) -> u32 {
    let at = FORMATS.iter().position(|f| f.dtype == dtype);
    16 + at.expect("every other type has a number of its own") as u32
}

macro_rules! planes {
    ($($from:literal + $bytes:literal),*) => { &[$(Plane { from: $from, bytes: $bytes }),*] };
}

/// Every format. [`code`] depends on their order.
pub static FORMATS: [Format; 15] = [
    ggml_format(DType::Q8_0, "Q8_0", 8, 32, 34, planes![2 + 32, 0 + 2], 0.006, ggml::q8_0),
    ggml_format(DType::Q4_0, "Q4_0", 2, 32, 18, planes![2 + 16, 0 + 2], 0.11, ggml::q4_0),
    ggml_format(DType::Q4_1, "Q4_1", 3, 32, 20, planes![4 + 16, 0 + 4], 0.09, ggml::q4_1),
    ggml_format(DType::Q5_0, "Q5_0", 6, 32, 22, planes![6 + 16, 2 + 4, 0 + 2], 0.055, ggml::q5_0),
    ggml_format(DType::Q5_1, "Q5_1", 7, 32, 24, planes![8 + 16, 4 + 4, 0 + 4], 0.045, ggml::q5_1),
    ggml_format(
        DType::Q2K,
        "Q2_K",
        10,
        256,
        84,
        planes![16 + 64, 0 + 16, 80 + 4],
        0.30,
        ggml::q2_k,
    ),
    ggml_format(
        DType::Q3K,
        "Q3_K",
        11,
        256,
        110,
        planes![32 + 64, 0 + 32, 96 + 12, 108 + 2],
        0.18,
        ggml::q3_k,
    ),
    ggml_format(DType::Q4K, "Q4_K", 12, 256, 144, planes![16 + 128, 0 + 16], 0.08, ggml::q4_k),
    ggml_format(
        DType::Q5K,
        "Q5_K",
        13,
        256,
        176,
        planes![48 + 128, 16 + 32, 0 + 16],
        0.04,
        ggml::q5_k,
    ),
    ggml_format(
        DType::Q6K,
        "Q6_K",
        14,
        256,
        210,
        planes![0 + 128, 128 + 64, 192 + 16, 208 + 2],
        0.02,
        ggml::q6_k,
    ),
    beside(DType::Nf4, "nf4", 64, 32, 4, 0.10, nf4),
    beside(DType::Fp4, "fp4", 64, 32, 4, 0.13, fp4),
    beside(DType::Mxfp8, "mxfp8", 32, 32, 1, 0.03, mxfp8),
    beside(DType::Nvfp4, "nvfp4", 16, 8, 1, 0.11, nvfp4),
    beside(DType::F8Block, "fp8 blocks", 128, 128, 4, 0.03, fp8),
];

/// ComfyUI's `asym_w4a8_int8`. It is not one of [`FORMATS`], which kernels and shaders decode: its
/// rows are rotated, and devices get them as integers or rotated back.
pub static W4A8: Format = beside(DType::W4A8, "asym_w4a8_int8", 16, 8, 1, 0.08, w4a8);

type Decode = fn(&[u8], usize, &[f32], &mut [f32; GROUP]);

#[allow(clippy::too_many_arguments, reason = "one line of a table")]
const fn ggml_format(
    dtype: DType,
    name: &'static str,
    ggml: u32,
    block: usize,
    bytes: usize,
    planes: &'static [Plane],
    error: f32,
    decode: Decode,
) -> Format {
    Format { dtype, name, ggml: Some(ggml), block, bytes, planes, scale_bytes: 0, error, decode }
}

const fn beside(
    dtype: DType,
    name: &'static str,
    block: usize,
    bytes: usize,
    scale_bytes: usize,
    error: f32,
    decode: Decode,
) -> Format {
    let planes: &[Plane] = match bytes {
        8 => planes![0 + 8],
        32 => planes![0 + 32],
        _ => planes![0 + 128],
    };
    Format { dtype, name, ggml: None, block, bytes, planes, scale_bytes, error, decode }
}

/// The sixteen values of NF4, as in bitsandbytes: quantiles of the normal distribution.
pub static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The sixteen values of FP4, as in bitsandbytes; the largest is 1.
pub static FP4: [f32; 16] = [
    0.0,
    0.005_208_333_3,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// The sixteen values of E2M1: 1 sign, 2 exponent and 1 mantissa bit.
pub static E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The sixteen levels of the codes of `asym_w4a8_int8`: those of comfy-kitchen, which minimise the
/// error of normally distributed values between -1 and 1.
pub static W4A8_LEVELS: [f32; 16] = [
    -0.980_602, -0.794_529, -0.638_165, -0.500_986, -0.377_321, -0.263_187, -0.155_21, -0.050_72,
    0.052_541, 0.156_985, 0.265_284, 0.379_533, 0.502_636, 0.638_953, 0.794_876, 0.980_671,
];

/// Two numbers in each byte, the first in the high half.
#[inline(always)]
fn high_first(bytes: &[u8], table: &[f32; 16], scale: f32, out: &mut [f32]) {
    for (two, q) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *two = [table[usize::from(q >> 4)] * scale, table[usize::from(q & 15)] * scale];
    }
}

fn nf4(block: &[u8], group: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    high_first(&block[group * 16..group * 16 + 16], &NF4, scales[0], out);
}

fn fp4(block: &[u8], group: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    high_first(&block[group * 16..group * 16 + 16], &FP4, scales[0], out);
}

fn mxfp8(block: &[u8], _: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    for (o, q) in out.iter_mut().zip(block) {
        *o = E4M3[usize::from(*q)] * scales[0];
    }
}

fn fp8(block: &[u8], group: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    mxfp8(&block[group * GROUP..], 0, scales, out);
}

/// The integers that the codes of a block with `scale` stand for. A scale that is not a number
/// gives values that are not numbers.
fn w4a8_integers(scale: f32) -> [f32; 16] {
    /// Added to a number between -2^22 and 2^22 and subtracted again, this leaves the nearest
    /// integer (ties to even), without a call where the processor has no instruction for it.
    const ROUND: f32 = 12_582_912.0;
    W4A8_LEVELS.map(|level| ((level * scale + ROUND) - ROUND).clamp(-127.0, 127.0))
}

/// A group is two blocks of 16 elements. The first of two codes is in the low half of its byte.
fn w4a8(blocks: &[u8], _: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    for ((half, bytes), scale) in
        out.as_chunks_mut::<16>().0.iter_mut().zip(blocks.as_chunks::<8>().0).zip(scales)
    {
        let integers = w4a8_integers(*scale);
        for (two, q) in half.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *two = [integers[usize::from(q & 15)], integers[usize::from(q >> 4)]];
        }
    }
}

/// A group is two blocks of 16 elements.
fn nvfp4(blocks: &[u8], _: usize, scales: &[f32], out: &mut [f32; GROUP]) {
    for ((half, bytes), scale) in
        out.as_chunks_mut::<16>().0.iter_mut().zip(blocks.as_chunks::<8>().0).zip(scales)
    {
        high_first(bytes, &E2M1, *scale, half);
    }
}
