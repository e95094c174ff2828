// Sinusoids of a time: half = cols / 2, f_i = 10000^(-i / half), out = [cos(1000 t f) | sin(1000 t
// f)].
//
// t: rows x 1 in f32, out: rows x cols in bf16 or f32. The angle reaches thousands, where an f32
// has at most four digits after the point: results equal those of the models' own code only if
// numbers are rounded to f32 in the same way, to the last bit: the quotient ln(10000) i / half, its
// exponential (the frequency), 1000 t, and the product of these two. Implementations of WGSL may
// have errors in a quotient, larger ones in an exponential, and may even reorder sums, which rules
// out arithmetic on pairs of floats. All of it is therefore done in integers: numbers are mantissas
// of 24 bits with exponents, the exponential is a series in fixed point with 60 fractional bits,
// and the angle's quarter turns come from a product with 2/pi of 88 bits. Only the sine and cosine
// of the remainder, at most pi/4, are f32 polynomials, with an error below 2e-7. It takes some two
// thousand operations for each element, of which there are a few hundred in a step. |1000 t| is
// below 2^31; beyond, and for a time that is NaN, results are NaN.
//
// A thread writes one word of the output; see words.wgsl.

override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    half_cols: u32,
    t_base: u32,
    t_stride: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> t: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<atomic<u32>>;

// A number m * 2^e without sign; m has 24 bits, the first of which is set, or is 0.
struct Soft {
    m: u32,
    e: i32,
}

// Subnormals count as zero.
fn soft_f32(bits: u32) -> Soft {
    let exponent = (bits >> 23u) & 0xffu;
    return Soft(select((bits & 0x7fffffu) | 0x800000u, 0u, exponent == 0u), i32(exponent) - 150);
}

// The number n, which must be below 2^24.
fn soft_u32(n: u32) -> Soft {
    if n == 0u { return Soft(0u, 0); }
    let shift = 23u - firstLeadingBit(n);
    return Soft(n << shift, -i32(shift));
}

// The product in 64 bits, low word first.
fn wide(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let one = (a >> 16u) * (b & 0xffffu);
    let two = (a & 0xffffu) * (b >> 16u);
    let middle = (low >> 16u) + (one & 0xffffu) + (two & 0xffffu);
    return vec2<u32>((low & 0xffffu) | (middle << 16u), (a >> 16u) * (b >> 16u) + (one >> 16u) + (two >> 16u) + (middle >> 16u));
}

// m has at most 25 bits after rounding up; with 25 bits it is a power of two.
fn rounded(m: u32, e: i32) -> Soft {
    if m == 0x1000000u { return Soft(0x800000u, e + 1); }
    return Soft(m, e);
}

// To nearest, ties to even.
fn product(a: Soft, b: Soft) -> Soft {
    if a.m == 0u || b.m == 0u { return Soft(0u, 0); }
    let p = wide(a.m, b.m);
    let shift = select(23u, 24u, p.y >= 0x8000u);
    let m = (p.y << (32u - shift)) | (p.x >> shift);
    let rest = p.x & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    let up = rest > tie || (rest == tie && (m & 1u) == 1u);
    return rounded(m + select(0u, 1u, up), a.e + b.e + i32(shift));
}

// To nearest, ties to even; one bit at a time.
fn quotient(a: Soft, b: Soft) -> Soft {
    if a.m == 0u { return a; }
    let less = a.m < b.m;
    var rest = select(a.m, a.m << 1u, less);
    var m = 0u;
    for (var i = 0u; i < 24u; i++) {
        m = m << 1u;
        if rest >= b.m {
            m |= 1u;
            rest -= b.m;
        }
        rest = rest << 1u;
    }
    let up = rest > b.m || (rest == b.m && (m & 1u) == 1u);
    return rounded(m + select(0u, 1u, up), a.e - b.e - 23 - select(0, 1, less));
}

// Numbers with 60 fractional bits, in two words, low word first.

fn fixed_less(a: vec2<u32>, b: vec2<u32>) -> bool { return a.y < b.y || (a.y == b.y && a.x < b.x); }
fn fixed_minus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> { return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x)); }

// The product of numbers up to 1, without its last bits.
fn fixed_times(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let one = wide(a.x, b.y);
    let two = wide(a.y, b.x);
    let high = wide(a.y, b.y);
    let middle = one.y + two.y + select(0u, 1u, one.x + two.x < one.x);
    let w2 = high.x + middle;
    let w3 = high.y + select(0u, 1u, w2 < middle);
    return vec2<u32>(((one.x + two.x) >> 28u) | (w2 << 4u), (w2 >> 28u) | (w3 << 4u));
}

