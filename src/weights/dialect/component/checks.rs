//! Checks of all tensors of a component together: missing, unknown or contradictory tensors, each
//! of which can be read on its own.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{Piece, Weight, module, owner};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::{Component, FAMILIES};
use crate::tensor::{HostPart, Scale};
use crate::weights::container::file::WeightFile;
use crate::weights::dialect::recognise::{Recognised, foreign_storage};
use crate::weights::dialect::storage::{Companions, Scheme, unsupported};

/// Refuses tensors that are stored in a way that cannot be read, and networks that only resemble
/// the component.
pub(super) fn refuse_others(
    files: &[Arc<WeightFile>],
    found: &Recognised,
    others: &[Recognised],
) -> Result<()> {
    let all = files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str());
    let own = all.filter(|name| owner(name, found, others).is_some());
    if let Some((format, name)) = foreign_storage(own.clone()) {
        return Err(unsupported(format).at(name));
    }
    let component = found.component;
    match component.lookalike(own.filter_map(|name| name.strip_prefix(found.prefix.as_str()))) {
        None => Ok(()),
        Some(other) => Err(Error::model(format!(
            "this is {}, not the {} of {}",
            other.what,
            component.title,
            FAMILIES.of(component).map_or("this model", |f| f.title)
        ))
        .try_(match component.source {
            Some(source) => format!("use {source}"),
            None => format!("use the {} that belongs to the transformer", component.title),
        })),
    }
}

/// Adds a tensor under its second name. Files that have both names have the same tensor twice.
pub(super) fn add_alias(
    pieces: &mut BTreeMap<String, Vec<Option<Piece>>>,
    canonical: String,
    piece: Piece,
) -> Result<()> {
    /// Larger tensors are not compared, since that would read them from the disk.
    const COMPARED_BYTES: usize = 1 << 20;
    let Some(slots) = pieces.get(&canonical) else {
        pieces.insert(canonical, vec![Some(piece)]);
        return Ok(());
    };
    let bytes = |p: &Piece| p.part.source.bytes()[p.part.range()].to_vec();
    let differs = |other: &Piece| {
        other.shape != piece.shape
            || other.part.dtype == piece.part.dtype
                && piece.part.range().len() <= COMPARED_BYTES
                && bytes(other) != bytes(&piece)
    };
    match slots.iter().flatten().find(|other| differs(other)) {
        None => Ok(()),
        Some(other) => Err(Error::model("tensor is stored under two names with different values")
            .at(&piece.stored)
            .found(&other.stored)
            .expected("one of them")),
    }
}

/// Refuses an 8-bit matrix without a scale among scaled ones: its scale was lost.
pub(super) fn check_scales(
    found: &Recognised,
    weights: &BTreeMap<String, Weight>,
    companions: &Companions,
) -> Result<()> {
    let Some(ending) = companions.scheme.and_then(Scheme::scale_ending) else { return Ok(()) };
    let is_narrow = |part: &HostPart| matches!(part.dtype, DType::F8E4M3 | DType::F8E5M2);
    let is_unscaled = |part: &HostPart| is_narrow(part) && matches!(part.scale, Scale::One);
    let is_scaled =
        |part: &HostPart| part.dtype == DType::F8Block || is_narrow(part) && !is_unscaled(part);
    if !weights.values().flat_map(|w| &w.parts).any(is_scaled) {
        return Ok(());
    }
    let lost = weights.iter().find_map(|(name, weight)| {
        let is_matrix = found.component.is_matrix(name, &weight.shape);
        let part = weight.parts.iter().position(is_unscaled).filter(|_| is_matrix)?;
        let stored = found.stored(name);
        Some(stored.get(part).unwrap_or(name).clone())
    });
    let Some(name) = lost else { return Ok(()) };
    let scale = format!("{}{ending}", name.strip_suffix(".weight").unwrap_or(&name));
    Err(Error::model("the scale of this 8-bit matrix is missing; the others have one")
        .at(scale)
        .try_("the file or a shard is incomplete: download it again"))
}

/// Refuses a tensor that is not known inside a module that is: it would be another network.
pub(super) fn refuse_unknown(
    component: Component,
    extras: &[(String, &str)],
    modules: &HashSet<&str>,
) -> Result<()> {
    let is_inside = |short: &str| module(short).is_some_and(|m| modules.contains(m));
    match extras.iter().find(|(_, short)| is_inside(short)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::model(format!(
            "tensor inside the {} is not known, so that the result would be wrong",
            component.title
        ))
        .at(name)
        .try_("the file may be of another model, or need another program")),
    }
}
