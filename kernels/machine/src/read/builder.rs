//! Builds the instructions of one entry point: registers, operands, branches.

use crate::machine::regs::Lane;
use crate::program::{Action, Address, Error, Guard, Inst};
use crate::read::parse::{names, register_range, spaces};
use crate::read::text::{Arg, args, integer};
use crate::read::types::{Slot, Special, Type};
use std::collections::HashMap;

/// The meaning of a name that is not a register.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    Param(u64),
    Shared(u64),
    Local(u64),
    Module(u64),
}

#[derive(Default)]
struct Scope {
    id: u32,
    registers: HashMap<String, Slot>,
    /// Types of names declared singly, and of stems with a count.
    single: HashMap<String, Type>,
    ranges: HashMap<String, (Type, u32)>,
}

pub(crate) struct Builder {
    pub code: Vec<Inst>,
    pub words: u32,
    pub doubles: u32,
    pub preds: u32,
    pub shared: usize,
    pub local: usize,
    pub symbols: HashMap<String, Symbol>,
    pub constants: HashMap<(bool, u64), Slot>,
    pub specials: HashMap<(Special, bool), Slot>,
    scopes: Vec<Scope>,
    next_scope: u32,
    labels: HashMap<(u32, String), u32>,
    tables: HashMap<String, Vec<String>>,
    last_label: String,
    /// Words that the current statement reads and writes.
    reads: Vec<u32>,
    writes: Vec<u32>,
    /// Branches to resolve: index of the instruction, its scopes from outside in, the label.
    branches: Vec<(usize, Vec<u32>, String)>,
}

/// Bits of a number as a type.
pub(crate) fn literal(text: &str, ty: Type) -> Option<u64> {
    if let Some(h) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        return u32::from_str_radix(h, 16).ok().map(|b| b as u64);
    }
    if let Some(h) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        return u64::from_str_radix(h, 16).ok();
    }
    if let Some(i) = integer(text) {
        return Some(i as u64);
    }
    let v: f64 =
        text.parse().ok().filter(|_| text.starts_with(|c: char| c.is_ascii_digit() || c == '-'))?;
    Some(if ty == Type::F64 { v.to_bits() } else { (v as f32).to_bits() as u64 })
}

impl Builder {
    pub(crate) fn new(symbols: HashMap<String, Symbol>) -> Builder {
        Builder {
            code: vec![],
            words: 0,
            doubles: 0,
            preds: 0,
            shared: 0,
            local: 0,
            symbols,
            constants: HashMap::new(),
            specials: HashMap::new(),
            scopes: vec![Scope::default()],
            next_scope: 1,
            labels: HashMap::new(),
            tables: HashMap::new(),
            last_label: String::new(),
            reads: vec![],
            writes: vec![],
            branches: vec![],
        }
    }

    pub(crate) fn open(&mut self) {
        self.scopes.push(Scope { id: self.next_scope, ..Scope::default() });
        self.next_scope += 1;
    }

    pub(crate) fn close(&mut self) {
        self.scopes.pop();
    }

    pub(crate) fn label(&mut self, name: &str) {
        let scope = self.scopes.last().map_or(0, |s| s.id);
        self.labels.insert((scope, name.to_string()), self.code.len() as u32);
        self.last_label = name.to_string();
    }

    pub(crate) fn statement(&mut self, line: u32, s: &str) -> Result<(), Error> {
        if let Some(list) = s.strip_prefix(".reg") {
            return self.registers(list);
        }
        if let Some(list) = s.strip_prefix(".branchtargets") {
            self.tables.insert(self.last_label.clone(), names(list));
            return Ok(());
        }
        if [".pragma", ".loc", ".file", ".shared", ".local"].iter().any(|d| s.starts_with(d)) {
            return Ok(());
        }
        let mut rest = s;
        let mut guard = None;
        if let Some(g) = s.strip_prefix('@') {
            let (name, r) = g
                .trim_start()
                .split_once(char::is_whitespace)
                .ok_or_else(|| Error::new("no instruction"))?;
            let negate = name.starts_with('!');
            let Slot::Pred(pred) = self.register(name.trim_start_matches('!'))? else {
                return Err(Error::new("guard is not a predicate"));
            };
            guard = Some(Guard { pred, negate });
            rest = r.trim_start();
        }
        let (op, list) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let args = args(list)?;
        let parts: Vec<&str> = op.split('.').collect();
        self.reads.clear();
        self.writes.clear();
        let (action, class, flops) = crate::decode::instruction(self, op, &parts, &args)?;
        let (reads, writes) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
        let is_move = parts[0] == "mov" && reads.len() == 1 && writes.len() == 1;
        self.code.push(Inst {
            guard,
            action,
            class,
            flops,
            in_loop: false,
            line,
            text: s.to_string(),
            reads,
            writes,
            is_move,
        });
        Ok(())
    }

