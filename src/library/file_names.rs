//! What weight files are called: endings, numbered shards, indexes of shards, and variants.
//!
//! This is the only module that takes file names apart. It is used by folders
//! ([`unit`](super::unit)), by the search around a model ([`find`](super::find)), by the selection
//! of files to download, and by the listing and the look-up of names ([`places`](super::places)). A
//! name may contain a path with `/`.

/// Endings of safetensors files. `.sft` is the short form that some publishers use.
const SAFETENSORS: [&str; 2] = ["safetensors", "sft"];

/// The ending of GGUF files.
const GGUF: &str = "gguf";

/// Endings of files that can run code when they are read.
const PICKLES: [&str; 6] = ["bin", "ckpt", "pt", "pth", "pkl", "pickle"];

/// Endings that browsers and download programs add to a file until it is complete.
const UNFINISHED: [&str; 8] =
    ["part", "partial", "incomplete", "crdownload", "download", "aria2", "filepart", "tmp"];

/// Variants of one model, the preferred one first: the plain file, then the wider types. All others
/// come after them.
const VARIANTS: [&str; 4] = ["", "bf16", "fp16", "fp8"];

/// Endings of configuration and tokenizer files.
const CONFIGS: [&str; 3] = ["json", "txt", "model"];

/// The ending of `name` in lower case, without the dot; empty if there is none.
pub fn ending(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.rsplit_once('.').map_or(String::new(), |(_, ending)| ending.to_lowercase())
}

/// Whether `name` is the name of a safetensors file.
pub fn is_safetensors(name: &str) -> bool {
    SAFETENSORS.contains(&ending(name).as_str())
}

/// Whether `name` is the name of a GGUF file.
pub fn is_gguf(name: &str) -> bool {
    ending(name) == GGUF
}

/// Whether `name` is the name of a weight file that can be read here. What the file contains is
/// known only from its header.
pub fn is_weights(name: &str) -> bool {
    is_safetensors(name) || is_gguf(name)
}

/// Whether `name` is the name of a weight file, and not of a shard other than the first.
pub fn is_first_of_weights(name: &str) -> bool {
    is_weights(name) && FileName::parse(name).shard <= 1
}

/// The name that an unfinished download of a weight file will have when it is complete, if `name`
/// is the name of one: `x.safetensors` for `x.safetensors.part`.
pub fn unfinished(name: &str) -> Option<&str> {
    let (complete, _) = name.rsplit_once('.')?;
    (UNFINISHED.contains(&ending(name).as_str()) && is_weights(complete)).then_some(complete)
}

/// Whether `name` is the name of a pickle, which can run code when it is read.
pub fn is_pickle(name: &str) -> bool {
    PICKLES.contains(&ending(name).as_str())
}

/// The format of a model file that is neither weights that can be read here nor a pickle, by its
/// ending.
pub fn foreign_format(name: &str) -> Option<&'static str> {
    Some(match ending(name).as_str() {
        "onnx" | "onnx_data" => "ONNX",
        "engine" | "plan" | "trt" => "a TensorRT engine",
        "mlmodel" | "mlmodelc" | "mlpackage" => "Core ML",
        "npz" | "npy" => "NumPy arrays (MLX)",
        "msgpack" => "Flax",
        "h5" => "HDF5",
        _ => return None,
    })
}

/// Whether `name` is the name of a configuration or tokenizer file. Indexes of shards are not.
pub fn is_config(name: &str) -> bool {
    CONFIGS.contains(&ending(name).as_str()) && !name.contains(".index.")
}

/// Whether `name` is the name of an index of shards: `x.safetensors.index.json`, or with a variant
/// `x.safetensors.index.fp16.json`.
pub fn is_index(name: &str) -> bool {
    index_stem(name).is_some()
}

/// The part of an index's name before `.safetensors.index`.
fn index_stem(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".json")?;
    let name = match name.rsplit_once('.') {
        Some((front, word)) if is_variant(word) => front,
        _ => name,
    };
    let (stem, ending) = name.strip_suffix(".index")?.rsplit_once('.')?;
    SAFETENSORS.contains(&ending.to_lowercase().as_str()).then_some(stem)
}

/// The name of a weight file without its ending; any other name as it is.
pub fn without_ending(name: &str) -> &str {
    if is_weights(name) { name.rsplit_once('.').map_or(name, |(stem, _)| stem) } else { name }
}

