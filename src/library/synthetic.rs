//! `--model synthetic:dev`: a checkpoint of full size with seeded noise as weights, to measure
//! speed and memory without a download. There are FLUX.1's two models and FLUX.2 \[klein\] 4B.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::host::lock_when_free;
use crate::model::{
    ClipConfig, Flux2Config, FluxConfig, Qwen3Config, T5Config, TensorSpec, VaeConfig,
};
use crate::model::{clip, flux1, flux2, qwen3, t5, vae};
use crate::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use crate::spec::{Component, flux2 as flux2_spec};
use crate::weights::container::file::WeightFile;
use crate::weights::synth;
use crate::weights::synth::{Dialect, Grid, Storage, SynthSpec, Watch};

/// A parsed `synthetic:NAME[:STORAGE]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthetic {
    name: &'static str,
    storage_name: &'static str,
    storage: Storage,
}

impl Synthetic {
    /// Parses the text after `synthetic:`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, storage) = text.split_once(':').unwrap_or((text, "fp8"));
        let name = *["dev", "schnell", "klein"].iter().find(|n| **n == name).ok_or_else(|| {
            Error::argument("unknown synthetic model").found(name).expected(
                "synthetic:dev, synthetic:schnell or synthetic:klein, then :fp8, :bf16 or :f32",
            )
        })?;
        let kinds = [("fp8", Storage::F8ScaledNew), ("bf16", Storage::BF16), ("f32", Storage::F32)];
        let &(storage_name, storage) = kinds.iter().find(|k| k.0 == storage).ok_or_else(|| {
            Error::argument("unknown storage of a synthetic model")
                .found(storage)
                .expected("fp8, bf16 or f32")
        })?;
        Ok(Synthetic { name, storage_name, storage })
    }

    /// The one with this label.
    pub fn of_label(label: &str) -> Option<Self> {
        let (name, storage) = label.split_once('-')?;
        Synthetic::parse(&format!("{name}:{storage}")).ok()
    }

    /// What users type for it: `synthetic:dev:fp8`.
    pub fn model(&self) -> String {
        format!("synthetic:{}:{}", self.name, self.storage_name)
    }

    /// `dev-fp8`.
    pub fn label(&self) -> String {
        format!("{}-{}", self.name, self.storage_name)
    }

    /// The path of its file: `synthetic/dev-fp8.safetensors` in the cache folder.
    pub fn path(&self) -> PathBuf {
        crate::host::cache_folder().join("synthetic").join(format!("{}.safetensors", self.label()))
    }

    /// The model as shapes only, for a plan: nothing is written.
    pub fn shapes(&self) -> Result<WeightFile> {
        synth::shapes(&self.spec(), &self.path())
    }

    /// The checkpoint: every tensor of the full-size model.
    fn spec(&self) -> SynthSpec {
        match self.name {
            "klein" => self.klein(),
            "dev" => self.flux1(FluxConfig::dev()),
            _ => self.flux1(FluxConfig::schnell()),
        }
    }

    fn flux1(&self, flux: FluxConfig) -> SynthSpec {
        let (t5, clip, vae) = (T5Config::xxl(), ClipConfig::large(), VaeConfig::flux());
        let tensors = named(T5, t5::tensors(&t5))
            .chain(named(CLIP, clip::tensors(&clip)))
            .chain(named(TRANSFORMER, flux1::tensors(&flux)))
            .chain(named(VAE, vae::tensors(&vae)))
            .collect();
        let configs = json!({
            "transformer": flux.to_json(),
            "text_encoder": clip.to_json(),
            "text_encoder_2": t5.to_json(),
            "vae": vae.to_json(),
        });
        self.with(tensors, configs)
    }

    fn klein(&self) -> SynthSpec {
        use flux2_spec::{QWEN3, TRANSFORMER, VAE};
        let (flux, text, vae) =
            (Flux2Config::klein_4b(), Qwen3Config::qwen3_4b(), VaeConfig::flux2());
        let tensors = named(QWEN3, qwen3::tensors(&text))
            .chain(named(TRANSFORMER, flux2::tensors(&flux)))
            .chain(named(VAE, vae::tensors(&vae)))
            .collect();
        let configs = json!({
            "transformer": flux.to_json(),
            "text_encoder": text.to_json(),
            "vae": vae.to_json(),
        });
        self.with(tensors, configs)
    }

    fn with(&self, tensors: Vec<(Component, String, Vec<usize>)>, configs: Value) -> SynthSpec {
        SynthSpec {
            seed: 0,
            tensors,
            grid: Grid::F32,
            storage: self.storage,
            dialect: Dialect::Comfy,
            configs,
        }
    }

    /// Writes the file (17 to 68 GB, some minutes) unless it exists. `tell` receives the progress;
    /// an error from it stops the write and removes the unfinished file.
    pub fn make(&self, path: &Path, tell: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        if path.exists() {
            return Ok(());
        }
        tell(Event::note(format!(
            "writing seeded noise as weights to {} (once; delete it when done)",
            path.display()
        )))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| {
            Error::output("cannot make the cache folder")
                .at_path(folder)
                .found(e)
                .try_("set FLUX_FAST_CACHE to a folder with enough space")
        })?;
        // Another process may write the same file: the second one waits, and finds it there. On a
        // file system without locks both write, and the second rename replaces an equal file.
        let _lock = lock(path, tell)?;
        if path.exists() {
            return Ok(());
        }
        let spec = self.spec();
        let watch = Watch::default();
        std::thread::scope(|scope| {
            let write = || synth::write_watched(&spec, path, &watch);
            let writer = std::thread::Builder::new()
                .spawn_scoped(scope, write)
                .map_err(|e| Error::device(format!("a thread cannot be started: {e}")))?;
            let (mut outcome, mut told) = (Ok(()), 0);
            while !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(100));
                let gigabytes = watch.written.load(Ordering::Relaxed) / 1_000_000_000;
                let event = if gigabytes > told {
                    Event::note(format!("{gigabytes} GB written"))
                } else {
                    Event::Tick
                };
                told = gigabytes;
                if outcome.is_ok() {
                    outcome = tell(event);
                    watch.stop.store(outcome.is_err(), Ordering::Relaxed);
                }
            }
            let written = writer.join().unwrap_or_else(|_| {
                Err(Error::output("the synthetic weights could not be made").at_path(path))
            });
            outcome.and(written)
        })
    }
}

