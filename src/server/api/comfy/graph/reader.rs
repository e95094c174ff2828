//! Evaluates the nodes of a graph, each once.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::masks::GraphMask;
use super::packages::marks_of;
use super::picture::Picture;
use super::place::Place;
use super::{
    Conditioning, Drawing, Drawn, Guider, Latent, MAX_DEPTH, Model, Output, Sigmas, Surroundings,
};
use crate::server::fault::Fault;

/// Follows the links of a graph.
pub(super) struct Reader<'a> {
    pub(super) graph: &'a Map<String, Value>,
    pub(super) around: &'a dyn Surroundings,
    /// Outputs of nodes that were evaluated already.
    pub(super) known: HashMap<(String, usize), Output>,
    pub(super) depth: usize,
    pub(super) notes: Vec<String>,
    pub(super) has_flux_guidance: bool,
    /// How many files were read and written for the graph.
    pub(super) worked: usize,
}

/// A method that reads a linked input of one type.
macro_rules! linked {
    ($($name:ident: $variant:ident -> $type:ty, $label:literal;)+) => {
        $(pub(super) fn $name(&mut self, node: &Place, input: &str) -> Result<$type, Fault> {
            match self.link(node, input)? {
                Output::$variant(value) => Ok(value),
                _ => Err(node.wrong_type(input, $label)),
            }
        })+
    };
}

impl<'a> Reader<'a> {
    linked! {
        model: Model -> Model, "MODEL";
        clip: Clip -> Vec<(String, f32)>, "CLIP";
        conditioning: Conditioning -> Conditioning, "CONDITIONING";
        latent: Latent -> Latent, "LATENT";
        noise: Noise -> u64, "NOISE";
        guider: Guider -> Box<Guider>, "GUIDER";
    }

