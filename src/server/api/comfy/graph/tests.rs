mod limits;
mod prompts;

use serde_json::json;

use super::meaning::strength;
use super::*;
use crate::pipeline::images::{Format, encode, image_size};
use crate::pipeline::request::{ControlMode, Image, LoraChoice};

struct Nothing;

impl Surroundings for Nothing {
    fn image(&self, name: &str) -> Result<Option<Bytes>, Fault> {
        let rgb = match name {
            "photo.png" => vec![9; 100 * 50 * 3],
            // White on the right.
            "mask.png" => (0..100 * 50).flat_map(|i| [255 * u8::from(i % 100 >= 60); 3]).collect(),
            "damaged.png" => vec![9; 100 * 50 * 3],
            _ => return Ok(None),
        };
        let image = Image { width: 100, height: 50, rgb };
        let mut bytes = encode(&image, Format::Png, 90, "").unwrap();
        if name == "damaged.png" {
            // In the pixels, whose checksum is wrong then: its size can still be read.
            let at = bytes.len() - 30;
            bytes[at] ^= 0xff;
        }
        Ok(Some(bytes.into()))
    }

    fn cached_image(&self, id: &str) -> Result<Option<Bytes>, Fault> {
        self.image(id)
    }

    fn steps(&self, model: Option<&str>, steps: usize) -> usize {
        if model == Some("schnell") { steps.min(8) } else { steps }
    }
}

fn read(graph: &Value) -> Result<Meaning, Fault> {
    interpret(graph.as_object().unwrap(), &Nothing)
}

/// `graph` with other values at paths such as `5/seed`.
fn with(graph: &Value, changes: Value) -> Value {
    let mut graph = graph.clone();
    for (path, value) in changes.as_object().unwrap() {
        let (node, input) = path.split_once('/').unwrap();
        match input {
            "class_type" => graph[node]["class_type"] = value.clone(),
            _ => graph[node]["inputs"][input] = value.clone(),
        }
    }
    graph
}

