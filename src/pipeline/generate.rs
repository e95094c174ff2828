//! One generation, phase by phase: text, image (image-to-image), modulation, denoising, decoding.

use std::ops::ControlFlow;
use std::time::Instant;

use super::engine::Pipeline;
use super::loras::{LoraSet, split_tags};
use super::model::Model;
use super::noise::TorchGenerator;
use super::phases::tiles::{Canvas, crop_tokens, pack, unpack};
use super::phases::{Phases, Ready, Tiling};
use super::request::{Generated, Picture, Request, Settings};
use super::text_cache::{Text, TextCache};
use super::tokenizers::Ids;
use crate::backend::Backend;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase};
use crate::model::{flux1, t5};
use crate::stream::{Holdings, Session, Tenancy};

type Listener<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

impl Pipeline {
    /// Draws what `request` asks for. Everything is planned first, so that what cannot fit is refused before anything runs.
    ///
    /// A GPU that is lost on the way is opened anew once, where that can be; a second time the CPU takes over if the device was ours to choose.
    pub fn generate(&mut self, request: &Request, on: Listener) -> Result<Generated> {
        // The seed is chosen once, so that another try draws the same picture.
        let seed = self.settle(request)?.seed;
        let request = Request { seed: Some(seed), ..request.clone() };
        let mut lost = 0;
        loop {
            let e = match self.draw(&request, on) {
                Err(e) => e,
                drawn => return drawn,
            };
            let gone = self.backend.caps().reopens && self.backend.is_lost();
            match e.kind() {
                Kind::NotFinite if self.leave_f16() => {
                    tell(on, Event::Warning(format!("{e}; drawing again, with products in F32")))?;
                    self.open_again(false, on)?;
                }
                Kind::Device if gone && lost == 0 => {
                    lost += 1;
                    tell(
                        on,
                        Event::Warning(format!("{e}; opening it anew, and drawing from the start")),
                    )?;
                    match self.open_again(false, on) {
                        Err(e) if e.kind() == Kind::Device && self.may_change_device() => {
                            self.take_cpu(&e, on)?
                        }
                        opened => opened?,
                    }
                }
                Kind::Device
                    if self.may_change_device() && !self.backend.caps().in_place_weights =>
                {
                    self.take_cpu(&e, on)?;
                }
                // Out of memory while it ran: the next request finds a device that works.
                _ if gone => return self.open_again(false, on).and(Err(e)),
                _ => return Err(e),
            }
        }
    }

    fn take_cpu(&mut self, e: &Error, on: Listener) -> Result<()> {
        tell(on, Event::Warning(format!("{e}; drawing on the CPU")))?;
        self.open_again(true, on)
    }

    fn draw(&mut self, request: &Request, on: Listener) -> Result<Generated> {
        let settings = self.settle(request)?;
        let loras = self.lora_set(&settings)?;
        loras.tell().into_iter().try_for_each(|event| tell(on, event))?;
        // Those of the picture before go first: both need not be held.
        self.holdings.keep_loras(&mut *self.backend, loras.number)?;
        let phases = self.phases(&settings, &loras)?;
        self.say_what_was_changed(request, &settings, &phases, on)?;
        self.backend.allow_host(self.pinned_bytes(&settings, &loras));
        let granularity = self.backend.caps().granularity;
        self.holdings.set_peak(phases.peak_bytes(granularity));

        let text = self.encode_text(&settings, &phases, &loras, on)?;
        let start = match &request.init {
            Some(init) => {
                let picture =
                    super::images::fit(init.picture.clone(), settings.width, settings.height);
                Some(self.encode_image(&picture, &phases, on)?)
            }
            None => None,
        };
        let (schedule, first) = self.schedule(&settings);
        let sigmas = &schedule.sigmas[first..];
        let noise = self.noise(&settings);
        let latents = match start {
            Some(image) => {
                let t = sigmas[0];
                noise.iter().zip(image.iter().cycle()).map(|(n, x)| t * n + (1.0 - t) * x).collect()
            }
            None => noise,
        };
        let latents = if sigmas.len() > 1 {
            let modulation = self.modulate(&settings, &phases, &text, sigmas, on)?;
            self.denoise(&settings, &phases, &text, &modulation, sigmas, latents, on)?
        } else {
            latents // strength 0: nothing to do but decode
        };
        let pictures = self.decode(&settings, &phases, &latents, on)?;
        Ok(Generated { pictures, latents, settings })
    }

