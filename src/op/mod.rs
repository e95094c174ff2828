//! The fused operations that models are made of, and the [`Program`] that lists them.
//!
//! Every tensor is a matrix `rows x cols`, row-major. Where several images or prompts run together,
//! their rows are stacked, image by image. Some operands (a gate, a shift) have one *row for each
//! group* of rows of another operand: with `groups` rows, row `r` of an operand with `R` rows
//! belongs to group `r / (R / groups)`. All arithmetic accumulates in at least f32.
//!
//! Each family of operations has a file here: the structs with their fields, the shape rules, the
//! amount of matrix work, and the list of operands ([`Operation`], [`Located`]). To add an
//! operation, write its struct, implement these two traits for it, and add its name to the list
//! below.

mod adapter;
mod attention;
mod conv2d;
mod elementwise;
mod embed;
mod group_norm;
mod latents;
mod linear;
mod locate;
mod norm;
mod program;
mod qk_norm_rope;
mod recorder;
mod rule;
mod sides;
mod visit;

pub use adapter::{GroupMix, ScaledAdd};
pub use attention::Attention;
pub use conv2d::{Conv2d, ConvShape};
pub use elementwise::{Add, Cast, CopyRows, GeluMul, Silu, SiluMul};
pub use embed::{Embed, TimestepEmbed};
pub use group_norm::{GroupNorm, GroupStatistics};
pub use latents::{EulerStep, Pack, Unpack};
pub use linear::{Epilogue, Linear, Side};
pub use locate::{Locate, Located};
pub use norm::{LayerNorm, LayerNormModulate, RmsNorm};
pub use program::{Io, Program, Segment, SideFactor, Step, TermFactor, WeightSpec};
pub use qk_norm_rope::{Pairs, QkNormRope};
pub use recorder::Recorder;
pub use sides::{LinearChange, LinearTerm, TermKind};
pub use visit::{Access, Operand, Use, Visitor, Window};

use std::fmt;

/// The facts that every operation provides.
pub trait Operation {
    /// The name, as kernel variants, benchmarks and listings spell it.
    fn name(&self) -> &'static str;

    /// Passes every operand to `v`: first what is read, then the weights, then what is written.
    fn visit(&mut self, v: &mut Visitor);

    /// Checks that shapes and types fit together; the error says what does not.
    fn check(&self) -> Result<(), String>;

    /// Floating-point operations of the matrix work, a multiply-add counted as two. Element-wise
    /// work is not counted: it is limited by memory, not by arithmetic.
    fn flops(&self) -> u64 {
        0
    }

    /// What a listing prints in place of the tensors that are read, if the operation has more to
    /// say than their names.
    fn listing(&self) -> Option<Vec<String>> {
        None
    }
}

/// Makes [`Op`] from the list of all operations, and `each_op!`, which runs the same expression on
/// the struct inside an `Op` whatever the operation is:
/// `each_op!(op, operation => operation.flops())`. `for_operations!(table)` passes the names of all
/// structs to the macro `table`.
macro_rules! operations {
    ($dollar:tt $($name:ident)*) => {
        /// One operation. `x` and the other inputs are read; every element of `out` is written.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        $(impl From<$name> for Op {
            fn from(operation: $name) -> Op {
                Op::$name(operation)
            }
        })*

        macro_rules! each_op {
            ($dollar op:expr, $dollar operation:ident => $dollar body:expr) => {
                match $dollar op {
                    $($crate::op::Op::$name($dollar operation) => $dollar body,)*
                }
            };
        }
        #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(unused_imports))]
        pub(crate) use each_op;

        /// Calls a macro with the names of all operations: `for_operations!(table)`.
        #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(unused_macros))]
        macro_rules! for_operations {
            ($dollar callback:ident) => {
                $dollar callback! { $($name)* }
            };
        }
        #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(unused_imports))]
        pub(crate) use for_operations;
    };
}

operations! { $
    Linear Conv2d Attention
    LayerNormModulate LayerNorm RmsNorm QkNormRope
    GeluMul SiluMul Silu Add GroupStatistics GroupNorm
    Embed TimestepEmbed Pack Unpack EulerStep
    CopyRows Cast
    GroupMix ScaledAdd
}

impl Op {
    /// The struct inside.
    pub fn operation(&self) -> &dyn Operation {
        each_op!(self, operation => operation)
    }

    /// The struct inside, to be changed.
    pub fn operation_mut(&mut self) -> &mut dyn Operation {
        each_op!(self, operation => operation)
    }

    /// The operation's name, as kernel variants, benchmarks and listings spell it.
    pub fn name(&self) -> &'static str {
        self.operation().name()
    }

    /// Checks that shapes and types fit together; the error says what does not.
    pub fn check(&self) -> Result<(), String> {
        self.operation().check()
    }

    /// Floating-point operations of the matrix work; see [`Operation::flops`].
    pub fn flops(&self) -> u64 {
        self.operation().flops()
    }
}

/// `name(inputs, weights) -> outputs`
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reads = || self.read_windows().iter().map(ToString::to_string).collect();
        let mut items = self.operation().listing().unwrap_or_else(reads);
        items.extend(self.weights().iter().map(ToString::to_string));
        write!(f, "{}({}) ->", self.name(), items.join(", "))?;
        self.written_windows().iter().try_for_each(|out| write!(f, " {out}"))
    }
}
