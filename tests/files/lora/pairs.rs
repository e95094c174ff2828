//! Pairs: any rows of a weight, several LoRAs at once, alpha.

use std::ops::Range;

use flux_fast::dtype::DType;
use flux_fast::error::Kind;
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::tensor::HostPart;
use flux_fast::weights::lora::{Adapter, Change, Delta, combine};

use super::dialects::{DIALECTS, expected, truth, write};
use super::support::{Lora, Shapes, delta, small, values, whole};

pub const PROJ: &str = "diffusion_model.double_blocks.0.img_attn.proj";
pub const PROJ_WEIGHT: &str = "double_blocks.0.img_attn.proj.weight";
const LINEAR1: &str = "single_blocks.0.linear1.weight";

/// The A of a plain LoRA.
fn down(change: &Change) -> &HostPart {
    match &change.delta {
        Delta::Product { a, .. } => a,
        other => panic!("{other:?}"),
    }
}

/// The rows of `linear1` and the ranks of a combined pair that one pair fills: pairs with the same
/// A share its ranks, and pairs that change no row of `range` have none.
fn spans(adapter: &Adapter, range: &Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
    let mut runs: Vec<(&[u8], Range<usize>)> = vec![];
    let (mut spans, mut next) = (vec![], 0);
    for change in adapter.of(TRANSFORMER, LINEAR1) {
        let a = down(change);
        let rows = change.blocks.iter().map(|b| b.row..b.row + b.rows);
        let rows: Vec<_> = rows.filter(|r| r.start < range.end && range.start < r.end).collect();
        if rows.is_empty() {
            continue;
        }
        let known = runs.iter().find(|(known, _)| *known == a.bytes());
        let ranks = known.map(|run| run.1.clone()).unwrap_or_else(|| {
            let ranks = next..next + a.rows;
            next = ranks.end;
            runs.push((a.bytes(), ranks.clone()));
            ranks
        });
        spans.extend(rows.into_iter().map(|rows| (rows, ranks.clone())));
    }
    spans
}

#[test]
fn any_rows_of_a_weight_can_be_read() {
    let base = small();
    let (rows, cols) = base[&(TRANSFORMER, LINEAR1.to_string())];
    for shared in [true, false] {
        let truth = truth(&base, shared);
        for d in [&DIALECTS[0], &DIALECTS[6]] {
            let adapter = write(&truth, &base, d).read(&base).unwrap();
            let all =
                delta(&whole(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, &base, DType::F32).unwrap());
            for range in [0..rows, 0..3 * cols, 3 * cols..rows, 5..17, 11..12, rows - 1..rows] {
                let part =
                    combine(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, range.clone(), DType::F32)
                        .unwrap()
                        .unwrap();
                assert_eq!(delta(&part), all[range.start * cols..range.end * cols], "{range:?}");
                let b = values(&part.b);
                let spans = spans(&adapter, &range);
                for (i, v) in b.iter().enumerate() {
                    let (row, rank) = (i / part.rank(), i % part.rank());
                    let inside = spans.iter().any(|(rows, ranks)| {
                        rows.contains(&(range.start + row)) && ranks.contains(&rank)
                    });
                    assert!(
                        inside || *v == 0.0,
                        "element {i} of {range:?} is outside of the blocks"
                    );
                }
            }
            // In diffusers' names the halves of the final layer are swapped.
            let weight = "final_layer.adaLN_modulation.1.weight";
            let n = base[&(TRANSFORMER, weight.to_string())].0;
            let all =
                delta(&whole(&[(&adapter, 1.0)], TRANSFORMER, weight, &base, DType::F32).unwrap());
            let part =
                combine(&[(&adapter, 1.0)], TRANSFORMER, weight, n / 2 - 2..n / 2 + 3, DType::F32)
                    .unwrap()
                    .unwrap();
            assert_eq!(delta(&part), all[(n / 2 - 2) * cols..(n / 2 + 3) * cols]);
            assert_eq!(part.rank(), 2);
        }
        let adapter = write(&truth, &base, &DIALECTS[6]).read(&base).unwrap();
        let q = combine(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, 0..cols, DType::F32)
            .unwrap()
            .unwrap();
        assert_eq!(q.rank(), 2, "rows of q alone need q's ranks alone");
        let fused = whole(&[(&adapter, 1.0)], TRANSFORMER, LINEAR1, &base, DType::F32).unwrap();
        assert_eq!(fused.rank(), if shared { 2 } else { 8 }, "one A is one run of ranks");
    }
}

