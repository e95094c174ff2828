//! OpenAI's batches, `/v1/batches`: many requests in one file, drawn one after another while nobody
//! waits. A batch has at most one job in the queue, so others pass between its requests; after a
//! restart it goes on where it was.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::{files, openai};
use crate::server::access::Owner;
use crate::server::body::Whole;
use crate::server::draft::client_id;
use crate::server::fault::Fault;
use crate::server::fields::Fields;
use crate::server::job::{Lane, random_hex};
use crate::server::state::{Server, blocking};
use crate::server::store::{Facts, Kind};

/// The most requests of one batch, and the most bytes of a request's `custom_id`.
const MAX_LINES: usize = 5000;
const MAX_CUSTOM_ID: usize = 512;
/// Where requests may go.
const ENDPOINTS: [&str; 2] = ["/v1/images/generations", "/v1/images/edits"];
/// How long a batch may take, in seconds: the only window that there is.
const WINDOW: f64 = 24.0 * 3600.0;
/// The pause before a request is tried again that the queue had no room for.
const PAUSE: Duration = Duration::from_secs(2);
/// The states of a batch in which nothing happens any more.
const FINAL: [&str; 4] = ["completed", "failed", "expired", "cancelled"];

/// The paths of this API.
pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/v1/batches", post(create).get(list))
        .route("/v1/batches/{id}", get(show))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

/// Goes on with the batches that an earlier process has left.
pub fn resume(server: &Arc<Server>) {
    for facts in blocking(|| server.store.all(Kind::Batch)) {
        let status = facts.more["status"].as_str().unwrap_or_default();
        if facts.name.starts_with("batch_") && !FINAL.contains(&status) {
            tokio::spawn(run(server.clone(), facts));
        }
    }
}

/// A request of a batch.
struct Line {
    custom_id: String,
    body: Value,
}

