// Weights stored in blocks: a row is integers q (or codes) of a few bits, and every 16 to 256 of
// them share a factor. They are converted where they are used, so that the file's bits are kept in
// device memory and read by the GPU: value = d q + m.
//
// A row is stored in planes, each beginning at a multiple of 16 bytes: the low bits of all its
// elements, then further bits, then the data for d and m. `row` is the first word of a row, `k` an
// element of it, a multiple of four. W_TYPE is the format; the code for other formats is removed
// when a pipeline is compiled. Every format has one function that finds four elements (`place`);
// how their bits are arranged within words is further down (`integers`, `codes`).
//
// Signed integers are made unsigned by adding a constant, and m subtracts it again: the products
// are exact in f32, so no precision is lost. d is an f16 that is often subnormal (for Q6_K it is a
// weight / 4096), and is converted with integer operations, because hardware may flush it to zero.

@group(0) @binding(1) var<storage, read_write> w: array<u32>;

// The position of four elements (or of eight), and their factors.
struct Place {
    // The words of their low bits and of their further bits.
    quants: u32,
    high: u32,
    d: f32,
    m: f32,
}

fn f16_bits(h: u32) -> f32 {
    let magnitude = h & 0x7fffu;
    let bits = select((magnitude << 13u) + (112u << 23u), (magnitude << 13u) | 0x7f800000u, magnitude >= 0x7c00u);
    let size = select(bitcast<f32>(bits), f32(magnitude) * 5.9604644775390625e-8, magnitude < 0x400u);
    return select(size, -size, (h & 0x8000u) != 0u);
}
// Both halves of a word.
fn f16_pair(word: u32) -> vec2<f32> { return vec2<f32>(f16_bits(word & 0xffffu), f16_bits(word >> 16u)); }
// The f16 and the byte with that number in a plane that begins at word `plane`.
fn f16_at(plane: u32, i: u32) -> f32 { return f16_bits((w[plane + i / 2u] >> (i % 2u * 16u)) & 0xffffu); }
fn byte_at(plane: u32, i: u32) -> u32 { return (w[plane + i / 4u] >> (i % 4u * 8u)) & 0xffu; }
// The number of words, rounded up to a multiple of 16 bytes.
fn whole_vectors(words: u32) -> u32 { return (words + 3u) & 0xfffffffcu; }

// 32 x i8; f16 d. d q.
fn q8_0(row: u32, k: u32) -> Place {
    let d = f16_at(row + params.k / 4u, k / 32u);
    return Place(row + k / 4u, 0u, d, -128.0 * d);
}

// Byte j of 16 has element j in its low half and element j + 16 in its high one.
fn halves(row: u32, k: u32) -> u32 { return row + k / 32u * 4u + k % 16u / 4u; }

// 16 bytes of halves; f16 d. d (q - 8).
fn q4_0(row: u32, k: u32) -> Place {
    let d = f16_at(row + params.k / 8u, k / 32u);
    return Place(halves(row, k), 0u, d, -8.0 * d);
}

// 16 bytes of halves; f16 d, m. d q + m.
fn q4_1(row: u32, k: u32) -> Place {
    let dm = f16_pair(w[row + params.k / 8u + k / 32u]);
    return Place(halves(row, k), 0u, dm.x, dm.y);
}

// 16 bytes of halves; 32 fifth bits; f16 d. d (q - 16).
fn q5_0(row: u32, k: u32) -> Place {
    let high = row + params.k / 8u;
    let d = f16_at(high + whole_vectors(params.k / 32u), k / 32u);
    return Place(halves(row, k), high + k / 32u, d, -16.0 * d);
}

// 16 bytes of halves; 32 fifth bits; f16 d, m. d q + m.
fn q5_1(row: u32, k: u32) -> Place {
    let high = row + params.k / 8u;
    let dm = f16_pair(w[high + whole_vectors(params.k / 32u) + k / 32u]);
    return Place(halves(row, k), high + k / 32u, dm.x, dm.y);
}

