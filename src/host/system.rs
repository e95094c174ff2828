//! The processor, the operating system and the disks.

use std::error::Error as _;
use std::path::Path;
use std::sync::OnceLock;

use sysinfo::{CpuRefreshKind, RefreshKind, System};

use crate::error::{Error, Result};

/// The name of the processor, as its maker writes it; `None` if the system does not report it.
pub fn processor_name() -> Option<String> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let brand = system.ok()?.cpus().first()?.brand().trim().to_string();
    Some(brand).filter(|brand| !brand.is_empty())
}

/// How many threads can run at the same time; at least 1.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The name and version of the operating system, and the processor architecture.
pub fn operating_system() -> String {
    let version = System::long_os_version().unwrap_or_default();
    format!("{version} {}", std::env::consts::ARCH).trim().to_string()
}

/// Free bytes on the disk that contains `folder`, for the user of this process; `None` if the
/// system does not report it.
pub fn free_disk_bytes(folder: &Path) -> Option<u64> {
    fs4::available_space(folder).ok()
}

/// GPU memory that is left to other programs on a GPU with `total` bytes: the display and other
/// programs need a little more now and then.
///
/// Windows, and Linux inside it (WSL), do not refuse memory that a GPU does not have but move it to
/// the host, and everything becomes slow. What they report as free is a budget that may shrink, so
/// more is left there.
pub fn gpu_margin_bytes(total: u64) -> u64 {
    margin_bytes(total, cfg!(windows) || is_wsl())
}

fn margin_bytes(total: u64, paged: bool) -> u64 {
    let least = match paged {
        true if total > 15 << 30 => 700 << 20,
        true => 600 << 20,
        false => 256 << 20,
    };
    (total / 50).max(least)
}

/// Whether this is Linux inside Windows.
fn is_wsl() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    cfg!(target_os = "linux") && release.is_ok_and(|r| r.to_lowercase().contains("microsoft"))
}

/// Starts the threads that `rayon` shares between all its users, unless they run already. If their
/// first use started them, a failure would be a panic.
///
/// # Errors
/// [`Kind::Device`](crate::error::Kind::Device) if the system refuses a thread.
pub fn start_shared_threads() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        Ok(()) => Ok(()),
        // Without a source: another user has started them.
        Err(e) if e.source().is_none() => Ok(()),
        Err(e) => Err(Error::device(format!("threads cannot be started: {e}"))
            .try_("raise the limits of the process (ulimit -u, ulimit -v)")),
    };
    STARTED.get_or_init(start).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_reports_its_processor_and_disks() {
        assert!(threads() >= 1);
        assert!(operating_system().ends_with(std::env::consts::ARCH));
        assert!(free_disk_bytes(&std::env::temp_dir()).is_some());
        assert_eq!(free_disk_bytes(Path::new("/no/such/folder")), None);
    }

    #[test]
    fn more_gpu_memory_is_left_where_it_is_moved_to_the_host() {
        let gpu = |gib: u64, paged| margin_bytes(gib << 30, paged) >> 20;
        assert_eq!((gpu(8, false), gpu(8, true)), (256, 600));
        assert_eq!((gpu(24, false), gpu(24, true)), (491, 700));
        assert_eq!((gpu(80, false), gpu(80, true)), (1638, 1638));
    }
}
