//! From a request to pictures: text, noise, schedule, the phases, and image files.

mod device;
mod engine;
mod generate;
pub mod images;
mod lookup;
pub mod loras;
pub mod metadata;
mod model;
pub mod noise;
mod outlook;
mod phases;
pub mod report;
pub mod request;
pub mod schedule;
mod synthetic;
mod text_cache;
mod tiles;
pub mod tokenizers;

pub use engine::Pipeline;
pub use outlook::{Outlook, outlook};
pub use report::PlanReport;

pub use crate::weights::{Inspection, convert, exit_on_lost_pages, hub, inspect as inspect_weights, places as models};

/// Where this program keeps what it can make again: `FLUX_FAST_CACHE`, else `flux-fast` in the user's cache folder.
pub fn cache_folder() -> std::path::PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(std::path::PathBuf::from);
    let user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).or_else(|| set("LOCALAPPDATA"));
    set("FLUX_FAST_CACHE")
        .or_else(|| Some(user()?.join("flux-fast")))
        .unwrap_or_else(|| std::env::temp_dir().join("flux-fast"))
}
