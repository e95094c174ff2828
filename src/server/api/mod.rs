//! The APIs: one file per dialect, and what they have in common.

mod a1111;
mod batches;
mod blackforest;
mod comfy;
pub mod fal;
mod files;
mod huggingface;
mod inquire;
mod mcp;
mod native;
mod openai;
mod openapi;
mod replicate;
mod sdcpp;

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Path, Query, State};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::fields::Fields;
use super::http::Whole;
use super::job::{Job, Output};
use super::metrics;
use super::middleware::guard;
use super::page;
use super::state::{Server, blocking};
use super::submit::expired;
use crate::pipeline::images::Format;

/// The form of errors under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Native,
    OpenAi,
    A1111,
    BlackForest,
    Replicate,
    Fal,
    HuggingFace,
    SdCpp,
    Comfy,
    Mcp,
}

impl Dialect {
    /// The dialect of a path.
    pub fn of(path: &str) -> Self {
        if let Some(rest) = path.strip_prefix("/v1/") {
            match rest.split('/').next().unwrap_or_default() {
                "predictions" => Dialect::Replicate,
                "models" if rest.ends_with("/predictions") => Dialect::Replicate,
                "get_result" | "credits" | "my_finetunes" => Dialect::BlackForest,
                name if name.starts_with("flux") => Dialect::BlackForest,
                _ => Dialect::OpenAi,
            }
        } else if path.starts_with("/fal/") {
            Dialect::Fal
        } else if comfy::is_own(path) {
            Dialect::Comfy
        } else if path == "/mcp" {
            Dialect::Mcp
        } else if path.starts_with("/hf/") {
            Dialect::HuggingFace
        } else if path.starts_with("/sdcpp/") {
            Dialect::SdCpp
        } else if path.starts_with("/sdapi/") || path.starts_with("/internal/") {
            Dialect::A1111
        } else {
            Dialect::Native
        }
    }

    /// The body of an error; `id` is that of the request.
    pub fn error(self, fault: &Fault, id: &str) -> Value {
        match self {
            Dialect::Native => native::error(fault, Some(id)),
            Dialect::OpenAi => openai::error(fault),
            Dialect::A1111 => a1111::error(fault),
            Dialect::BlackForest => blackforest::error(fault),
            Dialect::Replicate => replicate::error(fault),
            Dialect::Fal => fal::error(fault),
            Dialect::HuggingFace => huggingface::error(fault),
            Dialect::SdCpp => sdcpp::error(fault),
            Dialect::Comfy => comfy::error(fault),
            Dialect::Mcp => mcp::error(fault),
        }
    }
}

/// Goes on with what an earlier process has left.
pub fn resume(server: &Arc<Server>) {
    batches::resume(server);
}

/// All paths of the server.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(numbers))
        .route("/results/{name}", get(result))
        .route("/page/{*name}", get(page::file))
        .merge(native::routes())
        .merge(inquire::routes())
        .merge(openai::routes())
        .merge(files::routes())
        .merge(batches::routes())
        .merge(a1111::routes())
        .merge(blackforest::routes())
        .merge(replicate::routes())
        .merge(fal::routes())
        .merge(huggingface::routes())
        .merge(sdcpp::routes())
        .merge(comfy::routes())
        .merge(mcp::routes())
        .merge(openapi::routes())
        .layer(middleware::from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

/// The page for browsers, and what this is for programs.
async fn index(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    if page::is_wanted(&headers) {
        return page::index(&headers);
    }
    let facts = json!({
        "name": "flux-fast",
        "version": env!("CARGO_PKG_VERSION"),
        "model": server.models.default_name(),
        "apis": ["/api/v2", "/v1/images", "/sdapi/v1", "/v1/flux-*", "/v1/predictions", "/fal",
                 "/hf", "/sdcpp/v1", "/prompt", "/mcp"],
    });
    ([(header::VARY, "accept")], Json(facts)).into_response()
}

/// Whether the server runs.
async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether a worker can draw, and jobs are accepted.
async fn ready(State(server): State<Arc<Server>>) -> Response {
    let ready = server.worker().ready && !server.is_draining();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": ready}))).into_response()
}

/// Numbers for Prometheus.
async fn numbers(State(server): State<Arc<Server>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&server)).into_response()
}

#[derive(Deserialize)]
struct Signature {
    expires: u64,
    signature: String,
}

/// A result under its signed link.
async fn result(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Query(Signature { expires, signature }): Query<Signature>,
) -> Result<Response, Fault> {
    // A name that was signed is that of a result: no other is ever looked for.
    if !server.links.check(&name, expires, &signature, server.now()) {
        return Err(Fault::new(403, "forbidden", "the link has expired, or was changed"));
    }
    let bytes = blocking(|| std::fs::read(server.data.result(&name))).map_err(|_| expired())?;
    Ok(image(bytes, &name))
}