/// The requests of an input file.
///
/// # Errors
/// The faults of its lines, each with the line's number.
fn lines(text: &str, endpoint: &str) -> Result<Vec<Line>, Vec<Value>> {
    let (mut lines, mut errors, mut ids) = (Vec::new(), Vec::new(), HashSet::new());
    let mut refuse = |number: usize, code: &str, message: String| {
        errors.push(json!({"code": code, "line": number, "message": message, "param": null}));
    };
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (index, line) in numbered {
        let number = index + 1;
        let Ok(Value::Object(mut line)) = serde_json::from_str(line) else {
            refuse(number, "invalid_json_line", "the line is not a JSON object".into());
            continue;
        };
        let id = line["custom_id"].as_str().unwrap_or_default().to_string();
        if id.is_empty() || id.len() > MAX_CUSTOM_ID {
            refuse(number, "missing_required_parameter", "custom_id: it is missing".into());
        } else if !ids.insert(id.clone()) {
            refuse(number, "duplicate_custom_id", "custom_id: another line has it".into());
        } else if line.get("method") != Some(&json!("POST")) {
            refuse(number, "invalid_method", "method: expected POST".into());
        } else if line.get("url") != Some(&json!(endpoint)) {
            refuse(number, "mismatched_url", format!("url: expected {endpoint}"));
        } else if lines.len() >= MAX_LINES {
            refuse(number, "too_many_requests", format!("expected at most {MAX_LINES} lines"));
            break;
        } else {
            let body = line.remove("body").unwrap_or_default();
            lines.push(Line { custom_id: id, body });
        }
    }
    if lines.is_empty() && errors.is_empty() {
        let message = "the file has no line";
        errors.push(json!({"code": "empty_file", "line": null, "message": message, "param": null}));
    }
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

async fn create(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    body: Whole,
) -> Result<Json<Value>, Fault> {
    let body = body.json()?;
    let fields = Fields::of(&body)?;
    let missing = |name: &str| Fault::invalid(name, format!("{name}: it is missing"));
    let file = fields.text("input_file_id")?.ok_or_else(|| missing("input_file_id"))?;
    let endpoint = fields.text("endpoint")?.ok_or_else(|| missing("endpoint"))?;
    if !ENDPOINTS.contains(&endpoint) {
        let expected = format!("endpoint: expected {}", ENDPOINTS.join(" or "));
        return Err(Fault::invalid("endpoint", expected));
    }
    if fields.text("completion_window")?.is_some_and(|window| window != "24h") {
        return Err(Fault::invalid("completion_window", "completion_window: expected 24h"));
    }
    let input = blocking(|| files::read(&server, &owner.0, file))
        .map_err(|fault| fault.parameter("input_file_id"))?;
    let read = lines(&String::from_utf8_lossy(&input), endpoint);
    let at = server.now() as u64;
    let mut batch = json!({
        "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
        "metadata": fields.get("metadata"),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
    });
    match read {
        Ok(lines) => {
            batch["request_counts"]["total"] = json!(lines.len());
            batch["status"] = json!("in_progress");
            batch["in_progress_at"] = json!(at);
        }
        Err(errors) => {
            batch["status"] = json!("failed");
            batch["failed_at"] = json!(at);
            batch["errors"] = json!({"object": "list", "data": errors});
        }
    }
    let id = format!("batch_{}", random_hex(12)?);
    let facts = blocking(|| server.store.put(&owner.0, Kind::Batch, &id, batch, b""))?;
    if facts.more["status"] == "in_progress" {
        tokio::spawn(run(server.clone(), facts.clone()));
    }
    Ok(Json(object(&server, &facts)))
}

/// The name of the entry that says that a batch is to be cancelled.
fn cancel_mark(id: &str) -> String {
    format!("cancel_{id}")
}

/// The name of the entry with the answer to a request of a batch.
fn answer_name(id: &str, index: usize) -> String {
    format!("answer_{id}_{index}")
}

fn object(server: &Server, facts: &Facts) -> Value {
    let created = facts.created as u64;
    let mut batch = json!({
        "id": facts.name, "object": "batch", "endpoint": null, "errors": null,
        "input_file_id": null, "completion_window": "24h", "status": null,
        "output_file_id": null, "error_file_id": null, "created_at": created,
        "in_progress_at": null, "expires_at": created + WINDOW as u64, "finalizing_at": null,
        "completed_at": null, "failed_at": null, "expired_at": null, "cancelling_at": null,
        "cancelled_at": null, "request_counts": null, "metadata": null,
    });
    if let (Some(batch), Some(known)) = (batch.as_object_mut(), facts.more.as_object()) {
        batch.extend(known.clone());
    }
    if batch["status"] == "in_progress" {
        let mark = server.store.facts(&facts.owner, Kind::Batch, &cancel_mark(&facts.name));
        if let Some(mark) = mark {
            batch["status"] = json!("cancelling");
            batch["cancelling_at"] = json!(mark.created as u64);
        }
    }
    batch
}

fn find(server: &Server, owner: &Owner, id: &str) -> Result<Facts, Fault> {
    let facts = blocking(|| server.store.facts(&owner.0, Kind::Batch, id));
    let found = facts.filter(|facts| facts.name.starts_with("batch_"));
    found.ok_or_else(|| files::unknown(server, "batch"))
}

async fn show(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    Ok(Json(object(&server, &find(&server, &owner, &id)?)))
}

async fn list(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
) -> Json<Value> {
    let mut all = blocking(|| server.store.list(&owner.0, Kind::Batch));
    all.retain(|facts| facts.name.starts_with("batch_"));
    let data: Vec<Value> = all.iter().map(|facts| object(&server, facts)).collect();
    Json(json!({
        "object": "list", "data": data, "has_more": false,
        "first_id": all.first().map(|facts| &facts.name),
        "last_id": all.last().map(|facts| &facts.name),
    }))
}

/// Stops the batch before its next request, and the one that is drawn.
async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let facts = find(&server, &owner, &id)?;
    let status = facts.more["status"].as_str().unwrap_or_default();
    if FINAL.contains(&status) {
        return Err(Fault::new(409, "batch_is_over", format!("the batch is {status}")));
    }
    blocking(|| server.store.put(&owner.0, Kind::Batch, &cancel_mark(&id), Value::Null, b""))?;
    let counts = &facts.more["request_counts"];
    let done = counts["completed"].as_u64().unwrap_or(0) + counts["failed"].as_u64().unwrap_or(0);
    server.cancel(&job_id(&owner.0, &id, done as usize), &owner.0).await.ok();
    Ok(Json(object(&server, &find(&server, &owner, &id)?)))
}

/// The id of the job for a request of a batch.
fn job_id(owner: &str, batch: &str, index: usize) -> String {
    client_id("batch", owner, &format!("{batch}/{index}"))
}

/// Draws one request after another.
async fn run(server: Arc<Server>, facts: Facts) {
    let Facts { name: id, owner, mut more, created } = facts;
    let endpoint = more["endpoint"].as_str().unwrap_or_default().to_string();
    let file = more["input_file_id"].as_str().unwrap_or_default();
    let input = blocking(|| files::read(&server, &owner, file)).unwrap_or_default();
    let lines = lines(&String::from_utf8_lossy(&input), &endpoint).unwrap_or_default();
    let mut status = match more["request_counts"]["total"] == lines.len() {
        true => "completed",
        // The input file was deleted.
        false => "failed",
    };
    let is_cancelled =
        || blocking(|| server.store.facts(&owner, Kind::Batch, &cancel_mark(&id))).is_some();
    let (mut completed, mut failed) = (0, 0);
    for (index, line) in lines.iter().enumerate() {
        let answer = blocking(|| server.store.facts(&owner, Kind::Batch, &answer_name(&id, index)));
        let succeeded = match answer {
            // From an earlier process.
            Some(answer) => answer.more == 200,
            None => {
                if is_cancelled() {
                    status = "cancelled";
                } else if server.now() > created + WINDOW {
                    status = "expired";
                }
                if status != "completed" {
                    break;
                }
                let Some(body) = draw(&server, &owner, &endpoint, &id, index, &line.body).await
                else {
                    // The server ends; the next one goes on.
                    return;
                };
                if is_cancelled() && body.0 == 409 {
                    status = "cancelled";
                    break;
                }
                let text = answer_line(&line.custom_id, body.0, body.1);
                let (name, code) = (answer_name(&id, index), json!(body.0));
                let written = blocking(|| {
                    server.store.put(&owner, Kind::Batch, &name, code, text.as_bytes())
                });
                if let Err(fault) = written {
                    server.log(&format!("batch {id}: {}", fault.message));
                    status = "failed";
                    break;
                }
                body.0 == 200
            }
        };
        if succeeded {
            completed += 1
        } else {
            failed += 1
        }
        more["request_counts"]["completed"] = json!(completed);
        more["request_counts"]["failed"] = json!(failed);
        blocking(|| server.store.put(&owner, Kind::Batch, &id, more.clone(), b"")).ok();
    }
    more["finalizing_at"] = json!(server.now() as u64);
    blocking(|| finish(&server, &owner, &id, lines.len(), &mut more));
    more["status"] = json!(status);
    more[format!("{status}_at")] = json!(server.now() as u64);
    if let Err(fault) = blocking(|| server.store.put(&owner, Kind::Batch, &id, more, b"")) {
        server.log(&format!("batch {id}: {}", fault.message));
    }
    server.store.remove(&owner, Kind::Batch, &cancel_mark(&id));
    (0..lines.len()).for_each(|index| {
        server.store.remove(&owner, Kind::Batch, &answer_name(&id, index));
    });
}

