//! Allocations, pinned memory, and the copies that the program requests.

use crate::driver::{Driver, Id, Pinned, note};
use crate::settings::Kind;
use crate::status::*;
use crate::stream::{Direction, Source, Work};

/// Up to this size, a copy from pageable memory is staged: the host's side is done when the call
/// returns, the device's is not.
const STAGED: u64 = 64 << 10;

impl Driver {
    /// Allocates device memory at once.
    pub fn allocate(&mut self, context: Id, bytes: u64) -> Outcome<u64> {
        self.forbid_capture()?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if let Some(code) = self.settings.strike(Kind::Alloc) {
            return Err(Code(code));
        }
        let number = self.new_number();
        let index = self.contexts[&context].device;
        self.space.poisoned = self.settings.poison;
        let address = self.devices[index].allocate(&mut self.space, bytes, context, number);
        let address = address.inspect_err(|_| {
            let free = self.devices[index].free();
            note!(self, "alloc failed {bytes} device={index} free={free}");
        })?;
        note!(self, "alloc #{number} {bytes} device={index}");
        Ok(address)
    }

    /// As `allocate`; if the device is full, waits for the memory that was freed in stream order so
    /// far.
    pub fn allocate_in_order(&mut self, context: Id, stream: Id, bytes: u64) -> Outcome<u64> {
        if self.streams[&stream].capture.is_some() {
            self.forbid_waiting(stream)?;
        }
        match self.allocate(context, bytes) {
            Err(OUT_OF_MEMORY) => {
                let all = self.all_of(stream);
                self.reach(&[all]);
                self.allocate(context, bytes)
            }
            outcome => outcome,
        }
    }

    /// Waits for all work of the context, then frees memory.
    pub fn release(&mut self, context: Id, address: u64) -> Outcome {
        if address == 0 {
            return Ok(());
        }
        self.forbid_capture()?;
        if !self.device_of(context).allocations.contains_key(&address) {
            return Err(INVALID_VALUE);
        }
        let all = self.all_in(context);
        self.reach(&all);
        let index = self.contexts[&context].device;
        let freed = self.devices[index].release(&mut self.space, address).ok_or(INVALID_VALUE)?;
        note!(self, "free #{}", freed.number);
        Ok(())
    }

    pub fn release_in_order(&mut self, context: Id, stream: Id, address: u64) -> Outcome {
        let allocation =
            self.device_of(context).allocations.get(&address).copied().ok_or(INVALID_VALUE)?;
        let number = self.streams[&stream].number;
        self.submit(stream, Work::Free(address))?;
        note!(self, "free #{} stream={number}", allocation.number);
        Ok(())
    }

    /// Allocates pinned host memory, filled with poison.
    pub fn pin_new(&mut self, context: Id, bytes: u64, flags: u32) -> Outcome<u64> {
        self.forbid_capture()?;
        if bytes == 0 || flags & !7 != 0 {
            return Err(INVALID_VALUE);
        }
        if let Some(code) = self.settings.strike(Kind::Host) {
            return Err(Code(code));
        }
        if self.pinned_bytes.saturating_add(bytes) > self.settings.pinned {
            return Err(OUT_OF_MEMORY);
        }
        let address = self.space.take(bytes)?;
        self.pin(context, address, bytes, flags, true);
        Ok(address)
    }

