//! The image files of a draft, which the data folder has for its job.

use axum::body::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::data::DataFolder;
use super::draft::Draft;
use super::job::hex;
use crate::error::Result;

/// The files, as the draft has them.
pub struct DraftFiles {
    /// The image to start from.
    pub input: Option<Bytes>,
    /// What is repainted of it.
    pub mask: Option<Bytes>,
    /// The control image.
    pub control: Option<Bytes>,
    /// The style images.
    pub styles: Vec<Bytes>,
    /// The images that ControlNets see.
    pub controlnets: Vec<Bytes>,
    /// The reference images.
    pub references: Vec<Bytes>,
}

impl DraftFiles {
    /// The files of `draft`.
    pub fn of(draft: &Draft) -> Self {
        DraftFiles {
            input: draft.input.clone(),
            mask: draft.mask.as_ref().map(|mask| mask.png.clone()),
            control: draft.control.clone(),
            styles: draft.styles.clone(),
            controlnets: draft.controlnet_images.clone(),
            references: draft.references.clone(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        let lists = self.references.iter().chain(&self.styles).chain(&self.controlnets);
        lists.chain(&self.control).chain(&self.input).next().is_none()
    }

    /// Adds a hash of each file to `sent`, the description of a request.
    pub fn describe(&self, sent: &mut Value) {
        let hash = |bytes: &Bytes| hex(&Sha256::digest(bytes));
        sent["input"] = json!(self.input.as_ref().map(hash));
        let lists = [
            ("references", &self.references),
            ("styles", &self.styles),
            ("controlnets", &self.controlnets),
        ];
        for (name, files) in lists.into_iter().filter(|(_, files)| !files.is_empty()) {
            sent[name] = files.iter().map(hash).collect();
        }
        for (name, file) in [("mask", &self.mask), ("control", &self.control)] {
            if let Some(file) = file {
                sent[name] = json!(hash(file));
            }
        }
    }

    /// Writes them for the job `id`, durably.
    pub fn write(&self, data: &DataFolder, id: &str) -> Result<()> {
        self.input.iter().try_for_each(|bytes| data.write_input(id, bytes))?;
        self.mask.iter().try_for_each(|bytes| data.write_mask(id, bytes))?;
        self.control.iter().try_for_each(|bytes| data.write_control(id, bytes))?;
        let all = |files: &[Bytes], write: &dyn Fn(usize, &[u8]) -> Result<()>| {
            files.iter().enumerate().try_for_each(|(number, bytes)| write(number, bytes))
        };
        all(&self.styles, &|n, bytes| data.write_style(id, n, bytes))?;
        all(&self.controlnets, &|n, bytes| data.write_controlnet(id, n, bytes))?;
        all(&self.references, &|n, bytes| data.write_reference(id, n, bytes))
    }
}
