//! The settings that other programs write into images.

use std::io::Write;

use flux_fast::pipeline::images::metadata;
use flux_fast::pipeline::images::{Format, Provenance, encode, provenance_of};
use flux_fast::pipeline::request::{Image, Settings};
use serde_json::{Value, json};

pub fn gray(width: usize, height: usize) -> Image {
    Image { width, height, rgb: vec![127; width * height * 3] }
}

/// A PNG of 64x64 with one more chunk before its pixels.
pub fn png_with(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let plain = encode(&gray(64, 64), Format::Png, 90, "").unwrap();
    // Signature and IHDR; the encoder's own text chunk follows and is empty.
    let (head, rest) = plain.split_at(8 + 25);
    let at = rest.windows(4).position(|w| w == b"IDAT").unwrap() - 4;
    let mut bytes = head.to_vec();
    bytes.extend((content.len() as u32).to_be_bytes());
    let body = [kind.as_slice(), content].concat();
    bytes.extend(&body);
    let mut crc = !0u32;
    for byte in &body {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bytes.extend((!crc).to_be_bytes());
    bytes.extend(&rest[at..]);
    bytes
}

pub fn text_png(key: &str, text: &[u8]) -> Vec<u8> {
    png_with(b"tEXt", &[key.as_bytes(), b"\0", text].concat())
}

pub fn read(bytes: &[u8]) -> Provenance {
    provenance_of(bytes).unwrap_or_else(|e| panic!("{e}"))
}

pub fn read_text(text: &str) -> Provenance {
    read(&text_png("parameters", text.as_bytes()))
}

pub fn noted(found: &Provenance, words: &str) -> bool {
    found.notes.iter().any(|note| note.contains(words))
}

/// What stable-diffusion.cpp writes.
const SDCPP: &str = "лиса в снегу, 狐\nNegative prompt: blur\nSteps: 6, CFG scale: 1.000000, \
    Guidance: 2.500000, Eta: 0.000000, Seed: 42, Size: 64x64, Model: , RNG: cuda, \
    Sampler: euler simple, TE: clip_l.safetensors, TE: t5xxl_fp16.safetensors, \
    Unet: flux1-dev-q8_0.gguf, VAE: ae.safetensors, Version: stable-diffusion.cpp";

fn is_sdcpp(found: &Provenance, place: &str) {
    let s = &found.settings;
    assert_eq!(s.prompt.as_str(), "лиса в снегу, 狐", "{place}");
    assert_eq!(s.negative.as_deref(), Some("blur"), "{place}");
    assert_eq!((s.steps, s.seed, s.width, s.height), (6, 42, 64, 64), "{place}");
    assert_eq!((s.guidance, s.cfg_scale), (Some(2.5), 1.0), "{place}");
    assert_eq!(s.model, "flux1-dev-q8_0.gguf", "{place}");
    assert_eq!((found.program(), found.index), ("stable-diffusion.cpp", None));
    assert!(noted(found, "RNG: cuda"), "{:?}", found.notes);
    assert!(noted(found, "VAE ae.safetensors"), "{:?}", found.notes);
    assert!(!noted(found, "sampler"), "{:?}", found.notes);
}

#[test]
fn stable_diffusion_cpp_is_read_from_every_place_it_writes_to() {
    is_sdcpp(&read_text(SDCPP), "tEXt");
    let jpeg = encode(&gray(64, 64), Format::Jpeg, 90, "").unwrap();
    let comment = |text: &[u8]| {
        let length = (text.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], b"\xff\xfe", &length, text, &jpeg[2..]].concat()
    };
    is_sdcpp(&read(&comment(&[b"parameters\0", SDCPP.as_bytes(), b"\0"].concat())), "comment");
    is_sdcpp(&read(&comment(SDCPP.as_bytes())), "plain comment");
    let escaped = SDCPP.replace('&', "&amp;").replace('<', "&lt;");
    let xmp = format!(
        "<?xpacket begin=\"\"?><x:xmpmeta><rdf:RDF><rdf:Description><sdcpp:parameters>{escaped}\
         </sdcpp:parameters></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end=\"w\"?>"
    );
    let mut webp = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut webp);
    encoder.set_xmp_metadata(xmp.into_bytes());
    encoder.encode(&gray(64, 64).rgb, 64, 64, image_webp::ColorType::Rgb8).unwrap();
    is_sdcpp(&read(&webp), "XMP");
    // Its lists have commas and no quotes.
    let lists = SDCPP.replace("Eta:", "Skip layers: [7, 8, 9, ], Skip layer start: 0.01, Eta:");
    is_sdcpp(&read_text(&lists), "lists");
    let cpu = SDCPP.replace("RNG: cuda", "RNG: cpu").replace("euler simple", "heun karras");
    let found = read_text(&cpu);
    assert!(!noted(&found, "noise") && noted(&found, "heun karras"), "{:?}", found.notes);
}

