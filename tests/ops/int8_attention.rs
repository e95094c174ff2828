//! Attention in 8-bit integers: integers and scales are those of the definition, sums are exact,
//! and the result is close to both the definition's and that of exact arithmetic.

use std::ops::Range;

use flux_fast::dtype::DType;
use flux_fast::dtype::int8::attention::{
    TILE, attention, mean_of_keys, narrow_values, quantise_rows,
};
use flux_fast::op::{Attention, Op};
use flux_fast::tensor::{Tensor, View};

use crate::case::{Case, compare};
use crate::common::exact_attention;
use crate::cuda;

const VARIANT: &str = "attention_d128_int8_sm80";
const DIM: usize = 128;
const QUERIES: usize = 128;

/// Attention over random numbers: q and k are windows of matrices of their own, v of a wider one.
struct Sizes {
    batch: usize,
    queries: usize,
    tokens: usize,
    heads: usize,
    /// Tokens that are written to a tensor of their own.
    first: usize,
}

fn sizes(batch: usize, queries: usize, tokens: usize, heads: usize, first: usize) -> Sizes {
    Sizes { batch, queries, tokens, heads, first }
}

impl Sizes {
    fn op(&self, q: Tensor, k: Tensor, v: View, scale: f32, c: &mut Case) -> Attention {
        let Sizes { batch, queries, heads, first, .. } = *self;
        let width = heads * DIM;
        let split = (first > 0).then(|| (first, c.output(batch * first, width)));
        let out = c.output(batch * (queries - first), width);
        Attention {
            q: q.all(),
            k: k.all(),
            v,
            batch,
            heads,
            scale,
            causal: false,
            bias: None,
            first: split,
            out: out.all(),
        }
    }

    /// The rows of image and head `at` in a matrix with `rows` rows of each image.
    fn head(&self, values: &[f32], cols: usize, col: usize, rows: usize, at: usize) -> Vec<f32> {
        let (image, head) = (at / self.heads, at % self.heads);
        let of_image = values.chunks(cols).skip(image * rows).take(rows);
        of_image.flat_map(|row| row[col + head * DIM..][..DIM].to_vec()).collect()
    }

    /// The elements of image and head `at` in what `op` writes: the first tokens of all images,
    /// then the others.
    fn written(&self, found: &[f32], at: usize) -> Vec<f32> {
        let (width, first) = (self.heads * DIM, self.first);
        let (text, rest) = found.split_at(self.batch * first * width);
        let text = self.head(text, width, 0, first, at);
        [text, self.head(rest, width, 0, self.queries - first, at)].concat()
    }
}

/// The numbers of `tensor`, rounded to bf16 as kernels read them.
fn values(c: &Case, tensor: Tensor) -> Vec<f32> {
    let (_, bytes) = c.tensors.iter().find(|(t, _)| t.slot == tensor.slot).unwrap();
    let narrow = |b: &[u8]| {
        let mut small = vec![];
        DType::BF16.encode(DType::F32.decode(b), &mut small);
        DType::BF16.decode(&small)
    };
    bytes.chunks_exact(4).map(narrow).collect()
}

/// q, k and v of each image and head, and what the kernels made of them.
struct Ran {
    heads: Vec<[Vec<f32>; 3]>,
    found: Vec<f32>,
    scratch: Vec<u8>,
}

fn run(c: &Case, s: &Sizes, op: Attention) -> Option<Ran> {
    let (found, scratch) = cuda::run_one(c, op.into(), VARIANT)?;
    let of = |view: View, rows, at| {
        s.head(&values(c, view.tensor), view.tensor.cols, view.col, rows, at)
    };
    let head = |at| [of(op.q, s.queries, at), of(op.k, s.tokens, at), of(op.v, s.tokens, at)];
    Some(Ran { heads: (0..s.batch * s.heads).map(head).collect(), found, scratch })
}

