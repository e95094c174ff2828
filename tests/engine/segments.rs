//! A denoising step in three segments: the bits of a whole step, and the host can read and change
//! the tensors between them.

use std::collections::HashMap;

use flux_fast::backend::{Backend, Compute};
use flux_fast::dtype::DType;

use crate::common::cpu;
use crate::common::denoiser::Denoiser;

const SEAMS: [(&str, &str); 3] = [("head", "img"), ("head", "txt"), ("blocks", "joint")];

#[test]
fn head_blocks_and_tail_give_the_bits_of_a_whole_step() {
    let mut backend = cpu(Compute::Auto);
    let denoiser = Denoiser::computing_in(backend.caps().activation, 3);
    let mut hidden: Option<HashMap<_, Vec<u32>>> = None;
    for budget in denoiser.budgets(&backend) {
        let whole = denoiser.run(&mut backend, budget, 3);
        let mut seen = HashMap::new();
        let mut step = 0;
        let parts = denoiser.run_in_segments(&mut backend, budget, 3, &mut |session, segment| {
            for io in &segment.passed_on {
                let values = session.read_f32(io.tensor).unwrap();
                assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0));
                // Writing the same values changes nothing.
                session.write_f32(io.tensor, &values).unwrap();
                let bits = values.into_iter().map(f32::to_bits).collect();
                seen.insert((step, segment.name, io.name), bits);
            }
            step += usize::from(segment.name == "tail");
        });
        assert_eq!(parts, whole, "with {budget} bytes");
        for (segment, name) in SEAMS {
            assert!(seen.contains_key(&(2, segment, name)), "{segment} passes no {name} on");
        }
        assert_eq!(seen.len(), 3 * SEAMS.len());
        assert_ne!(seen[&(0, "head", "img")], seen[&(1, "head", "img")], "the latents changed");
        // The budget changes no number at a seam.
        assert!(hidden.get_or_insert_with(|| seen.clone()) == &seen, "with {budget} bytes");
    }
}

#[test]
fn a_tensor_that_the_host_changes_between_segments_changes_the_result() {
    let mut backend = cpu(Compute::Auto);
    let denoiser = Denoiser::computing_in(backend.caps().activation, 1);
    let whole = denoiser.run(&mut backend, u64::MAX, 1);
    for (at, name) in SEAMS {
        let parts = denoiser.run_in_segments(&mut backend, u64::MAX, 1, &mut |session, segment| {
            if segment.name == at {
                let tensor = segment.passed_on(name);
                session.write_f32(tensor, &vec![0.5; tensor.rows * tensor.cols]).unwrap();
            }
        });
        assert_ne!(parts["latents"], whole["latents"], "{name} after {at}");
        assert_eq!(parts["text"], whole["text"]);
    }
}

#[test]
fn segments_cover_the_program_and_are_listed_with_and_without_loras() {
    let plain = Denoiser::computing_in(DType::BF16, 2).program;
    let with_loras = plain.clone().with_sides(&|w| w.name.contains("in.weight").then_some(4));
    assert_eq!(with_loras.steps.len(), plain.steps.len() + 2);
    for program in [plain, with_loras] {
        let names: Vec<_> = program.segments.iter().map(|s| s.name).collect();
        assert_eq!(names, ["head", "blocks", "tail"]);
        let mut end = 0;
        for (segment, label) in program.segments.iter().zip(["img_in.", "double.0.", "final."]) {
            assert_eq!(segment.steps.start, end);
            assert!(program.steps[end].label.starts_with(label), "{}", program.steps[end].label);
            end = segment.steps.end;
        }
        assert_eq!(end, program.steps.len());
        let listing = program.to_string();
        let lines = listing.lines().map(str::trim);
        let seams: Vec<_> =
            lines.filter(|l| l.starts_with("segment ") || l.starts_with("passes ")).collect();
        let begins = ["segment head: ", "passes img on", "passes txt on", "segment blocks: "];
        let begins = begins.iter().chain(&["passes joint on", "segment tail: "]);
        assert_eq!(seams.len(), 6, "{seams:?}");
        assert!(seams.iter().zip(begins).all(|(l, b)| l.starts_with(b)), "{seams:?}");
    }
}
