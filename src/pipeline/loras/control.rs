//! Control LoRAs, which make a model read a control image: they add columns to the first layer of
//! the transformer.

use std::path::Path;

use super::set::LoraSet;
use crate::error::{Error, Result};
use crate::op::WeightSpec;
use crate::pipeline::flux1_kind::Flux1Kind;
use crate::spec::Component;
use crate::spec::lora::ADDED_INPUTS;
use crate::tensor::HostWeight;
use crate::weights::lora::{self, Adapter, Delta, Factor};

impl LoraSet {
    /// The files of control LoRAs, which read a control image; those of strength 0 are among them.
    pub fn control_files(&self) -> impl Iterator<Item = &Path> {
        let widens = |adapter: &Adapter| {
            adapter.changes().iter().any(|change| change.weight.ends_with(ADDED_INPUTS))
        };
        let adapters = self.adapters.iter().map(|(adapter, _)| adapter.as_ref());
        adapters.filter(move |a| widens(a)).map(|a| a.path.as_path())
    }

    /// How many columns these LoRAs add to the input of the transformer.
    pub fn added_inputs(&self) -> usize {
        let added = self.changes().filter(|change| change.weight.ends_with(ADDED_INPUTS));
        added.map(|change| change.delta.shape().1).max().unwrap_or(0)
    }

    /// What kind of control image the control LoRAs of the set read, by the names of their files;
    /// `None` if there are none.
    pub fn control_kind(&self) -> Option<Flux1Kind> {
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let called: Vec<String> = self.control_files().map(name).collect();
        (!called.is_empty()).then(|| Flux1Kind::of_loras(&called))
    }

    /// The columns that the LoRAs of the set add to a weight: the sum of their products.
    pub(super) fn added(&self, component: Component, spec: &WeightSpec) -> Result<HostWeight> {
        let mut sum = vec![0f32; spec.rows * spec.cols];
        for (adapter, strengths) in &self.adapters {
            for change in adapter.of(component, &spec.name) {
                let Delta::Product { a, b } = &change.delta else { continue };
                let product = Factor::Product { a: a.clone(), b: b.clone() }.to_f32();
                let factor = change.factor * f64::from(strengths.at(component));
                for (sum, value) in sum.iter_mut().zip(product) {
                    *sum = (f64::from(*sum) + factor * f64::from(value)) as f32;
                }
            }
        }
        if sum.iter().any(|v| !v.is_finite()) {
            let what = "a LoRA times its strength exceeds the range of the numbers";
            return Err(Error::model(what).at(&spec.name).try_("a smaller strength"));
        }
        let part = lora::owned(&sum, spec.rows, spec.cols);
        Ok(HostWeight { rows: spec.rows, cols: spec.cols, parts: vec![part], int8: None })
    }
}