#[test]
fn sizes_and_numbers_of_other_programs_are_made_possible_and_said() {
    let sized = |size: &str, steps: &str| {
        let found = read_text(&format!("a\nSteps: {steps}, Seed: 7.0, Size: {size}, Version: v1"));
        let Settings { steps, seed, width, height, .. } = found.settings;
        (steps, seed, width, height, noted(&found, "is not a multiple of 16"))
    };
    assert_eq!(sized("100x77", "20.0"), (20, 7, 96, 80, true));
    assert_eq!(sized("1368x768", "20"), (20, 7, 1376, 768, true));
    assert_eq!(sized("1024x768", "2e1"), (20, 7, 1024, 768, false));
    assert_eq!(sized("1024*768", "20"), (20, 7, 1024, 768, false));
    assert_eq!(sized("3x5", "20"), (20, 7, 16, 16, true));
    // Not a size: that of the image.
    assert_eq!(sized("large", "20"), (20, 7, 64, 64, false));
    // JSON has such numbers, too.
    let invoke = json!({ "app_version": "5", "positive_prompt": "a", "seed": 3, "steps": 9.0,
        "width": 1000, "height": 600 });
    let found = read(&text_png("invokeai_metadata", invoke.to_string().as_bytes()));
    let s = &found.settings;
    assert_eq!((s.steps, s.width, s.height), (9, 1008, 608));
    assert!(noted(&found, "1000x600"), "{:?}", found.notes);
    for text in ["a\nSteps: 20.5, Seed: 1, Size: 64x64", "a\nSteps: 1e99, Seed: 1, Size: 64x64"] {
        assert!(provenance_of(&text_png("parameters", text.as_bytes())).is_err(), "{text}");
    }
}

#[test]
fn latin_text_stays_latin_and_is_never_taken_for_utf8_by_this_program() {
    let latin = b"caf\xe9\nSteps: 3, Seed: 1, Size: 64x64";
    assert_eq!(read(&text_png("parameters", latin)).settings.prompt.as_str(), "café");
    for prompt in ["café", "Ã©", "ÃÂ©", "naïve Ã© mixed", "狐"] {
        let mut settings = Settings::default();
        settings.prompt = prompt.into();
        (settings.steps, settings.seed) = (2, 3);
        (settings.width, settings.height) = (64, 64);
        let text = metadata::write(&settings, 0);
        let bytes = encode(&gray(64, 64), Format::Png, 90, &text).unwrap();
        assert_eq!(read(&bytes).settings, settings, "{prompt}");
        assert!(read(&bytes).is_own() && read(&bytes).notes.is_empty());
    }
}

#[test]
fn compressed_and_international_chunks_are_read_too() {
    let international = [b"parameters\0\0\0\0\0".as_slice(), SDCPP.as_bytes()].concat();
    is_sdcpp(&read(&png_with(b"iTXt", &international)), "iTXt");
    let packed = zlib(SDCPP.as_bytes());
    is_sdcpp(&read(&png_with(b"zTXt", &[b"parameters\0\0".as_slice(), &packed].concat())), "zTXt");
}

