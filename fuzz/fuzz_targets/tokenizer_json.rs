//! Files in place of a `tokenizer.json`.
#![no_main]

use std::panic;

use flux_fast::pipeline::tokenizers::panic_is_caught;

#[allow(dead_code, reason = "each target uses one of them")]
#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(
    init: {
        // libFuzzer's hook ends the process at any panic, even at panics of the `tokenizers` crate
        // that are caught and become errors.
        let end = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !panic_is_caught() {
                end(info);
            }
        }));
    },
    |bytes: &[u8]| entries::tokenizer_json(bytes)
);
