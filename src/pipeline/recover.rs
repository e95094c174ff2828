//! What to do when a generation fails: reopen the device, use the CPU, compute in F32, or give up.

use super::open_device::OpenDevice;
use super::progress::{Listener, send};
use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::message::Message;

/// The facts about a generation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failure {
    /// The kind of the error.
    kind: Kind,
    /// The device was lost, and can be opened again in this process.
    lost: bool,
    /// The device was reopened before in this generation.
    reopened: bool,
    /// Products are computed in F16.
    f16: bool,
    /// The user left the choice of the device to the program.
    automatic: bool,
    /// The device is the CPU.
    on_cpu: bool,
}

/// What to do about a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Compute products in F32 from now on, and run the request again.
    LeaveF16,
    /// Open the same device again, and run the request again.
    Reopen,
    /// Run the request again on the CPU.
    TakeCpu,
    /// Return the error, but open the device again first, for the next request.
    ReopenAndFail,
    /// Return the error.
    Fail,
}

impl Failure {
    fn decide(self) -> Decision {
        match self.kind {
            Kind::NotFinite if self.f16 => Decision::LeaveF16,
            Kind::Device if self.lost && !self.reopened => Decision::Reopen,
            Kind::Device if self.automatic && !self.on_cpu => Decision::TakeCpu,
            _ if self.lost => Decision::ReopenAndFail,
            _ => Decision::Fail,
        }
    }
}

/// The recovery of one generation.
#[derive(Debug, Default)]
pub struct Recovery {
    reopened: bool,
}

impl Recovery {
    /// Prepares `device` for another try after `e`, with a warning to the listener.
    ///
    /// # Errors
    /// `e` if there is nothing to try, or the error that prevents it.
    pub fn recover(&mut self, device: &mut OpenDevice, e: Error, on: Listener<'_>) -> Result<()> {
        let failure = Failure {
            kind: e.kind(),
            lost: device.may_come_back(),
            reopened: self.reopened,
            f16: device.in_f16(),
            automatic: device.is_automatic(),
            on_cpu: device.caps().in_place_weights,
        };
        match failure.decide() {
            Decision::LeaveF16 => {
                device.leave_f16();
                warn(on, &e, "running again with products in F32")?;
                device.reopen(on)
            }
            Decision::Reopen => {
                self.reopened = true;
                warn(on, &e, "reopening the device and restarting the image")?;
                match device.reopen(on) {
                    Err(e) if e.kind() == Kind::Device && device.is_automatic() => {
                        take_cpu(device, &e, on)
                    }
                    reopened => reopened,
                }
            }
            Decision::TakeCpu => take_cpu(device, &e, on),
            Decision::ReopenAndFail => device.reopen(on).and(Err(e)),
            Decision::Fail => Err(e),
        }
    }
}

fn take_cpu(device: &mut OpenDevice, e: &Error, on: Listener<'_>) -> Result<()> {
    warn(on, e, "running on the CPU instead")?;
    device.take_cpu(on)
}

/// Warns of `e`, and says what is done about it.
fn warn(on: Listener<'_>, e: &Error, consequence: &'static str) -> Result<()> {
    send(on, Event::warning(Message::with("{}; {}", [e.message(), consequence.into()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure of a GPU that the user named.
    fn failure(kind: Kind) -> Failure {
        Failure { kind, lost: false, reopened: false, f16: false, automatic: false, on_cpu: false }
    }

    #[test]
    fn numbers_beyond_f16_are_computed_in_f32_and_others_are_an_error() {
        let e = failure(Kind::NotFinite);
        assert_eq!(Failure { f16: true, ..e }.decide(), Decision::LeaveF16);
        assert_eq!(e.decide(), Decision::Fail);
        // Other errors have nothing to do with the type of the products.
        assert_eq!(Failure { f16: true, ..failure(Kind::Memory) }.decide(), Decision::Fail);
    }

    #[test]
    fn a_lost_device_is_reopened_once() {
        let e = Failure { lost: true, ..failure(Kind::Device) };
        assert_eq!(e.decide(), Decision::Reopen);
        assert_eq!(Failure { automatic: true, ..e }.decide(), Decision::Reopen);
        // The second time the request fails, and the next request finds a device that works.
        assert_eq!(Failure { reopened: true, ..e }.decide(), Decision::ReopenAndFail);
    }

    #[test]
    fn the_cpu_takes_over_only_if_the_user_left_the_choice() {
        let e = Failure { automatic: true, ..failure(Kind::Device) };
        assert_eq!(e.decide(), Decision::TakeCpu);
        assert_eq!(Failure { lost: true, reopened: true, ..e }.decide(), Decision::TakeCpu);
        assert_eq!(failure(Kind::Device).decide(), Decision::Fail);
        // The CPU cannot take over from itself.
        assert_eq!(Failure { on_cpu: true, ..e }.decide(), Decision::Fail);
    }

    #[test]
    fn a_device_that_is_lost_by_another_error_is_reopened_for_the_next_request() {
        for kind in [Kind::Memory, Kind::Model, Kind::Cancelled, Kind::NotFinite] {
            let e = Failure { automatic: true, ..failure(kind) };
            assert_eq!(e.decide(), Decision::Fail, "{kind:?}");
            assert_eq!(Failure { lost: true, ..e }.decide(), Decision::ReopenAndFail, "{kind:?}");
        }
    }
}
