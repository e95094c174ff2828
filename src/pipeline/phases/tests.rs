//! An invented list of phases, with one text encoder and without a denoiser: another family than
//! FLUX.1 can supply such a list.

use std::ops::ControlFlow;

use super::*;
use crate::backend::{Compute, Device};
use crate::event::{Event, Phase};
use crate::library;
use crate::model::flux1::DenoiseShape;
use crate::model::{clip, t5, vae};
use crate::op::Program;
use crate::pipeline::embedded;
use crate::pipeline::model::{Model, Networks};
use crate::pipeline::noise::TorchGenerator;
use crate::pipeline::request::Options;
use crate::weights::ComponentWeights;

/// A phase of one program; each input is zero.
struct Invented<'a> {
    phase: Phase,
    model: &'a Model,
    weights: &'a ComponentWeights,
    optional: bool,
    needed: bool,
    record: fn(&Model, DType) -> Program,
}

impl GenerationPhase for Invented<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move || Variant::whole((self.record)(self.model, activation), 1);
        vec![Draft {
            phase: self.phase,
            weights: self.weights,
            optional: self.optional,
            variants: Box::new(self.needed.then(record).into_iter()),
        }]
    }

    fn host_bytes(&self) -> u64 {
        0
    }

    /// Appends the number of the program to the latents.
    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        _: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let mut session = device.session(planned)?;
        for io in &planned.program.inputs {
            let elements = io.tensor.rows * io.tensor.cols;
            match io.tensor.dtype {
                DType::I32 => session.write_i32(io.tensor, &vec![0; elements])?,
                _ => session.write_f32(io.tensor, &vec![0.0; elements])?,
            }
        }
        session.run(false, &mut |_, _| ControlFlow::Continue(()))?;
        values.latents.push(planned.number as f32);
        session.finish()
    }
}

/// A text encoder, an image encoder that only some requests need, a second text encoder, a decoder.
fn invented(model: &Model, with_image: bool) -> Vec<Box<dyn GenerationPhase + '_>> {
    let phase = |phase, weights, needs: [bool; 2], record: fn(&Model, DType) -> Program| {
        let [optional, needed] = needs;
        Box::new(Invented { phase, model, weights, optional, needed, record })
    };
    let Networks::Flux1(networks) = &model.networks else { panic!("a model of FLUX.1") };
    let t5_encode = |m: &Model, act| match &m.networks {
        Networks::Flux1(n) => t5::encode(&n.t5.config, 1, 4, act),
        Networks::Flux2(_) => panic!("a model of FLUX.1"),
    };
    let clip_encode = |m: &Model, act| match &m.networks {
        Networks::Flux1(n) => clip::encode(&n.clip.config, 1, act),
        Networks::Flux2(_) => panic!("a model of FLUX.1"),
    };
    vec![
        phase(Phase::TextEncode, &networks.t5.weights, [false, true], t5_encode),
        phase(Phase::ImageEncode, &model.vae.weights, [true, with_image], |m, act| {
            let edge = 2 * m.vae.config.factor();
            vae::encode(&m.vae.config, edge, edge, act)
        }),
        phase(Phase::TextEncode, &networks.clip.weights, [false, true], clip_encode),
        phase(Phase::Decode, &model.vae.weights, [false, true], |m, act| {
            vae::decode(&m.vae.config, 2, 2, act)
        }),
    ]
}

fn model() -> Model {
    let checkpoint = library::open_bytes(embedded::model().unwrap(), "flux-tiny").unwrap();
    Model::new(checkpoint, &mut Vec::new()).unwrap()
}

fn cpu() -> OpenDevice {
    let options = Options::default().device(Device::Cpu);
    OpenDevice::open(&options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn plan<'a>(model: &'a Model, with_image: bool, budget: u64) -> Result<Phases<'a>, Refused> {
    let loras = LoraSet::of(Vec::<(_, f32)>::new());
    Phases::plan(invented(model, with_image), &loras, cpu().backend().unwrap(), budget)
}

fn planned<'a>(model: &'a Model, with_image: bool, budget: u64) -> Phases<'a> {
    match plan(model, with_image, budget) {
        Ok(phases) => phases,
        Err(Refused::TooSmall(least)) => panic!("{least} bytes are needed"),
        Err(Refused::Failed(e)) => panic!("{e}"),
    }
}

#[test]
fn another_list_of_phases_runs_in_its_order() {
    let model = model();
    for (with_image, numbers) in [(false, &[0.0, 2.0, 3.0][..]), (true, &[0.0, 1.0, 2.0, 3.0])] {
        let phases = planned(&model, with_image, u64::MAX);
        let mut values = Values::default();
        let mut on = |_: Event| ControlFlow::Continue(());
        phases.run(&mut cpu(), &mut values, &mut on).unwrap();
        assert_eq!(values.latents, numbers);
    }
}

