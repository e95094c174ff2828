//! GGUF files: found by their extension, recognised by their first bytes, split or whole; and
//! truncated, swapped or of the wrong kind.

use std::path::{Path, PathBuf};

use flux_fast::error::Kind;
use flux_fast::library::{Checkpoint, Files, inspect, open};
use flux_fast::spec::Component;
use flux_fast::spec::flux1::{CLIP, FLUX1, T5, TRANSFORMER, VAE};
use flux_fast::weights::lora;

use super::support::*;

/// diffusers' vector of scale and shift, which FLUX.1 has in the other order.
const HALVES: &str = "norm_out.linear.bias";
const F16: u32 = 1;
const Q8_0: u32 = 8;

/// Writes a sparse file of zeros with these tensors. Matrices whose rows are whole blocks, and the
/// vector of scale and shift, have the type `kind`; the rest is F32.
fn sparse_gguf(path: &Path, kind: u32, tensors: &[Named]) -> PathBuf {
    let text = |s: &str| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
    let mut bytes =
        [&b"GGUF\x03\0\0\0"[..], &(tensors.len() as u64).to_le_bytes(), &1u64.to_le_bytes()]
            .concat();
    bytes
        .extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("flux")].concat());
    let mut end = 0u64;
    for (name, shape) in tensors {
        let n = shape.iter().product::<usize>() as u64;
        let (kind, size) = match kind {
            Q8_0 if shape.len() == 2 && shape[1] % 32 == 0 || name == HALVES => (Q8_0, n / 32 * 34),
            F16 => (F16, 2 * n),
            _ => (0, 4 * n),
        };
        bytes.extend([text(name), (shape.len() as u32).to_le_bytes().to_vec()].concat());
        bytes.extend(shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
        bytes.extend([&kind.to_le_bytes()[..], &end.to_le_bytes()].concat());
        end = (end + size).next_multiple_of(32);
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((bytes.len() as u64).next_multiple_of(32) + end).unwrap();
    path.into()
}

fn place(checkpoint: &Checkpoint, component: Component) -> &Path {
    checkpoint.need(component).unwrap().files().next().unwrap()
}

#[test]
fn gguf_files_are_found_where_safetensors_files_are() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("ComfyUI/models");
    let model = sparse_gguf(&models.join("unet/flux1-dev-Q8_0.gguf"), Q8_0, &list("bfl_dev.txt"));
    // A truncated file and another kind of encoder are skipped.
    std::fs::write(models.join("unet/a.gguf"), b"GGUF\x03\0\0\0").unwrap();
    let clip = sparse_gguf(&models.join("clip/clip_l.gguf"), F16, &list("clip.txt"));
    sparse_gguf(&models.join("text_encoders/t5xxl-Q8_0.GGUF"), Q8_0, &list("t5_encoder.txt"));
    let large =
        sparse_gguf(&models.join("text_encoders/t5xxl-f16.gguf"), F16, &list("t5_encoder.txt"));
    let vae = zeros(&models.join("vae/ae.safetensors"), "BF16", &list("bfl_ae.txt"));

    let checkpoint = open(&Files::model(&model)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(place(&checkpoint, TRANSFORMER), model);
    assert_eq!(place(&checkpoint, CLIP), clip);
    assert_eq!(place(&checkpoint, VAE), vae);
    // The file with the smallest loss is used; safetensors files come before GGUF.
    assert_eq!(place(&checkpoint, T5), large);
    let plain =
        zeros(&models.join("text_encoders/t5xxl_fp16.safetensors"), "F16", &list("t5_encoder.txt"));
    assert_eq!(place(&open(&Files::model(&model)).unwrap(), T5), plain);

    assert_eq!(checkpoint.name, "flux1-dev-Q8_0");
    let looked = inspect(&model).unwrap();
    assert_eq!(looked.metadata["general.architecture"], "flux");
    assert_eq!(looked.dtypes[0].dtype, "Q8_0");
    // Two fine-tunes have the same header: their values differ.
    let hash = checkpoint.hash.clone();
    let file = std::fs::OpenOptions::new().write(true).open(&model).unwrap();
    let data = file.metadata().unwrap().len() / 64;
    std::io::Seek::seek(&mut &file, std::io::SeekFrom::Start(data * 20)).unwrap();
    std::io::Write::write_all(&mut &file, &vec![1; data as usize]).unwrap();
    assert_ne!(open(&Files::model(&model)).unwrap().hash, hash);
}

#[test]
fn a_split_model_is_opened_by_any_of_its_files_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let all = list("bfl_dev.txt");
    let part = |i: usize| dir.path().join(format!("flux1-{i:05}-of-00003.gguf"));
    for (i, tensors) in all.chunks(300).enumerate() {
        sparse_gguf(&part(i + 1), Q8_0, tensors);
    }
    for path in [part(1), part(2), part(3), dir.path().to_path_buf()] {
        let checkpoint = open(&Files::model(&path)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(checkpoint.get(TRANSFORMER).unwrap().files().count(), 3);
        assert!(checkpoint.name == "flux1" || path.is_dir(), "{}", checkpoint.name);
    }
    std::fs::remove_file(part(2)).unwrap();
    let e = open(&Files::model(part(3))).err().unwrap();
    assert_eq!(e.kind(), Kind::Missing);
    assert!(e.to_string().contains("00002-of-00003.gguf: a shard is missing"), "{e}");
    for odd in ["x-00000-of-00003.gguf", "x-00004-of-00003.gguf", "x-0004-of-0003.sft"] {
        let path = dir.path().join(odd);
        std::fs::write(&path, b"GGUF").unwrap();
        let e = open(&Files::model(&path)).err().unwrap();
        assert!(e.to_string().contains("the name of this shard"), "{e}");
    }
}

#[test]
fn a_gguf_file_truncated_anywhere_is_refused_with_both_sizes() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats/city96.gguf");
    let whole = std::fs::read(golden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    // At every byte of the header, and within and between tensors. The last 31 bytes may be
    // padding.
    for cut in (4..2048).step_by(3).chain((2048..whole.len() - 32).step_by(97)) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        for e in [open(&Files::model(&path)).err().unwrap(), inspect(&path).err().unwrap()] {
            assert_eq!(e.kind(), Kind::Model, "cut at {cut}: {e}");
            let text = e.to_string();
            assert!(
                text.contains(&format!("found {cut} bytes")) && text.contains("expected"),
                "cut at {cut}: {text}"
            );
            assert!(text.contains("cut.gguf"), "{text}");
        }
    }
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(inspect(&path).unwrap().tensors.len(), 19);
}

