//! Embeddings of tokens and times, latents, and the step of the sampler.

use flux_fast::dtype::DType;
use flux_fast::op::{Embed, EulerStep, Op, Pack, TimestepEmbed, Unpack};
use flux_fast::tensor::Scale;

use crate::case::Case;
use crate::{ROWS, all_ran};

#[test]
fn embeddings() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for rows in ROWS {
            let mut c = Case::new();
            let ids: Vec<i32> = (0..rows).map(|_| (c.random.bits() % 50) as i32).collect();
            let ids = c.ids(&ids);
            let half = Scale::Tensor(0.5);
            let table = c.weight_of(77, &[(30, dtype, Scale::One), (20, dtype, half)]);
            let (positions, out) = (c.weight(16, 77, dtype), c.output(rows, 77));
            c.check(Embed { table, ids, positions: None, out }, 0);
            c.check(Embed { table, ids, positions: Some(positions), out }, 0);
        }
    }
    all_ran(&["embed"]);
}

#[test]
fn time_pixels_and_steps() {
    let mut c = Case::new();
    let times: Vec<f32> = (0..17).map(|_| c.random.number().abs() / 2.0).collect();
    let (t, out) = (c.given(17, 1, &times), c.output(17, 256));
    c.check(TimestepEmbed { t, out }, 0);
    c.check_nan(TimestepEmbed { t, out }, t);
    for (batch, height, width, channels) in [(1, 2, 2, 1), (2, 6, 10, 16), (1, 34, 30, 16)] {
        let mut c = Case::new();
        let pixels = c.input(batch * height * width, channels);
        let tokens = c.input(pixels.rows / 4, 4 * channels);
        let (packed, unpacked) =
            (c.output(tokens.rows, tokens.cols), c.output(pixels.rows, pixels.cols));
        let pack = Op::Pack(Pack { x: pixels, batch, height, width, out: packed });
        let unpack = Op::Unpack(Unpack {
            x: tokens,
            batch,
            height,
            width,
            scale: 2.5,
            shift: -0.125,
            out: unpacked,
        });
        c.check(pack, 0);
        c.check(unpack, 0);
        c.check_nan(pack, pixels);
        c.check_nan(unpack, tokens);
        for cfg in [false, true] {
            let v = c.input(pixels.rows * if cfg { 2 } else { 1 }, channels);
            let params = c.given(1, 2, &[-0.3, 3.5]);
            c.check(EulerStep { x: pixels, v, params, cfg }, 0);
            c.check_nan(EulerStep { x: pixels, v, params, cfg }, v);
        }
    }
    all_ran(&["timestep_embed", "pack", "unpack", "euler_step"]);
}
