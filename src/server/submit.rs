//! From a draft to a job. Every dialect goes through here, so all refuse the same requests.

use axum::body::Bytes;
use serde_json::json;

use super::access::{Owner, hash};
use super::broker::{NewJob, Submitted};
use super::clock::SECOND;
use super::draft::{Draft, TOKEN};
use super::draft_files::DraftFiles;
use super::fault::Fault;
use super::job::{Job, JobSpec, hex, random_hex};
use super::limits::{Charge, Limit, Unit, note_limits, too_much};
use super::models::ServedModel;
use super::state::{Server, blocking};
use crate::pipeline::request::Request;
use crate::pipeline::{ModelInputs, check_side, random_seed};

impl Server {
    /// Checks a draft and accepts it as a job, which is durable when this returns. The flag says
    /// whether it is new: an idempotency key may name an earlier one.
    ///
    /// # Errors
    /// 422 and 404 for what cannot be drawn, 403 and 422 for what the owner's plan does not allow,
    /// 429 for what it does not allow now, 503 if the queue is full, the server ends, or another
    /// request with the same id or key is being accepted.
    pub async fn submit(&self, mut draft: Draft, owner: &Owner) -> Result<(Job, bool), Fault> {
        if self.is_draining() {
            return Err(
                Fault::new(503, "shutting_down", "the server is about to end").retry_after(10)
            );
        }
        if let Some(webhook) = &draft.webhook {
            webhook.check(&self.options.webhooks)?;
        }
        let model = blocking(|| {
            draft.measure()?;
            let model = self.check(&draft, owner)?;
            self.check_controlnet_images(&draft)?;
            Ok::<_, Fault>(model)
        })?;
        let _turn = self.turn().await;
        blocking(|| self.accept(draft, model, owner))
    }

    /// Writes the files of a draft, and then its job.
    fn accept(
        &self,
        draft: Draft,
        model: ServedModel,
        owner: &Owner,
    ) -> Result<(Job, bool), Fault> {
        let drawn = self.drawn_size(&draft, &model);
        let files = DraftFiles::of(&draft);
        let Draft { mut request, format, quality, .. } = draft;
        let (images, pixels_of_one) = self.size_of(&request, drawn);
        let charge = Charge { images, pixels: images.saturating_mul(pixels_of_one) };
        // Everything that the job's images depend on, apart from the seed.
        let sent = |request: &Request| {
            let mut sent = json!({
                "request": request, "model": model.name, "format": format.name(),
                "quality": quality,
            });
            files.describe(&mut sent);
            hex(&hash(&sent.to_string()))
        };
        let idempotency = draft.idempotency.map(|key| (key, sent(&request)));
        request.seed.get_or_insert_with(random_seed);
        let alike = sent(&request);
        let chosen = match (draft.id, &idempotency) {
            (None, Some((key, _))) => self.broker.id_of(&owner.0, key),
            (id, _) => id,
        };
        // Until this returns, no other request has the same id.
        let _alone = chosen.as_deref().map(|id| self.accepting.enter(id)).transpose()?;
        let id = match chosen {
            Some(id) => id,
            None => random_hex(16)?,
        };
        // The files of a job that a client sends again stay as they are.
        let is_known = || self.broker.job(&id, &owner.0).is_ok_and(|job| job.is_some());
        if !files.is_empty() && !is_known() {
            files.write(&self.data, &id).inspect_err(|_| self.data.delete(&id))?;
        }
        let work = self.work(&request, drawn);
        let cost = self.rates.seconds(&model.name, work).unwrap_or(work);
        let spec = JobSpec {
            request,
            model: model.name.clone(),
            format: format.name().into(),
            quality: quality.clamp(1, 100),
            has_input: files.input.is_some(),
            has_mask: files.mask.is_some(),
            has_control: files.control.is_some(),
            drawn,
            references: files.references.len(),
            styles: files.styles.len(),
            dialect: draft.dialect.into(),
            echo: draft.echo,
            webhook: draft.webhook,
        };
        let submitted = self.broker.submit(NewJob {
            id: id.clone(),
            owner: owner.0.clone(),
            spec,
            lane: draft.lane,
            cost,
            plan: self.access.plan(owner),
            charge,
            idempotency,
            alike,
        });
        if let Ok(Submitted::New(job, standings)) = submitted {
            note_limits(standings);
            self.publish_accepted(&job);
            self.wake.notify_one();
            return Ok((job, true));
        }
        if !is_known() {
            self.data.delete(&id);
        }
        match submitted? {
            Submitted::New(job, _) | Submitted::Same(job) => Ok((job, false)),
            Submitted::Never(limit, amount) => Err(too_much(&limit, amount)),
            Submitted::Limited { wait, violated, standings } => {
                note_limits(standings);
                Err(self.limited(owner, wait, &violated))
            }
        }
    }

