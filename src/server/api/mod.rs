//! The APIs: one file per dialect, and what they have in common (`shared`).

mod a1111;
mod batches;
mod blackforest;
mod comfy;
mod controlnet;
mod dialect;
pub mod fal;
mod files;
mod huggingface;
mod inquire;
mod mcp;
mod native;
mod openai;
mod openapi;
mod operation;
mod replicate;
mod sdcpp;
mod shared;
mod unused;

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use serde_json::Value;

use super::job::Job;
use super::state::Server;

pub use dialect::Dialect;

/// Goes on with what an earlier process has left.
pub fn resume(server: &Arc<Server>) {
    batches::resume(server);
}

/// All paths of the server.
pub fn routes() -> Router<Arc<Server>> {
    operation::routes()
        .merge(native::routes())
        .merge(inquire::routes())
        .merge(openai::routes())
        .merge(files::routes())
        .merge(batches::routes())
        .merge(a1111::routes())
        .merge(controlnet::routes())
        .merge(blackforest::routes())
        .merge(replicate::routes())
        .merge(fal::routes())
        .merge(huggingface::routes())
        .merge(sdcpp::routes())
        .merge(comfy::routes())
        .merge(mcp::routes())
        .merge(openapi::routes())
}

/// The body of the call to the webhook of `job`, which is over.
pub fn webhook_body(server: &Server, job: &Job) -> Value {
    let none = HeaderMap::new();
    match job.spec.as_ref().map(|spec| spec.dialect.as_str()) {
        Some(blackforest::DIALECT) => blackforest::webhook_body(server, job),
        Some(replicate::DIALECT) => replicate::prediction(server, &none, job),
        Some(fal::DIALECT) => fal::webhook_body(server, job),
        _ => native::object(server, &none, job),
    }
}
