//! Noise against vectors and hashes from torch (`golden/noise.json`, see `golden/README.md`).

use flux_fast::pipeline::noise::{TorchGenerator, randn};
use serde_json::Value;

fn goldens() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/noise.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let list = value[key].as_array().unwrap();
    assert!(!list.is_empty(), "{key}");
    list
}

/// Seeds are strings because JSON's numbers may lose their low bits.
fn seed(case: &Value) -> u64 {
    case["seed"].as_str().unwrap().parse().unwrap()
}

/// FNV-1a, 64 bits, of the values' little-endian bytes, as 16 hexadecimal digits.
fn hash<'a>(vectors: impl IntoIterator<Item = &'a Vec<f32>>) -> String {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in vectors.into_iter().flatten().flat_map(|x| x.to_le_bytes()) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{h:016x}")
}

#[test]
fn small_vectors_equal_torchs() {
    for case in list(&goldens(), "whole") {
        let want: Vec<u32> =
            list(case, "bits").iter().map(|x| x.as_u64().unwrap() as u32).collect();
        let got: Vec<u32> = randn(seed(case), want.len()).into_iter().map(f32::to_bits).collect();
        assert_eq!(got, want, "seed {}, {} values", case["seed"], want.len());
    }
}

#[test]
fn every_size_up_to_300_and_around_1024_equals_torchs() {
    let goldens = goldens();
    assert!(list(&goldens, "cases").len() >= 20);
    for case in list(&goldens, "cases") {
        for (key, sizes) in [("sizes_1_to_300", 1..=300), ("sizes_1023_to_1030", 1023..=1030)] {
            let vectors: Vec<_> = sizes.map(|n| randn(seed(case), n)).collect();
            assert_eq!(hash(&vectors), case[key].as_str().unwrap(), "seed {}, {key}", case["seed"]);
        }
    }
}

#[test]
fn large_tensors_equal_torchs() {
    let mut largest = 0;
    for case in list(&goldens(), "cases") {
        for (size, want) in case["sizes"].as_object().unwrap() {
            let n = size.parse().unwrap();
            largest = largest.max(n);
            assert_eq!(
                hash([&randn(seed(case), n)]),
                want.as_str().unwrap(),
                "seed {}, {n} values",
                case["seed"]
            );
        }
    }
    assert_eq!(largest, 1 << 20);
}

#[test]
fn a_generator_continues_its_stream_as_in_torch() {
    let goldens = goldens();
    for case in list(&goldens, "cases") {
        let mut generator = TorchGenerator::new(seed(case));
        for (i, (n, want)) in list(&goldens, "calls").iter().zip(list(case, "calls")).enumerate() {
            let got = generator.randn(n.as_u64().unwrap() as usize);
            assert_eq!(
                hash([&got]),
                want.as_str().unwrap(),
                "seed {}, call {i} for {n} values",
                case["seed"]
            );
        }
    }
}

#[test]
fn only_the_low_half_of_the_seed_is_used() {
    assert_eq!(randn(42, 100), randn(42 + (1 << 32), 100));
    assert_ne!(randn(42, 100), randn(43, 100));
}
