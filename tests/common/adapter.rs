//! The adapter that the wgpu tests use: the first of this machine. Mesa's lavapipe is enough.

use std::sync::OnceLock;

use flux_fast::backend::wgpu::{Adapter, adapters};

/// The adapter, or `None` with a message if there is no usable one; with `FLUX_FAST_TEST_WGPU=1`
/// that is a failure.
pub fn get() -> Option<&'static Adapter> {
    static FOUND: OnceLock<Option<Adapter>> = OnceLock::new();
    let find = || {
        let found = adapters().into_iter().find(|a| a.ordinal == 0 && a.unusable.is_none());
        if found.is_none() {
            assert!(
                std::env::var_os("FLUX_FAST_TEST_WGPU").is_none(),
                "FLUX_FAST_TEST_WGPU is set, so there must be an adapter"
            );
            eprintln!(
                "SKIPPED all tests on Vulkan, Metal and DirectX: no adapter (on Debian, install \
                 mesa-vulkan-drivers)"
            );
        }
        found
    };
    FOUND.get_or_init(find).as_ref()
}
