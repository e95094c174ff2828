//! Adds the changes of adapters to a recorded program. Models are recorded without them.

use super::{
    Epilogue, GroupMix, Linear, Op, Program, ScaledAdd, Side, SideFactor, Step, TermFactor, Use,
    WeightSpec,
};
use crate::tensor::{Slot, Tensor, View, Weight};

/// The changes by adapters of some rows of the weight of a [`Linear`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinearChange {
    /// The first row, counted from the first row of the [`Linear`]'s weight.
    pub first: usize,
    /// The number of rows.
    pub rows: usize,
    /// The rank of the side matrix, if there is one.
    pub rank: Option<usize>,
    /// Whether the rows of the base weight are multiplied with factors.
    pub row_factors: bool,
    /// Whether the columns of the base weight are multiplied with factors.
    pub column_factors: bool,
    /// Additions that have no low rank.
    pub terms: Vec<LinearTerm>,
}

/// An addition to some rows of a weight that has no low rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearTerm {
    /// The first row, counted from the first row of the [`LinearChange`].
    pub first: usize,
    /// The number of rows.
    pub rows: usize,
    /// How it is computed.
    pub kind: TermKind,
    /// Whether its rows are multiplied with factors.
    pub row_factors: bool,
    /// Whether its columns are multiplied with factors.
    pub column_factors: bool,
}

/// How a [`LinearTerm`] is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TermKind {
    /// As a matrix product.
    Whole,
    /// As the product with a Kronecker product.
    Kronecker {
        /// Rows and columns of the outer factor.
        outer: (usize, usize),
        /// Rows and columns of the inner factor.
        inner: (usize, usize),
        /// Rows of the product in front of the first row that is added.
        skip: usize,
    },
}

impl Program {
    /// The program with a side matrix at every [`Linear`] for whose weight `rank` returns a rank.
    ///
    /// # Panics
    /// As [`with_changes`](Self::with_changes).
    pub fn with_sides(self, rank: &dyn Fn(&WeightSpec) -> Option<usize>) -> Program {
        let change = |w: &WeightSpec| {
            let rank = rank(w)?;
            Some(LinearChange { rows: w.rows, rank: Some(rank), ..LinearChange::default() })
        };
        self.with_changes(&|w| change(w).into_iter().collect(), &|_| false)
    }

    /// The program with the changes of adapters. `changes` returns those of the weight of a
    /// [`Linear`]: none, or runs of rows in their order that cover all its rows. `vector` says
    /// which vectors are replaced by changed ones.
    ///
    /// Existing steps stay in their order, and existing weights keep their ids: the weights of
    /// adapters come after them. Only where there are several runs of rows, the weight is divided.
    ///
    /// # Panics
    /// If a changed step does not pass [`Op::check`].
    pub fn with_changes(
        mut self,
        changes: &dyn Fn(&WeightSpec) -> Vec<LinearChange>,
        vector: &dyn Fn(&WeightSpec) -> bool,
    ) -> Program {
        let hows = self.uses();
        for (weight, how) in self.weights.iter_mut().zip(hows) {
            if how == Use::Vector && weight.side.is_none() && vector(weight) {
                weight.side = Some(SideFactor::Changed);
            }
        }
        let mut uses = vec![0; self.weights.len()];
        for weight in self.steps.iter().flat_map(|step| step.op.weights()) {
            uses[weight.id as usize] += 1;
        }
        let mut steps = Vec::with_capacity(self.steps.len());
        // The new index of each existing step.
        let mut moved = Vec::with_capacity(self.steps.len() + 1);
        for step in std::mem::take(&mut self.steps) {
            moved.push(steps.len());
            let Op::Linear(linear) = step.op else {
                steps.push(step);
                continue;
            };
            let parts = changes(&self.weights[linear.w.id as usize]);
            if parts.is_empty() {
                steps.push(step);
                continue;
            }
            let (program, steps, label) = (&mut self, &mut steps, step.label.as_str());
            Changing { program, steps, label, uses: &uses }.linear(linear, &parts);
        }
        moved.push(steps.len());
        for segment in &mut self.segments {
            segment.steps = moved[segment.steps.start]..moved[segment.steps.end];
        }
        self.steps = steps;
        self
    }
}

