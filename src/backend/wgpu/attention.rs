//! `attention`: tiles of f32 in workgroup memory for heads of up to 64, 128 and 512 columns, and
//! plain loops for everything else.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Needs, Shader, Spot, Variant, Wgpu, WgpuDevice,
    blocks, code,
};
use crate::backend::gpu::{AttentionArgs, first, variants};
use crate::dtype::DType;
use crate::op::Attention;

impl AttentionArgs<Spot> {
    /// The number of first tokens that are written to a separate matrix, and that matrix.
    fn split(&self) -> (usize, Option<Matrix>) {
        self.first.filter(|(n, _)| *n > 0).map_or((0, None), |(n, m)| (n, Some(m)))
    }

    /// The operands that every shader accesses.
    fn wide(&self) -> impl Iterator<Item = Matrix> {
        [Some(self.q), Some(self.k), Some(self.v), Some(self.out), self.split().1]
            .into_iter()
            .flatten()
    }
}

/// As in `shaders/attention.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    grid: Grid,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    rows: u32,
    row_first: u32,
    row_tiles: u32,
    q_base: u32,
    q_stride: u32,
    k_base: u32,
    k_stride: u32,
    v_base: u32,
    v_stride: u32,
    out_base: u32,
    out_stride: u32,
    first_base: u32,
    first_stride: u32,
    bias_base: u32,
    bias_stride: u32,
    split: u32,
    causal: u32,
    scale: f32,
}

/// A shader of this family: the file in front of the common one, and the files after it.
macro_rules! shader {
    ($name:literal, $front:literal, $($file:literal),+) => {
        Shader {
            name: $name,
            sources: &[
                $front,
                include_str!("../../../shaders/common.wgsl"),
                $(include_str!(concat!("../../../shaders/", $file))),+
            ],
            params_bytes: size_of::<Params>(),
            buffers: 6,
        }
    };
}

static D64: Shader = shader!(
    "attention_d64",
    "const TX: u32 = 8u; const RG: u32 = 8u; const DC: u32 = 32u; \
     const PK: u32 = 32u; const VK: u32 = 32u;\n",
    "attention_common.wgsl",
    "attention.wgsl"
);
static D128: Shader = shader!(
    "attention_d128",
    "const TX: u32 = 16u; const RG: u32 = 8u; const DC: u32 = 32u; \
     const PK: u32 = 32u; const VK: u32 = 16u;\n",
    "attention_common.wgsl",
    "attention.wgsl"
);
static D128_32K: Shader = shader!(
    "attention_d128_32k",
    "const TX: u32 = 16u; const RG: u32 = 8u; const DC: u32 = 64u; \
     const PK: u32 = 64u; const VK: u32 = 32u;\n",
    "attention_common.wgsl",
    "attention.wgsl"
);
static D512: Shader = shader!(
    "attention_d512",
    "const TX: u32 = 64u; const RG: u32 = 4u; const DC: u32 = 8u; \
     const PK: u32 = 64u; const VK: u32 = 4u;\n",
    "attention_common.wgsl",
    "attention.wgsl"
);
static D512_24K: Shader = shader!(
    "attention_d512_24k",
    "const TX: u32 = 64u; const RG: u32 = 4u; const DC: u32 = 16u; \
     const PK: u32 = 64u; const VK: u32 = 8u;\n",
    "attention_common.wgsl",
    "attention.wgsl"
);
static LANES128: Shader = shader!(
    "attention_lanes128",
    "const COLUMNS: u32 = 128u;\n",
    "attention_common.wgsl",
    "attention_lanes.wgsl"
);
static ANY: Shader = shader!("attention_any", "", "attention_any.wgsl");

/// Queries of one workgroup.
const ROWS_D64: usize = 64;
const ROWS_D128: usize = 64;
const ROWS_D512: usize = 32;
const ROWS_LANES: usize = 32;
const ROWS_ANY: usize = 1;

const NEEDS_D64: Needs = Needs::new(64, 16_384);
const NEEDS_D128: Needs = Needs::new(128, 16_384);
const NEEDS_D128_32K: Needs = Needs::new(128, 32_768);
const NEEDS_D512: Needs = Needs::new(256, 16_384);
const NEEDS_D512_24K: Needs = Needs::new(256, 24_576);
const NEEDS_LANES: Needs = Needs { subgroups: Some((8, 8)), software: true, ..Needs::new(8, 0) };
const NEEDS_ANY: Needs = Needs::new(64, 8_448);