/// The stock graph with a checkpoint and `KSampler`.
fn simple() -> Value {
    json!({
        "3": {"class_type": "KSampler", "inputs": {
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
            "latent_image": ["5", 0], "seed": 18_446_744_073_709_551_615u64, "steps": 20, "cfg": 7,
            "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "schnell"}},
        "5": {"class_type": "EmptyLatentImage", "inputs":
            {"width": 512, "height": 256, "batch_size": 2}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blur", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    })
}

/// The stock graph for FLUX.1 [dev], with a LoRA.
fn advanced() -> Value {
    json!({
        "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["40", 0], "clip": ["30", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 1], "vae": ["10", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
        "10": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "11": {"class_type": "DualCLIPLoader", "inputs": {
            "clip_name1": "t5xxl_fp16.safetensors", "clip_name2": "clip_l.safetensors",
            "type": "flux"}},
        "12": {"class_type": "UNETLoader", "inputs":
            {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}},
        "13": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "sigmas": ["17", 0],
            "latent_image": ["5", 0]}},
        "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "17": {"class_type": "BasicScheduler", "inputs":
            {"model": ["31", 0], "scheduler": "simple", "steps": 20, "denoise": 1}},
        "22": {"class_type": "BasicGuider", "inputs":
            {"model": ["31", 0], "conditioning": ["26", 0]}},
        "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "26": {"class_type": "FluxGuidance", "inputs":
            {"guidance": 2.5, "conditioning": ["6", 0]}},
        "30": {"class_type": "LoraLoader", "inputs": {
            "model": ["12", 0], "clip": ["11", 0], "lora_name": "style.safetensors",
            "strength_model": 0.5, "strength_clip": 0.25}},
        "31": {"class_type": "ModelSamplingFlux", "inputs": {
            "model": ["30", 0], "max_shift": 1.15, "base_shift": 0.5, "width": 1024,
            "height": 1024}},
        "40": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
    })
}

#[test]
fn the_stock_graph_with_a_checkpoint() {
    let meaning = read(&simple()).unwrap();
    let request = Request::new("a fox").seed(u64::MAX).size(512, 256).steps(8).count(2);
    assert_eq!(meaning.request, request);
    assert_eq!(meaning.model.as_deref(), Some("schnell"));
    assert_eq!(meaning.notes, ["drawn with 8 steps in place of 20"]);
    let [output] = meaning.outputs.as_slice() else { panic!("one output") };
    assert_eq!((&*output.id, &*output.class, output.finish.len()), ("9", "SaveImage", 0));
    let nodes = (&*meaning.text_node, &*meaning.sampler_node, &*meaning.decode_node);
    assert_eq!(nodes, ("6", "3", "8"));
    let other = with(&simple(), json!({"3/sampler_name": "dpmpp_2m", "3/scheduler": "karras"}));
    let other = read(&other).unwrap();
    assert_eq!((&other.request, other.notes.len()), (&meaning.request, 3));
}

#[test]
fn the_stock_graph_of_flux() {
    let meaning = read(&advanced()).unwrap();
    let mut request = Request::new("a fox").seed(7).size(1024, 768).steps(20).count(1);
    request.guidance = Some(2.5);
    request.loras = vec![LoraChoice::new("style.safetensors", 0.5).text_strength(0.25)];
    request.shift = meaning.request.shift;
    assert_eq!(meaning.request, request);
    assert!((request.shift.unwrap() - 1.15f32.exp()).abs() < 1e-4);
    assert_eq!(meaning.model.as_deref(), Some("flux1-dev.safetensors"));
}

#[test]
fn true_cfg_is_only_meant_in_graphs_for_flux() {
    let mut graph = simple();
    graph["10"] = json!({"class_type": "FluxGuidance", "inputs":
        {"guidance": 3.5, "conditioning": ["6", 0]}});
    graph["3"]["inputs"]["positive"] = json!(["10", 0]);
    let request = read(&graph).unwrap().request;
    assert_eq!((request.cfg_scale, request.negative.as_deref()), (Some(7.0), Some("blur")));
    graph["3"]["inputs"]["cfg"] = json!(1.0);
    let request = read(&graph).unwrap().request;
    assert_eq!((request.cfg_scale, request.negative, request.guidance), (None, None, Some(3.5)));
}

#[test]
fn an_image_is_drawn_over_in_exactly_the_steps_of_the_graph() {
    let mut graph = simple();
    graph["20"] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
    graph["5"] = json!({"class_type": "VAEEncode", "inputs":
        {"pixels": ["20", 0], "vae": ["4", 2]}});
    let graph = with(&graph, json!({"4/ckpt_name": "dev", "3/denoise": 0.6}));
    let meaning = read(&graph).unwrap();
    let request = &meaning.request;
    assert!(meaning.input.is_some());
    // 20 of 33 steps, as ComfyUI does.
    assert_eq!((request.steps, request.width, request.height), (Some(33), Some(96), Some(48)));
    for total in 1..60usize {
        for steps in 0..=total {
            let strength = strength(Sigmas { total, steps, asked: steps });
            let strength = strength.to_string().parse::<f64>().unwrap();
            let skipped = (total as f64 - total as f64 * strength) as usize;
            assert_eq!(skipped, total - steps, "{steps} of {total}");
        }
    }
    let mut scaled = graph.clone();
    scaled["21"] = json!({"class_type": "ImageScale", "inputs": {"image": ["20", 0],
        "upscale_method": "lanczos", "width": 640, "height": 0, "crop": "disabled"}});
    scaled["5"]["inputs"]["pixels"] = json!(["21", 0]);
    let request = read(&scaled).unwrap().request;
    assert_eq!((request.width, request.height), (Some(640), Some(320)));
    // Krita's way: the last part of divided noise levels.
    let mut split = advanced();
    split["5"] = graph["5"].clone();
    split["20"] = json!({"class_type": "ETN_LoadImageCache", "inputs": {"id": "photo.png"}});
    split["4"] = simple()["4"].clone();
    split["50"] = json!({"class_type": "SplitSigmas", "inputs": {"sigmas": ["17", 0], "step": 8}});
    split["13"]["inputs"]["sigmas"] = json!(["50", 1]);
    let request = read(&split).unwrap().request;
    assert_eq!((request.steps, request.strength), (Some(20), Some(0.6)));
    // A model that needs fewer steps draws the same part of them.
    let few = with(&split, json!({"12/unet_name": "schnell"}));
    let request = read(&few).unwrap().request;
    assert_eq!((request.steps, request.strength), (Some(8), Some(0.625)));
    split["13"]["inputs"]["sigmas"] = json!(["50", 0]);
    assert_eq!(read(&split).unwrap_err().code, "unsupported");
}

#[test]
fn what_cannot_be_drawn_is_refused_at_its_node() {
    let latent = json!({"5/width": [1, 2]});
    for (graph, code, node) in [
        (
            with(&simple(), json!({"3/x": 1, "8/class_type": "ImageBlur"})),
            "missing_node_type",
            "ImageBlur#8",
        ),
        (with(&simple(), json!({"3/model": null})), "required_input_missing", "KSampler#3"),
        (with(&simple(), json!({"3/model": ["5", 0]})), "return_type_mismatch", "KSampler#3"),
        (with(&simple(), json!({"3/steps": -1})), "invalid_input_type", "KSampler#3"),
        (with(&simple(), json!({"3/denoise": 0.5})), "unsupported", "KSampler#3"),
        (with(&simple(), json!({"3/latent_image": ["3", 0]})), "unsupported", "KSampler#3"),
        (with(&simple(), json!({"8/samples": ["5", 0]})), "unsupported", "VAEDecode#8"),
        (with(&simple(), latent), "invalid_prompt", ""),
        (with(&simple(), json!({"3/model": ["99", 0]})), "invalid_prompt", ""),
        (
            with(&simple(), json!({"9/class_type": "VAEDecode"})),
            "required_input_missing",
            "VAEDecode#9",
        ),
        (json!({}), "prompt_no_outputs", ""),
        (json!({"1": {"inputs": {}}}), "invalid_prompt", "#1"),
    ] {
        let fault = read(&graph).unwrap_err();
        assert_eq!((fault.status, fault.code.as_str()), (400, code), "{}", fault.message);
        assert_eq!(fault.parameter.as_deref().unwrap_or_default(), node);
    }
    let mut two = simple();
    two["13"] = two["3"].clone();
    two["18"] = json!({"class_type": "VAEDecode", "inputs":
        {"samples": ["13", 0], "vae": ["4", 2]}});
    two["19"] = json!({"class_type": "PreviewImage", "inputs": {"images": ["18", 0]}});
    assert!(read(&two).unwrap_err().message.contains("one sampler"));
    two["19"]["inputs"]["images"] = json!(["8", 0]);
    assert_eq!(read(&two).unwrap().outputs.len(), 2);
}

/// A graph for FLUX.2 [klein] that edits two images, as ComfyUI exports it.
fn edit() -> Value {
    json!({
        "1": {"class_type": "UNETLoader", "inputs":
            {"unet_name": "flux-2-klein-4b.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "CLIPLoader", "inputs":
            {"clip_name": "qwen_3_4b.safetensors", "type": "flux2", "device": "default"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "flux2-vae.safetensors"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["2", 0]}},
        "5": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}},
        "6": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "7": {"class_type": "ImageScaleToTotalPixels", "inputs":
            {"image": ["6", 0], "upscale_method": "nearest-exact", "megapixels": 0.02,
             "resolution_steps": 1}},
        "8": {"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0], "vae": ["3", 0]}},
        "9": {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["3", 0]}},
        "10": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["4", 0], "latent": ["8", 0]}},
        "11": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["10", 0], "latent": ["9", 0]}},
        "12": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["5", 0], "latent": ["8", 0]}},
        "13": {"class_type": "GetImageSize", "inputs": {"image": ["7", 0]}},
        "14": {"class_type": "EmptyFlux2LatentImage", "inputs":
            {"width": ["13", 0], "height": ["13", 1], "batch_size": 1}},
        "15": {"class_type": "Flux2Scheduler", "inputs":
            {"steps": 4, "width": ["13", 0], "height": ["13", 1]}},
        "16": {"class_type": "CFGGuider", "inputs":
            {"model": ["1", 0], "positive": ["11", 0], "negative": ["12", 0], "cfg": 1}},
        "17": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "18": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "19": {"class_type": "SamplerCustomAdvanced", "inputs":
            {"noise": ["18", 0], "guider": ["16", 0], "sampler": ["17", 0], "sigmas": ["15", 0],
             "latent_image": ["14", 0]}},
        "20": {"class_type": "VAEDecode", "inputs": {"samples": ["19", 0], "vae": ["3", 0]}},
        "21": {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": "x"}},
    })
}

