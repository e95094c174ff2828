//! Stages as operations: shared by the program of a whole network and those of bands.

use super::network::{Conv, Kernel, Network, Norm, Plane, PlaneId, Work};
use crate::dtype::DType;
use crate::op::{
    Attention, Cast, Conv2d, ConvShape, GroupNorm, GroupStatistics, Pack, Program, Recorder, Unpack,
};
use crate::tensor::Tensor;

/// The name of a program's output of statistics.
pub(super) const STATISTICS: &str = "statistics";

/// Geometry of `kernel` over `x`.
pub(super) fn shape(kernel: Kernel, x: Plane, out_channels: usize) -> ConvShape {
    let (kernel_size, stride, before, after) = match kernel {
        Kernel::Point => (1, 1, 0, 0),
        Kernel::Same | Kernel::Up => (3, 1, 1, 1),
        Kernel::Down => (3, 2, 0, 1),
    };
    ConvShape {
        batch: 1,
        height: x.height,
        width: x.width,
        in_channels: x.channels,
        out_channels,
        kernel: kernel_size,
        stride,
        pad_before: before,
        pad_after: after,
        upsample: kernel == Kernel::Up,
    }
}

impl Network {
    /// The half as one program, for the whole image.
    pub fn whole(&self) -> Program {
        let decodes = self.half == "decoder";
        let mut r = Recorder::new(if decodes { "decode" } else { "encode" });
        let (first, last) = (self.planes[0], self.planes[self.planes.len() - 1]);
        let mut tensors: Vec<Option<Tensor>> = vec![None; self.planes.len()];
        let mut statistics = tensors.clone();
        let tokens = |r: &mut Recorder| {
            let latents = if decodes { first } else { last };
            // The encoder's last plane has the means and the variances of the latents.
            let channels = latents.channels / if decodes { 1 } else { 2 };
            let (rows, cols) = (latents.pixels() / 4, 4 * channels);
            match decodes {
                true => r.input("latents", rows, cols, DType::F32),
                false => r.output("latents", rows, cols, DType::F32),
            }
        };
        let io = tokens(&mut r);
        match decodes {
            true => {
                let pixels = r.output("pixels", last.pixels(), last.channels, last.dtype);
                tensors[self.planes.len() - 1] = Some(pixels);
            }
            false => {
                let pixels = r.input("pixels", first.pixels(), first.channels, first.dtype);
                tensors[0] = Some(pixels);
            }
        }
        for (index, stage) in self.stages.iter().enumerate() {
            r.scope(&stage.scope);
            for out in stage.work.writes() {
                let Plane { channels, dtype, .. } = self.planes[out];
                let rows = self.planes[out].pixels();
                tensors[out].get_or_insert_with(|| r.temp(rows, channels, dtype));
            }
            let tensor = |plane: PlaneId| tensors[plane].expect("written by an earlier stage");
            match &stage.work {
                Work::Unpack { .. } => self.unpack(&mut r, &stage.work, io, tensor),
                Work::Pack { .. } => self.pack(&mut r, &stage.work, tensor, io),
                Work::Attend { q, k, v, out } => {
                    self.attend(&mut r, [*q, *k, *v, *out].map(tensor));
                }
                Work::Convs { x, norm, convs } => {
                    let mut from = self.cast(&mut r, tensor(*x));
                    if let Some(norm) = norm {
                        // A plane that no later stage reads is replaced.
                        let is_residual = convs.iter().any(|conv| conv.residual == Some(*x));
                        let dead = self.last_reader(*x) == Some(index) && !is_residual;
                        let to = match dead {
                            true => from,
                            false => r.temp(from.rows, from.cols, from.dtype),
                        };
                        let sums = statistics[*x].expect("computed with the plane");
                        self.norm(&mut r, norm, from, sums, self.planes[*x].width, to);
                        from = to;
                    }
                    for conv in convs {
                        let residual = conv.residual.map(tensor);
                        let shape =
                            shape(conv.kernel, self.planes[*x], self.planes[conv.out].channels);
                        self.conv_op(&mut r, conv, shape, from, residual, tensor(conv.out));
                    }
                }
            }
            for out in stage.work.writes().into_iter().filter(|out| self.normalised(*out)) {
                let to = r.temp(self.planes[out].height, 2 * self.groups, DType::F32);
                let x = tensors[out].expect("written above");
                self.statistics(&mut r, x, self.planes[out].width, to);
                statistics[out] = Some(to);
            }
        }
        r.finish()
    }

    /// The pixels of an image, as the device computes.
    pub(super) fn cast(&self, r: &mut Recorder, x: Tensor) -> Tensor {
        if x.dtype == self.act {
            return x;
        }
        let out = r.temp(x.rows, x.cols, self.act);
        r.push("cast", Cast { x: x.all(), out: out.all() });
        out
    }

    pub(super) fn unpack(
        &self,
        r: &mut Recorder,
        work: &Work,
        x: Tensor,
        tensor: impl Fn(PlaneId) -> Tensor,
    ) {
        let Work::Unpack { scale, shift, out } = *work else { unreachable!("asked for by kind") };
        let Plane { height, width, .. } = self.planes[out];
        let out = tensor(out);
        r.push("unpack", Unpack { x, batch: 1, height, width, scale, shift, out });
    }

    pub(super) fn pack(
        &self,
        r: &mut Recorder,
        work: &Work,
        tensor: impl Fn(PlaneId) -> Tensor,
        out: Tensor,
    ) {
        let Work::Pack { x, channels } = *work else { unreachable!("asked for by kind") };
        let Plane { height, width, .. } = self.planes[x];
        let mean = r.temp(height * width, channels, DType::F32);
        r.push("mean", Cast { x: tensor(x).columns(0, channels), out: mean.all() });
        r.push("pack", Pack { x: mean, batch: 1, height, width, out });
    }

    pub(super) fn attend(&self, r: &mut Recorder, [q, k, v, out]: [Tensor; 4]) {
        let attention = Attention {
            q: q.all(),
            k: k.all(),
            v: v.all(),
            batch: 1,
            heads: 1,
            scale: 1.0 / (q.cols as f32).sqrt(),
            causal: false,
            bias: None,
            first: None,
            out: out.all(),
        };
        r.push("attn", attention);
    }

    pub(super) fn norm(
        &self,
        r: &mut Recorder,
        norm: &Norm,
        x: Tensor,
        statistics: Tensor,
        width: usize,
        out: Tensor,
    ) {
        let weight = r.weight(format!("{}.{}.weight", self.half, norm.name), 1, x.cols);
        let bias = r.weight(format!("{}.{}.bias", self.half, norm.name), 1, x.cols);
        let (groups, eps, silu) = (self.groups, self.eps, norm.silu);
        r.push(
            &norm.label,
            GroupNorm { x, statistics, width, weight, bias, groups, eps, silu, out },
        );
    }

    pub(super) fn statistics(&self, r: &mut Recorder, x: Tensor, width: usize, out: Tensor) {
        r.push(STATISTICS, GroupStatistics { x, width, groups: self.groups, out });
    }

    pub(super) fn conv_op(
        &self,
        r: &mut Recorder,
        conv: &Conv,
        shape: ConvShape,
        x: Tensor,
        residual: Option<Tensor>,
        out: Tensor,
    ) {
        let name = |part: &str| format!("{}.{}.{part}", self.half, conv.name);
        let w = r.weight(name("weight"), shape.out_channels, shape.in_channels * shape.taps());
        let bias = Some(r.weight(name("bias"), 1, shape.out_channels));
        r.push(&conv.label, Conv2d { x, w, bias, shape, residual, out });
    }
}
