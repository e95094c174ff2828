//! The shape rules of every operation, checked when it is recorded.

use super::{Epilogue, Op};
use crate::dtype::DType;

macro_rules! rule {
    ($condition:expr, $($why:tt)*) => {
        if !$condition { return Err(format!($($why)*)); }
    };
}

impl Op {
    /// Whether shapes and types fit together; `Err` says what does not.
    pub fn check(&self) -> Result<(), String> {
        match *self {
            Op::Linear { x, w, bias, side, epilogue, out } => {
                rule!(x.cols == w.cols, "x has {} columns, w {}", x.cols, w.cols);
                rule!(out.cols == w.rows, "out has {} columns, w {} rows", out.cols, w.rows);
                rule!(out.rows() == x.rows(), "out has {} rows, x {}", out.rows(), x.rows());
                rule!(
                    bias.is_none_or(|b| b.rows == 1 && b.cols == w.rows),
                    "bias is not 1 x {}",
                    w.rows
                );
                if let Some(side) = side {
                    rule!(
                        side.t.rows == x.rows(),
                        "the side has {} rows, x {}",
                        side.t.rows,
                        x.rows()
                    );
                    rule!(
                        (side.b.rows, side.b.cols) == (w.rows, side.t.cols),
                        "the side's {} for {}",
                        side.b,
                        side.t
                    );
                    rule!(side.t.slot != out.tensor.slot, "the side is the output");
                }
                let residual = match epilogue {
                    Epilogue::Add { residual } => Some(residual),
                    Epilogue::GatedAdd { residual, gate } => {
                        rule!(
                            gate.cols == out.cols,
                            "gate has {} columns, out {}",
                            gate.cols,
                            out.cols
                        );
                        rule!(
                            out.rows() % gate.rows() == 0,
                            "{} rows in {} groups",
                            out.rows(),
                            gate.rows()
                        );
                        Some(residual)
                    }
                    _ => None,
                };
                if let Some(r) = residual {
                    rule!(
                        (r.rows, r.cols) == (out.rows(), out.cols),
                        "residual {r} does not match out"
                    );
                    rule!(out.cols == out.tensor.cols, "a residual needs a whole output tensor");
                }
            }
            Op::Conv2d { x, w, bias, shape, residual, out } => {
                rule!(
                    matches!(shape.kernel, 1 | 3) && matches!(shape.stride, 1 | 2),
                    "kernel {} stride {}",
                    shape.kernel,
                    shape.stride
                );
                rule!(
                    (x.rows, x.cols)
                        == (shape.batch * shape.height * shape.width, shape.in_channels),
                    "x is {x}"
                );
                rule!(
                    (w.rows, w.cols)
                        == (shape.out_channels, shape.in_channels * shape.kernel * shape.kernel),
                    "w is {w}"
                );
                rule!(
                    bias.is_none_or(|b| b.rows == 1 && b.cols == w.rows),
                    "bias is not 1 x {}",
                    w.rows
                );
                let (h, wd) = shape.output();
                rule!(
                    (out.rows, out.cols) == (shape.batch * h * wd, shape.out_channels),
                    "out is {out}, pixels {h} x {wd}"
                );
                rule!(
                    residual.is_none_or(|r| (r.rows, r.cols) == (out.rows, out.cols)),
                    "residual does not match out"
                );
            }
            Op::Attention { q, k, v, batch, heads, bias, first, out, .. } => {
                rule!(k.rows() == q.rows() && v.rows() == q.rows(), "q, k, v differ in rows");
                rule!(
                    k.cols == q.cols && v.cols == q.cols && out.cols == q.cols,
                    "q, k, v, out differ in columns"
                );
                rule!(batch > 0 && q.rows() % batch == 0, "{} rows in {batch} pictures", q.rows());
                rule!(heads > 0 && q.cols % heads == 0, "{} columns in {heads} heads", q.cols);
                let tokens = q.rows() / batch;
                let head = first.map_or(0, |(n, _)| n);
                rule!(
                    head <= tokens && out.rows() == batch * (tokens - head),
                    "out has {} rows",
                    out.rows()
                );
                if let Some((n, t)) = first {
                    rule!((t.rows, t.cols) == (batch * n, q.cols), "first rows go to {t}");
                }
                if let Some(b) = bias {
                    rule!((b.rows, b.cols) == (2 * tokens - 1, heads), "bias is {b}");
                }
            }
            Op::LayerNormModulate { x, shift, scale, out, .. } => {
                rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
                for m in [shift, scale] {
                    rule!(
                        m.cols == x.cols && m.rows() > 0 && x.rows % m.rows() == 0,
                        "modulation {m} for {x}"
                    );
                }
            }
            Op::LayerNorm { x, weight, bias, out, .. } => {
                rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
                for w in [weight, bias] {
                    rule!((w.rows, w.cols) == (1, x.cols), "affine {w} for {x}");
                }
            }
            Op::RmsNorm { x, weight, out, .. } => {
                rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
                rule!((weight.rows, weight.cols) == (1, x.cols), "gain {weight} for {x}");
            }
            Op::QkNormRope {
                qkv, q_gain, k_gain, rope, batch, heads, tokens, first, out, ..
            } => {
                rule!(
                    batch > 0 && qkv.rows % batch == 0 && out.rows == batch * tokens,
                    "qkv {qkv}, out {out}"
                );
                rule!(
                    first + qkv.rows / batch <= tokens,
                    "{} rows at {first} of {tokens}",
                    qkv.rows / batch
                );
                rule!(
                    qkv.cols == out.cols && heads > 0 && qkv.cols % (3 * heads) == 0,
                    "qkv {qkv}, {heads} heads"
                );
                let dim = qkv.cols / (3 * heads);
                rule!(dim % 2 == 0 && (rope.rows, rope.cols) == (tokens, dim), "rope {rope}");
                rule!(rope.dtype == DType::F32, "rope must be f32");
                rule!(
                    [q_gain, k_gain].iter().all(|g| (g.rows, g.cols) == (1, dim)),
                    "gains are not 1 x {dim}"
                );
                rule!(out.slot != qkv.slot || qkv.rows == out.rows, "in place needs all tokens");
            }
            Op::GeluMul { gate: a, up: b, out } | Op::Add { a, b, out } => {
                rule!(
                    (a.rows, a.cols) == (out.rows, out.cols)
                        && (b.rows, b.cols) == (out.rows, out.cols),
                    "{a}, {b}, {out}"
                );
            }
            Op::Silu { x, out } => {
                rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}")
            }
            Op::Embed { table, ids, positions, out } => {
                rule!((ids.rows, ids.cols, ids.dtype) == (out.rows, 1, DType::I32), "ids {ids}");
                rule!(table.cols == out.cols, "table {table}, out {out}");
                rule!(
                    positions.is_none_or(|p| p.cols == out.cols && p.rows > 0),
                    "positions do not match {out}"
                );
            }
            Op::TimestepEmbed { t, out } => {
                rule!(
                    (t.rows, t.cols, t.dtype) == (out.rows, 1, DType::F32) && out.cols % 2 == 0,
                    "t {t}, out {out}"
                );
            }
            Op::Pack { x: pixels, batch, height, width, out: tokens }
            | Op::Unpack { x: tokens, batch, height, width, out: pixels, .. } => {
                rule!(height % 2 == 0 && width % 2 == 0, "{height} x {width} is not even");
                rule!(
                    pixels.rows == batch * height * width,
                    "{pixels} is not {batch} x {height} x {width}"
                );
                rule!(
                    (tokens.rows * 4, tokens.cols) == (pixels.rows, pixels.cols * 4),
                    "tokens {tokens}, pixels {pixels}"
                );
            }
            Op::EulerStep { x, v, params, cfg } => {
                rule!(
                    x.dtype == DType::F32 && params.dtype == DType::F32,
                    "x and params must be f32"
                );
                rule!((params.rows, params.cols) == (1, 2), "params {params}");
                rule!(
                    (v.rows, v.cols) == (x.rows * if cfg { 2 } else { 1 }, x.cols),
                    "x {x}, v {v}"
                );
            }
            Op::GroupNorm { x, weight, bias, batch, groups, out, .. } => {
                rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
                rule!(
                    batch > 0 && x.rows % batch == 0 && groups > 0 && x.cols % groups == 0,
                    "{x} in {groups} groups"
                );
                rule!(
                    [weight, bias].iter().all(|w| (w.rows, w.cols) == (1, x.cols)),
                    "affine does not match {x}"
                );
            }
            Op::CopyRows { x, out, batch, from, to, count } => {
                rule!(
                    x.cols == out.cols && x.dtype == out.dtype && x.slot != out.slot,
                    "x {x}, out {out}"
                );
                rule!(
                    batch > 0 && x.rows % batch == 0 && out.rows % batch == 0,
                    "{batch} pictures"
                );
                rule!(
                    from + count <= x.rows / batch && to + count <= out.rows / batch,
                    "rows out of range"
                );
            }
            Op::Cast { x, out } => {
                rule!(
                    (x.rows(), x.cols) == (out.rows(), out.cols)
                        && x.tensor.slot != out.tensor.slot,
                    "x {x}, out {out}"
                );
            }
        }
        Ok(())
    }
}
