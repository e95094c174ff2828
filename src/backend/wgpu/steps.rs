//! From a recorded step to dispatches: finds the operands in device memory and asks the chosen variant.

mod linear;

use super::WgpuBackend;
use super::attention::AttentionArgs;
use super::choice::Choice;
use super::conv2d::Conv2dArgs;
use super::elementwise::{self, AddArgs, CastArgs, CopyRowsArgs, GeluMulArgs, SiluArgs};
use super::group_norm::GroupNormArgs;
use super::latents::{self, EmbedArgs, EulerStepArgs, PackArgs, TimestepEmbedArgs, UnpackArgs};
use super::launch::{BufferId, Dispatch, Matrix, Variant};
use super::norm::{self, LayerNormArgs, LayerNormModulateArgs, QkNormRopeArgs, RmsNormArgs};
use crate::backend::Places;
use crate::backend::form::{Form, Segment};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{
    Add, Attention, Cast, Conv2d, CopyRows, Embed, EulerStep, GeluMul, GroupNorm, LayerNorm,
    LayerNormModulate, Linear, Op, Pack, QkNormRope, RmsNorm, Silu, TimestepEmbed, Unpack, Use,
};
use crate::tensor::{HostWeight, Tensor, View, Weight};

/// Where something begins: a buffer and a byte in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub buffer: BufferId,
    pub offset: u64,
}

impl Spot {
    fn after(self, bytes: usize) -> Spot {
        Spot { offset: self.offset + bytes as u64, ..self }
    }

    fn matrix(self, rows: usize, cols: usize, stride: usize, dtype: DType) -> Matrix {
        Matrix { buffer: self.buffer, offset: self.offset, rows, cols, stride, dtype }
    }
}

/// A weight in device memory, or on its way there.
pub(super) struct Kept {
    pub form: Form,
    pub spot: Spot,
    pub rows: usize,
    pub cols: usize,
}

/// Where operands are: in device memory, or (when only sizes are asked for) nowhere.
struct Finder<'a> {
    tensor: &'a dyn Fn(&Tensor) -> Result<Spot>,
    weight: &'a dyn Fn(Weight, Use) -> Result<(Form, Spot)>,
    /// The place of that many bytes of scratch.
    scratch: &'a dyn Fn(usize) -> Result<Spot>,
}

impl Finder<'_> {
    fn view(&self, view: View) -> Result<Matrix> {
        let t = view.tensor;
        let spot = (self.tensor)(&t)?.after(view.col * t.dtype.size());
        Ok(spot.matrix(t.rows, view.cols, t.cols, t.dtype))
    }

    fn tensor(&self, tensor: Tensor) -> Result<Matrix> {
        self.view(tensor.all())
    }

    fn optional(&self, tensor: Option<Tensor>) -> Result<Option<Matrix>> {
        tensor.map(|t| self.tensor(t)).transpose()
    }

    /// A bias or gain, as one row.
    fn vector(&self, weight: Weight) -> Result<Matrix> {
        self.matrix(weight, Use::Vector)
    }

    fn bias(&self, bias: Option<Weight>) -> Result<Option<Matrix>> {
        bias.map(|b| self.vector(b)).transpose()
    }

    /// A weight that is one matrix.
    fn matrix(&self, weight: Weight, how: Use) -> Result<Matrix> {
        let (form, spot) = (self.weight)(weight, how)?;
        match form.segments[..] {
            [ref only] => Ok(matrix(only, spot)),
            _ => Err(Error::device("a weight lies in several pieces").found(weight)),
        }
    }
}

fn matrix(s: &Segment, spot: Spot) -> Matrix {
    // Of blocks, matrices count words.
    let stride = if s.dtype.is_plain() { s.stride } else { s.stride / 4 };
    spot.after(s.offset).matrix(s.rows, s.cols, stride, s.dtype)
}

/// Scratch and dispatches of one variant. `with` puts the scratch, whose size is known only once the variant is, into the operands.
fn ask<A>(
    variant: &Variant<A>,
    mut args: A,
    choice: &Choice,
    find: &Finder,
    with: impl FnOnce(&mut A, Matrix),
) -> Result<(usize, Vec<Dispatch>)> {
    let bytes = (variant.scratch)(&args, &choice.device).next_multiple_of(4);
    if bytes > 0 {
        with(&mut args, (find.scratch)(bytes)?.matrix(1, bytes / 4, bytes / 4, DType::F32));
    }
    Ok((bytes, (variant.dispatches)(&args, &choice.device)))
}

