//! Finds the operands of an operation in device memory and collects its launches.

use super::choice::Choice;
use super::matrix::{Location, Matrix};
use super::variant::{Arguments, GpuApi, Runs, Variant};
use crate::backend::form::Form;
use crate::error::{Error, Result};
use crate::op::{Locate, Use};
use crate::tensor::{Tensor, View, Weight};

/// Functions that return where operands are.
pub(in crate::backend) struct Locations<'a, P> {
    pub tensor: &'a dyn Fn(&Tensor) -> Result<P>,
    /// The form of a weight that is used in some way, and its place.
    pub weight: &'a dyn Fn(Weight, Use) -> Result<(Form, P)>,
    /// The place of that many bytes of scratch memory.
    pub scratch: &'a dyn Fn(usize) -> Result<P>,
}

/// The launches of an operation.
#[derive(Debug)]
pub struct Lowered<L> {
    /// In order.
    pub launches: Vec<L>,
    /// Bytes of scratch memory that they use, at most.
    pub scratch_bytes: usize,
}

/// An operation that is being turned into launches.
pub struct Lowering<'a, G: GpuApi> {
    choice: &'a Choice<G>,
    places: &'a Locations<'a, G::Place>,
    lowered: Lowered<G::Launch>,
}

impl<'a, G: GpuApi> Lowering<'a, G> {
    pub(in crate::backend) fn new(
        choice: &'a Choice<G>,
        places: &'a Locations<'a, G::Place>,
    ) -> Lowering<'a, G> {
        let lowered = Lowered { launches: Vec::new(), scratch_bytes: 0 };
        Lowering { choice, places, lowered }
    }

    /// The launches so far.
    pub fn finish(self) -> Lowered<G::Launch> {
        self.lowered
    }

    pub fn device(&self) -> &'a G::Device {
        &self.choice.device
    }

    /// The form of a weight on the device, and its place.
    pub(in crate::backend) fn form(&self, weight: Weight, how: Use) -> Result<(Form, G::Place)> {
        (self.places.weight)(weight, how)
    }

    /// A bias, if there is one.
    pub fn bias(&self, bias: Option<Weight>) -> Result<Option<Matrix<G::Place>>> {
        bias.map(|b| self.vector(b)).transpose()
    }

    /// The place of `bytes` bytes of scratch memory, the same for every call.
    pub fn scratch(&mut self, bytes: usize) -> Result<G::Place> {
        self.lowered.scratch_bytes = self.lowered.scratch_bytes.max(bytes);
        (self.places.scratch)(bytes)
    }

    /// Adds the launches of the variant for `args`, which uses no scratch memory.
    pub fn push<O: Arguments>(&mut self, args: &O::Args<G>) -> Result<()>
    where
        G: Runs<O>,
    {
        let variant = self.choice.pick::<O>(args)?;
        debug_assert_eq!((variant.scratch)(args, self.device()), 0, "{}", variant.name);
        self.push_variant(variant, args, self.device());
        Ok(())
    }

    /// Adds the launches of the variant for `args`. `set` puts the scratch memory that the variant
    /// asks for into the arguments.
    pub fn push_with_scratch<O: Arguments>(
        &mut self,
        args: O::Args<G>,
        set: impl FnOnce(&mut O::Args<G>, Matrix<G::Place>),
    ) -> Result<()>
    where
        G: Runs<O>,
    {
        self.push_with_scratch_after(0, args, set)
    }

    /// The same if the first `used` bytes of scratch memory contain something else.
    pub fn push_with_scratch_after<O: Arguments>(
        &mut self,
        used: usize,
        mut args: O::Args<G>,
        set: impl FnOnce(&mut O::Args<G>, Matrix<G::Place>),
    ) -> Result<()>
    where
        G: Runs<O>,
    {
        let variant = self.choice.pick::<O>(&args)?;
        let bytes = (variant.scratch)(&args, self.device()).next_multiple_of(4);
        if bytes > 0 {
            let place = self.scratch(used + bytes)?.after(used);
            set(&mut args, Matrix::f32_row(place, bytes / 4));
        }
        self.push_variant(variant, &args, self.device());
        Ok(())
    }

    /// Adds the launches of `variant`.
    pub fn push_variant<O: Arguments>(
        &mut self,
        variant: &Variant<G, O>,
        args: &O::Args<G>,
        device: &G::Device,
    ) {
        self.lowered.launches.extend((variant.launches)(args, device));
    }
}

impl<G: GpuApi> Locate<Matrix<G::Place>> for Lowering<'_, G> {
    fn view(&self, view: View) -> Result<Matrix<G::Place>> {
        let t = view.tensor;
        let place = (self.places.tensor)(&t)?.after(view.col * t.dtype.size());
        Ok(Matrix { place, rows: t.rows, cols: view.cols, stride: t.cols, dtype: t.dtype })
    }

    /// A weight that has one element type.
    fn weight(&self, weight: Weight, how: Use) -> Result<Matrix<G::Place>> {
        let (form, place) = self.form(weight, how)?;
        match form.segments[..] {
            [ref only] => Ok(Matrix::of_segment(only, place)),
            _ => Err(Error::device("a weight consists of several element types").found(weight)),
        }
    }
}
