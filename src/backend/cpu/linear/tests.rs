use super::super::gemm::testing::{Random, blocks, error, runnable, tolerance, weight};
use super::*;
use crate::backend::Compute;
use crate::dtype::DType::*;
use crate::tensor::DTypes;

/// `x . w^T + bias` in f64.
fn sums(x: &[f32], w: &HostWeight, bias: Option<&[f32]>) -> Vec<f64> {
    let values = w.to_f32();
    let rows = x.len() / w.cols;
    let mut out = Vec::new();
    for r in 0..rows {
        for n in 0..w.rows {
            let dot: f64 = (0..w.cols)
                .map(|k| f64::from(x[r * w.cols + k]) * f64::from(values[n * w.cols + k]))
                .sum();
            out.push(dot + bias.map_or(0.0, |b| f64::from(b[n])));
        }
    }
    out
}

fn run(v: &Variant, x: In, w: &HostWeight, bias: Option<&[f32]>, tail: Tail, out: Out) {
    let bytes = linear_scratch(v, x.rows(), w.cols, 0, w.rows, rayon::current_num_threads());
    // The scratch is filled with garbage and starts at an odd address.
    let mut scratch = vec![0xff; bytes + 1];
    linear(x, w, None, bias, None, tail, out, &mut scratch[1..], v);
}

fn plain(v: &Variant, x: &[f32], w: &HostWeight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.cols * w.rows];
    run(v, In::dense(x, w.cols), w, bias, Tail::None, Out::dense(&mut out, w.rows));
    out
}

#[test]
fn odd_sizes_and_every_stored_type_are_correct() {
    let mut random = Random::new(1);
    for v in runnable(LINEAR) {
        for dtype in [F32, BF16, F16, F8E4M3, F8E5M2] {
            for (rows, k, n) in [
                (1, 1, 1),
                (1, 3, 33),
                (2, 8, 5),
                (3, 63, 31),
                (5, 65, 64),
                (8, 300, 257),
                (9, 7, 7),
                (17, 64, 47),
                (17, 1100, 33),
                (29, 100, 300),
                (255, 513, 65),
                (257, 65, 17),
            ] {
                let x = random.vec(rows * k);
                let w = weight(&mut random, k, &[(n, dtype)]);
                // With a single sum the bias could cancel it, and the relative error would be
                // meaningless.
                let bias = (n > 1).then(|| random.vec(n));
                let e = error(&plain(v, &x, &w, bias.as_deref()), &sums(&x, &w, bias.as_deref()));
                assert!(e <= tolerance(v), "{} {} {rows} x {k} x {n}: {e:e}", v.name, dtype.name());
            }
        }
    }
}

#[test]
fn parts_of_several_types_and_scales_are_correct() {
    let mut random = Random::new(2);
    for v in runnable(LINEAR) {
        for rows in [2, 23] {
            let w = weight(
                &mut random,
                77,
                &[(5, BF16), (1, F8E4M3), (40, F16), (9, F32), (35, F8E5M2), (3, F8E4M3)],
            );
            let x = random.vec(rows * 77);
            let e = error(&plain(v, &x, &w, None), &sums(&x, &w, None));
            assert!(e <= tolerance(v), "{} {rows} rows: {e:e}", v.name);
        }
    }
}

