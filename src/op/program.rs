//! A straight-line list of operations, recorded once and run many times.

use std::collections::HashMap;
use std::fmt;

use super::{Epilogue, Op, Side};
use crate::dtype::DType;
use crate::tensor::{Slot, Tensor, Weight};

/// One operation and where it stands in the model, such as `double.7.img.qkv`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub op: Op,
    pub label: String,
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

/// A matrix of a LoRA beside a weight: its change of the weight is `up . down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lora {
    /// `rank x K`
    Down,
    /// `N x rank`
    Up,
}

/// Which rows of which canonically named tensor a `Weight` handle stands for, or which matrix beside them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightSpec {
    /// Canonical name within the component, e.g. `double_blocks.0.img_attn.qkv.weight`.
    pub name: String,
    /// First row (0 unless only part of a fused tensor is meant; vectors are sliced by element).
    pub first: usize,
    pub rows: usize,
    pub cols: usize,
    /// Not those rows themselves but a matrix of the LoRA beside them; `rows` and `cols` are its own then.
    pub lora: Option<Lora>,
}

/// How the operations of a program use a weight: a device may hold each kind in a form of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Bias, gain, norm weight: `1 x n`, read element by element.
    Vector,
    /// `N x K` of a `Linear`.
    Matrix,
    /// Rows that `Embed` picks.
    Table,
    /// `out_channels x (in_channels * taps)` of a `Conv2d`.
    Kernel { taps: usize },
}

/// A tensor the host writes or reads, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Io {
    pub name: &'static str,
    pub tensor: Tensor,
}

/// A recorded model: steps in order, the weights they name, and what goes in and out.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub name: String,
    pub steps: Vec<Step>,
    pub weights: Vec<WeightSpec>,
    pub inputs: Vec<Io>,
    pub outputs: Vec<Io>,
    /// How many `Slot::Temp` ids are in use.
    pub temps: u32,
}

impl Program {
    /// The input called `name`; the names are fixed by the model's recording function, so a wrong one is a bug.
    pub fn input(&self, name: &str) -> Tensor {
        self.inputs
            .iter()
            .find(|io| io.name == name)
            .unwrap_or_else(|| panic!("{} has no input {name}", self.name))
            .tensor
    }

    /// The output called `name`.
    pub fn output(&self, name: &str) -> Tensor {
        self.outputs
            .iter()
            .find(|io| io.name == name)
            .unwrap_or_else(|| panic!("{} has no output {name}", self.name))
            .tensor
    }

    /// How each weight is used, by id.
    pub fn uses(&self) -> Vec<Use> {
        let mut uses = vec![Use::Vector; self.weights.len()];
        for step in &self.steps {
            match step.op {
                Op::Linear { w, side, .. } => {
                    [Some(w), side.map(|s| s.b)]
                        .into_iter()
                        .flatten()
                        .for_each(|w| uses[w.id as usize] = Use::Matrix);
                }
                Op::Conv2d { w, shape, .. } => {
                    uses[w.id as usize] = Use::Kernel { taps: shape.kernel * shape.kernel };
                }
                Op::Embed { table, positions, .. } => {
                    [Some(table), positions]
                        .into_iter()
                        .flatten()
                        .for_each(|w| uses[w.id as usize] = Use::Table);
                }
                _ => {}
            }
        }
        uses
    }