    fn say_what_was_changed(
        &self,
        request: &Request,
        settings: &Settings,
        phases: &Phases,
        on: Listener,
    ) -> Result<()> {
        if request.guidance.is_some() && settings.guidance.is_none() {
            tell(
                on,
                Event::Warning(
                    "this model has no guidance embedding (schnell): --guidance is ignored; --cfg-scale works".into(),
                ),
            )?;
        }
        if request.negative.is_some() && settings.cfg_scale == 1.0 {
            tell(
                on,
                Event::Warning(
                    "the negative prompt has no effect without --cfg-scale above 1".into(),
                ),
            )?;
        }
        let tilings = phases.encode.iter().map(|e| &e.1).chain([&phases.decode.1]);
        if let Some(tiling) = tilings.into_iter().find(|t| t.reduced && t.count() > 1) {
            let (h, w) = tiling.size();
            tell(
                on,
                Event::Warning(format!(
                    "little memory: the autoencoder works in tiles of {h} x {w} latents; colours may differ slightly"
                )),
            )?;
        }
        Ok(())
    }

    /// Initial noise as packed tokens, picture after picture: the stream of torch's CPU generator over [n, channels, height, width], as ComfyUI draws it.
    fn noise(&self, s: &Settings) -> Vec<f32> {
        let vae = &self.model.vae.config;
        let (h, w, c) = (s.height / vae.factor(), s.width / vae.factor(), vae.latent);
        let planes = TorchGenerator::new(s.seed).randn(s.count * c * h * w);
        planes
            .chunks_exact(c * h * w)
            .flat_map(|planar| {
                let pixels: Vec<f32> =
                    (0..h * w).flat_map(|p| (0..c).map(move |ch| planar[ch * h * w + p])).collect();
                pack(&pixels, h, w, c)
            })
            .collect()
    }

    fn encode_text(
        &mut self,
        s: &Settings,
        phases: &Phases,
        loras: &LoraSet,
        on: Listener,
    ) -> Result<Text> {
        let negative = s.negative.clone().unwrap_or_default();
        let (prompt, _) = split_tags(&s.prompt)?;
        let prompts: Vec<&str> =
            if phases.shape.cfg { vec![&prompt, &negative] } else { vec![&prompt] };
        let steps = phases.clip.program.steps.len() + phases.t5.program.steps.len();
        let mut progress = Progress::start(
            Phase::TextEncode,
            steps,
            phases.clip.plan.peak_bytes().max(phases.t5.plan.peak_bytes()),
            on,
        )?;
        let length = self.model.t5_length;
        let clip_ids =
            prompts.iter().map(|p| self.tokenizers.clip_ids(p)).collect::<Result<Vec<_>>>()?;
        let t5_ids = prompts
            .iter()
            .map(|p| self.tokenizers.t5_ids(p, length))
            .collect::<Result<Vec<_>>>()?;
        if let Some(cut) = t5_ids.iter().map(|ids| ids.cut.as_str()).find(|cut| !cut.is_empty()) {
            progress.note(Event::Warning(format!(
                "the prompt is longer than this model's {length} tokens; what T5 does not see begins with: {}",
                head(cut)
            )))?;
        }
        let vocab = |ids: &[Ids], size: usize, what: &str| {
            match ids
            .iter()
            .flat_map(|i| &i.ids)
            .find(|&&id| id as usize >= size)
        {
            Some(id) => Err(Error::model(format!("the {what} tokenizer does not belong to this {what} model"))
                .found(format!("token {id}"))
                .expected(format!("ids below {size}"))
                .try_(
                    "the tokenizer and the text encoder of one model; a folder's tokenizer wins over the built-in one",
                )),
            None => Ok(()),
        }
        };
        vocab(&clip_ids, self.model.clip.config.vocab, "CLIP")?;
        vocab(&t5_ids, self.model.t5.config.vocab, "T5")?;
        let cache = self.text_cache(phases);
        let key = self.text_key(&clip_ids, &t5_ids, loras);
        if let Some(text) = cache.as_ref().and_then(|c| c.load(&key)) {
            progress
                .note(Event::Note("this prompt's embeddings were found in the cache".into()))?;
            progress.end()?;
            return Ok(text);
        }
        let flat = |ids: &[Ids]| {
            ids.iter().flat_map(|i| i.ids.iter().map(|&id| id as i32)).collect::<Vec<i32>>()
        };

        let clip = &phases.clip;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, clip)?;
        session.write_i32(clip.program.input("ids"), &flat(&clip_ids))?;
        session.run(false, &mut |_, _| progress.step())?;
        let hidden = session.read_f32(clip.program.output("hidden"))?;
        finite(&hidden, &mut session, clip)?;
        session.finish()?;
        let (width, positions) = (self.model.clip.config.width, self.model.clip.config.positions);
        let pooled = clip_ids
            .iter()
            .enumerate()
            .flat_map(|(i, ids)| {
                let row = i * positions + ids.real - 1; // the first end token
                hidden[row * width..(row + 1) * width].to_vec()
            })
            .collect();

