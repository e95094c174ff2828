//! The files of jobs in the bucket of images: images to start from by the names that they have in
//! the folder of inputs, and results by theirs.

use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::object_store::{GetErrorKind, ObjectMetadata};
use tokio::io::AsyncReadExt;

use super::link::{Link, unreachable};
use super::record::Record;
use crate::pipeline::images::{Format, write_beside};
use crate::server::data::DataFolder;
use crate::server::fault::Fault;
use crate::server::job::JobSpec;
use crate::server::wait::expired;

/// How long one file may take.
const PATIENCE: Duration = Duration::from_secs(60);
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
