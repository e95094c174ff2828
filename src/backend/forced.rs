//! Variants that the user forces with `--kernel OP=NAME`, for backends whose tables are known by name.

use super::KernelChoice;
use crate::error::{Error, Result};

/// Choices that were checked against the tables.
#[derive(Debug, Default)]
pub(super) struct Forced(Vec<KernelChoice>);

/// The variants of an operation, each with why this device cannot run it, if it cannot; `None` if there is no such operation.
pub(super) type Variants<'a> = &'a dyn Fn(&str) -> Option<Vec<(&'static str, Option<String>)>>;

impl Forced {
    pub fn new(choices: Vec<KernelChoice>, ops: &[&str], variants: Variants) -> Result<Forced> {
        for KernelChoice { op, name } in &choices {
            let known = variants(op).ok_or_else(|| {
                Error::argument("there is no such operation to choose a kernel for")
                    .at("--kernel")
                    .found(op)
                    .expected(format!("one of {}", ops.join(", ")))
            })?;
            let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            match known.iter().find(|(n, _)| n == name) {
                Some((_, None)) => {}
                Some((_, Some(why))) => {
                    return Err(Error::argument(format!(
                        "{name} is not for this GPU or its driver: {why}"
                    ))
                    .at("--kernel")
                    .try_(format!("one of {}", names())));
                }
                None => {
                    return Err(Error::argument(format!("{op} has no such kernel"))
                        .at("--kernel")
                        .found(name)
                        .expected(format!("one of {}", names())));
                }
            }
        }
        Ok(Forced(choices))
    }

    /// The variant that is forced for `op`. The last one said wins, as with any option that is given twice.
    pub fn of(&self, op: &str) -> Option<&str> {
        KernelChoice::find(&self.0, op)
    }
}

/// That the forced variant `name` refuses what it is to run.
pub(super) fn refused(name: &str, why: &str) -> Error {
    Error::argument(format!("{name} cannot run this: {why}")).at("--kernel")
}
