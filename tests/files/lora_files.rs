//! LoRA files of every trainer: the real key lists, the same adapter in everyone's words, alpha, rows, several at once, and every fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::{Error, Kind, Result};
use flux_fast::spec::flux1::{CLIP, FLUX1, T5, TRANSFORMER};
use flux_fast::spec::{Component, FAMILIES};
use flux_fast::weights::lora::{Adapter, Combined, Pair, combine, open, read, survey};

// ---- files made by hand ----

/// A file in the making: names, element types, shapes, bytes.
#[derive(Clone, Default)]
struct Lora {
    tensors: Vec<(String, &'static str, Vec<usize>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl Lora {
    fn with(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.push(name, DType::F32, shape, values);
        self
    }

    fn push(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let mut bytes = vec![];
        values.iter().for_each(|v| dtype.encode(*v, &mut bytes));
        self.tensors.push((name.into(), dtype.name(), shape.to_vec(), bytes));
    }

    fn raw(mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: &[u8]) -> Self {
        self.tensors.push((name.into(), dtype, shape.to_vec(), bytes.to_vec()));
        self
    }

    fn meta(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// A pair of the given rank that is all ones.
    fn pair(self, down: &str, up: &str, rank: usize, (rows, cols): (usize, usize)) -> Self {
        self.with(down, &[rank, cols], &vec![1.0; rank * cols]).with(
            up,
            &[rows, rank],
            &vec![1.0; rows * rank],
        )
    }

    /// The first name's values, to be changed.
    fn bytes_of(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.tensors.iter_mut().find(|t| t.0 == name).unwrap().3
    }

    fn bytes(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::to_value(&self.metadata).unwrap());
        let mut end = 0;
        for (name, dtype, shape, bytes) in &self.tensors {
            let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes.len()] });
            header.insert(name.clone(), info);
            end += bytes.len();
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        self.tensors.iter().for_each(|t| out.extend(&t.3));
        out
    }

    fn read(&self, base: &Shapes) -> Result<Adapter> {
        read(Arc::new(self.bytes()), Path::new("my.safetensors"), &FLUX1, &|c, n| {
            base.get(&(c, n.to_string())).copied()
        })
    }

    fn error(&self, base: &Shapes) -> String {
        let e = self.read(base).expect_err("a file with a fault was read");
        assert_eq!(e.kind(), Kind::Model, "{e}");
        assert!(e.to_string().starts_with("my.safetensors: "), "{e}");
        assert!(e.to_string().len() < 700, "{} bytes: {e}", e.to_string().len());
        format!("{e} | {}", e.hint().unwrap_or_default())
    }
}

type Shapes = BTreeMap<(Component, String), (usize, usize)>;

/// Names and shapes of a list in `tests/data`; `{0-18}` stands for each number.
fn list(file: &str) -> Vec<(String, Vec<usize>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    let mut out = vec![];
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let shape: Vec<usize> = words.map(|w| w.parse().unwrap()).collect();
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

/// The matrices of FLUX.1 dev and its text encoders.
fn dev() -> Shapes {
    let files = [(TRANSFORMER, "bfl_dev.txt"), (T5, "t5_single.txt"), (CLIP, "clip.txt")];
    let of = |(c, file): (Component, &str)| {
        list(file)
            .into_iter()
            .filter(|(_, s)| s.len() == 2)
            .map(move |(n, s)| ((c, n), (s[0], s[1])))
    };
    files.into_iter().flat_map(of).collect()
}

/// The same with two blocks of each kind and narrow layers: width 12, MLP 48.
fn small() -> Shapes {
    let narrow = |c: Component, n: usize| match (c.name, n) {
        ("flux", 3072..) => n / 256,
        ("flux", 64..) => n / 16,
        _ => n / 64,
    };
    let block = |name: &str| name.split('.').find_map(|w| w.parse::<usize>().ok()).unwrap_or(0);
    let keep = |name: &str| {
        !name.contains("blocks") && !name.contains("block.") && !name.contains("layers.")
            || block(name) < 2
    };
    let cut = |((c, n), (rows, cols)): ((Component, String), (usize, usize))| {
        ((c, n), (narrow(c, rows), narrow(c, cols)))
    };
    dev().into_iter().filter(|((_, n), _)| keep(n)).map(cut).collect()
}

// ---- numbers ----

/// Small multiples of 1/64, which every type holds.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 33
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() % 128) as f32 / 64.0 - 1.0).collect()
    }
}

fn product(b: &[f32], a: &[f32], rank: usize, cols: usize, factor: f64) -> Vec<f64> {
    let mut out = vec![];
    for row in b.chunks_exact(rank) {
        for c in 0..cols {
            out.push(
                factor
                    * (0..rank)
                        .map(|r| f64::from(row[r]) * f64::from(a[r * cols + c]))
                        .sum::<f64>(),
            );
        }
    }
    out
}

fn values(part: &flux_fast::tensor::HostPart) -> Vec<f32> {
    part.bytes().chunks_exact(part.dtype.size()).map(|b| part.dtype.decode(b)).collect()
}

/// The whole change that a combined pair makes, in f64.
fn delta(c: &Combined) -> Vec<f64> {
    product(&values(&c.b), &values(&c.a), c.rank(), c.a.cols, 1.0)
}

fn whole(
    loras: &[(&Adapter, f32)],
    component: Component,
    weight: &str,
    base: &Shapes,
    dtype: DType,
) -> Option<Combined> {
    let rows = base[&(component, weight.to_string())].0;
    combine(loras, component, weight, 0..rows, dtype).unwrap()
}

// ---- the real key lists ----

/// A file of zeros with the tensors of a list that `keep` lets pass; it takes no room on the disk.
fn listed(dir: &Path, file: &str, keep: impl Fn(&str) -> bool) -> (PathBuf, usize) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in list(&format!("lora-keys/{file}.txt")).into_iter().filter(|t| keep(&t.0)) {
        let first = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [first, end] }),
        );
    }
    let keys = header.len();
    let header = serde_json::Value::Object(header).to_string();
    let path = dir.join(format!("{file}.safetensors"));
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat())
        .unwrap();
    let grow = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    grow.set_len((8 + header.len() + end) as u64).unwrap();
    (path, keys)
}

fn read_listed(file: &str, base: &Shapes, keep: impl Fn(&str) -> bool) -> Result<Adapter> {
    let dir = tempfile::tempdir().unwrap();
    open(&listed(dir.path(), file, keep).0, &FLUX1, &|c, n| base.get(&(c, n.to_string())).copied())
}

