//! Files of common writers are read completely; invalid files are refused with the place and the
//! numbers.

use std::path::PathBuf;

use super::types::UNREADABLE;
use super::*;
use crate::dtype::{DType, blocks};
use crate::error::Kind;
use crate::weights::container::file::read_header;

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// A file piece by piece, so that each can be wrong.
#[derive(Clone)]
struct File {
    version: u32,
    counts: Option<(u64, u64)>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: usize,
    data: usize,
}

impl File {
    /// `a`, 3 x 2 F32 at 0, and `b`, 2 x 64 Q8_0 at 32.
    fn new() -> Self {
        let tensors = vec![tensor("a", &[2, 3], 0, 0), tensor("b", &[64, 2], 8, 32)];
        let keys =
            vec![key("general.architecture", 8, &text("flux")), key("n", 4, &7u32.to_le_bytes())];
        File { version: 3, counts: None, keys, tensors, alignment: 32, data: 32 + 2 * 2 * 34 }
    }

    fn keys(keys: &[Vec<u8>]) -> Self {
        File { keys: keys.to_vec(), ..File::new() }
    }

    fn tensors(tensors: &[Vec<u8>], data: usize) -> Self {
        File { tensors: tensors.to_vec(), data, ..File::new() }
    }

    fn header(&self) -> Vec<u8> {
        let (tensors, keys) =
            self.counts.unwrap_or((self.tensors.len() as u64, self.keys.len() as u64));
        let counts = [
            &b"GGUF"[..],
            &self.version.to_le_bytes(),
            &tensors.to_le_bytes(),
            &keys.to_le_bytes(),
        ]
        .concat();
        [counts, self.keys.concat(), self.tensors.concat()].concat()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.resize(bytes.len().next_multiple_of(self.alignment) + self.data, 0);
        bytes
    }

    fn read(&self) -> Header {
        whole(&self.bytes()).unwrap()
    }

    fn refused(&self) -> String {
        refused(&self.bytes())
    }
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name), &kind.to_le_bytes()[..], value].concat()
}

fn list(name: &str, kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    key(name, ARRAY, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat())
}

