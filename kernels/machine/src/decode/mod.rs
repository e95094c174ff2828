//! Decodes an instruction from its text: control flow, moves, warp operations; other families are
//! in files of their own.

pub(crate) mod arithmetic;
pub(crate) mod bits;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod formats;
pub(crate) mod memory;

use crate::machine::regs::{Regs, binary, unary};
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::{Slot, Type};

pub(crate) type Decoded = Result<(Action, Class, u64), Error>;

pub(crate) fn unknown() -> Error {
    Error::new("unknown instruction")
}

/// The `i`th argument.
pub(crate) fn at(args: &[Arg], i: usize) -> Result<&Arg, Error> {
    args.get(i).ok_or_else(|| Error::new("too few operands"))
}

/// The type at the end of an opcode.
pub(crate) fn last_type(parts: &[&str]) -> Result<Type, Error> {
    parts.last().and_then(|p| Type::from_name(p)).ok_or_else(unknown)
}

pub(crate) fn instruction(b: &mut Builder, op: &str, parts: &[&str], args: &[Arg]) -> Decoded {
    let integer = |a| Ok((Action::Alu(a), Class::Integer, 0));
    match parts[0] {
        "bra" => {
            b.branch(at(args, 0)?)?;
            Ok((Action::Branch(0), Class::Branch, 0))
        }
        "brx" => {
            b.branch(at(args, 1)?)?;
            Ok((Action::BranchIndexed(b.src_word(at(args, 0)?)?, vec![]), Class::Branch, 0))
        }
        "ret" | "exit" => Ok((Action::Exit, Class::Branch, 0)),
        "trap" | "brkpt" => Ok((Action::Trap, Class::Branch, 0)),
        "fence" if op.starts_with("fence.proxy.async") || op.starts_with("fence.mbarrier_init") => {
            Ok((Action::ProxyFence, Class::Other, 0))
        }
        "mbarrier" => crate::machine::mbarrier::decode(b, parts, args),
        "wgmma" => crate::machine::wgmma::decode(b, parts, args),
        "membar" | "fence" | "nanosleep" | "prefetch" | "prefetchu" | "pmevent"
        | "applypriority" | "discard" | "griddepcontrol" | "setmaxnreg" => {
            Ok((Action::Nop, Class::Other, 0))
        }
        "mov" => mov(b, parts, args),
        "cvta" => cvta(b, parts, args),
        "createpolicy" => {
            let d = b.dst::<u64>(at(args, 0)?)?;
            integer(Box::new(move |regs: &mut Regs, mask| regs.put_double(d, [0; 32], mask)))
        }
        "ld" | "ldu" | "st" | "atom" | "red" => crate::decode::memory::access(b, parts, args),
        "ldmatrix" | "stmatrix" => crate::decode::memory::matrices(b, parts, args),
        "cp" => crate::decode::memory::copy(b, op, parts, args),
        "mma" => crate::machine::mma::decode(b, parts, args),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp(b, parts, args),
        "bar" | "barrier" => bar(b, parts, args),
        "cvt" => crate::decode::convert::decode(b, parts, args),
        _ => crate::decode::arithmetic::decode(b, parts, args),
    }
}

