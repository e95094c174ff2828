//! The faults of the container, each with its number in the list of faults.

use super::*;
use crate::dtype::DType;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    super::parse(bytes, bytes.len() as u64)
}

fn refused(header: &str, data: usize) -> String {
    let e = parse(&file(header, data)).expect_err(header);
    assert_eq!(e.kind(), crate::error::Kind::Model);
    e.to_string()
}

const TWO: &str = concat!(
    r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
    r#""b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#
);

#[test]
fn a_sound_file_is_read_in_the_order_of_its_bytes() {
    let header = parse(&file(TWO, 26)).unwrap();
    assert_eq!(header.data_start, 8 + TWO.len());
    assert_eq!(header.metadata["format"], "pt");
    let [a, b] = header.tensors.as_slice() else { panic!("two tensors") };
    assert_eq!(
        (a.name.as_str(), a.stored, a.shape.as_slice()),
        ("a", StoredType::Float(DType::F32), &[2, 3][..])
    );
    assert_eq!(b.range, header.data_start + 24..header.data_start + 26);
    // Trailing spaces pad the header. A file without tensors is valid, and so are empty tensors.
    parse(&file(&format!("{TWO}   "), 26)).unwrap();
    assert_eq!(parse(&file("{}", 0)).unwrap().tensors, []);
    let empty_and_one = concat!(
        r#"{"a":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]},"#,
        r#""b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#
    );
    parse(&file(empty_and_one, 1)).unwrap();
}

#[test]
fn f1_every_truncation_is_refused() {
    let whole = file(TWO, 26);
    for cut in 0..whole.len() {
        let e = parse(&whole[..cut]).expect_err("cut").to_string();
        assert!(e.contains(&format!("found {cut} bytes")), "{cut}: {e}");
    }
}

#[test]
fn f2_bit_flips_give_an_error_or_a_consistent_parse() {
    let whole = file(TWO, 26);
    let mut accepted = 0;
    for byte in 0..8 + TWO.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1 << bit;
            let Ok(header) = parse(&bytes) else { continue };
            accepted += 1;
            let mut next = header.data_start;
            for t in &header.tensors {
                assert_eq!(t.range.start, next);
                let bits = t.shape.iter().product::<usize>() * t.stored.bits() as usize;
                assert_eq!(t.range.len() * 8, bits);
                next = t.range.end;
            }
            assert_eq!(next, bytes.len());
        }
    }
    // Flips within names and metadata give files that are still valid.
    assert!(accepted > 0);
}

#[test]
fn f2_what_other_readers_let_pass_is_refused() {
    let space = format!(" {TWO}");
    assert!(refused(&space, 26).contains("does not begin with '{'"));
    let zero_alias = concat!(
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"#,
        r#""z":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}"#
    );
    assert!(refused(zero_alias, 4).starts_with("z: "));
    assert!(refused(&format!("{TWO}x"), 26).contains("not valid"));
    assert!(refused("[]", 0).contains("does not begin"));
    assert!(parse(&file("{\"\u{0}\":1}", 0)).is_err());
    let mut not_utf8 = file(r#"{"a_":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    not_utf8[11] = 0xff;
    assert!(parse(&not_utf8).is_err());
}

#[test]
fn f3_overlap_hole_trailing_bytes_and_duplicates_name_the_tensor() {
    let pair =
        |b: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},{b}}}"#);
    let overlap = pair(r#""bb":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}"#);
    assert!(refused(&overlap, 6).starts_with("bb: tensor overlaps"));
    let hole = pair(r#""bb":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}"#);
    assert!(refused(&hole, 9).starts_with("bb: bytes before this tensor"));
    let trailing = refused(TWO, 27);
    assert!(trailing.contains("after the last tensor, b,"), "{trailing}");
    let twice = pair(r#""a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}"#);
    assert!(refused(&twice, 8).starts_with("a: tensor is listed twice"));
    let field_twice = r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(refused(field_twice, 1).contains("duplicate field"));
    assert!(refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("twice"));
    assert!(refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0).contains("k is given twice"));
}

#[test]
fn f4_absurd_header_lengths_are_refused_by_the_first_eight_bytes() {
    for length in [0u64, 100_000_001, 1 << 63, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        let e = header_bytes(&bytes, u64::MAX).unwrap_err().to_string();
        assert!(e.contains(&length.to_string()), "{e}");
        bytes.extend([b'{'; 64]);
        let e = parse(&bytes).unwrap_err().to_string();
        assert!(e.contains(&length.to_string()), "{e}");
    }
}

#[test]
fn f4_a_million_tensors_are_refused_early() {
    let mut header = String::from("{");
    for i in 0..1_000_000 {
        header += &format!(r#""t{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}},"#, i + 1);
    }
    header.pop();
    header += "}";
    let bytes = file(&header, 1_000_000);
    let e = parse(&bytes).unwrap_err().to_string();
    assert!(e.contains("more than 20000 tensors"), "{e}");
    // Neither more tensors are stored than that, nor is more of the header read.
    let mut raw = Raw::default();
    let mut parser = serde_json::Deserializer::from_slice(&bytes[8..8 + header.len()]);
    let e = RawSeed(&mut raw).deserialize(&mut parser).unwrap_err();
    assert_eq!(raw.tensors.len(), MAX_TENSORS);
    let first_too_many = header.find("\"t20001\"").unwrap();
    assert!(e.column() <= first_too_many, "{} of {first_too_many}", e.column());
}

#[test]
fn f5_overflowing_shapes_are_refused_even_with_a_zero_among_them() {
    for shape in [
        "[4294967296,4294967296,4]",
        "[9223372036854775808,4,0]",
        "[0,9223372036854775808,9223372036854775808]",
        "[18446744073709551615]",
    ] {
        let header = format!(r#"{{"big":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        assert!(refused(&header, 0).starts_with("big: tensor's shape overflows"), "{shape}");
    }
    for (shape, words) in [
        ("[1,1,1,1,1,1,1,1,1]", "more than 8 axes"),
        ("[-1]", "invalid value"),
        ("[1.5]", "invalid type"),
        ("[18446744073709551616]", "invalid"),
    ] {
        let header = format!(r#"{{"big":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        let e = refused(&header, 4);
        assert!(e.contains(words) && e.contains("big"), "{e}");
    }
}

#[test]
fn f7_sizes_and_types_that_do_not_fit_name_the_tensor() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        refused(
            &format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#),
            8,
        )
    };
    assert!(one("F32", "[3]", "[0,8]").contains(
        "w: tensor's byte range does not match its shape: found 8 bytes, \
                 expected 12 bytes for F32 [3]"
    ));
    assert!(
        one("F33", "[2]", "[0,8]").contains("w: tensor has an unknown element type: found F33")
    );
    assert!(one("U8", "[8]", "[8,0]").contains("byte range is not valid"));
    assert!(
        one("U8", "[8]", "[18446744073709551607,18446744073709551615]")
            .contains("byte range is not valid")
    );
    assert!(one("F4", "[3]", "[0,2]").contains("does not match"));
    assert!(one("U8", "[8]", "[0]").contains("w: "));
}

#[test]
fn f2_a_header_of_endless_lists_is_refused_before_it_is_stored() {
    let long = format!(
        r#"{{"a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#,
        "0,".repeat(5_000_000)
    );
    assert!(refused(&long, 0).contains("more than 8 axes"));
    let deep = format!(r#"{{"a":{{"x":{}"#, "[".repeat(200_000));
    assert!(refused(&deep, 0).contains("not valid"));
}
