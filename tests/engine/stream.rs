//! The contract between `stream` and a device with its own memory: whenever a step runs, the
//! weights that it names are complete at their places. The backend here ([`Memory`]) computes
//! nothing; it keeps bytes by `Place`, as a GPU would, and compares them.

use std::ops::ControlFlow;
use std::sync::Arc;

use flux_fast::backend::{Grain, Layout};
use flux_fast::dtype::DType;
use flux_fast::error::{Kind, Result};
use flux_fast::model::FluxConfig;
use flux_fast::model::T5Config;
use flux_fast::model::flux1::{DenoiseShape, denoise, modulate};
use flux_fast::model::t5;
use flux_fast::op::{Program, Step};
use flux_fast::plan;
use flux_fast::stream::{Holdings, Session, Tenancy};
use flux_fast::tensor::{HostWeight, Scale, Slot};

use crate::memory::{ALIGN, Memory};

/// Weights whose bytes identify them.
fn weights(program: &Program, salt: u64) -> Vec<HostWeight> {
    let make = |(id, w): (usize, &flux_fast::op::WeightSpec)| {
        let mut state = salt << 32 | id as u64;
        let bytes: Vec<u8> = (0..w.rows * w.cols)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as u8
            })
            .collect();
        HostWeight::whole(Arc::new(bytes), (w.rows, w.cols), DType::F8E4M3, Scale::One)
    };
    program.weights.iter().enumerate().map(make).collect()
}

fn programs() -> (Program, Program) {
    let c = FluxConfig {
        hidden: 256,
        heads: 2,
        mlp_hidden: 1024,
        depth_double: 3,
        depth_single: 6,
        context: 64,
        pooled: 32,
        ..FluxConfig::dev()
    };
    let s = DenoiseShape { images: 1, cfg: false, text_tokens: 3, height: 2, width: 2 };
    (modulate(&c, 2, DType::BF16), denoise(&c, &s, DType::BF16))
}

#[derive(Clone, Copy)]
struct Case<'a> {
    program: &'a Program,
    weights: &'a [HostWeight],
    phase: u32,
    budget: u64,
    runs: usize,
    keep: bool,
    /// If weights are kept: where this phase's resident weights begin, and the layout that all
    /// phases share.
    base: usize,
    shared: Option<Layout>,
    /// Identifies its set of side matrices.
    side_set: u32,
    /// Cancels after this many steps.
    stop: Option<usize>,
}

impl<'a> Case<'a> {
    /// The weights of phase 0 are kept, without a limit of memory, over two runs.
    fn new(program: &'a Program, weights: &'a [HostWeight]) -> Case<'a> {
        Case {
            program,
            weights,
            phase: 0,
            budget: u64::MAX,
            runs: 2,
            keep: true,
            base: 0,
            shared: None,
            side_set: 0,
            stop: None,
        }
    }
}

fn run(memory: &mut Memory, holdings: &mut Holdings, case: &Case) -> Result<()> {
    run_by(memory, holdings, case, false)
}