fn mov(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let ty = last_type(parts)?;
    let done = |a| Ok((Action::Alu(a), Class::Integer, 0));
    match (at(args, 0)?, at(args, 1)?) {
        (Arg::Name(d), s) if ty == Type::Pred => {
            let (d, (s, negate)) = (b.dst_pred(d)?, b.src_pred(s)?);
            done(Box::new(move |regs: &mut Regs, mask| {
                let v = if negate { !regs.preds[s as usize] } else { regs.preds[s as usize] };
                regs.put_pred(d, v, mask)
            }))
        }
        (d, Arg::List(list)) => {
            // Packs elements, the first one lowest.
            let bits = ty.bytes() * 8 / list.len();
            let mut from = vec![];
            for n in list {
                let part = if bits == 16 { Type::B16 } else { Type::B32 };
                from.push(b.src::<u32>(&Arg::Name(n.clone()), part)?);
            }
            let wide = ty.bytes() > 4;
            let d = if wide { b.dst::<u64>(d)? } else { b.dst::<u32>(d)? };
            let low = u64::MAX >> (64 - bits);
            if let [low, high] = from[..] {
                return done(if wide {
                    binary(d, [low, high], |low: u32, high: u32| low as u64 | (high as u64) << 32)
                } else {
                    binary(d, [low, high], |low: u32, high: u32| low & 0xffff | high << 16)
                });
            }
            done(Box::new(move |regs: &mut Regs, mask| {
                let mut out = [0u64; 32];
                for (i, s) in from.iter().enumerate() {
                    let x = &regs.words[*s as usize];
                    for l in 0..32 {
                        out[l] |= (x[l] as u64 & low) << (i * bits);
                    }
                }
                if wide {
                    regs.put_double(d, out, mask)
                } else {
                    regs.put_word(d, out.map(|x| x as u32), mask)
                }
            }))
        }
        (Arg::List(list), s) => {
            let bits = ty.bytes() * 8 / list.len();
            let mut to = vec![];
            for n in list {
                to.push(b.dst::<u32>(&Arg::Name(n.clone()))?);
            }
            let wide = ty.bytes() > 4;
            let s = if wide { b.src::<u64>(s, ty)? } else { b.src::<u32>(s, ty)? };
            let low = u64::MAX >> (64 - bits);
            done(Box::new(move |regs: &mut Regs, mask| {
                let x: [u64; 32] = if wide {
                    regs.doubles[s as usize]
                } else {
                    regs.words[s as usize].map(|x| x as u64)
                };
                for (i, d) in to.iter().enumerate() {
                    regs.put_word(*d, x.map(|x| (x >> (i * bits) & low) as u32), mask);
                }
            }))
        }
        (d, Arg::Name(n))
            if ["%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo"]
                .contains(&n.as_str()) =>
        {
            let slot = if ty.bytes() > 4 {
                Slot::Double(b.dst::<u64>(d)?)
            } else {
                Slot::Word(b.dst::<u32>(d)?)
            };
            Ok((Action::Clock(slot), Class::Integer, 0))
        }
        (d, s) if ty.bytes() > 4 => {
            let (d, s) = (b.dst::<u64>(d)?, b.src::<u64>(s, ty)?);
            done(unary(d, s, |x: u64| x))
        }
        (d, s) => {
            let (d, s) = (b.dst::<u32>(d)?, b.src::<u32>(s, ty)?);
            done(unary(d, s, |x: u32| x))
        }
    }
}

/// Generic addresses contain their state space in the top four bits; global ones are unchanged.
fn cvta(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    use crate::read::parse::spaces;
    let window = |name: &str| {
        Some(match name.split("::").next()? {
            "shared" => spaces::SHARED,
            "local" => spaces::LOCAL,
            "param" => spaces::PARAM,
            _ => 0,
        })
    };
    if last_type(parts)?.bytes() != 8 {
        return Err(unknown());
    }
    let to = parts[1] == "to";
    let window = window(if to { parts[2] } else { parts[1] }).ok_or_else(unknown)?;
    let (d, s) = (b.dst::<u64>(at(args, 0)?)?, b.src::<u64>(at(args, 1)?, Type::U64)?);
    let alu = match (window, to) {
        (0, _) => unary(d, s, |x: u64| x),
        (_, true) => unary(d, s, |x: u64| x & (u64::MAX >> 4)),
        (_, false) => unary(d, s, move |x: u64| x | window),
    };
    Ok((Action::Alu(alu), Class::Integer, 0))
}

