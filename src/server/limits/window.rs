//! Counts the requests, images or pixels that were admitted in one rolling window.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The most cells of a window, about: see [`Window::add`].
const CELLS: usize = 1024;
/// A shared cell spans at most this part of the window.
const PARTS: i64 = 512;

/// One instant, or a few that are close to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Cell {
    first: i64,
    last: i64,
    count: u64,
}

/// The instants at which something was admitted, in nanoseconds, with their amounts.
///
/// Every instant is a cell of its own until half of the cells are used. From then on it joins the
/// last cell if that began less than a 512th of the window ago. A cell leaves the window when its
/// last instant does. So the count is exact for up to 512 instants in a window; beyond, it is never
/// too small, and an instant leaves at most a 512th of the window late.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Window {
    cells: VecDeque<Cell>,
}

impl Window {
    /// Adds `amount` at `now` to a window of `length`. Instants are added in order.
    pub fn add(&mut self, now: i64, length: i64, amount: u64) {
        while self.cells.front().is_some_and(|cell| has_left(cell, now, length)) {
            self.cells.pop_front();
        }
        let crowded = self.cells.len() >= CELLS / 2;
        match self.cells.back_mut() {
            Some(cell) if crowded && now - cell.first < length / PARTS => {
                cell.last = cell.last.max(now);
                cell.count = cell.count.saturating_add(amount);
            }
            _ => self.cells.push_back(Cell { first: now, last: now, count: amount }),
        }
    }

    /// Takes `amount` back that was added at `at`, if that is still in a cell.
    pub fn take_back(&mut self, at: i64, amount: u64) {
        let cell = self.cells.iter_mut().find(|cell| (cell.first..=cell.last).contains(&at));
        if let Some(cell) = cell {
            cell.count = cell.count.saturating_sub(amount);
        }
    }

    /// What counts at `now`: everything in `(now - length, now]`.
    pub fn used(&self, now: i64, length: i64) -> u64 {
        let inside = self.cells.iter().filter(|cell| !has_left(cell, now, length));
        inside.fold(0, |sum, cell| sum.saturating_add(cell.count))
    }

    /// Nanoseconds from `now` until no more than `room` is used.
    pub fn wait(&self, now: i64, length: i64, room: u64) -> i64 {
        let mut used = self.used(now, length);
        for cell in self.cells.iter().filter(|cell| !has_left(cell, now, length)) {
            if used <= room {
                break;
            }
            used = used.saturating_sub(cell.count);
            if used <= room {
                return cell.last + length - now;
            }
        }
        0
    }

    /// Nanoseconds from `now` until the first cell leaves; `None` if nothing is used.
    pub fn first_leaves(&self, now: i64, length: i64) -> Option<i64> {
        let mut inside = self.cells.iter().filter(|cell| !has_left(cell, now, length));
        inside.find(|cell| cell.count > 0).map(|cell| cell.last + length - now)
    }

    /// The number of cells.
    #[cfg(test)]
    pub fn cells(&self) -> usize {
        self.cells.len()
    }
}

fn has_left(cell: &Cell, now: i64, length: i64) -> bool {
    cell.last <= now - length
}