fn run_by(
    memory: &mut Memory,
    holdings: &mut Holdings,
    case: &Case,
    in_segments: bool,
) -> Result<()> {
    let bytes: Vec<usize> = case.weights.iter().map(HostWeight::bytes).collect();
    let scratch = vec![100; case.program.steps.len()];
    let plan =
        plan::phase(case.program, case.runs, &bytes, &scratch, Grain::whole(ALIGN), case.budget)?;
    holdings.reserve(memory, case.shared.unwrap_or(plan.layout()), case.keep)?;
    let mut session = Session::new(
        memory,
        holdings,
        case.program,
        &plan,
        case.weights.to_vec(),
        Tenancy {
            phase: case.phase,
            side_set: case.side_set,
            resident_base: case.base,
            keep: case.keep,
            ..Tenancy::default()
        },
    );
    let mut steps = 0;
    let mut each = |_: usize, _: &Step| {
        steps += 1;
        if case.stop == Some(steps) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    for i in 0..case.runs {
        let more = i + 1 < case.runs;
        if in_segments {
            let mut segments = case.program.segments.iter();
            segments.try_for_each(|s| session.run_segment(s.name, more, &mut each))?;
        } else {
            session.run(more, &mut each)?;
        }
    }
    session.finish()
}

fn budgets(program: &Program, weights: &[HostWeight]) -> Vec<u64> {
    let bytes: Vec<usize> = weights.iter().map(HostWeight::bytes).collect();
    let least =
        plan::least_bytes(program, &bytes, &vec![100; program.steps.len()], Grain::whole(ALIGN));
    let all: u64 = bytes.iter().map(|&b| b as u64).sum();
    vec![least, least + 777, least + all / 7, least + all / 3, least + all / 2, least + 2 * all]
}

#[test]
fn weights_are_whole_whenever_a_step_runs() {
    let (_, program) = programs();
    let weights = weights(&program, 1);
    for budget in budgets(&program, &weights) {
        let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
        let (mut by_parts, mut parts_holdings) = (Memory::new(), Holdings::default());
        let case = Case { budget, runs: 4, keep: false, ..Case::new(&program, &weights) };
        run(&mut memory, &mut holdings, &case).unwrap();
        let uses: usize = program.steps.iter().map(|s| s.op.weights().len()).sum();
        assert_eq!(memory.checked, 4 * uses);
        assert!(memory.loaded.is_empty(), "{} weights left behind", memory.loaded.len());
        let held = (memory.layout.arena_bytes
            + memory.layout.resident_bytes
            + memory.layout.ring_bytes) as u64;
        assert!(held <= budget, "{held} bytes under {budget}");
        // In segments the same weights arrive at the same places at the same steps: loads also run
        // ahead over the seams.
        run_by(&mut by_parts, &mut parts_holdings, &case, true).unwrap();
        assert!(by_parts.log == memory.log, "{budget} bytes: other loads in segments");
    }
}

/// Two phases share the same bytes. Whatever ends one, the other must find its own weights there.
#[test]
fn an_error_or_a_cancelled_run_does_not_affect_the_next() {
    let (first, second) = programs();
    let (w1, w2) = (weights(&first, 1), weights(&second, 2));
    let (b1, b2) = (budgets(&first, &w1), budgets(&second, &w2));
    for (budget1, budget2) in b1.iter().zip(&b2) {
        let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
        let one =
            |stop| Case { budget: *budget1, runs: 1, keep: false, stop, ..Case::new(&first, &w1) };
        let two = |stop| Case {
            phase: 1,
            budget: *budget2,
            runs: 3,
            keep: false,
            stop,
            ..Case::new(&second, &w2)
        };
        for stop in [1, 7, 30, 70] {
            let e = run(&mut memory, &mut holdings, &two(Some(stop))).unwrap_err();
            assert_eq!(e.kind(), Kind::Cancelled);
            run(&mut memory, &mut holdings, &one(None)).unwrap();
            run(&mut memory, &mut holdings, &two(None)).unwrap();
        }
        for after in [0, 3, 20] {
            memory.fail_at = Some(memory.loads + after);
            let e = run(&mut memory, &mut holdings, &two(None)).unwrap_err();
            assert_eq!(e.kind(), Kind::Memory);
            memory.fail_at = None;
            run(&mut memory, &mut holdings, &two(None)).unwrap();
            run(&mut memory, &mut holdings, &one(None)).unwrap();
        }
    }
}

#[test]
fn kept_weights_are_loaded_once() {
    let (_, program) = programs();
    let weights = weights(&program, 3);
    let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
    let case = Case::new(&program, &weights);
    run(&mut memory, &mut holdings, &case).unwrap();
    assert_eq!(memory.loads, program.weights.len());
    run(&mut memory, &mut holdings, &Case { stop: Some(20), ..case }).unwrap_err();
    run(&mut memory, &mut holdings, &case).unwrap();
    assert_eq!(memory.loads, program.weights.len(), "loaded again");
    holdings.clear(&mut memory).unwrap();
    assert!(memory.loaded.is_empty());
}

/// A weight that failed to load is loaded again, even if weights are kept.
#[test]
fn an_error_in_a_run_drops_the_weights_to_keep() {
    let (_, program) = programs();
    let weights = weights(&program, 4);
    let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
    let case = || Case::new(&program, &weights);
    memory.fail_step = Some(7);
    assert_eq!(run(&mut memory, &mut holdings, &case()).unwrap_err().kind(), Kind::Model);
    memory.fail_step = None;
    let loads = memory.loads;
    run(&mut memory, &mut holdings, &case()).unwrap();
    assert_eq!(
        memory.loads,
        loads + program.weights.len(),
        "what was there before the error was trusted"
    );
}

/// Phases that keep weights have separate ranges; a phase that does not keep them overlaps these.
/// None may read another's bytes as its own.
#[test]
fn kept_and_passing_phases_do_not_read_each_other() {
    let (first, second) = programs();
    let (w1, w2, w3) = (weights(&first, 1), weights(&second, 2), weights(&second, 3));
    let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
    let align =
        |w: &[HostWeight]| w.iter().map(|w| w.bytes().next_multiple_of(ALIGN)).sum::<usize>();
    let shared = Some(Layout {
        arena_bytes: 1 << 20,
        resident_bytes: align(&w1) + align(&w2),
        ring_bytes: 0,
    });
    let kept =
        |phase, program, weights, base| Case { phase, base, shared, ..Case::new(program, weights) };
    let passing = Case { phase: 2, keep: false, ..Case::new(&second, &w3) };
    for _ in 0..2 {
        run(&mut memory, &mut holdings, &kept(0, &first, &w1, 0)).unwrap();
        run(&mut memory, &mut holdings, &kept(1, &second, &w2, align(&w1))).unwrap();
        run(&mut memory, &mut holdings, &passing).unwrap();
    }
    run(&mut memory, &mut holdings, &kept(1, &second, &w2, align(&w1))).unwrap();
}

/// New LoRAs replace the previous ones, and the model's own weights are not loaded again.
#[test]
fn new_loras_load_only_their_own_matrices() {
    let (_, program) = programs();
    let own = program.weights.len();
    let with = |rank: usize, seed| {
        let program = program.clone().with_sides(&|w| w.name.contains("linear").then_some(rank));
        let mut all = weights(&program, seed);
        // The model is the same; only its side branches are new.
        all.splice(..own, weights(&program, 1).into_iter().take(own));
        (program, all)
    };
    let (small, large, other) = (with(4, 2), with(24, 3), with(4, 4));
    let bytes =
        |w: &[HostWeight]| w.iter().map(|w| w.bytes().next_multiple_of(ALIGN)).sum::<usize>();
    let shared =
        Some(Layout { arena_bytes: 1 << 20, resident_bytes: bytes(&large.1), ring_bytes: 0 });
    let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
    let mut brought = |(program, weights): &(Program, Vec<HostWeight>), side_set| {
        let before = memory.loads;
        let case = Case { shared, side_set, ..Case::new(program, weights) };
        run(&mut memory, &mut holdings, &case).unwrap();
        memory.loads - before
    };
    let plain = (program.clone(), weights(&program, 1));
    assert_eq!(brought(&plain, 1), own);
    let sides = small.0.weights.len() - own;
    assert!(sides > 10);
    assert_eq!(brought(&small, 2), sides);
    assert_eq!(brought(&small, 2), 0, "the same again");
    assert_eq!(brought(&large, 3), sides);
    assert_eq!(brought(&other, 4), sides);
    assert_eq!(brought(&plain, 1), 0);
    // The other phase overlapped some of them, and only these are loaded again.
    let again = brought(&large, 3);
    assert!(again > 0 && again < sides, "{again} of {sides}");
}

/// Devices do not check token ids, so a wrong one must be refused before it is written.
#[test]
fn a_token_id_outside_of_its_table_is_refused_when_it_is_written() {
    let c = T5Config {
        vocab: 50,
        width: 32,
        heads: 2,
        head_dim: 16,
        ff: 64,
        layers: 1,
        buckets: 8,
        max_distance: 16,
        eps: 1e-6,
    };
    let program = t5::encode(&c, 1, 4, DType::BF16);
    let weights = weights(&program, 1);
    let bytes: Vec<usize> = weights.iter().map(HostWeight::bytes).collect();
    let scratch = vec![100; program.steps.len()];
    let plan = plan::phase(&program, 1, &bytes, &scratch, Grain::whole(ALIGN), u64::MAX).unwrap();
    let (mut memory, mut holdings) = (Memory::new(), Holdings::default());
    holdings.reserve(&mut memory, plan.layout(), false).unwrap();
    let tenancy = Tenancy::default();
    let mut session = Session::new(&mut memory, &mut holdings, &program, &plan, weights, tenancy);
    let ids = program.input("ids");
    for (input, rows) in [("ids", 50), ("buckets", 8)] {
        let tensor = program.input(input);
        for wrong in [-1, rows, i32::MAX, i32::MIN] {
            let mut values = vec![rows - 1; tensor.rows];
            values[2] = wrong;
            let e = session.write_i32(tensor, &values).unwrap_err();
            assert_eq!(e.kind(), Kind::Argument);
            let text = e.to_string();
            let position = format!("input {input}, position 2");
            let range = format!("0 to {}", rows - 1);
            for part in [&position, &wrong.to_string(), &range] {
                assert!(text.contains(part.as_str()), "{part} is not in {text}");
            }
        }
        session.write_i32(tensor, &vec![rows - 1; tensor.rows]).unwrap();
    }
    session.run(false, &mut |_, _| ControlFlow::Continue(())).unwrap();
    drop(session);
    let at = plan.arena.inputs[match ids.slot {
        Slot::Input(id) => id as usize,
        _ => unreachable!("ids are an input"),
    }];
    let written: Vec<i32> = memory.arena[at..at + ids.bytes()]
        .chunks_exact(4)
        .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    assert_eq!(written, [49; 4], "only the last write reached the device");
}