/// A zlib stream of stored blocks.
fn zlib(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = data.chunks(65_535).collect();
    for (i, block) in blocks.iter().enumerate() {
        out.push(u8::from(i + 1 == blocks.len()));
        out.extend((block.len() as u16).to_le_bytes());
        out.extend((!(block.len() as u16)).to_le_bytes());
        out.write_all(block).unwrap();
    }
    let (mut a, mut b) = (1u32, 0u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend(((b << 16) | a).to_be_bytes());
    out
}

#[test]
fn a_long_text_is_refused_with_its_length() {
    for (bytes, words) in [
        (text_png("parameters", &vec![b'a'; 100 << 10]), "100 KB"),
        (text_png("parameters", &[b"Steps: 3, ".repeat(10 << 10)].concat()), "64 KB"),
        (
            png_with(
                b"zTXt",
                &[b"parameters\0\0".as_slice(), &zlib(&vec![b'a'; 8 << 20])].concat(),
            ),
            "more than",
        ),
    ] {
        let e = provenance_of(&bytes).unwrap_err().to_string();
        assert!(e.contains(words) && e.contains("64 KB"), "{e}");
    }
}

#[test]
fn forge_and_automatic1111_tell_guidance_from_cfg() {
    let forge = "a fox, <lora:toy:0.7>\nSteps: 20, Sampler: Euler, Schedule type: Simple, \
        CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 42, Size: 896x1152, Model hash: d5d1e2a8b0, \
        Model: flux1-dev-Q8_0, Lora hashes: \"toy: 1\", Version: f2.0.1v1.10.1, Module 1: ae";
    let found = read_text(forge);
    let s = &found.settings;
    assert_eq!((s.guidance, s.cfg_scale, s.steps), (Some(3.5), 1.0, 20));
    assert_eq!((s.width, s.height, s.model.as_str()), (896, 1152, "flux1-dev-Q8_0"));
    assert_eq!((found.program(), s.model_hash.as_str()), ("Forge", ""));
    assert!(noted(&found, "noise") && noted(&found, "Module 1 ae"), "{:?}", found.notes);
    assert!(noted(&found, "Lora hashes"), "{:?}", found.notes);

    let hires = "a fox\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, \
        Seed: 5, Size: 512x640, Batch size: 4, Batch pos: 2, Clip skip: 2, Denoising strength: 0.4, \
        Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent, RNG: CPU, Version: v1.10.1";
    let found = read_text(hires);
    let s = &found.settings;
    assert_eq!((s.strength, s.count, s.cfg_scale), (None, 1, 7.0));
    assert_eq!((found.index, found.program()), (None, "AUTOMATIC1111"));
    for words in ["second pass", "Hires steps 10", "CLIP skip 2", "DPM++ 2M Karras", "0.4"] {
        assert!(noted(&found, words), "{words}: {:?}", found.notes);
    }
    assert!(!noted(&found, "noise"), "{:?}", found.notes);
    let from_image = hires.replace("Hires", "Other");
    assert_eq!(read_text(&from_image).settings.strength, Some(0.4));

    // Services that hand the scale to diffusers mean the distilled guidance.
    let civitai = "a fox\nSteps: 25, CFG scale: 3.5, Sampler: Undefined, Seed: 7, Size: 832x1216, \
        Civitai resources: [{\"type\":\"checkpoint\",\"modelVersionId\":691639}], \
        Civitai metadata: {}";
    let found = read_text(civitai);
    assert_eq!((found.settings.guidance, found.settings.cfg_scale), (Some(3.5), 1.0));
    assert!(noted(&found, "distilled") && noted(&found, "691639"), "{:?}", found.notes);
    // Extensions write lines below the fields.
    let below = format!("{forge}\nTemplate: a {{fox|cat}}");
    assert_eq!(read_text(&below).settings.prompt.as_str(), "a fox, <lora:toy:0.7>");
    assert!(noted(&read_text(&below), "Template"));
}

/// The usual graph of FLUX.1 in ComfyUI.
pub fn flux_graph() -> Value {
    json!({
        "5": {"class_type": "EmptySD3LatentImage",
              "inputs": {"width": 832, "height": 1216, "batch_size": 2}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["30", 0], "clip": ["11", 0]}},
        "30": {"class_type": "PrimitiveString", "inputs": {"value": "a fox, 狐"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["10", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
        "10": {"class_type": "VAELoader", "inputs": {"vae_name": "ae.safetensors"}},
        "11": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "t5"}},
        "12": {"class_type": "UNETLoader",
               "inputs": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}},
        "13": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["25", 0], "guider": ["22", 0], "sampler": ["16", 0], "sigmas": ["17", 0],
            "latent_image": ["5", 0]}},
        "16": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "17": {"class_type": "BasicScheduler",
               "inputs": {"scheduler": "simple", "steps": 20, "denoise": 1, "model": ["31", 0]}},
        "22": {"class_type": "BasicGuider",
               "inputs": {"model": ["31", 0], "conditioning": ["26", 0]}},
        "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": 123456789012345678u64}},
        "26": {"class_type": "FluxGuidance",
               "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
        "31": {"class_type": "ModelSamplingFlux", "inputs": {
            "max_shift": 1.15, "base_shift": 0.5, "width": 832, "height": 1216,
            "model": ["32", 0]}},
        "32": {"class_type": "LoraLoaderModelOnly", "inputs": {
            "lora_name": "styles\\toy.safetensors", "strength_model": 0.8, "model": ["12", 0]}},
    })
}

