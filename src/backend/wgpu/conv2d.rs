//! Convolutions. `shaders/conv2d*.wgsl` explain the shaders.

use bytemuck::{Pod, Zeroable};

use super::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, blocks, code,
};
use crate::backend::gpu::{first, variants};
use crate::dtype::DType;
use crate::op::Conv2d;

/// As in `conv2d.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    grid: Grid,
    pixels: u32,
    lines: u32,
    out_width: u32,
    first_line: u32,
    height: u32,
    width: u32,
    in_first: u32,
    channels: u32,
    outputs: u32,
    kernel: u32,
    stride: u32,
    pad: u32,
    up: u32,
    columns: u32,
    x_base: u32,
    x_stride: u32,
    w_base: u32,
    w_stride: u32,
    bias: u32,
    bias_base: u32,
    residual: u32,
    residual_base: u32,
    residual_stride: u32,
    out_base: u32,
    out_stride: u32,
    whole: u32,
}

/// A shader and the tile of a workgroup, in pixels and output channels.
struct Tiled {
    shader: &'static Shader,
    pixels: usize,
    channels: usize,
    /// Whether x and w are bound as vectors of 16 bytes.
    vectors: bool,
    /// Time of a product relative to the tiles of vectors, roughly. Dispatches are cut by a rate
    /// that is measured with those.
    slower: u64,
}

macro_rules! shader {
    ($name:literal, $($file:literal),+) => {
        Shader {
            name: $name,
            sources: &[
                include_str!("../../../shaders/common.wgsl"),
                include_str!("../../../shaders/conv2d.wgsl"),
                $(include_str!(concat!("../../../shaders/", $file))),+
            ],
            params_bytes: size_of::<Params>(),
            buffers: 5,
        }
    };
}

static TILE_SHADER: Shader =
    shader!("conv2d_128x64", "conv2d_vectors.wgsl", "conv2d_whole.wgsl", "conv2d_tile.wgsl");
static LANES_SHADER: Shader =
    shader!("conv2d_lanes", "conv2d_vectors.wgsl", "conv2d_whole.wgsl", "conv2d_tile_lanes.wgsl");
static FEW_SHADER: Shader =
    shader!("conv2d_few", "conv2d_vectors.wgsl", "conv2d_each.wgsl", "conv2d_few.wgsl");
static ANY_SHADER: Shader =
    shader!("conv2d_any", "conv2d_elements.wgsl", "conv2d_each.wgsl", "conv2d_tile.wgsl");

static TILE: Tiled =
    Tiled { shader: &TILE_SHADER, pixels: 128, channels: 64, vectors: true, slower: 1 };
static LANES: Tiled =
    Tiled { shader: &LANES_SHADER, pixels: 128, channels: 64, vectors: true, slower: 1 };
static FEW: Tiled =
    Tiled { shader: &FEW_SHADER, pixels: 64, channels: 4, vectors: true, slower: 4 };
static ANY: Tiled =
    Tiled { shader: &ANY_SHADER, pixels: 128, channels: 64, vectors: false, slower: 16 };

const TILE_NEEDS: Needs = Needs::new(128, 976 * 16);
/// The subgroups that `conv2d_tile_lanes.wgsl` is made for.
const LANES_NEEDS: Needs =
    Needs { subgroups: Some((8, 8)), software: true, ..Needs::new(64, 768 * 16) };
const FEW_NEEDS: Needs = Needs::new(128, 512 * 16);

/// All variants.
pub static CONV2D: &[Variant<Conv2d>] = &[
    Variant {
        name: "conv2d_any_128x64",
        needs: TILE_NEEDS,
        accepts: |a, device| vectors(a, device).and_then(|()| fours(a)),
        scratch: none,
        launches: |a, device| dispatches(&TILE, a, device),
    },
    Variant {
        name: "conv2d_any_128x64_subgroup",
        needs: LANES_NEEDS,
        accepts: |a, device| vectors(a, device).and_then(|()| fours(a)),
        scratch: none,
        launches: |a, device| dispatches(&LANES, a, device),
    },
    Variant {
        name: "conv2d_any_few",
        needs: FEW_NEEDS,
        accepts: vectors,
        scratch: none,
        launches: |a, device| dispatches(&FEW, a, device),
    },
    Variant {
        name: "conv2d_any",
        needs: TILE_NEEDS,
        accepts: any,
        scratch: none,
        launches: |a, device| dispatches(&ANY, a, device),
    },
];
variants!(Wgpu, Conv2d: CONV2D; choose);

/// The fastest variant for these operands.
fn choose(
    args: &Args<Conv2d>,
    device: &WgpuDevice,
) -> Result<&'static Variant<Conv2d>, &'static str> {
    let [tile, lanes, few, any] = [0, 1, 2, 3];
    let order = match args.shape.out_channels {
        ..=8 => [few, tile, any],
        _ if device.software => [lanes, tile, any],
        _ => [tile, few, any],
    };
    first(order.map(|i| &CONV2D[i]), args, device)
}

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types = [DType::F32, DType::BF16];
    let mut all = Vec::new();
    for (tiled, needs) in
        [(&TILE, TILE_NEEDS), (&LANES, LANES_NEEDS), (&FEW, FEW_NEEDS), (&ANY, TILE_NEEDS)]
    {
        for x in types {
            for w in types {
                all.extend(types.map(|out| (tiled.shader, constants(x, w, out), needs)));
            }
        }
    }
    all
}

