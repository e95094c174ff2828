//! Records a [`Program`], operation by operation.

use std::collections::HashMap;

use super::{Io, Op, Program, Segment, SideFactor, Step, WeightSpec};
use crate::dtype::DType;
use crate::tensor::{Slot, Tensor, Weight};

/// Records a [`Program`]: makes handles of tensors and weights, and checks the shapes of every
/// operation that is added.
pub struct Recorder {
    program: Program,
    /// The ids of the weights so far.
    seen: HashMap<WeightSpec, u32>,
    /// The first part of the labels of the next steps.
    scope: String,
    /// The network that has the next weights and steps.
    net: u32,
}

impl Recorder {
    /// An empty program called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Recorder {
            program: Program { name: name.into(), ..Program::default() },
            seen: HashMap::new(),
            scope: String::new(),
            net: 0,
        }
    }

    /// Sets the scope: the labels of the next steps begin with `scope` and a dot.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Sets the network that has the next weights and steps ([`WeightSpec::net`]).
    pub fn net(&mut self, net: u32) {
        self.net = net;
    }

    /// Begins the segment `name`, which ends where the next one begins.
    ///
    /// # Panics
    /// If the first segment does not begin before the first step.
    pub fn segment(&mut self, name: &'static str) {
        let start = self.program.steps.len();
        assert!(!self.program.segments.is_empty() || start == 0, "{name} begins too late");
        if let Some(last) = self.program.segments.last_mut() {
            last.steps.end = start;
        }
        self.program.segments.push(Segment { name, steps: start..start, passed_on: Vec::new() });
    }

    /// Names `tensor` for callers that run the segments one by one: the current segment passes it
    /// on to the next ones.
    pub fn pass_on(&mut self, name: &'static str, tensor: Tensor) {
        let segment = self.program.segments.last_mut().expect("a segment was begun");
        segment.passed_on.push(Io { name, tensor });
    }

    /// A new tensor that the host writes before a run.
    pub fn input(&mut self, name: &'static str, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor =
            Tensor { slot: Slot::Input(self.program.inputs.len() as u32), rows, cols, dtype };
        self.program.inputs.push(Io { name, tensor });
        tensor
    }

    /// A new tensor that the host reads after a run.
    pub fn output(&mut self, name: &'static str, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor =
            Tensor { slot: Slot::Output(self.program.outputs.len() as u32), rows, cols, dtype };
        self.program.outputs.push(Io { name, tensor });
        tensor
    }

    /// A new tensor that exists from its first write to its last read within a run.
    pub fn temp(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        self.program.temps += 1;
        Tensor { slot: Slot::Temp(self.program.temps - 1), rows, cols, dtype }
    }

    /// The whole weight `name`, `rows x cols`; vectors are `1 x n`.
    pub fn weight(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> Weight {
        self.weight_rows(name, 0, rows, cols)
    }

    /// The columns called `name` that adapters add to a weight.
    pub fn added_weight(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> Weight {
        let side = Some(SideFactor::Added);
        let (net, first) = (self.net, 0);
        self.weight_of(WeightSpec { net, name: name.into(), first, rows, cols, side })
    }

    /// Rows `first .. first + rows` of the weight `name`. For vectors (1 x n) `first` counts
    /// elements.
    pub fn weight_rows(
        &mut self,
        name: impl Into<String>,
        first: usize,
        rows: usize,
        cols: usize,
    ) -> Weight {
        let (net, side) = (self.net, None);
        self.weight_of(WeightSpec { net, name: name.into(), first, rows, cols, side })
    }

    fn weight_of(&mut self, spec: WeightSpec) -> Weight {
        let (rows, cols) = (spec.rows, spec.cols);
        let weights = &mut self.program.weights;
        let id = *self.seen.entry(spec.clone()).or_insert_with(|| {
            weights.push(spec);
            weights.len() as u32 - 1
        });
        Weight { id, rows, cols }
    }

    /// Adds a step.
    ///
    /// # Panics
    /// If [`Op::check`] fails: that is a bug in the code of the model.
    pub fn push(&mut self, label: &str, op: impl Into<Op>) {
        let op = op.into();
        let label = if self.scope.is_empty() {
            label.to_string()
        } else {
            format!("{}.{label}", self.scope)
        };
        if let Err(why) = op.check() {
            panic!("{}: {label}: {why}: {op}", self.program.name);
        }
        self.program.steps.push(Step { op, label, net: self.net });
    }

    /// The finished program.
    ///
    /// # Panics
    /// If a segment passes a tensor on that was not written before, or that no later step reads.
    pub fn finish(mut self) -> Program {
        let program = &mut self.program;
        if let Some(last) = program.segments.last_mut() {
            last.steps.end = program.steps.len();
        }
        for segment in &program.segments {
            let (before, after) = program.steps.split_at(segment.steps.end);
            for io in &segment.passed_on {
                let written = before.iter().any(|s| s.op.writes().contains(&io.tensor));
                let read = after.iter().any(|s| s.op.reads().contains(&io.tensor));
                assert!(written && read, "{}: {} passes nothing on", program.name, io.name);
            }
        }
        self.program
    }
}
