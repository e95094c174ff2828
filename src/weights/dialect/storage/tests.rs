//! Compares values with those of the formats' own tools: `tests/golden/formats`, made with PyPI
//! `gguf`, bitsandbytes and comfy-kitchen.

use std::path::Path;

use super::*;
use crate::dtype::blocks::FORMATS;
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
            companions.take(&file, entry).unwrap_or_else(|e| {
                // Records of what is refused are known by the test that asks for it.
                assert!(e.to_string().contains("convrot"), "{e}");
                true
            });
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
        let Reading { dtype, shape, scale } = self.companions.read(&self.file, entry)?;
        let (rows, cols) = (shape[0], shape[1]);
        let source: Arc<dyn ByteSource> = self.file.source.clone();
        let part = HostPart { source, offset: entry.range.start, rows, cols, dtype, scale };
        Ok(HostWeight { rows, cols, parts: vec![part] })
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
        let two = HostWeight { rows: 2, cols: weight.cols, parts: vec![part] };
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
    for case in ["nf4", "nf4_any", "nf4_any_nested", "nf4_as_bf16", "nf4_nested"] {
        goldens.check(case, "weight", DType::Nf4, 0);
    }
    for (case, words) in [
        ("nf4_128", "blocksize"),
        ("nf4_crossing", "whole number of blocks"),
        ("fp4", "whole number"),
    ] {
        let e = goldens.read(&format!("{case}.weight")).unwrap_err().to_string();
        assert!(e.contains(words), "{case}: {e}");
    }
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
fn rotated_int8_is_refused_by_name() {
    let goldens = Goldens::open("comfy.safetensors");
    let mut companions = Companions::default();
    let e = companions
        .take(&goldens.file, goldens.entry("int8_rotated.comfy_quant"))
        .unwrap_err()
        .to_string();
    assert!(e.contains("convrot"), "{e}");
}

#[test]
fn formats_may_stand_in_the_header() {
    let goldens = Goldens::open("comfy_header.safetensors");
    let mut companions = Companions::default();
    for entry in &goldens.file.header.tensors {
        companions.take(&goldens.file, entry).unwrap();
    }
    let e = companions
        .take_metadata(&goldens.file.header.metadata, "model.diffusion_model.")
        .unwrap_err()
        .to_string();
    assert!(e.contains("convrot") && e.contains("int8_rotated_64"), "{e}");
    let mut metadata = goldens.file.header.metadata.clone();
    let text = metadata.get_mut("_quantization_metadata").unwrap();
    *text = text.replace("\"convrot\": true", "\"convrot\": false");
    companions.take_metadata(&metadata, "model.diffusion_model.").unwrap();
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
