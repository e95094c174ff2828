//! The blocks of a ControlNet within the program of a denoising step.

use super::{Control, ControlConfig, InputNames, input_names};
use crate::dtype::DType;
use crate::model::SequenceShape;
use crate::model::flux1::denoise::{Denoiser, Modulation, Shared};
use crate::model::flux1::{DenoiseShape, linear};
use crate::op::{Cast, CopyRows, Epilogue, Recorder};
use crate::tensor::Tensor;

/// What is added to the rows of the image.
#[derive(Debug, Clone, Copy)]
pub struct Residual {
    /// images * image_tokens x hidden
    pub tensor: Tensor,
    /// 1 x hidden: its factor.
    pub strength: Tensor,
    /// The number of the ControlNet, for labels.
    pub net: usize,
}

/// A ControlNet whose blocks are recorded as they are needed.
pub struct Controlled<'a> {
    config: &'a ControlConfig,
    number: usize,
    shape: SequenceShape,
    act: DType,
    scope: String,
    condition: Tensor,
    strength: Tensor,
    mode: Option<Tensor>,
    modulation: Modulation,
    /// The hidden rows of image and text, and the rotations, once the first block was reached.
    double: Option<(Tensor, Tensor, Tensor)>,
    /// Those of both in one tensor, once the first single block was reached.
    joint: Option<Tensor>,
    doubles_done: usize,
    singles_done: usize,
    /// The outputs of double blocks, by number, as far as they are needed again.
    outputs: Vec<Tensor>,
    /// The last output of a single block, with its number.
    single: Option<(usize, Tensor)>,
}

impl<'a> Controlled<'a> {
    /// Records the inputs of number `number`, for images of `image`.
    pub fn record(
        r: &mut Recorder,
        number: usize,
        control: Control<'a>,
        image: &DenoiseShape,
        act: DType,
    ) -> Self {
        let config = control.config;
        let hidden = config.flux.hidden;
        let InputNames { condition, modulation, strength, mode } = input_names(number);
        let rows = image.images * image.image_tokens();
        let condition = r.input(condition, rows, config.condition_cols, DType::F32);
        let tensor = r.input(modulation, 1, config.modulation_cols(), act);
        let strength = r.input(strength, 1, hidden, DType::F32);
        let mode = config.modes.map(|_| r.input(mode, 1, hidden, act));
        let text_tokens = image.text_tokens + usize::from(mode.is_some());
        Controlled {
            config,
            number,
            shape: SequenceShape::from(&DenoiseShape { text_tokens, ..*image }),
            act,
            scope: format!("control{number}_"),
            condition,
            strength,
            mode,
            modulation: Modulation { tensor, hidden, next: 0 },
            double: None,
            joint: None,
            doubles_done: 0,
            singles_done: 0,
            outputs: Vec::new(),
            single: None,
        }
    }

    /// What is added after double block `block` of `blocks`.
    pub fn after_double(
        &mut self,
        r: &mut Recorder,
        block: usize,
        blocks: usize,
        shared: &Shared,
    ) -> Option<Residual> {
        let wanted = self.config.output_for(block, blocks, self.config.flux.depth_double)?;
        while self.outputs.len() <= wanted {
            self.run_double(r, shared);
            let (img, ..) = self.double.expect("a block was run");
            let name = format!("controlnet_blocks.{}", self.outputs.len());
            let output = self.output(r, img, &name);
            self.outputs.push(output);
        }
        Some(self.residual(self.outputs[wanted]))
    }

    /// The same after single block `block` of `blocks`.
    pub fn after_single(
        &mut self,
        r: &mut Recorder,
        block: usize,
        blocks: usize,
        shared: &Shared,
    ) -> Option<Residual> {
        let wanted = self.config.output_for(block, blocks, self.config.flux.depth_single)?;
        if let Some((_, tensor)) = self.single.filter(|(number, _)| *number == wanted) {
            return Some(self.residual(tensor));
        }
        while self.doubles_done < self.config.flux.depth_double {
            self.run_double(r, shared);
        }
        while self.singles_done <= wanted {
            self.run_single(r, shared);
        }
        let output = self.image_output(r, &format!("controlnet_single_blocks.{wanted}"));
        self.single = Some((wanted, output));
        Some(self.residual(output))
    }

    fn residual(&self, tensor: Tensor) -> Residual {
        Residual { tensor, strength: self.strength, net: self.number }
    }

    /// Calls `record` for the weights of this ControlNet.
    fn own<T>(
        &mut self,
        r: &mut Recorder,
        record: impl FnOnce(&mut Self, &mut Recorder) -> T,
    ) -> T {
        r.net(self.number as u32 + 1);
        let out = record(self, r);
        r.net(0);
        out
    }

    /// The next double block, after the embedding of the inputs if it is the first one.
    fn run_double(&mut self, r: &mut Recorder, shared: &Shared) {
        self.own(r, |this, r| {
            let (img, txt, rope) = this.rows(r, shared);
            let (config, shape, act, scope) =
                (this.config, this.shape.clone(), this.act, this.scope.clone());
            let denoiser = Denoiser { c: &config.flux, s: &shape, act, scope: &scope };
            let i = this.doubles_done;
            denoiser.double_block(r, i, (img, txt), rope, &mut this.modulation);
            this.doubles_done += 1;
        });
    }

