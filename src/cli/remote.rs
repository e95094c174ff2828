//! `remote`: the same command line as `generate`, drawn by a server.

mod backoff;
mod client;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use self::client::{Client, fault_of};
use super::args::{How, RemoteArgs, RequestArgs};
use super::generate::{fill, images_of, stdin_is_free};
use super::input_images::InputImages;
use super::output;
use super::preview;
use super::progress::Progress;
use super::prompts;
use super::signals;
use super::target::Target;
use super::values::{ControlNetArg, Size, StyleArg};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Phase};
use crate::host::process_environment;
use crate::pipeline::images::{self, ImageFile};
use crate::pipeline::request::Request;
use crate::units;

/// The variable with the key.
const KEY: &str = "FLUX_FAST_KEY";
/// The shortest and the longest time between two looks at a job.
const POLL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Every FLUX model has tokens of 16 x 16 pixels.
const TOKEN: usize = 16;

/// Sends every prompt as a job, waits for it, and writes its images.
pub fn remote(args: RemoteArgs, how: How) -> Result<()> {
    let given = args.words.as_deref().or(args.request.prompt.as_deref());
    let file = args.prompt_file.as_deref();
    if file.is_some_and(|file| file.as_os_str() == "-") || given == Some("-") {
        stdin_is_free(&args.request)?;
    }
    let prompts = prompts::read(given, file)?;
    if prompts.is_empty() {
        return Err(Error::argument("there is no prompt")
            .try_("flux-fast remote http://127.0.0.1:8188 \"a fox\"".to_string()));
    }
    // Their files are sent as they are.
    let mut inputs = InputImages::open(&args.request, None)?;
    let mut requests = Vec::new();
    for prompt in prompts {
        let mut request = Request::new(prompt.text);
        let filled = fill(&mut request, &args.request, &mut inputs);
        filled.map_err(|e| prompt.source.iter().fold(e, |e, source| e.at(source)))?;
        requests.push(request);
    }
    let target = Target::new(args.output.output.as_deref(), args.output.format)?;
    let all = requests.iter().map(images_of).sum();
    target.check_stdout(all, how)?;
    target.probe()?;
    let key = match (&args.key, process_environment(KEY)) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(key)) => Some(
            key.into_string()
                .map_err(|_| Error::argument("the key in the environment is not UTF-8").at(KEY))?,
        ),
        (None, None) => None,
    };
    let patience = Duration::from_secs(args.patience);
    let client = Client::new(&args.url, key.as_deref(), args.ca_cert.as_deref(), patience)?;
    signals::listen();
    let progress = Progress::remote(how);
    inputs.note().iter().for_each(|note| progress.note(note));
    let images = images_of_request(&args.request, &inputs)?;
    let mut run = Run { args: &args, how, client, target, images, progress, all };
    run.fit_to_model(&mut requests)?;
    let mut files = Vec::new();
    for request in requests {
        run.draw(&request, &mut files).map_err(|e| e.after_writing(&files, all))?;
    }
    Ok(())
}

/// The fields of a body with the images that the arguments name: their files as they are.
fn images_of_request(
    args: &RequestArgs,
    inputs: &InputImages,
) -> Result<Vec<(&'static str, Value)>> {
    let encoded = |path: &PathBuf| {
        Ok::<_, Error>(json!(BASE64_STANDARD.encode(ImageFile::open(path)?.bytes())))
    };
    let mut images = Vec::new();
    if let Some(start) = inputs.start_bytes() {
        images.push(("init", json!(BASE64_STANDARD.encode(start))));
    }
    for (name, path) in [("mask", &args.mask), ("control", &args.control)] {
        if let Some(path) = path {
            images.push((name, encoded(path)?));
        }
    }
    if !args.references.is_empty() {
        images.push(("references", args.references.iter().map(encoded).collect::<Result<_>>()?));
    }
    if !args.controlnets.is_empty() {
        let net = |ControlNetArg { choice, image }: &ControlNetArg| {
            let mut net = json!(choice);
            net["image"] = encoded(image)?;
            Ok::<_, Error>(net)
        };
        images.push(("controlnets", args.controlnets.iter().map(net).collect::<Result<_>>()?));
    }
    if !args.styles.is_empty() {
        let style = |style: &StyleArg| {
            Ok::<_, Error>(json!({"image": encoded(&style.path)?, "strength": style.strength}))
        };
        images.push(("styles", args.styles.iter().map(style).collect::<Result<_>>()?));
    }
    Ok(images)
}

/// Everything that all jobs of one call have in common.
struct Run<'a> {
    args: &'a RemoteArgs,
    how: How,
    client: Client,
    target: Target,
    /// The fields with images.
    images: Vec<(&'static str, Value)>,
    progress: Progress,
    /// The images of all requests.
    all: usize,
}

