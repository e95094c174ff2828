//! One stage for some rows of an image.

use std::ops::Range;

use super::network::{Kernel, Network, Plane, PlaneId, Stage, Work};
use super::record::{STATISTICS, shape};
use crate::dtype::DType;
use crate::op::{Program, Recorder};
use crate::tensor::Tensor;

/// Names of the inputs and outputs that belong to the planes of a stage, in the order of
/// [`Work::reads`] and [`Work::writes`].
const READS: [&str; 3] = ["x", "x.1", "x.2"];
const WRITES: [&str; 3] = ["out", "out.1", "out.2"];

/// Keys and queries per block: the attention of any device computes this many queries alike,
/// whatever is computed with them, because its tiles divide this number.
const QUERIES: usize = 128;

/// The fewest pixels of a band: below that, some devices have other kernels.
const LEAST_PIXELS: usize = 1024;

/// The rows of planes that one run of a band's program reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Rows of the plane that the stage works on; for [`Work::Attend`] pixels of the queries.
    pub input: Range<usize>,
    /// Rows of the results (pixels, for attention) that the run computes. They may reach beyond the
    /// plane.
    pub output: Range<usize>,
    /// Those of them that are right. The others are next to the border of the band, not of the
    /// image, where the program sees zeros in place of a row.
    pub valid: Range<usize>,
}

impl Network {
    /// The kernel of a stage, and the plane that it is divided by.
    fn division(&self, stage: &Stage) -> (Option<Kernel>, PlaneId) {
        match &stage.work {
            Work::Unpack { out, .. } => (None, *out),
            Work::Pack { x, .. } => (None, *x),
            Work::Attend { q, .. } => (None, *q),
            Work::Convs { x, convs, .. } => (Some(convs[0].kernel), *x),
        }
    }

    /// The sizes of bands in which a stage can run: rows of the plane that it works on (pixels, for
    /// attention), the largest one first. The first one is everything.
    pub fn band_sizes(&self, stage: &Stage) -> Vec<usize> {
        let (kernel, plane) = self.division(stage);
        let plane = self.planes[plane];
        let (all, least, unit) = match (&stage.work, kernel) {
            (Work::Attend { .. }, _) => (plane.pixels(), QUERIES, QUERIES),
            (_, None) => return vec![plane.height],
            (_, Some(_)) => (plane.height, LEAST_PIXELS.div_ceil(plane.width).max(4), 2),
        };
        let mut sizes = vec![all];
        let mut size = all;
        while size > least {
            size = (size / 2).next_multiple_of(unit).max(least.next_multiple_of(unit));
            if size >= *sizes.last().expect("not empty") {
                break;
            }
            sizes.push(size);
        }
        sizes
    }

    /// The windows that cover a stage in bands of `size` ([`Network::band_sizes`]).
    pub fn windows(&self, stage: &Stage, size: usize) -> Vec<Window> {
        let (kernel, plane) = self.division(stage);
        let plane = self.planes[plane];
        if let Work::Attend { .. } = stage.work {
            let block = |start: usize| {
                let valid = start..plane.pixels().min(start + size);
                Window { input: valid.clone(), output: start..start + size, valid }
            };
            return (0..plane.pixels()).step_by(size).map(block).collect();
        }
        let Some(kernel) = kernel else {
            let all = 0..plane.height;
            return vec![Window { input: all.clone(), output: all.clone(), valid: all }];
        };
        let end = match kernel {
            Kernel::Point | Kernel::Same => plane.height,
            Kernel::Up => 2 * plane.height,
            Kernel::Down => plane.height / 2,
        };
        let (mut windows, mut done) = (Vec::new(), 0);
        while done < end {
            // The first row that the row `done` needs.
            let first = match kernel {
                Kernel::Point => done,
                Kernel::Same => done.saturating_sub(1),
                Kernel::Up => done.saturating_sub(1) / 2,
                Kernel::Down => 2 * done,
            };
            let input = window(first.min(plane.height - size), size);
            let (above, below) =
                (usize::from(input.start > 0), usize::from(input.end < plane.height));
            let (output, above, below) = match kernel {
                Kernel::Point => (input.clone(), 0, 0),
                Kernel::Same => (input.clone(), above, below),
                Kernel::Up => (2 * input.start..2 * input.end, above, below),
                Kernel::Down => (input.start / 2..input.end / 2, 0, below),
            };
            let valid = output.start + above..output.end - below;
            debug_assert!(valid.start <= done && valid.end > done, "{kernel:?} {input:?}");
            done = valid.end;
            windows.push(Window { input, output, valid });
        }
        windows
    }

