//! The data folder: the list of jobs, images that clients send, and results.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

#[cfg(feature = "nats")]
use super::job::JobSpec;
use crate::error::{Error, Result};
use crate::pipeline::images::{Format, probe_output, write_beside};

/// Where the server keeps its files.
#[derive(Debug, Clone)]
pub struct DataFolder {
    root: PathBuf,
}

/// Keeps other servers out of a data folder while it exists.
#[derive(Debug)]
pub struct DataLock(#[allow(dead_code, reason = "the lock is held while the file is open")] File);

impl DataFolder {
    /// The folder at `root`, which exists.
    pub fn at(root: PathBuf) -> Self {
        DataFolder { root }
    }

    /// Makes the folder at `root` if it does not exist, and locks it.
    ///
    /// # Errors
    /// [`Kind::Output`](crate::error::Kind::Output) if that fails, or if another server uses it.
    pub fn create(root: &Path) -> Result<(Self, DataLock)> {
        let failed = |e: std::io::Error, path: &Path| {
            Error::output(format!("the data folder cannot be used: {e}"))
                .at_path(path)
                .try_("give the server another folder for its data")
        };
        let root = std::path::absolute(root).map_err(|e| failed(e, root))?;
        let folder = DataFolder { root };
        for path in [&folder.inputs(), &folder.results(), &folder.kept()] {
            std::fs::create_dir_all(path).map_err(|e| failed(e, path))?;
        }
        #[cfg(unix)]
        {
            // Prompts and images of others are nobody else's business.
            use std::os::unix::fs::PermissionsExt;
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&folder.root, private).map_err(|e| failed(e, &folder.root))?;
        }
        let path = folder.root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| failed(e, &path))?;
        // Removes what a killed process left unfinished, too.
        probe_output(&folder.result("probe"))?;
        match lock.try_lock() {
            Ok(()) => Ok((folder, DataLock(lock))),
            Err(TryLockError::WouldBlock) => {
                Err(Error::output("another server uses this data folder")
                    .at_path(&folder.root)
                    .try_("give the server another folder for its data"))
            }
            Err(TryLockError::Error(e)) => Err(failed(e, &path)),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The list of jobs.
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs.sqlite")
    }

    /// The folder of files that clients uploaded.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    fn inputs(&self) -> PathBuf {
        self.root.join("inputs")
    }

    fn results(&self) -> PathBuf {
        self.root.join("results")
    }

    /// The image that the job `id` starts from.
    pub fn input(&self, id: &str) -> PathBuf {
        self.inputs().join(id)
    }

    /// The mask of the job `id`.
    pub fn mask(&self, id: &str) -> PathBuf {
        self.inputs().join(format!("{id}-mask"))
    }

    /// The control image of the job `id`.
    pub fn control(&self, id: &str) -> PathBuf {
        self.inputs().join(format!("{id}-control"))
    }

    /// The names of the files with the images that the job `id` starts from.
    #[cfg(feature = "nats")]
    pub fn input_names(id: &str, spec: &JobSpec) -> Vec<String> {
        let single = [
            (spec.has_input, id.to_string()),
            (spec.has_mask, format!("{id}-mask")),
            (spec.has_control, format!("{id}-control")),
        ];
        let single = single.into_iter().filter(|(is_there, _)| *is_there).map(|(_, name)| name);
        let references = (0..spec.references).map(|n| format!("{id}-{n}"));
        let styles = (0..spec.styles).map(|n| format!("{id}-style-{n}"));
        let controlnets = spec.controlnets().enumerate();
        let controlnets = controlnets.map(|(n, _)| format!("{id}-controlnet-{n}"));
        single.chain(references).chain(styles).chain(controlnets).collect()
    }

    /// The image of ControlNet number `number` of the job `id`.
    pub fn controlnet(&self, id: &str, number: usize) -> PathBuf {
        self.inputs().join(format!("{id}-controlnet-{number}"))
    }

    /// Style image number `number` of the job `id`.
    pub fn style(&self, id: &str, number: usize) -> PathBuf {
        self.inputs().join(format!("{id}-style-{number}"))
    }

    /// Reference image number `number` of the job `id`.
    pub fn reference(&self, id: &str, number: usize) -> PathBuf {
        self.inputs().join(format!("{id}-{number}"))
    }

    /// The name of image number `index` of the job `id`.
    pub fn result_name(id: &str, index: usize, format: Format) -> String {
        format!("{id}-{index}.{}", format.extension())
    }

    /// The file of the result called `name`.
    pub fn result(&self, name: &str) -> PathBuf {
        self.results().join(name)
    }

    /// Stores the image that the job `id` starts from, durably.
    pub fn write_input(&self, id: &str, bytes: &[u8]) -> Result<()> {
        write_beside(&self.input(id), bytes)
    }

    /// Stores the mask of the job `id`, durably.
    pub fn write_mask(&self, id: &str, bytes: &[u8]) -> Result<()> {
        write_beside(&self.mask(id), bytes)
    }

    /// Stores the control image of the job `id`, durably.
    pub fn write_control(&self, id: &str, bytes: &[u8]) -> Result<()> {
        write_beside(&self.control(id), bytes)
    }

    /// Stores the image of ControlNet number `number` of the job `id`, durably.
    pub fn write_controlnet(&self, id: &str, number: usize, bytes: &[u8]) -> Result<()> {
        write_beside(&self.controlnet(id, number), bytes)
    }

    /// Stores style image number `number` of the job `id`, durably.
    pub fn write_style(&self, id: &str, number: usize, bytes: &[u8]) -> Result<()> {
        write_beside(&self.style(id, number), bytes)
    }

    /// Stores reference image number `number` of the job `id`, durably.
    pub fn write_reference(&self, id: &str, number: usize, bytes: &[u8]) -> Result<()> {
        write_beside(&self.reference(id, number), bytes)
    }

    /// Makes the result called `name` one called `other`, too.
    pub fn share(&self, name: &str, other: &str) -> std::io::Result<()> {
        let (name, other) = (self.result(name), self.result(other));
        // Links are not possible everywhere.
        std::fs::hard_link(&name, &other).or_else(|_| std::fs::copy(&name, &other).map(drop))
    }

    /// Deletes the files of the job `id`.
    pub fn delete(&self, id: &str) {
        for path in [self.input(id), self.mask(id), self.control(id)] {
            std::fs::remove_file(path).ok();
        }
        // Numbers are without gaps.
        for numbered in [DataFolder::reference, DataFolder::style, DataFolder::controlnet] {
            (0..)
                .take_while(|n| std::fs::remove_file(numbered(self, id, *n)).is_ok())
                .for_each(drop);
        }
        for format in Format::ALL {
            (0..)
                .map(|index| self.result(&Self::result_name(id, index, format)))
                .take_while(|path| std::fs::remove_file(path).is_ok())
                .for_each(drop);
        }
    }
}