fn constants(x: DType, w: DType, out: DType) -> Constants {
    [("X_TYPE", x), ("W_TYPE", w), ("OUT_TYPE", out)]
        .map(|(name, t)| (name, f64::from(code(t))))
        .to_vec()
}

fn none(_: &Args<Conv2d>, _: &WgpuDevice) -> usize {
    0
}

/// Checks what all shaders require: sizes that fit 32 bits, operands that match the shape, and
/// windows that can show at least one line of out with everything it is computed from.
fn any(a: &Args<Conv2d>, device: &WgpuDevice) -> Result<(), &'static str> {
    let s = &a.shape;
    let (source_height, source_width) = s.source();
    let matrix =
        |m: &Matrix, rows: usize, cols: usize| (m.rows, m.cols) == (rows, cols) && m.stride >= cols;
    let outer = |n: usize| n.saturating_add(s.pad_before + s.pad_after);
    if !matches!(s.kernel, 1 | 3) || !matches!(s.stride, 1 | 2) {
        return Err("kernel is not 1 or 3, or stride not 1 or 2");
    }
    if [s.batch, s.height, s.width, s.in_channels, s.out_channels].contains(&0)
        || outer(source_height).min(outer(source_width)) < s.kernel
    {
        return Err("there are no pixels");
    }
    let (height, width) = s.output();
    let pixels =
        s.batch.checked_mul(height).and_then(|n| n.checked_mul(width)).unwrap_or(usize::MAX);
    let known = |d: DType| matches!(d, DType::BF16 | DType::F32);
    if !known(a.x.dtype) || !known(a.w.dtype) || !known(a.out.dtype) {
        return Err("x, w and out must be BF16 or F32");
    }
    if a.residual.is_some_and(|r| r.dtype != a.out.dtype)
        || a.bias.is_some_and(|b| b.dtype != DType::F32)
    {
        return Err("the residual is not of the type of out, or the bias not F32");
    }
    if !matrix(&a.x, s.batch * s.height * s.width, s.in_channels)
        || !matrix(&a.w, s.out_channels, s.kernel * s.kernel * s.in_channels)
        || !matrix(&a.out, pixels, s.out_channels)
        || a.residual.is_some_and(|r| !matrix(&r, pixels, s.out_channels))
        || a.bias.is_some_and(|b| b.rows * b.cols != s.out_channels || b.rows != 1)
    {
        return Err("an operand does not match the shape");
    }
    // Coordinates are signed, and a grid has less than 2^31 workgroups, even of the smallest tile.
    let groups = pixels.div_ceil(64) as u128 * s.out_channels.div_ceil(4) as u128;
    if pixels.max(a.x.rows) >= 1 << 31
        || outer(source_height).max(outer(source_width)) >= 1 << 30
        || groups >= 1 << 31
    {
        return Err("more than 2^31 pixels or workgroups");
    }
    if lines_that_bind(a, device) == 0
        || a.w.rows_that_bind(device) < a.w.rows.min(64)
        || !a.bias.is_none_or(|b| b.binds(device))
    {
        return Err("a line of pixels, 64 filters or the bias are larger than a binding");
    }
    Ok(())
}

/// Checks that pixels and filters can be read as vectors of 16 bytes, 8 channels at a time.
fn vectors(a: &Args<Conv2d>, device: &WgpuDevice) -> Result<(), &'static str> {
    any(a, device)?;
    if !a.shape.in_channels.is_multiple_of(8) || !a.x.whole_vectors() || !a.w.whole_vectors() {
        return Err(
            "input channels are not a multiple of 8, or x or w do not begin at multiples of \
             16 bytes",
        );
    }
    Ok(())
}

/// Whether out and residual can be accessed four channels at a time.
fn fours(a: &Args<Conv2d>) -> Result<(), &'static str> {
    let four = |m: &Matrix| {
        m.place.offset.is_multiple_of(8)
            && m.cols.is_multiple_of(4)
            && (m.rows <= 1 || m.stride.is_multiple_of(4))
    };
    if !four(&a.out) || !a.residual.as_ref().is_none_or(four) {
        return Err("out or residual are not made of whole fours of channels");
    }
    Ok(())
}

/// The most output lines of one image whose windows of x, out and residual the device takes.
fn lines_that_bind(a: &Args<Conv2d>, device: &WgpuDevice) -> usize {
    let s = &a.shape;
    let (height, width) = s.output();
    let input = a.x.rows_that_bind(device) / s.width;
    // In an enlarged image, n lines are computed from at most n/2 + 1 input lines.
    let reach = if s.upsample { 2 * input.saturating_sub(1) } else { input };
    let lines = match input {
        0 => 0,
        _ if input >= s.height => height,
        _ if reach < s.kernel => 0,
        _ => (reach - s.kernel) / s.stride + 1,
    };
    let outputs = a.residual.iter().chain([&a.out]).map(|m| m.rows_that_bind(device) / width);
    outputs.fold(lines, usize::min)
}

