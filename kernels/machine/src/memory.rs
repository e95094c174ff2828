//! Device memory: address ranges that are backed by host memory. All other addresses are out of
//! bounds.

/// Address ranges of device memory.
#[derive(Default)]
pub struct Memory {
    /// Sorted by address; they do not overlap.
    ranges: Vec<Range>,
}

#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    host: *mut u8,
}

// SAFETY: the caller of `map` guarantees that launches may use the memory from any thread until it
// is unmapped.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Backs the device addresses `address .. address + bytes` with host memory, which may be at
    /// the same address.
    ///
    /// # Safety
    /// The memory must stay valid until `unmap`, and nothing else may access it while a
    /// launch runs.
    pub unsafe fn map(&mut self, address: u64, host: *mut u8, bytes: usize) {
        let range = Range { start: address, end: address + bytes as u64, host };
        let at = self.ranges.partition_point(|r| r.start < range.start);
        let clear =
            |r: Option<&Range>| r.is_none_or(|r| r.end <= range.start || range.end <= r.start);
        assert!(
            clear(self.ranges.get(at)) && clear(at.checked_sub(1).map(|i| &self.ranges[i])),
            "ranges overlap"
        );
        self.ranges.insert(at, range);
    }

    /// Unmaps the range that begins at an address.
    pub fn unmap(&mut self, address: u64) {
        self.ranges.retain(|r| r.start != address);
    }

    /// First address and end of every range, sorted.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|r| (r.start, r.end))
    }

    /// Host address of a device range, if all of it is in one mapped range.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<*mut u8> {
        let at = self.ranges.partition_point(|r| r.start <= address).checked_sub(1)?;
        let r = &self.ranges[at];
        let end = address.checked_add(bytes)?;
        // SAFETY: the offset is within the range.
        (end <= r.end).then(|| unsafe { r.host.add((address - r.start) as usize) })
    }
}
