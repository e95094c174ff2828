use super::*;
use crate::dtype::int8::Rotation;
use crate::tensor::{BlockScale, BlockScales};

fn part(rows: usize, cols: usize, dtype: DType, scale: Scale) -> HostPart {
    let mut bytes = Vec::new();
    (0..rows * cols).for_each(|i| dtype.encode((i % 13) as f32 - 6.0, &mut bytes));
    HostPart { rotation: None, source: Arc::new(bytes), offset: 0, rows, cols, dtype, scale }
}

const BF16: Types = Types { f32: DType::BF16, kernel: DType::BF16 };

/// The bytes of the weight on a device.
fn image(weight: &HostWeight, how: Use) -> (Form, Vec<u8>) {
    let form = Form::of(weight, how, BF16);
    let mut bytes = vec![0xee; form.bytes];
    for piece in form.pieces(weight, how) {
        // In two reads, if it can be divided.
        let half = piece.bytes / piece.unit / 2 * piece.unit;
        let (first, second) = bytes[piece.to..piece.to + piece.bytes].split_at_mut(half);
        piece.read(0, first).unwrap();
        piece.read(half, second).unwrap();
    }
    (form, bytes)
}

#[test]
fn parts_of_one_type_are_one_matrix_followed_by_its_scales() {
    let rows: Arc<[f32]> = vec![0.5; 20].into();
    let parts = vec![
        part(24, 48, DType::F8E4M3, Scale::Tensor(2.0)),
        part(20, 48, DType::F8E4M3, Scale::Rows(rows)),
        part(5, 48, DType::F32, Scale::One),
    ];
    let weight = HostWeight { int8: None, rows: 49, cols: 48, parts };
    let (form, bytes) = image(&weight, Use::Matrix);
    let shapes: Vec<_> =
        form.segments.iter().map(|s| (s.first, s.rows, s.dtype, s.scales.is_some())).collect();
    assert_eq!(shapes, [(0, 44, DType::F8E4M3, true), (44, 5, DType::BF16, false)]);
    let whole = weight.to_f32();
    for s in &form.segments {
        for (r, c) in (0..s.rows).flat_map(|r| (0..48).map(move |c| (r, c))) {
            let at = s.offset + (r * s.stride + c) * s.dtype.size();
            let scale = s.scales.map_or(1.0, |o| DType::F32.decode(&bytes[o + 4 * r..]));
            assert_eq!(s.dtype.decode(&bytes[at..]) * scale, whole[(s.first + r) * 48 + c]);
        }
    }
}

/// The rows of integers and their factors in `bytes`, as the device has them.
fn integers_of(form: &Form, bytes: &[u8]) -> (Vec<i8>, Vec<f32>) {
    let [s] = form.segments[..] else { panic!("one segment") };
    let rows = bytes[s.offset..].chunks(s.stride).take(s.rows);
    let q = rows.flat_map(|row| row[..s.cols].iter().map(|q| *q as i8)).collect();
    let scales = bytes[s.scales.unwrap()..].chunks(4).take(s.rows);
    (q, scales.map(|b| DType::F32.decode(b)).collect())
}

