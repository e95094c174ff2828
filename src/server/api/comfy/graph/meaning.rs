//! The request that a graph means, from the drawing at its end.

use axum::body::Bytes;

use super::picture::Picture;
use super::place::Place;
use super::reader::Reader;
use super::{Conditioning, Control, Drawing, Drawn, Guider, Latent, Meaning, OutputNode, Sigmas};
use super::{masks, prompts, whole_tokens};
use crate::pipeline::request::{LoraChoice, Request};
use crate::server::fault::Fault;

/// The request for a drawing.
pub(super) fn meaning(
    reader: &mut Reader,
    drawn: Drawn,
    outputs: Vec<OutputNode>,
) -> Result<Meaning, Fault> {
    let mut notes = std::mem::take(&mut reader.notes);
    let sampler = reader.node(&drawn.drawing.node)?;
    let Drawing { guider, seed, sigmas, latent, .. } = *drawn.drawing;
    let Guider { model, positive, negative, cfg } = guider;
    let mut request = Request::new(positive.text.as_str()).seed(seed);
    request.steps = Some(sigmas.total);
    request.guidance = positive.guidance;
    request.shift = model.shift;
    request.loras = loras(&model.loras, &positive.loras);
    notes.extend(set_prompts(&mut request, &positive, negative, cfg, &sampler)?);
    let mut repainted = None;
    let (size, count, input) = match latent {
        Latent::Empty { width, height, count } => {
            if sigmas.steps != sigmas.total {
                return Err(sampler.unsupported("only an image can be drawn in part"));
            }
            (Some((width, height)), count, None)
        }
        Latent::Encoded { picture, mask: Some(mask), count } => {
            if picture.is_filled && sigmas.steps != sigmas.total {
                return Err(sampler.unsupported(
                    "its image has a filling, which is left out here: draw it with all steps",
                ));
            }
            request.strength = Some(strength(sigmas));
            let file = file_of(&picture, &sampler)?;
            request.outpaint = picture.margins;
            if positive.control_masks.iter().any(|control| *control != mask) {
                let note = "a ControlNet reads the mask of the latent, not another one";
                notes.push(note.into());
            }
            repainted = masks::read(&mask, &picture, &sampler)?;
            // It has the size of its image.
            (None, count, Some(file))
        }
        Latent::Encoded { picture, mask: None, count } => {
            if picture.margins.is_some() {
                return Err(sampler.unsupported("an image with margins needs its mask"));
            }
            if picture.is_filled {
                return Err(sampler.unsupported("an image with a filling needs a mask"));
            }
            let (width, height) = whole_tokens(picture.size);
            let size = Some((width as usize, height as usize));
            if sigmas.steps == sigmas.total && !positive.references.is_empty() {
                // Noise covers all of it, and a model that reads references need not read it, too.
                (size, count, None)
            } else {
                request.strength = Some(strength(sigmas));
                let file = match picture.is_fitted_only() {
                    // The model's own code does the same.
                    true => picture.bytes,
                    false => file_of(&picture, &sampler)?,
                };
                (size, count, Some(file))
            }
        }
        Latent::Drawn(_) => {
            return Err(sampler.unsupported("it starts from the latent of another sampler"));
        }
    };
    if !positive.control_masks.is_empty() && repainted.is_none() {
        let why = "a ControlNet reads the part that is repainted, but its latent has no mask";
        return Err(sampler.unsupported(why));
    }
    (request.width, request.height) = size.unzip();
    request.count = Some(count);
    if positive.references.iter().any(|picture| picture.is_filled) {
        return Err(sampler.unsupported("a reference image has a filling, which is left out here"));
    }
    let files = positive.references.iter().map(|picture| file_of(picture, &sampler));
    let references = files.collect::<Result<_, _>>()?;
    let control = positive.control.iter().map(|picture| file_of(picture, &sampler)).next();
    let styles = positive.styles.iter().map(|(p, strength)| Ok((file_of(p, &sampler)?, *strength)));
    let styles = styles.collect::<Result<_, Fault>>()?;
    let mut controlnets = Vec::new();
    for Control { choice, picture, node } in positive.controlnets {
        controlnets.push((choice, file_of(&picture, &sampler)?, node));
    }
    Ok(Meaning {
        request,
        model: model.name,
        input,
        mask: repainted,
        control: control.transpose()?,
        styles,
        controlnets,
        references,
        text_node: positive.node,
        sampler_node: sampler.id,
        decode_node: drawn.decode,
        outputs,
        notes,
    })
}

/// Sets CFG and the negative prompt, and returns what the request must be told.
fn set_prompts(
    request: &mut Request,
    positive: &Conditioning,
    negative: Option<Conditioning>,
    cfg: f32,
    sampler: &Place,
) -> Result<Vec<String>, Fault> {
    let mut notes = Vec::new();
    prompts::check_counts(positive, sampler)?;
    if let Some(negative) = &negative {
        let more = prompts::check_both(positive, negative, cfg != 1.0, sampler)?;
        notes.extend(more.into_iter().map(String::from));
    }
    if cfg != 1.0 {
        let negative = negative.filter(|negative| !negative.is_zero);
        let Some(negative) = negative else {
            return Err(sampler.unsupported("a CFG other than 1 needs a negative prompt"));
        };
        request.cfg_scale = Some(cfg);
        request.negative = Some(negative.text);
    }
    match positive.is_zero {
        true => Err(sampler.unsupported("its positive prompt is zeroed out")),
        false => Ok(notes),
    }
}

/// The file of a picture in its size. A file that is damaged is a fault at `sampler`.
fn file_of(picture: &Picture, sampler: &Place) -> Result<Bytes, Fault> {
    picture.file().map_err(|fault| sampler.at(fault))
}

/// The strength with which exactly the last `steps` of `total` steps are drawn.
pub(super) fn strength(Sigmas { total, steps, .. }: Sigmas) -> f32 {
    if total == 0 {
        return 1.0;
    }
    let exact = steps as f32 / total as f32;
    // Where the quotient is rounded up, one step more would be drawn.
    let skipped = |strength: f32| {
        let strength = strength.to_string().parse().unwrap_or(f64::from(strength));
        (total as f64 - total as f64 * strength) as usize
    };
    if skipped(exact) == total - steps { exact } else { exact - 1e-5 }
}

/// The LoRAs of model and text encoders as one list.
fn loras(model: &[(String, f32)], clip: &[(String, f32)]) -> Vec<LoraChoice> {
    let mut rest = clip.to_vec();
    let mut all = Vec::new();
    for (name, strength) in model {
        let lora = LoraChoice::new(name.as_str(), *strength);
        let at = rest.iter().position(|(other, _)| other == name);
        let text = at.map_or(0.0, |at| rest.remove(at).1);
        all.push(if text == *strength { lora } else { lora.text_strength(text) });
    }
    all.extend(
        rest.iter().map(|(name, text)| LoraChoice::new(name.as_str(), 0.0).text_strength(*text)),
    );
    all
}