/// The file of an image as an answer.
fn image(bytes: Vec<u8>, name: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, type_of(name)),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
    ];
    (headers, bytes).into_response()
}

/// The media type of a file by its name.
fn type_of(name: &str) -> &'static str {
    let format = name.rsplit_once('.').and_then(|(_, extension)| Format::parse(extension));
    content_type(format.unwrap_or(Format::Png))
}

/// The media type of a format.
fn content_type(format: Format) -> &'static str {
    match format {
        Format::Png => "image/png",
        Format::Jpeg => "image/jpeg",
        Format::WebP => "image/webp",
        Format::Bmp => "image/bmp",
        Format::Tiff => "image/tiff",
    }
}

/// What the address that wants to know of the end of `job` is sent.
pub fn webhook_body(server: &Server, job: &Job) -> Value {
    let none = HeaderMap::new();
    match job.spec.as_ref().map(|spec| spec.dialect.as_str()) {
        Some(blackforest::DIALECT) => blackforest::webhook_body(server, job),
        Some(replicate::DIALECT) => replicate::prediction(server, &none, job),
        Some(fal::DIALECT) => fal::webhook_body(server, job),
        _ => native::object(server, &none, job),
    }
}

/// The message of a fault together with its hint.
fn sentence(fault: &Fault) -> String {
    match &fault.hint {
        Some(hint) => format!("{} (try: {hint})", fault.message),
        None => fault.message.clone(),
    }
}

/// Refuses the fields of `names` that have a value: they ask for something that cannot be drawn.
fn refuse_fields(fields: &Fields, names: &[&str], why: &str) -> Result<(), Fault> {
    let is_empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(flag) => !flag,
        _ => false,
    };
    let given = names.iter().find(|name| fields.get(name).is_some_and(|v| !is_empty(v)));
    given.map_or(Ok(()), |name| {
        Err(Fault::new(422, "unsupported", format!("{name}: {why}"))
            .parameter(*name)
            .hint("leave it out"))
    })
}

/// The address of the server as the client knows it, without a slash at the end; without headers
/// the one that the server prints.
fn base(server: &Server, headers: &HeaderMap) -> String {
    match &server.options.public_url {
        Some(url) => url.trim_end_matches('/').to_string(),
        None => {
            // The host was checked before.
            let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
            format!("http://{}", host.map_or(server.address.to_string(), str::to_string))
        }
    }
}

/// The absolute address of a result: a signed link.
fn link(server: &Server, headers: &HeaderMap, output: &Output) -> String {
    base(server, headers) + &server.links.link(&output.file, server.now())
}

/// A result inside an address.
fn data_uri(server: &Server, output: &Output) -> Result<String, Fault> {
    let bytes = BASE64_STANDARD.encode(server.read_result(output)?);
    Ok(format!("data:{};base64,{bytes}", type_of(&output.file)))
}

/// A form.
struct Form {
    /// The fields that are text.
    fields: Map<String, Value>,
    /// The others.
    files: Vec<FormFile>,
}

/// A file in a form.
struct FormFile {
    /// The name of its field.
    field: String,
    /// What the client calls the file.
    name: String,
    bytes: Bytes,
}

/// The parts of a form.
///
/// # Errors
/// 400.
async fn form(body: &Whole) -> Result<Form, Fault> {
    let unreadable = || Fault::new(400, "invalid_request", "the form cannot be read");
    let mut request = Request::new(Body::from(body.bytes.clone()));
    if let Ok(content_type) = body.content_type.parse() {
        request.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    // The body was bounded when it was read.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|_| unreadable())?;
    let mut form = Form { fields: Map::new(), files: Vec::new() };
    while let Some(part) = parts.next_field().await.map_err(|_| unreadable())? {
        let field = part.name().unwrap_or_default().to_string();
        let name = part.file_name().map(str::to_string);
        let bytes = part.bytes().await.map_err(|_| unreadable())?;
        if name.is_some() || ["image", "image[]", "mask", "file"].contains(&field.as_str()) {
            form.files.push(FormFile { field, name: name.unwrap_or_default(), bytes });
        } else {
            let text = String::from_utf8(bytes.to_vec())
                .map_err(|_| Fault::new(400, "invalid_request", "the form is not UTF-8"))?;
            form.fields.insert(field, json!(text));
        }
    }
    Ok(form)
}

/// A format by the name that a client gives it.
fn format(name: &str) -> Result<Format, Fault> {
    Format::parse(name).ok_or_else(|| {
        Fault::invalid("output_format", "output_format: expected png, jpeg, webp, bmp or tiff")
    })
}
