//! Checks of what acts on the prompts of a drawing.

use super::Conditioning;
use super::place::Place;
use crate::pipeline::request::{MAX_CONTROLNETS, MAX_REFERENCES, MAX_STYLES};
use crate::server::fault::Fault;

/// Refuses more images than a request may have, before any of them is decoded.
pub(super) fn check_counts(positive: &Conditioning, sampler: &Place) -> Result<(), Fault> {
    let counts = [
        ("ControlNets", positive.controlnets.len(), MAX_CONTROLNETS),
        ("style images", positive.styles.len(), MAX_STYLES),
        ("reference images", positive.references.len(), MAX_REFERENCES),
    ];
    match counts.into_iter().find(|(_, found, most)| found > most) {
        Some((what, found, most)) => {
            Err(sampler.unsupported(&format!("found {found} {what}, expected at most {most}")))
        }
        None => Ok(()),
    }
}

/// Refuses what acts on one of two prompts: here the same images and ControlNets act on both.
/// Without a negative prompt to draw with, only the positive one counts. Returns notes about what
/// is drawn in another way than the graph says.
pub(super) fn check_both(
    positive: &Conditioning,
    negative: &Conditioning,
    is_drawn: bool,
    sampler: &Place,
) -> Result<Vec<&'static str>, Fault> {
    let missing = |of: &Conditioning, other: &Conditioning| {
        let acts = |node: &str| other.controlnets.iter().any(|net| net.node == node);
        of.controlnets.iter().find(|net| !acts(&net.node)).map(|net| net.node.clone())
    };
    if let Some(node) = missing(negative, positive) {
        return Err(sampler.unsupported(&format!(
            "{node} acts on the negative prompt only: link its positive output, too"
        )));
    }
    if !is_drawn {
        return Ok(Vec::new());
    }
    if let Some(node) = missing(positive, negative) {
        return Err(sampler.unsupported(&format!(
            "{node} acts on the positive prompt only, and with a CFG other than 1 a ControlNet \
             acts on both here: link both outputs of ControlNetApplyAdvanced, or use a CFG of 1"
        )));
    }
    if positive.references != negative.references || positive.control != negative.control {
        return Err(sampler.unsupported(
            "its two prompts have different images, and with a CFG other than 1 they have the same \
             ones here: apply the node to both prompts, or use a CFG of 1",
        ));
    }
    let mut notes = Vec::new();
    if !positive.styles.is_empty() && negative.styles.is_empty() {
        notes.push("the negative prompt sees the style images, too");
    }
    if positive.guidance != negative.guidance {
        notes.push("the guidance of the positive prompt is that of the negative one, too");
    }
    Ok(notes)
}