/// Scratch memory has the integers, f16 and scales of the definition, and zeros for missing rows.
fn check_integers(s: &Sizes, ran: &Ran) {
    let heads = s.batch * s.heads;
    let (queries, keys) = (s.queries.next_multiple_of(QUERIES), s.tokens.next_multiple_of(TILE));
    let mut end = 0;
    let mut next = |bytes: usize| -> Range<usize> {
        let start = end;
        end += (heads * bytes).next_multiple_of(256);
        start..start + heads * bytes
    };
    let parts = [queries * DIM, keys * DIM, keys * DIM * 2, queries * 4, keys * 4, keys / TILE * 4];
    let [q, k, v, q_scales, k_scales, v_scales] =
        parts.map(|bytes| ran.scratch[next(bytes)].chunks(bytes).collect::<Vec<_>>());
    let bytes_of = |integers: &[i8]| integers.iter().map(|q| *q as u8).collect::<Vec<_>>();
    let floats = |scales: &[f32]| scales.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>();
    let check = |what: &str, found: &[u8], mut want: Vec<u8>, missing: &[u8]| {
        want.extend(missing.iter().cycle().take(found.len() - want.len()));
        assert_eq!(want.len(), found.len(), "{what}");
        let at = found.iter().zip(&want).position(|(f, w)| f != w);
        assert!(at.is_none(), "{what}: byte {at:?} of {} differs", want.len());
    };
    for (at, [head_q, head_k, head_v]) in ran.heads.iter().enumerate() {
        let (integers, scales) = quantise_rows(head_q, DIM, None);
        check("q", q[at], bytes_of(&integers), &[0]);
        check("scales of q", q_scales[at], floats(&scales), &1e-30f32.to_le_bytes());
        let (integers, scales) = quantise_rows(head_k, DIM, Some(&mean_of_keys(head_k, DIM)));
        check("k", k[at], bytes_of(&integers), &[0]);
        check("scales of k", k_scales[at], floats(&scales), &1e-30f32.to_le_bytes());
        let (halves, powers) = narrow_values(head_v, DIM);
        check("v", v[at], halves.iter().flat_map(|h| h.to_le_bytes()).collect(), &[0]);
        check("powers of v", v_scales[at], floats(&powers), &[]);
    }
}

/// Single tokens, whole tiles and one token more, more keys than queries and fewer, several images
/// and heads, a long row, and results in two tensors.
#[test]
fn attention_in_integers_equals_its_definition() {
    for s in [
        sizes(1, 1, 1, 1, 0),
        sizes(2, 17, 17, 3, 0),
        sizes(1, 64, 64, 1, 0),
        sizes(1, 65, 65, 2, 9),
        sizes(1, 129, 129, 1, 0),
        sizes(1, 9, 300, 2, 0),
        sizes(2, 130, 33, 1, 0),
        sizes(2, 97, 97, 2, 31),
        sizes(1, 5, 2050, 1, 0),
    ] {
        let mut c = Case::new();
        let width = s.heads * DIM;
        let (q, k) = (c.input(s.batch * s.queries, width), c.input(s.batch * s.tokens, width));
        let wide = c.input(s.batch * s.tokens, width + 24);
        let op = s.op(q, k, wide.columns(8, width), 0.09, &mut c);
        let Some(ran) = run(&c, &s, op) else { return };
        check_integers(&s, &ran);
        let whole = Op::from(op);
        for (at, [q, k, v]) in ran.heads.iter().enumerate() {
            let found = s.written(&ran.found, at);
            // Results are rounded to bf16, and sums in f16 to 2^-11 of partial sums.
            let defined = attention(q, k, v, DIM, op.scale);
            compare(&whole, "the definition", &found, &defined, 2.5e-3);
            // One key has the weight 1, whatever its score is.
            compare(
                &whole,
                "exact arithmetic",
                &found,
                &exact_attention(q, k, v, DIM, op.scale),
                1.5e-2,
            );
        }
    }
}

/// Keys with a large common part and columns that are larger than others, as models have them, and
/// values of every magnitude.
#[test]
fn outliers_cost_little() {
    let s = sizes(1, 100, 200, 1, 0);
    let mut c = Case::new();
    let offsets: Vec<f32> = (0..DIM).map(|_| 4.0 * c.random.number()).collect();
    let mut number =
        |i: usize, large: f32| c.random.number() * if i % DIM % 41 == 7 { large } else { 1.0 };
    let q: Vec<f32> = (0..s.queries * DIM).map(|i| number(i, 4.0)).collect();
    let k: Vec<f32> = (0..s.tokens * DIM).map(|i| number(i, 4.0) + offsets[i % DIM]).collect();
    let v: Vec<f32> = (0..s.tokens * DIM)
        .map(|i| number(i, 1.0) * 10f32.powi((i / DIM / TILE) as i32 * 6 - 9))
        .collect();
    let (q, k) = (c.given(s.queries, DIM, &q), c.given(s.tokens, DIM, &k));
    let v = c.given(s.tokens, DIM, &v);
    let op = s.op(q, k, v.all(), 0.06, &mut c);
    let Some(ran) = run(&c, &s, op) else { return };
    check_integers(&s, &ran);
    let [q, k, v] = &ran.heads[0];
    let whole = Op::from(op);
    compare(&whole, "the definition", &ran.found, &attention(q, k, v, DIM, op.scale), 2.5e-3);
    compare(&whole, "exact arithmetic", &ran.found, &exact_attention(q, k, v, DIM, op.scale), 2e-2);
}

