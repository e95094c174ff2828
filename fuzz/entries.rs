//! The functions of the library that read untrusted files, and files to start from. Shared by the
//! fuzz targets and by `tests/files/readers.rs`, which calls them in every test run.

use std::path::Path;
use std::sync::Arc;

use flux_fast::library::{Checkpoint, open_source};
use flux_fast::pipeline::images;
use flux_fast::pipeline::tokenizers;
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{FLUX1, TRANSFORMER};
use flux_fast::weights::lora;

/// Larger files make fuzzing slow without reaching more code.
pub const MOST_BYTES: usize = 1 << 20;

/// Opens a model in either container and decodes every small weight.
pub fn model(bytes: &[u8]) {
    if let Ok(checkpoint) = open_source(Arc::new(bytes.to_vec()), "fuzz") {
        FLUX1.components.iter().for_each(|&component| decode(&checkpoint, component));
    }
    let _ = lora::read(Arc::new(bytes.to_vec()), Path::new("fuzz"), &FLUX1, &base);
}

fn decode(checkpoint: &Checkpoint, component: Component) {
    let Some(weights) = checkpoint.get(component) else { return };
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    for name in names {
        let Some((rows, cols)) = weights.shape(&name) else { continue };
        if rows.saturating_mul(cols) <= 1 << 16 {
            let whole = weights.get(&name, 0, rows, cols).map(|w| w.to_f32().len());
            assert!(whole.is_err() || whole.is_ok_and(|n| n == rows * cols), "{name}");
        }
        let _ = weights.get(&name, rows / 2, 1, cols);
    }
}

/// Opens a model after writing the first bytes of GGUF, which mutations would destroy most of the
/// time.
pub fn gguf(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let known = b"GGUF\x03\0\0\0";
    bytes.resize(bytes.len().max(known.len()), 0);
    bytes[..known.len()].copy_from_slice(known);
    model(&bytes);
}

/// Reads a LoRA that is given as text. Each line is a tensor: a name, an optional element type, and
/// the axes. The values are small numbers.
pub fn lora_keys(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if let Some(bytes) = container(&text) {
        let _ = lora::read(Arc::new(bytes), Path::new("fuzz"), &FLUX1, &base);
    }
}

/// Reads `bytes` as an image with settings inside, and as the text of such settings.
pub fn image_settings(bytes: &[u8]) {
    let _ = images::provenance_of(bytes);
    // Large images are slow and reach no more code.
    if images::ImageFile::of(bytes.to_vec()).is_ok_and(|f| f.decode_bytes(16, 16) < 1 << 24) {
        let _ = images::decode(bytes);
    }
    let _ = images::metadata::read(&String::from_utf8_lossy(bytes));
}

/// Reads `bytes` as a `tokenizer.json`.
pub fn tokenizer_json(bytes: &[u8]) {
    let _ = tokenizers::try_json(bytes.to_vec());
}

/// The matrix shapes of a FLUX.1 whose axes are about 64 times smaller.
fn base(component: Component, name: &str) -> Option<(usize, usize)> {
    let shape = match () {
        () if component != TRANSFORMER => (12, 12),
        () if name.ends_with("qkv.weight") => (144, 48),
        () if name.ends_with("mlp.0.weight") => (192, 48),
        () if name.ends_with("mlp.2.weight") => (48, 192),
        () if name.ends_with("mod.lin.weight") => (288, 48),
        () if name.ends_with("linear1.weight") => (336, 48),
        () if name.ends_with("linear2.weight") => (48, 240),
        () if name.ends_with("modulation.lin.weight") => (144, 48),
        () if name.ends_with(".weight") => (48, 48),
        () => return None,
    };
    Some(shape)
}

/// A safetensors file of these tensors: see `lora_keys`. `None` if it would be large.
pub fn container(text: &str) -> Option<Vec<u8>> {
    const SIZES: [(&str, usize); 9] = [
        ("F32", 4),
        ("BF16", 2),
        ("F16", 2),
        ("F8_E4M3", 1),
        ("F8_E8M0", 1),
        ("U8", 1),
        ("I8", 1),
        ("I64", 8),
        ("F64", 8),
    ];
    let mut json = serde_json::Map::new();
    let mut end = 0usize;
    for line in text.lines() {
        let mut words = line.split(' ').peekable();
        let name = words.next()?;
        let (dtype, size) = match words.peek().and_then(|w| SIZES.iter().find(|s| s.0 == *w)) {
            Some(found) => (words.next()?, found.1),
            None => ("BF16", 2),
        };
        let axes: Vec<usize> = words.map(|w| w.parse().ok()).collect::<Option<_>>()?;
        let elements = axes.iter().try_fold(size, |p, &n| p.checked_mul(n))?;
        let start = end;
        end = end.checked_add(elements).filter(|end| *end <= MOST_BYTES)?;
        json.insert(
            name.into(),
            serde_json::json!({ "dtype": dtype, "shape": axes, "data_offsets": [start, end] }),
        );
    }
    let json = serde_json::Value::Object(json).to_string();
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    // 0x3c3c is 0.0115 in BF16, 1.06 in F16, and an ordinary number in the other types.
    bytes.resize(bytes.len() + end, 0x3c);
    Some(bytes)
}

