//! The files of jobs in the bucket of images: images to start from by the names that they have in
//! the folder of inputs, and results by theirs.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::object_store::{GetErrorKind, ObjectMetadata};
use futures_util::TryStreamExt;
use tokio::io::AsyncReadExt;

use super::link::{Link, unreachable};
use super::record::Record;
use super::uploads::UPLOAD;
use crate::pipeline::images::{Format, write_beside};
use crate::server::data::DataFolder;
use crate::server::fault::Fault;
use crate::server::job::JobSpec;
use crate::server::wait::expired;

/// How long one file may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time a file belongs to a job or to somebody's uploads, or is left over.
const SETTLED: f64 = 3600.0;
/// The most bytes that are sent to the broker at a time.
const CHUNK: usize = 128 << 10;

impl Link {
    /// Stores the file at `path` under its name.
    ///
    /// # Errors
    /// 503, and 500 if the file cannot be read.
    pub async fn put_file(&self, path: &Path) -> Result<(), Fault> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).map_err(|_| Fault::internal("an image cannot be read"))?;
        self.put_bytes(&name, &bytes).await
    }

    /// Stores `bytes` as `name`.
    ///
    /// # Errors
    /// 503.
    pub async fn put_bytes(&self, name: &str, mut bytes: &[u8]) -> Result<(), Fault> {
        let name = name.to_string();
        let meta = ObjectMetadata { name, chunk_size: Some(CHUNK), ..ObjectMetadata::default() };
        let stored = tokio::time::timeout(PATIENCE, self.images.put(meta, &mut bytes)).await;
        stored.map_err(|e| unreachable(&e))?.map(drop).map_err(|e| unreachable(&e))
    }

    /// Writes the file called `name` to `path`.
    ///
    /// # Errors
    /// 410 if there is none, 503, and 500 if it cannot be written.
    pub async fn get_file(&self, name: &str, path: &Path) -> Result<(), Fault> {
        let bytes = self.get_bytes(name).await?;
        write_beside(path, &bytes).map_err(|_| Fault::internal("an image cannot be stored"))
    }

    /// The bytes of the file called `name`.
    ///
    /// # Errors
    /// 410 if there is none, 503.
    pub async fn get_bytes(&self, name: &str) -> Result<Vec<u8>, Fault> {
        let got = tokio::time::timeout(PATIENCE, self.read_object(name)).await;
        got.map_err(|e| unreachable(&e))?
    }

    async fn read_object(&self, name: &str) -> Result<Vec<u8>, Fault> {
        let mut object = self.images.get(name).await.map_err(|e| match e.kind() {
            GetErrorKind::NotFound => expired(),
            _ => unreachable(&e),
        })?;
        let mut bytes = Vec::with_capacity(object.info().size);
        object.read_to_end(&mut bytes).await.map_err(|e| unreachable(&e))?;
        Ok(bytes)
    }

    /// Deletes the files that processes have left when they ended, or when the broker was away:
    /// those of no job that `is_job` knows, and uploads that are not among `uploads`. Those that
    /// were stored shortly before `now` (seconds since 1970) stay: their job may be accepted.
    ///
    /// # Errors
    /// 503.
    pub async fn sweep_files(
        &self,
        now: f64,
        is_job: impl Fn(&str) -> bool,
        uploads: &HashSet<String>,
    ) -> Result<(), Fault> {
        let mut files = self.images.list().await.map_err(|e| unreachable(&e))?;
        let mut unused = Vec::new();
        while let Some(file) = files.try_next().await.map_err(|e| unreachable(&e))? {
            let age = file.modified.map_or(0.0, |at| now - at.unix_timestamp() as f64);
            let is_used = match file.name.starts_with(UPLOAD) {
                true => uploads.contains(&file.name),
                false => is_job(job_of(&file.name)),
            };
            if age > SETTLED && !is_used {
                unused.push(file.name);
            }
        }
        for name in unused {
            self.images.delete(&name).await.map_err(|e| unreachable(&e))?;
        }
        Ok(())
    }

    /// Deletes the files of a job.
    pub async fn delete_files(&self, record: &Record) {
        let inputs = record.spec.iter().flat_map(|spec| DataFolder::input_names(&record.id, spec));
        let outputs = record.outputs.iter().map(|output| output.file.clone());
        for name in inputs.chain(outputs).collect::<Vec<_>>() {
            // What stays is deleted by its age.
            self.images.delete(&name).await.ok();
        }
    }
}

/// The id of the job that the file called `name` belongs to.
fn job_of(name: &str) -> &str {
    name.split_once('-').map_or(name, |(id, _)| id)
}

/// Whether `name` is one that results have, so that nothing else is ever looked for.
pub fn is_result(name: &str) -> bool {
    let Some((id, rest)) = name.split_once('-') else { return false };
    let Some((index, extension)) = rest.split_once('.') else { return false };
    let known = Format::ALL.iter().any(|format| format.extension() == extension);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    known && digits(index) && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The files of the images that a job starts from.
pub fn input_paths(data: &DataFolder, id: &str, spec: &JobSpec) -> Vec<std::path::PathBuf> {
    // The name of the first one is that of the job.
    DataFolder::input_names(id, spec).iter().map(|name| data.input(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_a_job_begins_with_its_id() {
        for name in
            ["0a1f", "0a1f-mask", "0a1f-3", "0a1f-style-2", "0a1f-controlnet-0", "0a1f-0.png"]
        {
            assert_eq!(job_of(name), "0a1f", "{name}");
        }
        assert!(is_result("0a1f-0.png") && !is_result("0a1f-mask") && !is_result("upload-1.png"));
    }
}