/// The output lines `lines` of the images `images`, and the input lines `input` that they are
/// computed from.
struct Piece {
    images: std::ops::Range<usize>,
    lines: std::ops::Range<usize>,
    input: std::ops::Range<usize>,
}

/// Everything, if it fits into windows; otherwise lines of one image at a time.
fn pieces(a: &Args<Conv2d>, device: &WgpuDevice) -> Vec<Piece> {
    let s = &a.shape;
    let (height, _) = s.output();
    if a.x.binds(device) && a.out.binds(device) && a.residual.is_none_or(|r| r.binds(device)) {
        return vec![Piece { images: 0..s.batch, lines: 0..height, input: 0..s.height }];
    }
    let mut all = Vec::new();
    for image in 0..s.batch {
        for lines in blocks(height, lines_that_bind(a, device), 1) {
            // Lines of the (enlarged) image that the kernel covers; those in the padding are not
            // read.
            let last = s.source().0 - 1;
            let from = (lines.start * s.stride).saturating_sub(s.pad_before).min(last);
            let to =
                ((lines.end - 1) * s.stride + s.kernel - 1).saturating_sub(s.pad_before).min(last);
            let up = usize::from(s.upsample);
            all.push(Piece { images: image..image + 1, lines, input: from >> up..(to >> up) + 1 });
        }
    }
    all
}

fn dispatches(tiled: &Tiled, a: &Args<Conv2d>, device: &WgpuDevice) -> Vec<Dispatch> {
    let pieces = pieces(a, device);
    let most = if a.w.binds(device) { usize::MAX } else { a.w.rows_that_bind(device) };
    let filters = blocks(a.w.rows, most, tiled.channels);
    filters
        .flat_map(|filters| {
            pieces.iter().map(move |piece| dispatch(tiled, a, device, filters.clone(), piece))
        })
        .collect()
}

fn dispatch(
    tiled: &Tiled,
    a: &Args<Conv2d>,
    device: &WgpuDevice,
    filters: std::ops::Range<usize>,
    piece: &Piece,
) -> Dispatch {
    let s = &a.shape;
    let (height, width) = s.output();
    let pixels = piece.images.len() * piece.lines.len() * width;
    let lines = |m: &Matrix| {
        let m = m.band((piece.images.start * height + piece.lines.start) * width, pixels);
        m.columns(filters.start, filters.len())
    };
    let x_rows = piece.images.len() * piece.input.len() * s.width;
    let x = a.x.band((piece.images.start * s.height + piece.input.start) * s.width, x_rows);
    let w = a.w.band(filters.start, filters.len());
    let bias = a.bias.map(|b| b.columns(filters.start, filters.len()).bind(device));
    let residual = a.residual.as_ref().map(|r| (lines(r).bind(device), r.stride));
    let out = lines(&a.out);
    let (x_window, x_base) = x.bind(device);
    let (w_window, w_base) = w.bind(device);
    let (out_window, out_base) = out.bind(device);
    // Bases and strides in elements, or in vectors.
    let unit = |m: &Matrix| if tiled.vectors { 16 / m.dtype.size() } else { 1 };
    let columns = filters.len().div_ceil(tiled.channels);
    let params = Params {
        grid: Grid::default(),
        pixels: pixels as u32,
        lines: piece.lines.len() as u32,
        out_width: width as u32,
        first_line: piece.lines.start as u32,
        height: s.height as u32,
        width: s.width as u32,
        in_first: piece.input.start as u32,
        channels: s.in_channels as u32,
        outputs: filters.len() as u32,
        kernel: s.kernel as u32,
        stride: s.stride as u32,
        pad: s.pad_before as u32,
        up: s.upsample.into(),
        columns: columns as u32,
        x_base: x_base / unit(&x) as u32,
        x_stride: (x.stride / unit(&x)) as u32,
        w_base: w_base / unit(&w) as u32,
        w_stride: (w.stride / unit(&w)) as u32,
        bias: bias.is_some().into(),
        bias_base: bias.map_or(0, |(_, base)| base),
        residual: residual.is_some().into(),
        residual_base: residual.map_or(0, |((_, base), _)| base),
        residual_stride: residual.map_or(0, |(_, stride)| stride as u32),
        out_base,
        out_stride: out.stride as u32,
        whole: out.whole_words().into(),
    };
    Dispatch {
        shader: tiled.shader,
        constants: constants(a.x.dtype, a.w.dtype, a.out.dtype),
        buffers: vec![
            Some(x_window),
            Some(w_window),
            bias.map(|(window, _)| window),
            residual.map(|((window, _), _)| window),
            Some(out_window),
        ],
        params: bytemuck::bytes_of(&params).to_vec(),
        groups: (pixels.div_ceil(tiled.pixels) * columns) as u64,
        work: tiled.slower * 2 * (pixels * w.cols * filters.len()) as u64,
    }
}
