//! Host memory: how much there is, how much is free, and how much this process uses.

use std::path::Path;
use std::path::PathBuf;

use sysinfo::{MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

use crate::error::{Error, Result};

/// The memory of the system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFacts {
    /// All memory of the machine.
    pub total_bytes: u64,
    /// Memory of the machine that programs can still use; 0 if the system does not report it.
    pub available_bytes: u64,
    /// The limit of the container that this process runs in, if there is one.
    pub limit_bytes: Option<u64>,
    /// The bytes that are left below the limit of the container.
    left_bytes: Option<u64>,
}

/// What the system reports; `None` if it cannot be asked, for example in a sandbox.
pub fn memory_facts() -> Option<MemoryFacts> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let total_bytes = system.total_memory();
    let limits = system.cgroup_limits();
    Some(MemoryFacts {
        total_bytes,
        available_bytes: system.available_memory(),
        limit_bytes: limits.as_ref().map(|l| l.total_memory).filter(|&limit| limit < total_bytes),
        left_bytes: limits.as_ref().map(|l| l.free_memory),
    })
}

/// Memory that this process can still use, in bytes: what is free on the machine, and no more than
/// the container's limit leaves. `None` if the system does not report it.
pub fn available_memory() -> Option<u64> {
    let facts = memory_facts()?;
    let left = facts.left_bytes.unwrap_or(u64::MAX);
    Some(facts.available_bytes).filter(|&bytes| bytes > 0).map(|bytes| bytes.min(left))
}

/// The resident set of this process in bytes; 0 if the system does not report it.
pub fn resident_memory() -> u64 {
    let Ok(pid) = sysinfo::get_current_pid() else { return 0 };
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map_or(0, |p| p.memory())
}

/// Bytes of the program's own file and of libraries that are in memory at most. (Measured: 20 to 40
/// MB, by what other processes have read of them.)
const CODE_BYTES: u64 = 40 << 20;

/// What this process uses, in bytes: [`resident_memory`] with an upper bound in place of the pages
/// of files. Those that are resident differ from run to run, and a bound that was enough once must
/// be enough always.
pub fn steady_memory() -> u64 {
    match std::fs::read_to_string("/proc/self/status").ok().and_then(|text| unshared(&text)) {
        Some(bytes) => bytes + CODE_BYTES,
        None => resident_memory(),
    }
}

/// The bytes that belong to no file, from the text of `/proc/self/status`.
fn unshared(status: &str) -> Option<u64> {
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("RssShmem:")?) << 10)
}

/// Memory that this process could use at most, in bytes: all memory of the machine, or the limit of
/// the smallest control group around the process.
pub fn usable_memory() -> Result<u64> {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh)
        .map_err(|e| Error::device(format!("the size of the host memory cannot be read: {e}")))?;
    let machine = system.total_memory();
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let limit = group.and_then(|text| group_limit(&text, Path::new("/sys/fs/cgroup")));
    Ok(limit.map_or(machine, |limit| limit.min(machine)))
}

/// The smallest `memory.max` from the control group that `membership` names up to `root`.
/// `membership` is the text of `/proc/self/cgroup`, version 2.
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
    fn pages_of_files_do_not_count_as_unshared() {
        let status =
            "VmRSS:\t 900 kB\nRssAnon:\t     120 kB\nRssFile:\t 700 kB\nRssShmem:\t 8 kB\n";
        assert_eq!(unshared(status), Some(128 << 10));
        assert_eq!(unshared("RssAnon:\t 120 kB\n"), None);
        assert!(!cfg!(target_os = "linux") || steady_memory() > CODE_BYTES);
    }

    #[test]
    fn the_smallest_limit_of_the_groups_around_the_process_is_used() {
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
    fn this_machine_reports_its_memory() {
        let facts = memory_facts().unwrap();
        assert!(usable_memory().unwrap() > 1 << 28 && facts.total_bytes > 1 << 28);
        assert!(available_memory().unwrap() <= facts.total_bytes);
        assert!((1 << 20..facts.total_bytes).contains(&resident_memory()));
    }
}
