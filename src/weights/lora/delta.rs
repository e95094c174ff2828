//! The change of one weight, in the form in which a file stores it.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;

use super::group::Group;
use super::keys::Part;
use super::values::{matrix_shape, part_of};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{HostPart, Scale};
use crate::weights::container::file::WeightFile;

/// The change of a weight, without its factor. Matrices point into the file.
#[derive(Debug, Clone)]
pub enum Delta {
    /// LoRA: `B A`.
    Product {
        /// `rank x columns`.
        a: HostPart,
        /// `rows x rank`.
        b: HostPart,
    },
    /// LoHa: the product of two products, element by element: `(B1 A1) * (B2 A2)`.
    Hadamard {
        /// A1 and B1.
        first: (HostPart, HostPart),
        /// A2 and B2.
        second: (HostPart, HostPart),
    },
    /// LoKr: the Kronecker product of two matrices.
    Kronecker {
        /// Each of its elements is multiplied with the whole inner factor.
        outer: Factor,
        /// The inner factor.
        inner: Factor,
    },
    /// Added to the weight as it is.
    Difference(HostPart),
    /// Put in place of the weight.
    Replacement(HostPart),
}

/// A factor of a Kronecker product.
#[derive(Debug, Clone)]
pub enum Factor {
    /// The matrix itself.
    Whole(HostPart),
    /// `B A`.
    Product {
        /// `rank x columns`.
        a: HostPart,
        /// `rows x rank`.
        b: HostPart,
    },
}

/// The values of a stored matrix.
pub fn values(part: &HostPart) -> Vec<f32> {
    part.bytes().chunks_exact(part.dtype.size()).map(|b| part.dtype.decode(b)).collect()
}

/// A matrix of f32 in memory.
pub fn owned(values: &[f32], rows: usize, cols: usize) -> HostPart {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (source, scale) = (Arc::new(bytes), Scale::One);
    HostPart { rotation: None, source, offset: 0, rows, cols, dtype: DType::F32, scale }
}

impl Factor {
    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Factor::Whole(w) => (w.rows, w.cols),
            Factor::Product { a, b } => (b.rows, a.cols),
        }
    }

    /// The rank, of a product.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Factor::Whole(_) => None,
            Factor::Product { a, .. } => Some(a.rows),
        }
    }

    /// All elements, row by row.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Factor::Whole(w) => values(w),
            Factor::Product { a, b } => {
                let (a_values, b_values) = (values(a), values(b));
                let mut out = vec![0.0; b.rows * a.cols];
                if a.cols > 0 && a.rows > 0 {
                    let rows = out.par_chunks_mut(a.cols).zip(b_values.par_chunks(a.rows));
                    rows.for_each(|(out, b)| add_row(b, &a_values, out));
                }
                out
            }
        }
    }

    fn parts(&self) -> Vec<&HostPart> {
        match self {
            Factor::Whole(w) => vec![w],
            Factor::Product { a, b } => vec![a, b],
        }
    }
}

/// `out += b . a` for one row `b` of B.
fn add_row(b: &[f32], a: &[f32], out: &mut [f32]) {
    for (factor, row) in b.iter().zip(a.chunks_exact(out.len())) {
        out.iter_mut().zip(row).for_each(|(o, a)| *o += factor * a);
    }
}

