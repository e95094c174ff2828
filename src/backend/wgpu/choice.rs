//! Which variant of each operation runs: the tables of all families, what the adapter has, and what the user forced.

use super::args::LinearArgs;
use super::attention::{self, AttentionArgs};
use super::conv2d::{self, Conv2dArgs};
use super::group_norm::{self, GroupNormArgs};
use super::launch::{Device, Needs, Variant};
use super::{elementwise, latents, linear, norm};
use crate::backend::KernelChoice;
use crate::backend::forced::{Forced, refused};
use crate::error::{Error, Result};

macro_rules! tables {
    ($($op:literal => $table:expr;)*) => {
        /// All operations that have variants.
        pub fn ops() -> impl Iterator<Item = &'static str> {
            [$($op),*].into_iter()
        }

        /// The variants of `op`, best first, each with what it needs of an adapter; `None` if there is no such operation.
        pub fn names(op: &str) -> Option<Vec<(&'static str, Needs)>> {
            match op {
                $($op => Some($table.iter().map(|v| (v.name, v.needs)).collect()),)*
                _ => None,
            }
        }
    };
}

tables! {
    "linear" => linear::LINEAR;
    "conv2d" => conv2d::CONV2D;
    "attention" => attention::ATTENTION;
    "layer_norm_modulate" => norm::LAYER_NORM_MODULATE;
    "layer_norm" => norm::LAYER_NORM;
    "rms_norm" => norm::RMS_NORM;
    "qk_norm_rope" => norm::QK_NORM_ROPE;
    "gelu_mul" => elementwise::GELU_MUL;
    "silu" => elementwise::SILU;
    "add" => elementwise::ADD;
    "embed" => latents::EMBED;
    "timestep_embed" => latents::TIMESTEP_EMBED;
    "pack" => latents::PACK;
    "unpack" => latents::UNPACK;
    "euler_step" => latents::EULER_STEP;
    "group_norm" => group_norm::GROUP_NORM;
    "copy_rows" => elementwise::COPY_ROWS;
    "cast" => elementwise::CAST;
}

/// The variants that a device uses.
#[derive(Debug)]
pub(super) struct Choice {
    pub device: Device,
    forced: Forced,
}

impl Choice {
    /// The choice for a device; what is forced is checked.
    pub fn new(device: Device, forced: Vec<KernelChoice>) -> Result<Choice> {
        let mut choice = Choice { device, forced: Forced::default() };
        choice.force(forced)?;
        Ok(choice)
    }

    /// Checks what is forced, which replaces what was forced before.
    pub fn force(&mut self, forced: Vec<KernelChoice>) -> Result<()> {
        let device = &self.device;
        let variants = |op: &str| {
            let why = |needs: Needs| needs.missing(device).map(str::to_string);
            Some(names(op)?.into_iter().map(|(name, needs)| (name, why(needs))).collect())
        };
        self.forced = Forced::new(forced, &ops().collect::<Vec<_>>(), &variants)?;
        Ok(())
    }

    /// The forced variant, or the one that `usual` gives.
    fn pick<A>(
        &self,
        op: &str,
        table: &'static [Variant<A>],
        args: &A,
        usual: impl FnOnce() -> Result<&'static Variant<A>, &'static str>,
    ) -> Result<&'static Variant<A>> {
        let Some(name) = self.forced.of(op) else {
            return usual().map_err(|why| none_for(op, why));
        };
        let variant = table
            .iter()
            .find(|v| v.name == name)
            .expect("forced names are checked when they are given");
        (variant.accepts)(args, &self.device).map(|()| variant).map_err(|why| refused(name, why))
    }

    /// The first variant of `table` that the adapter can run and that accepts `args`.
    pub fn first<A>(
        &self,
        op: &str,
        table: &'static [Variant<A>],
        args: &A,
    ) -> Result<&'static Variant<A>> {
        self.pick(op, table, args, || first(table, args, &self.device))
    }

    pub fn linear(&self, args: &LinearArgs) -> Result<&'static Variant<LinearArgs>> {
        self.pick("linear", linear::LINEAR, args, || linear::choose(args, &self.device))
    }

    /// The device as the products of sides see it: none of them in f16.
    pub fn for_sides(&self) -> Device {
        Device { half: false, ..self.device.clone() }
    }

    /// The variant for the product of a side, whatever is forced.
    pub fn linear_of_side(
        &self,
        args: &LinearArgs,
        device: &Device,
    ) -> Result<&'static Variant<LinearArgs>> {
        linear::choose(args, device).map_err(|why| none_for("linear", why))
    }

    pub fn attention(&self, args: &AttentionArgs) -> Result<&'static Variant<AttentionArgs>> {
        self.pick("attention", attention::ATTENTION, args, || attention::choose(args, &self.device))
    }

    pub fn conv2d(&self, args: &Conv2dArgs) -> Result<&'static Variant<Conv2dArgs>> {
        self.pick("conv2d", conv2d::CONV2D, args, || {
            accepted(conv2d::choose(args, &self.device), args, &self.device)
        })
    }

    pub fn group_norm(&self, args: &GroupNormArgs) -> Result<&'static Variant<GroupNormArgs>> {
        self.pick("group_norm", group_norm::GROUP_NORM, args, || {
            accepted(group_norm::choose(args, &self.device), args, &self.device)
        })
    }
}

fn none_for(op: &str, why: &str) -> Error {
    Error::memory(format!("the GPU has no shader for this {op}: {why}"))
        .at("wgpu")
        .try_("a smaller picture, fewer at a time (-n), --compute bf16, or --device cpu")
}

fn accepted<A>(
    variant: &'static Variant<A>,
    args: &A,
    device: &Device,
) -> Result<&'static Variant<A>, &'static str> {
    (variant.accepts)(args, device).map(|()| variant)
}

/// The first variant that runs on `device` and accepts `args`, or why the last of them does not.
fn first<A>(
    table: &'static [Variant<A>],
    args: &A,
    device: &Device,
) -> Result<&'static Variant<A>, &'static str> {
    let mut why = "there is none";
    for variant in table {
        match variant.needs.missing(device).map_or_else(|| (variant.accepts)(args, device), Err) {
            Ok(()) => return Ok(variant),
            Err(reason) => why = reason,
        }
    }
    Err(why)
}
