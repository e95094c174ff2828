//! Compares values with those of the formats' own tools: `tests/golden/formats`, made with PyPI
//! `gguf`, bitsandbytes and comfy-kitchen.

use std::path::Path;

use super::*;
use crate::dtype::blocks::FORMATS;
use crate::dtype::int8::Int8;
use crate::tensor::{ByteSource, HostPart, HostWeight};

/// A file of goldens, and its companions.
struct Goldens {
    file: Arc<WeightFile>,
    companions: Companions,
}

impl Goldens {
    fn open(name: &str) -> Goldens {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats").join(name);
        let file = Arc::new(WeightFile::open(&path).unwrap());
        let mut companions = Companions::among(file.header.tensors.iter().map(|t| t.name.as_str()));
        for entry in &file.header.tensors {
            companions.take(&file, entry).unwrap();
        }
        Goldens { file, companions }
    }

    fn entry(&self, name: &str) -> &TensorEntry {
        self.file
            .header
            .tensors
            .iter()
            .find(|t| t.name == name)
            .unwrap_or_else(|| panic!("no {name}"))
    }

    fn floats(&self, name: &str) -> (usize, Vec<f32>) {
        let entry = self.entry(name);
        let bytes = &self.file.source.bytes()[entry.range.clone()];
        (entry.shape[1], bytes.chunks_exact(4).map(|b| DType::F32.decode(b)).collect())
    }

    fn read(&self, name: &str) -> Result<HostWeight> {
        let entry = self.entry(name);
        let Reading { dtype, shape, scale, rotation } = self.companions.read(&self.file, entry)?;
        let (rows, cols) = (shape[0], shape[1]);
        let source: Arc<dyn ByteSource> = self.file.source.clone();
        let part =
            HostPart { rotation, source, offset: entry.range.start, rows, cols, dtype, scale };
        Ok(HostWeight { int8: None, rows, cols, parts: vec![part] })
    }

    /// Compares the values of `case` with its golden, which may be smaller: it has no padding.
    fn check(&self, case: &str, tensor: &str, dtype: DType, ulps: u32) {
        let weight =
            self.read(&format!("{case}.{tensor}")).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(weight.parts[0].dtype, dtype, "{case}");
        let (cols, want) = self.floats(&format!("{case}.expected"));
        let got = weight.to_f32();
        let rows = got.chunks(weight.cols);
        for (r, (want, got)) in want.chunks(cols).zip(rows).enumerate() {
            for (c, (want, got)) in want.iter().zip(got).enumerate() {
                // Zeros may differ in sign.
                let near = want == got || (want - got).abs() <= want.abs() * 6e-8 * ulps as f32;
                assert!(near, "{case}[{r}, {c}]: {got:e}, expected {want:e}");
            }
        }
        // A slice of rows finds its own scales.
        let part = weight.parts[0].slice(3, 2);
        let two = HostWeight { int8: None, rows: 2, cols: weight.cols, parts: vec![part] };
        assert_eq!(two.to_f32(), got[3 * weight.cols..5 * weight.cols], "{case}");
    }
}

#[test]
fn blocks_of_gguf_are_what_its_reference_says_bit_for_bit() {
    let goldens = Goldens::open("ggml.safetensors");
    let mut seen = 0;
    for format in FORMATS.iter().filter(|f| f.ggml.is_some()) {
        let (cols, want) = goldens.floats(&format!("{}.values", format.name));
        let bytes = &goldens.file.source.bytes()
            [goldens.entry(&format!("{}.bytes", format.name)).range.clone()];
        let row_bytes = format.bytes_of(cols);
        for (row, want) in bytes.chunks_exact(row_bytes).zip(want.chunks_exact(cols)) {
            let mut got = vec![f32::NAN; cols];
            format.decode(row, &[], 0, &mut got);
            // A window in the middle is the same.
            let mut some = [f32::NAN; 96];
            format.decode(row, &[], 224, &mut some);
            assert_eq!(some, got[224..320]);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert!(got == want, "{}[{i}]: {got:e}, expected {want:e}", format.name);
                seen += 1;
            }
        }
    }
    assert!(seen >= 10 * 4 * 768, "{seen}");
}

#[test]
fn four_bit_types_of_bitsandbytes_are_what_it_makes_of_them_bit_for_bit() {
    let goldens = Goldens::open("bnb.safetensors");
    // A block of 128 elements crosses the end of a row of 192.
    for case in ["nf4", "nf4_128", "nf4_any", "nf4_any_nested", "nf4_as_bf16", "nf4_nested"] {
        goldens.check(case, "weight", DType::Nf4, 0);
    }
    for (case, words) in [("nf4_crossing", "whole number of blocks"), ("fp4", "whole number")] {
        let e = goldens.read(&format!("{case}.weight")).unwrap_err().to_string();
        assert!(e.contains(words), "{case}: {e}");
    }
}