// For 256: 64 bytes, 32 of them for each half of the block, bits 2g of byte j for element j of its
// group g of 32.
fn quarters(row: u32, k: u32) -> u32 { return row + k / 128u * 8u + k % 32u / 4u; }

// Quarters of bytes; for each 16 a byte with s (low half) and t; f16 d, e. (d s) q - (e t).
fn q2_k(row: u32, k: u32) -> Place {
    let plane = row + params.k / 16u;
    let s = byte_at(plane, k / 16u);
    let de = f16_pair(w[plane + params.k / 64u + k / 256u]);
    return Place(quarters(row, k), 0u, de.x * f32(s & 15u), -de.y * f32(s >> 4u));
}

// Quarters of bytes; 32 bytes of third bits, bit g of byte j for element j of group g; 12 bytes of
// sixteen s of 6 bits (halves of the first 8 bytes, then quarters of the last 4); f16 d. (d (s -
// 32)) (q - 4).
fn q3_k(row: u32, k: u32) -> Place {
    let high = row + params.k / 16u;
    let plane = high + params.k / 32u;
    let i = k / 16u % 16u;
    let block = plane + k / 256u * 3u;
    let low = (w[block + i % 8u / 4u] >> (i % 4u * 8u + i / 8u * 4u)) & 15u;
    let upper = (w[block + 2u] >> (i % 4u * 8u + i / 4u * 2u)) & 3u;
    let d = f16_at(plane + whole_vectors(params.k / 256u * 3u), k / 256u) * f32(i32(low | (upper << 4u)) - 32);
    return Place(quarters(row, k), high + k / 256u * 8u + k % 32u / 4u, d, -4.0 * d);
}

// d s and -e t of a group of 32 from the 16 bytes of a block from word `at` on: f16 d, e, then
// eight s and eight t of 6 bits. Those of groups 0 to 3 are the low bits of bytes 0 to 3 and 4 to
// 7; those of groups 4 to 7 the halves of bytes 8 to 11, with those bytes' upper two bits on top.
fn six_bits(at: u32, group: u32) -> vec2<f32> {
    let shift = group % 4u * 8u;
    let a = w[at + 1u] >> shift;
    let b = w[at + 2u] >> shift;
    let c = w[at + 3u] >> shift;
    let upper = group >= 4u;
    let s = select(a & 63u, (c & 15u) | ((a >> 2u) & 48u), upper);
    let t = select(b & 63u, ((c >> 4u) & 15u) | ((b >> 2u) & 48u), upper);
    return f16_pair(w[at]) * vec2<f32>(f32(s), -f32(t));
}

// For 256: 128 bytes, 32 of them for each two groups of 32, the even one in the low halves.
fn two_groups(row: u32, k: u32) -> u32 { return row + k / 64u * 8u + k % 32u / 4u; }

// Two groups a byte; six bits' 16 bytes. (d s) q - (e t).
fn q4_k(row: u32, k: u32) -> Place {
    let dm = six_bits(row + params.k / 8u + k / 256u * 4u, k / 32u % 8u);
    return Place(two_groups(row, k), 0u, dm.x, dm.y);
}

// Two groups a byte; 32 bytes of fifth bits, bit g of byte j for element j of group g; six bits' 16
// bytes. (d s) q - (e t).
fn q5_k(row: u32, k: u32) -> Place {
    let high = row + params.k / 8u;
    let dm = six_bits(high + params.k / 32u + k / 256u * 4u, k / 32u % 8u);
    return Place(two_groups(row, k), high + k / 256u * 8u + k % 32u / 4u, dm.x, dm.y);
}

