//! Dialects: the names and stored forms that different programs give the tensors of one network, read as one canonical set.

pub mod component;
pub mod recognise;
pub mod storage;
