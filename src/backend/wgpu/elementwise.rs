//! Operations element by element, and in `copy_rows` copies of rows. `shaders/elementwise.wgsl`
//! explains the shaders; `latents.rs` has the operations that run once for each text or step. The
//! functions that these families share are here, too.

mod copy_rows;

use bytemuck::{NoUninit, Pod, Zeroable};

use super::launch::{
    Args, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, Window, blocks, code,
};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{Add, Cast, GeluMul, Silu, SiluMul};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OctetParams {
    grid: Grid,
    octets: u32,
    count: u32,
    a_base: u32,
    a_stride: u32,
    b_base: u32,
    b_stride: u32,
    out_base: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AnyParams {
    grid: Grid,
    rows: u32,
    cols: u32,
    a_base: u32,
    a_stride: u32,
    b_base: u32,
    b_stride: u32,
    out_base: u32,
    out_stride: u32,
}

/// The text of a file in `shaders/`.
macro_rules! wgsl {
    ($name:literal) => {
        include_str!(concat!("../../../shaders/", $name, ".wgsl"))
    };
}
pub(super) use wgsl;

static OCTETS: Shader = Shader {
    name: "elementwise",
    sources: &[wgsl!("common"), wgsl!("octets"), wgsl!("elementwise")],
    params_bytes: size_of::<OctetParams>(),
    buffers: 3,
};
static ANY: Shader = Shader {
    name: "elementwise_any",
    sources: &[wgsl!("common"), wgsl!("words"), wgsl!("elementwise_any"), wgsl!("words_main")],
    params_bytes: size_of::<AnyParams>(),
    buffers: 3,
};
/// Threads of a workgroup.
const THREADS: usize = 256;
const NEEDS: Needs = Needs::new(THREADS as u32, 0);

pub(super) use super::launch::Constants;

/// The element type of a matrix as a constant of a shader.
pub(super) fn type_of(m: &Matrix) -> f64 {
    f64::from(code(m.dtype))
}

/// Checks that rows, columns and strides fit 32 bits, and that a window can show at least one row.
pub(super) fn counts(matrices: &[&Matrix], device: &WgpuDevice) -> Result<(), &'static str> {
    let small = |n: usize| u32::try_from(n).is_ok();
    let all = matrices.iter().all(|m| small(m.rows) && small(m.cols) && small(m.stride));
    all.then_some(()).ok_or("a matrix has 2^32 rows or columns, or more")?;
    let shown = matrices.iter().all(|m| m.rows_that_bind(device) > 0);
    shown.then_some(()).ok_or("a row is larger than what the adapter binds")
}

/// Checks that the `_any` shaders can access these matrices.
pub(super) fn activations(matrices: &[&Matrix], device: &WgpuDevice) -> Result<(), &'static str> {
    let all = matrices.iter().all(|m| matches!(m.dtype, DType::BF16 | DType::F32));
    all.then_some(()).ok_or("an operand is neither bf16 nor f32")?;
    counts(matrices, device)
}

/// Checks that these are activations whose rows consist of groups of eight elements, in whole
/// vectors of 16 bytes.
pub(super) fn octets(matrices: &[&Matrix], device: &WgpuDevice) -> Result<(), &'static str> {
    activations(matrices, device)?;
    let all = matrices.iter().all(|m| m.whole_vectors() && m.cols.is_multiple_of(8));
    all.then_some(()).ok_or("an operand's rows are not eights of elements, aligned to 16 bytes")
}

/// Checks that each of these fits into one window.
pub(super) fn binds(matrices: &[&Matrix], device: &WgpuDevice) -> Result<(), &'static str> {
    matrices
        .iter()
        .all(|m| m.binds(device))
        .then_some(())
        .ok_or("an operand is larger than what the adapter binds")
}

/// The most rows that windows of all of these can show.
pub(super) fn most_rows(matrices: &[&Matrix], device: &WgpuDevice) -> usize {
    matrices.iter().map(|m| m.rows_that_bind(device)).min().unwrap_or(0)
}

/// The window of a matrix with its base and stride, counted in vectors of 16 bytes.
pub(super) fn in_vectors(m: &Matrix, device: &WgpuDevice) -> (Option<Window>, u32, u32) {
    let (window, base) = m.bind(device);
    let per_vector = 16 / m.dtype.size();
    (Some(window), base / per_vector as u32, (m.stride / per_vector) as u32)
}

/// The window of a matrix with its base and stride, counted in elements.
pub(super) fn in_elements(m: &Matrix, device: &WgpuDevice) -> (Option<Window>, u32, u32) {
    let (window, base) = m.bind(device);
    (Some(window), base, m.stride as u32)
}

/// [`in_elements`] of an optional operand.
pub(super) fn perhaps(m: Option<&Matrix>, device: &WgpuDevice) -> (Option<Window>, u32, u32) {
    m.map_or((None, 0, 0), |m| in_elements(m, device))
}

