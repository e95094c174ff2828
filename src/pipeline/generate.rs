//! One generation: plan the phases, draw the noise, run the phases.

use super::control_images::{acting, drawn_part, seen_by_all};
use super::embedded;
use super::flux1_kind::Flux1Kind;
use super::images::{self, Filter, Masking};
use super::loaded::{InputImages, LoadedModel, PlannedRequest};
use super::model::{Model, Networks};
use super::noise::TorchGenerator;
use super::open_device::OpenDevice;
use super::phases::tokens::pack;
use super::phases::{KeptLatents, MaskSampling, Phases, Values};
use super::progress::{Listener, send};
use super::recover::Recovery;
use super::request::{Generated, Image, Request, Settings, foreign_syntax};
use super::settle::{masking_for, noise_levels, random_seed};
use super::speed::{Speeds, Stopwatch};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::host::cache_folder;
use crate::message::Message;
use crate::model::flux1::DenoiseShape;

/// Makes the images that `request` asks for, again after a failure from which `device` recovers.
pub fn generate(
    loaded: &LoadedModel,
    device: &mut OpenDevice,
    request: &Request,
    on: Listener<'_>,
) -> Result<Generated> {
    if loaded.model.shapes_only {
        return Err(Error::argument("this model was opened for plans only")
            .at(&loaded.model.name)
            .try_("open it again without `plan_only`"));
    }
    // The seed is chosen once, so that another try makes the same image.
    let seed = request.seed.unwrap_or_else(random_seed);
    let mut recovery = Recovery::default();
    if !device.is_open() {
        device.reopen(on)?;
    }
    loop {
        match generate_once(loaded, device, request, seed, on) {
            Ok(generated) => return Ok(generated),
            Err(e) => recovery.recover(device, e, on)?,
        }
    }
}

fn generate_once(
    loaded: &LoadedModel,
    device: &mut OpenDevice,
    request: &Request,
    seed: u64,
    on: Listener<'_>,
) -> Result<Generated> {
    let model = &loaded.model;
    let (mut settings, loras) = loaded.settle(request)?;
    settings.seed = seed;
    let style_size = match request.styles.is_empty() {
        true => 0,
        false => {
            let mut notes = Vec::new();
            let networks = model.styles.networks(model, &mut notes)?;
            notes.into_iter().try_for_each(|note| send(on, Event::note(note)))?;
            networks.siglip.config.image
        }
    };
    settings.lora_hashes = loras.hashes();
    loras.events().into_iter().try_for_each(|event| send(on, event))?;
    let all_controls = loaded.controls(&settings)?;
    settings.controlnet_hashes = all_controls.iter().map(|c| c.net.hash.clone()).collect();
    let sigmas = noise_levels(model, &settings);
    let (controls, control_images) = acting(&all_controls, &request.control_images, &sigmas, on)?;
    // The matrices of other LoRAs and the weights of other ControlNets are dropped first: both need
    // not fit.
    let (backend, holdings) = device.parts()?;
    holdings.keep_sides(backend, loras.number)?;
    let owners: Vec<u32> = controls.iter().map(|c| c.net.number).collect();
    holdings.keep_owners(backend, &owners)?;
    let masking = masking_for(model, request)?;
    let images = input_images(model, request, &settings, masking.as_ref());
    let PlannedRequest { phases, host_bytes } =
        loaded.plan(&settings, &sigmas, &loras, device, &images, &controls)?;
    warn_of_changes(model, request, &settings, on)?;
    if loaded.embedded {
        let warnings = embedded::warnings(&settings);
        warnings.into_iter().try_for_each(|warning| send(on, Event::Warning(warning)))?;
    }
    let pinned = device.pinned_bytes(host_bytes);
    let granularity = device.caps().granularity;
    let (backend, holdings) = device.parts()?;
    backend.allow_host(pinned, phases.passing_bytes());
    holdings.set_peak(phases.peak_bytes(granularity));

    let part = |image: &Image| drawn_part(image, masking.as_ref(), &settings);
    let unit = model.token_pixels();
    let prepared = |image| match model.reads_kontext() {
        true => images::prepare_kontext(image, unit),
        false => images::prepare_reference(image, unit),
    };
    let control_kind = loras.control_kind().or(model.flux1_kind());
    let is_fill = model.flux1_kind() == Some(Flux1Kind::Fill);
    let start = match &masking {
        Some(masking) => Some(masking.start()),
        None => request.init.as_ref().map(part),
    };
    let mut values = Values {
        init: start,
        // Fill has learned to keep what is around the hole.
        kept: masking
            .as_ref()
            .filter(|_| !is_fill)
            .map(|masking| kept_latents(model, &settings, masking)),
        condition_image: match (&masking, &request.control) {
            (Some(masking), None) if is_fill => Some(masking.start()),
            (_, Some(control)) => Some(prepared_control(control_kind, part(control), on)?),
            _ => None,
        },
        controls: seen_by_all(&controls, &control_images, masking.as_ref(), &settings)?,
        hole: masking.as_ref().filter(|_| is_fill).map(Masking::drawn_mask),
        reference_images: request.references.iter().map(prepared).collect(),
        style_images: request
            .styles
            .iter()
            .map(|image| images::stretched(image, style_size, style_size, Filter::Bicubic))
            .collect(),
        latents: noise(model, &settings),
        ..Values::default()
    };
    let mut watch = Stopwatch::default();
    phases.run(device, &mut values, &mut |event| {
        watch.note(&event);
        on(event)
    })?;
    if loaded.keeps_speeds {
        remember_speeds(device, &phases, &watch);
    }
    drop(phases);
    let Values { mut images, latents, .. } = values;
    if let Some(masking) = &masking {
        // Without a step, the image would only have passed through the autoencoder.
        let was_drawn = sigmas.len() > 1;
        images.iter_mut().for_each(|image| *image = masking.put_back(was_drawn.then_some(image)));
    }
    Ok(Generated { images, latents, settings })
}

