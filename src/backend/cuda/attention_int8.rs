//! `attention` with scores in 8-bit integers and values in f16, for heads of 128 columns:
//! `kernels/attention_int8.cu`.

use super::arch::{Arch, CudaDevice};
use super::attention::{self, plain, tensor_cores};
use super::launch::{Args, Kernel, Launch, Variant, address};
use crate::dtype::int8::attention::TILE;
use crate::op::Attention;

const MODULE: &str = "attention_int8.sm80";

/// As in `kernels/attention_int8.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PrepareParams {
    queries: u32,
    tokens: u32,
    heads: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
}

const fn prepare_kernel(entry: &'static str, buffers: usize) -> Kernel {
    let params = size_of::<PrepareParams>();
    Kernel { module: MODULE, entry, buffers, maps: 0, params, threads: 256, shared: 0 }
}

/// Buffers: k, means.
static MEANS: Kernel = prepare_kernel("attention_int8_means_sm80", 2);

/// Buffers: q, k, v, means, the integers of q and of k, v in f16, the scales of the three.
static PREPARE: Kernel = prepare_kernel("attention_int8_prepare_sm80", 10);

/// Buffers: the integers of q and of k, v in f16, the scales of the three, first, out. Shared
/// memory: two stages of keys, values and scales of keys.
static D128: Kernel = Kernel {
    module: MODULE,
    entry: "attention_d128_int8_sm80",
    buffers: 8,
    maps: 0,
    params: size_of::<attention::Params>(),
    threads: 128,
    shared: 2 * (TILE * (HEAD + 2 * HEAD + 4)) as u32,
};

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&MEANS, &PREPARE, &D128];

/// Columns of a head.
const HEAD: usize = 128;
/// Query rows of a block.
const QUERIES: usize = 128;

/// The fewest keys for which the variant is chosen. With fewer, making the integers takes as long
/// as is gained. Text encoders, whose prompts have at most 512 tokens, keep their arithmetic.
const WORTHWHILE: usize = 513;

/// Where everything is in scratch memory, in bytes from its beginning; `end` is its size.
struct Layout {
    /// Rows of q, and of k and v, of one image and head: whole tiles.
    query_rows: usize,
    key_rows: usize,
    q: usize,
    k: usize,
    v: usize,
    q_scales: usize,
    k_scales: usize,
    v_scales: usize,
    means: usize,
    end: usize,
}

impl Layout {
    fn of(a: &Args<Attention>) -> Layout {
        let heads = a.heads * a.batch;
        let query_rows = a.queries().next_multiple_of(QUERIES);
        let key_rows = a.tokens().next_multiple_of(TILE);
        let mut end = 0;
        let mut next = |bytes: usize| {
            let at = end;
            end += (heads * bytes).next_multiple_of(256);
            at
        };
        let (q, k, v) = (next(query_rows * HEAD), next(key_rows * HEAD), next(key_rows * HEAD * 2));
        let (q_scales, k_scales) = (next(query_rows * 4), next(key_rows * 4));
        let (v_scales, means) = (next(key_rows / TILE * 4), next(HEAD * 4));
        Layout { query_rows, key_rows, q, k, v, q_scales, k_scales, v_scales, means, end }
    }
}

fn accepts(a: &Args<Attention>, device: &CudaDevice) -> Result<(), &'static str> {
    tensor_cores(a, device, HEAD, &D128).and(plain(a))?;
    if a.head_dim() != HEAD {
        return Err("a head does not have 128 columns");
    }
    // The grid counts images three times along z, and the kernels rows of all heads in 32 bits.
    let layout = Layout::of(a);
    let rows = a.heads * a.batch * layout.query_rows.max(layout.key_rows);
    if a.batch > 65_535 / 3 || rows > u32::MAX as usize {
        return Err("too large for 32-bit sizes");
    }
    Ok(())
}

fn launches(a: &Args<Attention>) -> Vec<Launch> {
    if a.q.rows == 0 || a.q.cols == 0 {
        return vec![];
    }
    let layout = Layout::of(a);
    let at = |offset: usize| address(a.scratch) + offset as u64;
    let prepare = PrepareParams {
        queries: a.queries() as u32,
        tokens: a.tokens() as u32,
        heads: a.heads as u32,
        q_stride: a.q.stride as u32,
        k_stride: a.k.stride as u32,
        v_stride: a.v.stride as u32,
    };
    let launch = |kernel, grid: [usize; 3], buffers, params: &[u8]| Launch {
        kernel,
        grid: grid.map(|n| n as u32),
        buffers,
        maps: vec![],
        params: params.to_vec(),
    };
    let (q, k, v) = (a.q.address(), a.k.address(), a.v.address());
    let prepared =
        [layout.q, layout.k, layout.v, layout.q_scales, layout.k_scales, layout.v_scales]
            .map(at)
            .to_vec();
    let tiles = layout.query_rows.max(layout.key_rows) / TILE;
    let first = address(a.first.map(|(_, t)| t));
    vec![
        launch(
            &MEANS,
            [a.heads, a.batch, 1],
            vec![k, at(layout.means)],
            bytemuck::bytes_of(&prepare),
        ),
        launch(
            &PREPARE,
            [tiles, a.heads, 3 * a.batch],
            [vec![q, k, v, at(layout.means)], prepared.clone()].concat(),
            bytemuck::bytes_of(&prepare),
        ),
        launch(
            &D128,
            [layout.query_rows / QUERIES, a.heads, a.batch],
            [prepared, vec![first, a.out.address()]].concat(),
            bytemuck::bytes_of(&attention::params(a)),
        ),
    ]
}

/// q and k become integers and v becomes f16 in scratch memory, then attention reads these.
pub static ATTENTION_INT8: &[Variant<Attention>] = &[Variant {
    name: "attention_d128_int8_sm80",
    needs: Arch::From(8, 0),
    accepts,
    scratch: |a, _| Layout::of(a).end,
    launches: |a, _| launches(a),
}];

/// The variant of [`ATTENTION_INT8`] where integers are asked for and faster than BF16: not on
/// Hopper, which has the kernel with wgmma, nor on data-centre Blackwell GPUs, whose `mma.sync` is
/// no faster in integers.
pub fn choose(a: &Args<Attention>, device: &CudaDevice) -> Option<&'static Variant<Attention>> {
    let faster = !matches!(device.capability.0, 9..=11) && a.tokens() >= WORTHWHILE;
    let wanted = device.int8 && faster && accepts(a, device).is_ok();
    wanted.then(|| &ATTENTION_INT8[0])
}