    fn registers(&mut self, list: &str) -> Result<(), Error> {
        let list = list.trim();
        let (ty, list) =
            list.split_once(char::is_whitespace).ok_or_else(|| Error::new("register list"))?;
        let ty = Type::from_name(ty.trim_start_matches('.'))
            .ok_or_else(|| Error::new("register type"))?;
        let scope = self.scopes.last_mut().ok_or_else(|| Error::new("no scope"))?;
        for name in list.split(',').map(str::trim) {
            match register_range(name) {
                Some((stem, count)) => {
                    scope.ranges.insert(stem.to_string(), (ty, count));
                }
                None => {
                    scope.single.insert(name.to_string(), ty);
                }
            }
        }
        Ok(())
    }

    fn fresh(&mut self, ty: Type) -> Slot {
        match ty {
            Type::Pred => {
                self.preds += 1;
                Slot::Pred(self.preds - 1)
            }
            _ if ty.bytes() > 4 => {
                self.doubles += 1;
                Slot::Double(self.doubles - 1)
            }
            _ => {
                self.words += 1;
                Slot::Word(self.words - 1)
            }
        }
    }

    /// Slot of a declared register.
    pub(crate) fn register(&mut self, name: &str) -> Result<Slot, Error> {
        for i in (0..self.scopes.len()).rev() {
            if let Some(&slot) = self.scopes[i].registers.get(name) {
                return Ok(slot);
            }
            let scope = &self.scopes[i];
            let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let ranged = scope
                .ranges
                .get(&name[..digits])
                .filter(|r| name[digits..].parse::<u32>().is_ok_and(|n| n < r.1));
            let ty = scope.single.get(name).copied().or(ranged.map(|r| r.0));
            if let Some(ty) = ty {
                let slot = self.fresh(ty);
                self.scopes[i].registers.insert(name.to_string(), slot);
                return Ok(slot);
            }
        }
        Err(Error::new(format!("unknown register or name {name}")))
    }

    fn constant(&mut self, wide: bool, bits: u64) -> u32 {
        let bits = if wide { bits } else { bits as u32 as u64 };
        if !self.constants.contains_key(&(wide, bits)) {
            let slot = self.fresh(if wide { Type::B64 } else { Type::B32 });
            self.constants.insert((wide, bits), slot);
        }
        match self.constants[&(wide, bits)] {
            Slot::Word(s) | Slot::Double(s) | Slot::Pred(s) => s,
        }
    }

    pub(crate) fn constant_word(&mut self, bits: u32) -> u32 {
        self.constant(false, bits as u64)
    }

    /// Address of a variable in its own state space.
    fn symbol(&self, name: &str) -> Option<u64> {
        Some(match *self.symbols.get(name)? {
            Symbol::Param(a) | Symbol::Shared(a) | Symbol::Local(a) => a,
            Symbol::Module(a) => spaces::MODULE + a,
        })
    }

    fn source(&mut self, arg: &Arg, ty: Type, wide: bool) -> Result<u32, Error> {
        let slot = self.source_slot(arg, ty, wide)?;
        if !wide {
            self.reads.push(slot);
        }
        Ok(slot)
    }

    fn source_slot(&mut self, arg: &Arg, ty: Type, wide: bool) -> Result<u32, Error> {
        let Arg::Name(name) = arg else { return Err(Error::new(format!("operand {arg:?}"))) };
        if let Some(bits) = literal(name, ty) {
            return Ok(self.constant(wide, bits));
        }
        if let Some(a) = self.symbol(name) {
            return Ok(self.constant(wide, a));
        }
        if let Some(special) = Special::from_name(name) {
            if !self.specials.contains_key(&(special, wide)) {
                let slot = self.fresh(if wide { Type::B64 } else { Type::B32 });
                self.specials.insert((special, wide), slot);
            }
            return match self.specials[&(special, wide)] {
                Slot::Word(s) | Slot::Double(s) | Slot::Pred(s) => Ok(s),
            };
        }
        match (self.register(name)?, wide) {
            (Slot::Word(s), false) | (Slot::Double(s), true) => Ok(s),
            _ => Err(Error::new(format!("register {name} has another size"))),
        }
    }

    /// Slot of an operand that is a register, a number, a special register or a variable's address.
    pub(crate) fn src<T: Lane>(&mut self, arg: &Arg, ty: Type) -> Result<u32, Error> {
        self.source(arg, ty, T::WIDE)
    }

    pub(crate) fn src_word(&mut self, arg: &Arg) -> Result<u32, Error> {
        self.source(arg, Type::B32, false)
    }