    /// Pins memory of the program.
    pub fn pin_old(&mut self, context: Id, address: u64, bytes: u64, flags: u32) -> Outcome {
        self.forbid_capture()?;
        if address == 0 || bytes == 0 || flags & !15 != 0 {
            return Err(INVALID_VALUE);
        }
        if let Some(code) = self.settings.strike(Kind::Host) {
            return Err(Code(code));
        }
        let end = address.checked_add(bytes).ok_or(INVALID_VALUE)?;
        if self.pinned.iter().any(|(&a, p)| a < end && address < a + p.bytes) {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        if self.pinned_bytes.saturating_add(bytes) > self.settings.pinned {
            return Err(OUT_OF_MEMORY);
        }
        self.pin(context, address, bytes, flags, false);
        Ok(())
    }

    fn pin(&mut self, context: Id, address: u64, bytes: u64, flags: u32, allocated: bool) {
        note!(self, "pin {bytes}");
        for device in &mut self.devices {
            // SAFETY: the memory stays valid until `unpin`; for registered memory, the program
            // guarantees that.
            unsafe { device.memory.map(address, address as *mut u8, bytes as usize) };
        }
        self.pinned.insert(address, Pinned { bytes, context, allocated, flags });
        self.pinned_bytes += bytes;
        self.counts.pinned(bytes, self.pinned_bytes);
    }

    pub fn unpin(&mut self, address: u64) -> Outcome {
        let pinned = self.pinned.remove(&address).ok_or(INVALID_VALUE)?;
        note!(self, "unpin {}", pinned.bytes);
        for device in &mut self.devices {
            device.memory.unmap(address);
        }
        self.pinned_bytes -= pinned.bytes;
        if pinned.allocated { self.space.give(address, pinned.bytes) } else { Ok(()) }
    }

    /// Waits for all work of the context, then unpins memory.
    pub fn unpin_after_all(&mut self, context: Id, address: u64, allocated: bool) -> Outcome {
        self.forbid_capture()?;
        let wrong = if allocated { INVALID_VALUE } else { HOST_MEMORY_NOT_REGISTERED };
        if self.pinned.get(&address).is_none_or(|p| p.allocated != allocated) {
            return Err(wrong);
        }
        let all = self.all_in(context);
        self.reach(&all);
        self.unpin(address)
    }

    pub fn is_pinned(&self, address: u64, bytes: u64) -> bool {
        let below = self.pinned.range(..=address).next_back();
        below.is_some_and(|(a, p)| address.saturating_add(bytes) <= a + p.bytes)
    }

    /// Checks a copy and makes it an operation. `blocking` calls return when it is done.
    pub fn copy(
        &mut self,
        context: Id,
        stream: Id,
        direction: Direction,
        [to, from]: [u64; 2],
        bytes: u64,
        blocking: bool,
    ) -> Outcome {
        if blocking {
            self.forbid_waiting(stream)?;
        }
        if bytes == 0 {
            return Ok(());
        }
        let device = self.device_of(context);
        let inside = |address: u64| {
            device.find(address, bytes).map(|(start, a)| (a.number, address - start))
        };
        let places = match direction {
            Direction::ToDevice => [inside(to), Some((0, 0))],
            Direction::ToHost => [Some((0, 0)), inside(from)],
            Direction::OnDevice => [inside(to), inside(from)],
        };
        let [Some(target), Some(origin)] = places else { return Err(INVALID_VALUE) };
        if to == 0 || from == 0 {
            return Err(INVALID_VALUE);
        }
        let pinned = match direction {
            Direction::ToDevice => self.is_pinned(from, bytes),
            Direction::ToHost => self.is_pinned(to, bytes),
            Direction::OnDevice => true,
        };
        let place = |(number, offset): (u64, u64)| match number {
            0 if pinned => "pinned".to_string(),
            0 => "pageable".to_string(),
            _ => format!("#{number}+{offset}"),
        };
        let (number, kind) = (self.streams[&stream].number, direction.name());
        note!(self, "copy {kind} {bytes} {} <- {} stream={number}", place(target), place(origin));
        let capturing = self.streams[&stream].capture.is_some();
        let staged = direction == Direction::ToDevice
            && !pinned
            && !capturing
            && bytes <= STAGED
            && !blocking;
        let source = if staged {
            // SAFETY: the caller of the API guarantees that the host's side is valid during the
            // call.
            Source::Bytes(
                unsafe { std::slice::from_raw_parts(from as *const u8, bytes as usize) }.into(),
            )
        } else {
            Source::Address(from)
        };
        let ticket = self.submit(stream, Work::Copy { direction, to, from: source, bytes })?;
        if let Some(ticket) = ticket
            && (blocking || !(pinned || staged))
        {
            self.reach(&[ticket]);
        }
        Ok(())
    }

    /// Checks a fill and makes it an operation.
    pub fn fill(
        &mut self,
        context: Id,
        stream: Id,
        at: u64,
        value: u32,
        width: u64,
        count: u64,
    ) -> Outcome {
        if count == 0 {
            return Ok(());
        }
        let bytes = width.checked_mul(count).ok_or(INVALID_VALUE)?;
        let (start, allocation) = self.device_of(context).find(at, bytes).ok_or(INVALID_VALUE)?;
        if !at.is_multiple_of(width) {
            return Err(INVALID_VALUE);
        }
        let stream_number = self.streams[&stream].number;
        note!(self, "fill {bytes} #{}+{} stream={stream_number}", allocation.number, at - start);
        self.submit(stream, Work::Fill { at, value, width, count })?;
        Ok(())
    }
}
