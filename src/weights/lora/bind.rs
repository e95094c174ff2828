//! The second look: checks each change, compares it with the weight that it changes, and checks
//! every value. Nothing of a file is used before all of it is valid.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::adapter::{Axis, Change, Magnitude};
use super::delta::{Delta, owned, values};
use super::group::{Group, Grouped, Unmatched};
use super::keys::Part;
use super::refuse::foreign;
use super::values::{first_not_finite, part_of, vector_length};
use crate::error::{Error, Result};
use crate::spec::lora::{ADDED_INPUTS, Block, Rows, added_inputs};
use crate::spec::{Component, Family};
use crate::tensor::HostPart;
use crate::weights::container::file::WeightFile;

/// The base model's weights that an adapter may change: rows and columns of a canonical matrix, 1
/// and the length of a canonical vector, or `None` where the model has none of this name.
pub type Base<'a> = &'a dyn Fn(Component, &str) -> Option<(usize, usize)>;

/// A group with the shape of its weight.
struct Placed {
    group: Group,
    shape: (usize, usize),
}

/// Makes the changes, by component, weight and rows. Groups whose weight this model does not have
/// go to the unmatched keys.
pub fn bind(
    file: &WeightFile,
    family: &Family,
    found: &mut Grouped,
    base: Base,
) -> Result<Vec<Change>> {
    let tensors = &file.header.tensors;
    let mut kept: Vec<Placed> = vec![];
    for group in std::mem::take(&mut found.groups) {
        let Some(shape) = base(group.layer.component, &group.layer.weight) else {
            let why = absent(&group, base)?;
            found
                .unmatched
                .extend(group.keys().map(|i| Unmatched::new(&tensors[i].name, why.clone())));
            continue;
        };
        kept.push(Placed { group, shape });
    }
    if kept.is_empty() {
        let keys =
            found.unmatched.first().map(|u| format!("{}: {}", u.key, u.why)).unwrap_or_default();
        return Err(Error::model("no tensor of this LoRA matches this model")
            .found(format!("{} keys, the first {keys}", found.unmatched.len()))
            .try_("{:inspect} on both files shows what each is"));
    }
    let deltas: Vec<Option<Delta>> =
        kept.iter().map(|p| Delta::of(file, &p.group)).collect::<Result<_>>()?;
    sizes(family, &kept, &deltas)?;
    // The changes of each group: its weight, then its bias.
    let mut changes: Vec<(usize, Change)> = vec![];
    for (i, (placed, delta)) in kept.iter().zip(deltas).enumerate() {
        match (delta, placed.group.parts.get(&Part::Magnitude)) {
            (Some(delta), _) => {
                let change = change(file, family, placed, delta)?;
                changes.extend(divided(change, placed.shape).into_iter().map(|c| (i, c)));
            }
            (None, Some(lengths)) => {
                return Err(Error::model("DoRA's lengths have no change to which they belong")
                    .at(&tensors[*lengths].name)
                    .try_("the file is incomplete; download it again"));
            }
            (None, None) => {}
        }
        changes.extend(bias(file, placed, base)?.into_iter().map(|c| (i, c)));
    }
    drop_doubles(file, found, &mut kept, &mut changes)?;
    let mut changes: Vec<Change> = changes.into_iter().map(|(_, change)| change).collect();
    changes.sort_by_key(|c| (c.component, c.weight.clone(), c.blocks.first().map(|b| b.row)));
    finite(file, &changes)?;
    let adds_inputs = changes.iter().any(|change| change.weight.ends_with(ADDED_INPUTS));
    if changes.iter().any(|change| change.is_fixed) && !adds_inputs {
        let note = "this control LoRA was made for a plain [dev]; this model reads a control image \
                    without it, and is changed all the same";
        found.notes.push(note.to_string());
    }
    let idle = changes.iter().filter(|c| c.factor == 0.0).count();
    if idle > 0 {
        found.notes.push(format!("{idle} of {} pairs have alpha 0 and do nothing", changes.len()));
    }
    found.groups = kept.into_iter().map(|p| p.group).collect();
    Ok(changes)
}

