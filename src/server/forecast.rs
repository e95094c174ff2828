//! What a request will need, as far as that is known before it runs: sizes, work and time.

use super::draft::{Draft, TOKEN};
use super::fault::Fault;
use super::job::{Job, State};
use super::models::ServedModel;
use super::state::{Server, blocking};
use crate::error::Error;
use crate::pipeline::images::{Masking, kontext_size, reference_size};
use crate::pipeline::request::{AspectRatio, Request};

/// The most steps of models that were distilled to a few.
const DISTILLED_STEPS: usize = 8;

impl Server {
    /// The images of a request, and the pixels of each.
    /// `drawn` is the size of each where the images of the request determine it.
    pub fn size_of(&self, request: &Request, drawn: Option<(usize, usize)>) -> (u64, u64) {
        let (width, height) = drawn.unwrap_or_else(|| self.sides_of(request));
        let images = if request.only.is_some() { 1 } else { request.count.unwrap_or(1) as u64 };
        (images, width as u64 * height as u64)
    }

    /// The size in which a draft is drawn by `model`, if its images determine it.
    pub fn drawn_size(&self, draft: &Draft, model: &ServedModel) -> Option<(usize, usize)> {
        let request = &draft.request;
        if let (Some(size), true) = (draft.input_size, draft.is_masked()) {
            let (width, height) = self.sides_of(&Request::default());
            let part = draft.mask.as_ref().and_then(|mask| mask.repainted);
            return Some(Masking::estimated_size(request, size, part, TOKEN, width * height));
        }
        let (width, height) = *draft.reference_sizes.first()?;
        let is_kontext = self.inputs(model).is_some_and(|inputs| inputs.kontext_sizes);
        let own = match is_kontext {
            true => kontext_size(width, height, TOKEN),
            false => reference_size(width, height, TOKEN),
        };
        // One that is too small is refused by its own name.
        let side = |given: Option<usize>, own: usize| given.unwrap_or(own.max(TOKEN));
        Some((side(request.width, own.0), side(request.height, own.1)))
    }

    /// The work of a request: million pixels that pass through the transformer, over all steps.
    /// `drawn` is as in [`size_of`](Server::size_of).
    pub fn work(&self, request: &Request, drawn: Option<(usize, usize)>) -> f64 {
        let (images, pixels) = self.size_of(request, drawn);
        let defaults = self.worker().defaults.unwrap_or_default();
        let steps = request
            .steps
            .map_or_else(|| defaults["steps"].as_f64().unwrap_or(20.0), |steps| steps as f64);
        let halves = if request.cfg_scale.is_some_and(|scale| scale != 1.0) { 2.0 } else { 1.0 };
        let part = f64::from(request.strength.unwrap_or(1.0)).max(0.05);
        images as f64 * pixels as f64 * steps * halves * part / 1e6
    }

    /// The size with this aspect ratio, such as `16:9`, and about `part` of the pixels that the
    /// default model draws by itself.
    ///
    /// # Errors
    /// 422.
    pub fn shape(&self, parameter: &str, ratio: &str, part: f64) -> Result<(usize, usize), Fault> {
        let ratio: AspectRatio =
            ratio.parse().map_err(|e: Error| Fault::from(e).parameter(parameter))?;
        let (width, height) = self.sides_of(&Request::default());
        Ok(ratio.size((part * (width * height) as f64) as usize, TOKEN))
    }

    /// Width and height of the images of a request.
    pub fn sides_of(&self, request: &Request) -> (usize, usize) {
        let defaults = self.worker().defaults.unwrap_or_default();
        let side = |given: Option<usize>, name: &str| {
            given.unwrap_or_else(|| defaults[name].as_u64().unwrap_or(1024) as usize)
        };
        (side(request.width, "width"), side(request.height, "height"))
    }

    /// The seconds until a job that waits or runs is expected to be over; `None` if it is over, or
    /// if nothing is known about its model yet.
    pub fn predicted_seconds(&self, job: &Job) -> Option<f64> {
        let spec = job.spec.as_ref()?;
        let whole = self.rates.seconds(&spec.model, self.work(&spec.request, spec.drawn))?;
        let left =
            |id: &str, whole: f64| whole * (1.0 - self.events.channel(id).progress().value());
        match job.state {
            State::Queued => {
                let place = blocking(|| self.broker.place(&job.id))?;
                let worker = self.worker();
                let running = worker.current.map_or(0.0, |(id, whole)| left(&id, whole));
                // Several workers share what is ahead.
                Some((running + place.seconds_ahead) / worker.others.max(1) as f64 + whole)
            }
            State::Running | State::Canceling => Some(left(&job.id, whole)),
            _ => None,
        }
    }

    /// The seconds until one of the jobs of `owner` is expected to be over.
    pub fn next_end(&self, owner: &str) -> Option<f64> {
        let active = blocking(|| self.broker.active(owner)).ok()?;
        active.iter().filter_map(|job| self.predicted_seconds(job)).reduce(f64::min)
    }

    /// The most steps for `model` (the default model without a name) where clients send the same
    /// steps to every model: those of the options, or a few for a model that needs only a few.
    pub fn max_steps(&self, model: Option<&str>) -> Option<usize> {
        let default = self.models.default_name();
        let name = model.unwrap_or(default);
        if let Some(steps) = self.options.of_model(name).and_then(|model| model.max_steps) {
            return Some(steps);
        }
        let defaults = self.worker().defaults.unwrap_or_default();
        let few = defaults["steps"].as_u64().is_some_and(|steps| steps <= DISTILLED_STEPS as u64);
        let is_distilled = name == default && few && defaults["guidance"].is_null();
        is_distilled.then_some(DISTILLED_STEPS)
    }
}