impl Run<'_> {
    /// Sets the size, if an aspect ratio was given: it has as many pixels as the model's own size.
    fn fit_to_model(&mut self, requests: &mut [Request]) -> Result<()> {
        let Some(Size::Ratio(ratio)) = self.args.request.size else { return Ok(()) };
        let model = self.args.model.as_deref();
        let models = self.client.get("/api/v2/models", &self.progress)?;
        let named = |m: &&Value| match model {
            Some(name) => m["name"] == name,
            None => m["default"] == true,
        };
        let listed = models["models"].as_array().into_iter().flatten().find(named);
        let mut own = listed.map(|m| m["defaults"].clone()).unwrap_or_default();
        if own["width"].is_null() {
            // Only the default model is listed with its size.
            let body = json!({"request": {"model": model}});
            own = self.client.post("/api/v2/plan", &body, None, &self.progress)?;
        }
        let side = |name: &str| own[name].as_u64().map(|side| side as usize);
        let (Some(width), Some(height)) = (side("width"), side("height")) else {
            return Err(Error::argument("the server does not say how large its images are")
                .at("--size")
                .found(ratio)
                .try_("--size 1024x768".to_string()));
        };
        let (width, height) = ratio.size(width * height, TOKEN);
        for request in requests {
            (request.width, request.height) = (Some(width), Some(height));
        }
        Ok(())
    }

    /// Draws one request and writes its images.
    fn draw(&mut self, request: &Request, files: &mut Vec<PathBuf>) -> Result<()> {
        let begin = Instant::now();
        let mut body = json!(request);
        body["model"] = json!(self.args.model);
        body["format"] = json!(self.target.format.name());
        body["quality"] = json!(self.args.output.quality);
        for (name, image) in &self.images {
            body[*name] = image.clone();
        }
        // Next to the images.
        body["style_strengths"] = Value::Null;
        // A server of another version need not know parameters that are not set.
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|_, value| !value.is_null() && value.as_array() != Some(&Vec::new()));
        }
        let key = backoff::random_hex(16)?;
        let body = json!({"request": body});
        let job = self.client.post("/api/v2/jobs", &body, Some(&key), &self.progress)?;
        let id = job["id"].as_str().map(str::to_string).ok_or_else(|| self.client.not_ours())?;
        let followed = self.follow(&id);
        self.progress.finish();
        let job = match followed {
            Err(e) if e.kind() == Kind::Cancelled && signals::received().is_some() => {
                return Err(match self.client.cancel(&id) {
                    Ok(()) => Error::cancelled("stopped, and the job was cancelled"),
                    Err(why) => Error::cancelled(format!(
                        "stopped, but the job {id} could not be cancelled: {why}"
                    )),
                });
            }
            followed => followed?,
        };
        self.tell_log(&id);
        let written = files.len();
        let mut shown = Vec::new();
        for output in job["outputs"].as_array().into_iter().flatten() {
            let number = output["number"].as_u64().unwrap_or_default();
            let path = format!("/api/v2/jobs/{id}/images/{number}");
            let bytes = self.client.image(&path, &self.progress)?;
            self.write(&job, &bytes, files)?;
            if self.args.output.preview {
                shown.push(images::decode(&bytes)?);
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        let seed = job["seed_text"].as_str().unwrap_or_default();
        self.progress.note(&format!("seed {seed}, {}", units::seconds(seconds)));
        let files = &files[written..];
        output::told(match self.how.json {
            true => {
                let mut settings = job["settings"].clone();
                settings["seed_text"] = job["seed_text"].clone();
                let files: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
                output::json(&json!({
                    "files": files, "seconds": seconds, "job": id, "settings": settings,
                }))
            }
            false => output::paths(files),
        })?;
        if self.args.output.preview {
            preview::preview(&shown, self.how, &self.progress)?;
        }
        Ok(())
    }

    fn write(&self, job: &Value, bytes: &[u8], files: &mut Vec<PathBuf>) -> Result<()> {
        if self.target.is_stdout() {
            return output::raw(bytes);
        }
        let seed = job["seed_text"].as_str().and_then(|seed| seed.parse().ok());
        let seed = seed.ok_or_else(|| self.client.not_ours())?;
        files.push(self.target.write(bytes, seed, files.len(), self.all)?);
        Ok(())
    }

    /// Shows how far a job is, until it is over.
    fn follow(&mut self, id: &str) -> Result<Value> {
        let path = format!("/api/v2/jobs/{id}");
        let mut steps = Steps::default();
        let mut pause = POLL.0;
        loop {
            let job = self.client.get(&path, &self.progress)?;
            let status = job["status"].as_str().unwrap_or_default();
            match status {
                "queued" => {
                    steps = Steps::default();
                    self.progress.queued(job["queue_position"].as_u64().unwrap_or_default());
                }
                "running" | "canceling" => {
                    for event in steps.events(&job["progress"]) {
                        // A signal is looked for below.
                        let _ = self.progress.event(event);
                        pause = POLL.0;
                    }
                }
                "succeeded" => {
                    // The last steps may not have been seen.
                    if let Some(event) = steps.step(steps.steps) {
                        let _ = self.progress.event(event);
                    }
                    return Ok(job);
                }
                "failed" => return Err(fault_of(0, &job["error"])),
                "canceled" => return Err(Error::cancelled("the job was cancelled on the server")),
                "expired" => {
                    return Err(Error::missing("the server has deleted the images of the job")
                        .try_("send it again"));
                }
                _ => return Err(self.client.not_ours()),
            }
            backoff::pause(pause)?;
            pause = (pause * 5 / 4).min(POLL.1);
        }
    }

    /// Shows the notes and warnings of a job that is over, if the server still has them.
    fn tell_log(&self, id: &str) {
        let Some(events) = self.client.text(&format!("/api/v2/jobs/{id}/events")) else { return };
        for log in logs(&events) {
            let text = log["text"].as_str().unwrap_or_default();
            match log["level"].as_str() {
                Some("warning") => self.progress.warning(text),
                _ => self.progress.note(text),
            }
        }
    }
}

