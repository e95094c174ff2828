//! What the GPU backends share: how a recorded operation becomes launches.
//!
//! The steps are the same for every GPU. [`lower`] looks up where the operands of an operation are
//! in device memory ([`Lowering`]), which makes the operation's arguments, picks one of the
//! [`Variant`]s that the backend has for the operation ([`Choice`]), and asks it for its launches.
//! A backend describes itself with [`GpuApi`] and lists its variants with [`Runs`].
//!
//! The arguments of most operations are their own struct with a [`Matrix`] in place of every
//! operand ([`Located`](crate::op::Located)), so such an operation needs no code here. In them,
//! activations are BF16 or F32, each with an element type of its own; a view is a window of columns
//! with any offset; biases, gains and other vectors are F32; tables are BF16, F16 or F32; kernels
//! of convolutions are sorted by taps, then by input channel, with rows that begin at multiples of
//! 16 bytes and end with zeros ([`form`](super::form)).
//!
//! Files of this folder that are named like operations have the others: those that become several
//! products, have an epilogue, or need scratch memory.

mod attention;
mod choice;
mod group_norm;
mod linear;
mod loaded;
mod lower;
mod lowering;
mod matrix;
mod qk_norm_rope;
mod table;
mod variant;

pub use attention::AttentionArgs;
pub use choice::Choice;
pub use linear::{Product, Tail};
pub use loaded::Loaded;
pub use lower::GpuBackend;
pub(in crate::backend) use lower::{dry, lower};
pub(in crate::backend) use lowering::Locations;
pub use lowering::Lowering;
pub use matrix::{Location, Matrix};
pub use qk_norm_rope::QkNormRopeArgs;
pub use table::{names, operations};
pub(in crate::backend) use variant::variants;
pub use variant::{Arguments, GpuApi, Runs, Variant, first};
