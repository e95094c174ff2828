//! `generate`, `again` and `plan`: from arguments to a request, to files, to a report.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{AgainArgs, EngineArgs, GenerateArgs, How, OutputArgs, RequestArgs, is_command};
use super::progress::{self, Progress};
use super::target::Target;
use super::values::{Budget, Seed};
use super::{cancelled, output, signals};
use crate::error::{Error, Kind, Result};
use crate::pipeline::Pipeline;
use crate::pipeline::images::{Metadata, load_init_image, read_metadata, save};
use crate::pipeline::request::{
    Generated, InitImage, MAX_PROMPT_BYTES, Picture, Request, Settings,
};
use crate::units;

/// Strength of image-to-image where none is given, as the field has it.
const DEFAULT_STRENGTH: f32 = 0.75;

/// Draws pictures and writes them.
pub fn generate(args: GenerateArgs, how: How) -> Result<()> {
    if let Some(word) = args.words.as_deref().filter(|word| is_command(word)) {
        return Err(Error::argument("a command comes before its options")
            .at(word)
            .try_(format!("flux-fast {word} ..., or -p {word} to draw it")));
    }
    let prompt = prompt(args.words.as_deref().or(args.request.prompt.as_deref()))?;
    let Some(prompt) = prompt else {
        return Err(Error::argument("there is no prompt").try_("flux-fast \"a fox\""));
    };
    let mut request = Request { prompt, ..Request::default() };
    fill(&mut request, &args.request, None)?;
    draw(&request, &args.engine, &args.output, how, None)
}

/// Draws what an image file says it was made of, with the arguments in place of what it says.
pub fn again(args: AgainArgs, how: How) -> Result<()> {
    let settings = read_metadata(&args.image)?;
    let Settings {
        prompt: old_prompt,
        negative,
        count,
        steps,
        seed,
        width,
        height,
        guidance,
        cfg_scale,
        strength,
        loras,
        ..
    } = settings.clone();
    let mut request = Request {
        prompt: prompt(args.request.prompt.as_deref())?.unwrap_or(old_prompt),
        negative,
        count: Some(count),
        steps: Some(steps),
        seed: Some(seed),
        width: Some(width),
        height: Some(height),
        guidance,
        cfg_scale: Some(cfg_scale),
        init: None,
        loras,
    };
    if let Some(strength) = strength
        && args.request.init_img.is_none()
    {
        return Err(Error::argument(
            "the picture was made from another picture, which its file does not hold",
        )
        .at_path(&args.image)
        .found(format!("strength {strength}"))
        .try_("-i with the picture it was made from"));
    }
    fill(&mut request, &args.request, strength)?;
    draw(&request, &args.engine, &args.output, how, Some(&settings))
}

/// Says what the request would use.
pub fn plan(args: GenerateArgs, how: How) -> Result<()> {
    let prompt =
        prompt(args.words.as_deref().or(args.request.prompt.as_deref()))?.unwrap_or_default();
    let mut request = Request { prompt, ..Request::default() };
    fill(&mut request, &args.request, None)?;
    let mut progress = Progress::new(how.quiet);
    tell_budgets(&args.engine, &progress);
    let pipeline = open(&args.engine, &mut progress)?;
    let plan = pipeline.plan(&request)?;
    progress.finish();
    if how.json { output::json(&plan) } else { output::text(&format!("{plan}\n")) }
}