    /// Checks what can be checked without the model, and returns the model to use.
    ///
    /// # Errors
    /// 422, 404, and 403 for what the plan of `owner` does not allow.
    pub fn check(&self, draft: &Draft, owner: &Owner) -> Result<ServedModel, Fault> {
        let Draft { request, model, .. } = draft;
        request.check_values()?;
        for (name, side) in [("width", request.width), ("height", request.height)] {
            let checked = side.map_or(Ok(()), |side| check_side(name, side, TOKEN));
            checked.map_err(|e| Fault::from(e).parameter(name))?;
        }
        if request.strength.is_some() && draft.input_size.is_none() {
            return Err(Fault::invalid("strength", "strength: it needs an image to start from"));
        }
        draft.check_images()?;
        let model = self.models.find(model.as_deref())?;
        self.check_inputs(draft, &model)?;
        let names = request.prompt.loras().iter().chain(&request.loras);
        names.map(|lora| &lora.name).try_for_each(|name| self.models.check_lora(name))?;
        self.check_controlnets(draft, &model)?;
        let (_, pixels_of_one) = self.size_of(request, self.drawn_size(draft, &model));
        let plan = self.access.plan(owner);
        // A model has several names: with and without its extension, and aliases.
        let is_meant = |name: &str| {
            name == model.name
                || self.models.find(Some(name)).is_ok_and(|named| named.open == model.open)
        };
        plan.as_ref().map_or(Ok(()), |plan| plan.check(is_meant, pixels_of_one))?;
        Ok(model)
    }

    /// Checks that a draft has the images that its model needs, and no others, as far as that is
    /// known.
    fn check_inputs(&self, draft: &Draft, model: &ServedModel) -> Result<(), Fault> {
        let inputs = self.inputs(model);
        if inputs.is_none_or(|inputs| !inputs.kontext_sizes) {
            draft.check_references()?;
        }
        let Some(inputs) = inputs else { return Ok(()) };
        let refused = |parameter: &str, what: &str, hint: &str| {
            Err(Fault::invalid(parameter, format!("{parameter}: {what}")).hint(hint))
        };
        if !draft.reference_sizes.is_empty() && !inputs.references {
            let hint = "use FLUX.2 [klein] or FLUX.1 Kontext, or one image to start from";
            return refused("references", "this model does not read reference images", hint);
        }
        if draft.style_count > 0 && !inputs.styles {
            let (what, hint) = match inputs.controlnets {
                true => (
                    "this server has no networks for style images with this model",
                    "install FLUX.1 Redux and SigLIP (black-forest-labs/FLUX.1-Redux-dev) on the \
                     server's machine, or leave the style images out",
                ),
                false => (
                    "this model does not read style images",
                    "use a FLUX.1 model; FLUX.2 looks at reference images",
                ),
            };
            return refused("styles", what, hint);
        }
        let request = &draft.request;
        let has_loras = !request.loras.is_empty() || !request.prompt.loras().is_empty();
        match draft.control_size {
            // BFL's control LoRAs read one, too.
            Some(_) if !inputs.needs_control && !has_loras => {
                let hint = "use FLUX.1 Canny or Depth, or send an image to start from";
                refused("control", "this model does not read a control image", hint)
            }
            None if inputs.needs_control => {
                let hint = "a photo or a drawing of edges (Canny), or an image of depths (Depth)";
                refused("control", "this model needs a control image", hint)
            }
            _ if inputs.needs_mask && !draft.is_masked() => {
                let hint = "send the image to start from, and a mask or margins";
                refused("mask", "this model only repaints a part of an image", hint)
            }
            _ => Ok(()),
        }
    }

    /// What a model reads besides the prompt, as far as that is known.
    pub fn inputs(&self, model: &ServedModel) -> Option<ModelInputs> {
        match model.open {
            None => self.worker().inputs,
            Some(_) => self.models.inputs(&model.name),
        }
    }

    /// Whether a model reads reference images, as far as that is known.
    pub fn reads_references(&self, model: &ServedModel) -> Option<bool> {
        self.inputs(model).map(|inputs| inputs.references)
    }

