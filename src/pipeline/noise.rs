//! Gaussian noise, bit for bit as PyTorch draws it on an x86-64 CPU. A seed then gives the same
//! image as in ComfyUI, which fills the latents `[batch, channels, height / 8, width / 8]` with
//! `torch.randn` in f32, from one CPU generator for the whole batch.
//!
//! What torch does (2.x; `ATen/native/cpu/DistributionTemplates.h`,
//! `ATen/core/MT19937RNGEngine.h`):
//! - The source is MT19937, seeded with the low 32 bits of the seed: seeds that differ by a
//!   multiple of 2^32 give the same noise.
//! - A tensor of 16 values or more is first filled with uniforms of 24 bits. Box-Muller then takes
//!   it in blocks of 16: uniform `i` of a block makes the radius and uniform `i + 8` the angle of
//!   values `i` (cosine) and `i + 8` (sine). Where the length is not a multiple of 16, the *last*
//!   16 values are drawn again from 16 fresh uniforms and replace those of the full blocks.
//! - A smaller tensor is drawn value by value in f64 from uniforms of 53 bits. The sine half of a
//!   pair waits in the generator for the next *small* tensor; large ones neither use it nor drop
//!   it. (Logarithm, sine and cosine come from the system's library, in f64. The result is rounded
//!   to f32, which hides nearly every difference between libraries.)
//! - The logarithm, sine and cosine of the block path are the single-precision polynomials of the
//!   Cephes library, vectorised. Torch's build lets the compiler fuse multiplications with
//!   additions, so which pairs are fused is part of the result: `box_muller` fuses the same ones.
//!   Torch's AVX2 and AVX-512 builds agree; its plain build (`ATEN_CPU_CAPABILITY=default`) rounds
//!   differently (two values in five differ, by up to 2e-6), and other architectures have vector
//!   code of their own or that plain one.

/// State words of MT19937.
const WORDS: usize = 624;
/// Distance between the words that one step combines.
const SHIFT: usize = 397;

/// `torch.Generator("cpu").manual_seed(seed)`, as far as `torch.randn` uses it. Successive calls
/// continue one stream.
///
/// ```
/// use flux_fast::pipeline::noise::TorchGenerator;
/// let mut generator = TorchGenerator::new(42);
/// let first = generator.randn(16 * 8 * 8); // the latents of a 64 x 64 image
/// let second = generator.randn(16 * 8 * 8); // the latents of the next image
/// assert_ne!(first, second);
/// ```
#[derive(Clone)]
pub struct TorchGenerator {
    state: [u32; WORDS],
    /// The next unread word of `state`; `WORDS` when all have been read.
    next: usize,
    /// The second value of a pair that the scalar path drew.
    cached: Option<f64>,
}

/// `n` standard normal values of the stream that `seed` starts: `torch.randn(n,
/// generator=torch.Generator().manual_seed(seed))`.
///
/// The shape plays no part beyond its number of elements: reshape the result in row-major order.
pub fn randn(seed: u64, n: usize) -> Vec<f32> {
    TorchGenerator::new(seed).randn(n)
}

impl TorchGenerator {
    /// A generator at the start of the stream of `seed`, of which MT19937 uses the low 32 bits.
    pub fn new(seed: u64) -> Self {
        let mut state = [seed as u32; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: WORDS, cached: None }
    }

    /// The next `n` standard normal values, as one call of `torch.randn(n)` gives them.
    ///
    /// Two calls give the same values as one call for the sum only if both lengths are multiples of
    /// 16 or the sum is below 16.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        self.fill(&mut out);
        out
    }

    /// Overwrites `out` with what [`TorchGenerator::randn`] would return for its length.
    pub fn fill(&mut self, out: &mut [f32]) {
        if out.len() < 16 {
            for x in out {
                *x = self.scalar() as f32;
            }
            return;
        }
        self.fill_blocks(out);
    }

    /// The path for 16 values and more. Without `fma` in the build's target `f32::mul_add` is a
    /// library call: a few milliseconds for the noise of a large image, which is not worth `unsafe`
    /// code in this layer.
    fn fill_blocks(&mut self, out: &mut [f32]) {
        self.uniforms(out);
        let (blocks, rest) = out.as_chunks_mut::<16>();
        // Not `for_each`: its closure would be compiled separately, for the base instructions of
        // the target.
        for block in blocks {
            box_muller(block);
        }
        if !rest.is_empty()
            && let Some(last) = out.last_chunk_mut::<16>()
        {
            self.uniforms(last);
            box_muller(last);
        }
    }

    /// Fills `out` with the next uniforms in [0, 1), multiples of 2^-24.
    #[inline(always)]
    fn uniforms(&mut self, out: &mut [f32]) {
        let mut filled = 0;
        while filled < out.len() {
            if self.next == WORDS {
                self.refill();
            }
            let n = (WORDS - self.next).min(out.len() - filled);
            for (x, &word) in out[filled..filled + n].iter_mut().zip(&self.state[self.next..]) {
                // Through i32, which fits 24 bits, because vector units convert signed integers
                // only.
                *x = (temper(word) & 0xff_ffff) as i32 as f32 * (1.0 / 16_777_216.0);
            }
            self.next += n;
            filled += n;
        }
    }

    /// One value by Box-Muller in f64, or the one left over from the last call.
    fn scalar(&mut self) -> f64 {
        if let Some(x) = self.cached.take() {
            return x + 0.0;
        }
        let angle = std::f64::consts::TAU * self.uniform53();
        let radius = (-2.0 * (-self.uniform53()).ln_1p()).sqrt();
        self.cached = Some(radius * angle.sin());
        radius * angle.cos() + 0.0 // torch adds the mean: no negative zero
    }

    /// A uniform in [0, 1), a multiple of 2^-53, from two words, the high one first.
    fn uniform53(&mut self) -> f64 {
        let word = u64::from(self.word()) << 32 | u64::from(self.word());
        (word & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.refill();
        }
        self.next += 1;
        temper(self.state[self.next - 1])
    }

    /// The next 624 state words from the last.
    #[inline(always)]
    fn refill(&mut self) {
        let s = &mut self.state;
        let twist = |high: u32, low: u32, far: u32| {
            let y = (high & 0x8000_0000) | (low & 0x7fff_ffff);
            far ^ (y >> 1) ^ ((low & 1).wrapping_neg() & 0x9908_b0df)
        };
        for i in 0..WORDS - SHIFT {
            s[i] = twist(s[i], s[i + 1], s[i + SHIFT]);
        }
        for i in WORDS - SHIFT..WORDS - 1 {
            s[i] = twist(s[i], s[i + 1], s[i + SHIFT - WORDS]);
        }
        s[WORDS - 1] = twist(s[WORDS - 1], s[0], s[SHIFT - 1]);
        self.next = 0;
    }
}

