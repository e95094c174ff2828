//! Model files: mapped, checked, and read under one set of names whatever tool wrote them.
//!
//! Each component is read as `ComponentWeights`: canonical names, zero-copy parts. See [`crate::spec`] for the names.

pub mod container;
pub mod dialect;
pub mod lora;
pub mod synth;

pub use container::map::exit_on_lost_pages;
pub use dialect::component::ComponentWeights;
