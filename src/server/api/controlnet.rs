//! A1111's ControlNet extension: its lists under `/controlnet`, and its units in the requests of
//! [`a1111`](super::a1111).

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::a1111::without_hash;
use super::unused::refuse_fields;
use crate::pipeline::images::THRESHOLDS;
use crate::pipeline::request::{
    ControlMode, ControlNetChoice, MAX_CONTROLNETS, MAX_THRESHOLD, Settings,
};
use crate::server::controlnets::mode_of;
use crate::server::draft::{Draft, parse_image, size_of};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::state::{Server, blocking};

/// The field with the units.
const FIELD: &str = "alwayson_scripts";
/// What can be done to the image of a unit before the ControlNet sees it.
const MODULES: [&str; 2] = ["none", "canny"];
/// The fields with the image of a unit.
const IMAGES: [&str; 2] = ["image", "input_image"];
/// The ways to fit an image into another shape (numbers 0 and 2) that are not done here. "Crop and
/// Resize", number 1, is.
const OTHER_FITS: [&str; 2] = ["Just Resize", "Resize and Fill"];

/// The paths of the extension.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/controlnet/version", get(async || Json(json!({"version": 2}))))
        .route("/controlnet/settings", get(settings))
        .route("/controlnet/model_list", get(models))
        .route("/controlnet/module_list", get(modules))
        .route("/controlnet/control_types", get(control_types))
}

async fn settings() -> Json<Value> {
    Json(json!({"control_net_unit_count": MAX_CONTROLNETS}))
}

fn names(server: &Server) -> Vec<String> {
    blocking(|| server.models.controlnets()).into_iter().map(|net| net.name).collect()
}

async fn models(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(json!({"model_list": names(&server)}))
}

async fn modules() -> Json<Value> {
    let detail = |name: &str| json!({"model_free": false, "sliders": [], "name": name});
    let details = MODULES.map(|name| (name.to_string(), detail(name)));
    Json(json!({
        "module_list": MODULES,
        "module_detail": details.into_iter().collect::<serde_json::Map<_, _>>(),
    }))
}

