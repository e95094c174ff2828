//! What the GPU backends share: how a recorded operation becomes launches.
//!
//! The steps are the same for every GPU. [`lower`] looks up where the operands of an operation are
//! in device memory ([`Lowering`]), puts them into the operation's arguments (one struct for each
//! operation), picks one of the [`Variant`]s that the backend has for the operation ([`Choice`]),
//! and asks it for its launches. A backend describes itself with [`GpuApi`] and lists its variants
//! with [`Runs`].

mod adapter;
mod attention;
mod choice;
mod conv2d;
mod elementwise;
mod embed;
mod group_norm;
mod latents;
mod linear;
mod loaded;
mod lower;
mod lowering;
mod matrix;
mod norm;
mod table;
mod variant;

pub use attention::AttentionArgs;
pub use choice::Choice;
pub use elementwise::{CastArgs, CopyRowsArgs};
pub use linear::{Product, Tail};
pub use loaded::Loaded;
pub use lower::GpuBackend;
pub(in crate::backend) use lower::{dry, lower};
pub(in crate::backend) use lowering::Locations;
pub use lowering::Lowering;
pub use matrix::{Location, Matrix};
pub use norm::QkNormRopeArgs;
pub use table::{names, operations};
pub(in crate::backend) use variant::variants;
pub use variant::{Arguments, GpuApi, Runs, Variant, first};
