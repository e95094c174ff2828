//! Dialects: programs name and store the tensors of one network in different ways. Here they are
//! recognised and read as one canonical set.

pub mod component;
pub mod recognise;
pub mod storage;