    /// Slot of a destination; `_` gets a register that is never read.
    pub(crate) fn dst<T: Lane>(&mut self, arg: &Arg) -> Result<u32, Error> {
        let wide = T::WIDE;
        match (self.any(arg)?, wide) {
            (Some(Slot::Word(s)), false) | (Some(Slot::Double(s)), true) => Ok(s),
            (None, _) => match self.fresh(if wide { Type::B64 } else { Type::B32 }) {
                Slot::Word(s) | Slot::Double(s) | Slot::Pred(s) => Ok(s),
            },
            _ => Err(Error::new(format!("destination {arg:?} has another size"))),
        }
    }

    /// A register of any size that is written; `None` for `_`.
    pub(crate) fn any(&mut self, arg: &Arg) -> Result<Option<Slot>, Error> {
        let slot = match arg {
            Arg::Name(n) if n == "_" => return Ok(None),
            Arg::Name(n) => self.register(n)?,
            _ => return Err(Error::new(format!("operand {arg:?}"))),
        };
        if let Slot::Word(s) = slot {
            self.writes.push(s);
        }
        Ok(Some(slot))
    }

    /// A register or a number, for stores and moves whose width is that of the register.
    pub(crate) fn value(&mut self, arg: &Arg, ty: Type) -> Result<Slot, Error> {
        if let Arg::Name(n) = arg
            && let Ok(slot) = self.register(n)
        {
            if let Slot::Word(s) = slot {
                self.reads.push(s);
            }
            return Ok(slot);
        }
        let wide = ty.bytes() > 4;
        let s = self.source(arg, ty, wide)?;
        Ok(if wide { Slot::Double(s) } else { Slot::Word(s) })
    }

    /// Slot of a predicate that is written.
    pub(crate) fn dst_pred(&mut self, name: &str) -> Result<u32, Error> {
        if name == "_" {
            let Slot::Pred(p) = self.fresh(Type::Pred) else { unreachable!() };
            return Ok(p);
        }
        match self.register(name)? {
            Slot::Pred(p) => Ok(p),
            _ => Err(Error::new(format!("{name} is not a predicate"))),
        }
    }

    /// Slot of a predicate that is read, and whether it is negated. Numbers (0, 1) and
    /// `true`/`false` are constants.
    pub(crate) fn src_pred(&mut self, arg: &Arg) -> Result<(u32, bool), Error> {
        match arg {
            Arg::Name(n) => {
                if let Some(v) = integer(n) {
                    // A predicate that is never written is false.
                    let Slot::Pred(p) = self.fresh(Type::Pred) else { unreachable!() };
                    return Ok((p, v != 0));
                }
                self.dst_pred(n).map(|p| (p, false))
            }
            Arg::Not(n) => self.dst_pred(n).map(|p| (p, true)),
            _ => Err(Error::new(format!("operand {arg:?}"))),
        }
    }

    pub(crate) fn address(&mut self, arg: &Arg) -> Result<Address, Error> {
        let Arg::Address { base, offset, .. } = arg else {
            return Err(Error::new(format!("operand {arg:?} is not an address")));
        };
        let base = match self.symbol(base).or(integer(base).map(|i| i as u64)) {
            Some(a) => Slot::Double(self.constant(true, a)),
            None => self.register(base)?,
        };
        if let Slot::Word(s) = base {
            self.reads.push(s);
        }
        Ok(Address { base, offset: *offset })
    }

    pub(crate) fn branch(&mut self, label: &Arg) -> Result<(), Error> {
        let Arg::Name(label) = label else { return Err(Error::new("branch target")) };
        self.branches.push((
            self.code.len(),
            self.scopes.iter().map(|s| s.id).collect(),
            label.clone(),
        ));
        Ok(())
    }

    /// Fills in branch targets and marks loops.
    pub(crate) fn resolve(&mut self) -> Result<(), Error> {
        let find = |scopes: &[u32], label: &str| {
            scopes.iter().rev().find_map(|s| self.labels.get(&(*s, label.to_string()))).copied()
        };
        let mut loops = vec![];
        for (at, scopes, label) in &self.branches {
            let line = self.code[*at].line;
            let missing = |label: &str| Error { line, message: format!("unknown label {label}") };
            let mut targets = vec![];
            if let Some(table) = self.tables.get(label) {
                for l in table {
                    targets.push(find(scopes, l).ok_or_else(|| missing(l))?);
                }
            } else {
                targets.push(find(scopes, label).ok_or_else(|| missing(label))?);
            }
            loops.extend(
                targets.iter().filter(|&&t| t as usize <= *at).map(|&t| t as usize..*at + 1),
            );
            match &mut self.code[*at].action {
                Action::Branch(t) => *t = targets[0],
                Action::BranchIndexed(_, t) => *t = targets,
                _ => {}
            }
        }
        for l in loops {
            self.code[l].iter_mut().for_each(|i| i.in_loop = true);
        }
        Ok(())
    }
}
