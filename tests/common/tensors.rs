//! The tensors of a safetensors file, taken apart and written to other files.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// The prefix of T5 in the embedded model.
pub const T5: &str = "text_encoders.t5xxl.transformer.";
/// The prefix of CLIP in the embedded model.
pub const CLIP: &str = "text_encoders.clip_l.transformer.";
/// The prefix of the transformer in the embedded model.
pub const FLUX: &str = "model.diffusion_model.";
/// The prefix of the autoencoder in the embedded model.
pub const VAE: &str = "vae.";

/// A tensor: type, shape and bytes.
pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a file by name, and its metadata.
#[derive(Clone, Default)]
pub struct Tensors {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: HashMap<String, String>,
}

impl Tensors {
    /// The embedded model.
    pub fn tiny() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/flux-tiny.safetensors");
        Tensors::read(Path::new(path))
    }

    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let of = |(name, view): (String, TensorView)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Tensors { tensors: file.tensors().into_iter().map(of).collect(), metadata }
    }

    /// Those whose names begin with `prefix`, with their names as they are.
    pub fn of(&self, prefix: &str) -> Self {
        self.filter(|name| name.starts_with(prefix))
    }

    /// Those whose names do not begin with `prefix`.
    pub fn without(&self, prefix: &str) -> Self {
        self.filter(|name| !name.starts_with(prefix))
    }

    /// Those whose names begin with `prefix`, without it and without the metadata.
    pub fn below(&self, prefix: &str) -> Self {
        let of = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_string(), tensor.clone()))
        };
        Tensors { tensors: self.tensors.iter().filter_map(of).collect(), ..Tensors::default() }
    }

    fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut out = self.clone();
        out.tensors.retain(|name, _| keep(name));
        out
    }

    /// `count` parts of about the same number of tensors, in the order of the names.
    pub fn parts(&self, count: usize) -> Vec<Self> {
        let size = self.tensors.len().div_ceil(count);
        let all: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        let of = |part: &[(&String, &Tensor)]| Tensors {
            tensors: part.iter().map(|(n, t)| (n.to_string(), (*t).clone())).collect(),
            metadata: self.metadata.clone(),
        };
        all.chunks(size).map(of).collect()
    }

    /// Writes the file, and the folders that contain it.
    pub fn write(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        std::fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
        path.into()
    }
}
