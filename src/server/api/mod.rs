//! The APIs: one file per dialect, and what they have in common.

mod a1111;
mod inquire;
mod native;
mod openai;

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::job::Output;
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
}

impl Dialect {
    /// The dialect of a path.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/v1/") {
            Dialect::OpenAi
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
        }
    }
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
        .merge(a1111::routes())
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
        "apis": ["/api/v2", "/v1/images", "/sdapi/v1"],
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
    let format = name.rsplit_once('.').and_then(|(_, extension)| Format::parse(extension));
    let content_type = content_type(format.unwrap_or(Format::Png));
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
    ];
    (headers, bytes).into_response()
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

/// The absolute address of a result: a signed link.
fn link(server: &Server, headers: &HeaderMap, output: &Output) -> String {
    let base = match &server.options.public_url {
        Some(url) => url.trim_end_matches('/').to_string(),
        None => {
            // The host was checked before.
            let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
            format!("http://{}", host.map_or(server.address.to_string(), str::to_string))
        }
    };
    base + &server.links.link(&output.file, server.now())
}

/// A format by the name that a client gives it.
fn format(name: &str) -> Result<Format, Fault> {
    Format::parse(name).ok_or_else(|| {
        Fault::invalid("output_format", "output_format: expected png, jpeg, webp, bmp or tiff")
    })
}