/// A file of these tensors in memory.
fn file(tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) -> Goldens {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range });
        header.insert((*name).into(), entry);
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let file = Arc::new(WeightFile::open(&path).unwrap());
    let mut companions = Companions::among(file.header.tensors.iter().map(|t| t.name.as_str()));
    for entry in &file.header.tensors {
        companions.take(&file, entry).unwrap();
    }
    Goldens { file, companions }
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn blocks_of_any_multiple_of_64_repeat_their_scales() {
    let codes = [-1.0, -0.696_192_8, -0.525_073_05];
    let step = |i: usize| 0.5 + i as f32;
    for (size, rows, cols) in
        [(128usize, 3usize, 192usize), (256, 5, 64), (4096, 2, 128), (64, 3, 128)]
    {
        let (elements, blocks) = (rows * cols, (rows * cols).div_ceil(size));
        let state = serde_json::json!({
            "blocksize": size, "shape": [rows, cols], "dtype": "bfloat16", "quant_type": "nf4",
            "nested_blocksize": 2, "nested_offset": 0.25,
        });
        let state = state.to_string().into_bytes();
        // Elements 0, 1, 2, 0, 1, 2, ...: two in a byte, the first in the upper half.
        let packed: Vec<u8> =
            (0..elements / 2).map(|i| (((2 * i % 3) << 4) | ((2 * i + 1) % 3)) as u8).collect();
        let nested = |i: usize| i as f32 * (1.0 + (i / 2) as f32) + 0.25;
        for is_nested in [false, true] {
            let scales: Vec<f32> = (0..blocks).map(step).collect();
            let mut tensors = vec![
                ("x.weight", "U8", vec![elements / 2, 1], packed.clone()),
                ("x.weight.quant_state.bitsandbytes__nf4", "U8", vec![state.len()], state.clone()),
            ];
            match is_nested {
                false => tensors.push(("x.weight.absmax", "F32", vec![blocks], le(&scales))),
                true => {
                    let groups: Vec<f32> =
                        (0..blocks.div_ceil(2)).map(|i| 1.0 + i as f32).collect();
                    let map: Vec<f32> = (0..256).map(|i| i as f32).collect();
                    let indices = (0..blocks).map(|i| i as u8).collect();
                    tensors.push(("x.weight.absmax", "U8", vec![blocks], indices));
                    tensors.push((
                        "x.weight.nested_absmax",
                        "F32",
                        vec![groups.len()],
                        le(&groups),
                    ));
                    tensors.push(("x.weight.nested_quant_map", "F32", vec![256], le(&map)));
                }
            }
            let weight = file(&tensors).read("x.weight").unwrap();
            let scale = |i: usize| if is_nested { nested(i) } else { step(i) };
            let want = |i: usize| codes[i % 3] * scale(i / size);
            for (i, value) in weight.to_f32().into_iter().enumerate() {
                assert_eq!(value, want(i), "{size}, {rows}x{cols}, element {i}");
            }
            // The bytes that a load brings in contain every scale of its rows.
            let part = weight.parts[0].slice(1, rows - 1);
            let Scale::Blocks(scales) = &part.scale else { panic!("no scales") };
            let bytes = if is_nested { 1 } else { 4 };
            let (first, last) = (cols / size, (elements - 1) / size);
            let range = scales.range(0, rows - 1);
            assert_eq!(
                (range.len() / bytes, range.start),
                (last - first + 1, scales.offset + first * bytes,)
            );
        }
    }
    let bad = |size: usize| {
        let state = serde_json::json!({ "blocksize": size, "shape": [2, 64] }).to_string();
        let state = state.into_bytes();
        let e = file(&[
            ("x.weight", "U8", vec![64, 1], vec![0; 64]),
            ("x.weight.quant_state.bitsandbytes__nf4", "U8", vec![state.len()], state),
            ("x.weight.absmax", "F32", vec![2], le(&[1.0, 1.0])),
        ]);
        e.read("x.weight").unwrap_err().to_string()
    };
    for size in [0, 32, 96, usize::MAX] {
        assert!(bad(size).contains("blocksize"), "{size}: {}", bad(size));
    }
}

