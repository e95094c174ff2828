//! The paths for operators and browsers: whether the server works, its numbers, and results.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::image;
use crate::server::fault::Fault;
use crate::server::metrics::cluster_text;
use crate::server::page;
use crate::server::state::Server;

/// These paths.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(numbers))
        .route("/results/{name}", get(result))
        .route("/page/{*name}", get(page::file))
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
    match server.why_not_ready() {
        None => Json(json!({"ready": true})).into_response(),
        Some(reason) => {
            let body = Json(json!({"ready": false, "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

/// Numbers for Prometheus.
async fn numbers(State(server): State<Arc<Server>>) -> Response {
    let counts = server.broker.counts();
    let is_ready = server.why_not_ready().is_none();
    let mut text = server.metrics.text(counts, is_ready, server.worker().held.as_deref());
    if let Some(workers) = server.broker.workers() {
        text += &cluster_text(&workers);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
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
    Ok(image(server.result(&name)?, &name))
}
