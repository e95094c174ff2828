//! What the host has: the processor's name, and the memory that this process may fill.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What people call the processor.
pub(super) fn processor_name() -> String {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let brand = system.ok().and_then(|s| s.cpus().first().map(|c| c.brand().trim().to_string()));
    brand.filter(|b| !b.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// All memory of the machine, or of the smallest control group around this process, in bytes.
pub(super) fn total_bytes() -> Result<u64> {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh);
    let machine = system.map_err(|e| {
        Error::device(format!("could not ask how much memory there is: {e}")).at("cpu")
    })?;
    let machine = machine.total_memory();
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let limit = group.and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    Ok(limit.map_or(machine, |limit| limit.min(machine)))
}

/// The smallest `memory.max` on the way from the group that `membership` (the text of `/proc/self/cgroup`, version 2) names up to `root`.
fn group_limit(membership: &str, root: &Path) -> Option<u64> {
    let group = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder: PathBuf = root.join(group.trim_end());
    let mut smallest = None;
    while folder.starts_with(root) {
        let limit = std::fs::read_to_string(folder.join("memory.max"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        smallest = [smallest, limit].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_group_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(group_limit("0::/a/b\n", root.path()), None);
        std::fs::write(root.path().join("a/memory.max"), "4096\n").unwrap();
        assert_eq!(group_limit("0::/a/b\n", root.path()), Some(4096));
        std::fs::write(inner.join("memory.max"), "1024\n").unwrap();
        assert_eq!(group_limit("0::/a/b\n", root.path()), Some(1024));
        assert_eq!(group_limit("3:cpu:/a\n", root.path()), None);
    }

    #[test]
    fn the_machine_has_memory_and_a_processor() {
        assert!(total_bytes().unwrap() > 1 << 28);
        assert!(!processor_name().is_empty());
    }
}
