//! The command line from outside.

mod binary;
mod runs;
