//! From text to statements, and from statements to entry points.

pub(crate) mod builder;
pub(crate) mod parse;
pub(crate) mod text;
pub(crate) mod types;
