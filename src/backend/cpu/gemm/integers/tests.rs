use super::super::rows::WeightRows;
use super::super::testing::{Random, blocks, weight};
use super::*;
use crate::dtype::DType::{BF16, F8E4M3, F16, F32, I8, Q4K, W4A8};
use crate::dtype::int8::Rotation;
use crate::tensor::{BlockScale, BlockScales, HostPart, Scale};

/// The kernels that this machine can run.
fn runnable() -> Vec<(&'static str, &'static IntegerMicro)> {
    let mut all = vec![("portable", &PORTABLE)];
    #[cfg(target_arch = "x86_64")]
    {
        use super::super::testing::{has, is_tested};
        let levels = [("avx2", &AVX2), ("avx512vnni", &AVX512VNNI), ("amx", &AMX)];
        all.extend(levels.into_iter().filter(|&(name, m)| has(name, m.isa)));
        let vnni = avx_vnni();
        is_tested("avx_vnni", "avxvnni", vnni.is_some());
        all.extend(vnni.map(|m| ("avx_vnni", m)));
    }
    all
}

fn rotated(group: usize) -> Int8 {
    Int8 { rotation: Rotation::new(group) }
}

/// The rows of `w` as integers with their scales, by the definition.
fn integers(w: &HostWeight, int8: Int8) -> (Vec<i8>, Vec<f32>) {
    let (mut all, mut scales) = (vec![], vec![]);
    for part in &w.parts {
        for (r, bytes) in part.bytes().chunks(part.row_bytes()).enumerate() {
            let (mut row, mut q) = (vec![0.0; w.cols], vec![0; w.cols]);
            if w.is_stored_as(int8) {
                q = bytes.iter().map(|b| *b as i8).collect();
                scales.push(part.scale.of(r));
            } else {
                part.decode_row(r, bytes, &mut row);
                scales.push(int8.quantise(&mut row, &mut q));
            }
            all.extend(q);
        }
    }
    (all, scales)
}

/// `x . w^T` by the definition, with the roundings of the kernels.
fn expected(x: &[f32], w: &HostWeight, int8: Int8, factors: Option<&[f32]>) -> Vec<f32> {
    let (qw, sw) = integers(w, int8);
    let mut out = vec![];
    for row in x.chunks(w.cols) {
        let mut q = vec![0; w.cols];
        let sx = int8.quantise(&mut row.to_vec(), &mut q);
        for (n, qw) in qw.chunks(w.cols).enumerate() {
            let sum: i32 = q.iter().zip(qw).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
            out.push(sum as f32 * sx * (sw[n] * factors.map_or(1.0, |f| f[n])));
        }
    }
    out
}

fn run(
    m: &IntegerMicro,
    x: &[f32],
    w: Integers,
    bias: Option<&[f32]>,
    side: Option<(&[f32], &HostWeight)>,
) -> Vec<f32> {
    let (k, n) = (w.weight.cols, w.weight.rows);
    let rows = x.len() / k;
    let rank = side.map_or(0, |(_, b)| b.cols);
    let bytes = scratch_bytes(m, rows, k, rank, n, rayon::current_num_threads());
    // The scratch is filled with garbage and starts at an odd address.
    let mut scratch = vec![0xff; bytes + 1];
    let mut out = vec![f32::NAN; rows * n];
    let b = side.map(|(_, b)| WeightRows::new(b));
    let side = side.zip(b.as_ref()).map(|((t, _), b)| Side { t: In::dense(t, rank), b });
    // SAFETY: the processor has what `m` needs, and all sizes fit.
    unsafe {
        let out = Out::dense(&mut out, n);
        product(m, In::dense(x, k), w, bias, side, Tail::None, out, &mut scratch[1..]);
    }
    out
}

/// A weight of integers, rotated in groups of `group`, with -128 among them.
fn stored(random: &mut Random, cols: usize, rows: usize, group: usize) -> HostWeight {
    let mut bytes: Vec<u8> = (0..rows * cols).map(|_| (random.f32() * 127.0) as i8 as u8).collect();
    bytes[0] = 0x80;
    let part = HostPart {
        source: std::sync::Arc::new(bytes),
        offset: 0,
        rows,
        cols,
        dtype: I8,
        scale: Scale::Rows((0..rows).map(|_| 1.5 + random.f32()).collect()),
        rotation: Rotation::new(group),
    };
    HostWeight { rows, cols, parts: vec![part], int8: None }
}

/// A weight of codes for integers, rotated in groups of `group`, and the integers themselves.
fn packed(random: &mut Random, cols: usize, rows: usize, group: usize) -> [HostWeight; 2] {
    let codes: Vec<u8> = (0..rows * cols / 2).map(|_| (random.f32() * 127.0) as i8 as u8).collect();
    let scales: Vec<u8> =
        (0..rows * cols / 16).flat_map(|_| (70.0 * random.f32()).to_le_bytes()).collect();
    let factors: std::sync::Arc<[f32]> = (0..rows).map(|_| 1.5 + random.f32()).collect();
    let scales = BlockScales::new(std::sync::Arc::new(scales), 0, BlockScale::F32, cols / 16);
    let codes = HostPart {
        source: std::sync::Arc::new(codes),
        offset: 0,
        rows,
        cols,
        dtype: W4A8,
        scale: Scale::Blocks(scales.with_factors(factors.clone())),
        rotation: Rotation::new(group),
    };
    let (mut values, mut q, mut all) = (vec![0.0; cols], vec![0; cols], vec![]);
    for (r, bytes) in codes.bytes().chunks(codes.row_bytes()).enumerate() {
        codes.unpack_integers(rotated(group), (r, bytes), &mut values, &mut q).unwrap();
        all.extend(q.iter().map(|q| *q as u8));
    }
    let integers = HostPart {
        source: std::sync::Arc::new(all),
        dtype: I8,
        scale: Scale::Rows(factors),
        ..codes.clone()
    };
    [codes, integers].map(|part| HostWeight { rows, cols, parts: vec![part], int8: None })
}

