//! Variants that the user forces.

use super::KernelChoice;
use crate::error::{Error, Result};

/// Forced variants that were checked against the tables.
#[derive(Debug, Default)]
pub(super) struct Forced(Vec<KernelChoice>);

/// The variants of an operation, each with the reason why this device cannot run it, if it cannot;
/// `None` if there is no such operation.
pub(super) type Variants<'a> = &'a dyn Fn(&str) -> Option<Vec<(&'static str, Option<String>)>>;

impl Forced {
    pub fn new(choices: Vec<KernelChoice>, ops: &[&str], variants: Variants) -> Result<Forced> {
        for KernelChoice { op, name } in &choices {
            let known = variants(op).ok_or_else(|| {
                Error::argument("a kernel was chosen for an unknown operation")
                    .at_parameter("kernel")
                    .found(op)
                    .expected(format!("one of {}", ops.join(", ")))
            })?;
            let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            match known.iter().find(|(n, _)| n == name) {
                Some((_, None)) => {}
                Some((_, Some(why))) => {
                    return Err(Error::argument(format!(
                        "{name} does not run on this device: {why}"
                    ))
                    .at_parameter("kernel")
                    .try_(format!("one of {}", names())));
                }
                None => {
                    return Err(Error::argument(format!("{op} has no such kernel"))
                        .at_parameter("kernel")
                        .found(name)
                        .expected(format!("one of {}", names())));
                }
            }
        }
        Ok(Forced(choices))
    }

    /// The variants that are forced for `op`, the last one first.
    pub fn all<'a>(&'a self, op: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().rev().filter(move |choice| choice.op == op).map(|choice| choice.name.as_str())
    }

    /// The variant that is forced for `op`. If it was forced several times, the last one counts.
    pub fn of(&self, op: &str) -> Option<&str> {
        self.all(op).next()
    }
}
