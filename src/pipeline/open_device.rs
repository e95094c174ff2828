//! The device of a pipeline: opened, bounded, and opened again after it was lost.

use std::ops::ControlFlow;

use super::budget::Bounds;
use super::device::{self, Opened};
use super::progress::Listener;
use super::request::Options;
use super::speed::assumed_cpu;
use crate::backend::{Backend, Caps, Compute, Device, Int8Use};
use crate::error::{Error, Result};
use crate::host;
use crate::stream::Holdings;

/// A device with its memory bounds, and with the weights that stay on it between generations.
pub struct OpenDevice {
    /// `None` if the device was lost and could not be opened again.
    backend: Option<Box<dyn Backend>>,
    /// The properties of the device, also after it was lost.
    caps: Caps,
    holdings: Holdings,
    bounds: Bounds,
    options: Options,
    /// Names the arithmetic (version, device, forced choices): what results depend on besides the
    /// request and the weights.
    arithmetic: String,
}

impl OpenDevice {
    /// Opens the device that `options` name.
    pub fn open(options: &Options, on: Listener<'_>) -> Result<Self> {
        let Opened { backend, bounds } = device::open(options, &mut |event| match on(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("stopped while the device was opened")),
        })?;
        let caps = backend.caps().clone();
        Ok(OpenDevice {
            arithmetic: arithmetic(&caps, options),
            backend: Some(backend),
            caps,
            holdings: Holdings::default(),
            bounds,
            options: options.clone(),
        })
    }

    /// Opens the device again after it was lost, with the same bounds.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if it cannot be opened or another device has
    /// taken its place. The pipeline then has no device until this function succeeds.
    pub fn reopen(&mut self, on: Listener<'_>) -> Result<()> {
        let options = Options { device: self.caps.name.parse()?, ..self.options.clone() };
        self.close();
        let OpenDevice { backend, caps, arithmetic, .. } = OpenDevice::open(&options, on)?;
        if caps.description != self.caps.description {
            return Err(Error::device("the GPU did not come back")
                .at(&self.caps.name)
                .found(&caps.description)
                .expected(&self.caps.description)
                .try_("{:doctor} lists the devices that are present"));
        }
        (self.backend, self.caps, self.arithmetic) = (backend, caps, arithmetic);
        Ok(())
    }

    /// Replaces the device by the CPU, with the bounds that the options set for it.
    pub fn take_cpu(&mut self, on: Listener<'_>) -> Result<()> {
        // Kernels and compute type were chosen for the other device.
        let options = Options {
            device: Device::Cpu,
            kernels: Vec::new(),
            compute: Compute::Auto,
            ..self.options.clone()
        };
        self.close();
        let OpenDevice { backend, caps, arithmetic, bounds, .. } = OpenDevice::open(&options, on)?;
        (self.backend, self.caps, self.arithmetic) = (backend, caps, arithmetic);
        self.bounds = bounds;
        Ok(())
    }

    /// Drops the device before another is opened: both might not fit, and the free memory is
    /// measured then.
    fn close(&mut self) {
        self.holdings = Holdings::default();
        self.backend = None;
    }

    /// The properties of the device, also after it was lost.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The bounds on memory.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Host memory that may be pinned for weights that pass to the device in every step if the
    /// process needs `host_bytes` for other purposes, in bytes.
    pub fn pinned_bytes(&self, host_bytes: u64) -> u64 {
        if !self.caps.pins {
            return 0;
        }
        self.bounds.host.bytes.saturating_sub(host_bytes)
    }

    /// See the field.
    pub fn arithmetic(&self) -> &str {
        &self.arithmetic
    }

    /// What the speed depends on besides the work.
    pub fn speed_key(&self) -> String {
        self.arithmetic.clone()
    }

    /// A speed to assume for a device on which nothing was measured, in 10^12 operations a second;
    /// `None` for GPUs, whose speeds differ too much.
    pub fn assumed_speed(&self) -> Option<f64> {
        let threads = self.options.threads.unwrap_or(usize::MAX).min(host::threads());
        // Products are at most twice as fast in integers, attention is as it was.
        let faster = if self.caps.int8 == Int8Use::All { 1.6 } else { 1.0 };
        self.caps.in_place_weights.then(|| faster * assumed_cpu(threads))
    }

    /// Whether there is a device.
    pub fn is_open(&self) -> bool {
        self.backend.is_some()
    }

    /// The device.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if it was lost.
    pub fn backend(&self) -> Result<&dyn Backend> {
        match &self.backend {
            Some(backend) => Ok(&**backend),
            None => Err(lost(&self.caps)),
        }
    }

    /// The device, and the record of the weights on it; see [`OpenDevice::backend`].
    pub fn parts(&mut self) -> Result<(&mut dyn Backend, &mut Holdings)> {
        match &mut self.backend {
            Some(backend) => Ok((&mut **backend, &mut self.holdings)),
            None => Err(lost(&self.caps)),
        }
    }

    /// Bounds the memory that plans divide to `bytes`; what is allocated is freed, since it may be
    /// more.
    pub fn limit_memory(&mut self, bytes: u64) -> Result<()> {
        self.bounds.limit(bytes, &self.caps);
        match &mut self.backend {
            Some(backend) => self.holdings.clear(&mut **backend),
            None => Ok(()),
        }
    }

    /// Whether another device may take over: the user did not name this one.
    pub fn is_automatic(&self) -> bool {
        self.options.device == Device::Auto
    }

    /// Whether products are computed in F16.
    pub fn in_f16(&self) -> bool {
        self.options.compute == Compute::F16
    }

    /// Computes products in the device's default type from the next opening on.
    pub fn leave_f16(&mut self) {
        self.options.compute = Compute::Auto;
    }

    /// The options with which the device was opened.
    #[cfg(test)]
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Whether the device was lost and can be opened again in this process.
    pub fn may_come_back(&self) -> bool {
        self.caps.reopens && self.backend.as_ref().is_some_and(|b| b.is_lost())
    }

    /// Uses `backend` instead of the one that was opened: for tests of a device that is lost.
    pub fn replace_backend(&mut self, backend: Box<dyn Backend>) {
        self.holdings = Holdings::default();
        self.caps = backend.caps().clone();
        self.backend = Some(backend);
    }
}