/// Named files to start the target from.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root =
        if root.ends_with("fuzz") { root.parent().expect("a folder around fuzz") } else { root };
    let files = |folder: &str, ending: &str| {
        let mut paths: Vec<_> = std::fs::read_dir(root.join(folder))
            .expect("the folder of seeds")
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == ending))
            .collect();
        paths.sort();
        let name = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        paths
            .into_iter()
            .map(move |p| (name(&p), std::fs::read(&p).expect("a seed")))
            .collect::<Vec<_>>()
    };
    match target {
        "gguf" => files("tests/golden/formats", "gguf"),
        "safetensors" => {
            let made = MODELS
                .iter()
                .map(|(name, text)| (name.to_string(), container(text).expect("a small file")));
            made.collect()
        }
        "lora_keys" => files("tests/data/lora-keys", "txt")
            .into_iter()
            .map(|(n, text)| (n, small(&text)))
            .collect(),
        "image_settings" => {
            let image = flux_fast::Image { width: 4, height: 4, rgb: vec![77; 48] };
            let made = images::Format::ALL.iter().map(|&format| {
                let bytes = images::encode(&image, format, 90, SETTINGS[0].1).expect("an image");
                (format.name().to_string(), bytes)
            });
            let texts =
                SETTINGS.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec()));
            made.chain(texts).collect()
        }
        _ => TOKENIZERS
            .iter()
            .map(|(name, text)| (name.to_string(), text.as_bytes().to_vec()))
            .collect(),
    }
}

/// A real list of LoRA keys, reduced: the first block of each kind, axes 64 times smaller.
fn small(list: &[u8]) -> Vec<u8> {
    let word = |w: &str| match w.parse::<usize>() {
        Ok(n) if n >= 64 => (n / 64).to_string(),
        _ => w.to_string(),
    };
    let line = |line: &str| {
        let mut line = line.to_string();
        while let Some((before, (range, after))) =
            line.split_once('{').and_then(|(b, r)| Some((b, r.split_once('}')?)))
        {
            let first = range.split('-').next().unwrap_or_default();
            line = format!("{before}{first}{after}");
        }
        line.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n"
    };
    String::from_utf8_lossy(list).lines().take(60).map(line).collect::<String>().into_bytes()
}

const MODELS: [(&str, &str); 8] = [
    (
        "all_in_one",
        "model.diffusion_model.img_in.weight 4 2\nmodel.diffusion_model.img_in.bias 4\n\
         model.diffusion_model.double_blocks.0.img_attn.qkv.weight F8_E4M3 12 4\nmodel.diffusion_model.scaled_fp8 F8_E4M3 0\n\
         model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight F32\n\
         text_encoders.t5xxl.transformer.shared.weight 5 4\n\
         text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight 4 4\n\
         text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight F16 4 4\n\
         vae.decoder.mid.block_1.conv1.weight F32 4 4 3 3\nvae.decoder.conv_in.weight F32 4 2 3 3",
    ),
    (
        "diffusers",
        "single_transformer_blocks.0.attn.to_q.weight 4 4\nsingle_transformer_blocks.0.attn.to_k.weight 4 4\n\
         single_transformer_blocks.0.attn.to_v.weight 4 4\nsingle_transformer_blocks.0.proj_mlp.weight 16 4\n\
         norm_out.linear.weight 8 4\nnorm_out.linear.bias 8\ndecoder.mid_block.resnets.0.conv1.weight 4 4 3 3\n\
         decoder.up_blocks.18446744073709551615.resnets.0.conv1.weight 4 4 3 3",
    ),
    (
        "nf4",
        "double_blocks.0.img_attn.qkv.weight U8 96 1\ndouble_blocks.0.img_attn.qkv.weight.absmax F32 3",
    ),
    (
        "aredden",
        "double_blocks.0.img_attn.qkv.weight 1\ndouble_blocks.0.img_attn.qkv.float8_data F8_E4M3 12 4\n\
         double_blocks.0.img_attn.qkv.scale F32\ndouble_blocks.0.img_attn.qkv.scale_reciprocal F32",
    ),
    (
        "int8",
        "double_blocks.0.img_attn.qkv.weight I8 12 4\ndouble_blocks.0.img_attn.qkv.weight_scale F32 12 1",
    ),
    (
        "nvfp4",
        "double_blocks.0.img_attn.qkv.weight U8 16 8\ndouble_blocks.0.img_attn.qkv.weight_scale F8_E4M3 128 4\n\
         double_blocks.0.img_attn.qkv.weight_scale_2 F32",
    ),
    (
        "mxfp8",
        "double_blocks.0.img_attn.qkv.weight F8_E4M3 4 32\ndouble_blocks.0.img_attn.qkv.weight_scale F8_E8M0 128 4",
    ),
    (
        "lora",
        "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight 2 48\n\
         diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight 48 2\ndiffusion_model.double_blocks.0.img_attn.proj.alpha F32",
    ),
];

