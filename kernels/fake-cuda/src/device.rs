//! A device: its allocations and its properties.

use crate::driver::Id;
use crate::settings::Spec;
use crate::space::Space;
use crate::status::{OUT_OF_MEMORY, Outcome};
use std::collections::BTreeMap;

/// The unit of device memory in bytes: large allocations are rounded up to it, small ones share
/// units.
const UNIT: u64 = 2 << 20;
/// Allocations from this size on are large.
const LARGE: u64 = 1 << 20;
/// Small allocations are rounded up to this.
const GRAIN: u64 = 512;

/// An allocation of device memory.
#[derive(Debug, Clone, Copy)]
pub struct Allocation {
    pub bytes: u64,
    pub context: Id,
    /// Counts from 1, for the log.
    pub number: u64,
}

pub struct Device {
    /// The number of its preset.
    pub preset: usize,
    pub spec: Spec,
    pub primary: Option<Id>,
    /// How often the primary context is retained.
    pub retained: u32,
    pub allocations: BTreeMap<u64, Allocation>,
    pub memory: ptx_machine::Memory,
    /// Bytes that contexts use.
    contexts: u64,
    large: u64,
    small: u64,
    /// The most bytes in use at the same time since the last report, including contexts and other
    /// programs.
    pub peak: u64,
    /// The requested sizes since the last report, in order.
    pub sizes: Vec<u64>,
}

impl Device {
    pub fn new(preset: usize, spec: Spec) -> Device {
        Device {
            preset,
            spec,
            primary: None,
            retained: 0,
            allocations: BTreeMap::new(),
            memory: ptx_machine::Memory::new(),
            contexts: 0,
            large: 0,
            small: 0,
            peak: 0,
            sizes: Vec::new(),
        }
    }

    pub fn used(&self) -> u64 {
        self.spec.taken + self.contexts + self.large + self.small.next_multiple_of(UNIT)
    }

    pub fn free(&self) -> u64 {
        self.spec.memory.saturating_sub(self.used())
    }

    /// Reserves the memory of a context.
    pub fn open_context(&mut self, bytes: u64) -> Outcome {
        if bytes > self.free() {
            return Err(OUT_OF_MEMORY);
        }
        self.contexts += bytes;
        self.peak = self.peak.max(self.used());
        Ok(())
    }

    pub fn close_context(&mut self, bytes: u64) {
        self.contexts -= bytes;
    }

    /// Allocates poisoned memory; `None` if the device is full.
    pub fn allocate(
        &mut self,
        space: &mut Space,
        bytes: u64,
        context: Id,
        number: u64,
    ) -> Outcome<u64> {
        if bytes > self.spec.memory {
            return Err(OUT_OF_MEMORY);
        }
        let (large, small) = (self.large, self.small);
        if bytes >= LARGE {
            self.large += bytes.next_multiple_of(UNIT);
        } else {
            self.small += bytes.next_multiple_of(GRAIN);
        }
        if self.used() > self.spec.memory {
            (self.large, self.small) = (large, small);
            return Err(OUT_OF_MEMORY);
        }
        let address =
            space.take(bytes).inspect_err(|_| (self.large, self.small) = (large, small))?;
        // SAFETY: these bytes stay mapped until `release` removes them from the machine's memory.
        unsafe { self.memory.map(address, address as *mut u8, bytes as usize) };
        self.allocations.insert(address, Allocation { bytes, context, number });
        self.sizes.push(bytes);
        self.peak = self.peak.max(self.used());
        Ok(address)
    }

    /// Frees the allocation that starts at `address`, if there is one.
    pub fn release(&mut self, space: &mut Space, address: u64) -> Option<Allocation> {
        let allocation = self.allocations.remove(&address)?;
        if allocation.bytes >= LARGE {
            self.large -= allocation.bytes.next_multiple_of(UNIT);
        } else {
            self.small -= allocation.bytes.next_multiple_of(GRAIN);
        }
        self.memory.unmap(address);
        if space.give(address, allocation.bytes).is_err() {
            eprintln!("fake-cuda: the pages of a freed allocation could not be unmapped");
        }
        Some(allocation)
    }

