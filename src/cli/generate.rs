//! `generate`, `again` and `plan`: from arguments to a request, to files, to a report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{AgainArgs, EngineArgs, GenerateArgs, How, OutputArgs, RequestArgs, is_command};
use super::input_images::InputImages;
use super::progress::{self, Progress};
use super::target::Target;
use super::values::{Budget, ControlNetArg, Seed, Size};
use super::words::Typed;
use super::{cancelled, output, preview, prompts, signals};
use crate::error::{Error, Result};
use crate::pipeline::images::{
    Metadata, Provenance, provenance_of, read_provenance, read_stream, to_bytes,
};
use crate::pipeline::models::ModelPlaces;
use crate::pipeline::request::{Generated, MIN_SIDE, Options, Request, Settings};
use crate::pipeline::schedule::ScheduleConfig;
use crate::pipeline::{
    Engine, find_recorded_controlnets, find_recorded_loras, recorded_model, work,
};
use crate::units;

/// How many times the usual work of a model an image file may ask for.
const MOST_WORK: f64 = 100.0;

/// Draws pictures and writes them.
pub fn generate(args: GenerateArgs, how: How) -> Result<()> {
    if let Some(word) = args.words.as_deref().filter(|word| is_command(word)) {
        return Err(Error::argument("a command comes before its options")
            .at(word)
            .try_(format!("flux-fast {word} ..., or -p {word} to draw it")));
    }
    let given = args.words.as_deref().or(args.request.prompt.as_deref());
    let file = args.prompt_file.as_deref();
    if file == Some(Path::new("-")) || given == Some("-") {
        stdin_is_free(&args.request)?;
    }
    let prompts = prompts::read(given, file)?;
    if prompts.is_empty() {
        return Err(Error::argument("there is no prompt").try_("flux-fast \"a fox\""));
    }
    // Every prompt is checked before the model is opened.
    let mut images = InputImages::open(&args.request, args.engine.ram.size())?;
    let requests = prompts.into_iter().map(|prompt| {
        let mut request = Request::new(prompt.text);
        let filled = fill(&mut request, &args.request, &mut images);
        match &prompt.source {
            Some(source) => filled.map_err(|e| e.at(source))?,
            None => filled?,
        }
        Ok(request)
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let job = Job { args: &args.request, engine: &args.engine, out: &args.output, how };
    job.draw(requests, images, args.engine.options(), Progress::new(how), None)
}

/// Draws what an image file says it was made of, with the arguments in place of what it says.
pub fn again(args: AgainArgs, how: How) -> Result<()> {
    let is_stdin = args.image == Path::new("-");
    if is_stdin && [args.request.prompt.as_deref(), init_path(&args)].contains(&Some("-")) {
        return Err(Error::argument("stdin cannot be both the image and something else")
            .at("-")
            .try_("give all but one of them as arguments or files"));
    }
    let found = recorded(&args.image)?;
    let settings = &found.settings;
    if let Some(strength) = settings.strength
        && args.request.init_img.is_none()
    {
        return Err(Error::argument(
            "the image was made from another image, which its file does not contain",
        )
        .at_path(&args.image)
        .found(format!("strength {strength}"))
        .try_("-i with the image it was made from"));
    }
    let mut request = Request::from(settings.clone());
    if args.request.count.is_none() && settings.count > 1 {
        request.only = found.index;
    }
    if let Some(prompt) = one_prompt(args.request.prompt.as_deref(), &args.request)? {
        request.prompt = prompt.into();
    }
    let mut images = InputImages::open(&args.request, args.engine.ram.size())?;
    fill(&mut request, &args.request, &mut images)?;
    let progress = Progress::new(how);
    if !found.is_own() {
        progress.note(&format!("the settings were written by {}", found.program()));
    }
    found.notes.iter().for_each(|note| progress.note(note));
    // Before any work: the model and the LoRAs that the file names.
    let places = ModelPlaces::of_process();
    let mut options = args.engine.options();
    if options.files.model.is_none() {
        let model = recorded_model(&found, &places).map_err(|e| e.at_path(&args.image))?;
        progress.note(&format!("model: {model}"));
        options.files.model = Some(model);
    }
    let beside = args.image.parent().unwrap_or(Path::new(""));
    find_recorded_loras(&mut request, settings, &places, beside)
        .map_err(|e| e.at_path(&args.image))?;
    find_recorded_controlnets(&mut request, settings, &places, beside)
        .map_err(|e| e.at_path(&args.image))?;
    let recorded = Some(Again { args: &args, found: &found });
    let job = Job { args: &args.request, engine: &args.engine, out: &args.output, how };
    job.draw(vec![request], images, options, progress, recorded)
}

/// The prompt given as an argument, or what stdin holds for `-`.
pub fn one_prompt(given: Option<&str>, args: &RequestArgs) -> Result<Option<String>> {
    if given == Some("-") {
        stdin_is_free(args)?;
    }
    Ok(prompts::read(given, None)?.pop().map(|prompt| prompt.text))
}

/// Fails if the image comes from stdin, from which the prompt is about to be read.
pub fn stdin_is_free(args: &RequestArgs) -> Result<()> {
    match &args.init_img {
        Some(path) if path == Path::new("-") => {
            Err(Error::argument("stdin cannot be both the prompt and the image")
                .at("--init-img")
                .try_("give one of the two as an argument or a file"))
        }
        _ => Ok(()),
    }
}

/// Sets what depends on the model: the size, if an aspect ratio was given. A side that was given
/// after it stays, and the other one follows from the ratio.
pub fn fit_to_model(request: &mut Request, args: &RequestArgs, engine: &Engine) {
    if let Some(Size::Ratio(ratio)) = args.size {
        let (width, height) = match (args.width, args.height) {
            (None, None) => engine.size_for(ratio),
            (Some(width), height) => (width, height.unwrap_or(ratio.height_for(width, MIN_SIDE))),
            (None, Some(height)) => (ratio.width_for(height, MIN_SIDE), height),
        };
        (request.width, request.height) = (Some(width), Some(height));
    }
}

/// The settings of the image at `path`, or of the one on stdin for `-`.
fn recorded(path: &Path) -> Result<Provenance> {
    match path == Path::new("-") {
        true => {
            let bytes = read_stream(std::io::stdin().lock(), "stdin")?;
            provenance_of(&bytes).map_err(|e| e.at("stdin"))
        }
        false => read_provenance(path),
    }
}

/// The path of `--init-img`, if it is text.
fn init_path(args: &AgainArgs) -> Option<&str> {
    args.request.init_img.as_deref().and_then(Path::to_str)
}

/// Says what the request would use.
pub fn plan(args: GenerateArgs, how: How) -> Result<()> {
    if args.prompt_file.is_some() {
        return Err(Error::argument("a plan is for one prompt")
            .at("--prompt-file")
            .try_("leave it out: the plan is the same for every prompt without LoRAs"));
    }
    let given = args.words.as_deref().or(args.request.prompt.as_deref());
    let prompt = one_prompt(given, &args.request)?.unwrap_or_default();
    let mut request = Request::new(prompt);
    let mut images = InputImages::open(&args.request, args.engine.ram.size())?;
    fill(&mut request, &args.request, &mut images)?;
    let mut progress = Progress::new(how);
    tell_budgets(&args.engine, &progress);
    let mut options = args.engine.options();
    options.files.plan_only = true;
    let engine = open_with(options, &mut progress)?;
    fit_to_model(&mut request, &args.request, &engine);
    images.decode(&mut request, args.engine.ram.size(), &engine)?;
    images.swap(&mut request);
    let plan = engine.plan(&request)?;
    progress.finish();
    if how.json {
        let mut json = json!(plan);
        json["budget_source"] = json!(plan.budget_source.in_words(&Typed));
        output::json(&json)
    } else {
        output::text(&format!("{}\n", plan.in_words(&Typed)))
    }
}

/// Replaces what `args` set in `request`, reads the scheduler's configuration, and checks the
/// whole, together with `images`. The request is left without them.
pub fn fill(request: &mut Request, args: &RequestArgs, images: &mut InputImages) -> Result<()> {
    let mut typed = args.request();
    if let Some(path) = &args.scheduler_config {
        let config = ScheduleConfig::open(path).map_err(|e| e.at_parameter("scheduler"))?;
        typed.scheduler = Some(config);
    }
    for (i, ControlNetArg { choice, image }) in args.controlnets.iter().enumerate() {
        typed.controlnets.push(match choice.name.is_empty() {
            false => choice.clone(),
            true => request.controlnets.get(i).cloned().ok_or_else(|| {
                Error::argument("there is no ControlNet for this image")
                    .at_parameter_value("controlnet", image.display())
                    .try_("{controlnet=FILE:IMAGE}")
            })?,
        });
    }
    request.replace_with(typed);
    if args.seed == Some(Seed::Random) {
        request.seed = None;
    }
    request.check_values()?;
    if images.is_transparent() && request.strength.is_none() {
        request.strength = Some(1.0);
    }
    images.lent(request, |request, _| request.check())
}

/// Opens the model under the arguments' budgets. From here on there are events at which a signal is
/// looked for; until here, while stdin may be waited for, a signal ends the process as usual.
pub fn open(engine: &EngineArgs, progress: &mut Progress) -> Result<Engine> {
    open_with(engine.options(), progress)
}

fn open_with(options: Options, progress: &mut Progress) -> Result<Engine> {
    signals::listen();
    let engine = Engine::open_with(options, |event| progress.event(event))?;
    cancelled()?;
    Ok(engine)
}

/// A budget as typed can be read in two ways, so say in both units what it is taken for.
fn tell_budgets(engine: &EngineArgs, progress: &Progress) {
    for (flag, budget) in [("--vram", engine.vram), ("--ram", engine.ram)] {
        if let Budget::Bytes(size) = budget {
            progress.note(&format!(
                "{flag}: {} bytes ({size}, or {:.2} GiB)",
                size.0,
                size.0 as f64 / (1u64 << 30) as f64
            ));
        }
    }
}

/// Everything that drawing needs besides the requests.
struct Job<'a> {
    args: &'a RequestArgs,
    engine: &'a EngineArgs,
    out: &'a OutputArgs,
    how: How,
}

impl Job<'_> {
    /// Draws `requests` one after another with the model of `options`, each with `inputs`, and
    /// writes each image as soon as it is there. `recorded` is the image that is drawn again.
    fn draw(
        &self,
        mut requests: Vec<Request>,
        mut inputs: InputImages,
        options: Options,
        mut progress: Progress,
        recorded: Option<Again>,
    ) -> Result<()> {
        let Job { args, engine, out, how } = *self;
        let target = Target::new(out.output.as_deref(), out.format)?;
        let images = requests.iter().map(images_of).sum();
        target.check_stdout(images, how)?;
        target.probe()?;
        let mut begin = Instant::now();
        tell_budgets(engine, &progress);
        let mut pipeline = open_with(options, &mut progress)?;
        requests.iter_mut().for_each(|request| fit_to_model(request, args, &pipeline));
        // All requests have the same options, hence one size.
        let request = &mut requests[0];
        if let Some(recorded) = &recorded {
            // Before the images take memory.
            inputs.measure(request, &pipeline)?;
            inputs.lent(request, |request, _| recorded.check(&pipeline, request, &progress))?;
        }
        inputs.note().iter().for_each(|note| progress.note(note));
        inputs.decode(request, engine.ram.size(), &pipeline)?;
        let (mut first, mut all_files) = (0, Vec::new());
        for mut request in requests {
            inputs.swap(&mut request);
            let after = |e: Error| e.after_writing(&all_files, images);
            let drawn = pipeline.generate_with(&request, |event| progress.event(event));
            progress.finish();
            inputs.swap(&mut request);
            let generated = drawn.map_err(after)?;
            cancelled().map_err(after)?;
            let files = write(&generated, &target, out.quality, first, images, &all_files)?;
            first += generated.images.len();
            all_files.extend_from_slice(&files);
            // Opening the model counts for the first request.
            let seconds = begin.elapsed().as_secs_f64();
            begin = Instant::now();
            let settings = &generated.settings;
            progress.note(&format!("seed {}, {}", settings.seed, units::seconds(seconds)));
            // The images are there, whether anybody reads about them or not.
            output::told(match how.json {
                true => output::json(&result(settings, &files, seconds)),
                false => output::paths(&files),
            })?;
            if out.preview {
                preview::preview(&generated.images, how, &progress)?;
            }
        }
        Ok(())
    }
}

