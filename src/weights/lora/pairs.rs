//! The second look: checks each pair, compares it with the weight that it changes, and checks every
//! value. Nothing of a file is used before all of it is valid.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::adapter::Pair;
use super::group::{Group, Grouped, Unmatched};
use super::refuse::foreign;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::lora::Block;
use crate::spec::{Component, Family};
use crate::tensor::{HostPart, Scale};
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::TensorEntry;

/// The base model's matrices: rows and columns of a canonical weight, or `None` where the model has
/// none of this name.
pub type Base<'a> = &'a dyn Fn(Component, &str) -> Option<(usize, usize)>;

/// Makes the pairs, in the order of `found.groups`. Groups whose weight this model does not have go
/// to the unmatched keys.
pub fn bind(
    file: &WeightFile,
    family: &Family,
    found: &mut Grouped,
    base: Base,
) -> Result<Vec<Pair>> {
    let tensors = &file.header.tensors;
    let mut kept = vec![];
    let mut places: Vec<(usize, usize)> = vec![];
    for group in std::mem::take(&mut found.groups) {
        let Some(shape) = base(group.component, &group.weight) else {
            let why = absent(&group, base)?;
            found
                .unmatched
                .extend(group.keys().map(|i| Unmatched::new(&tensors[i].name, why.clone())));
            continue;
        };
        kept.push(group);
        places.push(shape);
    }
    if kept.is_empty() {
        let keys =
            found.unmatched.first().map(|u| format!("{}: {}", u.key, u.why)).unwrap_or_default();
        return Err(Error::model("no tensor of this LoRA matches this model")
            .found(format!("{} keys, the first {keys}", found.unmatched.len()))
            .try_("{:inspect} on both files shows what each is"));
    }
    for group in &kept {
        complete(file, group)?;
    }
    sizes(file, family, &kept, &places)?;
    let mut pairs = vec![];
    for (group, shape) in kept.iter().zip(&places) {
        pairs.push(pair(file, family, group, *shape)?);
    }
    drop_doubles(file, found, &mut kept, &mut pairs);
    finite(file, &pairs)?;
    let idle = pairs.iter().filter(|p| p.factor == 0.0).count();
    if idle > 0 {
        found.notes.push(format!("{idle} of {} pairs have alpha 0 and do nothing", pairs.len()));
    }
    found.groups = kept;
    Ok(pairs)
}

/// Why the model lacks the weight of a group; an error where it is another model's.
fn absent(group: &Group, base: Base) -> Result<String> {
    let numbered = |n: usize| match group.block {
        Some(own) => group.weight.replacen(&format!(".{own}."), &format!(".{n}."), 1),
        None => group.weight.clone(),
    };
    let has = |n: usize| base(group.component, &numbered(n)).is_some();
    let Some(own) = group.block else {
        return Ok(format!("this model has no {}", group.weight));
    };
    if !has(0) {
        return Ok(format!("there is no {} here", group.component.title));
    }
    let last = (0..own).take_while(|n| has(*n)).last().unwrap_or(0);
    Err(Error::model("this LoRA was made for another model: it has more blocks than this one")
        .at(&group.base)
        .found(format!("block {own}"))
        .expected(format!("blocks 0 to {last}"))
        .try_(group.component.lora.blocks_hint))
}

/// Checks that A and B are both present and have the same rank.
fn complete(file: &WeightFile, group: &Group) -> Result<()> {
    let tensors = &file.header.tensors;
    let (Some(down), Some(up)) = (group.down, group.up) else {
        let there = group.down.or(group.up).map_or("", |i| tensors[i].name.as_str());
        let lacking = if group.down.is_some() { "up (B)" } else { "down (A)" };
        return Err(Error::model(format!(
            "a LoRA matrix has no partner: its {lacking} matrix is missing"
        ))
        .at(there)
        .try_("the file is incomplete; download it again"));
    };
    let (a, b) = (matrix(&tensors[down])?, matrix(&tensors[up])?);
    if a.0 != b.1 || a.0 == 0 {
        let what = if a.0 == b.1 {
            "a LoRA has rank 0"
        } else {
            "the two matrices of a LoRA differ in rank"
        };
        return Err(Error::model(what)
            .at(&group.base)
            .found(format!("down (A) {:?}, up (B) {:?}", tensors[down].shape, tensors[up].shape))
            .expected("[rank, columns] and [rows, rank]"));
    }
    Ok(())
}

