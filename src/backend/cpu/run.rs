//! From a recorded step to a kernel: finds the operands in the arena and calls the chosen variant.

use super::attention::{self, AttentionArgs};
use super::conv;
use super::elementwise;
use super::linear::{self, Tail};
use super::matrix::{In, Out};
use super::norm::{self, GroupNormArgs, QkNormRopeArgs};
use super::operand::{Stored, Table};
use super::reference;
use super::variants::{Choice, Product};
use super::{CpuBackend, Places};
use crate::backend::cpu::arena::Arena;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{
    Add, Attention, Cast, Conv2d, CopyRows, Embed, Epilogue, EulerStep, GeluMul, GroupNorm,
    LayerNorm, LayerNormModulate, Linear, Op, Pack, QkNormRope, RmsNorm, Silu, TimestepEmbed,
    Unpack, Use,
};
use crate::tensor::{DTypes, Tensor, View, Weight};

/// Bytes of scratch that `op` needs with the chosen variant.
pub(super) fn scratch_bytes(
    choice: &Choice,
    threads: usize,
    op: &Op,
    stored: &dyn Fn(Weight) -> DTypes,
) -> usize {
    match *op {
        Op::Linear(Linear { x, w, side, .. }) => match choice.product("linear", stored(w)) {
            Product::Fast(v) => linear::linear_scratch(
                v,
                x.rows(),
                w.cols,
                side.map_or(0, |s| s.b.cols),
                w.rows,
                threads,
            ),
            Product::Reference => 0,
        },
        Op::Conv2d(Conv2d { w, shape, .. }) => match choice.product("conv2d", stored(w)) {
            Product::Fast(v) => conv::conv2d_scratch(v, &shape, threads),
            Product::Reference => 0,
        },
        Op::Attention(Attention { q, batch, heads, bias, .. }) => {
            let how = choice.of("attention").how;
            attention::scratch_bytes(how, q.rows() / batch, q.cols / heads, bias.is_some(), threads)
        }
        _ => 0,
    }
}

/// Where a step's operands lie.
struct Operands<'a> {
    arena: &'a Arena,
    places: &'a Places,
}

impl Operands<'_> {
    fn stored(&self, view: View) -> Result<Stored> {
        let t = view.tensor;
        let size = t.dtype.size();
        let start =
            self.arena.place(self.places.of(&t), t.bytes(), t)?.wrapping_add(view.col * size);
        if !(start as usize).is_multiple_of(size) {
            return Err(Error::device(format!("{t} is not aligned to its elements")));
        }
        // SAFETY: the whole tensor lies in the arena, which lives as long as the step; the plan
        // gives overlapping places only to tensors that are not in use at the same time.
        Ok(unsafe { Stored::new(start, t.rows, view.cols, t.cols, t.dtype) })
    }

    fn view_out(&self, view: View) -> Result<Out> {
        let t = view.tensor;
        if t.dtype != DType::F32 {
            return Err(Error::device("the CPU computes on f32 activations only")
                .found(t)
                .try_("cast it first"));
        }
        let start = self.stored(view)?.start().cast::<f32>();
        // SAFETY: as in `stored`; the address is aligned.
        Ok(unsafe { Out::new(start, t.rows, view.cols, t.cols) })
    }

    fn view(&self, view: View) -> Result<In> {
        Ok(self.view_out(view)?.read())
    }

    fn tensor(&self, tensor: Tensor) -> Result<In> {
        self.view(tensor.all())
    }

    fn out(&self, tensor: Tensor) -> Result<Out> {
        self.view_out(tensor.all())
    }

    /// The indices of an `Embed`.
    fn ids(&self, ids: Tensor) -> Result<&[i32]> {
        let start = self.arena.place(self.places.of(&ids), ids.bytes(), ids)?.cast::<i32>();
        if !start.is_aligned() {
            return Err(Error::device(format!("{ids} is not aligned to its elements")));
        }
        // SAFETY: the ids lie in the arena, are aligned, and no operation writes I32.
        Ok(unsafe { std::slice::from_raw_parts(start, ids.rows) })
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the arena is raw memory, and a step asks for its scratch once"
    )]
    fn scratch(&self, bytes: usize) -> Result<&mut [u8]> {
        if bytes == 0 {
            return Ok(&mut []);
        }
        let start = self.arena.place(self.places.scratch, bytes, "an operation's scratch")?;
        // SAFETY: the range lies in the arena, whose bytes were all set when it was made; the plan
        // keeps operands out of it.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }
}