    /// The program of a stage in bands of `size`. Inputs: [`Network::band_inputs`], and
    /// `statistics` of the whole plane if the stage normalises it. Outputs:
    /// [`Network::band_outputs`], and `statistics` of the rows that it computes if a later stage
    /// normalises them. `latents` are the packed tokens of [`Work::Unpack`] and [`Work::Pack`].
    pub fn band(&self, stage: &Stage, size: usize) -> Program {
        let name = format!("{}.{}", &self.half[..6], stage.scope);
        let mut r = Recorder::new(name);
        r.scope(&stage.scope);
        let reads = self.band_tensors(&stage.work.reads(), stage, size);
        let writes = self.band_tensors(&stage.work.writes(), stage, size);
        let mut tensors: Vec<(PlaneId, Tensor)> = Vec::new();
        for (name, (id, plane)) in READS.into_iter().zip(&reads) {
            let tensor = r.input(name, plane.pixels(), plane.channels, plane.dtype);
            tensors.push((*id, tensor));
        }
        for (name, (id, plane)) in WRITES.into_iter().zip(&writes) {
            let tensor = r.output(name, plane.pixels(), plane.channels, plane.dtype);
            tensors.push((*id, tensor));
        }
        let tensor = |id: PlaneId| tensors.iter().find(|t| t.0 == id).expect("in the stage").1;
        match &stage.work {
            Work::Unpack { out, .. } => {
                let Plane { channels, .. } = self.planes[*out];
                let rows = self.planes[*out].pixels() / 4;
                let io = r.input("latents", rows, 4 * channels, DType::F32);
                self.unpack(&mut r, &stage.work, io, tensor);
            }
            Work::Pack { x, channels } => {
                let rows = self.planes[*x].pixels() / 4;
                let io = r.output("latents", rows, 4 * channels, DType::F32);
                self.pack(&mut r, &stage.work, tensor, io);
            }
            Work::Attend { q, k, v, out } => self.attend(&mut r, [*q, *k, *v, *out].map(tensor)),
            Work::Convs { x, norm, convs } => {
                let plane = Plane { height: size, ..self.planes[*x] };
                let mut from = self.cast(&mut r, tensor(*x));
                if let Some(norm) = norm {
                    let rows = self.planes[*x].height;
                    let sums = r.input(STATISTICS, rows, 2 * self.groups, DType::F32);
                    let to = r.temp(from.rows, from.cols, from.dtype);
                    self.norm(&mut r, norm, from, sums, plane.width, to);
                    from = to;
                }
                for conv in convs {
                    let shape = shape(conv.kernel, plane, self.planes[conv.out].channels);
                    let residual = conv.residual.map(tensor);
                    self.conv_op(&mut r, conv, shape, from, residual, tensor(conv.out));
                }
            }
        }
        for (id, plane) in writes.iter().filter(|(id, _)| self.normalised(*id)) {
            let to = r.output(STATISTICS, plane.height, 2 * self.groups, DType::F32);
            self.statistics(&mut r, tensor(*id), plane.width, to);
        }
        r.finish()
    }

    /// The planes that a band's program reads, each with the name of the input and whether it reads
    /// the whole plane; otherwise it reads the rows of [`Window::input`] of the first one, and
    /// those of [`Window::output`] of the others.
    pub fn band_inputs(&self, stage: &Stage) -> Vec<(&'static str, PlaneId, bool)> {
        let whole = |i: usize| matches!(stage.work, Work::Attend { .. }) && i > 0;
        let reads = stage.work.reads().into_iter().enumerate();
        reads.map(|(i, plane)| (READS[i], plane, whole(i))).collect()
    }

    /// The planes of which a band's program computes the rows of [`Window::output`], each with the
    /// name of the output.
    pub fn band_outputs(&self, stage: &Stage) -> Vec<(&'static str, PlaneId)> {
        stage.work.writes().into_iter().zip(WRITES).map(|(plane, name)| (name, plane)).collect()
    }

    /// The planes as a band's program sees them.
    fn band_tensors(&self, ids: &[PlaneId], stage: &Stage, size: usize) -> Vec<(PlaneId, Plane)> {
        let (kernel, divided) = self.division(stage);
        let of = |id: PlaneId| {
            let plane = self.planes[id];
            let height = match (&stage.work, kernel) {
                (Work::Attend { q, out, .. }, _) if id == *q || id == *out => {
                    return Plane { height: size, width: 1, ..plane };
                }
                (_, None) => plane.height,
                (_, Some(_)) if id == divided => size,
                (_, Some(Kernel::Point | Kernel::Same)) => size,
                (_, Some(Kernel::Up)) => 2 * size,
                (_, Some(Kernel::Down)) => size / 2,
            };
            Plane { height, ..plane }
        };
        ids.iter().map(|&id| (id, of(id))).collect()
    }
}

fn window(start: usize, size: usize) -> Range<usize> {
    start..start + size
}
