//! `wgmma`: products of a warpgroup, whose operands lie in shared memory (A may be in registers).
//!
//! A product is computed when it is issued. What must not be touched before it has been waited for is marked: accumulators, registers of A,
//! and the operands in shared memory.

use crate::banks::wavefronts;
use crate::block::Env;
use crate::builder::Builder;
use crate::decode::{Decoded, at, unknown};
use crate::mma::{element, load_accumulators, product, store_accumulators};
use crate::parse::spaces::SHARED_START;
use crate::program::*;
use crate::regs::{Regs, has_avx2};
use crate::report::{Fault, FaultKind, FindingKind};
use crate::shared::Touch;
use crate::text::Arg;
use crate::types::Type;
use crate::warp::Warp;
use std::collections::VecDeque;

/// Where A comes from; numbers are slots.
enum Source {
    Descriptor(u32),
    Registers([u32; 4]),
}

pub(crate) struct Wgmma {
    n: usize,
    ty_a: Type,
    ty_b: Type,
    /// Accumulators are f16.
    half: bool,
    /// All registers of D.
    pub d: Vec<u32>,
    a: Source,
    b: u32,
    add: (u32, bool),
    negate: bool,
    transposed_a: bool,
    transposed_b: bool,
    run: Run,
}

/// A tile of A or B, elements as f32: rows of A, or 8 columns at a time of B.
type Run = fn(&Wgmma, &[[f32; 32]; 16], &[[f32; 8]], bool, &mut Regs);

/// A matrix in shared memory, as a descriptor tells.
#[derive(Clone, Copy)]
struct Matrix {
    start: u32,
    /// Leading and stride offsets in bytes.
    leading: u32,
    stride: u32,
    base: u32,
    /// Bytes of the swizzle; 16 for none.
    swizzle: u32,
    /// Rows (or columns of B) lie along the 16-byte chunks, not k.
    transposed: bool,
}

impl Matrix {
    fn new(bits: u64, transposed: bool) -> Matrix {
        let field = |at: u32| ((bits >> at & 0x3fff) << 4) as u32;
        Matrix {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: (bits >> 49 & 7) as u32,
            swizzle: [16, 128, 64, 32][(bits >> 62) as usize],
            transposed,
        }
    }

    /// Offset of a chunk of 16 bytes in shared memory. Where k is contiguous: of a row and of a half of the 32 bytes along k. Where rows are:
    /// of eight rows and one k.
    fn chunk(&self, row: u32, k: u32) -> u32 {
        let (s, per) = (self.swizzle, self.swizzle / 16);
        let a = match (self.transposed, per) {
            (false, 1) => row / 8 * self.stride + row % 8 * 16 + k * self.leading,
            (false, _) => row / 8 * self.stride + row % 8 * s + k * 16,
            (true, 1) => row * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (true, _) => row % per * 16 + row / per * self.leading + k % 8 * s + k / 8 * self.stride,
        };
        let a = self.start + a;
        let phase = (a >> 7).wrapping_sub(self.base) & (per - 1);
        (a ^ phase << 4).wrapping_sub(SHARED_START)
    }

    /// All chunks of so many rows, eight of which share a wavefront at best.
    fn chunks(&self, rows: u32) -> Vec<u32> {
        let mut out = Vec::with_capacity(rows as usize * 2);
        for group in 0..rows / 8 {
            for half in 0..2 {
                for i in 0..8 {
                    out.push(if self.transposed {
                        self.chunk(group, half * 8 + i)
                    } else {
                        self.chunk(group * 8 + i, half)
                    });
                }
            }
        }
        out
    }
}

/// A product on its way.
pub(crate) struct Flight {
    group: u32,
    accumulators: Vec<u32>,
    a: Vec<u32>,
    chunks: Vec<u32>,
}

/// What the warps of a warpgroup have executed, so that they do it together.
#[derive(Default)]
pub(crate) struct Group {
    log: VecDeque<Logged>,
    first: u64,
    position: [u64; 4],
}