// For each 128: 64 bytes, groups 0 and 1 of 32 in the low halves, 2 and 3 in the high ones; 32
// bytes of upper bits, bits 2g of byte j for element j of group g; for each 16 an i8 s; f16 d. (d
// s) (q - 32).
fn q6_k(row: u32, k: u32) -> Place {
    let high = row + params.k / 8u;
    let plane = high + params.k / 16u;
    let s = bitcast<i32>(byte_at(plane, k / 16u) << 24u) >> 24u;
    let d = f16_at(plane + params.k / 64u, k / 256u) * f32(s);
    return Place(row + k / 128u * 16u + k % 64u / 4u, high + k / 128u * 8u + k % 32u / 4u, d, -32.0 * d);
}

// Codes of 4 bits, the first of a byte in its high half; for each 64 an f32 d. d table(q); the
// table of FP4 is in 192ths.
fn nf4(row: u32, k: u32) -> Place {
    let d = bitcast<f32>(w[row + params.k / 8u + k / 64u]);
    return Place(row + k / 8u, 0u, select(d, d / 192.0, W_TYPE == FP4), 0.0);
}

// e4m3; for each 32 a power of two, 2^(byte - 127), NaN if it is 255.
fn mxfp8(row: u32, k: u32) -> Place {
    let e = byte_at(row + params.k / 4u, k / 32u);
    let bits = select(select(e << 23u, 0x400000u, e == 0u), 0x7fc00000u, e == 255u);
    return Place(row + k / 4u, 0u, bitcast<f32>(bits), 0.0);
}

// e4m3; for each 128 an f32 d.
fn fp8_block(row: u32, k: u32) -> Place {
    return Place(row + k / 4u, 0u, bitcast<f32>(w[row + params.k / 4u + k / 128u]), 0.0);
}

// Codes of 4 bits, the first of a byte in its high half, e2m1; for each 16 an e4m3 d. d e2m1(q);
// the table contains twice the values.
fn nvfp4(row: u32, k: u32) -> Place {
    let d = e4m3(byte_at(row + whole_vectors(params.k / 8u), k / 16u));
    return Place(row + k / 8u, 0u, 0.5 * d, 0.0);
}

fn place(row: u32, k: u32) -> Place {
    switch W_TYPE {
        case Q8_0: { return q8_0(row, k); }
        case Q4_0: { return q4_0(row, k); }
        case Q4_1: { return q4_1(row, k); }
        case Q5_0: { return q5_0(row, k); }
        case Q5_1: { return q5_1(row, k); }
        case Q2K: { return q2_k(row, k); }
        case Q3K: { return q3_k(row, k); }
        case Q4K: { return q4_k(row, k); }
        case Q5K: { return q5_k(row, k); }
        case Q6K: { return q6_k(row, k); }
        case MXFP8: { return mxfp8(row, k); }
        case NVFP4: { return nvfp4(row, k); }
        case FP8_BLOCK: { return fp8_block(row, k); }
        default: { return nf4(row, k); }
    }
}

fn has_codes() -> bool { return W_TYPE == NF4 || W_TYPE == FP4 || W_TYPE == NVFP4; }
// The fifth bits of all 32 are in one word.
fn has_fifths() -> bool { return W_TYPE == Q5_0 || W_TYPE == Q5_1; }
fn has_high() -> bool { return has_fifths() || W_TYPE == Q3K || W_TYPE == Q5K || W_TYPE == Q6K; }