pub fn graph_png(graph: &Value) -> Vec<u8> {
    // ComfyUI escapes everything beyond ASCII, and writes both texts.
    let text = graph.to_string().replace('狐', "\\u72d0");
    text_png("prompt", text.as_bytes())
}

#[test]
fn comfyui_s_graph_is_followed_from_the_saved_image() {
    let found = read(&graph_png(&flux_graph()));
    let s = &found.settings;
    assert_eq!((s.prompt.as_str(), s.negative.as_deref()), ("a fox, 狐", None));
    assert_eq!((s.seed, s.steps, s.count), (123456789012345678, 20, 2));
    assert_eq!((s.width, s.height), (832, 1216));
    assert_eq!((s.guidance, s.cfg_scale, s.strength), (Some(3.5), 1.0, None));
    assert_eq!(s.model, "flux1-dev.safetensors");
    let loras: Vec<_> = s.loras.iter().map(|l| (l.name.as_str(), l.strength)).collect();
    assert_eq!(loras, [("styles/toy.safetensors", 0.8)]);
    assert_eq!((found.program(), found.notes.as_slice()), ("ComfyUI", [].as_slice()));
}

#[test]
fn comfyui_s_other_samplers_images_and_passes_are_used_or_said() {
    let mut graph = flux_graph();
    graph["13"] = json!({"class_type": "KSampler", "inputs": {
        "seed": ["25", 0], "steps": 10, "cfg": 2.5, "sampler_name": "dpmpp_2m",
        "scheduler": "beta", "denoise": 0.5, "model": ["31", 0], "positive": ["26", 0],
        "negative": ["40", 0], "latent_image": ["41", 0]}});
    graph["40"] = json!({"class_type": "CLIPTextEncode", "inputs": {"text": "blur"}});
    graph["41"] = json!({"class_type": "VAEEncode", "inputs": {"pixels": ["42", 0]}});
    graph["42"] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
    let found = read(&graph_png(&graph));
    let s = &found.settings;
    assert_eq!((s.negative.as_deref(), s.cfg_scale), (Some("blur"), 2.5));
    // ComfyUI makes all ten steps below strength 0.5; the size is that of the image.
    assert_eq!((s.strength, s.steps, s.width, s.height), (Some(0.5), 20, 64, 64));
    assert!(noted(&found, "dpmpp_2m beta"), "{:?}", found.notes);

    // A second pass, and a node that changes the image.
    let mut graph = flux_graph();
    graph["50"] = json!({"class_type": "LatentUpscaleBy",
        "inputs": {"samples": ["13", 0], "scale_by": 1.5}});
    graph["51"] = json!({"class_type": "KSampler", "inputs": {
        "seed": 9, "steps": 5, "cfg": 1, "sampler_name": "euler", "scheduler": "simple",
        "denoise": 0.4, "model": ["31", 0], "positive": ["26", 0], "negative": ["26", 0],
        "latent_image": ["50", 0]}});
    graph["8"]["inputs"]["samples"] = json!(["51", 0]);
    graph["52"] = json!({"class_type": "ImageSharpen", "inputs": {"image": ["8", 0]}});
    graph["9"]["inputs"]["images"] = json!(["52", 0]);
    let found = read(&graph_png(&graph));
    assert_eq!((found.settings.seed, found.settings.steps), (123456789012345678, 20));
    assert!(noted(&found, "second pass") && noted(&found, "ImageSharpen"), "{:?}", found.notes);

    // A circle, and a graph without a sampler.
    let mut circle = flux_graph();
    circle["26"]["inputs"]["conditioning"] = json!(["26", 0]);
    assert!(provenance_of(&graph_png(&circle)).unwrap_err().to_string().contains("circle"));
    let none = json!({"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}});
    let e = provenance_of(&graph_png(&none)).unwrap_err().to_string();
    assert!(e.contains("no sampler") && e.contains("LoadImage"), "{e}");
    // Python's NaN, which is not JSON.
    let mut changed = flux_graph();
    changed["9"]["is_changed"] = json!(["@"]);
    changed["30"]["inputs"]["value"] = json!("NaN, a \"fox\" and Infinity");
    let text = changed.to_string().replace("\"@\"", "NaN, -Infinity");
    let found = read(&text_png("prompt", text.as_bytes()));
    assert_eq!(found.settings.prompt.as_str(), "NaN, a \"fox\" and Infinity");
    let e = provenance_of(&text_png("prompt", b"{\"1\": {")).unwrap_err().to_string();
    assert!(e.contains("not JSON"), "{e}");
}

#[test]
fn comfyui_s_nodes_that_compute_are_said() {
    let of = |change: &dyn Fn(&mut Value)| {
        let mut graph = flux_graph();
        graph["60"] = json!({"class_type": "FloatMultiply", "inputs": {"a": 2.5, "b": 2.0}});
        graph["61"] = json!({"class_type": "MathExpression",
            "inputs": {"value": "a * 2", "a": ["62", 0]}});
        graph["62"] = json!({"class_type": "PrimitiveFloat", "inputs": {"value": 2.5}});
        change(&mut graph);
        graph_png(&graph)
    };
    for (node, name) in [
        ("26", "guidance"),
        ("32", "strength_model"),
        ("5", "width"),
        ("5", "height"),
        ("5", "batch_size"),
        ("17", "steps"),
        ("25", "noise_seed"),
    ] {
        for source in ["60", "61"] {
            let bytes = of(&|graph| graph[node]["inputs"][name] = json!([source, 0]));
            let said = format!("not understood: {name} of node {node}");
            // Without steps or a seed there are no settings.
            match provenance_of(&bytes) {
                Ok(found) => assert!(noted(&found, &said), "{name}: {:?}", found.notes),
                Err(_) => assert!(["steps", "noise_seed"].contains(&name), "{name}"),
            }
        }
    }
    // A node that holds one value is followed.
    let found = read(&of(&|graph| graph["26"]["inputs"]["guidance"] = json!(["62", 0])));
    assert_eq!((found.settings.guidance, found.notes.len()), (Some(2.5), 0));

    // A text that a language model wrote is not in the graph.
    let e = provenance_of(&of(&|graph| {
        graph["30"] = json!({"class_type": "OllamaGenerate",
            "inputs": {"prompt": "Describe a fox", "model": "llama"}});
    }));
    let e = e.unwrap_err().to_string();
    assert!(e.contains("not understood") && e.contains("node 30 (OllamaGenerate)"), "{e}");

    // A LoRA between the encoder and CLIP.
    let found = read(&of(&|graph| {
        graph["63"] = json!({"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors",
            "strength_model": 1, "strength_clip": 1, "model": ["12", 0], "clip": ["11", 0]}});
        graph["6"]["inputs"]["clip"] = json!(["63", 1]);
    }));
    assert!(noted(&found, "node 63 (LoraLoader), for CLIP only"), "{:?}", found.notes);
    assert_eq!(found.settings.loras.len(), 1);
}

#[test]
fn comfyui_s_workflow_is_read_where_the_graph_is_missing() {
    let workflow = json!({
        "nodes": [
            {"id": 1, "type": "UNETLoader", "widgets_values": ["flux1-schnell.safetensors", "x"]},
            {"id": 2, "type": "CLIPTextEncode", "widgets_values": ["a boat"]},
            {"id": 3, "type": "EmptySD3LatentImage", "widgets_values": [512, 768, 1]},
            {"id": 4, "type": "KSampler", "widgets_values":
                [77, "randomize", 4, 1, "euler", "simple", 1], "inputs": [
                {"name": "model", "link": 10}, {"name": "positive", "link": 11},
                {"name": "negative", "link": 11}, {"name": "latent_image", "link": 12}]},
            {"id": 5, "type": "VAEDecode", "inputs": [{"name": "samples", "link": 13}]},
            {"id": 6, "type": "Reroute", "inputs": [{"name": "", "link": 14}]},
            {"id": 7, "type": "SaveImage", "inputs": [{"name": "images", "link": 15}],
             "widgets_values": ["ComfyUI"]},
        ],
        "links": [[10, 1, 0, 4, 0, "MODEL"], [11, 2, 0, 4, 1, "CONDITIONING"],
                  [12, 3, 0, 4, 3, "LATENT"], [13, 4, 0, 5, 0, "LATENT"],
                  [14, 5, 0, 6, 0, "IMAGE"], [15, 6, 0, 7, 0, "IMAGE"]],
    });
    let check = |bytes: &[u8]| {
        let found = read(bytes);
        let s = &found.settings;
        assert_eq!((s.prompt.as_str(), s.seed, s.steps), ("a boat", 77, 4));
        assert_eq!((s.width, s.height, s.model.as_str()), (512, 768, "flux1-schnell.safetensors"));
        assert!(found.notes.is_empty(), "{:?}", found.notes);
    };
    check(&text_png("workflow", workflow.to_string().as_bytes()));
    // In WebP the same is in a tag of EXIF, with its name before it: here the camera's maker.
    let value = format!("workflow:{workflow}\0").into_bytes();
    let mut exif = b"II\x2a\0\x08\0\0\0\x01\0\x0f\x01\x02\0".to_vec();
    exif.extend((value.len() as u32).to_le_bytes());
    exif.extend(26u32.to_le_bytes());
    exif.extend([0; 4]);
    exif.extend(value);
    let mut webp = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut webp);
    encoder.set_exif_metadata(exif);
    encoder.encode(&gray(64, 64).rgb, 64, 64, image_webp::ColorType::Rgb8).unwrap();
    check(&webp);
}