#[test]
fn int8_of_bitsandbytes_is_its_largest_value_in_127_steps() {
    let weight: Vec<u8> = [-127i8, 0, 64, 127, 1, -1, 5, -128].iter().map(|v| *v as u8).collect();
    let named = |scb: &[f32], format: Option<u8>, dtype: &'static str| {
        let mut tensors = vec![
            ("x.weight", dtype, vec![2, 4], weight.clone()),
            ("x.SCB", "F32", vec![scb.len()], le(scb)),
        ];
        tensors.extend(format.map(|f| ("x.weight_format", "U8", vec![], vec![f])));
        file(&tensors).read("x.weight")
    };
    let found = named(&[0.75, 3.0e-3], Some(0), "I8").unwrap();
    assert_eq!(found.parts[0].dtype, DType::I8);
    // As bitsandbytes computes it: (integer * SCB) * (1 / 127).
    for (i, value) in found.to_f32().into_iter().enumerate() {
        let scb = [0.75f32, 3.0e-3][i / 4];
        let want = f32::from(weight[i] as i8) * scb * (1.0 / 127.0);
        assert!((value - want).abs() <= want.abs() * 2.4e-7, "{i}: {value}, expected {want}");
    }
    assert!(named(&[0.75, 0.0], None, "I8").is_ok());
    for (scb, format, dtype, words) in [
        (&[0.75f32, 1.0][..], Some(2), "I8", "order of a GPU"),
        (&[0.75], None, "I8", "SCB has the wrong size"),
        (&[0.75, -1.0], None, "I8", "negative"),
        (&[0.75, f32::NAN], None, "I8", "not a finite number"),
        (&[0.75, 1.0], None, "U8", "bitsandbytes int8"),
    ] {
        let e = named(scb, format, dtype).unwrap_err().to_string();
        assert!(e.contains(words), "{words}: {e}");
    }
    let lost = file(&[
        ("x.weight", "I8", vec![2, 4], weight.clone()),
        ("x.weight_format", "U8", vec![], vec![0]),
    ]);
    let e = lost.read("x.weight").unwrap_err().to_string();
    assert!(e.contains("x.SCB"), "{e}");
}

#[test]
fn scaled_and_microscaled_types_are_what_comfy_makes_of_them() {
    let goldens = Goldens::open("comfy.safetensors");
    for case in ["fp8", "fp8_precise"] {
        goldens.check(case, "weight", DType::F8E4M3, 0);
    }
    goldens.check("fp8_e5m2", "weight", DType::F8E5M2, 0);
    for case in ["int8", "int8_rows", "int8_rows_flat"] {
        goldens.check(case, "weight", DType::I8, 0);
    }
    for case in ["mxfp8", "mxfp8_u8", "mxfp8_wide"] {
        goldens.check(case, "weight", DType::Mxfp8, 0);
    }
    // The second scale is multiplied last here, and first there.
    for case in ["nvfp4", "nvfp4_padded", "nvfp4_u8"] {
        goldens.check(case, "weight", DType::Nvfp4, 2);
    }
    let e = goldens.read("nvfp4_smooth.weight").unwrap_err().to_string();
    assert!(e.contains("pre_quant_scale"), "{e}");
}

#[test]
fn rotated_int8_is_rotated_back() {
    let goldens = Goldens::open("comfy.safetensors");
    for (case, group) in [
        ("int8_rotated", 256),
        ("int8_rotated_64", 64),
        ("int8_rotated_default", 256),
        ("int8_rotated_16", 16),
    ] {
        let weight = goldens.read(&format!("{case}.weight")).unwrap();
        assert_eq!(weight.parts[0].rotation, Rotation::new(group), "{case}");
        let (cols, want) = goldens.floats(&format!("{case}.expected"));
        assert_eq!(cols, weight.cols);
        // The integers are scaled before they are rotated back, so that sums are rounded.
        for (got, want) in weight.to_f32().iter().zip(&want) {
            assert!((got - want).abs() < 2e-6, "{case}: {got} is not {want}");
        }
    }
}

