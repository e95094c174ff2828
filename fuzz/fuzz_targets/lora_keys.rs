//! Names and shapes of LoRA files, of every trainer.
#![no_main]

#[allow(dead_code, reason = "each target uses one of them")]
#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::lora_keys(bytes));