/// Threads for one row of an output, in a shader that processes it word by word.
pub(super) fn words(out: &Matrix) -> usize {
    if out.dtype.size() == 4 { out.cols } else { out.cols / 2 + 1 }
}

/// A dispatch of `groups` workgroups that does about ten operations for each of `elements`
/// elements.
pub(super) fn dispatch<P: NoUninit>(
    shader: &'static Shader,
    constants: Constants,
    buffers: Vec<Option<Window>>,
    params: &P,
    groups: usize,
    elements: usize,
) -> Dispatch {
    let params = bytemuck::bytes_of(params).to_vec();
    Dispatch {
        shader,
        constants,
        buffers,
        params,
        groups: groups as u64,
        work: 10 * elements as u64,
    }
}

/// The same dispatch, limited by memory: while an adapter moves one byte, it could do at least four
/// operations of a product.
pub(super) fn moving(d: Dispatch, bytes: usize) -> Dispatch {
    Dispatch { work: d.work.max(4 * bytes as u64), ..d }
}

/// Elements of a matrix.
pub(super) fn elements(m: &Matrix) -> usize {
    m.rows * m.cols
}

/// Bytes of the elements of a matrix.
pub(super) fn bytes(m: &Matrix) -> usize {
    elements(m) * m.dtype.size()
}

/// The numbers of the functions in the shaders.
#[derive(Clone, Copy)]
enum Function {
    GeluMul = 0,
    Silu = 1,
    Add = 2,
    Cast = 3,
    SiluMul = 4,
}

/// `out = f(a, b)`, or `f(a)`.
#[derive(Clone, Copy)]
struct Elementwise {
    function: Function,
    a: Matrix,
    b: Option<Matrix>,
    out: Matrix,
}

impl Elementwise {
    fn operands(&self) -> Vec<&Matrix> {
        [&self.a].into_iter().chain(&self.b).chain([&self.out]).collect()
    }

    /// Bytes read and written.
    fn moved(&self) -> usize {
        self.operands().into_iter().map(bytes).sum()
    }

    fn each(self, f: impl Fn(Matrix) -> Matrix) -> Elementwise {
        Elementwise { a: f(self.a), b: self.b.map(&f), out: f(self.out), ..self }
    }

    /// Whether no operand has gaps between its rows.
    fn dense(&self) -> bool {
        self.operands().iter().all(|m| m.stride == m.cols || m.rows <= 1)
    }

    fn takes_any(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        activations(&self.operands(), device)
    }

    /// Whether everything that one window shows consists of groups of eight: rows, or eight rows if
    /// there are no gaps.
    fn takes_octets(&self, device: &WgpuDevice) -> Result<(), &'static str> {
        self.takes_any(device)?;
        let aligned = self.operands().iter().all(|m| m.place.offset.is_multiple_of(16));
        let by_eights = elements(&self.out).is_multiple_of(8)
            && most_rows(&self.operands(), device) >= 8.min(self.out.rows);
        if self.dense() && aligned && by_eights { Ok(()) } else { octets(&self.operands(), device) }
    }

    /// Pieces that fit into windows. If there are no gaps, each is one row.
    fn pieces(&self, device: &WgpuDevice) -> Vec<Elementwise> {
        if self.out.cols == 0 {
            return vec![];
        }
        let most = most_rows(&self.operands(), device);
        let unit = if most >= 8 { 8 } else { 1 };
        let cut = |r: std::ops::Range<usize>| self.each(|m| m.band(r.start, r.len()));
        let flat = |m: Matrix| Matrix { rows: 1, cols: elements(&m), stride: elements(&m), ..m };
        let pieces = blocks(self.out.rows, most, unit).map(cut);
        pieces.map(|p| if self.dense() { p.each(flat) } else { p }).collect()
    }

    fn constants(&self) -> Constants {
        let b = self.b.as_ref().map_or(0.0, type_of);
        let function = f64::from(self.function as u32);
        vec![
            ("OP", function),
            ("A_TYPE", type_of(&self.a)),
            ("B_TYPE", b),
            ("OUT_TYPE", type_of(&self.out)),
        ]
    }

    fn by_octets(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let one = |p: Elementwise| {
            let (a, a_base, a_stride) = in_vectors(&p.a, device);
            let (b, b_base, b_stride) =
                p.b.as_ref().map_or((None, 0, 0), |b| in_vectors(b, device));
            let (out, out_base, out_stride) = in_vectors(&p.out, device);
            let (octets, count) = ((p.out.cols / 8) as u32, (elements(&p.out) / 8) as u32);
            let grid = Grid::default();
            let params = OctetParams {
                grid,
                octets,
                count,
                a_base,
                a_stride,
                b_base,
                b_stride,
                out_base,
                out_stride,
            };
            let groups = (count as usize).div_ceil(THREADS);
            moving(
                dispatch(
                    &OCTETS,
                    p.constants(),
                    vec![a, b, out],
                    &params,
                    groups,
                    elements(&p.out),
                ),
                p.moved(),
            )
        };
        self.pieces(device).into_iter().map(one).collect()
    }

    fn by_words(&self, device: &WgpuDevice) -> Vec<Dispatch> {
        let one = |p: Elementwise| {
            let (a, a_base, a_stride) = in_elements(&p.a, device);
            let (b, b_base, b_stride) = perhaps(p.b.as_ref(), device);
            let (out, out_base, out_stride) = in_elements(&p.out, device);
            let (rows, cols) = (p.out.rows as u32, p.out.cols as u32);
            let grid = Grid::default();
            let params = AnyParams {
                grid,
                rows,
                cols,
                a_base,
                a_stride,
                b_base,
                b_stride,
                out_base,
                out_stride,
            };
            let groups = (p.out.rows * words(&p.out)).div_ceil(THREADS);
            moving(
                dispatch(&ANY, p.constants(), vec![a, b, out], &params, groups, elements(&p.out)),
                p.moved(),
            )
        };
        self.pieces(device).into_iter().map(one).collect()
    }
}