#[test]
fn codes_for_integers_give_the_products_of_these() {
    let mut random = Random::new(23);
    for (name, m) in runnable() {
        for (rows, k, n, group) in [(1, 48, 5, 16), (20, 192, 40, 64), (3, 512, 33, 256)] {
            let x = random.vec(rows * k);
            let weights = packed(&mut random, k, n, group);
            // In another rotation, both are rotated back first.
            for int8 in [rotated(group), rotated(16), Int8 { rotation: None }] {
                let product =
                    |weight| run(m, &x, Integers { weight, int8, factors: None }, None, None);
                let [codes, integers] = [&weights[0], &weights[1]].map(product);
                assert_eq!(codes, integers, "{name} {rows} x {k} x {n}");
            }
        }
    }
}

#[test]
fn every_kernel_gives_the_sums_of_the_definition() {
    let mut random = Random::new(11);
    for (name, m) in runnable() {
        for (rows, k, n, int8) in [
            (1, 16, 1, rotated(16)),
            (3, 48, 33, rotated(16)),
            (17, 64, 47, rotated(64)),
            (14, 256, 32, rotated(256)),
            (29, 768, 300, rotated(256)),
            (60, 3328, 70, rotated(256)),
            (5, 31, 40, Int8 { rotation: None }),
            (140, 192, 600, rotated(64)),
        ] {
            let x = random.vec(rows * k);
            let factors: Vec<f32> = (0..n).map(|_| 1.5 + random.f32()).collect();
            let bias = random.vec(n);
            let mut weights = vec![
                weight(&mut random, k, &[(n / 2, BF16), (n - n / 2, F8E4M3)]),
                weight(&mut random, k, &[(n, F32)]),
                stored(&mut random, k, n, int8.rotation.map_or(0, Rotation::group)),
            ];
            if k.is_multiple_of(256) {
                weights.push(blocks(&mut random, k, n, Q4K));
                // Stored in another rotation.
                weights.push(stored(&mut random, k, n, 64));
            }
            for w in &weights {
                for factors in [None, Some(&factors[..])] {
                    let want = expected(&x, w, int8, factors);
                    let w = Integers { weight: w, int8, factors };
                    assert_eq!(run(m, &x, w, None, None), want, "{name} {rows} x {k} x {n}");
                    let found = run(m, &x, w, Some(&bias), None);
                    let want = want.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b);
                    assert!(want.eq(found), "{name} {rows} x {k} x {n} with a bias");
                }
            }
        }
    }
}

#[test]
fn more_rows_than_are_packed_at_once_and_any_number_of_threads_give_the_same() {
    let mut random = Random::new(12);
    // The second has, for AMX, more rows of x than a task keeps sums of, and more bytes in 256 rows
    // of w than a task packs.
    for (rows, k, n) in [(3100, 16, 70), (560, 3328, 264)] {
        let x = random.vec(rows * k);
        let w = weight(&mut random, k, &[(n, F16)]);
        let w = Integers { weight: &w, int8: rotated(16), factors: None };
        let want = expected(&x, w.weight, w.int8, None);
        for (name, m) in runnable() {
            for threads in [1, 2, 7] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| run(m, &x, w, None, None));
                assert!(found == want, "{name} {rows} x {k} x {n} on {threads} threads");
            }
        }
    }
}

#[test]
fn a_side_is_added_and_not_scaled() {
    let mut random = Random::new(13);
    for (name, m) in runnable() {
        for (rows, k, n, rank) in [(1, 64, 33, 4), (50, 704, 70, 33), (33, 48, 300, 450)] {
            let (x, t) = (random.vec(rows * k), random.vec(rows * rank));
            let w = weight(&mut random, k, &[(n, BF16)]);
            let b = weight(&mut random, rank, &[(n, BF16)]);
            let int8 = Int8 { rotation: Rotation::of_columns(k) };
            let found =
                run(m, &x, Integers { weight: &w, int8, factors: None }, None, Some((&t, &b)));
            let (main, up) = (expected(&x, &w, int8, None), b.to_f32());
            for (i, (found, main)) in found.iter().zip(&main).enumerate() {
                let (r, n) = (i / n, i % n);
                let more: f64 = (0..rank)
                    .map(|j| f64::from(t[r * rank + j]) * f64::from(up[n * rank + j]))
                    .sum();
                let want = f64::from(*main) + more;
                let error = (f64::from(*found) - want).abs();
                assert!(error < 2e-5 * (1.0 + want.abs()), "{name}: {found} is not {want}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_its_row_and_no_other() {
    let mut random = Random::new(14);
    let w = weight(&mut random, 64, &[(40, BF16)]);
    for (name, m) in runnable() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = random.vec(20 * 64);
            x[7 * 64 + 30] = bad;
            let w = Integers { weight: &w, int8: rotated(64), factors: None };
            for (r, row) in run(m, &x, w, None, None).chunks(40).enumerate() {
                assert!(row.iter().all(|y| y.is_finite() == (r != 7)), "{name}: row {r} of {bad}");
            }
        }
    }
}