/// MT19937's output function.
#[inline(always)]
fn temper(mut y: u32) -> u32 {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

/// Turns 16 uniforms into 16 normal values in place: the first eight are for the radii, the others
/// for the angles.
#[inline(always)]
fn box_muller(block: &mut [f32; 16]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        // Torch multiplies by the deviation 1 and adds the mean 0, which removes negative
        // zeros.
        *a = radius * cos + 0.0;
        *b = radius * sin + 0.0;
    }
}

/// Natural logarithm of `x` in [2^-24, 1] after Cephes' `logf`, fused where torch's build fuses.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = m 2^e with m in [sqrt(1/2), sqrt(2)); then a polynomial in m - 1.
    let bits = x.to_bits();
    let half = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // the mantissa in [1/2, 1)
    let small = half < std::f32::consts::FRAC_1_SQRT_2;
    let e = ((bits >> 23) as i32 - 126 - i32::from(small)) as f32;
    let m = half - 1.0 + if small { half } else { 0.0 };
    let square = m * m;
    let p = 0.070_376_836_f32
        .mul_add(m, -0.115_146_1)
        .mul_add(m, 0.116_769_984)
        .mul_add(m, -0.124_201_41)
        .mul_add(m, 0.142_493_23)
        .mul_add(m, -0.166_680_57)
        .mul_add(m, 0.200_007_14)
        .mul_add(m, -0.249_999_94)
        .mul_add(m, 0.333_333_3);
    // ln 2 in two parts, 0.693359375 exact in few bits and a correction.
    let tail = (p * m).mul_add(square, e * -2.121_944_4e-4) - 0.5 * square;
    e.mul_add(0.693_359_4, m + tail)
}

/// Sine and cosine of `x` in [0, 2 pi) after Cephes' `sinf` and `cosf`, fused where torch's build
/// fuses.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    // The nearest even octant, then what is left of x, in [-pi/4, pi/4], by subtracting pi/4 in
    // three parts. Adding 2^23 puts a small whole number into the low bits; the checks of a plain
    // conversion would prevent vectorising.
    let whole = ((x * 1.273_239_5).floor() + 8_388_608.0).to_bits() as i32 & 15;
    let octant = (whole + 1) & !1;
    let y = octant as f32;
    let x = y.mul_add(-3.774_895e-8, y.mul_add(-2.418_756_5e-4, y.mul_add(-0.785_156_25, x)));
    let square = x * x;
    let c = 2.443_315_7e-5_f32.mul_add(square, -1.388_731_6e-3).mul_add(square, 4.166_664_6e-2);
    let cos = square.mul_add(c * square, -0.5 * square) + 1.0;
    let s = (-1.951_529_6e-4_f32).mul_add(square, 8.332_161e-3).mul_add(square, -0.166_666_55);
    let sin = (s * square).mul_add(x, x);
    // Every other even octant exchanges the two; the signs follow the quadrant.
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let flip = |value: f32, negative: i32| {
        f32::from_bits((value + 0.0).to_bits() ^ ((negative as u32 & 4) << 29))
    };
    (flip(sin, octant), flip(cos, !(octant - 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_match_the_reference_mt19937() {
        // C++'s standard fixes the 10,000th word of std::mt19937 for the default seed 5489.
        let mut generator = TorchGenerator::new(5489);
        let last = (0..10_000).map(|_| generator.word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn the_moments_match_the_standard_normal_distribution() {
        let x = randn(1, 1 << 18);
        let mean =
            |power: i32| x.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / x.len() as f64;
        assert!(
            mean(1).abs() < 0.01 && (mean(2) - 1.0).abs() < 0.01 && (mean(4) - 3.0).abs() < 0.05
        );
    }
}
