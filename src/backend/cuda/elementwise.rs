//! Operations element by element, and copies of rows. `kernels/elementwise.cu` explains the
//! kernels; `latents.rs` has the operations that run once for each text or step.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::arch::Arch;
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{Add, Cast, CopyRows, GeluMul, Silu, SiluMul};

/// Threads of a block in `elementwise.cu`.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BinaryParams {
    rows: u32,
    cols: u32,
    a_stride: u32,
    b_stride: u32,
    out_stride: u32,
    a_type: u32,
    b_type: u32,
    out_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CastParams {
    rows: u32,
    cols: u32,
    x_stride: u32,
    out_stride: u32,
    x_type: u32,
    out_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyRowsParams {
    batch: u32,
    count: u32,
    from: u32,
    to: u32,
    x_rows: u32,
    out_rows: u32,
    width: u32,
    x_pitch: u32,
    out_pitch: u32,
    unit: u32,
}

/// A kernel of `elementwise.cu` with parameters of type `P`.
pub(super) const fn kernel<P>(entry: &'static str, buffers: usize) -> Kernel {
    Kernel {
        module: "elementwise.sm80",
        entry,
        buffers,
        maps: 0,
        params: size_of::<P>(),
        threads: THREADS,
        shared: 0,
    }
}

static GELU_MUL_BF16: Kernel = kernel::<BinaryParams>("gelu_mul_bf16_sm80", 3);
static GELU_MUL_ANY: Kernel = kernel::<BinaryParams>("gelu_mul_any_sm80", 3);
static SILU_MUL_BF16: Kernel = kernel::<BinaryParams>("silu_mul_bf16_sm80", 3);
static SILU_MUL_ANY: Kernel = kernel::<BinaryParams>("silu_mul_any_sm80", 3);
static SILU_BF16: Kernel = kernel::<BinaryParams>("silu_bf16_sm80", 2);
static SILU_ANY: Kernel = kernel::<BinaryParams>("silu_any_sm80", 2);
static ADD_BF16: Kernel = kernel::<BinaryParams>("add_bf16_sm80", 3);
static ADD_ANY: Kernel = kernel::<BinaryParams>("add_any_sm80", 3);
static CAST_F32_BF16: Kernel = kernel::<CastParams>("cast_f32_bf16_sm80", 2);
static CAST_BF16_F32: Kernel = kernel::<CastParams>("cast_bf16_f32_sm80", 2);
static CAST_ANY: Kernel = kernel::<CastParams>("cast_any_sm80", 2);
static COPY_ROWS_VECTOR: Kernel = kernel::<CopyRowsParams>("copy_rows_vector_sm80", 2);
static COPY_ROWS_ANY: Kernel = kernel::<CopyRowsParams>("copy_rows_any_sm80", 2);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[
    &GELU_MUL_BF16,
    &GELU_MUL_ANY,
    &SILU_MUL_BF16,
    &SILU_MUL_ANY,
    &SILU_BF16,
    &SILU_ANY,
    &ADD_BF16,
    &ADD_ANY,
    &CAST_F32_BF16,
    &CAST_BF16_F32,
    &CAST_ANY,
    &COPY_ROWS_VECTOR,
    &COPY_ROWS_ANY,
];

/// Checks that rows, columns and strides fit 32 bits.
pub(super) fn counts(matrices: &[&Matrix]) -> Result<(), &'static str> {
    let small = |n: usize| u32::try_from(n).is_ok();
    let all = matrices.iter().all(|m| small(m.rows) && small(m.cols) && small(m.stride));
    all.then_some(()).ok_or("a matrix has 2^32 rows or columns, or more")
}

/// Checks that the `_any` kernels can access these matrices.
pub(super) fn activations(matrices: &[&Matrix]) -> Result<(), &'static str> {
    let all = matrices.iter().all(|m| matches!(m.dtype, DType::BF16 | DType::F32));
    all.then_some(()).ok_or("an operand is neither bf16 nor f32")?;
    counts(matrices)
}

/// Checks that these are BF16 matrices whose rows can be read in vectors of 16 bytes.
pub(super) fn vectors(matrices: &[&Matrix]) -> Result<(), &'static str> {
    matrices
        .iter()
        .all(|m| m.dtype == DType::BF16)
        .then_some(())
        .ok_or("an operand is not bf16")?;
    matrices
        .iter()
        .all(|m| m.aligned())
        .then_some(())
        .ok_or("an operand's rows are not aligned to 16 bytes")?;
    counts(matrices)
}

/// Checks that a grid can have as many blocks as `threads` threads need.
pub(super) fn grid_fits(threads: usize) -> Result<(), &'static str> {
    (threads.div_ceil(THREADS as usize) <= i32::MAX as usize)
        .then_some(())
        .ok_or("it takes more than 2^31 - 1 blocks")
}