/// Scratch in bytes and dispatches of `op`.
fn make(choice: &Choice, op: &Op, find: &Finder) -> Result<(usize, Vec<Dispatch>)> {
    macro_rules! first {
        ($table:expr, $args:expr) => {{
            let args = $args;
            ask(choice.first(op.name(), $table, &args)?, args, choice, find, |_, _| {})
        }};
    }
    match *op {
        Op::Linear(Linear { x, w, bias, side, epilogue, out }) => {
            linear::make(choice, find, x, w, bias, side, epilogue, out)
        }
        Op::Conv2d(Conv2d { x, w, bias, shape, residual, out }) => {
            let args = Conv2dArgs {
                x: find.tensor(x)?,
                w: find.matrix(w, Use::Kernel { taps: shape.kernel * shape.kernel })?,
                bias: find.bias(bias)?,
                shape,
                residual: find.optional(residual)?,
                out: find.tensor(out)?,
                scratch: None,
            };
            ask(choice.conv2d(&args)?, args, choice, find, |a, s| a.scratch = Some(s))
        }
        Op::Attention(Attention { q, k, v, batch, heads, scale, causal, bias, first, out }) => {
            let first = first.map(|(n, t)| Ok::<_, Error>((n, find.tensor(t)?))).transpose()?;
            let args = AttentionArgs {
                q: find.view(q)?,
                k: find.view(k)?,
                v: find.view(v)?,
                batch,
                heads,
                scale,
                causal,
                bias: find.optional(bias)?,
                first,
                out: find.view(out)?,
                scratch: None,
            };
            ask(choice.attention(&args)?, args, choice, find, |a, s| a.scratch = Some(s))
        }
        Op::LayerNormModulate(LayerNormModulate { x, shift, scale, eps, out }) => first!(
            norm::LAYER_NORM_MODULATE,
            LayerNormModulateArgs {
                x: find.tensor(x)?,
                shift: find.view(shift)?,
                scale: find.view(scale)?,
                eps,
                out: find.tensor(out)?,
            }
        ),
        Op::LayerNorm(LayerNorm { x, weight, bias, eps, out }) => first!(
            norm::LAYER_NORM,
            LayerNormArgs {
                x: find.tensor(x)?,
                weight: find.vector(weight)?,
                bias: find.vector(bias)?,
                eps,
                out: find.tensor(out)?,
            }
        ),
        Op::RmsNorm(RmsNorm { x, weight, eps, out }) => first!(
            norm::RMS_NORM,
            RmsNormArgs {
                x: find.tensor(x)?,
                weight: find.vector(weight)?,
                eps,
                out: find.tensor(out)?
            }
        ),
        Op::QkNormRope(QkNormRope {
            qkv,
            q_gain,
            k_gain,
            rope,
            batch,
            heads,
            tokens,
            first,
            eps,
            out,
        }) => {
            first!(
                norm::QK_NORM_ROPE,
                QkNormRopeArgs {
                    qkv: find.tensor(qkv)?,
                    q_gain: find.vector(q_gain)?,
                    k_gain: find.vector(k_gain)?,
                    rope: find.tensor(rope)?,
                    batch,
                    heads,
                    tokens,
                    first,
                    eps,
                    out: find.tensor(out)?,
                }
            )
        }
        Op::GeluMul(GeluMul { gate, up, out }) => first!(
            elementwise::GELU_MUL,
            GeluMulArgs { gate: find.tensor(gate)?, up: find.tensor(up)?, out: find.tensor(out)? }
        ),
        Op::Silu(Silu { x, out }) => {
            first!(elementwise::SILU, SiluArgs { x: find.tensor(x)?, out: find.tensor(out)? })
        }
        Op::Add(Add { a, b, out }) => {
            first!(
                elementwise::ADD,
                AddArgs { a: find.tensor(a)?, b: find.tensor(b)?, out: find.tensor(out)? }
            )
        }
        Op::Embed(Embed { table, ids, positions, out }) => first!(
            latents::EMBED,
            EmbedArgs {
                table: find.matrix(table, Use::Table)?,
                ids: find.tensor(ids)?,
                positions: positions.map(|p| find.matrix(p, Use::Table)).transpose()?,
                out: find.tensor(out)?,
            }
        ),
        Op::TimestepEmbed(TimestepEmbed { t, out }) => {
            first!(
                latents::TIMESTEP_EMBED,
                TimestepEmbedArgs { t: find.tensor(t)?, out: find.tensor(out)? }
            )
        }
        Op::Pack(Pack { x, height, width, out, .. }) => {
            first!(
                latents::PACK,
                PackArgs { x: find.tensor(x)?, height, width, out: find.tensor(out)? }
            )
        }
        Op::Unpack(Unpack { x, height, width, scale, shift, out, .. }) => first!(
            latents::UNPACK,
            UnpackArgs { x: find.tensor(x)?, height, width, scale, shift, out: find.tensor(out)? }
        ),
        Op::EulerStep(EulerStep { x, v, params, cfg }) => first!(
            latents::EULER_STEP,
            EulerStepArgs {
                x: find.tensor(x)?,
                v: find.tensor(v)?,
                params: find.tensor(params)?,
                cfg
            }
        ),
        Op::GroupNorm(GroupNorm { x, weight, bias, batch, groups, eps, silu, out }) => {
            let args = GroupNormArgs {
                x: find.tensor(x)?,
                weight: find.vector(weight)?,
                bias: find.vector(bias)?,
                batch,
                groups,
                eps,
                silu,
                out: find.tensor(out)?,
                scratch: None,
            };
            ask(choice.group_norm(&args)?, args, choice, find, |a, s| a.scratch = Some(s))
        }
        Op::CopyRows(CopyRows { x, out, batch, from, to, count }) => first!(
            elementwise::COPY_ROWS,
            CopyRowsArgs { x: find.tensor(x)?, batch, from, to, count, out: find.tensor(out)? }
        ),
        Op::Cast(Cast { x, out }) => {
            first!(elementwise::CAST, CastArgs { x: find.view(x)?, out: find.view(out)? })
        }
    }
}