    /// The program with a side at every `Linear` for whose weight `rank` gives one (the rows of the weight are the second argument); models know nothing of LoRAs. Steps and
    /// weights that were there stay in their order, and the weights keep their ids: the matrices of the sides come after them.
    pub fn with_sides(mut self, rank: &dyn Fn(&WeightSpec) -> Option<usize>) -> Program {
        let mut steps = Vec::with_capacity(self.steps.len());
        for mut step in std::mem::take(&mut self.steps) {
            if let Op::Linear { x, w, side, .. } = &mut step.op
                && let Some(rank) = rank(&self.weights[w.id as usize])
            {
                let base = self.weights[w.id as usize].clone();
                let mut beside = |lora, rows, cols| {
                    self.weights.push(WeightSpec { rows, cols, lora: Some(lora), ..base.clone() });
                    Weight { id: self.weights.len() as u32 - 1, rows, cols }
                };
                let (down, b) = (beside(Lora::Down, rank, w.cols), beside(Lora::Up, w.rows, rank));
                self.temps += 1;
                let slot = Slot::Temp(self.temps - 1);
                let t = Tensor { slot, rows: x.rows(), cols: rank, dtype: x.tensor.dtype };
                let op = Op::Linear {
                    x: *x,
                    w: down,
                    bias: None,
                    side: None,
                    epilogue: Epilogue::None,
                    out: t.all(),
                };
                steps.push(Step { op, label: format!("{}.lora", step.label) });
                *side = Some(Side { t, b });
            }
            if let Err(why) = step.op.check() {
                panic!("{}: {}: {why}: {}", self.name, step.label, step.op);
            }
            steps.push(step);
        }
        self.steps = steps;
        self
    }

    /// Matrix work of one run.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|s| s.op.flops()).sum()
    }
}

/// The listing that tests compare and people read.
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
        for step in &self.steps {
            writeln!(f, "  {:<28} {}", step.label, step.op)?;
        }
        for io in &self.outputs {
            writeln!(f, "  output {} = {}", io.name, io.tensor)?;
        }
        Ok(())
    }
}

/// Records a `Program`: hands out tensor and weight handles and checks every operation's shapes as it is added.
pub struct Recorder {
    program: Program,
    seen: HashMap<WeightSpec, u32>,
    scope: String,
}

impl Recorder {
    /// An empty program called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Recorder {
            program: Program { name: name.into(), ..Program::default() },
            seen: HashMap::new(),
            scope: String::new(),
        }
    }

    /// The labels of the following steps begin with `scope` and a dot.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// A tensor the host writes before a run.
    pub fn input(&mut self, name: &'static str, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor =
            Tensor { slot: Slot::Input(self.program.inputs.len() as u32), rows, cols, dtype };
        self.program.inputs.push(Io { name, tensor });
        tensor
    }

    /// A tensor the host reads after a run.
    pub fn output(&mut self, name: &'static str, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let tensor =
            Tensor { slot: Slot::Output(self.program.outputs.len() as u32), rows, cols, dtype };
        self.program.outputs.push(Io { name, tensor });
        tensor
    }

    /// A tensor that lives from its first write to its last read within a run.
    pub fn temp(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        self.program.temps += 1;
        Tensor { slot: Slot::Temp(self.program.temps - 1), rows, cols, dtype }
    }

    /// The whole weight `name`, `rows x cols` (vectors: 1 x n).
    pub fn weight(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> Weight {
        self.weight_rows(name, 0, rows, cols)
    }

    /// Rows `first .. first + rows` of the weight `name`. For vectors (1 x n) `first` counts elements.
    pub fn weight_rows(
        &mut self,
        name: impl Into<String>,
        first: usize,
        rows: usize,
        cols: usize,
    ) -> Weight {
        let spec = WeightSpec { name: name.into(), first, rows, cols, lora: None };
        let weights = &mut self.program.weights;
        let id = *self.seen.entry(spec.clone()).or_insert_with(|| {
            weights.push(spec);
            weights.len() as u32 - 1
        });
        Weight { id, rows, cols }
    }

    /// Adds a step. A shape that does not fit is a bug in the model's code and panics with the label.
    pub fn push(&mut self, label: &str, op: Op) {
        let label = if self.scope.is_empty() {
            label.to_string()
        } else {
            format!("{}.{label}", self.scope)
        };
        if let Err(why) = op.check() {
            panic!("{}: {label}: {why}: {op}", self.program.name);
        }
        self.program.steps.push(Step { op, label });
    }

    /// The finished program.
    pub fn finish(self) -> Program {
        self.program
    }
}