impl Delta {
    /// The change that the tensors of `group` make up; `None` if they change no weight.
    ///
    /// # Errors
    /// If a tensor is missing, has no partner, or if there are tensors of two kinds.
    pub fn of(file: &WeightFile, group: &Group) -> Result<Option<Delta>> {
        let mut kinds: Vec<&str> = group.parts.keys().filter_map(|p| p.family()).collect();
        kinds.dedup();
        match kinds[..] {
            [] => return Ok(None),
            [_] => {}
            [first, second, ..] => {
                return Err(Error::model("a layer has tensors of two kinds of adapter")
                    .at(&group.base)
                    .found(format!("{first} and {second}"))
                    .expected("one of them"));
            }
        }
        let has = |part| group.parts.contains_key(&part);
        if has(Part::Down) || has(Part::Up) {
            let (a, b) = product(file, group, (Part::Down, Part::Up))?;
            return Ok(Some(Delta::Product { a, b }));
        }
        if kinds[0] == "LoHa" {
            let first = product(file, group, (Part::HadaW1B, Part::HadaW1A))?;
            let second = product(file, group, (Part::HadaW2B, Part::HadaW2A))?;
            if (first.0.cols, first.1.rows) != (second.0.cols, second.1.rows) {
                let of = |p: &(HostPart, HostPart)| format!("{} x {}", p.1.rows, p.0.cols);
                return Err(Error::model("the two products of a LoHa differ in size")
                    .at(&group.base)
                    .found(format!("{} and {}", of(&first), of(&second))));
            }
            return Ok(Some(Delta::Hadamard { first, second }));
        }
        if kinds[0] == "LoKr" {
            let outer = factor(file, group, (Part::KronW1, Part::KronW1B, Part::KronW1A))?;
            let inner = factor(file, group, (Part::KronW2, Part::KronW2B, Part::KronW2A))?;
            return Ok(Some(Delta::Kronecker { outer, inner }));
        }
        let whole = |part| {
            let i = *group.parts.get(&part)?;
            let entry = &file.header.tensors[i];
            let vector = || (entry.shape.len() <= 1).then(|| (1, entry.shape.iter().product()));
            let shape = vector().map_or_else(|| matrix_shape(entry), Ok);
            Some(shape.and_then(|shape| part_of(file, i, shape)))
        };
        if let Some(set) = whole(Part::Set).or_else(|| whole(Part::Gain)) {
            return Ok(Some(Delta::Replacement(set?)));
        }
        whole(Part::Diff).map(|diff| Ok(Delta::Difference(diff?))).transpose()
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Delta::Product { a, b } | Delta::Hadamard { first: (a, b), .. } => (b.rows, a.cols),
            Delta::Kronecker { outer, inner } => {
                let (o, i) = (outer.shape(), inner.shape());
                (o.0.saturating_mul(i.0), o.1.saturating_mul(i.1))
            }
            Delta::Difference(w) | Delta::Replacement(w) => (w.rows, w.cols),
        }
    }

    /// The rank by which trainers divide alpha; `None` if the change has no rank.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Delta::Product { a, .. } | Delta::Hadamard { first: (a, _), .. } => Some(a.rows),
            Delta::Kronecker { outer, inner } => inner.rank().or(outer.rank()),
            Delta::Difference(_) | Delta::Replacement(_) => None,
        }
    }

    /// The name of the kind, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Delta::Product { .. } => "LoRA",
            Delta::Hadamard { .. } => "LoHa",
            Delta::Kronecker { .. } => "LoKr",
            Delta::Difference(_) => "difference",
            Delta::Replacement(_) => "replacement",
        }
    }

    /// Its stored matrices, each with a name for errors.
    pub fn parts(&self) -> Vec<(&HostPart, &'static str)> {
        match self {
            Delta::Product { a, b } => vec![(a, "down (A)"), (b, "up (B)")],
            Delta::Hadamard { first, second } => vec![
                (&first.1, "hada_w1_a"),
                (&first.0, "hada_w1_b"),
                (&second.1, "hada_w2_a"),
                (&second.0, "hada_w2_b"),
            ],
            Delta::Kronecker { outer, inner } => {
                let outer = outer.parts().into_iter().map(|p| (p, "lokr_w1"));
                outer.chain(inner.parts().into_iter().map(|p| (p, "lokr_w2"))).collect()
            }
            Delta::Difference(w) => vec![(w, "difference")],
            Delta::Replacement(w) => vec![(w, "replacement")],
        }
    }

    /// The change as a product of two matrices A and B, if it is one of a low rank. That of two
    /// products element by element has a rank for every pair of their ranks: row `(i, j)` of A is
    /// the product of row `i` of A1 and row `j` of A2, and so are the columns of B. From a certain
    /// rank on, the whole matrix is smaller.
    pub fn low_rank(&self) -> Option<(Cow<'_, HostPart>, Cow<'_, HostPart>)> {
        match self {
            Delta::Product { a, b } => Some((Cow::Borrowed(a), Cow::Borrowed(b))),
            Delta::Hadamard { first, second } if self.side_rank() > 0 => {
                let (a1, a2) = (values(&first.0), values(&second.0));
                let (cols, ranks) = (first.0.cols, (first.0.rows, second.0.rows));
                let mut a = Vec::with_capacity(ranks.0 * ranks.1 * cols);
                for x in a1.chunks_exact(cols.max(1)) {
                    for y in a2.chunks_exact(cols.max(1)) {
                        a.extend(x.iter().zip(y).map(|(x, y)| x * y));
                    }
                }
                let (b1, b2) = (values(&first.1), values(&second.1));
                let mut b = Vec::with_capacity(first.1.rows * ranks.0 * ranks.1);
                for (x, y) in b1.chunks_exact(ranks.0).zip(b2.chunks_exact(ranks.1)) {
                    b.extend(x.iter().flat_map(|x| y.iter().map(move |y| x * y)));
                }
                let rank = ranks.0 * ranks.1;
                let b = owned(&b, first.1.rows, rank);
                Some((Cow::Owned(owned(&a, rank, cols)), Cow::Owned(b)))
            }
            _ => None,
        }
    }

    /// An upper bound of the elements of the matrices that have no low rank, as a program needs
    /// them.
    pub fn whole_elements(&self) -> usize {
        match self {
            Delta::Product { .. } => 0,
            Delta::Hadamard { first, .. } => match self.side_rank() {
                0 => first.1.rows.saturating_mul(first.0.cols),
                _ => 0,
            },
            Delta::Kronecker { outer, inner } => {
                let (o, i) = (outer.shape(), inner.shape());
                // A product that is divided among two operations needs its inner factor twice.
                o.0.saturating_mul(o.1).saturating_add(i.0.saturating_mul(i.1).saturating_mul(2))
            }
            Delta::Difference(w) | Delta::Replacement(w) => w.rows.saturating_mul(w.cols),
        }
    }

    /// The whole matrix of two products element by element.
    pub fn hadamard(&self) -> Option<HostPart> {
        let Delta::Hadamard { first, second } = self else { return None };
        let whole =
            |(a, b): &(HostPart, HostPart)| Factor::Product { a: a.clone(), b: b.clone() }.to_f32();
        let (mut values, other) = (whole(first), whole(second));
        values.par_iter_mut().zip(other).for_each(|(v, other)| *v *= other);
        Some(owned(&values, first.1.rows, first.0.cols))
    }

    /// The rank of [`low_rank`](Delta::low_rank), without making the matrices; 0 if it has none.
    pub fn side_rank(&self) -> usize {
        match self {
            Delta::Product { a, .. } => a.rows,
            Delta::Hadamard { first, second } => {
                let rank = first.0.rows.saturating_mul(second.0.rows);
                if rank < first.1.rows.min(first.0.cols) { rank } else { 0 }
            }
            _ => 0,
        }
    }
}