/// Scratch and dispatches of `op` with operands nowhere, aligned as everything is that begins a tensor.
fn dry<'w>(
    backend: &WgpuBackend,
    op: &Op,
    weight: &dyn Fn(Weight) -> &'w HostWeight,
) -> Result<(usize, Vec<Dispatch>)> {
    let nowhere = Spot { buffer: BufferId(0), offset: 0 };
    let find = Finder {
        tensor: &|_| Ok(nowhere),
        weight: &|w, how| Ok((Form::of(weight(w), how, backend.types), nowhere)),
        scratch: &|_| Ok(nowhere),
    };
    make(&backend.choice, op, &find)
}

/// Bytes of scratch that `op` needs. What no shader can run needs none: `can_run` says so.
pub(super) fn scratch_bytes<'w>(
    backend: &WgpuBackend,
    op: &Op,
    weight: &dyn Fn(Weight) -> &'w HostWeight,
) -> usize {
    match *op {
        Op::Linear(Linear { side, epilogue, out, .. }) => linear::scratch(side, epilogue, out).0,
        _ => dry(backend, op, weight).map_or(0, |(scratch, _)| scratch),
    }
}

/// Whether there is a shader for `op`, and every operand has room in one of the adapter's buffers.
pub(super) fn can_run<'w>(
    backend: &WgpuBackend,
    op: &Op,
    weight: &dyn Fn(Weight) -> &'w HostWeight,
) -> Result<()> {
    let (scratch, _) = dry(backend, op, weight)?;
    let most = backend.caps.grain.chunk;
    let tensors = op.reads().into_iter().chain(op.writes()).map(|t| t.bytes());
    match tensors.chain([scratch]).max() {
        Some(bytes) if bytes > most => {
            Err(Error::memory("an operand is larger than the adapter's buffers")
                .at(&backend.caps.name)
                .found(format!("{bytes} bytes"))
                .expected(format!("at most {most}"))
                .try_("a smaller picture, fewer at a time (-n), --compute bf16, or --device cpu"))
        }
        _ => Ok(()),
    }
}

/// The dispatches of `op`.
pub(super) fn dispatches(backend: &WgpuBackend, op: &Op, places: &Places) -> Result<Vec<Dispatch>> {
    let find = Finder {
        tensor: &|t| backend.arena.spot(places.of(t), t.bytes()),
        weight: &|w, _| {
            let kept = backend.weights.get(&places.key(w)).ok_or_else(|| {
                Error::device("a step names a weight that was not loaded")
                    .at(&backend.caps.name)
                    .found(w)
            })?;
            if (kept.rows, kept.cols) != (w.rows, w.cols) {
                return Err(Error::model("a weight has the wrong shape")
                    .found(format!("{} x {}", kept.rows, kept.cols))
                    .expected(format!("{} x {}", w.rows, w.cols)));
            }
            Ok((kept.form.clone(), kept.spot))
        },
        scratch: &|bytes| backend.arena.spot(places.scratch, bytes),
    };
    make(&backend.choice, op, &find).map(|(_, dispatches)| dispatches)
}