/// With a scale so large that one unit of the integer sums is a factor of 2^40, only the key with
/// the largest score counts: the result is its row of values, and sums that were not exact would
/// choose others.
#[test]
fn sums_of_integers_are_exact() {
    let s = sizes(1, 140, 150, 1, 0);
    let mut c = Case::new();
    let (q, k) = (c.input(s.queries, DIM), c.input(s.tokens, DIM));
    let v = c.input(s.tokens, DIM);
    let (_, smallest) = quantise_rows(&values(&c, q), DIM, None);
    let keys = values(&c, k);
    let (k8, k_scales) = quantise_rows(&keys, DIM, Some(&mean_of_keys(&keys, DIM)));
    let least = |scales: &[f32]| scales.iter().copied().fold(f32::INFINITY, f32::min);
    let scale = 40.0 / (least(&smallest) * least(&k_scales));
    let op = s.op(q, k, v.all(), scale, &mut c);
    let Some(ran) = run(&c, &s, op) else { return };
    let (q8, _) = quantise_rows(&ran.heads[0][0], DIM, None);
    let mut decided = 0;
    for (i, q) in q8.chunks(DIM).enumerate() {
        let score = |j: usize| {
            let products = q.iter().zip(&k8[j * DIM..]).map(|(a, b)| i32::from(*a) * i32::from(*b));
            f64::from(products.sum::<i32>()) * f64::from(k_scales[j])
        };
        let scores: Vec<f64> = (0..s.tokens).map(score).collect();
        let mut order: Vec<usize> = (0..s.tokens).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        // Scores are rounded to one unit of a sum.
        let unit = f64::from(k_scales[order[0]].max(k_scales[order[1]]));
        if scores[order[0]] - scores[order[1]] > 3.0 * unit {
            decided += 1;
            let (row, want) = (&ran.found[i * DIM..][..DIM], &ran.heads[0][2][order[0] * DIM..]);
            // Values below 2^-14 have fewer bits in f16.
            let same = |(found, want): (&f32, &f32)| (found - want).abs() <= 1e-6;
            assert!(row.iter().zip(want).all(same), "query {i} is not key {}", order[0]);
        }
    }
    assert!(decided > s.queries * 9 / 10, "{decided} of {} queries", s.queries);
}

#[test]
fn what_is_not_finite_reaches_the_result() {
    let s = sizes(1, 70, 70, 1, 0);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in 0..3 {
            let mut c = Case::new();
            let [q, k, v] = [0, 1, 2].map(|_| c.input(s.tokens, DIM));
            c.tensors[place].1[4 * (66 * DIM + 3)..][..4].copy_from_slice(&bad.to_le_bytes());
            let op = s.op(q, k, v.all(), 0.1, &mut c);
            let Some((found, _)) = cuda::run_one(&c, op.into(), VARIANT) else { return };
            // A query spoils its own row; a key or a value all rows.
            let finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
            let spoilt = |(i, row): (usize, &[f32])| finite(row) != (place > 0 || i == 66);
            assert!(found.chunks(DIM).enumerate().all(spoilt), "{bad} in operand {place}");
        }
    }
}

#[test]
fn other_shapes_keep_their_kernels() {
    for (dim, causal) in [(64, false), (128, true), (96, false)] {
        let mut c = Case::new();
        let [q, k, v] = [0, 1, 2].map(|_| c.input(20, dim).all());
        let out = c.output(20, dim).all();
        let (batch, heads, scale) = (1, 1, 0.1);
        let op = Attention { q, k, v, batch, heads, scale, causal, bias: None, first: None, out };
        cuda::check_refused(&c, op.into(), VARIANT);
    }
}