/// Status and body of the answer to one request; `None` if the server ends.
async fn draw(
    server: &Arc<Server>,
    owner: &str,
    endpoint: &str,
    batch: &str,
    index: usize,
    body: &Value,
) -> Option<(u16, Value)> {
    let refused = |fault: &Fault| (fault.status, openai::error(fault));
    let job = loop {
        let submitted = async {
            let mut draft = openai::batched(server, owner, endpoint, body)?;
            // Sent again after a restart, it is the same job.
            draft.lane = Lane::Low;
            draft.id = Some(job_id(owner, batch, index));
            draft.idempotency = Some(format!("{batch}/{index}"));
            server.submit(draft, &Owner(owner.into())).await
        };
        match submitted.await {
            Ok((job, _)) => break job,
            Err(_) if server.is_draining() => return None,
            Err(fault) if [429, 503, 507].contains(&fault.status) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(fault) => return Some(refused(&fault)),
        }
    };
    let ended = server.end(&job.id, owner).await;
    let answer = ended.and_then(|job| {
        blocking(|| openai::body(server, &axum::http::HeaderMap::new(), &job, openai::Sent::Inline))
    });
    Some(answer.map_or_else(|fault| refused(&fault), |body| (200, body)))
}

/// A line of the output.
fn answer_line(custom_id: &str, status: u16, body: Value) -> String {
    let id = random_hex(12).unwrap_or_default();
    let line = json!({
        "id": format!("batch_req_{id}"),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": id, "body": body},
        "error": null,
    });
    format!("{line}\n")
}

/// Writes the answers into one file, and the errors into another.
fn finish(server: &Server, owner: &str, id: &str, count: usize, more: &mut Value) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    for index in 0..count {
        let Some((facts, line)) = server.store.get(owner, Kind::Batch, &answer_name(id, index))
        else {
            continue;
        };
        let file = if facts.more == 200 { &mut output } else { &mut errors };
        file.extend_from_slice(&line);
    }
    let files = [("output_file_id", "output", output), ("error_file_id", "error", errors)];
    for (field, word, bytes) in files.into_iter().filter(|(.., bytes)| !bytes.is_empty()) {
        let name = format!("{id}_{word}.jsonl");
        match files::write(server, owner, "batch_output", &name, &bytes) {
            Ok(facts) => more[field] = json!(facts.name),
            Err(fault) => server.log(&format!("batch {id}: {}", fault.message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_wrong_is_named() {
        let line = |id: &str, method: &str, url: &str| {
            json!({"custom_id": id, "method": method, "url": url, "body": {"n": 1}}).to_string()
        };
        let good =
            [line("a", "POST", ENDPOINTS[0]), String::new(), line("b", "POST", ENDPOINTS[0])];
        let read = lines(&good.join("\n"), ENDPOINTS[0]).ok().unwrap();
        assert_eq!(
            (read.len(), &read[1].custom_id, &read[1].body),
            (2, &"b".into(), &json!({"n": 1}))
        );
        let bad = [
            line("a", "POST", ENDPOINTS[0]),
            line("a", "POST", ENDPOINTS[0]),
            line("b", "GET", ENDPOINTS[0]),
            line("c", "POST", ENDPOINTS[1]),
            line("", "POST", ENDPOINTS[0]),
            "rubbish".into(),
        ];
        let errors = lines(&bad.join("\n"), ENDPOINTS[0]).err().unwrap();
        let found: Vec<_> = errors
            .iter()
            .map(|e| (e["line"].as_u64().unwrap(), e["code"].as_str().unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                (2, "duplicate_custom_id"),
                (3, "invalid_method"),
                (4, "mismatched_url"),
                (5, "missing_required_parameter"),
                (6, "invalid_json_line"),
            ]
        );
        assert_eq!(lines("\n", ENDPOINTS[0]).err().unwrap()[0]["code"], "empty_file");
    }
}
