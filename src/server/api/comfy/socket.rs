//! `/ws`: what happens to the jobs of one client, in the order that clients rely on.
//!
//! A client may send its prompt before it connects: what it missed is sent then. After every end,
//! whatever it was, `executing` with no node follows, and the history is written before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::jobs;
use super::prompts::{Around, features, files, is_of_here, is_sent, outputs, prompt_id};
use crate::server::access::Owner;
use crate::server::events::JobEvent;
use crate::server::fault::Fault;
use crate::server::job::{Job, State as JobState, random_hex};
use crate::server::state::{Server, blocking};
use crate::server::wait::{expired, succeeded};

/// How long a client may take to receive a message.
const SLOW: Duration = Duration::from_secs(10);
/// The time between signs of life.
const PING: Duration = Duration::from_secs(20);
/// Jobs that ended longer ago than this are not reported to a client that connects, in seconds.
const RECENT: f64 = 300.0;
/// The most jobs that are looked at for one client.
const MAX_LISTED: usize = 200;
/// The largest message of a client, in bytes: they have few words to say.
const MAX_MESSAGE: usize = 1 << 20;
/// The kinds of binary messages, and of the images in them.
const PREVIEW: u32 = 1;
const PREVIEW_WITH_FACTS: u32 = 4;
const JPEG: u32 = 1;
const PNG: u32 = 2;

pub async fn connect(
    State(server): State<Arc<Server>>,
    Extension(owner): Extension<Owner>,
    Query(query): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Fault> {
    let client = match query.get("clientId").filter(|id| !id.is_empty()) {
        Some(id) => id.clone(),
        None => random_hex(16)?,
    };
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(|socket| serve(socket, server, owner, client)))
}

