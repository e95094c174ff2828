//! Loads, stores, atomics, matrix loads, asynchronous copies.

use crate::decode::{Decoded, at, last_type, unknown};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::{Slot, Type};

fn space(parts: &[&str]) -> Space {
    for p in parts {
        match p.split("::").next() {
            Some("global") => return Space::Global,
            Some("shared") => return Space::Shared,
            Some("local") => return Space::Local,
            Some("param") => return Space::Param,
            _ => {}
        }
    }
    Space::Generic
}

pub(crate) fn access(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let ty = last_type(parts)?;
    let space = space(parts);
    if parts[0] == "atom" || parts[0] == "red" {
        return atomic(b, parts, args, ty, space);
    }
    let load = parts[0] != "st";
    let (value, place) =
        if load { (at(args, 0)?, at(args, 1)?) } else { (at(args, 1)?, at(args, 0)?) };
    let names = match value {
        Arg::List(names) => names.iter().map(|n| Arg::Name(n.clone())).collect(),
        a => vec![a.clone()],
    };
    let mut elements = vec![];
    for n in &names {
        elements.push(if load { b.any(n)? } else { Some(b.value(n, ty)?) });
    }
    let access = Access {
        space,
        address: b.address(place)?,
        size: ty.bytes(),
        signed: ty.signed(),
        elements,
    };
    let shared = space == Space::Shared;
    Ok(match (load, shared, space) {
        (true, _, Space::Param) => (Action::Load(access), Class::Other, 0),
        (true, true, _) => (Action::Load(access), Class::SharedLoad, 0),
        (true, false, _) => (Action::Load(access), Class::Load, 0),
        (false, true, _) => (Action::Store(access), Class::SharedStore, 0),
        (false, false, _) => (Action::Store(access), Class::Store, 0),
    })
}

fn atomic(b: &mut Builder, parts: &[&str], args: &[Arg], ty: Type, space: Space) -> Decoded {
    let op = parts.iter().find_map(|p| {
        Some(match *p {
            "add" => AtomOp::Add,
            "min" => AtomOp::Min,
            "max" => AtomOp::Max,
            "and" => AtomOp::And,
            "or" => AtomOp::Or,
            "xor" => AtomOp::Xor,
            "exch" => AtomOp::Exch,
            "cas" => AtomOp::Cas,
            "inc" => AtomOp::Inc,
            "dec" => AtomOp::Dec,
            _ => return None,
        })
    });
    let op = op.ok_or_else(unknown)?;
    let result = if parts[0] == "atom" { b.any(at(args, 0)?)? } else { None };
    let first = (parts[0] == "atom") as usize;
    let address = b.address(at(args, first)?)?;
    let wide = ty.bytes() == 8;
    let mut operand = |i: usize| -> Result<u32, Error> {
        match args.get(first + i) {
            Some(a) if wide => b.src::<u64>(a, ty),
            Some(a) => b.src::<u32>(a, ty),
            None => Ok(0),
        }
    };
    let operands = [operand(1)?, if op == AtomOp::Cas { operand(2)? } else { 0 }];
    let class = if space == Space::Shared { Class::SharedStore } else { Class::Store };
    Ok((Action::Atomic(Atomic { space, op, ty, address, result, operands }), class, 0))
}

pub(crate) fn matrices(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let count = parts
        .iter()
        .find_map(|p| p.strip_prefix('x'))
        .and_then(|n| n.parse::<usize>().ok())
        .ok_or_else(unknown)?;
    if !parts.contains(&"m8n8") || !parts.contains(&"b16") {
        return Err(unknown());
    }
    let transposed = parts.contains(&"trans");
    let load = parts[0] == "ldmatrix";
    let (list, place) =
        if load { (at(args, 0)?, at(args, 1)?) } else { (at(args, 1)?, at(args, 0)?) };
    let names = match list {
        Arg::List(names) => names.clone(),
        Arg::Name(n) => vec![n.clone()],
        _ => return Err(unknown()),
    };
    if names.len() != count {
        return Err(Error::new("number of registers"));
    }
    let mut d = [0; 4];
    for (d, n) in d.iter_mut().zip(names) {
        *d = if load { b.dst::<u32>(&Arg::Name(n))? } else { b.src_word(&Arg::Name(n))? };
    }
    let address = b.address(place)?;
    Ok(if load {
        (Action::Ldmatrix { count, transposed, address, d }, Class::SharedLoad, 0)
    } else {
        (Action::Stmatrix { count, transposed, address, s: d }, Class::SharedStore, 0)
    })
}

fn number(arg: &Arg) -> Result<u32, Error> {
    match arg {
        Arg::Name(n) => crate::read::text::integer(n).map(|i| i as u32).ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

pub(crate) fn copy(b: &mut Builder, op: &str, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |a| Ok((a, Class::CopyAsync, 0));
    if parts.get(1) != Some(&"async") {
        return Err(unknown());
    }
    match parts[2] {
        "bulk" => return crate::machine::bulk::decode(b, parts, args),
        "mbarrier" => return crate::machine::mbarrier::decode_copy(b, parts, args),
        "commit_group" => return done(Action::CopyCommit),
        "wait_group" => return done(Action::CopyWait(number(at(args, 0)?)?)),
        "wait_all" => return done(Action::CopyWaitAll),
        "ca" | "cg" if op.contains(".shared") && op.contains(".global") => {}
        _ => return Err(unknown()),
    }
    let (to, from) = (b.address(at(args, 0)?)?, b.address(at(args, 1)?)?);
    let bytes = number(at(args, 2)?)? as usize;
    if !matches!((parts[2], bytes), ("cg", 16) | ("ca", 4 | 8 | 16)) {
        return Err(Error::new("size of the copy"));
    }
    let hint = parts.contains(&"L2::cache_hint");
    let rest = &args[3..args.len() - hint as usize];
    let (mut source_bytes, mut ignore) = (None, None);
    if let Some(a) = rest.first() {
        let pred = match a {
            Arg::Name(n) => matches!(b.register(n), Ok(Slot::Pred(_))),
            _ => true,
        };
        if pred { ignore = Some(b.src_pred(a)?) } else { source_bytes = Some(b.src_word(a)?) }
    }
    done(Action::CopyAsync { bytes, to, from, source_bytes, ignore })
}
