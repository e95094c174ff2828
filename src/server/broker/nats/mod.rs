//! The queue of many machines, over NATS JetStream.
//!
//! The truth about a job is one key in a bucket: every change is a compare-and-set of it, so that a
//! job is accepted once, runs with one worker at a time, and ends once. Fronts watch the bucket and
//! have all jobs in memory ([`mirror`]); one of them gives jobs to workers ([`leader`]), in the
//! order that one machine has. What is sent otherwise (signs of life, progress, previews) may be
//! lost without harm.

mod address;
mod claims;
mod connect;
mod files;
mod front;
mod hub;
mod leader;
mod limits;
mod link;
mod login;
mod mirror;
mod record;
mod schedule;
mod simulate;
mod status;
mod tasks;
mod uploads;
mod worker;

pub use front::FrontBroker;
pub use simulate::{Measured, Simulation, simulate};
pub use status::cluster_status;
pub use worker::WorkerBroker;
