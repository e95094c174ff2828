//! Which variant of each operation runs: the tables of all kernel families, what the device and its driver can run, and what the user forced.

use super::args::{AttentionArgs, Conv2dArgs, LinearArgs};
use super::group_norm::GroupNormArgs;
use super::launch::{Arch, Device, Variant};
use super::{
    attention, attention_hopper, conv2d, elementwise, group_norm, latents, linear, linear_fp8,
    linear_hopper, norm,
};
use crate::backend::KernelChoice;
use crate::backend::forced::{Forced, refused};
use crate::error::{Error, Result};

/// The oldest driver that reads the PTX of variants for `arch`, as 1000 * major + 10 * minor of its CUDA version.
pub(super) fn driver_for(arch: Arch) -> i32 {
    match arch {
        Arch::From(8, 0) => 11080,
        // FP8 matrix instructions of sm_89 came with PTX 8.4.
        _ => 12040,
    }
}

/// Whether a GPU of `capability` with a driver of `driver` can run variants for `arch`.
pub fn runs(arch: Arch, capability: (u32, u32), driver: i32) -> bool {
    // `mma.sync` in FP8 is emulated from 9.0 to 11.x, at a fraction of the speed.
    let emulated = arch == Arch::From(8, 9) && matches!(capability.0, 9..=11);
    arch.runs_on(capability) && driver >= driver_for(arch) && !emulated
}

macro_rules! tables {
    ($($op:literal => $($table:expr),+;)*) => {
        /// All operations that have variants.
        pub fn ops() -> impl Iterator<Item = &'static str> {
            [$($op),*].into_iter()
        }

        /// The variants of `op`, best first, each with the GPUs that can run it; `None` if there is no such operation.
        pub fn names(op: &str) -> Option<Vec<(&'static str, Arch)>> {
            match op {
                $($op => Some([$($table.iter().map(|v| (v.name, v.arch)).collect::<Vec<_>>()),+].concat()),)*
                _ => None,
            }
        }
    };
}

tables! {
    "linear" => linear_hopper::LINEAR_HOPPER, linear_fp8::LINEAR_FP8, linear::LINEAR;
    "conv2d" => conv2d::CONV2D;
    "attention" => attention_hopper::ATTENTION_HOPPER, attention::ATTENTION;
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
    driver: i32,
    forced: Forced,
}

impl Choice {
    /// The choice for a device; what is forced is checked.
    pub fn new(device: Device, driver: i32, forced: Vec<KernelChoice>) -> Result<Choice> {
        let mut choice = Choice { device, driver, forced: Forced::default() };
        choice.force(forced)?;
        Ok(choice)
    }

    /// Checks what is forced, which replaces what was forced before.
    pub fn force(&mut self, forced: Vec<KernelChoice>) -> Result<()> {
        let ((major, minor), driver) = (self.device.capability, self.driver);
        let here = format!(
            "compute capability {major}.{minor}, CUDA {}.{}",
            driver / 1000,
            driver % 1000 / 10
        );
        let variants = |op: &str| {
            let why =
                |arch: Arch| (!self.runs(arch)).then(|| format!("it wants {arch}, this is {here}"));
            Some(names(op)?.into_iter().map(|(name, arch)| (name, why(arch))).collect())
        };
        self.forced = Forced::new(forced, &ops().collect::<Vec<_>>(), &variants)?;
        Ok(())
    }

    /// Whether device and driver can run variants for `arch`.
    pub fn runs(&self, arch: Arch) -> bool {
        runs(arch, self.device.capability, self.driver)
    }

    /// The forced variant, if there is one, which must accept `args`.
    fn wanted<A>(
        &self,
        op: &str,
        tables: &[&'static [Variant<A>]],
        args: &A,
    ) -> Result<Option<&'static Variant<A>>> {
        let Some(name) = self.forced.of(op) else { return Ok(None) };
        let found = tables.iter().flat_map(|t| t.iter()).find(|v| v.name == name);
        let variant = found.expect("forced names are checked when they are given");
        (variant.accepts)(args, &self.device)
            .map(|()| Some(variant))
            .map_err(|why| refused(name, why))
    }

