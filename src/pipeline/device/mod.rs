//! Opens the device of a pipeline: the one that the options name, or the best that works.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, Device};
use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::host;
use crate::message::Message;

use super::budget::Bounds;
use super::request::Options;

/// A device with the bounds on its memory and the host's.
pub struct Opened {
    /// The device.
    pub backend: Box<dyn Backend>,
    /// Bounds for its plans.
    pub bounds: Bounds,
}

/// Receives notes and warnings; its error ends the opening.
type Notify<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

/// Opens the device that `options` name. [`Device::Auto`] takes a GPU if one works, else the CPU,
/// and sends a note which device it is and why.
pub fn open(options: &Options, notify: Notify) -> Result<Opened> {
    match options.device {
        Device::Auto => open_best(options, notify),
        Device::Cpu => open_cpu(options, notify),
        Device::Cuda(ordinal) => cuda::open(options, ordinal),
        Device::Wgpu(ordinal) => wgpu::open(options, ordinal),
    }
}

/// A GPU by CUDA, else one by wgpu (a discrete GPU before an integrated one), else the CPU. A wgpu
/// driver that computes on the processor is not used, since it is slower than the CPU backend.
fn open_best(options: &Options, notify: Notify) -> Result<Opened> {
    let mut search = Search { options, reasons: Vec::new(), argument: None };
    if let Some((opened, name)) = cuda::search(&mut search).or_else(|| wgpu::search(&mut search)) {
        let running = Message::plain(format!("running on {name}"));
        notify(Event::note(Message::join([running].into_iter().chain(search.reasons), "; ")))?;
        return Ok(opened);
    }
    match open_cpu(options, notify) {
        Ok(opened) => {
            notify(match search.reasons.is_empty() {
                true => Event::note("running on the CPU: no GPU was found"),
                false => Event::warning(Message::with(
                    "running on the CPU: {}",
                    [Message::join(search.reasons, "; ")],
                )),
            })?;
            Ok(opened)
        }
        Err(e) => Err(search.argument.unwrap_or(e)),
    }
}

/// The search for a GPU that works.
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
struct Search<'a> {
    options: &'a Options,
    /// Why the GPUs so far cannot be used.
    reasons: Vec<Message>,
    /// The first error about an option that a GPU does not offer: returned if the CPU does not
    /// offer it either.
    argument: Option<Error>,
}

#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
impl Search<'_> {
    /// The opened device; an error is noted as the reason against it.
    fn accept(&mut self, name: &str, opened: Result<Opened>) -> Option<Opened> {
        let e = match opened {
            Ok(opened) => return Some(opened),
            Err(e) => e,
        };
        self.reasons
            .push(Message::with("{} cannot be used: {}", [Message::plain(name), e.message()]));
        if e.kind() == Kind::Argument {
            self.argument.get_or_insert(e);
        }
        None
    }

    /// Whether every kernel that the options name is among `names` of its operation.
    #[allow(
        clippy::type_complexity,
        reason = "the tables of two backends, each with its own facts"
    )]
    fn has_kernels<T>(&self, names: fn(&str) -> Option<Vec<(&'static str, T)>>) -> bool {
        self.options.kernels.iter().all(|kernel| {
            names(&kernel.op).is_some_and(|names| names.iter().any(|(n, _)| *n == kernel.name))
        })
    }
}

fn open_cpu(options: &Options, notify: Notify) -> Result<Opened> {
    let cores = host::threads();
    if let Some(threads) = options.threads.filter(|threads| *threads > cores) {
        notify(Event::note(Message::with(
            "{threads} {} is more than the {} that the processor runs at a time: {} are used",
            [Message::plain(threads), Message::plain(cores), Message::plain(cores)],
        )))?;
    }
    let backend = CpuBackend::new(CpuOptions {
        // More threads than cores wait for each other.
        threads: options.threads.map(|threads| threads.min(cores)),
        compute: options.compute,
        kernels: options.kernels.clone(),
        isa: None,
    })?;
    if options.vram.is_some() {
        notify(Event::note("{vram} has no effect on the CPU; {ram} bounds its memory"))?;
    }
    let bounds = Bounds::of_cpu(options, backend.caps().memory_bytes);
    Ok(Opened { backend: Box::new(backend), bounds })
}

/// Stands in for a backend that this build does not have.
#[cfg(not(all(feature = "cuda", feature = "wgpu")))]
macro_rules! without {
    ($module:ident, $feature:literal) => {
        mod $module {
            use super::{Opened, Search};
            use crate::error::{Error, Result};
            use crate::pipeline::request::Options;

            pub fn search(_: &mut Search<'_>) -> Option<(Opened, String)> {
                None
            }

            pub fn open(_: &Options, ordinal: usize) -> Result<Opened> {
                Err(Error::device(concat!("this build is without the feature `", $feature, "`"))
                    .at(format!("{}:{ordinal}", $feature)))
            }
        }
    };
}

#[cfg(not(feature = "cuda"))]
without!(cuda, "cuda");
#[cfg(not(feature = "wgpu"))]
without!(wgpu, "wgpu");
