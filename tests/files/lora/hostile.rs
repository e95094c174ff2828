//! Random keys and truncated files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::spec::flux1::FLUX1;
use flux_fast::weights::lora::{combine, read};

use super::pairs::plain;
use super::support::{Lora, Numbers, list, small};

#[test]
fn random_keys_never_panic() {
    let base = small();
    let mut numbers = Numbers(99);
    let real: Vec<String> = [
        "flux_lora_kohya_with_te1",
        "flux_lora_diffusers",
        "flux_lora_xlabs",
        "flux_control_lora",
        "flux_lokr_bfl",
    ]
    .iter()
    .flat_map(|f| list(&format!("lora-keys/{f}.txt")))
    .map(|(n, _)| n)
    .collect();
    let pick = |numbers: &mut Numbers, n: usize| numbers.next() as usize % n;
    let mut outcomes = BTreeMap::new();
    for _ in 0..3000 {
        let mut lora = Lora::default();
        for _ in 0..pick(&mut numbers, 12) {
            let mut name: Vec<u8> = match pick(&mut numbers, 3) {
                0 => (0..pick(&mut numbers, 40)).map(|_| numbers.next() as u8).collect(),
                _ => real[pick(&mut numbers, real.len())].clone().into_bytes(),
            };
            for _ in 0..pick(&mut numbers, 3) {
                if name.is_empty() {
                    break;
                }
                let at = pick(&mut numbers, name.len());
                match pick(&mut numbers, 4) {
                    0 => name[at] = numbers.next() as u8,
                    1 => name.truncate(at),
                    2 => name.insert(at, b"._09"[pick(&mut numbers, 4)]),
                    _ => drop(name.remove(at)),
                }
            }
            let name = String::from_utf8_lossy(&name).into_owned();
            if name == "__metadata__" || lora.tensors.iter().any(|t| t.0 == name) {
                continue;
            }
            let shape: Vec<usize> = (0..pick(&mut numbers, 4))
                .map(|_| [0, 1, 2, 4, 12, 36][pick(&mut numbers, 6)])
                .collect();
            let (dtype, size) =
                [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("F8_E4M3", 1), ("BOOL", 1)]
                    [pick(&mut numbers, 6)];
            let bytes = (0..shape.iter().product::<usize>() * size)
                .map(|_| numbers.next() as u8)
                .collect::<Vec<_>>();
            lora = lora.raw(&name, dtype, &shape, &bytes);
        }
        if pick(&mut numbers, 4) == 0 {
            lora = lora.meta(
                "lora_adapter_metadata",
                [
                    r#"{"lora_alpha":1e400}"#,
                    r#"{"transformer.alpha_pattern":[]}"#,
                    "[1]",
                    r#"{"lora_alpha":"a"}"#,
                ][pick(&mut numbers, 4)],
            );
        }
        let outcome = match lora.read(&base) {
            Ok(adapter) => {
                for (c, w) in adapter.weights() {
                    let _ = combine(
                        &[(&adapter, 0.7)],
                        c,
                        w,
                        0..base[&(c, w.to_string())].0,
                        DType::BF16,
                    );
                }
                "read"
            }
            Err(e) => {
                assert_eq!(e.kind(), Kind::Model);
                "refused"
            }
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    assert!(outcomes["refused"] > 2000, "{outcomes:?}");
}

#[test]
fn a_cut_file_never_panics() {
    let base = small();
    let bytes = plain(&base).bytes();
    for n in 0..bytes.len() {
        assert!(
            read(Arc::new(bytes[..n].to_vec()), Path::new("cut"), &FLUX1, &|c, w| base
                .get(&(c, w.to_string()))
                .copied())
            .is_err()
        );
    }
}
