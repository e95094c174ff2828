//! The process that owns the device and the model: it draws one job after another. If it crashes or
//! hangs, the front starts another.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::data::DataFolder;
use super::fault::{Fault, without_folders};
use super::job::{JobSpec, Output};
use super::protocol::{Order, Report};
use super::questions::PlanQuery;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase};
use crate::host;
use crate::message::Words;
use crate::pipeline::Engine;
use crate::pipeline::images::{self, Format, ImageFile, Metadata};
use crate::pipeline::request::{Generated, Image, Mask, Options, Request};

/// How often the front hears from a worker that has nothing to report.
const ALIVE: Duration = Duration::from_millis(500);
/// The longer side of a preview, at most, in pixels.
const PREVIEW_SIDE: usize = 512;

/// Reads orders from `stdin` and reports on `stdout` until `stdin` ends. `words` are those of the
/// command line, for an error that ends the server; `orphaned` is called once `stdin` has ended,
/// and must end the process: there is nobody left to draw for.
///
/// # Errors
/// A lost device.
pub fn worker(
    stdin: impl Read + Send + 'static,
    stdout: impl Write,
    words: &dyn Words,
    orphaned: fn(),
) -> Result<()> {
    let cancelled = Arc::new(Mutex::new(None));
    let orders = read_orders(stdin, cancelled.clone(), orphaned);
    let mut reports = Reports { out: stdout, last: Instant::now() };
    let Ok(Order::Open { options, data }) = orders.recv() else {
        return Err(Error::argument("a worker is started by the server, not by hand"));
    };
    let options = Options::from(options);
    let opened = open(&options, None, &mut reports).and_then(|engine| {
        let request = Request::default();
        let defaults = engine.defaults()?;
        // A default image that does not fit is refused when somebody asks for it.
        let seconds = engine.plan(&request).ok().and_then(|plan| plan.seconds);
        Ok((engine, defaults, seconds))
    });
    let (engine, defaults, seconds) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            let worded = e.in_words(words);
            reports.send(&Report::Unusable {
                message: worded.to_string(),
                hint: worded.hint(),
                exit_code: e.kind().exit_code(),
            });
            // The front prints it.
            return Ok(());
        }
    };
    reports.send(&Report::Ready {
        defaults: serde_json::json!(defaults),
        seconds,
        inputs: engine.inputs(),
    });
    let mut worker =
        Worker { options, data: DataFolder::at(data), open: Some((None, engine)), cancelled };
    while let Ok(order) = orders.recv() {
        match order {
            Order::Job { id, spec, model } => worker.job(&id, &spec, model, &mut reports)?,
            Order::Unload => worker.open = None,
            Order::Plan { query } => reports.send(&match worker.plan(*query) {
                Ok(plan) => Report::Planned { plan: Some(plan), fault: None },
                Err(e) => Report::Planned { plan: None, fault: Some(Fault::from(&e)) },
            }),
            Order::Open { .. } | Order::Cancel { .. } => {}
        }
        reports.send(&Report::Memory { resident: host::resident_memory() });
    }
    Ok(())
}

/// Reads orders in a thread. Cancel orders take effect at once: the others wait for the job.
fn read_orders(
    stdin: impl Read + Send + 'static,
    cancelled: Arc<Mutex<Option<String>>>,
    orphaned: fn(),
) -> Receiver<Order> {
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdin).lines().map_while(std::result::Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Order::Cancel { id }) => {
                    *cancelled.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
                }
                Ok(order) => drop(sender.send(order)),
                // The front is the same program, so this cannot happen.
                Err(_) => break,
            }
        }
        orphaned();
    });
    orders
}

/// Sends reports, and a sign of life now and then.
struct Reports<W> {
    out: W,
    last: Instant,
}

impl<W: Write> Reports<W> {
    fn send(&mut self, report: &Report) {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        // If the front is gone, stdin has ended too.
        self.out.write_all(&line).and_then(|()| self.out.flush()).ok();
        self.last = Instant::now();
    }

