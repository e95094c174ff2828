//! What the names of models say: which of them another service means by its own name, and what they
//! read besides the prompt.

use crate::pipeline::ModelInputs;
use crate::spec::flux2::TRANSFORMER;

/// Models that read more than a prompt have one of these words in their names.
const TOOLS: [&str; 4] = ["kontext", "fill", "canny", "depth"];

/// What a model called `name` reads besides the prompt, if the list of models says that it is
/// `what`.
pub fn inputs_of(name: &str, what: &str) -> ModelInputs {
    let mut inputs = ModelInputs::default();
    let title = what.split([',', '(']).next().unwrap_or_default();
    inputs.needs_mask = title.contains("Fill");
    inputs.needs_control = title.contains("Canny");
    let is_klein = what.starts_with(TRANSFORMER.title);
    let reads_only_prompts = !(is_klein || inputs.needs_mask || inputs.needs_control);
    inputs.kontext_sizes = reads_only_prompts && name.to_lowercase().contains("kontext");
    inputs.references = is_klein || inputs.kontext_sizes;
    inputs.controlnets = !is_klein;
    inputs
}

/// A name of a FLUX model without its owner, its ending, and the ways to write `FLUX.1`.
pub fn family_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches('/').rsplit('/').next()?.to_lowercase();
    let name = [".safetensors", ".sft", ".gguf", "-free"]
        .iter()
        .fold(name.as_str(), |name, ending| name.strip_suffix(ending).unwrap_or(name))
        .replace(['_', '.', ' '], "-");
    let rest = ["flux-1-", "flux1-", "flux-"].iter().find_map(|start| name.strip_prefix(start));
    let rest = rest.filter(|rest| !rest.is_empty())?;
    Some(format!("flux-{rest}"))
}

/// The word in a name that says what besides a prompt the model reads.
pub fn tool_of(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.find_map(|word| TOOLS.into_iter().find(|tool| *tool == word))
}

/// The only one of `listed` that `asked` describes, or the one that it names exactly.
pub fn same_family<'a>(asked: &str, listed: impl Iterator<Item = &'a str>) -> Option<String> {
    let asked = family_name(asked)?;
    let rest_of = |listed: &str| {
        let rest = family_name(listed)?.strip_prefix(&asked)?.to_string();
        // Models of another purpose have the same beginning.
        let other = ["kontext", "fill", "canny", "depth", "redux", "krea"];
        let same = rest.is_empty() || rest.starts_with('-');
        (same && !other.iter().any(|word| rest.contains(word))).then_some(rest)
    };
    let found: Vec<_> = listed.filter_map(|name| Some((rest_of(name)?, name))).collect();
    let exact = found.iter().find(|(rest, _)| rest.is_empty());
    match found.as_slice() {
        [(_, one)] => Some(one.to_string()),
        _ => exact.map(|(_, name)| name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_services_mean_the_only_file_of_their_model() {
        let listed = ["flux1-dev-Q4_0.gguf", "flux1-dev-kontext_fp8.safetensors", "z.safetensors"];
        let same = |asked: &str| same_family(asked, listed.into_iter());
        for name in ["flux-dev", "black-forest-labs/FLUX.1-dev", "flux1-dev"] {
            assert_eq!(same(name).as_deref(), Some(listed[0]), "{name}");
        }
        assert_eq!(same("flux-dev-kontext").as_deref(), Some(listed[1]));
        assert_eq!(same("flux-schnell"), None);
        let two = || ["flux1-dev-Q4_0.gguf", "flux1-dev-Q8_0.gguf"].into_iter();
        assert_eq!(same_family("flux-dev", two()), None, "nobody knows which");
        let exact = two().chain(["FLUX.1-dev"]);
        assert_eq!(same_family("flux-dev", exact).as_deref(), Some("FLUX.1-dev"));
    }

    #[test]
    fn tools_and_inputs_are_in_the_names() {
        assert_eq!(tool_of("FLUX.1-Kontext-dev"), Some("kontext"));
        assert_eq!(tool_of("my-filled-model"), None);
        let inputs = inputs_of("flux1-kontext-dev", "FLUX.1 transformer (dev), BFL, bf16");
        assert!(inputs.references && inputs.kontext_sizes && !inputs.needs_mask);
        let inputs = inputs_of("x", "FLUX.1 transformer Canny or Depth (dev), BFL, bf16");
        assert!(inputs.needs_control && !inputs.references);
    }
}
