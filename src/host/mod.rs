//! Facts about the machine and the process: memory, processor, disks, folders and the environment.
//!
//! This is the only module that probes them. Everything here only reads; nothing is changed.

mod environment;
mod files;
mod memory;
mod system;

pub use environment::{
    Environment, cache_folder, config_folder, current_folder, expand, flag, home_folder,
    process_environment, variable,
};
pub use files::{open_regular, read_regular, read_regular_text};
pub use memory::{MemoryFacts, available_memory, memory_facts, resident_memory, usable_memory};
pub use system::{free_disk_bytes, operating_system, processor_name, threads};