#[test]
fn every_real_key_list_matches_completely() {
    let base = dev();
    let cases = [
        ("flux_lora_kohya", "Kohya sd-scripts", 912, 304),
        ("flux_lora_kohya_with_te1", "Kohya sd-scripts", 1128, 376),
        ("flux_lora_aitoolkit", "PEFT (ai-toolkit)", 456, 228),
        ("flux_lora_diffusers", "diffusers", 988, 494),
        ("flux_lora_diffusers_base_model", "PEFT", 762, 381),
        ("flux_lora_diffusers_no_proj_mlp", "diffusers", 684, 342),
        ("flux_lora_xlabs", "XLabs", 24, 12),
    ];
    for (file, dialect, keys, pairs) in cases {
        let adapter = read_listed(file, &base, |_| true).unwrap_or_else(|e| panic!("{file}: {e}"));
        let s = &adapter.summary;
        assert_eq!((s.dialect.as_str(), s.unmatched, s.matched), (dialect, 0, keys), "{file}: {s}");
        assert_eq!(adapter.pairs().len(), pairs, "{file}");
    }
}

#[test]
fn the_other_real_files_are_refused_by_name() {
    let base = dev();
    let cases = [
        ("flux_dora_onetrainer", "this is a DoRA, which is not supported"),
        ("flux_lokr_bfl", "this is a LoKr, which is not supported"),
        (
            "flux_control_lora",
            "this is a BFL control LoRA (FLUX.1 Canny or Depth: it widens img_in",
        ),
        ("xlabs_flux_controlnet", "this is a ControlNet, not a LoRA"),
        ("xlabs_flux_ip_adapter", "this is an IP-Adapter, not a LoRA"),
        ("xlabs_flux_ip_adapter_v2", "this is an IP-Adapter, not a LoRA"),
        // A list of a configuration's keys, of all things.
        ("instantx_flux_controlnet", "no key of this file is a LoRA of FLUX.1"),
    ];
    for (file, says) in cases {
        let e = read_listed(file, &base, |_| true).unwrap_err();
        assert!(e.to_string().contains(says), "{file}: {e}");
    }
    // The keys of the DoRA apart from its scales are OneTrainer's own.
    let s = read_listed("flux_dora_onetrainer", &base, |n| !n.ends_with(".dora_scale"))
        .unwrap()
        .summary;
    assert_eq!((s.dialect.as_str(), s.unmatched, s.matched), ("OneTrainer", 0, 1518), "{s}");
    assert_eq!(s.targets.len(), 3);
    // A control LoRA without its norms and biases still widens img_in.
    let e = read_listed("flux_control_lora", &base, |n| n.ends_with(".weight"))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("widens img_in") && e.contains("found 128 inputs, expected 64 inputs"),
        "{e}"
    );
}

// ---- one adapter in everyone's words ----

/// What one part of a weight gets: A, B and alpha; `rows` of it from `first`.
struct Piece {
    first: usize,
    rows: usize,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    alpha: f32,
}

type Truth = BTreeMap<(Component, String), Vec<Piece>>;

/// Where the parts of a weight begin, and what diffusers calls them.
fn parts(weight: &str, (rows, cols): (usize, usize)) -> Vec<(usize, usize, String)> {
    let layer = weight.strip_suffix(".weight").unwrap();
    let n = layer.split('.').nth(1).unwrap_or_default();
    let (double, single) =
        (format!("transformer_blocks.{n}"), format!("single_transformer_blocks.{n}"));
    let kind = layer.replacen(&format!(".{n}."), ".", 1);
    let thirds = |names: [&str; 3]| {
        names
            .iter()
            .enumerate()
            .map(|(i, p)| (rows / 3 * i, rows / 3, format!("{double}.attn.{p}")))
            .collect()
    };
    let all = |name: String| vec![(0, rows, name)];
    let embedder = |which: &str| {
        all(format!(
            "time_text_embed.{which}_embedder.linear_{}",
            if layer.contains(".in_") { 1 } else { 2 }
        ))
    };
    match kind.as_str() {
        "img_in" => all("x_embedder".into()),
        "txt_in" => all("context_embedder".into()),
        k if k.starts_with("time_in.") || layer.starts_with("time_in.") => embedder("timestep"),
        _ if layer.starts_with("vector_in.") => embedder("text"),
        _ if layer.starts_with("guidance_in.") => embedder("guidance"),
        "double_blocks.img_attn.qkv" => thirds(["to_q", "to_k", "to_v"]),
        "double_blocks.txt_attn.qkv" => thirds(["add_q_proj", "add_k_proj", "add_v_proj"]),
        "double_blocks.img_attn.proj" => all(format!("{double}.attn.to_out.0")),
        "double_blocks.txt_attn.proj" => all(format!("{double}.attn.to_add_out")),
        "double_blocks.img_mlp.0" => all(format!("{double}.ff.net.0.proj")),
        "double_blocks.img_mlp.2" => all(format!("{double}.ff.net.2")),
        "double_blocks.txt_mlp.0" => all(format!("{double}.ff_context.net.0.proj")),
        "double_blocks.txt_mlp.2" => all(format!("{double}.ff_context.net.2")),
        "double_blocks.img_mod.lin" => all(format!("{double}.norm1.linear")),
        "double_blocks.txt_mod.lin" => all(format!("{double}.norm1_context.linear")),
        "single_blocks.linear1" => ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
            .iter()
            .enumerate()
            .map(|(i, p)| {
                (cols * i, if i == 3 { rows - 3 * cols } else { cols }, format!("{single}.{p}"))
            })
            .collect(),
        "single_blocks.linear2" => all(format!("{single}.proj_out")),
        "single_blocks.modulation.lin" => all(format!("{single}.norm.linear")),
        _ if layer == "final_layer.linear" => all("proj_out".into()),
        _ if layer.starts_with("final_layer.adaLN") => all("norm_out.linear".into()),
        other => panic!("{other}"),
    }
}

fn is_linear(component: Component, weight: &str) -> bool {
    component == TRANSFORMER
        || !(weight.contains("embedding") || weight.contains("shared") || weight.contains("bias"))
}

/// Adapters for every layer. `shared`: the parts of a fused weight have one A, as when a fused LoRA was split.
fn truth(base: &Shapes, shared: bool) -> Truth {
    let mut numbers = Numbers(if shared { 1 } else { 2 });
    let mut out = Truth::new();
    for ((c, w), shape) in base.iter().filter(|((c, w), _)| is_linear(*c, w)) {
        let parts =
            if *c == TRANSFORMER { parts(w, *shape) } else { vec![(0, shape.0, String::new())] };
        let one = numbers.many(2 * shape.1);
        let pieces = parts.into_iter().map(|(first, rows, _)| {
            let a = if shared { one.clone() } else { numbers.many(2 * shape.1) };
            Piece { first, rows, rank: 2, a, b: numbers.many(2 * rows), alpha: 1.0 }
        });
        out.insert((*c, w.clone()), pieces.collect());
    }
    out
}

