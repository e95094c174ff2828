//! Convolutions.

use flux_fast::dtype::DType;
use flux_fast::op::{Conv2d, ConvShape};

use crate::all_ran;
use crate::case::Case;

#[test]
fn conv2d_in_every_geometry() {
    let base = ConvShape {
        batch: 1,
        height: 7,
        width: 5,
        in_channels: 16,
        out_channels: 24,
        kernel: 3,
        stride: 1,
        pad_before: 1,
        pad_after: 1,
        upsample: false,
    };
    let shapes = [
        base,
        ConvShape { batch: 2, in_channels: 3, out_channels: 33, ..base },
        ConvShape { batch: 2, height: 8, width: 6, stride: 2, pad_before: 0, ..base },
        ConvShape { upsample: true, ..base },
        ConvShape { kernel: 1, pad_before: 0, pad_after: 0, ..base },
        ConvShape { height: 1, width: 1, ..base },
        ConvShape { height: 33, width: 40, out_channels: 3, ..base },
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut c = Case::new();
            let x = c.input(shape.batch * shape.height * shape.width, shape.in_channels);
            let w = c.weight(
                shape.out_channels,
                shape.in_channels * shape.kernel * shape.kernel,
                dtype,
            );
            let bias = Some(c.vector(shape.out_channels));
            let (h, wd) = shape.output();
            let out = c.output(shape.batch * h * wd, shape.out_channels);
            c.check(Conv2d { x, w, bias, shape, residual: None, out }, 0);
            c.check_nan(Conv2d { x, w, bias, shape, residual: None, out }, x);
            let residual = c.input(out.rows, out.cols);
            let out = if i % 2 == 0 { out } else { residual };
            c.check(Conv2d { x, w, bias: None, shape, residual: Some(residual), out }, 0);
        }
    }
    all_ran(&["conv2d"]);
}