fn tensor(name: &str, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let axes_bytes: Vec<u8> = axes.iter().flat_map(|n| n.to_le_bytes()).collect();
    let rank = (axes.len() as u32).to_le_bytes();
    [&text(name), &rank[..], &axes_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn whole(bytes: &[u8]) -> Result<Header> {
    parse(bytes, bytes.len() as u64).map_err(|stop| match stop {
        Stop::Bad(e) => e,
        Stop::More(n) => panic!("asks for byte {n} of a whole file"),
    })
}

fn refused(bytes: &[u8]) -> String {
    let e = whole(bytes).expect_err("accepted");
    assert_eq!(e.kind(), Kind::Model);
    e.to_string()
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    assert!(words.iter().all(|w| message.contains(w)), "{message:?} lacks one of {words:?}");
}

#[test]
fn a_sound_file_is_read_in_torchs_order_of_axes() {
    for version in [2, 3] {
        let file = File { version, ..File::new() };
        let (header, bytes) = (file.read(), file.bytes());
        assert_eq!(header.data_start, bytes.len() - file.data);
        assert_eq!(header.metadata.get("general.architecture").map(String::as_str), Some("flux"));
        assert_eq!(header.metadata["n"], "7");
        let [a, b] = header.tensors.as_slice() else { panic!("two tensors") };
        assert_eq!(
            (a.name.as_str(), a.stored, a.shape.as_slice()),
            ("a", StoredType::Float(DType::F32), &[3, 2][..])
        );
        assert_eq!((b.stored, b.shape.as_slice()), (StoredType::Float(DType::Q8_0), &[2, 64][..]));
        assert_eq!(a.range, header.data_start..header.data_start + 24);
        assert_eq!(b.range, header.data_start + 32..bytes.len());
    }
    // No keys, no axes (one number), records out of order, padding at the end, an empty file.
    let file = File {
        keys: vec![],
        ..File::tensors(&[tensor("y", &[4], 30, 32), tensor("x", &[], 0, 0)], 64)
    };
    let header = file.read();
    assert_eq!(header.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!((header.tensors[0].shape.as_slice(), header.tensors[0].range.len()), (&[][..], 4));
    let nothing = File { keys: vec![], tensors: vec![], data: 0, ..File::new() }.header();
    assert_eq!(whole(&nothing).unwrap().data_start, nothing.len());
}

#[test]
fn every_type_has_the_size_that_the_table_of_blocks_says() {
    let named = [
        (0, "F32", 1024),
        (1, "F16", 512),
        (30, "BF16", 512),
        (24, "I8", 256),
        (25, "I16", 512),
        (26, "I32", 1024),
        (27, "I64", 2048),
        (28, "F64", 2048),
    ];
    let blocks = blocks::FORMATS.iter().filter_map(|f| Some((f.ggml?, f.name, f.bytes_of(256))));
    for (number, name, bytes) in named.into_iter().chain(blocks) {
        let t =
            File::tensors(&[tensor("t", &[256, 3], number, 0)], bytes * 3).read().tensors.remove(0);
        assert_eq!((t.stored.name(), t.range.len()), (name, bytes * 3));
    }
}

#[test]
fn short_values_are_kept_as_text_and_a_tokenizers_lists_are_passed_over() {
    let words: Vec<u8> = (0..1000).flat_map(|i| text(&format!("word {i}"))).collect();
    let header = File::keys(&[
        key("u8", 0, &[200]),
        key("i8", 1, &[200]),
        key("u16", 2, &[1, 2]),
        key("i16", 3, &[255, 255]),
        key("i32", 5, &(-5i32).to_le_bytes()),
        key("f32", 6, &0.25f32.to_le_bytes()),
        key("yes", 7, &[1]),
        key("u64", 10, &u64::MAX.to_le_bytes()),
        key("i64", 11, &i64::MIN.to_le_bytes()),
        key("f64", 12, &1e-3f64.to_le_bytes()),
        list("words", STRING, 1000, &words),
        list("numbers", 6, 17, &[0; 17 * 4]),
        list("comfy.gguf.orig_shape.a", 5, 2, &[64, 0, 0, 0, 0, 12, 0, 0]),
        list("flags", 7, 2, &[1, 0]),
        list("none", 5, 0, &[]),
        key("latin-1", STRING, b"\x01\0\0\0\0\0\0\0\xe9"),
    ])
    .read();
    let expected = [
        ("u8", "200"),
        ("i8", "-56"),
        ("u16", "513"),
        ("i16", "-1"),
        ("i32", "-5"),
        ("f32", "0.25"),
        ("yes", "true"),
        ("u64", "18446744073709551615"),
        ("i64", "-9223372036854775808"),
        ("f64", "0.001"),
        ("comfy.gguf.orig_shape.a", "[64, 3072]"),
        ("flags", "[true, false]"),
        ("none", "[]"),
    ];
    assert_eq!(
        header.metadata,
        expected.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    );
}

/// The files of `tests/golden/formats`, which the format's own library wrote.
#[test]
fn files_of_the_reference_writer_are_what_its_author_says() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats");
    for name in ["city96", "sdcpp", "t5"] {
        let path = folder.join(format!("{name}.gguf"));
        let header = whole(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read_header(&path).unwrap(), header);
        let json = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let tensors = json["tensors"].as_array().unwrap();
        assert_eq!(header.tensors.len(), tensors.len());
        for t in tensors {
            let found =
                header.tensors.iter().find(|x| x.name == t["name"].as_str().unwrap()).unwrap();
            let shape = t.get("stored").unwrap_or(&t["shape"]);
            assert_eq!(serde_json::json!(found.shape), *shape, "{name}: {}", found.name);
            assert_eq!(found.stored.name(), t["type"], "{name}: {}", found.name);
        }
        for (key, value) in json["metadata"].as_object().unwrap() {
            let Some(text) = header.metadata.get(key) else {
                assert!(
                    value.is_array() && key.starts_with("tokenizer."),
                    "{name}: {key} is not there"
                );
                continue;
            };
            match value {
                serde_json::Value::String(s) => assert_eq!(text, s),
                serde_json::Value::Number(n) if n.is_f64() => {
                    assert_eq!(text.parse::<f32>().unwrap(), n.as_f64().unwrap() as f32, "{key}");
                }
                serde_json::Value::Array(list) => {
                    let numbers: Vec<f32> = serde_json::from_str(text).unwrap();
                    assert_eq!(
                        numbers,
                        list.iter().map(|n| n.as_f64().unwrap() as f32).collect::<Vec<_>>()
                    );
                }
                other => assert_eq!(*text, other.to_string()),
            }
        }
    }
}

#[test]
fn a_header_is_read_in_pieces_and_no_further_than_it_goes() {
    let words: Vec<u8> = (0..100_000).flat_map(|i| text(&format!("word {i}"))).collect();
    let file = File::keys(&[list("tokenizer.ggml.tokens", STRING, 100_000, &words)]);
    let bytes = file.bytes();
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), &bytes).unwrap();
    // Most of the file is a hole; that it is not read shows in the time.
    let large = File::tensors(&[tensor("a", &[1 << 36], 0, 0)], 0).header();
    assert_eq!(read_header(path.path()).unwrap(), whole(&bytes).unwrap());
    let size = (large.len() as u64).next_multiple_of(32) + (4 << 36);
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(path.path()).unwrap();
    std::io::Write::write_all(&mut &file, &large).unwrap();
    if file.set_len(size).is_ok() {
        assert_eq!(read_header(path.path()).unwrap().tensors[0].shape, [1 << 36]);
    }
    // What it asks for is what it lacks.
    for cut in 0..bytes.len().min(4000) {
        match parse(&bytes[..cut], bytes.len() as u64) {
            Err(Stop::More(n)) => assert!(n > cut as u64 && n <= bytes.len() as u64),
            other => panic!("{cut}: {other:?}"),
        }
    }
}

