use super::*;

/// A function that a test evaluates lane by lane.
struct Eval<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    which: usize,
}

impl Kernel for Eval<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.x.len();
        assert_eq!(n, self.out.len());
        // SAFETY: both slices have n elements.
        unsafe {
            map::<S>(self.x.as_ptr(), self.out.as_mut_ptr(), n, |_, x| match self.which {
                0 => exp::<S>(x),
                1 => exp2::<S>(x),
                2 => silu::<S>(x),
                _ => gelu_tanh::<S>(x),
            })
        }
    }
}

fn available() -> Vec<Lanes> {
    #[allow(unused_mut)]
    let mut lanes = vec![Lanes::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            lanes.push(Lanes::Avx2);
        }
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
            lanes.push(Lanes::Avx512);
        }
    }
    lanes
}

fn eval(lanes: Lanes, which: usize, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    // SAFETY: `available` returns only sets that the processor has.
    unsafe { lanes.run(Eval { x, out: &mut out, which }) };
    out
}

#[test]
fn the_functions_match_f64_over_their_range() {
    let x: Vec<f32> = (-870_001..=870_001).step_by(7).map(|i| i as f32 * 1e-4).collect();
    for lanes in available() {
        for which in 0..4 {
            let worst = x
                .iter()
                .zip(eval(lanes, which, &x))
                .map(|(&x, y)| {
                    let x = f64::from(x);
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                    let exact = match which {
                        0 => x.exp(),
                        1 => x.exp2(),
                        2 => x / (1.0 + (-x).exp()),
                        _ => x / (1.0 + (-2.0 * u).exp()),
                    };
                    // Far on the negative side, the activations are tiny numbers, and their
                    // exponent multiplies the rounding of the argument.
                    let scale = if which < 2 { exact } else { exact.abs().max(1e-2) };
                    ((f64::from(y) - exact) / scale).abs()
                })
                .fold(0.0, f64::max);
            assert!(worst < 1e-6, "{lanes:?} function {which}: {worst:e}");
        }
    }
}

#[test]
fn the_limits_are_zero_infinity_and_nan() {
    for lanes in available() {
        let x = [f32::NEG_INFINITY, -1e30, -200.0, 89.0, 1e30, f32::INFINITY, f32::NAN];
        for which in 0..2 {
            let y = eval(lanes, which, &x);
            assert_eq!(&y[..3], &[0.0; 3], "{lanes:?} {which}");
            assert!(y[6].is_nan());
            assert_eq!(&y[4..6], &[f32::INFINITY; 2], "{lanes:?} {which}");
        }
        for which in 2..4 {
            let y = eval(lanes, which, &x[1..]);
            assert!(y[0].abs() < 1e-20 && y[1].abs() < 1e-20, "{lanes:?} {which}: {y:?}");
            assert_eq!(y[2], 89.0);
            assert!(y[5].is_nan());
        }
    }
}