/// Rows and columns. A 1 x 1 convolution is a matrix, too.
fn matrix(entry: &TensorEntry) -> Result<(usize, usize)> {
    match entry.shape.as_slice() {
        [rows, cols, rest @ ..] if rest.iter().all(|n| *n == 1) => Ok((*rows, *cols)),
        other => Err(Error::model("a LoRA matrix does not have two axes")
            .at(&entry.name)
            .found(format!("{other:?}"))),
    }
}

/// Compares every pair with the weight that it changes. One error reports all that differ.
fn sizes(
    file: &WeightFile,
    family: &Family,
    groups: &[Group],
    places: &[(usize, usize)],
) -> Result<()> {
    let tensors = &file.header.tensors;
    let mut first = None;
    let mut wrong = 0;
    for (group, &(rows, cols)) in groups.iter().zip(places) {
        let (Some(down), Some(up)) = (group.down, group.up) else { continue };
        let (a, b) = (matrix(&tensors[down])?, matrix(&tensors[up])?);
        let own: usize =
            group.rows.of((rows, cols)).map_or(0, |blocks| blocks.iter().map(|x| x.rows).sum());
        if (b.0, a.1) != (own, cols) {
            wrong += 1;
            first.get_or_insert((group, (b.0, a.1), (own, cols)));
        }
    }
    let Some((group, found, expected)) = first else { return Ok(()) };
    if group.component.lora.input == Some(&group.weight) && found.1 > expected.1 {
        return Err(Error::model(
            "this LoRA widens img_in, as BFL's control LoRAs (Canny, Depth) do; that is not \
             supported",
        )
        .at(&group.base)
        .found(format!("{} inputs", found.1))
        .expected(format!("{} inputs", expected.1))
        .try_(format!("use a plain LoRA of {}", family.title)));
    }
    let of = |(rows, cols): (usize, usize)| format!("{rows} x {cols}");
    let what = if wrong * 2 > groups.len() {
        "this LoRA was made for another model: its layers have other sizes"
    } else {
        "a LoRA does not fit its layer"
    };
    let counted = if wrong > 1 {
        format!("; {wrong} of {} pairs do not fit", groups.len())
    } else {
        String::new()
    };
    let hint = family.lora.widths.iter().find(|(width, _)| *width == found.1);
    let hint = hint.map_or(family.lora.other_width, |(_, hint)| *hint);
    Err(Error::model(what)
        .at(&group.base)
        .found(format!("a change of {}{counted}", of(found)))
        .expected(format!("{} for {}", of(expected), group.weight))
        .try_(hint))
}

fn pair(file: &WeightFile, family: &Family, group: &Group, shape: (usize, usize)) -> Result<Pair> {
    let part = |i: Option<usize>| {
        let Some(entry) = i.map(|i| &file.header.tensors[i]) else {
            return Err(Error::model("a LoRA matrix is missing").at(&group.base));
        };
        let (rows, cols) = matrix(entry)?;
        let Some(dtype) = entry.stored.float().filter(|d| d.is_plain()) else {
            return Err(Error::model("a LoRA matrix has an element type that cannot be read")
                .at(&entry.name)
                .found(entry.stored.name())
                .expected("F32, F16 or BF16"));
        };
        let offset = entry.range.start;
        Ok(HostPart { source: file.source.clone(), offset, rows, cols, dtype, scale: Scale::One })
    };
    let (a, b) = (part(group.down)?, part(group.up)?);
    let alpha = group.alpha(file)?;
    let root = group.alpha.is_none() && group.configured.is_some_and(|(_, root)| root);
    let rank = if root { (a.rows as f64).sqrt() } else { a.rows as f64 };
    let factor = alpha.map_or(1.0, |alpha| alpha / rank);
    if !(factor as f32).is_finite() {
        return Err(Error::model("alpha is not a finite number")
            .at(&group.base)
            .found(alpha.unwrap_or_default())
            .try_("use another epoch of this LoRA, or another LoRA"));
    }
    let Some(blocks) = group.rows.of(shape) else {
        return Err(foreign(family, "a model with other layers", &group.base));
    };
    // No training results in a larger factor, and products with it would overflow.
    const LARGEST: f64 = 1e4;
    if factor.abs() > LARGEST {
        return Err(Error::model("alpha / rank of a pair is out of range, the file is damaged")
            .at(&group.base)
            .found(factor)
            .expected(format!("at most {LARGEST}")));
    }
    Ok(Pair {
        component: group.component,
        weight: group.weight.clone(),
        key: group.base.clone(),
        a,
        b,
        blocks,
        alpha,
        factor,
    })
}

