//! Softmax attention.

use super::rule::rule;
use super::{Operation, Visitor};
use crate::tensor::{Tensor, View};

/// Softmax attention, for each image and head: `softmax(q . k^T * scale + bias) . v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention<V = View, T = Tensor> {
    /// `batch*queries x heads*head_dim`. There are as many queries as tokens, unless only some rows
    /// of an image are computed; then `causal`, `bias` and `first` are not set.
    pub q: V,
    /// `batch*tokens x heads*head_dim`
    pub k: V,
    /// Shaped as `k`.
    pub v: V,
    /// Images or prompts, which do not attend to each other.
    pub batch: usize,
    /// Number of heads.
    pub heads: usize,
    /// The factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Hides keys `j > i` from query `i`.
    pub causal: bool,
    /// `(2*tokens - 1) x heads`: row `j - i + tokens - 1` is added to the score of query `i` and
    /// key `j` (T5).
    pub bias: Option<T>,
    /// With `(n, t)`, the rows of the first `n` tokens of each image are written to `t`
    /// (`batch*n x heads*head_dim`) and `out` has the `batch*(tokens - n)` rows of the others. So
    /// text and image of a double block are separated.
    pub first: Option<(usize, T)>,
    /// Shaped as `q`, or with fewer rows if `first` is given.
    pub out: V,
}

impl Operation for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.q);
        v.read(&mut self.k);
        v.read(&mut self.v);
        if let Some(bias) = &mut self.bias {
            v.read(bias);
        }
        if let Some((_, first)) = &mut self.first {
            v.write(first);
        }
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let Attention { q, k, v, batch, heads, causal, bias, first, out, .. } = *self;
        rule!(v.rows() == k.rows(), "k and v differ in rows");
        let plain = !causal && bias.is_none() && first.is_none();
        rule!(plain || q.rows() == k.rows(), "q and k differ in rows");
        rule!(
            k.cols == q.cols && v.cols == q.cols && out.cols == q.cols,
            "q, k, v, out differ in columns"
        );
        rule!(batch > 0 && q.rows() % batch == 0, "{} rows in {batch} images", q.rows());
        rule!(k.rows() > 0 && k.rows() % batch == 0, "{} keys in {batch} images", k.rows());
        rule!(heads > 0 && q.cols % heads == 0, "{} columns in {heads} heads", q.cols);
        let tokens = q.rows() / batch;
        let split = first.map_or(0, |(n, _)| n);
        let fits = split <= tokens && out.rows() == batch * (tokens - split);
        rule!(fits, "out has {} rows", out.rows());
        if let Some((n, t)) = first {
            rule!((t.rows, t.cols) == (batch * n, q.cols), "the first rows go to {t}");
        }
        if let Some(b) = bias {
            rule!((b.rows, b.cols) == (2 * tokens - 1, heads), "bias is {b}");
        }
        Ok(())
    }

    fn flops(&self) -> u64 {
        4 * (self.q.rows() * (self.k.rows() / self.batch) * self.q.cols) as u64
    }

    fn listing(&self) -> Option<Vec<String>> {
        let mut items: Vec<_> = [self.q, self.k, self.v].iter().map(ToString::to_string).collect();
        items.push(format!("heads {}", self.heads));
        items.extend(self.causal.then(|| "causal".into()));
        Some(items)
    }
}