// q of four elements, unsigned, a byte each, from the words that `place` found.
fn integers(quants: u32, high: u32, k: u32) -> u32 {
    let group = k / 32u % 8u;
    switch W_TYPE {
        case Q8_0: { return quants ^ 0x80808080u; }
        case Q4_0, Q4_1: { return (quants >> (k / 16u % 2u * 4u)) & 0x0f0f0f0fu; }
        // Four neighbouring bits become the lowest of four bytes.
        case Q5_0, Q5_1: {
            let fifths = (((high >> (k % 32u)) & 15u) * 0x00204081u) & 0x01010101u;
            return ((quants >> (k / 16u % 2u * 4u)) & 0x0f0f0f0fu) | (fifths << 4u);
        }
        case Q2K: { return (quants >> (group % 4u * 2u)) & 0x03030303u; }
        case Q3K: { return ((quants >> (group % 4u * 2u)) & 0x03030303u) | (((high >> group) & 0x01010101u) << 2u); }
        case Q4K: { return (quants >> (group % 2u * 4u)) & 0x0f0f0f0fu; }
        case Q5K: { return ((quants >> (group % 2u * 4u)) & 0x0f0f0f0fu) | (((high >> group) & 0x01010101u) << 4u); }
        default: {
            return ((quants >> (group % 4u / 2u * 4u)) & 0x0f0f0f0fu) | (((high >> (group % 4u * 2u)) & 0x03030303u) << 4u);
        }
    }
}

// The sixteen quantiles of NF4, found by bisection: every lane would read a table in memory at a
// different position.
fn quantiles(q: vec4<u32>) -> vec4<f32> {
    let bit0 = (q & vec4<u32>(1u)) != vec4<u32>(0u);
    let bit1 = (q & vec4<u32>(2u)) != vec4<u32>(0u);
    let bit2 = (q & vec4<u32>(4u)) != vec4<u32>(0u);
    let bit3 = (q & vec4<u32>(8u)) != vec4<u32>(0u);
    let a = select(vec4<f32>(-1.0), vec4<f32>(-0.6961928), bit0);
    let b = select(vec4<f32>(-0.52507305), vec4<f32>(-0.3949175), bit0);
    let c = select(vec4<f32>(-0.28444138), vec4<f32>(-0.18477343), bit0);
    let d = select(vec4<f32>(-0.091050036), vec4<f32>(0.0), bit0);
    let e = select(vec4<f32>(0.0795803), vec4<f32>(0.1609302), bit0);
    let f = select(vec4<f32>(0.2461123), vec4<f32>(0.33791524), bit0);
    let g = select(vec4<f32>(0.44070983), vec4<f32>(0.562617), bit0);
    let h = select(vec4<f32>(0.72295684), vec4<f32>(1.0), bit0);
    let low = select(select(a, b, bit1), select(c, d, bit1), bit2);
    let high = select(select(e, f, bit1), select(g, h, bit1), bit2);
    return select(low, high, bit3);
}

// The values of four codes: of FP4 times 192 (0, 1, 128, 192, 64, 96, 32, 48), of e2m1 times 2 (0,
// 1, 2, 3, 4, 6, 8, 12), looked up in constants.
fn codes(quants: u32, k: u32) -> vec4<f32> {
    let q = (vec4<u32>(quants >> (k / 4u % 2u * 16u)) >> vec4<u32>(4u, 0u, 12u, 8u)) & vec4<u32>(15u);
    if W_TYPE == NF4 { return quantiles(q); }
    var sizes = (vec4<u32>(0xc8643210u) >> ((q & vec4<u32>(7u)) * 4u)) & vec4<u32>(15u);
    if W_TYPE == FP4 {
        let table = select(vec4<u32>(0xc0800100u), vec4<u32>(0x30206040u), (q & vec4<u32>(4u)) != vec4<u32>(0u));
        sizes = (table >> ((q & vec4<u32>(3u)) * 8u)) & vec4<u32>(255u);
    }
    let size = vec4<f32>(sizes);
    return select(size, -size, q >= vec4<u32>(8u));
}

// Four elements from element `k` on.
fn block_values(quants: u32, high: u32, d: f32, m: f32, k: u32) -> vec4<f32> {
    if has_codes() { return d * codes(quants, k); }
    if W_TYPE == MXFP8 || W_TYPE == FP8_BLOCK { return d * e4m3_unpack(quants); }
    let q = (vec4<u32>(integers(quants, high, k)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    return fma(vec4<f32>(d), vec4<f32>(q), vec4<f32>(m));
}