#[test]
fn a_program_that_only_some_requests_need_moves_no_weight_of_the_others() {
    let model = model();
    let places = |with_image| {
        let phases = planned(&model, with_image, u64::MAX);
        assert!(phases.keeps_weights());
        let mut places: Vec<_> = phases.programs().map(|p| (p.number, p.resident_base)).collect();
        places.sort();
        places
    };
    let (without, mut with) = (places(false), places(true));
    let image = with.remove(1);
    assert_eq!(with, without);
    assert!(with.iter().all(|other| other.1 < image.1), "{image:?} is not behind {with:?}");
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_one_that_is_enough() {
    let model = model();
    let Err(Refused::TooSmall(least)) = plan(&model, true, 1000) else { panic!("accepted") };
    let phases = planned(&model, true, least);
    assert!(!phases.keeps_weights() && phases.peak_bytes(1) <= least);
    assert!(matches!(plan(&model, true, least - 1), Err(Refused::TooSmall(n)) if n == least));
}

/// Decodes noise of `height x width` tokens within `budget` bytes; the number of programs, too.
fn decoded(
    device: &mut OpenDevice,
    model: &Model,
    size: (usize, usize),
    budget: u64,
) -> (usize, Vec<Image>) {
    use super::decode::Decode;
    let (height, width) = size;
    let shape = DenoiseShape { images: 2, cfg: false, text_tokens: 1, height, width };
    let decode = Decode { vae: &model.vae, latents: &model.latents, shape };
    let list: Vec<Box<dyn GenerationPhase>> = vec![Box::new(decode)];
    let loras = LoraSet::of(Vec::<(_, f32)>::new());
    let phases = match Phases::plan(list, &loras, device.backend().unwrap(), budget) {
        Ok(phases) => phases,
        Err(Refused::TooSmall(least)) => return decoded(device, model, size, least),
        Err(Refused::Failed(e)) => panic!("{e}"),
    };
    assert!(phases.peak_bytes(1) <= budget);
    let noise = TorchGenerator::new(5).randn(2 * height * width * 4 * model.vae.config.latent);
    let mut values = Values { latents: noise, ..Values::default() };
    phases.run(device, &mut values, &mut |_| ControlFlow::Continue(())).unwrap();
    (phases.programs().count(), values.images)
}

#[test]
fn an_image_in_bands_equals_one_in_one_piece() {
    let (model, mut cpu) = (model(), cpu());
    for size in [(9, 4), (5, 13)] {
        let (programs, want) = decoded(&mut cpu, &model, size, u64::MAX);
        assert_eq!((programs, want.len()), (1, 2));
        assert_ne!(want[0], want[1]);
        for budget in [0, 6 << 20, 8 << 20] {
            let (programs, got) = decoded(&mut cpu, &model, size, budget);
            assert!(got == want, "{programs} programs in {budget} bytes, {size:?}");
            assert!(budget > 0 || programs > 20, "{programs} programs in {budget} bytes");
        }
    }
}

/// Decodes in one piece and in the smallest bands, and compares.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn compare(gpu: &mut OpenDevice, size: (usize, usize)) {
    let model = model();
    let (programs, want) = decoded(gpu, &model, size, u64::MAX);
    assert_eq!(programs, 1);
    let (programs, got) = decoded(gpu, &model, size, 0);
    assert!(programs > 20 && got == want, "{programs} programs");
}

/// On the interpreter of PTX.
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[test]
fn an_image_in_bands_equals_one_in_one_piece_by_cuda() {
    fake_cuda::install().unwrap();
    let options = Options::default().device(Device::Cuda(0));
    let mut gpu = OpenDevice::open(&options, &mut |_| ControlFlow::Continue(())).unwrap();
    compare(&mut gpu, (5, 3));
}

#[cfg(feature = "wgpu")]
#[test]
fn an_image_in_bands_equals_one_in_one_piece_by_wgpu() {
    for compute in [Compute::F32, Compute::Auto] {
        let options = Options::default().device(Device::Wgpu(0)).compute(compute);
        match OpenDevice::open(&options, &mut |_| ControlFlow::Continue(())) {
            Ok(mut gpu) => compare(&mut gpu, (9, 4)),
            Err(e) if std::env::var_os("FLUX_FAST_TEST_WGPU").is_some() => panic!("{e}"),
            Err(e) => eprintln!("SKIPPED: no wgpu adapter: {e}"),
        }
    }
}