#[test]
fn reference_latents_are_references_in_their_order_and_size() {
    let meaning = read(&edit()).unwrap();
    // 0.02 * 1024 * 1024 pixels in the shape of the photo.
    let request = Request::new("a red fox").seed(7).steps(4).size(192, 96).count(1);
    assert_eq!(meaning.request, request);
    assert_eq!(meaning.model.as_deref(), Some("flux-2-klein-4b.safetensors"));
    assert_eq!((meaning.input, meaning.notes.len()), (None, 2));
    let sizes = meaning.references.iter().map(|bytes| image_size(bytes, u64::MAX).unwrap());
    assert_eq!(sizes.collect::<Vec<_>>(), [(205, 102), (100, 50)]);

    let kontext = with(&edit(), json!({"7/class_type": "FluxKontextImageScale"}));
    let sizes = image_size(&read(&kontext).unwrap().references[0], u64::MAX).unwrap();
    assert_eq!(sizes, (1456, 720));
    for (change, class) in [
        (json!({"10/latent": ["14", 0]}), "ReferenceLatent#10"),
        (json!({"7/megapixels": 1000}), "ImageScaleToTotalPixels#7"),
    ] {
        let fault = read(&with(&edit(), change)).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some(class), "{}", fault.message);
    }
}

/// A graph that repaints a part of an image.
fn inpaint() -> Value {
    let mut graph = simple();
    let more = json!({
        "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "21": {"class_type": "LoadImageMask", "inputs": {"image": "mask.png", "channel": "red"}},
        "22": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["4", 2]}},
        "23": {"class_type": "SetLatentNoiseMask", "inputs":
            {"samples": ["22", 0], "mask": ["21", 0]}},
        "24": {"class_type": "ImageCompositeMasked", "inputs":
            {"destination": ["20", 0], "source": ["8", 0], "x": 0, "y": 0, "resize_source": false,
             "mask": ["21", 0]}},
    });
    graph.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    graph["3"]["inputs"]["latent_image"] = json!(["23", 0]);
    graph["9"]["inputs"]["images"] = json!(["24", 0]);
    with(&graph, json!({"4/ckpt_name": "dev", "3/steps": 4, "3/denoise": 0.5}))
}

