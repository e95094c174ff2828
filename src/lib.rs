//! Inference for FLUX.1 and FLUX.2 \[klein\] on small GPUs and plain CPUs: a planned memory budget,
//! streamed weights, no Python.
//!
//! ```no_run
//! use flux_fast::{Device, Engine, Options, Request};
//!
//! fn main() -> flux_fast::Result<()> {
//!     let options = Options::default().device(Device::Auto).vram("8G".parse()?);
//!     let mut engine = Engine::open(options)?;
//!     let picture = engine.generate(&Request::new("a fox").size(1024, 768).seed(7))?;
//!     picture.save("fox.png")?;
//!     Ok(())
//! }
//! ```
//!
//! [`Options`] name the model and the device, a [`Request`] what to draw. [`Engine::generate_with`]
//! sends an [`Event`] for every step and can be cancelled there. The result contains its
//! [`Settings`], and `save` writes them into the files, so that an image can be made again.
//!
//! # Features
//! | feature | adds |
//! |---|---|
//! | `cuda` | NVIDIA GPUs, through the driver alone |
//! | `wgpu` | other GPUs, through Vulkan, Metal and DirectX 12 |
//! | `hub` | downloads from the Hugging Face hub |
//! | `embedded` | the small model inside the program (35 MB) |
//! | `server` | [`server`]: jobs over HTTP |
//! | `nats` | several machines behind one server, over NATS |
//! | `cli` | the command line, for the program of this package |
//!
//! All are in the default; without any the library still runs on the CPU. The library changes no
//! state of the process: signal handlers and the like belong to the command line.
//!
//! # Where to look
//! Everything for a program that draws images is exported here. [`error`] and [`event`] describe
//! what a run returns and reports, [`pipeline`] reads and writes image files and downloads models,
//! [`message`] and [`units`] are for texts.
//!
//! The other modules are internal: public for the tests and benchmarks of this project, and without
//! any promise that they stay as they are. `RUSTDOCFLAGS="--cfg internals" cargo doc` includes
//! them, and `ARCHITECTURE.md` describes them.

#![warn(missing_docs)]

#[cfg_attr(not(internals), doc(hidden))]
pub mod backend;
#[cfg(feature = "cli")]
#[cfg_attr(not(internals), doc(hidden))]
pub mod cli;
#[cfg_attr(not(internals), doc(hidden))]
pub mod dtype;
pub mod error;
pub mod event;
#[cfg_attr(not(internals), doc(hidden))]
pub mod host;
#[cfg_attr(not(internals), doc(hidden))]
pub mod library;
pub mod message;
#[cfg_attr(not(internals), doc(hidden))]
pub mod model;
#[cfg_attr(not(internals), doc(hidden))]
pub mod op;
pub mod pipeline;
#[cfg_attr(not(internals), doc(hidden))]
pub mod plan;
#[cfg(feature = "server")]
pub mod server;
#[cfg_attr(not(internals), doc(hidden))]
pub mod spec;
#[cfg_attr(not(internals), doc(hidden))]
pub mod stream;
#[cfg_attr(not(internals), doc(hidden))]
pub mod tensor;
#[cfg_attr(not(internals), doc(hidden))]
pub mod text;
pub mod units;
#[cfg_attr(not(internals), doc(hidden))]
pub mod weights;

pub use backend::{Compute, Device, KernelChoice};
pub use error::{Error, Kind, Result};
pub use event::{Event, Phase};
pub use library::ModelFiles;
pub use library::places::ModelPlaces;
pub use message::Message;
pub use pipeline::request::{Generated, Image, LoraChoice, Options, Prompt, Request, Settings};
pub use pipeline::{Engine, PlanReport};
pub use units::ByteSize;