#[test]
fn f1_every_truncation_is_refused_with_both_sizes() {
    let file = File::new();
    let bytes = file.bytes();
    for cut in 0..bytes.len() {
        let e = refused(&bytes[..cut]);
        assert_says(&e, &[&format!("found {cut} bytes"), "expected"]);
    }
    // Bytes that only fill up the end may be lacking: no tensor needs them.
    let padded = File::tensors(&[tensor("a", &[2, 3], 0, 0)], 32).bytes();
    assert!(whole(&padded[..padded.len() - 8]).is_ok());
    assert!(refused(&padded[..padded.len() - 9]).starts_with("a: file is truncated"));
}

#[test]
fn f2_bit_flips_give_an_error_or_a_consistent_parse() {
    let whole_file = File::keys(&[
        key("general.alignment", 4, &64u32.to_le_bytes()),
        list("shape", 5, 2, &[64, 0, 0, 0, 0, 12, 0, 0]),
        list("words", STRING, 2, &[text("one"), text("two")].concat()),
    ]);
    let whole_file = File { alignment: 64, ..whole_file };
    let tensors = vec![tensor("a", &[2, 3], 0, 0), tensor("b", &[64, 2], 8, 64)];
    let bytes = File { tensors, data: 64 + 136, ..whole_file }.bytes();
    let mut accepted = 0;
    let header_bits = (bytes.len() - 200) * 8;
    // Every flip, then every pair of flips at a stride that meets all fields.
    let pairs =
        (0..header_bits).flat_map(|i| [(i, None), (i, Some((i * 7919 + 13) % header_bits))]);
    for (first, second) in pairs {
        let mut bytes = bytes.clone();
        for bit in [Some(first), second].into_iter().flatten() {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let Ok(header) = whole(&bytes) else { continue };
        accepted += 1;
        let mut next = header.data_start;
        for t in &header.tensors {
            assert!(t.range.start >= next && t.range.end <= bytes.len());
            let (_, block, block_bytes) = [0, 1, 24, 25, 26, 27, 28, 30]
                .into_iter()
                .chain(blocks::FORMATS.iter().filter_map(|f| f.ggml))
                .map(|n| stored(n).unwrap())
                .find(|s| s.0 == t.stored)
                .unwrap();
            assert_eq!(
                t.range.len() as u64,
                t.shape.iter().product::<usize>() as u64 / block * block_bytes
            );
            next = t.range.end;
        }
    }
    // Flips within names and values are still sound files.
    assert!(accepted > 0);
}

#[test]
fn f3_overlap_hole_trailing_bytes_and_doubles_name_the_tensor() {
    let pair = |offset: u64, data: usize| {
        File::tensors(&[tensor("a", &[16], 0, 0), tensor("bb", &[8], 0, offset)], data).refused()
    };
    assert_says(&pair(32, 64), &["bb: tensor overlaps"]);
    assert_says(&pair(0, 64), &["tensor overlaps"]);
    assert_says(&pair(96, 128), &["bb: bytes before this tensor", "byte 256, expected byte 224"]);
    assert_says(&pair(32 * 1000, 64), &["bb: file is truncated"]);
    assert_says(
        &File::tensors(&[tensor("a", &[8], 0, 32)], 64).refused(),
        &["a: bytes before this tensor"],
    );
    assert_says(
        &File::tensors(&[tensor("a", &[8], 0, 0)], 64).refused(),
        &["after the last tensor, a,"],
    );
    let double = File::tensors(&[tensor("a", &[8], 0, 0), tensor("a", &[8], 0, 32)], 64);
    assert_says(&double.refused(), &["a: tensor is listed twice"]);
    let double = File::keys(&[key("k", 0, &[1]), list("k", 5, 100, &[0; 400])]);
    assert_says(&double.refused(), &["k: metadata key is given twice"]);
}

#[test]
fn f4_counts_that_no_file_can_hold_are_refused_before_more_is_read() {
    for n in [40_001, 1_000_000, 1 << 62, u64::MAX] {
        for counts in [(n, 0), (0, n)] {
            let file = File { counts: Some(counts), ..File::new() };
            assert_says(&file.refused(), &["too many", &n.to_string()]);
            let bytes = file.bytes();
            let mut reader = Reader { bytes: &bytes, file_bytes: bytes.len() as u64, at: 0 };
            assert!(preamble(&mut reader).is_err());
            // Magic, version and the two counts.
            assert!(reader.at <= 24, "read {} bytes", reader.at);
        }
    }
    for counts in [(20_000, 2), (2, 40_000)] {
        let e = File { counts: Some(counts), ..File::new() }.refused();
        assert_says(&e, &["too short", "found 360 bytes, expected at least"]);
    }
}

#[test]
fn f5_overflowing_shapes_are_refused_even_with_a_zero_among_them() {
    for axes in [
        &[1 << 32, 1 << 32, 4][..],
        &[1 << 63, 4],
        &[u64::MAX],
        &[1 << 20, 1 << 20, 1 << 20, 1 << 20],
    ] {
        for kind in [0, 8] {
            let e = File::tensors(&[tensor("big", axes, kind, 0)], 64).refused();
            assert_says(&e, &["big: "]);
            assert!(
                ["overflows", "truncated", "not valid", "whole blocks"]
                    .iter()
                    .any(|w| e.contains(w)),
                "{e}"
            );
        }
    }
    let zero = File::tensors(&[tensor("big", &[1 << 63, 0, 1 << 63], 0, 0)], 64).refused();
    assert_says(&zero, &["big: tensor has an axis of length 0"]);
    // The offset and the bytes are each possible, their sum is not.
    let e = File::tensors(&[tensor("far", &[1 << 61], 0, u64::MAX - 31)], 64).refused();
    assert_says(&e, &["far: tensor"]);
}

#[test]
fn f6_versions_that_cannot_be_read_are_named() {
    for (version, words) in [
        (1u32, "version 1, which is not supported"),
        (3u32.swap_bytes(), "big-endian GGUF file, which is not supported: found version 3,"),
        (2u32.swap_bytes(), "found version 2,"),
        (0, "unknown version: found version 0"),
        (4, "unknown version: found version 4"),
        (0xffff_ffff, "unknown version"),
    ] {
        assert_says(
            &File { version, ..File::new() }.refused(),
            &[words, "expected version 2 or 3"],
        );
    }
}

#[test]
fn f6_an_alignment_must_be_a_power_of_two_of_moderate_size() {
    let with = |n: u32, kind: u32| File::keys(&[key(ALIGNMENT, kind, &n.to_le_bytes())]);
    for n in [0, 3, 33, 1 << 17, u32::MAX] {
        assert_says(
            &with(n, 4).refused(),
            &["general.alignment: alignment is not valid", &format!("found {n}")],
        );
    }
    assert_says(&with(32, 5).refused(), &["general.alignment", "UINT32"]);
    assert_says(
        &with(64, 4).refused(),
        &["b: tensor does not start at a multiple", "offset 32", "multiple of 64"],
    );
    for n in [1u32, 8, 1024, 65_536] {
        let tensors = vec![tensor("a", &[8], 0, 0)];
        let file = File { alignment: n as usize, tensors, data: 32, ..with(n, 4) };
        assert_eq!(file.read().data_start % n as usize, 0);
    }
}

#[test]
fn f6_lengths_of_values_are_not_believed() {
    let long = |n: u64| key("k", STRING, &n.to_le_bytes());
    for n in [1 << 30, 1 << 62, u64::MAX] {
        assert_says(
            &File::keys(&[long(n)]).refused(),
            &["k: file is too short", &n.to_string(), "expected at least"],
        );
        let name = [&n.to_le_bytes()[..], b"k"].concat();
        assert_says(
            &File::keys(std::slice::from_ref(&name)).refused(),
            &["byte 24: file is too short", &n.to_string()],
        );
        assert_says(
            &File { keys: vec![], ..File::tensors(&[name], 64) }.refused(),
            &["byte 24: file is too short"],
        );
        for kind in [0, 5, 12, STRING] {
            assert_says(
                &File::keys(&[list("k", kind, n, &[])]).refused(),
                &["k: file is too short", &n.to_string()],
            );
        }
    }
    // A gigabyte that is present (a file with a hole) is not asked for.
    let header = File::keys(&[long(1 << 30)]).bytes();
    let stop = parse(&header, 2 << 30).unwrap_err();
    let Stop::Bad(e) = stop else { panic!("asks for more bytes") };
    assert_says(&e.to_string(), &["k: header is too large", "at most 100000000 bytes"]);
}

#[test]
fn f6_nested_arrays_and_unknown_values_are_refused() {
    let nested = list("k", ARRAY, 1, &[0; 32]);
    assert_says(&File::keys(&[nested]).refused(), &["k: arrays within arrays"]);
    let many = list("k", ARRAY, u64::MAX, &[]);
    assert_says(&File::keys(&[many]).refused(), &["k: arrays within arrays"]);
    assert_says(
        &File::keys(&[key("k", 13, &[])]).refused(),
        &["k: value is of an unknown type", "value type 13"],
    );
    assert_says(
        &File::keys(&[list("k", 13, 1, &[])]).refused(),
        &["k: value is of an unknown type"],
    );
    assert_says(&File::keys(&[key("k", 7, &[2])]).refused(), &["k: value is not a bool", "[2]"]);
    assert_says(&File::keys(&[list("k", 7, 1, &[2])]).refused(), &["k: value is not a bool"]);
    assert_says(
        &File::keys(&[key("", 0, &[1])]).refused(),
        &["key has a length that is not possible"],
    );
    assert_says(
        &File::keys(&[key(&"k".repeat(65_536), 0, &[1])]).refused(),
        &["key has a length", "65536"],
    );
    assert_says(
        &File::keys(&[[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()]).refused(),
        &["key is not UTF-8"],
    );
    let bad = [&1u64.to_le_bytes()[..], b"\xff", &[0; 16]].concat();
    assert_says(
        &File { keys: vec![], ..File::tensors(&[bad], 64) }.refused(),
        &["tensor name is not UTF-8"],
    );
}

#[test]
fn f6_axes_blocks_and_types_that_cannot_be_name_the_tensor() {
    let one =
        |axes: &[u64], kind: u32| File::tensors(&[tensor("t", axes, kind, 0)], 4096).refused();
    assert_says(&one(&[0], 0), &["t: tensor has an axis of length 0", "[0]"]);
    assert_says(&one(&[4, 0, 2], 8), &["t: tensor has an axis of length 0", "[2, 0, 4]"]);
    assert_says(&one(&[1; 5], 0), &["t: tensor has too many axes", "found 5"]);
    assert_says(
        &one(&[33, 32], 8),
        &["t: rows are not whole blocks of Q8_0", "33 columns", "multiple of 32"],
    );
    assert_says(
        &one(&[32, 8], 12),
        &["t: rows are not whole blocks of Q4_K", "32 columns", "multiple of 256"],
    );
    assert_says(&one(&[], 8), &["t: rows are not whole blocks"]);
    for (number, name) in UNREADABLE {
        assert_says(&one(&[256], number), &["t: tensor is of a type that cannot be read", name]);
        assert!(stored(number).is_err());
    }
    for number in [38, 42, 150, u32::MAX] {
        assert_says(
            &one(&[256], number),
            &["t: tensor is of a type", &format!("type number {number}")],
        );
    }
}
