//! Facts about the machine and the process: memory, processor, disks, folders and the environment;
//! files that may be anything, and files that are not complete yet.
//!
//! This is the only module that probes the machine.

mod environment;
mod files;
mod memory;
mod system;
mod unfinished;

pub use environment::{
    Environment, cache_folder, config_folder, current_folder, data_folder, expand, flag,
    home_folder, process_environment, variable,
};
pub use files::{lock_when_free, open_regular, read_regular, read_regular_text};
pub use memory::{
    MemoryFacts, available_memory, memory_facts, resident_memory, steady_memory, usable_memory,
};
pub use system::{
    free_disk_bytes, gpu_margin_bytes, operating_system, processor_name, start_shared_threads,
    threads,
};
pub use unfinished::{remove_abandoned, unfinished_file, unfinished_name};
