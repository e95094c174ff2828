//! Which variant of each operation runs: the best one that the device can run, or a forced one.

use super::table::{RunsAll, names, operations};
use super::variant::{Arguments, GpuApi, Runs, Variant};
use crate::backend::KernelChoice;
use crate::backend::forced::Forced;
use crate::error::{Error, Result};

/// The variants that one device uses.
#[derive(Debug)]
pub struct Choice<G: GpuApi> {
    pub device: G::Device,
    forced: Forced,
}

impl<G: RunsAll> Choice<G> {
    /// The choice for `device`, with the forced variants.
    ///
    /// # Errors
    /// As [`Choice::force`].
    pub fn new(device: G::Device, forced: Vec<KernelChoice>) -> Result<Choice<G>> {
        let mut choice = Choice { device, forced: Forced::default() };
        choice.force(forced)?;
        Ok(choice)
    }

    /// Replaces the forced variants.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if there is no such operation or variant,
    /// or this device cannot run it.
    pub fn force(&mut self, forced: Vec<KernelChoice>) -> Result<()> {
        let variants = |op: &str| {
            let device = &self.device;
            let why = |needs| (!G::runs(device, needs)).then(|| G::why_not(device, needs));
            Some(names::<G>(op)?.into_iter().map(|(name, needs)| (name, why(needs))).collect())
        };
        self.forced = Forced::new(forced, &operations(), &variants)?;
        Ok(())
    }
}

impl<G: GpuApi> Choice<G> {
    /// The variant for `args`: the last forced one that can run them, or the one that the backend
    /// chooses if none was forced for the operation.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if no forced variant can run them;
    /// [`GpuApi::no_variant`] if none can.
    pub fn pick<O: Arguments>(&self, args: &O::Args<G>) -> Result<&'static Variant<G, O>>
    where
        G: Runs<O>,
    {
        let mut answer = None;
        for name in self.forced.all(O::NAME) {
            let mut variants = G::tables().into_iter().flatten();
            let variant = variants.find(|v| v.name == name);
            let variant = variant.expect("forced names are checked when they are given");
            match (variant.accepts)(args, &self.device) {
                Ok(()) => return Ok(variant),
                Err(why) => answer = answer.or(Some(refused(name, why))),
            }
        }
        match answer {
            Some(refused) => Err(refused),
            None => G::choose(args, &self.device).map_err(|why| G::no_variant(O::NAME, why)),
        }
    }
}

/// The error that the forced variant `name` cannot run the operands at hand.
fn refused(name: &str, why: &str) -> Error {
    Error::argument(format!("{name} cannot run this: {why}")).at_parameter("kernel")
}
