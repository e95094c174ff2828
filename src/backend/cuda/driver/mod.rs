//! The CUDA driver, as little of it as is needed: every `unsafe` driver call of this backend is
//! here. Handles free themselves; errors become [`Error`](crate::error::Error)s.

mod api;
mod context;
mod devices;
mod event;
mod health;
mod memory;
mod module;
mod stream;
mod tma;

pub(super) use context::Context;
pub(super) use devices::{Facts, count, facts, present};
pub(super) use event::{Event, EventPool};
pub(super) use memory::{Buffer, Pinned, PinnedPart};
pub(super) use module::{Function, Module};
pub(super) use stream::{Graph, Stream};