/// Why the model lacks the weight of a group; an error where it is another model's.
fn absent(group: &Group, base: Base) -> Result<String> {
    let layer = &group.layer;
    let numbered = |n: usize| match layer.block {
        Some(own) => layer.weight.replacen(&format!(".{own}."), &format!(".{n}."), 1),
        None => layer.weight.clone(),
    };
    let has = |n: usize| base(layer.component, &numbered(n)).is_some();
    let Some(own) = layer.block else {
        return Ok(format!("this model has no {}", layer.weight));
    };
    if !has(0) {
        return Ok(format!("this model has no {}", layer.component.title));
    }
    let last = (0..own).take_while(|n| has(*n)).last().unwrap_or(0);
    Err(Error::model("this LoRA was made for another model: it has more blocks than this one")
        .at(&group.base)
        .found(format!("block {own}"))
        .expected(format!("blocks 0 to {last}"))
        .try_(layer.component.lora.blocks_hint))
}

/// The rows of the weight that a group changes.
fn rows_of(rows: Rows, shape: (usize, usize), vector: bool) -> Option<Vec<Block>> {
    // A vector is one row, but its elements are what is changed.
    rows.of(if vector { (shape.1, shape.1) } else { shape })
}

/// Compares every change with the weight. One error reports all that differ.
fn sizes(family: &Family, kept: &[Placed], deltas: &[Option<Delta>]) -> Result<()> {
    let mut first = None;
    let mut wrong = 0;
    for (placed, delta) in kept.iter().zip(deltas) {
        let Some(delta) = delta else { continue };
        let layer = &placed.group.layer;
        let own: usize = rows_of(layer.rows, placed.shape, layer.vector)
            .map_or(0, |blocks| blocks.iter().map(|x| x.rows).sum());
        let expected = if layer.vector { (1, own) } else { (own, placed.shape.1) };
        let (rows, cols) = delta.shape();
        let found = if layer.vector { (1, rows.saturating_mul(cols)) } else { (rows, cols) };
        let is_control = widens(&placed.group, delta, placed.shape);
        if found != expected && !is_control {
            wrong += 1;
            first.get_or_insert((&placed.group, found, expected));
        }
    }
    let Some((group, found, expected)) = first else { return Ok(()) };
    let layer = &group.layer;
    if layer.component.lora.input == Some(&layer.weight) && found.1 > expected.1 {
        return Err(Error::model(
            "this LoRA widens img_in, and not to twice its width as BFL's control LoRAs (Canny, \
             Depth) do",
        )
        .at(&group.base)
        .found(format!("{} inputs", found.1))
        .expected(format!("{} inputs", expected.1))
        .try_(format!("use a plain LoRA of {}", family.title)));
    }
    let of = |(rows, cols): (usize, usize)| format!("{rows} x {cols}");
    let what = if wrong * 2 > kept.len() {
        "this LoRA was made for another model: its layers have other sizes"
    } else {
        "a LoRA does not fit its layer"
    };
    let counted = if wrong > 1 {
        format!("; {wrong} of {} pairs do not fit", kept.len())
    } else {
        String::new()
    };
    let hint = family.lora.widths.iter().find(|(width, _)| *width == found.1);
    let hint = hint.map_or(family.lora.other_width, |(_, hint)| *hint);
    Err(Error::model(what)
        .at(&group.base)
        .found(format!("a change of {}{counted}", of(found)))
        .expected(format!("{} for {}", of(expected), layer.weight))
        .try_(hint))
}

/// Whether the change of a layer is that of a control LoRA: its A has as many columns for the
/// control image as for the noise.
fn widens(group: &Group, delta: &Delta, (rows, cols): (usize, usize)) -> bool {
    let layer = &group.layer;
    layer.component.lora.input == Some(&layer.weight)
        && matches!(delta, Delta::Product { .. })
        && delta.shape() == (rows, 2 * cols)
        && !group.parts.contains_key(&Part::Magnitude)
}

