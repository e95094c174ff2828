//! Texts of other programs with unusual keys, places and values.

use flux_fast::pipeline::images::{Format, encode};
use serde_json::json;

use crate::provenance::{flux_graph, graph_png, gray, noted, png_with, read, read_text, text_png};

const INFO: &str = "a fox\nSteps: 6, Sampler: Euler, Seed: 1, Size: 64x64, Version: v1.10";

#[test]
fn texts_are_found_in_every_case_and_in_exif_of_a_png() {
    let found = read(&text_png("Parameters", INFO.as_bytes()));
    assert_eq!(found.settings.prompt.as_str(), "a fox");
    // EXIF as JPEG has it, with a comment of eight bytes and the text.
    let comment = [b"ASCII\0\0\0".as_slice(), INFO.as_bytes()].concat();
    let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0".to_vec();
    exif.extend(b"\0\x01\x92\x86\0\x07");
    exif.extend((comment.len() as u32).to_be_bytes());
    exif.extend(44u32.to_be_bytes());
    exif.extend([0; 4]);
    exif.extend(comment);
    assert_eq!(read(&png_with(b"eXIf", &exif)).settings.prompt.as_str(), "a fox");
    let packet = |text: &str| {
        let body = format!("XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta>{text}</x:xmpmeta>");
        read(&png_with(b"iTXt", body.as_bytes()))
    };
    let text = INFO.replace("a fox", "a fox&apos;s den, it's &quot;cold&quot;");
    for place in [
        format!("<rdf:Description exif:UserComment=\"{text}\"/>"),
        format!("<dc:description>{text}</dc:description>"),
    ] {
        let found = packet(&place);
        assert_eq!(found.settings.prompt.as_str(), "a fox's den, it's \"cold\"", "{place}");
    }
}

#[test]
fn a_comment_of_a_jpeg_may_be_latin() {
    let jpeg = encode(&gray(64, 64), Format::Jpeg, 90, "").unwrap();
    let text: Vec<u8> = "un écureuil\nSteps: 6, Seed: 1".chars().map(|c| c as u8).collect();
    let length = (text.len() as u16 + 2).to_be_bytes();
    let comment = [b"\xff\xfe".as_slice(), &length, &text].concat();
    let bytes = [&jpeg[..2], &comment, &jpeg[2..]].concat();
    assert_eq!(read(&bytes).settings.prompt.as_str(), "un écureuil");
}

#[test]
fn pieces_without_a_name_are_said() {
    let found = read_text("a fox\nSteps: 6, CFG scale: 3,5, Seed: 1, Size: 64x64, Version: v1.10");
    assert_eq!(found.settings.cfg_scale, 3.0);
    assert!(noted(&found, "not used: text 5"), "{:?}", found.notes);
    for name in ["Unet", "Diffusion model", "Base model"] {
        let text = format!("a fox\nSteps: 6, Seed: 1, Size: 64x64, {name}: flux1-dev.gguf");
        assert_eq!(read_text(&text).settings.model, "flux1-dev.gguf", "{name}");
    }
}

#[test]
fn lists_in_one_text_and_names_of_easy_diffusion_are_understood() {
    let swarm = json!({"sui_image_params": {"prompt": "a fox", "seed": 1, "steps": 6,
        "width": 64, "height": 64, "loras": "toys, b", "loraweights": "0.8,1",
        "loratencweights": "0.25,1", "swarm_version": "0.9"}});
    let loras = read_text(&swarm.to_string()).settings.loras;
    let loras: Vec<_> =
        loras.iter().map(|l| (l.name.as_str(), l.strength, l.text_strength)).collect();
    assert_eq!(loras, [("toys", 0.8, Some(0.25)), ("b", 1.0, None)]);
    let easy = json!({"prompt": "a fox", "seed": 5, "num_inference_steps": 25,
        "guidance_scale": 1.5, "distilled_guidance_scale": 3.5, "width": 64, "height": 64,
        "use_stable_diffusion_model": "flux1-dev", "use_lora_model": ["a", "b"],
        "lora_alpha": [0.5, 0.25]});
    let found = read_text(&easy.to_string());
    let s = &found.settings;
    assert_eq!((s.guidance, s.cfg_scale, s.model.as_str()), (Some(3.5), 1.5, "flux1-dev"));
    let loras: Vec<_> = s.loras.iter().map(|l| (l.name.as_str(), l.strength)).collect();
    assert_eq!(loras, [("a", 0.5), ("b", 0.25)]);
    assert!(!noted(&found, "not used"), "{:?}", found.notes);
}

#[test]
fn comfyui_s_node_numbers_strengths_for_text_and_missing_models() {
    // Numbers of nodes as numbers.
    let text = flux_graph().to_string();
    let mut numbered = text.clone();
    for id in flux_graph().as_object().unwrap().keys() {
        numbered = numbered.replace(&format!("[\"{id}\","), &format!("[{id},"));
    }
    assert_ne!(numbered, text);
    let (a, b) = (read(&text_png("prompt", numbered.as_bytes())), read(&graph_png(&flux_graph())));
    assert_eq!((a.settings, a.notes), (b.settings, b.notes));

    let mut graph = flux_graph();
    let model = graph["32"]["inputs"]["model"].clone();
    graph["32"] = json!({"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors",
        "strength_model": 0.5, "strength_clip": 0.25, "model": model, "clip": ["11", 0]}});
    let lora = read(&graph_png(&graph)).settings.loras.remove(0);
    assert_eq!((lora.strength, lora.text_strength), (0.5, Some(0.25)));

    graph["32"]["inputs"]["model"] = json!(["404", 0]);
    assert!(noted(&read(&graph_png(&graph)), "does not say which model"));
}