impl From<&Args<SiluMul>> for Elementwise {
    fn from(a: &Args<SiluMul>) -> Elementwise {
        Elementwise { function: Function::SiluMul, a: a.gate, b: Some(a.up), out: a.out }
    }
}

impl From<&Args<GeluMul>> for Elementwise {
    fn from(a: &Args<GeluMul>) -> Elementwise {
        Elementwise { function: Function::GeluMul, a: a.gate, b: Some(a.up), out: a.out }
    }
}

impl From<&Args<Silu>> for Elementwise {
    fn from(a: &Args<Silu>) -> Elementwise {
        Elementwise { function: Function::Silu, a: a.x, b: None, out: a.out }
    }
}

impl From<&Args<Add>> for Elementwise {
    fn from(a: &Args<Add>) -> Elementwise {
        Elementwise { function: Function::Add, a: a.a, b: Some(a.b), out: a.out }
    }
}

impl From<&Args<Cast>> for Elementwise {
    fn from(a: &Args<Cast>) -> Elementwise {
        Elementwise { function: Function::Cast, a: a.x, b: None, out: a.out }
    }
}

/// The two variants of an operation that goes element by element.
macro_rules! elementwise {
    ($vector:literal, $any:literal) => {
        &[
            Variant {
                name: $vector,
                needs: NEEDS,
                accepts: |a, d| Elementwise::from(a).takes_octets(d),
                scratch: |_, _| 0,
                launches: |a, d| Elementwise::from(a).by_octets(d),
            },
            Variant {
                name: $any,
                needs: NEEDS,
                accepts: |a, d| Elementwise::from(a).takes_any(d),
                scratch: |_, _| 0,
                launches: |a, d| Elementwise::from(a).by_words(d),
            },
        ]
    };
}

/// Best first; the last one takes every type, window and alignment.
pub static GELU_MUL: &[Variant<GeluMul>] = elementwise!("gelu_mul_any_vectors", "gelu_mul_any");
variants!(Wgpu, GeluMul: GELU_MUL);

/// Best first; the last one takes every type, window and alignment.
pub static SILU_MUL: &[Variant<SiluMul>] = elementwise!("silu_mul_any_vectors", "silu_mul_any");
variants!(Wgpu, SiluMul: SILU_MUL);
/// Best first; the last one takes every type, window and alignment.
pub static SILU: &[Variant<Silu>] = elementwise!("silu_any_vectors", "silu_any");
variants!(Wgpu, Silu: SILU);
/// Best first; the last one takes every type, window and alignment.
pub static ADD: &[Variant<Add>] = elementwise!("add_any_vectors", "add_any");
variants!(Wgpu, Add: ADD);
/// Best first; the last one takes every pair of types, window and alignment.
pub static CAST: &[Variant<Cast>] = elementwise!("cast_any_vectors", "cast_any");
variants!(Wgpu, Cast: CAST);

/// All combinations with one value of each list.
pub(super) fn combinations(lists: &[(&'static str, &[f64])]) -> Vec<Constants> {
    let more = |sets: Vec<Constants>, (name, values): &(&'static str, &[f64])| {
        let with =
            |set: Constants| values.iter().map(move |v| [set.clone(), vec![(*name, *v)]].concat());
        sets.into_iter().flat_map(with).collect()
    };
    lists.iter().fold(vec![vec![]], more)
}

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types: &[f64] = &[0.0, 1.0];
    let operands = [
        ("OP", [0.0, 1.0, 2.0, 3.0, 4.0].as_slice()),
        ("A_TYPE", types),
        ("B_TYPE", types),
        ("OUT_TYPE", types),
    ];
    let of = |shader: &'static Shader, sets: Vec<Constants>| {
        sets.into_iter().map(move |set| (shader, set, NEEDS))
    };
    let elementwise = [&OCTETS, &ANY].into_iter().flat_map(|s| of(s, combinations(&operands)));
    elementwise.chain(copy_rows::shaders()).collect()
}