/// Best first, so that each runs the heads it is made for: `d64` computes 64 columns also for heads
/// of 40, `d128` computes 128 also for heads of 72. Shaders with more workgroup memory have fewer
/// barriers. `lanes` is for drivers on the processor and long sequences.
pub static ATTENTION: &[Variant<Attention>] = &[
    Variant {
        name: "attention_any_lanes128",
        needs: NEEDS_LANES,
        accepts: |a, device| tiled(a, device, 128),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &LANES128, ROWS_LANES),
    },
    Variant {
        name: "attention_any_d64",
        needs: NEEDS_D64,
        accepts: |a, device| tiled(a, device, 64),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &D64, ROWS_D64),
    },
    Variant {
        name: "attention_any_d128_32k",
        needs: NEEDS_D128_32K,
        accepts: |a, device| tiled(a, device, 128),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &D128_32K, ROWS_D128),
    },
    Variant {
        name: "attention_any_d128",
        needs: NEEDS_D128,
        accepts: |a, device| tiled(a, device, 128),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &D128, ROWS_D128),
    },
    Variant {
        name: "attention_any_d512_24k",
        needs: NEEDS_D512_24K,
        accepts: |a, device| tiled(a, device, 512),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &D512_24K, ROWS_D512),
    },
    Variant {
        name: "attention_any_d512",
        needs: NEEDS_D512,
        accepts: |a, device| tiled(a, device, 512),
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &D512, ROWS_D512),
    },
    Variant {
        name: "attention_any",
        needs: NEEDS_ANY,
        accepts: any,
        scratch: |_, _| 0,
        launches: |a, device| dispatches(a, device, &ANY, ROWS_ANY),
    },
];
variants!(Wgpu, Attention: ATTENTION; choose);

/// Operations from which on the shader for processors is used: drivers take seconds to compile it.
const LANES_WORK: u64 = 1 << 31;

/// The variant to run, or why there is none.
pub fn choose(
    a: &Args<Attention>,
    device: &WgpuDevice,
) -> Result<&'static Variant<Attention>, &'static str> {
    // By the keys alone: some rows of an image are computed by the shader that computes all.
    let short = work(a, a.tokens(), a.tokens()) < LANES_WORK;
    // If one workgroup takes all the memory, no other one runs while it waits at a barrier.
    let alone = device.shared_bytes < NEEDS_D128_32K.shared_bytes * 3 / 2;
    let fits = |v: &&Variant<Attention>| {
        !(short && v.needs == NEEDS_LANES || alone && v.needs == NEEDS_D128_32K)
    };
    first(ATTENTION.iter().filter(fits), a, device)
}

/// Time of plain loops relative to tiles, roughly. Long dispatches are cut by a rate that is
/// measured mostly with tiles.
const ANY_SLOWNESS: u64 = 16;

/// Operations for `rows` queries and `keys` keys of each sequence.
fn work(a: &Args<Attention>, rows: usize, keys: usize) -> u64 {
    4 * (rows * keys) as u64 * (a.batch * a.q.cols) as u64
}

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types = [DType::F32, DType::BF16];
    let mut all = vec![];
    let lanes = [(&LANES128, NEEDS_LANES)];
    let tiled = [(&D64, NEEDS_D64), (&D128, NEEDS_D128), (&D512, NEEDS_D512)];
    let more = [(&D128_32K, NEEDS_D128_32K), (&D512_24K, NEEDS_D512_24K)];
    for (shader, needs) in lanes.into_iter().chain(tiled).chain(more).chain([(&ANY, NEEDS_ANY)]) {
        for (read, written) in types.iter().flat_map(|r| types.map(|w| (*r, w))) {
            for bias in [None, Some(DType::F32), Some(DType::BF16)] {
                all.push((shader, constants(read, written, bias), needs));
            }
        }
    }
    all
}

fn constants(read: DType, written: DType, bias: Option<DType>) -> Constants {
    const NO_BIAS: u32 = 9;
    vec![
        ("IN_TYPE", f64::from(code(read))),
        ("OUT_TYPE", f64::from(code(written))),
        ("BIAS_TYPE", f64::from(bias.map_or(NO_BIAS, code))),
    ]
}

/// Checks what all shaders require.
fn any(a: &Args<Attention>, device: &WgpuDevice) -> Result<(), &'static str> {
    let float = |m: &Matrix| matches!(m.dtype, DType::F32 | DType::BF16);
    if !a.wide().chain(a.bias).all(|m| float(&m)) {
        return Err("attention reads and writes F32 and BF16");
    }
    if a.k.dtype != a.q.dtype || a.v.dtype != a.q.dtype {
        return Err("queries, keys and values differ in type");
    }
    if a.split().1.is_some_and(|m| m.dtype != a.out.dtype) {
        return Err("the two outputs differ in type");
    }
    if a.head_dim() > 1024 {
        return Err("a head has more than 1024 columns");
    }
    let groups =
        a.tokens().max(a.queries()).checked_mul(a.heads).and_then(|n| n.checked_mul(a.batch));
    if groups.is_none_or(|n| n >= 1 << 31) || a.wide().chain(a.bias).any(|m| m.stride >= 1 << 31) {
        return Err("it has 2^31 or more workgroups or columns");
    }
    if a.bias.is_some_and(|m| !m.binds(device)) {
        return Err(
            "its bias is larger than the memory that a shader of this GPU can access at once",
        );
    }
    if !whole(a, device) && rows_at_once(a, device) == 0 {
        return Err(
            "the keys or values of one image are larger than the memory that a shader of this GPU \
             can access at once",
        );
    }
    Ok(())
}