/// What to call the model in the file `name`: its name without ending and without the number of a
/// shard. An index of shards has the name of its model.
pub fn model_name(name: &str) -> String {
    let parsed = FileName::parse(name);
    match index_stem(name) {
        Some(stem) => stem.to_string(),
        None if parsed.shards > 0 => parsed.stem,
        None => name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_string(),
    }
}

/// Whether `word` is a precision, or another variant, that diffusers and transformers put into
/// file names.
fn is_variant(word: &str) -> bool {
    let is_precision = ["fp", "bf", "int", "nf", "q"].iter().any(|prefix| {
        word.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    is_precision || matches!(word, "ema" | "non_ema")
}

/// The name of a shard, such as `x-00001-of-00003.safetensors` or, with a variant,
/// `x-00001-of-00003.fp16.safetensors`, or as people write them by hand, `x-1_of_3.safetensors` or
/// `x_1_of_3.safetensors`. The numbers of the first form need not be possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardName<'a> {
    /// `x`.
    pub stem: &'a str,
    /// Which shard this is. [`ShardName::is_valid`] says whether the number is possible.
    pub number: u32,
    /// How many shards there are.
    pub count: u32,
    /// How many digits `number` and `count` are written with.
    digits: (usize, usize),
    /// What is written before them: `-` and `-of-`.
    marks: (&'a str, &'a str),
    /// `fp16`, or empty, if it is written after the numbers.
    variant: &'a str,
    /// Everything after the numbers: `.fp16.safetensors`.
    rest: &'a str,
}

impl<'a> ShardName<'a> {
    /// Takes a file name without folders apart. `None` means that it is not the name of a shard.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (numbered, _) = name.rsplit_once('.').unwrap_or((name, ""));
        let with_variant = || {
            let (front, variant) = numbered.rsplit_once('.').filter(|(_, v)| is_variant(v))?;
            Some((Self::parse_numbered(front)?, front, variant))
        };
        let plain = || Some((Self::parse_numbered(numbered)?, numbered, ""));
        let (shard, numbered, variant) = plain().or_else(with_variant)?;
        Some(ShardName { variant, rest: &name[numbered.len()..], ..shard })
    }

    /// Takes `x-00001-of-00003` or `x-1_of_3` apart.
    fn parse_numbered(text: &'a str) -> Option<Self> {
        let by_hand = || Self::parse_marked(text, "_of_", 1).filter(Self::is_valid);
        Self::parse_marked(text, "-of-", 4).or_else(by_hand)
    }

    /// The same with `of` between numbers of at least `least` digits.
    fn parse_marked(text: &'a str, of: &'static str, least: usize) -> Option<Self> {
        let (front, count) = text.rsplit_once(of)?;
        let mark = front.rfind(['-', '_'])?;
        let (stem, mark, number) = (&front[..mark], &front[mark..=mark], &front[mark + 1..]);
        let is_number = |s: &str| s.len() >= least && s.bytes().all(|b| b.is_ascii_digit());
        if !is_number(number) || !is_number(count) || (of == "-of-" && mark != "-") {
            return None;
        }
        let digits = (number.len(), count.len());
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        let marks = (mark, of);
        Some(ShardName { stem, number, count, digits, marks, variant: "", rest: "" })
    }

    /// The ways in which the other shards may be written: `x-10_of_12` may follow `x-01_of_12` or
    /// `x-1_of_12`.
    pub fn spellings(self) -> [Self; 2] {
        let digits = if self.marks.1 == "-of-" { self.digits } else { (1, self.digits.1) };
        [self, ShardName { digits, ..self }]
    }

    /// Whether the number is from 1 to `count`.
    pub fn is_valid(&self) -> bool {
        1 <= self.number && self.number <= self.count
    }

    /// The names of all shards of this model, in their order.
    pub fn all(self) -> impl Iterator<Item = String> {
        let ShardName { stem, count, digits: (a, b), marks: (mark, of), rest, .. } = self;
        let (stem, end) = (format!("{stem}{mark}"), format!("{of}{count:0b$}{rest}"));
        (1..=count).map(move |number| format!("{stem}{number:0a$}{end}"))
    }
}

/// The parts of a file name such as `text_encoder_2/model.fp16-00001-of-00002.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// `text_encoder_2`; empty for a file without a folder.
    pub folder: String,
    /// `model`.
    pub stem: String,
    /// `fp16`, or empty. Diffusers writes it after the number of the shard, transformers before it.
    pub variant: String,
    /// How many shards there are; 0 for a single file.
    pub shards: u32,
    /// Which shard this is, from 1; 0 for a single file.
    pub shard: u32,
    /// `safetensors`, in lower case.
    pub ending: String,
}

