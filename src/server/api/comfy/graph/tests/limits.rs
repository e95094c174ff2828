//! Graphs that ask for too much, or for what is not drawn as they say.

use super::*;

/// The graph of [`inpaint`] with more nodes.
fn with_nodes(nodes: Value, changes: Value) -> Value {
    let mut graph = inpaint();
    graph.as_object_mut().unwrap().extend(nodes.as_object().unwrap().clone());
    with(&graph, changes)
}

/// The message of the fault at `node`.
fn refusal(graph: &Value, node: &str) -> String {
    let fault = read(graph).unwrap_err();
    assert_eq!(fault.parameter.as_deref().unwrap_or_default(), node, "{}", fault.message);
    fault.message
}

#[test]
fn outputs_and_files_of_a_graph_are_counted() {
    let mut graph = simple();
    for id in 100..115 {
        graph[id.to_string()] = graph["9"].clone();
    }
    assert_eq!(read(&graph).unwrap().outputs.len(), 16);
    graph["115"] = graph["9"].clone();
    assert!(refusal(&graph, "").contains("at most 16"));
    let mut graph = simple();
    graph["20"] = json!({"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "x"}});
    graph["21"] = json!({"class_type": "StyleModelLoader", "inputs": {"style_model_name": "x"}});
    let mut before = "6".to_string();
    for number in 100..165 {
        let (image, seen, styled) =
            (format!("1{number}"), format!("2{number}"), format!("3{number}"));
        graph[&image] = json!({"class_type": "LoadImage", "inputs": {"image": "photo.png"}});
        graph[&seen] = json!({"class_type": "CLIPVisionEncode", "inputs":
            {"clip_vision": ["20", 0], "image": [image, 0], "crop": "none"}});
        graph[&styled] = json!({"class_type": "StyleModelApply", "inputs":
            {"conditioning": [before, 0], "style_model": ["21", 0],
             "clip_vision_output": [seen, 0], "strength": 1, "strength_type": "multiply"}});
        before = styled;
    }
    graph["3"]["inputs"]["positive"] = json!([before, 0]);
    assert!(refusal(&graph, "LoadImage#1164").contains("too many images"));
}

#[test]
fn sizes_without_pixels_and_wide_blurs_are_refused() {
    let mut graph = simple();
    graph["10"] = json!({"class_type": "ImageCrop", "inputs":
        {"image": ["8", 0], "x": 3, "y": 3, "width": 8, "height": 8}});
    let graph = with(&graph, json!({"5/width": 0, "9/images": ["10", 0]}));
    // The size itself is refused with the request.
    assert_eq!(read(&graph).unwrap().request.width, Some(0));
    let hint = json!({"30": {"class_type": "HintImageEnchance", "inputs":
        {"hint_image": ["20", 0], "image_gen_width": 0, "image_gen_height": 8,
         "resize_mode": "Just Resize"}}});
    let hint = with_nodes(hint, json!({"22/pixels": ["30", 0], "9/images": ["8", 0]}));
    assert!(refusal(&hint, "HintImageEnchance#30").contains("no pixels"));
    let most = u64::MAX;
    let padded = json!({"30": {"class_type": "ImagePadForOutpaint", "inputs":
        {"image": ["20", 0], "left": most, "top": 0, "right": most, "bottom": 0,
         "feathering": 40}}});
    let padded = with_nodes(padded, json!({"22/pixels": ["30", 0], "23/mask": ["30", 1]}));
    refusal(&padded, "ImagePadForOutpaint#30");
    let blurred = json!({
        "30": {"class_type": "SolidMask", "inputs": {"value": 1, "width": 2000, "height": 2000}},
        "31": {"class_type": "INPAINT_ExpandMask", "inputs":
            {"mask": ["30", 0], "grow": 0, "blur": 1024, "blur_type": "linear"}},
    });
    let blurred = with_nodes(blurred, json!({"23/mask": ["31", 0]}));
    assert!(refusal(&blurred, "KSampler#3").contains("blurred over too many pixels"));
    let batch = json!({"30": {"class_type": "EmptyImage", "inputs":
        {"width": 64, "height": 64, "batch_size": 2, "color": 0}}});
    let batch = with_nodes(batch, json!({"22/pixels": ["30", 0]}));
    assert!(refusal(&batch, "EmptyImage#30").contains("one image"));
}

#[test]
fn a_drawn_image_is_put_over_the_image_that_it_was_drawn_over() {
    let crop = json!({"30": {"class_type": "ImageCrop", "inputs":
        {"image": ["20", 0], "x": 0, "y": 0, "width": 64, "height": 48}}});
    let graph = with_nodes(crop.clone(), json!({"22/pixels": ["30", 0]}));
    assert!(refusal(&graph, "ImageCompositeMasked#24").contains("another image"));
    let graph = with_nodes(crop, json!({"22/pixels": ["30", 0], "24/destination": ["30", 0]}));
    // The mask of the whole photo is stretched to that of a part.
    let meaning = read(&graph).unwrap();
    assert_eq!(meaning.mask.as_ref().unwrap().size, (64, 48));
    let start = repainted(&meaning).0;
    assert!((37..40).contains(&start), "60 of 100 columns begin at {start} of 64");
    let filled = json!({
        "30": {"class_type": "INPAINT_MaskedBlur", "inputs":
            {"image": ["20", 0], "mask": ["21", 0], "blur": 9, "falloff": 0}},
        "31": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "u"}},
        "32": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0],
            "control_net": ["31", 0], "image": ["30", 0], "strength": 1}},
    });
    let filled = with_nodes(filled, json!({"3/positive": ["32", 0]}));
    assert!(refusal(&filled, "ControlNetApply#32").contains("filling"));
}

#[test]
fn an_odd_growth_is_that_of_comfyui() {
    for (growth, start) in [(0, 60), (1, 60), (6, 57), (7, 57)] {
        let mut graph = inpaint();
        graph["23"] = json!({"class_type": "VAEEncodeForInpaint", "inputs":
            {"pixels": ["20", 0], "vae": ["4", 2], "mask": ["21", 0], "grow_mask_by": growth}});
        assert_eq!(repainted(&read(&graph).unwrap()).0, start, "{growth}");
    }
}