/// First column, and columns, of what is repainted.
fn repainted(meaning: &Meaning) -> (usize, usize) {
    let part = meaning.mask.as_ref().unwrap().repainted.unwrap();
    (part.x, part.width)
}

#[test]
fn masks_are_parts_of_the_request() {
    let meaning = read(&inpaint()).unwrap();
    let request = Request::new("a fox").seed(u64::MAX).steps(8).strength(0.5).count(1);
    assert_eq!(meaning.request, request);
    assert_eq!(repainted(&meaning), (60, 40));
    assert_eq!(image_size(meaning.input.as_ref().unwrap(), u64::MAX).unwrap(), (100, 50));
    let mut graph = inpaint();
    graph["30"] = json!({"class_type": "InvertMask", "inputs": {"mask": ["21", 0]}});
    graph["31"] = json!({"class_type": "GrowMask", "inputs":
        {"mask": ["30", 0], "expand": 5, "tapered_corners": true}});
    graph["32"] = json!({"class_type": "DifferentialDiffusion", "inputs": {"model": ["4", 0]}});
    let graph = with(&graph, json!({"23/mask": ["31", 0], "3/model": ["32", 0]}));
    assert_eq!(repainted(&read(&graph).unwrap()), (0, 65));
    let encoded = json!({"class_type": "VAEEncodeForInpaint", "inputs":
        {"pixels": ["20", 0], "vae": ["4", 2], "mask": ["21", 0], "grow_mask_by": 6}});
    let mut graph = inpaint();
    graph["23"] = encoded;
    let meaning = read(&graph).unwrap();
    assert_eq!((repainted(&meaning), meaning.notes.len()), ((57, 43), 1));
    // The mask has the size of the image in any case.
    let mut graph = inpaint();
    graph["40"] = json!({"class_type": "ImageScale", "inputs":
        {"image": ["20", 0], "width": 200, "height": 100}});
    graph["22"]["inputs"]["pixels"] = json!(["40", 0]);
    let meaning = read(&graph).unwrap();
    assert_eq!(meaning.mask.unwrap().size, (200, 100));
    assert_eq!(image_size(&meaning.input.unwrap(), u64::MAX).unwrap(), (200, 100));
    for (change, class) in [
        // An opaque image has no mask.
        (json!({"23/mask": ["20", 1]}), "KSampler#3"),
        (json!({"24/x": 8}), "ImageCompositeMasked#24"),
        (json!({"3/latent_image": ["22", 0]}), "ImageCompositeMasked#24"),
        (json!({"21/channel": "hue"}), "LoadImageMask#21"),
        (json!({"24/class_type": "INPAINT_MaskedFill"}), "INPAINT_MaskedFill#24"),
    ] {
        let fault = read(&with(&inpaint(), change)).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some(class), "{}", fault.message);
    }
}

