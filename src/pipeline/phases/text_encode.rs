//! Prompts to embeddings: CLIP gives a pooled one, T5 one per token.

use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, run_once,
    start_operations,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::event::{Event, Phase};
use crate::model::{clip, t5};
use crate::op::Program;
use crate::pipeline::model::Flux1Networks;
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::text_cache::{Text, TextCache};
use crate::pipeline::tokenizers::{Ids, Tokenizers};
use crate::weights::ComponentWeights;

/// Text encoders with at least this many bytes of weights are worth a cache.
pub(super) const WORTH_BYTES: u64 = 256 << 20;

/// Makes [`Values::text`] from the prompts.
pub struct TextEncode<'a> {
    /// Both text encoders.
    pub networks: &'a Flux1Networks,
    /// Both tokenizers.
    pub tokenizers: &'a Tokenizers,
    /// The prompt, and the negative prompt with true CFG.
    pub prompts: Vec<String>,
    /// Images of the batch.
    pub images: usize,
    /// Names what the embeddings depend on besides the networks and the prompts; `None` if the
    /// cache is not used.
    pub key: Option<String>,
}

impl GenerationPhase for TextEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let (model, prompts) = (self.networks, self.prompts.len());
        vec![
            draft(&model.clip.weights, move || {
                clip::encode(&model.clip.config, prompts, activation)
            }),
            draft(&model.t5.weights, move || {
                t5::encode(&model.t5.config, prompts, model.t5_length, activation)
            }),
        ]
    }

    /// The embeddings, and their copies for every image of the batch.
    fn host_bytes(&self) -> u64 {
        let Flux1Networks { t5, t5_length, .. } = self.networks;
        (self.prompts.len() * self.images * t5_length * t5.config.width * 2 * 4) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let mut progress = start_operations(programs, on)?;
        let (clip_ids, t5_ids) = self.tokenise(&mut progress)?;
        let [clip, t5] = programs else { unreachable!("both are always planned") };
        let cache = (self.key.is_some() && t5.plan.weight_bytes >= WORTH_BYTES)
            .then(|| TextCache::new(&crate::host::cache_folder()));
        let key = self.cache_key(&clip_ids, &t5_ids);
        if let Some(text) = cache.as_ref().and_then(|c| c.load(&key)) {
            progress.note(Event::note("the embeddings of this prompt were found in the cache"))?;
            values.text = text;
            return progress.end();
        }
        let pooled = self.run_clip(clip, device, &clip_ids, &mut progress)?;
        let context = self.run_t5(t5, device, &t5_ids, &mut progress)?;
        values.text = Text { context, pooled };
        progress.end()?;
        if let Some(cache) = cache {
            cache.save(&key, &values.text);
        }
        Ok(())
    }
}

impl TextEncode<'_> {
    /// The token ids of every prompt for CLIP and for T5, checked against the embedding tables.
    fn tokenise(&self, progress: &mut Progress<'_>) -> Result<(Vec<Ids>, Vec<Ids>)> {
        let Flux1Networks { clip, t5, t5_length, .. } = self.networks;
        let prompts = || self.prompts.iter();
        let clip_ids: Result<Vec<_>> = prompts().map(|p| self.tokenizers.clip_ids(p)).collect();
        let t5_ids: Result<Vec<_>> =
            prompts().map(|p| self.tokenizers.t5_ids(p, *t5_length)).collect();
        let (clip_ids, t5_ids) = (clip_ids?, t5_ids?);
        if let Some(ids) = t5_ids.iter().find(|ids| !ids.cut.is_empty()) {
            progress.note(Event::warning(format!(
                "the prompt is longer than the {t5_length} tokens of this model; T5 does not see \
                 the part that begins with: {}",
                beginning(&ids.cut)
            )))?;
        }
        check_ids(&clip_ids, clip.config.vocab, "CLIP")?;
        check_ids(&t5_ids, t5.config.vocab, "T5")?;
        Ok((clip_ids, t5_ids))
    }

    /// Everything that the embeddings depend on.
    fn cache_key(&self, clip_ids: &[Ids], t5_ids: &[Ids]) -> Vec<u8> {
        let Flux1Networks { clip, t5, .. } = self.networks;
        let networks = format!(
            "{} {:?} {} {:?}",
            clip.weights.hash(),
            clip.config,
            t5.weights.hash(),
            t5.config
        );
        let mut key =
            format!("{networks} {}\n", self.key.as_deref().unwrap_or_default()).into_bytes();
        for ids in clip_ids.iter().chain(t5_ids) {
            key.extend(bytemuck::cast_slice::<u32, u8>(&ids.ids));
        }
        key
    }

    /// CLIP's hidden state at the first end token of each prompt.
    fn run_clip(
        &self,
        planned: &PlannedProgram,
        device: &mut SharedDevice<'_>,
        prompts: &[Ids],
        progress: &mut Progress<'_>,
    ) -> Result<Vec<f32>> {
        let config = &self.networks.clip.config;
        let mut session = device.session(planned)?;
        session.write_i32(planned.program.input("ids"), &flat(prompts))?;
        let hidden = run_once(session, planned, "hidden", &mut |_, _| progress.step())?;
        let pooled = prompts.iter().enumerate().flat_map(|(i, ids)| {
            let row = i * config.positions + ids.real - 1;
            hidden[row * config.width..(row + 1) * config.width].to_vec()
        });
        Ok(pooled.collect())
    }

    /// T5's hidden states, prompt after prompt.
    fn run_t5(
        &self,
        planned: &PlannedProgram,
        device: &mut SharedDevice<'_>,
        prompts: &[Ids],
        progress: &mut Progress<'_>,
    ) -> Result<Vec<f32>> {
        let buckets = t5::relative_buckets(&self.networks.t5.config, self.networks.t5_length);
        let mut session = device.session(planned)?;
        session.write_i32(planned.program.input("ids"), &flat(prompts))?;
        session.write_i32(planned.program.input("buckets"), &buckets)?;
        run_once(session, planned, "text", &mut |_, _| progress.step())
    }
}

/// The draft of a text encoder, which runs once.
pub(super) fn draft<'a>(
    weights: &'a ComponentWeights,
    record: impl FnOnce() -> Program + 'a,
) -> Draft<'a> {
    Draft::always(Phase::TextEncode, weights, move || Variant::whole(record(), 1))
}

/// The ids of all prompts, one after another.
fn flat(prompts: &[Ids]) -> Vec<i32> {
    prompts.iter().flat_map(|p| p.ids.iter().map(|&id| id as i32)).collect()
}

/// Checks that every id is one of the `vocab` rows of the embedding.
pub(super) fn check_ids(prompts: &[Ids], vocab: usize, encoder: &str) -> Result<()> {
    match prompts.iter().flat_map(|p| &p.ids).find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::model(format!(
            "the {encoder} tokenizer does not belong to this {encoder} model"
        ))
        .found(format!("token {id}"))
        .expected(format!("ids below {vocab}"))
        .try_(
            "use the tokenizer and the text encoder of one model; a tokenizer in the model's \
             folder replaces the built-in one",
        )),
    }
}

/// The first 40 characters of `text`.
pub(super) fn beginning(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short} ...") } else { short }
}
