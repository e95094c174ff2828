//! Copies of whole rows. `shaders/copy_rows.wgsl` explains the shaders.

use bytemuck::{Pod, Zeroable};

use super::{
    Constants, NEEDS, THREADS, combinations, counts, dispatch, in_elements, in_vectors, most_rows,
    moving, words,
};
use crate::backend::gpu::variants;
use crate::backend::wgpu::launch::{
    Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, blocks,
};
use crate::op::CopyRows;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    grid: Grid,
    /// Vectors or elements of a row.
    width: u32,
    /// Vectors or rows in total.
    total: u32,
    count: u32,
    x_rows: u32,
    out_rows: u32,
    x_base: u32,
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
}

static VECTORS: Shader = Shader {
    name: "copy_rows",
    sources: &[
        include_str!("../../../../shaders/common.wgsl"),
        include_str!("../../../../shaders/copy_rows.wgsl"),
    ],
    params_bytes: size_of::<Params>(),
    buffers: 2,
};
static ANY: Shader = Shader {
    name: "copy_rows_any",
    sources: &[
        include_str!("../../../../shaders/common.wgsl"),
        include_str!("../../../../shaders/copy_rows_any.wgsl"),
    ],
    params_bytes: size_of::<Params>(),
    buffers: 2,
};

/// Rows to copy, in windows that begin with the first of them. `x_rows` and `out_rows` are the
/// distances from image to image.
#[derive(Clone, Copy)]
struct Copy {
    x: Matrix,
    out: Matrix,
    batch: usize,
    count: usize,
    x_rows: usize,
    out_rows: usize,
}

impl CopyRows<Matrix> {
    /// Pieces that fit into windows.
    fn pieces(&self, device: &WgpuDevice) -> Vec<Copy> {
        if self.batch * self.count * self.x.cols == 0 {
            return vec![];
        }
        let (x_rows, out_rows) = (self.x.rows / self.batch, self.out.rows / self.batch);
        let piece = |image: usize, batch: usize, first: usize, count: usize| Copy {
            x: self.x.band(image * x_rows + self.from + first, (batch - 1) * x_rows + count),
            out: self.out.band(image * out_rows + self.to + first, (batch - 1) * out_rows + count),
            batch,
            count,
            x_rows,
            out_rows,
        };
        let all = piece(0, self.batch, 0, self.count);
        if all.x.binds(device) && all.out.binds(device) {
            return vec![all];
        }
        let most = most_rows(&[&self.x, &self.out], device);
        let of_image =
            |p: usize| blocks(self.count, most, 1).map(move |r| piece(p, 1, r.start, r.len()));
        (0..self.batch).flat_map(of_image).collect()
    }

    fn takes_any(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        (self.x.dtype == self.out.dtype).then_some(()).ok_or("the types differ")?;
        matches!(self.x.dtype.size(), 2 | 4)
            .then_some(())
            .ok_or("elements are neither 2 nor 4 bytes")?;
        counts(&[&self.x, &self.out], device)
    }

    fn takes_vectors(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        self.takes_any(device)?;
        let whole = self.x.whole_vectors() && self.out.whole_vectors();
        whole.then_some(()).ok_or("an operand's rows are not whole vectors of 16 bytes")
    }

    fn by_vectors(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let one = |c: Copy| {
            let (x, x_base, x_stride) = in_vectors(&c.x, device);
            let (out, out_base, out_stride) = in_vectors(&c.out, device);
            let width = c.x.cols * c.x.dtype.size() / 16;
            let total = c.batch * c.count * width;
            let params =
                Params { x_base, x_stride, out_base, out_stride, ..c.params(width, total) };
            let groups = total.div_ceil(THREADS);
            moving(
                dispatch(&VECTORS, vec![], vec![x, out], &params, groups, total * 4),
                2 * 16 * total,
            )
        };
        self.pieces(device).into_iter().map(one).collect()
    }

    fn by_words(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let one = |c: Copy| {
            let (x, x_base, x_stride) = in_elements(&c.x, device);
            let (out, out_base, out_stride) = in_elements(&c.out, device);
            let rows = c.batch * c.count;
            let params =
                Params { x_base, x_stride, out_base, out_stride, ..c.params(c.x.cols, rows) };
            let constants = vec![("SIZE", c.x.dtype.size() as f64)];
            let groups = (rows * words(&c.out)).div_ceil(THREADS);
            let elements = rows * c.x.cols;
            let moved = 2 * c.x.dtype.size() * elements;
            moving(dispatch(&ANY, constants, vec![x, out], &params, groups, elements), moved)
        };
        self.pieces(device).into_iter().map(one).collect()
    }
}

impl Copy {
    fn params(&self, width: usize, total: usize) -> Params {
        Params {
            width: width as u32,
            total: total as u32,
            count: self.count as u32,
            x_rows: self.x_rows as u32,
            out_rows: self.out_rows as u32,
            ..Zeroable::zeroed()
        }
    }
}

/// Best first; the last one takes every type of 2 or 4 bytes, window and alignment.
pub static COPY_ROWS: &[Variant<CopyRows>] = &[
    Variant {
        name: "copy_rows_any_vectors",
        needs: NEEDS,
        accepts: |a, d| a.takes_vectors(d),
        scratch: |_, _| 0,
        launches: |a, d| a.by_vectors(d),
    },
    Variant {
        name: "copy_rows_any",
        needs: NEEDS,
        accepts: |a, d| a.takes_any(d),
        scratch: |_, _| 0,
        launches: |a, d| a.by_words(d),
    },
];
variants!(Wgpu, CopyRows: COPY_ROWS);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let any = combinations(&[("SIZE", &[2.0, 4.0])]).into_iter().map(|set| (&ANY, set, NEEDS));
    [(&VECTORS, vec![], NEEDS)].into_iter().chain(any).collect()
}
