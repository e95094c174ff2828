//! Connections: accepted, bounded in number and in time.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::api;
use super::fault::Fault;
use super::state::Server;

/// The most connections at a time; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take for the head of a request, for the next part of its body, and to take
/// the next part of an answer.
const SLOW: Duration = Duration::from_secs(10);
/// The least rate at which a body must arrive, in bytes per second, after the first 10 seconds.
const LEAST_RATE: u64 = 16 << 10;
/// The largest body: an image of 16 million pixels in base64, and then some.
pub const MAX_BODY: usize = 64 << 20;
/// All bodies that are read at the same time, in KiB.
const MAX_BODIES: usize = 256 << 10;

/// Room for the bodies of all requests.
pub struct BodyRoom(Arc<Semaphore>);

impl Default for BodyRoom {
    fn default() -> Self {
        BodyRoom(Arc::new(Semaphore::new(MAX_BODIES)))
    }
}

/// Accepts connections until the server closes.
pub async fn accept(listener: TcpListener, server: Arc<Server>) {
    let router = api::router(server.clone());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut closing = server.closing.subscribe();
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            _ = closing.changed() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of file descriptors, most likely: some connection will end.
                server.log(&format!("a connection cannot be accepted: {e}"));
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        stream.set_nodelay(true).ok();
        let service = TowerToHyperService::new(router.clone());
        let mut closing = server.closing.subscribe();
        let counted = server.clone();
        counted.metrics.connection(1);
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(SLOW)
                .max_buf_size(64 << 10)
                .serve_connection(TokioIo::new(Impatient::new(stream, SLOW)), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                _ = closing.changed() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(Duration::from_secs(1), connection).await.ok();
                }
            }
            counted.metrics.connection(-1);
            drop(slot);
        });
    }
}

/// A connection that ends if its client does not take what is sent.
struct Impatient {
    stream: TcpStream,
    /// How long it may take nothing.
    patience: Duration,
    /// Runs while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Impatient { stream, patience, stalled: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

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
                let more = server.bodies.0.clone().try_acquire_many_owned(1024);
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn f39_a_client_that_reads_nothing_is_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = Impatient::new(stream, Duration::from_millis(200));
            let error = loop {
                if let Err(error) = stream.write_all(&[0; 1 << 20]).await {
                    break error;
                }
            };
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            drop(client);
        });
    }
}
