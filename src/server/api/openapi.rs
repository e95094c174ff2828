//! The description of the native API, `/openapi.json`. Limits and names come from the code that
//! checks them; a test compares the fields with those that are read.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::inquire::{CONTROL_SIZE, INIT_SIZE, MASK_BOX, SIZES, STYLE_COUNT};
use super::native::{FIELDS, MAX_IDEMPOTENCY_KEY, MAX_LISTED};
use crate::pipeline::images::Format;
use crate::pipeline::request::{
    ControlMode, MAX_CONTROL_STRENGTH, MAX_CONTROLNETS, MAX_COUNT, MAX_MASK_BLUR, MAX_PROMPT_BYTES,
    MAX_REFERENCES, MAX_SCALE, MAX_SHIFT, MAX_SIDE, MAX_STEPS, MAX_STYLE_STRENGTH, MAX_STYLES,
    MAX_THRESHOLD, MIN_SHIFT, MIN_SIDE,
};
use crate::server::job::State as JobState;
use crate::server::state::Server;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/openapi.json", get(description))
}

async fn description(State(server): State<Arc<Server>>) -> Json<Value> {
    let mut whole = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "flux-fast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Jobs that draw images. A job lives on while nobody waits for it; its \
                            events can be followed and resumed.",
        },
        "paths": paths(),
        "components": {"schemas": schemas(), "responses": {"Error": error_response()}},
    });
    if let Some(url) = &server.options.public_url {
        whole["servers"] = json!([{"url": url}]);
    }
    if !server.options.keys.is_empty() {
        whole["security"] = json!([{"key": []}]);
        whole["components"]["securitySchemes"] =
            json!({"key": {"type": "http", "scheme": "bearer"}});
    }
    Json(whole)
}

fn error_response() -> Value {
    json!({
        "description": "What is wrong, and what to try",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    })
}

/// An operation that answers with JSON of a schema.
fn operation(id: &str, summary: &str, status: u16, schema: &str) -> Value {
    let content = match schema {
        // The schema is that of one event.
        "events" => json!({"text/event-stream": {"schema": {
            "type": "object", "required": ["id", "event", "data"],
            "properties": {
                "id": {"type": "string"},
                "event": {"enum": ["status", "progress", "preview", "output", "log"]},
                "data": {"type": "string", "contentMediaType": "application/json"},
            },
        }}}),
        "image" => json!({"image/*": {"schema": {"type": "string", "format": "binary"}}}),
        "text" => json!({"text/plain": {"schema": {"type": "string"}}}),
        "any" => json!({"application/json": {"schema": {"type": "object"}}}),
        name => {
            let reference = format!("#/components/schemas/{name}");
            json!({"application/json": {"schema": {"$ref": reference}}})
        }
    };
    json!({
        "operationId": id,
        "summary": summary,
        "responses": {
            status.to_string(): {"description": summary, "content": content},
            "4XX": {"$ref": "#/components/responses/Error"},
            "5XX": {"$ref": "#/components/responses/Error"},
        },
    })
}

fn parameter(place: &str, name: &str, schema: Value) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": schema})
}

/// `operation` with parameters.
fn with(mut operation: Value, parameters: &[Value]) -> Value {
    operation["parameters"] = json!(parameters);
    operation
}

/// `operation` with a request in its body, in an envelope or without.
fn with_request(mut operation: Value, schema: &str) -> Value {
    let request = json!({"$ref": format!("#/components/schemas/{schema}")});
    let schema = json!({"oneOf": [
        request,
        {"type": "object", "required": ["request"], "properties": {"request": request}},
    ]});
    operation["requestBody"] =
        json!({"required": true, "content": {"application/json": {"schema": schema}}});
    operation
}