#[test]
fn several_loras_are_one_pair() {
    let base = small();
    let adapters: Vec<Adapter> = [(true, 0), (false, 6), (true, 5)]
        .iter()
        .map(|(shared, d)| write(&truth(&base, *shared), &base, &DIALECTS[*d]).read(&base).unwrap())
        .collect();
    let loras =
        [(&adapters[0], 0.5), (&adapters[1], -2.0), (&adapters[2], 0.0), (&adapters[0], 1.0)];
    for (c, w) in adapters[0].weights() {
        let shape = base[&(c, w.to_string())];
        let mut want = vec![0.0; shape.0 * shape.1];
        for (shared, weight) in [(true, 0.5), (false, -2.0), (true, 1.0)] {
            let truth = truth(&base, shared);
            let one = expected(&truth[&(c, w.to_string())], shape);
            want.iter_mut().zip(one).for_each(|(sum, v)| *sum += weight * v);
        }
        let combined = whole(&loras, c, w, &base, DType::F32).unwrap();
        assert_eq!(delta(&combined), want, "{w}");
    }
    assert!(
        whole(&loras[2..3], TRANSFORMER, LINEAR1, &base, DType::F32).is_none(),
        "weight 0 takes no part"
    );
    assert!(whole(&[], TRANSFORMER, LINEAR1, &base, DType::F32).is_none());
    assert!(combine(&loras, TRANSFORMER, "nothing.weight", 0..4, DType::F32).unwrap().is_none());
    let e =
        combine(&[(&adapters[0], f32::NAN)], TRANSFORMER, LINEAR1, 0..4, DType::F32).unwrap_err();
    assert_eq!(e.kind(), Kind::Argument);
    assert!(combine(&loras, TRANSFORMER, LINEAR1, 0..4, DType::F16).is_err());
    let e = combine(
        &[(&adapters[0], f32::MAX), (&adapters[0], f32::MAX)],
        TRANSFORMER,
        LINEAR1,
        0..4,
        DType::F32,
    );
    assert!(e.is_ok(), "half of the largest number is a number");
}

pub fn proj(base: &Shapes) -> (usize, usize) {
    base[&(TRANSFORMER, PROJ_WEIGHT.to_string())]
}

pub fn plain(base: &Shapes) -> Lora {
    Lora::default().pair(
        &format!("{PROJ}.lora_A.weight"),
        &format!("{PROJ}.lora_B.weight"),
        4,
        proj(base),
    )
}

pub fn factor(lora: &Lora, base: &Shapes) -> f64 {
    let adapter = lora.read(base).unwrap();
    let changes = adapter.changes();
    assert_eq!((changes.len(), adapter.summary.unmatched), (1, 0), "{}", adapter.summary);
    changes[0].factor
}

