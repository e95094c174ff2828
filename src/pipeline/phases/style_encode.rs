//! Style images to tokens like those of a prompt: SigLIP reads them, the Redux adapter translates.

use super::text_encode::WORTH_BYTES;
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, check_finite, peak_bytes,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::{Event, Phase};
use crate::model::{redux, siglip};
use crate::op::Program;
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::Image;
use crate::pipeline::styles::StyleNetworks;
use crate::pipeline::text_cache::{Text, TextCache};
use crate::weights::ComponentWeights;

/// Puts the tokens of [`Values::style_images`] behind those of each prompt in [`Values::text`].
pub struct StyleEncode<'a> {
    /// Both networks; `None` without styles.
    pub networks: Option<&'a StyleNetworks>,
    /// Weights of the model, which stand for those of the networks where there are none.
    pub others: &'a ComponentWeights,
    /// The factor of the tokens of each image.
    pub strengths: Vec<f32>,
    /// Prompts that the tokens are put behind.
    pub prompts: usize,
    /// Images of the batch.
    pub images: usize,
    /// As that of the text encoders.
    pub key: Option<String>,
}

impl<'a> StyleEncode<'a> {
    fn draft<'s>(
        &'s self,
        weights: impl Fn(&'a StyleNetworks) -> &'a ComponentWeights,
        record: impl Fn(&'a StyleNetworks) -> Program + 's,
    ) -> Draft<'s> {
        let variant = move |networks| Variant::whole(record(networks), self.strengths.len());
        let weights = self.networks.map_or(self.others, weights);
        Draft::optional(Phase::StyleEncode, weights, self.networks.into_iter().map(variant))
    }

    /// Everything that the tokens of `image` depend on.
    fn cache_key(&self, networks: &StyleNetworks, image: &Image) -> Vec<u8> {
        let StyleNetworks { siglip, redux } = networks;
        let key = format!(
            "style {} {:?} {} {:?} {}\n",
            siglip.weights.hash(),
            siglip.config,
            redux.weights.hash(),
            redux.config,
            self.key.as_deref().unwrap_or_default()
        );
        [key.as_bytes(), &image.rgb].concat()
    }
}

impl GenerationPhase for StyleEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let siglip = move |n: &StyleNetworks| siglip::encode(&n.siglip.config, activation);
        let redux = move |n: &StyleNetworks| {
            redux::embed(&n.redux.config, n.siglip.config.tokens(), activation)
        };
        vec![self.draft(|n| &n.siglip.weights, siglip), self.draft(|n| &n.redux.weights, redux)]
    }

    /// The images as they are read, the hidden states, and the tokens: one copy of them, one behind
    /// each prompt, and one for every image of the batch.
    fn host_bytes(&self) -> u64 {
        let Some(StyleNetworks { siglip, redux }) = self.networks else { return 0 };
        let (c, copies) = (&siglip.config, 1 + self.prompts * (1 + self.images));
        let values = c.width + copies * redux.config.outputs;
        let of_one = 3 * c.image * c.image + 4 * c.tokens() * values;
        (self.strengths.len() * of_one + 4 * c.tokens() * c.patch_values()) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let ([siglip, redux], Some(networks)) = (programs, self.networks) else {
            unreachable!("both are planned for a request with styles")
        };
        let images = std::mem::take(&mut values.style_images);
        let steps = programs.iter().map(|p| p.program.steps.len()).sum::<usize>() * images.len();
        let mut progress = Progress::start(Phase::StyleEncode, steps, peak_bytes(programs), on)?;
        let bytes: u64 = programs.iter().map(|p| p.plan.weight_bytes).sum();
        let cache = (self.key.is_some() && bytes >= WORTH_BYTES)
            .then(|| TextCache::new(&crate::host::cache_folder()));
        let keys: Vec<_> = images.iter().map(|image| self.cache_key(networks, image)).collect();
        let mut tokens: Vec<Option<Vec<f32>>> =
            keys.iter().map(|key| Some(cache.as_ref()?.load(key)?.context)).collect();
        let missing: Vec<usize> = (0..images.len()).filter(|&i| tokens[i].is_none()).collect();
        if missing.len() < images.len() {
            progress.note(Event::note("the embeddings of style images were found in the cache"))?;
        }
        let config = &networks.siglip.config;
        let patches = missing.iter().map(|&i| siglip::patches(config, &images[i].rgb));
        let hidden = run_each(siglip, "patches", "hidden", patches, device, &mut progress)?;
        let made = run_each(redux, "hidden", "style", hidden.into_iter(), device, &mut progress)?;
        for (i, context) in missing.into_iter().zip(made) {
            let text = Text { context, pooled: Vec::new() };
            if let Some(cache) = &cache {
                cache.save(&keys[i], &text);
            }
            tokens[i] = Some(text.context);
        }
        let mut styles = Vec::new();
        for (tokens, strength) in tokens.into_iter().flatten().zip(&self.strengths) {
            styles.extend(tokens.into_iter().map(|v| v * strength));
        }
        let context = &mut values.text.context;
        let per_prompt = context.len() / self.prompts;
        *context = context
            .chunks_exact(per_prompt)
            .flat_map(|p| [p, &styles])
            .flatten()
            .copied()
            .collect();
        progress.end()
    }
}

/// Runs `planned` with each of `inputs`; returns the outputs.
fn run_each(
    planned: &PlannedProgram,
    input: &str,
    output: &str,
    inputs: impl ExactSizeIterator<Item = Vec<f32>>,
    device: &mut SharedDevice<'_>,
    progress: &mut Progress<'_>,
) -> Result<Vec<Vec<f32>>> {
    let (count, program) = (inputs.len(), &planned.program);
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut session = device.session(planned)?;
    if let Some(places) = program.inputs.iter().find(|io| io.name == "places") {
        let numbers: Vec<i32> = (0..places.tensor.rows as i32).collect();
        session.write_i32(places.tensor, &numbers)?;
    }
    let mut outputs = Vec::new();
    for (i, values) in inputs.enumerate() {
        session.write_f32(program.input(input), &values)?;
        session.run(i + 1 < count, &mut |_, _| progress.step())?;
        let out = session.read_f32(program.output(output))?;
        check_finite(&out, &mut session, planned)?;
        outputs.push(out);
    }
    session.finish()?;
    Ok(outputs)
}
