//! The Model Context Protocol at `/mcp`: tools with which language models draw.
//!
//! Every request is complete in itself, as revision 2026-07-28 has it; clients of earlier revisions
//! may shake hands first, which changes nothing. There are no sessions and no messages that the
//! server begins, so this is a small set of JSON-RPC methods over POST.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::dialect::Dialect;
use super::shared::{images as image_list, link, mask, sentence, type_of};
use crate::pipeline::images::{Format, MaskMarks, decode, encode};
use crate::pipeline::request::Request;
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::{Draft, parse_image, parse_size};
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Job, Output};
use crate::server::state::{Server, blocking};
use crate::server::wait::{Waiting, succeeded};

/// The revisions that are spoken, the newest first.
const REVISIONS: [&str; 5] = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// The newest revision with a handshake.
const NEWEST_WITH_HANDSHAKE: &str = "2025-11-25";
/// The largest PNG that is sent as it is, in bytes. Language models read images in full.
const MAX_PNG: u64 = 1 << 20;
/// How long lists may be kept, in milliseconds.
const LIFE: u64 = 30_000;
const INSTRUCTIONS: &str = "Draws images from descriptions. Describe what is to be seen in plain \
                            English. The seed in the answer draws the same image again.";

// Codes of JSON-RPC.
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/mcp", post(message))
}

/// The body of an error that belongs to no message.
pub fn error(fault: &Fault) -> Value {
    failure(&Value::Null, INVALID_REQUEST, &sentence(fault))
}

fn failure(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

fn success(id: &Value, result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

async fn message(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Whole,
) -> Response {
    let refused = |status: StatusCode, code, message: &str| {
        (status, Json(failure(&Value::Null, code, message))).into_response()
    };
    let message = match body.json() {
        Ok(Value::Object(message)) => message,
        Ok(_) => {
            return refused(StatusCode::BAD_REQUEST, INVALID_REQUEST, "expected one message");
        }
        Err(fault) => return refused(StatusCode::BAD_REQUEST, PARSE_ERROR, &fault.message),
    };
    let method = message.get("method").and_then(Value::as_str);
    let id = message.get("id").cloned().unwrap_or_default();
    let Some(method) = method.filter(|_| message.get("jsonrpc") == Some(&json!("2.0"))) else {
        // Answers to requests that were never sent.
        return match message.contains_key("result") || message.contains_key("error") {
            true => StatusCode::ACCEPTED.into_response(),
            false => {
                refused(StatusCode::BAD_REQUEST, INVALID_REQUEST, "not a message of JSON-RPC 2.0")
            }
        };
    };
    if id.is_null() {
        // A notification. A client that wants to cancel a call hangs up.
        return StatusCode::ACCEPTED.into_response();
    }
    let none = Map::new();
    let params = message.get("params").and_then(Value::as_object).unwrap_or(&none);
    let answer = match method {
        "initialize" => success(&id, handshake(params)),
        "server/discover" => success(&id, cached(discovery())),
        "ping" => success(&id, json!({})),
        "tools/list" => success(&id, cached(json!({"tools": tools()}))),
        "tools/call" => return call(server, owner, headers, id, params).await,
        _ => {
            let answer = failure(&id, METHOD_NOT_FOUND, "there is no method of this name");
            return (StatusCode::NOT_FOUND, Json(answer)).into_response();
        }
    };
    Json(answer).into_response()
}

fn server_info() -> Value {
    json!({"name": "flux-fast", "title": "flux-fast", "version": env!("CARGO_PKG_VERSION")})
}

fn handshake(params: &Map<String, Value>) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let with_handshake = &REVISIONS[1..];
    let revision = with_handshake.iter().find(|revision| **revision == asked);
    json!({
        "protocolVersion": revision.unwrap_or(&NEWEST_WITH_HANDSHAKE),
        "capabilities": {"tools": {}},
        "serverInfo": server_info(),
        "instructions": INSTRUCTIONS,
    })
}

fn discovery() -> Value {
    json!({
        "supportedVersions": REVISIONS,
        "capabilities": {"tools": {}},
        "instructions": INSTRUCTIONS,
        "_meta": {"io.modelcontextprotocol/serverInfo": server_info()},
    })
}

/// A result that the client may keep for a while.
fn cached(mut result: Value) -> Value {
    result["resultType"] = json!("complete");
    result["cacheScope"] = json!("private");
    result["ttlMs"] = json!(LIFE);
    result
}

fn tools() -> Value {
    let whole = |description: &str| json!({"type": "integer", "description": description});
    let number = |description: &str| json!({"type": "number", "description": description});
    let text = |description: &str| json!({"type": "string", "description": description});
    json!([
        {
            "name": "generate_image",
            "title": "Draw an image",
            "description": "Draws one or more images from a description, or from an image and a \
                            description.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "prompt": text("What the image shows, in English"),
                    "model": text("A name of list_models; without it the default model"),
                    "size": text("WIDTHxHEIGHT in multiples of 16; without it the model's own"),
                    "steps": whole("Denoising steps; without it the model's own number"),
                    "guidance": number("How closely to follow the prompt, for models that have it"),
                    "seed": whole("The same seed and settings give the same image"),
                    "n": whole("How many images, 1 by default"),
                    "lora": text("A name of list_models to change the style, or NAME:STRENGTH"),
                    "image": text("An image to start from, in base64 or as a data URI"),
                    "mask": text("An image of the same size: only what is white in it is \
                                  repainted"),
                    "strength": number("How far to leave that image: 0 keeps it, 1 ignores it"),
                    "references": {
                        "type": "array", "items": {"type": "string"},
                        "description": "Images that the prompt speaks of, in base64 or as data \
                                        URIs, for models that can edit and combine images",
                    },
                },
                "required": ["prompt"],
            },
            "annotations": {"readOnlyHint": false, "destructiveHint": false,
                            "openWorldHint": false},
        },
        {
            "name": "list_models",
            "title": "List models",
            "description": "Lists the models and LoRAs that generate_image can use.",
            "inputSchema": {"type": "object", "properties": {}},
            "annotations": {"readOnlyHint": true, "openWorldHint": false},
        },
    ])
}