#[test]
fn every_tail_works_in_place_and_within_windows() {
    let mut random = Random::new(3);
    let (k, n, groups) = (50, 43, 2);
    for v in runnable(LINEAR) {
        for rows in [4, 30] {
            let w = weight(&mut random, k, &[(20, BF16), (23, F8E4M3)]);
            let bias = random.vec(n);
            let wide_x = random.vec(rows * (k + 9));
            let x: Vec<f32> = wide_x.chunks(k + 9).flat_map(|r| r[4..4 + k].to_vec()).collect();
            let gate_data = random.vec(groups * (n + 5));
            let gate = In::window(&gate_data, n + 5, 3, n);
            let before = random.vec(rows * (n + 7));
            let y = sums(&x, &w, Some(&bias));
            for kind in 0..6 {
                let mut data = before.clone();
                let out = Out::window(&mut data, n + 7, 2, n);
                let residual = out.read();
                let tail = match kind {
                    0 => Tail::None,
                    1 => Tail::Silu,
                    2 => Tail::GeluTanh,
                    3 => Tail::QuickGelu,
                    4 => Tail::Add { residual },
                    _ => Tail::GatedAdd { residual, gate },
                };
                run(v, In::window(&wide_x, k + 9, 4, k), &w, Some(&bias), tail, out);
                let want: Vec<f64> = (0..rows * n)
                    .map(|i| {
                        let (r, c, y) = (i / n, i % n, y[i]);
                        let old = f64::from(before[r * (n + 7) + 2 + c]);
                        match kind {
                            0 => y,
                            1 => y / (1.0 + (-y).exp()),
                            2 => {
                                let u = (2.0 / std::f64::consts::PI).sqrt()
                                    * (y + 0.044715 * y.powi(3));
                                y / 2.0 * (1.0 + u.tanh())
                            }
                            3 => y / (1.0 + (-1.702 * y).exp()),
                            4 => old + y,
                            _ => {
                                old + f64::from(gate_data[r / (rows / groups) * (n + 5) + 3 + c])
                                    * y
                            }
                        }
                    })
                    .collect();
                let got: Vec<f32> = data.chunks(n + 7).flat_map(|r| r[2..2 + n].to_vec()).collect();
                let e = error(&got, &want);
                assert!(e <= tolerance(v), "{} {rows} rows, tail {kind}: {e:e}", v.name);
                for (got, before) in data.chunks(n + 7).zip(before.chunks(n + 7)) {
                    assert!(
                        got[..2] == before[..2] && got[2 + n..] == before[2 + n..],
                        "{} wrote outside",
                        v.name
                    );
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_the_output() {
    let mut random = Random::new(4);
    for v in runnable(LINEAR) {
        for rows in [1, 20] {
            for dtype in [F32, BF16, F16, F8E4M3, F8E5M2] {
                let mut x = random.vec(rows * 70);
                x[69] = f32::NAN;
                let out = plain(v, &x, &weight(&mut random, 70, &[(40, dtype)]), None);
                assert!(out[..40].iter().all(|o| o.is_nan()), "{} loses the NaN of x", v.name);
                assert!(out[40..].iter().all(|o| o.is_finite()), "{} spreads the NaN of x", v.name);

                // A NaN in the weight belongs to one column.
                let mut bytes = Vec::new();
                for i in 0..70 * 40 {
                    dtype.encode(if i == 70 * 7 + 3 { f32::NAN } else { random.f32() }, &mut bytes);
                }
                let mut w = weight(&mut random, 70, &[(40, dtype)]);
                w.parts[0].source = std::sync::Arc::new(bytes);
                w.parts[0].offset = 0;
                let out = plain(v, &random.vec(rows * 70), &w, None);
                let ok = out.iter().enumerate().all(|(i, o)| o.is_nan() == (i % 40 == 7));
                assert!(ok, "{} {}: the NaN of w", v.name, dtype.name());
            }
        }
    }
}

#[test]
fn subnormal_weights_keep_their_value() {
    let mut random = Random::new(5);
    for v in runnable(LINEAR) {
        // All 254 finite codes of E4M3; the smallest ones in a row of their own.
        let codes: Vec<u8> = (0..=255u8).filter(|q| q & 0x7f != 0x7f).collect();
        let small: Vec<u8> =
            (0..254).map(|i| (i % 8) as u8 | if i % 3 == 0 { 0x80 } else { 0 }).collect();
        let mut w = weight(&mut random, 254, &[(2, F8E4M3)]);
        w.parts[0].source = std::sync::Arc::new([codes, small].concat());
        w.parts[0].offset = 0;
        for rows in [1, 12] {
            let x = random.vec(rows * 254);
            let (got, want) = (plain(v, &x, &w, None), sums(&x, &w, None));
            for column in 0..2 {
                let got: Vec<f32> = got.iter().skip(column).step_by(2).copied().collect();
                let want: Vec<f64> = want.iter().skip(column).step_by(2).copied().collect();
                let e = error(&got, &want);
                assert!(e <= tolerance(v) * 2.0, "{} row {column}: {e:e}", v.name);
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random::new(6);
    // More rows than a task of AMX has, and several blocks of k.
    let (rows, k, n) = (600, 1200, 330);
    let x = random.vec(rows * k);
    let w = weight(&mut random, k, &[(n, BF16)]);
    let want = sums(&x, &w, None);
    for v in runnable(LINEAR) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| plain(v, &x, &w, None))
        };
        let one = on(1);
        assert!(one == on(2) && one == on(7), "{} depends on the number of threads", v.name);
        let e = error(&one, &want);
        assert!(e <= tolerance(v), "{}: {e:e}", v.name);
    }
}

#[test]
fn more_rows_than_are_packed_at_once_are_correct() {
    let mut random = Random::new(7);
    let x = random.vec(3200 * 5);
    let w = weight(&mut random, 5, &[(6, F16)]);
    for v in runnable(LINEAR) {
        let e = error(&plain(v, &x, &w, None), &sums(&x, &w, None));
        assert!(e <= tolerance(v), "{}: {e:e}", v.name);
    }
}

#[test]
fn without_columns_the_result_is_the_bias() {
    let w = HostWeight { int8: None, rows: 3, cols: 0, parts: vec![] };
    let w = HostWeight {
        int8: None,
        parts: vec![weight(&mut Random::new(8), 0, &[(3, F32)]).parts[0].clone()],
        ..w
    };
    for v in runnable(LINEAR) {
        for rows in [2, 20] {
            let mut out = vec![f32::NAN; rows * 3];
            // SAFETY: rows without columns have no elements.
            let x = unsafe { In::new(std::ptr::NonNull::dangling().as_ptr(), rows, 0, 0) };
            run(v, x, &w, Some(&[1.0, 2.0, 3.0]), Tail::None, Out::dense(&mut out, 3));
            assert!(out.chunks(3).all(|r| r == [1.0, 2.0, 3.0]), "{}", v.name);
        }
    }
}

#[test]
fn the_variant_depends_on_arithmetic_storage_and_processor() {
    let stored =
        |types: &[crate::dtype::DType]| types.iter().fold(DTypes::default(), |set, t| set.with(*t));
    let name = |isa, types: &[_], compute, forced| {
        choose(LINEAR, isa, stored(types), compute, forced).map(|v| v.name)
    };
    if cfg!(target_arch = "x86_64") {
        assert_eq!(name(Isa::Amx, &[BF16], Compute::Auto, None), Some("linear_bf16_amx"));
        assert_eq!(name(Isa::Amx, &[BF16], Compute::F32, None), Some("linear_f32_avx512"));
        let best = Isa::Avx512Bf16;
        assert_eq!(name(best, &[BF16], Compute::Auto, None), Some("linear_bf16_avx512bf16"));
        assert_eq!(
            name(best, &[F8E4M3, BF16], Compute::Auto, None),
            Some("linear_bf16_avx512bf16")
        );
        assert_eq!(name(best, &[F32, BF16], Compute::Auto, None), Some("linear_f32_avx512"));
        assert_eq!(name(best, &[BF16], Compute::F32, None), Some("linear_f32_avx512"));
        assert_eq!(name(best, &[F32], Compute::BF16, None), Some("linear_bf16_avx512bf16"));
        assert_eq!(name(Isa::Avx512, &[BF16], Compute::BF16, None), Some("linear_f32_avx512"));
        assert_eq!(name(Isa::Avx2, &[BF16], Compute::Auto, None), Some("linear_f32_avx2"));
        assert_eq!(name(Isa::Avx2, &[BF16], Compute::Auto, Some("linear_f32_avx512")), None);
    }
    assert_eq!(name(Isa::Portable, &[F16], Compute::Auto, None), Some("linear_f32_portable"));
    let forced = Some("linear_f32_portable");
    assert_eq!(name(Isa::Avx512Bf16, &[BF16], Compute::BF16, forced), Some("linear_f32_portable"));
}

#[test]
fn a_side_is_added_before_the_epilogue_and_without_the_scales_of_w() {
    let mut random = Random::new(77);
    for v in runnable(LINEAR) {
        for dtype in [F32, BF16, F8E4M3] {
            for (rows, k, n, rank) in [
                (1, 64, 33, 4),
                (7, 100, 40, 16),
                (9, 64, 65, 1),
                (50, 700, 70, 33),
                (33, 40, 300, 450),
            ] {
                let x = random.vec(rows * k);
                let t = random.vec(rows * rank);
                let w = weight(&mut random, k, &[(n / 2, dtype), (n - n / 2, dtype)]);
                let b = weight(&mut random, rank, &[(n, if dtype == F32 { F32 } else { BF16 })]);
                let (bias, residual) = (random.vec(n), random.vec(rows * n));
                let mut out = vec![f32::NAN; rows * n];
                let bytes = linear_scratch(v, rows, k, rank, n, rayon::current_num_threads());
                let mut scratch = vec![0xff; bytes];
                let tail = Tail::Add { residual: In::dense(&residual, n) };
                let side = Some((In::dense(&t, rank), &b));
                linear(
                    In::dense(&x, k),
                    &w,
                    None,
                    Some(&bias),
                    side,
                    tail,
                    Out::dense(&mut out, n),
                    &mut scratch,
                    v,
                );
                let (plain, more) = (sums(&x, &w, Some(&bias)), sums(&t, &b, None));
                let want: Vec<f64> = plain
                    .iter()
                    .zip(&more)
                    .zip(&residual)
                    .map(|((p, m), r)| p + m + f64::from(*r))
                    .collect();
                let e = error(&out, &want);
                assert!(
                    e <= tolerance(v),
                    "{} {} {rows} x {k} x {n} rank {rank}: {e:e}",
                    v.name,
                    dtype.name()
                );
            }
        }
    }
}

#[test]
fn expanded_types_give_the_product_of_their_values() {
    let mut random = Random::new(78);
    let formats = crate::dtype::blocks::FORMATS.iter().map(|f| f.dtype);
    for dtype in formats.chain([I8]) {
        for (rows, k, n) in [(1, 512, 40), (6, 256, 33), (20, 1280, 70), (60, 768, 300)] {
            let x = random.vec(rows * k);
            let w = blocks(&mut random, k, n, dtype);
            let want = sums(&x, &w, None);
            for v in runnable(LINEAR) {
                let e = error(&plain(v, &x, &w, None), &want);
                assert!(e <= tolerance(v), "{} {} {rows} x {k} x {n}: {e:e}", v.name, dtype.name());
            }
        }
    }
}
