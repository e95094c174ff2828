//! From a recorded step to launches: finds the operands in device memory and asks the chosen variant.

use super::args::{AttentionArgs, Conv2dArgs, LinearArgs, SideArgs, Tail};
use super::choice::Choice;
use super::elementwise::{self, AddArgs, CastArgs, CopyRowsArgs, GeluMulArgs, SiluArgs};
use super::group_norm::GroupNormArgs;
use super::latents::{self, EmbedArgs, EulerStepArgs, PackArgs, TimestepEmbedArgs, UnpackArgs};
use super::launch::{Launch, Matrix, Variant};
use super::norm::{self, LayerNormArgs, LayerNormModulateArgs, QkNormRopeArgs, RmsNormArgs};
use super::{CudaBackend, Places};
use crate::backend::form::{Form, Segment};
use crate::error::{Error, Result};
use crate::op::{
    Add, Attention, Cast, Conv2d, CopyRows, Embed, Epilogue, EulerStep, GeluMul, GroupNorm,
    LayerNorm, LayerNormModulate, Linear, Op, Pack, QkNormRope, RmsNorm, Side, Silu, TimestepEmbed,
    Unpack, Use,
};
use crate::tensor::{HostWeight, Tensor, View, Weight};

/// A weight in device memory, or on its way there.
pub(super) struct Held {
    pub form: Form,
    pub address: u64,
    pub rows: usize,
    pub cols: usize,
}

/// Where operands are: in device memory, or (when only sizes are asked for) nowhere.
struct Finder<'a> {
    tensor: &'a dyn Fn(&Tensor) -> Result<u64>,
    weight: &'a dyn Fn(Weight, Use) -> Result<(Form, u64)>,
    scratch: u64,
}

impl Finder<'_> {
    fn view(&self, view: View) -> Result<Matrix> {
        let t = view.tensor;
        let address = (self.tensor)(&t)? + (view.col * t.dtype.size()) as u64;
        Ok(Matrix { address, rows: t.rows, cols: view.cols, stride: t.cols, dtype: t.dtype })
    }

    fn tensor(&self, tensor: Tensor) -> Result<Matrix> {
        self.view(tensor.all())
    }

    fn optional(&self, tensor: Option<Tensor>) -> Result<Option<Matrix>> {
        tensor.map(|t| self.tensor(t)).transpose()
    }

    /// The address of a bias or gain.
    fn vector(&self, weight: Weight) -> Result<u64> {
        Ok((self.weight)(weight, Use::Vector)?.1)
    }

    fn bias(&self, bias: Option<Weight>) -> Result<u64> {
        bias.map_or(Ok(0), |b| self.vector(b))
    }

    /// A weight that is one matrix.
    fn matrix(&self, weight: Weight, how: Use) -> Result<Matrix> {
        let (form, address) = (self.weight)(weight, how)?;
        match form.segments[..] {
            [ref only] => Ok(matrix(only, address)),
            _ => Err(Error::device("a weight lies in several pieces").found(weight)),
        }
    }
}

fn matrix(s: &Segment, address: u64) -> Matrix {
    Matrix {
        address: address + s.offset as u64,
        rows: s.rows,
        cols: s.cols,
        stride: s.stride,
        dtype: s.dtype,
    }
}

/// Scratch and launches of one variant.
fn ask<A>(variant: &Variant<A>, args: &A, choice: &Choice) -> (usize, Vec<Launch>) {
    ((variant.scratch)(args, &choice.device), (variant.launches)(args, &choice.device))
}

