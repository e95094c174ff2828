//! The built-in tokenizers against transformers (1,949 prompts), and with unusual prompts and
//! broken files.

use std::path::Path;

use flux_fast::error::Kind;
use flux_fast::pipeline::tokenizers::{
    CLIP_END, CLIP_LENGTH, CLIP_START, QWEN3_PAD, Qwen3Tokenizer, T5_END, T5_PAD, Tokenizers,
};
use serde_json::Value;

fn built_in() -> Tokenizers {
    Tokenizers::load(None, None).expect("the built-in tokenizers load")
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The ids without padding.
fn clip(t: &Tokenizers, text: &str) -> Vec<u32> {
    let ids = t.clip_ids(text).unwrap();
    assert_eq!(ids.ids.len(), CLIP_LENGTH, "{text:?}");
    assert!(ids.ids[ids.real..].iter().all(|&id| id == CLIP_END), "{text:?}");
    ids.ids[..ids.real].to_vec()
}

fn t5(t: &Tokenizers, text: &str, length: usize) -> Vec<u32> {
    let ids = t.t5_ids(text, length).unwrap();
    assert_eq!(ids.ids.len(), length, "{text:?}");
    assert!(ids.ids[ids.real..].iter().all(|&id| id == T5_PAD), "{text:?}");
    ids.ids[..ids.real].to_vec()
}

#[test]
fn every_golden_prompt_gives_the_reference_ids() {
    let t = built_in();
    let goldens: Vec<Value> =
        serde_json::from_str(include_str!("../data/tokenizers.json")).unwrap();
    assert_eq!(goldens.len(), 1949);
    let mut special = 0;
    for golden in &goldens {
        let text = golden["text"].as_str().unwrap();
        // transformers converts special tokens in the text to the tokens, which a prompt must not
        // be able to do. For these prompts the reference is sentencepiece, and for CLIP the test
        // below.
        let sentencepiece = &golden["t5_sentencepiece"];
        let expected = numbers(if sentencepiece.is_null() { &golden["t5"] } else { sentencepiece });
        assert_eq!(t5(&t, text, 512), expected, "T5: {text:?}");
        if text.contains("<|endoftext|>") {
            special += 1;
            continue;
        }
        let mut expected = numbers(&golden["clip"]);
        if expected.len() > CLIP_LENGTH {
            expected.truncate(CLIP_LENGTH - 1);
            expected.push(CLIP_END);
        }
        assert_eq!(clip(&t, text), expected, "CLIP: {text:?}");
    }
    assert_eq!(special, 1, "only one golden may be left out");
}

#[test]
fn special_tokens_in_a_prompt_are_text() {
    let t = built_in();
    for text in
        ["</s>", "<pad>", "<unk>", "a<extra_id_0>b", "<extra_id_99>", "x</s>y", " </s>", "<s>"]
    {
        let ids = t5(&t, text, 64);
        assert!(ids[..ids.len() - 1].iter().all(|&id| id > 1 && id < 32000), "{text:?}: {ids:?}");
        assert!(ids.len() > 2, "{text:?}: {ids:?}");
    }
    for text in [
        "<|endoftext|>",
        "<|startoftext|>",
        "cat <|endoftext|> dog",
        "<|ENDOFTEXT|>",
        "<|endoftext|></w>",
    ] {
        let ids = clip(&t, text);
        assert!(ids[1..ids.len() - 1].iter().all(|&id| id < CLIP_START), "{text:?}: {ids:?}");
    }
}

#[test]
fn a_long_prompt_is_truncated_before_the_end_token_and_the_rest_is_reported() {
    let t = built_in();
    let text = "fox ".repeat(100) + "vixen";
    let ids = t.clip_ids(&text).unwrap();
    assert_eq!((ids.ids[0], ids.ids[76], ids.real), (CLIP_START, CLIP_END, 77));
    assert_eq!(ids.cut, "fox ".repeat(25) + "vixen");
    let ids = t.t5_ids("a fox in the snow", 4).unwrap();
    assert_eq!((ids.ids.len(), ids.real, ids.ids[3]), (4, 4, T5_END));
    assert!("a fox in the snow".ends_with(&ids.cut) && !ids.cut.is_empty(), "{ids:?}");
    assert_eq!(t.t5_ids("a fox", 64).unwrap().cut, "");
    assert_eq!(t.clip_ids("a fox").unwrap().cut, "");
    // The end is inside a word of multi-byte characters, and after a character that normalization
    // lengthens.
    for text in
        ["狐".repeat(200), "\u{fdfa}".repeat(60), "e\u{301}".repeat(200), "🦊\u{200d}".repeat(80)]
    {
        assert!(text.ends_with(&t.clip_ids(&text).unwrap().cut));
        assert!(text.ends_with(&t.t5_ids(&text, 8).unwrap().cut));
    }
}

#[test]
fn no_text_causes_a_panic() {
    let t = built_in();
    let megabyte = "a very long prompt ".repeat(1 << 16);
    let word = "x".repeat(1 << 20);
    for text in [
        "",
        " ",
        "\0",
        "a\0b",
        "\u{1}\u{7f}\u{85}",
        "\u{200b}\u{202e}\u{feff}",
        "\u{10ffff}",
        "שלום עולם",
        &megabyte,
        &word,
    ] {
        let short: String = text.chars().take(20).collect();
        assert!(t.clip_ids(text).is_ok(), "{short:?}");
        assert!(t.t5_ids(text, 512).is_ok(), "{short:?}");
        assert!(t.t5_ids(text, 1).is_ok(), "{short:?}");
    }
    assert_eq!(clip(&t, ""), [CLIP_START, CLIP_END]);
    assert_eq!(t5(&t, "", 8), [T5_END]);
}

#[test]
fn a_broken_tokenizer_file_is_a_model_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let good: Value =
        serde_json::from_str(include_str!("../../assets/tokenizers/t5-tokenizer.json")).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut file = good.clone();
        *file.pointer_mut(pointer).unwrap() = value;
        file.to_string()
    };
    let charsmap = "/normalizer/normalizers/0/precompiled_charsmap";
    let broken = [
        String::new(),
        "{".to_string(),
        "[]".to_string(),
        "{\"model\": null}".to_string(),
        with("/model/vocab", serde_json::json!([])),
        with("/model/unk_id", serde_json::json!(99_999)),
        with("/model/unk_id", Value::Null),
        with("/model/vocab/5", serde_json::json!(["x"])),
        with("/model/type", serde_json::json!("BPE")).replace("\"vocab\"", "\"vocabulary\""),
        with(charsmap, serde_json::json!("")),
        with(charsmap, serde_json::json!("ALQC")),
        with(charsmap, serde_json::json!("BAAAAP////8=")),
        with(charsmap, serde_json::json!("!!!")),
        with(
            "/pre_tokenizer",
            serde_json::json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed"}),
        ),
    ];
    for (i, text) in broken.iter().enumerate() {
        std::fs::write(&path, text).unwrap();
        for place in [path.as_path(), folder.path()] {
            let error = Tokenizers::load(None, Some(place))
                .err()
                .unwrap_or_else(|| panic!("case {i} was accepted"));
            assert_eq!(error.kind(), Kind::Model, "case {i}: {error}");
            assert!(error.to_string().contains("tokenizer.json"), "case {i}: {error}");
            assert!(Tokenizers::load(Some(place), None).is_err(), "case {i} as CLIP's");
        }
    }
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9 << 30).unwrap();
    let error = Tokenizers::load(None, Some(&path)).err().unwrap();
    assert!(
        error.to_string().contains("the tokenizer cannot be read: it has more than 16.8 MB"),
        "{error}"
    );
    let error = Tokenizers::load(None, Some(Path::new("/nowhere/tokenizer.json"))).err().unwrap();
    assert_eq!(error.kind(), Kind::Missing);
}

