//! A straight-line list of operations, recorded once and run many times.

use std::fmt;
use std::ops::Range;

use super::{Op, Use};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// One operation of a program, with a label.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The operation.
    pub op: Op,
    /// Its place in the model, such as `double.7.img.qkv`.
    pub label: String,
    /// The network that it is a part of: 0, or one of those that runs leave out when they do not
    /// act (see [`WeightSpec::net`]).
    pub net: u32,
}

impl Step {
    /// The part of the label that names the block: `double.7` of `double.7.img.qkv`.
    pub fn block(&self) -> &str {
        let mut dots = self.label.match_indices('.').map(|(i, _)| i);
        let first = dots.next();
        let second = dots.next();
        &self.label[..second.or(first).unwrap_or(self.label.len())]
    }
}

/// What a weight that belongs to adapters is. A LoRA is a side matrix: a low-rank change of a
/// weight, `up . down`. [`Program::with_changes`] says where each of them is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SideFactor {
    /// `rank x K`
    Down,
    /// `N x rank`
    Up,
    /// `1 x N`: what the rows of the base weight are multiplied with, instead of the factors that
    /// are stored with it.
    Rows,
    /// `1 x K`: what the columns of the base weight are multiplied with, minus 1.
    Columns,
    /// A vector of the model with the changes of adapters.
    Changed,
    /// `N x K`: columns that adapters add to a weight of the model. The model records it itself.
    Added,
    /// A part of the addition of this number, which has no low rank.
    Term(u32, TermFactor),
}

/// A part of an addition that has no low rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TermFactor {
    /// `n x K`: the matrix itself.
    Whole,
    /// `1 x (outputs * inputs)`: the outer factor of a Kronecker product.
    Outer,
    /// The inner factor of a Kronecker product.
    Inner,
    /// `1 x n`: the factor of each row of the weight.
    Rows,
    /// `1 x K`: what its columns are multiplied with, minus 1.
    Columns,
}

/// What a [`Weight`](crate::tensor::Weight) handle stands for: some rows of a tensor of the model,
/// or a matrix or vector of adapters for these rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// The network that has the weight: 0 for the one that the program runs, and the numbers from 1
    /// on for further ones that run within it (ControlNets).
    pub net: u32,
    /// Canonical name within the component, e.g. `double_blocks.0.img_attn.qkv.weight`.
    pub name: String,
    /// First row; 0 unless only a part of a fused tensor is meant. Vectors are sliced by element.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// `None` for the rows themselves. For a matrix or vector of adapters, `rows` and `cols` are
    /// its own.
    pub side: Option<SideFactor>,
}

/// A tensor that the host writes or reads, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Io {
    /// Unique within the program.
    pub name: &'static str,
    /// The tensor.
    pub tensor: Tensor,
}

/// A part of a program that can be run by itself, after the part before it, such as the `head`, the
/// `blocks` and the `tail` of a denoiser.
///
/// All segments of a program are planned together: a tensor that one of them writes and a later one
/// reads stays where it is in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Unique within the program.
    pub name: &'static str,
    /// The steps of the segment. The segments of a program cover all its steps, in order.
    pub steps: Range<usize>,
    /// Tensors that later segments read and that a caller may read or change when the segment has
    /// run.
    pub passed_on: Vec<Io>,
}

impl Segment {
    /// The tensor `name` that the segment passes on.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn passed_on(&self, name: &str) -> Tensor {
        let found = self.passed_on.iter().find(|io| io.name == name);
        found.unwrap_or_else(|| panic!("{} passes no {name} on", self.name)).tensor
    }
}

/// A recorded model: its operations in order, with weights, inputs and outputs. A
/// [`Recorder`](super::Recorder) makes it.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// The name in listings and errors, such as `denoise`.
    pub name: String,
    /// All steps, in the order in which they run.
    pub steps: Vec<Step>,
    /// The weights, by [`Weight::id`](crate::tensor::Weight::id).
    pub weights: Vec<WeightSpec>,
    /// Tensors that the host writes before a run.
    pub inputs: Vec<Io>,
    /// Tensors that the host reads after a run.
    pub outputs: Vec<Io>,
    /// The parts that can be run one by one; empty if the program only runs as a whole.
    pub segments: Vec<Segment>,
    /// Number of temporary tensors ([`Slot::Temp`](crate::tensor::Slot::Temp)).
    pub temps: u32,
}

