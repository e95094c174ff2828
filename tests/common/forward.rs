//! Backends that watch or change what another one gets.
#![allow(unused_macros, unused_imports, reason = "some test binaries have none")]

/// Methods of `Backend` that only call those of the field `inner`.
macro_rules! forward {
    ($($method:ident),*) => {
        $(crate::common::forward::forward!(@ $method);)*
    };
    (@ caps) => {
        fn caps(&self) -> &flux_fast::backend::Caps {
            self.inner.caps()
        }
    };
    (@ weight_bytes) => {
        fn weight_bytes(
            &self,
            weight: &flux_fast::tensor::HostWeight,
            how: flux_fast::op::Use,
        ) -> usize {
            self.inner.weight_bytes(weight, how)
        }
    };
    (@ scratch_bytes) => {
        fn scratch_bytes<'w>(
            &self,
            op: &flux_fast::op::Op,
            weight: &dyn Fn(flux_fast::tensor::Weight) -> &'w flux_fast::tensor::HostWeight,
        ) -> usize {
            self.inner.scratch_bytes(op, weight)
        }
    };
    (@ forget) => {
        fn forget(
            &mut self,
            key: flux_fast::backend::WeightKey,
        ) -> flux_fast::error::Result<()> {
            self.inner.forget(key)
        }
    };
    (@ write) => {
        fn write(&mut self, offset: usize, bytes: &[u8]) -> flux_fast::error::Result<()> {
            self.inner.write(offset, bytes)
        }
    };
    (@ read) => {
        fn read(&mut self, offset: usize, bytes: &mut [u8]) -> flux_fast::error::Result<()> {
            self.inner.read(offset, bytes)
        }
    };
    (@ sync) => {
        fn sync(&mut self) -> flux_fast::error::Result<()> {
            self.inner.sync()
        }
    };
}
pub(crate) use forward;