#[test]
fn conditioning_with_images_is_that_of_fill_and_control_models() {
    let mut graph = inpaint();
    graph["23"] = json!({"class_type": "InpaintModelConditioning", "inputs":
        {"positive": ["6", 0], "negative": ["7", 0], "vae": ["4", 2], "pixels": ["20", 0],
         "mask": ["21", 0], "noise_mask": true}});
    let fill = with(
        &graph,
        json!({"3/positive": ["23", 0], "3/negative": ["23", 1],
                                   "3/latent_image": ["23", 2], "3/denoise": 1}),
    );
    let meaning = read(&fill).unwrap();
    assert_eq!((repainted(&meaning), meaning.request.strength), ((60, 40), Some(1.0)));
    assert!(meaning.control.is_none());

    graph["33"] = json!({"class_type": "ImagePadForOutpaint", "inputs":
        {"image": ["20", 0], "left": 16, "top": 0, "right": 0, "bottom": 8, "feathering": 40}});
    let wide = json!({"3/positive": ["23", 0], "3/negative": ["23", 1],
                      "3/latent_image": ["23", 2], "3/denoise": 1, "23/pixels": ["33", 0],
                      "23/mask": ["33", 1], "9/images": ["8", 0]});
    let meaning = read(&with(&graph, wide.clone())).unwrap();
    assert_eq!(meaning.request.outpaint.unwrap().to_string(), "16,0,0,8");
    assert!(meaning.mask.is_none() && meaning.notes.is_empty());
    let mut other = with(&graph, wide);
    other["23"]["inputs"]["mask"] = json!(["21", 0]);
    assert!(read(&other).unwrap_err().message.contains("margins"));

    let mut graph = simple();
    graph["20"] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
    graph["21"] = json!({"class_type": "Canny", "inputs":
        {"image": ["20", 0], "low_threshold": 0.15, "high_threshold": 0.3}});
    graph["22"] = json!({"class_type": "InstructPixToPixConditioning", "inputs":
        {"positive": ["6", 0], "negative": ["7", 0], "vae": ["4", 2], "pixels": ["21", 0]}});
    let control = with(
        &graph,
        json!({"3/positive": ["22", 0], "3/negative": ["22", 1],
                                      "3/latent_image": ["22", 2], "4/ckpt_name": "canny"}),
    );
    let meaning = read(&control).unwrap();
    let size = (meaning.request.width, meaning.request.height);
    assert_eq!((size, meaning.notes.len()), ((Some(96), Some(48)), 1));
    assert_eq!(image_size(&meaning.control.unwrap(), u64::MAX).unwrap(), (100, 50));
    assert!(meaning.input.is_none());
}