fn paths() -> Value {
    let id = || parameter("path", "id", json!({"type": "string"}));
    let number = parameter("path", "number", json!({"type": "integer", "minimum": 0}));
    let states = JobState::ALL.map(JobState::name);
    let status = parameter("query", "status", json!({"type": "string", "enum": states}));
    let limit = json!({"type": "integer", "minimum": 0, "maximum": MAX_LISTED, "default": 50});
    let key = json!({"type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY});
    let last = parameter("header", "Last-Event-ID", json!({"type": "string"}));
    let accept = operation("submitJob", "Accept a job", 201, "Job");
    let accept = with(accept, &[parameter("header", "Idempotency-Key", key)]);
    let mut submit = with_request(accept, "Request");
    // The purpose of the answer.
    let links: Map<String, Value> = ["getJob", "cancelJob"]
        .iter()
        .map(|name| {
            let link = json!({"operationId": name, "parameters": {"id": "$response.body#/id"}});
            (name.to_string(), link)
        })
        .collect();
    submit["responses"]["201"]["links"] = json!(links);
    submit["responses"]["200"] = submit["responses"]["201"].clone();
    submit["responses"]["200"]["description"] =
        json!("The job that was accepted with the same idempotency key before");
    let list = with(
        operation("listJobs", "The caller's newest jobs", 200, "Jobs"),
        &[status, parameter("query", "limit", limit)],
    );
    let mut events =
        with(operation("followJob", "The events of a job", 200, "events"), &[id(), last]);
    events["responses"]["204"] =
        json!({"description": "The job is over, and everything was sent already"});
    let mut settings = operation("readSettings", "The settings in an image file", 200, "any");
    settings["requestBody"] = json!({"required": true, "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    }});
    let mut ready = operation("ready", "Whether a worker can draw", 200, "any");
    ready["responses"]["503"] = ready["responses"]["200"].clone();
    let cancel = |name: &str| with(operation(name, "Cancel a job", 200, "Job"), &[id()]);
    json!({
        "/api/v2/jobs": {"post": submit, "get": list},
        "/api/v2/jobs/{id}": {
            "get": with(operation("getJob", "A job", 200, "Job"), &[id()]),
            "delete": cancel("deleteJob"),
        },
        "/api/v2/jobs/{id}/cancel": {"post": cancel("cancelJob")},
        "/api/v2/jobs/{id}/events": {"get": events},
        "/api/v2/jobs/{id}/images/{number}": {
            "get": with(operation("getImage", "An image of a job", 200, "image"), &[id(), number]),
        },
        "/api/v2/plan": {"post": with_request(
            operation("planJob", "What a request would cost, before it is sent", 200, "any"),
            "PlanRequest",
        )},
        "/api/v2/settings": {"post": settings},
        "/api/v2/models": {
            "get": operation("listModels", "The models, the default one first", 200, "any"),
        },
        "/api/v2/loras": {"get": operation("listLoras", "The LoRAs", 200, "any")},
        "/api/v2/controlnets": {
            "get": operation("listControlNets", "The ControlNets and their modes", 200, "any"),
        },
        "/health": {"get": operation("health", "Whether the server runs", 200, "any")},
        "/ready": {"get": ready},
        "/metrics": {"get": operation("metrics", "Numbers for Prometheus", 200, "text")},
    })
}

/// Type and meaning of a field of a request.
fn field(name: &str) -> Value {
    let side =
        || json!({"type": "integer", "minimum": MIN_SIDE, "maximum": MAX_SIDE, "multipleOf": 16});
    let scale = || json!({"type": "number", "minimum": 0, "maximum": MAX_SCALE});
    let (mut schema, meaning) = match name {
        "prompt" => (
            json!({"type": "string", "maxLength": MAX_PROMPT_BYTES}),
            "What to draw; `<lora:NAME:STRENGTH>` tags name LoRAs",
        ),
        "negative" => (json!({"type": "string"}), "What not to draw; it needs a cfg_scale"),
        "steps" => {
            (json!({"type": "integer", "minimum": 1, "maximum": MAX_STEPS}), "Denoising steps")
        }
        "cfg_scale" => (scale(), "True classifier-free guidance; 1 is off"),
        "guidance" => (scale(), "Distilled guidance, for models that have it"),
        "shift" => (
            json!({"type": "number", "minimum": MIN_SHIFT, "maximum": MAX_SHIFT}),
            "A fixed shift of the noise levels",
        ),
        "scheduler" => (json!({"type": "object"}), "The content of a scheduler_config.json"),
        "seed" => (
            json!({"oneOf": [
                {"type": "integer", "minimum": 0, "maximum": u64::MAX},
                {"type": "string", "pattern": "^[0-9]{1,20}$"},
            ]}),
            "The seed of the noise; a string where numbers lose digits",
        ),
        "width" => (side(), "Pixels"),
        "height" => (side(), "Pixels"),
        "size" => (json!({"type": "string"}), "WIDTHxHEIGHT, in place of width and height"),
        "strength" => (
            json!({"type": "number", "minimum": 0, "maximum": 1}),
            "How far to leave the image to start from: 0 keeps it, 1 ignores it",
        ),
        "loras" => (
            json!({"type": "array", "items": {"oneOf": [
                {"type": "string"},
                {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "strength": {"type": "number"},
                }},
            ]}}),
            "LoRAs by their names",
        ),
        "count" => {
            (json!({"type": "integer", "minimum": 1, "maximum": MAX_COUNT}), "How many images")
        }
        "only" => (
            json!({"type": "integer", "minimum": 0}),
            "The one image of these that is drawn, from 0",
        ),
        "model" => (json!({"type": "string"}), "A name of /api/v2/models"),
        "format" => (
            json!({"type": "string", "enum": Format::ALL.map(Format::name)}),
            "The format of the files",
        ),
        "quality" => {
            (json!({"type": "integer", "minimum": 1, "maximum": 100}), "The quality of JPEG files")
        }
        "priority" => (
            json!({"type": "string", "enum": ["normal", "low"]}),
            "Jobs of low priority wait for all others",
        ),
        name => return image_field(name),
    };
    schema["description"] = json!(meaning);
    schema
}

/// The same for fields with images, and for those that say what is done with them.
fn image_field(name: &str) -> Value {
    let image = || json!({"type": "string", "contentEncoding": "base64"});
    let (mut schema, meaning) = match name {
        "init" => (
            image(),
            "An image to start from, in base64 or as a data URI. Without a mask, its transparent \
             pixels are repainted and the others kept",
        ),
        "mask" => (
            image(),
            "An image of the size of init: what is white in it, or transparent if anything is, is \
             repainted, and the rest is kept",
        ),
        "mask_blur" => (
            json!({"type": "number", "minimum": 0, "maximum": MAX_MASK_BLUR}),
            "Blurs the edges of the mask, in pixels",
        ),
        "mask_padding" => (
            json!({"type": "integer", "minimum": 0, "maximum": MAX_SIDE}),
            "Draws only the surroundings of the mask, with as many pixels around it",
        ),
        "outpaint" => (
            json!({"type": "string", "pattern": "^ *[0-9]+( *, *[0-9]+){3} *$"}),
            "LEFT,TOP,RIGHT,BOTTOM: pixels that are added to init and painted",
        ),
        "control" => (
            image(),
            "The image whose edges or depths the result has, in base64 or as a data URI, for \
             FLUX.1 Canny and Depth",
        ),
        "references" => (
            json!({
                "type": "array", "maxItems": MAX_REFERENCES,
                "items": {"type": "string", "contentEncoding": "base64"},
            }),
            "Images that the model looks at, in base64 or as data URIs, for models that read them",
        ),
        "styles" => (
            json!({
                "type": "array", "maxItems": MAX_STYLES,
                "items": {"oneOf": [image(), {
                    "type": "object", "required": ["image"], "properties": {
                        "image": image(),
                        "strength": {"type": "number", "minimum": 0, "maximum": MAX_STYLE_STRENGTH},
                    },
                }]},
            }),
            "Images whose content and style the result has, by FLUX.1 Redux",
        ),
        "controlnets" => (
            controlnets(image()),
            "ControlNets of /api/v2/controlnets with the images that they see, for FLUX.1",
        ),
        _ => return Value::Null,
    };
    schema["description"] = json!(meaning);
    schema
}

/// A list of ControlNets, each with an `image`.
fn controlnets(image: Value) -> Value {
    let part = |default: u8, meaning: &str| {
        json!({"type": "number", "minimum": 0, "maximum": 1, "default": default,
               "description": meaning})
    };
    json!({
        "type": "array", "maxItems": MAX_CONTROLNETS,
        "items": {
            "type": "object", "required": ["name", "image"], "additionalProperties": false,
            "properties": {
                "name": {"type": "string"},
                "image": image,
                "strength": {
                    "type": "number", "minimum": 0, "maximum": MAX_CONTROL_STRENGTH, "default": 1,
                },
                "start": part(0, "The part of the steps after which it begins to act"),
                "end": part(1, "The part of the steps after which it acts no more"),
                "mode": {
                    "type": "string", "examples": ControlMode::NAMES,
                    "description": "What the image is, where the ControlNet has modes",
                },
                "edges": {
                    "type": "boolean", "default": false,
                    "description": "The image is a photo whose edges are found first",
                },
                "thresholds": {
                    "type": "array", "minItems": 2, "maxItems": 2, "default": [50, 200],
                    "items": {"type": "integer", "minimum": 0, "maximum": MAX_THRESHOLD},
                    "description": "The thresholds of these edges, the lower one first",
                },
            },
        },
    })
}

fn schemas() -> Value {
    let fields: Map<String, Value> =
        FIELDS.iter().map(|name| (name.to_string(), field(name))).collect();
    let mut of_plan = fields.clone();
    let size = json!({"type": "string", "pattern": "^[0-9]{1,5}x[0-9]{1,5}$"});
    let meaning = "WIDTHxHEIGHT of reference images, in place of the images";
    let sizes = json!({"type": "array", "items": size.clone(), "description": meaning});
    of_plan.insert(SIZES.into(), sizes);
    for (name, image) in [(INIT_SIZE, "init"), (CONTROL_SIZE, "control")] {
        let mut schema = size.clone();
        schema["description"] = json!(format!("WIDTHxHEIGHT of {image}, in place of the image"));
        of_plan.insert(name.into(), schema);
    }
    let part = json!({
        "type": "array", "minItems": 4, "maxItems": 4,
        "items": {"type": "integer", "minimum": 0},
        "description": "Left, top, width and height in pixels of the part that the mask repaints, \
                        in place of the mask",
    });
    of_plan.insert(MASK_BOX.into(), part);
    let styles = json!({
        "type": "integer", "minimum": 0, "maximum": MAX_STYLES,
        "description": "The number of style images, in place of the images",
    });
    of_plan.insert(STYLE_COUNT.into(), styles);
    of_plan["controlnets"]["items"]["required"] = json!(["name"]);
    let time = json!({"type": ["number", "null"], "description": "Seconds since 1970"});
    let nullable = |kind: &str| json!({"type": [kind, "null"]});
    json!({
        "Request": {
            "type": "object", "required": ["prompt"], "additionalProperties": false,
            "properties": fields,
        },
        "PlanRequest": {
            "type": "object", "additionalProperties": false, "properties": of_plan,
        },
        "Error": {
            "type": "object", "required": ["error"],
            "properties": {"error": {
                "type": "object", "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string"}, "message": {"type": "string"},
                    "parameter": nullable("string"), "hint": nullable("string"),
                    "request_id": nullable("string"),
                },
            }},
        },
        "Job": {
            "type": "object", "required": ["id", "status", "created_at", "outputs", "urls"],
            "properties": {
                "id": {"type": "string"},
                "status": {"type": "string", "enum": JobState::ALL.map(JobState::name)},
                "created_at": {"type": "number"},
                "started_at": time, "completed_at": time, "expires_at": time,
                "queue_position": nullable("integer"),
                "progress": nullable("object"),
                "attempts": {"type": "integer"},
                "model": nullable("string"),
                "request": nullable("object"),
                "seed_text": nullable("string"),
                "settings": nullable("object"),
                "outputs": {"type": "array", "items": {"type": "object"}},
                "error": nullable("object"),
                "urls": {"type": "object"},
            },
        },
        "Jobs": {
            "type": "object", "required": ["jobs"],
            "properties": {
                "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_described_and_every_reference_leads_somewhere() {
        for name in FIELDS {
            assert!(field(name)["description"].is_string(), "{name}");
        }
        let whole = json!({"components": {"schemas": schemas(), "responses": {"Error": {}}},
                           "paths": paths()});
        let text = whole.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(whole.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
