//! Model files as users have them: every dialect with its real names, every storage type, every
//! fault.

mod complete;
mod complete_parts;
mod dialects;
mod faults;
mod finding;
mod foreign;
mod gguf;
mod klein;
mod storage;
pub mod support;