/// A and B of a product, which must both be there and have the same rank.
fn product(
    file: &WeightFile,
    group: &Group,
    (down, up): (Part, Part),
) -> Result<(HostPart, HostPart)> {
    let tensors = &file.header.tensors;
    let of = |part| group.parts.get(&part).copied();
    let (Some(a), Some(b)) = (of(down), of(up)) else {
        let there = of(down).or(of(up)).map_or(&group.base, |i| &tensors[i].name);
        let lacking = if of(down).is_some() { "up (B)" } else { "down (A)" };
        return Err(Error::model(format!(
            "a LoRA matrix has no partner: its {lacking} matrix is missing"
        ))
        .at(there)
        .try_("the file is incomplete; download it again"));
    };
    let shapes = (matrix_shape(&tensors[a])?, matrix_shape(&tensors[b])?);
    if shapes.0.0 != shapes.1.1 || shapes.0.0 == 0 {
        let what = if shapes.0.0 == shapes.1.1 {
            "a LoRA has rank 0"
        } else {
            "the two matrices of a LoRA differ in rank"
        };
        return Err(Error::model(what)
            .at(&group.base)
            .found(format!("down (A) {:?}, up (B) {:?}", tensors[a].shape, tensors[b].shape))
            .expected("[rank, columns] and [rows, rank]"));
    }
    Ok((part_of(file, a, shapes.0)?, part_of(file, b, shapes.1)?))
}

/// A factor of a Kronecker product: one matrix, or a product of two.
fn factor(
    file: &WeightFile,
    group: &Group,
    (whole, down, up): (Part, Part, Part),
) -> Result<Factor> {
    let of = |part: Part| group.parts.get(&part).copied();
    match (of(whole), of(down).or(of(up))) {
        (Some(_), Some(_)) => Err(Error::model("a factor of a LoKr is there twice")
            .at(&group.base)
            .found("both whole and as a product")),
        (Some(i), None) => {
            let shape = matrix_shape(&file.header.tensors[i])?;
            Ok(Factor::Whole(part_of(file, i, shape)?))
        }
        (None, Some(_)) => {
            let (a, b) = product(file, group, (down, up))?;
            Ok(Factor::Product { a, b })
        }
        (None, None) => {
            let name = if whole == Part::KronW1 { "lokr_w1" } else { "lokr_w2" };
            Err(Error::model("a LoKr lacks one of its two factors")
                .at(&group.base)
                .expected(format!("a tensor {name}"))
                .try_("the file is incomplete; download it again"))
        }
    }
}
