//! From an operation to launches.

use super::choice::Choice;
use super::lowering::{Locations, Lowered, Lowering};
use super::matrix::Matrix;
use super::table::RunsAll;
use super::variant::{Arguments, Runs};
use crate::backend::form::{Form, Types};
use crate::error::Result;
use crate::op::{Linear, Located, Op, each_op};
use crate::tensor::{HostWeight, Weight};

/// A [`GpuApi`] with everything that lowering needs.
pub trait GpuBackend: RunsAll {
    /// Adds the launches of a matrix product. A weight can consist of several element types, and
    /// each backend handles the side branch of a LoRA differently: one `Linear` can become several
    /// products.
    fn lower_linear(op: &Linear, to: &mut Lowering<Self>) -> Result<()>;
}

/// An operation that can be turned into launches on the GPU `G`.
pub trait Lower<G: GpuBackend>: Arguments {
    /// Finds the operands and adds the launches of the chosen variant.
    fn lower(&self, to: &mut Lowering<G>) -> Result<()>;
}

impl<G: GpuBackend + Runs<O>, O: Located> Lower<G> for O {
    fn lower(&self, to: &mut Lowering<G>) -> Result<()> {
        let args = self.locate::<Matrix<G::Place>>(&*to)?;
        to.push::<O>(&args)
    }
}

/// The launches of `op` with operands at `locations`.
///
/// # Errors
/// If an operand is not in device memory, or no variant can run the operation.
pub(in crate::backend) fn lower<G: GpuBackend>(
    choice: &Choice<G>,
    op: &Op,
    locations: &Locations<G::Place>,
) -> Result<Lowered<G::Launch>> {
    let mut to = Lowering::new(choice, locations);
    each_op!(op, operation => operation.lower(&mut to))?;
    Ok(to.finish())
}

/// The launches of `op` with operands at placeholders, aligned as the beginning of every tensor is:
/// for the size of scratch memory, and to find out whether there is a variant at all.
///
/// # Errors
/// If no variant can run the operation.
pub(in crate::backend) fn dry<'w, G: GpuBackend>(
    choice: &Choice<G>,
    types: Types,
    op: &Op,
    weight: &dyn Fn(Weight) -> &'w HostWeight,
) -> Result<Lowered<G::Launch>> {
    let placeholder = G::Place::default;
    let locations = Locations {
        tensor: &|_| Ok(placeholder()),
        weight: &|w, how| Ok((Form::of(weight(w), how, types), placeholder())),
        scratch: &|_| Ok(placeholder()),
    };
    lower(choice, op, &locations)
}