    /// The first variant of `table` that runs here and accepts `args`.
    pub fn first<A>(
        &self,
        op: &str,
        table: &'static [Variant<A>],
        args: &A,
    ) -> Result<&'static Variant<A>> {
        if let Some(variant) = self.wanted(op, &[table], args)? {
            return Ok(variant);
        }
        let mut why = "no kernel is for this GPU";
        for variant in table.iter().filter(|v| self.runs(v.arch)) {
            match (variant.accepts)(args, &self.device) {
                Ok(()) => return Ok(variant),
                Err(reason) => why = reason,
            }
        }
        Err(unable(op, why))
    }

    /// The best of what each family offers: Hopper's own, FP8 products where they are asked for, then BF16.
    pub fn linear(&self, args: &LinearArgs) -> Result<&'static Variant<LinearArgs>> {
        if let Some(variant) = self.wanted(
            "linear",
            &[linear_hopper::LINEAR_HOPPER, linear_fp8::LINEAR_FP8, linear::LINEAR],
            args,
        )? {
            return Ok(variant);
        }
        let special =
            [linear_hopper::choose(args, &self.device), linear_fp8::choose(args, &self.device)];
        match special.into_iter().flatten().find(|v| self.runs(v.arch)) {
            Some(variant) => Ok(variant),
            None => linear::choose(args, &self.device).map_err(|why| unable("linear", why)),
        }
    }

    /// See `attention::choose`.
    pub fn attention(&self, args: &AttentionArgs) -> Result<&'static Variant<AttentionArgs>> {
        let tables = [attention_hopper::ATTENTION_HOPPER, attention::ATTENTION];
        if let Some(variant) = self.wanted("attention", &tables, args)? {
            return Ok(variant);
        }
        let special = attention_hopper::ATTENTION_HOPPER.iter();
        match special
            .into_iter()
            .find(|v| self.runs(v.arch) && (v.accepts)(args, &self.device).is_ok())
        {
            Some(variant) => Ok(variant),
            None => attention::choose(args, &self.device).map_err(|why| unable("attention", why)),
        }
    }

    /// See `conv2d::choose`.
    pub fn conv2d(&self, args: &Conv2dArgs) -> Result<&'static Variant<Conv2dArgs>> {
        let variant = match self.wanted("conv2d", &[conv2d::CONV2D], args)? {
            Some(variant) => variant,
            None => conv2d::choose(args, &self.device),
        };
        (variant.accepts)(args, &self.device).map(|()| variant).map_err(|why| unable("conv2d", why))
    }

    /// See `group_norm::choose`.
    pub fn group_norm(&self, args: &GroupNormArgs) -> Result<&'static Variant<GroupNormArgs>> {
        let variant = match self.wanted("group_norm", &[group_norm::GROUP_NORM], args)? {
            Some(variant) => variant,
            None => group_norm::choose(args, &self.device),
        };
        (variant.accepts)(args, &self.device)
            .map(|()| variant)
            .map_err(|why| unable("group_norm", why))
    }
}

fn unable(op: &str, why: &str) -> Error {
    Error::device(format!("the GPU has no kernel for this {op}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn device(capability: (u32, u32)) -> Device {
        Device { capability, processors: 28, shared_bytes: 101_376, l2_bytes: 3 << 20, fp8: false }
    }

    #[test]
    fn names_begin_with_their_operation_and_end_with_their_arch() {
        for op in ops() {
            let names = names(op).unwrap();
            assert!(
                names.iter().all(|(n, _)| n.starts_with(&format!("{op}_")) && n.contains("_sm")),
                "{names:?}"
            );
            let mut unique: Vec<_> = names.iter().map(|(n, _)| n).collect();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), names.len(), "{names:?}");
            // The last one runs everywhere.
            assert_eq!(names.last().unwrap().1, Arch::From(8, 0));
        }
    }

    #[test]
    fn wrong_names_and_other_gpus_are_refused_with_what_there_is() {
        let forced = |op: &str, name: &str| vec![KernelChoice::new(op, name)];
        let refuse = |f| Choice::new(device((8, 6)), 12040, f).unwrap_err();
        assert!(refuse(forced("linaer", "x")).to_string().contains("layer_norm_modulate"));
        assert!(refuse(forced("silu", "silu_f64")).to_string().contains("silu_any_sm80"));
        assert_eq!(refuse(forced("silu", "silu_f64")).kind(), Kind::Argument);
        assert!(Choice::new(device((8, 6)), 12040, forced("silu", "silu_any_sm80")).is_ok());
    }

    #[test]
    fn an_old_driver_reads_only_old_ptx() {
        let of = |driver| Choice::new(device((9, 0)), driver, vec![]).unwrap();
        assert!(
            of(11080).runs(Arch::From(8, 0))
                && !of(13000).runs(Arch::From(8, 9))
                && !of(11080).runs(Arch::From(8, 9))
                && !of(12000).runs(Arch::Only(9, 0))
        );
        assert!(of(12040).runs(Arch::Only(9, 0)));
        let ada = Choice::new(device((8, 9)), 13000, vec![]).unwrap();
        assert!(ada.runs(Arch::From(8, 9)) && !ada.runs(Arch::Only(9, 0)));
    }
}