/// How many images a request gives.
pub fn images_of(request: &Request) -> usize {
    if request.only.is_some() { 1 } else { request.count.unwrap_or(1) }
}

/// An image that is drawn again.
struct Again<'a> {
    args: &'a AgainArgs,
    found: &'a Provenance,
}

impl Again<'_> {
    /// Says what will be drawn, warns if it is with another model, and refuses a file that asks for
    /// far more work than usual.
    fn check(&self, pipeline: &Engine, request: &Request, progress: &Progress) -> Result<()> {
        let settings = pipeline.settings(request)?;
        let Settings { width, height, steps, .. } = settings;
        let images = settings.images();
        let what = match settings.only {
            Some(index) => format!("image {} of {}", index + 1, settings.count),
            None if images == 1 => "1 image".to_string(),
            None => format!("{images} images"),
        };
        let plan = format!("{what} of {width}x{height} with {steps} steps");
        progress.note(&format!("drawing {plan} by {}", settings.model));
        self.warn_of_another_model(&settings, progress);
        // Values that were typed are intended; those of the file may come from someone else.
        let (mut asked, typed) = (settings.clone(), &self.args.request);
        let usual = pipeline.defaults()?;
        if typed.count.is_some() {
            (asked.count, asked.only) = (1, None);
        }
        if typed.steps.is_some() {
            asked.steps = usual.steps;
        }
        if typed.size.is_some() || typed.width.is_some() && typed.height.is_some() {
            (asked.width, asked.height) = (usual.width, usual.height);
        }
        let times = work(&asked, &usual);
        if times <= MOST_WORK || self.args.yes {
            return Ok(());
        }
        Err(Error::argument("the file asks for far more work than usual")
            .at_path(&self.args.image)
            .found(format!("{plan}: {times:.0} times an image of {}", settings.model))
            .expected(format!("at most {MOST_WORK} times"))
            .try_("--yes to draw it all the same, or give --count, --steps and --size"))
    }

    fn warn_of_another_model(&self, used: &Settings, progress: &Progress) {
        let recorded = &self.found.settings;
        let is_same = match self.found.is_own() && !recorded.model_hash.is_empty() {
            true => recorded.model_hash == used.model_hash,
            // The names of other programs have endings and folders.
            false => self.args.engine.model.is_none(),
        };
        if is_same {
            return;
        }
        let name = |s: &Settings| match s.model_hash.as_str() {
            "" => s.model.clone(),
            hash => format!("{} ({hash})", s.model),
        };
        let is = name(used);
        progress.warning(&match recorded.model.as_str() {
            "" => format!("the image does not say its model; this one is made with {is}"),
            _ => {
                let was = name(recorded);
                format!("the image was made with {was}, this one with {is}: it will differ")
            }
        });
    }
}