/// The data of the `log` events in a stream of events.
fn logs(events: &str) -> impl Iterator<Item = Value> {
    events.split("\n\n").filter_map(|event| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let is_log = field("event:")?.trim() == "log";
        is_log.then(|| serde_json::from_str(field("data:")?.trim()).ok()).flatten()
    })
}

/// Turns the progress of a job, as it is seen now and then, into events.
#[derive(Default)]
struct Steps {
    phase: Option<Phase>,
    done: usize,
    steps: usize,
    since: Option<Instant>,
}

impl Steps {
    /// The events since the last call.
    fn events(&mut self, progress: &Value) -> Vec<Event> {
        let number = |name: &str| progress[name].as_u64().unwrap_or_default() as usize;
        let (done, steps) = (number("step"), number("steps"));
        let Some(phase) = Phase::ALL.into_iter().find(|p| progress["phase"] == p.name()) else {
            return Vec::new();
        };
        let mut events = Vec::new();
        if self.phase != Some(phase) {
            if phase == Phase::Decode {
                events.extend(self.step(self.steps));
            }
            let steps = if phase == Phase::Denoise { steps } else { 1 };
            events.push(Event::PhaseStart { phase, steps });
            *self = Steps { phase: Some(phase), done: 0, steps, since: Some(Instant::now()) };
        }
        events.extend(self.step(done));
        events
    }

    /// The event of denoising steps up to `done`, if they were not seen before.
    fn step(&mut self, done: usize) -> Option<Event> {
        let phase = self.phase.filter(|phase| *phase == Phase::Denoise && done > self.done)?;
        let seconds = self.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        let seconds = seconds / (done - self.done) as f64;
        (self.done, self.since) = (done, Some(Instant::now()));
        Some(Event::Step { phase, done, steps: self.steps, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_is_seen_now_and_then_gives_every_event_once() {
        let mut steps = Steps::default();
        let mut see = |phase: &str, step, all| {
            let events = steps.events(&json!({"phase": phase, "step": step, "steps": all}));
            let name = |event: &Event| match event {
                Event::PhaseStart { phase, steps } => format!("{} of {steps}", phase.name()),
                Event::Step { done, steps, .. } => format!("{done}/{steps}"),
                _ => "?".into(),
            };
            events.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(see("", 0, 0), "");
        assert_eq!(see("text", 0, 0), "text of 1");
        assert_eq!(see("text", 0, 0), "");
        assert_eq!(see("denoise", 2, 4), "denoise of 4, 2/4");
        assert_eq!(see("denoise", 2, 4), "");
        assert_eq!(see("denoise", 4, 4), "4/4");
        assert_eq!(see("decode", 4, 4), "decode of 1");
        assert_eq!(see("text", 0, 0), "text of 1");
        assert_eq!(see("denoise", 0, 4), "denoise of 4");
        assert_eq!(see("decode", 4, 4), "4/4, decode of 1");
    }

    #[test]
    fn only_log_events_are_notes() {
        let events = "id: a-1\nevent: status\ndata: {}\n\n: \n\nid: a-2\nevent: log\n\
                      data: {\"level\": \"warning\", \"text\": \"x\"}\n\n";
        let found: Vec<_> = logs(events).collect();
        assert_eq!(found, [json!({"level": "warning", "text": "x"})]);
    }
}