/// The change of a weight of `shape`; that of a control LoRA as the change of the weight, and one
/// of the columns that it adds.
fn divided(change: Change, shape: (usize, usize)) -> Vec<Change> {
    let cols = shape.1;
    let Delta::Product { a, b } = &change.delta else { return vec![change] };
    if a.cols == cols {
        return vec![change];
    }
    let all = values(a);
    let part = |first: usize, weight: String| {
        let columns = all.chunks_exact(a.cols).flat_map(|row| &row[first..first + cols]);
        let a = owned(&columns.copied().collect::<Vec<_>>(), a.rows, cols);
        Change { weight, delta: Delta::Product { a, b: b.clone() }, ..change.clone() }
    };
    vec![part(0, change.weight.clone()), part(cols, added_inputs(&change.weight))]
}

/// alpha / rank of a group; 1 without alpha, and for changes without a rank.
fn factor(file: &WeightFile, group: &Group, delta: &Delta) -> Result<(Option<f64>, f64)> {
    let alpha = group.alpha(file)?;
    let stored = group.parts.contains_key(&Part::Alpha);
    let configured = group.configured.filter(|_| !stored);
    let root = configured.is_some_and(|c| c.root);
    // PEFT divides by the rank of its configuration, also where a LoKr has no rank.
    let rank = delta.rank().map(|r| r as f64).or(configured.and_then(|c| c.rank));
    let divided = matches!(delta, Delta::Difference(_) | Delta::Replacement(_));
    let factor = match (alpha, rank) {
        (Some(alpha), Some(rank)) if !divided => alpha / if root { rank.sqrt() } else { rank },
        _ => 1.0,
    };
    if !(factor as f32).is_finite() || alpha.is_some_and(|a| !a.is_finite()) {
        return Err(Error::model("alpha is not a finite number")
            .at(&group.base)
            .found(alpha.unwrap_or_default())
            .try_("use another epoch of this LoRA, or another LoRA"));
    }
    // No training results in a larger factor, and products with it would overflow.
    const LARGEST: f64 = 1e4;
    if factor.abs() > LARGEST {
        return Err(Error::model("alpha / rank of a pair is out of range, the file is damaged")
            .at(&group.base)
            .found(factor)
            .expected(format!("at most {LARGEST}")));
    }
    Ok((alpha, factor))
}

fn change(file: &WeightFile, family: &Family, placed: &Placed, delta: Delta) -> Result<Change> {
    let Placed { group, shape } = placed;
    let layer = &group.layer;
    let (alpha, factor) = factor(file, group, &delta)?;
    let Some(blocks) = rows_of(layer.rows, *shape, layer.vector) else {
        return Err(foreign(family, "a model whose layers have other sizes", &group.base));
    };
    if layer.vector && !matches!(delta, Delta::Difference(_) | Delta::Replacement(_)) {
        return Err(Error::model(
            "a norm is a vector, which a pair of LoRA matrices cannot change",
        )
        .at(&group.base)
        .expected("a difference"));
    }
    let magnitude = magnitude(file, group, &delta)?;
    let delta = match (layer.vector, delta) {
        // A vector of any shape.
        (true, Delta::Difference(w)) => Delta::Difference(flat(w)),
        (true, Delta::Replacement(w)) => Delta::Replacement(flat(w)),
        (_, delta) => delta,
    };
    Ok(Change {
        component: layer.component,
        weight: layer.weight.clone(),
        key: group.base.clone(),
        vector: layer.vector,
        delta,
        blocks,
        alpha,
        factor,
        magnitude,
        is_fixed: group.parts.contains_key(&Part::Gain),
    })
}

fn flat(part: HostPart) -> HostPart {
    HostPart { rows: 1, cols: part.rows * part.cols, ..part }
}

