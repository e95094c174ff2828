//! Small programs of each family with their weights and inputs, for the tests of budgets and of
//! backends with their own memory.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::{Input, least_bytes, resolve, run_by, temp_dir};
use flux_fast::backend::Backend;
use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::error::Result;
use flux_fast::library::{open_component, open_only};
use flux_fast::model::SequenceShape;
use flux_fast::model::flux1::DenoiseShape;
use flux_fast::model::flux1::control::{Condition, Control, ControlConfig, control_tensors};
use flux_fast::model::{Flux2Config, FluxConfig, Qwen3Config, SiglipConfig};
use flux_fast::model::{flux1, flux2, qwen3, siglip};
use flux_fast::op::{Program, Segment, Step, WeightSpec};
use flux_fast::plan;
use flux_fast::spec::flux1::{CONTROLNET, SIGLIP, TRANSFORMER};
use flux_fast::spec::{Component, FAMILIES, flux2 as flux2_spec};
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::{HostWeight, Weight};
use flux_fast::weights::synth::{self, Dialect, Grid, Storage, SynthSpec};
use serde_json::json;

fn config(depth_single: usize) -> FluxConfig {
    FluxConfig {
        hidden: 256,
        heads: 2,
        mlp_hidden: 1024,
        depth_double: 2,
        depth_single,
        context: 64,
        pooled: 32,
        ..FluxConfig::dev()
    }
}

/// A file with FP8 weights of `component` in `folder`.
fn write(
    folder: &tempfile::TempDir,
    component: Component,
    tensors: Vec<(String, Vec<usize>)>,
    configs: serde_json::Value,
) -> std::path::PathBuf {
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    let spec = SynthSpec {
        seed: 3 + files as u64,
        tensors: tensors.into_iter().map(|(n, s)| (component, n, s)).collect(),
        grid: Grid::F32,
        storage: Storage::F8ScaledNew,
        dialect: Dialect::Bfl,
        configs,
    };
    let path = folder.path().join(format!("{files}.safetensors"));
    synth::write(&spec, &path).unwrap();
    path
}

/// A program, usually a step of a denoiser, with its weights and inputs.
pub struct Denoiser {
    pub program: Program,
    pub weights: Vec<HostWeight>,
    inputs: Vec<(&'static str, Vec<f32>)>,
    _folder: tempfile::TempDir,
}

impl Denoiser {
    pub fn new() -> Self {
        Self::deep(3)
    }

    /// A denoiser with `depth_single` single blocks.
    pub fn deep(depth_single: usize) -> Self {
        Self::computing_in(DType::BF16, depth_single)
    }

    /// A denoiser with activations of type `act` and `depth_single` single blocks.
    pub fn computing_in(act: DType, depth_single: usize) -> Self {
        let c = config(depth_single);
        let shape = DenoiseShape { images: 1, cfg: true, text_tokens: 5, height: 2, width: 3 };
        let fixed = vec![("rope", flux1::rope(&c, &shape)), ("step", vec![-0.1, 2.0])];
        let configs = json!({ "transformer": c.to_json() });
        let program = flux1::denoise(&c, &shape, act);
        Self::of(program, TRANSFORMER, flux1::tensors(&c), configs, fixed)
    }

    /// A denoiser with heads of 128 columns and 521 tokens: with more than 512, `--compute int8`
    /// computes attention in integers on CUDA.
    pub fn long() -> Self {
        let c = config(2);
        let shape = DenoiseShape { images: 1, cfg: false, text_tokens: 41, height: 16, width: 30 };
        let fixed = vec![("rope", flux1::rope(&c, &shape)), ("step", vec![-0.1, 2.0])];
        let configs = json!({ "transformer": c.to_json() });
        let program = flux1::denoise(&c, &shape, DType::BF16);
        Self::of(program, TRANSFORMER, flux1::tensors(&c), configs, fixed)
    }

    /// A FLUX.1 transformer with two ControlNets, one of them with modes and single blocks, with
    /// true CFG and two images.
    pub fn controlled(act: DType) -> Self {
        Self::with_controls(act, true)
    }

    /// The same without the ControlNets.
    pub fn plain_of_controlled(act: DType) -> Self {
        Self::with_controls(act, false)
    }

    fn with_controls(act: DType, controlled: bool) -> Self {
        let c = config(3);
        let own = |depth_double, depth_single, modes| ControlConfig {
            flux: FluxConfig { depth_double, depth_single, ..c.clone() },
            condition: Condition::Latents,
            condition_cols: 64,
            modes,
        };
        let nets = [own(1, 2, Some(3)), own(2, 0, None)];
        let shape = DenoiseShape { images: 2, cfg: true, text_tokens: 5, height: 2, width: 3 };
        let count = if controlled { nets.len() } else { 0 };
        let controls: Vec<Control<'_>> =
            nets.iter().take(count).map(|config| Control { config }).collect();
        let program = flux1::denoise_with(&c, &shape, &controls, act);
        let folder = temp_dir();
        let configs = json!({ "transformer": c.to_json() });
        let path = write(&folder, TRANSFORMER, flux1::tensors(&c), configs);
        let model = open_only(&path).unwrap();
        let nets = nets.iter().map(|config| {
            let path = write(&folder, CONTROLNET, control_tensors(config), json!({}));
            open_component(&path, CONTROLNET, FAMILIES).unwrap()
        });
        let nets: Vec<_> = nets.collect();
        let of = |w: &WeightSpec| match w.net {
            0 => model.get(TRANSFORMER).unwrap().get(&w.name, w.first, w.rows, w.cols).unwrap(),
            n => nets[n as usize - 1].get(&w.name, w.first, w.rows, w.cols).unwrap(),
        };
        let weights = program.weights.iter().map(of).collect();
        let fixed = vec![("rope", flux1::rope(&c, &shape)), ("step", vec![-0.1, 2.0])];
        Self::with(program, weights, fixed, folder)
    }

