//! Shared by the tests of the command line: the binary in its own environment, and parts of the
//! embedded model as files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A home folder with the subfolder `here`, which is the current folder of the commands.
pub struct Home {
    _root: tempfile::TempDir,
    pub at: PathBuf,
}

impl Home {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(at.join("here")).unwrap();
        Home { _root: root, at }
    }

    /// The program with these arguments, in the folder `here`, without the environment of the test.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flux-fast"));
        command
            .env_clear()
            .env("HOME", &self.at)
            .env("HF_HOME", self.at.join("hf"))
            .current_dir(self.at.join("here"));
        // Windows cannot start a program without it.
        if let Some(root) = std::env::var_os("SystemRoot") {
            command.env("SystemRoot", root);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// The JSON object on stdout.
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output))
        .unwrap_or_else(|e| panic!("{e}: {}{}", stdout(output), stderr(output)))
}

/// The bytes of the file of the embedded model.
pub fn tiny() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    std::fs::read(path).expect("the embedded model's file")
}

/// A file with the tensors of the embedded model whose names begin with `prefix`.
pub fn part(prefix: &str) -> Vec<u8> {
    let bytes = tiny();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().filter(|(name, _)| name.starts_with(prefix));
    safetensors::serialize(tensors, header.metadata().clone()).unwrap()
}

/// A safetensors file with these tensors, each of two zeros in F32.
pub fn zeros(names: &[&str]) -> Vec<u8> {
    let data = [0u8; 8];
    let view = || {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 1], &data).unwrap()
    };
    safetensors::serialize(names.iter().map(|n| (*n, view())), None).unwrap()
}