/// The tensors of `component`.
fn named(
    component: Component,
    list: Vec<TensorSpec>,
) -> impl Iterator<Item = (Component, String, Vec<usize>)> {
    list.into_iter().map(move |(name, shape)| (component, name, shape))
}

/// Waits until no other process writes the file at `path`. The lock ends with the process.
fn lock(path: &Path, tell: &mut dyn FnMut(Event) -> Result<()>) -> Result<Option<File>> {
    let place = path.with_extension("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&place);
    let Ok(file) = open else { return Ok(None) };
    lock_when_free(file, &mut |is_first| {
        tell(match is_first {
            true => Event::Note("waiting for another process that writes it".into()),
            false => Event::Tick,
        })?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_or_say_what_there_is() {
        assert_eq!(Synthetic::parse("dev").unwrap().label(), "dev-fp8");
        assert_eq!(Synthetic::parse("klein").unwrap().label(), "klein-fp8");
        assert_eq!(Synthetic::parse("schnell:bf16").unwrap().label(), "schnell-bf16");
        let same = Synthetic::of_label("schnell-bf16").unwrap();
        assert_eq!(same.model(), "synthetic:schnell:bf16");
        assert!(Synthetic::of_label("flux1-dev").is_none());
        assert!(Synthetic::parse("pro").unwrap_err().to_string().contains("synthetic:schnell"));
        assert!(Synthetic::parse("dev:int3").unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn a_second_writer_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev-fp8.safetensors");
        let first = lock(&path, &mut |_| Ok(())).unwrap();
        let mut notes = 0;
        let waited = lock(&path, &mut |event| match event {
            Event::Note(_) => {
                notes += 1;
                Ok(())
            }
            _ => Err(Error::cancelled("stopped")),
        });
        assert!(waited.is_err() && notes == 1);
        drop(first);
        assert!(lock(&path, &mut |_| Ok(())).unwrap().is_some());
    }
}