    /// The same with products in 8-bit integers where they are allowed.
    pub fn in_int8(mut self, component: Component) -> Self {
        for (weight, spec) in self.weights.iter_mut().zip(&self.program.weights) {
            if component.is_int8(&spec.name) {
                let rotation = Rotation::of_columns(weight.cols);
                assert!(rotation.is_some(), "{}: {} columns", spec.name, weight.cols);
                weight.int8 = Some(Int8 { rotation });
            }
        }
        assert!(self.weights.iter().any(|w| w.int8.is_some()), "nothing is computed in integers");
        self
    }

    /// FLUX.2's, with true CFG and two reference images.
    pub fn flux2(act: DType) -> Self {
        let c = Flux2Config {
            hidden: 256,
            heads: 2,
            mlp_hidden: 768,
            depth_double: 2,
            depth_single: 4,
            context: 96,
            ..Flux2Config::klein_4b()
        };
        let image = DenoiseShape { images: 1, cfg: true, text_tokens: 5, height: 2, width: 3 };
        let shape = SequenceShape { image, references: vec![(2, 2), (1, 3)], added_inputs: 0 };
        let fixed = vec![("rope", flux2::rope(&c, &shape)), ("step", vec![-0.1, 2.0])];
        let configs = json!({ "transformer": c.to_json() });
        let program = flux2::denoise(&c, &shape, act);
        Self::of(program, flux2_spec::TRANSFORMER, flux2::tensors(&c), configs, fixed)
    }

    /// FLUX.1 Fill's, with true CFG: 384 columns of input for 64 of output.
    pub fn fill(act: DType) -> Self {
        let c = FluxConfig { in_channels: 384, ..config(3) };
        let image = DenoiseShape { images: 2, cfg: true, text_tokens: 5, height: 2, width: 3 };
        Self::with_images(&c, SequenceShape::from(&image), act)
    }

    /// FLUX.1 Kontext's, with two reference images.
    pub fn kontext(act: DType) -> Self {
        let image = DenoiseShape { images: 1, cfg: false, text_tokens: 5, height: 2, width: 3 };
        let references = vec![(3, 2), (1, 4)];
        let shape = SequenceShape { references, ..SequenceShape::from(&image) };
        Self::with_images(&config(3), shape, act)
    }

    fn with_images(c: &FluxConfig, shape: SequenceShape, act: DType) -> Self {
        let fixed = vec![("rope", flux1::rope(c, &shape)), ("step", vec![-0.1, 2.0])];
        let program = flux1::denoise(c, &shape, act);
        let configs = json!({ "transformer": c.to_json() });
        Self::of(program, TRANSFORMER, flux1::tensors(c), configs, fixed)
    }

    /// SigLIP's vision tower, not a denoiser, with heads of 72 as Redux reads it.
    pub fn siglip(act: DType) -> Self {
        let c = SiglipConfig {
            image: 58,
            patch: 14,
            width: 288,
            heads: 4,
            ff: 1216,
            layers: 5,
            ..SiglipConfig::so400m()
        };
        let configs = json!({ "image_encoder": c.to_json() });
        let places = (0..c.tokens()).map(|i| i as f32).collect();
        let program = siglip::encode(&c, act);
        Self::of(program, SIGLIP, siglip::tensors(&c), configs, vec![("places", places)])
    }

    /// FLUX.2's text encoder, not a denoiser: two prompts, one of them without padding.
    pub fn qwen3(act: DType) -> Self {
        let c = Qwen3Config {
            vocab: 64,
            width: 128,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            ff: 384,
            layers: 27,
            ..Qwen3Config::qwen3_4b()
        };
        let (real, length) = ([7, 9], 9);
        let configs = json!({ "text_encoder": c.to_json() });
        let program = qwen3::encode(&c, &real, length, act);
        let fixed = vec![("rope", qwen3::rope(&c, length))];
        Self::of(program, flux2_spec::QWEN3, qwen3::tensors(&c), configs, fixed)
    }

