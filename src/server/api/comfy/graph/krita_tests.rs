//! Graphs of the plugin Krita AI Diffusion 1.53: see `tests/data/krita`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::pipeline::images::{ImageFile, image_size};
use crate::pipeline::request::ControlMode;
use crate::server::api::comfy::finish::Finish;

/// A graph with the images that the plugin uploads.
struct Recorded(Value);

macro_rules! recorded {
    ($name:literal) => {
        Recorded(
            serde_json::from_str(include_str!(concat!(
                "../../../../../tests/data/krita/",
                $name,
                ".json"
            )))
            .unwrap(),
        )
    };
}

impl Surroundings for Recorded {
    fn image(&self, _: &str) -> Result<Option<Bytes>, Fault> {
        Ok(None)
    }

    fn cached_image(&self, id: &str) -> Result<Option<Bytes>, Fault> {
        let image = self.0["images"][id].as_str();
        Ok(image.map(|image| BASE64_STANDARD.decode(image).unwrap().into()))
    }

    fn steps(&self, _: Option<&str>, steps: usize) -> usize {
        steps
    }
}

fn read(recorded: &Recorded) -> Meaning {
    let graph = recorded.0["prompt"].as_object().unwrap();
    interpret(graph, recorded).unwrap_or_else(|fault| panic!("{}", fault.message))
}

fn size(file: &Bytes) -> (u32, u32) {
    image_size(file, u64::MAX).unwrap()
}

#[test]
fn a_selection_is_drawn_larger_and_cut_out_again() {
    for recorded in [
        recorded!("fill"),
        recorded!("expand"),
        recorded!("add_object"),
        recorded!("remove_object"),
    ] {
        let meaning = read(&recorded);
        let request = Request::new("a red fox").seed(7).steps(3).strength(1.0).count(1);
        assert_eq!(meaning.request, Request { guidance: Some(30.0), ..request });
        assert_eq!(size(meaning.input.as_ref().unwrap()), (576, 464));
        let mask = meaning.mask.unwrap();
        assert_eq!(mask.size, (576, 464));
        // The selection begins at column 120, and grows by 20 pixels and half of a blur.
        let part = mask.repainted.unwrap();
        assert!((150..170).contains(&part.x), "{part:?}");
        let [output] = meaning.outputs.as_slice() else { panic!("one output") };
        let [crop, scale, Finish::Alpha(alpha)] = output.finish.as_slice() else {
            panic!("{:?}", output.finish)
        };
        assert_eq!(*crop, Finish::Crop(76, 0, 461, 464));
        assert_eq!(*scale, Finish::Scale(256, 256));
        let alpha = ImageFile::of(alpha.to_vec()).unwrap().mask().unwrap();
        assert_eq!((alpha.width, alpha.height), (256, 256));
        let at = |x: usize, y: usize| alpha.values[y * 256 + x - 42];
        assert_eq!((at(120, 90), at(219, 169), at(60, 20)), (255, 255, 0));
        assert!((1..255).contains(&at(95, 128)), "{}", at(95, 128));
    }
}

#[test]
fn other_selections_and_strengths() {
    let meaning = read(&recorded!("refine_region"));
    assert_eq!((meaning.request.steps, meaning.request.strength), (Some(5), Some(0.6)));
    assert_eq!(meaning.outputs[0].finish.len(), 1);
    let meaning = read(&recorded!("replace_background"));
    let part = meaning.mask.unwrap().repainted.unwrap();
    assert_eq!((part.x, part.width), (0, 576));
    let meaning = read(&recorded!("fill_odd"));
    assert_eq!(meaning.outputs[0].finish[1], Finish::Scale(256, 250));
    // A filling is left out only where noise covers it.
    let mut part = recorded!("fill");
    let graph = part.0["prompt"].as_object_mut().unwrap();
    graph.insert(
        "90".into(),
        serde_json::json!({"class_type": "SplitSigmas", "inputs":
            {"sigmas": ["22", 0], "step": 1}}),
    );
    graph["25"]["inputs"]["sigmas"] = serde_json::json!(["90", 1]);
    let fault = interpret(part.0["prompt"].as_object().unwrap(), &part).unwrap_err();
    assert!(fault.message.contains("filling"), "{}", fault.message);
}

#[test]
fn an_empty_prompt_sees_the_canvas_and_a_controlnet_its_mask() {
    let meaning = read(&recorded!("fill_with_redux"));
    let [(image, strength)] = meaning.styles.as_slice() else { panic!("one style") };
    assert_eq!((size(image), *strength), ((576, 464), 0.5));
    let [(net, image, _)] = meaning.controlnets.as_slice() else { panic!("one ControlNet") };
    let name = "flux.1-dev-controlnet-inpaint.safetensors";
    assert_eq!(*net, ControlNetChoice::new(name, 0.9).steps(0.0, 0.5));
    assert_eq!(size(image), (576, 464));
    assert!(meaning.mask.is_some());
    assert!(meaning.notes.iter().any(|note| note.contains("all steps")), "{:?}", meaning.notes);
}

#[test]
fn control_layers_are_controlnets() {
    let recorded = recorded!("control");
    let meaning = read(&recorded);
    let [(lines, inverted, _), (depth, scaled, _)] = meaning.controlnets.as_slice() else {
        panic!("two ControlNets")
    };
    let union = |strength, mode| ControlNetChoice::new("union.safetensors", strength).mode(mode);
    assert_eq!(*lines, union(0.8, ControlMode(0)).steps(0.0, 0.7));
    assert_eq!(*depth, union(0.5, ControlMode(2)));
    assert_eq!(size(scaled), (256, 256));
    let canvas = recorded.cached_image("d925a41b").unwrap().unwrap();
    let pixels = |file: &Bytes| image::load_from_memory(file).unwrap().into_rgb8().into_raw();
    let pairs: Vec<_> = pixels(inverted).into_iter().zip(pixels(&canvas)).collect();
    assert!(pairs.iter().all(|(new, old)| new + old == 255));
}

#[test]
fn models_that_read_references_see_the_canvas() {
    for recorded in [recorded!("kontext"), recorded!("klein")] {
        let meaning = read(&recorded);
        assert_eq!((meaning.request.width, meaning.request.height), (Some(256), Some(256)));
        // Nothing of it is left in the noise.
        assert_eq!((meaning.input, meaning.request.strength), (None, None));
        assert_eq!(meaning.references.iter().map(size).collect::<Vec<_>>(), [(256, 256)]);
    }
    let meaning = read(&recorded!("klein_fill"));
    let [reference] = meaning.references.as_slice() else { panic!("one reference") };
    assert_eq!((size(reference), meaning.request.strength), ((576, 464), Some(1.0)));
    let pixels = image::load_from_memory(reference).unwrap().into_rgb8();
    // What the model is to fill is green.
    assert_eq!(pixels.get_pixel(300, 230).0, [0, 255, 0]);
    assert_ne!(pixels.get_pixel(20, 20).0, [0, 255, 0]);
    assert_eq!(meaning.request.loras.len(), 1);
}