/// Writes all images of one request and returns the paths of their files; those written before one
/// fails stay, and the error lists them. `first` is the number of images written before them, `all`
/// the number of images of all requests, `before` the files of the requests before.
fn write(
    generated: &Generated,
    target: &Target,
    quality: u8,
    first: usize,
    all: usize,
    before: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let Generated { images, settings, .. } = generated;
    let mut files = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let metadata = Metadata { settings, index };
        let bytes = to_bytes(image, target.format, quality, &metadata);
        if target.is_stdout() {
            output::image(&bytes?)?;
            continue;
        }
        let file = bytes.and_then(|bytes| target.write(&bytes, settings.seed, first + index, all));
        match file {
            Ok(file) => files.push(file),
            Err(e) => return Err(e.after_writing(&[before, &files].concat(), all)),
        }
    }
    Ok(files)
}

/// What `--json` prints: the files and everything that made them.
fn result(settings: &Settings, files: &[PathBuf], seconds: f64) -> Value {
    let files: Vec<_> =
        files.iter().map(|f: &PathBuf| Path::new(f).display().to_string()).collect();
    json!({
        "files": files,
        "seconds": seconds,
        "peak_memory_bytes": progress::resident().map(|(_, peak)| peak),
        "settings": settings_as_json(settings),
    })
}

/// Settings as JSON. A seed may be larger than the numbers of JavaScript, so it is given as text as
/// well.
pub fn settings_as_json(settings: &Settings) -> Value {
    let mut json = json!(settings);
    json["seed_text"] = json!(settings.seed.to_string());
    json
}
