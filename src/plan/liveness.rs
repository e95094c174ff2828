//! Arena offsets of all tensors: two tensors share bytes only if they are never in use at the same
//! time.

use crate::backend::Grain;
use crate::op::Program;
use crate::tensor::{Slot, Tensor};

/// Where the tensors of a program are in the arena: byte offsets, by slot id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arena {
    /// Offsets of the inputs.
    pub inputs: Vec<usize>,
    /// Offsets of the temporary tensors.
    pub temps: Vec<usize>,
    /// Offsets of the outputs.
    pub outputs: Vec<usize>,
    /// Offset of the scratch of each step; 0 if it needs none.
    pub scratch: Vec<usize>,
    /// Size of the arena in bytes.
    pub bytes: usize,
}

/// A number of bytes that is in use from step `from` to step `to`, both included.
struct Span {
    bytes: usize,
    from: usize,
    to: usize,
}

/// Offsets for every tensor of `program`, and for `scratch[i]` bytes during step `i`.
///
/// Inputs are in use during the whole program, because they keep their values over repeated runs;
/// outputs from their first write to the end; temporaries from their first write to their last use.
pub fn arena(program: &Program, scratch: &[usize], grain: Grain) -> Arena {
    let last = program.steps.len();
    let (inputs, outputs, temps) =
        (program.inputs.len(), program.outputs.len(), program.temps as usize);
    let index = |slot: Slot| match slot {
        Slot::Input(id) => id as usize,
        Slot::Output(id) => inputs + id as usize,
        Slot::Temp(id) => inputs + outputs + id as usize,
    };
    let mut spans: Vec<Span> = (0..inputs + outputs + temps + last)
        .map(|_| Span { bytes: 0, from: usize::MAX, to: 0 })
        .collect();
    let mut touch = |tensor: &Tensor, step: usize| {
        let span = &mut spans[index(tensor.slot)];
        span.bytes = span.bytes.max(tensor.bytes());
        span.from = span.from.min(step);
        span.to = span.to.max(step);
    };
    for (i, step) in program.steps.iter().enumerate() {
        step.op.reads().iter().chain(&step.op.writes()).for_each(|t| touch(t, i));
    }
    for io in &program.inputs {
        touch(&io.tensor, 0);
        touch(&io.tensor, last);
    }
    program.outputs.iter().for_each(|io| touch(&io.tensor, last));
    for (i, &bytes) in scratch.iter().enumerate() {
        spans[inputs + outputs + temps + i] = Span { bytes, from: i, to: i };
    }

    let (offsets, bytes) = place(&spans, grain);
    let take = |from: usize, n: usize| offsets[from..from + n].to_vec();
    Arena {
        inputs: take(0, inputs),
        outputs: take(inputs, outputs),
        temps: take(inputs + outputs, temps),
        scratch: take(inputs + outputs + temps, last),
        bytes,
    }
}