impl FileName {
    /// Takes `name` apart.
    pub fn parse(name: &str) -> FileName {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let shard = ShardName::parse(file).filter(ShardName::is_valid);
        let whole = match shard {
            Some(shard) => shard.stem,
            None => file.rsplit_once('.').map_or(file, |(stem, _)| stem),
        };
        let (stem, variant_before) = match whole.rsplit_once('.') {
            Some((front, word)) if is_variant(word) => (front, word),
            _ => (whole, ""),
        };
        let variant_after = shard.map_or("", |s| s.variant);
        let variant = if variant_after.is_empty() { variant_before } else { variant_after };
        FileName {
            folder: folder.into(),
            stem: stem.into(),
            variant: variant.into(),
            shards: shard.map_or(0, |s| s.count),
            shard: shard.map_or(0, |s| s.number),
            ending: ending(file),
        }
    }

    /// Which of several variants of one model is taken; 0 is the best.
    pub fn variant_rank(&self) -> usize {
        VARIANTS.iter().position(|v| *v == self.variant).unwrap_or(VARIANTS.len())
    }

    /// A value that is the same for every shard of one model, and different for other models.
    pub fn group(&self) -> FileName {
        FileName { shard: 0, ..self.clone() }
    }

    /// Whether this is a shard, and the index of its shards may be called `index`.
    pub fn has_index(&self, index: &str) -> bool {
        self.shards > 0 && self.indexes().iter().any(|name| name == index)
    }

