//! Turns the driver's error codes into errors, and remembers whether the context still works.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::api::Code;
use crate::error::{Error, Result};

/// Whether a context still works. Once a kernel has failed, every call of its context fails: the
/// first error is kept, and nothing is tried again.
#[derive(Debug, Clone, Default)]
pub struct ContextHealth(Arc<AtomicU32>);

impl ContextHealth {
    /// # Errors
    /// The error after which nothing works.
    pub fn alive(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => Err(lost(code, "earlier")),
        }
    }

    /// Converts the answer of a call; `what` names the call.
    pub fn check<T>(&self, answer: Result<T, Code>, what: &str) -> Result<T> {
        answer.map_err(|code| {
            if is_sticky(code.0) {
                self.0.store(code.0, Ordering::Relaxed);
                return lost(code.0, what);
            }
            match code {
                Code::OUT_OF_MEMORY if what.contains("host memory") => {
                    Error::memory(format!("out of memory: {what}"))
                        .try_("a smaller {ram}, or end other programs")
                }
                Code::OUT_OF_MEMORY => Error::memory(format!("out of memory: {what}")).try_(
                    "a smaller {vram}, a smaller image, or end other programs that use the GPU",
                ),
                Code::DEVICE_UNAVAILABLE => {
                    Error::device(format!("{what}: another program uses the GPU exclusively"))
                        .try_("end that program, or choose another {device}")
                }
                _ => Error::device(format!("{what}: {}", code.name())),
            }
        })
    }
}

/// Whether `code` is an error after which a context no longer works.
fn is_sticky(code: u32) -> bool {
    matches!(code, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 999)
}

fn lost(code: u32, what: &str) -> Error {
    let hint = match code {
        702 => {
            "the system's watchdog ended a kernel: use a smaller image, or a GPU without a display"
        }
        214 | 220 | 226 => "the GPU reports a memory or link error: check it with nvidia-smi",
        700 | 714..=719 => {
            "run again; if it repeats, use {device=cpu}, and please report this message"
        }
        _ => "run again; if it repeats, look at the driver's log",
    };
    Error::device(format!("the GPU was lost ({what}: CUDA error {code})")).try_(hint)
}
