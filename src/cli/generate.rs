//! `generate`, `again` and `plan`: from arguments to a request, to files, to a report.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{AgainArgs, EngineArgs, GenerateArgs, How, OutputArgs, RequestArgs, is_command};
use super::progress::{self, Progress};
use super::target::Target;
use super::values::{Budget, Seed, Size};
use super::words::Typed;
use super::{cancelled, output, preview, prompts, signals};
use crate::error::{Error, Result};
use crate::pipeline::Engine;
use crate::pipeline::images::{
    Metadata, load_init_image, read_init_image, read_metadata, save, to_bytes,
};
use crate::pipeline::request::{Generated, Image, Options, Request, Settings};
use crate::units;

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
    let requests = prompts.into_iter().map(|prompt| {
        let mut request = Request::new(prompt.text);
        let filled = fill(&mut request, &args.request);
        match &prompt.source {
            Some(source) => filled.map_err(|e| e.at(source))?,
            None => filled?,
        }
        Ok(request)
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let init = init_image(&args.request)?;
    let job = Job { args: &args.request, engine: &args.engine, out: &args.output, how };
    job.draw(requests, init, None)
}

/// Draws what an image file says it was made of, with the arguments in place of what it says.
pub fn again(args: AgainArgs, how: How) -> Result<()> {
    let settings = read_metadata(&args.image)?;
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
    if let Some(prompt) = one_prompt(args.request.prompt.as_deref(), &args.request)? {
        request.prompt = prompt.into();
    }
    fill(&mut request, &args.request)?;
    let init = init_image(&args.request)?;
    let job = Job { args: &args.request, engine: &args.engine, out: &args.output, how };
    job.draw(vec![request], init, Some(&settings))
}

/// The prompt given as an argument, or what stdin holds for `-`.
pub fn one_prompt(given: Option<&str>, args: &RequestArgs) -> Result<Option<String>> {
    if given == Some("-") {
        stdin_is_free(args)?;
    }
    Ok(prompts::read(given, None)?.pop().map(|prompt| prompt.text))
}

/// Fails if the image comes from stdin, from which the prompt is about to be read.
fn stdin_is_free(args: &RequestArgs) -> Result<()> {
    match &args.init_img {
        Some(path) if path == Path::new("-") => {
            Err(Error::argument("stdin cannot be both the prompt and the image")
                .at("--init-img")
                .try_("give one of the two as an argument or a file"))
        }
        _ => Ok(()),
    }
}

/// The image of `--init-img`: a file, or stdin for `-`.
pub fn init_image(args: &RequestArgs) -> Result<Option<Image>> {
    let read = |path: &PathBuf| match path == Path::new("-") {
        true => read_init_image(std::io::stdin().lock(), "stdin"),
        false => load_init_image(path),
    };
    args.init_img.as_ref().map(read).transpose()
}

/// Sets what depends on the model: the size, if an aspect ratio was given.
pub fn fit_to_model(request: &mut Request, args: &RequestArgs, engine: &Engine) {
    if let Some(Size::Ratio(ratio)) = args.size {
        let (width, height) = engine.size_for(ratio);
        (request.width, request.height) = (Some(width), Some(height));
    }
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
    fill(&mut request, &args.request)?;
    request.init = init_image(&args.request)?;
    let mut progress = Progress::new(how);
    tell_budgets(&args.engine, &progress);
    let mut options = args.engine.options();
    options.files.plan_only = true;
    let engine = open_with(options, &mut progress)?;
    fit_to_model(&mut request, &args.request, &engine);
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

/// Replaces what `args` set in `request`, except the image to start from, and checks the values.
pub fn fill(request: &mut Request, args: &RequestArgs) -> Result<()> {
    request.replace_with(args.request());
    if args.seed == Some(Seed::Random) {
        request.seed = None;
    }
    request.check_values()
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

/// What drawing needs besides the requests.
struct Job<'a> {
    args: &'a RequestArgs,
    engine: &'a EngineArgs,
    out: &'a OutputArgs,
    how: How,
}

impl Job<'_> {
    /// Draws `requests` one after another with one model, each from `init` if there is one, and
    /// writes each image as soon as it is there.
    fn draw(
        &self,
        requests: Vec<Request>,
        init: Option<Image>,
        recorded: Option<&Settings>,
    ) -> Result<()> {
        let Job { args, engine, out, how } = *self;
        let target = Target::new(out.output.as_deref(), out.format)?;
        let images = requests.iter().map(|r| r.count.unwrap_or(1)).sum();
        target.check_stdout(images, how)?;
        target.probe()?;
        let mut begin = Instant::now();
        let mut progress = Progress::new(how);
        tell_budgets(engine, &progress);
        let mut pipeline = open(engine, &mut progress)?;
        let mut first = 0;
        for mut request in requests {
            fit_to_model(&mut request, args, &pipeline);
            request.init.clone_from(&init);
            let drawn = pipeline.generate_with(&request, |event| progress.event(event));
            progress.finish();
            let generated = drawn?;
            cancelled()?;
            if let Some(recorded) = recorded {
                warn_of_another_model(recorded, &generated.settings, &progress);
            }
            let files = write(&generated, &target, out.quality, first, images)?;
            first += generated.images.len();
            // Opening the model counts for the first request.
            let seconds = begin.elapsed().as_secs_f64();
            begin = Instant::now();
            let settings = &generated.settings;
            progress.note(&format!("seed {}, {}", settings.seed, units::seconds(seconds)));
            if how.json {
                output::json(&result(settings, &files, seconds))?;
            } else {
                let lines: Vec<String> =
                    files.iter().map(|f| format!("{}\n", f.display())).collect();
                output::text(&lines.concat())?;
            }
            if out.preview {
                preview::preview(&generated.images, how, &progress)?;
            }
        }
        Ok(())
    }
}

fn warn_of_another_model(recorded: &Settings, used: &Settings, progress: &Progress) {
    if recorded.model_hash != used.model_hash || recorded.model != used.model {
        let name = |s: &Settings| {
            format!("{} ({})", s.model, if s.model_hash.is_empty() { "?" } else { &s.model_hash })
        };
        let (was, is) = (name(recorded), name(used));
        progress.warning(&format!(
            "the image was made with {was}, this one with {is}: it will differ\n  try: --model"
        ));
    }
}

/// Writes all images of one request and returns the paths of their files; those written before one
/// fails stay. `first` is the number of
/// images written before them, `all` the number of images of all requests.
fn write(
    generated: &Generated,
    target: &Target,
    quality: u8,
    first: usize,
    all: usize,
) -> Result<Vec<PathBuf>> {
    let Generated { images, settings, .. } = generated;
    let mut files = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let metadata = Metadata { settings, index };
        if target.is_stdout() {
            output::raw(&to_bytes(image, target.format, quality, &metadata)?)?;
            continue;
        }
        let path = target.path(settings.seed, first + index, all);
        save(image, &path, target.format, quality, &metadata)?;
        files.push(path);
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
