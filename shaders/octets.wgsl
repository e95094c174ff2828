// Eight neighbouring elements of a row in registers, for shaders whose buffers are arrays of
// 16-byte vectors: one vector of bf16 or two of f32.
//
// Even and odd elements are kept separately: a bf16 vector is unpacked and packed with four-wide
// shifts and masks only, and the pairs that a rotation acts on are in the same component of both
// halves.

struct Octet {
    even: vec4<f32>,
    odd: vec4<f32>,
}

fn octet_bf16(v: vec4<u32>) -> Octet {
    return Octet(bitcast<vec4<f32>>(v << vec4<u32>(16u)), bitcast<vec4<f32>>(v & vec4<u32>(0xffff0000u)));
}

fn octet_f32(first: vec4<u32>, second: vec4<u32>) -> Octet {
    let a = bitcast<vec4<f32>>(first);
    let b = bitcast<vec4<f32>>(second);
    return Octet(vec4<f32>(a.x, a.z, b.x, b.z), vec4<f32>(a.y, a.w, b.y, b.w));
}

// To nearest, ties to even; NaN stays NaN. As bf16_bits(), before the shift.
fn bf16_upper(v: vec4<f32>) -> vec4<u32> {
    let u = bitcast<vec4<u32>>(v);
    let rounded = u + vec4<u32>(0x7fffu) + ((u >> vec4<u32>(16u)) & vec4<u32>(1u));
    return select(rounded, vec4<u32>(0x7fc00000u), (u & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u));
}

fn octet_to_bf16(o: Octet) -> vec4<u32> {
    return (bf16_upper(o.even) >> vec4<u32>(16u)) | (bf16_upper(o.odd) & vec4<u32>(0xffff0000u));
}

// The first and the last four elements, in order.
fn octet_first(o: Octet) -> vec4<u32> { return bitcast<vec4<u32>>(vec4<f32>(o.even.x, o.odd.x, o.even.y, o.odd.y)); }
fn octet_last(o: Octet) -> vec4<u32> { return bitcast<vec4<u32>>(vec4<f32>(o.even.z, o.odd.z, o.even.w, o.odd.w)); }

fn octet_sum(o: Octet) -> f32 {
    let s = o.even + o.odd;
    return (s.x + s.y) + (s.z + s.w);
}

fn octet_squares(o: Octet) -> f32 { return dot(o.even, o.even) + dot(o.odd, o.odd); }