    pub(super) fn node(&self, id: &str) -> Result<Place<'a>, Fault> {
        let Some(node) = self.graph.get(id) else {
            return Err(Fault::new(
                400,
                "invalid_prompt",
                "a link leads to a node that is not there",
            ));
        };
        let class = node["class_type"].as_str().unwrap_or_default();
        Ok(Place { id: id.to_string(), class, inputs: &node["inputs"] })
    }

    /// The output that an input is linked to.
    pub(super) fn link(&mut self, node: &Place, input: &str) -> Result<Output, Fault> {
        let value = &node.inputs[input];
        let target = match &value[0] {
            Value::String(id) => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        };
        let (Some(id), Some(slot)) = (target, value[1].as_u64()) else {
            return Err(node.invalid(input, "a link"));
        };
        let key = (id, slot as usize);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        if self.depth >= MAX_DEPTH {
            return Err(node.unsupported("the graph has a cycle, or is too deep"));
        }
        self.depth += 1;
        let target = self.node(&key.0)?;
        let output = self.evaluate(&target, key.1)?;
        self.depth -= 1;
        self.known.insert(key, output.clone());
        Ok(output)
    }

    /// The value of an input, which may come from another node.
    pub(super) fn value(&mut self, node: &Place, input: &str) -> Result<Value, Fault> {
        match &node.inputs[input] {
            Value::Array(_) => match self.link(node, input)? {
                Output::Value(value) => Ok(value),
                _ => Err(node.wrong_type(input, "a value")),
            },
            value => Ok(value.clone()),
        }
    }

    pub(super) fn whole(&mut self, node: &Place, input: &str) -> Result<u64, Fault> {
        let value = self.value(node, input)?;
        let real = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x));
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        let found = value.as_u64().or_else(|| real().map(|x| x as u64)).or_else(text);
        found.ok_or_else(|| node.invalid(input, "a whole number from 0"))
    }

    pub(super) fn count(&mut self, node: &Place, input: &str) -> Result<usize, Fault> {
        let number = self.whole(node, input)?;
        usize::try_from(number).map_err(|_| node.invalid(input, "a smaller number"))
    }

    pub(super) fn real(&mut self, node: &Place, input: &str) -> Result<f32, Fault> {
        let value = self.value(node, input)?;
        let text = || value.as_str().and_then(|text| text.trim().parse().ok());
        let found = value.as_f64().or_else(text).map(|x| x as f32).filter(|x| x.is_finite());
        found.ok_or_else(|| node.invalid(input, "a number"))
    }

    pub(super) fn text(&mut self, node: &Place, input: &str) -> Result<String, Fault> {
        match self.value(node, input)? {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(node.invalid(input, "text")),
        }
    }

    fn evaluate(&mut self, node: &Place, slot: usize) -> Result<Output, Fault> {
        match node.class {
            "CheckpointLoaderSimple" | "UNETLoader" | "UnetLoaderGGUF" if slot == 0 => {
                let input = if node.class.starts_with('C') { "ckpt_name" } else { "unet_name" };
                let name = Some(self.text(node, input)?);
                Ok(Output::Model(Model { name, ..Model::default() }))
            }
            "CheckpointLoaderSimple" if slot == 1 => Ok(Output::Clip(Vec::new())),
            "CheckpointLoaderSimple" | "VAELoader" => Ok(Output::Vae),
            "CLIPLoader" | "CLIPLoaderGGUF" | "DualCLIPLoader" | "DualCLIPLoaderGGUF" => {
                Ok(Output::Clip(Vec::new()))
            }
            "LoraLoader" | "LoraLoaderModelOnly" => self.lora(node, slot),
            "ModelSamplingFlux" | "ModelSamplingSD3" => self.shifted(node),
            "CLIPTextEncode"
            | "CLIPTextEncodeFlux"
            | "FluxGuidance"
            | "ConditioningZeroOut"
            | "ReferenceLatent" => self.condition(node).map(Output::Conditioning),
            "EmptyLatentImage"
            | "EmptySD3LatentImage"
            | "EmptyFlux2LatentImage"
            | "RepeatLatentBatch"
            | "SetLatentNoiseMask"
            | "VAEEncodeForInpaint"
            | "VAEEncode"
            | "VAEEncodeTiled" => self.start(node).map(Output::Latent),
            "LoadImage" | "LoadImageOutput" | "ETN_LoadImageBase64" | "ETN_LoadImageCache"
                if slot == 1 =>
            {
                let Picture { bytes, .. } = self.load(node)?;
                Ok(Output::Mask(GraphMask::new(bytes, marks_of(node.class))))
            }
            "LoadImageMask" | "ETN_LoadMaskBase64" | "ImageToMask" | "InvertMask" | "GrowMask"
            | "CropMask" | "ThresholdMask" => self.masked(node).map(Output::Mask),
            "ImagePadForOutpaint" => {
                let (picture, margins) = self.padded(node)?;
                Ok(match slot {
                    0 => Output::Picture(picture),
                    _ => Output::Mask(GraphMask::Margins(margins)),
                })
            }
            "CLIPVisionLoader" => Ok(Output::ClipVision),
            "StyleModelLoader" => Ok(Output::StyleModel),
            "CLIPVisionEncode" => self.seen(node).map(Output::Seen),
            "StyleModelApply" => self.styled(node).map(Output::Conditioning),
            "ControlNetLoader" | "SetUnionControlNetType" => {
                self.controlnet(node).map(Output::ControlNet)
            }
            "ControlNetApply"
            | "ControlNetApplyAdvanced"
            | "ControlNetApplySD3"
            | "ControlNetInpaintingAliMamaApply" => self.controlled(node, slot),
            "Canny" => self.edges(node).map(Output::Picture),
            "InpaintModelConditioning"
            | "INPAINT_VAEEncodeInpaintConditioning"
            | "InstructPixToPixConditioning" => self.image_conditioning(node, slot),
            "ImageCompositeMasked" => self.composite(node),
            "ETN_ApplyMaskToImage" => self.cut_out(node),
            "DifferentialDiffusion" => self.differential(node).map(Output::Model),
            "LoadImage" | "LoadImageOutput" | "ETN_LoadImageBase64" | "ETN_LoadImageCache" => {
                self.load(node).map(Output::Picture)
            }
            "ImageScale"
            | "ImageScaleToTotalPixels"
            | "FluxKontextImageScale"
            | "HintImageEnchance" => self.scale(node),
            "GetImageSize" => self.image_size(node, slot),
            "KSampler" | "KSamplerAdvanced" | "SamplerCustomAdvanced" => {
                self.sample(node).map(|drawing| Output::Latent(Latent::Drawn(Box::new(drawing))))
            }
            "KSamplerSelect" => {
                self.sampler(node)?;
                Ok(Output::Sampler)
            }
            "BasicScheduler" => {
                self.scheduler(node)?;
                let (steps, denoise) = (self.count(node, "steps")?, self.real(node, "denoise")?);
                let model = self.model(node, "model")?;
                Ok(Output::Sigmas(self.levels(node, &model, steps, denoise)?))
            }
            // The levels are those of the image's own size.
            "Flux2Scheduler" => {
                let steps = self.count(node, "steps")?;
                self.levels(node, &Model::default(), steps, 1.0).map(Output::Sigmas)
            }
            "SplitSigmas" if slot == 0 => Ok(Output::HighSigmas),
            "SplitSigmas" => self.split(node).map(Output::Sigmas),
            "RandomNoise" => self.whole(node, "noise_seed").map(Output::Noise),
            "BasicGuider" | "CFGGuider" => self.guide(node).map(|g| Output::Guider(Box::new(g))),
            "VAEDecode" | "VAEDecodeTiled" => match self.latent(node, "samples")? {
                Latent::Drawn(drawing) => Ok(Output::Images(Drawn::new(drawing, &node.id))),
                _ => Err(node.unsupported("it decodes a latent that no sampler has drawn")),
            },
            "PrimitiveInt" | "PrimitiveFloat" | "PrimitiveString" | "PrimitiveStringMultiline" => {
                self.value(node, "value").map(Output::Value)
            }
            _ => self.of_packages(node, slot),
        }
    }

    /// Masks with gray pixels are always drawn by differential diffusion.
    fn differential(&mut self, node: &Place) -> Result<Model, Fault> {
        if node.inputs.get("strength").is_some() && self.real(node, "strength")? != 1.0 {
            self.note("a mask with gray pixels acts with its full strength");
        }
        self.model(node, "model")
    }

    /// Width, height and number of images.
    fn image_size(&mut self, node: &Place, slot: usize) -> Result<Output, Fault> {
        let (width, height) = match self.link(node, "image")? {
            Output::Images(drawn) => drawn.size,
            _ => self.picture(node)?.size,
        };
        let all = [width, height, 1];
        Ok(Output::Value(all.get(slot).copied().unwrap_or(1).into()))
    }

    fn lora(&mut self, node: &Place, slot: usize) -> Result<Output, Fault> {
        let name = self.text(node, "lora_name")?;
        if slot == 0 {
            let mut model = self.model(node, "model")?;
            let strength = self.real(node, "strength_model")?;
            model.loras.push((name, strength));
            return Ok(Output::Model(model));
        }
        let mut loras = self.clip(node, "clip")?;
        loras.push((name, self.real(node, "strength_clip")?));
        Ok(Output::Clip(loras))
    }

    /// ComfyUI's `ModelSamplingFlux` has one shift for a size, as `ModelSamplingSD3` has.
    fn shifted(&mut self, node: &Place) -> Result<Output, Fault> {
        let mut model = self.model(node, "model")?;
        model.shift = Some(match node.class {
            "ModelSamplingSD3" => self.real(node, "shift")?,
            _ => {
                let (max, base) = (self.real(node, "max_shift")?, self.real(node, "base_shift")?);
                let pixels = self.real(node, "width")? * self.real(node, "height")?;
                let slope = (max - base) / (4096.0 - 256.0);
                (pixels / 256.0 * slope + base - slope * 256.0).exp()
            }
        });
        Ok(Output::Model(model))
    }

    fn condition(&mut self, node: &Place) -> Result<Conditioning, Fault> {
        let (text, guidance) = match node.class {
            "FluxGuidance" => {
                let before = self.conditioning(node, "conditioning")?;
                return Ok(Conditioning { guidance: Some(self.real(node, "guidance")?), ..before });
            }
            "ConditioningZeroOut" => {
                let before = self.conditioning(node, "conditioning")?;
                return Ok(Conditioning { is_zero: true, ..before });
            }
            "ReferenceLatent" => {
                let mut before = self.conditioning(node, "conditioning")?;
                if node.inputs.get("latent").is_some_and(|latent| !latent.is_null()) {
                    match self.latent(node, "latent")? {
                        Latent::Encoded { picture, .. } => before.references.push(picture),
                        _ => return Err(node.unsupported("its latent is not that of an image")),
                    }
                }
                return Ok(before);
            }
            "CLIPTextEncodeFlux" => {
                let (clip, t5) = (self.text(node, "clip_l")?, self.text(node, "t5xxl")?);
                let text = match (clip.trim(), t5.trim()) {
                    (a, b) if a == b || a.is_empty() => t5,
                    (_, "") => clip,
                    _ => {
                        return Err(node.unsupported("both text encoders get the same prompt here"));
                    }
                };
                (text, Some(self.real(node, "guidance")?))
            }
            _ => (self.text(node, "text")?, None),
        };
        let loras = self.clip(node, "clip")?;
        Ok(Conditioning {
            node: node.id.clone(),
            text,
            loras,
            guidance,
            references: Vec::new(),
            control: None,
            styles: Vec::new(),
            controlnets: Vec::new(),
            is_zero: false,
            control_masks: Vec::new(),
        })
    }

    /// Every sampler is drawn as Euler, since that is what there is.
    fn sampler(&mut self, node: &Place) -> Result<(), Fault> {
        let name = self.text(node, "sampler_name")?;
        if name != "euler" {
            self.notes.push(format!("drawn with the sampler euler in place of {name}"));
        }
        Ok(())
    }

    fn scheduler(&mut self, node: &Place) -> Result<(), Fault> {
        let name = self.text(node, "scheduler")?;
        if name != "simple" {
            self.notes.push(format!("drawn with the scheduler simple in place of {name}"));
        }
        Ok(())
    }

    /// The last `steps` levels of as many as make them the part `denoise` of the whole.
    fn levels(
        &mut self,
        node: &Place,
        model: &Model,
        steps: usize,
        denoise: f32,
    ) -> Result<Sigmas, Fault> {
        if !(0.0..=1.0).contains(&denoise) {
            return Err(node.invalid("denoise", "a number from 0 to 1"));
        }
        let usual = self.around.steps(model.name.as_deref(), steps);
        if usual != steps {
            self.notes.push(format!("drawn with {usual} steps in place of {steps}"));
        }
        let (steps, asked) = (usual, steps);
        Ok(match denoise {
            denoise if denoise > 0.9999 => Sigmas { total: steps, steps, asked },
            0.0 => Sigmas { total: steps, steps: 0, asked },
            denoise => Sigmas { total: (steps as f64 / f64::from(denoise)) as usize, steps, asked },
        })
    }

    fn split(&mut self, node: &Place) -> Result<Sigmas, Fault> {
        let step = self.count(node, "step")?;
        match self.link(node, "sigmas")? {
            Output::Sigmas(Sigmas { total, steps, asked }) => {
                // Where fewer steps are drawn than the graph says, the same part of them is left
                // out, and at least one step stays.
                let step = match steps < asked && step < asked {
                    true => (step * steps / asked).min(steps.saturating_sub(1)),
                    false => step,
                };
                let steps = steps.saturating_sub(step);
                Ok(Sigmas { total, steps, asked: steps })
            }
            Output::HighSigmas => Err(node.unsupported("only the last part of the steps is drawn")),
            _ => Err(node.wrong_type("sigmas", "SIGMAS")),
        }
    }

    fn guide(&mut self, node: &Place) -> Result<Guider, Fault> {
        let model = self.model(node, "model")?;
        Ok(match node.class {
            "BasicGuider" => {
                let positive = self.conditioning(node, "conditioning")?;
                Guider { model, positive, negative: None, cfg: 1.0 }
            }
            _ => Guider {
                model,
                positive: self.conditioning(node, "positive")?,
                negative: Some(self.conditioning(node, "negative")?),
                cfg: self.real(node, "cfg")?,
            },
        })
    }

    fn sample(&mut self, node: &Place) -> Result<Drawing, Fault> {
        if node.class == "SamplerCustomAdvanced" {
            self.link(node, "sampler")?;
            let sigmas = match self.link(node, "sigmas")? {
                Output::Sigmas(sigmas) => sigmas,
                Output::HighSigmas => {
                    return Err(node.unsupported("it leaves noise in the image"));
                }
                _ => return Err(node.wrong_type("sigmas", "SIGMAS")),
            };
            return Ok(Drawing {
                node: node.id.clone(),
                guider: *self.guider(node, "guider")?,
                seed: self.noise(node, "noise")?,
                sigmas,
                latent: self.latent(node, "latent_image")?,
            });
        }
        self.sampler(node)?;
        self.scheduler(node)?;
        let model = self.model(node, "model")?;
        let steps = self.count(node, "steps")?;
        let (seed, sigmas) = match node.class {
            "KSampler" => {
                let denoise = self.real(node, "denoise")?;
                (self.whole(node, "seed")?, self.levels(node, &model, steps, denoise)?)
            }
            _ => {
                let adds = self.text(node, "add_noise")? != "disable";
                let leaves = self.text(node, "return_with_leftover_noise")? == "enable";
                if !adds || leaves || self.count(node, "end_at_step")? < steps {
                    return Err(node.unsupported("it leaves noise in the image, or adds none"));
                }
                let skipped = self.count(node, "start_at_step")?.min(steps);
                let seed = self.whole(node, "noise_seed")?;
                let drawn = steps - skipped;
                (seed, Sigmas { total: steps, steps: drawn, asked: drawn })
            }
        };
        // Stock graphs say 7 for every model. Only who has built a graph for FLUX means it.
        let cfg = self.real(node, "cfg")?;
        let cfg = if self.has_flux_guidance { cfg } else { 1.0 };
        let guider = Guider {
            model,
            positive: self.conditioning(node, "positive")?,
            negative: Some(self.conditioning(node, "negative")?),
            cfg,
        };
        let latent = self.latent(node, "latent_image")?;
        Ok(Drawing { node: node.id.clone(), guider, seed, sigmas, latent })
    }
}