#[test]
fn alpha_is_read_from_every_place_and_type() {
    let base = small();
    let alpha = format!("{PROJ}.alpha");
    assert_eq!(factor(&plain(&base), &base), 1.0);
    for (dtype, bytes) in [
        ("F32", 8f32.to_le_bytes().to_vec()),
        ("F64", 8f64.to_le_bytes().to_vec()),
        ("I64", 8i64.to_le_bytes().to_vec()),
        ("I32", 8i32.to_le_bytes().to_vec()),
        ("U8", vec![8]),
        ("BF16", vec![0x00, 0x41]),
        ("F16", vec![0x00, 0x48]),
    ] {
        for shape in [&[][..], &[1]] {
            assert_eq!(
                factor(&plain(&base).raw(&alpha, dtype, shape, &bytes), &base),
                2.0,
                "{dtype}"
            );
        }
    }
    assert_eq!(factor(&plain(&base).with(&alpha, &[], &[-6.0]), &base), -1.5);
    let idle = plain(&base).with(&alpha, &[], &[0.0]).read(&base).unwrap();
    assert_eq!(idle.changes()[0].factor, 0.0);
    assert!(
        idle.summary.notes[0].contains("1 of 1 pairs have alpha 0"),
        "{:?}",
        idle.summary.notes
    );
    assert!(whole(&[(&idle, 1.0)], TRANSFORMER, PROJ_WEIGHT, &base, DType::F32).is_none());

    // PEFT's configuration in the header, as diffusers saves it.
    let config = |json: &str| plain(&base).meta("lora_adapter_metadata", json);
    assert_eq!(factor(&config(r#"{"transformer.r": 4, "transformer.lora_alpha": 2}"#), &base), 0.5);
    assert_eq!(factor(&config(r#"{"lora_alpha": 2, "use_rslora": true}"#), &base), 1.0);
    let own = |pattern: &str| {
        format!(
            r#"{{"transformer.lora_alpha": 2, "transformer.alpha_pattern": {{"{pattern}": 12}}}}"#
        )
    };
    for pattern in [
        "img_attn.proj",
        r"double_blocks\\.0\\.img_attn\\.proj",
        r"double_blocks\\.\\d+\\.(img|txt)_attn\\.proj",
        "^double_blocks.*proj",
        ".*attn.*",
        "proj",
    ] {
        assert_eq!(factor(&config(&own(pattern)), &base), 3.0, "{pattern}");
    }
    for (pattern, says) in [
        ("qkv", "matches none of its layers"),
        ("roj", "matches none of its layers"),
        ("double_blocks", "matches none of its layers"),
        ("(proj", "is not a regular expression"),
    ] {
        let e = config(&own(pattern)).error(&base);
        assert!(e.contains(says) && e.contains(pattern), "{pattern}: {e}");
    }
    let rank = |n: usize| format!(r#"{{"lora_alpha": 2, "rank_pattern": {{".*proj": {n}}}}}"#);
    assert_eq!(factor(&config(&rank(4)), &base), 0.5);
    let e = config(&rank(8)).error(&base);
    assert!(e.contains("another rank than it says") && e.contains("found rank 4"), "{e}");
    assert_eq!(factor(&config(r#"{"text_encoder.lora_alpha": 2}"#), &base), 1.0);
    for (json, says) in [
        ("not json", "not valid JSON"),
        (r#"{"peft_type": "IA3"}"#, "this kind of PEFT adapter is not supported"),
        (r#"{"use_dora": true}"#, "the configuration says DoRA"),
        (r#"{"fan_in_fan_out": true}"#, "a setting of this PEFT adapter is not supported"),
        (r#"{"transformer.use_qalora": true}"#, "a setting of this PEFT adapter is not supported"),
        (r#"{"transformer.peft_type": "OFT"}"#, "this kind of PEFT adapter is not supported"),
        (r#"{"init_lora_weights": "pissa_niter_16"}"#, "to weights that its training changed"),
        (r#"{"transformer.init_lora_weights": "olora"}"#, "to weights that its training changed"),
    ] {
        let e = config(json).error(&base);
        assert!(e.contains(says), "{json}: {e}");
    }
    for init in ["true", "\"gaussian\"", "\"eva\"", "null"] {
        let json = format!(r#"{{"lora_alpha": 2, "init_lora_weights": {init}}}"#);
        assert_eq!(factor(&config(&json), &base), 0.5, "{init}");
    }
    let both = config(r#"{"lora_alpha": 2}"#).with(&alpha, &[], &[4.0]);
    assert_eq!(factor(&both, &base), 1.0, "the tensor goes before the header");
}