/// Scratch in bytes and launches of `op`.
fn make(choice: &Choice, op: &Op, find: &Finder) -> Result<(usize, Vec<Launch>)> {
    let scratch = find.scratch;
    macro_rules! first {
        ($table:expr, $args:expr) => {{
            let args = $args;
            Ok(ask(choice.first(op.name(), $table, &args)?, &args, choice))
        }};
    }
    match *op {
        Op::Linear(Linear { x, w, bias, side, epilogue, out }) => {
            linear(choice, find, x, w, bias, side, epilogue, out)
        }
        Op::Conv2d(Conv2d { x, w, bias, shape, residual, out }) => {
            let args = Conv2dArgs {
                x: find.tensor(x)?,
                w: find.matrix(w, Use::Kernel { taps: shape.kernel * shape.kernel })?,
                bias: find.bias(bias)?,
                shape,
                residual: find.optional(residual)?,
                out: find.tensor(out)?,
                scratch,
            };
            Ok(ask(choice.conv2d(&args)?, &args, choice))
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
                scratch,
            };
            Ok(ask(choice.attention(&args)?, &args, choice))
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
                ids: (find.tensor)(&ids)?,
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
                params: (find.tensor)(&params)?,
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
                scratch,
            };
            Ok(ask(choice.group_norm(&args)?, &args, choice))
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

/// One launch (or several) for each run of rows of one stored type, of `w` and of the side's.
#[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
fn linear(
    choice: &Choice,
    find: &Finder,
    x: View,
    w: Weight,
    bias: Option<Weight>,
    side: Option<Side>,
    epilogue: Epilogue,
    out: View,
) -> Result<(usize, Vec<Launch>)> {
    let (x, out, bias) = (find.view(x)?, find.view(out)?, find.bias(bias)?);
    let tail = match epilogue {
        Epilogue::None => Tail::None,
        Epilogue::Silu => Tail::Silu,
        Epilogue::GeluTanh => Tail::GeluTanh,
        Epilogue::QuickGelu => Tail::QuickGelu,
        Epilogue::Add { residual } => Tail::Add { residual: find.tensor(residual)? },
        Epilogue::GatedAdd { residual, gate } => {
            Tail::GatedAdd { residual: find.tensor(residual)?, gate: find.view(gate)? }
        }
    };
    let (form, address) = (find.weight)(w, Use::Matrix)?;
    let side = side
        .map(|s| Ok::<_, Error>((find.tensor(s.t)?, (find.weight)(s.b, Use::Matrix)?)))
        .transpose()?;
    let (mut most, mut all) = (0, Vec::new());
    let mut run = |s: &Segment, first: usize, rows: usize, side: Option<SideArgs>| -> Result<()> {
        let columns = |m: Matrix| m.columns(first, rows);
        let args = LinearArgs {
            x,
            w: matrix(s, address).band(first - s.first, rows),
            scales: s.scales.map_or(0, |offset| address + (offset + 4 * (first - s.first)) as u64),
            bias: if bias == 0 { 0 } else { bias + 4 * first as u64 },
            side,
            tail: match tail {
                Tail::Add { residual } => Tail::Add { residual: columns(residual) },
                Tail::GatedAdd { residual, gate } => {
                    Tail::GatedAdd { residual: columns(residual), gate: columns(gate) }
                }
                other => other,
            },
            out: columns(out),
            scratch: find.scratch,
        };
        let (scratch, launches) = ask(choice.linear(&args)?, &args, choice);
        most = most.max(scratch);
        all.extend(launches);
        Ok(())
    };
    for s in &form.segments {
        match &side {
            None => run(s, s.first, s.rows, None)?,
            Some((t, (sides, at))) => {
                for b in &sides.segments {
                    let (first, end) =
                        (s.first.max(b.first), (s.first + s.rows).min(b.first + b.rows));
                    if first < end {
                        let b = matrix(b, *at).band(first - b.first, end - first);
                        run(s, first, end - first, Some(SideArgs { t: *t, b }))?;
                    }
                }
            }
        }
    }
    Ok((most, all))
}

/// Bytes of scratch that `op` needs, or why no kernel can run it.
pub(super) fn needs<'w>(
    choice: &Choice,
    op: &Op,
    weight: &dyn Fn(Weight) -> &'w HostWeight,
) -> Result<usize> {
    let find = Finder {
        tensor: &|_| Ok(0),
        weight: &|w, how| Ok((Form::of(weight(w), how, super::TYPES), 0)),
        scratch: 0,
    };
    make(choice, op, &find).map(|(scratch, _)| scratch)
}

/// The launches of `op`.
pub(super) fn launches(backend: &mut CudaBackend, op: &Op, places: &Places) -> Result<Vec<Launch>> {
    if let Op::Embed(Embed { table, ids, .. }) = *op {
        check_ids(backend, ids, places, table.rows)?;
    }
    let backend = &*backend;
    let find = Finder {
        tensor: &|t| backend.arena(places.of(t), t.bytes()),
        weight: &|w, _| {
            let held = backend.weights.get(&places.key(w)).ok_or_else(|| {
                Error::device("a step names a weight that was not loaded")
                    .at(&backend.caps.name)
                    .found(w)
            })?;
            if (held.rows, held.cols) != (w.rows, w.cols) {
                return Err(Error::model("a weight has the wrong shape")
                    .found(format!("{} x {}", held.rows, held.cols))
                    .expected(format!("{} x {}", w.rows, w.cols)));
            }
            Ok((held.form.clone(), held.address))
        },
        scratch: backend.memory.address + places.scratch as u64,
    };
    let (scratch, launches) = make(&backend.choice, op, &find)?;
    backend.arena(places.scratch, scratch)?;
    Ok(launches)
}

/// Token ids are indices into a table: a wrong one would read elsewhere. They are few, and read back before they are used.
fn check_ids(backend: &mut CudaBackend, ids: Tensor, places: &Places, rows: usize) -> Result<()> {
    let mut bytes = vec![0; ids.bytes()];
    let from = backend.arena(places.of(&ids), bytes.len())?;
    // SAFETY: the range lies in the arena.
    unsafe { backend.compute.download(from, &mut bytes) }?;
    let wrong = bytes
        .chunks_exact(4)
        .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .enumerate()
        .find(|(_, id)| usize::try_from(*id).map_or(true, |id| id >= rows));
    match wrong {
        None => Ok(()),
        Some((at, id)) => Err(Error::argument("a token id is not in the table")
            .at(format!("token {at}"))
            .found(id)
            .expected(format!("0 to {}", rows - 1))
            .try_("use the tokenizer that belongs to the text encoder")),
    }
}
