//! What every request passes through: checks of its sender, an id, and one form of errors per
//! dialect.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use hyper::ext::ReasonPhrase;

use super::api::{Dialect, fal};
use super::fault::Fault;
use super::job::random_hex;
use super::limits::{insert_headers, with_limits};
use super::page;
use super::state::Server;
use crate::text::{one_line, shortened};

/// The target of the line of the log for each request.
const AUDIT: &str = "flux_fast::audit";

/// Paths that need no key, as do signed links and the page: they say nothing but whether the server
/// works.
const OPEN: [&str; 2] = ["/health", "/ready"];
/// Signed links.
const SIGNED: &str = "/results/";
/// Headers that pages of other origins may read.
const EXPOSED: &str = "x-request-id, retry-after, retry-after-ms, ratelimit, ratelimit-policy";
/// How many characters of a path are logged.
const MAX_LOGGED: usize = 200;
/// The longest reason phrase, in bytes.
const MAX_REASON: usize = 80;

/// Checks a request, answers it, and gives the answer its id and, if it is an error, its form.
pub async fn guard(
    State(server): State<Arc<Server>>,
    mut request: Request,
    next: Next,
) -> Response {
    let since = Instant::now();
    let id = random_hex(8).unwrap_or_default();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let head = method == Method::HEAD;
    let is_page = page::is_page(&path, request.headers());
    let mut limits = Vec::new();
    let (response, origin, who) = match server.access.check_browser(request.headers()) {
        Err(fault) => (fault.into_response(), None, String::new()),
        Ok(origin) if method == Method::OPTIONS => {
            (StatusCode::NO_CONTENT.into_response(), origin, String::new())
        }
        Ok(origin) => match identify(&server, &path, &mut request) {
            Err(fault) => (fault.into_response(), origin, String::new()),
            Ok(who) => {
                // A panic in a handler is an error of one request.
                let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
                let (answer, standings) = with_limits(answer).await;
                limits = standings;
                let internal = |_| Fault::internal("the server failed").into_response();
                (answer.unwrap_or_else(internal), origin, who)
            }
        },
    };
    let retry_after = response.extensions().get::<Fault>().and_then(|fault| fault.retry_after);
    let mut response = dressed(response, Dialect::of(&path), &id, head);
    let status = response.status().as_u16();
    let headers = response.headers_mut();
    insert(headers, "x-request-id", &id);
    insert(headers, "x-content-type-options", "nosniff");
    insert_headers(headers, &limits, server.broker.clock().nanoseconds(), retry_after);
    if let Some(origin) = origin {
        insert(headers, "access-control-allow-origin", &origin);
        insert(headers, "vary", "origin");
        insert(headers, "access-control-expose-headers", EXPOSED);
        if method == Method::OPTIONS {
            insert(headers, "access-control-allow-methods", "GET, POST, PUT, DELETE, HEAD");
            insert(headers, "access-control-allow-headers", "*, authorization");
            insert(headers, "access-control-max-age", "600");
        }
    }
    server.metrics.answered(status);
    let ms = since.elapsed().as_micros() as f64 / 1e3;
    let path = one_line(&shortened(&path, MAX_LOGGED)).into_owned();
    let who = who.as_str();
    // Polls of load balancers and the files of the page say nothing.
    let is_dull = OPEN.contains(&path.as_str()) || is_page && status < 400;
    if !is_dull {
        tracing::info!(target: AUDIT, id, %method, path, status, ms, key = who, "request");
    }
    response
}

/// Whose request it is, for the log; the owner is put into the request for its handler.
fn identify(server: &Server, path: &str, request: &mut Request) -> Result<String, Fault> {
    let is_page = page::is_page(path, request.headers());
    if is_page || OPEN.contains(&path) || path.starts_with(SIGNED) {
        return Ok(String::new());
    }
    let owner = server.access.owner(request.headers())?;
    let who = server.access.name(&owner);
    request.extensions_mut().insert(owner);
    Ok(who)
}

/// `response` with the body of its fault in the form of `dialect`.
fn dressed(mut response: Response, dialect: Dialect, id: &str, head: bool) -> Response {
    let fault = match (response.extensions_mut().remove::<Fault>(), response.status()) {
        (Some(fault), _) => fault,
        // An API has written its own.
        (None, _) if is_json(&response) => return response,
        // The errors of the router and of the extractors.
        (None, StatusCode::NOT_FOUND) => Fault::not_found("there is nothing at this path"),
        (None, StatusCode::METHOD_NOT_ALLOWED) => {
            Fault::new(405, "method_not_allowed", "this path does not know this method")
        }
        (None, status) if status.is_client_error() => {
            Fault::new(status.as_u16(), "invalid_request", "the request cannot be read")
        }
        _ => return response,
    };
    let fault = dialect.named(fault);
    let body = if head { String::new() } else { dialect.error(&fault, id).to_string() };
    let allow = response.headers_mut().remove(header::ALLOW);
    let mut dressed = (response.status(), Body::from(body)).into_response();
    let headers = dressed.headers_mut();
    insert(headers, "content-type", "application/json");
    allow.map(|allow| headers.insert(header::ALLOW, allow));
    if let Some(seconds) = fault.retry_after {
        insert(headers, "retry-after", &seconds.to_string());
    }
    if let Some(ms) = fault.retry_after_ms {
        insert(headers, "retry-after-ms", &ms.to_string());
    }
    if dialect == Dialect::Fal {
        insert(headers, "x-fal-error-type", fal::error_type(&fault));
    }
    if fault.status == 401 {
        insert(headers, "www-authenticate", "Bearer, Basic realm=\"flux-fast\"");
    }
    // Some frontends show their user nothing else.
    let reason: String = fault.message.chars().filter(|c| matches!(c, ' '..='~')).collect();
    let reason = reason[..reason.len().min(MAX_REASON)].to_string();
    if let Ok(reason) = ReasonPhrase::try_from(reason.into_bytes()) {
        dressed.extensions_mut().insert(reason);
    }
    dressed
}

fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|t| t.as_bytes().starts_with(b"application/json"))
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