async fn control_types(State(server): State<Arc<Server>>) -> Json<Value> {
    let names = names(&server);
    let default = names.first().map_or("None", String::as_str);
    let models: Vec<&str> = ["None"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let kind = |modules: &[&str]| {
        json!({"module_list": modules, "model_list": models,
               "default_option": modules[modules.len() - 1], "default_model": default})
    };
    Json(json!({"control_types": {
        "All": kind(&["canny", "none"]), "Canny": kind(&MODULES),
    }}))
}

/// Adds the units of a request to its draft, and takes their images out of `body`, which is sent
/// back.
///
/// # Errors
/// 404 for a ControlNet that is not there, 422 for a field with a wrong value, or one that asks for
/// a part of the extension that this server does not have.
pub fn add_units(server: &Server, draft: &mut Draft, body: &mut Value) -> Result<(), Fault> {
    let scripts = match body.get_mut(FIELD) {
        None | Some(Value::Null) => return Ok(()),
        // Gradio sends an empty list if no script has arguments.
        Some(Value::Array(list)) if list.is_empty() => return Ok(()),
        Some(Value::Object(scripts)) => scripts,
        Some(_) => {
            let message = format!("{FIELD}: expected an object with the arguments of scripts");
            return Err(Fault::invalid(FIELD, message));
        }
    };
    for (name, script) in scripts {
        if !name.eq_ignore_ascii_case("controlnet") {
            check_off(name, script)?;
            continue;
        }
        let units = match script.get_mut("args") {
            Some(Value::Array(units)) => units,
            _ => return Err(refused("args", "expected a list of units")),
        };
        for unit in units {
            let Some(fields) = used(unit)? else { continue };
            add_unit(server, draft, &fields)?;
            for name in IMAGES {
                if unit.get(name).is_some() {
                    unit[name] = Value::Null;
                }
            }
        }
    }
    Ok(())
}

/// Refuses another script than ControlNet, unless it has no arguments or is switched off.
fn check_off(name: &str, script: &Value) -> Result<(), Fault> {
    let is_off = |argument: &Value| match argument {
        Value::Object(fields) => ["enabled", "ad_model"].iter().any(|name| {
            let value = fields.get(*name);
            value.is_some_and(|v| *v == false || v.as_str().is_some_and(|v| v == "None"))
        }),
        Value::Bool(flag) => !flag,
        Value::Null => true,
        _ => false,
    };
    let is_idle = match script.get("args").unwrap_or(script) {
        // Each unit is switched on by itself.
        Value::Array(arguments) if arguments.first().is_some_and(Value::is_object) => {
            arguments.iter().filter(|argument| argument.is_object()).all(is_off)
        }
        // The first argument of other scripts switches them on.
        Value::Array(arguments) => arguments.first().is_none_or(is_off),
        Value::Object(fields) => fields.is_empty(),
        Value::Null => true,
        _ => false,
    };
    if is_idle {
        return Ok(());
    }
    let name: String = name.chars().take(100).collect();
    let message = format!("{FIELD}: this server has no script of this name: found {name}");
    Err(Fault::new(422, "unsupported", message).parameter(FIELD).hint("leave it out"))
}

/// The fields of a unit that asks for a ControlNet. One that is switched off or has no model does
/// not.
fn used(unit: &Value) -> Result<Option<Fields<'_>>, Fault> {
    let unit = match unit {
        Value::Object(unit) => Fields(unit),
        // Clients send empty units so.
        Value::Null | Value::Bool(false) => return Ok(None),
        _ => return Err(refused("a unit", "expected an object")),
    };
    let is_enabled = match unit.get("enabled") {
        None => true,
        Some(Value::Bool(is_enabled)) => *is_enabled,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => true,
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => false,
        Some(_) => return Err(refused("enabled", "expected true or false")),
    };
    let has_model = match unit.get("model") {
        None => false,
        Some(Value::String(model)) => !model.eq_ignore_ascii_case("none"),
        Some(_) => return Err(refused("model", "expected a name")),
    };
    Ok((is_enabled && has_model).then_some(unit))
}

fn refused(name: &str, what: &str) -> Fault {
    Fault::new(422, "unsupported", format!("{FIELD}: controlnet: {name}: {what}")).parameter(FIELD)
}

fn add_unit(server: &Server, draft: &mut Draft, unit: &Fields) -> Result<(), Fault> {
    refuse_fields(
        unit,
        &[
            "mask",
            "mask_image",
            "effective_region_mask",
            "batch_images",
            "ipadapter_input",
            "guessmode",
        ],
        "ControlNets see an image, and what is repainted of the image to start from",
    )
    .map_err(|fault| refused("a unit", &fault.message))?;
    let is_balanced = match unit.get("control_mode") {
        None => true,
        Some(Value::String(mode)) => mode.eq_ignore_ascii_case("balanced"),
        Some(mode) => mode.as_f64() == Some(0.0),
    };
    if !is_balanced {
        return Err(refused("control_mode", "ControlNets are always balanced here"));
    }
    let module = unit.text("module")?.unwrap_or("none").to_lowercase();
    if !MODULES.contains(&module.as_str()) {
        return Err(refused("module", "this server finds no poses, depths or the like in a photo")
            .hint("use canny, or none with an image that is prepared"));
    }
    let mut choice = ControlNetChoice::new(
        without_hash(unit.text("model")?.unwrap_or_default()),
        unit.real("weight")?.unwrap_or(1.0),
    );
    choice.start = unit.real("guidance_start")?.unwrap_or(0.0);
    choice.end = unit.real("guidance_end")?.unwrap_or(1.0);
    choice.edges = module == "canny";
    if choice.edges {
        choice.thresholds = thresholds(unit)?;
    }
    choice.mode = match unit.get("union_control_type") {
        Some(Value::String(kind)) => mode_of(FIELD, kind)?,
        Some(_) => return Err(refused("union_control_type", "expected a name")),
        None => None,
    };
    if choice.edges && choice.mode.is_none() {
        choice.mode = Some(ControlMode(0));
    }
    let image = image_of(unit)?.or_else(|| draft.input.clone());
    let image = image.ok_or_else(|| refused("image", "a unit needs an image"))?;
    check_fit(server, draft, unit, &image)?;
    server.add_controlnet(draft, FIELD, choice, image)
}

