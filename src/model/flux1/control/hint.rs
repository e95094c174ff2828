//! The pixels of a control image to tokens (XLabs).

use super::ControlConfig;
use crate::dtype::DType;
use crate::op::{Cast, Conv2d, ConvShape, Pack, Program, Recorder, Silu};
use crate::tensor::Tensor;

/// Channels of an image.
const RGB: usize = 3;
/// Strides of the convolutions: an eighth of the sides in all, as many as the autoencoder's.
const STRIDES: [usize; 8] = [1, 1, 2, 1, 2, 1, 2, 1];

/// A 3x3 convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HintConv {
    pub inputs: usize,
    pub outputs: usize,
    stride: usize,
}

/// The name of convolution `i` (in `input_hint_block`, every second layer is a SiLU).
pub(super) fn layer(i: usize) -> String {
    format!("input_hint_block.{}", 2 * i)
}

/// All of them, `channels` wide, to `out` channels.
pub(super) fn convs(channels: usize, out: usize) -> Vec<HintConv> {
    let last = STRIDES.len() - 1;
    let conv = |(i, stride)| HintConv {
        inputs: if i == 0 { RGB } else { channels },
        outputs: if i == last { out } else { channels },
        stride,
    };
    STRIDES.into_iter().enumerate().map(conv).collect()
}

/// The pixels along the edge of a token: the strides, and 2 x 2 pixels of the last convolution.
pub const TOKEN_PIXELS: usize = 16;

/// The tokens of a control image of `height x width` pixels, both multiples of [`TOKEN_PIXELS`].
///
/// Input: `pixels` (height * width x 3, f32, from -1 to 1). Output: `condition` (a row for each
/// token, [`ControlConfig::condition_cols`], f32).
pub fn hint(c: &ControlConfig, height: usize, width: usize, act: DType) -> Program {
    let mut r = Recorder::new("hint");
    let pixels = r.input("pixels", height * width, RGB, DType::F32);
    let tokens = height / TOKEN_PIXELS * (width / TOKEN_PIXELS);
    let out = r.output("condition", tokens, c.condition_cols, DType::F32);
    r.scope("hint");
    let cast = |r: &mut Recorder, label: &str, x: Tensor, dtype: DType| {
        if x.dtype == dtype {
            return x;
        }
        let out = r.temp(x.rows, x.cols, dtype);
        r.push(label, Cast { x: x.all(), out: out.all() });
        out
    };
    let mut x = cast(&mut r, "cast", pixels, act);
    let mut size = (height, width);
    let convs = c.hint_convs();
    for (i, conv) in convs.iter().enumerate() {
        let shape = ConvShape {
            batch: 1,
            height: size.0,
            width: size.1,
            in_channels: conv.inputs,
            out_channels: conv.outputs,
            kernel: 3,
            stride: conv.stride,
            pad_before: 1,
            pad_after: 1,
            upsample: false,
        };
        size = shape.output();
        let w = r.weight(format!("{}.weight", layer(i)), conv.outputs, 9 * conv.inputs);
        let bias = Some(r.weight(format!("{}.bias", layer(i)), 1, conv.outputs));
        let to = r.temp(size.0 * size.1, conv.outputs, act);
        r.push(&format!("conv.{i}"), Conv2d { x, w, bias, shape, residual: None, out: to });
        if i + 1 < convs.len() {
            r.push(&format!("silu.{i}"), Silu { x: to, out: to });
        }
        x = to;
    }
    let x = cast(&mut r, "cast_tokens", x, DType::F32);
    r.push("pack", Pack { x, batch: 1, height: size.0, width: size.1, out });
    r.finish()
}