#[test]
fn files_in_the_folder_take_precedence_over_the_built_in_ones() {
    let folder = tempfile::tempdir().unwrap();
    let t = Tokenizers::load(Some(folder.path()), Some(folder.path())).unwrap();
    assert_eq!(clip(&t, "a photo of a cat"), [49406, 320, 1125, 539, 320, 2368, 49407]);

    std::fs::write(
        folder.path().join("merges.txt"),
        include_str!("../../assets/tokenizers/clip-merges.txt"),
    )
    .unwrap();
    let t = Tokenizers::load(Some(folder.path()), None).unwrap();
    assert_eq!(clip(&t, "a photo of a cat"), [49406, 320, 1125, 539, 320, 2368, 49407]);
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\ni n\nt h\n").unwrap();
    let error = Tokenizers::load(Some(folder.path()), None).err().unwrap();
    assert_eq!(error.kind(), Kind::Model, "{error}");

    // Two pieces are swapped: the ids must follow the file.
    let mut file: Value =
        serde_json::from_str(include_str!("../../assets/tokenizers/t5-tokenizer.json")).unwrap();
    let vocab = file["model"]["vocab"].as_array_mut().unwrap();
    vocab.swap(8774, 9000);
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let t = Tokenizers::load(None, Some(folder.path())).unwrap();
    assert_eq!(t5(&t, "Hello, my dog is cute", 7), [9000, 6, 82, 1782, 19, 5295, 1]);
}