struct Logged {
    pc: u32,
    operands: [u64; 2],
    add: bool,
    /// B as f32, for the warps to come.
    b: Vec<[f32; 8]>,
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |a| Ok((a, Class::Other, 0));
    match parts[1] {
        "fence" => return done(Action::WgmmaFence),
        "commit_group" => return done(Action::WgmmaCommit),
        "wait_group" => {
            let Arg::Name(n) = at(args, 0)? else { return Err(unknown()) };
            return done(Action::WgmmaWait(crate::text::integer(n).ok_or_else(unknown)? as u32));
        }
        "mma_async" => {}
        _ => return Err(unknown()),
    }
    let [.., shape, d, x, y] = parts else { return Err(unknown()) };
    let (n, k) = shape.strip_prefix("m64n").and_then(|s| s.split_once('k')).ok_or_else(unknown)?;
    let (n, k) = (n.parse::<usize>().map_err(|_| unknown())?, k.parse::<usize>().map_err(|_| unknown())?);
    let ty = |n: &str| Type::from_name(n).ok_or_else(unknown);
    let (td, ty_a, ty_b) = (ty(d)?, ty(x)?, ty(y)?);
    let half = td == Type::F16;
    let width = ty_a.bytes().min(4);
    if !n.is_multiple_of(8) || n == 0 || n > 256 || k * width != 32 || parts.contains(&"sp") {
        return Err(unknown());
    }
    let run = match (ty_a, ty_b) {
        (Type::BF16, Type::BF16) if !half => pick::<16>(),
        (Type::F16, Type::F16) => pick::<16>(),
        (Type::E4M3 | Type::E5M2, Type::E4M3 | Type::E5M2) => pick::<32>(),
        (Type::TF32, Type::TF32) if !half => pick::<8>(),
        _ => return Err(unknown()),
    };
    if td != Type::F32 && !half {
        return Err(unknown());
    }
    let Arg::List(names) = at(args, 0)? else { return Err(unknown()) };
    let d = names.iter().map(|n| b.dst::<u32>(&Arg::Name(n.clone()))).collect::<Result<Vec<u32>, _>>()?;
    if d.len() != n / if half { 4 } else { 2 } {
        return Err(Error::new("number of registers"));
    }
    let a = match at(args, 1)? {
        Arg::List(names) if names.len() == 4 => {
            let mut slots = [0; 4];
            for (s, n) in slots.iter_mut().zip(names) {
                *s = b.src_word(&Arg::Name(n.clone()))?;
            }
            Source::Registers(slots)
        }
        a => Source::Descriptor(b.src::<u64>(a, Type::B64)?),
    };
    let y = b.src::<u64>(at(args, 2)?, Type::B64)?;
    let add = b.src_pred(at(args, 3)?)?;
    let flag = |i: usize| -> Result<i64, Error> {
        match args.get(i) {
            None => Ok(0),
            Some(Arg::Name(n)) => crate::text::integer(n).ok_or_else(unknown),
            _ => Err(unknown()),
        }
    };
    let negate = (flag(4)? < 0) != (flag(5)? < 0);
    let (ta, tb) = match a {
        Source::Descriptor(_) => (flag(6)? == 1, flag(7)? == 1),
        Source::Registers(_) => (false, flag(6)? == 1),
    };
    if (ta || tb) && width != 2 {
        return Err(Error::new("transposed operand of this type"));
    }
    let w = Wgmma { n, ty_a, ty_b, half, d, a, b: y, add, negate, transposed_a: ta, transposed_b: tb, run };
    // A warp does a quarter of the product.
    Ok((Action::Wgmma(Box::new(w)), Class::Wgmma, 2 * 16 * (n * k) as u64))
}

fn pick<const K: usize>() -> Run {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn vector<const K: usize>(w: &Wgmma, a: &[[f32; 32]; 16], b: &[[f32; 8]], add: bool, regs: &mut Regs) {
            rows::<K, true>(w, a, b, add, regs)
        }
        return |w, a, b, add, regs| {
            // SAFETY: the features were found above.
            unsafe { vector::<K>(w, a, b, add, regs) }
        };
    }
    rows::<K, false>
}

/// Sixteen rows of the product.
#[inline(always)]
fn rows<const K: usize, const FMA: bool>(w: &Wgmma, a: &[[f32; 32]; 16], b: &[[f32; 8]], add: bool, regs: &mut Regs) {
    let a: [[f32; K]; 16] = std::array::from_fn(|r| std::array::from_fn(|k| a[r][k]));
    let per = if w.half { 2 } else { 4 };
    for (slots, b) in w.d.chunks_exact(per).zip(b.chunks_exact(K)) {
        let mut c = if add { load_accumulators(slots, w.half, regs) } else { [[0.0; 8]; 16] };
        let Ok(b) = b.try_into() else { continue };
        product::<K, FMA>(&a, b, &mut c);
        store_accumulators(slots, w.half, &c, regs);
    }
}