/// The result of a tool: an error of a tool is one that the language model reads.
fn tool_result(content: Result<Vec<Value>, Fault>) -> Value {
    let is_error = content.is_err();
    let content = content.unwrap_or_else(|fault| {
        vec![json!({"type": "text", "text": sentence(&Dialect::Mcp.named(fault))})]
    });
    json!({"content": content, "isError": is_error, "resultType": "complete"})
}

async fn call(
    server: Arc<Server>,
    owner: Owner,
    headers: HeaderMap,
    id: Value,
    params: &Map<String, Value>,
) -> Response {
    let none = Map::new();
    let arguments = params.get("arguments").and_then(Value::as_object).unwrap_or(&none);
    match params.get("name").and_then(Value::as_str) {
        Some("generate_image") => {}
        Some("list_models") => {
            return Json(success(&id, tool_result(Ok(models(&server))))).into_response();
        }
        _ => {
            let answer = failure(&id, INVALID_PARAMS, "there is no tool of this name");
            return (StatusCode::BAD_REQUEST, Json(answer)).into_response();
        }
    }
    let submitted = async { server.submit(draft(&Fields(arguments))?, &owner).await };
    let job = match submitted.await {
        Ok((job, _)) => job,
        Err(fault) => return Json(success(&id, tool_result(Err(fault)))).into_response(),
    };
    let mut waiting = server.wait(job);
    let token = params.get("_meta").and_then(|meta| meta.get("progressToken"));
    let accept = headers.get("accept").and_then(|v| v.to_str().ok()).unwrap_or_default();
    match token.filter(|_| accept.contains("text/event-stream")) {
        Some(token) => streamed(server, waiting, headers, id, token.clone()),
        None => {
            let ended = waiting.end().await;
            let content = ended.and_then(|job| blocking(|| images(&server, &headers, &job)));
            Json(success(&id, tool_result(content))).into_response()
        }
    }
}

fn models(server: &Server) -> Vec<Value> {
    let (models, loras) = blocking(|| (server.models.models(), server.models.loras()));
    let mut text = String::from("Models, the default one first:\n");
    models.iter().for_each(|m| text += &format!("- {}: {}\n", m.name, m.what));
    if !loras.is_empty() {
        text += "LoRAs:\n";
        loras.iter().for_each(|l| text += &format!("- {}: {}\n", l.name, l.what));
    }
    vec![json!({"type": "text", "text": text})]
}

fn draft(fields: &Fields) -> Result<Draft, Fault> {
    let known = &tools()[0]["inputSchema"]["properties"];
    if let Some(name) = fields.0.keys().find(|name| known.get(name.as_str()).is_none()) {
        let names: Vec<&str> =
            known.as_object().iter().flat_map(|k| k.keys()).map(|k| &**k).collect();
        let name: String = name.chars().take(100).collect();
        return Err(Fault::invalid(&name, format!("{name}: there is no such argument"))
            .hint(format!("the arguments are {}", names.join(", "))));
    }
    let Some(prompt) = fields.text("prompt")? else {
        return Err(Fault::invalid("prompt", "prompt: it is missing"));
    };
    let mut request = Request::new(prompt);
    if let Some(lora) = fields.text("lora")?.filter(|lora| !lora.is_empty()) {
        let choice = match lora.rsplit_once(':') {
            Some((name, strength)) => json!([{"name": name, "strength": strength}]),
            None => json!([lora]),
        };
        request.loras = Fields(&Map::from_iter([("lora".to_string(), choice)])).loras("lora")?;
    }
    request.steps = fields.whole("steps")?;
    request.guidance = fields.real("guidance")?;
    request.seed = fields.seed("seed")?;
    request.count = fields.whole("n")?;
    request.strength = fields.real("strength")?;
    if let Some((width, height)) = parse_size(fields.text("size")?.unwrap_or("auto"))? {
        (request.width, request.height) = (Some(width), Some(height));
    }
    let mut draft = Draft::new(request, "mcp");
    draft.model = fields.text("model")?.map(str::to_string);
    draft.input =
        fields.long_text("image")?.map(|image| parse_image("image", image)).transpose()?;
    draft.mask = mask(fields, "mask", MaskMarks::TransparentOrWhite)?;
    draft.references = image_list(fields, "references")?;
    Ok(draft)
}

