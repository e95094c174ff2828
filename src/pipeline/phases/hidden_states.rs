//! Prompts to hidden states of a language model, as FLUX.2 reads them.

use super::text_encode::{WORTH_BYTES, beginning, check_ids, draft};
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, run_once, start_operations,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Event;
use crate::model::{Qwen3Config, qwen3};
use crate::pipeline::model::Network;
use crate::pipeline::progress::Listener;
use crate::pipeline::text_cache::{Text, TextCache};
use crate::pipeline::tokenizers::Ids;

/// Makes [`Values::text`] from the prompts.
pub struct HiddenStates<'a> {
    /// The language model.
    pub qwen3: &'a Network<Qwen3Config>,
    /// The ids of the prompt, and of the negative prompt with true CFG; all have one length.
    pub prompts: Vec<Ids>,
    /// Images of the batch.
    pub images: usize,
    /// Names what the embeddings depend on besides the network and the prompts; `None` if the
    /// cache is not used.
    pub key: Option<String>,
}

impl HiddenStates<'_> {
    /// Tokens of a prompt, padding included.
    fn length(&self) -> usize {
        self.prompts[0].ids.len()
    }

    /// The embeddings of all tokens, prompt after prompt.
    fn tokens(&self) -> Result<Vec<f32>> {
        let Network { config, weights } = self.qwen3;
        let table = weights.get(qwen3::EMBEDDING, 0, config.vocab, config.width)?;
        let ids = self.prompts.iter().flat_map(|prompt| &prompt.ids);
        table.rows_to_f32(&ids.map(|&id| id as usize).collect::<Vec<_>>())
    }

    /// Everything that the embeddings depend on.
    fn cache_key(&self) -> Vec<u8> {
        let key = self.key.as_deref().unwrap_or_default();
        let Network { config, weights } = self.qwen3;
        let mut key = format!("{} {config:?} {key}\n", weights.hash()).into_bytes();
        for prompt in &self.prompts {
            key.extend((prompt.real as u64).to_le_bytes());
            key.extend(bytemuck::cast_slice::<u32, u8>(&prompt.ids));
        }
        key
    }
}

impl GenerationPhase for HiddenStates<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let real: Vec<usize> = self.prompts.iter().map(|p| p.real).collect();
        let (config, length) = (&self.qwen3.config, self.length());
        vec![draft(&self.qwen3.weights, move || qwen3::encode(config, &real, length, activation))]
    }

    /// The hidden states and their copies for every image of the batch, or the embeddings of the
    /// tokens.
    fn host_bytes(&self) -> u64 {
        let (prompts, config) = (self.prompts.len() * self.length(), &self.qwen3.config);
        let states = prompts * self.images * config.context() * 2 * 4;
        states.max(prompts * config.width * 4) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let [planned] = programs else { unreachable!("it is always planned") };
        let program = &planned.program;
        let mut progress = start_operations(programs, on)?;
        if let Some(ids) = self.prompts.iter().find(|ids| !ids.cut.is_empty()) {
            progress.note(Event::warning(format!(
                "the prompt is longer than the {} tokens of this model; it does not see the part \
                 that begins with: {}",
                self.length(),
                beginning(&ids.cut)
            )))?;
        }
        check_ids(&self.prompts, self.qwen3.config.vocab, "Qwen3")?;
        let cache = (self.key.is_some() && planned.plan.weight_bytes >= WORTH_BYTES)
            .then(|| TextCache::new(&crate::host::cache_folder()));
        let key = self.cache_key();
        if let Some(text) = cache.as_ref().and_then(|c| c.load(&key)) {
            progress.note(Event::note("the embeddings of this prompt were found in the cache"))?;
            values.text = text;
            return progress.end();
        }
        let mut session = device.session(planned)?;
        session.write_f32(program.input("tokens"), &self.tokens()?)?;
        let rope = qwen3::rope(&self.qwen3.config, self.length());
        session.write_f32(program.input("rope"), &rope)?;
        let context = run_once(session, planned, "text", &mut |_, _| progress.step())?;
        values.text = Text { context, pooled: Vec::new() };
        progress.end()?;
        if let Some(cache) = cache {
            cache.save(&key, &values.text);
        }
        Ok(())
    }
}
