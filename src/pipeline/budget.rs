//! Bounds on the memory of the device and of the host, and what a generation needs besides its
//! plan.

use super::request::Options;
use crate::backend::Caps;
use crate::error::{Error, Result};
use crate::host;
use crate::message::Message;
use crate::units::{self, ByteSize};

/// Bytes that the process needs besides plan and weights: code, stacks, the working memory of the
/// tokenizers and of the image encoders.
pub const PROCESS_BYTES: u64 = 96 << 20;

/// Device memory that stays free even if `--vram` allows more: opening a window during a run must
/// not end the run.
const SPARE_BYTES: u64 = 64 << 20;

/// The bound on the memory that plans divide: the device's own memory, or the host's for the CPU.
#[derive(Debug, Clone)]
pub struct Budget {
    /// The bound in bytes, context and code of the device (or the process itself) included.
    pub bytes: u64,
    /// Where the number comes from, for messages.
    pub source: Message,
}

impl Budget {
    /// The bound and where it comes from.
    fn text(&self) -> Message {
        Message::with("{} ({})", [units::bytes(self.bytes).into(), self.source.clone()])
    }
}

/// The bound on host memory for a device with memory of its own.
#[derive(Debug, Clone, Copy)]
pub struct HostLimit {
    /// The bound in bytes.
    pub bytes: u64,
    /// The user set the bound: a request that needs more is refused.
    pub asked: bool,
}

/// Both bounds.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The memory that plans divide.
    pub budget: Budget,
    /// The memory that the host may use, where plans divide the device's memory.
    pub host: HostLimit,
}

impl Bounds {
    /// The bounds for the CPU, which has `memory_bytes`: `--ram`, or most of what is free.
    pub fn of_cpu(options: &Options, memory_bytes: u64) -> Bounds {
        let budget = match options.ram {
            Some(ByteSize(bytes)) => Budget { bytes, source: "{ram}".into() },
            None => {
                let (available, resident) = available_bytes(memory_bytes);
                // A tenth is left to other programs. `available` does not contain what this process
                // uses already.
                Budget {
                    bytes: available / 10 * 9 + resident,
                    source: format!("nine tenths of the {} that are free", units::bytes(available))
                        .into(),
                }
            }
        };
        Bounds { budget, host: HostLimit { bytes: u64::MAX, asked: false } }
    }

    /// The bounds for a device with memory of its own: `--vram` or what is free, and `--ram` or
    /// half of what is free: pinned memory cannot be swapped out, and other programs need some.
    pub fn of_gpu(options: &Options, caps: &Caps) -> Bounds {
        let (available, resident) = available_bytes(u64::MAX);
        let bytes = options.ram.map_or(available / 2 + resident, |ram| ram.0);
        Bounds {
            budget: device_budget(options.vram.map(|vram| vram.0), caps),
            host: HostLimit { bytes, asked: options.ram.is_some() },
        }
    }

    /// Replaces the bound on what plans divide by `bytes`, or by what the device can give if that
    /// is less.
    pub fn limit(&mut self, bytes: u64, caps: &Caps) {
        self.budget = Budget { bytes: bytes.min(reach(caps)), source: "the limit set".into() };
    }

    /// The bytes that plans divide if the process needs `host_bytes`: on a device with memory of
    /// its own the host's share is not part of the budget, but the device's context is.
    pub fn plan_bytes(&self, caps: &Caps, host_bytes: u64) -> u64 {
        let bytes = self.budget.bytes.saturating_sub(overhead_bytes(caps, host_bytes));
        bytes - bytes % caps.granularity as u64
    }

    /// Checks `host_bytes` against the bound on host memory that the user set.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that is enough.
    pub fn check_host(&self, host_bytes: u64) -> Result<()> {
        if !self.host.asked || host_bytes <= self.host.bytes {
            return Ok(());
        }
        let enough = megabytes(host_bytes);
        Err(Error::memory("the program itself does not fit in the bound on host memory")
            .with_code("budget_too_small")
            .at_parameter("ram")
            .found(units::bytes(self.host.bytes))
            .expected(format!("at least {enough} MB"))
            .try_(Message::with("{ram={}M}", [Message::plain(enough)])))
    }

    /// Checks the LoRAs' upper bound `lora_bytes` before their matrices are merged, which the plan
    /// needs: they are at least BF16, half of the bound.
    pub fn check_loras(&self, lora_bytes: u64) -> Result<()> {
        if lora_bytes / 2 <= self.budget.bytes {
            return Ok(());
        }
        Err(Error::memory("the LoRAs alone do not fit in the memory budget")
            .with_code("budget_too_small")
            .found_message(self.budget.text())
            .expected(format!("about {}", units::bytes(lora_bytes)))
            .try_("use fewer LoRAs, or LoRAs of a lower rank"))
    }