impl Program {
    /// The input `name`.
    ///
    /// # Panics
    /// If there is no such input: the function that records the model fixes the names.
    pub fn input(&self, name: &str) -> Tensor {
        self.inputs
            .iter()
            .find(|io| io.name == name)
            .unwrap_or_else(|| panic!("{} has no input {name}", self.name))
            .tensor
    }

    /// The output `name`.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn output(&self, name: &str) -> Tensor {
        self.outputs
            .iter()
            .find(|io| io.name == name)
            .unwrap_or_else(|| panic!("{} has no output {name}", self.name))
            .tensor
    }

    /// The segment `name`.
    ///
    /// # Panics
    /// If there is no such segment.
    pub fn segment(&self, name: &str) -> &Segment {
        let found = self.segments.iter().find(|s| s.name == name);
        found.unwrap_or_else(|| panic!("{} has no segment {name}", self.name))
    }

    /// How each weight is used, by id.
    pub fn uses(&self) -> Vec<Use> {
        let mut uses = vec![Use::Vector; self.weights.len()];
        for (weight, how) in self.steps.iter().flat_map(|step| step.op.weight_uses()) {
            // A weight that any step uses as a whole is not a vector.
            if how != Use::Vector {
                uses[weight.id as usize] = how;
            }
        }
        uses
    }

    /// The inputs that hold token ids or other indices, each with the number of rows of the
    /// smallest table in which [`Embed`](super::Embed) looks them up.
    pub fn token_ids(&self) -> impl Iterator<Item = (Tensor, usize)> {
        self.inputs.iter().filter_map(|io| Some((io.tensor, self.table_rows(io.tensor)?)))
    }

    fn table_rows(&self, ids: Tensor) -> Option<usize> {
        let rows = self.steps.iter().filter_map(|step| match step.op {
            Op::Embed(embed) if embed.ids.slot == ids.slot => Some(embed.table.rows),
            _ => None,
        });
        rows.min()
    }

    /// Checks that every one of `values`, which are to be written to the input `tensor`, is a row
    /// of the tables in which [`Embed`](super::Embed) looks it up.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument), with the name of the input and the
    /// position of the first wrong value.
    pub fn check_ids(&self, tensor: Tensor, values: &[i32]) -> Result<()> {
        let Some(rows) = self.table_rows(tensor) else { return Ok(()) };
        let inside = |id: i32| usize::try_from(id).is_ok_and(|id| id < rows);
        let Some(position) = values.iter().position(|&id| !inside(id)) else { return Ok(()) };
        let name = self.inputs.iter().find(|io| io.tensor.slot == tensor.slot).map(|io| io.name);
        Err(Error::argument("a token id is not in the table")
            .at(format!("{}, input {}, position {position}", self.name, name.unwrap_or("?")))
            .found(values[position])
            .expected(format!("0 to {}", rows - 1))
            .try_("use the tokenizer that belongs to the text encoder"))
    }

    /// Matrix work of one run.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|s| s.op.flops()).sum()
    }
}

/// A listing of the whole program.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "program {}: {} steps, {} weights",
            self.name,
            self.steps.len(),
            self.weights.len()
        )?;
        for io in &self.inputs {
            writeln!(f, "  input {} = {}", io.name, io.tensor)?;
        }
        for (i, step) in self.steps.iter().enumerate() {
            if let Some(s) = self.segments.iter().find(|s| s.steps.start == i) {
                writeln!(f, "  segment {}: {} steps", s.name, s.steps.len())?;
            }
            writeln!(f, "  {:<28} {}", step.label, step.op)?;
            for s in self.segments.iter().filter(|s| s.steps.end == i + 1) {
                for io in &s.passed_on {
                    writeln!(f, "  passes {} on = {}", io.name, io.tensor)?;
                }
            }
        }
        for io in &self.outputs {
            writeln!(f, "  output {} = {}", io.name, io.tensor)?;
        }
        Ok(())
    }
}
