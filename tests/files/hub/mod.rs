//! `pull` and the places where models are found, against a stand-in of the hub and folders made for the test; then the same through the binary.

mod binary;
mod commands;
mod names;
mod places;
mod pulls;
mod refusals;
mod server;