/// Sends messages until the client or the server goes away.
async fn serve(mut socket: WebSocket, server: Arc<Server>, owner: Owner, client: String) {
    let mut closing = server.closing.subscribe();
    let mut changed = server.events.watch_all();
    let mut view = View::new(server, owner, client);
    loop {
        changed.borrow_and_update();
        for message in view.messages() {
            if !matches!(timeout(SLOW, socket.send(message)).await, Ok(Ok(()))) {
                return;
            }
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            _ = closing.changed() => return,
            () = tokio::time::sleep(PING) => {
                let ping = socket.send(Message::Ping(Vec::new().into()));
                if !matches!(timeout(SLOW, ping).await, Ok(Ok(()))) {
                    return;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    if view.hear(&text) {
                        let answer = json!({"type": "feature_flags", "data": features()});
                        let answer = Message::Text(answer.to_string().into());
                        if !matches!(timeout(SLOW, socket.send(answer)).await, Ok(Ok(()))) {
                            return;
                        }
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
}

/// A job of the client.
struct Followed {
    id: String,
    /// The id that the client chose.
    prompt_id: String,
    echo: Value,
    /// The last event that was sent.
    after: u64,
    /// The node that runs.
    node: Value,
}

/// The messages that one client has been sent.
struct View {
    server: Arc<Server>,
    owner: Owner,
    client: String,
    statuses: watch::Receiver<u64>,
    /// Nothing was sent yet.
    is_new: bool,
    followed: Vec<Followed>,
    /// Jobs of which nothing more is sent.
    over: HashSet<String>,
    /// The last number of jobs that was sent.
    remaining: Option<usize>,
    /// The client wants previews of all its jobs, with facts.
    wants_facts: bool,
}

impl View {
    fn new(server: Arc<Server>, owner: Owner, client: String) -> Self {
        let statuses = server.events.watch_statuses();
        View {
            server,
            owner,
            client,
            statuses,
            is_new: true,
            followed: Vec::new(),
            over: HashSet::new(),
            remaining: None,
            wants_facts: false,
        }
    }

    /// Reads a message of the client. Returns whether it has said what it can do.
    fn hear(&mut self, text: &str) -> bool {
        let Ok(message) = serde_json::from_str::<Value>(text) else { return false };
        let is_flags = message["type"] == "feature_flags";
        self.wants_facts |= is_flags && message["data"]["supports_preview_metadata"] == true;
        is_flags
    }

    /// The messages that are new since the last call.
    fn messages(&mut self) -> Vec<Message> {
        let mut out = Vec::new();
        let remaining = match self.is_new || self.statuses.has_changed().unwrap_or(false) {
            true => {
                self.statuses.borrow_and_update();
                self.look()
            }
            false => self.remaining,
        };
        if self.is_new {
            self.is_new = false;
            self.remaining = remaining;
            out.push(self.status(true));
        }
        // The number of jobs grows before the new one begins, and shrinks after its end is
        // reported.
        if remaining > self.remaining {
            self.remaining = remaining;
            out.push(self.status(false));
        }
        for mut job in std::mem::take(&mut self.followed) {
            match self.follow(&mut job, &mut out) {
                true => drop(self.over.insert(job.id)),
                false => self.followed.push(job),
            }
        }
        if remaining != self.remaining {
            self.remaining = remaining;
            out.push(self.status(false));
        }
        out
    }

    fn status(&self, with_id: bool) -> Message {
        let remaining = self.remaining.unwrap_or(0);
        let mut data = json!({"status": {"exec_info": {"queue_remaining": remaining}}});
        if with_id {
            data["sid"] = json!(self.client);
        }
        text("status", data)
    }

    /// Looks for jobs that are not followed yet. Returns how many of the caller's wait or run.
    fn look(&mut self) -> Option<usize> {
        let (server, owner) = (&self.server, &self.owner);
        let active = jobs::active(server, owner).ok()?;
        let mut listed = blocking(|| server.broker.list(&owner.0, MAX_LISTED)).unwrap_or_default();
        listed.retain(is_of_here);
        listed.reverse();
        let since = server.now() - RECENT;
        for job in active.iter().chain(&listed) {
            let is_known =
                self.over.contains(&job.id) || self.followed.iter().any(|f| f.id == job.id);
            let Some(spec) = job.spec.as_ref().filter(|_| !is_known) else { continue };
            // Jobs without a client are everybody's, as in ComfyUI.
            if spec.echo["client_id"].as_str().is_some_and(|client| client != self.client) {
                continue;
            }
            if job.state.is_final() {
                let channel = self.server.events.known(&job.id);
                let is_recent = job.finished.is_some_and(|at| at > since);
                if !is_recent || channel.is_none_or(|channel| channel.is_told()) {
                    continue;
                }
            }
            self.followed.push(Followed {
                id: job.id.clone(),
                prompt_id: prompt_id(job),
                echo: spec.echo.clone(),
                after: 0,
                node: Value::Null,
            });
        }
        Some(active.len())
    }

    /// Adds the messages of what has happened to `job`. Returns whether it is over.
    fn follow(&self, job: &mut Followed, out: &mut Vec<Message>) -> bool {
        let channel = self.server.events.channel(&job.id);
        for event in channel.after(job.after) {
            job.after = event.number;
            if event.name == "status" {
                let state = event.data["status"].as_str().and_then(JobState::parse);
                match state {
                    Some(JobState::Running) => self.start(job, out),
                    Some(state) if state.is_final() => {
                        channel.tell_end();
                        self.end(job, out);
                        return true;
                    }
                    _ => {}
                }
            } else {
                self.progress(job, &event, out);
            }
        }
        false
    }

    fn start(&self, job: &mut Followed, out: &mut Vec<Message>) {
        let at = (self.server.now() * 1000.0) as u64;
        job.node = Value::Null;
        out.push(text("execution_start", json!({"prompt_id": job.prompt_id, "timestamp": at})));
        out.push(text(
            "execution_cached",
            json!({"nodes": [], "prompt_id": job.prompt_id, "timestamp": at}),
        ));
    }

    fn progress(&self, job: &mut Followed, event: &JobEvent, out: &mut Vec<Message>) {
        let data = &event.data;
        if event.name == "preview" {
            out.extend(self.preview(job, data));
            return;
        }
        if event.name != "progress" {
            return;
        }
        let node = match data["phase"].as_str() {
            Some("text_encode") => &job.echo["text_node"],
            Some("decode") => &job.echo["decode_node"],
            _ => &job.echo["sampler_node"],
        };
        let node = node.clone();
        if node != job.node {
            out.push(executing(&job.prompt_id, &node));
            job.node = node.clone();
        }
        if data["phase"] == "denoise" {
            let (id, value, max) = (&job.prompt_id, &data["step"], &data["steps"]);
            let progress = json!({"value": value, "max": max, "prompt_id": id, "node": node});
            out.push(text("progress", progress));
            let state = json!({
                "value": value, "max": max, "state": "running", "node_id": node,
                "prompt_id": id, "display_node_id": node, "parent_node_id": null,
                "real_node_id": node,
            });
            let node = node.as_str().unwrap_or_default();
            out.push(text("progress_state", json!({"prompt_id": id, "nodes": {node: state}})));
        }
    }

    /// A preview, if the client has asked for it: some clients take any image for the result.
    fn preview(&self, job: &Followed, data: &Value) -> Option<Message> {
        if !self.wants_facts && job.echo["preview"] != true {
            return None;
        }
        let jpeg = BASE64_STANDARD.decode(data["data"].as_str()?).ok()?;
        if !self.wants_facts {
            return Some(binary(PREVIEW, JPEG, &jpeg));
        }
        let node = &job.echo["sampler_node"];
        let facts = json!({
            "node_id": node, "display_node_id": node, "real_node_id": node,
            "parent_node_id": null, "prompt_id": job.prompt_id, "image_type": "image/jpeg",
        });
        let facts = facts.to_string().into_bytes();
        let body = [facts.as_slice(), &jpeg].concat();
        Some(binary(PREVIEW_WITH_FACTS, facts.len() as u32, &body))
    }

    fn end(&self, job: &Followed, out: &mut Vec<Message>) {
        let Ok(ended) = self.server.job(&job.id, &self.owner.0) else { return };
        let id = &job.prompt_id;
        match succeeded(&ended) {
            Ok(_) => match self.results(job, &ended, out) {
                Ok(()) => {
                    let at = (self.server.now() * 1000.0) as u64;
                    out.push(text("execution_success", json!({"prompt_id": id, "timestamp": at})));
                }
                Err(fault) => out.push(text("execution_error", jobs::failed(&ended, &fault))),
            },
            Err(_) if ended.state == JobState::Canceled => {
                out.push(text("execution_interrupted", jobs::interrupted(&ended)));
            }
            Err(fault) => out.push(text("execution_error", jobs::failed(&ended, &fault))),
        }
        out.push(executing(id, &Value::Null));
    }

    /// The images, for every node that saves them.
    ///
    /// # Errors
    /// 503 and 410 for one that cannot be sent.
    fn results(&self, job: &Followed, ended: &Job, out: &mut Vec<Message>) -> Result<(), Fault> {
        let around = Around { server: &self.server, owner: &self.owner };
        let all = outputs(ended);
        for (node, class, files) in files(ended) {
            let output = &all[&node];
            let node = json!(node);
            out.push(executing(&job.prompt_id, &node));
            // Nodes without files send the images themselves.
            for file in files.iter().filter(|_| is_sent(&class)) {
                let bytes = blocking(|| around.drawn(file))?.ok_or_else(expired)?;
                out.push(binary(PREVIEW, PNG, &bytes));
            }
            out.push(text(
                "executed",
                json!({"node": node, "display_node": node, "output": output,
                       "prompt_id": job.prompt_id}),
            ));
        }
        Ok(())
    }
}

fn executing(prompt_id: &str, node: &Value) -> Message {
    let mut data = json!({"node": node, "prompt_id": prompt_id});
    if !node.is_null() {
        data["display_node"] = node.clone();
    }
    text("executing", data)
}

fn text(kind: &str, data: Value) -> Message {
    Message::Text(json!({"type": kind, "data": data}).to_string().into())
}

/// A binary message: two numbers, most significant byte first, and bytes.
fn binary(kind: u32, number: u32, body: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(8 + body.len());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend(body);
    Message::Binary(bytes.into())
}