    /// `program` with FP8 weights of `component` and the inputs `fixed`; other inputs are numbers
    /// from -1 to 1.
    fn of(
        program: Program,
        component: Component,
        tensors: Vec<(String, Vec<usize>)>,
        configs: serde_json::Value,
        fixed: Vec<(&'static str, Vec<f32>)>,
    ) -> Self {
        let folder = temp_dir();
        let path = write(&folder, component, tensors, configs);
        let weights = resolve(&program, open_only(&path).unwrap().get(component).unwrap());
        Self::with(program, weights, fixed, folder)
    }

    /// `program` with `weights` and the inputs `fixed`.
    fn with(
        program: Program,
        weights: Vec<HostWeight>,
        fixed: Vec<(&'static str, Vec<f32>)>,
        folder: tempfile::TempDir,
    ) -> Self {
        let mut inputs = fixed;
        for io in &program.inputs {
            if inputs.iter().all(|(name, _)| *name != io.name) {
                let n = io.tensor.rows * io.tensor.cols;
                let values = (0..n).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0);
                inputs.push((io.name, values.collect()));
            }
        }
        Denoiser { program, weights, inputs, _folder: folder }
    }

    pub fn run(
        &self,
        backend: &mut dyn Backend,
        budget: u64,
        runs: usize,
    ) -> HashMap<&'static str, Vec<u32>> {
        let mut whole = |session: &mut Session, more| {
            session.run(more, &mut |_, _| ControlFlow::Continue(())).unwrap();
        };
        self.run_by(&mut whole, backend, budget, runs)
    }

    /// The same as [`Denoiser::run`] with the segments run one by one; `between` is called after
    /// each.
    pub fn run_in_segments(
        &self,
        backend: &mut dyn Backend,
        budget: u64,
        runs: usize,
        between: &mut dyn FnMut(&mut Session, &Segment),
    ) -> HashMap<&'static str, Vec<u32>> {
        let mut parts = |session: &mut Session, more| {
            for segment in &self.program.segments {
                let go_on = &mut |_: usize, _: &Step| ControlFlow::Continue(());
                session.run_segment(segment.name, more, go_on).unwrap();
                between(session, segment);
            }
        };
        self.run_by(&mut parts, backend, budget, runs)
    }

    /// The same with the networks left out that `absent` returns for each run: see
    /// [`Session::leave_out`].
    pub fn run_without(
        &self,
        backend: &mut dyn Backend,
        budget: u64,
        runs: usize,
        absent: &dyn Fn(usize) -> u32,
    ) -> HashMap<&'static str, Vec<u32>> {
        let mut run = 0;
        let mut parts = |session: &mut Session, more| {
            session.leave_out(absent(run), absent(run + 1));
            session.run(more, &mut |_, _| ControlFlow::Continue(())).unwrap();
            run += 1;
        };
        self.run_by(&mut parts, backend, budget, runs)
    }

    fn run_by(
        &self,
        one: &mut dyn FnMut(&mut Session, bool),
        backend: &mut dyn Backend,
        budget: u64,
        runs: usize,
    ) -> HashMap<&'static str, Vec<u32>> {
        let whole: Vec<Vec<i32>> =
            self.inputs.iter().map(|(_, v)| v.iter().map(|v| *v as i32).collect()).collect();
        let inputs = self.inputs.iter().zip(&whole).map(|((name, v), whole)| {
            let input = match self.program.input(name).dtype {
                DType::I32 => Input::I32(whole),
                _ => Input::F32(v),
            };
            (*name, input)
        });
        let inputs: Vec<_> = inputs.collect();
        let out = run_by(one, backend, &self.program, &self.weights, &inputs, budget, runs);
        out.into_iter().map(|(name, v)| (name, v.into_iter().map(f32::to_bits).collect())).collect()
    }

    pub fn budgets(&self, backend: &dyn Backend) -> Vec<u64> {
        let least = least_bytes(backend, &self.program, &self.weights);
        let all: u64 = self.weights.iter().map(|w| w.bytes() as u64).sum();
        assert!(all > 4 << 20, "the weights must be much larger than the ring: {all}");
        vec![least, least + all / 4, least + all / 2, least + 2 * all]
    }

    /// Runs until `each`, which is called after every step, breaks. Returns whether weights were
    /// streamed through a ring, and how the run ended; its values are dropped.
    pub fn run_until(
        &self,
        backend: &mut dyn Backend,
        budget: u64,
        runs: usize,
        each: &dyn Fn() -> ControlFlow<()>,
    ) -> (bool, Result<()>) {
        let weight = |w: Weight| &self.weights[w.id as usize];
        let bytes: Vec<usize> = self
            .weights
            .iter()
            .zip(self.program.uses())
            .map(|(w, u)| backend.weight_bytes(w, u))
            .collect();
        let scratch: Vec<usize> =
            self.program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect();
        let plan = plan::phase(&self.program, runs, &bytes, &scratch, backend.caps().grain, budget)
            .unwrap();
        let mut holdings = Holdings::default();
        let ring = plan.residency.ring_bytes > 0;
        if let Err(e) = holdings.reserve(backend, plan.layout(), false) {
            return (ring, Err(e));
        }
        let weights = self.weights.clone();
        let mut session =
            Session::new(backend, &mut holdings, &self.program, &plan, weights, Tenancy::default());
        let ended = (0..runs).try_for_each(|i| session.run(i + 1 < runs, &mut |_, _| each()));
        (ring, ended.and_then(|()| session.finish()))
    }
}
