//! A device with memory of its own that computes nothing.

use std::collections::HashMap;

use flux_fast::backend::{Backend, Caps, Grain, Int8Use, Layout, Place, Places, WeightKey};
use flux_fast::dtype::DType;
use flux_fast::error::{Error, Result};
use flux_fast::op::{Op, Step, Use};
use flux_fast::tensor::{HostWeight, Weight};

/// Every place is a multiple of this.
pub const ALIGN: usize = 64;

/// Keeps bytes by place, and compares the weights of every step with what was loaded.
pub struct Memory {
    caps: Caps,
    pub layout: Layout,
    pub arena: Vec<u8>,
    resident: Vec<u8>,
    ring: Vec<u8>,
    /// Place and fingerprint of each loaded weight.
    pub loaded: HashMap<WeightKey, (Place, Vec<u8>)>,
    pub loads: usize,
    /// Every load: the steps that ran before it, the weight and its place.
    pub log: Vec<(usize, WeightKey, Place)>,
    /// The load (counted from 0) that fails.
    pub fail_at: Option<usize>,
    /// The step (counted over all runs) that fails, as when a weight could not be read.
    pub fail_step: Option<usize>,
    steps: usize,
    pub checked: usize,
}

impl Memory {
    pub fn new() -> Self {
        let caps = Caps {
            name: "memory".into(),
            description: "a test".into(),
            memory_bytes: 1 << 40,
            free_bytes: 1 << 40,
            overhead_bytes: 0,
            granularity: 1,
            activation: DType::BF16,
            in_place_weights: false,
            grain: Grain::whole(ALIGN),
            pins: false,
            reopens: false,
            int8: Int8Use::Never,
        };
        let empty = Vec::new;
        Memory {
            caps,
            layout: Layout::default(),
            arena: empty(),
            resident: empty(),
            ring: empty(),
            loaded: HashMap::new(),
            loads: 0,
            log: Vec::new(),
            fail_at: None,
            fail_step: None,
            steps: 0,
            checked: 0,
        }
    }

    fn at(&self, place: Place, bytes: usize) -> &[u8] {
        match place {
            Place::Resident(offset) => &self.resident[offset..offset + bytes],
            Place::Ring { offset, .. } => &self.ring[offset..offset + bytes],
        }
    }
}

impl Backend for Memory {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, _: Use) -> usize {
        weight.bytes()
    }

    fn scratch_bytes<'w>(&self, _: &Op, _: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        100
    }

    fn reserve(&mut self, layout: Layout, _: u64) -> Result<()> {
        self.layout = layout;
        self.arena = vec![0; layout.arena_bytes];
        self.resident = vec![0xee; layout.resident_bytes];
        self.ring = vec![0xee; layout.ring_bytes];
        self.loaded.clear();
        Ok(())
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, _: Use) -> Result<()> {
        self.loads += 1;
        self.log.push((self.steps, key, place));
        if self.fail_at == Some(self.loads - 1) {
            return Err(Error::memory("no staging memory"));
        }
        assert!(!self.loaded.contains_key(&key), "{key:?} is loaded twice");
        let bytes: Vec<u8> = weight.parts.iter().flat_map(|p| p.bytes().to_vec()).collect();
        match place {
            Place::Resident(offset) => {
                self.resident[offset..offset + bytes.len()].copy_from_slice(&bytes)
            }
            Place::Ring { offset, .. } => {
                self.ring[offset..offset + bytes.len()].copy_from_slice(&bytes)
            }
        }
        self.loaded.insert(key, (place, bytes));
        Ok(())
    }

    fn forget(&mut self, key: WeightKey) -> Result<()> {
        assert!(self.loaded.remove(&key).is_some(), "{key:?} was not loaded");
        Ok(())
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        self.steps += 1;
        if self.fail_step == Some(self.steps - 1) {
            return Err(Error::model("a weight could not be read"));
        }
        for w in step.op.weights() {
            let (place, bytes) = self
                .loaded
                .get(&places.key(w))
                .unwrap_or_else(|| panic!("{}: {w} is not there", step.label));
            assert!(
                self.at(*place, bytes.len()) == bytes,
                "{}: {w} was overwritten at {place:?}",
                step.label
            );
            self.checked += 1;
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.arena[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.arena[offset..offset + bytes.len()]);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
