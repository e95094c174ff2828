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

/// The fewest keys for which the variant is chosen. With fewer, quantising takes about as long as
/// the integers save. Text encoders, whose prompts have at most 512 tokens, keep their arithmetic.
const WORTHWHILE: usize = 513;

/// Offsets of the parts of scratch memory, in bytes; `end` is its size.
struct Layout {
    /// Rows of q, and of k and v, of one image and head, padded to whole tiles.
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

/// Whether integers are faster than BF16 on `device`: not on Hopper, which has the kernel with
/// wgmma, nor on data-centre Blackwell GPUs, whose `mma.sync` is no faster in integers.
pub fn is_faster(device: &CudaDevice) -> bool {
    !matches!(device.capability.0, 9..=11)
}

/// The variant of [`ATTENTION_INT8`] where integers are asked for and faster than BF16.
pub fn choose(a: &Args<Attention>, device: &CudaDevice) -> Option<&'static Variant<Attention>> {
    let worthwhile = a.tokens() >= WORTHWHILE && is_faster(device);
    let wanted = device.int8 && worthwhile && accepts(a, device).is_ok();
    wanted.then(|| &ATTENTION_INT8[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::launch::Cuda;
    use crate::backend::gpu::{AttentionArgs, Matrix, Runs};
    use crate::dtype::DType;

    fn chosen(tokens: usize, heads: usize, dim: usize, device: CudaDevice) -> &'static str {
        let cols = heads * dim;
        let m = Matrix { place: 4096, rows: tokens, cols, stride: cols, dtype: DType::BF16 };
        let (q, k, v, out) = (m, m, m, m);
        let (batch, scale, causal) = (1, 0.1, false);
        let op = Attention { q, k, v, batch, heads, scale, causal, bias: None, first: None, out };
        let args = AttentionArgs { op, scratch: None };
        <Cuda as Runs<Attention>>::choose(&args, &device).unwrap().name
    }

    #[test]
    fn long_sequences_are_computed_in_integers_where_that_is_wanted_and_faster() {
        let device = |major, minor, int8| CudaDevice {
            capability: (major, minor),
            processors: 28,
            shared_bytes: if major == 9 { 232_448 } else { 101_376 },
            l2_bytes: 3 << 20,
            driver: 12_040,
            fp8: false,
            int8,
        };
        for (major, minor) in [(8, 0), (8, 6), (8, 9), (12, 0)] {
            let chosen = |tokens, dim, int8| chosen(tokens, 24, dim, device(major, minor, int8));
            assert_eq!(chosen(4608, 128, true), "attention_d128_int8_sm80");
            assert_eq!(chosen(513, 128, true), "attention_d128_int8_sm80");
            // Text encoders, other widths, and other arithmetic.
            assert_eq!(chosen(512, 128, true), "attention_d128_sm80");
            assert_eq!(chosen(4608, 64, true), "attention_d64_sm80");
            assert_eq!(chosen(4608, 128, false), "attention_d128_sm80");
        }
        assert_eq!(chosen(4608, 24, 128, device(9, 0, true)), "attention_d128_wgmma_sm90a");
        assert_eq!(chosen(4608, 24, 128, device(10, 0, true)), "attention_d128_sm80");
    }

    #[test]
    fn parts_of_scratch_memory_follow_one_another() {
        let m = |rows, cols| Matrix { place: 0, rows, cols, stride: cols, dtype: DType::BF16 };
        let (q, k) = (m(2 * 100, 384), m(2 * 65, 384));
        let (batch, heads, scale, causal) = (2, 3, 0.1, false);
        let op =
            Attention { q, k, v: k, batch, heads, scale, causal, bias: None, first: None, out: q };
        let layout = Layout::of(&AttentionArgs { op, scratch: None });
        assert_eq!((layout.query_rows, layout.key_rows), (128, 128));
        let rows = 6 * 128;
        let sizes = [rows * 128, rows * 128, rows * 256, rows * 4, rows * 4, 256, 6 * 512];
        let starts = [
            layout.q,
            layout.k,
            layout.v,
            layout.q_scales,
            layout.k_scales,
            layout.v_scales,
            layout.means,
            layout.end,
        ];
        assert_eq!(starts[0], 0);
        assert!(starts.windows(2).zip(sizes).all(|(s, size)| s[1] - s[0] == size), "{starts:?}");
    }
}
