//! Shared by the tests of model files: real tensor lists, a small model with the same names, and
//! files made for a test.

use std::path::{Path, PathBuf};

use flux_fast::spec::Component;
use flux_fast::spec::flux1::FLUX1;
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec};
use serde_json::{Map, Value, json};

/// A tensor in a list or a header: name, element type, shape.
pub type Named = (String, Vec<usize>);

/// Reads a list in `tests/data`. A line has a name, an optional element type, and the axes;
/// `{0-18}` in a name stands for each number of the range.
pub fn list(file: &str) -> Vec<Named> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let mut out = vec![];
    for line in text.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let shape: Vec<usize> = words.filter_map(|w| w.parse().ok()).collect();
        match name.split_once('{').and_then(|(a, rest)| Some((a, rest.split_once('}')?))) {
            None => out.push((name.to_string(), shape)),
            Some((before, (range, after))) => {
                let (first, last) = range.split_once('-').unwrap();
                for i in first.parse::<usize>().unwrap()..=last.parse().unwrap() {
                    out.push((format!("{before}{i}{after}"), shape.clone()));
                }
            }
        }
    }
    out
}

/// The list with `prefix` before every name.
pub fn prefixed(prefix: &str, list: &[Named]) -> Vec<Named> {
    list.iter().map(|(n, s)| (format!("{prefix}{n}"), s.clone())).collect()
}

/// The components that every FLUX.1 model has.
pub fn required() -> impl Iterator<Item = Component> {
    FLUX1.components.iter().copied().filter(|component| !component.role.is_optional())
}

/// The canonical list of a component of FLUX.1 dev.
pub fn canonical(component: Component) -> Vec<Named> {
    list(match component.name {
        "flux" => "bfl_dev.txt",
        "t5" => "t5_single.txt",
        "clip" => "clip.txt",
        "vae" => "bfl_ae.txt",
        other => panic!("no list of {other}"),
    })
}

/// A header with these tensors, one after the other, and the number of bytes of their data.
pub fn header(tensors: &[(String, &str, Vec<usize>)], metadata: Value) -> (Vec<u8>, u64) {
    let mut json = Map::from_iter([("__metadata__".to_string(), metadata)]);
    let mut end = 0u64;
    for (name, dtype, shape) in tensors {
        let size = match *dtype {
            "F32" => 4,
            "BF16" | "F16" => 2,
            "I64" => 8,
            _ => 1,
        };
        let start = end;
        end += shape.iter().product::<usize>() as u64 * size;
        json.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }),
        );
    }
    let mut json = Value::Object(json).to_string();
    // Padding, as every writer adds it, so that the data are aligned.
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    (bytes, end)
}

/// Writes a sparse file of zeros with these tensors, which may be as large as the real one.
pub fn sparse(path: &Path, tensors: &[(String, &str, Vec<usize>)], metadata: Value) -> PathBuf {
    let (bytes, data) = header(tensors, metadata);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes.len() as u64 + data).unwrap();
    path.into()
}

/// `sparse` with one element type for all.
pub fn zeros(path: &Path, dtype: &'static str, tensors: &[Named]) -> PathBuf {
    let tensors: Vec<_> = tensors.iter().map(|(n, s)| (n.clone(), dtype, s.clone())).collect();
    sparse(path, &tensors, json!({}))
}

/// A small FLUX.1 dev: two double and two single blocks, every axis divided by the same number; 2
/// layers of each text encoder.
pub fn tiny() -> Vec<(Component, String, Vec<usize>)> {
    let keep = |name: &str| {
        let number =
            |p: &str| name.strip_prefix(p).and_then(|r| r.split('.').next()?.parse::<usize>().ok());
        let n =
            ["double_blocks.", "single_blocks.", "encoder.block.", "text_model.encoder.layers."]
                .iter()
                .find_map(|p| number(p));
        n.is_none_or(|n| n < 2)
    };
    let mut out = vec![];
    for component in required() {
        for (name, shape) in canonical(component).into_iter().filter(|(n, _)| keep(n)) {
            let narrow = |n: usize| match (component.name, n) {
                ("vae", 128..) => n / 32 * 2,
                ("clip", 49408) => 97,
                ("clip", 768) => 16,
                ("t5", 32128) => 101,
                ("t5", 64) => 4,
                (_, 4096) => 64,
                (_, 10240) => 160,
                (_, 3072..) => n / 64,
                ("flux", 768) => 16,
                ("flux", 256) => 32,
                ("flux", 128) => 8,
                (_, n) => n,
            };
            out.push((component, name, shape.into_iter().map(narrow).collect()));
        }
    }
    out
}

/// A synthetic checkpoint of `tiny`.
pub fn spec(grid: Grid, storage: Storage, dialect: Dialect) -> SynthSpec {
    let configs = json!({
        "transformer": { "num_layers": 2, "num_single_layers": 2, "guidance_embeds": true },
        "text_encoder": { "num_hidden_layers": 2 },
        "text_encoder_2": { "num_layers": 2 },
        "vae": { "scaling_factor": 0.3611, "norm_num_groups": 4 },
        "scheduler": { "shift": 3.0, "use_dynamic_shifting": true },
        "tokenizer_2": { "model_max_length": 128 },
        "generation": { "steps": 4 },
    });
    SynthSpec { seed: 11, tensors: tiny(), grid, storage, dialect, configs }
}
