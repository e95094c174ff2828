//! Files of common writers are read completely; invalid files are refused with the place and the
//! numbers.

mod faults;

use std::path::PathBuf;

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