/// The thresholds of a unit for edges; a negative number is none. `None` if it has neither.
fn thresholds(unit: &Fields) -> Result<Option<[u16; 2]>, Fault> {
    let one = |name: &str| match unit.real(name)? {
        Some(number) if number > f32::from(MAX_THRESHOLD) => {
            Err(refused(name, &format!("expected a number from 0 to {MAX_THRESHOLD}")))
        }
        number => Ok(number.filter(|number| *number >= 0.0).map(|number| number.round() as u16)),
    };
    let (a, b) = (one("threshold_a")?, one("threshold_b")?);
    if a.is_none() && b.is_none() {
        return Ok(None);
    }
    let (a, b) = (a.unwrap_or(THRESHOLDS[0]), b.unwrap_or(THRESHOLDS[1]));
    // In either order, as for OpenCV.
    Ok(Some([a.min(b), a.max(b)]))
}

/// The image of a unit, which may be inside an object together with its mask.
fn image_of(unit: &Fields) -> Result<Option<Bytes>, Fault> {
    for name in IMAGES {
        let text = match unit.get(name) {
            None => continue,
            Some(Value::Object(both)) => {
                refuse_fields(&Fields(both), &["mask"], "a ControlNet reads no mask of its own")
                    .map_err(|fault| refused(name, &fault.message))?;
                Fields(both).long_text("image")?
            }
            Some(_) => unit.long_text(name)?,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            return parse_image(FIELD, text).map(Some);
        }
    }
    Ok(None)
}

/// Refuses other ways than "Crop and Resize" unless the image has the shape of the result, where
/// all ways are equal: clients send others by default.
fn check_fit(server: &Server, draft: &Draft, unit: &Fields, image: &[u8]) -> Result<(), Fault> {
    let is_other = match unit.get("resize_mode") {
        None => false,
        Some(Value::String(mode)) => OTHER_FITS.iter().any(|fit| fit.eq_ignore_ascii_case(mode)),
        Some(mode) => mode.as_f64() != Some(1.0),
    };
    if !is_other {
        return Ok(());
    }
    let (w, h) = size_of(image, FIELD)?;
    let (width, height) = match &draft.input {
        Some(input) if draft.is_masked() => size_of(input, "init_images")?,
        _ => {
            let (width, height) = server.sides_of(&draft.request);
            (width as u32, height as u32)
        }
    };
    let scale = (f64::from(width) / f64::from(w)).max(f64::from(height) / f64::from(h));
    let surplus = |side: u32, of: u32| f64::from(side) * scale - f64::from(of);
    match surplus(w, width).max(surplus(h, height)) < 1.0 {
        true => Ok(()),
        false => Err(refused("resize_mode", "an image of another shape is cropped here")
            .hint("use Crop and Resize, or an image in the shape of the result")),
    }
}

/// What `info` says about the ControlNets of an image, in the words of the extension: name and
/// text.
pub fn notes(settings: &Settings) -> impl Iterator<Item = (String, String)> {
    settings.controlnets.iter().enumerate().map(|(number, choice)| {
        let ControlNetChoice { name, strength, start, end, edges, thresholds, .. } = choice;
        // Edges are found in the size of the result, whatever `processor_res` asks for.
        let (module, used) = match edges {
            true => {
                let [low, high] = thresholds.unwrap_or(THRESHOLDS);
                let side = settings.width.min(settings.height);
                let used =
                    format!(", Processor Res: {side}, Threshold A: {low}.0, Threshold B: {high}.0");
                ("canny", used)
            }
            false => ("none", String::new()),
        };
        let text = format!(
            "Module: {module}, Model: {name}, Weight: {strength}, Resize Mode: Crop and Resize\
             {used}, Guidance Start: {start}, Guidance End: {end}, Control Mode: Balanced"
        );
        (format!("ControlNet {number}"), text)
    })
}