/// One pair for the pieces: one A where it is shared, else all stacked.
fn fuse(pieces: &[Piece], rows: usize) -> Piece {
    if pieces.iter().all(|p| p.a == pieces[0].a) {
        let b = pieces.iter().flat_map(|p| p.b.clone()).collect();
        return Piece {
            first: 0,
            rows,
            rank: pieces[0].rank,
            a: pieces[0].a.clone(),
            b,
            alpha: pieces[0].alpha,
        };
    }
    let rank: usize = pieces.iter().map(|p| p.rank).sum();
    let mut b = vec![0.0; rows * rank];
    let mut at = 0;
    for p in pieces {
        for (i, v) in p.b.iter().enumerate() {
            b[(p.first + i / p.rank) * rank + at + i % p.rank] = *v;
        }
        at += p.rank;
    }
    let a = pieces.iter().flat_map(|p| p.a.clone()).collect();
    Piece { first: 0, rows, rank, a, b, alpha: pieces[0].alpha * pieces.len() as f32 }
}

/// How a trainer writes.
struct Dialect {
    name: &'static str,
    /// Prefixes of the transformer, CLIP and T5.
    prefixes: [&'static str; 3],
    underscores: bool,
    diffusers: bool,
    suffixes: [&'static str; 2],
    /// None: B is scaled instead.
    alpha: Option<&'static str>,
    dtype: DType,
}

const KOHYA: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];
const PEFT: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];

