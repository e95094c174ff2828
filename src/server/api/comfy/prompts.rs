//! The jobs of this API: what clients call them, their files, and what a graph may refer to.

use axum::body::Bytes;
use axum::extract::Path;
use serde_json::{Map, Value, json};

use super::finish::{Finished, finish, finished_name, parse_name};
use super::graph::Surroundings;
use super::store::{find_cached, find_kept, find_uploaded};
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
    /// The file of a drawn image, as the output of its graph has finished it; `None` if there is
    /// none, or none any more.
    ///
    /// # Errors
    /// 503.
    pub fn drawn(&self, name: &str) -> Result<Option<Bytes>, Fault> {
        let (stem, output) = match parse_name(name) {
            Some((stem, output)) => (stem, Some(output)),
            None => (name, None),
        };
        let Some((id, _)) = stem.rsplit_once('-') else { return Ok(None) };
        let found = self.server.job(id, &self.owner.0).and_then(|job| {
            let is_meant = |file: &str| match output {
                Some(output) => finished_name(file, output) == name,
                None => file == name,
            };
            let Some(drawn) = job.outputs.iter().find(|drawn| is_meant(&drawn.file)) else {
                return Ok(None);
            };
            let file = self.server.read_result(drawn)?;
            match output {
                Some(output) => self.finished(&job, &file, output).map(Some),
                None => Ok(Some(file)),
            }
        });
        match found {
            Ok(bytes) => Ok(bytes.map(Bytes::from)),
            Err(fault) if fault.status == 503 => Err(fault),
            Err(_) => Ok(None),
        }
    }

    /// A drawn image of `job` as output number `output` of its graph has finished it.
    fn finished(&self, job: &Job, file: &[u8], output: usize) -> Result<Vec<u8>, Fault> {
        let outputs = job.spec.as_ref().map(|spec| &spec.echo["outputs"]);
        let steps = finish_of(outputs.map_or(&Value::Null, |outputs| &outputs[output]));
        finish(file, &steps, |name| find_kept(self.server, self.owner, name))
    }
}

/// What is done to the images before the node `output` of a job takes them.
fn finish_of(output: &Value) -> Finished {
    serde_json::from_value(output[2].clone()).unwrap_or_default()
}

/// The id of a job that the client chose.
pub fn prompt_id(job: &Job) -> String {
    let echo = job.spec.as_ref().map(|spec| &spec.echo["prompt_id"]);
    echo.and_then(Value::as_str).unwrap_or(&job.id).to_string()
}

/// Finds a job of this API by the id that the client gave it.
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

/// The names of the images of a job that succeeded, for every node that takes them, with its class.
pub fn files(job: &Job) -> Vec<(String, String, Vec<String>)> {
    let drawn = succeeded(job).unwrap_or_default();
    let Some(spec) = job.spec.as_ref().filter(|_| !drawn.is_empty()) else { return Vec::new() };
    let nodes = spec.echo["outputs"].as_array().into_iter().flatten().enumerate();
    let of_node = |(number, node): (usize, &Value)| {
        let (id, class) = (node[0].as_str()?, node[1].as_str()?);
        let is_finished = !finish_of(node).is_empty();
        let name = |file: &String| match is_finished {
            true => finished_name(file, number),
            false => file.clone(),
        };
        Some((id.into(), class.into(), drawn.iter().map(|drawn| name(&drawn.file)).collect()))
    };
    nodes.filter_map(of_node).collect()
}

/// Whether a node of this class sends its images over the socket.
pub fn is_sent(class: &str) -> bool {
    ["SaveImageWebsocket", "ETN_SendImageWebSocket"].contains(&class)
}

/// The files of a job that succeeded, for every node that saves some.
pub fn outputs(job: &Job) -> Map<String, Value> {
    let of_node = |(id, class, files): (String, String, Vec<String>)| {
        let images = files.iter().map(|file| match class.as_str() {
            "ETN_SaveImageCache" => json!({
                "source": "http", "id": file, "type": "output", "content-type": type_of(file),
            }),
            "PreviewImage" => json!({"filename": file, "subfolder": "", "type": "temp"}),
            _ => json!({"filename": file, "subfolder": "", "type": "output"}),
        });
        let images: Vec<Value> = if is_sent(&class) { Vec::new() } else { images.collect() };
        (id, json!({"images": images}))
    };
    files(job).into_iter().map(of_node).collect()
}

/// The path of a request with one id.
pub type Id = Path<String>;
