//! Bodies of requests: bounded in size, in time, and all together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::fault::Fault;
use super::state::Server;

/// How long a client may take for the next part of a body.
const SLOW: Duration = Duration::from_secs(10);
/// The least rate at which a body must arrive, in bytes per second, after the first 10 seconds.
const LEAST_RATE: u64 = 16 << 10;
/// The largest body: an image of 16 million pixels in base64, and then some.
pub const MAX_BODY: usize = 64 << 20;

/// The whole body of a request, and its content type in lower case.
pub struct Whole {
    /// The body.
    pub bytes: Bytes,
    /// The value of `Content-Type`, with its parameters.
    pub content_type: String,
    /// Its part of the room for all bodies.
    _room: Vec<OwnedSemaphorePermit>,
}

impl FromRequest<Arc<Server>> for Whole {
    type Rejection = Fault;

    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, Fault> {
        let too_large = || {
            Fault::new(413, "too_large", "the body of the request is too large")
                .hint(format!("send at most {} MiB", MAX_BODY >> 20))
        };
        let (parts, body) = request.into_parts();
        let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let content_type = text(header::CONTENT_TYPE).unwrap_or_default().to_string();
        let length = text(header::CONTENT_LENGTH).and_then(|v| v.parse::<usize>().ok());
        if length.is_some_and(|length| length > MAX_BODY) {
            return Err(too_large());
        }
        let mut frames = body.into_data_stream();
        let mut bytes = Vec::new();
        let mut room = Vec::new();
        let since = Instant::now();
        loop {
            let late = Fault::new(408, "timeout", "the body of the request arrives too slowly");
            let frame = match tokio::time::timeout(SLOW, frames.next()).await {
                Err(_) => return Err(late),
                Ok(None) => break,
                Ok(Some(Err(_))) => {
                    return Err(Fault::new(400, "invalid_request", "the body is incomplete"));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if bytes.len() + frame.len() > MAX_BODY {
                return Err(too_large());
            }
            bytes.extend_from_slice(&frame);
            if since.elapsed() > SLOW + Duration::from_secs(bytes.len() as u64 / LEAST_RATE) {
                return Err(late);
            }
            if bytes.len() >> 20 > room.len() {
                let more = server.body_room.clone().try_acquire_many_owned(1024);
                room.push(more.map_err(|_| {
                    Fault::new(503, "busy", "too many large requests at the same time")
                        .retry_after(2)
                })?);
            }
        }
        Ok(Whole { bytes: bytes.into(), content_type, _room: room })
    }
}

impl Whole {
    /// The body as JSON, whatever type it claims: several clients send JSON as text or without a
    /// type. An empty body is an empty object.
    ///
    /// # Errors
    /// 415 if it says that it is something else and is; 400 if it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value, Fault> {
        if self.bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(serde_json::json!({}));
        }
        serde_json::from_slice(&self.bytes).map_err(|e| {
            let kind = self.content_type.split(';').next().unwrap_or_default().trim();
            let is_json = kind.is_empty() || kind.contains("json") || kind == "text/plain";
            // curl's own type for `-d`.
            if !is_json && kind != "application/x-www-form-urlencoded" {
                return Fault::new(415, "unsupported_media_type", "the body is not JSON")
                    .hint("send JSON");
            }
            let message = e.to_string();
            if message.starts_with("number out of range") {
                return Fault::new(422, "bad_argument", format!("the body: {message}"));
            }
            Fault::new(400, "invalid_json", format!("the body is not JSON: {message}"))
        })
    }
}
