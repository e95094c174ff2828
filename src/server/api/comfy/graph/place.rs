//! A node of a graph, and the faults at it.

use serde_json::Value;

use super::at_node;
use crate::server::fault::Fault;

/// A node of the graph.
#[derive(Clone)]
pub struct Place<'a> {
    /// Its id.
    pub id: String,
    /// Its class.
    pub class: &'a str,
    /// Its inputs by name.
    pub inputs: &'a Value,
}

impl Place<'_> {
    /// The input with its image.
    pub fn image_input(&self) -> &'static str {
        if self.class == "HintImageEnchance" { "hint_image" } else { "image" }
    }

    pub fn unsupported(&self, why: &str) -> Fault {
        let message = format!("{} (node {}): {why}", self.class, self.id);
        at_node("unsupported", self.class, &self.id, message)
    }

    /// `fault` at this node. One that says to come back later stays as it is.
    pub fn at(&self, fault: Fault) -> Fault {
        if fault.status == 503 { fault } else { self.unsupported(&fault.message) }
    }

    pub fn invalid(&self, input: &str, expected: &str) -> Fault {
        let message =
            format!("{} (node {}): its input {input}: expected {expected}", self.class, self.id);
        at_node("invalid_input_type", self.class, &self.id, message)
    }

    pub fn wrong_type(&self, input: &str, expected: &str) -> Fault {
        let message = format!(
            "{} (node {}): its input {input}: expected a link to an output of the type {expected}",
            self.class, self.id
        );
        at_node("return_type_mismatch", self.class, &self.id, message)
    }
}
