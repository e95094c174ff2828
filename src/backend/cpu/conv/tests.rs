use super::super::gemm::testing::{Random, error, runnable, tolerance, weight};
use super::*;
use crate::dtype::DType::{self, *};

/// The convolution by its definition, in f64.
fn by_definition(x: &[f32], w: &HostWeight, bias: &[f32], s: &ConvShape) -> Vec<f64> {
    let values = w.to_f32();
    let ((sh, sw), (oh, ow)) = (s.source(), s.output());
    let mut out = Vec::new();
    for image in 0..s.batch {
        for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            for (o, bias) in bias.iter().enumerate() {
                let mut sum = f64::from(*bias);
                for (ky, kx) in (0..s.kernel).flat_map(|y| (0..s.kernel).map(move |x| (y, x))) {
                    let y = (oy * s.stride + ky) as isize - s.pad_before as isize;
                    let px = (ox * s.stride + kx) as isize - s.pad_before as isize;
                    if y < 0 || px < 0 || y >= sh as isize || px >= sw as isize {
                        continue;
                    }
                    let (mut y, mut px) = (y as usize, px as usize);
                    if s.upsample {
                        (y, px) = (y / 2, px / 2);
                    }
                    for c in 0..s.in_channels {
                        let pixel = x[((image * s.height + y) * s.width + px) * s.in_channels + c];
                        let tap = values[((o * s.in_channels + c) * s.kernel + ky) * s.kernel + kx];
                        sum += f64::from(pixel) * f64::from(tap);
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn shape(size: (usize, usize), channels: (usize, usize), kernel: usize) -> ConvShape {
    ConvShape {
        batch: 1,
        height: size.0,
        width: size.1,
        in_channels: channels.0,
        out_channels: channels.1,
        kernel,
        stride: 1,
        pad_before: kernel / 2,
        pad_after: kernel / 2,
        upsample: false,
    }
}

fn check(s: ConvShape, dtype: DType, in_place: bool) {
    let mut random = Random::new(s.height as u64 * 31 + s.in_channels as u64);
    let x = random.vec(s.batch * s.height * s.width * s.in_channels);
    let w = weight(&mut random, s.in_channels * s.kernel * s.kernel, &[(s.out_channels, dtype)]);
    let bias = random.vec(s.out_channels);
    let (oh, ow) = s.output();
    let residual = random.vec(s.batch * oh * ow * s.out_channels);
    let mut want = by_definition(&x, &w, &bias, &s);
    if in_place {
        want.iter_mut().zip(&residual).for_each(|(w, r)| *w += f64::from(*r));
    }
    for v in runnable(CONV2D) {
        let mut data = if in_place { residual.clone() } else { vec![f32::NAN; residual.len()] };
        let out = Out::dense(&mut data, s.out_channels);
        let mut scratch = vec![0xff; conv2d_scratch(v, &s, rayon::current_num_threads()) + 1];
        let r = in_place.then(|| out.read());
        conv2d(In::dense(&x, s.in_channels), &w, Some(&bias), &s, r, out, &mut scratch[1..], v);
        let e = error(&data, &want);
        assert!(e <= tolerance(v), "{} {} {s:?}: {e:e}", v.name, dtype.name());
    }
}

#[test]
fn three_by_three_and_one_by_one() {
    for (size, channels) in
        [((1, 1), (1, 1)), ((5, 7), (3, 5)), ((16, 9), (16, 40)), ((3, 50), (129, 33))]
    {
        for dtype in [F32, BF16, F16] {
            check(shape(size, channels, 3), dtype, false);
            check(shape(size, channels, 1), dtype, true);
        }
    }
}

#[test]
fn k_in_several_blocks_and_channels_in_several_panels() {
    check(shape((7, 6), (100, 300), 3), F32, true);
    check(shape((4, 4), (520, 35), 3), BF16, false);
}

#[test]
fn stride_two_pads_below_and_right() {
    for (height, width) in [(8, 6), (7, 5)] {
        let s = ConvShape {
            stride: 2,
            pad_before: 0,
            pad_after: 1,
            ..shape((height, width), (6, 10), 3)
        };
        check(s, F32, false);
        check(
            ConvShape {
                stride: 2,
                pad_after: 0,
                pad_before: 0,
                ..shape((height, width), (6, 10), 1)
            },
            F32,
            false,
        );
    }
}

#[test]
fn enlarged_inputs_and_several_images() {
    let s = ConvShape { upsample: true, batch: 3, ..shape((5, 4), (10, 12), 3) };
    check(s, F32, true);
    check(ConvShape { kernel: 1, pad_before: 0, pad_after: 0, ..s }, BF16, false);
    check(ConvShape { upsample: false, ..s }, F16, false);
}

#[test]
fn threads_do_not_change_a_bit() {
    let s = shape((20, 20), (64, 48), 3);
    let mut random = Random::new(9);
    let x = random.vec(400 * 64);
    let w = weight(&mut random, 64 * 9, &[(48, BF16)]);
    for v in runnable(CONV2D) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut data = vec![f32::NAN; 400 * 48];
                let mut scratch = vec![0; conv2d_scratch(v, &s, threads)];
                let out = Out::dense(&mut data, 48);
                conv2d(In::dense(&x, 64), &w, None, &s, None, out, &mut scratch, v);
                data
            })
        };
        let one = on(1);
        assert!(one.iter().all(|v| v.is_finite()) && one == on(3), "{}", v.name);
    }
}
