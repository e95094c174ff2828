//! An operation with other handles in place of its tensors and weights: what a backend makes of a
//! recorded operation once it has found the operands in its memory.

use super::{Operation, Use};
use crate::error::Result;
use crate::tensor::{Tensor, View, Weight};

/// Finds operands, as `M`: for example as matrices in the memory of a device.
pub trait Locate<M> {
    /// The columns of a tensor.
    ///
    /// # Errors
    /// If the tensor has no place.
    fn view(&self, view: View) -> Result<M>;

    /// A weight, in the form that its use requires.
    ///
    /// # Errors
    /// If the weight is not loaded.
    fn weight(&self, weight: Weight, how: Use) -> Result<M>;

    /// A whole tensor.
    ///
    /// # Errors
    /// As [`view`](Self::view).
    fn tensor(&self, tensor: Tensor) -> Result<M> {
        self.view(tensor.all())
    }

    /// A bias or gain.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    fn vector(&self, weight: Weight) -> Result<M> {
        self.weight(weight, Use::Vector)
    }
}

/// An operation whose operands need nothing but to be found. Its struct is generic over the handles
/// of its tensors, views and weights, so that the located operation has the same fields.
///
/// It is implemented next to [`Operation`]. Operations that a backend divides into several, or for
/// which it needs more than the operands (scratch memory), are lowered by code of their own.
pub trait Located: Operation + Copy + 'static {
    /// The name; [`Operation::name`] returns it.
    const NAME: &'static str;

    /// The operation with an `M` in place of every handle.
    type On<M: Copy>: Copy;

    /// Finds every operand.
    ///
    /// # Errors
    /// The error of the first operand that is not found.
    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>>;
}
