//! From stored tensors to canonical ones, which may consist of several.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::HostPart;
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::TensorEntry;
use crate::weights::dialect::recognise::Recognised;
use crate::weights::dialect::storage::{Companions, Reading};

/// A canonical tensor: its shape, and its stored parts in the order of rows (for vectors, of
/// elements).
pub(super) struct Weight {
    pub(super) shape: Vec<usize>,
    pub(super) parts: Vec<HostPart>,
}

impl Weight {
    pub(super) fn is_vector(&self) -> bool {
        self.shape.len() <= 1
    }

    pub(super) fn rows_cols(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [] => (1, 1),
            [n] => (1, *n),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        }
    }
}

/// A stored tensor that is a part of a canonical one.
pub(super) struct Piece {
    pub(super) stored: String,
    pub(super) shape: Vec<usize>,
    pub(super) part: HostPart,
    /// The two halves of its rows are stored in reverse order.
    swap: bool,
}

impl Piece {
    /// Its parts, in the order of the canonical rows.
    fn into_parts(self) -> Vec<HostPart> {
        let half = self.shape.first().map_or(0, |n| n / 2);
        match (self.swap, self.shape.len()) {
            (false, _) => vec![self.part],
            (true, 1) => {
                let offset = self.part.offset + self.part.dtype.bytes(half);
                let second = HostPart { offset, cols: half, ..self.part.clone() };
                vec![second, HostPart { cols: half, ..self.part }]
            }
            (true, _) => vec![self.part.slice(half, half), self.part.slice(0, half)],
        }
    }

    pub(super) fn new(
        file: &Arc<WeightFile>,
        entry: &TensorEntry,
        companions: &Companions,
        swap: bool,
    ) -> Result<Self> {
        let Reading { dtype, shape, scale, rotation } = companions.read(file, entry)?;
        let (rows, cols) = match shape.as_slice() {
            [] => (1, 1),
            [n] => (1, *n),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        };
        if rows == 0 || cols == 0 {
            return Err(Error::model("weight is empty")
                .at(&entry.name)
                .found(format!("{shape:?}")));
        }
        if swap && shape.first().is_none_or(|n| n % 2 != 0) {
            return Err(Error::model("tensor of two halves has an odd size")
                .at(&entry.name)
                .found(format!("{shape:?}")));
        }
        if let (true, 1, Some(format)) = (swap, shape.len(), dtype.format())
            && (cols / 2) % format.block != 0
        {
            return Err(Error::model(format!(
                "the halves of this {} tensor share a block",
                format.name
            ))
            .at(&entry.name)
            .found(format!("{shape:?}"))
            .expected(format!("halves of whole blocks of {}", format.block)));
        }
        let part = HostPart {
            source: file.source.clone(),
            offset: entry.range.start,
            rows,
            cols,
            dtype,
            scale,
            rotation,
        };
        Ok(Piece { stored: entry.name.clone(), shape, part, swap })
    }
}

/// Stacks the stored parts of one canonical tensor.
pub(super) fn assemble(
    found: &Recognised,
    name: &str,
    slots: Vec<Option<Piece>>,
) -> Result<Weight> {
    let component = found.component;
    let count = slots.len();
    let pieces: Vec<Piece> = slots.into_iter().flatten().collect();
    if pieces.len() < count {
        let there: Vec<&str> = pieces.iter().map(|p| p.stored.as_str()).collect();
        let mut absent = found.stored(name);
        absent.retain(|name| !there.contains(&name.as_str()));
        return Err(Error::model(format!(
            "only {} of the {count} stored parts of this tensor are there, {} is missing",
            there.len(),
            absent.join(", ")
        ))
        .at(name)
        .found(there.join(", "))
        .try_("the file or a shard is incomplete: download it again"));
    }
    let mut shape = pieces[0].shape.clone();
    if let Some(p) =
        pieces.iter().find(|p| p.shape.len() != shape.len() || p.shape.get(1..) != shape.get(1..))
    {
        return Err(Error::model("parts of one tensor have different widths")
            .at(&p.stored)
            .found(format!("{:?}", p.shape))
            .expected(format!("{shape:?} in all but the first axis")));
    }
    if count > 1 {
        shape[0] = pieces.iter().map(|p| p.shape[0]).sum();
    }
    // diffusers stores an autoencoder's 1x1 convolutions as matrices.
    if component.convolutional && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    Ok(Weight { shape, parts: pieces.into_iter().flat_map(Piece::into_parts).collect() })
}
