//! LoRA files of every trainer: real key lists, the same adapter in every dialect, alpha, rows,
//! several at once, and every fault.

mod dialects;
mod faults;
mod folder;
mod hostile;
mod pairs;
mod real;
mod refused;
mod summary;
mod support;
