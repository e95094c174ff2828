//! Model files as users have them: every dialect with its real names, every storage type, every
//! fault.

mod dialects;
mod faults;
mod finding;
mod gguf;
mod storage;
pub mod support;
