//! Products in 8-bit integers and their files, compared with comfy-kitchen
//! (`tests/golden/make_int8_goldens.py`).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::linear::{LINEAR, Tail, linear, linear_scratch};
use flux_fast::backend::cpu::matrix::{In, Out};
use flux_fast::backend::{Compute, Device};
use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::event::Event;
use flux_fast::library::convert::{Target, convert};
use flux_fast::library::open_only;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Options, Request};
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::tensor::{HostPart, HostWeight, Scale};

use crate::common::{Golden, files, path, psnr, relative_error, temp_dir};

const CASES: [(&str, usize); 4] = [("g256", 256), ("g64", 64), ("g16", 16), ("plain", 0)];

fn int8(group: usize) -> Int8 {
    Int8 { rotation: Rotation::new(group) }
}

/// The integers that comfy-kitchen made.
fn stored(golden: &Golden, case: &str, group: usize) -> HostWeight {
    let [rows, cols] = golden.shape(&format!("{case}.weight"))[..] else { panic!("a matrix") };
    let part = HostPart {
        source: Arc::new(golden.u8(&format!("{case}.weight"))),
        offset: 0,
        rows,
        cols,
        dtype: DType::I8,
        scale: Scale::Rows(golden.f32(&format!("{case}.weight_scale")).into()),
        rotation: Rotation::new(group),
    };
    HostWeight { rows, cols, parts: vec![part], int8: Some(int8(group)) }
}

/// Checks that our integers and scales of the rows of `values` are theirs. Sums that another order
/// rounds otherwise may decide a tie.
fn same_integers(what: &str, values: &[f32], group: usize, q: &[u8], scales: &[f32]) {
    let k = q.len() / scales.len();
    let mut off = 0;
    for (r, row) in values.chunks(k).enumerate() {
        let mut ours = vec![0; k];
        let scale = int8(group).quantise(&mut row.to_vec(), &mut ours);
        assert!((scale - scales[r]).abs() <= 1e-6 * scale, "{what}: {scale} is not {}", scales[r]);
        for (ours, theirs) in ours.iter().zip(&q[r * k..]) {
            let difference = (i32::from(*ours) - i32::from(*theirs as i8)).abs();
            assert!(difference <= 1, "{what}, row {r}");
            off += difference;
        }
    }
    assert!(off as usize * 500 <= q.len(), "{what}: {off} of {} differ", q.len());
}

#[test]
fn integers_scales_and_products_are_those_of_comfy_kitchen() {
    let golden = Golden::of("int8");
    for (case, group) in CASES {
        let get = |name: &str| golden.f32(&format!("{case}.{name}"));
        let bytes = |name: &str| golden.u8(&format!("{case}.{name}"));
        same_integers(case, &get("w"), group, &bytes("weight"), &get("weight_scale"));
        same_integers(case, &get("x"), group, &bytes("x_q"), &get("x_scale"));
        let w = stored(&golden, case, group);
        let off = relative_error(&w.to_f32(), &get("dequantised"));
        assert!(off < 1e-6, "{case}: {off:e}");
        let (x, bias, y) = (get("x"), get("bias"), get("y"));
        let rows = x.len() / w.cols;
        for v in LINEAR.iter().filter(|v| v.is_of_integers() && v.needs <= Isa::detect()) {
            let mut out = vec![0.0; rows * w.rows];
            let scratch = |threads| linear_scratch(v, rows, w.cols, 0, w.rows, threads);
            let bytes = (1..=64).map(scratch).max().unwrap();
            linear(
                In::dense(&x, w.cols),
                &w,
                None,
                Some(&bias),
                None,
                Tail::None,
                Out::dense(&mut out, w.rows),
                &mut vec![0; bytes],
                v,
            );
            // An integer of x that is rounded otherwise changes a sum by 1 of about 10^4.
            let off = relative_error(&out, &y);
            assert!(off < 2e-4, "{case} {}: {off:e}", v.name);
        }
    }
}

/// The image of a prompt, and the notes until it was drawn.
fn draw(options: Options) -> (Vec<f32>, String) {
    let mut notes = String::new();
    let mut on = |event| {
        if let Event::Note(note) = event {
            notes += &format!("{note}\n");
        }
        ControlFlow::Continue(())
    };
    let mut engine = Engine::open_with(options.device(Device::Cpu), &mut on).unwrap();
    let request = Request::new("a fox, 3D style, on a blue background").seed(1);
    let image = engine.generate_with(&request, on).unwrap().images.remove(0);
    (image.rgb.iter().map(|v| f32::from(*v)).collect(), notes)
}

#[test]
fn a_converted_model_is_drawn_with_in_int8_or_exactly() {
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/flux-tiny.safetensors");
    let dir = temp_dir();
    let to = path(&dir, "rotated.safetensors");
    let tell = &mut |_, _| ControlFlow::Continue(());
    convert(&open_only(&asset).unwrap(), Target::Int8ConvRot, &to, tell).unwrap();
    let weights = open_only(&to).unwrap().take(TRANSFORMER).unwrap();
    assert!(weights.dialect().contains("int8 (ConvRot)"), "{}", weights.dialect());
    let rotation = |name: &str| {
        let (rows, cols) = weights.shape(name).unwrap();
        weights.get(name, 0, rows, cols).unwrap().parts[0].rotation.map(Rotation::group)
    };
    assert_eq!(rotation("double_blocks.0.img_attn.qkv.weight"), Some(256));
    assert_eq!(rotation("single_blocks.0.linear2.weight"), Some(256));
    assert_eq!(rotation("double_blocks.0.img_mod.lin.weight"), None);
    assert_eq!(rotation("final_layer.linear.weight"), None);
    let options = |compute| Options::default().files(files(&to)).compute(compute);
    let (exact, _) = draw(Options::default().compute(Compute::F32));
    let (auto, notes) = draw(options(Compute::Auto));
    assert!(notes.contains("ConvRot"), "{notes}");
    assert_eq!(draw(options(Compute::Int8)).0, auto);
    let (back, notes) = draw(options(Compute::F32));
    assert!(!notes.contains("ConvRot"), "{notes}");
    let (auto, back) = (psnr(&auto, &exact, 255.0), psnr(&back, &exact, 255.0));
    println!("in int8 {auto:.1} dB, rotated back {back:.1} dB");
    assert!(auto >= 25.0 && back >= 28.0, "in int8 {auto:.1} dB, rotated back {back:.1} dB");
}