/// The images of a job, links to them, and what made them.
fn images(server: &Server, headers: &HeaderMap, job: &Job) -> Result<Vec<Value>, Fault> {
    let outputs = succeeded(job)?;
    let mut content = Vec::new();
    for output in outputs {
        let (bytes, kind) = small(server, output)?;
        content.push(json!({
            "type": "image", "data": BASE64_STANDARD.encode(bytes), "mimeType": kind,
        }));
        content.push(json!({
            "type": "resource_link", "uri": link(server, headers, output), "name": output.file,
            "mimeType": type_of(&output.file),
        }));
    }
    let settings = job.settings.clone().unwrap_or_default();
    let text = format!(
        "{} of {}x{} pixels, model {}, {} steps, seed {}",
        if outputs.len() == 1 { "An image".into() } else { format!("{} images", outputs.len()) },
        settings["width"],
        settings["height"],
        settings["model"].as_str().unwrap_or_default(),
        settings["steps"],
        settings["seed"],
    );
    content.push(json!({"type": "text", "text": text}));
    Ok(content)
}

/// The bytes of an image and their type: a JPEG where the file is large.
fn small(server: &Server, output: &Output) -> Result<(Vec<u8>, &'static str), Fault> {
    let bytes = server.read_result(output)?;
    if output.bytes <= MAX_PNG {
        return Ok((bytes, type_of(&output.file)));
    }
    Ok((encode(&decode(&bytes)?, Format::Jpeg, 90, "")?, "image/jpeg"))
}

/// Notifications of progress, then the result. If the client goes away, the job is cancelled.
fn streamed(
    server: Arc<Server>,
    mut waiting: Waiting,
    headers: HeaderMap,
    id: Value,
    token: Value,
) -> Response {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let work = async {
            let job = waiting.job.id.clone();
            let channel = server.events.channel(&job);
            let mut changed = channel.watch();
            let mut last = 0;
            let ended = loop {
                changed.borrow_and_update();
                let progress = channel.progress();
                if progress.step > last {
                    last = progress.step;
                    let notification = json!({
                        "jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": progress.step,
                                   "total": progress.steps, "message": progress.phase},
                    });
                    sender.send(notification).await.ok();
                }
                tokio::select! {
                    ended = waiting.end() => break ended,
                    _ = changed.changed() => {}
                }
            };
            let content = ended.and_then(|job| blocking(|| images(&server, &headers, &job)));
            sender.send(success(&id, tool_result(content))).await.ok();
        };
        tokio::select! {
            () = sender.closed() => {}
            () = work => {}
        }
    });
    let events = stream::unfold(receiver, |mut receiver| async move {
        let message: Value = receiver.recv().await?;
        let event = Event::default().event("message").data(message.to_string());
        Some((Ok::<_, Infallible>(event), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_agrees_on_a_revision() {
        for (asked, agreed) in [
            ("2025-06-18", "2025-06-18"),
            ("2024-11-05", "2024-11-05"),
            ("2026-07-28", "2025-11-25"),
            ("1999-01-01", "2025-11-25"),
        ] {
            let params = json!({"protocolVersion": asked});
            assert_eq!(handshake(params.as_object().unwrap())["protocolVersion"], agreed);
        }
    }

    #[test]
    fn arguments_become_a_request() {
        let arguments = json!({"prompt": "a fox", "size": "64x32", "seed": 7, "n": 2,
                               "lora": "style:0.5", "steps": 3});
        let draft = draft(&Fields(arguments.as_object().unwrap())).unwrap();
        let request =
            Request::new("a fox").size(64, 32).seed(7).count(2).steps(3).lora("style", 0.5);
        assert_eq!(draft.request, request);
        // A language model reads what it has made up.
        let arguments = json!({"prompt": "a fox", "negative_prompt": "blur"});
        let fault = super::draft(&Fields(arguments.as_object().unwrap())).unwrap_err();
        assert_eq!(fault.parameter.as_deref(), Some("negative_prompt"));
    }
}