#[test]
fn user_comments_are_read_in_every_encoding() {
    let text = "a fox\nSteps: 6, Seed: 1, Size: 64x64, Version: v1.10";
    let wide = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    for comment in [
        [b"ASCII\0\0\0".as_slice(), text.as_bytes()].concat(),
        [b"\0\0\0\0\0\0\0\0".as_slice(), text.as_bytes()].concat(),
        [b"UNICODE\0".as_slice(), &wide(u16::to_be_bytes)].concat(),
        [b"UNICODE\0".as_slice(), &wide(u16::to_le_bytes)].concat(),
        text.as_bytes().to_vec(),
    ] {
        // One directory, with a pointer to the one of EXIF.
        let mut exif =
            b"MM\0\x2a\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0".to_vec();
        exif.extend(b"\0\x01\x92\x86\0\x07");
        exif.extend((comment.len() as u32).to_be_bytes());
        exif.extend(44u32.to_be_bytes());
        exif.extend([0; 4]);
        exif.extend(comment);
        let mut jpeg = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 90);
        encoder.add_exif_metadata(&exif).unwrap();
        encoder.encode(&gray(64, 64).rgb, 64, 64, jpeg_encoder::ColorType::Rgb).unwrap();
        let found = read(&jpeg);
        assert_eq!((found.settings.prompt.as_str(), found.settings.steps), ("a fox", 6));
    }
}
