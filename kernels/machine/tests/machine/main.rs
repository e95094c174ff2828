//! Instructions of the PTX machine against plain definitions, and planted bugs that it must report.

mod arithmetic;
mod bugs;
mod common;
mod conversions;
mod hopper;
mod matrices;
mod text;
mod warpgroups;
mod warps;