impl Env<'_> {
    /// Elements of a chunk as f32, as many as its 16 bytes hold; poison beyond the memory.
    fn chunk_elements(&self, ty: Type, offset: u32, mut f: impl FnMut(usize, f32)) {
        let bytes = self.shared.bytes.get(offset as usize..offset as usize + 16);
        let each = 4 / ty.bytes().min(4);
        for i in 0..4 {
            let word = bytes.map_or(!0, |b| u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]));
            for j in 0..each {
                f(i * each + j, element(ty, word, j));
            }
        }
    }

    /// All of B: for each 8 columns, k by k, even columns and then odd ones.
    fn tile_b(&self, w: &Wgmma, m: &Matrix) -> Vec<[f32; 8]> {
        let place = |n: usize| n / 2 + n % 2 * 4;
        let k_all = 32 / w.ty_b.bytes().min(4);
        let mut out = vec![[0f32; 8]; w.n / 8 * k_all];
        for (group, tile) in out.chunks_exact_mut(k_all).enumerate() {
            for i in 0..16 {
                let (row, half) = (i % 8, i / 8);
                if m.transposed {
                    self.chunk_elements(w.ty_b, m.chunk(group as u32, i as u32), |n, v| tile[i][place(n)] = v);
                } else {
                    let per = k_all / 2;
                    let offset = m.chunk((group * 8 + row) as u32, half as u32);
                    self.chunk_elements(w.ty_b, offset, |k, v| tile[half * per + k][place(row)] = v);
                }
            }
        }
        out
    }

    /// A warp's rows of A.
    fn tile_a(&self, w: &Wgmma, m: Option<&Matrix>, quarter: usize, regs: &Regs) -> [[f32; 32]; 16] {
        let mut out = [[0f32; 32]; 16];
        let each = 4 / w.ty_a.bytes().min(4);
        match (m, &w.a) {
            (Some(m), _) if m.transposed => {
                for k in 0..16 {
                    for g in 0..2 {
                        let offset = m.chunk((quarter * 2 + g) as u32, k as u32);
                        self.chunk_elements(w.ty_a, offset, |i, v| out[g * 8 + i][k] = v);
                    }
                }
            }
            (Some(m), _) => {
                for (r, row) in out.iter_mut().enumerate() {
                    for half in 0..2 {
                        let offset = m.chunk((quarter * 16 + r) as u32, half as u32);
                        self.chunk_elements(w.ty_a, offset, |k, v| row[half * 4 * each + k] = v);
                    }
                }
            }
            (None, Source::Registers(slots)) => {
                for (i, slot) in slots.iter().enumerate() {
                    for (l, x) in regs.words[*slot as usize].iter().enumerate() {
                        for j in 0..each {
                            out[i % 2 * 8 + l / 4][(i / 2 * 4 + l % 4) * each + j] = element(w.ty_a, *x, j);
                        }
                    }
                }
            }
            _ => {}
        }
        if w.negate {
            out.iter_mut().flatten().for_each(|x| *x = -*x);
        }
        out
    }

    pub(crate) fn wgmma(&mut self, w: &mut Warp, m: &Wgmma) -> Result<(), Fault> {
        let (group, quarter) = (w.index / 4, w.index % 4);
        if (group + 1) * 4 > self.blocked.len() {
            return self.fault(FaultKind::Divergence, "not a whole warpgroup");
        }
        let common = |slot: u32| {
            let x = &w.regs.doubles[slot as usize];
            if x.iter().all(|y| *y == x[0]) { Some(x[0]) } else { None }
        };
        let bits_a = match m.a {
            Source::Descriptor(s) => common(s),
            Source::Registers(_) => Some(0),
        };
        let (Some(bits_a), Some(bits_b)) = (bits_a, common(m.b)) else {
            return self.fault(FaultKind::Divergence, "lanes with different descriptors");
        };
        let p = w.regs.preds[m.add.0 as usize];
        let add = (if m.add.1 { !p } else { p }) & 1 == 1;
        let a = matches!(m.a, Source::Descriptor(_)).then(|| Matrix::new(bits_a, m.transposed_a));
        let b = Matrix::new(bits_b, m.transposed_b);
        let new = self.log(group, quarter, [bits_a, bits_b], add)?;

        if self.place.checks {
            self.launch_flight(w, m, a.as_ref(), &b, quarter == 0);
        }
        if new {
            let tile = self.tile_b(m, &b);
            if let Some(l) = self.groups[group].log.back_mut() {
                l.b = tile;
            }
        }
        let rows = self.tile_a(m, a.as_ref(), quarter, &w.regs);
        let g = &mut self.groups[group];
        let at = (g.position[quarter] - 1 - g.first) as usize;
        (m.run)(m, &rows, &g.log[at].b, add, &mut w.regs);
        // What all four warps have done is forgotten.
        while g.position.iter().all(|p| *p > g.first) {
            g.log.pop_front();
            g.first += 1;
        }
        Ok(())
    }

    /// Compares a product with what the other warps of the group executed; true if this one is the first to come.
    fn log(&mut self, group: usize, quarter: usize, operands: [u64; 2], add: bool) -> Result<bool, Fault> {
        let pc = self.pc;
        let g = &mut self.groups[group];
        let at = (g.position[quarter] - g.first) as usize;
        g.position[quarter] += 1;
        match g.log.get(at) {
            None => {
                g.log.push_back(Logged { pc, operands, add, b: vec![] });
                Ok(true)
            }
            Some(l) if (l.pc, l.operands, l.add) == (pc, operands, add) => Ok(false),
            Some(_) => self.fault(FaultKind::Divergence, "warps of a warpgroup execute different products"),
        }
    }

    /// Whether all warps of all groups have executed the same number of products.
    pub(crate) fn groups_even(&self) -> bool {
        self.groups.iter().all(|g| g.position.iter().all(|p| *p == g.position[0]))
    }

    fn launch_flight(&mut self, w: &mut Warp, m: &Wgmma, a: Option<&Matrix>, b: &Matrix, first: bool) {
        let mut chunks = a.map_or(vec![], |a| a.chunks(64));
        chunks.extend(b.chunks(m.n as u32));
        let room = self.shared.bytes.len() as u32;
        let outside = chunks.iter().copied().find(|c| *c >= room || room - c < 16);
        if let Some(c) = outside {
            self.note(FindingKind::OutOfBounds, w.index, 0, c.wrapping_add(SHARED_START) as u64, None);
            chunks.retain(|c| *c < room && room - c >= 16);
        }
        if first {
            let (mut actual, mut ideal) = (0, 0);
            for eight in chunks.chunks_exact(8) {
                let mut lanes = [0; 32];
                lanes[..8].copy_from_slice(eight);
                let (x, y) = wavefronts(&lanes, 0xff, 16);
                actual += x;
                ideal += y;
            }
            let t = self.tally();
            t.wavefronts += actual;
            t.ideal_wavefronts += ideal;
        }
        for &c in &chunks {
            if let Some(p) = self.shared.touch(Touch::EngineRead, w.index, 0, c, 16) {
                self.shared_problem(w.index, 0, c, p);
            }
        }
        let a = match m.a {
            Source::Registers(slots) => slots.to_vec(),
            Source::Descriptor(_) => vec![],
        };
        // Registers that were written must be fenced, and be none that a product on its way owns, except accumulators of its kind.
        let unfenced = m.d.iter().chain(&a).any(|s| w.written[*s as usize] > w.fences) || w.fences == 0;
        let owned = a.iter().any(|s| w.busy[*s as usize][0] > 0) || m.d.iter().any(|s| w.busy[*s as usize][1] > 0);
        if unfenced || owned {
            self.note(FindingKind::Asynchronous, w.index, 0, 0, None);
        }
        m.d.iter().for_each(|s| w.busy[*s as usize][0] += 1);
        a.iter().for_each(|s| w.busy[*s as usize][1] += 1);
        w.flights.push(Flight { group: w.products_committed, accumulators: m.d.clone(), a, chunks });
    }

    /// Waits for all but the newest `keep` groups of products.
    pub(crate) fn wgmma_wait(&mut self, w: &mut Warp, keep: u32) {
        let flights = std::mem::take(&mut w.flights);
        let (over, left): (Vec<_>, Vec<_>) = flights.into_iter().partition(|f| f.group + keep < w.products_committed);
        for f in &over {
            f.accumulators.iter().for_each(|s| w.busy[*s as usize][0] -= 1);
            f.a.iter().for_each(|s| w.busy[*s as usize][1] -= 1);
            for &c in &f.chunks {
                self.shared.touch(Touch::EngineDone, w.index, 0, c, 16);
            }
        }
        if !over.is_empty() {
            // What a younger product still reads stays marked.
            for &c in left.iter().flat_map(|f| &f.chunks) {
                self.shared.touch(Touch::EngineMore, w.index, 0, c, 16);
            }
        }
        w.flights = left;
    }

    /// Checks the registers of an ordinary instruction against products on their way, and remembers what it writes.
    pub(crate) fn registers(&mut self, w: &mut Warp, inst: &Inst, mask: u32) {
        if !w.flights.is_empty() && !matches!(inst.action, Action::Wgmma(_)) {
            let reads = inst.reads.iter().any(|s| w.busy[*s as usize][0] > 0);
            let writes = inst.writes.iter().any(|s| w.busy[*s as usize] != [0, 0]);
            if inst.is_move && reads && !writes {
                // Compilers rename registers by moves; the copy is as busy as the original.
                if let (Some(f), [d]) = (w.flights.last_mut(), &inst.writes[..]) {
                    f.accumulators.push(*d);
                    w.busy[*d as usize][0] += 1;
                }
            } else if reads || writes {
                self.note(FindingKind::Asynchronous, w.index, mask.trailing_zeros() as usize & 31, 0, None);
            }
        }
        if matches!(inst.action, Action::Wgmma(_)) {
            return;
        }
        if let (true, [d], [s]) = (inst.is_move, &inst.writes[..], &inst.reads[..]) {
            w.written[*d as usize] = w.written[*s as usize];
            return;
        }
        for d in &inst.writes {
            w.written[*d as usize] = w.fences + 1;
        }
    }
}