    fn event(&mut self, event: Event) {
        let log = |level: &str, text: &str| Report::Log {
            level: level.into(),
            text: without_folders(text),
        };
        match event {
            Event::Note(text) => self.send(&log("note", text.as_str())),
            Event::Warning(text) => self.send(&log("warning", text.as_str())),
            Event::PhaseStart { phase, steps } => {
                self.send(&Report::Phase { phase: phase.name().into(), steps });
            }
            Event::PhaseEnd { phase, seconds, peak_bytes } => {
                let phase = phase.name().into();
                self.send(&Report::PhaseEnd { phase, seconds, planned: peak_bytes });
            }
            Event::Step { phase: Phase::Denoise, done, steps, .. } => {
                self.send(&Report::Step { done, steps });
            }
            Event::Preview { width, height, rgb } => {
                if let Some(report) = preview(Image { width, height, rgb }) {
                    self.send(&report);
                }
            }
            _ if self.last.elapsed() > ALIVE => self.send(&Report::Alive),
            _ => {}
        }
    }
}

/// A preview in half the size of the image (four pixels per latent pixel), as a JPEG.
fn preview(small: Image) -> Option<Report> {
    let scale = (PREVIEW_SIDE / small.width.max(small.height)).clamp(1, 4);
    let (width, height) = (small.width * scale, small.height * scale);
    let image = images::fit(&small, width, height);
    let jpeg = images::encode(&image, Format::Jpeg, 80, "").ok()?;
    Some(Report::Preview { jpeg: BASE64_STANDARD.encode(jpeg), width, height })
}

/// Opens a model: `model`, or the one that `options` name.
fn open<W: Write>(
    options: &Options,
    model: Option<&str>,
    reports: &mut Reports<W>,
) -> Result<Engine> {
    Engine::open_with(with_model(options, model), |event| {
        reports.event(event);
        ControlFlow::Continue(())
    })
}

/// `options` with `model` in place of theirs, if there is one.
fn with_model(options: &Options, model: Option<&str>) -> Options {
    let mut options = options.clone();
    if let Some(model) = model {
        options.files = crate::ModelFiles { model: Some(model.into()), ..Default::default() };
    }
    options
}

/// A mask of this size in which one part is repainted: first column, first row, columns and rows.
fn mask_of(width: usize, height: usize, [x, y, columns, rows]: [usize; 4]) -> Mask {
    let is_inside =
        |i: usize| (x..x + columns).contains(&(i % width)) && (y..y + rows).contains(&(i / width));
    Mask {
        width,
        height,
        values: (0..width * height).map(|i| 255 * u8::from(is_inside(i))).collect(),
    }
}

struct Worker {
    options: Options,
    data: DataFolder,
    /// The model that is open; `None` is the default model.
    open: Option<(Option<String>, Engine)>,
    cancelled: Arc<Mutex<Option<String>>>,
}

impl Worker {
    /// Draws one job and reports its end.
    ///
    /// # Errors
    /// A device that is lost: the process is of no more use.
    fn job<W: Write>(
        &mut self,
        id: &str,
        spec: &JobSpec,
        model: Option<String>,
        reports: &mut Reports<W>,
    ) -> Result<()> {
        let drawn = self.draw(id, spec, model, reports).and_then(|generated| {
            let outputs = self.write(id, spec, &generated)?;
            Ok((outputs, serde_json::json!(generated.settings)))
        });
        match drawn {
            Ok((outputs, settings)) => {
                reports.send(&Report::Finished { id: id.into(), outputs, settings });
                Ok(())
            }
            Err(e) => {
                let ends = e.kind() == Kind::Device;
                reports.send(&Report::Failed {
                    id: id.into(),
                    fault: Fault::from(&e),
                    cancelled: e.kind() == Kind::Cancelled,
                    ends,
                });
                if ends { Err(e) } else { Ok(()) }
            }
        }
    }

