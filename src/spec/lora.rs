//! How trainers name the layers of a LoRA, as data: prefixes, spellings, and the rows of a fused
//! weight that one stored matrix changes.

use super::family::Role;
use super::foreign::STABLE_DIFFUSION as SD;
use super::names::Split;

/// How LoRAs of a family are named, and how LoRAs of other models are recognised.
#[derive(Debug)]
pub struct LoraSpec {
    /// Beginnings of keys. The longest one that fits is tried first.
    pub prefixes: &'static [&'static [LoraPrefix]],
    /// Parts of keys that this family never has, with the model whose keys have them. The more
    /// specific entries come first.
    pub foreign: &'static [(&'static str, &'static str)],
    /// Beginnings of the base model in the metadata, in lower case, of other models.
    pub foreign_bases: &'static [&'static str],
    /// Widths by which other models are recognised, with a hint for the user.
    pub widths: &'static [(usize, &'static str)],
    /// The hint for a width that is not listed.
    pub other_width: &'static str,
    /// Keys of such LoRAs, for the error about a file without any.
    pub example: &'static str,
}

/// Parts of keys of LoRAs for models that are not FLUX models; see [`LoraSpec::foreign`].
pub const OTHER_MODELS: &[(&str, &str)] = &[
    ("distilled_guidance_layer", "Chroma"),
    ("double_stream_blocks", "HiDream"),
    ("single_stream_blocks", "HiDream"),
    ("individual_token_refiner", "HunyuanVideo"),
    ("img_mlp.fc1", "HunyuanVideo"),
    ("img_mlp_fc1", "HunyuanVideo"),
    ("img_mod.linear", "HunyuanVideo"),
    ("img_mod_linear", "HunyuanVideo"),
    ("img_attn_qkv.lora_A", "HunyuanVideo"),
    ("joint_transformer_blocks", "AuraFlow"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("img_mod.1", "Qwen-Image"),
    ("img_mod_1", "Qwen-Image"),
    ("txt_mod.1", "Qwen-Image"),
    ("txt_mod_1", "Qwen-Image"),
    ("img_mlp.net", "Qwen-Image"),
    ("img_mlp_net", "Qwen-Image"),
    ("noise_refiner", "Lumina 2 or Z-Image"),
    ("context_refiner", "Lumina 2 or Z-Image"),
    (".attention.to_q", "Lumina 2 or Z-Image"),
    ("_attention_to_q", "Lumina 2 or Z-Image"),
    ("caption_projection", "PixArt or LTX-Video"),
    (".cross_attn.", "Wan"),
    ("_cross_attn_", "Wan"),
    ("condition_embedder", "Wan"),
    ("lora_prior_", "Stable Cascade"),
    ("down_blocks.", SD),
    ("down_blocks_", SD),
    ("up_blocks.", SD),
    ("up_blocks_", SD),
    ("mid_block.", SD),
    ("mid_block_", SD),
    ("input_blocks.", SD),
    ("input_blocks_", SD),
    ("output_blocks.", SD),
    ("output_blocks_", SD),
    ("lora_te2_text_model_", "Stable Diffusion XL or 3"),
    ("text_encoder_2.text_model.", "Stable Diffusion XL or 3"),
    (".attn2.", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("_attn2_", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("model.layers.", "a language model"),
];

/// Both lists as one of `N` entries.
///
/// # Panics
/// At compile time, if they do not have `N` entries together.
pub const fn join<const N: usize>(
    first: &[(&'static str, &'static str)],
    second: &[(&'static str, &'static str)],
) -> [(&'static str, &'static str); N] {
    assert!(first.len() + second.len() == N);
    let mut all = [("", ""); N];
    let mut i = 0;
    while i < N {
        all[i] = if i < first.len() { first[i] } else { second[i - first.len()] };
        i += 1;
    }
    all
}

/// A prefix that a trainer writes before the name of a layer.
#[derive(Debug)]
pub struct LoraPrefix {
    /// The beginning of the key, with its dot or underscore.
    pub prefix: &'static str,
    /// The only component whose layers may follow; `None` for any.
    pub role: Option<Role>,
    /// Underscores stand for the dots of the layer's name.
    pub flat: bool,
    /// The trainer that writes it; `None` where several do.
    pub trainer: Option<&'static str>,
}

impl LoraPrefix {
    /// A prefix that tells which trainer wrote the file.
    pub const fn of(prefix: &'static str, role: Option<Role>, trainer: &'static str) -> Self {
        LoraPrefix { prefix, role, flat: false, trainer: Some(trainer) }
    }

    /// A prefix that several trainers use for one component.
    pub const fn shared(prefix: &'static str, role: Option<Role>) -> Self {
        LoraPrefix { prefix, role, flat: false, trainer: None }
    }

    /// The same, with underscores for dots in what follows.
    pub const fn flat(self) -> Self {
        LoraPrefix { flat: true, ..self }
    }
}

const TRANSFORMER: Option<Role> = Some(Role::Transformer);

/// The prefixes that trainers use for the transformer of any family.
pub const COMMON_PREFIXES: &[LoraPrefix] = &[
    LoraPrefix::of("lora_unet_", TRANSFORMER, "Kohya sd-scripts").flat(),
    LoraPrefix::of("lora_transformer_", TRANSFORMER, "OneTrainer").flat(),
    LoraPrefix::of("lycoris_", TRANSFORMER, "LyCORIS (SimpleTuner)").flat(),
    LoraPrefix::of("base_model.model.", None, "PEFT"),
    LoraPrefix::of("model.diffusion_model.", TRANSFORMER, "ComfyUI"),
    LoraPrefix::of("diffusion_model.", TRANSFORMER, "PEFT (ai-toolkit)"),
    LoraPrefix::of("transformer.", TRANSFORMER, "diffusers"),
    LoraPrefix::of("unet.", TRANSFORMER, "diffusers"),
    LoraPrefix::of("net.", TRANSFORMER, "no prefix"),
    LoraPrefix::of("dit.", TRANSFORMER, "DiffSynth-Studio"),
    LoraPrefix::shared("module.", None),
    LoraPrefix::shared("pipe.", None),
    LoraPrefix::shared("model.", None),
    LoraPrefix::shared("text_encoders.transformer.", None),
    LoraPrefix::of("", None, "no prefix"),
];

/// What training frameworks put around a network when they wrap it. A wrapper can be anywhere in
/// a name, in front of or behind any prefix, and changes nothing.
pub const WRAPPERS: &[&str] =
    &["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_forward_module."];

/// Beginnings of names that a tool cut off by mistake, with what they were. Python's
/// `lstrip("lora_unet_")` takes any of these letters, so that four of `transformer_blocks` go too.
pub const CUT_NAMES: &[(&str, &str)] = &[("sformer_blocks", "transformer_blocks")];

/// The layers of a component that a LoRA may change.
#[derive(Debug)]
pub struct LoraLayers {
    /// Canonical names without `.weight`, with `{}` for the number of a block. Each is also known
    /// under the names of the component's dialects.
    pub layers: &'static [&'static str],
    /// Canonical names of vectors that adapters change by a difference: gains of norms. Each is
    /// also known without its last word, and under the names of the component's dialects.
    pub vectors: &'static [&'static str],
    /// Further spellings.
    pub spellings: &'static [LoraSpelling],
    /// The weight that control LoRAs widen for a control image.
    pub input: Option<&'static str>,
    /// The hint for a LoRA that has more blocks than the component.
    pub blocks_hint: &'static str,
}

impl LoraLayers {
    /// No LoRA changes this component.
    pub const NONE: LoraLayers =
        LoraLayers { layers: &[], vectors: &[], spellings: &[], input: None, blocks_hint: "" };
}

/// A spelling of a layer that is not one of the component's dialects.
#[derive(Debug)]
pub struct LoraSpelling {
    /// The layer as the trainer names it.
    pub stored: &'static str,
    /// The canonical layer, or the whole name of a vector.
    pub canonical: &'static str,
    /// The rows of the canonical weight that the stored matrix changes.
    pub rows: Rows,
    /// The only tool that spells it this way; `None` where the prefix tells the trainer.
    pub tool: Option<&'static str>,
}

impl LoraSpelling {
    /// A second name of a whole layer.
    pub const fn all(stored: &'static str, canonical: &'static str) -> Self {
        LoraSpelling { stored, canonical, rows: Rows::All, tool: None }
    }

    /// A name of q, k and v in a layer that has more rows.
    pub const fn squares(stored: &'static str, canonical: &'static str) -> Self {
        LoraSpelling { stored, canonical, rows: Rows::Squares, tool: None }
    }

    /// A name of one part of a fused layer.
    pub const fn part(stored: &'static str, canonical: &'static str, rows: Rows) -> Self {
        LoraSpelling { stored, canonical, rows, tool: None }
    }

    /// The same, written by one tool only.
    pub const fn by(self, tool: &'static str) -> Self {
        LoraSpelling { tool: Some(tool), ..self }
    }
}

/// The rows of a canonical weight that one stored matrix changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    /// All rows.
    All,
    /// Part `.0` of `.1` equal parts: one of q, k, v of a fused matrix.
    Equal(usize, usize),
    /// Part `.0` of several that each have as many rows as the weight has columns: one of q, k, v
    /// in a weight that has more rows.
    Square(usize),
    /// Three such parts together.
    Squares,
    /// The rows that follow three such parts.
    Rest,
    /// All rows, the second half stored first.
    Swapped,
}

