//! Launches: blocks run in parallel, each by one worker.

use crate::machine::block::{Block, Note, Place};
use crate::machine::sums::Sums;
use crate::machine::writers::Writers;
use crate::memory::Memory;
use crate::program::Entry;
use crate::report::{FINDINGS, Fault, FaultKind, Finding, Report, Tally};
use rayon::prelude::*;
use std::sync::Mutex;

/// What to run.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub entry: &'a Entry,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// In the layout of `Entry::params`.
    pub params: &'a [u8],
}

/// How to run it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether to find races and uninitialised reads of shared memory, and to count bank conflicts
    /// and sectors. Bounds and alignment are always checked.
    pub checks: bool,
    /// How `mma` and `wgmma` add.
    pub sums: Sums,
}

impl Default for Options {
    fn default() -> Options {
        Options { checks: true, sums: Sums::Nearest }
    }
}

/// The results of a worker.
struct Gathered {
    tallies: Vec<Tally>,
    counts: [u64; 5],
    notes: Vec<(usize, Note)>,
}

/// Runs all blocks. The result does not depend on the number of cores.
pub fn run(launch: &Launch, memory: &Memory, options: &Options) -> Result<Report, Fault> {
    let entry = launch.entry;
    let refuse = |message: String| {
        Err(Fault { kind: FaultKind::Launch, message: format!("{}: {message}", entry.name) })
    };
    let threads: u64 = launch.block.iter().map(|d| *d as u64).product();
    if threads == 0 || threads > 1024 || entry.max_threads.is_some_and(|m| threads > m as u64) {
        return refuse(format!("{threads} threads in a block"));
    }
    if launch.params.len() != entry.params_bytes() {
        return refuse(format!(
            "{} bytes of parameters instead of {}",
            launch.params.len(),
            entry.params_bytes()
        ));
    }
    let [gx, gy, gz] = launch.grid;
    let blocks = gx as u64 * gy as u64 * gz as u64;
    if blocks == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return refuse(format!("grid {gx} x {gy} x {gz}"));
    }
    if entry.static_shared + launch.shared > 227 * 1024 {
        return refuse(format!("{} bytes of shared memory", entry.static_shared + launch.shared));
    }
    let writers = (options.checks && blocks > 1 && !entry.ordered).then(|| Writers::new(memory));
    let place = Place {
        entry,
        memory,
        params: launch.params,
        grid: launch.grid,
        dims: launch.block,
        block: [0; 3],
        checks: options.checks,
        sums: options.sums,
        writers: writers.as_ref(),
    };
    let pool: Mutex<Vec<Block>> = Mutex::new(vec![]);
    let take = || {
        pool.lock()
            .ok()
            .and_then(|mut p| p.pop())
            .unwrap_or_else(|| Block::new(place, launch.shared))
    };
    let gathered = Mutex::new(Gathered {
        tallies: vec![Tally::default(); entry.code.len()],
        counts: [0; 5],
        notes: vec![],
    });
    // The first fault in the order of the blocks.
    let first: Mutex<Option<(usize, Fault)>> = Mutex::new(None);
    let one = |i: usize| {
        if let Ok(f) = first.lock()
            && f.as_ref().is_some_and(|f| f.0 < i)
        {
            return;
        }
        let mut block = take();
        let at = [
            i as u64 % gx as u64,
            i as u64 / gx as u64 % gy as u64,
            i as u64 / gx as u64 / gy as u64,
        ]
        .map(|x| x as u32);
        let result = block.run(at);
        if !block.env.notes.is_empty()
            && let Ok(mut g) = gathered.lock()
        {
            let notes = std::mem::take(&mut block.env.notes);
            g.notes.extend(notes.into_iter().map(|n| (i, n)));
            g.notes.sort_by_key(|n| n.0);
            let mut kept: Vec<Note> = vec![];
            g.notes.retain(|(_, n)| {
                let keep = kept.len() < FINDINGS && n.is_news(&kept);
                if keep {
                    kept.push(*n);
                }
                keep
            });
        }
        match result {
            Ok(()) => {
                if let Ok(mut p) = pool.lock() {
                    p.push(block);
                }
            }
            Err(fault) => {
                if let Ok(mut f) = first.lock()
                    && f.as_ref().is_none_or(|f| i < f.0)
                {
                    *f = Some((i, fault));
                }
            }
        }
    };
    if entry.ordered {
        (0..blocks as usize).for_each(one)
    } else {
        (0..blocks as usize).into_par_iter().for_each(one)
    }
    if let Ok(Some((_, fault))) = first.into_inner() {
        return Err(fault);
    }
    let Ok(mut g) = gathered.into_inner() else { return refuse("a worker panicked".into()) };
    for b in pool.into_inner().unwrap_or_default() {
        for (sum, t) in g.tallies.iter_mut().zip(&b.env.tallies) {
            sum.add(t);
        }
        for (sum, n) in g.counts.iter_mut().zip(b.env.counts) {
            *sum += n;
        }
    }
    let mut report = Report::new(entry, &g.tallies);
    report.blocks = blocks;
    [
        report.races,
        report.uninitialised,
        report.out_of_bounds,
        report.misaligned,
        report.asynchronous,
    ] = g.counts;
    report.findings = g.notes.iter().map(|(_, n)| finding(entry, launch.grid, n)).collect();
    Ok(report)
}

fn finding(entry: &Entry, grid: [u32; 3], n: &Note) -> Finding {
    let i = &entry.code[n.pc as usize];
    Finding {
        kind: n.kind,
        entry: entry.name.clone(),
        line: i.line,
        text: i.text.clone(),
        block: n.block,
        thread: n.thread,
        address: n.address,
        other: n.other,
        other_block: n
            .other_block
            .map(|b| [b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]]),
    }
}