/// The steps that one [`Linear`] becomes.
struct Changing<'a> {
    program: &'a mut Program,
    steps: &'a mut Vec<Step>,
    label: &'a str,
    /// By weight id: how many times the steps of the model use it.
    uses: &'a [usize],
}

impl Changing<'_> {
    fn push(&mut self, suffix: &str, op: impl Into<Op>) {
        let op = op.into();
        let label = format!("{}{suffix}", self.label);
        if let Err(why) = op.check() {
            panic!("{}: {label}: {why}: {op}", self.program.name);
        }
        // No adapter changes further networks.
        self.steps.push(Step { op, label, net: 0 });
    }

    /// A weight of adapters for the rows of `base`.
    fn weight(&mut self, base: &WeightSpec, side: SideFactor, rows: usize, cols: usize) -> Weight {
        let id = self.program.weights.len() as u32;
        self.program.weights.push(WeightSpec { rows, cols, side: Some(side), ..base.clone() });
        Weight { id, rows, cols }
    }

    fn temp(&mut self, rows: usize, cols: usize, like: View) -> Tensor {
        self.program.temps += 1;
        let slot = Slot::Temp(self.program.temps - 1);
        Tensor { slot, rows, cols, dtype: like.tensor.dtype }
    }

    /// `linear` with the changes `parts`.
    fn linear(&mut self, linear: Linear, parts: &[LinearChange]) {
        let base = self.program.weights[linear.w.id as usize].clone();
        if let [part] = parts
            && part.terms.is_empty()
        {
            let changed = self.product(linear, &base, part);
            return self.push("", changed);
        }
        // Products and additions one after another need the sum in memory, before the epilogue.
        let Linear { x, epilogue, out, .. } = linear;
        let at_once = epilogue == Epilogue::None;
        let sum = if at_once { out } else { self.temp(out.rows(), out.cols, x).all() };
        let window = |first: usize, cols: usize| View { col: sum.col + first, cols, ..sum };
        let whole = Linear { epilogue: Epilogue::None, ..linear };
        let bias = linear.bias.map(|bias| self.program.weights[bias.id as usize].clone());
        let mut finished = at_once;
        for (i, part) in parts.iter().enumerate() {
            let spec =
                WeightSpec { first: base.first + part.first, rows: part.rows, ..base.clone() };
            let own = Linear { out: window(part.first, part.rows), ..whole };
            let own = match parts.len() {
                1 => own,
                _ => self.rows_of(own, &spec, bias.as_ref(), part, i == 0),
            };
            let changed = self.product(own, &spec, part);
            self.push(if i == 0 { "" } else { ".rows" }, changed);
            for (number, term) in part.terms.iter().enumerate() {
                let (add, scale) = self.term(x, &spec, number as u32, term);
                let to = window(part.first + term.first, term.rows);
                let epilogue_here = Epilogue::None;
                let mut op =
                    ScaledAdd { x: to, add: Some(add), scale, epilogue: epilogue_here, out: to };
                // The only addition can do the rest at the same time.
                if !at_once && parts.len() == 1 && part.terms.len() == 1 && to.cols == out.cols {
                    op = ScaledAdd { epilogue, out, ..op };
                    finished = true;
                }
                self.push(".lora.add", op);
            }
        }
        if !finished {
            self.push(".finish", ScaledAdd { x: sum, add: None, scale: None, epilogue, out });
        }
    }

    /// `linear` with the rows `spec` of its weight, and those of its bias. The first of several
    /// takes the place of the whole weight, unless another step uses that, too.
    fn rows_of(
        &mut self,
        linear: Linear,
        spec: &WeightSpec,
        bias: Option<&WeightSpec>,
        part: &LinearChange,
        first: bool,
    ) -> Linear {
        let mut slice = |whole: Weight, spec: WeightSpec| {
            let (rows, cols) = (spec.rows, spec.cols);
            let weights = &mut self.program.weights;
            if first && self.uses[whole.id as usize] == 1 {
                weights[whole.id as usize] = spec;
                return Weight { rows, cols, ..whole };
            }
            weights.push(spec);
            Weight { id: weights.len() as u32 - 1, rows, cols }
        };
        let w = slice(linear.w, spec.clone());
        let bias = linear.bias.zip(bias).map(|(weight, whole)| {
            let (first, cols) = (whole.first + part.first, part.rows);
            slice(weight, WeightSpec { first, cols, ..whole.clone() })
        });
        Linear { w, bias, ..linear }
    }

    /// `linear` with everything of `part` that is a part of its product.
    fn product(&mut self, linear: Linear, spec: &WeightSpec, part: &LinearChange) -> Linear {
        let mut changed = linear;
        if let Some(rank) = part.rank {
            let w = self.weight(spec, SideFactor::Down, rank, linear.w.cols);
            let b = self.weight(spec, SideFactor::Up, linear.w.rows, rank);
            let t = self.temp(linear.x.rows(), rank, linear.x);
            self.push(".lora", Linear::plain(linear.x, w, t.all()));
            changed.side = Some(Side { t, b });
        }
        if part.row_factors {
            changed.factors = Some(self.weight(spec, SideFactor::Rows, 1, linear.w.rows));
        }
        if part.column_factors {
            changed.x = self.columns(linear.x, spec, SideFactor::Columns);
        }
        changed
    }

    /// `x` with its columns multiplied with 1 and the weight `side`.
    fn columns(&mut self, x: View, spec: &WeightSpec, side: SideFactor) -> View {
        let scale = Some(self.weight(spec, side, 1, x.cols));
        let out = self.temp(x.rows(), x.cols, x).all();
        let op = ScaledAdd { x, add: Some(x), scale, epilogue: Epilogue::None, out };
        self.push(".lora.scale", op);
        out
    }

    /// The product with a term, and what its columns are to be multiplied with.
    fn term(
        &mut self,
        x: View,
        spec: &WeightSpec,
        number: u32,
        term: &LinearTerm,
    ) -> (View, Option<Weight>) {
        let of = |factor| SideFactor::Term(number, factor);
        let x = match term.column_factors {
            true => self.columns(x, spec, of(TermFactor::Columns)),
            false => x,
        };
        let add = match term.kind {
            TermKind::Whole => {
                let w = self.weight(spec, of(TermFactor::Whole), term.rows, x.cols);
                let out = self.temp(x.rows(), term.rows, x);
                self.push(".lora", Linear::plain(x, w, out.all()));
                out.all()
            }
            TermKind::Kronecker { outer: (outputs, inputs), inner: (rows, cols), skip } => {
                let w = self.weight(spec, of(TermFactor::Outer), 1, outputs * inputs);
                let mixed = self.temp(x.rows(), outputs * cols, x);
                self.push(".lora.mix", GroupMix { x, w, inputs, out: mixed });
                let w = self.weight(spec, of(TermFactor::Inner), rows, cols);
                let out = self.temp(x.rows(), outputs * rows, x);
                // Each group of columns is a row of its own.
                let split = |t: Tensor, cols| Tensor { rows: t.rows * outputs, cols, ..t };
                self.push(
                    ".lora",
                    Linear::plain(split(mixed, cols).all(), w, split(out, rows).all()),
                );
                out.columns(skip, term.rows)
            }
        };
        let rows = TermFactor::Rows;
        let scale = term.row_factors.then(|| self.weight(spec, of(rows), 1, term.rows));
        (add, scale)
    }
}
