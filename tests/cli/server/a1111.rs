//! `/sdapi/v1`.

use serde_json::{Value, json};

use super::{Server, decoded, drawn_by_command, wait_for};

#[test]
pub fn txt2img_and_img2img_answer_with_bare_pngs_and_everything_that_clients_read() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), &[]);
    let body = json!({
        "prompt": "a fox", "negative_prompt": "blur", "steps": 3, "width": 128, "height": 128,
        "seed": 5, "cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "batch_size": 1, "n_iter": 1,
        "override_settings": {"sd_model_checkpoint": "flux-tiny [0123456789]"}, "url": "x",
        "subseed": -1, "styles": [], "enable_hr": false, "alwayson_scripts": {},
    });
    let answer = server.post("/sdapi/v1/txt2img", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let reference = drawn_by_command(folder.path(), &["a fox", "--steps", "3", "--seed", "5"]);
    assert!(decoded(&answer["images"][0]) == reference);
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&info["seed"], &info["steps"], &info["cfg_scale"]),
        (&json!(5), &json!(3), &json!(1.0))
    );
    assert_eq!(info["extra_generation_params"]["Sampler asked for"], "DPM++ 2M");
    assert!(info["infotexts"][0].as_str().unwrap().starts_with("a fox\nSteps: 3"));

    let mut body = body;
    body["init_images"] = json!([answer["images"][0]]);
    body["denoising_strength"] = json!(0.0);
    let again = server.post("/sdapi/v1/img2img", &body).json();
    let (a, b) = (decoded(&answer["images"][0]), decoded(&again["images"][0]));
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8().into_raw();
    let (a, b) = (pixels(&a), pixels(&b));
    let off: u64 = a.iter().zip(&b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(off < 12 * a.len() as u64, "strength 0 keeps the image");

    for path in [
        "samplers",
        "schedulers",
        "upscalers",
        "sd-vae",
        "scripts",
        "embeddings",
        "loras",
        "cmd-flags",
        "memory",
        "prompt-styles",
        "latent-upscale-modes",
        "script-info",
    ] {
        assert_eq!(server.get(&format!("/sdapi/v1/{path}")).status, 200, "{path}");
    }
    let models = server.get("/sdapi/v1/sd-models").json();
    assert_eq!(
        (&models[0]["title"], &models[0]["model_name"]),
        (&json!("flux-tiny"), &json!("flux-tiny"))
    );
    // Clients send the whole object back.
    let options = server.get("/sdapi/v1/options").json();
    assert_eq!(options["sd_model_checkpoint"], "flux-tiny");
    assert_eq!(server.post("/sdapi/v1/options", &options).json(), Value::Null);
    let unknown = server.post("/sdapi/v1/options", &json!({"sd_model_checkpoint": "nothing"}));
    assert_eq!((unknown.status, &unknown.json()["error"]), (404, &json!("model_not_found")));
    let refused = server.post("/sdapi/v1/txt2img", &json!({"prompt": "x", "width": 100}));
    assert_eq!(refused.status, 422);
    assert!(refused.json()["detail"].as_str().unwrap().contains("multiple of 16"));
}

#[test]
pub fn progress_shows_the_running_job_and_interrupt_stops_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    let idle = server.get("/sdapi/v1/progress").json();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
    std::thread::scope(|scope| {
        let draw = scope.spawn(|| {
            let body = json!({"prompt": "a fox", "steps": 1000, "batch_size": 8});
            server.post("/sdapi/v1/txt2img", &body)
        });
        let progress = wait_for("progress", || {
            let progress = server.get("/sdapi/v1/progress").json();
            (progress["current_image"].is_string()).then_some(progress)
        });
        assert!(progress["progress"].as_f64().unwrap() > 0.0);
        assert_eq!(progress["state"]["sampling_steps"], 1000);
        assert!(decoded(&progress["current_image"]).starts_with(b"\x89PNG"));
        assert_eq!(server.post("/sdapi/v1/interrupt", &json!({})).json(), json!({}));
        let answer = draw.join().unwrap();
        assert_eq!((answer.status, &answer.json()["images"]), (200, &json!([])));
    });
    assert_eq!(server.workers().len(), 1);
}