/// DoRA's lengths. Their number and shape say whether they are those of rows or of columns.
fn magnitude(file: &WeightFile, group: &Group, delta: &Delta) -> Result<Option<Magnitude>> {
    let Some(&i) = group.parts.get(&Part::Magnitude) else { return Ok(None) };
    let entry = &file.header.tensors[i];
    let (rows, cols) = delta.shape();
    if matches!(delta, Delta::Difference(_) | Delta::Replacement(_)) || group.layer.vector {
        return Err(Error::model("DoRA's lengths belong to a change that is not a product")
            .at(&entry.name)
            .found(delta.kind()));
    }
    let n = vector_length(entry)?;
    let axis = match entry.shape[..] {
        [first, second, ..] if (first, second) == (1, cols) && cols != 1 => Axis::Columns,
        [first, second, ..] if (first, second) == (rows, 1) => Axis::Rows,
        // One axis: PEFT's and ai-toolkit's, the lengths of rows.
        [first] if first == rows => Axis::Rows,
        [first] if first == cols => Axis::Columns,
        _ => {
            return Err(Error::model("DoRA's lengths fit neither the rows nor the columns")
                .at(&entry.name)
                .found(format!("{:?}", entry.shape))
                .expected(format!("[{rows}, 1], [{rows}] or [1, {cols}]")));
        }
    };
    let values = part_of(file, i, (1, n))?;
    Ok(Some(Magnitude { values, axis, scales: OnceLock::new() }))
}

/// The changes of the bias of a layer.
fn bias(file: &WeightFile, placed: &Placed, base: Base) -> Result<Vec<Change>> {
    let Placed { group, shape } = placed;
    let layer = &group.layer;
    let mut changes = vec![];
    for part in [Part::DiffBias, Part::DownBias, Part::UpBias] {
        let Some(&i) = group.parts.get(&part) else { continue };
        let entry = &file.header.tensors[i];
        let in_pair = part != Part::DiffBias;
        if in_pair && group.parts.contains_key(&Part::Magnitude) {
            return Err(Error::model("a DoRA whose matrices have biases is not supported")
                .at(&entry.name)
                .try_("train or convert it without biases of the matrices"));
        }
        let name = layer.bias().filter(|name| base(layer.component, name).is_some());
        let Some(name) = name else {
            return Err(Error::model("this LoRA changes a bias that the model does not have")
                .at(&entry.name)
                .found(format!("{} has no bias", layer.weight)));
        };
        let delta = if in_pair { Delta::of(file, group)? } else { None };
        let stored = part_of(file, i, (1, vector_length(entry)?))?;
        let added = match (part, &delta) {
            (Part::DownBias, Some(Delta::Product { b, .. })) => through(b, &stored, &entry.name)?,
            (Part::DownBias, _) => {
                return Err(Error::model("a bias of A has no matrix B to which it belongs")
                    .at(&entry.name)
                    .try_("the file is incomplete; download it again"));
            }
            _ => stored,
        };
        let n = added.cols;
        let blocks = rows_of(layer.rows, *shape, layer.vector).unwrap_or_default();
        let own: usize = blocks.iter().map(|b| b.rows).sum();
        if n != own {
            return Err(Error::model("a difference of a bias does not fit its layer")
                .at(&entry.name)
                .found(format!("{n} numbers"))
                .expected(format!("{own} for {name}")));
        }
        // The biases of the matrices are multiplied like their product; a difference is not.
        let factor = match delta {
            Some(delta) => factor(file, group, &delta)?.1,
            None => 1.0,
        };
        changes.push(Change {
            component: layer.component,
            weight: name,
            key: entry.name.clone(),
            vector: true,
            delta: Delta::Difference(added),
            blocks,
            alpha: None,
            factor,
            magnitude: None,
            is_fixed: false,
        });
    }
    Ok(changes)
}

/// What the bias of A adds to the result: its product with B.
fn through(b: &HostPart, bias: &HostPart, key: &str) -> Result<HostPart> {
    if bias.cols != b.cols {
        return Err(Error::model("a bias of A does not fit its matrix")
            .at(key)
            .found(format!("{} numbers", bias.cols))
            .expected(format!("{}, the rank", b.cols)));
    }
    let bias = values(bias);
    let row = |row: &[f32]| {
        row.iter().zip(&bias).map(|(b, a)| f64::from(*b) * f64::from(*a)).sum::<f64>() as f32
    };
    let sums: Vec<f32> = values(b).chunks_exact(b.cols.max(1)).map(row).collect();
    Ok(owned(&sums, 1, sums.len()))
}