    /// The next single block, after the join if it is the first one.
    fn run_single(&mut self, r: &mut Recorder, shared: &Shared) {
        self.own(r, |this, r| {
            let (img, txt, rope) = this.rows(r, shared);
            let (config, shape, act, scope) =
                (this.config, this.shape.clone(), this.act, this.scope.clone());
            let denoiser = Denoiser { c: &config.flux, s: &shape, act, scope: &scope };
            let joint = this.joint.unwrap_or_else(|| denoiser.join(r, (img, txt)));
            this.joint = Some(joint);
            denoiser.single_block(r, this.singles_done, joint, rope, &mut this.modulation);
            this.singles_done += 1;
        });
    }

    /// The rows of image and text as they are now, and the rotations.
    fn rows(&mut self, r: &mut Recorder, shared: &Shared) -> (Tensor, Tensor, Tensor) {
        let rows = match self.double {
            Some(rows) => rows,
            None => self.head(r, shared),
        };
        self.double = Some(rows);
        rows
    }

    /// Latents and control image, text and mode as hidden rows, and the rotations: (image, text,
    /// rotations).
    fn head(&mut self, r: &mut Recorder, shared: &Shared) -> (Tensor, Tensor, Tensor) {
        let (hidden, act, images) = (self.config.flux.hidden, self.act, self.shape.image.images);
        let scope = self.scope.clone();
        r.scope(format!("{scope}img_in"));
        let img = r.temp(shared.latents.rows, hidden, act);
        let latents = as_computed(r, "cast", shared.latents, act);
        linear(r, "linear", latents.all(), "img_in", Epilogue::None, img.all());
        let condition = as_computed(r, "cast_condition", self.condition, act);
        let add = Epilogue::Add { residual: img };
        linear(r, "condition", condition.all(), "pos_embed_input", add, img.all());
        r.scope(format!("{scope}txt_in"));
        let tokens = self.shape.image.text_tokens - usize::from(self.mode.is_some());
        let mut text = shared.text;
        if text.rows != images * tokens {
            // Sequences with the prompt come first.
            let prompted = r.temp(images * tokens, text.cols, text.dtype);
            let count = prompted.rows;
            let copy = CopyRows { x: text, out: prompted, batch: 1, from: 0, to: 0, count };
            r.push("prompt", copy);
            text = prompted;
        }
        let txt = r.temp(text.rows, hidden, act);
        linear(r, "linear", text.all(), "txt_in", Epilogue::None, txt.all());
        let rope = self.rope(r, shared);
        let Some(mode) = self.mode else { return (img, txt, rope) };
        let with_mode = r.temp(images * (tokens + 1), hidden, act);
        for i in 0..images {
            let to = i * (tokens + 1);
            let copy = CopyRows { x: mode, out: with_mode, batch: 1, from: 0, to, count: 1 };
            r.push(&format!("mode.{i}"), copy);
        }
        let copy =
            CopyRows { x: txt, out: with_mode, batch: images, from: 0, to: 1, count: tokens };
        r.push("text", copy);
        (img, with_mode, rope)
    }

    /// The rotations of text and image; the mode has the place of a text token. The large
    /// transformer may have those of reference images behind them.
    fn rope(&self, r: &mut Recorder, shared: &Shared) -> Tensor {
        let (all, modes) = (shared.rope, usize::from(self.mode.is_some()));
        let rows = self.shape.tokens();
        if rows == all.rows {
            return all;
        }
        let rope = r.temp(rows, all.cols, all.dtype);
        for (label, to, count) in [("rope.mode", 0, modes), ("rope", modes, rows - modes)] {
            if count > 0 {
                r.push(label, CopyRows { x: all, out: rope, batch: 1, from: 0, to, count });
            }
        }
        rope
    }

    /// `x`, the rows of the image after a double block, through the layer `name`.
    fn output(&mut self, r: &mut Recorder, x: Tensor, name: &str) -> Tensor {
        self.own(r, |this, r| {
            r.scope(format!("{}out", this.scope));
            let out = r.temp(x.rows, this.config.flux.hidden, this.act);
            linear(r, name, x.all(), name, Epilogue::None, out.all());
            out
        })
    }

    /// The rows of the image after a single block through the layer `name`.
    fn image_output(&mut self, r: &mut Recorder, name: &str) -> Tensor {
        let (images, from, count) =
            (self.shape.image.images, self.shape.image.text_tokens, self.shape.pixels());
        let joint = self.joint.expect("a block was run");
        let img = self.own(r, |this, r| {
            r.scope(format!("{}out", this.scope));
            let img = r.temp(images * count, this.config.flux.hidden, this.act);
            let copy = CopyRows { x: joint, out: img, batch: images, from, to: 0, count };
            r.push(&format!("{name}.img"), copy);
            img
        });
        self.output(r, img, name)
    }
}

/// `x` as the device computes.
fn as_computed(r: &mut Recorder, label: &str, x: Tensor, act: DType) -> Tensor {
    if act == DType::F32 {
        return x;
    }
    let out = r.temp(x.rows, x.cols, act);
    r.push(label, Cast { x: x.all(), out: out.all() });
    out
}