// Divides by n, which must be below 2^16.
fn fixed_by(a: vec2<u32>, n: u32) -> vec2<u32> {
    let middle = ((a.y % n) << 16u) | (a.x >> 16u);
    let low = ((middle % n) << 16u) | (a.x & 0xffffu);
    return vec2<u32>(((middle / n) << 16u) | (low / n), a.y / n);
}

// 10000^(-i / half) as f32, where exponent and result are rounded once each: e^-x = 2^-n e^-r, x =
// n ln 2 + r.
fn frequency(i: u32, half_cols: u32) -> Soft {
    // ln(10000) as f32
    let x = quotient(product(Soft(0x935d8eu, -20), soft_u32(i)), soft_u32(half_cols));
    if x.m == 0u { return Soft(0x800000u, -23); }
    // x is below 16, and has no bits below 2^-60 as long as i / half is above 2^-38.
    let shift = u32(max(60 + x.e, 0));
    var r = vec2<u32>(x.m << (shift & 31u), 0u);
    if shift >= 32u {
        r = vec2<u32>(0u, r.x);
    } else if shift > 0u {
        r.y = x.m >> (32u - shift);
    }
    let ln2 = vec2<u32>(0x7d1cf79bu, 0x0b17217fu);
    var n = 0;
    for (; n < 24 && !fixed_less(r, ln2); n++) { r = fixed_minus(r, ln2); }
    // 1 - r (1 - r/2 (1 - r/3 (...
    let one = vec2<u32>(0u, 0x10000000u);
    var sum = one;
    for (var k = 18u; k > 0u; k--) { sum = fixed_minus(one, fixed_by(fixed_times(r, sum), k)); }
    if sum.y >= 0x10000000u { return Soft(0x800000u, -23 - n); }
    let m = sum.y >> 4u;
    let rest = sum.y & 15u;
    let up = rest > 8u || (rest == 8u && (sum.x != 0u || (m & 1u) == 1u));
    return rounded(m + select(0u, 1u, up), -24 - n);
}

// Cosine (which == 0) or sine of 1000 t f.
fn wave(time: u32, i: u32, which: u32) -> f32 {
    let scaled = product(soft_f32(0x447a0000u), soft_f32(time));
    let angle = product(scaled, frequency(i, params.half_cols));
    if (time & 0x7f800000u) == 0x7f800000u || scaled.e > 7 { return bitcast<f32>((time & 0x80000000u) | 0x7fc00000u); }
    // angle * 2/pi * 2^32: the product with 2/pi * 2^64, shifted right by 32 - e.
    let low = wide(angle.m, 0x4e44152au);
    let high = wide(angle.m, 0xa2f9836eu);
    let middle = low.y + high.x;
    var turns = vec3<u32>(low.x, middle, high.y + select(0u, 1u, middle < high.x));
    var shift = u32(32 - max(angle.e, -128));
    for (; shift >= 32u; shift -= 32u) { turns = vec3<u32>(turns.yz, 0u); }
    if shift > 0u { turns = vec3<u32>((turns.x >> shift) | (turns.y << (32u - shift)), (turns.y >> shift) | (turns.z << (32u - shift)), 0u); }
    // The nearest quarter turn, and the remainder from -1/2 to 1/2 of one.
    var quarter = turns.y + (turns.x >> 31u);
    let r = f32(bitcast<i32>(turns.x)) * 3.657295198167899e-10;
    let z = r * r;
    // sin v = cos (v - quarter turn)
    quarter -= which;
    var y = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    if (quarter & 1u) == 1u { y = r + r * z * (-0.16666654611 + z * (8.3321608736e-3 - z * 1.9515295891e-4)); }
    // cos(r + q quarter turns) is cos r, -sin r, -cos r, sin r.
    if ((quarter + 1u) & 2u) != 0u { y = -y; }
    if which == 1u && (time >> 31u) == 1u { y = -y; }
    return y;
}

fn value(time: u32, column: u32) -> f32 {
    if column < params.half_cols { return wave(time, column, 0u); }
    return wave(time, column - params.half_cols, 1u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let cols = 2u * params.half_cols;
    let words = words_of(cols);
    let i = group * 64u + thread;
    let row = i / words;
    if row >= params.rows { return; }
    let time = t[params.t_base + row * params.t_stride];
    let s = spot(params.out_base + row * params.out_stride, i - row * words, cols);
    var low = 0.0;
    var high = 0.0;
    if s.low { low = value(time, s.column); }
    if s.high { high = value(time, s.column + 1u); }
    store(s, low, high);
}