    /// Gives `draft` the images that a client sends to be edited, each with its parameter: as
    /// references where the model reads them, unless a strength asks for image-to-image. Otherwise
    /// the first one is what the new image starts from, and there may be no others.
    ///
    /// The mask of the draft is one of the first image. A model that reads references sees that
    /// image as a reference, and draws the repainted part from nothing else.
    ///
    /// # Errors
    /// 422 for images that would not be looked at.
    pub fn edit(&self, draft: &mut Draft, images: Vec<(String, Bytes)>) -> Result<(), Fault> {
        let model = blocking(|| self.models.find(draft.model.as_deref()))?;
        let reads_references = self.reads_references(&model) == Some(true);
        let mut images = images.into_iter().peekable();
        let starts = draft.request.strength.is_some() || !reads_references;
        if starts && draft.input.is_none() {
            draft.input = images.next().map(|(_, bytes)| bytes);
        } else if draft.is_masked() && draft.input.is_none() {
            draft.input = images.peek().map(|(_, bytes)| bytes.clone());
            draft.request.strength = Some(1.0);
        }
        if !reads_references && let Some((parameter, _)) = images.next() {
            let message = format!("{parameter}: this model looks at one image only");
            return Err(Fault::new(422, "unsupported", message)
                .parameter(parameter)
                .hint("send one image, or use FLUX.2 [klein]"));
        }
        draft.references.extend(images.map(|(_, bytes)| bytes));
        Ok(())
    }

    /// Gives `draft` images that a client calls references, each with its parameter.
    ///
    /// # Errors
    /// 422 if the model does not read reference images: an image to start from means another image.
    pub fn refer(&self, draft: &mut Draft, images: Vec<(String, Bytes)>) -> Result<(), Fault> {
        let model = blocking(|| self.models.find(draft.model.as_deref()))?;
        if let Some((parameter, _)) = images.first()
            && self.reads_references(&model) == Some(false)
        {
            let message = format!("{parameter}: this model does not read reference images");
            return Err(Fault::new(422, "unsupported", message)
                .parameter(parameter)
                .hint("use FLUX.2 [klein], or send one image to start from"));
        }
        draft.references.extend(images.into_iter().map(|(_, bytes)| bytes));
        Ok(())
    }

    /// The fault of a request that must wait `wait` nanoseconds, or until a job of `owner` ends.
    fn limited(&self, owner: &Owner, wait: Option<i64>, violated: &[Limit]) -> Fault {
        let of_window = wait.unwrap_or(0).max(0) as f64 / SECOND as f64;
        let of_active = match violated.iter().any(|limit| limit.unit == Unit::Active) {
            true => self.next_end(&owner.0).unwrap_or(1.0),
            false => 0.0,
        };
        let (ms, seconds) = retry_times(of_window.max(of_active), random_seed());
        let limits: Vec<String> = violated.iter().map(Limit::to_string).collect();
        let message = format!("the limits of your key are reached: {}", limits.join(", "));
        let mut fault = Fault::new(429, "rate_limit_exceeded", message)
            .hint(format!("send the request again in {seconds} seconds"))
            .retry_after(seconds);
        fault.retry_after_ms = u32::try_from(ms).ok();
        fault
    }
}

/// Waits of this many seconds and more are spread by whole seconds.
const LONG_WAIT: f64 = 10.0;
/// The most seconds by which a wait is spread.
const MAX_SPREAD: f64 = 10.0;

/// The time after which a client may come back, in milliseconds and in whole seconds: `seconds`,
/// and up to a tenth of it, so that not all clients come back at once. A short wait is not spread
/// beyond the whole second.
fn retry_times(seconds: f64, random: u64) -> (u64, u64) {
    let part = (random % 1001) as f64 / 1000.0;
    let spread = (seconds / 10.0).min(MAX_SPREAD) * part;
    let whole = seconds.ceil().max(1.0);
    let until = match seconds >= LONG_WAIT {
        true => seconds + spread,
        false => (seconds + spread).min(whole),
    };
    ((until * 1000.0).ceil().max(1.0) as u64, (until.ceil() as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_never_too_short_and_spread_by_a_tenth_at_most() {
        for random in [0, 7, 500, 1000, u64::MAX] {
            for seconds in [0.0, 0.0004, 0.95, 1.0, 9.2, 10.0, 59.5, 1e4] {
                let (ms, whole) = retry_times(seconds, random);
                assert!(ms as f64 >= seconds * 1000.0 && ms >= 1, "{seconds}: {ms}");
                assert!(whole * 1000 >= ms && whole >= 1, "{seconds}: {ms} ms, {whole} s");
                assert!(ms as f64 <= seconds * 1100.0 + 1.0, "{seconds}: {ms}");
            }
        }
        assert_eq!(retry_times(0.95, 1000).1, 1);
        assert_eq!(retry_times(20.0, 0), (20_000, 20));
    }
}