    fn draw<W: Write>(
        &mut self,
        id: &str,
        spec: &JobSpec,
        model: Option<String>,
        reports: &mut Reports<W>,
    ) -> Result<Generated> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != model) {
            // Both need not fit into memory.
            self.open = None;
            let engine = open(&self.options, model.as_deref(), reports)?;
            self.open = Some((model, engine));
        }
        let Some((_, engine)) = &mut self.open else {
            return Err(Error::device("no model is open"));
        };
        let mut request = spec.request.clone();
        // Names from clients are names, never paths.
        request.loras.iter_mut().for_each(|lora| lora.tag = true);
        request.controlnets.iter_mut().for_each(|choice| choice.named = true);
        if spec.has_input {
            let input = images::load_init_image(&self.data.input(id))?;
            request = request.init(input);
        }
        if spec.has_mask {
            request = request.mask(ImageFile::open(&self.data.mask(id))?.mask()?);
        }
        if spec.has_control {
            request = request.control(images::load_init_image(&self.data.control(id))?);
        }
        for number in 0..spec.styles {
            request.styles.push(images::load_init_image(&self.data.style(id, number))?);
        }
        for number in 0..request.controlnets.len() {
            let path = self.data.controlnet(id, number);
            request.control_images.push(images::load_control_image(&path)?);
        }
        for number in 0..spec.references {
            let path = self.data.reference(id, number);
            request.references.push(images::load_init_image(&path)?);
        }
        let cancelled = &self.cancelled;
        engine.generate_with(&request, |event| {
            reports.event(event);
            let cancelled = cancelled.lock().unwrap_or_else(PoisonError::into_inner);
            match cancelled.as_deref() == Some(id) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
    }

    /// What a request would cost, for clients: without the names of files. Another model than the
    /// open one is opened next to it, for its shapes only.
    fn plan(&self, query: PlanQuery) -> Result<Value> {
        let PlanQuery { mut request, reference_sizes, model, .. } = query;
        request.loras.iter_mut().for_each(|lora| lora.tag = true);
        request.controlnets.iter_mut().for_each(|choice| choice.named = true);
        // Pixels do not matter.
        let black = |(width, height)| Image { width, height, rgb: vec![0; 3 * width * height] };
        request.init = query.input_size.map(black);
        request.control = query.control_size.map(black);
        if let (Some((width, height)), Some(part)) = (query.input_size, query.repainted) {
            request.mask = Some(mask_of(width, height, part));
        }
        request.styles = vec![black((1, 1)); query.styles];
        request.control_images = vec![black((1, 1)).into(); request.controlnets.len()];
        for (width, height) in reference_sizes {
            // Large ones are made smaller before they are looked at.
            request.references.push(black(images::reference_size(width, height, 1)));
        }
        let plan = match &self.open {
            Some((open, engine)) if *open == model => engine.plan(&request)?,
            _ => {
                let mut options = with_model(&self.options, model.as_deref());
                options.files.plan_only = true;
                Engine::open(options)?.plan(&request)?
            }
        };
        let phases: Vec<Value> = plan
            .phases
            .iter()
            .map(|p| {
                json!({
                    "phase": p.phase, "program": p.program, "runs": p.runs, "seconds": p.seconds,
                    "weight_bytes": p.weight_bytes, "peak_bytes": p.peak_bytes, "bands": p.bands,
                    "streamed_bytes_per_run": p.streamed_bytes_per_run,
                })
            })
            .collect();
        Ok(json!({
            "model": plan.model,
            "device": plan.device,
            "width": plan.width,
            "height": plan.height,
            "count": plan.count,
            "steps": plan.steps,
            "seconds": plan.seconds,
            "time_source": plan.time_source,
            "peak_bytes": plan.peak_bytes,
            "budget_bytes": plan.budget_bytes,
            "host_bytes": plan.host_bytes,
            "own_memory": plan.own_memory,
            "lora_bytes": plan.lora_bytes,
            "phases": phases,
        }))
    }

    fn write(&self, id: &str, spec: &JobSpec, generated: &Generated) -> Result<Vec<Output>> {
        let Generated { images, settings, .. } = generated;
        let format = spec.format();
        let write = |(index, image): (usize, &Image)| {
            let file = DataFolder::result_name(id, index, format);
            let path: PathBuf = self.data.result(&file);
            images::save(image, &path, format, spec.quality, &Metadata { settings, index })?;
            let bytes = std::fs::metadata::<&Path>(&path).map_or(0, |facts| facts.len());
            Ok(Output { file, width: image.width, height: image.height, bytes })
        };
        images.iter().enumerate().map(write).collect()
    }
}
