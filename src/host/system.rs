//! The processor, the operating system and the disks.

use std::path::Path;

use sysinfo::{CpuRefreshKind, RefreshKind, System};

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
}