#[test]
fn the_first_bytes_determine_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = sparse_gguf(&dir.path().join("a.safetensors"), Q8_0, &list("bfl_schnell.txt"));
    let plain = zeros(&dir.path().join("b.gguf"), "BF16", &list("bfl_schnell.txt"));
    for path in [gguf, plain] {
        assert!(
            open(&Files::model(&path)).unwrap_or_else(|e| panic!("{e}")).get(TRANSFORMER).is_some()
        );
    }
}

#[test]
fn a_lora_stored_in_blocks_is_refused_with_the_tensors_name() {
    let dir = tempfile::tempdir().unwrap();
    let proj = "diffusion_model.double_blocks.0.img_attn.proj";
    let tensors = [
        (format!("{proj}.lora_A.weight"), vec![32, 3072]),
        (format!("{proj}.lora_B.weight"), vec![3072, 32]),
    ];
    let path = sparse_gguf(&dir.path().join("lora.gguf"), Q8_0, &tensors);
    let e = lora::open(&path, &FLUX1, &|_, _| Some((3072, 3072))).err().unwrap();
    assert_eq!(e.kind(), Kind::Model);
    assert!(e.to_string().contains("lora_A.weight") && e.to_string().contains("found Q8_0"), "{e}");
    let plain = sparse_gguf(&dir.path().join("plain.gguf"), F16, &tensors);
    assert!(lora::open(&plain, &FLUX1, &|_, _| Some((3072, 3072))).is_ok());
}

/// The halves of a vector can be swapped only if their border is between two blocks.
#[test]
fn halves_with_their_border_in_a_block_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let of = |n: usize| {
        let tensors = [
            ("single_transformer_blocks.0.attn.to_q.weight".to_string(), vec![32, 32]),
            (HALVES.into(), vec![n]),
        ];
        inspect(&sparse_gguf(&dir.path().join(format!("{n}.gguf")), Q8_0, &tensors))
            .unwrap()
            .notes
            .join("; ")
    };
    for n in [32, 96] {
        assert!(of(n).contains("share a block") && of(n).contains(HALVES), "{}", of(n));
    }
    assert!(!of(128).contains("share a block"), "{}", of(128));
}