#[rustfmt::skip]
const DIALECTS: [Dialect; 12] = [
    Dialect { name: "Kohya sd-scripts", prefixes: ["lora_unet_", "lora_te1_", "lora_te3_"], underscores: true, diffusers: false, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "Kohya sd-scripts", prefixes: ["lora_unet_", "lora_te_", "lora_te3_"], underscores: true, diffusers: true, suffixes: ["_.lora_down.weight", "_.lora_up.weight"], alpha: Some("_.alpha"), dtype: DType::BF16 },
    Dialect { name: "OneTrainer", prefixes: ["lora_transformer_", "lora_te1_", "lora_te2_"], underscores: true, diffusers: true, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F16 },
    Dialect { name: "LyCORIS (SimpleTuner)", prefixes: ["lycoris_", "lora_te1_", "lora_te3_"], underscores: true, diffusers: true, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "PEFT (ai-toolkit)", prefixes: ["diffusion_model.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: false, suffixes: PEFT, alpha: None, dtype: DType::BF16 },
    Dialect { name: "ComfyUI", prefixes: ["model.diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."], underscores: false, diffusers: false, suffixes: KOHYA, alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: PEFT, alpha: None, dtype: DType::F32 },
    Dialect { name: "PEFT", prefixes: ["base_model.model.", "base_model.model.", "base_model.model."], underscores: false, diffusers: true, suffixes: [".lora_A.default.weight", ".lora_B.default.weight"], alpha: None, dtype: DType::F32 },
    Dialect { name: "PEFT", prefixes: ["base_model.model.", "base_model.model.", "base_model.model."], underscores: false, diffusers: false, suffixes: [".lora_A", ".lora_B"], alpha: None, dtype: DType::F16 },
    Dialect { name: "no prefix", prefixes: ["", "", ""], underscores: false, diffusers: true, suffixes: [".lora.down.weight", ".lora.up.weight"], alpha: Some(".lora.alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: ["_lora.down.weight", "_lora.up.weight"], alpha: Some(".alpha"), dtype: DType::F32 },
    Dialect { name: "diffusers", prefixes: ["transformer.", "text_encoder.", "text_encoder_2."], underscores: false, diffusers: true, suffixes: [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"], alpha: Some(".alpha"), dtype: DType::F32 },
];

fn write(truth: &Truth, base: &Shapes, d: &Dialect) -> Lora {
    let mut lora = Lora::default();
    for ((c, w), pieces) in truth {
        let shape = base[&(*c, w.clone())];
        let layer = w.strip_suffix(".weight").unwrap();
        let mut put = |layer: &str, p: &Piece, swap: bool| {
            let prefix = d.prefixes[[TRANSFORMER, CLIP, T5].iter().position(|x| x == c).unwrap()];
            let name = prefix.to_string()
                + &if d.underscores { layer.replace('.', "_") } else { layer.to_string() };
            let mut b = p.b.clone();
            if swap {
                b.rotate_left(p.b.len() / 2);
            }
            if d.alpha.is_none() {
                b.iter_mut().for_each(|v| *v *= p.alpha / p.rank as f32);
            }
            lora.push(&format!("{name}{}", d.suffixes[0]), d.dtype, &[p.rank, shape.1], &p.a);
            lora.push(&format!("{name}{}", d.suffixes[1]), d.dtype, &[p.rows, p.rank], &b);
            if let Some(alpha) = d.alpha {
                lora.push(&format!("{name}{alpha}"), d.dtype, &[], &[p.alpha]);
            }
        };
        if *c == TRANSFORMER && d.diffusers {
            let names = parts(w, shape);
            assert_eq!(names.len(), pieces.len());
            for (p, (_, _, name)) in pieces.iter().zip(names) {
                put(&name, p, name == "norm_out.linear");
            }
        } else {
            put(layer, &fuse(pieces, shape.0), false);
        }
    }
    lora
}

fn expected(pieces: &[Piece], (rows, cols): (usize, usize)) -> Vec<f64> {
    let mut out = vec![0.0; rows * cols];
    for p in pieces {
        let delta = product(&p.b, &p.a, p.rank, cols, f64::from(p.alpha) / p.rank as f64);
        out[p.first * cols..][..delta.len()].copy_from_slice(&delta);
    }
    out
}

#[test]
fn one_adapter_is_the_same_pairs_in_everyones_words() {
    let base = small();
    for shared in [true, false] {
        let truth = truth(&base, shared);
        let mut first: Option<Vec<(Vec<f32>, Vec<f32>)>> = None;
        for d in &DIALECTS {
            let lora = write(&truth, &base, d);
            let adapter = lora.read(&base).unwrap_or_else(|e| panic!("{}: {e}", d.name));
            let s = &adapter.summary;
            assert_eq!(
                (s.dialect.as_str(), s.unmatched, s.matched),
                (d.name, 0, lora.tensors.len()),
                "{s}"
            );
            assert_eq!(adapter.weights().count(), truth.len());
            let mut pairs = vec![];
            for ((c, w), pieces) in &truth {
                let shape = base[&(*c, w.clone())];
                let combined = whole(&[(&adapter, 1.0)], *c, w, &base, DType::F32).unwrap();
                assert_eq!(
                    (combined.a.cols, combined.b.rows, combined.b.cols),
                    (shape.1, shape.0, combined.rank())
                );
                assert_eq!(delta(&combined), expected(pieces, shape), "{}: {w}", d.name);
                let bf16 = whole(&[(&adapter, 1.0)], *c, w, &base, DType::BF16).unwrap();
                assert_eq!(delta(&bf16), delta(&combined), "these values are exact in bf16: {w}");
                pairs.push((values(&combined.a), values(&combined.b)));
            }
            match &first {
                // Scales are folded into B, so even the matrices are equal.
                Some(first) => assert!(*first == pairs, "{} ({shared})", d.name),
                None => first = Some(pairs),
            }
        }
    }
}

#[test]
fn xlabs_numbers_are_image_and_text() {
    let base = small();
    let truth = truth(&base, true);
    let mut lora = Lora::default();
    let names = [
        ("double_blocks.1.processor.qkv_lora1", "double_blocks.1.img_attn.qkv.weight"),
        ("double_blocks.1.processor.qkv_lora2", "double_blocks.1.txt_attn.qkv.weight"),
        ("double_blocks.1.processor.proj_lora1", "double_blocks.1.img_attn.proj.weight"),
        (
            "diffusion_model.double_blocks.1.processor.proj_lora2",
            "double_blocks.1.txt_attn.proj.weight",
        ),
        ("single_blocks.0.processor.proj_lora", "single_blocks.0.linear2.weight"),
        ("single_blocks.0.processor.qkv_lora", "single_blocks.0.linear1.weight"),
    ];
    for (name, weight) in names {
        let shape = base[&(TRANSFORMER, weight.to_string())];
        let mut p = fuse(&truth[&(TRANSFORMER, weight.to_string())], shape.0);
        if name.contains("single_blocks.0.processor.qkv") {
            p.rows = 3 * shape.1;
            p.b.truncate(p.rows * p.rank);
        }
        lora.push(&format!("{name}.down.weight"), DType::F32, &[p.rank, shape.1], &p.a);
        lora.push(&format!("{name}.up.weight"), DType::F32, &[p.rows, p.rank], &p.b);
    }
    let adapter = lora.read(&base).unwrap();
    assert_eq!((adapter.summary.dialect.as_str(), adapter.summary.unmatched), ("XLabs", 0));
    for (_, weight) in names {
        let shape = base[&(TRANSFORMER, weight.to_string())];
        // No alpha: a factor of 1, where the truth has 1/2.
        let mut want: Vec<f64> = expected(&truth[&(TRANSFORMER, weight.to_string())], shape)
            .iter()
            .map(|v| v * 2.0)
            .collect();
        if weight.contains("linear1") {
            want[3 * shape.1 * shape.1..].fill(0.0);
        }
        let combined = whole(&[(&adapter, 1.0)], TRANSFORMER, weight, &base, DType::F32).unwrap();
        assert_eq!(delta(&combined), want, "{weight}");
    }
}

// ---- rows, scales, several ----

const PROJ: &str = "diffusion_model.double_blocks.0.img_attn.proj";
const PROJ_WEIGHT: &str = "double_blocks.0.img_attn.proj.weight";
const LINEAR1: &str = "single_blocks.0.linear1.weight";

#[test]
fn any_rows_of_a_weight_can_be_asked_for() {
    let base = small();
    let (rows, cols) = base[&(TRANSFORMER, LINEAR1.to_string())];
    for shared in [true, false] {
        let truth = truth(&base, shared);
        for d in [&DIALECTS[0], &DIALECTS[6]] {
            let adapter = write(&truth, &base, d).read(&base).unwrap();
            let all =
                delta(&whole(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, &base, DType::F32).unwrap());
            for range in [0..rows, 0..3 * cols, 3 * cols..rows, 5..17, 11..12, rows - 1..rows] {
                let part =
                    combine(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, range.clone(), DType::F32)
                        .unwrap()
                        .unwrap();
                assert_eq!(delta(&part), all[range.start * cols..range.end * cols], "{range:?}");
                let b = values(&part.b);
                for (i, v) in b.iter().enumerate() {
                    let (row, rank) = (i / part.rank(), i % part.rank());
                    let inside = part.blocks.iter().any(|s| {
                        (s.row..s.row + s.rows).contains(&row)
                            && (s.rank_first..s.rank_first + s.rank).contains(&rank)
                    });
                    assert!(
                        inside || *v == 0.0,
                        "element {i} of {range:?} is outside of the blocks"
                    );
                }
            }
            // The final layer's halves change places in diffusers' names.
            let weight = "final_layer.adaLN_modulation.1.weight";
            let n = base[&(TRANSFORMER, weight.to_string())].0;
            let all =
                delta(&whole(&[(&adapter, 1.0)], TRANSFORMER, weight, &base, DType::F32).unwrap());
            let part =
                combine(&[(&adapter, 1.0)], TRANSFORMER, weight, n / 2 - 2..n / 2 + 3, DType::F32)
                    .unwrap()
                    .unwrap();
            assert_eq!(delta(&part), all[(n / 2 - 2) * cols..(n / 2 + 3) * cols]);
            assert_eq!(part.rank(), 2);
        }
        let adapter = write(&truth, &base, &DIALECTS[6]).read(&base).unwrap();
        let q = combine(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, 0..cols, DType::F32)
            .unwrap()
            .unwrap();
        assert_eq!(q.rank(), 2, "rows of q alone need q's ranks alone");
        let fused = whole(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, &base, DType::F32).unwrap();
        assert_eq!(fused.rank(), if shared { 2 } else { 8 }, "one A is one run of ranks");
    }
}

#[test]
fn several_loras_are_one_pair() {
    let base = small();
    let adapters: Vec<Adapter> = [(true, 0), (false, 6), (true, 5)]
        .iter()
        .map(|(shared, d)| write(&truth(&base, *shared), &base, &DIALECTS[*d]).read(&base).unwrap())
        .collect();
    let loras =
        [(&adapters[0], 0.5), (&adapters[1], -2.0), (&adapters[2], 0.0), (&adapters[0], 1.0)];
    for (c, w) in adapters[0].weights() {
        let shape = base[&(c, w.to_string())];
        let mut want = vec![0.0; shape.0 * shape.1];
        for (shared, weight) in [(true, 0.5), (false, -2.0), (true, 1.0)] {
            let truth = truth(&base, shared);
            let one = expected(&truth[&(c, w.to_string())], shape);
            want.iter_mut().zip(one).for_each(|(sum, v)| *sum += weight * v);
        }
        let combined = whole(&loras, c, w, &base, DType::F32).unwrap();
        assert_eq!(delta(&combined), want, "{w}");
    }
    assert!(
        whole(&loras[2..3], TRANSFORMER, LINEAR1, &base, DType::F32).is_none(),
        "weight 0 takes no part"
    );
    assert!(whole(&[], TRANSFORMER, LINEAR1, &base, DType::F32).is_none());
    assert!(combine(&loras, TRANSFORMER, "nothing.weight", 0..4, DType::F32).unwrap().is_none());
    let e =
        combine(&[(&adapters[0], f32::NAN)], TRANSFORMER, LINEAR1, 0..4, DType::F32).unwrap_err();
    assert_eq!(e.kind(), Kind::Argument);
    assert!(combine(&loras, TRANSFORMER, LINEAR1, 0..4, DType::F16).is_err());
    let e = combine(
        &[(&adapters[0], f32::MAX), (&adapters[0], f32::MAX)],
        TRANSFORMER,
        LINEAR1,
        0..4,
        DType::F32,
    );
    assert!(e.is_ok(), "half of the largest number is a number");
}

fn proj(base: &Shapes) -> (usize, usize) {
    base[&(TRANSFORMER, PROJ_WEIGHT.to_string())]
}

fn plain(base: &Shapes) -> Lora {
    Lora::default().pair(
        &format!("{PROJ}.lora_A.weight"),
        &format!("{PROJ}.lora_B.weight"),
        4,
        proj(base),
    )
}

fn factor(lora: &Lora, base: &Shapes) -> f64 {
    let adapter = lora.read(base).unwrap();
    assert_eq!((adapter.pairs().len(), adapter.summary.unmatched), (1, 0), "{}", adapter.summary);
    let pair: &Pair = &adapter.pairs()[0];
    pair.factor
}

#[test]
fn alpha_is_read_from_every_place_and_type() {
    let base = small();
    let alpha = format!("{PROJ}.alpha");
    assert_eq!(factor(&plain(&base), &base), 1.0);
    for (dtype, bytes) in [
        ("F32", 8f32.to_le_bytes().to_vec()),
        ("F64", 8f64.to_le_bytes().to_vec()),
        ("I64", 8i64.to_le_bytes().to_vec()),
        ("I32", 8i32.to_le_bytes().to_vec()),
        ("U8", vec![8]),
        ("BF16", vec![0x00, 0x41]),
        ("F16", vec![0x00, 0x48]),
    ] {
        for shape in [&[][..], &[1]] {
            assert_eq!(
                factor(&plain(&base).raw(&alpha, dtype, shape, &bytes), &base),
                2.0,
                "{dtype}"
            );
        }
    }
    assert_eq!(factor(&plain(&base).with(&alpha, &[], &[-6.0]), &base), -1.5);
    let idle = plain(&base).with(&alpha, &[], &[0.0]).read(&base).unwrap();
    assert_eq!(idle.pairs()[0].factor, 0.0);
    assert!(
        idle.summary.notes[0].contains("1 of 1 pairs have alpha 0"),
        "{:?}",
        idle.summary.notes
    );
    assert!(whole(&[(&idle, 1.0)], TRANSFORMER, PROJ_WEIGHT, &base, DType::F32).is_none());

    // PEFT's configuration in the header, as diffusers saves it.
    let config = |json: &str| plain(&base).meta("lora_adapter_metadata", json);
    assert_eq!(factor(&config(r#"{"transformer.r": 4, "transformer.lora_alpha": 2}"#), &base), 0.5);
    assert_eq!(factor(&config(r#"{"lora_alpha": 2, "use_rslora": true}"#), &base), 1.0);
    let own = r#"{"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"img_attn.proj": 12, "qkv": 5}}"#;
    assert_eq!(factor(&config(own), &base), 3.0);
    assert_eq!(factor(&config(r#"{"text_encoder.lora_alpha": 2}"#), &base), 1.0);
    assert_eq!(factor(&config("not json"), &base), 1.0);
    let both = config(r#"{"lora_alpha": 2}"#).with(&alpha, &[], &[4.0]);
    assert_eq!(factor(&both, &base), 1.0, "the tensor goes before the header");
}

// ---- faults ----

#[test]
fn f15_a_lora_of_another_model_is_named_in_one_line() {
    let base = small();
    let kohya = |layer: &str, cols| {
        Lora::default().pair(
            &format!("{layer}.lora_down.weight"),
            &format!("{layer}.lora_up.weight"),
            4,
            (8, cols),
        )
    };
    let xl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
    let cases = [
        (kohya(xl, 768), "Stable Diffusion 1.x"),
        (kohya(xl, 1024), "Stable Diffusion 2.x"),
        (kohya(xl, 2048), "Stable Diffusion XL"),
        (kohya("unet.up_blocks.1.attentions.0.proj_in", 8), "Stable Diffusion (1.x, 2.x or XL)"),
        (kohya("lora_te2_text_model_encoder_layers_3_mlp_fc1", 8), "Stable Diffusion XL or 3"),
        (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 8), "Stable Diffusion 3"),
        (kohya("diffusion_model.blocks.0.cross_attn.k", 8), "Wan"),
        (kohya("lora_unet_blocks_0_cross_attn_k", 8), "Wan"),
        (kohya("transformer.transformer_blocks.0.img_mod.1", 8), "Qwen-Image"),
        (kohya("diffusion_model.double_blocks.0.img_mlp.fc1", 8), "HunyuanVideo"),
        (kohya("diffusion_model.distilled_guidance_layer.in_proj", 8), "Chroma"),
        (kohya("transformer.double_stream_modulation_img.linear", 8), "FLUX.2"),
        (kohya("transformer.transformer_blocks.0.attn2.to_k", 8), "a model with cross-attention"),
        (kohya("base_model.model.model.layers.0.self_attn.q_proj", 8), "a language model"),
    ];
    for (lora, model) in cases {
        let e = lora.error(&base);
        assert!(
            e.contains("made for another model") && e.contains(&format!("found keys of {model}")),
            "{model}: {e}"
        );
    }
    // Even where many keys are FLUX.1's too.
    let (r, c) = proj(&base);
    let qwen = (0..60).fold(Lora::default(), |l, i| {
        let name = format!("transformer.transformer_blocks.{i}.attn.to_out.0");
        l.pair(&format!("{name}.lora_A.weight"), &format!("{name}.lora_B.weight"), 2, (r, c))
    });
    let e = qwen.error(&base);
    assert!(
        e.contains("it has more blocks than this one: found block")
            && e.contains("expected blocks 0 to 1"),
        "{e}"
    );
    assert!(e.contains("Qwen-Image"), "{e}");
    let wide = write(&truth(&dev_wide(), true), &dev_wide(), &DIALECTS[4]).error(&base);
    assert!(
        wide.contains("its layers have other sizes") && wide.contains("pairs do not fit"),
        "{wide}"
    );
    // CLIP-L is Stable Diffusion's too: the header decides.
    let name = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    let (rows, cols) = base[&(CLIP, "text_model.encoder.layers.0.mlp.fc1.weight".to_string())];
    let clip_only = Lora::default().pair(
        &format!("{name}.lora_down.weight"),
        &format!("{name}.lora_up.weight"),
        1,
        (rows, cols),
    );
    assert_eq!(clip_only.read(&base).unwrap().summary.dialect, "text encoders only");
    let e = clip_only.clone().meta("ss_base_model_version", "sd_v1").error(&base);
    assert!(e.contains("found keys of sd_v1"), "{e}");
}

/// `small` with every layer twice as wide.
fn dev_wide() -> Shapes {
    small().into_iter().map(|(k, (r, c))| (k, (2 * r, 2 * c))).collect()
}

#[test]
fn f15_no_matching_key_is_an_error() {
    let base = small();
    let e = Lora::default().pair("foo.lora_A.weight", "foo.lora_B.weight", 2, (4, 4)).error(&base);
    assert!(
        e.contains(
            "no key of this file is a LoRA of FLUX.1: found 2 keys, such as foo.lora_A.weight, foo.lora_B.weight"
        ),
        "{e}"
    );
    assert!(Lora::default().error(&base).contains("found no tensors at all"));
    let e = Lora::default()
        .pair("foo.lora_A.weight", "foo.lora_B.weight", 2, (4, 4))
        .meta("ss_base_model_version", "zeta")
        .error(&base);
    assert!(e.contains("it says that it was trained on zeta"), "{e}");
    // Known names, but not of this model.
    let guidance = Lora::default().pair(
        "transformer.time_text_embed.guidance_embedder.linear_1.lora_A.weight",
        "transformer.time_text_embed.guidance_embedder.linear_1.lora_B.weight",
        2,
        (4, 4),
    );
    let schnell: Shapes = base
        .iter()
        .filter(|((_, n), _)| !n.starts_with("guidance_in"))
        .map(|(k, v)| (k.clone(), *v))
        .collect();
    let e = guidance.error(&schnell);
    assert!(
        e.contains("nothing of this LoRA has a place in this model")
            && e.contains("this model has no guidance_in.in_layer.weight"),
        "{e}"
    );
    // A model in the place of a LoRA.
    let model = dev()
        .iter()
        .filter(|((c, _), _)| *c == TRANSFORMER)
        .fold(Lora::default(), |l, ((_, n), _)| l.with(n, &[1, 1], &[0.0]));
    let e = model.error(&base);
    assert!(
        e.contains("this is a model, not a LoRA: found FLUX transformer") && e.contains("--model"),
        "{e}"
    );
}

#[test]
fn f15_unmatched_keys_are_counted_and_ten_are_named() {
    let base = small();
    let mut lora = plain(&base).with("lora_te1_text_projection.alpha", &[], &[1.0]).with(
        &format!("{PROJ}x.alpha"),
        &[],
        &[1.0],
    );
    for i in 0..20 {
        lora = lora.with(&format!("bundle_emb.thing.{i}"), &[2], &[1.0, 2.0]);
    }
    // A text encoder that this model has not, and alphas of nothing.
    lora = lora.with("lora_unet_img_in.alpha", &[], &[1.0]);
    let adapter = lora.read(&base).unwrap();
    let s = &adapter.summary;
    assert_eq!((s.matched, s.unmatched, s.first_unmatched.len()), (2, 23, 10));
    let text = s.to_string();
    assert!(text.contains("2 matched, 23 unmatched") && text.contains("and 13 more"), "{text}");
    assert!(text.contains("lora_te1_text_projection.alpha: names no layer"), "{text}");
    let flux_only: Shapes =
        base.iter().filter(|((c, _), _)| *c == TRANSFORMER).map(|(k, v)| (k.clone(), *v)).collect();
    let t5 = plain(&base).pair(
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
        2,
        (64, 64),
    );
    let s = t5.read(&flux_only).unwrap().summary;
    assert_eq!((s.matched, s.unmatched), (2, 2));
    assert_eq!(s.first_unmatched[0].why, "there is no T5 text encoder here");
}

#[test]
fn f15_wrong_rank_shape_or_type_is_found() {
    let base = small();
    let (rows, cols) = proj(&base);
    let (down, up) = (format!("{PROJ}.lora_A.weight"), format!("{PROJ}.lora_B.weight"));
    let of = |a: [usize; 2], b: [usize; 2]| {
        Lora::default().with(&down, &a, &vec![1.0; a[0] * a[1]]).with(
            &up,
            &b,
            &vec![1.0; b[0] * b[1]],
        )
    };
    let e = of([4, cols], [rows, 3]).error(&base);
    assert!(
        e.contains(&format!(
            "{PROJ}: the two matrices of a LoRA differ in rank: found down (A) [4, 12], up (B) [12, 3]"
        )),
        "{e}"
    );
    let e = of([0, cols], [rows, 0]).error(&base);
    assert!(e.contains("a LoRA has rank 0"), "{e}");
    let fits = of([4, cols], [rows, 4]);
    let extra = |l: Lora| {
        let (r, c) = base[&(TRANSFORMER, "img_in.weight".to_string())];
        let l = l.pair(
            "diffusion_model.img_in.lora_A.weight",
            "diffusion_model.img_in.lora_B.weight",
            2,
            (r, c),
        );
        let (r, c) = base[&(TRANSFORMER, "txt_in.weight".to_string())];
        l.pair(
            "diffusion_model.txt_in.lora_A.weight",
            "diffusion_model.txt_in.lora_B.weight",
            2,
            (r, c),
        )
    };
    extra(fits).read(&base).unwrap();
    let e = extra(of([4, cols], [rows + 1, 4])).error(&base);
    assert!(e.contains("a LoRA does not fit its layer: found a change of 13 x 12, expected 12 x 12 for double_blocks.0.img_attn.proj.weight"), "{e}");
    let e = extra(of([4, cols + 1], [rows, 4])).error(&base);
    assert!(e.contains("found a change of 12 x 13"), "{e}");
    let e = Lora::default().with(&down, &[4, cols], &vec![1.0; 4 * cols]).error(&base);
    assert!(
        e.contains(&format!("{down}: a LoRA matrix has no partner: its up (B) matrix is missing")),
        "{e}"
    );
    let e = Lora::default().with(&up, &[rows, 4], &vec![1.0; 4 * rows]).error(&base);
    assert!(e.contains("its down (A) matrix is missing"), "{e}");
    let e = Lora::default()
        .with(&down, &[4 * cols], &vec![1.0; 4 * cols])
        .with(&up, &[rows, 4], &vec![1.0; 4 * rows])
        .error(&base);
    assert!(e.contains("has not two axes: found [48]"), "{e}");
    let e = Lora::default()
        .raw(&down, "F64", &[4, cols], &vec![0; 32 * cols])
        .with(&up, &[rows, 4], &vec![1.0; 4 * rows])
        .error(&base);
    assert!(
        e.contains("element type that cannot be read: found F64, expected F32, F16 or BF16"),
        "{e}"
    );
    // 1 x 1 convolutions are matrices.
    let conv = Lora::default().with(&down, &[4, cols, 1, 1], &vec![1.0; 4 * cols]).with(
        &up,
        &[rows, 4, 1, 1],
        &vec![1.0; 4 * rows],
    );
    assert_eq!(factor(&conv, &base), 1.0);
    // A part of a fused weight has its own rows.
    let q = "transformer.transformer_blocks.0.attn.to_q";
    let e = extra(Lora::default().pair(
        &format!("{q}.lora_A.weight"),
        &format!("{q}.lora_B.weight"),
        2,
        (36, 12),
    ))
    .error(&base);
    assert!(
        e.contains(
            "found a change of 36 x 12, expected 12 x 12 for double_blocks.0.img_attn.qkv.weight"
        ),
        "{e}"
    );
}

#[test]
fn f15_values_that_are_not_finite_are_found() {
    let base = small();
    let (rows, cols) = proj(&base);
    let alpha = format!("{PROJ}.alpha");
    for bad in [f32::NAN, f32::INFINITY] {
        let e = plain(&base).with(&alpha, &[], &[bad]).error(&base);
        assert!(e.contains("alpha is not a finite number"), "{e}");
    }
    let e = plain(&base).with(&alpha, &[2], &[1.0, 1.0]).error(&base);
    assert!(e.contains("alpha is not one number: found F32 [2]"), "{e}");
    let e = plain(&base).raw(&alpha, "BOOL", &[], &[1]).error(&base);
    assert!(e.contains("alpha is not one number: found BOOL []"), "{e}");
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E5M2, DType::F8E4M3] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            if bad.is_infinite() && dtype.size() == 1 {
                continue; // they saturate
            }
            for at in [0, 17, 4 * rows - 1] {
                let mut b = vec![-1.0; 4 * rows];
                b[at] = bad;
                let mut lora = Lora::default();
                lora.push(
                    &format!("{PROJ}.lora_A.weight"),
                    dtype,
                    &[4, cols],
                    &vec![1.0; 4 * cols],
                );
                lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, 4], &b);
                let e = lora.error(&base);
                let place = format!(
                    "{PROJ}, up (B): a LoRA holds values that are no finite numbers: found {bad} in row {}, column {}",
                    at / 4,
                    at % 4
                );
                assert!(e.contains(&place), "{e}");
            }
        }
        let mut lora = Lora::default();
        let largest = [65504.0f32, -65504.0, 1e-30, 0.0].repeat(rows);
        lora.push(&format!("{PROJ}.lora_A.weight"), dtype, &[4, cols], &vec![1.0; 4 * cols]);
        lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, 4], &largest);
        lora.read(&base).unwrap();
    }
    // Far into a large matrix.
    let rank = 3000;
    let mut a = vec![1.0; rank * cols];
    a[2999 * cols + 5] = f32::NAN;
    for dtype in [DType::F32, DType::F16, DType::F8E4M3] {
        let mut lora = Lora::default();
        lora.push(&format!("{PROJ}.lora_A.weight"), dtype, &[rank, cols], &a);
        lora.push(&format!("{PROJ}.lora_B.weight"), dtype, &[rows, rank], &vec![1.0; rows * rank]);
        assert!(
            lora.error(&base).contains("found NaN in row 2999, column 5"),
            "{}",
            lora.error(&base)
        );
    }
    // Several.
    let mut lora = write(&truth(&base, true), &base, &DIALECTS[0]);
    for name in [
        "lora_unet_single_blocks_1_linear1.lora_up.weight",
        "lora_unet_single_blocks_0_linear2.lora_down.weight",
    ] {
        let bytes = lora.bytes_of(name);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let e = lora.error(&base);
    assert!(
        e.contains("lora_unet_single_blocks_0_linear2, down (A)")
            && e.contains("and more in 1 other matrices"),
        "{e}"
    );
    // Finite, but not once it is multiplied.
    let mut lora = plain(&base).with(&alpha, &[], &[4.0]);
    lora.bytes_of(&format!("{PROJ}.lora_B.weight"))[..4].copy_from_slice(&f32::MAX.to_le_bytes());
    let adapter = lora.read(&base).unwrap();
    let e: Error =
        combine(&[(&adapter, 2.0)], TRANSFORMER, PROJ_WEIGHT, 0..rows, DType::F32).unwrap_err();
    assert!(e.to_string().contains("exceeds what numbers can hold"), "{e}");
    let e = combine(&[(&adapter, 1.001)], TRANSFORMER, PROJ_WEIGHT, 0..rows, DType::BF16);
    assert!(e.is_err());
}

#[test]
fn other_kinds_of_adapter_are_refused_by_name() {
    let base = small();
    let one = |key: &str| plain(&base).with(key, &[1], &[1.0]);
    let cases = [
        (format!("{PROJ}.dora_scale"), "this is a DoRA"),
        (format!("{PROJ}.lora_magnitude_vector.default.weight"), "this is a DoRA"),
        (format!("{PROJ}.lokr_w1_a"), "this is a LoKr"),
        (format!("{PROJ}.lokr_t2"), "this is a LoKr"),
        (format!("{PROJ}.hada_w1_a"), "this is a LoHa"),
        (format!("{PROJ}.oft_blocks"), "this is an OFT"),
        (format!("{PROJ}.lora_mid.weight"), "this is a LoCon with a middle matrix"),
        (format!("{PROJ}.diff"), "this is a LoRA with whole differences of weights (.diff)"),
        (format!("{PROJ}.diff_b"), "this is a LoRA with differences of biases (.diff_b)"),
        (format!("{PROJ}.lora_B.bias"), "this is a LoRA with differences of biases (lora_B.bias)"),
        (
            "diffusion_model.double_blocks.0.img_attn.norm.query_norm.set_weight".into(),
            "this is a BFL control LoRA",
        ),
        (
            "double_blocks.0.img_attn.norm.query_norm.scale".into(),
            "this is a LoRA that replaces whole weights besides",
        ),
        (
            "transformer.norm_out.linear.weight".into(),
            "this is a LoRA that replaces whole weights besides",
        ),
        (
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight".into(),
            "this is an IP-Adapter, not a LoRA",
        ),
        ("controlnet_blocks.0.weight".into(), "this is a ControlNet, not a LoRA"),
    ];
    for (key, says) in cases {
        let e = one(&key).error(&base);
        assert!(e.contains(says) && e.contains(&key), "{key}: {e}");
    }
    let e = Lora::default().with("emb_params", &[2], &[1.0, 1.0]).error(&base);
    assert!(e.contains("textual inversion"), "{e}");
    // What trainers write without having learnt it does nothing, and is no reason to refuse.
    let zeros = plain(&base).with(&format!("{PROJ}.diff_b"), &[2], &[0.0; 2]).with(
        "lora_unet_img_in.diff",
        &[2],
        &[0.0; 2],
    );
    let s = zeros.read(&base).unwrap().summary;
    assert_eq!((s.matched, s.unmatched, s.notes.len()), (2, 0, 2), "{s}");
    // A Fill or control model's img_in.
    let (r, c) = base[&(TRANSFORMER, "img_in.weight".to_string())];
    let e = Lora::default()
        .pair(
            "transformer.x_embedder.lora_A.weight",
            "transformer.x_embedder.lora_B.weight",
            2,
            (r, 2 * c),
        )
        .error(&base);
    assert!(e.contains("this LoRA widens img_in, as BFL's control LoRAs (Canny, Depth) do"), "{e}");
}

#[test]
fn a_layer_named_twice_is_used_once() {
    let base = small();
    let (rows, cols) = proj(&base);
    let kohya = "lora_unet_double_blocks_0_img_attn_proj";
    let peft = "transformer.transformer_blocks.0.attn.to_out.0";
    let lora = Lora::default()
        .pair(
            &format!("{kohya}.lora_down.weight"),
            &format!("{kohya}.lora_up.weight"),
            2,
            (rows, cols),
        )
        .with(&format!("{kohya}.alpha"), &[], &[1.0])
        .pair(&format!("{peft}.lora_A.weight"), &format!("{peft}.lora_B.weight"), 2, (rows, cols));
    let adapter = lora.read(&base).unwrap();
    assert_eq!(
        (adapter.pairs().len(), adapter.summary.matched, adapter.summary.unmatched),
        (1, 2, 3)
    );
    assert_eq!(adapter.pairs()[0].key, peft);
    assert_eq!(adapter.summary.first_unmatched[0].why, format!("{peft} is for the same rows"));
    // q and the whole of q, k, v meet as well; q and k do not.
    let part = |p: &str, rows| {
        Lora::default().pair(
            &format!("transformer.transformer_blocks.0.attn.{p}.lora_A.weight"),
            &format!("transformer.transformer_blocks.0.attn.{p}.lora_B.weight"),
            2,
            (rows, cols),
        )
    };
    let mut both = part("to_q", rows);
    both.tensors.extend(part("to_k", rows).tensors);
    assert_eq!(both.read(&base).unwrap().pairs().len(), 2);
    both.tensors.extend(part("to_qkv", 3 * rows).tensors);
    let s = both.read(&base).unwrap();
    assert_eq!((s.pairs().len(), s.summary.unmatched), (1, 4), "{}", s.summary);
    // Twice in one trainer's words, by two adapters of one file.
    let twice = plain(&base).pair(
        &format!("{PROJ}.lora_A.other.weight"),
        &format!("{PROJ}.lora_B.other.weight"),
        2,
        (rows, cols),
    );
    assert_eq!(twice.read(&base).unwrap().summary.unmatched, 2);
}

// ---- what people see ----

#[test]
fn the_summary_tells_what_a_file_is() {
    let base = small();
    let lora = write(&truth(&base, false), &base, &DIALECTS[0])
        .meta("ss_base_model_version", "flux1")
        .meta("ss_network_dim", "2")
        .meta("ss_output_name", &"long ".repeat(100))
        .meta("ss_tag_frequency", "{}");
    let text = lora.read(&base).unwrap().summary.to_string();
    for line in [
        "LoRA, names of Kohya sd-scripts",
        "rank  2 (",
        "alpha 1 (",
        "flux  ",
        "double_blocks 0-1; single_blocks 0-1; final_layer.adaLN_modulation.1.weight",
        "text_model.encoder.layers 0-1",
        "encoder.block 0-1",
        "0 unmatched",
        "trained on flux1",
        "ss_network_dim: 2",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    assert!(!text.contains("ss_tag_frequency") && text.contains('…'), "{text}");

    // Without a model, and for a file that cannot be used.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    std::fs::write(&path, lora.bytes()).unwrap();
    let s = survey(&path, FAMILIES).unwrap();
    assert!(s.problem.is_none());
    assert_eq!(s.summary, lora.read(&base).unwrap().summary);
    let json = serde_json::to_value(&s.summary).unwrap();
    assert_eq!(json["dialect"], "Kohya sd-scripts");
    let (dora, keys) = listed(dir.path(), "flux_dora_onetrainer", |_| true);
    assert_eq!(keys, 2024);
    let s = survey(&dora, FAMILIES).unwrap();
    assert!(s.problem.unwrap().to_string().contains("this is a DoRA"));
    assert_eq!(
        (s.summary.dialect.as_str(), s.summary.matched, s.summary.targets.len()),
        ("OneTrainer", 1518, 3)
    );
    assert!(survey(&dir.path().join("none"), FAMILIES).is_err());
    std::fs::write(&path, b"GGUF0000").unwrap();
    assert!(survey(&path, FAMILIES).is_err());
}

// ---- strangers' files ----

#[test]
fn random_keys_never_panic() {
    let base = small();
    let mut numbers = Numbers(99);
    let real: Vec<String> = [
        "flux_lora_kohya_with_te1",
        "flux_lora_diffusers",
        "flux_lora_xlabs",
        "flux_control_lora",
        "flux_lokr_bfl",
    ]
    .iter()
    .flat_map(|f| list(&format!("lora-keys/{f}.txt")))
    .map(|(n, _)| n)
    .collect();
    let pick = |numbers: &mut Numbers, n: usize| numbers.next() as usize % n;
    let mut outcomes = BTreeMap::new();
    for _ in 0..3000 {
        let mut lora = Lora::default();
        for _ in 0..pick(&mut numbers, 12) {
            let mut name: Vec<u8> = match pick(&mut numbers, 3) {
                0 => (0..pick(&mut numbers, 40)).map(|_| numbers.next() as u8).collect(),
                _ => real[pick(&mut numbers, real.len())].clone().into_bytes(),
            };
            for _ in 0..pick(&mut numbers, 3) {
                if name.is_empty() {
                    break;
                }
                let at = pick(&mut numbers, name.len());
                match pick(&mut numbers, 4) {
                    0 => name[at] = numbers.next() as u8,
                    1 => name.truncate(at),
                    2 => name.insert(at, b"._09"[pick(&mut numbers, 4)]),
                    _ => drop(name.remove(at)),
                }
            }
            let name = String::from_utf8_lossy(&name).into_owned();
            if name == "__metadata__" || lora.tensors.iter().any(|t| t.0 == name) {
                continue;
            }
            let shape: Vec<usize> = (0..pick(&mut numbers, 4))
                .map(|_| [0, 1, 2, 4, 12, 36][pick(&mut numbers, 6)])
                .collect();
            let (dtype, size) =
                [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("F8_E4M3", 1), ("BOOL", 1)]
                    [pick(&mut numbers, 6)];
            let bytes = (0..shape.iter().product::<usize>() * size)
                .map(|_| numbers.next() as u8)
                .collect::<Vec<_>>();
            lora = lora.raw(&name, dtype, &shape, &bytes);
        }
        if pick(&mut numbers, 4) == 0 {
            lora = lora.meta(
                "lora_adapter_metadata",
                [
                    r#"{"lora_alpha":1e400}"#,
                    r#"{"transformer.alpha_pattern":[]}"#,
                    "[1]",
                    r#"{"lora_alpha":"a"}"#,
                ][pick(&mut numbers, 4)],
            );
        }
        let outcome = match lora.read(&base) {
            Ok(adapter) => {
                for (c, w) in adapter.weights() {
                    let _ = combine(
                        &[(&adapter, 0.7)],
                        c,
                        w,
                        0..base[&(c, w.to_string())].0,
                        DType::BF16,
                    );
                }
                "read"
            }
            Err(e) => {
                assert_eq!(e.kind(), Kind::Model);
                "refused"
            }
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    assert!(outcomes["refused"] > 2000, "{outcomes:?}");
}

#[test]
fn a_cut_file_never_panics() {
    let base = small();
    let bytes = plain(&base).bytes();
    for n in 0..bytes.len() {
        assert!(
            read(Arc::new(bytes[..n].to_vec()), Path::new("cut"), &FLUX1, &|c, w| base
                .get(&(c, w.to_string()))
                .copied())
            .is_err()
        );
    }
}
