//! The memory through which the weights that do not stay on the device pass.

use std::collections::VecDeque;

/// One weight in the ring.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Weight id within the program.
    id: u32,
    /// Byte offset in the ring.
    start: usize,
    bytes: usize,
    /// The weight is not needed any more; its bytes can be reused once all older entries are freed.
    freed: bool,
}

/// A circular buffer of weights, first in, first out.
pub(super) struct Ring {
    /// Size in bytes.
    capacity: usize,
    /// Oldest first.
    entries: VecDeque<Entry>,
}

impl Ring {
    /// An empty ring of `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Ring { capacity, entries: VecDeque::new() }
    }

    /// Whether weight `id` is in the ring and not freed.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.entries.iter().any(|e| e.id == id && !e.freed)
    }

    /// Reserves `bytes` for weight `id` and returns their offset, or `None` until older entries are
    /// freed.
    pub(super) fn take(&mut self, id: u32, bytes: usize) -> Option<usize> {
        let start = match (self.entries.front(), self.entries.back()) {
            (Some(first), Some(last)) => {
                let end = last.start + last.bytes;
                if last.start >= first.start {
                    // The free bytes are those after the last entry and those before the first.
                    if end + bytes <= self.capacity {
                        end
                    } else if bytes <= first.start {
                        0
                    } else {
                        return None;
                    }
                } else if end + bytes <= first.start {
                    end
                } else {
                    return None;
                }
            }
            _ if bytes <= self.capacity => 0,
            _ => return None,
        };
        self.entries.push_back(Entry { id, start, bytes, freed: false });
        Some(start)
    }

    /// Frees the entry of weight `id`; returns whether there was one.
    pub(super) fn free(&mut self, id: u32) -> bool {
        let entry = self.entries.iter_mut().find(|e| e.id == id && !e.freed);
        let Some(entry) = entry else { return false };
        entry.freed = true;
        while self.entries.front().is_some_and(|e| e.freed) {
            self.entries.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random sizes through a small ring: live entries never overlap, and the ring always empties.
    #[test]
    fn ring_entries_never_overlap() {
        let mut state = 12345u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for capacity in [64, 100, 1000] {
            let mut ring = Ring::new(capacity);
            let mut live: VecDeque<(u32, usize, usize)> = VecDeque::new();
            for id in 0..2000u32 {
                let bytes = 1 + random(capacity);
                let at = loop {
                    if let Some(at) = ring.take(id, bytes) {
                        break at;
                    }
                    let (old, ..) =
                        live.pop_front().expect("an empty ring takes anything up to its capacity");
                    assert!(ring.free(old) && !ring.contains(old));
                };
                assert!(at + bytes <= capacity);
                for &(_, s, n) in &live {
                    assert!(s + n <= at || at + bytes <= s, "overlap");
                }
                live.push_back((id, at, bytes));
                assert!(ring.contains(id));
            }
        }
        assert_eq!(Ring::new(10).take(0, 11), None);
    }
}
