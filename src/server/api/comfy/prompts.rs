//! The jobs of this API: what clients call them, their files, and what a graph may refer to.

use axum::body::Bytes;
use axum::extract::Path;
use serde_json::{Map, Value, json};

use super::graph::Surroundings;
use super::store::{find_cached, find_uploaded};
use crate::server::access::Owner;
use crate::server::api::shared::type_of;
use crate::server::body::MAX_BODY;
use crate::server::draft::client_id;
use crate::server::fault::Fault;
use crate::server::job::Job;
use crate::server::state::Server;
use crate::server::wait::succeeded;

/// The name of this API in jobs.
pub const DIALECT: &str = "comfyui";
/// The features of this server, in the form of ComfyUI's `/features`.
pub fn features() -> Value {
    json!({"supports_preview_metadata": true, "max_upload_size": MAX_BODY})
}

/// What a graph may refer to.
pub struct Around<'a> {
    /// The server.
    pub server: &'a Server,
    /// Whose graph it is.
    pub owner: &'a Owner,
}

impl Surroundings for Around<'_> {
    fn image(&self, name: &str) -> Result<Option<Bytes>, Fault> {
        let (name, kind) = match name.rsplit_once(" [") {
            Some((name, kind)) => (name, kind.trim_end_matches(']')),
            None => (name, "input"),
        };
        match kind {
            "output" | "temp" => self.drawn(name.rsplit('/').next().unwrap_or(name)),
            _ => find_uploaded(self.server, self.owner, name),
        }
    }

    fn cached_image(&self, id: &str) -> Result<Option<Bytes>, Fault> {
        find_cached(self.server, self.owner, id)
    }

    fn steps(&self, model: Option<&str>, steps: usize) -> usize {
        self.server.max_steps(model).map_or(steps, |most| steps.min(most))
    }
}

impl Around<'_> {
    /// The file of a drawn image; `None` if there is none, or none any more.
    ///
    /// # Errors
    /// 503.
    pub fn drawn(&self, name: &str) -> Result<Option<Bytes>, Fault> {
        let Some((id, _)) = name.rsplit_once('-') else { return Ok(None) };
        let found = self.server.job(id, &self.owner.0).and_then(|job| {
            let output = job.outputs.iter().find(|output| output.file == name);
            output.map(|output| self.server.read_result(output)).transpose()
        });
        match found {
            Ok(bytes) => Ok(bytes.map(Bytes::from)),
            Err(fault) if fault.status == 503 => Err(fault),
            Err(_) => Ok(None),
        }
    }
}

/// The id of a job that the client chose.
pub fn prompt_id(job: &Job) -> String {
    let echo = job.spec.as_ref().map(|spec| &spec.echo["prompt_id"]);
    echo.and_then(Value::as_str).unwrap_or(&job.id).to_string()
}

/// The job of this API that the client calls `id`.
pub fn find(server: &Server, owner: &Owner, id: &str) -> Result<Job, Fault> {
    let known = server.job(&client_id(DIALECT, &owner.0, id), &owner.0);
    known.or_else(|_| server.job(id, &owner.0)).and_then(|job| match is_of_here(&job) {
        true => Ok(job),
        false => Err(Fault::not_found("there is no prompt of this id")),
    })
}

pub fn is_of_here(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.dialect == DIALECT)
}

/// The files of a job that succeeded, for every node that saves some.
pub fn outputs(job: &Job) -> Map<String, Value> {
    let Some(spec) = &job.spec else { return Map::new() };
    let files = succeeded(job).unwrap_or_default();
    if files.is_empty() {
        return Map::new();
    }
    let nodes = spec.echo["outputs"].as_array().into_iter().flatten();
    let of_node = |node: &Value| {
        let (id, class) = (node[0].as_str()?, node[1].as_str()?);
        let images: Vec<Value> = files
            .iter()
            .map(|output| match class {
                "ETN_SaveImageCache" => json!({
                    "source": "http", "id": output.file, "type": "output",
                    "content-type": type_of(&output.file),
                }),
                "PreviewImage" => {
                    json!({"filename": output.file, "subfolder": "", "type": "temp"})
                }
                _ => json!({"filename": output.file, "subfolder": "", "type": "output"}),
            })
            .collect();
        // These send their images over the socket.
        let is_sent = ["SaveImageWebsocket", "ETN_SendImageWebSocket"].contains(&class);
        Some((id.to_string(), json!({"images": if is_sent { Vec::new() } else { images }})))
    };
    nodes.filter_map(of_node).collect()
}

/// The path of a request with one id.
pub type Id = Path<String>;