#[test]
fn style_models_see_an_image() {
    let mut graph = simple();
    let more = json!({
        "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "21": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "sigclip.safetensors"}},
        "22": {"class_type": "CLIPVisionEncode", "inputs":
            {"clip_vision": ["21", 0], "image": ["20", 0], "crop": "center"}},
        "23": {"class_type": "StyleModelLoader", "inputs":
            {"style_model_name": "flux1-redux-dev.safetensors"}},
        "24": {"class_type": "StyleModelApply", "inputs":
            {"conditioning": ["6", 0], "style_model": ["23", 0], "clip_vision_output": ["22", 0],
             "strength": 0.5, "strength_type": "multiply"}},
    });
    graph.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let graph = with(&graph, json!({"3/positive": ["24", 0], "4/ckpt_name": "dev"}));
    let meaning = read(&graph).unwrap();
    let [(image, strength)] = meaning.styles.as_slice() else { panic!("one style") };
    assert_eq!((image_size(image, u64::MAX).unwrap(), *strength), ((100, 50), 0.5));
    assert_eq!(meaning.notes.len(), 1);
    for (change, class) in [
        (json!({"24/strength_type": "attn_bias"}), "StyleModelApply#24"),
        (json!({"24/style_model": ["21", 0]}), "StyleModelApply#24"),
    ] {
        let fault = read(&with(&graph, change)).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some(class), "{}", fault.message);
    }
}

#[test]
fn controlnets_are_applied_one_after_another() {
    let mut graph = simple();
    let apply = |before: [&str; 2], net: &str, image: &str| {
        json!({"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": [before[0], 0], "negative": [before[1], 1], "control_net": [net, 0],
            "image": [image, 0], "strength": 0.5, "start_percent": 0.25, "end_percent": 1.0}})
    };
    let more = json!({
        "19": {"class_type": "Canny", "inputs": {"image": ["20", 0]}},
        "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "21": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "union"}},
        "22": {"class_type": "SetUnionControlNetType", "inputs":
            {"control_net": ["21", 0], "type": "openpose"}},
        "23": apply(["6", "7"], "22", "20"),
        "24": apply(["23", "23"], "21", "19"),
    });
    graph.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    graph["23"]["inputs"]["negative"] = json!(["7", 0]);
    let graph = with(&graph, json!({"3/positive": ["24", 0], "3/negative": ["24", 1]}));
    let meaning = read(&graph).unwrap();
    let [(pose, ..), (edges, image, node)] = meaning.controlnets.as_slice() else {
        panic!("two ControlNets")
    };
    let choice = ControlNetChoice::new("union", 0.5).steps(0.25, 1.0);
    assert_eq!(*pose, choice.clone().mode(ControlMode(4)));
    assert_eq!((edges, node.as_str()), (&choice.edges(), "ControlNetApplyAdvanced#24"));
    assert_eq!(image_size(image, u64::MAX).unwrap(), (100, 50));
    for (change, class) in [
        (json!({"22/type": "normal"}), "SetUnionControlNetType#22"),
        (json!({"23/control_net": ["20", 0]}), "ControlNetApplyAdvanced#23"),
        // The last ControlNet acts on the negative prompt only.
        (json!({"3/positive": ["23", 0]}), "KSampler#3"),
    ] {
        let fault = read(&with(&graph, change)).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some(class), "{}", fault.message);
    }
}