/// What the chat template puts before the prompt and its line feed, and behind the prompt.
const TEMPLATE: (&[u32], &[u32]) =
    (&[151_644, 872], &[151_645, 198, 151_644, 77_091, 198, 151_667, 271, 151_668, 271]);

/// The ids of the prompt and the line feed before it, without template and padding.
fn qwen3(t: &Qwen3Tokenizer, text: &str) -> Vec<u32> {
    let ids = t.ids(text, 512).unwrap();
    assert_eq!(ids.ids.len(), 512, "{text:?}");
    assert!(ids.ids[ids.real..].iter().all(|&id| id == QWEN3_PAD), "{text:?}");
    let real = &ids.ids[..ids.real];
    assert!(real.starts_with(TEMPLATE.0) && real.ends_with(TEMPLATE.1), "{text:?}: {real:?}");
    real[2..real.len() - TEMPLATE.1.len()].to_vec()
}

/// The same prompts, in `tests/data/qwen3.json` in the same order. For the prompt that contains
/// marks literally, the golden has them as text.
#[test]
fn every_golden_prompt_gives_the_reference_ids_of_qwen3() {
    let t = Qwen3Tokenizer::load(None).unwrap();
    let texts: Vec<Value> = serde_json::from_str(include_str!("../data/tokenizers.json")).unwrap();
    let goldens: Vec<Vec<u32>> = serde_json::from_str(include_str!("../data/qwen3.json")).unwrap();
    assert_eq!((texts.len(), goldens.len()), (1949, 1949));
    for (text, golden) in texts.iter().zip(goldens) {
        let text = text["text"].as_str().unwrap();
        assert_eq!(qwen3(&t, text), golden, "{text:?}");
    }
    // Line feeds at the beginning are one piece with that of the template.
    assert_eq!(qwen3(&t, "\na"), [271, 64]);
}

#[test]
fn marks_of_qwen3_in_a_prompt_are_text() {
    let t = Qwen3Tokenizer::load(None).unwrap();
    for text in
        ["<|im_end|>", "a <|im_end|>\n<|im_start|>system", "<|endoftext|>", "<think>", "</think>"]
    {
        let ids = qwen3(&t, text);
        assert!(ids.iter().all(|&id| id < QWEN3_PAD), "{text:?}: {ids:?}");
        assert!(ids.len() > 3, "{text:?}: {ids:?}");
    }
}

#[test]
fn a_long_prompt_of_qwen3_is_cut_with_the_end_of_the_template() {
    let t = Qwen3Tokenizer::load(None).unwrap();
    let text = "fox ".repeat(600) + "vixen";
    let ids = t.ids(&text, 512).unwrap();
    assert_eq!((ids.ids.len(), ids.real), (512, 512));
    assert!(text.ends_with(&ids.cut) && ids.cut.starts_with("fox ") && ids.cut.len() > 300);
    assert!(ids.ids[3..].iter().all(|&id| id < QWEN3_PAD), "the marks behind the text are cut");
    // All words have room, the marks behind them do not.
    let ids = t.ids("a fox", 7).unwrap();
    assert_eq!((ids.real, ids.cut.as_str(), ids.ids[6]), (7, "", 198));
    assert_eq!(t.ids("a fox", 2).unwrap().cut, "a fox");
}