        let ready = &phases.t5;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, ready)?;
        session.write_i32(ready.program.input("ids"), &flat(&t5_ids))?;
        session.write_i32(
            ready.program.input("buckets"),
            &t5::relative_buckets(&self.model.t5.config, length),
        )?;
        session.run(false, &mut |_, _| progress.step())?;
        let context = session.read_f32(ready.program.output("text"))?;
        finite(&context, &mut session, ready)?;
        session.finish()?;
        progress.end()?;
        let text = Text { context, pooled };
        if let Some(cache) = cache {
            cache.save(&key, &text);
        }
        Ok(text)
    }

    /// Where embeddings are kept, for models whose text encoders are worth it.
    fn text_cache(&self, phases: &Phases) -> Option<TextCache> {
        const WORTH_BYTES: u64 = 256 << 20;
        (self.text_cache && phases.t5.plan.weight_bytes >= WORTH_BYTES)
            .then(|| TextCache::new(&super::cache_folder()))
    }

    /// Everything that the embeddings depend on.
    fn text_key(&self, clip: &[Ids], t5: &[Ids], loras: &LoraSet) -> Vec<u8> {
        let Model { clip: clip_model, t5: t5_model, .. } = &self.model;
        let networks = format!(
            "{} {:?} {} {:?}",
            clip_model.weights.hash(),
            clip_model.config,
            t5_model.weights.hash(),
            t5_model.config
        );
        let mut key = format!("{networks} {} {}\n", self.arithmetic, loras.text_key()).into_bytes();
        clip.iter().chain(t5).for_each(|ids| key.extend(bytemuck::cast_slice::<u32, u8>(&ids.ids)));
        key
    }

    /// Every step's modulation: `steps * prompts` rows.
    fn modulate(
        &mut self,
        s: &Settings,
        phases: &Phases,
        text: &Text,
        sigmas: &[f32],
        on: Listener,
    ) -> Result<Vec<f32>> {
        let ready = &phases.modulate;
        let prompts = phases.shape.prompts();
        let mut progress = Progress::start(
            Phase::Modulate,
            ready.program.steps.len(),
            ready.plan.peak_bytes(),
            on,
        )?;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, ready)?;
        // diffusers hands sigma * 1000 on and divides again; both roundings are kept so that the embedding's angle is the same float.
        let timesteps = sigmas[..sigmas.len() - 1]
            .iter()
            .flat_map(|&t| std::iter::repeat_n(t * 1000.0 / 1000.0, prompts));
        session.write_f32(ready.program.input("timestep"), &timesteps.collect::<Vec<_>>())?;
        let rows = (sigmas.len() - 1) * prompts;
        if let Some(guidance) = s.guidance {
            session.write_f32(ready.program.input("guidance"), &vec![guidance; rows])?;
        }
        let pooled: Vec<f32> =
            text.pooled.iter().copied().cycle().take(rows * text.pooled.len() / prompts).collect();
        session.write_f32(ready.program.input("pooled"), &pooled)?;
        session.run(false, &mut |_, _| progress.step())?;
        let modulation = session.read_f32(ready.program.output("modulation"))?;
        finite(&modulation, &mut session, ready)?;
        session.finish()?;
        progress.end()?;
        Ok(modulation)
    }

    /// All steps; takes and returns packed latents of all pictures.
    #[allow(clippy::too_many_arguments)] // what the phases before it made
    fn denoise(
        &mut self,
        s: &Settings,
        phases: &Phases,
        text: &Text,
        modulation: &[f32],
        sigmas: &[f32],
        mut latents: Vec<f32>,
        on: Listener,
    ) -> Result<Vec<f32>> {
        let (ready, shape) = (&phases.denoise, &phases.shape);
        let steps = sigmas.len() - 1;
        let mut progress = Progress::start(Phase::Denoise, steps, ready.plan.peak_bytes(), on)?;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, ready)?;
        let io = |name| ready.program.input(name);
        let per_prompt = text.context.len() / shape.prompts();
        let context: Vec<f32> = text
            .context
            .chunks_exact(per_prompt)
            .flat_map(|c| c.iter().copied().cycle().take(c.len() * shape.images))
            .collect();
        session.write_f32(io("text"), &context)?;
        session.write_f32(io("rope"), &flux1::rope(&self.model.flux.config, shape))?;
        session.write_f32(io("latents"), &latents)?;
        let rows = modulation.len() / steps;
        for i in 0..steps {
            session.write_f32(io("modulation"), &modulation[i * rows..(i + 1) * rows])?;
            session.write_f32(io("step"), &[sigmas[i + 1] - sigmas[i], s.cfg_scale])?;
            session.run(i + 1 < steps, &mut |_, _| progress.poll())?;
            let before = std::mem::replace(&mut latents, session.read_f32(io("latents"))?);
            if latents.iter().any(|v| !v.is_finite()) {
                session.write_f32(io("latents"), &before)?;
                return finite(&latents, &mut session, ready)
                    .map_err(|e| e.at(format!("step {} of {steps}", i + 1)))
                    .map(|()| unreachable!("latents were not finite"));
            }
            progress.advance()?;
        }
        session.finish()?;
        progress.end()?;
        Ok(latents)
    }

    fn decode(
        &mut self,
        s: &Settings,
        phases: &Phases,
        latents: &[f32],
        on: Listener,
    ) -> Result<Vec<Picture>> {
        let (ready, tiling) = &phases.decode;
        let vae = &self.model.vae.config;
        let (factor, token) = (vae.factor(), 4 * vae.latent);
        let width = s.width / factor;
        let tiles = tiling.count() * s.count;
        let mut progress = Progress::start(Phase::Decode, tiles, ready.plan.peak_bytes(), on)?;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, ready)?;
        let mut pictures = Vec::with_capacity(s.count);
        let (th, tw) = tiling.size();
        let mut done = 0;
        for tokens in latents.chunks_exact(latents.len() / s.count) {
            let mut canvas = Canvas::new(s.height, s.width, 3);
            for (top, left) in tiling.corners() {
                let tile = crop_tokens(tokens, width, token, (top, left), (th, tw));
                session.write_f32(ready.program.input("latents"), &tile)?;
                done += 1;
                session.run(done < tiles, &mut |_, _| progress.poll())?;
                let pixels = session.read_f32(ready.program.output("pixels"))?;
                finite(&pixels, &mut session, ready)?;
                canvas.add(
                    &pixels,
                    (top * factor, left * factor),
                    (th * factor, tw * factor),
                    tiling.overlap * factor,
                );
                progress.advance()?;
            }
            let byte = |v: f32| ((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
            pictures.push(Picture {
                width: s.width,
                height: s.height,
                rgb: canvas.finish().into_iter().map(byte).collect(),
            });
        }
        session.finish()?;
        progress.end()?;
        Ok(pictures)
    }

    /// The picture's latents, shifted and scaled, as packed tokens.
    fn encode_image(
        &mut self,
        picture: &Picture,
        phases: &Phases,
        on: Listener,
    ) -> Result<Vec<f32>> {
        let Some((ready, tiling)) = &phases.encode else {
            unreachable!("planned with the request's picture")
        };
        let vae = &self.model.vae.config;
        let (factor, channels) = (vae.factor(), vae.latent);
        let (h, w) = (picture.height / factor, picture.width / factor);
        let (th, tw) = tiling.size();
        let mut progress =
            Progress::start(Phase::ImageEncode, tiling.count(), ready.plan.peak_bytes(), on)?;
        let mut session = open(&mut *self.backend, &mut self.holdings, phases, ready)?;
        let mut canvas = Canvas::new(h, w, channels);
        for (i, (top, left)) in tiling.corners().enumerate() {
            session.write_f32(
                ready.program.input("pixels"),
                &crop_pixels(picture, tiling, (top * factor, left * factor), factor),
            )?;
            session.run(i + 1 < tiling.count(), &mut |_, _| progress.poll())?;
            let tokens = session.read_f32(ready.program.output("latents"))?;
            finite(&tokens, &mut session, ready)?;
            canvas.add(&unpack(&tokens, th, tw, channels), (top, left), (th, tw), tiling.overlap);
            progress.advance()?;
        }
        session.finish()?;
        progress.end()?;
        let latents: Vec<f32> =
            canvas.finish().into_iter().map(|v| (v - vae.shift) * vae.scaling).collect();
        Ok(pack(&latents, h, w, channels))
    }
}

