//! Damaged and hostile files: the faults F1 to F6.

use super::super::types::UNREADABLE;
use super::*;

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