const SETTINGS: [(&str, &str); 4] = [
    (
        "fields",
        "a fox, \"red\"\nNegative prompt: blur\nSteps: 4, Sampler: Euler a, CFG scale: 7.5, \
         Guidance: 2.5, Seed: 42, Size: 64x64, Skip layers: [7, 8, ], Lora hashes: \"a: 1, b: 2\", \
         Hires upscale: 2, Batch size: 4, Batch pos: 1, RNG: cuda, Version: v1.10",
    ),
    (
        "graph",
        r#"{"1":{"class_type":"KSampler","inputs":{"seed":["4",0],"steps":4,"cfg":2,"positive":["2",0],
        "negative":["2",0],"latent_image":["3",0],"model":["5",0],"denoise":0.5,"sampler_name":"heun"}},
        "2":{"class_type":"FluxGuidance","inputs":{"guidance":3.5,"conditioning":["6",0]}},
        "3":{"class_type":"VAEEncode","inputs":{"pixels":["1",0]}},
        "4":{"class_type":"PrimitiveInt","inputs":{"value":7}},
        "5":{"class_type":"LoraLoader","inputs":{"lora_name":"x","strength_model":1,"model":["5",0]}},
        "6":{"class_type":"CLIPTextEncode","inputs":{"text":["7",0]}},
        "7":{"class_type":"StringConcatenate","inputs":{"string_a":["7",0],"string_b":"b","delimiter":""}},
        "8":{"class_type":"SaveImage","inputs":{"images":["1",0]}}}"#,
    ),
    (
        "workflow",
        r#"{"nodes":[{"id":1,"type":"KSampler","widgets_values":[1,"x",4,1,"euler","simple",1],
        "inputs":[{"name":"positive","link":1},{"name":"latent_image","link":2}]},
        {"id":2,"type":"CLIPTextEncode","widgets_values":["a"]},
        {"id":3,"type":"Reroute","inputs":[{"name":"","link":2}]}],
        "links":[[1,2,0,1,0,"X"],[2,3,0,1,1,"Y"]]}"#,
    ),
    (
        "flat",
        r#"{"sui_image_params":{"prompt":"a","steps":4,"seed":1,"size":"64x64","loras":["a"],
        "loraweights":["1"],"fluxguidancescale":2.5,"sampler":"euler","strength":0.5}}"#,
    ),
];

const TOKENIZERS: [(&str, &str); 3] = [
    (
        "unigram",
        r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "},{"type":"NFKC"}]},
"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
"model":{"type":"Unigram","unk_id":2,"vocab":[["<pad>",0.0],["</s>",0.0],["<unk>",0.0],["▁",-2.0],["a",-2.5],["▁ph",-3.5],["oto",-9.5]],"byte_fallback":false}}"#,
    ),
    (
        "bpe",
        r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"'s|[\\p{L}]+|[\\p{N}]"},"behavior":"Removed","invert":true},
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"model":{"type":"BPE","vocab":{"a":0,"b":1,"a</w>":2,"ab":3,"<|startoftext|>":49406,"<|endoftext|>":49407},"merges":["a b",["a","b"]]}}"#,
    ),
    (
        "strange",
        r#"{"normalizer":{"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAA="},"pre_tokenizer":{"type":"Punctuation","behavior":"Contiguous"},
"model":{"type":"Unigram","unk_id":2,"vocab":[["",0.0],["a",0.0],["b",-1e308]],"byte_fallback":true}}"#,
    ),
];