/// One launch with `threads` threads or a few more; none if there is nothing to do.
pub(super) fn launch<P: NoUninit>(
    kernel: &'static Kernel,
    threads: usize,
    buffers: Vec<u64>,
    params: &P,
) -> Vec<Launch> {
    if threads == 0 {
        return vec![];
    }
    let grid = [threads.div_ceil(THREADS as usize) as u32, 1, 1];
    vec![Launch {
        kernel,
        grid,
        buffers,
        maps: vec![],
        params: bytemuck::bytes_of(params).to_vec(),
    }]
}

/// Elements of a matrix.
pub(super) fn elements(m: &Matrix) -> usize {
    m.rows * m.cols
}

/// Whether there are no gaps between rows.
fn dense(m: &Matrix) -> bool {
    m.stride == m.cols || m.rows <= 1
}

/// Checks that these are dense BF16 matrices that consist of vectors of 16 bytes. The number of
/// columns need not be a multiple of eight.
fn dense_vectors(matrices: &[&Matrix]) -> Result<(), &'static str> {
    matrices
        .iter()
        .all(|m| m.dtype == DType::BF16)
        .then_some(())
        .ok_or("an operand is not bf16")?;
    matrices
        .iter()
        .all(|m| dense(m))
        .then_some(())
        .ok_or("an operand is a range of columns of a wider matrix")?;
    let whole = |m: &&Matrix| m.address().is_multiple_of(16) && elements(m).is_multiple_of(8);
    matrices
        .iter()
        .all(whole)
        .then_some(())
        .ok_or("an operand is not whole vectors of 16 bytes")?;
    counts(matrices)
}

/// `out = f(a, b)`, or `f(a)`, with `each` elements for each thread.
fn elementwise(
    kernel: &'static Kernel,
    each: usize,
    a: &Matrix,
    b: Option<&Matrix>,
    out: &Matrix,
) -> Vec<Launch> {
    let params = BinaryParams {
        rows: out.rows as u32,
        cols: out.cols as u32,
        a_stride: a.stride as u32,
        b_stride: b.map_or(0, |b| b.stride as u32),
        out_stride: out.stride as u32,
        a_type: code(a.dtype),
        b_type: b.map_or(0, |b| code(b.dtype)),
        out_type: code(out.dtype),
    };
    let buffers =
        [a.address()].into_iter().chain(b.map(|b| b.address())).chain([out.address()]).collect();
    launch(kernel, elements(out) / each, buffers, &params)
}

/// Best first; the last one takes every type, window and alignment.
pub static GELU_MUL: &[Variant<GeluMul>] = &[
    Variant {
        name: "gelu_mul_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            dense_vectors(&[&a.gate, &a.up, &a.out]).and(grid_fits(elements(&a.out) / 8))
        },
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&GELU_MUL_BF16, 8, &a.gate, Some(&a.up), &a.out),
    },
    Variant {
        name: "gelu_mul_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| activations(&[&a.gate, &a.up, &a.out]).and(grid_fits(elements(&a.out))),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&GELU_MUL_ANY, 1, &a.gate, Some(&a.up), &a.out),
    },
];
variants!(Cuda, GeluMul: GELU_MUL);

/// Best first; the last one takes every type, window and alignment.
pub static SILU_MUL: &[Variant<SiluMul>] = &[
    Variant {
        name: "silu_mul_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.gate, &a.up, &a.out])?;
            a.out.cols.is_multiple_of(8).then_some(()).ok_or("the columns are not eights")?;
            // Threads are numbered in 32 bits.
            let few = u32::try_from(elements(&a.out) / 8 + THREADS as usize).is_ok();
            few.then_some(()).ok_or("it takes 2^32 threads or more")
        },
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&SILU_MUL_BF16, 8, &a.gate, Some(&a.up), &a.out),
    },
    Variant {
        name: "silu_mul_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| activations(&[&a.gate, &a.up, &a.out]).and(grid_fits(elements(&a.out))),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&SILU_MUL_ANY, 1, &a.gate, Some(&a.up), &a.out),
    },
];
variants!(Cuda, SiluMul: SILU_MUL);

/// Best first; the last one takes every type, window and alignment.
pub static SILU: &[Variant<Silu>] = &[
    Variant {
        name: "silu_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| dense_vectors(&[&a.x, &a.out]).and(grid_fits(elements(&a.out) / 8)),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&SILU_BF16, 8, &a.x, None, &a.out),
    },
    Variant {
        name: "silu_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| activations(&[&a.x, &a.out]).and(grid_fits(elements(&a.out))),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&SILU_ANY, 1, &a.x, None, &a.out),
    },
];
variants!(Cuda, Silu: SILU);

/// Best first; the last one takes every type, window and alignment.
pub static ADD: &[Variant<Add>] = &[
    Variant {
        name: "add_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| dense_vectors(&[&a.a, &a.b, &a.out]).and(grid_fits(elements(&a.out) / 8)),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&ADD_BF16, 8, &a.a, Some(&a.b), &a.out),
    },
    Variant {
        name: "add_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| activations(&[&a.a, &a.b, &a.out]).and(grid_fits(elements(&a.out))),
        scratch: |_, _| 0,
        launches: |a, _| elementwise(&ADD_ANY, 1, &a.a, Some(&a.b), &a.out),
    },
];
variants!(Cuda, Add: ADD);

