//! What acts on the prompts of a drawing.

use super::*;

#[test]
fn images_are_counted_and_measured_before_one_is_decoded() {
    let mut graph = simple();
    graph["20"] = json!({"class_type": "LoadImage", "inputs": {"image": "damaged.png"}});
    graph["21"] = json!({"class_type": "ImageScale", "inputs":
        {"image": ["20", 0], "width": 64, "height": 64}});
    graph["22"] = json!({"class_type": "ControlNetLoader", "inputs": {"control_net_name": "u"}});
    let mut before = "6".to_string();
    for number in 30..35 {
        graph[number.to_string()] = json!({"class_type": "ControlNetApply", "inputs": {
            "conditioning": [before, 0], "control_net": ["22", 0], "image": ["21", 0],
            "strength": 1}});
        before = number.to_string();
    }
    let five = with(&graph, json!({"3/positive": ["34", 0]}));
    let message = read(&five).unwrap_err().message;
    assert!(message.contains("found 5 ControlNets, expected at most 4"), "{message}");
    let four = with(&graph, json!({"3/positive": ["33", 0]}));
    let fault = read(&four).unwrap_err();
    assert!(!fault.message.contains("ControlNets"), "{}", fault.message);
    for (width, height) in [(8192, 8192), (0, 8192), (4096, 4096)] {
        let large = with(
            &graph,
            json!({"3/positive": ["30", 0], "21/width": width,
                                        "21/height": height}),
        );
        let fault = read(&large).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some("ImageScale#21"), "{}", fault.message);
    }
}

#[test]
fn what_acts_on_one_of_two_prompts_is_refused() {
    let mut graph = simple();
    let more = json!({
        "10": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
        "20": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "21": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "union"}},
        "22": {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["10", 0], "negative": ["7", 0], "control_net": ["21", 0],
            "image": ["20", 0], "strength": 0.5, "start_percent": 0.0, "end_percent": 1.0}},
        "23": {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["4", 2]}},
        "24": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["10", 0], "latent": ["23", 0]}},
        "25": {"class_type": "ReferenceLatent", "inputs":
            {"conditioning": ["7", 0], "latent": ["23", 0]}},
    });
    graph.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let read = |positive: (&str, u8), negative: (&str, u8), cfg: f64| {
        let changes = json!({"3/positive": [positive.0, positive.1],
                             "3/negative": [negative.0, negative.1], "3/cfg": cfg});
        read(&with(&graph, changes))
    };
    let both = read(("22", 0), ("22", 1), 4.0).unwrap();
    assert_eq!((both.controlnets.len(), both.request.cfg_scale), (1, Some(4.0)));
    assert!(both.notes.iter().any(|note| note.contains("guidance")), "{:?}", both.notes);
    let one = read(("22", 0), ("7", 0), 4.0).unwrap_err();
    assert!(one.message.contains("positive prompt only"), "{}", one.message);
    // With a CFG of 1 the negative prompt has no effect.
    assert_eq!(read(("22", 0), ("7", 0), 1.0).unwrap().controlnets.len(), 1);
    assert!(read(("24", 0), ("7", 0), 4.0).is_err());
    assert_eq!(read(("24", 0), ("25", 0), 4.0).unwrap().references.len(), 1);
    assert_eq!(read(("24", 0), ("7", 0), 1.0).unwrap().references.len(), 1);
}