    /// The names, with the folder, that an index of these shards may have.
    pub fn indexes(&self) -> Vec<String> {
        let FileName { stem, variant, .. } = self;
        let folder = match self.folder.as_str() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let dot = if variant.is_empty() { "" } else { "." };
        let names = SAFETENSORS.iter().flat_map(|ending| {
            [
                format!("{folder}{stem}.{ending}.index{dot}{variant}.json"),
                format!("{folder}{stem}{dot}{variant}.{ending}.index.json"),
            ]
        });
        names.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_recognised_in_any_case_and_in_any_folder() {
        for name in ["a.safetensors", "x/a.SFT", "a.sft", "v1.0/A.SAFETENSORS"] {
            assert!(is_safetensors(name) && is_weights(name) && !is_gguf(name), "{name}");
        }
        assert!(is_gguf("a.GGUF") && is_weights("a.gguf") && !is_safetensors("a.gguf"));
        for name in ["sft", "a.sft/b", "a.safetensors.index.json", "a.bin", ""] {
            assert!(!is_weights(name), "{name}");
        }
        assert!(is_pickle("a.CKPT") && is_pickle("a/b.pt") && !is_pickle("a.sft"));
        assert!(is_config("a/config.json") && is_config("spiece.model") && !is_config("a.sft"));
        for name in ["pytorch_model.bin.index.json", "model.safetensors.index.json"] {
            assert!(!is_config(name), "{name}");
        }
    }

    #[test]
    fn both_ways_to_name_shards_and_variants_are_read() {
        let parse = |name| {
            let FileName { folder, stem, variant, shards, shard, ending } = FileName::parse(name);
            (folder, stem, variant, shard, shards, ending)
        };
        let expected = |folder: &str, variant: &str, shard, shards, ending: &str| {
            (
                folder.to_string(),
                "model".to_string(),
                variant.to_string(),
                shard,
                shards,
                ending.to_string(),
            )
        };
        for (name, parts) in [
            ("model.safetensors", expected("", "", 0, 0, "safetensors")),
            ("a/b/model.fp16.sft", expected("a/b", "fp16", 0, 0, "sft")),
            ("t/model-00001-of-00002.sft", expected("t", "", 1, 2, "sft")),
            ("model.fp16-00002-of-00002.gguf", expected("", "fp16", 2, 2, "gguf")),
            ("model-0002-of-0012.bf16.safetensors", expected("", "bf16", 2, 12, "safetensors")),
        ] {
            assert_eq!(parse(name), parts, "{name}");
        }
        for name in ["model-00003-of-00002", "model-00000-of-00002", "model-1-of-2", "a-of-00002"] {
            let parsed = FileName::parse(&format!("{name}.safetensors"));
            assert_eq!((parsed.stem.as_str(), parsed.shards), (name, 0));
        }
        let (first, second) = ("x-00001-of-00002.sft", "x-00002-of-00002.sft");
        assert_eq!(FileName::parse(first).group(), FileName::parse(second).group());
        assert!(is_first_of_weights(first) && !is_first_of_weights(second));
    }

    #[test]
    fn the_shards_of_a_name_are_written_with_as_many_digits_as_it_has() {
        let names = |name| ShardName::parse(name).unwrap().all().collect::<Vec<_>>();
        for (name, all) in [
            ("x-00002-of-00002.sft", &["x-00001-of-00002.sft", "x-00002-of-00002.sft"][..]),
            ("a-b-0001-of-00001.GGUF", &["a-b-0001-of-00001.GGUF"]),
            (
                "m.fp16-00001-of-00002.safetensors",
                &["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"],
            ),
            (
                "m-00002-of-00002.bf16.sft",
                &["m-00001-of-00002.bf16.sft", "m-00002-of-00002.bf16.sft"],
            ),
            ("v1.0-00001-of-00001.gguf", &["v1.0-00001-of-00001.gguf"]),
            ("flux-2_of_2.safetensors", &["flux-1_of_2.safetensors", "flux-2_of_2.safetensors"]),
            ("my_flux_01_of_02.sft", &["my_flux_01_of_02.sft", "my_flux_02_of_02.sft"]),
        ] {
            assert_eq!(names(name), all);
        }
        let first = |name| ShardName::parse(name).unwrap().spellings().map(|s| s.all().next());
        let written = |names: [&str; 2]| names.map(|name| Some(name.to_string()));
        assert_eq!(first("x-10_of_12.sft"), written(["x-01_of_12.sft", "x-1_of_12.sft"]));
        let same = "x-00001-of-00012.sft";
        assert_eq!(first("x-00010-of-00012.sft"), written([same, same]));
        for name in
            ["x-3_of_2.sft", "x-0_of_2.sft", "best_of_3.sft", "1_of_3.sft", "x_0001-of-0002"]
        {
            assert!(ShardName::parse(name).is_none(), "{name}");
        }
        for name in ["x-99999999999-of-00002.sft", "x-00001-of-00002.sharp.sft", "x.sft", ""] {
            assert!(ShardName::parse(name).is_none(), "{name}");
        }
    }

    #[test]
    fn unfinished_downloads_are_recognised_and_are_not_weights() {
        for (name, complete) in [
            ("a/flux.safetensors.part", "a/flux.safetensors"),
            ("flux.SFT.Incomplete", "flux.SFT"),
            ("flux.gguf.crdownload", "flux.gguf"),
        ] {
            assert_eq!(unfinished(name), Some(complete));
            assert!(!is_weights(name));
        }
        for name in ["flux.safetensors", "notes.txt.part", "part", "x.part"] {
            assert_eq!(unfinished(name), None, "{name}");
        }
    }

    #[test]
    fn the_plain_file_comes_before_its_variants() {
        let rank = |name: &str| FileName::parse(name).variant_rank();
        let names = ["m.sft", "m.bf16.sft", "m.fp16.sft", "m.fp8.sft", "m.nf4.sft"];
        assert!(names.map(rank).is_sorted() && rank(names[0]) < rank(names[4]));
    }

    #[test]
    fn every_index_that_a_shard_may_have_is_recognised_as_one() {
        let indexes = FileName::parse("t/x.fp16-00001-of-00002.safetensors").indexes();
        assert_eq!(
            indexes[..2],
            ["t/x.safetensors.index.fp16.json", "t/x.fp16.safetensors.index.json"]
        );
        assert!(indexes.contains(&"t/x.sft.index.fp16.json".to_string()));
        for index in &indexes {
            assert!(is_index(index), "{index}");
        }
        assert!(is_index("X.SAFETENSORS.index.json"));
        for name in ["x.index.json", "x.bin.index.json", "x.safetensors.json", "index.json"] {
            assert!(!is_index(name), "{name}");
        }
    }

    #[test]
    fn a_model_is_named_without_ending_and_number() {
        for (name, model) in [
            ("flux1-dev.safetensors", "flux1-dev"),
            ("flux1-dev-00001-of-00003.sft", "flux1-dev"),
            ("flux1-dev.safetensors.index.json", "flux1-dev"),
            ("flux-002.gguf", "flux-002"),
            ("a.fp8.sft", "a.fp8"),
            ("plain", "plain"),
        ] {
            assert_eq!(model_name(name), model, "{name}");
        }
        assert_eq!(without_ending("v1.0"), "v1.0");
        assert_eq!(without_ending("v1.0.sft"), "v1.0");
    }
}