/// The prompt itself, or for `-` what stdin holds, without the line break that ends it.
fn prompt(given: Option<&str>) -> Result<Option<String>> {
    if given != Some("-") {
        return Ok(given.map(str::to_string));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the check can tell; the rest is of no interest.
    let limit = MAX_PROMPT_BYTES as u64 + 3;
    std::io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::argument(format!("the prompt cannot be read: {e}")).at("stdin"))?;
    if bytes.len() as u64 == limit {
        return Err(Error::argument("the prompt is too long")
            .at("stdin")
            .expected(format!("at most {MAX_PROMPT_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::argument("the prompt is not UTF-8").at("stdin"))?;
    let line = text.strip_suffix("\r\n").or(text.strip_suffix('\n'));
    Ok(Some(line.unwrap_or(&text).to_string()))
}

/// Puts what was typed into `request`, and checks the whole. `strength` is the one to fall back to.
pub fn fill(request: &mut Request, args: &RequestArgs, strength: Option<f32>) -> Result<()> {
    let RequestArgs {
        negative,
        count,
        steps,
        seed,
        width,
        height,
        size,
        guidance,
        cfg_scale,
        init_img,
        loras,
        ..
    } = args.clone();
    if !loras.is_empty() {
        request.loras = loras;
    }
    request.negative = negative.or(request.negative.take());
    request.count = count.or(request.count);
    request.steps = steps.or(request.steps);
    request.seed = match seed {
        None => request.seed,
        Some(Seed::Random) => None,
        Some(Seed::Fixed(seed)) => Some(seed),
    };
    request.width = size.map(|s| s.0).or(width).or(request.width);
    request.height = size.map(|s| s.1).or(height).or(request.height);
    request.guidance = guidance.or(request.guidance);
    request.cfg_scale = cfg_scale.or(request.cfg_scale);
    request.check()?;
    if let Some(path) = init_img {
        let strength = args.strength.or(strength).unwrap_or(DEFAULT_STRENGTH);
        request.init = Some(InitImage { picture: load_init_image(&path)?, strength });
    }
    request.check()
}

/// Opens the model under the arguments' budgets. From here on there are events at which a signal is looked for; until here,
/// while stdin may be waited for, a signal ends the process as usual.
pub fn open(engine: &EngineArgs, progress: &mut Progress) -> Result<Pipeline> {
    signals::listen();
    let pipeline =
        Pipeline::open(&engine.files(), &engine.options(), &mut |event| progress.event(event))?;
    cancelled()?;
    Ok(pipeline)
}

/// A budget as typed can be read in two ways, so say in both units what it is taken for.
fn tell_budgets(engine: &EngineArgs, progress: &Progress) {
    for (flag, budget) in [("--vram", engine.vram), ("--ram", engine.ram)] {
        if let Budget::Bytes(bytes) = budget {
            progress.note(&format!(
                "{flag}: {bytes} bytes ({}, or {:.2} GiB)",
                units::bytes(bytes),
                bytes as f64 / (1u64 << 30) as f64
            ));
        }
    }
}

fn draw(
    request: &Request,
    engine: &EngineArgs,
    out: &OutputArgs,
    how: How,
    recorded: Option<&Settings>,
) -> Result<()> {
    let target = Target::new(out.output.as_deref(), out.format)?;
    target.probe()?;
    let begin = Instant::now();
    let mut progress = Progress::new(how.quiet);
    tell_budgets(engine, &progress);
    let mut pipeline = open(engine, &mut progress)?;
    let drawn = pipeline.generate(request, &mut |event| progress.event(event));
    progress.finish();
    let generated = drawn?;
    cancelled()?;
    if let Some(recorded) = recorded {
        warn_of_another_model(recorded, &generated.settings, &progress);
    }
    let files = write(&generated, &target, out.quality)?;
    let seconds = begin.elapsed().as_secs_f64();
    let settings = &generated.settings;
    progress.note(&format!("seed {}, {}", settings.seed, units::seconds(seconds)));
    if how.json {
        output::json(&result(settings, &files, seconds))?;
    } else {
        let lines: Vec<String> = files.iter().map(|f| format!("{}\n", f.display())).collect();
        output::text(&lines.concat())?;
    }
    if out.preview {
        preview(&generated.pictures, how, &progress)?;
    }
    Ok(())
}

fn warn_of_another_model(recorded: &Settings, used: &Settings, progress: &Progress) {
    if recorded.model_hash != used.model_hash || recorded.model != used.model {
        let name = |s: &Settings| {
            format!("{} ({})", s.model, if s.model_hash.is_empty() { "?" } else { &s.model_hash })
        };
        let (was, is) = (name(recorded), name(used));
        progress.line(&format!(
            "warning: the picture was made with {was}, this one with {is}: it will differ\n  try: --model"
        ));
    }
}

/// Writes all pictures; those that were written before one fails stay.
fn write(generated: &Generated, target: &Target, quality: u8) -> Result<Vec<PathBuf>> {
    let Generated { pictures, settings, .. } = generated;
    let mut files = Vec::new();
    for (index, picture) in pictures.iter().enumerate() {
        let path = target.path(settings.seed, index, pictures.len());
        save(picture, &path, target.format, quality, &Metadata { settings, index })?;
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

/// Every setting under its own name. A seed may be larger than what JavaScript's numbers hold, so it is text as well.
pub fn settings_as_json(settings: &Settings) -> Value {
    json!({
        "prompt": settings.prompt,
        "negative": settings.negative,
        "n": settings.count,
        "steps": settings.steps,
        "seed": settings.seed,
        "seed_text": settings.seed.to_string(),
        "width": settings.width,
        "height": settings.height,
        "guidance": settings.guidance,
        "cfg_scale": settings.cfg_scale,
        "strength": settings.strength,
        "loras": settings.loras.iter().map(|l| json!({"name": l.name, "weight": l.plain_weight()})).collect::<Vec<_>>(),
        "model": settings.model,
        "model_hash": settings.model_hash,
    })
}

/// Terminals with kitty's graphics protocol say so in their environment.
fn speaks_kitty() -> bool {
    let has = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v.contains(value));
    std::env::var_os("KITTY_WINDOW_ID").is_some()
        || has("TERM", "kitty")
        || has("TERM_PROGRAM", "ghostty")
}

/// Likewise for iTerm's.
fn speaks_iterm() -> bool {
    std::env::var("TERM_PROGRAM")
        .is_ok_and(|v| ["iTerm.app", "WezTerm", "mintty"].contains(&v.as_str()))
}

/// Shows the pictures where results are read by a person.
fn preview(pictures: &[Picture], how: How, progress: &Progress) -> Result<()> {
    if how.json || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        progress.note("no preview: stdin and stdout are not a terminal");
        return Ok(());
    }
    for picture in pictures {
        let Some(image) = image::RgbImage::from_raw(
            picture.width as u32,
            picture.height as u32,
            picture.rgb.clone(),
        ) else {
            return Err(Error::new(Kind::Output, "the picture's pixels do not match its size"));
        };
        // Left to itself viuer asks the terminal what it can do and waits for the answer, for ever on one that gives none.
        let config = viuer::Config {
            absolute_offset: false,
            use_kitty: speaks_kitty(),
            use_iterm: speaks_iterm(),
            ..viuer::Config::default()
        };
        if let Err(error) = viuer::print(&image.into(), &config) {
            // The picture is in its file; that this terminal cannot show it is no failure of the run.
            progress.line(&format!("warning: no preview: {error}"));
            return Ok(());
        }
    }
    Ok(())
}
