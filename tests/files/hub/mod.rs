//! `pull` against a test server, and the search for models in folders made for the test; both also
//! through the binary.

mod binary;
mod commands;
mod names;
mod places;
mod pulls;
mod redux;
mod refusals;
mod server;