/// Adds the speeds of this run to those that the cache folder stores.
fn remember_speeds(device: &OpenDevice, phases: &Phases<'_>, watch: &Stopwatch) {
    let cache = cache_folder();
    let mut speeds = Speeds::load(&cache);
    speeds.add(&device.speed_key(), &phases.reports(), watch);
    speeds.save(&cache);
}

/// What the model sees of a control image that was `fitted`: Canny the edges of a photo, and a
/// drawing of edges as it is.
fn prepared_control(kind: Option<Flux1Kind>, fitted: Image, on: Listener<'_>) -> Result<Image> {
    if kind != Some(Flux1Kind::Canny) {
        return Ok(fitted);
    }
    if images::is_drawing_of_edges(&fitted) {
        let note = "the image of {control} is black and white, so it is used as the edges";
        send(on, Event::note(note))?;
        return Ok(fitted);
    }
    send(on, Event::note("the edges of the image of {control} are used"))?;
    Ok(images::canny(&fitted, images::THRESHOLDS))
}

/// Which latents of the image to start from are kept.
fn kept_latents(model: &Model, settings: &Settings, masking: &Masking) -> KeptLatents {
    let (unit, factor) = (model.token_pixels(), model.vae.config.factor());
    let shape = DenoiseShape {
        images: settings.images(),
        cfg: false,
        text_tokens: 0,
        height: settings.height / unit,
        width: settings.width / unit,
    };
    let sampling = match model.networks {
        Networks::Flux1(_) => MaskSampling::LatentPixels,
        Networks::Flux2(_) => MaskSampling::Tokens,
    };
    KeptLatents::of(&masking.drawn_mask(), &shape, factor, sampling)
}

/// What the images of `request` need; `masking` is what it repaints.
pub fn input_images(
    model: &Model,
    request: &Request,
    settings: &Settings,
    masking: Option<&Masking>,
) -> InputImages {
    let unit = model.token_pixels();
    let grid = |image: &Image| {
        let size = match model.reads_kontext() {
            true => images::kontext_size,
            false => images::reference_size,
        };
        let (width, height) = size(image.width, image.height, unit);
        (height / unit, width / unit)
    };
    let references = request.references.iter().map(grid).collect();
    // A control image, its fitted copy and the gradients of its pixels.
    let drawn = (settings.width * settings.height) as u64;
    let control = |image: &Image| {
        let size = (image.width, image.height);
        let fitting = match masking {
            Some(masking) => masking.part_bytes(size),
            None => images::fit_bytes(size, settings.width, settings.height),
        };
        image.rgb.len() as u64 + fitting + 24 * drawn
    };
    let images_of_nets = request.control_images.iter().map(|c| &c.image);
    let control_bytes = request.control.iter().chain(images_of_nets).map(control).sum::<u64>();
    // Transparent pixels, and a copy of the image before white.
    let masks = request.control_images.iter().filter_map(|c| c.mask.as_ref());
    let transparent_bytes: u64 = masks.map(|mask| 4 * mask.values.len() as u64).sum();
    let host_bytes = reference_bytes(model, request)
        + style_bytes(request)
        + control_bytes
        + transparent_bytes
        + match masking {
            Some(masking) => {
                // Its latents, and the noise of all images.
                let tokens = (settings.width / unit) * (settings.height / unit);
                let latents = 4 * model.vae.config.latent * tokens;
                masking.bytes(settings.images()) + 4 * (latents * (1 + settings.images())) as u64
            }
            None => init_bytes(request, settings),
        };
    InputImages { host_bytes, is_masked: masking.is_some(), references }
}

