//! Attention, and the preparation of its queries and keys.

use flux_fast::op::{Attention, Op, Pairs, QkNormRope};
use flux_fast::tensor::Tensor;

use crate::case::{Case, runnable};
use crate::{all_ran, wgpu};

#[test]
fn attention_of_every_kind() {
    // (images, tokens, heads, head width)
    let sizes = [
        (1, 1, 1, 8),
        (2, 17, 3, 64),
        (1, 255, 2, 128),
        (1, 257, 2, 32),
        (2, 130, 1, 512),
        (1, 96, 2, 40),
        (1, 77, 2, 7),
    ];
    for (batch, tokens, heads, dim) in sizes {
        let width = heads * dim;
        let mut c = Case::new();
        let qkv = c.input(batch * tokens, 3 * width);
        let out = c.output(batch * tokens, width + 5);
        let bias_table = c.input(2 * tokens - 1, heads);
        let (q, k, v) =
            (qkv.columns(0, width), qkv.columns(width, width), qkv.columns(2 * width, width));
        // With the largest scale single keys dominate; with the smallest the result is an average.
        for (scale, causal, with_bias) in [
            (1.0 / (dim as f32).sqrt(), false, false),
            (0.7, true, false),
            (0.1, false, true),
            (0.3, true, true),
        ] {
            let bias = with_bias.then_some(bias_table);
            let out = out.columns(3, width);
            let op = Op::Attention(Attention {
                q,
                k,
                v,
                batch,
                heads,
                scale,
                causal,
                bias,
                first: None,
                out,
            });
            c.check(op, batch * tokens * 5);
        }
        let op = |first, out: Tensor| {
            let scale = 1.0 / (dim as f32).sqrt();
            Op::Attention(Attention {
                q,
                k,
                v,
                batch,
                heads,
                scale,
                causal: false,
                bias: None,
                first,
                out: out.all(),
            })
        };
        let whole = c.output(batch * tokens, width);
        c.check_nan(op(None, whole), qkv);
        if tokens > 5 {
            let (text, image) = (c.output(batch * 5, width), c.output(batch * (tokens - 5), width));
            c.check(op(Some((5, text)), image), 0);
        }
    }
    // Several tiles per block of threads, and enough heads that a block goes on to the next head,
    // as in the model.
    let (batch, tokens, heads, dim) = (2, 300, 2, 128);
    let (rows, width) = (batch * tokens, heads * dim);
    let mut c = Case::new();
    let qkv = c.input(rows, 3 * width);
    let (q, k, v) =
        (qkv.columns(0, width), qkv.columns(width, width), qkv.columns(2 * width, width));
    let (whole, text, image) =
        (c.output(rows, width), c.output(batch * 44, width), c.output(batch * 256, width));
    for (first, out) in [(None, whole), (Some((44, text)), image)] {
        let out = out.all();
        c.check(
            Attention { q, k, v, batch, heads, scale: 0.09, causal: false, bias: None, first, out },
            0,
        );
    }
    all_ran(&["attention"]);
}

#[test]
fn attention_with_large_scores_does_not_overflow() {
    // Scores up to 30 * 512: e^x overflows unless the running maximum is subtracted.
    let mut c = Case::new();
    let (q, k, v) = (c.input(140, 512), c.input(140, 512), c.input(140, 512));
    let out = c.output(140, 512);
    let (q, k, v, out) = (q.all(), k.all(), v.all(), out.all());
    let op = Op::Attention(Attention {
        q,
        k,
        v,
        batch: 1,
        heads: 1,
        scale: 30.0,
        causal: false,
        bias: None,
        first: None,
        out,
    });
    let image = c.image();
    for variant in runnable("attention") {
        let after = c.run(op, variant, 2, &image).unwrap();
        let found = c.written(&op, &after);
        assert!(found.iter().all(|x| x.is_finite() && x.abs() < 2.5), "{variant}");
    }
    wgpu::judge(&c, op, &mut |variant, found| {
        assert!(found.iter().all(|x| x.is_finite() && x.abs() < 2.5), "{variant}");
    });
}

#[test]
fn attention_of_some_queries() {
    for (batch, queries, tokens, heads, dim) in
        [(1, 64, 193, 1, 512), (1, 128, 70, 1, 128), (2, 65, 130, 2, 64), (1, 9, 33, 3, 20)]
    {
        let mut c = Case::new();
        let width = heads * dim;
        let q = c.input(batch * queries, width);
        let (k, v) = (c.input(batch * tokens, width), c.input(batch * tokens, width));
        let out = c.output(batch * queries, width);
        c.check(
            Attention {
                q: q.all(),
                k: k.all(),
                v: v.all(),
                batch,
                heads,
                scale: 0.1,
                causal: false,
                bias: None,
                first: None,
                out: out.all(),
            },
            0,
        );
    }
}

#[test]
fn queries_and_keys_are_normalised_and_rotated() {
    for (batch, n, tokens, first, heads, dim) in
        [(1, 1, 1, 0, 1, 2), (2, 17, 40, 11, 3, 64), (1, 255, 257, 2, 2, 128), (1, 9, 9, 0, 5, 30)]
    {
        let width = 3 * heads * dim;
        let mut c = Case::new();
        let qkv = c.input(batch * n, width);
        let angles: Vec<f32> = (0..tokens * dim / 2)
            .flat_map(|_| {
                let angle = c.random.number() * 4.0;
                [angle.cos(), angle.sin()]
            })
            .collect();
        let rope = c.given(tokens, dim, &angles);
        let (q_gain, k_gain, out) = (c.vector(dim), c.vector(dim), c.output(batch * tokens, width));
        let op = |out| {
            Op::QkNormRope(QkNormRope {
                qkv,
                q_gain,
                k_gain,
                rope,
                pairs: Pairs::Adjacent,
                batch,
                heads,
                kv_heads: heads,
                tokens,
                first,
                eps: 1e-6,
                out,
            })
        };
        c.check(op(out), batch * (tokens - n) * width);
        c.check_nan(op(out), qkv);
        if n == tokens {
            c.check(op(qkv), 0);
        }
    }
    all_ran(&["qk_norm_rope"]);
}

/// Grouped queries (fewer heads of k and v), and pairs of columns in halves: every combination.
#[test]
fn grouped_heads_are_repeated_and_halves_are_rotated() {
    for (batch, n, tokens, first, heads, kv_heads, dim) in [
        (1, 1, 1, 0, 1, 1, 2),
        (2, 17, 40, 11, 6, 3, 64),
        (1, 31, 33, 2, 4, 1, 128),
        (2, 9, 9, 0, 4, 2, 30),
    ] {
        for pairs in [Pairs::Adjacent, Pairs::Halves] {
            let mut c = Case::new();
            let qkv = c.input(batch * n, (heads + 2 * kv_heads) * dim);
            let rope = c.input(tokens, dim);
            let (q_gain, k_gain) = (c.vector(dim), c.vector(dim));
            let width = 3 * heads * dim;
            let out = c.output(batch * tokens, width);
            let op = QkNormRope {
                qkv,
                q_gain,
                k_gain,
                rope,
                pairs,
                batch,
                heads,
                kv_heads,
                tokens,
                first,
                eps: 1e-6,
                out,
            };
            c.check(op, batch * (tokens - n) * width);
            c.check_nan(op, qkv);
        }
    }
}
