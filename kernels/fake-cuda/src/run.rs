//! Runs queued operations.

use crate::driver::{Driver, Id, note};
use crate::module::Launch;
use crate::status::*;
use crate::stream::{Direction, Source, Ticket, Work};
use std::ffi::c_void;
use std::time::Instant;

/// With `copies=skip`, copies of at least this size are left out.
const LARGE_COPY: u64 = 1 << 20;

impl Driver {
    /// Runs one operation. An error is an error of the device, after which the context is unusable.
    pub fn run(&mut self, context: Id, place: Ticket, work: &Work) -> Outcome {
        let stream = self.streams.get(&place.stream).map_or(0, |s| s.number);
        match work {
            Work::Copy { direction, to, from, bytes } => {
                note!(self, "run copy {} {bytes} stream={stream}", direction.name());
                self.run_copy(context, *direction, *to, from, *bytes)
            }
            Work::Fill { at, value, width, count } => {
                note!(self, "run fill {} stream={stream}", width * count);
                self.device_of(context).find(*at, width * count).ok_or(ILLEGAL_ADDRESS)?;
                fill(*at, *value, *width, *count);
                Ok(())
            }
            Work::Launch(launch) => {
                note!(self, "run launch {} stream={stream}", launch.name);
                self.run_launch(context, launch)
            }
            Work::Mark(event) => {
                if let Some(e) = self.events.get_mut(event) {
                    e.passed = Some((place, Instant::now()));
                }
                Ok(())
            }
            Work::Wait(_) => Ok(()),
            Work::Call { function, data } => {
                note!(self, "run call stream={stream}");
                // SAFETY: the function was passed to `cuLaunchHostFunc`, which requires this
                // signature.
                let function: extern "C" fn(*mut c_void) =
                    unsafe { std::mem::transmute(*function) };
                function(*data as *mut c_void);
                Ok(())
            }
            Work::Free(address) => {
                let index = self.contexts[&context].device;
                let freed = self.devices[index]
                    .release(&mut self.space, *address)
                    .ok_or(ILLEGAL_ADDRESS)?;
                note!(self, "run free #{} stream={stream}", freed.number);
                Ok(())
            }
            Work::Graph(nodes) => {
                note!(self, "run graph nodes={} stream={stream}", nodes.len());
                self.run_graph(context, place, nodes)
            }
        }
    }

    fn run_copy(
        &mut self,
        context: Id,
        direction: Direction,
        to: u64,
        from: &Source,
        bytes: u64,
    ) -> Outcome {
        let skip = !self.settings.copies && bytes >= LARGE_COPY && direction != Direction::ToHost;
        let device = self.device_of(context);
        // Memory may have been freed since the call.
        if direction != Direction::ToHost {
            device.find(to, bytes).ok_or(ILLEGAL_ADDRESS)?;
        }
        let from = match from {
            Source::Bytes(bytes) => bytes.as_ptr(),
            Source::Address(from) => {
                if direction != Direction::ToDevice {
                    device.find(*from, bytes).ok_or(ILLEGAL_ADDRESS)?;
                }
                *from as *const u8
            }
        };
        self.counts.copied(direction, bytes);
        if !skip {
            // SAFETY: the device's side was just looked up; the caller of the API guarantees that
            // the host's side is valid until then.
            unsafe { std::ptr::copy(from, to as *mut u8, bytes as usize) };
        }
        Ok(())
    }

    /// Runs a kernel on the PTX machine.
    fn run_launch(&mut self, context: Id, launch: &Launch) -> Outcome {
        if !self.settings.kernels {
            if !std::mem::replace(&mut self.said_skipping, true) {
                eprintln!("fake-cuda: kernels are skipped, so results are wrong (kernels=skip)");
            }
            return Ok(());
        }
        let sums = match self.settings.hardware_sums {
            true => ptx_machine::Sums::Of(chip(self.device_of(context).spec.capability)),
            false => ptx_machine::Sums::Nearest,
        };
        let options = ptx_machine::Options { checks: self.settings.checks, sums };
        let entry = launch.entry();
        let (grid, block) = (launch.grid, launch.block);
        let run = ptx_machine::Launch {
            entry,
            grid,
            block,
            shared: launch.shared as usize,
            params: &launch.params,
        };
        match ptx_machine::run(&run, &self.device_of(context).memory, &options) {
            Ok(report) => self.counts.ran(&launch.name, &report),
            Err(fault) => {
                eprintln!("fake-cuda: {} failed: {fault}", launch.name);
                self.counts.faulted(&launch.name, fault.to_string());
                Err(LAUNCH_FAILED)
            }
        }
    }
}

/// The tensor cores of a device.
fn chip(capability: (u32, u32)) -> ptx_machine::Chip {
    match capability {
        (..=8, ..=8) | (..=7, _) => ptx_machine::Chip::Ampere,
        (8, _) => ptx_machine::Chip::Ada,
        (9, _) => ptx_machine::Chip::Hopper,
        _ => ptx_machine::Chip::RtxBlackwell,
    }
}

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Direction::ToDevice => "htod",
            Direction::ToHost => "dtoh",
            Direction::OnDevice => "dtod",
        }
    }
}

fn fill(at: u64, value: u32, width: u64, count: u64) {
    let count = count as usize;
    // SAFETY: the range is in device memory, and its start is aligned to `width`.
    unsafe {
        match width {
            1 => std::slice::from_raw_parts_mut(at as *mut u8, count).fill(value as u8),
            2 => std::slice::from_raw_parts_mut(at as *mut u16, count).fill(value as u16),
            _ => std::slice::from_raw_parts_mut(at as *mut u32, count).fill(value),
        }
    }
}