    /// The allocation that contains all of the `bytes` from `address` on, and its start.
    pub fn find(&self, address: u64, bytes: u64) -> Option<(u64, Allocation)> {
        let (&start, &allocation) = self.allocations.range(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        (address < start + allocation.bytes && end <= start + allocation.bytes)
            .then_some((start, allocation))
    }

    pub fn pci_bus(&self) -> u32 {
        self.preset as u32 + 1
    }

    pub fn pci_name(&self) -> String {
        format!("0000:{:02X}:00.0", self.pci_bus())
    }

    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = *b"fake-cuda-device";
        uuid[15] = b'0' + self.preset as u8;
        uuid
    }

    /// The resources of a multiprocessor of this compute capability.
    pub fn processor(&self) -> Processor {
        let (threads, blocks, shared) = match self.spec.capability {
            (7, 5) => (1024, 16, 64 << 10),
            (8, 0) => (2048, 32, 164 << 10),
            (8, 6) => (1536, 16, 100 << 10),
            (8, _) => (1536, 24, 100 << 10),
            (9, _) | (10, _) => (2048, 32, 228 << 10),
            (12, _) => (1536, 24, 100 << 10),
            _ => (2048, 32, 96 << 10),
        };
        Processor { threads, blocks, shared, registers: 65_536 }
    }

    /// A `CUdevice_attribute`; 0 for those that are not supported.
    pub fn attribute(&self, which: i32) -> i32 {
        let p = self.processor();
        // Memory clock (kHz) and bus width, so that a bandwidth can be computed.
        let (clock, memory_clock, bus) = match self.spec.capability {
            (9, _) => (1_755_000, 2_619_000, 5120),
            (8, 9) => (2_460_000, 8_501_000, 128),
            _ => (1_777_000, 7_501_000, 192),
        };
        match which {
            1..=3 => 1024,          // threads of a block, and along x and y
            4 => 64,                // along z
            5 => i32::MAX,          // grid x
            6 | 7 => 65_535,        // grid y and z
            8 => 49_152,            // shared memory of a block without opting in
            9 => 65_536,            // constant memory
            10 => 32,               // warp
            11 => i32::MAX,         // pitch
            12 | 82 => p.registers, // registers of a block, of a multiprocessor
            13 => clock,            // kHz
            14 => 512,              // texture alignment
            15 => 1,                // copies overlap kernels
            16 => self.spec.processors as i32,
            19 => 1,   // host memory can be mapped
            30 => 512, // surface alignment
            31 => 1,   // concurrent kernels
            33 => self.pci_bus() as i32,
            36 => memory_clock, // kHz
            37 => bus,          // bits
            38 => self.spec.l2.min(i32::MAX as u64) as i32,
            39 => p.threads, // threads of a multiprocessor
            40 => 2,         // copy engines
            41 => 1,         // unified addressing
            75 => self.spec.capability.0 as i32,
            76 => self.spec.capability.1 as i32,
            78..=80 => 1,   // stream priorities, L1 caches
            81 => p.shared, // shared memory of a multiprocessor
            90 => 1,        // preemption
            91 => 1,        // registered memory has the same address on the device
            97 => self.spec.shared as i32,
            99 => 1,         // host memory can be registered
            106 => p.blocks, // blocks of a multiprocessor
            111 => 1024,     // shared memory that the driver keeps per block
            115 => 1,        // memory pools
            _ => 0,
        }
    }
}

/// The resources that the blocks on one multiprocessor share.
#[derive(Debug, Clone, Copy)]
pub struct Processor {
    pub threads: i32,
    pub blocks: i32,
    /// Bytes of shared memory.
    pub shared: i32,
    pub registers: i32,
}
