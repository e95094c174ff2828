// Access to single elements, for shaders that accept every width, stride and offset. The shader's
// own file declares OUT_TYPE (F32 or BF16) and `out: array<atomic<u32>>`.
//
// A word of two bf16 elements may belong to two rows, or in part to other data that must not
// change. Therefore each thread has a word of the output: it writes both halves if the word is
// within the row, and sets one half atomically if the other half is not part of the row.

// Half e & 1 of a word of two-byte elements.
fn half_value(word: u32, e: u32, element_type: u32) -> f32 {
    let bits = (word >> ((e & 1u) * 16u)) & 0xffffu;
    if element_type == BF16 { return bitcast<f32>(bits << 16u); }
    // Subnormals of f16 are converted with integer operations: conversions may flush them to zero.
    let small = f32(bits & 0x3ffu) * select(5.9604644775390625e-8, -5.9604644775390625e-8, (bits & 0x8000u) != 0u);
    return select(unpack2x16float(bits).x, small, (bits & 0x7c00u) == 0u);
}

// The index of the word that contains element e, and the value of that element.
fn word_of(e: u32, element_type: u32) -> u32 { return select(e >> 1u, e, element_type == F32); }
fn element(word: u32, e: u32, element_type: u32) -> f32 {
    if element_type == F32 { return bitcast<f32>(word); }
    return half_value(word, e, element_type);
}

// The most words that a row of the output can overlap, which is the number of threads per row.
fn words_of(cols: u32) -> u32 { return select(cols / 2u + 1u, cols, OUT_TYPE == F32); }

// A word of the output; `column` is the column of its low half (or of the whole word); it may be
// -1, which wraps around. `low` and `high` say which of the columns `column` and `column + 1` are
// in the row and in this word.
struct Spot {
    word: u32,
    column: u32,
    low: bool,
    high: bool,
}

// Word j of the row of `cols` elements that begins at element `start`.
fn spot(start: u32, j: u32, cols: u32) -> Spot {
    if OUT_TYPE == F32 { return Spot(start + j, j, j < cols, false); }
    let word = (start >> 1u) + j;
    let column = 2u * word - start;
    return Spot(word, column, column < cols, column + 1u < cols);
}

fn store(s: Spot, low: f32, high: f32) {
    if OUT_TYPE == F32 {
        if s.low { atomicStore(&out[s.word], bitcast<u32>(low)); }
        return;
    }
    if s.low && s.high {
        atomicStore(&out[s.word], bf16_pack(low, high));
    } else if s.low {
        store_half(s.word, 0u, bf16_bits(low));
    } else if s.high {
        store_half(s.word, 1u, bf16_bits(high));
    }
}

// Sets half `h` of a word without changing the other.
fn store_half(word: u32, h: u32, bits: u32) {
    atomicAnd(&out[word], select(0x0000ffffu, 0xffff0000u, h == 0u));
    atomicOr(&out[word], bits << (16u * h));
}