/// Consecutive rows of a stored matrix and the rows of the weight that they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// First row of the weight.
    pub row: usize,
    /// First row of the stored matrix.
    pub from: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Rows {
    /// The rows of part `part` of `parts` stored parts of one weight.
    pub fn of_part(split: Split, swapped: bool, part: usize, parts: usize) -> Rows {
        match split {
            _ if parts == 1 && swapped => Rows::Swapped,
            _ if parts == 1 => Rows::All,
            Split::Equal => Rows::Equal(part, parts),
            Split::Square if part + 1 == parts => Rows::Rest,
            Split::Square => Rows::Square(part),
        }
    }

    /// The blocks of a `rows x cols` weight; `None` where it cannot be divided this way.
    pub fn of(self, (rows, cols): (usize, usize)) -> Option<Vec<Block>> {
        let block = |row: usize, rows: usize| vec![Block { row, from: 0, rows }];
        let squares = cols.checked_mul(3).filter(|n| *n <= rows);
        match self {
            Rows::All => Some(block(0, rows)),
            Rows::Equal(i, n) => rows.is_multiple_of(n).then(|| block(rows / n * i, rows / n)),
            Rows::Square(i) => squares.map(|_| block(cols * i, cols)),
            Rows::Squares => squares.map(|n| block(0, n)),
            Rows::Rest => squares.map(|n| block(n, rows - n)),
            Rows::Swapped => rows.is_multiple_of(2).then(|| {
                let half = rows / 2;
                vec![
                    Block { row: 0, from: half, rows: half },
                    Block { row: half, from: 0, rows: half },
                ]
            }),
        }
    }
}

/// The name of the columns that a control LoRA adds to `weight`. No file has a tensor of this name.
pub fn added_inputs(weight: &str) -> String {
    format!("{weight}{ADDED_INPUTS}")
}

/// The end of such names.
pub const ADDED_INPUTS: &str = " (added inputs)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_divide_the_weights_of_flux() {
        let one = |row, rows| Some(vec![Block { row, from: 0, rows }]);
        assert_eq!(Rows::Equal(2, 3).of((9216, 3072)), one(6144, 3072));
        assert_eq!(Rows::Square(1).of((21504, 3072)), one(3072, 3072));
        assert_eq!(Rows::Rest.of((21504, 3072)), one(9216, 12288));
        assert_eq!(Rows::Squares.of((21504, 3072)), one(0, 9216));
        let halves = vec![Block { row: 0, from: 3, rows: 3 }, Block { row: 3, from: 0, rows: 3 }];
        assert_eq!(Rows::Swapped.of((6, 2)), Some(halves));
        assert_eq!(Rows::Equal(0, 3).of((8, 2)), None);
        assert_eq!(Rows::Rest.of((5, 2)), None);
    }
}
