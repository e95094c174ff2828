//! What tests need besides [`Backend`](crate::backend::Backend): an adapter that changes, and one
//! that is lost.

use super::backend::WgpuBackend;
use super::open::{activation, types};
use crate::backend::Compute;

#[doc(hidden)]
impl WgpuBackend {
    /// From now on, computes as if the adapter had been opened with `compute`, had windows of at
    /// most `binding_bytes`, and took at most `work` operations in one submission. One backend that
    /// changes is faster than several: every shader is compiled once.
    pub fn pretend(&mut self, compute: Compute, binding_bytes: u64, work: u64) {
        self.gpu.most_work = work;
        let device = &mut self.choice.device;
        device.binding_bytes = self.binding_bytes.min(binding_bytes / 16 * 16);
        device.activation = activation(compute);
        device.half = compute == Compute::F16;
        self.types = types(compute);
    }

    /// A function that makes the device fail as if it had been pulled out.
    pub fn loss_switch(&self) -> impl Fn() + Send + 'static {
        let device = self.gpu.shared.device.clone();
        move || device.destroy()
    }
}