/// The pixels of a tile, -1..1.
fn crop_pixels(
    picture: &Picture,
    tiling: &Tiling,
    (top, left): (usize, usize),
    factor: usize,
) -> Vec<f32> {
    let (h, w) = tiling.size();
    (top..top + h * factor)
        .flat_map(|y| {
            let from = (y * picture.width + left) * 3;
            picture.rgb[from..from + w * factor * 3]
                .iter()
                .map(|&b| f32::from(b) / 255.0 * 2.0 - 1.0)
        })
        .collect()
}

fn open<'a>(
    backend: &'a mut dyn Backend,
    holdings: &'a mut Holdings,
    phases: &Phases,
    ready: &'a Ready,
) -> Result<Session<'a>> {
    holdings.reserve(
        backend,
        if phases.keep { phases.shared } else { ready.plan.layout() },
        phases.keep,
    )?;
    let tenancy = Tenancy {
        phase: ready.index,
        loras: phases.loras,
        resident_base: ready.resident_base,
        keep: phases.keep,
    };
    Ok(Session::new(backend, holdings, &ready.program, &ready.plan, ready.weights.clone(), tenancy))
}

/// Passes `values` only if all are finite; else runs the program again to name the first step that went wrong.
fn finite(values: &[f32], session: &mut Session, ready: &Ready) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let place = session.first_not_finite()?.map_or_else(
        || ready.program.name.clone(),
        |label| format!("{}: {label}", ready.program.name),
    );
    let e = Error::not_finite("the numbers are not finite, no image is written").at(place);
    if ready.program.weights.iter().any(|w| w.lora.is_some()) {
        return Err(e.try_("a smaller weight of the LoRAs, or none: they change these layers"));
    }
    Err(e.try_("the weights may be damaged (download again), or too narrow a type for this model: try --compute f32"))
}

