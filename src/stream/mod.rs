//! Runs a [`Program`](crate::op::Program) under a [`PhasePlan`](crate::plan::PhasePlan): loads
//! weights in execution order, keeps the resident ones, and passes the others through a ring.
//!
//! The order of the weights never changes, so the next load is always known. Loads run ahead of the
//! computation as far as the ring has room, also past the end of a run into the next one. Weights
//! do not change either, so an evicted weight is simply dropped.

mod holdings;
mod not_finite;
mod ring;
mod session;

pub use holdings::Holdings;
pub use session::{NETS, Session, Tenancy};