/// Drops pairs for rows that another pair changes already: a file may name one layer twice, in the
/// names of two trainers. Other tools use one of both, too; diffusers' names take precedence.
fn drop_doubles(
    file: &WeightFile,
    found: &mut Grouped,
    groups: &mut Vec<Group>,
    pairs: &mut Vec<Pair>,
) {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|i| (groups[*i].dialect != Some("diffusers"), *i));
    let mut taken: BTreeMap<(Component, &str), Vec<usize>> = BTreeMap::new();
    let mut doubles = vec![false; pairs.len()];
    for i in order {
        let others = taken.entry((pairs[i].component, &pairs[i].weight)).or_default();
        let overlaps = |j: &&usize| {
            pairs[i].blocks.iter().any(|x| pairs[**j].blocks.iter().any(|y| overlap(x, y)))
        };
        if let Some(j) = others.iter().find(overlaps) {
            doubles[i] = true;
            let why = format!("{} changes the same rows", pairs[*j].key);
            let keys = groups[i].keys().map(|k| &file.header.tensors[k].name);
            found.unmatched.extend(keys.map(|k| Unmatched::new(k, why.clone())));
        } else {
            others.push(i);
        }
    }
    let mut flags = doubles.iter();
    groups.retain(|_| !flags.next().copied().unwrap_or(false));
    let mut flags = doubles.iter();
    pairs.retain(|_| !flags.next().copied().unwrap_or(false));
}

fn overlap(a: &Block, b: &Block) -> bool {
    a.row < b.row + b.rows && b.row < a.row + a.rows
}

/// Checks that every value of every pair is finite.
fn finite(file: &WeightFile, pairs: &[Pair]) -> Result<()> {
    let parts: Vec<(&Pair, &HostPart, &str)> =
        pairs.iter().flat_map(|p| [(p, &p.a, "down (A)"), (p, &p.b, "up (B)")]).collect();
    let bad = parts.par_iter().map(|(_, part, _)| {
        file.source.will_need(part.range())?;
        let found = first_not_finite(part);
        // They are read again when LoRAs are combined; until then they take no memory.
        file.source.let_go(part.range());
        Ok(found)
    });
    let bad: Vec<Option<(usize, f32)>> = bad.collect::<Result<_>>()?;
    let count = bad.iter().flatten().count();
    let first = parts.iter().zip(&bad).find_map(|(part, bad)| Some((part, (*bad)?)));
    let Some(((pair, part, side), (i, value))) = first else { return Ok(()) };
    let more = if count > 1 {
        format!(", and more in {} other matrices", count - 1)
    } else {
        String::new()
    };
    Err(Error::model("a LoRA contains values that are not finite numbers")
        .at(format!("{}, {side}", pair.key))
        .found(format!("{value} in row {}, column {}{more}", i / part.cols, i % part.cols))
        .try_("its training diverged: use an earlier epoch, or another LoRA"))
}

/// The first element that is NaN or infinite.
fn first_not_finite(part: &HostPart) -> Option<(usize, f32)> {
    let (size, dtype) = (part.dtype.size(), part.dtype);
    const CHUNK: usize = 4096;
    let bytes = part.bytes();
    // The bits of the exponent are enough, and a check without branches can be vectorised.
    let suspicious = |chunk: &[u8]| match dtype {
        DType::F32 => chunk
            .as_chunks::<4>()
            .0
            .iter()
            .fold(false, |s, b| s | (u32::from_le_bytes(*b) << 1 >= 0xff00_0000)),
        DType::BF16 => chunk
            .as_chunks::<2>()
            .0
            .iter()
            .fold(false, |s, b| s | (u16::from_le_bytes(*b) << 1 >= 0xff00)),
        DType::F16 => chunk
            .as_chunks::<2>()
            .0
            .iter()
            .fold(false, |s, b| s | (u16::from_le_bytes(*b) << 1 >= 0xf800)),
        _ => true,
    };
    bytes.chunks(CHUNK).enumerate().filter(|(_, chunk)| suspicious(chunk)).find_map(|(n, chunk)| {
        let values = chunk.chunks_exact(size).map(|b| dtype.decode(b)).enumerate();
        values.into_iter().find(|(_, v)| !v.is_finite()).map(|(i, v)| (n * (CHUNK / size) + i, v))
    })
}