/// The same elements as one row, if both matrices are dense and the row is not too long.
fn flat(a: &Args<Cast>) -> Args<Cast> {
    let n = elements(&a.x);
    if dense(&a.x) && dense(&a.out) && u32::try_from(n).is_ok() {
        let row = |m: Matrix| Matrix { rows: 1, cols: n, stride: n, ..m };
        Cast { x: row(a.x), out: row(a.out) }
    } else {
        *a
    }
}

/// Checks that a cast from one type to another can process four elements at a time.
fn quads(a: &Args<Cast>, from: DType, to: DType) -> Result<(), &'static str> {
    if (a.x.dtype, a.out.dtype) != (from, to) {
        return Err("the types are others");
    }
    let a = flat(a);
    let aligned = |m: &Matrix| {
        let step = m.rows <= 1 || m.stride.is_multiple_of(4);
        m.cols.is_multiple_of(4) && step && m.address().is_multiple_of(4 * m.dtype.size() as u64)
    };
    if !(aligned(&a.x) && aligned(&a.out)) {
        return Err("an operand's rows are not aligned to four elements");
    }
    counts(&[&a.x, &a.out])?;
    let short = elements(&a.x) / 4 <= (u32::MAX - THREADS) as usize;
    short.then_some(()).ok_or("there are 2^34 elements or more")
}

fn cast(kernel: &'static Kernel, each: usize, a: &Args<Cast>) -> Vec<Launch> {
    let params = CastParams {
        rows: a.x.rows as u32,
        cols: a.x.cols as u32,
        x_stride: a.x.stride as u32,
        out_stride: a.out.stride as u32,
        x_type: code(a.x.dtype),
        out_type: code(a.out.dtype),
    };
    launch(kernel, elements(&a.x) / each, vec![a.x.address(), a.out.address()], &params)
}

/// Best first; the last one takes every pair of types, window and alignment.
pub static CAST: &[Variant<Cast>] = &[
    Variant {
        name: "cast_f32_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| quads(a, DType::F32, DType::BF16),
        scratch: |_, _| 0,
        launches: |a, _| cast(&CAST_F32_BF16, 4, &flat(a)),
    },
    Variant {
        name: "cast_bf16_f32_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| quads(a, DType::BF16, DType::F32),
        scratch: |_, _| 0,
        launches: |a, _| cast(&CAST_BF16_F32, 4, &flat(a)),
    },
    Variant {
        name: "cast_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| activations(&[&a.x, &a.out]).and(grid_fits(elements(&a.x))),
        scratch: |_, _| 0,
        launches: |a, _| cast(&CAST_ANY, 1, a),
    },
];
variants!(Cuda, Cast: CAST);

/// Copies in units of `unit` bytes, which divide rows and strides.
fn copy_rows(kernel: &'static Kernel, unit: usize, a: &Args<CopyRows>) -> Vec<Launch> {
    let size = a.x.dtype.size();
    let width = a.x.cols * size / unit;
    let params = CopyRowsParams {
        batch: a.batch as u32,
        count: a.count as u32,
        from: a.from as u32,
        to: a.to as u32,
        x_rows: (a.x.rows / a.batch) as u32,
        out_rows: (a.out.rows / a.batch) as u32,
        width: width as u32,
        x_pitch: (a.x.stride * size / unit) as u32,
        out_pitch: (a.out.stride * size / unit) as u32,
        unit: unit as u32,
    };
    launch(kernel, a.batch * a.count * width, vec![a.x.address(), a.out.address()], &params)
}

fn copyable(a: &Args<CopyRows>) -> Result<(), &'static str> {
    let size = a.x.dtype.size();
    (a.x.dtype == a.out.dtype).then_some(()).ok_or("the types differ")?;
    matches!(size, 2 | 4).then_some(()).ok_or("elements are neither 2 nor 4 bytes")?;
    counts(&[&a.x, &a.out])?;
    grid_fits(a.batch * a.count * a.x.cols)
}

/// Best first; the last one takes every type of 2 or 4 bytes, window and alignment.
pub static COPY_ROWS: &[Variant<CopyRows>] = &[
    Variant {
        name: "copy_rows_vector_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            let aligned = a.x.aligned() && a.out.aligned();
            aligned.then_some(()).ok_or("an operand's rows are not aligned to 16 bytes")?;
            copyable(a)
        },
        scratch: |_, _| 0,
        launches: |a, _| copy_rows(&COPY_ROWS_VECTOR, 16, a),
    },
    Variant {
        name: "copy_rows_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| copyable(a),
        scratch: |_, _| 0,
        launches: |a, _| copy_rows(&COPY_ROWS_ANY, a.x.dtype.size(), a),
    },
];
variants!(Cuda, CopyRows: COPY_ROWS);
