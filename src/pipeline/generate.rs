//! The engine's surface. In this state of the tree there is no engine behind it: every call says so.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::pipeline::request::{Generated, ModelFiles, Request, RunOptions};

/// A loaded model on a device.
pub struct Pipeline(());

/// What a request would use.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport(());

impl fmt::Display for PlanReport {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// What a model file holds.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection(());

impl fmt::Display for Inspection {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn none() -> Error {
    Error::device("this build has no engine")
}

/// Looks into a model file or folder.
pub fn inspect_weights(_: &Path) -> Result<Inspection> {
    Err(none())
}

impl Pipeline {
    pub fn open(_: &ModelFiles, _: &RunOptions, _: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Self> {
        Err(none())
    }

    pub fn generate(&mut self, _: &Request, _: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Generated> {
        Err(none())
    }

    pub fn plan(&self, _: &Request) -> Result<PlanReport> {
        Err(none())
    }
}