/// Drops groups for rows that another group changes already: a file may name one layer twice, in
/// the names of two trainers. Other tools use one of both, too; diffusers' names take precedence.
///
/// # Errors
/// If only some of the rows are changed twice.
fn drop_doubles(
    file: &WeightFile,
    found: &mut Grouped,
    kept: &mut Vec<Placed>,
    changes: &mut Vec<(usize, Change)>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by_key(|i| (kept[changes[*i].0].group.layer.dialect != Some("diffusers"), *i));
    let mut taken: BTreeMap<(Component, &str), Vec<usize>> = BTreeMap::new();
    let mut doubles = vec![false; kept.len()];
    for i in order {
        let (group, change) = &changes[i];
        let others = taken.entry((change.component, &change.weight)).or_default();
        let overlaps = |j: &&usize| {
            changes[**j].0 != *group
                && change
                    .blocks
                    .iter()
                    .any(|x| changes[**j].1.blocks.iter().any(|y| overlap(x, y) > 0))
        };
        let Some(j) = others.iter().find(overlaps) else {
            others.push(i);
            continue;
        };
        let twice = |x: &Block| {
            let all = others.iter().flat_map(|j| &changes[*j].1.blocks);
            all.map(|y| overlap(x, y)).sum::<usize>() >= x.rows
        };
        if !change.blocks.iter().all(twice) {
            return Err(Error::model("two parts of this LoRA change some of the same rows")
                .at(&change.key)
                .found(format!("{} changes a part of these rows, too", changes[*j].1.key)));
        }
        if !std::mem::replace(&mut doubles[*group], true) {
            let why = format!("{} changes the same rows", changes[*j].1.key);
            let keys = kept[*group].group.keys().map(|k| &file.header.tensors[k].name);
            found.unmatched.extend(keys.map(|k| Unmatched::new(k, why.clone())));
        }
    }
    changes.retain(|(group, _)| !doubles[*group]);
    let mut flags = doubles.iter();
    kept.retain(|_| !flags.next().copied().unwrap_or(false));
    Ok(())
}

/// The number of rows that both blocks have.
fn overlap(a: &Block, b: &Block) -> usize {
    (a.row + a.rows).min(b.row + b.rows).saturating_sub(a.row.max(b.row))
}

/// Checks that every value of every change is finite.
fn finite(file: &WeightFile, changes: &[Change]) -> Result<()> {
    let parts: Vec<(&Change, &HostPart, &str)> = changes
        .iter()
        .flat_map(|c| {
            let lengths = c.magnitude.as_ref().map(|m| (&m.values, "magnitude"));
            c.delta.parts().into_iter().chain(lengths).map(move |(part, name)| (c, part, name))
        })
        .collect();
    let bad = parts.par_iter().map(|(_, part, _)| {
        part.source.will_need(part.range())?;
        let found = first_not_finite(part);
        // They are read again when LoRAs are combined; until then they take no memory.
        part.source.let_go(part.range());
        Ok(found)
    });
    let bad: Vec<Option<(usize, f32)>> = bad.collect::<Result<_>>()?;
    file.source.check()?;
    let count = bad.iter().flatten().count();
    let first = parts.iter().zip(&bad).find_map(|(part, bad)| Some((part, (*bad)?)));
    let Some(((change, part, side), (i, value))) = first else { return Ok(()) };
    let more = if count > 1 {
        format!(", and more in {} other matrices", count - 1)
    } else {
        String::new()
    };
    Err(Error::model("a LoRA contains values that are not finite numbers")
        .at(format!("{}, {side}", change.key))
        .found(format!("{value} in row {}, column {}{more}", i / part.cols, i % part.cols))
        .try_("its training diverged: use an earlier epoch, or another LoRA"))
}