/// Checks what the tiled shaders require; `dim` is the largest head.
fn tiled(a: &Args<Attention>, device: &WgpuDevice, dim: usize) -> Result<(), &'static str> {
    any(a, device)?;
    if a.head_dim() > dim {
        return Err("the head is too wide");
    }
    if !a.head_dim().is_multiple_of(8) {
        return Err("a head is not a multiple of 8 columns");
    }
    if !a.wide().all(|m| m.whole_vectors()) {
        return Err("rows or heads do not begin at multiples of 16 bytes");
    }
    Ok(())
}

/// Whether one dispatch can process all sequences.
fn whole(a: &Args<Attention>, device: &WgpuDevice) -> bool {
    a.queries() == a.tokens() && a.wide().all(|m| m.binds(device))
}

/// The most queries of a sequence whose operands fit into windows, together with the keys and
/// values of that sequence; 0 if these do not fit.
fn rows_at_once(a: &Args<Attention>, device: &WgpuDevice) -> usize {
    let queries = a.queries();
    if ![a.k, a.v].iter().all(|m| m.band(0, a.tokens()).binds(device)) {
        return 0;
    }
    let (n, first) = a.split();
    let outputs = first
        .map(|m| m.band(0, n))
        .into_iter()
        .chain([a.out.band(0, queries - n)])
        .filter(|m| m.rows > 0);
    let fit = |m: Matrix| if m.binds(device) { queries } else { m.rows_that_bind(device) };
    outputs.chain([a.q.band(0, queries)]).map(fit).min().unwrap_or(0)
}

/// One dispatch; or, if windows are too small, one for each sequence and block of its queries. A
/// workgroup processes `tile` queries.
fn dispatches(
    a: &Args<Attention>,
    device: &WgpuDevice,
    shader: &'static Shader,
    tile: usize,
) -> Vec<Dispatch> {
    let (queries, tokens, (n, first)) = (a.queries(), a.tokens(), a.split());
    if a.q.rows == 0 || a.q.cols == 0 {
        return vec![];
    }
    if whole(a, device) {
        return vec![dispatch(a, device, shader, tile, tokens, 0..tokens)];
    }
    let most = rows_at_once(a, device);
    let ahead = |token: usize| token.min(n);
    let behind = |token: usize| token.max(n) - n;
    let mut all = vec![];
    for image in 0..a.batch {
        for rows in blocks(queries, most, tile.min(most)) {
            // The queries and results of the block, and the keys and values of the sequence.
            let (start, end) = (rows.start, rows.end);
            let op = Attention {
                q: a.q.band(image * queries + start, end - start),
                k: a.k.band(image * tokens, tokens),
                v: a.v.band(image * tokens, tokens),
                batch: 1,
                first: first
                    .map(|m| (n, m.band(image * n + ahead(start), ahead(end) - ahead(start)))),
                out: a.out.band(image * (queries - n) + behind(start), behind(end) - behind(start)),
                ..a.op
            };
            let part = AttentionArgs { op, ..*a };
            all.push(dispatch(&part, device, shader, tile, tokens, rows));
        }
    }
    all
}

/// The queries `rows` of each of `a.batch` sequences with `tokens` keys.
fn dispatch(
    a: &Args<Attention>,
    device: &WgpuDevice,
    shader: &'static Shader,
    tile: usize,
    tokens: usize,
    rows: Range<usize>,
) -> Dispatch {
    let bind =
        |m: Option<Matrix>| m.filter(|m| m.rows > 0).map(|m| (m.bind(device), m.stride as u32));
    let operands =
        [Some(a.q), Some(a.k), Some(a.v), a.bias, a.first.map(|(_, m)| m), Some(a.out)].map(bind);
    let [q, k, v, bias, first, out] =
        operands.map(|o| o.map_or((0, 0), |((_, base), stride)| (base, stride)));
    let tiles = rows.len().div_ceil(tile);
    let params = Params {
        grid: Grid::default(),
        tokens: tokens as u32,
        heads: a.heads as u32,
        head_dim: a.head_dim() as u32,
        rows: rows.len() as u32,
        row_first: rows.start as u32,
        row_tiles: tiles as u32,
        q_base: q.0,
        q_stride: q.1,
        k_base: k.0,
        k_stride: k.1,
        v_base: v.0,
        v_stride: v.1,
        out_base: out.0,
        out_stride: out.1,
        first_base: first.0,
        first_stride: first.1,
        bias_base: bias.0,
        bias_stride: bias.1,
        split: a.split().0 as u32,
        causal: u32::from(a.causal),
        scale: a.scale,
    };
    let slowness = if shader.name == ANY.name { ANY_SLOWNESS } else { 1 };
    let keys = if a.causal { (rows.start + rows.end) / 2 + 1 } else { tokens };
    Dispatch {
        shader,
        constants: constants(a.q.dtype, a.out.dtype, a.bias.map(|m| m.dtype)),
        buffers: operands.iter().map(|o| o.map(|((window, _), _)| window)).collect(),
        params: bytemuck::bytes_of(&params).to_vec(),
        groups: (tiles * a.heads * a.batch) as u64,
        work: work(a, rows.len(), keys.min(tokens)) * slowness,
    }
}