fn head(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short} ...") } else { short }
}

fn tell(on: Listener, event: Event) -> Result<()> {
    match on(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled("stopped")),
    }
}

/// Counts a phase's steps and tells the listener.
struct Progress<'a> {
    phase: Phase,
    steps: usize,
    done: usize,
    peak_bytes: u64,
    started: Instant,
    last: Instant,
    on: Listener<'a>,
}

impl<'a> Progress<'a> {
    fn start(phase: Phase, steps: usize, peak_bytes: u64, on: Listener<'a>) -> Result<Self> {
        tell(on, Event::PhaseStart { phase, steps })?;
        Ok(Progress {
            phase,
            steps,
            done: 0,
            peak_bytes,
            started: Instant::now(),
            last: Instant::now(),
            on,
        })
    }

    fn note(&mut self, event: Event) -> Result<()> {
        tell(self.on, event)
    }

    /// One operation is done, in a phase that counts operations.
    fn step(&mut self) -> ControlFlow<()> {
        self.done += 1;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        (self.on)(Event::Step { phase: self.phase, done: self.done, steps: self.steps, seconds })
    }

    /// One operation is done, in a phase that counts whole runs: asks only whether to go on.
    fn poll(&mut self) -> ControlFlow<()> {
        (self.on)(Event::Tick)
    }

    /// One run is done.
    fn advance(&mut self) -> Result<()> {
        match self.step() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("stopped")),
        }
    }

    fn end(self) -> Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        tell(self.on, Event::PhaseEnd { phase: self.phase, seconds, peak_bytes: self.peak_bytes })
    }
}