/// Places the largest span first, each at the lowest offset where it overlaps no span that is in
/// use at the same time. Returns the offsets and the size of the arena.
fn place(spans: &[Span], grain: Grain) -> (Vec<usize>, usize) {
    let round = |n: usize| n.next_multiple_of(grain.align);
    let mut order: Vec<usize> = (0..spans.len()).filter(|&i| spans[i].bytes > 0).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(spans[i].bytes), i));
    let mut offsets = vec![0; spans.len()];
    let mut placed: Vec<usize> = Vec::new(); // sorted by offset
    let mut total = 0;
    for &i in &order {
        let mut offset = 0;
        for &j in &placed {
            if spans[j].from > spans[i].to || spans[i].from > spans[j].to {
                continue;
            }
            if offsets[j] >= offset + spans[i].bytes {
                break;
            }
            offset = offset.max(grain.place(offsets[j] + spans[j].bytes, spans[i].bytes));
        }
        offsets[i] = offset;
        total = total.max(round(offset + spans[i].bytes));
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::model::flux1::{DenoiseShape, denoise};
    use crate::model::{FluxConfig, VaeConfig, vae};

    /// Simulates the program: no step may write to bytes of a tensor that a later step reads.
    fn check(program: &Program, scratch: &[usize], chunk: usize) {
        let grain = Grain { align: 64, chunk };
        let arena = arena(program, scratch, grain);
        let at = |t: &Tensor| match t.slot {
            Slot::Input(i) => arena.inputs[i as usize],
            Slot::Temp(i) => arena.temps[i as usize],
            Slot::Output(i) => arena.outputs[i as usize],
        };
        let mut owners: Vec<(usize, usize, Slot)> = program
            .inputs
            .iter()
            .map(|io| (at(&io.tensor), io.tensor.bytes(), io.tensor.slot))
            .collect();
        let mut claim = |start: usize, bytes: usize, slot: Slot| {
            assert!(
                start.is_multiple_of(64) && start + bytes <= arena.bytes,
                "{slot:?} outside the arena"
            );
            assert_eq!(start / chunk, (start + bytes - 1) / chunk, "{slot:?} crosses");
            owners.retain(|&(s, n, o)| o != slot && (s + n <= start || start + bytes <= s));
            owners.push((start, bytes, slot));
        };
        for (i, step) in program.steps.iter().enumerate() {
            for t in step.op.writes() {
                claim(at(&t), t.bytes(), t.slot);
            }
            if scratch[i] > 0 {
                claim(arena.scratch[i], scratch[i], Slot::Temp(u32::MAX - i as u32));
            }
        }
        for io in program.inputs.iter().chain(&program.outputs) {
            assert!(owners.iter().any(|o| o.2 == io.tensor.slot), "{} was overwritten", io.name);
        }
        // Replay: every tensor that is read must be complete.
        let mut owners: Vec<(usize, usize, Slot)> = program
            .inputs
            .iter()
            .map(|io| (at(&io.tensor), io.tensor.bytes(), io.tensor.slot))
            .collect();
        for (i, step) in program.steps.iter().enumerate() {
            let mut claims: Vec<(usize, usize, Slot)> =
                step.op.writes().iter().map(|t| (at(t), t.bytes(), t.slot)).collect();
            if scratch[i] > 0 {
                claims.push((arena.scratch[i], scratch[i], Slot::Temp(u32::MAX - i as u32)));
            }
            for t in step.op.reads() {
                assert!(
                    owners.iter().any(|o| o.2 == t.slot),
                    "{}: {t} was overwritten",
                    step.label
                );
                for c in &claims {
                    let apart = c.0 + c.1 <= at(&t) || at(&t) + t.bytes() <= c.0;
                    assert!(
                        c.2 == t.slot || apart,
                        "{}: overwrites its own operand {t}",
                        step.label
                    );
                }
            }
            for (start, bytes, slot) in claims {
                owners.retain(|&(s, n, o)| o != slot && (s + n <= start || start + bytes <= s));
                owners.push((start, bytes, slot));
            }
        }
    }

    #[test]
    fn no_live_tensor_is_overwritten() {
        let c = FluxConfig { depth_double: 2, depth_single: 3, ..FluxConfig::dev() };
        for cfg in [false, true] {
            let s = DenoiseShape { images: 2, cfg, text_tokens: 7, height: 3, width: 5 };
            let p = denoise(&c, &s, DType::F32);
            check(&p, &vec![1000; p.steps.len()], usize::MAX);
            check(&p, &vec![1000; p.steps.len()], 16 << 20);
        }
        let p = vae::decode(&VaeConfig::flux(), 6, 4, DType::F32);
        check(&p, &(0..p.steps.len()).map(|i| i * 100).collect::<Vec<_>>(), usize::MAX);
    }

    #[test]
    fn the_arena_is_near_the_largest_moment() {
        let s = DenoiseShape { images: 1, cfg: false, text_tokens: 512, height: 64, width: 64 };
        let p = denoise(&FluxConfig::dev(), &s, DType::BF16);
        let arena = arena(&p, &vec![0; p.steps.len()], Grain::whole(256));
        // A single block needs x, its norm, qkv, and [attention | mlp]: 10 x 4608 x 3072 in bf16,
        // and the inputs.
        let floor = 10 * 4608 * 3072 * 2;
        let inputs: usize = p.inputs.iter().map(|io| io.tensor.bytes()).sum();
        assert!(
            arena.bytes < (floor + inputs) * 11 / 10,
            "{} against {floor} + {inputs}",
            arena.bytes
        );
    }

    /// In one piece a residual block needs two planes of the largest size; in bands any size fits
    /// in 1 GiB.
    #[test]
    fn the_autoencoder_needs_as_little_as_calculated() {
        let (c, grain) = (VaeConfig::flux(), Grain { align: 256, chunk: usize::MAX });
        let bytes = |p: &Program| arena(p, &vec![0; p.steps.len()], grain).bytes;
        for (edge, most) in [(128, 1_100_000_000), (256, 4_400_000_000)] {
            let whole = bytes(&vae::decode(&c, edge, edge, DType::BF16));
            assert!(whole < most, "{whole} bytes for {edge} latents");
            let whole = bytes(&vae::encode(&c, 8 * edge, 8 * edge, DType::BF16));
            assert!(whole < most, "{whole} bytes to encode {edge} latents");
        }
        for net in [
            vae::Network::decoder(&c, 512, 512, DType::BF16),
            vae::Network::encoder(&c, 4096, 4096, DType::BF16),
        ] {
            for stage in &net.stages {
                let least = *net.band_sizes(stage).last().unwrap();
                let band = bytes(&net.band(stage, least));
                assert!(band < 1 << 30, "{}: {band} bytes for {least} rows", stage.scope);
            }
        }
    }
}
