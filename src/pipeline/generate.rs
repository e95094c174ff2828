//! One generation: plan the phases, draw the noise, run the phases.

use super::embedded;
use super::images;
use super::loaded::{InputImages, LoadedModel, PlannedRequest};
use super::model::{Model, Networks};
use super::noise::TorchGenerator;
use super::open_device::OpenDevice;
use super::phases::Values;
use super::phases::tokens::pack;
use super::progress::{Listener, send};
use super::recover::Recovery;
use super::request::{Generated, Image, Request, Settings, foreign_syntax};
use super::settle::{noise_levels, settings_for};
use super::speed::{Speeds, Stopwatch};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::host::cache_folder;
use crate::message::Message;

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
    let seed = settings_for(&loaded.model, request)?.seed;
    let request = Request { seed: Some(seed), ..request.clone() };
    let mut recovery = Recovery::default();
    if !device.is_open() {
        device.reopen(on)?;
    }
    loop {
        match generate_once(loaded, device, &request, on) {
            Ok(generated) => return Ok(generated),
            Err(e) => recovery.recover(device, e, on)?,
        }
    }
}

fn generate_once(
    loaded: &LoadedModel,
    device: &mut OpenDevice,
    request: &Request,
    on: Listener<'_>,
) -> Result<Generated> {
    let model = &loaded.model;
    let mut settings = settings_for(model, request)?;
    let loras = loaded.lora_set(&settings)?;
    settings.lora_hashes = loras.hashes();
    loras.events().into_iter().try_for_each(|event| send(on, event))?;
    // The matrices of other LoRAs are dropped first: both need not fit.
    let (backend, holdings) = device.parts()?;
    holdings.keep_sides(backend, loras.number)?;
    let sigmas = noise_levels(model, &settings);
    let images = input_images(model, request, &settings);
    let PlannedRequest { phases, host_bytes } =
        loaded.plan(&settings, &sigmas, &loras, device, &images)?;
    warn_of_changes(request, &settings, on)?;
    if loaded.embedded {
        let warnings = embedded::warnings(&settings);
        warnings.into_iter().try_for_each(|warning| send(on, Event::Warning(warning)))?;
    }
    let pinned = device.pinned_bytes(host_bytes);
    let granularity = device.caps().granularity;
    let (backend, holdings) = device.parts()?;
    backend.allow_host(pinned);
    holdings.set_peak(phases.peak_bytes(granularity));

    let fitted = |image| images::fit(image, settings.width, settings.height);
    let unit = model.token_pixels();
    let prepared = |image| images::prepare_reference(image, unit);
    let mut values = Values {
        init: request.init.as_ref().map(fitted),
        reference_images: request.references.iter().map(prepared).collect(),
        latents: noise(model, &settings),
        ..Values::default()
    };
    let mut watch = Stopwatch::default();
    phases.run(device, &mut values, &mut |event| {
        watch.note(&event);
        on(event)
    })?;
    if loaded.keeps_speeds {
        let programs = phases.reports();
        let cache = cache_folder();
        let mut speeds = Speeds::load(&cache);
        speeds.add(&device.speed_key(), &programs, &watch);
        speeds.save(&cache);
    }
    drop(phases);
    let Values { images, latents, .. } = values;
    Ok(Generated { images, latents, settings })
}

/// What the images of `request` need.
pub fn input_images(model: &Model, request: &Request, settings: &Settings) -> InputImages {
    let unit = model.token_pixels();
    let grid = |image: &Image| {
        let (width, height) = images::reference_size(image.width, image.height, unit);
        (height / unit, width / unit)
    };
    let references = request.references.iter().map(grid).collect();
    let host_bytes = init_bytes(request, settings) + reference_bytes(request);
    InputImages { host_bytes, references }
}

/// What reference images need on the host before they are encoded, in bytes: all as they are given,
/// and the work on one of them.
fn reference_bytes(request: &Request) -> u64 {
    let given = request.references.iter().map(|image| image.rgb.len() as u64).sum::<u64>();
    let work = request.references.iter().map(|i| images::prepare_bytes(i.width, i.height)).max();
    given + work.unwrap_or(0)
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
fn warn_of_changes(request: &Request, settings: &Settings, on: Listener<'_>) -> Result<()> {
    if settings.prompt.text().trim().is_empty() {
        let note = "the prompt is empty: the image is what the model makes of no words";
        send(on, Event::note(note))?;
    }
    let negative = settings.negative.as_deref().filter(|_| settings.cfg_scale != 1.0);
    let texts = [(Some(settings.prompt.text()), "the prompt"), (negative, "the negative prompt")];
    for (text, what) in texts {
        if let Some(note) = text.and_then(|text| foreign_syntax(text, what)) {
            send(on, Event::note(note))?;
        }
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
    let packed = matches!(model.networks, Networks::Flux2(_));
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
