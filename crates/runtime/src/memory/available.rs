//! Memory that a model may use on this machine, and the source of that figure.
//!
//! `MLXCEL_MEMORY_LIMIT` takes precedence. Otherwise it is the smallest known limit: MLX's own, the
//! unified memory of a Mac, the limit less the use of the control group (cgroup v2 and v1), and
//! `MemAvailable`. All files are read below a root folder, so that tests can supply their own.

use std::path::Path;

use mlxcel_estimator::{AvailableSource, EstimatorError, parse_bytes};

use crate::Result;

/// Environment variable that limits the memory a model may use.
const MEMORY_LIMIT_VARIABLE: &str = "MLXCEL_MEMORY_LIMIT";

/// Smallest value that counts as "no limit": cgroup v1 writes a number near 2⁶³ then.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// Memory that a model may use on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AvailableMemory {
    /// Available bytes; `None` if unknown.
    pub(crate) bytes: Option<u64>,
    /// Source of `bytes`.
    pub(crate) source: AvailableSource,
    /// Total memory of the machine, in bytes.
    pub(crate) total_bytes: Option<u64>,
}

impl AvailableMemory {
    /// Measures the memory that is available now.
    ///
    /// # Errors
    /// An invalid size in `MLXCEL_MEMORY_LIMIT`.
    pub(crate) fn measure() -> Result<Self> {
        let mlx = mlxcel_core::memory::limit_bytes().ok().map(|bytes| bytes as u64);
        Ok(Self::below(Path::new("/"), memory_limit()?, mlx.filter(|limit| *limit > 0)))
    }

    /// Evaluates the system files below `root`, the user's `limit` and MLX's own.
    fn below(root: &Path, limit: Option<u64>, mlx_limit: Option<u64>) -> Self {
        let meminfo = read(&root.join("proc/meminfo"));
        let unified = unified_memory();
        let total_bytes = kib_value(&meminfo, "MemTotal:").or(unified);
        if let Some(bytes) = limit {
            let source = AvailableSource::MemoryLimitVariable;
            return Self { bytes: Some(bytes), source, total_bytes };
        }
        let limits = [
            (AvailableSource::MlxLimit, mlx_limit),
            (AvailableSource::UnifiedMemory, unified),
            (AvailableSource::Cgroup, cgroup_free(root)),
            (AvailableSource::MemAvailable, kib_value(&meminfo, "MemAvailable:")),
        ];
        let known = limits.into_iter().filter_map(|(source, bytes)| Some((source, bytes?)));
        let smallest = known.min_by_key(|(_, bytes)| *bytes);
        Self {
            bytes: smallest.map(|(_, bytes)| bytes),
            source: smallest.map_or(AvailableSource::Unknown, |(source, _)| source),
            total_bytes,
        }
    }
}

/// Limit that `MLXCEL_MEMORY_LIMIT` sets, in bytes.
///
/// # Errors
/// Text that is not a size.
pub(crate) fn memory_limit() -> std::result::Result<Option<u64>, EstimatorError> {
    let text = std::env::var_os(MEMORY_LIMIT_VARIABLE).filter(|text| !text.is_empty());
    text.map(|text| parse_bytes(MEMORY_LIMIT_VARIABLE, &text.to_string_lossy())).transpose()
}

/// Passes the limit of `MLXCEL_MEMORY_LIMIT` to MLX's allocator. On the CPU MLX only stores it; there
/// the estimate before loading keeps a model within it.
///
/// # Errors
/// An invalid size, or a limit that MLX rejects.
pub(crate) fn apply_limit() -> Result<()> {
    if let Some(bytes) = memory_limit()? {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        mlxcel_core::memory::set_limit_bytes(bytes).map_err(mlxcel_core::Error::from)?;
    }
    Ok(())
}

/// Contents of a file; empty if it cannot be read.
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Bytes of the line of `meminfo` that starts with `key`, such as `MemTotal:  24684092 kB`.
fn kib_value(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// File names of one cgroup version.
struct CgroupFiles {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Key in `memory.stat` of the file pages that the kernel reclaims first.
    reclaimable: &'static str,
}

const V2: CgroupFiles = CgroupFiles {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    reclaimable: "inactive_file ",
};
const V1: CgroupFiles = CgroupFiles {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};

/// Free bytes of this process's control groups: the minimum over the groups and their ancestors,
/// since each limit applies to everything below it.
fn cgroup_free(root: &Path) -> Option<u64> {
    let groups = read(&root.join("proc/self/cgroup"));
    let free = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        let files = match controllers {
            "" => &V2,
            list if list.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        min_free(&root.join(files.mount), path, files)
    });
    free.min()
}