fn warp(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |op, members| Ok((Action::Warp(op, members), Class::Shuffle, 0));
    if parts[0] == "activemask" {
        return Ok((Action::ActiveMask(b.dst::<u32>(at(args, 0)?)?), Class::Shuffle, 0));
    }
    if !parts.contains(&"sync") {
        return Err(unknown());
    }
    // The destination, and a predicate after a bar.
    let (first, pred) = match at(args, 0)? {
        Arg::Pair(d, p) => (Arg::Name(d.clone()), Some(p.clone())),
        a => (a.clone(), None),
    };
    let pred = pred.map(|p| b.dst_pred(&p)).transpose()?;
    match parts[0] {
        "shfl" => {
            let mode = match parts[2] {
                "up" => ShuffleMode::Up,
                "down" => ShuffleMode::Down,
                "bfly" => ShuffleMode::Butterfly,
                "idx" => ShuffleMode::Index,
                _ => return Err(unknown()),
            };
            let d = b.dst::<u32>(&first)?;
            let [a, s, c, members] = [1, 2, 3, 4].map(|i| at(args, i).and_then(|a| b.src_word(a)));
            done(WarpOp::Shuffle { mode, d, pred, a: a?, b: s?, c: c? }, members?)
        }
        "vote" => {
            let mode = match parts[2] {
                "all" => VoteMode::All,
                "any" => VoteMode::Any,
                "uni" => VoteMode::Uniform,
                "ballot" => VoteMode::Ballot,
                _ => return Err(unknown()),
            };
            let d = match (&first, mode) {
                (_, VoteMode::Ballot) => b.dst::<u32>(&first)?,
                (Arg::Name(n), _) => b.dst_pred(n)?,
                _ => return Err(unknown()),
            };
            let (pred, negate) = b.src_pred(at(args, 1)?)?;
            let members = b.src_word(at(args, 2)?)?;
            done(WarpOp::Vote { mode, d, pred, negate }, members)
        }
        "match" => {
            let wide = last_type(parts)?.bytes() == 8;
            let d = b.dst::<u32>(&first)?;
            let a = at(args, 1)?;
            let a = if wide { b.src::<u64>(a, Type::B64)? } else { b.src_word(a)? };
            let members = b.src_word(at(args, 2)?)?;
            done(WarpOp::Match { all: parts[1] == "all", wide, d, pred, a }, members)
        }
        "redux" => {
            let signed = last_type(parts)? == Type::S32;
            let op = match parts[2] {
                "add" => Redux::Add,
                "min" => Redux::Min(signed),
                "max" => Redux::Max(signed),
                "and" => Redux::And,
                "or" => Redux::Or,
                "xor" => Redux::Xor,
                _ => return Err(unknown()),
            };
            if last_type(parts)?.float() {
                return Err(unknown());
            }
            let (d, a) = (b.dst::<u32>(&first)?, b.src_word(at(args, 1)?)?);
            let members = b.src_word(at(args, 2)?)?;
            done(WarpOp::Redux { op, d, a }, members)
        }
        "elect" => {
            let d = b.any(&first)?.map(|s| match s {
                Slot::Word(s) | Slot::Double(s) | Slot::Pred(s) => s,
            });
            let members = b.src_word(at(args, 1)?)?;
            done(WarpOp::Elect { d, pred: pred.ok_or_else(unknown)? }, members)
        }
        _ => Err(unknown()),
    }
}

fn bar(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |bar| Ok((Action::Bar(bar), Class::Barrier, 0));
    let aligned = parts[0] == "bar" || parts.contains(&"aligned");
    let mode = parts.iter().skip(1).find(|p| **p != "cta").copied().unwrap_or("");
    if parts.contains(&"cluster") {
        // A cluster of one block: arriving does nothing, waiting is a barrier of the block's
        // threads that arrived.
        let arrive = mode == "arrive" || parts.contains(&"arrive");
        let id = b.constant_word(16);
        return if arrive {
            Ok((Action::Nop, Class::Barrier, 0))
        } else {
            done(Bar { id, count: None, arrive: false, aligned, reduce: None })
        };
    }
    match mode {
        "warp" => Ok((Action::Warp(WarpOp::Sync, b.src_word(at(args, 0)?)?), Class::Barrier, 0)),
        "sync" | "arrive" => {
            let id = b.src_word(at(args, 0)?)?;
            let count = args.get(1).map(|a| b.src_word(a)).transpose()?;
            done(Bar { id, count, arrive: mode == "arrive", aligned, reduce: None })
        }
        "red" => {
            let op = match parts.iter().find(|p| ["and", "or", "popc"].contains(p)) {
                Some(&"and") => VoteOp::And,
                Some(&"or") => VoteOp::Or,
                _ => VoteOp::Popc,
            };
            let Some(Arg::Name(d)) = args.first() else { return Err(unknown()) };
            let d = b.register(d)?;
            let id = b.src_word(at(args, 1)?)?;
            let count = if args.len() > 3 { Some(b.src_word(&args[2])?) } else { None };
            let (pred, negate) = b.src_pred(&args[args.len() - 1])?;
            done(Bar {
                id,
                count,
                arrive: false,
                aligned,
                reduce: Some(BarReduce { op, d, pred, negate }),
            })
        }
        _ => Err(unknown()),
    }
}