fn lost(caps: &Caps) -> Error {
    Error::device("the device was lost and could not be opened again").at(&caps.name)
}

/// What results depend on besides the request and the weights.
fn arithmetic(caps: &Caps, options: &Options) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{version} {} {} {} {:?}",
        caps.name, caps.description, options.compute, options.kernels
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::event::Event;

    fn listen(_: Event) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn cpu() -> OpenDevice {
        let options = Options::default().device(Device::Cpu);
        OpenDevice::open(&options, &mut listen).unwrap()
    }

    #[test]
    fn a_closed_device_is_an_error_until_it_is_reopened_with_the_same_bounds() {
        let mut device = cpu();
        device.limit_memory(123 << 20).unwrap();
        device.close();
        assert!(!device.is_open() && !device.may_come_back());
        assert_eq!(device.backend().err().unwrap().kind(), Kind::Device);
        assert_eq!(device.parts().err().unwrap().kind(), Kind::Device);
        // Its description is still known, and bounds can be set.
        assert_eq!(device.caps().name, "cpu");
        device.limit_memory(124 << 20).unwrap();
        device.reopen(&mut listen).unwrap();
        assert!(device.is_open() && device.backend().is_ok());
        assert_eq!(device.bounds().budget.bytes, 124 << 20);
        // The CPU that takes over for a GPU has bounds of its own.
        device.take_cpu(&mut listen).unwrap();
        assert_ne!(device.bounds().budget.bytes, 124 << 20);
    }

    #[test]
    fn another_device_in_the_same_place_is_refused() {
        let mut device = cpu();
        device.caps.description = "another processor".into();
        let e = device.reopen(&mut listen).unwrap_err();
        assert_eq!(e.kind(), Kind::Device);
        assert!(e.to_string().contains("expected another processor"), "{e}");
        assert!(!device.is_open());
    }

    #[test]
    fn a_listener_that_breaks_stops_the_opening() {
        let options = Options::default().device(Device::Auto);
        let stopped = OpenDevice::open(&options, &mut |_| ControlFlow::Break(()));
        assert_eq!(stopped.err().unwrap().kind(), Kind::Cancelled);
    }
}