/// Runs `op` on the backend's threads.
pub(super) fn run(backend: &mut CpuBackend, op: &Op, places: &Places) -> Result<()> {
    // Biases and gains come as f32, which may have to be made first.
    let vectors = op.weight_uses().into_iter().filter(|(_, how)| *how == Use::Vector);
    let mut found = [None, None];
    for (slot, (weight, _)) in found.iter_mut().zip(vectors) {
        *slot = Some(backend.vector(places.key(weight), weight)?);
    }
    let [first, second] = &found;
    let backend = &*backend;
    let place = Operands { arena: &backend.arena, places };
    backend
        .pool
        .install(|| dispatch(backend, op, places, &place, first.as_deref(), second.as_deref()))
}

/// `first` and `second` are the vectors of the operation in the order of its fields.
fn dispatch(
    backend: &CpuBackend,
    op: &Op,
    places: &Places,
    place: &Operands,
    first: Option<&[f32]>,
    second: Option<&[f32]>,
) -> Result<()> {
    let how = || backend.choice.of(op.name()).how;
    let weight = |w: Weight| backend.weight(places.key(w), w);
    let scratch = || {
        let stored = |w: Weight| weight(w).map(|w| w.stored()).unwrap_or_default();
        place.scratch(scratch_bytes(&backend.choice, backend.threads, op, &stored))
    };
    match *op {
        Op::Linear(Linear { x, w, side, epilogue, out, .. }) => {
            let side =
                side.map(|s| Ok::<_, Error>((place.tensor(s.t)?, weight(s.b)?))).transpose()?;
            let (x, out, host) = (place.view(x)?, place.view_out(out)?, weight(w)?);
            let tail = match epilogue {
                Epilogue::None => Tail::None,
                Epilogue::Silu => Tail::Silu,
                Epilogue::GeluTanh => Tail::GeluTanh,
                Epilogue::QuickGelu => Tail::QuickGelu,
                Epilogue::Add { residual } => Tail::Add { residual: place.tensor(residual)? },
                Epilogue::GatedAdd { residual, gate } => {
                    Tail::GatedAdd { residual: place.tensor(residual)?, gate: place.view(gate)? }
                }
            };
            match backend.choice.product("linear", host.stored()) {
                Product::Reference => reference::linear(x, host, first, side, tail, out),
                Product::Fast(v) => linear::linear(x, host, first, side, tail, out, scratch()?, v),
            }
        }
        Op::Conv2d(Conv2d { x, w, shape, residual, out, .. }) => {
            let (x, out, host) = (place.tensor(x)?, place.out(out)?, weight(w)?);
            let residual = residual.map(|r| place.tensor(r)).transpose()?;
            match backend.choice.product("conv2d", host.stored()) {
                Product::Reference => reference::conv2d(x, host, first, shape, residual, out),
                Product::Fast(v) => {
                    conv::conv2d(x, host, first, &shape, residual, out, scratch()?, v)
                }
            }
        }
        Op::Attention(Attention {
            q,
            k,
            v,
            batch,
            heads,
            scale,
            causal,
            bias,
            first: split,
            out,
        }) => {
            let a = AttentionArgs {
                q: place.view(q)?,
                k: place.view(k)?,
                v: place.view(v)?,
                batch,
                heads,
                scale,
                causal,
                bias: bias.map(|b| place.tensor(b)).transpose()?,
                first: split.map(|(_, t)| place.out(t)).transpose()?,
                out: place.view_out(out)?,
            };
            attention::attention(how(), &a, scratch()?);
        }
        Op::LayerNormModulate(LayerNormModulate { x, shift, scale, eps, out }) => {
            let (shift, scale) = (place.view(shift)?, place.view(scale)?);
            norm::layer_norm_modulate(how(), place.tensor(x)?, shift, scale, eps, place.out(out)?);
        }
        Op::LayerNorm(LayerNorm { x, eps, out, .. }) => {
            let (weight, bias) = both(first, second)?;
            norm::layer_norm(how(), place.tensor(x)?, weight, bias, eps, place.out(out)?);
        }
        Op::RmsNorm(RmsNorm { x, eps, out, .. }) => {
            norm::rms_norm(how(), place.tensor(x)?, one(first)?, eps, place.out(out)?);
        }
        Op::QkNormRope(QkNormRope {
            qkv,
            rope,
            batch,
            heads,
            tokens,
            first: start,
            eps,
            out,
            ..
        }) => {
            let (q_gain, k_gain) = both(first, second)?;
            let (qkv, rope, out) = (place.tensor(qkv)?, place.tensor(rope)?, place.out(out)?);
            let a = QkNormRopeArgs {
                qkv,
                q_gain,
                k_gain,
                rope,
                batch,
                heads,
                tokens,
                first: start,
                eps,
                out,
            };
            norm::qk_norm_rope(how(), &a);
        }
        Op::GeluMul(GeluMul { gate, up, out }) => {
            elementwise::gelu_mul(how(), place.tensor(gate)?, place.tensor(up)?, place.out(out)?);
        }
        Op::Silu(Silu { x, out }) => elementwise::silu(how(), place.tensor(x)?, place.out(out)?),
        Op::Add(Add { a, b, out }) => {
            elementwise::add(how(), place.tensor(a)?, place.tensor(b)?, place.out(out)?)
        }
        Op::Embed(Embed { table, ids, positions, out }) => {
            let table = Table::new(weight(table)?);
            let positions = positions.map(|p| weight(p).map(Table::new)).transpose()?;
            elementwise::embed(how(), &table, place.ids(ids)?, positions.as_ref(), place.out(out)?);
        }
        Op::TimestepEmbed(TimestepEmbed { t, out }) => {
            reference::timestep_embed(place.tensor(t)?, place.out(out)?)
        }
        Op::Pack(Pack { x, height, width, out, .. }) => {
            elementwise::pack(how(), place.tensor(x)?, height, width, place.out(out)?);
        }
        Op::Unpack(Unpack { x, height, width, scale, shift, out, .. }) => {
            elementwise::unpack(
                how(),
                place.tensor(x)?,
                height,
                width,
                scale,
                shift,
                place.out(out)?,
            );
        }
        Op::EulerStep(EulerStep { x, v, params, cfg }) => {
            elementwise::euler_step(
                how(),
                place.out(x)?,
                place.tensor(v)?,
                place.tensor(params)?,
                cfg,
            );
        }
        Op::GroupNorm(GroupNorm { x, batch, groups, eps, silu, out, .. }) => {
            let (weight, bias) = both(first, second)?;
            let (x, out) = (place.tensor(x)?, place.out(out)?);
            norm::group_norm(
                how(),
                &GroupNormArgs { x, weight, bias, batch, groups, eps, silu, out },
            );
        }
        Op::CopyRows(CopyRows { x, out, batch, from, to, count }) => {
            let (x, out) = (place.stored(x.all())?, place.stored(out.all())?);
            elementwise::copy_rows(how(), &x, &out, batch, from, to, count);
        }
        Op::Cast(Cast { x, out }) => {
            elementwise::cast(how(), &place.stored(x)?, &place.stored(out)?)
        }
    }
    Ok(())
}

fn one(v: Option<&[f32]>) -> Result<&[f32]> {
    v.ok_or_else(|| Error::device("an operation lacks its gain"))
}

fn both<'a>(first: Option<&'a [f32]>, second: Option<&'a [f32]>) -> Result<(&'a [f32], &'a [f32])> {
    Ok((one(first)?, one(second)?))
}
