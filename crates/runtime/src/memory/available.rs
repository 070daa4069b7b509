//! How much memory a model may use, and where that is known from.
//!
//! `MLXCEL_MEMORY_LIMIT` decides where it is set; else the smallest of what is known: MLX's
//! limit, the Mac's unified memory, the control group's limit less its use (version 2 and 1),
//! and `MemAvailable`. Every file is read below a root, so that tests can bring their own.

use std::path::Path;

use mlxcel_estimator::{AvailableSource, EstimatorError, parse_bytes};

use crate::Result;

/// The variable that says how much memory a model may use.
pub const MEMORY_LIMIT_VARIABLE: &str = "MLXCEL_MEMORY_LIMIT";

/// Version 1 of control groups writes a number near 2⁶³ where there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// What a model may use on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes; `None` where nothing says.
    pub bytes: Option<u64>,
    /// Where that is known from.
    pub source: AvailableSource,
    /// Bytes that the machine has.
    pub total_bytes: Option<u64>,
}

impl Available {
    /// What this machine has available now.
    ///
    /// # Errors
    /// A limit in the environment that is no size.
    pub fn find() -> Result<Self> {
        let mlx = mlxcel_core::memory::limit_bytes().ok().map(|bytes| bytes as u64);
        Ok(Self::of(memory_limit()?, Path::new("/"), mlx.filter(|limit| *limit > 0)))
    }

    /// What the files below `root` say, with a limit that a person set and MLX's own.
    fn of(limit: Option<u64>, root: &Path, mlx_limit: Option<u64>) -> Self {
        let meminfo = read(&root.join("proc/meminfo"));
        let kib = |key| meminfo.lines().find_map(|line| kib_line(line, key));
        let unified = unified_memory();
        let total_bytes = kib("MemTotal:").or(unified);
        if let Some(bytes) = limit {
            let source = AvailableSource::MemoryLimitVariable;
            return Self { bytes: Some(bytes), source, total_bytes };
        }
        let known = [
            (AvailableSource::MlxLimit, mlx_limit),
            (AvailableSource::UnifiedMemory, unified),
            (AvailableSource::Cgroup, cgroup(root)),
            (AvailableSource::MemAvailable, kib("MemAvailable:")),
        ];
        let known = known.into_iter().filter_map(|(source, bytes)| Some((source, bytes?)));
        let smallest = known.min_by_key(|(_, bytes)| *bytes);
        Self {
            bytes: smallest.map(|(_, bytes)| bytes),
            source: smallest.map_or(AvailableSource::Unknown, |(source, _)| source),
            total_bytes,
        }
    }
}

/// The limit that the environment sets, in bytes.
///
/// # Errors
/// Text that is no size.
pub fn memory_limit() -> std::result::Result<Option<u64>, EstimatorError> {
    let text = std::env::var_os(MEMORY_LIMIT_VARIABLE).filter(|text| !text.is_empty());
    text.map(|text| parse_bytes(MEMORY_LIMIT_VARIABLE, &text.to_string_lossy())).transpose()
}

/// Makes MLX's allocator keep to the limit that the environment sets, where there is one. On the
/// CPU MLX only stores it: what keeps a model within it there is the estimate before the load.
///
/// # Errors
/// A limit that is no size, or that MLX refuses.
pub fn apply_limit() -> Result<Option<u64>> {
    let limit = memory_limit()?;
    if let Some(bytes) = limit {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        mlxcel_core::memory::set_limit_bytes(bytes).map_err(mlxcel_core::Error::from)?;
    }
    Ok(limit)
}

/// A file's text; empty where it cannot be read.
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The bytes in a line such as `MemTotal:  24684092 kB`, if its key is `key`.
fn kib_line(line: &str, key: &str) -> Option<u64> {
    let value = line.strip_prefix(key)?.trim().strip_suffix("kB")?;
    value.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The names of one version's files.
struct Names {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The key in `memory.stat` of file pages that the kernel drops first.
    reclaimable: &'static str,
}

const V2: Names = Names {
    mount: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    reclaimable: "inactive_file ",
};
const V1: Names = Names {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file ",
};

/// What the control groups of this process leave free: the smallest over the groups and their
/// parents, since a limit binds everything below it.
fn cgroup(root: &Path) -> Option<u64> {
    let groups = read(&root.join("proc/self/cgroup"));
    let free = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let names = match controllers {
            "" => &V2,
            list if list.split(',').any(|name| name == "memory") => &V1,
            _ => return None,
        };
        least_free(&root.join(names.mount), path, names)
    });
    free.min()
}

/// The smallest free amount from `group` up to the mount. A group that is not visible here, as
/// inside a container, counts by its parents.
fn least_free(mount: &Path, group: &str, names: &Names) -> Option<u64> {
    let group = Path::new(group.trim_start_matches('/'));
    let folders = group.ancestors().map(|folder| mount.join(folder));
    folders.filter_map(|folder| free_in(&folder, names)).min()
}

/// A group's limit less its use. File pages that the kernel drops first are not use.
fn free_in(folder: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| read(&folder.join(name)).trim().parse::<u64>().ok();
    let limit = number(names.limit).filter(|limit| *limit < NO_LIMIT)?;
    let stat = read(&folder.join("memory.stat"));
    let reclaimable = stat.lines().find_map(|line| line.strip_prefix(names.reclaimable));
    let reclaimable: u64 = reclaimable.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    let used = number(names.used).unwrap_or(0).saturating_sub(reclaimable);
    Some(limit.saturating_sub(used))
}

/// The Mac's memory, which processor and GPU share.
#[cfg(target_os = "macos")]
fn unified_memory() -> Option<u64> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

/// Only Macs have it.
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

    /// Bytes that are available with these files, and where that is from.
    #[track_caller]
    fn check(files: &[(&str, &str)], mlx: Option<u64>, expected: (Option<u64>, AvailableSource)) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = Available::of(None, root.path(), mlx);
        assert_eq!((found.bytes, found.source), expected);
    }

    #[test]
    fn the_smallest_of_what_is_known() {
        check(&[], None, (None, AvailableSource::Unknown));
        check(&[], Some(7), (Some(7), AvailableSource::MlxLimit));
        check(&[MEMINFO], None, (Some(800 << 10), AvailableSource::MemAvailable));
        check(&[MEMINFO], Some(700 << 10), (Some(700 << 10), AvailableSource::MlxLimit));
        check(&[MEMINFO], Some(900 << 10), (Some(800 << 10), AvailableSource::MemAvailable));
    }

    #[test]
    fn control_groups_of_version_2() {
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
    fn control_groups_of_version_1() {
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
    fn a_limit_that_a_person_set_decides() {
        let root = tempfile::tempdir().unwrap();
        let found = Available::of(Some(5 << 20), root.path(), Some(1));
        assert_eq!(found.bytes, Some(5 << 20));
        assert_eq!(found.source, AvailableSource::MemoryLimitVariable);
    }

    #[test]
    fn use_beyond_the_limit_leaves_nothing() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "100\n"),
            ("sys/fs/cgroup/memory.current", "130\n"),
        ];
        check(&files, None, (Some(0), AvailableSource::Cgroup));
    }
}