/// What reference images need on the host before they are encoded, in bytes: all as they are given,
/// and the work on one of them.
fn reference_bytes(model: &Model, request: &Request) -> u64 {
    let given = request.references.iter().map(|image| image.rgb.len() as u64).sum::<u64>();
    let work = |i: &Image| match model.reads_kontext() {
        true => {
            let size = (i.width, i.height);
            let (width, height) = images::kontext_size(i.width, i.height, model.token_pixels());
            images::stretch_bytes(size, width, height)
        }
        false => images::prepare_bytes(i.width, i.height),
    };
    let work = request.references.iter().map(work).max();
    given + work.unwrap_or(0)
}

/// What style images need on the host before they are encoded, in bytes: all as they are given, and
/// the work on one of them.
fn style_bytes(request: &Request) -> u64 {
    // The images that a tower reads are smaller than this in every published model.
    const SIDE: usize = 512;
    let given = request.styles.iter().map(|image| image.rgb.len() as u64).sum::<u64>();
    let work = |i: &Image| images::stretch_bytes((i.width, i.height), SIDE, SIDE);
    given + request.styles.iter().map(work).max().unwrap_or(0)
}

/// What the image to start from needs on the host while it is fitted, in bytes. One of the right
/// size fits in what decoding needs later.
fn init_bytes(request: &Request, settings: &Settings) -> u64 {
    let (width, height) = (settings.width, settings.height);
    match &request.init {
        Some(image) if (image.width, image.height) != (width, height) => {
            image.rgb.len() as u64 + images::fit_bytes((image.width, image.height), width, height)
        }
        _ => 0,
    }
}

/// Warns about parts of the request that have no effect.
fn warn_of_changes(
    model: &Model,
    request: &Request,
    settings: &Settings,
    on: Listener<'_>,
) -> Result<()> {
    if settings.prompt.text().trim().is_empty() {
        let note = "the prompt is empty: the model draws an image of its own choice";
        send(on, Event::note(note))?;
    }
    let negative = settings.negative.as_deref().filter(|_| settings.cfg_scale != 1.0);
    let texts = [(Some(settings.prompt.text()), "the prompt"), (negative, "the negative prompt")];
    for (text, what) in texts {
        if let Some(note) = text.and_then(|text| foreign_syntax(text, what)) {
            send(on, Event::note(note))?;
        }
    }
    if model.reads_kontext() && request.references.is_empty() {
        let note = match request.init.is_some() {
            true => {
                "FLUX.1 Kontext edits the image of {reference}; without one it starts from the \
                 image of {init}, as [dev] does"
            }
            false => {
                "FLUX.1 Kontext edits the image of {reference}; without one it draws from the \
                 prompt, as [dev] does"
            }
        };
        send(on, Event::note(note))?;
    }
    if !request.styles.is_empty() && settings.cfg_scale != 1.0 {
        let note = "the negative prompt sees the style images, too, so that {cfg_scale} does not \
                    strengthen them";
        send(on, Event::note(note))?;
    }
    let mut warn = |text: Message| send(on, Event::Warning(text));
    if request.guidance.is_some() && settings.guidance.is_none() {
        warn(
            "this model has no guidance embedding: {guidance} is ignored; {cfg_scale} works".into(),
        )?;
    }
    if request.negative.is_some() && settings.cfg_scale == 1.0 {
        warn("the negative prompt has no effect without {cfg_scale} above 1".into())?;
    }
    Ok(())
}

/// The noise as packed tokens, image after image: the stream of torch's CPU generator over [n,
/// channels, height, width], as in ComfyUI. FLUX.2's channels are those of a token, and height and
/// width are its grid.
fn noise(model: &Model, s: &Settings) -> Vec<f32> {
    let vae = &model.vae.config;
    let packed = match model.networks {
        Networks::Flux1(_) => false,
        Networks::Flux2(_) => true,
    };
    let (factor, c) = match packed {
        true => (model.token_pixels(), 4 * vae.latent),
        false => (vae.factor(), vae.latent),
    };
    let (h, w) = (s.height / factor, s.width / factor);
    let (size, first) = (c * h * w, s.only.unwrap_or(0));
    // One image of a batch has the noise that it would have among the others. Torch draws values
    // in groups of 16, and every image is a whole number of them.
    let mut generator = TorchGenerator::new(s.seed);
    for _ in 0..first {
        generator.randn(size);
    }
    let planes = generator.randn(s.images() * size);
    planes
        .chunks_exact(size)
        .flat_map(|planar| {
            let pixels: Vec<f32> =
                (0..h * w).flat_map(|p| (0..c).map(move |ch| planar[ch * h * w + p])).collect();
            if packed { pixels } else { pack(&pixels, h, w, c) }
        })
        .collect()
}