    /// The error for a request whose plan needs at least `least` bytes.
    pub fn refusal(&self, caps: &Caps, host_bytes: u64, least: u64) -> Error {
        let overhead = overhead_bytes(caps, host_bytes);
        let enough = megabytes(least_bytes(caps, overhead, least));
        let (hint, what) = match caps.in_place_weights {
            true => ("{ram={}M}, or a smaller image", "the program itself"),
            false => ("{vram={}M}, or a smaller image", "context and code"),
        };
        let hint = match enough * 1_000_000 > reach(caps) {
            true => "use a smaller image, or end other programs that use the GPU".into(),
            false => Message::with(hint, [Message::plain(enough)]),
        };
        Error::memory("the request does not fit in the memory budget")
            .with_code("budget_too_small")
            .found_message(self.budget.text())
            .expected(format!(
                "at least {enough} MB, {} of them for {what}",
                units::bytes(overhead)
            ))
            .try_(hint)
    }
}

/// The least bound on host memory for a process that needs `host_bytes` besides a plan of at least
/// `least` bytes, in bytes: as refusals name it.
pub fn least_ram(caps: &Caps, host_bytes: u64, least: u64) -> u64 {
    let bytes = match caps.in_place_weights {
        true => least_bytes(caps, host_bytes, least),
        false => host_bytes,
    };
    1_000_000 * megabytes(bytes)
}

fn least_bytes(caps: &Caps, overhead: u64, least: u64) -> u64 {
    overhead + least.next_multiple_of(caps.granularity as u64)
}

/// `bytes` in MB, rounded up, with room for what the process may need more when it is started
/// again.
fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000) + 8
}

/// The part of the budget that plans cannot divide, in bytes.
pub fn overhead_bytes(caps: &Caps, host_bytes: u64) -> u64 {
    if caps.in_place_weights { host_bytes } else { caps.overhead_bytes }
}

/// The largest budget that the device can serve, in bytes.
fn reach(caps: &Caps) -> u64 {
    if caps.in_place_weights { u64::MAX } else { caps.free_bytes + caps.overhead_bytes }
}

/// Device memory that this process may use in all, context and code included.
fn device_budget(asked: Option<u64>, caps: &Caps) -> Budget {
    let reach = caps.free_bytes + caps.overhead_bytes;
    let most = reach.saturating_sub(SPARE_BYTES);
    match asked {
        Some(bytes) if bytes <= most => Budget { bytes, source: "{vram}".into() },
        Some(bytes) => Budget {
            bytes: most,
            source: Message::with(
                "what is free of the {} that {vram} allows",
                [units::bytes(bytes).into()],
            ),
        },
        None => {
            let margin = host::gpu_margin_bytes(caps.memory_bytes);
            Budget {
                bytes: reach.saturating_sub(margin),
                source: format!(
                    "{} free, less {} for others",
                    units::bytes(reach),
                    units::bytes(margin)
                )
                .into(),
            }
        }
    }
}

/// Host memory that is free, at most `total`, and the resident set of this process, in bytes.
fn available_bytes(total: u64) -> (u64, u64) {
    let guess = if total == u64::MAX { 2 << 30 } else { total / 2 };
    let available = host::available_memory().map_or(guess, |bytes| bytes.min(total));
    (available, host::resident_memory())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn a_bound_beyond_the_free_memory_is_lowered_and_the_source_says_so() {
        let caps = Caps {
            name: "cuda:0".into(),
            description: String::new(),
            memory_bytes: 12 << 30,
            free_bytes: 10 << 30,
            overhead_bytes: 300 << 20,
            granularity: 2 << 20,
            activation: DType::BF16,
            in_place_weights: false,
            grain: crate::backend::Grain::whole(256),
            pins: true,
            reopens: false,
            int8: crate::backend::Int8Use::Never,
        };
        let asked = device_budget(Some(8 << 30), &caps);
        assert_eq!((asked.bytes, asked.source.as_str()), (8 << 30, "`vram`"));
        let lowered = device_budget(Some(12 << 30), &caps);
        assert_eq!(lowered.bytes, (10 << 30) + (236 << 20));
        assert!(lowered.source.contains("`vram`"), "{}", lowered.source);
        assert!(
            device_budget(None, &caps).bytes < (10 << 30) + (100 << 20),
            "some memory is left to other programs"
        );
    }
}