#[test]
fn codes_of_four_bits_stand_for_the_integers_of_comfy_kitchen() {
    let goldens = Goldens::open("w4a8.safetensors");
    for (case, group) in [("plain", 256), ("wide", 64), ("default", 256)] {
        let weight = goldens.read(&format!("{case}.weight")).unwrap();
        let part = &weight.parts[0];
        let rotation = Rotation::new(group);
        assert_eq!((part.dtype, part.rotation), (DType::W4A8, rotation), "{case}");
        let entry = goldens.entry(&format!("{case}.integers"));
        let want = &goldens.file.source.bytes()[entry.range.clone()];
        let factors = &goldens.entry(&format!("{case}.weight_s_channel")).range;
        let factors = goldens.file.source.bytes()[factors.clone()].chunks_exact(4);
        let factors: Vec<f32> = factors.map(|b| DType::F32.decode(b)).collect();
        let (mut values, mut got) = (vec![0.0; weight.cols], vec![0; weight.cols]);
        // A slice of rows finds its own scales.
        for (part, first) in [(part.clone(), 0), (part.slice(2, 3), 2)] {
            for (r, bytes) in part.bytes().chunks(part.row_bytes()).enumerate() {
                let row = (r, bytes);
                let scale = part.unpack_integers(Int8 { rotation }, row, &mut values, &mut got);
                assert_eq!(scale, Some(factors[first + r]), "{case}");
                let want = want[(first + r) * weight.cols..][..weight.cols].iter();
                assert!(got.iter().zip(want).all(|(got, want)| *got as u8 == *want), "{case}");
                let other = Int8 { rotation: None };
                assert_eq!(part.unpack_integers(other, row, &mut values, &mut got), None);
            }
        }
        let (cols, want) = goldens.floats(&format!("{case}.expected"));
        assert_eq!(cols, weight.cols);
        for (got, want) in weight.to_f32().iter().zip(&want) {
            assert!((got - want).abs() < 2e-6, "{case}: {got} is not {want}");
        }
    }
    for (case, what) in [
        ("fine", "in groups that are not a multiple of 16"),
        ("six", "with codes of 6 bits"),
        ("offsets", "with offsets of groups (correction)"),
        ("uniform", "without a codebook"),
        ("own", "with a codebook of its own"),
    ] {
        let e = goldens.read(&format!("{case}.weight")).unwrap_err().to_string();
        assert!(e.contains(&format!("asym_w4a8_int8 {what}, which is not supported")), "{e}");
    }
}

#[test]
fn unusable_rotations_are_refused() {
    let refuse = |record: Value| {
        let mut companions = Companions::default();
        companions.set_record("layer", record).unwrap_err().to_string()
    };
    for group in [0, 32, 1 << 20] {
        let record = serde_json::json!({
            "format": "int8_tensorwise", "convrot": true, "convrot_groupsize": group,
        });
        let e = refuse(record);
        assert!(e.contains("a power of 4") && e.contains(&group.to_string()), "{e}");
    }
    let e = refuse(serde_json::json!({"format": "float8_e4m3fn", "convrot": true}));
    assert!(e.contains("float8_e4m3fn with rotated inputs (convrot)"), "{e}");
}

#[test]
fn formats_may_stand_in_the_header() {
    let goldens = Goldens::open("comfy_header.safetensors");
    let mut companions = Companions::default();
    for entry in &goldens.file.header.tensors {
        companions.take(&goldens.file, entry).unwrap();
    }
    let metadata = &goldens.file.header.metadata;
    companions.take_metadata(metadata, "model.diffusion_model.").unwrap();
    let goldens = Goldens { companions, ..goldens };
    for (case, dtype, ulps) in [
        ("fp8", DType::F8E4M3, 0),
        ("mxfp8_wide", DType::Mxfp8, 0),
        ("nvfp4_padded", DType::Nvfp4, 2),
        ("int8_rows", DType::I8, 0),
    ] {
        goldens.check(&format!("model.diffusion_model.{case}"), "weight", dtype, ulps);
    }
}

#[test]
fn aredden_fp8_is_the_data_times_the_reciprocal() {
    let goldens = Goldens::open("aredden.safetensors");
    for layer in [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_mod.lin",
        "guidance_in.out_layer",
        "single_blocks.0.linear1",
        "txt_in",
    ] {
        goldens.check(layer, "float8_data", DType::F8E4M3, 0);
        assert_eq!(
            weight_name(&format!("{layer}.float8_data")).unwrap(),
            format!("{layer}.weight")
        );
    }
    // The gain of a norm ends like a scale, and plain layers stay plain.
    let plain = |name: &str| {
        let mut companions =
            Companions::among(goldens.file.header.tensors.iter().map(|t| t.name.as_str()));
        !companions.take(&goldens.file, goldens.entry(name)).unwrap()
    };
    assert!(
        plain("double_blocks.0.img_attn.norm.query_norm.scale")
            && plain("final_layer.linear.weight")
    );
    assert!(!plain("txt_in.weight"));
}

#[test]
fn simple_encoders_write_the_bytes_of_the_reference() {
    let goldens = Goldens::open("encode.safetensors");
    let (cols, source) = goldens.floats("source");
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1] {
        let format = dtype.format().unwrap();
        let want = &goldens.file.source.bytes()
            [goldens.entry(&format!("{}.bytes", format.name)).range.clone()];
        let mut got = Vec::new();
        source.chunks_exact(cols).for_each(|row| format.encode(row, 0.0, &mut got, &mut vec![]));
        let wrong = got.iter().zip(want).filter(|(a, b)| a != b).count();
        assert!(
            got.len() == want.len() && wrong == 0,
            "{}: {wrong} of {} bytes differ",
            format.name,
            want.len()
        );
    }
}