/// Smallest number of free bytes from `group` up to the mount point. Inside a container the group
/// itself may be invisible; then only its ancestors count.
fn min_free(mount: &Path, group: &str, files: &CgroupFiles) -> Option<u64> {
    let group = Path::new(group.trim_start_matches('/'));
    let folders = group.ancestors().map(|folder| mount.join(folder));
    folders.filter_map(|folder| free_in(&folder, files)).min()
}

/// Limit of a group less its use. Reclaimable file pages do not count as used.
fn free_in(folder: &Path, files: &CgroupFiles) -> Option<u64> {
    let limit = number_in(&folder.join(files.limit)).filter(|limit| *limit < UNLIMITED_BYTES)?;
    let stat = read(&folder.join("memory.stat"));
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(files.reclaimable));
    let reclaimable: u64 = reclaimable.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    let used = number_in(&folder.join(files.used)).unwrap_or(0).saturating_sub(reclaimable);
    Some(limit.saturating_sub(used))
}

/// The number that a file consists of.
fn number_in(path: &Path) -> Option<u64> {
    read(path).trim().parse().ok()
}

/// Memory of a Mac, shared by CPU and GPU.
#[cfg(target_os = "macos")]
fn unified_memory() -> Option<u64> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

/// Only Macs have unified memory.
#[cfg(not(target_os = "macos"))]
fn unified_memory() -> Option<u64> {
    None
}

#[cfg(test)]
#[cfg(not(target_os = "macos"))]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:   800 kB\n");

    /// Asserts the available bytes and their source, given these files.
    #[track_caller]
    fn check(files: &[(&str, &str)], mlx: Option<u64>, expected: (Option<u64>, AvailableSource)) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = AvailableMemory::below(root.path(), None, mlx);
        assert_eq!((found.bytes, found.source), expected);
    }

    #[test]
    fn the_smallest_known_limit_wins() {
        check(&[], None, (None, AvailableSource::Unknown));
        check(&[], Some(7), (Some(7), AvailableSource::MlxLimit));
        check(&[MEMINFO], None, (Some(800 << 10), AvailableSource::MemAvailable));
        check(&[MEMINFO], Some(700 << 10), (Some(700 << 10), AvailableSource::MlxLimit));
        check(&[MEMINFO], Some(900 << 10), (Some(800 << 10), AvailableSource::MemAvailable));
    }

    #[test]
    fn cgroup_v2() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let child = "sys/fs/cgroup/a/b/memory.max";
        let parent = [
            group,
            MEMINFO,
            (child, "max\n"),
            ("sys/fs/cgroup/a/memory.max", "5000\n"),
            ("sys/fs/cgroup/a/memory.current", "3000\n"),
            ("sys/fs/cgroup/a/memory.stat", "file 900\ninactive_file 400\n"),
        ];
        check(&parent, None, (Some(2400), AvailableSource::Cgroup));
        check(
            &[group, MEMINFO, (child, "max\n")],
            None,
            (Some(800 << 10), AvailableSource::MemAvailable),
        );
        check(&[group, (child, "5000\n")], None, (Some(5000), AvailableSource::Cgroup));
    }

    #[test]
    fn cgroup_v1() {
        let group = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n");
        let limit = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        let seen_from_inside = [
            group,
            MEMINFO,
            (limit, "6000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
        ];
        check(&seen_from_inside, None, (Some(5300), AvailableSource::Cgroup));
        let none = [group, MEMINFO, (limit, "9223372036854771712\n")];
        check(&none, None, (Some(800 << 10), AvailableSource::MemAvailable));
    }

    #[test]
    fn the_variable_takes_precedence() {
        let root = tempfile::tempdir().unwrap();
        let found = AvailableMemory::below(root.path(), Some(5 << 20), Some(1));
        assert_eq!(found.bytes, Some(5 << 20));
        assert_eq!(found.source, AvailableSource::MemoryLimitVariable);
    }

    #[test]
    fn use_above_the_limit_leaves_nothing() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "100\n"),
            ("sys/fs/cgroup/memory.current", "130\n"),
        ];
        check(&files, None, (Some(0), AvailableSource::Cgroup));
    }
}