#[test]
fn weights_of_any_type_become_integers_and_integers_stay_what_they_are() {
    let rows: Arc<[f32]> = vec![0.5; 20].into();
    let parts = vec![
        part(24, 48, DType::F8E4M3, Scale::Tensor(2.0)),
        part(20, 48, DType::I8, Scale::Rows(rows.clone())),
        part(5, 48, DType::BF16, Scale::One),
    ];
    let int8 = Int8 { rotation: Rotation::of_columns(48) };
    let weight = HostWeight { rows: 49, cols: 48, parts, int8: Some(int8) };
    let (form, bytes) = image(&weight, Use::Matrix);
    let (q, scales) = integers_of(&form, &bytes);
    for (r, mut row) in weight.to_f32().chunks(48).map(<[f32]>::to_vec).enumerate() {
        let mut want = vec![0; 48];
        assert_eq!(int8.quantise(&mut row, &mut want), scales[r], "row {r}");
        assert_eq!(want, q[48 * r..][..48], "row {r}");
    }
    // The factors alone, as where the rows come from a copy.
    let pieces = form.pieces(&weight, Use::Matrix);
    let last = pieces.last().unwrap();
    let mut factors = vec![0; last.bytes];
    last.read(0, &mut factors).unwrap();
    assert_eq!(factors, bytes[last.to..last.to + last.bytes]);

    let stored = HostPart { rotation: int8.rotation, ..weight.parts[1].clone() };
    let weight = HostWeight { rows: 20, parts: vec![stored], ..weight };
    let (form, bytes) = image(&weight, Use::Matrix);
    let (q, scales) = integers_of(&form, &bytes);
    assert!(q.iter().zip(weight.parts[0].bytes()).all(|(q, b)| *q == *b as i8));
    assert_eq!(scales, rows[..]);
    // The same weight where products are not computed in integers: rotated back.
    let weight = HostWeight { int8: None, ..weight };
    let (form, bytes) = image(&weight, Use::Matrix);
    assert_eq!((form.segments[0].dtype, form.segments[0].scales), (DType::BF16, None));
    for (i, want) in weight.to_f32().into_iter().enumerate() {
        let mut rounded = vec![];
        DType::BF16.encode(want, &mut rounded);
        assert_eq!(bytes[2 * i..2 * i + 2], rounded, "element {i}");
    }
}

/// A device gets the integers that codes of 4 bits stand for.
#[test]
fn codes_for_integers_become_these() {
    let rotation = Rotation::new(16);
    let int8 = Int8 { rotation };
    let scales = BlockScales::new(Arc::new(vec![0x70; 9]), 0, BlockScale::E4M3, 3);
    let factors: Arc<[f32]> = vec![0.5, 0.25, 2.0].into();
    let scale = Scale::Blocks(scales.with_factors(factors.clone()));
    let source = Arc::new((0..3 * 24u8).map(|i| i.wrapping_mul(37)).collect::<Vec<_>>());
    let (rows, cols, dtype) = (3, 48, DType::W4A8);
    let codes = HostPart { source, offset: 0, rows, cols, dtype, scale, rotation };
    let weight = HostWeight { rows: 3, cols: 48, parts: vec![codes], int8: Some(int8) };
    let (form, bytes) = image(&weight, Use::Matrix);
    let (q, found) = integers_of(&form, &bytes);
    assert_eq!(found, factors[..]);
    for (r, stored) in weight.parts[0].bytes().chunks(24).enumerate() {
        let (mut values, mut want) = (vec![0.0; 48], vec![0; 48]);
        weight.parts[0].unpack_integers(int8, (r, stored), &mut values, &mut want).unwrap();
        assert_eq!(want, q[48 * r..][..48], "row {r}");
        assert!(want.iter().any(|q| q.unsigned_abs() > 100), "{want:?}");
    }
}

#[test]
fn odd_rows_are_padded_with_zeros() {
    let weight = HostWeight {
        int8: None,
        rows: 3,
        cols: 31,
        parts: vec![part(3, 31, DType::F8E4M3, Scale::One)],
    };
    let (form, bytes) = image(&weight, Use::Matrix);
    assert_eq!((form.segments[0].stride, form.bytes), (32, 96));
    assert!((0..3).all(|r| bytes[r * 32 + 31] == 0));
}

#[test]
fn kernels_have_the_input_channel_fastest_and_vectors_are_f32() {
    let weight = HostWeight {
        int8: None,
        rows: 2,
        cols: 3 * 9,
        parts: vec![part(2, 27, DType::F16, Scale::One)],
    };
    let (form, bytes) = image(&weight, Use::Kernel { taps: 9 });
    let s = form.segments[0];
    let whole = weight.to_f32();
    for (o, c, t) in (0..2).flat_map(|o| (0..3).flat_map(move |c| (0..9).map(move |t| (o, c, t)))) {
        let at = 2 * (o * s.stride + t * 3 + c);
        assert_eq!(DType::BF16.decode(&bytes[at..]), whole[o * 27 + c * 9 + t]);
    }
    let weight = HostWeight {
        int8: None,
        rows: 1,
        cols: 5,
        parts: vec![part(1, 5, DType::BF16, Scale::Tensor(0.5))],
    };
    let (_, bytes) = image(&weight, Use::Vector);
    assert_eq!(bytes.chunks(4).map(|b| DType::F32.decode(b)).collect::<Vec<_>>(), weight.to_f32());
}
